package topology

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Windows of the table, in reports of one cluster.
const (
	rateSlots = 4 // rates: the last minute
	histSlots = 5 // latency: the last five minutes, a slot holds rateSlots reports
)

// Bounds of what one report may hold. The agent caps far below (200 edges per service); these bound the server's memory against an agent gone wrong.
const (
	maxObservations = 20_000
	maxPerCluster   = 50_000
	maxProbes       = 5000
	maxSources      = 64
	maxName         = 253
	maxFlags        = 16
	maxExemplars    = 3 // per bucket
)

// ErrDuplicate is the error of Apply for a report that came already; it is to be acknowledged and forgotten.
var ErrDuplicate = errors.New("report came already")

// Config is what the table needs to know of the world.
type Config struct {
	// ClusterOf translates Istio's cluster ID, as proxies label it, to our name; ok is false for one that is not ours. nil: they are the same.
	ClusterOf func(istioID string) (mesh.ClusterName, bool)
	// Decide says which policy refuses traffic of an edge; asked for denied edges only. nil: not said.
	Decide func(k Key, from []Principal) *Decision
	// HistoryBytes bounds the history that Query.At can reach; 0 means 32 MiB.
	HistoryBytes int
}

// Table is the edge table. Safe for concurrent use; answers are immutable.
type Table struct {
	cfg Config

	mu         sync.Mutex
	clusters   map[mesh.ClusterName]*cluster
	generation uint64
	changed    chan struct{} // closed by the next change
	frame      *frame        // of the current generation, or nil
	stitched   []*rowOf      // sorted; nil after a new or forgotten edge
	spans      map[Key]*spanLatency
	history    history
	layouts    layouts
}

// cluster is what one cluster reported.
type cluster struct {
	state    ClusterState
	epoch    string
	sequence uint64
	n        uint64 // reports applied: the time axis of slots
	spans    [rateSlots]time.Duration
	raws     map[rawKey]*raw
	probes   map[mesh.ClusterName]*probes
	examples map[Key]*examples
}

// rawKey is who measured what, within the reporting cluster. The reporting side's cluster is set, the other's only if a label named it.
type rawKey struct {
	by       Reporter
	from, to Party
	client   Principal
}

// raw is what one kind of reporter says of one edge.
type raw struct {
	rawKey
	cluster  *cluster
	server   Principal
	protocol string
	mtls     MTLS
	slots    [rateSlots]slot
	hist     [histSlots]histSlot
	first    time.Time
	last     time.Time // traffic was last seen
	heard    time.Time // was last part of a report
}

type slot struct {
	n        uint64
	requests Classes
	tcp      TCPCounts
	failures []Failure // Rate holds the count
	codes    []CodeRate
}

type histSlot struct {
	tag uint64 // n / rateSlots, plus one
	h   *Histogram
}

type probes struct{ slots [rateSlots]probeSlot }

type probeSlot struct {
	n  uint64
	at time.Time
	r  ProbeResult
}

// New makes an empty table.
func New(cfg Config) *Table {
	if cfg.HistoryBytes == 0 {
		cfg.HistoryBytes = 32 << 20
	}
	return &Table{cfg: cfg, clusters: map[mesh.ClusterName]*cluster{}, spans: map[Key]*spanLatency{}, changed: make(chan struct{}), history: history{limit: cfg.HistoryBytes}, layouts: newLayouts()}
}

// Apply takes a cluster's report. Errors: ErrDuplicate; a report that names no cluster, an interval that is none, or too many edges, which leaves the
// table as it was. An edge of which the reporting side is not in r.Cluster can't occur: that side is r.Cluster, whatever a label says.
func (t *Table) Apply(r *Report, now time.Time) error {
	if err := r.check(now); err != nil {
		t.refuse(r.Cluster)
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.clusterOf(r.Cluster)
	if c.epoch == r.Epoch && r.Sequence <= c.sequence {
		return ErrDuplicate
	}
	if c.epoch == r.Epoch {
		c.state.Lost += r.Sequence - c.sequence - 1
	}
	c.epoch, c.sequence = r.Epoch, r.Sequence
	c.n++
	c.spans[c.n%rateSlots] = r.To.Sub(r.From)
	c.state.LastReport, c.state.Caps, c.state.Scrapes, c.state.Agent = r.To, r.Caps, r.Scrapes, r.Agent
	c.state.Reports++
	for i := range r.Edges {
		t.observe(c, &r.Edges[i], r.To)
	}
	for _, p := range r.Probes {
		ps := c.probes[p.To]
		if ps == nil {
			ps = &probes{}
			c.probes[p.To] = ps
		}
		ps.slots[c.n%rateSlots] = probeSlot{n: c.n, at: r.To, r: p}
	}
	if c.expire(r.To) {
		t.stitched = nil
	}
	t.touch()
	t.record(now)
	return nil
}

// check bounds what a report may say.
func (r *Report) check(now time.Time) error {
	switch {
	case r.Cluster == "":
		return errors.New("report without a cluster: the server stamps it")
	case !r.To.After(r.From):
		return fmt.Errorf("cluster %q: report %d ends (%s) before it begins (%s)", r.Cluster, r.Sequence, r.To, r.From)
	case r.To.After(now.Add(time.Minute)):
		return fmt.Errorf("cluster %q: report %d is of the future (%s)", r.Cluster, r.Sequence, r.To)
	case len(r.Probes) > maxProbes || len(r.Caps) > maxSources || len(r.Scrapes) > maxSources:
		return fmt.Errorf("cluster %q: report %d has %d probes, %d caps, %d sources: at most %d, %d, %d", r.Cluster, r.Sequence, len(r.Probes), len(r.Caps), len(r.Scrapes), maxProbes, maxSources, maxSources)
	case len(r.Edges) > maxObservations:
		return fmt.Errorf("cluster %q: report %d has %d edges, at most %d", r.Cluster, r.Sequence, len(r.Edges), maxObservations)
	}
	return nil
}

func (t *Table) refuse(name mesh.ClusterName) {
	if name == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clusterOf(name).state.Refused++
}

func (t *Table) clusterOf(name mesh.ClusterName) *cluster {
	c := t.clusters[name]
	if c == nil {
		c = &cluster{state: ClusterState{Name: name}, raws: map[rawKey]*raw{}, probes: map[mesh.ClusterName]*probes{}, examples: map[Key]*examples{}}
		t.clusters[name] = c
	}
	return c
}

// observe adds one observation to what the cluster reported. Observations that are malformed or too many are counted, not kept.
func (t *Table) observe(c *cluster, o *Observation, at time.Time) {
	k, ok := t.keyOf(c, o)
	if !ok {
		c.state.Refused++
		return
	}
	r := c.raws[k]
	if r == nil {
		if len(c.raws) >= maxPerCluster {
			c.state.Refused++
			return
		}
		r = &raw{rawKey: k, cluster: c, first: at}
		c.raws[k] = r
		t.stitched = nil
	}
	r.heard, r.protocol = at, o.Protocol
	if p := o.To.Principal; p != "" {
		r.server = p
	}
	r.mtls = o.MTLS
	s := &r.slots[c.n%rateSlots]
	if s.n != c.n {
		*s = slot{n: c.n}
	}
	s.requests.add(o.Requests)
	s.tcp.add(o.TCP)
	for flag, n := range o.Failures {
		s.failures = addFailure(s.failures, flag, n)
	}
	for code, n := range o.Codes {
		s.codes = addCode(s.codes, code, n)
	}
	if o.Requests != (Classes{}) || o.TCP != (TCPCounts{}) || len(o.Failures) > 0 {
		r.last = at
	}
	if o.Latency != nil {
		r.addLatency(o.Latency)
	}
}

func (r *raw) addLatency(h *Histogram) {
	tag := r.cluster.n/rateSlots + 1
	s := &r.hist[tag%histSlots]
	if s.tag != tag || s.h == nil {
		*s = histSlot{tag: tag, h: &Histogram{}}
	}
	s.h.Add(h)
}

// keyOf validates an observation and stamps the reporting side with the reporting cluster.
func (t *Table) keyOf(c *cluster, o *Observation) (k rawKey, ok bool) {
	if !o.finite() {
		return k, false
	}
	k = rawKey{by: o.By, from: t.party(o.From), to: t.party(o.To), client: o.From.Principal}
	switch o.By {
	case BySource, BySpans:
		k.from.Cluster = c.state.Name
	case ByWaypoint, ByDestination:
		k.to.Cluster = c.state.Name
	default:
		return k, false
	}
	for _, n := range []string{k.from.Namespace, k.from.Service, k.to.Namespace, k.to.Service} {
		if len(n) > maxName {
			return k, false
		}
	}
	return k, len(o.From.Principal) <= 2*maxName && len(o.To.Principal) <= 2*maxName
}

func (t *Table) party(e End) Party {
	p := Party{Namespace: e.Namespace, Service: e.Service}
	if p.Namespace == "" {
		p.Namespace = Unknown
	}
	if p.Service == "" {
		p.Service = Unknown
	}
	if e.Cluster == "" {
		return p
	}
	if t.cfg.ClusterOf == nil {
		p.Cluster = mesh.ClusterName(e.Cluster)
	} else if name, ok := t.cfg.ClusterOf(e.Cluster); ok {
		p.Cluster = name
	}
	return p
}

// finite reports whether all numbers are finite and not negative: anything else would spoil every sum above.
func (o *Observation) finite() bool {
	ok := func(f float64) bool { return f >= 0 && !math.IsInf(f, 0) && !math.IsNaN(f) }
	r, c := o.Requests, o.TCP
	for _, f := range []float64{r.Success, r.ClientError, r.ServerError, r.NoResponse, c.Opened, c.Closed, c.Failed, c.Sent, c.Received} {
		if !ok(f) {
			return false
		}
	}
	for _, f := range o.Failures {
		if !ok(f) {
			return false
		}
	}
	for _, f := range o.Codes {
		if !ok(f) {
			return false
		}
	}
	if o.Latency != nil {
		for _, f := range o.Latency.Buckets {
			if !ok(f) {
				return false
			}
		}
		return ok(o.Latency.Sum)
	}
	return true
}

// expire forgets edges that had no traffic for IdleAfter by the reporter's own time: a cluster that is silent keeps all it had.
func (c *cluster) expire(at time.Time) (gone bool) {
	for to, p := range c.probes {
		if _, ok := p.link(c.n); !ok {
			delete(c.probes, to)
		}
	}
	for k, r := range c.raws {
		if at.Sub(r.last) > IdleAfter {
			delete(c.raws, k)
			gone = true
		}
	}
	c.state.Edges = len(c.raws)
	return gone
}

// Forget drops a cluster that was deregistered.
func (t *Table) Forget(name mesh.ClusterName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.clusters[name]; ok {
		delete(t.clusters, name)
		t.stitched = nil
		t.touch()
	}
}

// touch marks the table as changed.
func (t *Table) touch() {
	t.generation++
	t.frame = nil
	close(t.changed)
	t.changed = make(chan struct{})
}

// Generation grows with every change.
func (t *Table) Generation() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.generation
}

// Wait returns the generation as soon as it is greater than seen, or the error of ctx.
func (t *Table) Wait(ctx context.Context, seen uint64) (uint64, error) {
	for {
		t.mu.Lock()
		gen, changed := t.generation, t.changed
		t.mu.Unlock()
		if gen > seen {
			return gen, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return gen, fmt.Errorf("wait for a change of the topology: %w", ctx.Err())
		}
	}
}

func (c *Classes) add(o Classes) {
	c.Success += o.Success
	c.ClientError += o.ClientError
	c.ServerError += o.ServerError
	c.NoResponse += o.NoResponse
}

func (c *TCPCounts) add(o TCPCounts) {
	c.Opened += o.Opened
	c.Closed += o.Closed
	c.Failed += o.Failed
	c.Sent += o.Sent
	c.Received += o.Received
}

func addFailure(in []Failure, flag string, n float64) []Failure {
	for i := range in {
		if in[i].Flag == flag {
			in[i].Rate += n
			return in
		}
	}
	if len(in) >= maxFlags || len(flag) > 64 {
		return in
	}
	return append(in, Failure{flag, n})
}

func addCode(in []CodeRate, code string, n float64) []CodeRate {
	for i := range in {
		if in[i].Code == code {
			in[i].Rate += n
			return in
		}
	}
	if len(in) >= maxFlags || len(code) > 16 {
		return in
	}
	return append(in, CodeRate{code, n})
}
