package apply

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

func object(t testing.TB, text string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := yaml.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// A policy must be exactly as desired: what is missing says as much as what is there.
func TestExactDifferences(t *testing.T) {
	for name, tc := range map[string]struct {
		live, desired, want string
	}{
		"same":                      {`{spec: {action: ALLOW}, status: {a: 1}}`, `{spec: {action: ALLOW}}`, ``},
		"numbers":                   {`{spec: {portLevelMtls: {"80": {mode: STRICT}}, n: 80}}`, `{spec: {portLevelMtls: {"80": {mode: STRICT}}, n: 80.0}}`, ``},
		"rules added":               {`{spec: {action: ALLOW, rules: [{}]}}`, `{spec: {action: ALLOW}}`, `spec.rules: [{}] added`},
		"empty rules added":         {`{spec: {rules: []}}`, `{spec: {}}`, `spec.rules: [] added`},
		"no spec wanted":            {`{spec: {rules: [{}]}}`, `{}`, `spec.rules: [{}] added`},
		"no spec at all":            {`{}`, `{spec: {}}`, ``},
		"one label more":            {`{spec: {selector: {matchLabels: {a: b, "app.io/c": d}}}}`, `{spec: {selector: {matchLabels: {a: b}}}}`, `spec.selector.matchLabels["app.io/c"]: "d" added`},
		"a key within a rule":       {`{spec: {rules: [{from: [{source: {principals: [a]}}], to: [{}]}]}}`, `{spec: {rules: [{from: [{source: {principals: [a]}}]}]}}`, `spec.rules[0].to: [{}] added`},
		"a condition taken away":    {`{spec: {rules: [{from: [{}]}]}}`, `{spec: {rules: [{from: [{}], when: [{key: k}]}]}}`, `spec.rules[0].when: [{"key":"k"}] removed`},
		"a rule less":               {`{spec: {rules: [{a: 1}]}}`, `{spec: {rules: [{a: 1}, {b: 1}]}}`, `spec.rules[1]: {"b":1} removed`},
		"principals":                {`{spec: {principals: [a, "*"]}}`, `{spec: {principals: [a]}}`, `spec.principals: ["a","*"] instead of ["a"]`},
		"order":                     {`{spec: {principals: [b, a]}}`, `{spec: {principals: [a, b]}}`, `spec.principals: ["b","a"] instead of ["a","b"]`},
		"another type":              {`{spec: {selector: x}}`, `{spec: {selector: {a: b}}}`, `spec.selector: "x" instead of {"a":"b"}`},
		"others' labels":            {`{metadata: {labels: {o: g, team: a}, annotations: {note: b}}, spec: {}}`, `{metadata: {labels: {o: g}}, spec: {}}`, ``},
		"dry run":                   {`{metadata: {annotations: {istio.io/dry-run: "true"}}, spec: {}}`, `{metadata: {}, spec: {}}`, `metadata.annotations["istio.io/dry-run"]: "true" added`},
		"revision":                  {`{metadata: {labels: {istio.io/rev: x}}, spec: {}}`, `{metadata: {}, spec: {}}`, `metadata.labels["istio.io/rev"]: "x" added`},
		"a revision that is wanted": {`{metadata: {labels: {istio.io/rev: x}}, spec: {}}`, `{metadata: {labels: {istio.io/rev: x}}, spec: {}}`, ``},
		"two":                       {`{spec: {action: DENY, rules: [{}]}}`, `{spec: {action: ALLOW}}`, `spec.action: "DENY" instead of "ALLOW"; spec.rules: [{}] added`},
	} {
		t.Run(name, func(t *testing.T) {
			live := object(t, tc.live)
			diffs := differences(live, object(t, tc.desired), true)
			if diff := cmp.Diff(tc.want, sentence(diffs, true)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			mended := exactly(&unstructured.Unstructured{Object: live}, object(t, tc.desired))
			for _, d := range differences(mended.Object, object(t, tc.desired), true) {
				if d.path[0] == "spec" || len(d.path) == 3 && d.desired == nil {
					t.Errorf("an update leaves %s", d)
				}
			}
		})
	}
}

func TestSentence(t *testing.T) {
	long := strings.Repeat("ä", 200)
	many := make([]difference, 50)
	for i := range many {
		many[i] = difference{path: []string{"spec", fmt.Sprintf("field%02d", i)}, live: long}
	}
	for name, diffs := range map[string][]difference{
		"long value": {{path: []string{"spec", "x"}, live: long, desired: long + "b"}},
		"long path":  {{path: []string{"spec", long, long}, live: long}},
		"many":       many,
	} {
		t.Run(name, func(t *testing.T) {
			s := sentence(diffs, true)
			if len(s) > maxWhat || len(s) < maxWhat/3 || !utf8.ValidString(s) {
				t.Errorf("%d bytes: %q", len(s), s)
			}
		})
	}
	if got := sentence([]difference{{path: []string{"data", "password"}, live: "s3cret", desired: "t0psecret"}}, false); got != "data.password changed" {
		t.Errorf("values of other kinds are nobody's business: %q", got)
	}
}

func TestCulprit(t *testing.T) {
	at := func(s int) *metav1.Time { return &metav1.Time{Time: time.Unix(1000+int64(s), 0).UTC()} }
	entry := func(manager, op string, second int, fields, subresource string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{
			Manager: manager, Operation: metav1.ManagedFieldsOperationType(op), Time: at(second), FieldsV1: metav1.NewFieldsV1(fields), Subresource: subresource,
		}
	}
	ours := entry(FieldManager, "Apply", 10, `{"f:spec":{"f:action":{}}}`, "")
	rules := []difference{{path: []string{"spec", "rules", "[0]", "from"}, live: "x"}}
	for name, tc := range map[string]struct {
		managed  []metav1.ManagedFieldsEntry
		wasRight bool
		want     string // manager; "-": no drift at all
	}{
		"owner of the field, though another wrote later": {[]metav1.ManagedFieldsEntry{
			ours, entry("kubectl-edit", "Update", 20, `{"f:spec":{"f:rules":{}}}`, ""), entry("kyverno", "Update", 30, `{"f:metadata":{"f:labels":{}}}`, ""),
		}, true, "kubectl-edit"},
		"the later of two owners": {[]metav1.ManagedFieldsEntry{
			entry("a", "Update", 20, `{"f:spec":{"f:rules":{}}}`, ""), entry("b", "Apply", 30, `{"f:spec":{"f:rules":{}}}`, ""),
		}, true, "b"},
		"the field was removed: whoever wrote since": {[]metav1.ManagedFieldsEntry{
			ours, entry("old", "Update", 5, `{"f:metadata":{}}`, ""), entry("kubectl-patch", "Update", 30, `{"f:spec":{"f:action":{}}}`, ""),
		}, true, "kubectl-patch"},
		"nobody wrote since":                  {[]metav1.ManagedFieldsEntry{ours, entry("old", "Update", 5, `{"f:metadata":{}}`, "")}, true, ""},
		"istiod's status is no change":        {[]metav1.ManagedFieldsEntry{ours, entry("pilot-discovery", "Update", 30, `{"f:status":{}}`, "status")}, true, ""},
		"our annotations of a hold are not":   {[]metav1.ManagedFieldsEntry{ours, entry(holdManager, "Apply", 30, `{"f:metadata":{"f:annotations":{}}}`, "")}, true, ""},
		"what is desired may have changed":    {[]metav1.ManagedFieldsEntry{ours, entry("argocd", "Update", 30, `{"f:metadata":{"f:labels":{}}}`, "")}, false, "-"},
		"unreadable fields prove nothing":     {[]metav1.ManagedFieldsEntry{ours, entry("x", "Update", 5, `[]`, "")}, true, ""},
		"the whole spec":                      {[]metav1.ManagedFieldsEntry{entry("x", "Update", 5, `{"f:spec":{}}`, "")}, false, "x"},
		"an empty entry owns nothing":         {[]metav1.ManagedFieldsEntry{entry("x", "Update", 5, `{}`, "")}, false, "-"},
		"a leftover of our own is not others": {[]metav1.ManagedFieldsEntry{entry(FieldManager, "Update", 50, `{"f:spec":{"f:rules":{}}}`, "")}, false, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			u := &unstructured.Unstructured{Object: map[string]any{}}
			u.SetManagedFields(tc.managed)
			got := "-"
			if d := driftOf(u, rules, true, tc.wasRight, time.Unix(2000, 0)); d != nil {
				got = d.Manager
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestRefusal(t *testing.T) {
	for name, tc := range map[string]struct {
		in    string
		want  string
		known bool
	}{
		"nothing said": {`{}`, "", true},
		"accepted":     {`{status: {conditions: [{type: ZtunnelAccepted, status: "True", reason: Accepted, message: attached}]}}`, "", true},
		"two":          {`{status: {conditions: [{type: ZtunnelAccepted, status: "False", message: nope}, {type: WaypointAccepted, status: "False", reason: TargetNotFound}]}}`, "WaypointAccepted: TargetNotFound; ZtunnelAccepted: nope", true},
		"bound in part": {
			`{status: {conditions: [{type: WaypointAccepted, status: "True", reason: PartiallyInvalid, message: "Invalid targetRefs: Service/b"}]}}`, "WaypointAccepted: Invalid targetRefs: Service/b", true,
		},
		"of an older generation": {`{metadata: {generation: 3}, status: {conditions: [{type: ZtunnelAccepted, status: "False", message: nope, observedGeneration: "2"}]}}`, "", false},
		"of this generation":     {`{metadata: {generation: 3}, status: {conditions: [{type: ZtunnelAccepted, status: "False", message: nope, observedGeneration: 3}]}}`, "ZtunnelAccepted: nope", true},
		"others' conditions":     {`{status: {conditions: [{type: Reconciled, status: "False", message: nope}, 7]}}`, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			var u unstructured.Unstructured
			raw, err := yaml.YAMLToJSON([]byte(strings.Replace(tc.in, "{", "{apiVersion: v1, kind: X, ", 1)))
			if err == nil {
				err = u.UnmarshalJSON(raw)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, known := refusal(&u); got != tc.want || known != tc.known {
				t.Errorf("%q, %v", got, known)
			}
		})
	}
}

// An override that can't be read suspends nothing, and what is read is held no longer than it says.
func FuzzHold(f *testing.F) {
	for _, until := range []string{"2026-11-23T05:00:00Z", "2026-11-23T05:00:00.5+02:00", "2026-11-23T05:00:00.5+02:20", "tomorrow", "", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00Z"} {
		f.Add([]byte(fmt.Sprintf(`{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"a","namespace":"b","labels":{"owner.gloo.solo.io/name":"gloo-mesh"},`+
			`"annotations":{"gloo.solo.io/override-until":%q,"gloo.solo.io/override-reason":"INC-1"}},"spec":{"action":"ALLOW"}}`, until)))
	}
	f.Add([]byte(`{"metadata":{"annotations":{"gloo.solo.io/override-until":7}}}`))
	f.Add([]byte(`{"metadata":[]}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		h := holdOf(manifest)
		if !h.until.IsZero() && h.at(h.until) {
			t.Error("held at the moment it ends")
		}
		ref, w, ok := stored(manifest)
		if !ok {
			return
		}
		u, err := parse(ref, manifest)
		if err != nil || !exact(ref) || w.hold != h {
			t.Fatalf("kept what can't be applied: %v, %v", ref, err)
		}
		if _, shown := u.GetAnnotations()[securityv2.AnnotationHoldUntil]; shown {
			t.Error("the annotation is part of what is compared")
		}
		if diffs := differences(u.Object, u.Object, true); len(diffs) > 0 {
			t.Errorf("differs from itself: %s", sentence(diffs, true))
		}
	})
}

func TestDecideHolds(t *testing.T) {
	now := time.Unix(1000, 0)
	a := ref("v1", "a")
	w := wish{hash: mesh.Fingerprint{1}, hold: hold{until: now.Add(10 * time.Second)}}
	far := wish{hash: mesh.Fingerprint{1}, hold: hold{until: now.Add(time.Hour)}}
	over := wish{hash: mesh.Fingerprint{1}, hold: hold{until: now}}
	for name, tc := range map[string]struct {
		wish wish
		k    known
		want plan
	}{
		"begins":                           {w, known{hash: mesh.Fingerprint{2}, ok: true}, plan{Apply: []mesh.Ref{a}}},
		"is held":                          {w, known{hash: w.hash, ok: true, held: true}, plan{Wake: w.hold.until}},
		"the clock may be set":             {far, known{hash: w.hash, ok: true, held: true}, plan{Wake: now.Add(holdCheck)}},
		"changed while held":               {w, known{hash: w.hash, ok: true, held: true, drifted: true}, plan{Apply: []mesh.Ref{a}}},
		"ends":                             {over, known{hash: w.hash, ok: true, held: true, differs: true}, plan{Apply: []mesh.Ref{a}}},
		"ended":                            {over, known{hash: w.hash, ok: true}, plan{}},
		"ended, and could not be put back": {over, known{hash: w.hash, tries: 1, next: now.Add(time.Second)}, plan{Wake: now.Add(time.Second)}},
	} {
		t.Run(name, func(t *testing.T) {
			got := decide(map[mesh.Ref]wish{a: tc.wish}, true, map[mesh.Ref]bool{a: true}, map[mesh.Ref]known{a: tc.k}, now)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
