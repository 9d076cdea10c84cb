package rotation

import (
	"encoding/json"
	"strings"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
)

func TestBoard(t *testing.T) {
	t.Parallel()
	orders := 0
	b := NewBoard(func() { orders++ })
	observation := mesh.ItemKey{Type: mesh.ItemTrust, Name: "trust"}
	request := mesh.ItemKey{Type: mesh.ItemTrustRequest, Name: "g1"}
	if b.Take("a", mesh.ItemKey{Type: mesh.ItemCluster, Name: "cluster"}, []byte("{}")) {
		t.Error("an item about something else is taken")
	}
	if got := b.look("a"); got.observation != nil || got.problem != "" {
		t.Errorf("before anything was said: %+v", got)
	}
	raw, err := json.Marshal(mesh.IntermediateRequest{ID: "g1", CSR: []byte("csr")})
	if err != nil {
		t.Fatal(err)
	}
	if !b.Take("a", observation, []byte(`{"ordered":true}`)) || !b.Take("a", request, raw) {
		t.Error("items about trust are not taken")
	}
	seen := b.look("a")
	if seen.observation == nil || !seen.observation.Ordered || string(seen.requests["g1"]) != "csr" || seen.problem != "" {
		t.Errorf("%+v", seen)
	}
	for what, item := range map[string]struct {
		key   mesh.ItemKey
		value []byte
		says  string
	}{
		"an observation that is none": {observation, []byte("["), "observation can't be read"},
		"one that is too large":       {observation, []byte(`{"x":"` + strings.Repeat("x", maxItem) + `"}`), "at most"},
		"a request that is none":      {request, []byte("["), "request \"g1\" can't be read"},
		"a request by another name":   {mesh.ItemKey{Type: mesh.ItemTrustRequest, Name: "g2"}, raw, "request \"g2\" can't be read"},
	} {
		b.Take("a", observation, []byte(`{"ordered":true}`))
		b.Take("a", item.key, item.value)
		got := b.look("a")
		if !strings.Contains(got.problem, item.says) || item.key == observation && got.observation != nil {
			t.Errorf("%s: %q, %v", what, got.problem, got.observation)
		}
	}
	if string(seen.requests["g1"]) != "csr" {
		t.Error("what was handed out before has changed")
	}
	b.Take("a", observation, nil)
	if got := b.look("a"); got.observation != nil {
		t.Error("an observation that is gone is still held")
	}

	if _, ready := b.Directive("a"); ready {
		t.Error("ready before the first decision")
	}
	b.direct(nil)
	if d, ready := b.Directive("a"); d != nil || !ready || orders != 1 {
		t.Errorf("%s, %t, %d orders", d, ready, orders)
	}
	one := &mesh.TrustDirective{Signer: "g1"}
	b.direct(map[mesh.ClusterName]*mesh.TrustDirective{"a": one})
	first, _ := b.Directive("a")
	b.direct(map[mesh.ClusterName]*mesh.TrustDirective{"a": one})
	b.direct(map[mesh.ClusterName]*mesh.TrustDirective{}) // absent is no order to forget
	if d, _ := b.Directive("a"); len(first) == 0 || string(d) != string(first) || orders != 2 {
		t.Errorf("%s, then %s; %d orders", first, d, orders)
	}
	b.Forget("a")
	if d, ready := b.Directive("a"); d != nil || !ready || b.look("a").requests != nil {
		t.Error("not forgotten")
	}
}
