package state

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

var noon = time.Date(2026, 5, 15, 12, 0, 0, 0, time.UTC)

// noClusters is a cache without a KubernetesCluster.
type noClusters struct{ client.Reader }

func (noClusters) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

func sourcesOnly() *State {
	return New(Config{Cache: noClusters{}, Log: slog.New(slog.DiscardHandler), Invalid: func(o client.Object) string { return o.GetLabels()["wrong"] }})
}

func meta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-" + name), Generation: 1, CreationTimestamp: metav1.NewTime(noon)}
}

func policy(ns, name string) *securityv2.AccessPolicy {
	return &securityv2.AccessPolicy{ObjectMeta: meta(ns, name)}
}

func take(t *testing.T, s *State, now time.Time) (*mesh.Snapshot, Sources) {
	t.Helper()
	snap, src, err := s.Take(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	return snap, src
}

func TestTakeIsSortedAndWhole(t *testing.T) {
	s := sourcesOnly()
	p := policy("payments", "a")
	p.Annotations, p.Labels = map[string]string{securityv2.AnnotationChangedBy: "jane"}, map[string]string{"wrong": "it is"}
	p.Spec.Config = &securityv2.AccessPolicyConfig{}
	override := &securityv2.PolicyOverride{ObjectMeta: meta("payments", "o"), Spec: securityv2.PolicyOverrideSpec{
		PolicyRef: securityv2.PolicyRef{Name: "a"}, Clusters: []string{"c1"}, Reason: "incident", For: metav1.Duration{Duration: time.Hour},
	}}
	override.Annotations = map[string]string{securityv2.AnnotationChangedBy: "joe"}
	for _, o := range []client.Object{
		policy("z", "z"), policy("payments-2", "a"), p, override,
		&adminv2.Workspace{ObjectMeta: meta("gloo-mesh", "ws")}, &adminv2.WorkspaceSettings{ObjectMeta: meta("payments", "settings")},
		&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "payments", Labels: map[string]string{"team": "p"}}},
	} {
		if !s.Put(o) {
			t.Errorf("%T %s: said not to matter", o, o.GetName())
		}
	}
	security := func(kind, ns, name string) mesh.Ref {
		return mesh.Ref{Group: "security.policy.gloo.solo.io", Version: "v2", Kind: kind, Namespace: ns, Name: name}
	}
	admin := func(kind, ns, name string) mesh.Ref {
		return mesh.Ref{Group: "admin.gloo.solo.io", Version: "v2", Kind: kind, Namespace: ns, Name: name}
	}
	entry := func(ns, name string) *mesh.AccessPolicy {
		return &mesh.AccessPolicy{Source: security("AccessPolicy", ns, name), UID: "uid-" + name, Generation: 1, Created: noon}
	}
	whole := entry("payments", "a")
	whole.Spec, whole.ChangedBy, whole.Invalid = p.Spec, "jane", "it is"
	want := &mesh.Snapshot{
		Namespaces: map[string]map[string]string{"payments": {"team": "p"}},
		Policies:   []*mesh.AccessPolicy{entry("payments-2", "a"), whole, entry("z", "z")}, // by the text of the Ref
		Workspaces: []*mesh.Workspace{{Source: admin("Workspace", "gloo-mesh", "ws"), UID: "uid-ws", Generation: 1}},
		Settings:   []*mesh.WorkspaceSettings{{Source: admin("WorkspaceSettings", "payments", "settings"), UID: "uid-settings", Generation: 1, Created: noon}},
		Overrides: []*mesh.Override{{
			Source: security("PolicyOverride", "payments", "o"), Policy: security("AccessPolicy", "payments", "a"), Clusters: []mesh.ClusterName{"c1"},
			Until: noon.Add(time.Hour), Reason: "incident", By: "joe",
		}},
	}
	got, src := take(t, s, noon)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(src.Changed) != 6 || src.NextEnd != noon.Add(time.Hour) || len(src.Ended) != 0 {
		t.Errorf("%+v", src)
	}
}

func TestEntriesKeepTheirPointer(t *testing.T) {
	s := sourcesOnly()
	s.Put(policy("a", "kept"))
	s.Put(policy("a", "other"))
	first, _ := take(t, s, noon)
	reported := policy("a", "kept")
	reported.Status.InForce, reported.ResourceVersion = "1/1", "2"
	changed := policy("a", "other")
	changed.Generation = 2
	if s.Put(reported) || !s.Put(changed) {
		t.Error("a status matters, or a spec does not")
	}
	second, src := take(t, s, noon)
	if first.Policies[0] != second.Policies[0] || first.Policies[1] == second.Policies[1] || first.Policies[1].Generation != 1 {
		t.Error("pointers")
	}
	if len(src.Changed) != 2 || s.Object(second.Policies[0].Source) != client.Object(reported) {
		t.Errorf("who writes status needs the latest object: %v", src.Changed)
	}
	again, src := take(t, s, noon)
	if len(src.Changed) != 0 || &again.Policies[0] != &second.Policies[0] {
		t.Error("nothing happened, yet something is new")
	}
	// deleted and made again under the same name
	reborn := policy("a", "kept")
	reborn.UID = "another"
	if !s.Put(reborn) {
		t.Error("another object of that name does not matter")
	}
	if !s.Remove(changed) || s.Remove(changed) {
		t.Error("removal matters once")
	}
	third, src := take(t, s, noon)
	if len(third.Policies) != 1 || third.Policies[0].UID != "another" || len(src.Gone) != 1 || len(second.Policies) != 2 {
		t.Errorf("%v %v", third.Policies, src)
	}
	leaving := reborn.DeepCopy()
	now := metav1.NewTime(noon)
	leaving.DeletionTimestamp = &now
	if !s.Put(leaving) {
		t.Error("an object that is being deleted is still taken")
	}
}

func TestNamespacesHandedOutStay(t *testing.T) {
	s := sourcesOnly()
	ns := func(v string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"l": v}}}
	}
	s.Put(ns("1"))
	first, _ := take(t, s, noon)
	if s.Put(ns("1")) || !s.Put(ns("2")) {
		t.Error("only another label matters")
	}
	second, _ := take(t, s, noon)
	s.Remove(ns("2"))
	third, _ := take(t, s, noon)
	if diff := cmp.Diff([]map[string]map[string]string{{"a": {"l": "1"}}, {"a": {"l": "2"}}, {}}, []map[string]map[string]string{first.Namespaces, second.Namespaces, third.Namespaces}); diff != "" {
		t.Error(diff)
	}
}

func TestOverridesEnd(t *testing.T) {
	s := sourcesOnly()
	for name, d := range map[string]time.Duration{"short": time.Minute, "long": time.Hour} {
		s.Put(&securityv2.PolicyOverride{ObjectMeta: meta("a", name), Spec: securityv2.PolicyOverrideSpec{For: metav1.Duration{Duration: d}}})
	}
	wrong := &securityv2.PolicyOverride{ObjectMeta: meta("a", "wrong"), Spec: securityv2.PolicyOverrideSpec{For: metav1.Duration{Duration: time.Hour}}}
	wrong.Labels = map[string]string{"wrong": "no reason"}
	s.Put(wrong)
	type seen struct {
		InForce, Ended []string
		Next           time.Time
	}
	at := func(now time.Time) seen {
		snap, src := take(t, s, now)
		out := seen{Next: src.NextEnd}
		for _, o := range snap.Overrides {
			out.InForce = append(out.InForce, o.Source.Name)
		}
		for _, o := range src.Ended {
			out.Ended = append(out.Ended, o.Name)
		}
		return out
	}
	want := []seen{
		{[]string{"long", "short"}, nil, noon.Add(time.Minute)},
		{[]string{"long"}, []string{"short"}, noon.Add(time.Hour)},
		{nil, []string{"long", "short"}, time.Time{}},
	}
	got := []seen{at(noon.Add(time.Minute - time.Second)), at(noon.Add(time.Minute)), at(noon.Add(2 * time.Hour))}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(s.Overrides()) != 3 || s.Invalid(refTo(t, wrong)) != "no reason" {
		t.Errorf("status is due for all of them: %v", s.Overrides())
	}
}

func refTo(t *testing.T, o client.Object) mesh.Ref {
	t.Helper()
	ref, ok := refOf(o)
	if !ok {
		t.Fatal("no ref")
	}
	return ref
}
