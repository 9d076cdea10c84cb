package topology_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/topology/demo"
)

// world applies reports of several clusters, interval by interval.
type world struct {
	*testing.T
	table *topology.Table
	now   time.Time
	n     uint64
}

func newWorld(t *testing.T) *world {
	return &world{T: t, table: topology.New(topology.Config{}), now: noon()}
}

// step sends one report per cluster.
func (w *world) step(obs map[mesh.ClusterName][]topology.Observation) {
	w.Helper()
	w.n++
	w.now = w.now.Add(topology.Interval)
	for c, o := range obs {
		r := &topology.Report{Cluster: c, Epoch: "e", Sequence: w.n, From: w.now.Add(-topology.Interval), To: w.now, Edges: o}
		if err := w.table.Apply(r, w.now); err != nil {
			w.Fatal(err)
		}
	}
}

func (w *world) view(q topology.Query) *topology.View {
	w.Helper()
	v, err := w.table.Snapshot(q, w.now)
	if err != nil {
		w.Fatal(err)
	}
	return v
}

func end(cluster, ns, service string, p topology.Principal) topology.End {
	return topology.End{Cluster: cluster, Namespace: ns, Service: service, Principal: p}
}

// l4 is what a client's ztunnel says: it doesn't know where in the other network the call went.
func l4(from, to topology.End, conns float64) topology.Observation {
	return topology.Observation{By: topology.BySource, From: from, To: to, Protocol: "tcp", TCP: topology.TCPCounts{Opened: conns}}
}

// l7 is what a waypoint says.
func l7(from, to topology.End, requests, ms float64) topology.Observation {
	o := topology.Observation{By: topology.ByWaypoint, From: from, To: to, Protocol: "http", Latency: &topology.Histogram{Sum: requests * ms}}
	o.Requests.Success = requests
	o.Latency.Buckets[topology.BucketOf(ms)] = requests
	return o
}

func ids(v *topology.View) (out []string) {
	for i := range v.Edges {
		s := v.Edges[i].ID()
		if v.Edges[i].Inferred {
			s += " inferred"
		}
		for _, c := range v.Edges[i].Candidates {
			s += " " + string(c) + "?"
		}
		out = append(out, s)
	}
	return out
}

const shop = topology.Principal("cluster.local/ns/shop/sa/cart")

func TestStitch(t *testing.T) {
	cart := func(cluster string) topology.End { return end(cluster, "shop", "cart", shop) }
	pay := func(cluster string) topology.End { return end(cluster, "pay", "api", "") }
	unnamed := end("", "", "", shop) // the server's side knows a principal only
	for name, c := range map[string]struct {
		in   map[mesh.ClusterName][]topology.Observation
		want []string
	}{
		"both ends named: one edge, whoever says so": {
			map[mesh.ClusterName][]topology.Observation{"a": {l4(cart("a"), pay("b"), 15)}, "b": {l7(cart("a"), pay("b"), 150, 20)}},
			[]string{"a/shop/cart~b/pay/api"},
		},
		"neither names the other: joined by principal and service": {
			map[mesh.ClusterName][]topology.Observation{"a": {l4(cart("a"), pay(""), 15)}, "b": {l7(unnamed, pay("b"), 150, 20)}},
			[]string{"a/shop/cart~b/pay/api inferred"},
		},
		"one caller, two servers: two edges": {
			map[mesh.ClusterName][]topology.Observation{"a": {l4(cart("a"), pay(""), 15)}, "b": {l7(unnamed, pay("b"), 150, 20)}, "c": {l7(unnamed, pay("c"), 150, 20)}},
			[]string{"a/shop/cart~b/pay/api inferred", "a/shop/cart~c/pay/api inferred"},
		},
		"two callers, one server: two edges": {
			map[mesh.ClusterName][]topology.Observation{"a": {l4(cart("a"), pay(""), 15)}, "c": {l4(cart("c"), pay(""), 30)}, "b": {l7(unnamed, pay("b"), 150, 20)}},
			[]string{"a/shop/cart~b/pay/api inferred", "c/shop/cart~b/pay/api inferred"},
		},
		"two of each: one of n, nothing guessed": {
			map[mesh.ClusterName][]topology.Observation{
				"a": {l4(cart("a"), pay(""), 15)}, "b": {l4(cart("b"), pay(""), 15)},
				"c": {l7(unnamed, pay("c"), 150, 20)}, "d": {l7(unnamed, pay("d"), 150, 20)},
			},
			[]string{"?/?/?~c/pay/api a? b?", "?/?/?~d/pay/api a? b?", "a/shop/cart~?/pay/api c? d?", "b/shop/cart~?/pay/api c? d?"},
		},
		"another principal is another caller": {
			map[mesh.ClusterName][]topology.Observation{"a": {l4(cart("a"), pay(""), 15)}, "b": {l7(end("", "", "", "other.org/ns/shop/sa/cart"), pay("b"), 150, 20)}},
			[]string{"?/?/?~b/pay/api", "a/shop/cart~?/pay/api"},
		},
		"a call within a cluster is no counterpart of a remote one": {
			map[mesh.ClusterName][]topology.Observation{"a": {l4(cart("a"), pay(""), 15), l7(cart("a"), pay("a"), 150, 20)}},
			[]string{"a/shop/cart~?/pay/api", "a/shop/cart~a/pay/api"},
		},
		"what leaves a cluster does not arrive in it": {
			map[mesh.ClusterName][]topology.Observation{"a": {l4(cart("a"), pay(""), 15), l7(unnamed, pay("a"), 150, 20)}},
			[]string{"?/?/?~a/pay/api", "a/shop/cart~?/pay/api"},
		},
		"a cluster can't speak for others": {
			map[mesh.ClusterName][]topology.Observation{"evil": {l4(cart("a"), pay("b"), 15), l7(cart("a"), pay("b"), 150, 20)}},
			[]string{"a/shop/cart~evil/pay/api", "evil/shop/cart~b/pay/api"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.step(c.in)
			if diff := cmp.Diff(c.want, ids(w.view(topology.Query{Level: topology.LevelService}))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Every number has one witness: the waypoint's rate is not added to the ztunnels', nor the sides' connections to each other.
func TestNeverSummed(t *testing.T) {
	w := newWorld(t)
	from, to := end("a", "shop", "cart", shop), end("b", "pay", "api", "cluster.local/ns/pay/sa/api")
	atServer := l4(from, to, 20)
	atServer.By = topology.ByDestination
	sidecar := l7(from, to, 140, 30)
	sidecar.By = topology.ByDestination
	w.step(map[mesh.ClusterName][]topology.Observation{"a": {l4(from, to, 15)}, "b": {atServer, l7(from, to, 150, 20), sidecar}})
	e := w.view(topology.Query{Level: topology.LevelService}).Edges[0]
	if e.Rates.Total() != 10 || e.TCP.Opened != 20.0/15 {
		t.Errorf("rates %+v, connections %v: want the waypoint's 10/s and the server ztunnel's 1.33/s", e.Rates, e.TCP.Opened)
	}
	if e.Server == nil || e.Server.By != topology.ByWaypoint || e.Server.P99.Low != 10 || e.Server.P99.High != 25 {
		t.Errorf("latency %+v: want the waypoint's, between 10 and 25 ms", e.Server)
	}
	for _, level := range []topology.Level{topology.LevelCluster, topology.LevelNamespace} {
		if got := w.view(topology.Query{Level: level}).Edges[0].Rates.Total(); got != 10 {
			t.Errorf("level %s: %v/s, want 10", level, got)
		}
	}
}

func TestL4OnlyHasNoLatency(t *testing.T) {
	w := newWorld(t)
	w.step(map[mesh.ClusterName][]topology.Observation{"a": {l4(end("a", "shop", "cart", shop), end("a", "pay", "api", ""), 15)}})
	v := w.view(topology.Query{Level: topology.LevelService})
	e := &v.Edges[0]
	if !e.L4Only() || e.Server != nil || !strings.Contains(e.LatencyHint(), "istioctl waypoint apply -n pay") {
		t.Errorf("edge %+v, hint %q", e, e.LatencyHint())
	}
	data, err := json.Marshal(v.Columns())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), `"rate":[null]`) || !strings.Contains(string(data), `"p99":[null]`) {
		t.Errorf("an unknown latency must be null: %s", data)
	}
}

func TestDenied(t *testing.T) {
	w := newWorld(t)
	from, to := end("a", "shop", "cart", shop), end("b", "pay", "api", "")
	client, server := l4(from, to, 0), l4(from, to, 0)
	client.TCP.Failed, client.Failures = 45, map[string]float64{"CONNECT": 45}
	server.By, server.TCP.Failed, server.Failures = topology.ByDestination, 30, map[string]float64{topology.FlagDeny: 30}
	w.table = topology.New(topology.Config{Decide: func(k topology.Key, from []topology.Principal) *topology.Decision {
		return &topology.Decision{Policy: k.To.ID(), Text: string(from[0])}
	}})
	w.step(map[mesh.ClusterName][]topology.Observation{"a": {client}, "b": {server}})
	e := w.view(topology.Query{Level: topology.LevelService}).Edges[0]
	want := []topology.Failure{{Flag: "DENY", Rate: 2}, {Flag: "CONNECT", Rate: 1}}
	if diff := cmp.Diff(want, e.Failures); diff != "" || e.Denied != 2 {
		t.Errorf("denied %v, failures %s", e.Denied, diff)
	}
	if e.Decision == nil || e.Decision.Policy != "b/pay/api" || e.Decision.Text != string(shop) {
		t.Errorf("decision %+v", e.Decision)
	}
}

// A silent cluster's numbers stay as they were, marked; they are neither zeroed nor dropped, however long it lasts.
func TestStale(t *testing.T) {
	w := newWorld(t)
	a := map[mesh.ClusterName][]topology.Observation{"a": {l7(end("a", "shop", "cart", shop), end("a", "pay", "api", ""), 150, 20)}}
	b := map[mesh.ClusterName][]topology.Observation{"b": {l7(end("b", "shop", "cart", shop), end("b", "pay", "api", ""), 150, 20)}}
	w.step(a)
	silent := w.now
	for range 300 { // longer than IdleAfter
		w.step(b)
	}
	v := w.view(topology.Query{Level: topology.LevelService})
	if len(v.Edges) != 2 || !v.Edges[0].Stale || v.Edges[0].Rates.Total() != 10 || v.Edges[1].Stale {
		t.Errorf("edges %+v", v.Edges)
	}
	if c := v.Clusters[0]; !c.Stale || !c.StaleSince.Equal(silent) || v.Clusters[1].Stale {
		t.Errorf("clusters %+v, want a stale since %s", v.Clusters, silent)
	}
	// Once it reports again, the edge it no longer sees goes idle and then away.
	w.step(map[mesh.ClusterName][]topology.Observation{"a": nil, "b": nil})
	if v := w.view(topology.Query{Level: topology.LevelService}); len(v.Edges) != 1 {
		t.Errorf("idle edge still there: %v", ids(v))
	}
}

func TestReplayAndRefusal(t *testing.T) {
	tb := topology.New(topology.Config{})
	now := noon()
	r := &topology.Report{Cluster: "a", Epoch: "e", Sequence: 1, From: now.Add(-topology.Interval), To: now}
	if err := tb.Apply(r, now); err != nil {
		t.Fatal(err)
	}
	if err := tb.Apply(r, now); !errors.Is(err, topology.ErrDuplicate) {
		t.Errorf("replayed report: %v", err)
	}
	for name, bad := range map[string]topology.Report{
		"no cluster": {Epoch: "e", Sequence: 2, From: now.Add(-1), To: now},
		"backwards":  {Cluster: "a", Epoch: "e", Sequence: 2, From: now, To: now.Add(-1)},
		"future":     {Cluster: "a", Epoch: "e", Sequence: 2, From: now, To: now.Add(time.Hour)},
		"flood":      {Cluster: "a", Epoch: "e", Sequence: 2, From: now.Add(-1), To: now, Edges: make([]topology.Observation, 30_000)},
	} {
		if err := tb.Apply(&bad, now); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	poison := l7(end("a", "x", "y", shop), end("a", "x", "z", ""), math.NaN(), 3)
	r = &topology.Report{Cluster: "a", Epoch: "e", Sequence: 5, From: now, To: now.Add(1), Edges: []topology.Observation{poison, l7(end("a", strings.Repeat("x", 999), "y", shop), end("a", "x", "z", ""), 1, 3)}}
	if err := tb.Apply(r, now); err != nil {
		t.Fatal(err)
	}
	if c := tb.Clusters(now)[0]; c.Refused != 5 || c.Lost != 3 || c.Edges != 0 {
		t.Errorf("state %+v: want 5 refused, 3 lost, no edge", c)
	}
}

// Positions never move: not when services come, not in another order, not for another filter.
func TestPinned(t *testing.T) {
	tb, w := topology.New(topology.Config{}), demo.New(demo.Small())
	if err := w.Fill(tb, noon(), 4); err != nil {
		t.Fatal(err)
	}
	at := func(q topology.Query) map[string][2]float64 {
		v, err := tb.Snapshot(q, noon())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][2]float64{}
		taken := map[[2]float64]string{}
		for _, n := range v.Nodes {
			p := [2]float64{n.X, n.Y}
			if other, ok := taken[p]; ok {
				t.Fatalf("%s lies on %s", n.ID, other)
			}
			out[n.ID], taken[p] = p, n.ID
		}
		return out
	}
	before := at(topology.Query{Level: topology.LevelService})
	if len(before) < 38 {
		t.Fatalf("%d nodes", len(before))
	}
	for i := range 30 { // new services, more than there are free cells
		o := l4(end("cluster-1", "payments", "new-"+string(rune('a'+i)), shop), end("cluster-1", "payments", "api", ""), 3)
		r := &topology.Report{Cluster: "cluster-1", Epoch: "later", Sequence: uint64(i + 1), From: noon(), To: noon().Add(1), Edges: []topology.Observation{o}}
		if err := tb.Apply(r, noon()); err != nil {
			t.Fatal(err)
		}
	}
	after := at(topology.Query{Level: topology.LevelService})
	if len(after) < len(before)+30 {
		t.Errorf("%d nodes, want 30 more than %d", len(after), len(before))
	}
	filtered := at(topology.Query{Level: topology.LevelService, Clusters: []mesh.ClusterName{"cluster-2"}})
	for id, p := range before {
		if after[id] != p {
			t.Errorf("%s moved from %v to %v", id, p, after[id])
		}
		if f, ok := filtered[id]; ok && f != p {
			t.Errorf("%s is elsewhere in a filtered view", id)
		}
	}
	tb2, w2 := topology.New(topology.Config{}), demo.New(demo.Small())
	if err := w2.Fill(tb2, noon(), 4); err != nil {
		t.Fatal(err)
	}
	tb = tb2
	if diff := cmp.Diff(before, at(topology.Query{Level: topology.LevelService})); diff != "" {
		t.Errorf("the same reports give another picture: %s", diff)
	}
}

func TestNeighbourhood(t *testing.T) {
	w := newWorld(t)
	s := func(n string) topology.End { return end("a", "x", n, shop) }
	w.step(map[mesh.ClusterName][]topology.Observation{"a": {l4(s("1"), s("2"), 1), l4(s("2"), s("3"), 1), l4(s("3"), s("4"), 1), l4(s("4"), s("5"), 1), l4(s("5"), s("6"), 1)}})
	v := w.view(topology.Query{Level: topology.LevelNeighbourhood, Focus: "a/x/3"})
	got := map[string]int{}
	for _, n := range v.Nodes {
		got[n.Service] = n.Hops
	}
	if diff := cmp.Diff(map[string]int{"1": -2, "2": -1, "3": 0, "4": 1, "5": 2}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := w.table.Snapshot(topology.Query{Level: topology.LevelNeighbourhood, Focus: "a/x/nobody"}, w.now); !errors.Is(err, topology.ErrNoSuchNode) {
		t.Errorf("unknown focus: %v", err)
	}
}

func TestHistory(t *testing.T) {
	w := newWorld(t)
	for i := range 40 { // ten minutes; the rate doubles in the middle
		w.step(map[mesh.ClusterName][]topology.Observation{"a": {l7(end("a", "shop", "cart", shop), end("a", "pay", "api", ""), 150*float64(1+i/20), 20)}})
	}
	then := w.view(topology.Query{Level: topology.LevelService, At: noon().Add(4 * time.Minute)})
	if !then.Historic || then.Edges[0].Rates.Total() != 10 || then.Edges[0].Server == nil {
		t.Errorf("four minutes in: %+v", then.Edges[0])
	}
	if now := w.view(topology.Query{Level: topology.LevelService}); now.Edges[0].Rates.Total() != 20 {
		t.Errorf("now: %v", now.Edges[0].Rates)
	}
	if _, err := w.table.Snapshot(topology.Query{At: noon().Add(-time.Hour)}, w.now); !errors.Is(err, topology.ErrNoHistory) {
		t.Errorf("before the beginning: %v", err)
	}
	if n := len(w.table.History()); n < 9 || n > 10 {
		t.Errorf("%d frames of ten minutes", n)
	}
}

func TestLinksAndSplit(t *testing.T) {
	w := newWorld(t)
	w.now, w.n = w.now.Add(topology.Interval), 1
	from, to := end("a", "shop", "cart", shop), end("b", "pay", "api", "")
	client := l7(from, to, 150, 90)
	client.By = topology.BySource
	for _, r := range []*topology.Report{
		{Cluster: "a", Edges: []topology.Observation{client}, Probes: []topology.ProbeResult{{To: "b", Sent: 4, Lost: 1, Mean: 12 * time.Millisecond, Error: "timed out"}, {To: "c", Sent: 2, Lost: 2, Error: "refused"}}},
		{Cluster: "b", Edges: []topology.Observation{l7(from, to, 150, 30)}},
	} {
		r.Epoch, r.Sequence, r.From, r.To = "e", 1, w.now.Add(-topology.Interval), w.now
		if err := w.table.Apply(r, w.now); err != nil {
			t.Fatal(err)
		}
	}
	v := w.view(topology.Query{Level: topology.LevelService})
	if len(v.Links) != 2 || *v.Links[0].RTT != 12 || v.Links[0].Loss != 0.25 || v.Links[1].RTT != nil || v.Links[1].Loss != 1 {
		t.Errorf("links %+v", v.Links)
	}
	s := v.Edges[0].Split
	if s.Server == nil || s.Network == nil || s.Client == nil || s.Network.Milliseconds != 12 || s.Server.By != topology.ByWaypoint {
		t.Errorf("split %+v", s)
	}
	if sum, want := s.Server.Milliseconds+s.Network.Milliseconds+s.Client.Milliseconds, v.Edges[0].Client.P50.Value; math.Abs(sum-want) > 1e-9 {
		t.Errorf("parts sum to %v, the client waited %v", sum, want)
	}
}

func TestIDs(t *testing.T) {
	for _, p := range []topology.Party{{Cluster: "a"}, {Cluster: "a", Namespace: "b"}, {Cluster: "a", Namespace: "b", Service: "c"}, {Cluster: "a", Namespace: "<b>", Service: "x/y~z%2F"}} {
		k := topology.Key{From: p, To: topology.Party{Cluster: "z"}}
		if got, ok := topology.ParseKey(k.ID()); !ok || got != k {
			t.Errorf("%q reads as %+v", k.ID(), got)
		}
	}
}

func TestWait(t *testing.T) {
	w := newWorld(t)
	seen := w.table.Generation()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan uint64)
	go func() {
		g, _ := w.table.Wait(ctx, seen)
		done <- g
	}()
	w.step(map[mesh.ClusterName][]topology.Observation{"a": nil})
	if g := <-done; g <= seen {
		t.Errorf("generation %d", g)
	}
	cancel()
	if _, err := w.table.Wait(ctx, 1<<60); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Spans fill in the latency that no proxy measures, and nothing else: no edge, no rate.
func TestSpans(t *testing.T) {
	w := newWorld(t)
	from, to := end("a", "shop", "cart", shop), end("b", "pay", "api", "")
	k := topology.Key{From: topology.Party{Cluster: "a", Namespace: "shop", Service: "cart"}, To: topology.Party{Cluster: "b", Namespace: "pay", Service: "api"}}
	for i := range 10 {
		w.table.AddSpanPair(k, w.now, topology.SpanPair{Client: 80 * time.Millisecond, Server: 30 * time.Millisecond, Failed: i == 0})
	}
	w.table.AddSpanPair(topology.Key{From: k.To, To: k.From}, w.now, topology.SpanPair{Client: 1, Server: 1})
	w.step(map[mesh.ClusterName][]topology.Observation{"a": {l4(from, to, 15)}})
	v := w.view(topology.Query{Level: topology.LevelService})
	if len(v.Edges) != 1 {
		t.Fatalf("spans make no edges: %v", ids(v))
	}
	e := v.Edges[0]
	if e.L4Only() || e.Server.By != topology.BySpans || e.Server.P99.High != 50 || e.Client.P99.High != 100 || e.Rates.Total() != 0 || e.Split.Network == nil || *e.SpanErrors != 0.1 {
		t.Errorf("edge %+v", e)
	}
	w.step(map[mesh.ClusterName][]topology.Observation{"a": {l4(from, to, 15)}, "b": {l7(from, to, 150, 3)}})
	if e := w.view(topology.Query{Level: topology.LevelService}).Edges[0]; e.Server.By != topology.ByWaypoint {
		t.Errorf("a waypoint's measurement counts: %+v", e.Server)
	}
	for range 30 {
		w.step(map[mesh.ClusterName][]topology.Observation{"a": {l4(from, to, 15)}, "b": nil})
	}
	if e := w.view(topology.Query{Level: topology.LevelService}).Edges[0]; !e.L4Only() {
		t.Errorf("spans of long ago: %+v", e.Server)
	}
}
