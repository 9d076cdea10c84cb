package charts_test

import (
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/test/kubetest"
)

// TestRoles: who may do what, as a real API server answers it. An auditor reads everything and changes nothing; an operator can't change trust or policies; nobody reads Secrets.
func TestRoles(t *testing.T) {
	cfg := kubetest.Start(t)
	admin := kubetest.Client(t, cfg)
	ns := kubetest.Namespace(t, admin)
	manifest, err := render(t, charts.Platform, map[string]any{"common": map[string]any{"cluster": "mgmt"}, "glooMgmtServer": map[string]any{"enabled": true}})
	if err != nil {
		t.Fatal(err)
	}
	create := func(o client.Object) {
		t.Helper()
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = admin.Delete(t.Context(), o) }) //nolint:usetesting // the context has ended by then on purpose
	}
	people := map[string]bool{}
	for _, r := range documents[rbacv1.ClusterRole](t, manifest, "ClusterRole") {
		name, ours := strings.CutPrefix(r.Name, "gloo-mesh-")
		if !ours || strings.Contains(name, "server") {
			continue
		}
		people[name] = true
		create(&r)
		create(&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "people-" + name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: r.Name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name}},
		})
	}
	if len(people) != 4 {
		t.Fatalf("roles for %v", people)
	}
	for _, r := range documents[rbacv1.Role](t, manifest, "Role") {
		if r.Name != "gloo-mesh-console" {
			continue
		}
		r.Namespace = ns
		create(&r)
		create(&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "console"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: r.Name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "console"}},
		})
	}
	const adminGroup, policyGroup = "admin.gloo.solo.io", "security.policy.gloo.solo.io"
	may := func(who, verb, group, resource string) bool {
		t.Helper()
		resource, sub, _ := strings.Cut(resource, "/")
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: who + "@bank.example.com", Groups: []string{who},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: ns, Verb: verb, Group: group, Resource: resource, Subresource: sub},
		}}
		if err := admin.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		return review.Status.Allowed
	}
	for end := time.Now().Add(30 * time.Second); !may("auditor", "list", adminGroup, "kubernetesclusters") && time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // the authorizer's cache
	}
	kinds := map[string]string{
		"kubernetesclusters": adminGroup, "workspaces": adminGroup, "roottrustpolicies": adminGroup, "rotationrequests": adminGroup, "accesspolicies": policyGroup, "policyoverrides": policyGroup,
		"segments": "networking.solo.io", "issuedcertificates": "internal.gloo.solo.io",
	}
	writers := map[string]string{ // who besides administrators may write
		"kubernetesclusters": "operator", "workspaces": "security", "roottrustpolicies": "security", "rotationrequests": "security", "accesspolicies": "security", "policyoverrides": "operator security",
		"segments": "operator", "issuedcertificates": "",
	}
	for who := range people {
		for kind, group := range kinds {
			for _, verb := range []string{"get", "list", "watch"} {
				if !may(who, verb, group, kind) {
					t.Errorf("%s may not %s %s", who, verb, kind)
				}
			}
			for _, verb := range []string{"create", "update", "patch", "delete"} {
				if got, want := may(who, verb, group, kind), strings.Contains(writers[kind], who); got != want {
					t.Errorf("%s may %s %s: %v, want %v", who, verb, kind, got, want)
				}
			}
			if may(who, "update", group, kind+"/status") {
				t.Errorf("%s may write the status of %s", who, kind)
			}
		}
		for _, what := range [][2]string{{"get", "secrets"}, {"list", "secrets"}, {"create", "pods/portforward"}, {"create", "pods/exec"}, {"create", "serviceaccounts/token"}} {
			if may(who, what[0], "", what[1]) {
				t.Errorf("%s may %s %s", who, what[0], what[1])
			}
		}
		if may(who, "impersonate", "", "users") || may(who, "escalate", rbacv1.GroupName, "clusterroles") {
			t.Errorf("%s may become somebody else", who)
		}
	}
	if !may("console", "create", "", "pods/portforward") || !may("console", "get", "", "services") || may("console", "create", "", "pods/exec") || may("console", "get", "", "secrets") {
		t.Error("the console forwards a port, and nothing else")
	}
	if !may("auditor", "list", "", "events") {
		t.Error("an auditor reads events")
	}
}
