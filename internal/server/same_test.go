package server

import (
	"maps"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Every field of a Snapshot but the outcomes is translation's business.
func TestAlike(t *testing.T) {
	base := func() *mesh.Snapshot {
		return &mesh.Snapshot{
			Namespaces: map[string]map[string]string{}, Policies: []*mesh.AccessPolicy{{}}, Workspaces: []*mesh.Workspace{{}}, Settings: []*mesh.WorkspaceSettings{{}}, Overrides: []*mesh.Override{{}},
			Clusters: []mesh.Cluster{{Name: "c", Inventory: &mesh.Inventory{Namespaces: map[string]*mesh.NamespaceInventory{}}}},
		}
	}
	for name, tc := range map[string]struct {
		change func(*mesh.Snapshot)
		want   bool
	}{
		"nothing":                        {func(*mesh.Snapshot) {}, true},
		"outcomes":                       {func(s *mesh.Snapshot) { s.Clusters[0].Inventory.Outcomes = map[mesh.Ref]mesh.Outcome{{}: {}} }, true},
		"a list made anew, same entries": {func(s *mesh.Snapshot) { s.Overrides = append([]*mesh.Override(nil), s.Overrides...) }, true},
		"management cluster":             {func(s *mesh.Snapshot) { s.ManagementCluster = "m" }, false},
		"namespaces":                     {func(s *mesh.Snapshot) { s.Namespaces = maps.Clone(s.Namespaces) }, false},
		"a policy":                       {func(s *mesh.Snapshot) { s.Policies = []*mesh.AccessPolicy{{}} }, false},
		"a workspace":                    {func(s *mesh.Snapshot) { s.Workspaces = nil }, false},
		"settings":                       {func(s *mesh.Snapshot) { s.Settings = []*mesh.WorkspaceSettings{{}} }, false},
		"an override":                    {func(s *mesh.Snapshot) { s.Overrides = nil }, false},
		"a cluster more":                 {func(s *mesh.Snapshot) { s.Clusters = append(s.Clusters, mesh.Cluster{}) }, false},
		"a cluster's label":              {func(s *mesh.Snapshot) { s.Clusters[0].Labels = map[string]string{"a": "b"} }, false},
		"a cluster's fault":              {func(s *mesh.Snapshot) { s.Clusters[0].Invalid = "x" }, false},
		"an inventory dropped":           {func(s *mesh.Snapshot) { s.Clusters[0].Inventory = nil }, false},
		"an inventory complete":          {func(s *mesh.Snapshot) { s.Clusters[0].Inventory.Complete = true }, false},
		"a trust domain":                 {func(s *mesh.Snapshot) { s.Clusters[0].Inventory.Info.TrustDomain = "td" }, false},
		"what runs in a cluster":         {func(s *mesh.Snapshot) { s.Clusters[0].Inventory.Namespaces = map[string]*mesh.NamespaceInventory{} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := base()
			b := *a
			b.Clusters = []mesh.Cluster{a.Clusters[0]}
			inv := *a.Clusters[0].Inventory
			b.Clusters[0].Inventory = &inv
			tc.change(&b)
			if got := alike(a, &b); got != tc.want {
				t.Errorf("alike: %v", got)
			}
		})
	}
	if alike(nil, base()) {
		t.Error("the first is like none")
	}
}
