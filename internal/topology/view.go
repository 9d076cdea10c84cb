package topology

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

const defaultHops = 2

// choose keeps the rows that q asks for.
func (f *frame) choose(q Query) ([]*Edge, error) {
	rows := make([]*Edge, 0, len(f.rows))
	for i := range f.rows {
		e := &f.rows[i]
		if q.See != nil && (!q.See(e.From) || !q.See(e.To)) || !q.inScope(e.From) && !q.inScope(e.To) {
			continue
		}
		rows = append(rows, e)
	}
	if q.Level != LevelNeighbourhood {
		return rows, nil
	}
	focus, ok := ParseParty(q.Focus)
	if !ok {
		return nil, fmt.Errorf("focus %q: want cluster/namespace/service: %w", q.Focus, ErrNoSuchNode)
	}
	hops := distances(rows, focus, cmp.Or(q.Hops, defaultHops))
	if len(hops) == 1 && !slices.ContainsFunc(rows, func(e *Edge) bool { return e.From == focus || e.To == focus }) {
		return nil, fmt.Errorf("focus %q has no traffic: %w", q.Focus, ErrNoSuchNode)
	}
	return slices.DeleteFunc(rows, func(e *Edge) bool {
		_, from := hops[e.From]
		_, to := hops[e.To]
		return !from || !to
	}), nil
}

// whole reports whether q leaves nothing out.
func (q *Query) whole() bool {
	return q.See == nil && len(q.Clusters) == 0 && len(q.Namespaces) == 0 && q.Max == 0
}

func (q *Query) inScope(p Party) bool {
	return (len(q.Clusters) == 0 || slices.Contains(q.Clusters, p.Cluster)) && (len(q.Namespaces) == 0 || slices.Contains(q.Namespaces, p.Namespace))
}

// distances walks from the focus down its callees (positive) and up its callers (negative), at most n steps each.
func distances(rows []*Edge, focus Party, n int) map[Party]int {
	down, up := map[Party][]Party{}, map[Party][]Party{}
	for _, e := range rows {
		down[e.From] = append(down[e.From], e.To)
		up[e.To] = append(up[e.To], e.From)
	}
	out := map[Party]int{focus: 0}
	for sign, next := range map[int]map[Party][]Party{1: down, -1: up} {
		at := []Party{focus}
		for hop := 1; hop <= n; hop++ {
			var reached []Party
			for _, p := range at {
				for _, o := range next[p] {
					if h, seen := out[o]; !seen || hop < abs(h) {
						out[o] = sign * hop
						reached = append(reached, o)
					}
				}
			}
			at = reached
		}
	}
	return out
}

func abs(n int) int { return max(n, -n) }

// summed gives rows as they are at the level of services, and their sums above it, sorted by key. Traffic within one box is an edge from it to itself.
func summed(rows []*Edge, l Level) []Edge {
	if l == LevelService || l == LevelNeighbourhood {
		out := make([]Edge, 0, len(rows))
		for _, e := range rows {
			out = append(out, *e)
		}
		return out
	}
	groups := map[Key]*sum{}
	for _, e := range rows {
		k := Key{e.From.At(l), e.To.At(l)}
		g := groups[k]
		if g == nil {
			g = &sum{Edge: Edge{Key: k, Protocol: e.Protocol, Stale: true}}
			groups[k] = g
		}
		g.add(e)
	}
	out := make([]Edge, 0, len(groups))
	for _, g := range groups {
		out = append(out, g.finish())
	}
	slices.SortFunc(out, func(a, b Edge) int { return compareKeys(a.Key, b.Key) })
	return out
}

// sum is an edge between boxes while rows are added to it.
type sum struct {
	Edge
	server, client     Histogram
	serverBy, clientBy *Latency
	network            float64 // weighted by rate
	networkWeight      float64
	clientMS           float64
	clientWeight       float64
}

func (g *sum) add(e *Edge) {
	g.Rows++
	g.Rates = g.Rates.plus(e.Rates)
	g.TCP = g.TCP.plus(e.TCP)
	g.Denied += e.Denied
	g.Inferred = g.Inferred || e.Inferred
	g.Stale = g.Stale && e.Stale
	g.FirstSeen, g.LastSeen = earliest(g.FirstSeen, e.FirstSeen), latest(g.LastSeen, e.LastSeen)
	if e.Protocol != g.Protocol {
		g.Protocol = "mixed"
	}
	g.MTLS = mergeMTLS(g.MTLS, e.MTLS)
	for _, f := range e.Failures {
		g.Failures = addFailure(g.Failures, f.Flag, f.Rate)
	}
	for _, c := range e.Candidates {
		if !slices.Contains(g.Candidates, c) {
			g.Candidates = append(g.Candidates, c)
		}
	}
	for _, src := range e.Sources {
		g.Sources = addSource(g.Sources, src)
	}
	if g.Decision == nil {
		g.Decision = e.Decision
	}
	g.server.addShared(e.Server)
	g.client.addShared(e.Client)
	if g.serverBy == nil {
		g.serverBy = e.Server
	}
	if g.clientBy == nil {
		g.clientBy = e.Client
	}
	w := math.Max(e.Rates.Total()+e.TCP.Opened, 1e-9)
	if n := e.Split.Network; n != nil {
		g.network, g.networkWeight = g.network+n.Milliseconds*w, g.networkWeight+w
		g.Split.Network = &Part{0, n.By}
	}
	if c := e.Split.Client; c != nil {
		g.clientMS, g.clientWeight = g.clientMS+c.Milliseconds*w, g.clientWeight+w
		g.Split.Client = &Part{0, c.By}
	}
}

// addShared adds what was measured; a measurement of several edges together adds its share to each, so that it counts once in their sum.
func (h *Histogram) addShared(l *Latency) {
	if l == nil {
		return
	}
	share := 1 / float64(max(l.Shared, 1))
	n := 0.0
	for i, b := range l.Buckets {
		h.Buckets[i] += b * share
		n += b * share
	}
	h.Sum += l.Mean * n
}

func (g *sum) finish() Edge {
	slices.SortFunc(g.Failures, func(a, b Failure) int { return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.Flag, b.Flag)) })
	slices.Sort(g.Candidates)
	if g.serverBy != nil {
		g.Server = g.server.latency(Source{By: g.serverBy.By, Cluster: g.serverBy.Cluster}, 0)
		if g.Server != nil {
			g.Split.Server = &Part{g.Server.P50.Value, g.Server.By}
		}
	}
	if g.clientBy != nil {
		g.Client = g.client.latency(Source{By: g.clientBy.By, Cluster: g.clientBy.Cluster}, 0)
	}
	if g.Split.Network != nil {
		g.Split.Network.Milliseconds = g.network / g.networkWeight
	}
	if g.Split.Client != nil {
		g.Split.Client.Milliseconds = g.clientMS / g.clientWeight
	}
	return g.Edge
}

func (r Rates) plus(o Rates) Rates {
	return Rates{r.Success + o.Success, r.ClientError + o.ClientError, r.ServerError + o.ServerError, r.NoResponse + o.NoResponse}
}

func (t TCP) plus(o TCP) TCP {
	return TCP{t.Opened + o.Opened, t.Closed + o.Closed, t.Failed + o.Failed, t.Sent + o.Sent, t.Received + o.Received}
}

// weight orders edges by what a person must not miss: failures first, then traffic.
func (e *Edge) weight() float64 {
	return 1000*(e.Denied+e.Rates.ServerError+e.Rates.NoResponse) + e.Rates.Total() + e.TCP.Opened
}

// trim keeps the n heaviest edges.
func (v *View) trim(n int) {
	if n <= 0 || len(v.Edges) <= n {
		return
	}
	v.Hidden = len(v.Edges) - n
	slices.SortStableFunc(v.Edges, func(a, b Edge) int { return cmp.Compare(b.weight(), a.weight()) })
	v.Edges = v.Edges[:n]
	slices.SortFunc(v.Edges, func(a, b Edge) int { return compareKeys(a.Key, b.Key) })
}

// nodes makes the boxes at the ends of the edges, sorted. At the level of clusters those without any traffic are drawn too.
func (v *View) nodes(q Query) {
	at := map[Party]*nodeSum{}
	get := func(p Party) *nodeSum {
		n := at[p]
		if n == nil {
			n = &nodeSum{Node: Node{Party: p, ID: p.ID(), Stale: true}}
			at[p] = n
		}
		return n
	}
	for i := range v.Edges {
		e := &v.Edges[i]
		from, to := get(e.From), get(e.To)
		from.Stale = from.Stale && e.Stale
		to.Stale = to.Stale && e.Stale
		to.In, to.InTCP = to.In.plus(e.Rates), to.InTCP.plus(e.TCP)
		to.Denied += e.Denied
		to.latency.addShared(e.Server)
	}
	if q.Level == LevelCluster {
		for _, c := range v.Clusters {
			if len(q.Clusters) == 0 || slices.Contains(q.Clusters, c.Name) {
				get(Party{Cluster: c.Name}).Stale = c.Stale
			}
		}
	}
	if q.Level == LevelNeighbourhood {
		if focus, ok := ParseParty(q.Focus); ok {
			for p, hop := range distances(pointers(v.Edges), focus, cmp.Or(q.Hops, defaultHops)) {
				get(p).Hops = hop
			}
		}
	}
	same := map[Party][]mesh.ClusterName{}
	for p := range at {
		if p.Service != "" {
			k := Party{Namespace: p.Namespace, Service: p.Service}
			same[k] = append(same[k], p.Cluster)
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(at), compareParties) {
		n := at[p]
		if p99, ok := n.latency.Quantile(0.99); ok {
			n.P99 = &p99
		}
		if all := same[Party{Namespace: p.Namespace, Service: p.Service}]; p.Service != "" && len(all) > 1 {
			slices.Sort(all)
			for _, c := range all {
				if c != p.Cluster && c != Unknown {
					n.Clusters = append(n.Clusters, c)
				}
			}
		}
		v.Nodes = append(v.Nodes, n.Node)
	}
}

type nodeSum struct {
	Node
	latency Histogram
}

func pointers(in []Edge) []*Edge {
	out := make([]*Edge, len(in))
	for i := range in {
		out[i] = &in[i]
	}
	return out
}

// Age is how old the newest source of e is at now.
func (e *Edge) Age(now time.Time) time.Duration {
	var at time.Time
	for _, s := range e.Sources {
		at = latest(at, s.At)
	}
	return now.Sub(at)
}
