// Package wire turns an agent's report into bytes and back.
//
// In: a topology.Report, or bytes of a relayv1.TelemetryReport that may say anything. Out: the other. It must not carry whose report it is: the server
// takes that from the certificate.
package wire

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/topology"
)

// Encode writes r without its Cluster.
func Encode(r *topology.Report) ([]byte, error) {
	n := names{index: map[string]uint32{"": 0}, list: []string{""}}
	out := &relayv1.TelemetryReport{Epoch: r.Epoch, Sequence: r.Sequence, From: r.From.UnixNano(), To: r.To.UnixNano()}
	for i := range r.Edges {
		out.Edges = append(out.Edges, n.edge(&r.Edges[i]))
	}
	for _, p := range r.Probes {
		out.Probes = append(out.Probes, &relayv1.TelemetryProbe{
			To: n.of(string(p.To)), Sent: count(p.Sent), Lost: count(p.Lost), Min: int64(p.Min), Mean: int64(p.Mean), Max: int64(p.Max), Error: n.of(p.Error),
		})
	}
	for _, c := range r.Caps {
		out.Caps = append(out.Caps, &relayv1.TelemetryCap{Cap: n.of(c.Cap), Limit: count(c.Limit), Dropped: count(c.Dropped), Example: n.of(c.Example)})
	}
	for _, s := range r.Scrapes {
		out.Scrapes = append(out.Scrapes, &relayv1.TelemetryScrape{
			Source: n.of(s.Source), Targets: count(s.Targets), Up: count(s.Up), Series: count(s.Series), Took: int64(s.Took), Error: n.of(s.Error), Detail: n.of(s.Detail),
		})
	}
	out.Names = n.list
	data, err := proto.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("telemetry report: %w", err)
	}
	return data, nil
}

func count(n int) uint32 { return uint32(min(max(n, 0), math.MaxInt32)) }

// names holds every text once.
type names struct {
	index map[string]uint32
	list  []string
}

func (n *names) of(s string) uint32 {
	i, ok := n.index[s]
	if !ok {
		i = uint32(len(n.list)) //nolint:gosec // an agent's report has fewer texts than that
		n.index[s] = i
		n.list = append(n.list, s)
	}
	return i
}

func (n *names) end(e topology.End) *relayv1.TelemetryEnd {
	return &relayv1.TelemetryEnd{Cluster: n.of(e.Cluster), Namespace: n.of(e.Namespace), Service: n.of(e.Service), Principal: n.of(string(e.Principal))}
}

func (n *names) counts(in map[string]float64) (out []*relayv1.TelemetryCount) {
	for k, v := range in {
		out = append(out, &relayv1.TelemetryCount{Name: n.of(k), Count: v})
	}
	return out
}

func (n *names) edge(o *topology.Observation) *relayv1.TelemetryEdge {
	e := &relayv1.TelemetryEdge{
		Reporter: n.of(string(o.By)), From: n.end(o.From), To: n.end(o.To), Protocol: n.of(o.Protocol), Mtls: n.of(string(o.MTLS)),
		Failures: n.counts(o.Failures), Codes: n.counts(o.Codes),
	}
	if r := o.Requests; r != (topology.Classes{}) {
		e.Requests = []float64{r.Success, r.ClientError, r.ServerError, r.NoResponse}
	}
	if t := o.TCP; t != (topology.TCPCounts{}) {
		e.Tcp = []float64{t.Opened, t.Closed, t.Failed, t.Sent, t.Received}
	}
	if o.Latency != nil {
		e.Buckets, e.Sum = o.Latency.Buckets[:], o.Latency.Sum
	}
	return e
}

// Decode reads what Encode wrote, of any age: what is missing is zero, what has too many numbers is cut. shift is added to its times, so that they are the
// server's; cluster is whose session it came with. Whether its numbers make sense is for topology.Table.Apply to say.
func Decode(data []byte, cluster mesh.ClusterName, agent string, shift time.Duration) (*topology.Report, error) {
	var in relayv1.TelemetryReport
	if err := proto.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("cluster %q: telemetry report: %w", cluster, err)
	}
	t := texts(in.GetNames())
	out := &topology.Report{
		Cluster: cluster, Agent: agent, Epoch: in.GetEpoch(), Sequence: in.GetSequence(), From: time.Unix(0, in.GetFrom()).Add(shift).UTC(), To: time.Unix(0, in.GetTo()).Add(shift).UTC(),
	}
	for _, e := range in.GetEdges() {
		out.Edges = append(out.Edges, t.edge(e))
	}
	for _, p := range in.GetProbes() {
		out.Probes = append(out.Probes, topology.ProbeResult{
			To: mesh.ClusterName(t.at(p.GetTo())), Sent: int(p.GetSent()), Lost: int(min(p.GetLost(), p.GetSent())),
			Min: time.Duration(p.GetMin()), Mean: time.Duration(p.GetMean()), Max: time.Duration(p.GetMax()), Error: t.at(p.GetError()),
		})
	}
	for _, c := range in.GetCaps() {
		out.Caps = append(out.Caps, topology.CapHit{Cap: t.at(c.GetCap()), Limit: int(c.GetLimit()), Dropped: int(c.GetDropped()), Example: t.at(c.GetExample())})
	}
	for _, s := range in.GetScrapes() {
		out.Scrapes = append(out.Scrapes, topology.Scrape{
			Source: t.at(s.GetSource()), Targets: int(s.GetTargets()), Up: int(s.GetUp()), Series: int(s.GetSeries()), Took: time.Duration(s.GetTook()),
			Error: t.at(s.GetError()), Detail: t.at(s.GetDetail()),
		})
	}
	return out, nil
}

type texts []string

func (t texts) at(i uint32) string {
	if uint64(i) >= uint64(len(t)) {
		return ""
	}
	return t[i]
}

func (t texts) end(e *relayv1.TelemetryEnd) topology.End {
	return topology.End{Cluster: t.at(e.GetCluster()), Namespace: t.at(e.GetNamespace()), Service: t.at(e.GetService()), Principal: topology.Principal(t.at(e.GetPrincipal()))}
}

func (t texts) counts(in []*relayv1.TelemetryCount) map[string]float64 {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]float64, len(in))
	for _, c := range in {
		out[t.at(c.GetName())] += c.GetCount()
	}
	return out
}

func (t texts) edge(e *relayv1.TelemetryEdge) topology.Observation {
	o := topology.Observation{
		By: topology.Reporter(t.at(e.GetReporter())), From: t.end(e.GetFrom()), To: t.end(e.GetTo()), Protocol: t.at(e.GetProtocol()), MTLS: topology.MTLS(t.at(e.GetMtls())),
		Failures: t.counts(e.GetFailures()), Codes: t.counts(e.GetCodes()),
	}
	r, c := make([]float64, 4), make([]float64, 5)
	copy(r, e.GetRequests())
	copy(c, e.GetTcp())
	o.Requests = topology.Classes{Success: r[0], ClientError: r[1], ServerError: r[2], NoResponse: r[3]}
	o.TCP = topology.TCPCounts{Opened: c[0], Closed: c[1], Failed: c[2], Sent: c[3], Received: c[4]}
	if b := e.GetBuckets(); len(b) > 0 {
		o.Latency = &topology.Histogram{Sum: e.GetSum()}
		copy(o.Latency.Buckets[:], b)
	}
	return o
}
