package telemetry_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/telemetry"
	"ambitmesh.dev/ambit/internal/telemetry/wire"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/topology/demo"
	"ambitmesh.dev/ambit/internal/traces"
)

// run runs a server's telemetry until the test ends or stop is called.
func run(t *testing.T, cfg telemetry.Config) (tel *telemetry.Telemetry, stop func()) {
	t.Helper()
	tel = telemetry.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tel.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return tel, stop
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func batches(t *testing.T, w *demo.World, at time.Time) (out []relay.TelemetryBatch) {
	t.Helper()
	for _, r := range w.Next(at) {
		data, err := wire.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, relay.TelemetryBatch{Cluster: r.Cluster, Agent: "1", Kind: relay.TelemetryReport, Data: data})
	}
	return out
}

func span(id, parent byte, kind tracepb.Span_SpanKind, at time.Time, d time.Duration) []byte {
	s := &tracepb.Span{TraceId: make([]byte, 16), SpanId: make([]byte, 8), Name: "op", Kind: kind, StartTimeUnixNano: uint64(at.UnixNano()), EndTimeUnixNano: uint64(at.Add(d).UnixNano())}
	s.TraceId[0], s.SpanId[0] = 7, id
	if parent != 0 {
		s.ParentSpanId = make([]byte, 8)
		s.ParentSpanId[0] = parent
	}
	data, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{s}}}}}})
	if err != nil {
		panic(err)
	}
	return data
}

// What agents send is on the map at once, in history and in traces soon, and still there after a restart.
func TestTelemetry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	now := time.Now()
	sessions := func() []relay.SessionInfo {
		return []relay.SessionInfo{
			{Cluster: "cluster-1", Connected: true, RTT: time.Millisecond},
			{Cluster: "cluster-2", Connected: true, RTT: 4 * time.Millisecond, Offset: -time.Hour},
			{Cluster: "silent", Connected: true, RTT: time.Millisecond},
			{Cluster: "away", Since: now.Add(-time.Hour)},
		}
	}
	tel, stop := run(t, telemetry.Config{Folder: dir, Sessions: sessions})
	w := demo.New(demo.Small())
	for i := range 8 {
		for _, b := range batches(t, w, now.Add(time.Duration(i-7)*topology.Interval)) {
			tel.Take(b)
		}
	}
	v, err := tel.Table().Snapshot(topology.Query{Level: topology.LevelService}, now)
	if err != nil || len(v.Edges) < 80 {
		t.Fatalf("%d edges, %v", len(v.Edges), err)
	}
	tel.Take(relay.TelemetryBatch{Cluster: "cluster-1", Kind: relay.TelemetryTraces, Data: span(1, 0, tracepb.Span_SPAN_KIND_CLIENT, now, 100*time.Millisecond)})
	tel.Take(relay.TelemetryBatch{Cluster: "cluster-2", Kind: relay.TelemetryTraces, Data: span(2, 1, tracepb.Span_SPAN_KIND_SERVER, now.Add(time.Hour+20*time.Millisecond), 50*time.Millisecond)})
	tel.Take(relay.TelemetryBatch{Cluster: "cluster-1", Kind: relay.TelemetryTraces, Data: []byte("nonsense")})
	tel.Take(relay.TelemetryBatch{Cluster: "cluster-1", Kind: relay.TelemetryReport, Data: []byte("nonsense")})

	check := func(tel *telemetry.Telemetry) {
		t.Helper()
		id := traces.TraceID{7}
		var tr *traces.Trace
		wait(t, "the trace, whole, on one clock", func() bool {
			tr, err = tel.Trace(t.Context(), id, false)
			return err == nil && len(tr.Spans) == 2 && tr.Clusters[1].Known
		})
		if tr.Duration != 100*time.Millisecond || tr.Spans[1].At != 20*time.Millisecond || len(tr.Transits) != 1 {
			t.Errorf("trace %+v", tr)
		}
		h, err := tel.History()
		if err != nil {
			t.Fatal(err)
		}
		wait(t, "history", func() bool {
			r, err := h.Query(t.Context(), `count(sum by (destination_service)(rate(mesh_edge_requests_total[2m])))`, now)
			if err != nil {
				t.Fatal(err)
			}
			vec, _ := r.Value.(promql.Vector)
			return len(vec) == 1 && vec[0].F > 5
		})
	}
	check(tel)
	c, err := tel.Coverage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	missing := map[mesh.ClusterName]string{}
	for _, x := range c.Clusters {
		missing[x.Name] = strings.Join(x.Missing, "; ")
	}
	if !c.Kept || c.Refused != 2 || c.Dropped != 0 || !strings.Contains(missing["silent"], "too old") || !strings.Contains(missing["away"], "not connected") || missing["cluster-1"] != "" {
		t.Errorf("coverage %+v, missing %v", c, missing)
	}
	stop()
	tel, _ = run(t, telemetry.Config{Folder: dir, Sessions: sessions})
	check(tel)
}

// A disk that can't be written to is said, and the map goes on.
func TestNoDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, folder := range map[string]string{"none wanted": "", "not a folder": file} {
		tel, stop := run(t, telemetry.Config{Folder: folder})
		now := time.Now()
		for _, b := range batches(t, demo.New(demo.Small()), now) {
			tel.Take(b)
		}
		if v, err := tel.Table().Snapshot(topology.Query{}, now); err != nil || len(v.Edges) == 0 {
			t.Errorf("%s: no map: %v", name, err)
		}
		if _, err := tel.History(); !errors.Is(err, telemetry.ErrNotKept) {
			t.Errorf("%s: %v", name, err)
		}
		if c, err := tel.Coverage(t.Context()); err != nil || c.Kept || c.Why == "" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		stop()
	}
}
