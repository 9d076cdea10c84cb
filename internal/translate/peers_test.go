package translate_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

const eastWest = "istio-eastwest"

// peerCluster is a cluster that has nothing but an east-west gateway.
func peerCluster(name, network, address string) mesh.Cluster {
	return mesh.Cluster{
		Name: mesh.ClusterName(name), UID: mesh.ClusterUID(name), RegisteredAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Source: mesh.Ref{Group: "admin.gloo.solo.io", Version: "v2", Kind: "KubernetesCluster", Namespace: "gloo-mesh", Name: name},
		Inventory: &mesh.Inventory{
			Complete: true, Info: mesh.ClusterInfo{TrustDomain: "cluster.local", Network: network, IstioNamespace: "istio-system", IstioClusterID: name},
			Namespaces: map[string]*mesh.NamespaceInventory{eastWest: {Gateways: []mesh.Gateway{{
				Namespace: eastWest, Name: eastWest, Class: mesh.ClassEastWest, Programmed: true, Addresses: []string{address}, Labels: map[string]string{mesh.LabelNetwork: network},
			}}}},
		},
	}
}

func peerFleet(n int) *mesh.Snapshot {
	s := &mesh.Snapshot{Peering: true, AdminNamespace: "gloo-mesh", ManagementCluster: "mgmt", Namespaces: map[string]map[string]string{}}
	for i := range n {
		name := fmt.Sprintf("c%04d", i)
		s.Clusters = append(s.Clusters, peerCluster(name, name, fmt.Sprintf("192.0.%d.%d", i/250, i%250)))
	}
	return s
}

// changed is s with one cluster in another way; what is not changed is shared.
func changed(s *mesh.Snapshot, i int, change func(*mesh.Cluster, *mesh.Gateway)) *mesh.Snapshot {
	out := *s
	out.Clusters = append([]mesh.Cluster(nil), s.Clusters...)
	c := &out.Clusters[i]
	inv, ns := *c.Inventory, *c.Inventory.Namespaces[eastWest]
	ns.Gateways = append([]mesh.Gateway(nil), ns.Gateways...)
	inv.Namespaces = map[string]*mesh.NamespaceInventory{eastWest: &ns}
	c.Inventory = &inv
	change(c, &ns.Gateways[0])
	return &out
}

// TestPeersWalk: whatever happens to a fleet, what Next makes of it is what All makes of it, and no cluster has a peer of its own or two for a network.
func TestPeersWalk(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		s := peerFleet(6)
		translator := translate.New()
		objects := map[mesh.ClusterName]mesh.Objects{}
		for step := range 60 {
			got, err := translator.Next(s)
			if err != nil {
				t.Fatal(err)
			}
			want, err := translate.All(s)
			if err != nil {
				t.Fatal(err)
			}
			for c, o := range want.Objects {
				if !o.Equal(got.Objects[c]) {
					t.Fatalf("seed %d step %d: %s has %v, want %v", seed, step, c, got.Objects[c].Names(), o.Names())
				}
				d := got.Changed[c]
				var set []mesh.Object
				for _, ref := range d.Set {
					one, ok := o.Get(ref)
					if !ok {
						t.Fatalf("seed %d step %d: %s: the delta sets %s, which is not wanted", seed, step, c, ref)
					}
					set = append(set, one)
				}
				if objects[c] = objects[c].With(set, d.Gone); !objects[c].Equal(o) {
					t.Fatalf("seed %d step %d: the deltas of %s come to %v, want %v", seed, step, c, objects[c].Names(), o.Names())
				}
				networks := map[string]bool{}
				for ref := range o.All() {
					if to, is := strings.CutPrefix(ref.Name, mesh.PeerPrefix); is {
						m := got.Peering.Members[mesh.ClusterName(to)]
						if to == string(c) || networks[m.Endpoint.Network] {
							t.Fatalf("seed %d step %d: %s has peers %v", seed, step, c, o.Names())
						}
						networks[m.Endpoint.Network] = true
					}
				}
			}
			for c := range objects {
				if _, there := want.Objects[c]; !there {
					delete(objects, c)
				}
			}
			s = peerStep(r, s)
		}
	}
}

// peerStep changes one thing.
func peerStep(r *rand.Rand, s *mesh.Snapshot) *mesh.Snapshot {
	i := r.IntN(len(s.Clusters))
	network := fmt.Sprintf("c%04d", r.IntN(6))
	switch r.IntN(9) {
	case 0:
		return changed(s, i, func(_ *mesh.Cluster, g *mesh.Gateway) { g.Addresses = []string{fmt.Sprintf("192.0.2.%d", r.IntN(200))} })
	case 1:
		return changed(s, i, func(c *mesh.Cluster, g *mesh.Gateway) {
			c.Inventory.Info.Network, g.Labels = network, map[string]string{mesh.LabelNetwork: network}
		})
	case 2:
		return changed(s, i, func(c *mesh.Cluster, _ *mesh.Gateway) { c.Peering.Off = !c.Peering.Off })
	case 3:
		return changed(s, i, func(c *mesh.Cluster, _ *mesh.Gateway) { c.Inventory.Info.TrustDomain = mesh.TrustDomain(network) })
	case 4:
		return changed(s, i, func(_ *mesh.Cluster, g *mesh.Gateway) { g.Addresses = nil })
	case 5:
		return changed(s, i, func(c *mesh.Cluster, _ *mesh.Gateway) {
			n := c.Inventory.Namespaces[eastWest]
			if len(n.Gateways) > 1 {
				n.Gateways = n.Gateways[:1]
				return
			}
			n.Gateways = append(n.Gateways, mesh.Gateway{Namespace: eastWest, Name: "by-hand", Class: mesh.ClassRemote, Labels: map[string]string{mesh.LabelNetwork: network}})
		})
	case 6:
		out := *s
		out.Peering = !s.Peering
		return &out
	case 7:
		if len(s.Clusters) > 3 {
			out := *s
			out.Clusters = append(append([]mesh.Cluster(nil), s.Clusters[:i]...), s.Clusters[i+1:]...)
			return &out
		}
	}
	return changed(s, i, func(c *mesh.Cluster, _ *mesh.Gateway) { c.Invalid = map[string]string{"": "it is wrong"}[c.Invalid] })
}

// TestPeerOneChange: in a fleet of 50, what changes about one cluster changes one object of each other one, and nothing else.
func TestPeerOneChange(t *testing.T) {
	s, translator := peerFleet(50), translate.New()
	next := func(s *mesh.Snapshot) translate.Result {
		t.Helper()
		r, err := translator.Next(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	type count struct{ Clusters, Set, Gone int }
	of := func(r translate.Result) (n count) {
		n.Clusters = len(r.Changed)
		for _, d := range r.Changed {
			n.Set, n.Gone = n.Set+len(d.Set), n.Gone+len(d.Gone)
		}
		return n
	}
	next(s)
	for _, tc := range []struct {
		name   string
		change func(*mesh.Cluster, *mesh.Gateway)
		want   count
	}{
		{"another address", func(_ *mesh.Cluster, g *mesh.Gateway) { g.Addresses = []string{"198.51.100.1"} }, count{Clusters: 49, Set: 49}},
		{"another trust domain", func(c *mesh.Cluster, _ *mesh.Gateway) { c.Inventory.Info.TrustDomain = "other" }, count{Clusters: 49, Set: 49}},
		{"switched off", func(c *mesh.Cluster, _ *mesh.Gateway) { c.Peering.Off = true }, count{Clusters: 50, Gone: 98}},
		{"and on", func(c *mesh.Cluster, _ *mesh.Gateway) { c.Peering.Off = false }, count{Clusters: 50, Set: 98}},
		{"a Gateway by hand", func(c *mesh.Cluster, _ *mesh.Gateway) {
			n := c.Inventory.Namespaces[eastWest]
			n.Gateways = append(n.Gateways, mesh.Gateway{Namespace: eastWest, Name: "x", Class: mesh.ClassRemote, Labels: map[string]string{mesh.LabelNetwork: "c0007"}})
		}, count{Clusters: 1, Gone: 1}},
		{"nothing", func(*mesh.Cluster, *mesh.Gateway) {}, count{}},
	} {
		s = changed(s, 20, tc.change)
		if d := cmp.Diff(tc.want, of(next(s))); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}

// BenchmarkPeers1000: a fleet of 1,000 clusters, a million peers: from nothing, after a change of one address, and when one cluster leaves and joins.
func BenchmarkPeers1000(b *testing.B) {
	s := peerFleet(1000)
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			if _, err := translate.New().Next(s); err != nil {
				b.Fatal(err)
			}
		}
	})
	translator := translate.New()
	if _, err := translator.Next(s); err != nil {
		b.Fatal(err)
	}
	b.Run("address", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			s = changed(s, i%1000, func(_ *mesh.Cluster, g *mesh.Gateway) {
				g.Addresses = []string{fmt.Sprintf("198.51.%d.%d", i/250%250, i%250)}
			})
			if _, err := translator.Next(s); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("leave-join", func(b *testing.B) {
		less := *s
		less.Clusters = s.Clusters[:999]
		for b.Loop() {
			for _, one := range []*mesh.Snapshot{&less, s} {
				if _, err := translator.Next(one); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
