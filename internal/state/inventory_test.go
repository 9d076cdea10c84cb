package state

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
)

func encode(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type items map[mesh.ItemKey][]byte

func quiet() *State {
	return New(Config{Log: slog.New(slog.DiscardHandler)})
}

// see tells s of a change, and returns cluster c's inventory.
func see(s *State, set items, gone ...mesh.ItemKey) *mesh.Inventory {
	s.Observe("c", Change{Set: maps.All(set), Gone: slices.Values(gone), Complete: true})
	return s.inventories["c"].snapshot()
}

func TestDecode(t *testing.T) {
	ref := mesh.Ref{Group: "security.istio.io", Version: "v1", Kind: "AuthorizationPolicy", Namespace: "billing", Name: "a"}
	outcome := mesh.Outcome{Hash: mesh.FingerprintOf([]byte("x")), OK: true}
	want := &mesh.Inventory{
		Complete: true, Info: mesh.ClusterInfo{TrustDomain: "td"}, Outcomes: map[mesh.Ref]mesh.Outcome{ref: outcome},
		Namespaces: map[string]*mesh.NamespaceInventory{
			"billing": {
				Labels:          map[string]string{"istio.io/dataplane-mode": "ambient"},
				Services:        []mesh.Service{{Namespace: "billing", Name: "a"}, {Namespace: "billing", Name: "b", Ports: []mesh.ServicePort{{Number: 80}}}},
				ServiceAccounts: []mesh.ServiceAccount{{Namespace: "billing", Name: "sa"}},
				Workloads:       []mesh.Workload{{Namespace: "billing", Kind: "StatefulSet", Name: "w"}, {Namespace: "billing", Kind: "Deployment", Name: "w-2"}},
				Gateways:        []mesh.Gateway{{Namespace: "billing", Name: "waypoint", Class: "istio-waypoint"}},
				Foreign:         []mesh.ForeignPolicy{{Namespace: "billing", Kind: "AuthorizationPolicy", Name: "open-all", Spec: json.RawMessage(`{"rules":[{}]}`)}},
			},
			"empty": {},
		},
	}
	set := items{
		{Type: mesh.ItemCluster, Name: "cluster"}:                              encode(t, want.Info),
		{Type: mesh.ItemOutcome, Name: ref.String()}:                           encode(t, outcome),
		{Type: mesh.ItemNamespace, Name: "empty"}:                              encode(t, mesh.Namespace{Name: "empty"}),
		{Type: mesh.ItemNamespace, Name: "billing"}:                            encode(t, mesh.Namespace{Name: "billing", Labels: want.Namespaces["billing"].Labels}),
		{Type: mesh.ItemGateway, Name: "billing/waypoint"}:                     encode(t, want.Namespaces["billing"].Gateways[0]),
		{Type: mesh.ItemForeign, Name: "billing/AuthorizationPolicy/open-all"}: encode(t, want.Namespaces["billing"].Foreign[0]),
		{Type: mesh.ItemServiceAccount, Name: "billing/sa"}:                    encode(t, want.Namespaces["billing"].ServiceAccounts[0]),
		{Type: "of a newer agent", Name: "x/y"}:                                []byte("?"),
		// what follows is left out
		{Type: mesh.ItemService, Name: "billing/broken"}:       []byte("{"),
		{Type: mesh.ItemService, Name: "billing/other"}:        encode(t, mesh.Service{Namespace: "payments", Name: "other"}),
		{Type: mesh.ItemOutcome, Name: "not a ref"}:            encode(t, outcome),
		{Type: mesh.ItemNamespace, Name: "called-differently"}: encode(t, mesh.Namespace{Name: "x"}),
	}
	for _, s := range want.Namespaces["billing"].Services {
		set[mesh.ItemKey{Type: mesh.ItemService, Name: "billing/" + s.Name}] = encode(t, s)
	}
	for _, w := range want.Namespaces["billing"].Workloads {
		set[mesh.ItemKey{Type: mesh.ItemWorkload, Name: "billing/" + w.Kind + "/" + w.Name}] = encode(t, w)
	}
	if diff := cmp.Diff(want, see(quiet(), set)); diff != "" {
		t.Error(diff)
	}
}

func TestShardsChangePointerOnlyWithTheirContent(t *testing.T) {
	s := quiet()
	service := func(ns, name, label string) items {
		return items{{Type: mesh.ItemService, Name: ns + "/" + name}: encode(t, mesh.Service{Namespace: ns, Name: name, Labels: map[string]string{"app": label}})}
	}
	see(s, service("a", "x", "1"))
	first := see(s, service("b", "x", "1"))
	kept := encode(t, first)
	for name, step := range map[string]struct {
		do            func() *mesh.Inventory
		a, b, changed bool
	}{
		"the same again": {func() *mesh.Inventory { return see(s, service("a", "x", "1")) }, true, true, false},
		"the same in other words": {func() *mesh.Inventory {
			return see(s, items{{Type: mesh.ItemService, Name: "a/x"}: []byte(`{"name":"x", "labels":{"app":"1"}, "namespace":"a"}`)})
		}, true, true, false},
		"nothing that was there gone": {func() *mesh.Inventory { return see(s, nil, mesh.ItemKey{Type: mesh.ItemService, Name: "a/none"}) }, true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := step.do()
			if (got.Namespaces["a"] == first.Namespaces["a"]) != step.a || (got.Namespaces["b"] == first.Namespaces["b"]) != step.b || (got != first) != step.changed {
				t.Error("pointers")
			}
		})
	}
	second := see(s, service("a", "x", "2"))
	if second.Namespaces["a"] == first.Namespaces["a"] || second.Namespaces["b"] != first.Namespaces["b"] || second == first {
		t.Error("a change of a: its pointer and no other must change")
	}
	if gone := see(s, nil, mesh.ItemKey{Type: mesh.ItemService, Name: "a/x"}); gone.Namespaces["a"] != nil || gone.Namespaces["b"] != first.Namespaces["b"] {
		t.Error("an empty namespace that was never reported is still there")
	}
	if diff := cmp.Diff(string(kept), string(encode(t, first))); diff != "" {
		t.Errorf("an inventory handed out was changed: %s", diff)
	}
}

func TestOutcomesThatChangedAreNamed(t *testing.T) {
	s := quiet()
	ref := func(n string) mesh.Ref { return mesh.Ref{Version: "v1", Kind: "ConfigMap", Namespace: "x", Name: n} }
	put := func(ok bool, names ...string) items {
		out := items{}
		for _, n := range names {
			out[mesh.ItemKey{Type: mesh.ItemOutcome, Name: ref(n).String()}] = encode(t, mesh.Outcome{OK: ok})
		}
		return out
	}
	if diff := cmp.Diff([]mesh.Ref{ref("a"), ref("b")}, s.Observe("c", Change{Set: maps.All(put(true, "a", "b"))})); diff != "" {
		t.Error(diff)
	}
	first := s.inventories["c"].snapshot()
	set := put(true, "a")
	maps.Copy(set, put(false, "b"))
	if diff := cmp.Diff([]mesh.Ref{ref("b")}, s.Observe("c", Change{Set: maps.All(set)})); diff != "" {
		t.Error(diff)
	}
	if !first.Outcomes[ref("b")].OK {
		t.Error("an inventory handed out was changed")
	}
}

func TestHalfAnInventoryIsNotHandedOut(t *testing.T) {
	s := quiet()
	half := items{{Type: mesh.ItemNamespace, Name: "a"}: encode(t, mesh.Namespace{Name: "a"}), {Type: mesh.ItemCluster, Name: "cluster"}: encode(t, mesh.ClusterInfo{Network: "n"})}
	s.Observe("c", Change{Set: maps.All(half)})
	first := s.inventories["c"].snapshot()
	s.Observe("c", Change{Complete: true})
	want := []*mesh.Inventory{
		{Info: mesh.ClusterInfo{Network: "n"}, Outcomes: map[mesh.Ref]mesh.Outcome{}},
		{Info: mesh.ClusterInfo{Network: "n"}, Outcomes: map[mesh.Ref]mesh.Outcome{}, Complete: true, Namespaces: map[string]*mesh.NamespaceInventory{"a": {}}},
	}
	if diff := cmp.Diff(want, []*mesh.Inventory{first, s.inventories["c"].snapshot()}); diff != "" {
		t.Error(diff)
	}
}

// Fifty clusters that run the same cost little more memory than one, and sharing never shows.
func TestAlikeClustersShareMemory(t *testing.T) {
	s := quiet()
	tell := func(c mesh.ClusterName, set items, gone ...mesh.ItemKey) *mesh.NamespaceInventory {
		s.Observe(c, Change{Set: maps.All(set), Gone: slices.Values(gone), Complete: true})
		return s.inventories[c].snapshot().Namespaces["a"]
	}
	service := func(n, label string) items {
		return items{{Type: mesh.ItemService, Name: "a/" + n}: encode(t, mesh.Service{Namespace: "a", Name: n, Labels: map[string]string{"app": label}})}
	}
	both := func() items { m := service("x", "1"); maps.Copy(m, service("y", "1")); return m }
	first, second := tell("c1", both()), tell("c2", both())
	if &first.Services[0] != &second.Services[0] || first == second {
		t.Error("equal lists must share their memory, and each cluster must have its own shard")
	}
	third := tell("c3", service("x", "1"))
	changed := tell("c2", service("y", "2"))
	want := [][]string{{"x1", "y1"}, {"x1", "y1"}, {"x1"}, {"x1", "y2"}}
	var got [][]string
	for _, n := range []*mesh.NamespaceInventory{first, second, third, changed} {
		var l []string
		for _, s := range n.Services {
			l = append(l, s.Name+s.Labels["app"])
		}
		got = append(got, l)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	tell("c1", nil, mesh.ItemKey{Type: mesh.ItemService, Name: "a/x"}, mesh.ItemKey{Type: mesh.ItemService, Name: "a/y"})
	if s.models["a"] == first {
		t.Error("what no cluster has any more is kept")
	}
}

// Whatever comes in whatever portions, the result is that of telling it all at once, sorted.
func TestPortionsMakeNoDifference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		s, all := quiet(), items{}
		for range r.IntN(40) {
			set := items{}
			var gone []mesh.ItemKey
			for range r.IntN(6) {
				ns, n := string(rune('a'+r.IntN(2))), fmt.Sprintf("n%c", "-0a"[r.IntN(3)])
				for _, it := range []struct {
					key   mesh.ItemKey
					value any
				}{
					{mesh.ItemKey{Type: mesh.ItemService, Name: ns + "/" + n}, mesh.Service{Namespace: ns, Name: n, Type: fmt.Sprint(r.IntN(2))}},
					{mesh.ItemKey{Type: mesh.ItemWorkload, Name: ns + "/" + n + "/x"}, mesh.Workload{Namespace: ns, Kind: n, Name: "x"}},
					{mesh.ItemKey{Type: mesh.ItemNamespace, Name: ns}, mesh.Namespace{Name: ns, Labels: map[string]string{"l": fmt.Sprint(r.IntN(2))}}},
				} {
					if set[it.key] != nil || slices.Contains(gone, it.key) {
						continue
					}
					if r.IntN(3) == 0 {
						gone = append(gone, it.key)
						delete(all, it.key)
					} else {
						set[it.key] = encode(t, it.value)
						all[it.key] = set[it.key]
					}
				}
			}
			see(s, set, gone...)
		}
		if diff := cmp.Diff(see(quiet(), all), see(s, nil)); diff != "" {
			t.Fatal(diff)
		}
	}
}
