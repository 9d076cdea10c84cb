package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Kinds of spans (opentelemetry/proto/trace/v1, Span.SpanKind).
const (
	kindServer = 2
	kindClient = 3
)

// spans are sent by OTLP over gRPC, by hand: a demo that linked OpenTelemetry's SDK would need three times the memory. A nil *spans makes none, and passes
// trace headers on.
type spans struct {
	url      string // http://HOST:PORT
	resource []byte // Resource
	client   *http.Client

	mu   sync.Mutex
	done [][]byte // Spans
}

// maxSpans are kept while nobody takes them.
const maxSpans = 2000

// newSpans sends to endpoint (HOST:PORT); "" for none.
func newSpans(endpoint string, self answer) *spans {
	if endpoint == "" {
		return nil
	}
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetUnencryptedHTTP2(true)
	s := &spans{url: "http://" + endpoint, client: &http.Client{Transport: t, Timeout: 5 * time.Second}}
	for _, kv := range [][2]string{{"service.name", self.Service}, {"k8s.namespace.name", self.Namespace}, {"k8s.pod.name", self.Pod}} {
		s.resource = field(s.resource, 1, keyValue(kv[0], kv[1]))
	}
	return s
}

// span is one that runs.
type span struct {
	spans  *spans
	trace  string // hex
	id     string
	parent string
	name   string
	kind   uint64
	began  time.Time
	passed http.Header // of the request that caused it
}

// start begins a span below the one that h names, or a trace of its own.
func (s *spans) start(h http.Header, name string, kind uint64) *span {
	sp := &span{spans: s, name: name, kind: kind, began: time.Now(), passed: h, id: fmt.Sprintf("%016x", rand.Uint64())} //nolint:gosec // an ID
	parts := strings.Split(h.Get("traceparent"), "-")
	if len(parts) == 4 && len(parts[1]) == 32 && len(parts[2]) == 16 {
		sp.trace, sp.parent = parts[1], parts[2]
	} else {
		sp.trace = fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) //nolint:gosec // an ID
	}
	return sp
}

// header is what calls below the span carry.
func (sp *span) header() http.Header {
	h := http.Header{}
	for _, name := range traceHeaders() {
		if v := sp.passed.Get(name); v != "" {
			h.Set(name, v)
		}
	}
	if sp.spans != nil {
		h.Set("traceparent", "00-"+sp.trace+"-"+sp.id+"-01")
	}
	return h
}

// end keeps the span to be sent.
func (sp *span) end(failed bool) {
	if sp.spans == nil {
		return
	}
	var b []byte
	b = field(b, 1, unhex(sp.trace))
	b = field(b, 2, unhex(sp.id))
	if sp.parent != "" {
		b = field(b, 4, unhex(sp.parent))
	}
	b = field(b, 5, []byte(sp.name))
	b = binary.AppendUvarint(append(b, 6<<3), sp.kind)
	b = binary.LittleEndian.AppendUint64(append(b, 7<<3|1), uint64(sp.began.UnixNano()))
	b = binary.LittleEndian.AppendUint64(append(b, 8<<3|1), uint64(time.Now().UnixNano()))
	if failed {
		b = field(b, 15, []byte{3 << 3, 2}) // Status.code = ERROR
	}
	sp.spans.mu.Lock()
	defer sp.spans.mu.Unlock()
	if len(sp.spans.done) < maxSpans {
		sp.spans.done = append(sp.spans.done, b)
	}
}

// run sends what ended, once a second, until ctx ends.
func (s *spans) run(ctx context.Context) {
	if s == nil {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.send(ctx); err == nil {
			said = ""
		} else if err.Error() != said {
			said = err.Error()
			slog.Warn("spans not sent", "to", s.url, "error", err)
		}
	}
}

// send is one gRPC call: a frame in, a frame and a status out.
func (s *spans) send(ctx context.Context) error {
	s.mu.Lock()
	done := s.done
	s.done = nil
	s.mu.Unlock()
	if len(done) == 0 {
		return nil
	}
	var scope []byte
	for _, sp := range done {
		scope = field(scope, 2, sp)
	}
	message := field(nil, 1, field(field(nil, 1, s.resource), 2, scope))
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))) //nolint:gosec // bounded by maxSpans
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/opentelemetry.proto.collector.trace.v1.TraceService/Export", bytes.NewReader(append(frame, message...)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
		return err
	}
	status, why := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" { // the answer is its trailers
		status, why = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if status != "0" {
		return fmt.Errorf("HTTP %s, gRPC status %q: %s", resp.Status, status, why)
	}
	return nil
}

// field is a length-delimited field of a protobuf message.
func field(b []byte, number uint64, value []byte) []byte {
	b = binary.AppendUvarint(b, number<<3|2)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

func keyValue(key, value string) []byte {
	return field(field(nil, 1, []byte(key)), 2, field(nil, 1, []byte(value)))
}

func unhex(s string) []byte {
	b, _ := hex.DecodeString(s)
	return b
}
