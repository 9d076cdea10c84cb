package traces

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"ambitmesh.dev/ambit/internal/mesh"
)

var (
	noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	tid  = TraceID{1}
)

const msec = time.Millisecond

func sid(n int) (s SpanID) {
	binary.BigEndian.PutUint64(s[:], uint64(n))
	return s
}

func span(id, parent int, cluster mesh.ClusterName, service string, kind Kind, at, d time.Duration) Span {
	return Span{Trace: tid, ID: sid(id), Parent: sid(parent), Cluster: cluster, Service: service, Name: "op", Kind: kind, Start: noon.Add(at), Duration: d}
}

// three is a request over three clusters: web calls checkout in c2, which calls ledger in c3. c3's clock is an hour ahead.
func three() []Span {
	return []Span{
		span(3, 2, "c2", "checkout", Server, 20*msec, 60*msec),
		span(1, 0, "c1", "web", Server, 0, 100*msec),
		span(2, 1, "c1", "web", Client, 5*msec, 90*msec),
		span(4, 3, "c2", "checkout", Client, 25*msec, 40*msec),
		span(5, 4, "c3", "ledger", Server, 35*msec+time.Hour, 20*msec),
		span(5, 4, "c3", "ledger", Server, 35*msec+time.Hour, 20*msec), // replayed
	}
}

func clocks() []Clock {
	return []Clock{{Cluster: "c1", Known: true}, {Cluster: "c2", Known: true}, {Cluster: "c3", Offset: -time.Hour, Error: 2 * msec, Known: true}}
}

func TestAssemble(t *testing.T) {
	tr := Assemble(tid, three(), Options{Clocks: clocks(), RTT: func(a, b mesh.ClusterName) (time.Duration, bool) { return 12 * msec, a == "c1" && b == "c2" }})
	type row struct {
		Service string
		At      time.Duration
		Depth   int
		Parent  int
		Crit    time.Duration
	}
	var got []row
	for _, s := range tr.Spans {
		got = append(got, row{s.Service + " " + string(s.Kind), s.At, s.Depth, s.ParentIndex, s.Critical})
	}
	want := []row{
		{"web server", 0, 0, -1, 10 * msec},
		{"web client", 5 * msec, 1, 0, 30 * msec},
		{"checkout server", 20 * msec, 2, 1, 20 * msec},
		{"checkout client", 25 * msec, 3, 2, 20 * msec},
		{"ledger server", 35 * msec, 4, 3, 20 * msec},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if tr.Duration != 100*msec || !tr.Start.Equal(noon) {
		t.Errorf("from %s, %s long", tr.Start, tr.Duration)
	}
	sum := time.Duration(0)
	for i, s := range tr.Critical {
		sum += s.To - s.From
		if i > 0 && s.From != tr.Critical[i-1].To {
			t.Errorf("critical path jumps: %+v", tr.Critical)
		}
	}
	if sum != tr.Duration {
		t.Errorf("critical path is %s of %s", sum, tr.Duration)
	}
	rtt := 12 * msec
	wantTransits := []Transit{
		{1, 2, 15 * msec, 15 * msec, "ztunnel -> east-west gateway of c2 -> ztunnel", &rtt},
		{3, 4, 10 * msec, 10 * msec, "ztunnel -> east-west gateway of c3 -> ztunnel", nil},
	}
	if diff := cmp.Diff(wantTransits, tr.Transits); diff != "" {
		t.Error(diff)
	}
	if len(tr.Notes) != 1 || !strings.HasPrefix(tr.Notes[0], "c3 shifted by -1h0m0s") {
		t.Errorf("notes %q", tr.Notes)
	}
}

// The shift can be undone: raw times are those that came.
func TestRaw(t *testing.T) {
	tr := Assemble(tid, three(), Options{Clocks: clocks(), Raw: true})
	if tr.Duration != time.Hour+55*msec || tr.Spans[4].Shift != 0 {
		t.Errorf("raw: %s long, shift %s", tr.Duration, tr.Spans[4].Shift)
	}
}

// What the heartbeats leave is mended within limits, said on the span; an unknown clock that is an hour off is not.
func TestResidualSkew(t *testing.T) {
	in := []Span{span(1, 0, "c1", "web", Client, 0, 50*msec), span(2, 1, "c2", "api", Server, -30*msec, 40*msec), span(3, 2, "c2", "api", Internal, -25*msec, 10*msec)}
	tr := Assemble(tid, in, Options{})
	if tr.Spans[1].At != 5*msec || tr.Spans[1].Warning == "" || tr.Spans[2].At != 10*msec {
		t.Errorf("spans %+v: want the callee centred, with its child", tr.Spans)
	}
	in[1].Start = in[1].Start.Add(time.Hour)
	tr = Assemble(tid, in[:2], Options{})
	if !strings.Contains(tr.Spans[1].Warning, "not moved") || tr.Spans[1].Shift != 0 {
		t.Errorf("an hour off: %+v", tr.Spans[1])
	}
}

func TestMissingParent(t *testing.T) {
	in := three()[:4]
	in = append(in[:1], in[2:]...) // web's server span has not come
	tr := Assemble(tid, in, Options{Clocks: clocks(), Gaps: []Gap{{Cluster: "c1", From: noon.Add(-time.Minute), To: noon.Add(time.Minute)}, {Cluster: "c9", From: noon.Add(time.Hour)}}})
	if want := "parent not received (c1's agent offline 11:59:00-12:01:00)"; tr.Spans[0].Missing != want {
		t.Errorf("missing: %q, want %q", tr.Spans[0].Missing, want)
	}
	if tr.Spans[0].ParentIndex != -1 {
		t.Error("a span without parent is a root")
	}
}

func TestLoop(t *testing.T) {
	tr := Assemble(tid, []Span{span(1, 2, "c", "a", Server, 0, 9), span(2, 3, "c", "a", Server, 1, 8), span(3, 1, "c", "a", Server, 2, 7)}, Options{})
	if len(tr.Spans) != 3 {
		t.Errorf("%d spans of a loop of 3", len(tr.Spans))
	}
}

func TestTenThousand(t *testing.T) {
	var in []Span
	for i := 1; i <= 10_000; i++ { // a chain
		in = append(in, span(i, i-1, mesh.ClusterName(fmt.Sprint("c", i%3)), "s", Server, time.Duration(i), time.Duration(20_000-2*i)))
	}
	tr := Assemble(tid, in, Options{})
	if len(tr.Spans) != 10_000 || tr.Spans[9999].Depth != 9999 {
		t.Errorf("%d spans, depth %d", len(tr.Spans), tr.Spans[len(tr.Spans)-1].Depth)
	}
	for i := range in {
		in[i].ID = sid(i + 1 + 20_000)
		in[i].Parent = SpanID{}
	}
	for i := range MaxSpans {
		in = append(in, span(50_000+i, 0, "c", "s", Internal, 0, 1))
	}
	if tr := Assemble(tid, in, Options{}); len(tr.Spans) != MaxSpans || tr.Truncated != 10_000 {
		t.Errorf("%d spans shown, %d not", len(tr.Spans), tr.Truncated)
	}
}

func TestCompare(t *testing.T) {
	a := Assemble(tid, three(), Options{Clocks: clocks()})
	slow := three()
	slow[4].Duration, slow[5].Duration = 28*msec, 28*msec
	c := Compare(a, Assemble(TraceID{2}, slow, Options{Clocks: clocks()}))
	if o := c.Operations[0]; o.Service != "checkout" && o.Service != "ledger" || o.CriticalB == o.CriticalA {
		t.Errorf("first operation %+v", o)
	}
}

func otlp(tb testing.TB, service string, spans ...*tracepb.Span) []byte {
	tb.Helper()
	str := func(k, v string) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: k, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}}
	}
	data, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{str("service.name", service), str("k8s.namespace.name", "shop"), str("istio.cluster_id", "forged")}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}})
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func TestDecode(t *testing.T) {
	id, s := tid, sid(1)
	data := otlp(t, "<b>web</b>", &tracepb.Span{
		TraceId: id[:], SpanId: s[:], Name: strings.Repeat("é", 2000), Kind: tracepb.Span_SPAN_KIND_SERVER, StartTimeUnixNano: uint64(noon.UnixNano()), EndTimeUnixNano: uint64(noon.Add(msec).UnixNano()),
		Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no"},
	}, &tracepb.Span{TraceId: []byte("short"), SpanId: s[:]})
	spans, err := Decode(data, "c1")
	if !errors.Is(err, ErrNoIDs) || len(spans) != 1 {
		t.Fatalf("%d spans, %v", len(spans), err)
	}
	got := spans[0]
	if got.Cluster != "c1" || got.Service != "<b>web</b>" || got.Namespace != "shop" || got.Kind != Server || !got.Error || got.Duration != msec || len(got.Name) != MaxValue {
		t.Errorf("%+v", got)
	}
	if _, err := Decode([]byte("\xff\xff\xff"), "c1"); err == nil || errors.Is(err, ErrNoIDs) {
		t.Errorf("garbage: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	id, s := tid, sid(1)
	f.Add(otlp(f, "web", &tracepb.Span{TraceId: id[:], SpanId: s[:], StartTimeUnixNano: 1 << 63}))
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		spans, _ := Decode(data, "c")
		byTrace := map[TraceID][]Span{}
		for _, sp := range spans {
			byTrace[sp.Trace] = append(byTrace[sp.Trace], sp)
		}
		for id, of := range byTrace {
			if tr := Assemble(id, of, Options{}); len(tr.Spans) == 0 || len(tr.Spans) > len(of) {
				t.Fatalf("%d spans of %d", len(tr.Spans), len(of))
			}
		}
	})
}

func newStore(t *testing.T, cfg StoreConfig) *Store {
	t.Helper()
	cfg.File = filepath.Join(t.TempDir(), "traces.db")
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	s := newStore(t, StoreConfig{})
	in := three()
	for _, sp := range in { // each cluster sends its own, the root late
		if err := s.Add(t.Context(), noon, []Span{sp}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get(t.Context(), tid)
	if err != nil || len(got) != len(in) {
		t.Fatalf("%d spans, %v", len(got), err)
	}
	if diff := cmp.Diff(Assemble(tid, in, Options{Clocks: clocks()}), Assemble(tid, got, Options{Clocks: clocks()})); diff != "" {
		t.Error(diff)
	}
	if _, err := s.Get(t.Context(), TraceID{9}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	other := span(7, 0, "c2", "batch", Internal, time.Minute, 3*time.Second)
	other.Trace, other.Error = TraceID{2}, true
	if err := s.Add(t.Context(), noon, []Span{other}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		q    Query
		want []byte
	}{
		"all":      {Query{}, []byte{2, 1}},
		"service":  {Query{Service: "ledger"}, []byte{1}},
		"cluster":  {Query{Cluster: "c1"}, []byte{1}},
		"both":     {Query{Cluster: "c1", Service: "ledger"}, nil},
		"errors":   {Query{Errors: true}, []byte{2}},
		"duration": {Query{MinDuration: time.Second, MaxDuration: time.Minute}, []byte{2}},
		"time":     {Query{From: noon.Add(time.Second), To: noon.Add(time.Hour)}, []byte{2}},
		"quote":    {Query{Name: "' OR 1=1 --"}, nil},
	} {
		found, err := s.Search(t.Context(), c.q)
		if err != nil {
			t.Fatal(err)
		}
		var ids []byte
		for _, f := range found {
			ids = append(ids, f.ID[0])
		}
		if diff := cmp.Diff(c.want, ids); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	found, err := s.Search(t.Context(), Query{Service: "ledger"})
	if err != nil {
		t.Fatal(err)
	}
	if f := found[0]; f.Service != "web" || !f.Root || f.Spans != 6 || !cmp.Equal(f.Clusters, []mesh.ClusterName{"c1", "c2", "c3"}) || len(f.Services) != 3 {
		t.Errorf("summary %+v", f)
	}
}

func TestPrune(t *testing.T) {
	s := newStore(t, StoreConfig{Age: time.Hour, Bytes: 600 << 10})
	for i := range 400 {
		sp := span(1, 0, "c", "s", Internal, 0, 1)
		sp.Trace = TraceID{byte(i >> 8), byte(i), 1}
		for j := range 8 { // values that don't compress
			h := fmt.Sprintf("%x", sha(i*8+j))
			sp.Attributes = append(sp.Attributes, Attribute{fmt.Sprint(j), strings.Repeat(h, 1)})
		}
		if err := s.Add(t.Context(), noon.Add(time.Duration(i)*time.Minute/4), []Span{sp}); err != nil {
			t.Fatal(err)
		}
	}
	now := noon.Add(100 * time.Minute)
	n, err := s.Prune(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n < 160 || st.Bytes > 600<<10 || st.Traces != 400-n || st.Oldest.Before(now.Add(-time.Hour)) {
		t.Errorf("pruned %d, left %+v", n, st)
	}
	if _, err := s.Get(t.Context(), TraceID{399 >> 8, 399 & 255, 1}); err != nil {
		t.Errorf("the newest went: %v", err)
	}
}

func sha(n int) [32]byte { return mesh.FingerprintOf(binary.BigEndian.AppendUint64(nil, uint64(n))) }

func BenchmarkAdd(b *testing.B) {
	s, err := Open(b.Context(), StoreConfig{File: filepath.Join(b.TempDir(), "t.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	n := 0
	for b.Loop() {
		var in []Span
		for range 100 { // 100 traces of 5 spans: a second's worth
			n++
			for j := range 5 {
				sp := span(j+1, j, "c", "s", Server, time.Duration(n), msec)
				binary.BigEndian.PutUint64(sp.Trace[:], uint64(n))
				sp.Attributes = []Attribute{{"http.method", "GET"}, {"http.url", "http://api.shop/" + fmt.Sprint(n)}, {"peer", "10.0.0.1"}}
				in = append(in, sp)
			}
		}
		if err := s.Add(b.Context(), noon, in); err != nil {
			b.Fatal(err)
		}
	}
	st, err := s.Stats(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(st.Bytes)/float64(5*n), "B/span")
}
