package demo

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/traces"
)

// made is how many traces there are.
const made = 24

// spans makes trace n up: a checkout in the first cluster that asks the second and the third, whose clock is ahead.
func (m *Mesh) spans(n int) (traces.TraceID, []traces.Span) {
	var id traces.TraceID
	binary.BigEndian.PutUint64(id[8:], uint64(n)) //nolint:gosec // few
	start := m.log.all[len(m.log.all)-1].At.Add(-time.Duration(n) * 37 * time.Second)
	slow, failed := n%4 == 0, n%6 == 4
	clusters := []mesh.ClusterName{mesh.ClusterName(m.names[0]), mesh.ClusterName(m.names[min(1, len(m.names)-1)]), mesh.ClusterName(m.names[min(2, len(m.names)-1)])}
	var out []traces.Span
	add := func(parent byte, cluster int, ns, service, name string, kind traces.Kind, at, took time.Duration, failed bool) byte {
		s := traces.Span{Trace: id, Cluster: clusters[cluster], Namespace: ns, Service: service, Name: name, Kind: kind, Start: start.Add(at + []time.Duration{0, 0, skew}[cluster]), Duration: took, Error: failed}
		s.ID[7], s.Parent[7] = byte(len(out)+1), parent //nolint:gosec // six of them
		s.Attributes = []traces.Attribute{{Key: "http.request.method", Value: "GET"}, {Key: "k8s.namespace.name", Value: ns}}
		if failed {
			s.Status = "upstream connect error or disconnect/reset before headers"
		}
		out = append(out, s)
		return s.ID[7]
	}
	const ms = time.Millisecond
	work := 31 * ms
	if slow {
		work = 870 * ms
	}
	root := add(0, 0, "storefront", "web", "GET /cart", traces.Server, 0, work+49*ms, failed)
	call := add(root, 0, "storefront", "web", "checkout.Quote", traces.Client, 3*ms, work+41*ms, failed)
	quote := add(call, 1, "payments", "checkout", "checkout.Quote", traces.Server, 15*ms, work+18*ms, failed)
	ask := add(quote, 1, "payments", "checkout", "billing.Rates", traces.Client, 17*ms, work+14*ms, failed)
	rates := add(ask, 2, "billing", "rates", "billing.Rates", traces.Server, 24*ms, work, failed)
	add(rates, 2, "billing", "rates", "SELECT rates", traces.Internal, 25*ms, work-4*ms, false)
	return id, out
}

// skew is how far the third cluster's clock is ahead.
const skew = 340 * time.Millisecond

// SearchTraces implements ui.Traces.
func (m *Mesh) SearchTraces(_ context.Context, q traces.Query) ([]traces.Summary, error) {
	var out []traces.Summary
	for n := 1; n <= made; n++ {
		id, spans := m.spans(n)
		s := traces.Summary{ID: id, Start: spans[0].Start, Duration: spans[0].Duration, Service: spans[0].Service, Name: spans[0].Name, Root: true, Spans: len(spans)}
		for i := range spans {
			if spans[i].Error {
				s.Errors = 1
			}
			if !slices.Contains(s.Clusters, spans[i].Cluster) {
				s.Clusters = append(s.Clusters, spans[i].Cluster)
			}
			if !slices.Contains(s.Services, spans[i].Service) {
				s.Services = append(s.Services, spans[i].Service)
			}
		}
		if q.Errors && s.Errors == 0 || s.Duration < q.MinDuration || q.Service != "" && !slices.Contains(s.Services, q.Service) || q.Cluster != "" && !slices.Contains(s.Clusters, q.Cluster) {
			continue
		}
		out = append(out, s)
	}
	return out, nil
}

// Trace implements ui.Traces.
func (m *Mesh) Trace(_ context.Context, id traces.TraceID, raw bool) (*traces.Trace, error) {
	n := binary.BigEndian.Uint64(id[8:])
	if n == 0 || n > made {
		return nil, nil //nolint:nilnil // there is none
	}
	_, spans := m.spans(int(n))
	o := traces.Options{Raw: raw, RTT: func(_, _ mesh.ClusterName) (time.Duration, bool) { return 16 * time.Millisecond, true }}
	for i, name := range m.names {
		c := traces.Clock{Cluster: mesh.ClusterName(name), Known: true, Error: 4 * time.Millisecond}
		if i == 2 {
			c.Offset = -skew
		}
		o.Clocks = append(o.Clocks, c)
	}
	return traces.Assemble(id, spans, o), nil
}
