package state

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

func TestTrustIsTaken(t *testing.T) {
	s := sourcesOnly()
	policy := &adminv2.RootTrustPolicy{ObjectMeta: meta("gloo-mesh", "root-trust"), Spec: adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{AutoRestartPods: true}}}
	policy.Annotations = map[string]string{securityv2.AnnotationChangedBy: "jane"}
	wrong := &adminv2.RootTrustPolicy{ObjectMeta: meta("gloo-mesh", "wrong")}
	wrong.Labels = map[string]string{"wrong": "it is"}
	request := &adminv2.RotationRequest{ObjectMeta: meta("gloo-mesh", "fence-1"), Spec: adminv2.RotationRequestSpec{Policy: "root-trust", Action: adminv2.ActionFence, Clusters: []string{"c1"}, Reason: "INC"}}
	request.Annotations = map[string]string{securityv2.AnnotationChangedBy: "joe"}
	for _, o := range []client.Object{policy, wrong, request} {
		if !s.Put(o) {
			t.Errorf("%s does not matter", o.GetName())
		}
	}
	ref := func(kind, name string) mesh.Ref {
		return mesh.Ref{Group: "admin.gloo.solo.io", Version: "v2", Kind: kind, Namespace: "gloo-mesh", Name: name}
	}
	want := &mesh.Snapshot{
		Namespaces: map[string]map[string]string{},
		RootPolicies: []*mesh.RootTrustPolicy{
			{Source: ref("RootTrustPolicy", "root-trust"), UID: "uid-root-trust", Generation: 1, Created: noon, ChangedBy: "jane", Trust: mesh.Trust{
				Authority: mesh.Authority{Generated: &mesh.CertOptions{TTL: 3650 * 24 * time.Hour, Organization: "gloo-mesh", Algorithm: "RSA-4096"}}, Restart: true, CRL: adminv2.CRLWhenNeeded,
				Intermediate: mesh.CertOptions{TTL: 365 * 24 * time.Hour, Organization: "gloo-mesh", Algorithm: "RSA-4096", RenewRatio: 0.5},
			}},
			{Source: ref("RootTrustPolicy", "wrong"), UID: "uid-wrong", Generation: 1, Created: noon, Invalid: "it is"},
		},
		RotationRequests: []*mesh.RotationRequest{{
			Source: ref("RotationRequest", "fence-1"), UID: "uid-fence-1", Created: noon, Policy: ref("RootTrustPolicy", "root-trust"), Action: adminv2.ActionFence,
			Clusters: []mesh.ClusterName{"c1"}, Reason: "INC", By: "joe",
		}},
	}
	got, _ := take(t, s, noon)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want.RootPolicies[0], RootTrustPolicyOf(policy, "")); diff != "" {
		t.Error(diff)
	}
}

// What the server reports of a policy is no news; what it remembers of a request is.
func TestWhatStatusRemembers(t *testing.T) {
	s := sourcesOnly()
	policy := &adminv2.RootTrustPolicy{ObjectMeta: meta("gloo-mesh", "root-trust")}
	request := &adminv2.RotationRequest{ObjectMeta: meta("gloo-mesh", "rotate-1"), Spec: adminv2.RotationRequestSpec{Policy: "root-trust", Action: adminv2.ActionRotate, Reason: "age"}}
	s.Put(policy)
	s.Put(request)
	first, _ := take(t, s, noon)
	reported := policy.DeepCopy()
	reported.Status.Phase = adminv2.PhaseSwitching
	worded := request.DeepCopy()
	worded.Status.Message = "x"
	if s.Put(reported) || s.Put(worded) {
		t.Error("words matter")
	}
	second, _ := take(t, s, noon)
	if first.RootPolicies[0] != second.RootPolicies[0] || first.RotationRequests[0] != second.RotationRequests[0] {
		t.Error("pointers")
	}
	done := worded.DeepCopy()
	done.Status.State, done.Status.Generation = adminv2.RequestDone, 2
	if !s.Put(done) {
		t.Error("what became of a request does not matter")
	}
	third, _ := take(t, s, noon)
	if r := third.RotationRequests[0]; r.State != adminv2.RequestDone || r.Root != 2 {
		t.Errorf("%+v", r)
	}
	if !s.Remove(done) || !s.Remove(policy) {
		t.Error("removal does not matter")
	}
	if last, _ := take(t, s, noon); len(last.RotationRequests)+len(last.RootPolicies) != 0 {
		t.Errorf("%v", last)
	}
}
