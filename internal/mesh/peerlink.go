package mesh

import (
	"net"
	"strconv"
	"time"
)

// PeerLink is how one cluster reaches another: what is to be, and what is.
type PeerLink struct {
	From   ClusterName `json:"from"`
	To     ClusterName `json:"to"`
	Reason PeerReason  `json:"reason"`
	// Gateway is the peer in From, "namespace/name"; empty: there is none.
	Gateway string `json:"gateway,omitempty"`
	// Address it leads to, with port.
	Address string `json:"address,omitempty"`
	// Reachable is whether that answers From's agent; empty: there is nothing to reach.
	Reachable ConditionStatus `json:"reachable,omitempty"`
	RoundTrip time.Duration   `json:"roundTripNanos,omitempty"`
	// Why says what is wrong, or how it is.
	Why string `json:"why"`
}

// PeerStanding sums a link up.
type PeerStanding int

// The standings.
const (
	PeerNone        PeerStanding = iota // nothing is to be there
	PeerReachable                       // it answers
	PeerUnreachable                     // it does not
	PeerPending                         // not applied or not probed yet
	PeerMissing                         // something is to be there, and can't
)

// Standing is quick: it makes no sentence.
func (p *Peering) Standing(from *Cluster, to ClusterName) (PeerStanding, PeerReason) {
	f, t := p.Members[from.Name], p.Members[to]
	if f == nil || t == nil {
		return PeerNone, PeerUnregistered
	}
	reason, hand := p.reason(f, t)
	switch reason {
	case PeerAutomatic, PeerHandMade:
	case PeerNoGateway, PeerNoNamespace:
		return PeerMissing, reason
	case PeerSameNetwork, PeerGateOff, PeerSelfOff, PeerOtherOff, PeerTaken, PeerSelf, PeerUnregistered:
		return PeerNone, reason
	}
	if o, ok := outcomeOf(from, t); reason == PeerAutomatic && (!ok || !o.OK) {
		if ok && o.Error != "" {
			return PeerMissing, reason
		}
		return PeerPending, reason
	}
	probe, known := probeOf(from, t, hand)
	switch {
	case !known:
		return PeerPending, reason
	case probe.Failure == PeerAnswers:
		return PeerReachable, reason
	}
	return PeerUnreachable, reason
}

func outcomeOf(from *Cluster, t *PeerMember) (Outcome, bool) {
	if from.Inventory == nil {
		return Outcome{}, false
	}
	o, ok := from.Inventory.Outcomes[PeerRef(t)]
	return o, ok
}

// PeerRef names the automatic peer that leads to a cluster.
func PeerRef(to *PeerMember) Ref {
	return Ref{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "Gateway", Namespace: to.Endpoint.Namespace, Name: PeerPrefix + string(to.Name)}
}

// probeOf is the probe of the peer as it is now; hand is nil for ours.
func probeOf(from *Cluster, t *PeerMember, hand *HandMadePeer) (PeerProbe, bool) {
	if from.Inventory == nil {
		return PeerProbe{}, false
	}
	if hand != nil {
		p, ok := from.Inventory.PeerProbes[hand.Namespace+"/"+hand.Name]
		return p, ok
	}
	p, ok := from.Inventory.PeerProbes[t.Endpoint.Namespace+"/"+PeerPrefix+string(t.Name)]
	return p, ok && p.Address == t.Endpoint.Address && p.Port == t.Endpoint.HBONE
}

// Link says everything of a pair.
func (p *Peering) Link(from *Cluster, to ClusterName) PeerLink {
	d := p.Between(from.Name, to)
	l := PeerLink{From: from.Name, To: to, Reason: d.Reason, Why: d.Why}
	standing, _ := p.Standing(from, to)
	if d.Reason != PeerAutomatic && d.Reason != PeerHandMade {
		return l
	}
	f, t := p.Members[from.Name], p.Members[to]
	_, hand := p.reason(f, t)
	probe, known := probeOf(from, t, hand)
	if hand != nil {
		l.Gateway = hand.Namespace + "/" + hand.Name
	} else {
		l.Gateway = t.Endpoint.Namespace + "/" + PeerPrefix + string(to)
		probe.Address, probe.Port = t.Endpoint.Address, t.Endpoint.HBONE
	}
	if probe.Address != "" {
		l.Address = net.JoinHostPort(probe.Address, strconv.Itoa(int(probe.Port)))
	}
	switch standing {
	case PeerReachable:
		l.Reachable, l.RoundTrip = True, probe.RoundTrip
	case PeerUnreachable:
		l.Reachable, l.Why = False, ExplainPeer(probe.Failure, to, probe.Address, probe.Port, f.Endpoint.Address)
	case PeerMissing:
		o, _ := outcomeOf(from, t)
		l.Reachable, l.Why = False, "the peer is not there: "+o.Error
	case PeerPending, PeerNone:
		l.Reachable = Unknown
		if o, ok := outcomeOf(from, t); hand == nil && (!ok || !o.OK) {
			l.Why = "the peer is being applied"
		} else if !known {
			l.Why = "it has not been probed yet"
		}
	}
	return l
}
