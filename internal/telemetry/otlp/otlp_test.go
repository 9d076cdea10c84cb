package otlp_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	"ambitmesh.dev/ambit/internal/telemetry/otlp"
	"ambitmesh.dev/ambit/internal/traces"
)

const method = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

type sink struct {
	mu  sync.Mutex
	all []byte
}

func (s *sink) put(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, b...)
}

func serve(t *testing.T) (*otlp.Receiver, *grpc.ClientConn, *sink, func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{}
	r := otlp.New(s.put)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, l) }()
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return r, c, s, stop
}

func request(n byte, name string) *tracepb.TracesData {
	id, span := make([]byte, 16), make([]byte, 8)
	id[0], span[0] = 1, n
	return &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{
		{TraceId: id, SpanId: span, Name: name, StartTimeUnixNano: uint64(time.Now().UnixNano())},
	}}}}}}
}

// An exporter's requests, compressed or not, are joined to one message that holds all their spans.
func TestExport(t *testing.T) {
	r, c, s, stop := serve(t)
	for i := range byte(10) {
		var answer tracepb.TracesData // on the wire as empty as an ExportTraceServiceResponse
		if err := c.Invoke(t.Context(), method, request(i+1, "op"), &answer, grpc.UseCompressor(gzip.Name), grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
	scrapes, hits := r.Report()
	if len(scrapes) != 1 || scrapes[0].Series != 10 || len(hits) != 0 {
		t.Errorf("report %+v, %+v", scrapes, hits)
	}
	stop()
	spans, err := traces.Decode(s.all, "c")
	if err != nil || len(spans) != 10 {
		t.Errorf("%d spans, %v", len(spans), err)
	}
}

// A flood is refused, and said so.
func TestFlood(t *testing.T) {
	r, c, _, _ := serve(t)
	var err error
	for range 5 {
		if err = c.Invoke(t.Context(), method, request(1, string(make([]byte, 3<<20))), &tracepb.TracesData{}, grpc.WaitForReady(true)); err != nil {
			break
		}
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("15 MiB: %v", err)
	}
	if _, hits := r.Report(); len(hits) != 1 || hits[0].Cap != "spanBytes" {
		t.Errorf("hits %+v", hits)
	}
	if err := c.Invoke(t.Context(), method, request(1, "again"), &tracepb.TracesData{}); err != nil {
		t.Errorf("in the next interval: %v", err)
	}
}
