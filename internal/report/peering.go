package report

import (
	"fmt"
	"strings"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// maxPeers bounds status.peers.
const maxPeers = 20

// PeeringStatus is what a KubernetesCluster says of peering. It shares nothing with its inputs, and is the same as long as these are.
type PeeringStatus struct {
	Summary   *adminv2.ClusterPeering
	Peers     []adminv2.ClusterPeer
	Condition *mesh.Condition // nil: nothing is to be said
	Counts    PeerCounts
}

// PeerCounts counts other clusters by how they stand.
type PeerCounts struct{ Reachable, Unreachable, Pending, Missing int }

// Peering is the status of one cluster's peering. Cost: one quick look at each other cluster, sentences for at most maxPeers of them.
func Peering(p *mesh.Peering, c *mesh.Cluster, names []mesh.ClusterName) PeeringStatus {
	m := p.Members[c.Name]
	var st PeeringStatus
	if m == nil {
		return st
	}
	var trouble, fine []mesh.ClusterName
	for _, to := range names {
		standing, reason := p.Standing(c, to)
		switch standing {
		case mesh.PeerReachable:
			st.Counts.Reachable++
		case mesh.PeerUnreachable:
			st.Counts.Unreachable++
		case mesh.PeerPending:
			st.Counts.Pending++
		case mesh.PeerMissing:
			st.Counts.Missing++
		case mesh.PeerNone:
		}
		switch {
		case reason == mesh.PeerSelf || reason == mesh.PeerUnregistered || reason == mesh.PeerGateOff:
		case standing == mesh.PeerUnreachable || standing == mesh.PeerMissing:
			if len(trouble) < maxPeers {
				trouble = append(trouble, to)
			}
		case len(fine) < maxPeers:
			fine = append(fine, to)
		}
	}
	if !p.On && len(m.HandMade) == 0 {
		return st
	}
	all := append(trouble, fine...)
	for _, to := range all[:min(len(all), maxPeers)] {
		st.Peers = append(st.Peers, peerOf(p.Link(c, to)))
	}
	st.Summary = summaryOf(m, st.Counts)
	cond := peered(m, st)
	st.Condition = &cond
	return st
}

func summaryOf(m *mesh.PeerMember, n PeerCounts) *adminv2.ClusterPeering {
	e := &m.Endpoint
	s := &adminv2.ClusterPeering{
		Address: e.Address, AddressSource: e.Source, HBONEPort: e.HBONE, XDSPort: e.XDS, Network: e.Network, Cluster: e.Cluster,
		ServiceAccount: e.ServiceAccount, TrustDomain: string(e.TrustDomain), Message: either(m.Off, m.Missing),
		Peers: int32(min(n.Reachable+n.Unreachable+n.Pending, 1<<20)), Reachable: int32(min(n.Reachable, 1<<20)), //nolint:gosec // bounded
	}
	if e.Gateway != "" {
		s.Gateway = e.Namespace + "/" + e.Gateway
	}
	return s
}

func peerOf(l mesh.PeerLink) adminv2.ClusterPeer {
	out := adminv2.ClusterPeer{Cluster: string(l.To), Reason: string(l.Reason), Address: l.Address, Reachable: string(l.Reachable), Message: l.Why}
	if l.RoundTrip > 0 {
		out.RoundTrip = RoundTrip(l.RoundTrip)
	}
	if len(out.Message) > 512 {
		out.Message = out.Message[:509] + "..."
	}
	return out
}

// RoundTrip writes a round trip in as many digits as mean something: "0.2ms", "14ms".
func RoundTrip(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1fms", float64(max(d, 50*time.Microsecond))/float64(time.Millisecond))
	}
	return fmt.Sprintf("%dms", d.Round(time.Millisecond).Milliseconds())
}

func peered(m *mesh.PeerMember, st PeeringStatus) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionPeered, Status: mesh.True}
	n := st.Counts
	var bad []string
	for _, p := range st.Peers {
		if p.Reachable == string(mesh.False) || p.Reason == string(mesh.PeerNoGateway) || p.Reason == string(mesh.PeerNoNamespace) {
			bad = append(bad, p.Cluster+" ("+p.Message+")")
		}
	}
	more := ""
	if total := n.Unreachable + n.Missing; len(bad) > 3 {
		more = fmt.Sprintf("; and %d more", total-3)
		bad = bad[:3]
	}
	names := strings.Join(bad, "; ") + more
	switch {
	case m.Off != "":
		c.Reason, c.Message = adminv2.ReasonPeeringOff, "the cluster takes no part in automatic peering: "+m.Off
	case n.Unreachable > 0:
		c.Status, c.Reason, c.Message = mesh.False, adminv2.ReasonPeersUnreachable, "not reached: "+names
	case n.Missing > 0:
		c.Status, c.Reason, c.Message = mesh.False, adminv2.ReasonPeersMissing, "not peered: "+names
	case n.Pending > 0:
		c.Status, c.Reason, c.Message = mesh.Unknown, adminv2.ReasonPeersPending, "some peers are not applied or not probed yet"
	case n.Reachable == 0:
		c.Reason, c.Message = adminv2.ReasonNoPeers, "there is no cluster to be peered with"
	default:
		c.Reason, c.Message = adminv2.ReasonPeersReachable, "the east-west gateway of every cluster that is peered with it answers"
	}
	return c
}
