package topology

import (
	"cmp"
	"math"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// edge makes the row's edge. Each number comes from one witness: rates and server time from the server's side (waypoint, then destination), else from the
// client's; failures from the client's side, since a refused call reaches no server. Witnesses are never summed.
func (t *Table) edge(row *rowOf, stale map[mesh.ClusterName]bool, e *Edge) {
	*e = Edge{Key: row.key, Protocol: "tcp", Inferred: row.inferred, Candidates: row.candidates, Rows: 1, Stale: true, Sources: make([]Source, 0, len(row.all))}
	for _, r := range row.all {
		src := Source{By: r.by, Cluster: r.cluster.state.Name, At: r.heard, Stale: stale[r.cluster.state.Name]}
		e.Sources = addSource(e.Sources, src)
		e.Stale = e.Stale && src.Stale
		e.FirstSeen = earliest(e.FirstSeen, r.first)
		e.LastSeen = latest(e.LastSeen, r.last)
		e.MTLS = mergeMTLS(e.MTLS, r.mtls)
		e.FromPrincipals = addPrincipal(e.FromPrincipals, r.client)
		e.ToPrincipals = addPrincipal(e.ToPrincipals, r.server)
		if r.protocol == "grpc" || r.protocol == "http" && e.Protocol == "tcp" {
			e.Protocol = r.protocol
		}
	}
	slices.Sort(e.FromPrincipals)
	slices.Sort(e.ToPrincipals)
	e.rates(row)
	e.Server = latencyOf(row, row.servers)
	e.Client = latencyOf(row, row.sources)
	e.Failures, e.Denied = failuresOf(row)
	e.Exemplars = t.exemplars(row.key)
	if e.Denied > 0 && t.cfg.Decide != nil {
		e.Decision = t.cfg.Decide(e.Key, e.FromPrincipals)
	}
}

// rates takes requests from the first kind of witness that has any, and connections from the first that has those. Several of one kind are principals of
// one edge, or replicas' sums, and do add up.
func (e *Edge) rates(row *rowOf) {
	var l7, l4 Reporter
	for _, r := range row.all {
		if row.shared[r] > 1 {
			continue // covers other edges too
		}
		c, tcp, codes, span := r.window()
		if span <= 0 {
			continue
		}
		per := 1 / span.Seconds()
		if c != (Classes{}) && (l7 == "" || l7 == r.by) {
			l7 = r.by
			e.Rates.Success += c.Success * per
			e.Rates.ClientError += c.ClientError * per
			e.Rates.ServerError += c.ServerError * per
			e.Rates.NoResponse += c.NoResponse * per
			for _, code := range codes {
				e.Codes = addCode(e.Codes, code.Code, code.Rate*per)
			}
		}
		if tcp != (TCPCounts{}) && (l4 == "" || l4 == r.by) {
			l4 = r.by
			e.TCP.Opened += tcp.Opened * per
			e.TCP.Closed += tcp.Closed * per
			e.TCP.Failed += tcp.Failed * per
			e.TCP.Sent += tcp.Sent * per
			e.TCP.Received += tcp.Received * per
		}
	}
	slices.SortFunc(e.Codes, func(a, b CodeRate) int { return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.Code, b.Code)) })
	e.Codes = e.Codes[:min(len(e.Codes), 3)]
}

// window sums what r counted in its cluster's last reports, and how long those were. A silent cluster's window stays where it was: the last known.
func (r *raw) window() (c Classes, tcp TCPCounts, codes []CodeRate, span time.Duration) {
	n := r.cluster.n
	for i := range r.slots {
		s := &r.slots[i]
		if s.n == 0 || s.n+rateSlots <= n {
			continue
		}
		c.add(s.requests)
		tcp.add(s.tcp)
		for _, code := range s.codes {
			codes = addCode(codes, code.Code, code.Rate)
		}
	}
	return c, tcp, codes, r.cluster.window()
}

// window is the duration of the reports that rates are taken over.
func (c *cluster) window() time.Duration {
	var sum time.Duration
	for _, d := range c.spans {
		sum += d
	}
	return sum
}

// histogram sums the last five minutes; nil if r measures no latency or had no requests.
func (r *raw) histogram() *Histogram {
	now := r.cluster.n/rateSlots + 1
	var out *Histogram
	for i := range r.hist {
		s := &r.hist[i]
		if s.h == nil || s.tag+histSlots <= now {
			continue
		}
		if out == nil {
			out = &Histogram{}
		}
		out.Add(s.h)
	}
	return out
}

// latencyOf is what the first kind of witness that measures durations says. One that covers this edge alone goes before one that covers several.
func latencyOf(row *rowOf, rs []*raw) *Latency {
	for _, sharedToo := range []bool{false, true} {
		var sum *Histogram
		var by Source
		shared := 0
		for _, r := range rs {
			n := row.shared[r]
			if n > 1 && !sharedToo || by.By != "" && by.By != r.by {
				continue
			}
			h := r.histogram()
			if h == nil {
				continue
			}
			if sum == nil {
				sum, by = &Histogram{}, Source{By: r.by, Cluster: r.cluster.state.Name}
			}
			sum.Add(h)
			shared = max(shared, n)
		}
		if sum != nil {
			if l := sum.latency(by, shared); l != nil {
				return l
			}
		}
	}
	return nil
}

// failuresOf takes, per flag, the larger of what either side counted. A connection that the server's ztunnel denied shows at the client as one that could
// not be made (CONNECT): those are the same connections and count as denied only.
func failuresOf(row *rowOf) (out []Failure, denied float64) {
	out = sideFailures(row, row.sources)
	servers := sideFailures(row, row.servers)
	if denied = failureRate(servers, FlagDeny); denied > 0 && failureRate(out, FlagDeny) == 0 {
		for i := range out {
			if out[i].Flag == "CONNECT" {
				out[i].Rate -= denied
			}
		}
	}
	for _, f := range servers {
		if more := f.Rate - failureRate(out, f.Flag); more > 0 {
			out = addFailure(out, f.Flag, more)
		}
	}
	out = slices.DeleteFunc(out, func(f Failure) bool { return f.Rate <= 0 })
	slices.SortFunc(out, func(a, b Failure) int { return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.Flag, b.Flag)) })
	return out, failureRate(out, FlagDeny)
}

func failureRate(fs []Failure, flag string) float64 {
	for _, f := range fs {
		if f.Flag == flag {
			return f.Rate
		}
	}
	return 0
}

func sideFailures(row *rowOf, rs []*raw) (out []Failure) {
	for _, r := range rs {
		span := r.cluster.window().Seconds()
		if span <= 0 || row.shared[r] > 1 {
			continue
		}
		for i := range r.slots {
			s := &r.slots[i]
			if s.n == 0 || s.n+rateSlots <= r.cluster.n {
				continue
			}
			for _, f := range s.failures {
				out = addFailure(out, f.Flag, f.Rate/span)
			}
		}
	}
	return out
}

// split divides the client's wait at the median. rtt is the probed round trip between the two clusters in milliseconds, nil where there is none.
func (e *Edge) split(rtt *float64) {
	var s Split
	if e.Server != nil {
		s.Server = &Part{e.Server.P50.Value, e.Server.By}
	}
	if e.CrossCluster() && rtt != nil {
		s.Network = &Part{*rtt, ByProbe}
	}
	if e.Client != nil && e.Server != nil {
		transit := math.Max(0, e.Client.P50.Value-e.Server.P50.Value)
		if s.Network == nil {
			s.Network = &Part{transit, e.Client.By}
		} else {
			s.Network = &Part{math.Min(transit, *rtt), ByProbe}
			s.Client = &Part{transit - s.Network.Milliseconds, e.Client.By}
		}
	}
	e.Split = s
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func mergeMTLS(a, b MTLS) MTLS {
	switch {
	case a == MTLSUnknown || a == b:
		return b
	case b == MTLSUnknown:
		return a
	default:
		return MTLSMixed
	}
}

func addPrincipal(in []Principal, p Principal) []Principal {
	if p == "" || slices.Contains(in, p) {
		return in
	}
	return append(in, p)
}

// addSource keeps the newest of each (reporter, cluster).
func addSource(in []Source, s Source) []Source {
	for i := range in {
		if in[i].By == s.By && in[i].Cluster == s.Cluster {
			in[i].At = latest(in[i].At, s.At)
			return in
		}
	}
	return append(in, s)
}
