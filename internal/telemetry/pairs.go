package telemetry

import (
	"cmp"
	"time"

	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/traces"
)

// pairs finds the two spans of one call, which often come in different batches from different clusters.
type pairs struct {
	// waiting holds the half that came first, by the client's span; two generations, so that the old go without being looked for.
	waiting, older map[spanKey]traces.Span
}

type spanKey struct {
	trace traces.TraceID
	span  traces.SpanID
}

// maxWaiting halves per generation: some 20 MB at most.
const maxWaiting = 20_000

func newPairs() *pairs { return &pairs{waiting: map[spanKey]traces.Span{}} }

// add takes a client's or a server's span; both are returned once the second has come.
func (p *pairs) add(s *traces.Span) (client, server traces.Span, ok bool) {
	var k spanKey
	switch s.Kind {
	case traces.Client:
		k = spanKey{s.Trace, s.ID}
	case traces.Server:
		k = spanKey{s.Trace, s.Parent}
	default:
		return client, server, false
	}
	other, found := p.waiting[k]
	if !found {
		other, found = p.older[k]
	}
	switch {
	case found && other.Kind == traces.Client && s.Kind == traces.Server:
		return other, *s, true
	case found && other.Kind == traces.Server && s.Kind == traces.Client:
		return *s, other, true
	}
	if len(p.waiting) >= maxWaiting {
		p.waiting, p.older = map[spanKey]traces.Span{}, p.waiting
	}
	half := *s
	half.Attributes, half.Events = nil, nil
	p.waiting[k] = half
	return client, server, false
}

func partyOf(s *traces.Span) topology.Party {
	return topology.Party{Cluster: s.Cluster, Namespace: cmp.Or(s.Namespace, topology.Unknown), Service: s.Service}
}

// onMap tells the map what spans say of edges: durations of calls of which both ends are known, and examples.
func (t *Telemetry) onMap(p *pairs, s *traces.Span, at time.Time) {
	if client, server, ok := p.add(s); ok {
		t.table.AddSpanPair(topology.Key{From: partyOf(&client), To: partyOf(&server)}, at, topology.SpanPair{Client: client.Duration, Server: server.Duration, Failed: client.Error || server.Error})
	}
	if s.Kind != traces.Server {
		return
	}
	// Who called is often a span of another batch: the example is for all edges to the service.
	t.table.AddExemplar(topology.Key{To: partyOf(s)}, topology.Exemplar{
		TraceID: s.Trace.String(), At: at, Bucket: topology.BucketOf(float64(s.Duration) / float64(time.Millisecond)), Error: s.Error,
	})
}
