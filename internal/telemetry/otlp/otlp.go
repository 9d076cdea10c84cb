// Package otlp takes spans from the applications and proxies of the agent's cluster, by OTLP over gRPC (port 4317), and hands them on as they came.
//
// In: ExportTraceServiceRequests. Out: the same bytes, joined to batches: a protobuf message of repeated fields and another one after it are one message with
// both. The agent never decodes a span, which is why it links no OTLP and stays small. It must not wait for whoever takes the batches, and must not hold more than
// maxHeld bytes: an exporter that sends more than may be forwarded is told so (RESOURCE_EXHAUSTED), and does what it is set to do.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // exporters compress
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"ambitmesh.dev/ambit/internal/topology"
)

const (
	maxRequest = 4 << 20
	maxHeld    = 256 << 10 // then a batch goes
	holdFor    = 2 * time.Second
	// perInterval bounds what is forwarded between two reports (15 s): 512 KiB a second.
	perInterval = 8 << 20
)

// Receiver takes spans. New allocates, Serve works.
type Receiver struct {
	put func([]byte)

	mu       sync.Mutex
	held     []byte
	requests int
	passed   int // bytes in this interval
	refused  int
}

// New makes a Receiver that gives batches to put, which must not wait and may keep them.
func New(put func([]byte)) *Receiver { return &Receiver{put: put} }

// Serve accepts exporters until ctx ends; it returns nil then. What is held goes at the end.
func (r *Receiver) Serve(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(
		grpc.ForceServerCodec(raw{}), grpc.MaxRecvMsgSize(maxRequest), grpc.MaxHeaderListSize(16<<10), grpc.MaxConcurrentStreams(16), grpc.ConnectionTimeout(10*time.Second),
		grpc.ReadBufferSize(8<<10), grpc.WriteBufferSize(4<<10), grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 5 * time.Minute, Time: time.Minute, Timeout: 10 * time.Second}),
	)
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "opentelemetry.proto.collector.trace.v1.TraceService", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: export}}, Metadata: "opentelemetry/proto/collector/trace/v1/trace_service.proto",
	}, r)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	tick := time.NewTicker(holdFor)
	defer tick.Stop()
	defer r.flush()
	for {
		select {
		case <-tick.C:
			r.flush()
		case err := <-served:
			return fmt.Errorf("OTLP on %s: %w", l.Addr(), err)
		case <-ctx.Done():
			srv.Stop()
			if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("OTLP on %s: %w", l.Addr(), err)
			}
			return nil
		}
	}
}

// export is the one method; the answer is an empty ExportTraceServiceResponse: all was taken.
//
//nolint:revive // grpc.MethodDesc wants its arguments in this order
func export(srv any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var b []byte
	if err := decode(&b); err != nil {
		return nil, err
	}
	r, ok := srv.(*Receiver)
	if !ok {
		return nil, status.Error(codes.Internal, "no receiver")
	}
	return &[]byte{}, r.take(b)
}

func (r *Receiver) take(b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	if r.passed+len(b) > perInterval {
		r.refused++
		return status.Errorf(codes.ResourceExhausted, "the agent forwards at most %d MiB of spans in %s: sample less", perInterval>>20, topology.Interval)
	}
	r.passed += len(b)
	r.held = append(r.held, b...)
	if len(r.held) >= maxHeld {
		r.flushLocked()
	}
	return nil
}

func (r *Receiver) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushLocked()
}

func (r *Receiver) flushLocked() {
	if len(r.held) > 0 {
		r.put(r.held)
		r.held = nil
	}
}

// Report says what came since it was called last, for the cluster's report.
func (r *Receiver) Report() ([]topology.Scrape, []topology.CapHit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var scrapes []topology.Scrape
	var hits []topology.CapHit
	if r.requests > 0 {
		scrapes = append(scrapes, topology.Scrape{Source: "otlp", Targets: 1, Up: 1, Series: r.requests, Detail: fmt.Sprintf("%d KiB of spans", r.passed>>10)})
	}
	if r.refused > 0 {
		hits = append(hits, topology.CapHit{Cap: "spanBytes", Limit: perInterval, Dropped: r.refused})
	}
	r.requests, r.passed, r.refused = 0, 0, 0
	return scrapes, hits
}

// raw is a codec that leaves messages as they are.
type raw struct{}

// Name is that of the content type: exporters send application/grpc+proto, or none.
func (raw) Name() string { return "proto" }

// Marshal gives the bytes.
func (raw) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("a %T is no message", v)
	}
	return *b, nil
}

// Unmarshal keeps the bytes.
func (raw) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a %T is no message", v)
	}
	*b = append([]byte(nil), data...)
	return nil
}
