package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// testSnapshot is a mesh of two clusters with a trust domain each, payments and billing in both, and the page's policy.
func testSnapshot() *mesh.Snapshot {
	s := &mesh.Snapshot{ServerVersion: "2.12.0", ManagementCluster: "mgmt", AdminNamespace: "gloo-mesh", Namespaces: map[string]map[string]string{"gloo-mesh": {}, "billing": {}, "default": {}}}
	for _, name := range []string{"cluster-1", "cluster-2"} {
		ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}
		in := func(ns string) *mesh.NamespaceInventory {
			app := map[string]string{"app": ns}
			return &mesh.NamespaceInventory{
				Labels:          ambient,
				Services:        []mesh.Service{{Namespace: ns, Name: ns, Labels: app, Selector: app, Ports: []mesh.ServicePort{{Name: "http", Number: 8080}}}},
				ServiceAccounts: []mesh.ServiceAccount{{Namespace: ns, Name: ns, Labels: app}},
				Workloads:       []mesh.Workload{{Namespace: ns, Kind: "Deployment", Name: ns, Labels: app, ServiceAccount: ns}},
			}
		}
		s.Clusters = append(s.Clusters, mesh.Cluster{
			Name: mesh.ClusterName(name), UID: mesh.ClusterUID("uid-" + name), Generation: 1,
			Source: mesh.Ref{Group: "admin.gloo.solo.io", Version: "v2", Kind: "KubernetesCluster", Namespace: "gloo-mesh", Name: name},
			Inventory: &mesh.Inventory{
				Complete: true, Info: mesh.ClusterInfo{TrustDomain: mesh.TrustDomain(name + ".example.com")}, Outcomes: map[mesh.Ref]mesh.Outcome{},
				Namespaces: map[string]*mesh.NamespaceInventory{"payments": in("payments"), "billing": in("billing"), "orders": in("orders")},
			},
		})
	}
	s.Policies = []*mesh.AccessPolicy{{
		Source: mesh.Ref{Group: securityv2.GroupName, Version: "v2", Kind: "AccessPolicy", Namespace: "gloo-mesh", Name: "billing-allow-payments"}, UID: "uid-1", Generation: 3,
		Created: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC), ChangedBy: "jane.doe@bank.example.com",
		Spec: securityv2.AccessPolicySpec{
			ApplyToDestinations: []securityv2.DestinationSelector{{Selector: &securityv2.ObjectSelector{Labels: map[string]string{"app": "billing"}}}},
			Config: &securityv2.AccessPolicyConfig{
				Authn: &securityv2.Authentication{MTLS: &securityv2.MutualTLS{Required: true}},
				Authz: &securityv2.Authorization{AllowedClients: []securityv2.IdentitySelector{{ServiceAccountSelector: &securityv2.ObjectSelector{Labels: map[string]string{"app": "payments"}}}}},
			},
		},
	}}
	return s
}

// grant lets a user read policies and clusters, and nothing else.
func grant(w *policyWorld, user string) {
	w.t.Helper()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reads-" + w.ns}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"*"}, Resources: []string{"accesspolicies", "kubernetesclusters", "policyoverrides"}, Verbs: []string{"get", "list", "watch"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "reads-" + w.ns}, RoleRef: rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: role.Name},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: user}},
	}
	w.must(w.mgmt.Create(w.t.Context(), role))
	w.must(w.mgmt.Create(w.t.Context(), binding))
}

// offline runs a verb of `policy` with a snapshot file and no kubeconfig.
func offline(t *testing.T, s *mesh.Snapshot, args ...string) result {
	t.Helper()
	raw, err := json.Marshal(savedSnapshot{Snapshot: s, TakenAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "snapshot.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code := Run(t.Context(), append(append([]string{"policy"}, args...), "--snapshot", file, "--kubeconfig", "/does/not/exist"), Streams{Out: &out, Err: &errs})
	t.Logf("meshctl policy %s: exit %d\n%s%s", strings.Join(args, " "), code, &out, &errs)
	return result{code, out.String(), errs.String()}
}
