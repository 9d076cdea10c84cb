package scrape

import (
	"cmp"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"ambitmesh.dev/ambit/internal/topology"
)

// counters remember where every series stood, so that running totals become increments.
type counters struct {
	seed    maphash.Seed
	last    map[uint64]counted
	round   uint32
	dropped int // series beyond maxSeries, in this round
}

type counted struct {
	value float64
	round uint32
}

func newCounters() *counters { return &counters{seed: maphash.MakeSeed(), last: map[uint64]counted{}} }

// increment is how much a series grew since the last round. A series that is new at a target that was read before began at 0; one at a new target did not:
// what it counted before is not of this interval. A smaller value is a restart.
func (c *counters) increment(target string, s *sample, newTarget bool) float64 {
	if math.IsNaN(s.value) || math.IsInf(s.value, 0) || s.value < 0 {
		return 0
	}
	var h maphash.Hash
	h.SetSeed(c.seed)
	_, _ = h.WriteString(target)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(s.series)
	key := h.Sum64()
	before, known := c.last[key]
	if !known && len(c.last) >= maxSeries {
		c.dropped++
		return 0
	}
	c.last[key] = counted{s.value, c.round}
	switch {
	case !known && newTarget:
		return 0
	case !known || s.value < before.value:
		return s.value
	default:
		return s.value - before.value
	}
}

// next begins a round and forgets series that were not seen in the last two.
func (c *counters) next() {
	c.round++
	c.dropped = 0
	maps.DeleteFunc(c.last, func(_ uint64, v counted) bool { return v.round+2 < c.round })
}

// edgeKey is what observations are summed by: one kind of reporter, two ends.
type edgeKey struct {
	by       topology.Reporter
	from, to topology.End
}

// rollup sums increments to observations.
type rollup struct {
	edges map[edgeKey]*topology.Observation
	// waypoints are "namespace/workload" of proxies that are not ends of an edge but stand on it.
	waypoints map[string]bool
}

func newRollup(waypoints map[string]bool) *rollup {
	return &rollup{edges: map[edgeKey]*topology.Observation{}, waypoints: waypoints}
}

// add adds what one sample grew by.
func (r *rollup) add(t *target, s *sample, grew float64) {
	l := s.labels
	by, ok := l.reporter(t)
	if !ok || r.waypoints[l.get("source_workload_namespace")+"/"+l.get("source_workload")] {
		return // the waypoint's own report names the client
	}
	k := edgeKey{by: by, from: l.source(), to: l.destination()}
	o := r.edges[k]
	if o == nil {
		k.from, k.to = cloned(k.from), cloned(k.to) // not to keep whole lines
		o = &topology.Observation{By: by, From: k.from, To: k.to, Protocol: "tcp"}
		r.edges[k] = o
	}
	switch l.get("connection_security_policy") {
	case "mutual_tls":
		o.MTLS = merge(o.MTLS, topology.MTLSYes)
	case "none":
		o.MTLS = merge(o.MTLS, topology.MTLSNo)
	}
	if grew == 0 {
		return
	}
	switch s.name {
	case "istio_requests_total":
		addRequests(o, l, grew)
	case "istio_request_duration_milliseconds_bucket":
		addBucket(o, l.get("le"), grew)
	case "istio_request_duration_milliseconds_sum":
		latency(o).Sum += grew
	case "istio_tcp_connections_opened_total":
		o.TCP.Opened += grew
	case "istio_tcp_connections_closed_total":
		o.TCP.Closed += grew
	case "istio_tcp_connections_failed_total", "istio_tcp_connections_failed":
		o.TCP.Failed += grew
		count(&o.Failures, cmp.Or(l.get("response_flags"), "-"), grew)
	case "istio_tcp_received_bytes_total": // received by the server: istio#32399
		o.TCP.Sent += grew
	case "istio_tcp_sent_bytes_total":
		o.TCP.Received += grew
	}
}

func cloned(e topology.End) topology.End {
	return topology.End{Cluster: strings.Clone(e.Cluster), Namespace: strings.Clone(e.Namespace), Service: strings.Clone(e.Service), Principal: topology.Principal(strings.Clone(string(e.Principal)))}
}

func merge(a, b topology.MTLS) topology.MTLS {
	if a == topology.MTLSUnknown || a == b {
		return b
	}
	return topology.MTLSMixed
}

func latency(o *topology.Observation) *topology.Histogram {
	if o.Latency == nil {
		o.Latency = &topology.Histogram{}
	}
	return o.Latency
}

// addBucket adds to a cumulative bucket; finish makes the counts of each. Buckets beyond the last bound are within +Inf.
func addBucket(o *topology.Observation, le string, grew float64) {
	if le == "+Inf" {
		latency(o).Buckets[topology.NumBuckets-1] += grew
		return
	}
	bound, err := strconv.ParseFloat(le, 64)
	if err != nil {
		return
	}
	for i, b := range topology.Bounds() {
		if b == bound {
			latency(o).Buckets[i] += grew
			return
		}
	}
}

func addRequests(o *topology.Observation, l labels, grew float64) {
	if o.Protocol = l.get("request_protocol"); o.Protocol != "grpc" {
		o.Protocol = "http"
	}
	code, grpc := l.get("response_code"), l.get("grpc_response_status")
	switch {
	case slices.Contains([]string{"2", "4", "13", "14", "15"}, grpc): // the server's fault; facts: topology queries
		o.Requests.ServerError += grew
	case grpc != "" && grpc != "0":
		o.Requests.ClientError += grew
	case code == "" || code == "0":
		o.Requests.NoResponse += grew
	case code[0] == '5':
		o.Requests.ServerError += grew
	case code[0] == '4':
		o.Requests.ClientError += grew
	default:
		o.Requests.Success += grew
	}
	if grpc != "" {
		code = "grpc " + grpc
	}
	count(&o.Codes, cmp.Or(code, "0"), grew)
	if f := l.get("response_flags"); f != "" && f != "-" {
		count(&o.Failures, f, grew)
	}
}

// maxKinds bounds flags and codes of one edge.
const maxKinds = 12

func count(m *map[string]float64, key string, n float64) {
	if *m == nil {
		*m = map[string]float64{}
	}
	if _, known := (*m)[key]; !known {
		if len(*m) >= maxKinds {
			return
		}
		key = strings.Clone(key)
	}
	(*m)[key] += n
}

// get is a label's value; "unknown", as Istio writes it, is "".
func (l labels) get(name string) string {
	for _, p := range l {
		if p.name == name {
			if p.value == "unknown" {
				return ""
			}
			return p.value
		}
	}
	return ""
}

// reporter says whose word it is, and whether this target may give it: a gateway speaks for its own namespace only, nobody but a waypoint as one.
func (l labels) reporter(t *target) (topology.Reporter, bool) {
	switch r := l.get("reporter"); {
	case r == "waypoint" && t.kind == kindWaypoint:
		return topology.ByWaypoint, true
	case r == "destination" && t.kind == kindWaypoint: // before istio 1.26 a waypoint called itself so
		return topology.ByWaypoint, true
	case r == "source" && t.kind == kindGateway && l.get("source_workload_namespace") == t.namespace, r == "source" && t.kind == kindZtunnel:
		return topology.BySource, true
	case r == "destination" && t.kind == kindZtunnel:
		return topology.ByDestination, true
	default:
		return "", false
	}
}

func (l labels) source() topology.End {
	return topology.End{
		Cluster: l.get("source_cluster"), Namespace: l.get("source_workload_namespace"), Service: cmp.Or(l.get("source_canonical_service"), l.get("source_workload")),
		Principal: principal(l.get("source_principal")),
	}
}

// destination is the service, or the workload where none was called. What is of no namespace is outside the mesh.
func (l labels) destination() topology.End {
	e := topology.End{
		Cluster: l.get("destination_cluster"), Namespace: cmp.Or(l.get("destination_service_namespace"), l.get("destination_workload_namespace")),
		Service:   cmp.Or(l.get("destination_service_name"), l.get("destination_canonical_service"), l.get("destination_workload")),
		Principal: principal(l.get("destination_principal")),
	}
	if e.Namespace == "" {
		e.Namespace, e.Service = topology.External, cmp.Or(e.Service, host(l.get("destination_service")), topology.Unknown)
	}
	return e
}

// host of a destination_service label: a host name, or an address with a port, of which every one would be a node.
func host(s string) string {
	h, _, _ := strings.Cut(s, ":")
	return h
}

func principal(s string) topology.Principal {
	return topology.Principal(strings.TrimPrefix(s, "spiffe://"))
}

// finish turns cumulative buckets into counts, drops edges on which nothing happened, and applies the caps.
func (r *rollup) finish() (out []topology.Observation, hits []topology.CapHit) {
	perService := map[topology.End][]*topology.Observation{}
	var services []topology.End
	for _, o := range r.edges {
		if o.Requests == (topology.Classes{}) && o.TCP == (topology.TCPCounts{}) && len(o.Failures) == 0 {
			continue
		}
		if o.Latency != nil {
			o.Latency.Separate()
		}
		to := topology.End{Cluster: o.To.Cluster, Namespace: o.To.Namespace, Service: o.To.Service}
		if perService[to] == nil {
			services = append(services, to)
		}
		perService[to] = append(perService[to], o)
	}
	slices.SortFunc(services, compareEnds)
	hit := topology.CapHit{Cap: "edgesPerService", Limit: maxEdgesPerService}
	for _, s := range services {
		of := perService[s]
		slices.SortFunc(of, func(a, b *topology.Observation) int {
			return cmp.Or(cmp.Compare(traffic(b), traffic(a)), compareEnds(a.From, b.From), cmp.Compare(a.By, b.By), compareEnds(a.To, b.To))
		})
		if len(of) > maxEdgesPerService {
			hit.Dropped += len(of) - maxEdgesPerService
			hit.Example = s.Namespace + "/" + s.Service
			of = lump(of)
		}
		for _, o := range of {
			out = append(out, *o)
		}
	}
	if hit.Dropped > 0 {
		hits = append(hits, hit)
	}
	if len(out) > maxEdges {
		slices.SortStableFunc(out, func(a, b topology.Observation) int { return cmp.Compare(traffic(&b), traffic(&a)) })
		hits = append(hits, topology.CapHit{Cap: "edges", Limit: maxEdges, Dropped: len(out) - maxEdges, Example: out[maxEdges].To.Namespace + "/" + out[maxEdges].To.Service})
		out = out[:maxEdges]
	}
	return out, hits
}

// lump keeps the busiest callers and sums the others to one per kind of reporter.
func lump(of []*topology.Observation) []*topology.Observation {
	out := slices.Clone(of[:maxEdgesPerService])
	rest := map[topology.Reporter]*topology.Observation{}
	for _, o := range of[maxEdgesPerService:] {
		sum := rest[o.By]
		if sum == nil {
			sum = &topology.Observation{By: o.By, From: topology.End{Cluster: o.From.Cluster, Namespace: topology.Other, Service: topology.Other}, To: o.To, Protocol: o.Protocol, MTLS: o.MTLS}
			rest[o.By] = sum
			out = append(out, sum)
		}
		sum.Requests.Success += o.Requests.Success
		sum.Requests.ClientError += o.Requests.ClientError
		sum.Requests.ServerError += o.Requests.ServerError
		sum.Requests.NoResponse += o.Requests.NoResponse
		sum.TCP.Opened += o.TCP.Opened
		sum.TCP.Closed += o.TCP.Closed
		sum.TCP.Failed += o.TCP.Failed
		sum.TCP.Sent += o.TCP.Sent
		sum.TCP.Received += o.TCP.Received
		sum.MTLS = merge(sum.MTLS, o.MTLS)
		if o.Latency != nil {
			latency(sum).Add(o.Latency)
		}
		for k, n := range o.Failures {
			count(&sum.Failures, k, n)
		}
		for k, n := range o.Codes {
			count(&sum.Codes, k, n)
		}
	}
	return out
}

func traffic(o *topology.Observation) float64 {
	r := o.Requests
	return r.Success + r.ClientError + r.ServerError + r.NoResponse + o.TCP.Opened + o.TCP.Failed
}

func compareEnds(a, b topology.End) int {
	return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Principal, b.Principal))
}
