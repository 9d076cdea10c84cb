package translate

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// peerState is what was decided about peers last. A change of one cluster costs a look at each other cluster, not at each pair: a fleet of 1,000 has a million.
type peerState struct {
	inputs  map[mesh.ClusterName]peerInput
	peering *mesh.Peering
	objects map[mesh.ClusterName]mesh.Object // that lead to each cluster: one for all that have it
}

// peerInput is all that a member is made of.
type peerInput struct {
	inventory *mesh.Inventory
	settings  mesh.PeerSettings
	invalid   string
	domain    string
	source    mesh.Ref
	parent    string
}

// peerDelta says how the peers of a cluster differ from those before; known: it has those. It may be called side by side.
type peerDelta func(c mesh.ClusterName, known bool) (set []mesh.Object, gone []mesh.Ref)

// next decides anew.
func (p *peerState) next(s *mesh.Snapshot) (peerDelta, error) {
	before := *p
	if before.peering == nil {
		before.peering = mesh.NewPeering(false, nil)
	}
	now := peerState{inputs: make(map[mesh.ClusterName]peerInput, len(s.Clusters)), objects: make(map[mesh.ClusterName]mesh.Object, len(s.Clusters))}
	members := make(map[mesh.ClusterName]*mesh.PeerMember, len(s.Clusters))
	altered := map[mesh.ClusterName]bool{}
	for i := range s.Clusters {
		c := &s.Clusters[i]
		in := peerInput{c.Inventory, c.Peering, c.Invalid, c.ClusterDomain, c.Source, s.ManagementCluster}
		now.inputs[c.Name] = in
		old, had := before.inputs[c.Name]
		m := before.peering.Members[c.Name]
		if !had || old != in {
			m = mesh.MemberOf(c)
		}
		members[c.Name] = m
		altered[c.Name] = !had || old.source != in.source || old.parent != in.parent || !m.Equal(before.peering.Members[c.Name])
		if !altered[c.Name] {
			delete(altered, c.Name)
			now.objects[c.Name] = before.objects[c.Name]
			continue
		}
		o, err := peerObject(c, m, s.ManagementCluster)
		if err != nil {
			return nil, err
		}
		now.objects[c.Name] = o
	}
	for c := range before.peering.Members {
		if members[c] == nil {
			altered[c] = true
		}
	}
	if now.peering = before.peering; len(altered) > 0 || s.Peering != before.peering.On {
		now.peering = mesh.NewPeering(s.Peering, members)
	}
	*p = now
	touched := touchedNetworks(&before, &now, altered)
	return func(c mesh.ClusterName, known bool) ([]mesh.Object, []mesh.Ref) {
		switch {
		case !known:
			return now.differ(&peerState{peering: mesh.NewPeering(false, nil)}, c, now.peering.Networks())
		case altered[c] || before.peering.On != now.peering.On:
			return now.differ(&before, c, union2(before.peering.Networks(), now.peering.Networks()))
		}
		return now.differ(&before, c, touched)
	}, nil
}

// touchedNetworks are those to which another peer may lead, or the same in another way.
func touchedNetworks(before, now *peerState, altered map[mesh.ClusterName]bool) []string {
	found := map[string]bool{}
	for c := range altered {
		for _, p := range []*mesh.Peering{before.peering, now.peering} {
			if m := p.Members[c]; m != nil && m.Endpoint.Network != "" {
				found[m.Endpoint.Network] = true
			}
		}
	}
	return sortedKeys(found)
}

// union2 joins two sorted lists.
func union2(a, b []string) []string {
	found := make(map[string]bool, len(a)+len(b))
	for _, l := range [][]string{a, b} {
		for _, n := range l {
			found[n] = true
		}
	}
	return sortedKeys(found)
}

// differ compares the peers of a cluster for some networks.
func (p *peerState) differ(before *peerState, c mesh.ClusterName, networks []string) (set []mesh.Object, gone []mesh.Ref) {
	for _, n := range networks {
		old, had := before.peer(c, n)
		want, wants := p.peer(c, n)
		if wants && (!had || old.Hash != want.Hash || old.Ref != want.Ref) {
			set = append(set, want)
		}
		if had && (!wants || old.Ref != want.Ref) {
			gone = append(gone, old.Ref)
		}
	}
	// A cluster that moves from one network to another takes its peer along.
	gone = slices.DeleteFunc(gone, func(ref mesh.Ref) bool {
		return slices.ContainsFunc(set, func(o mesh.Object) bool { return o.Ref == ref })
	})
	return set, gone
}

func (p *peerState) peer(c mesh.ClusterName, network string) (mesh.Object, bool) {
	m := p.peering.Peer(c, network)
	if m == nil {
		return mesh.Object{}, false
	}
	return p.objects[m.Name], true
}

// The part of gateway.networking.k8s.io/v1 Gateway that a peer has, in the order of the operators' page.
type peerGateway struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   objectMeta `json:"metadata"`
	Spec       peerSpec   `json:"spec"`
}

type peerSpec struct {
	Class     string         `json:"gatewayClassName"`
	Addresses []peerAddress  `json:"addresses"`
	Listeners []peerListener `json:"listeners"`
}

type peerAddress struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

type peerListener struct {
	Name          string      `json:"name"`
	Port          int32       `json:"port"`
	Protocol      string      `json:"protocol"`
	TLS           peerTLS     `json:"tls"`
	AllowedRoutes peerAllowed `json:"allowedRoutes"`
}

type peerTLS struct {
	Mode string `json:"mode"`
}

type peerAllowed struct {
	Namespaces peerFrom `json:"namespaces"`
}

type peerFrom struct {
	From string `json:"from"`
}

// peerObject is the Gateway that leads to a cluster, in the shape of the operators' page. It names no cluster that has it, so that all share one.
func peerObject(c *mesh.Cluster, m *mesh.PeerMember, parentCluster string) (mesh.Object, error) {
	e := &m.Endpoint
	if e.Address == "" {
		return mesh.Object{}, nil
	}
	ref := mesh.Ref{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "Gateway", Namespace: e.Namespace, Name: mesh.PeerPrefix + string(c.Name)}
	l := labels(c.Name, c.Source, parentCluster) // relay.solo.io/cluster: the cluster it is about
	l[mesh.LabelNetwork], l[mesh.LabelCluster] = e.Network, e.Cluster
	annotations := map[string]string{mesh.AnnotationServiceAccount: e.ServiceAccount, mesh.AnnotationTrustDomain: string(e.TrustDomain)}
	if e.Source == mesh.SourceNodePort {
		annotations[mesh.AnnotationDataPlane] = "nodeport"
	}
	kind := "Hostname"
	if _, err := netip.ParseAddr(e.Address); err == nil {
		kind = "IPAddress"
	}
	same := peerAllowed{peerFrom{"Same"}}
	raw, err := json.Marshal(peerGateway{
		APIVersion: ref.Group + "/" + ref.Version, Kind: ref.Kind,
		Metadata: objectMeta{Name: ref.Name, Namespace: ref.Namespace, Labels: l, Annotations: annotations},
		Spec: peerSpec{Class: mesh.ClassRemote, Addresses: []peerAddress{{kind, e.Address}}, Listeners: []peerListener{
			{"cross-network", e.HBONE, "HBONE", peerTLS{"Passthrough"}, same}, {"xds-tls", e.XDS, "TLS", peerTLS{"Passthrough"}, same},
		}},
	})
	if err != nil {
		return mesh.Object{}, fmt.Errorf("cluster %q: encode %s: %w", c.Name, ref, err)
	}
	return mesh.Object{Ref: ref, Manifest: raw, Hash: mesh.FingerprintOf(raw)}, nil
}
