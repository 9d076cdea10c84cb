// Package demo makes up meshes with traffic, the same ones for the same seed, for tests, benchmarks, documentation and `--demo`.
//
// In: a size and a time. Out: topology.Reports, as agents of those clusters would have sent them up to that time, latest last.
// It must not read a clock or be linked into an agent.
package demo

import (
	"fmt"
	"math/rand/v2"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/topology"
)

// Size is how large a made-up mesh is.
type Size struct {
	Clusters   int
	Services   int // over all clusters
	Edges      int
	Namespaces int // per cluster
	Seed       uint64
}

// Small is what screenshots show: 3 clusters, 40 services. A service is slow, one fails, one caller is denied, one cluster is peered over a slow way.
func Small() Size { return Size{Clusters: 3, Services: 40, Edges: 90, Namespaces: 4, Seed: 7} }

// Large is the size that budgets are for: 8 clusters, 2,000 services, 10,000 edges.
func Large() Size { return Size{Clusters: 8, Services: 2000, Edges: 10_000, Namespaces: 10, Seed: 7} }

// World is a made-up mesh.
type World struct {
	size     Size
	clusters []mesh.ClusterName
	services []service
	edges    []edge
	sequence uint64
}

type service struct {
	cluster int
	ns      string
	name    string
	l7      bool
	median  float64 // ms
	failing float64 // share
}

type edge struct {
	from, to int
	rate     float64 // per second
	denied   bool
}

var (
	//nolint:gochecknoglobals // word lists
	namespaces = []string{"storefront", "payments", "billing", "catalog", "identity", "shipping", "search", "ledger", "support", "analytics", "media", "risk"}
	//nolint:gochecknoglobals // word lists
	roles = []string{"api", "web", "checkout", "cart", "gateway", "worker", "cache", "store", "auth", "quotes", "invoices", "events", "feed", "rates", "index", "rules", "batch", "mailer", "tokens", "audit"}
)

// New makes the mesh of a size.
func New(size Size) *World {
	w := &World{size: size}
	rng := rand.New(rand.NewPCG(size.Seed, size.Seed)) //nolint:gosec // made-up traffic, not secrets
	for i := range size.Clusters {
		w.clusters = append(w.clusters, mesh.ClusterName(fmt.Sprintf("cluster-%d", i+1)))
	}
	seen := map[string]bool{}
	for i := range size.Services {
		s := service{cluster: i % size.Clusters, ns: namespaces[(i/size.Clusters)%min(size.Namespaces, len(namespaces))], l7: rng.Float64() < 0.7, median: 2 + 40*rng.ExpFloat64()}
		s.name = roles[rng.IntN(len(roles))]
		for n := 2; seen[fmt.Sprint(s.cluster, s.ns, s.name)]; n++ {
			s.name = fmt.Sprintf("%s-%d", roles[rng.IntN(len(roles))], n)
		}
		seen[fmt.Sprint(s.cluster, s.ns, s.name)] = true
		w.services = append(w.services, s)
	}
	w.trouble()
	used := map[[2]int]bool{}
	for len(w.edges) < size.Edges && len(used) < size.Services*size.Services/2 {
		from, to := rng.IntN(size.Services), rng.IntN(size.Services)
		if rng.Float64() < 0.75 { // most traffic stays in its cluster
			to -= (to - from) % size.Clusters
			to = (to + size.Services) % size.Services
		}
		k := [2]int{from, to}
		if from == to || used[k] || from > to && rng.Float64() < 0.8 {
			continue
		}
		used[k] = true
		w.edges = append(w.edges, edge{from: from, to: to, rate: 0.2 + 30*rng.ExpFloat64()*rng.ExpFloat64()})
	}
	for i := range w.edges {
		w.edges[i].denied = i%(len(w.edges)/(1+len(w.edges)/50)) == 7
	}
	return w
}

// trouble makes some services sick: what a person should find.
func (w *World) trouble() {
	for i := range w.services {
		switch s := &w.services[i]; {
		case i == 4 || i%211 == 50:
			s.median, s.l7 = 480, true
		case i == 8 || i%173 == 60:
			s.failing, s.l7 = 0.12, true
		}
	}
}

// Clusters are the names of the clusters.
func (w *World) Clusters() []mesh.ClusterName { return w.clusters }

// Next makes the reports of the interval that ends at to, one per cluster.
func (w *World) Next(to time.Time) []*topology.Report {
	w.sequence++
	rng := rand.New(rand.NewPCG(w.size.Seed, w.sequence)) //nolint:gosec // made-up traffic, not secrets
	out := make([]*topology.Report, len(w.clusters))
	for i, c := range w.clusters {
		out[i] = &topology.Report{
			Cluster: c, Epoch: "demo", Sequence: w.sequence, From: to.Add(-topology.Interval), To: to, Agent: "demo",
			Scrapes: []topology.Scrape{
				{Source: "ztunnel", Targets: 3, Up: 3, Series: 400, Took: 4 * time.Millisecond},
				{Source: "waypoint", Targets: 2, Up: 2, Series: 900, Took: 6 * time.Millisecond},
				{Source: "istiod", Targets: 1, Up: 1, Series: 120, Took: 9 * time.Millisecond},
			},
		}
		for j, peer := range w.clusters {
			if i != j {
				rtt := time.Duration(8+7*abs(i-j)) * time.Millisecond
				out[i].Probes = append(out[i].Probes, topology.ProbeResult{To: peer, Sent: 2, Min: rtt - time.Millisecond, Mean: rtt + time.Duration(rng.IntN(2_000_000)), Max: rtt + 4*time.Millisecond})
			}
		}
	}
	for i := range w.edges {
		w.observe(&w.edges[i], rng, out)
	}
	return out
}

func abs(n int) int { return max(n, -n) }

// observe reports an edge as ambient would: ztunnel beside the client, which doesn't know a remote cluster; ztunnel or waypoint at the server.
func (w *World) observe(e *edge, rng *rand.Rand, out []*topology.Report) {
	from, to := &w.services[e.from], &w.services[e.to]
	n := e.rate * topology.Interval.Seconds() * (0.8 + 0.4*rng.Float64())
	principal := topology.Principal("cluster.local/ns/" + from.ns + "/sa/" + from.name + "-" + string(w.clusters[from.cluster]))
	server := topology.Principal("cluster.local/ns/" + to.ns + "/sa/" + to.name + "-" + string(w.clusters[to.cluster]))
	client := topology.End{Cluster: string(w.clusters[from.cluster]), Namespace: from.ns, Service: from.name, Principal: principal}
	called := topology.End{Cluster: string(w.clusters[to.cluster]), Namespace: to.ns, Service: to.name, Principal: server}
	seenByClient, seenByServer := called, client
	if from.cluster != to.cluster {
		seenByClient.Cluster, seenByServer.Cluster = "", ""
	}
	conns := n / 10
	l4 := topology.Observation{
		By: topology.BySource, From: client, To: seenByClient, Protocol: "tcp", MTLS: topology.MTLSYes,
		TCP: topology.TCPCounts{Opened: conns, Closed: conns, Sent: n * 600, Received: n * 4000},
	}
	if e.denied {
		l4.TCP = topology.TCPCounts{Failed: conns}
		l4.Failures = map[string]float64{"CONNECT": conns}
		out[from.cluster].Edges = append(out[from.cluster].Edges, l4)
		denied := l4
		denied.By, denied.From, denied.To, denied.Failures = topology.ByDestination, seenByServer, called, map[string]float64{topology.FlagDeny: conns}
		out[to.cluster].Edges = append(out[to.cluster].Edges, denied)
		return
	}
	out[from.cluster].Edges = append(out[from.cluster].Edges, l4)
	at := l4
	at.By, at.From, at.To = topology.ByDestination, seenByServer, called
	out[to.cluster].Edges = append(out[to.cluster].Edges, at)
	if !to.l7 {
		return
	}
	l7 := topology.Observation{By: topology.ByWaypoint, From: seenByServer, To: called, Protocol: "http", MTLS: topology.MTLSYes, Latency: &topology.Histogram{}}
	l7.Requests.ServerError = n * to.failing
	l7.Requests.ClientError = n * 0.01
	l7.Requests.Success = n - l7.Requests.ServerError - l7.Requests.ClientError
	l7.Codes = map[string]float64{"200": l7.Requests.Success, "404": l7.Requests.ClientError}
	if to.failing > 0 {
		l7.Codes["503"] = l7.Requests.ServerError
	}
	for range 40 {
		d := to.median * (0.3 + 0.7*rng.ExpFloat64())
		l7.Latency.Buckets[topology.BucketOf(d)] += n / 40
		l7.Latency.Sum += d * n / 40
	}
	out[to.cluster].Edges = append(out[to.cluster].Edges, l7)
}

// Fill applies the reports of the last n intervals up to now to a table.
func (w *World) Fill(t *topology.Table, now time.Time, n int) error {
	for i := n - 1; i >= 0; i-- {
		at := now.Add(-time.Duration(i) * topology.Interval)
		for _, r := range w.Next(at) {
			if err := t.Apply(r, at); err != nil {
				return fmt.Errorf("demo: %w", err)
			}
		}
	}
	return nil
}
