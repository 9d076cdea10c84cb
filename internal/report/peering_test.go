package report_test

import (
	"fmt"
	"testing"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

// TestPeering: what a KubernetesCluster says of its peers, and that it stays short in a large fleet, with those in trouble first.
func TestPeering(t *testing.T) {
	fleet := func(n int, change func(east *mesh.Cluster, s *mesh.Snapshot)) (*mesh.Snapshot, *mesh.Cluster) {
		s := &mesh.Snapshot{Peering: true}
		for i := range n {
			name := fmt.Sprintf("c%03d", i)
			s.Clusters = append(s.Clusters, mesh.Cluster{Name: mesh.ClusterName(name), UID: "u", Inventory: &mesh.Inventory{
				Complete: true, Info: mesh.ClusterInfo{TrustDomain: "cluster.local", Network: name, IstioVersion: "1.30.1"},
				Namespaces: map[string]*mesh.NamespaceInventory{"ew": {Gateways: []mesh.Gateway{{Namespace: "ew", Name: "ew", Class: mesh.ClassEastWest, Addresses: []string{"10.1.0." + fmt.Sprint(i)}}}}},
				Outcomes:   map[mesh.Ref]mesh.Outcome{}, PeerProbes: map[string]mesh.PeerProbe{},
			}})
		}
		from := &s.Clusters[0]
		for _, m := range mesh.PeeringOf(s).Members {
			from.Inventory.Outcomes[mesh.PeerRef(m)] = mesh.Outcome{OK: true}
			from.Inventory.PeerProbes["ew/"+mesh.PeerPrefix+string(m.Name)] = mesh.PeerProbe{Address: m.Endpoint.Address, Port: m.Endpoint.HBONE, RoundTrip: 14 * time.Millisecond}
		}
		change(from, s)
		return s, from
	}
	fail := func(from *mesh.Cluster, to string) {
		p := from.Inventory.PeerProbes["ew/"+mesh.PeerPrefix+to]
		p.Failure, p.RoundTrip = mesh.PeerTimeout, 0
		from.Inventory.PeerProbes["ew/"+mesh.PeerPrefix+to] = p
	}
	for name, tc := range map[string]struct {
		clusters int
		change   func(from *mesh.Cluster, s *mesh.Snapshot)
		reason   string // empty: no condition
		first    string // cluster and whether it is reached
		length   int
	}{
		"all well":                  {3, func(*mesh.Cluster, *mesh.Snapshot) {}, adminv2.ReasonPeersReachable, "c001 True 14ms", 2},
		"alone":                     {1, func(*mesh.Cluster, *mesh.Snapshot) {}, adminv2.ReasonNoPeers, "", 0},
		"gate off":                  {3, func(_ *mesh.Cluster, s *mesh.Snapshot) { s.Peering = false }, "", "", 0},
		"switched off":              {3, func(from *mesh.Cluster, _ *mesh.Snapshot) { from.Peering.Off = true }, adminv2.ReasonPeeringOff, "c001  ", 2},
		"one of 200 is not reached": {200, func(from *mesh.Cluster, _ *mesh.Snapshot) { fail(from, "c150") }, adminv2.ReasonPeersUnreachable, "c150 False ", 20},
		"no gateway over there":     {3, func(_ *mesh.Cluster, s *mesh.Snapshot) { s.Clusters[2].Inventory.Namespaces["ew"].Gateways = nil }, adminv2.ReasonPeersMissing, "c002  ", 2},
		"not applied yet":           {2, func(from *mesh.Cluster, _ *mesh.Snapshot) { clear(from.Inventory.Outcomes) }, adminv2.ReasonPeersPending, "c001 Unknown ", 1},
		"refused by the API server": {2, func(from *mesh.Cluster, _ *mesh.Snapshot) {
			for ref := range from.Inventory.Outcomes {
				from.Inventory.Outcomes[ref] = mesh.Outcome{Error: "no"}
			}
		}, adminv2.ReasonPeersMissing, "c001 False ", 1},
		"probed before it moved": {2, func(_ *mesh.Cluster, s *mesh.Snapshot) { s.Clusters[1].Peering.Address = "10.9.9.9" }, adminv2.ReasonPeersPending, "c001 Unknown ", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, from := fleet(tc.clusters, tc.change)
			p := mesh.PeeringOf(s)
			st := report.Peering(p, from, p.Names())
			reason, first := "", ""
			if st.Condition != nil {
				reason = st.Condition.Reason
			}
			if len(st.Peers) > 0 {
				first = fmt.Sprintf("%s %s %s", st.Peers[0].Cluster, st.Peers[0].Reachable, st.Peers[0].RoundTrip)
			}
			if reason != tc.reason || first != tc.first || len(st.Peers) != tc.length {
				t.Errorf("reason %q, first %q of %d; want %q, %q of %d: %+v", reason, first, len(st.Peers), tc.reason, tc.first, tc.length, st.Condition)
			}
		})
	}
}
