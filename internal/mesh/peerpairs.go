package mesh

import (
	"cmp"
	"fmt"
	"maps"
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

// Equal says whether both decide the same of the same clusters.
func (p *Peering) Equal(o *Peering) bool {
	return p == o || p != nil && o != nil && p.On == o.On && maps.EqualFunc(p.Members, o.Members, (*PeerMember).Equal)
}

func before(a, b *PeerMember) bool {
	return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Name, b.Name)) < 0
}

// Between decides about the peer for `to` in the cluster `from`.
func (p *Peering) Between(from, to ClusterName) PeerDecision {
	f, t := p.Members[from], p.Members[to]
	if f == nil || t == nil {
		return PeerDecision{Reason: PeerUnregistered, Why: "it is not registered"}
	}
	reason, hand := p.reason(f, t)
	d := PeerDecision{Reason: reason, Why: p.why(reason, f, t, hand)}
	if reason == PeerAutomatic {
		d.Endpoint = t.Endpoint
	}
	return d
}

// reason decides, quickly: a fleet of 1,000 has a million pairs.
func (p *Peering) reason(f, t *PeerMember) (PeerReason, *HandMadePeer) {
	if f.Name == t.Name {
		return PeerSelf, nil
	}
	if h := f.by(t); h != nil {
		return PeerHandMade, h
	}
	network := t.network()
	switch {
	case network != "" && network == f.Network:
		return PeerSameNetwork, nil
	case !p.On:
		return PeerGateOff, nil
	case f.Off != "":
		return PeerSelfOff, nil
	case t.Off != "":
		return PeerOtherOff, nil
	case t.Endpoint.Address == "":
		return PeerNoGateway, nil
	case p.through[network] != t:
		return PeerTaken, nil
	case !f.HasNamespace(t.Endpoint.Namespace):
		return PeerNoNamespace, nil
	}
	return PeerAutomatic, nil
}

func (p *Peering) why(reason PeerReason, f, t *PeerMember, h *HandMadePeer) string {
	switch reason {
	case PeerAutomatic:
		return fmt.Sprintf("Gateway %s/%s%s leads to %s", t.Endpoint.Namespace, PeerPrefix, t.Name, t.Endpoint.Address)
	case PeerHandMade:
		return fmt.Sprintf("Gateway %s/%s was made by hand for network %q: nothing is added to it", h.Namespace, h.Name, cmp.Or(h.Network, t.network()))
	case PeerSameNetwork:
		return fmt.Sprintf("both are on network %q: Pods reach each other without gateways", f.Network)
	case PeerGateOff:
		return "featureGates.ConfigDistribution is off"
	case PeerSelfOff:
		return fmt.Sprintf("%s takes no part: %s", f.Name, f.Off)
	case PeerOtherOff:
		return fmt.Sprintf("%s takes no part: %s", t.Name, t.Off)
	case PeerNoGateway:
		return fmt.Sprintf("%s can't be reached: %s", t.Name, t.Missing)
	case PeerTaken:
		return fmt.Sprintf("network %q is reached through %s: a network has one peer", t.network(), p.through[t.network()].Name)
	case PeerNoNamespace:
		return fmt.Sprintf("%s has no namespace %s, which is part of the identity of the gateway of %s: create it", f.Name, t.Endpoint.Namespace, t.Name)
	case PeerSelf:
		return "it is the same cluster"
	case PeerUnregistered:
	}
	return "it is not registered"
}

// Peer is the cluster that an automatic peer for the network in the cluster `from` leads to; nil: there is to be none.
func (p *Peering) Peer(from ClusterName, network string) *PeerMember {
	f, t := p.Members[from], p.through[network]
	if f == nil || t == nil {
		return nil
	}
	if reason, _ := p.reason(f, t); reason != PeerAutomatic {
		return nil
	}
	return t
}

// network is that of its gateway.
func (m *PeerMember) network() string { return cmp.Or(m.Endpoint.Network, m.Network) }

// by is the hand-made peer that leads to t: by its network, or, where it does not say one, by its cluster.
func (m *PeerMember) by(t *PeerMember) *HandMadePeer {
	network := t.network()
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
