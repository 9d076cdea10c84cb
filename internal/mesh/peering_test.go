package mesh_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
)

const eastWest = "istio-eastwest"

// member is a cluster on a network of its own with an east-west gateway.
func member(name string, change ...func(*mesh.Cluster)) mesh.Cluster {
	c := mesh.Cluster{
		Name: mesh.ClusterName(name), RegisteredAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), UID: "uid",
		Inventory: &mesh.Inventory{
			Complete: true,
			Info:     mesh.ClusterInfo{TrustDomain: "cluster.local", IstioVersion: "1.30.1", Network: name, IstioNamespace: "istio-system", IstioClusterID: name},
			Namespaces: map[string]*mesh.NamespaceInventory{eastWest: {Gateways: []mesh.Gateway{{
				Namespace: eastWest, Name: eastWest, Class: mesh.ClassEastWest, Programmed: true, Addresses: []string{"192.0.2.1"}, Labels: map[string]string{mesh.LabelNetwork: name},
			}}}},
		},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func gateway(c *mesh.Cluster) *mesh.Gateway { return &c.Inventory.Namespaces[eastWest].Gateways[0] }
func with(c *mesh.Cluster, g ...mesh.Gateway) {
	n := c.Inventory.Namespaces[eastWest]
	n.Gateways = append(n.Gateways, g...)
}

func withService(c *mesh.Cluster, s mesh.Service) {
	s.Namespace, s.Name = eastWest, eastWest
	s.Labels = map[string]string{"gateway.networking.k8s.io/gateway-name": eastWest}
	c.Inventory.Namespaces[eastWest].Services = []mesh.Service{s}
}

func fleet(clusters ...mesh.Cluster) *mesh.Snapshot {
	return &mesh.Snapshot{Peering: true, Clusters: clusters}
}

// TestHandMadePeers: the five shapes in the wild are found by class and network, whatever they are called, and keep ours away; what is no peer of that network does not.
func TestHandMadePeers(t *testing.T) {
	labels := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for name, tc := range map[string]struct {
		gateway mesh.Gateway
		want    mesh.PeerReason
	}{
		"of the operators' page: both labels, both listeners": {mesh.Gateway{
			Name: "manual-peer-west", Class: mesh.ClassRemote, Labels: labels(mesh.LabelNetwork, "west", mesh.LabelCluster, "west"),
			Annotations: labels(mesh.AnnotationServiceAccount, eastWest, mesh.AnnotationTrustDomain, "cluster.local"),
		}, mesh.PeerHandMade},
		"of istioctl: no cluster label, xds-tls only":    {mesh.Gateway{Name: "istio-remote-peer-west", Class: mesh.ClassRemote, Labels: labels(mesh.LabelNetwork, "west", "topology.kubernetes.io/region", "eu")}, mesh.PeerHandMade},
		"early: HBONE only":                              {mesh.Gateway{Name: "remote-west", Class: mesh.ClassRemote, Labels: labels(mesh.LabelNetwork, "west")}, mesh.PeerHandMade},
		"by node ports":                                  {mesh.Gateway{Name: "nodeport", Class: mesh.ClassRemote, Labels: labels(mesh.LabelNetwork, "west", mesh.LabelCluster, "west"), Annotations: labels(mesh.AnnotationDataPlane, "nodeport")}, mesh.PeerHandMade},
		"annotations only":                               {mesh.Gateway{Name: "peer", Class: mesh.ClassRemote, Annotations: labels(mesh.AnnotationPeerNetwork, "west", mesh.AnnotationPeerCluster, "west")}, mesh.PeerHandMade},
		"cluster label only":                             {mesh.Gateway{Name: "peer", Class: mesh.ClassRemote, Labels: labels(mesh.LabelCluster, "west")}, mesh.PeerHandMade},
		"another network, though the name says west":     {mesh.Gateway{Name: "istio-remote-peer-west", Class: mesh.ClassRemote, Labels: labels(mesh.LabelNetwork, "north", mesh.LabelCluster, "west")}, mesh.PeerAutomatic},
		"another class":                                  {mesh.Gateway{Name: "west", Class: "istio", Labels: labels(mesh.LabelNetwork, "west")}, mesh.PeerAutomatic},
		"what Solo's istiod makes for its own east-west": {mesh.Gateway{Name: "istio-remote", Class: mesh.ClassRemote, Labels: labels(mesh.LabelNetwork, "east", mesh.LabelCluster, "east")}, mesh.PeerAutomatic},
	} {
		t.Run(name, func(t *testing.T) {
			tc.gateway.Namespace = eastWest
			p := mesh.PeeringOf(fleet(member("east", func(c *mesh.Cluster) { with(c, tc.gateway) }), member("west")))
			if got := p.Between("east", "west"); got.Reason != tc.want {
				t.Errorf("east to west: %s (%s), want %s", got.Reason, got.Why, tc.want)
			}
			if got := p.Between("west", "east"); got.Reason != mesh.PeerAutomatic {
				t.Errorf("west to east: %s (%s), want an automatic peer: the hand-made one is not there", got.Reason, got.Why)
			}
		})
	}
}

func TestPeerReasons(t *testing.T) {
	off := func(c *mesh.Cluster) {
		c.Peering = mesh.PeerSettingsOf(map[string]string{mesh.AnnotationAutomaticPeering: "false"})
	}
	for name, tc := range map[string]struct {
		east, west func(*mesh.Cluster)
		gate       bool
		want       [2]mesh.PeerReason // east to west, west to east
	}{
		"plain":                  {gate: true, want: [2]mesh.PeerReason{mesh.PeerAutomatic, mesh.PeerAutomatic}},
		"gate off":               {want: [2]mesh.PeerReason{mesh.PeerGateOff, mesh.PeerGateOff}},
		"switched off":           {east: off, gate: true, want: [2]mesh.PeerReason{mesh.PeerSelfOff, mesh.PeerOtherOff}},
		"switched off at istiod": {east: func(c *mesh.Cluster) { c.Inventory.Info.AutomaticPeering = "false" }, gate: true, want: [2]mesh.PeerReason{mesh.PeerSelfOff, mesh.PeerOtherOff}},
		"asked for at istiod":    {east: func(c *mesh.Cluster) { c.Inventory.Info.AutomaticPeering = "true" }, gate: true, want: [2]mesh.PeerReason{mesh.PeerAutomatic, mesh.PeerAutomatic}},
		"invalid":                {west: func(c *mesh.Cluster) { c.Invalid = "no" }, gate: true, want: [2]mesh.PeerReason{mesh.PeerOtherOff, mesh.PeerSelfOff}},
		"one network": {west: func(c *mesh.Cluster) {
			c.Inventory.Info.Network, gateway(c).Labels = "east", map[string]string{mesh.LabelNetwork: "east"}
		}, gate: true, want: [2]mesh.PeerReason{mesh.PeerSameNetwork, mesh.PeerSameNetwork}},
		"no gateway": {west: func(c *mesh.Cluster) { c.Inventory.Namespaces[eastWest].Gateways = nil }, gate: true, want: [2]mesh.PeerReason{mesh.PeerNoGateway, mesh.PeerAutomatic}},
		"no mesh": {west: func(c *mesh.Cluster) {
			c.Inventory.Namespaces, c.Inventory.Info = map[string]*mesh.NamespaceInventory{eastWest: {}}, mesh.ClusterInfo{}
		}, gate: true, want: [2]mesh.PeerReason{mesh.PeerOtherOff, mesh.PeerSelfOff}},
		"no address": {west: func(c *mesh.Cluster) { gateway(c).Addresses = nil }, gate: true, want: [2]mesh.PeerReason{mesh.PeerNoGateway, mesh.PeerAutomatic}},
		"no network": {west: func(c *mesh.Cluster) { gateway(c).Labels, c.Inventory.Info.Network = nil, "" }, gate: true, want: [2]mesh.PeerReason{mesh.PeerNoGateway, mesh.PeerAutomatic}},
		"no namespace for the peer": {west: func(c *mesh.Cluster) {
			c.Inventory.Namespaces["gw"] = c.Inventory.Namespaces[eastWest]
			delete(c.Inventory.Namespaces, eastWest)
			c.Inventory.Namespaces["gw"].Gateways[0].Namespace = "gw"
		}, gate: true, want: [2]mesh.PeerReason{mesh.PeerNoNamespace, mesh.PeerNoNamespace}},
		"never heard of": {west: func(c *mesh.Cluster) { c.Inventory = nil }, gate: true, want: [2]mesh.PeerReason{mesh.PeerNoGateway, mesh.PeerAutomatic}},
		"not heard of since the start": {west: func(c *mesh.Cluster) {
			c.Inventory, c.Peering.Last = nil, mesh.PeerEndpoint{Network: "west", Namespace: eastWest, Address: "192.0.2.1", HBONE: 15008}
		}, gate: true, want: [2]mesh.PeerReason{mesh.PeerAutomatic, mesh.PeerAutomatic}},
	} {
		t.Run(name, func(t *testing.T) {
			s := fleet(member("east"), member("west"))
			s.Peering = tc.gate
			for i, f := range []func(*mesh.Cluster){tc.east, tc.west} {
				if f != nil {
					f(&s.Clusters[i])
				}
			}
			p := mesh.PeeringOf(s)
			to, from := p.Between("east", "west"), p.Between("west", "east")
			if got := [2]mesh.PeerReason{to.Reason, from.Reason}; got != tc.want {
				t.Errorf("got %v (%s; %s), want %v", got, to.Why, from.Why, tc.want)
			}
		})
	}
}

// TestPeerEndpoint: where a gateway is reached: what a person says, then the Gateway's status, then the Service's, then node ports.
func TestPeerEndpoint(t *testing.T) {
	bare := func(c *mesh.Cluster) {
		gateway(c).Addresses = []string{"istio-eastwest.istio-eastwest.svc.cluster.local"}
	}
	ports := []mesh.ServicePort{{Number: 15008, NodePort: 31508}, {Number: 15012, NodePort: 31512}}
	for name, tc := range map[string]struct {
		change func(*mesh.Cluster)
		want   mesh.PeerEndpoint // Address, HBONE, XDS, Source
	}{
		"gateway":            {func(*mesh.Cluster) {}, mesh.PeerEndpoint{Address: "192.0.2.1", HBONE: 15008, XDS: 15012, Source: mesh.SourceGateway}},
		"hostname":           {func(c *mesh.Cluster) { gateway(c).Addresses = []string{"a.elb.example.com"} }, mesh.PeerEndpoint{Address: "a.elb.example.com", HBONE: 15008, XDS: 15012, Source: mesh.SourceGateway}},
		"override":           {func(c *mesh.Cluster) { c.Peering.Address = "192.168.1.18" }, mesh.PeerEndpoint{Address: "192.168.1.18", HBONE: 15008, XDS: 15012, Source: mesh.SourceOverride}},
		"override with port": {func(c *mesh.Cluster) { c.Peering.Address, c.Peering.Port = "192.168.1.18", 31000 }, mesh.PeerEndpoint{Address: "192.168.1.18", HBONE: 31000, XDS: 15012, Source: mesh.SourceOverride}},
		"load balancer": {func(c *mesh.Cluster) {
			bare(c)
			withService(c, mesh.Service{Type: "LoadBalancer", Addresses: []string{"198.51.100.7"}})
		}, mesh.PeerEndpoint{Address: "198.51.100.7", HBONE: 15008, XDS: 15012, Source: mesh.SourceLoadBalancer}},
		"node port": {func(c *mesh.Cluster) {
			bare(c)
			withService(c, mesh.Service{Type: "NodePort", Ports: ports})
			c.Inventory.Info.NodeAddresses = []string{"10.1.0.4", "10.1.0.5"}
		}, mesh.PeerEndpoint{Address: "10.1.0.4", HBONE: 31508, XDS: 31512, Source: mesh.SourceNodePort}},
		"node port, no node":  {func(c *mesh.Cluster) { bare(c); withService(c, mesh.Service{Type: "NodePort", Ports: ports}) }, mesh.PeerEndpoint{}},
		"ClusterIP":           {func(c *mesh.Cluster) { bare(c); withService(c, mesh.Service{}) }, mesh.PeerEndpoint{}},
		"load balancer waits": {func(c *mesh.Cluster) { bare(c); withService(c, mesh.Service{Type: "LoadBalancer"}) }, mesh.PeerEndpoint{}},
		"bad override":        {func(c *mesh.Cluster) { c.Peering.Invalid = "no" }, mesh.PeerEndpoint{}},
		"the programmed one of two": {func(c *mesh.Cluster) {
			with(c, mesh.Gateway{Namespace: eastWest, Name: "a", Class: mesh.ClassEastWestSolo, Addresses: []string{"192.0.2.9"}, Labels: map[string]string{mesh.LabelNetwork: "x"}})
		}, mesh.PeerEndpoint{Address: "192.0.2.1", HBONE: 15008, XDS: 15012, Source: mesh.SourceGateway}},
	} {
		t.Run(name, func(t *testing.T) {
			c := member("x", tc.change)
			m := mesh.MemberOf(&c)
			want := tc.want
			if want.Address != "" {
				want.Cluster, want.Network, want.Namespace, want.Gateway, want.ServiceAccount, want.TrustDomain = "x", "x", eastWest, eastWest, eastWest, "cluster.local"
			} else if m.Missing == "" {
				t.Error("no endpoint, and nothing says why")
			}
			if d := cmp.Diff(want, m.Endpoint); d != "" {
				t.Errorf("%s\n%s", m.Missing, d)
			}
		})
	}
}

func TestPeerSettings(t *testing.T) {
	for value, want := range map[string]mesh.PeerSettings{
		"192.168.1.18": {Address: "192.168.1.18"}, "192.168.1.18:31508": {Address: "192.168.1.18", Port: 31508}, "gw.example.com": {Address: "gw.example.com"},
		"gw.example.com:443": {Address: "gw.example.com", Port: 443}, "2001:db8::1": {Address: "2001:db8::1"}, "[2001:db8::1]:15008": {Address: "2001:db8::1", Port: 15008}, "": {},
	} {
		if d := cmp.Diff(want, mesh.PeerSettingsOf(map[string]string{mesh.AnnotationPeeringAddress: value})); d != "" {
			t.Errorf("%q: %s", value, d)
		}
	}
	for _, bad := range []string{"1.2.3.4:0", "1.2.3.4:99999", "http://x", "a_b", "a:b:c", "x:port"} {
		if s := mesh.PeerSettingsOf(map[string]string{mesh.AnnotationPeeringAddress: bad}); s.Invalid == "" || s.Address != "" {
			t.Errorf("%q is taken: %+v", bad, s)
		}
	}
	for value, off := range map[string]bool{"": false, "true": false, "false": true, "off": true, "no": true} {
		if got := mesh.PeerSettingsOf(map[string]string{mesh.AnnotationAutomaticPeering: value}).Off; got != off {
			t.Errorf("automatic-peering %q: off %v, want %v", value, got, off)
		}
	}
}

// TestPeeringProperties: in fleets of any shape no cluster is peered with itself, none has two peers for a network, none has one for a network that has a hand-made peer or is its
// own, and whoever is switched off has none and is nobody's.
func TestPeeringProperties(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := fleet()
		for i := range 2 + r.IntN(8) {
			s.Clusters = append(s.Clusters, member(fmt.Sprintf("c%02d", i), func(c *mesh.Cluster) {
				net := fmt.Sprintf("n%d", r.IntN(6))
				c.Inventory.Info.Network, gateway(c).Labels = net, map[string]string{mesh.LabelNetwork: net}
				c.Peering.Off = r.IntN(5) == 0
				for range r.IntN(3) {
					with(c, mesh.Gateway{Namespace: eastWest, Name: fmt.Sprint("h", r.Int()), Class: mesh.ClassRemote, Labels: map[string]string{mesh.LabelNetwork: fmt.Sprintf("n%d", r.IntN(6))}})
				}
			}))
		}
		p := mesh.PeeringOf(s)
		for i := range s.Clusters {
			from := &s.Clusters[i]
			peers := map[string]mesh.ClusterName{}
			for _, h := range p.Members[from.Name].HandMade {
				peers[h.Network] = "by hand"
			}
			for j := range s.Clusters {
				to := &s.Clusters[j]
				d := p.Between(from.Name, to.Name)
				if d.Reason != mesh.PeerAutomatic {
					continue
				}
				if other, two := peers[d.Endpoint.Network]; two || i == j || from.Peering.Off || to.Peering.Off || d.Endpoint.Network == from.Inventory.Info.Network {
					t.Fatalf("seed %d: %s has a peer for %s (network %s, beside %q)", seed, from.Name, to.Name, d.Endpoint.Network, other)
				}
				peers[d.Endpoint.Network] = to.Name
			}
		}
	}
}
