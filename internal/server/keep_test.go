package server

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// TestKept: the server has restarted, and the cluster of one of two clients has not come back.
func TestKept(t *testing.T) {
	labels := map[string]string{"app": "billing"}
	home := &mesh.Inventory{Complete: true, Info: mesh.ClusterInfo{TrustDomain: "one.local"}, Namespaces: map[string]*mesh.NamespaceInventory{
		"billing": {
			Labels:          map[string]string{"istio.io/dataplane-mode": "ambient"},
			Services:        []mesh.Service{{Namespace: "billing", Name: "billing", Labels: labels, Selector: labels}},
			ServiceAccounts: []mesh.ServiceAccount{{Namespace: "billing", Name: "payments", Labels: map[string]string{"app": "payments"}}},
		},
	}}
	policy := func(client string) *mesh.AccessPolicy {
		return &mesh.AccessPolicy{
			Source: mesh.Ref{Group: securityv2.GroupName, Version: "v2", Kind: "AccessPolicy", Namespace: "gloo-mesh", Name: "billing"},
			Spec: securityv2.AccessPolicySpec{
				ApplyToDestinations: []securityv2.DestinationSelector{{Selector: &securityv2.ObjectSelector{Labels: labels}}},
				Config: &securityv2.AccessPolicyConfig{Authz: &securityv2.Authorization{AllowedClients: []securityv2.IdentitySelector{
					{ServiceAccountSelector: &securityv2.ObjectSelector{Labels: map[string]string{"app": client}}},
				}}},
			},
		}
	}
	p := policy("payments")
	snapshot := func(p *mesh.AccessPolicy, other *mesh.Inventory) *mesh.Snapshot {
		return &mesh.Snapshot{AdminNamespace: "gloo-mesh", Policies: []*mesh.AccessPolicy{p}, Clusters: []mesh.Cluster{
			{Name: "home", UID: "1", Inventory: home}, {Name: "other", UID: "2", Inventory: other},
		}}
	}
	translated := func(s *mesh.Snapshot) *translate.Result {
		t.Helper()
		r, err := translate.All(s)
		if err != nil {
			t.Fatal(err)
		}
		return &r
	}
	// What the server before knew, and the cluster applied.
	before := translated(snapshot(p, &mesh.Inventory{Complete: true, Info: mesh.ClusterInfo{TrustDomain: "two.local"}, Namespaces: map[string]*mesh.NamespaceInventory{
		"shop": {ServiceAccounts: []mesh.ServiceAccount{{Namespace: "shop", Name: "payments", Labels: map[string]string{"app": "payments"}}}},
	}}))
	var ref mesh.Ref
	home.Outcomes = map[mesh.Ref]mesh.Outcome{}
	for r, o := range before.Objects["home"].All() {
		home.Outcomes[r] = mesh.Outcome{Hash: o.Hash, OK: true}
		if r.Kind == "AuthorizationPolicy" {
			ref = r
		}
	}
	now, alone := snapshot(p, nil), snapshot(policy("elsewhere"), nil)
	one := map[mesh.ClusterName]map[mesh.Ref]bool{"home": {ref: true}}
	none := map[mesh.ClusterName]map[mesh.Ref]bool{}
	for name, tc := range map[string]struct {
		first firstSeen
		now   *mesh.Snapshot
		want  map[mesh.ClusterName]map[mesh.Ref]bool
	}{
		"its client would be locked out":  {seen(now), now, one},
		"somebody has edited the policy":  {seen(now), snapshot(policy("payments"), nil), none},
		"a policy made since":             {firstSeen{}, now, none},
		"every cluster has reported":      {seen(now), snapshot(p, &mesh.Inventory{Complete: true, Info: mesh.ClusterInfo{TrustDomain: "two.local"}}), none},
		"nobody is left of those allowed": {seen(alone), alone, one},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, tc.first.kept(tc.now, translated(tc.now))); diff != "" {
				t.Error(diff)
			}
		})
	}
}
