package apply

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
)

func ref(version, name string) mesh.Ref {
	return mesh.Ref{Group: "security.istio.io", Version: version, Kind: "AuthorizationPolicy", Namespace: "billing", Name: name}
}

func TestDecide(t *testing.T) {
	now := time.Unix(1000, 0)
	soon, past := now.Add(time.Second), now.Add(-time.Second)
	a, b, old := ref("v1", "a"), ref("v1", "b"), ref("v1beta1", "a")
	want := func(text string) wish {
		return wish{manifest: []byte(text), hash: mesh.FingerprintOf([]byte(text))}
	}
	done := known{hash: want("1").hash, ok: true}
	failed := func(next time.Time) known { return known{hash: want("1").hash, tries: 3, next: next} }
	for name, tc := range map[string]struct {
		desired  map[mesh.Ref]wish
		complete bool
		listed   []mesh.Ref
		state    map[mesh.Ref]known
		want     plan
	}{
		"nothing":                        {complete: true},
		"new: listed before applied":     {desired: map[mesh.Ref]wish{a: want("1")}, want: plan{Record: []mesh.Ref{a}, Apply: []mesh.Ref{a}}},
		"listed by an earlier life":      {desired: map[mesh.Ref]wish{a: want("1")}, complete: true, listed: []mesh.Ref{a}, want: plan{Apply: []mesh.Ref{a}}},
		"done":                           {desired: map[mesh.Ref]wish{a: want("1")}, complete: true, listed: []mesh.Ref{a}, state: map[mesh.Ref]known{a: done}},
		"changed":                        {desired: map[mesh.Ref]wish{a: want("2")}, listed: []mesh.Ref{a}, state: map[mesh.Ref]known{a: done}, want: plan{Apply: []mesh.Ref{a}}},
		"changed: no back-off of before": {desired: map[mesh.Ref]wish{a: want("2")}, listed: []mesh.Ref{a}, state: map[mesh.Ref]known{a: failed(soon)}, want: plan{Apply: []mesh.Ref{a}}},
		"failed, not due":                {desired: map[mesh.Ref]wish{a: want("1")}, listed: []mesh.Ref{a}, state: map[mesh.Ref]known{a: failed(soon)}, want: plan{Wake: soon}},
		"failed, due":                    {desired: map[mesh.Ref]wish{a: want("1")}, listed: []mesh.Ref{a}, state: map[mesh.Ref]known{a: failed(past)}, want: plan{Apply: []mesh.Ref{a}}},
		"drifted":                        {desired: map[mesh.Ref]wish{a: want("1")}, listed: []mesh.Ref{a}, state: map[mesh.Ref]known{a: done.withDrift(now)}, want: plan{Apply: []mesh.Ref{a}}},
		"absent from an incomplete state": {
			desired: map[mesh.Ref]wish{a: want("1")}, listed: []mesh.Ref{a, b}, state: map[mesh.Ref]known{a: done, b: done},
		},
		"absent from a complete state": {
			desired: map[mesh.Ref]wish{a: want("1")}, complete: true, listed: []mesh.Ref{a, b}, state: map[mesh.Ref]known{a: done, b: done}, want: plan{Prune: []mesh.Ref{b}},
		},
		"nothing received":         {listed: []mesh.Ref{a, b}},
		"a failed delete, not due": {complete: true, listed: []mesh.Ref{b}, state: map[mesh.Ref]known{b: {next: soon}}, want: plan{Wake: soon}},
		"another version of the same object is not pruned": {
			desired: map[mesh.Ref]wish{a: want("1")}, complete: true, listed: []mesh.Ref{old}, state: map[mesh.Ref]known{old: done},
			want: plan{Record: []mesh.Ref{a}, Apply: []mesh.Ref{a}, Drop: []mesh.Ref{old}},
		},
		"not even its line, while incomplete": {
			desired: map[mesh.Ref]wish{a: want("1")}, listed: []mesh.Ref{old}, want: plan{Record: []mesh.Ref{a}, Apply: []mesh.Ref{a}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			listed := map[mesh.Ref]bool{}
			for _, r := range tc.listed {
				listed[r] = true
			}
			if diff := cmp.Diff(tc.want, decide(tc.desired, tc.complete, listed, tc.state, now)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDriftIsPutBackAtOnceButNotForEver(t *testing.T) {
	k, now := known{ok: true}, time.Unix(1000, 0)
	var waits []time.Duration
	for range 7 {
		k = k.withDrift(now)
		waits = append(waits, max(0, k.next.Sub(now)))
		k.drifted, k.next = false, time.Time{}
		now = now.Add(time.Second)
	}
	if diff := cmp.Diff([]time.Duration{0, 0, 0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}, waits); diff != "" {
		t.Error(diff)
	}
	if k = k.withDrift(now.Add(2 * time.Minute)); !k.next.IsZero() {
		t.Error("peace of two minutes is not forgotten")
	}
}

func TestCovers(t *testing.T) {
	for name, tc := range map[string]struct {
		live, desired string
		want          bool
	}{
		"same":                       {`{spec: {action: ALLOW}}`, `{spec: {action: ALLOW}}`, true},
		"more fields":                {`{metadata: {uid: x}, spec: {action: ALLOW, replicas: 1}}`, `{spec: {action: ALLOW}}`, true},
		"changed":                    {`{spec: {action: DENY}}`, `{spec: {action: ALLOW}}`, false},
		"missing":                    {`{spec: {}}`, `{spec: {action: ALLOW}}`, false},
		"one rule more":              {`{rules: [{from: a}, {}]}`, `{rules: [{from: a}]}`, false},
		"one rule less":              {`{rules: []}`, `{rules: [{from: a}]}`, false},
		"order":                      {`{rules: [b, a]}`, `{rules: [a, b]}`, false},
		"defaults in list elements":  {`{ports: [{port: 80, protocol: TCP}]}`, `{ports: [{port: 80}]}`, true},
		"numbers":                    {`{port: 80}`, `{port: 80.0}`, true},
		"no rules is not any rule":   {`{rules: [{}]}`, `{rules: []}`, false},
		"empty list kept as nothing": {`{}`, `{rules: []}`, true},
		"empty map kept as nothing":  {`{}`, `{selector: {}}`, true},
		"null asks for nothing":      {`{a: 1}`, `{a: null}`, true},
		"number and string":          {`{port: "80"}`, `{port: 80}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			var live, desired any
			if err := errors.Join(yaml.Unmarshal([]byte(tc.live), &live), yaml.Unmarshal([]byte(tc.desired), &desired)); err != nil {
				t.Fatal(err)
			}
			if got := len(compare(nil, nil, live, desired, false)) == 0; got != tc.want {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestShards(t *testing.T) {
	refs := map[mesh.Ref]bool{}
	if diff := cmp.Diff([]string{""}, shardsOf(refs)); diff != "" {
		t.Error(diff)
	}
	for i := range 2*shardLines + 1 {
		refs[ref("v1", fmt.Sprintf("p%05d-%s", i, strings.Repeat("x", 60)))] = true
	}
	shards := shardsOf(refs)
	back := map[mesh.Ref]bool{}
	for _, s := range shards {
		if len(s) > 1<<20-1024 {
			t.Errorf("a shard of %d bytes does not fit into a ConfigMap", len(s))
		}
		for line := range strings.Lines(s) {
			r, ok := mesh.ParseRef(strings.TrimSpace(line))
			if !ok || back[r] {
				t.Fatalf("line %q", line)
			}
			back[r] = true
		}
	}
	if len(shards) != 3 || !maps.Equal(refs, back) {
		t.Errorf("%d shards with %d of %d refs", len(shards), len(back), len(refs))
	}
}

func TestExplain(t *testing.T) {
	gr := schema.GroupResource{Group: "security.istio.io", Resource: "authorizationpolicies"}
	res := resource{GroupVersionResource: gr.WithVersion("v1"), namespaced: true}
	rbac := func(verb string) error {
		return apierrors.NewForbidden(gr, "a", fmt.Errorf(`User "system:serviceaccount:gloo-mesh:gloo-mesh-agent" cannot %s resource "authorizationpolicies" in API group "security.istio.io" in the namespace "billing"`, verb))
	}
	const lacking = "the agent may not %s authorizationpolicies.security.istio.io in namespace \"billing\": its ClusterRole lacks that: "
	for name, tc := range map[string]struct {
		err  error
		want string // what comes before the API server's words
	}{
		"right missing":          {rbac("patch"), fmt.Sprintf(lacking, "patch")},
		"another right missing":  {rbac("create"), fmt.Sprintf(lacking, "create")},
		"admission":              {apierrors.NewForbidden(gr, "a", errors.New("admission webhook \"x\" denied the request: nobody can have this resource here")), "patch AuthorizationPolicy billing/a: "},
		"namespace ends":         {apierrors.NewForbidden(gr, "a", errors.New("unable to create new content in namespace billing because it is being terminated")), "patch AuthorizationPolicy billing/a: "},
		"API server unreachable": {&apierrors.StatusError{ErrStatus: apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "patch", gr, "a", "", 0, true).Status()}, "patch AuthorizationPolicy billing/a: "},
	} {
		t.Run(name, func(t *testing.T) {
			got := explain(ref("v1", "a"), "patch", res, tc.err)
			if diff := cmp.Diff(tc.want+tc.err.Error(), got.Error()); diff != "" || !errors.Is(got, tc.err) {
				t.Error(diff)
			}
		})
	}
}
