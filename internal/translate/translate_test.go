package translate_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
	"ambitmesh.dev/ambit/test/golist"
)

func TestPure(t *testing.T) { golist.Pure(t) }

// golden is how a Result is written to out.yaml.
type golden struct {
	Clusters   map[mesh.ClusterName]map[string]any `json:"clusters"`
	Conditions map[string][]mesh.Condition         `json:"conditions"`
	Policies   map[string]mesh.PolicyReport        `json:"policies,omitempty"`
	Workspaces map[string]mesh.WorkspaceReport     `json:"workspaces,omitempty"`
	Settings   map[string]mesh.SettingsReport      `json:"settings,omitempty"`
}

func TestGolden(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in, err := os.ReadFile(filepath.Join(dir, "in.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			read := func() *mesh.Snapshot {
				s := new(mesh.Snapshot)
				if err := yaml.UnmarshalStrict(in, s); err != nil {
					t.Fatal(err)
				}
				return s
			}
			snap := read()
			res, err := translate.All(snap)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(read(), snap); diff != "" {
				t.Errorf("translation changed its input:\n%s", diff)
			}
			again, err := translate.All(read())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(res, again); diff != "" {
				t.Errorf("not deterministic:\n%s", diff)
			}
			g := golden{Clusters: map[mesh.ClusterName]map[string]any{}, Conditions: map[string][]mesh.Condition{}}
			for c, objects := range res.Objects {
				g.Clusters[c] = map[string]any{}
				for ref, o := range objects.All() {
					var manifest any
					if err := json.Unmarshal(o.Manifest, &manifest); err != nil {
						t.Fatal(err)
					}
					g.Clusters[c][ref.String()] = manifest
				}
			}
			for ref, cs := range res.Conditions {
				g.Conditions[ref.String()] = cs
			}
			g.Policies, g.Workspaces, g.Settings = named(res.Policies), named(res.Workspaces), named(res.Settings)
			got, err := yaml.Marshal(g)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "out.yaml")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (UPDATE=1 rewrites it):\n%s", file, diff)
			}
		})
	}
}

func named[V any](m map[mesh.Ref]V) map[string]V {
	out := map[string]V{}
	for ref, v := range m {
		out[ref.String()] = v
	}
	return out
}

func TestWarm(t *testing.T) {
	full, part := &mesh.Inventory{Complete: true}, &mesh.Inventory{}
	known := func(n mesh.ClusterName, inv *mesh.Inventory) mesh.Cluster {
		return mesh.Cluster{Name: n, UID: "uid-" + mesh.ClusterUID(n), Inventory: inv}
	}
	skip := known("skip", nil)
	skip.SkipWarming = true
	waitAdd := "nothing is removed until these clusters have reported their inventory (or are deregistered, or have spec.skipWarming): "
	for name, tc := range map[string]struct {
		clusters []mesh.Cluster
		since    time.Duration
		want     translate.Warmth
	}{
		"no cluster":           {nil, 0, translate.Warmth{Add: true, Remove: true, Reason: "the inventory of every cluster is known"}},
		"all in":               {[]mesh.Cluster{known("a", full), known("b", full)}, 0, translate.Warmth{Add: true, Remove: true, Reason: "the inventory of every cluster is known"}},
		"never connected":      {[]mesh.Cluster{known("a", full), {Name: "new"}}, 0, translate.Warmth{Add: true, Remove: true, Reason: "the inventory of every cluster is known"}},
		"skipWarming":          {[]mesh.Cluster{known("a", full), skip}, 0, translate.Warmth{Add: true, Remove: true, Reason: "the inventory of every cluster is known"}},
		"one absent, at start": {[]mesh.Cluster{known("a", full), known("b", nil)}, 29 * time.Second, translate.Warmth{Waiting: []mesh.ClusterName{"b"}, Reason: "nothing is sent yet: waiting for the inventory of b"}},
		"one half, at start":   {[]mesh.Cluster{known("a", part), known("b", full)}, 0, translate.Warmth{Waiting: []mesh.ClusterName{"a"}, Reason: "nothing is sent yet: waiting for the inventory of a"}},
		"one absent, later":    {[]mesh.Cluster{known("a", full), known("b", nil)}, 30 * time.Second, translate.Warmth{Add: true, Waiting: []mesh.ClusterName{"b"}, Reason: waitAdd + "b"}},
		"all absent, a day on": {[]mesh.Cluster{known("a", nil), known("b", part)}, 24 * time.Hour, translate.Warmth{Add: true, Waiting: []mesh.ClusterName{"a", "b"}, Reason: waitAdd + "a, b"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := translate.Warm(&mesh.Snapshot{Clusters: tc.clusters}, tc.since, 30*time.Second)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
