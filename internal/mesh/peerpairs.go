package mesh

import (
	"cmp"
	"fmt"
	"slices"
)

// PeerReason says in a word what is between two clusters.
type PeerReason string

// The reasons. Only of those with Joined do the clusters reach each other.
const (
	PeerAutomatic    PeerReason = "Automatic"        // Ambit keeps a peer
	PeerHandMade     PeerReason = "HandMade"         // people made one: ours keeps away
	PeerSameNetwork  PeerReason = "SameNetwork"      // Pods reach each other without gateways
	PeerGateOff      PeerReason = "FeatureGateOff"   // featureGates.ConfigDistribution is off
	PeerSelfOff      PeerReason = "SwitchedOff"      // the cluster itself takes no part
	PeerOtherOff     PeerReason = "PeerSwitchedOff"  // the other takes no part
	PeerNoGateway    PeerReason = "NoGateway"        // nothing is known that leads to the other
	PeerTaken        PeerReason = "NetworkTaken"     // its network is peered through another cluster
	PeerNoNamespace  PeerReason = "NamespaceMissing" // where the peer would have to be
	PeerSelf         PeerReason = "Self"             // the same cluster
	PeerUnregistered PeerReason = "NotRegistered"
)

// Joined says whether Pods of the two clusters can reach each other by what is there, and so whether their istiods have a use for each other's endpoints.
func (r PeerReason) Joined() bool {
	return r == PeerAutomatic || r == PeerHandMade || r == PeerSameNetwork || r == PeerTaken
}

// PeerDecision is what is to be between two clusters, and why.
type PeerDecision struct {
	Reason PeerReason
	Why    string // one sentence
	// Endpoint leads to the other cluster, for Automatic.
	Endpoint PeerEndpoint
}

// Peering is who is peered with whom, as decided from one Snapshot. It is never changed.
type Peering struct {
	On      bool // the feature gate
	Members map[ClusterName]*PeerMember
	// through is the cluster through which each network is reached: the one registered first of those that can be.
	through map[string]*PeerMember
}

// PeeringOf decides from a Snapshot. Cost: linear in what the clusters report.
func PeeringOf(s *Snapshot) *Peering {
	members := make(map[ClusterName]*PeerMember, len(s.Clusters))
	for i := range s.Clusters {
		members[s.Clusters[i].Name] = MemberOf(&s.Clusters[i])
	}
	return NewPeering(s.Peering, members)
}

// NewPeering decides from what is known of each cluster.
func NewPeering(on bool, members map[ClusterName]*PeerMember) *Peering {
	p := &Peering{On: on, Members: members, through: map[string]*PeerMember{}}
	for _, m := range members {
		if m.Off != "" || m.Endpoint.Address == "" {
			continue
		}
		if other := p.through[m.Endpoint.Network]; other == nil || before(m, other) {
			p.through[m.Endpoint.Network] = m
		}
	}
	return p
}

func before(a, b *PeerMember) bool {
	return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Name, b.Name)) < 0
}

// Between decides about the peer for `to` in the cluster `from`.
func (p *Peering) Between(from, to ClusterName) PeerDecision {
	f, t := p.Members[from], p.Members[to]
	no := func(r PeerReason, why string, args ...any) PeerDecision {
		return PeerDecision{Reason: r, Why: fmt.Sprintf(why, args...)}
	}
	switch {
	case f == nil || t == nil:
		return no(PeerUnregistered, "it is not registered")
	case from == to:
		return no(PeerSelf, "it is the same cluster")
	}
	if h := f.by(t); h != nil {
		return no(PeerHandMade, "Gateway %s/%s was made by hand for network %q: nothing is added to it", h.Namespace, h.Name, cmp.Or(h.Network, t.Network))
	}
	network := cmp.Or(t.Endpoint.Network, t.Network)
	switch through := p.through[network]; {
	case network != "" && network == f.Network:
		return no(PeerSameNetwork, "both are on network %q: Pods reach each other without gateways", network)
	case !p.On:
		return no(PeerGateOff, "featureGates.ConfigDistribution is off")
	case f.Off != "":
		return no(PeerSelfOff, "%s takes no part: %s", from, f.Off)
	case t.Off != "":
		return no(PeerOtherOff, "%s takes no part: %s", to, t.Off)
	case t.Endpoint.Address == "":
		return no(PeerNoGateway, "%s can't be reached: %s", to, t.Missing)
	case through != t:
		return no(PeerTaken, "network %q is reached through %s: a network has one peer", network, through.Name)
	case !f.HasNamespace(t.Endpoint.Namespace):
		return no(PeerNoNamespace, "%s has no namespace %s, which is part of the identity of the gateway of %s: create it", from, t.Endpoint.Namespace, to)
	}
	return PeerDecision{
		Reason: PeerAutomatic, Endpoint: t.Endpoint,
		Why: fmt.Sprintf("Gateway %s/%s%s leads to %s", t.Endpoint.Namespace, PeerPrefix, to, t.Endpoint.Address),
	}
}

// by is the hand-made peer that leads to t: by its network, or, where it does not say one, by its cluster.
func (m *PeerMember) by(t *PeerMember) *HandMadePeer {
	network := cmp.Or(t.Endpoint.Network, t.Network)
	for i := range m.HandMade {
		h := &m.HandMade[i]
		if h.Network != "" {
			if h.Network == network {
				return h
			}
			continue
		}
		if h.Cluster != "" && (h.Cluster == string(t.Name) || h.Cluster == t.Endpoint.Cluster) {
			return h
		}
	}
	return nil
}

// Through is the cluster that an automatic peer for the network leads to, nil: none.
func (p *Peering) Through(network string) *PeerMember { return p.through[network] }

// Networks are those that can be reached, sorted.
func (p *Peering) Networks() []string { return sortedKeysOf(p.through) }

// Names are the clusters, sorted.
func (p *Peering) Names() []ClusterName { return sortedKeysOf(p.Members) }

func sortedKeysOf[K cmp.Ordered, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
