package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// pagePolicy is the operators' page's AccessPolicy.
const pagePolicy = `# One file — applied to the mgmt cluster.
apiVersion: security.policy.gloo.solo.io/v2
kind: AccessPolicy
metadata:
  name: billing-allow-payments
  namespace: gloo-mesh
spec:
  applyToDestinations:
  - selector:
      labels: { app: billing }
  config:
    authn:
      mtls: { required: true }
    authz:
      allowedClients:
      - serviceAccountSelector:
          labels: { app: payments }
`

func TestParseDocuments(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string // objects with their places
		err  string
	}{
		"one":                   {text: pagePolicy, want: []string{"AccessPolicy gloo-mesh/billing-allow-payments (a.yaml, line 2)"}},
		"nothing":               {text: "# only a comment\n---\n\n---\n"},
		"several, with a List":  {text: "kind: A\napiVersion: v1\n--- # next\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: B, apiVersion: v1, metadata: {name: b}}\n- {kind: C, apiVersion: v1}\n", want: []string{"A (without a name) (a.yaml, line 1)", "B b (a.yaml, line 5, item 1)", "C (without a name) (a.yaml, line 5, item 2)"}},
		"JSON":                  {text: `{"kind":"A","apiVersion":"v1","metadata":{"name":"a"}}`, want: []string{"A a (a.yaml, line 1)"}},
		"not YAML":              {text: "kind: A\napiVersion: v1\n---\na: b: c\n", err: "a.yaml, line 4: the document that begins there is not YAML"},
		"a key twice":           {text: "kind: A\nkind: B\n", err: `key "kind" already set`},
		"no kind":               {text: "apiVersion: v1\n", err: "it has no kind"},
		"no apiVersion":         {text: "kind: A\n", err: "it has no apiVersion"},
		"a list":                {text: "- a\n", err: "not a Kubernetes object"},
		"Helm, not YAML":        {text: "kind: A\nspec:\n  {{ toYaml .Values.x }}\n", err: "line 3 has the Helm placeholder {{ toYaml .Values.x }}: render the chart first"},
		"Helm in a value":       {text: strings.Replace(pagePolicy, "billing-allow-payments", `"{{ .Release.Name }}"`, 1), err: "line 5 has the Helm placeholder"},
		"envsubst":              {text: strings.Replace(pagePolicy, "app: billing", "app: ${APP}", 1), err: "line 10 has the variable ${APP}"},
		"not in a comment":      {text: "# {{ fine }} ${FINE}\n" + pagePolicy, want: []string{"AccessPolicy gloo-mesh/billing-allow-payments (a.yaml, line 3)"}},
		"not of other kinds":    {text: "kind: ConfigMap\napiVersion: v1\ndata: {x: \"${X} {{y}}\"}\n", want: []string{"ConfigMap (without a name) (a.yaml, line 1)"}},
		"a document's comments": {text: "---\n# about it\n\nkind: A\napiVersion: v1\n", want: []string{"A (without a name) (a.yaml, line 4)"}},
	} {
		t.Run(name, func(t *testing.T) {
			docs, err := parseDocuments("a.yaml", []byte(tc.text))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("%v, want %q", err, tc.err)
				}
				return
			}
			var got []string
			for i := range docs {
				got = append(got, docs[i].String())
			}
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

func TestReadDocuments(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"b.yml": "kind: B\napiVersion: v1", "a.yaml": "kind: A\napiVersion: v1", "c.json": `{"kind":"C","apiVersion":"v1"}`, "notes.txt": "x", "inner/d.yaml": "kind: D\napiVersion: v1"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	docs, err := readDocuments([]string{dir, "-"}, strings.NewReader("kind: In\napiVersion: v1"))
	var kinds []string
	for _, d := range docs {
		kinds = append(kinds, d.Kind.Kind)
	}
	if diff := cmp.Diff([]string{"A", "B", "C", "In"}, kinds); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for path, want := range map[string]string{filepath.Join(dir, "none.yaml"): "no such file", t.TempDir(): "has no .yaml"} {
		if _, err := readDocuments([]string{path}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func parsed(t *testing.T, text string) []document {
	t.Helper()
	docs, err := parseDocuments("a.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

func TestPutIn(t *testing.T) {
	created := time.Date(2026, 5, 15, 0, 0, 0, 0, time.UTC)
	base, untouched := testSnapshot(), testSnapshot()

	same, err := putIn(base, parsed(t, pagePolicy), "default", created)
	if err != nil {
		t.Fatal(err)
	}
	if len(same.Notes) != 0 || same.Snapshot.Policies[0] != base.Policies[0] {
		t.Errorf("a policy that does not change is not the same pointer, or there are notes: %q", same.Notes)
	}

	changedOnly, err := putIn(base, parsed(t, strings.Replace(pagePolicy, "app: payments", "app: orders", 1)), "default", created)
	if diff := cmp.Diff(untouched, base); err != nil || diff != "" || cmp.Equal(base.Policies, changedOnly.Snapshot.Policies) {
		t.Errorf("%v; the snapshot was changed, or not the copy:\n%s", err, diff)
	}

	more := strings.NewReplacer("name: billing-allow-payments", "name: a-first", "namespace: gloo-mesh", "").Replace(pagePolicy) + "---\n" + strings.Replace(pagePolicy, "app: payments", "app: orders", 1) +
		"---\nkind: Workspace\napiVersion: admin.gloo.solo.io/v2\nmetadata: {name: w, namespace: gloo-mesh, labels: {a: b}}\nspec: {workloadClusters: [{name: '*', namespaces: [{name: billing}]}]}\n" +
		"---\nkind: WorkspaceSettings\napiVersion: admin.gloo.solo.io/v2\nmetadata: {name: mine, namespace: nowhere}\n" +
		"---\nkind: Deployment\napiVersion: apps/v1\nmetadata: {name: d}\n---\nkind: AccessPolicy\napiVersion: policy.kagent-enterprise.solo.io/v1alpha1\nmetadata: {name: k}\n"
	o, err := putIn(base, parsed(t, more), "default", created)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(untouched, base); diff != "" {
		t.Errorf("the snapshot was changed:\n%s", diff)
	}
	ref := func(group, kind, ns, name string) mesh.Ref {
		return mesh.Ref{Group: group, Version: "v2", Kind: kind, Namespace: ns, Name: name}
	}
	spec := base.Policies[0].Spec
	changed := *spec.DeepCopy()
	changed.Config.Authz.AllowedClients[0].ServiceAccountSelector.Labels["app"] = "orders"
	want := []*mesh.AccessPolicy{
		{Source: ref(securityv2.GroupName, "AccessPolicy", "default", "a-first"), Generation: 1, Created: created, Spec: spec},
		{Source: base.Policies[0].Source, UID: "uid-1", Generation: 4, Created: base.Policies[0].Created, Spec: changed},
	}
	if diff := cmp.Diff(want, o.Snapshot.Policies); diff != "" {
		t.Error(diff)
	}
	if w := o.Snapshot.Workspaces; len(w) != 1 || w[0].Labels["a"] != "b" || w[0].Source != ref("admin.gloo.solo.io", "Workspace", "gloo-mesh", "w") {
		t.Errorf("workspaces: %+v", w)
	}
	if len(o.Snapshot.Settings) != 1 || o.Snapshot.Namespaces["nowhere"] == nil {
		t.Errorf("settings: %+v, namespaces: %v", o.Snapshot.Settings, o.Snapshot.Namespaces)
	}
	wantNotes := []string{
		`AccessPolicy default/a-first (a.yaml, line 2) names no namespace: taken as "default"`,
		`WorkspaceSettings nowhere/mine (a.yaml, line 42): the management cluster has no namespace "nowhere": create it before you apply the file`,
		`left out, because the mesh does not read them: 1 of kind AccessPolicy`,
		`left out, because the mesh does not read them: 1 of kind Deployment`,
	}
	if diff := cmp.Diff(wantNotes, o.Notes); diff != "" {
		t.Error(diff)
	}
}

func TestPutInRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"a group of before":   {strings.Replace(pagePolicy, "security.policy.gloo", "security.gloo", 1), `write "security.policy.gloo.solo.io/v2"`},
		"a misspelt field":    {strings.Replace(pagePolicy, "allowedClients", "allowedClient", 1), `did you mean "allowedClients"?`},
		"a value for a list":  {strings.Replace(pagePolicy, "      - serviceAccountSelector:\n          labels: { app: payments }", "        serviceAccountSelector: {}", 1), "want a list"},
		"no name":             {strings.Replace(pagePolicy, "  name: billing-allow-payments\n", "", 1), "metadata.name"},
		"twice":               {pagePolicy + "---\n" + pagePolicy, "already in a.yaml, line 2"},
		"nothing for us":      {"kind: Pod\napiVersion: v1\n", "no AccessPolicy, Workspace or WorkspaceSettings"},
		"says which document": {pagePolicy + "---\n" + strings.NewReplacer("billing-allow", "b", "spec:", "spek:").Replace(pagePolicy), "gloo-mesh/b-payments (a.yaml, line 20)"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := putIn(testSnapshot(), parsed(t, tc.text), "default", time.Time{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestUnified(t *testing.T) {
	text := func(s string) string { return strings.Join(strings.Split(s, ""), "\n") + "\n" }
	for name, tc := range map[string]struct{ a, b, want string }{
		"same":   {text("abc"), text("abc"), ""},
		"new":    {"", text("ab"), "@@ -0,0 +1,2 @@\n+a\n+b\n"},
		"gone":   {text("ab"), "", "@@ -1,2 +0,0 @@\n-a\n-b\n"},
		"middle": {text("abcdefghi"), text("abcdXfghi"), "@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+X\n f\n g\n h\n"},
		"two hunks": {
			text("Abcdefghijklmn"), text("XbcdefghijklmnO"),
			"@@ -1,4 +1,4 @@\n-A\n+X\n b\n c\n d\n@@ -12,3 +12,4 @@\n l\n m\n n\n+O\n",
		},
		"near ones are one": {text("Abcdefg"), text("Xbcdefgh"), "@@ -1,7 +1,8 @@\n-A\n+X\n b\n c\n d\n e\n f\n g\n+h\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, unified(tc.a, tc.b)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzUnified: the lines of a diff give back both texts.
func FuzzUnified(f *testing.F) {
	f.Add("a\nb\nc", "a\nX\nc")
	f.Fuzz(func(t *testing.T, a, b string) {
		var left, right []string
		for _, e := range edits(lines(a), lines(b)) {
			if e.kind != '+' {
				left = append(left, e.text)
			}
			if e.kind != '-' {
				right = append(right, e.text)
			}
		}
		if !cmp.Equal(lines(a), left) || !cmp.Equal(lines(b), right) {
			t.Errorf("%q and %q became %q and %q", a, b, left, right)
		}
	})
}
