package store_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/telemetry/store"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/topology/demo"
)

func noon() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

func open(tb testing.TB, dir string) *store.Store {
	tb.Helper()
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// report is 150 requests, 15 of them failed, of 20 ms each, in cluster c's interval that ends at to.
func report(c mesh.ClusterName, n uint64, to time.Time) *topology.Report {
	o := topology.Observation{
		By: topology.ByWaypoint, From: topology.End{Namespace: "shop", Service: "cart", Principal: "p"}, To: topology.End{Namespace: "pay", Service: "api"}, Protocol: "http",
		Requests: topology.Classes{Success: 135, ServerError: 15}, Latency: &topology.Histogram{Sum: 3000}, Failures: map[string]float64{"DENY": 30},
	}
	o.Latency.Buckets[topology.BucketOf(20)] = 150
	return &topology.Report{
		Cluster: c, Epoch: "e", Sequence: n, From: to.Add(-topology.Interval), To: to, Edges: []topology.Observation{o},
		Probes: []topology.ProbeResult{{To: "other", Sent: 2, Lost: 1, Mean: 12 * time.Millisecond}},
	}
}

func scalar(t *testing.T, s *store.Store, expr string, at time.Time) float64 {
	t.Helper()
	r, err := s.Query(t.Context(), expr, at)
	if err != nil {
		t.Fatal(err)
	}
	v, ok := r.Value.(promql.Vector)
	if !ok || len(v) != 1 {
		t.Fatalf("%s: %v", expr, r.Value)
	}
	return v[0].F
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6*math.Max(1, math.Abs(b)) }

func TestHistory(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	at := noon()
	for i := range 40 {
		at = at.Add(topology.Interval)
		if err := s.Append(t.Context(), report("c1", uint64(i+1), at)); err != nil {
			t.Fatal(err)
		}
		if err := s.Append(t.Context(), report("c1", uint64(i+1), at)); err != nil { // replayed
			t.Fatal(err)
		}
	}
	for expr, want := range map[string]float64{
		`sum(rate(mesh_edge_requests_total{destination_cluster="c1",destination_service="api"}[5m]))`:             10,
		`sum(rate(mesh_edge_requests_total{class="server_error"}[5m])) / sum(rate(mesh_edge_requests_total[5m]))`: 0.1,
		`histogram_quantile(0.5, sum(rate(mesh_edge_duration_ms[5m])))`:                                           17.5,
		`sum(rate(mesh_edge_failures_total{flag="DENY"}[5m]))`:                                                    2,
		`mesh_link_rtt_ms{cluster="c1",peer="other"}`:                                                             12,
		`mesh_link_loss_ratio`:                                 0.5,
		`count({source_cluster="c2"} or mesh_link_loss_ratio)`: 1,
	} {
		if got := scalar(t, s, expr, at); !near(got, want) {
			t.Errorf("%s = %v, want %v", expr, got, want)
		}
	}
	points, err := s.EdgeSeries(t.Context(), topology.Key{From: topology.Party{Cluster: "a", Namespace: "shop", Service: "cart"}, To: topology.Party{Cluster: "c1", Namespace: "pay", Service: "api"}}, at.Add(-5*time.Minute), at, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if last := points[len(points)-1]; len(points) != 6 || !near(last.Rate, 10) || !near(last.Errors, 0.1) || !near(last.P50, 17.5) || !near(last.Denied, 2) || !math.IsNaN(last.Opened) {
		t.Errorf("%d points, last %+v", len(points), last)
	}
	// What Grafana reads.
	r, err := s.QueryRange(t.Context(), `sum(rate(mesh_edge_requests_total[1m]))`, at.Add(-time.Minute), at, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(r)
	if err != nil || !strings.HasPrefix(string(data), `{"resultType":"matrix","result":[{"metric":{},"values":[[`) {
		t.Errorf("%s, %v", data, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// After a restart the past is there, and counters that begin anew are no loss.
	s = open(t, dir)
	defer s.Close()
	for i := range 20 {
		at = at.Add(topology.Interval)
		if err := s.Append(t.Context(), report("c1", uint64(i+1), at)); err != nil {
			t.Fatal(err)
		}
	}
	if got := scalar(t, s, `sum(rate(mesh_edge_requests_total[15m]))`, at); got < 9 || got > 10.5 {
		t.Errorf("over the restart: %v/s", got)
	}
	if st := s.Stats(); st.Series != 4 || st.Dropped != 0 || st.Oldest.After(noon().Add(time.Minute)) || st.Bytes == 0 {
		t.Errorf("stats %+v", st)
	}
}

// An agent that was cut off sends what it kept, older than what others sent meanwhile.
func TestReplay(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	at := noon().Add(50 * time.Minute)
	if err := s.Append(t.Context(), report("c1", 1, at)); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if err := s.Append(t.Context(), report("c2", uint64(i+1), noon().Add(time.Duration(i)*topology.Interval))); err != nil {
			t.Fatal(err)
		}
	}
	if got := scalar(t, s, `sum(rate(mesh_edge_requests_total{cluster="c2"}[2m]))`, noon().Add(2*time.Minute+15*time.Second)); !near(got, 10) {
		t.Errorf("replayed: %v/s", got)
	}
}

func TestBadQueries(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	if _, err := s.Query(t.Context(), `sum(`, noon()); !errors.Is(err, store.ErrBadQuery) {
		t.Errorf("unfinished: %v", err)
	}
	if _, err := s.QueryRange(t.Context(), `up`, noon(), noon().Add(24*time.Hour), time.Second); !errors.Is(err, store.ErrBadQuery) {
		t.Errorf("too many points: %v", err)
	}
	if _, err := s.EdgeSeries(t.Context(), topology.Key{To: topology.Party{Cluster: `x"} or up{a="`}}, noon(), noon().Add(time.Minute), time.Minute); err != nil {
		t.Errorf("a name with quotes: %v", err)
	}
}

// BenchmarkAllEdgeP99 is the p99 of 10,000 edges over five minutes: < 0.5 CPU-seconds.
func BenchmarkAllEdgeP99(b *testing.B) {
	s := open(b, b.TempDir())
	defer s.Close()
	w := demo.New(demo.Large())
	at := noon()
	for range 24 {
		at = at.Add(topology.Interval)
		for _, r := range w.Next(at) {
			if err := s.Append(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
	}
	n := 0
	for b.Loop() {
		r, err := s.Query(b.Context(), `histogram_quantile(0.99, sum by (source_cluster,source_namespace,source_service,destination_cluster,destination_namespace,destination_service)(rate(mesh_edge_duration_ms[5m])))`, at)
		if err != nil {
			b.Fatal(err)
		}
		v, _ := r.Value.(promql.Vector)
		n = len(v)
	}
	b.ReportMetric(float64(n), "edges")
	b.ReportMetric(float64(s.Stats().Series), "series")
}

// BenchmarkAppend is an interval of the large mesh: 10,000 edges, seen from both sides.
func BenchmarkAppend(b *testing.B) {
	s := open(b, b.TempDir())
	defer s.Close()
	w := demo.New(demo.Large())
	at := noon()
	samples := func() float64 { return float64(s.Stats().Samples) }
	before := samples()
	for b.Loop() {
		at = at.Add(topology.Interval)
		for _, r := range w.Next(at) {
			if err := s.Append(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric((samples()-before)/float64(b.N), "samples/op")
}
