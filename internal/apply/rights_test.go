package apply_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/apply"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

// bound makes a user with these rules in namespace, and in all namespaces with the others.
func bound(t *testing.T, kube client.Client, namespace string, role, cluster []rbacv1.PolicyRule) string {
	t.Helper()
	user := "agent-of-" + namespace
	subject := []rbacv1.Subject{{Kind: "User", Name: user, APIGroup: rbacv1.GroupName}}
	meta := metav1.ObjectMeta{Name: user, Namespace: namespace}
	for _, o := range []client.Object{
		&rbacv1.Role{ObjectMeta: meta, Rules: role},
		&rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user}},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: cluster},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user}, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user}},
	} {
		if err := kube.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return user
}

func TestRights(t *testing.T) {
	kube := kubetest.Client(t, kubetest.Start(t))
	elsewhere := kubetest.Namespace(t, kube)
	all := []string{"get", "list", "watch", "create", "update", "patch", "delete"}
	maps := func(verbs ...string) []rbacv1.PolicyRule {
		return []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: verbs}}
	}
	run := func(role, cluster []rbacv1.PolicyRule) *agent {
		a := &agent{t: t, kube: kube, namespace: kubetest.Namespace(t, kube)}
		a.cfg = kubetest.As(kubetest.Start(t), bound(t, kube, a.namespace, role, cluster))
		a.run()
		t.Cleanup(func() { a.stop() })
		return a
	}

	t.Run("a Role in its own namespace is enough for what lives there", func(t *testing.T) {
		a := run(maps(all...), nil)
		a.t = t
		m := configMap(a.namespace, "one", "1")
		a.want(true, m)
		a.acked(m)
		live := a.get(refOf(m))
		_ = unstructured.SetNestedField(live.Object, "by hand", "data", "key")
		if err := a.kube.Update(t.Context(), live); err != nil {
			t.Fatal(err)
		}
		within(t, 15*time.Second, func() bool { return data(a.get(refOf(m))) == "1" }, func() string { return "drift was not seen with the rights of the Role" })
	})
	t.Run("what is lacking is named", func(t *testing.T) {
		a := run(maps(all...), nil)
		a.t = t
		other := configMap(elsewhere, "one", "1")
		a.want(true, other)
		a.nacked(other, "may not get", "configmaps", elsewhere)
	})
	t.Run("the right verb is named", func(t *testing.T) {
		a := run(maps(all...), maps("get", "list", "watch", "patch"))
		a.t = t
		other := configMap(elsewhere, "one", "1")
		a.want(true, other)
		a.nacked(other, "may not create configmaps", elsewhere)
	})
	t.Run("policies: every right counts", func(t *testing.T) {
		istio(t, kubetest.Start(t))
		verbs := []string{"get", "list", "watch", "create", "update", "patch", "delete"}
		policies := func(verbs []string, events ...string) []rbacv1.PolicyRule {
			return []rbacv1.PolicyRule{
				{APIGroups: []string{"security.istio.io"}, Resources: []string{"authorizationpolicies", "peerauthentications"}, Verbs: verbs},
				{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: events},
			}
		}
		opened := func(a *agent, lacking string) {
			m := policy(t, "AuthorizationPolicy", kubetest.Namespace(t, kube), "accesspolicy-one", denyAll)
			a.t = t
			a.want(true, m)
			if slices.Contains([]string{"get", "create", "patch"}, lacking) {
				a.nacked(m, "may not "+lacking, "authorizationpolicies")
				return
			}
			a.acked(m)
			a.patch(refOf(m), "kubectl-edit", "spec: {rules: [{}]}")
			if lacking == "update" {
				a.until(refOf(m), "what can't be put back is said", func(o mesh.Outcome) bool {
					return !o.OK && o.Drifted && strings.Contains(o.Error, "may not update authorizationpolicies") && o.Drift != nil && !o.Drift.Corrected
				})
				return
			}
			a.until(refOf(m), "put back", func(o mesh.Outcome) bool { return o.OK && !o.Drifted && o.Drift != nil && o.Drift.Corrected })
		}
		opened(run(maps(all...), policies(verbs, "create")), "")
		opened(run(maps(all...), policies(verbs, "get")), "events") // the policy counts, not the Event
		for _, lacking := range []string{"get", "create", "patch", "update"} {
			opened(run(maps(all...), policies(slices.DeleteFunc(slices.Clone(verbs), func(v string) bool { return v == lacking }), "create")), lacking)
		}
	})
	t.Run("nothing new before it can be listed", func(t *testing.T) {
		a := run(maps("get", "list", "watch"), []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"serviceaccounts"}, Verbs: all}})
		a.t = t
		account := map[string]any{
			"apiVersion": "v1", "kind": "ServiceAccount",
			"metadata": map[string]any{"name": "new", "namespace": elsewhere, "labels": map[string]any{apply.OwnerLabel: apply.OwnerValue}},
		}
		a.want(true, account)
		a.nacked(account, apply.InventoryName, "configmaps")
		if a.get(refOf(account)) != nil {
			t.Error("applied what is not listed: it could never be pruned")
		}
	})
}
