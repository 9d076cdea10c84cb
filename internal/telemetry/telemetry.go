// Package telemetry is the server's end of what agents saw: it takes their batches, keeps the map of the mesh, and writes history and spans to disk.
//
// In: relay.TelemetryBatches, each with the cluster of its certificate; what is known of sessions. Out: the edge table (Table), history (History), joined traces (Trace,
// SearchTraces), and what can not be seen (Coverage). It must not make a session wait: what the disk can't take in time is dropped, counted and said; the map is
// up to date whatever the disk does.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/telemetry/store"
	"ambitmesh.dev/ambit/internal/telemetry/wire"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/traces"
)

// Config is what New needs.
type Config struct {
	// Folder keeps history and spans; empty: only the map is kept, in memory.
	Folder       string
	MetricsAge   time.Duration // 0: 15 days
	MetricsBytes int64         // 0: 10 GiB
	TracesAge    time.Duration // 0: 7 days
	TracesBytes  int64         // 0: 4 GiB
	Table        topology.Config
	// Sessions tells how agents are connected; called about once a second. nil: nothing is known of clocks and gaps.
	Sessions func() []relay.SessionInfo
	Log      *slog.Logger
}

const (
	queued     = 2048
	queuedSize = 64 << 20
	pruneEvery = 10 * time.Minute
	retryOpen  = 30 * time.Second
	flushEvery = time.Second
)

// ErrNotKept is the error of a question for history or traces while there is no store of them.
var ErrNotKept = errors.New("not kept")

// Telemetry joins the parts. New allocates, Run works.
type Telemetry struct {
	cfg     Config
	table   *topology.Table
	queue   chan item
	waiting atomic.Int64 // bytes
	dropped atomic.Uint64
	bad     atomic.Uint64
	stores  atomic.Pointer[stores]
	opening atomic.Pointer[error]
	pairs   *pairs // of the writing goroutine

	mu     sync.Mutex
	clocks map[mesh.ClusterName]traces.Clock
	gaps   []traces.Gap
	agents map[mesh.ClusterName]relay.SessionInfo
}

type stores struct {
	history *store.Store
	traces  *traces.Store
}

// item waits to be written.
type item struct {
	report  *topology.Report
	cluster mesh.ClusterName
	spans   []byte
	at      time.Time
	size    int64
}

// New allocates.
func New(cfg Config) *Telemetry {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Telemetry{cfg: cfg, table: topology.New(cfg.Table), queue: make(chan item, queued), pairs: newPairs(), clocks: map[mesh.ClusterName]traces.Clock{}, agents: map[mesh.ClusterName]relay.SessionInfo{}}
}

// Table is the map of the mesh.
func (t *Telemetry) Table() *topology.Table { return t.table }

// History answers questions about the past. Errors wrap ErrNotKept.
func (t *Telemetry) History() (*store.Store, error) {
	s, err := t.open()
	if err != nil {
		return nil, err
	}
	return s.history, nil
}

func (t *Telemetry) open() (*stores, error) {
	if s := t.stores.Load(); s != nil {
		return s, nil
	}
	if t.cfg.Folder == "" {
		return nil, fmt.Errorf("history and traces are %w: the server has no --telemetry-dir", ErrNotKept)
	}
	if err := t.opening.Load(); err != nil {
		return nil, fmt.Errorf("history and traces are %w at present: %w", ErrNotKept, *err)
	}
	return nil, fmt.Errorf("history and traces are %w yet: the server is starting", ErrNotKept)
}

// Take takes a batch; it is relay.HubConfig.OnTelemetry.
func (t *Telemetry) Take(b relay.TelemetryBatch) {
	now := time.Now()
	it := item{cluster: b.Cluster, at: now, size: int64(len(b.Data))}
	switch b.Kind {
	case relay.TelemetryReport:
		r, err := wire.Decode(b.Data, b.Cluster, b.Agent, b.Offset)
		if err == nil {
			if err = t.table.Apply(r, now); errors.Is(err, topology.ErrDuplicate) {
				return
			}
		}
		if err != nil {
			t.bad.Add(1)
			t.cfg.Log.Debug("telemetry refused", "cluster", b.Cluster, "error", err)
			return
		}
		it.report = r
	case relay.TelemetryTraces:
		it.spans = b.Data
	default:
		return // of a newer agent
	}
	if t.cfg.Folder == "" {
		return
	}
	if t.waiting.Add(it.size) > queuedSize {
		t.waiting.Add(-it.size)
		t.dropped.Add(1)
		return
	}
	select {
	case t.queue <- it:
	default:
		t.waiting.Add(-it.size)
		t.dropped.Add(1)
	}
}

// Forget drops a cluster from the map. Its history stays until it is too old.
func (t *Telemetry) Forget(c mesh.ClusterName) {
	t.table.Forget(c)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.clocks, c)
	delete(t.agents, c)
}

// Run writes what comes until ctx ends; it returns nil then. Stores that can't be opened are tried again: the server serves without them.
func (t *Telemetry) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { t.watchSessions(ctx) })
	if t.cfg.Folder == "" {
		<-ctx.Done()
		return nil
	}
	for ctx.Err() == nil {
		s, err := t.openStores(ctx)
		if err != nil {
			t.opening.Store(&err)
			t.cfg.Log.Error("telemetry is not kept", "folder", t.cfg.Folder, "error", err, "retryIn", retryOpen)
			select {
			case <-ctx.Done():
			case <-time.After(retryOpen):
			}
			continue
		}
		t.stores.Store(s)
		t.write(ctx, s)
	}
	if s := t.stores.Swap(nil); s != nil {
		if err := errors.Join(s.history.Close(), s.traces.Close()); err != nil {
			t.cfg.Log.Warn("telemetry store not closed", "error", err)
		}
	}
	return nil
}

func (t *Telemetry) openStores(ctx context.Context) (*stores, error) {
	if err := os.MkdirAll(filepath.Join(t.cfg.Folder, "metrics"), 0o700); err != nil {
		return nil, fmt.Errorf("--telemetry-dir: %w", err)
	}
	h, err := store.Open(store.Config{Dir: filepath.Join(t.cfg.Folder, "metrics"), Age: t.cfg.MetricsAge, Bytes: t.cfg.MetricsBytes, Log: t.cfg.Log})
	if err != nil {
		return nil, err
	}
	s, err := traces.Open(ctx, traces.StoreConfig{File: filepath.Join(t.cfg.Folder, "traces.db"), Age: t.cfg.TracesAge, Bytes: t.cfg.TracesBytes})
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return &stores{history: h, traces: s}, nil
}

// write empties the queue: reports one by one, spans once a second in one transaction.
func (t *Telemetry) write(ctx context.Context, s *stores) {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	var spans []traces.Span
	save := func(ctx context.Context) {
		if len(spans) == 0 {
			return
		}
		if err := s.traces.Add(ctx, time.Now(), spans); err != nil {
			t.dropped.Add(1)
			t.cfg.Log.Warn("spans not kept", "spans", len(spans), "error", err)
		}
		spans = nil
	}
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			save(end)
			return
		case it := <-t.queue:
			t.waiting.Add(-it.size)
			if it.report != nil {
				if err := s.history.Append(ctx, it.report); err != nil && ctx.Err() == nil {
					t.cfg.Log.Warn("history not written", "cluster", it.cluster, "error", err)
				}
				continue
			}
			spans = append(spans, t.spans(it)...)
			if len(spans) > 5000 {
				save(ctx)
			}
		case <-flush.C:
			save(ctx)
		case <-prune.C:
			if n, err := s.traces.Prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
				t.cfg.Log.Warn("old traces not removed", "error", err)
			} else if n > 0 {
				t.cfg.Log.Info("old traces removed", "traces", n)
			}
		}
	}
}

// spans decodes a batch and tells the map what is in it.
func (t *Telemetry) spans(it item) []traces.Span {
	spans, err := traces.Decode(it.spans, it.cluster)
	if err != nil {
		t.bad.Add(1)
		t.cfg.Log.Debug("spans can't be read", "cluster", it.cluster, "error", err)
	}
	for i := range spans {
		t.onMap(t.pairs, &spans[i], it.at)
	}
	return spans
}
