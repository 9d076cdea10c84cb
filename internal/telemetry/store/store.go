// Package store keeps the history of edges: Prometheus' TSDB and PromQL engine as a library, in the server's own process and on its own disk.
//
// In: topology.Reports (increments). Out: answers to PromQL, in Prometheus' own JSON, and the series of one edge. Only the server imports it: it brings half of
// Prometheus with it (ADR 0011). It must not be the truth of anything: a server without it, or with an empty one, draws the same map.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/topology"
)

// Names of the series. All but the links have the labels cluster (that reported), reporter, source_* and destination_* (cluster, namespace, service) and
// source_principal.
const (
	MetricRequests = "mesh_edge_requests_total"     // counter; class: success, client_error, server_error, no_response
	MetricDuration = "mesh_edge_duration_ms"        // native histogram with the bounds of topology.Bounds
	MetricOpened   = "mesh_edge_tcp_opened_total"   // counter of connections
	MetricClosed   = "mesh_edge_tcp_closed_total"   //
	MetricFailed   = "mesh_edge_failures_total"     // counter; flag
	MetricSent     = "mesh_edge_tcp_sent_bytes"     // counter, client to server
	MetricReceived = "mesh_edge_tcp_received_bytes" // counter, server to client
	MetricRTT      = "mesh_link_rtt_ms"             // gauge; cluster, peer
	MetricLoss     = "mesh_link_loss_ratio"         // gauge; cluster, peer
)

const (
	defaultAge   = 15 * 24 * time.Hour
	defaultBytes = 10 << 30
	replayWindow = time.Hour // how old a report that an agent kept may be
	maxSamples   = 5_000_000 // that one query may load: some 80 MB
	queryTime    = 20 * time.Second
	maxSeries    = 2_000_000
)

// Config is where and how much is kept.
type Config struct {
	Dir   string        // made if it is not there
	Age   time.Duration // 0: 15 days
	Bytes int64         // of blocks; 0: 10 GiB
	Log   *slog.Logger
}

// Store is the history. Safe for concurrent use.
type Store struct {
	cfg    Config
	db     *tsdb.DB
	engine *promql.Engine

	mu       sync.Mutex
	clusters map[mesh.ClusterName]*cluster
	series   int
	stats    Stats
}

// cluster holds the running totals of one cluster's edges.
type cluster struct {
	edges map[edgeKey]*edge
	epoch string
	seq   uint64
}

type edgeKey struct {
	by       topology.Reporter
	from, to topology.End
}

type edge struct {
	counters map[counterKey]*counter
	duration *topology.Histogram
	labels   labels.Labels
	ref      storage.SeriesRef
	seen     time.Time
}

type counterKey struct{ metric, label, value string }

type counter struct {
	labels labels.Labels
	ref    storage.SeriesRef
	value  float64
}

// Stats is how the store is doing.
type Stats struct {
	Series  int       `json:"series"` // being written
	Bytes   int64     `json:"bytes"`  // blocks and log on disk
	Limit   int64     `json:"limit"`
	Oldest  time.Time `json:"oldest,omitzero"`
	Samples uint64    `json:"samples"` // written since the start
	Dropped uint64    `json:"dropped"` // reports or samples that could not be written
	Error   string    `json:"error,omitempty"`
}

// Open opens the store; Close it.
func Open(cfg Config) (*Store, error) {
	cfg.Age, cfg.Bytes = cmp.Or(cfg.Age, defaultAge), cmp.Or(cfg.Bytes, defaultBytes)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	o := tsdb.DefaultOptions()
	o.RetentionDuration, o.MaxBytes = cfg.Age.Milliseconds(), cfg.Bytes
	o.MaxBlockDuration = max(o.MinBlockDuration, min(cfg.Age/10, 31*24*time.Hour).Milliseconds())
	o.OutOfOrderTimeWindow = replayWindow.Milliseconds()
	o.WALCompression, o.StripeSize, o.WALSegmentSize = compression.Snappy, 1<<12, 32<<20
	o.HeadChunksWriteBufferSize = 256 << 10
	db, err := tsdb.Open(cfg.Dir, cfg.Log, nil, o, nil)
	if err != nil {
		return nil, fmt.Errorf("telemetry store %s: %w", cfg.Dir, err)
	}
	engine := promql.NewEngine(promql.EngineOpts{
		Logger: cfg.Log, MaxSamples: maxSamples, Timeout: queryTime, EnableAtModifier: true, EnableNegativeOffset: true,
		NoStepSubqueryIntervalFn: func(int64) int64 { return topology.Interval.Milliseconds() }, Parser: parser.NewParser(parser.Options{}),
	})
	return &Store{cfg: cfg, db: db, engine: engine, clusters: map[mesh.ClusterName]*cluster{}, stats: Stats{Limit: cfg.Bytes}}, nil
}

// Close writes what is in memory and closes the files.
func (s *Store) Close() error { return errors.Join(s.engine.Close(), s.db.Close()) }

// Append adds a report. Edges without news keep their last value, so that short windows find two samples. A report that came already changes nothing. An error
// means that the report is not, or not wholly, in history; the map is not concerned.
func (s *Store) Append(ctx context.Context, r *topology.Report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clusters[r.Cluster]
	if c == nil {
		c = &cluster{edges: map[edgeKey]*edge{}}
		s.clusters[r.Cluster] = c
	}
	if c.epoch == r.Epoch && r.Sequence <= c.seq {
		return nil
	}
	c.epoch, c.seq = r.Epoch, r.Sequence
	for i := range r.Edges {
		s.count(c, r.Cluster, &r.Edges[i], r.To)
	}
	app := s.db.Appender(ctx)
	n, err := s.write(app, c, r)
	if err == nil {
		err = app.Commit()
	} else {
		err = errors.Join(err, app.Rollback())
	}
	if err != nil {
		s.stats.Dropped++
		s.stats.Error = err.Error()
		return fmt.Errorf("telemetry store: cluster %q: %w", r.Cluster, err)
	}
	s.stats.Samples += n
	s.stats.Error = ""
	return nil
}

// count adds an observation's increments to the totals.
func (s *Store) count(c *cluster, name mesh.ClusterName, o *topology.Observation, at time.Time) {
	k := edgeKey{o.By, o.From, o.To}
	k.to.Principal = "" // no label
	e := c.edges[k]
	if e == nil {
		if s.series >= maxSeries {
			s.stats.Dropped++
			return
		}
		e = &edge{counters: map[counterKey]*counter{}, labels: labelsOf(MetricDuration, name, k, "", "")}
		c.edges[k] = e
	}
	e.seen = at
	add := func(metric, label, value string, n float64) {
		ck := counterKey{metric, label, value}
		x := e.counters[ck]
		if x == nil {
			if n == 0 {
				return
			}
			x = &counter{labels: labelsOf(metric, name, k, label, value)}
			e.counters[ck] = x
			s.series++
		}
		x.value += n
	}
	add(MetricRequests, "class", "success", o.Requests.Success)
	add(MetricRequests, "class", "client_error", o.Requests.ClientError)
	add(MetricRequests, "class", "server_error", o.Requests.ServerError)
	add(MetricRequests, "class", "no_response", o.Requests.NoResponse)
	add(MetricOpened, "", "", o.TCP.Opened)
	add(MetricClosed, "", "", o.TCP.Closed)
	add(MetricSent, "", "", o.TCP.Sent)
	add(MetricReceived, "", "", o.TCP.Received)
	for flag, n := range o.Failures {
		add(MetricFailed, "flag", flag, n)
	}
	if o.Latency != nil {
		if e.duration == nil {
			e.duration = &topology.Histogram{}
			s.series++
		}
		e.duration.Add(o.Latency)
	}
}

// labelsOf names the clusters as the reporting side does; the reporting end is the cluster itself, whatever a label said.
func labelsOf(metric string, cluster mesh.ClusterName, k edgeKey, label, value string) labels.Labels {
	from, to := k.from.Cluster, k.to.Cluster
	if k.by == topology.ByWaypoint || k.by == topology.ByDestination {
		to = string(cluster)
	} else {
		from = string(cluster)
	}
	set := []string{
		model.MetricNameLabel, metric, "cluster", string(cluster), "reporter", string(k.by),
		"source_cluster", from, "source_namespace", k.from.Namespace, "source_service", k.from.Service, "source_principal", string(k.from.Principal),
		"destination_cluster", to, "destination_namespace", k.to.Namespace, "destination_service", k.to.Service,
	}
	if label != "" {
		set = append(set, label, value)
	}
	full := set[:0]
	for i := 0; i < len(set); i += 2 {
		if set[i+1] != "" {
			full = append(full, set[i], set[i+1])
		}
	}
	return labels.FromStrings(full...)
}

// write appends all totals of a cluster as of the report's end, and forgets edges that have been idle for long.
func (s *Store) write(app storage.Appender, c *cluster, r *topology.Report) (n uint64, err error) {
	at := r.To.UnixMilli()
	for k, e := range c.edges {
		if r.To.Sub(e.seen) > topology.IdleAfter {
			s.series -= len(e.counters)
			if e.duration != nil {
				s.series--
			}
			delete(c.edges, k)
			continue
		}
		for _, x := range e.counters {
			if x.ref, err = app.Append(x.ref, x.labels, at, x.value); err != nil {
				return n, err
			}
			n++
		}
		if e.duration != nil {
			if e.ref, err = app.AppendHistogram(e.ref, e.labels, at, nil, native(e.duration)); err != nil {
				return n, err
			}
			n++
		}
	}
	for _, p := range r.Probes {
		if p.Sent == 0 {
			continue
		}
		rtt := math.NaN()
		if p.Lost < p.Sent {
			rtt = float64(p.Mean) / float64(time.Millisecond)
		}
		for metric, v := range map[string]float64{MetricRTT: rtt, MetricLoss: float64(p.Lost) / float64(p.Sent)} {
			if _, err = app.Append(0, labels.FromStrings(model.MetricNameLabel, metric, "cluster", string(r.Cluster), "peer", string(p.To)), at, v); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// native is h as Prometheus' native histogram with custom buckets: one series instead of sixteen.
func native(h *topology.Histogram) *histogram.FloatHistogram {
	bounds := topology.Bounds()
	return &histogram.FloatHistogram{
		Schema: histogram.CustomBucketsSchema, Count: h.Count(), Sum: h.Sum, CustomValues: bounds[:],
		PositiveSpans: []histogram.Span{{Offset: 0, Length: topology.NumBuckets}}, PositiveBuckets: append([]float64(nil), h.Buckets[:]...),
	}
}

// Stats tells how the store is doing.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Series = s.series
	oldest := s.db.Head().MinTime()
	for _, b := range s.db.Blocks() {
		out.Bytes += b.Size()
		oldest = min(oldest, b.MinTime())
	}
	out.Bytes += s.db.Head().Size()
	if oldest > 0 && oldest < math.MaxInt64 {
		out.Oldest = time.UnixMilli(oldest).UTC()
	}
	return out
}
