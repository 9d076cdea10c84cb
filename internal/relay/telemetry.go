package relay

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
)

// TelemetryKind says what a batch holds.
type TelemetryKind = relayv1.Telemetry_Kind

// Kinds of telemetry.
const (
	TelemetryReport = relayv1.Telemetry_REPORT // a relayv1.TelemetryReport
	TelemetryTraces = relayv1.Telemetry_TRACES // an OTLP ExportTraceServiceRequest
)

// TelemetryBatch is one batch as the hub hands it on.
type TelemetryBatch struct {
	Cluster mesh.ClusterName // of the certificate
	Agent   string           // version
	Offset  time.Duration    // agent's clock plus Offset is the hub's, as last measured
	Kind    TelemetryKind
	Data    []byte
}

const (
	defaultTelemetry = 2 << 20 // kept by an agent whose server is away, compressed
	telemetryPart    = 64 << 10
	telemetryWindow  = 256 << 10 // on its way without an acknowledgement
	// maxTelemetry bounds a batch, before it is deflated and after it is inflated.
	maxTelemetry = 16 << 20
	// maxTelemetryParts bounds what a session may hold of a batch that is still coming.
	maxTelemetryParts = 4 << 20 / telemetryPart
)

// Telemetry keeps what is to be sent until the hub has it: a ring, so that a server that is away costs bounded memory and the oldest batches.
type Telemetry struct {
	limit int

	mu       sync.Mutex
	sequence uint64
	batches  []*telemetryBatch // oldest first, not acknowledged
	bytes    int
	stats    TelemetryStats
	changed  chan struct{}
}

type telemetryBatch struct {
	sequence uint64
	kind     TelemetryKind
	data     []byte // deflated
}

// TelemetryStats is how the ring is doing.
type TelemetryStats struct {
	Put     uint64 // batches since the start
	Dropped uint64 // of those: never sent, since the ring was full or they were too large
	Bytes   int    // waiting, deflated
	Waiting int
}

// NewTelemetry makes a ring of so many bytes; 0 means 2 MiB.
func NewTelemetry(limit int) *Telemetry {
	if limit == 0 {
		limit = defaultTelemetry
	}
	return &Telemetry{limit: limit, changed: make(chan struct{}, 1)}
}

// Put takes a batch to be sent; it never waits. When the ring is full, the oldest go.
func (t *Telemetry) Put(kind TelemetryKind, data []byte) {
	packed, err := deflate(data)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.Put++
	if err != nil || len(data) > maxTelemetry || len(packed) > t.limit || len(packed) > maxTelemetryParts*telemetryPart {
		t.stats.Dropped++
		return
	}
	t.sequence++
	t.batches = append(t.batches, &telemetryBatch{t.sequence, kind, packed})
	t.bytes += len(packed)
	for t.bytes > t.limit {
		t.bytes -= len(t.batches[0].data)
		t.batches = t.batches[1:]
		t.stats.Dropped++
	}
	t.ring()
}

// Stats tells how the ring is doing.
func (t *Telemetry) Stats() TelemetryStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Bytes, s.Waiting = t.bytes, len(t.batches)
	return s
}

func (t *Telemetry) ring() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// worthDeflating is from where on compressing pays: flate's writer allocates a megabyte, which an agent that has little to say should not touch every 15 s.
const worthDeflating = 8 << 10

// deflate compresses; the writer is not kept, since it is needed four times a minute.
func deflate(data []byte) ([]byte, error) {
	if n := uint16(len(data)); len(data) < worthDeflating { //nolint:gosec // less than that
		// One stored block, the last (RFC 1951, 3.2.4).
		out := binary.LittleEndian.AppendUint16(make([]byte, 1, len(data)+5), n)
		out[0] = 1
		return append(binary.LittleEndian.AppendUint16(out, ^n), data...), nil
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// inflate refuses what grows beyond maxTelemetry: a megabyte of zeros packs into a kilobyte.
func inflate(data []byte) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(data)), maxTelemetry+1))
	if err != nil {
		return nil, err
	}
	if len(out) > maxTelemetry {
		return nil, fmt.Errorf("more than %d bytes when inflated", maxTelemetry)
	}
	return out, nil
}

// telemetryCursor sends a ring in one session, from its oldest batch.
type telemetryCursor struct {
	ring *Telemetry

	mu       sync.Mutex
	current  *telemetryBatch
	part     int
	sent     uint64 // sequence of the last batch begun
	inFlight int
	sizes    []telemetrySize
}

type telemetrySize struct {
	sequence uint64
	bytes    int
}

func (t *Telemetry) cursor() *telemetryCursor { return &telemetryCursor{ring: t} }

func (c *telemetryCursor) ready() <-chan struct{} { return c.ring.changed }

// next is the next part to send, or nil if all is sent or the window is full.
func (c *telemetryCursor) next() *relayv1.Telemetry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		if c.inFlight >= telemetryWindow {
			return nil
		}
		if c.current = c.ring.after(c.sent); c.current == nil {
			return nil
		}
		c.part, c.sent = 0, c.current.sequence
		c.inFlight += len(c.current.data)
		c.sizes = append(c.sizes, telemetrySize{c.current.sequence, len(c.current.data)})
	}
	b := c.current
	parts := max(1, (len(b.data)+telemetryPart-1)/telemetryPart)
	m := &relayv1.Telemetry{Sequence: b.sequence, Kind: b.kind, Part: uint32(c.part), Parts: uint32(parts)} //nolint:gosec // bounded by maxTelemetryParts
	m.Data = b.data[c.part*telemetryPart : min((c.part+1)*telemetryPart, len(b.data))]
	if c.part++; c.part == parts {
		c.current = nil
	}
	return m
}

func (t *Telemetry) after(sequence uint64) *telemetryBatch {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.batches {
		if b.sequence > sequence {
			return b
		}
	}
	return nil
}

// acked forgets what the hub has.
func (c *telemetryCursor) acked(sequence uint64) {
	c.mu.Lock()
	for len(c.sizes) > 0 && c.sizes[0].sequence <= sequence {
		c.inFlight -= c.sizes[0].bytes
		c.sizes = c.sizes[1:]
	}
	sent := c.sent
	c.mu.Unlock()
	if sequence > sent {
		return // it can't have what was not sent
	}
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	for len(c.ring.batches) > 0 && c.ring.batches[0].sequence <= sequence {
		c.ring.bytes -= len(c.ring.batches[0].data)
		c.ring.batches = c.ring.batches[1:]
	}
	c.ring.ring() // the window is wider
}

// telemetryParts is a batch that is still coming.
type telemetryParts struct {
	sequence uint64
	next     uint32
	data     []byte
}

// takeTelemetry joins parts and hands a whole batch on. What can't be read is dropped, counted and acknowledged: sent again it would be no better.
func (s *session) takeTelemetry(m *relayv1.Telemetry) *Refusal {
	p := &s.parts
	parts := max(m.GetParts(), 1)
	if parts > maxTelemetryParts || len(m.GetData()) > telemetryPart {
		return Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "telemetry of %q: %d parts, one of %d bytes: at most %d of %d", s.cluster.name, parts, len(m.GetData()), maxTelemetryParts, telemetryPart)
	}
	if m.GetPart() == 0 {
		*p = telemetryParts{sequence: m.GetSequence()}
	} else if m.GetSequence() != p.sequence || m.GetPart() != p.next {
		return Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "telemetry of %q: part %d of batch %d out of order", s.cluster.name, m.GetPart(), m.GetSequence())
	}
	p.next = m.GetPart() + 1
	p.data = append(p.data, m.GetData()...)
	if p.next < parts {
		return nil
	}
	data, err := inflate(p.data)
	*p = telemetryParts{}
	switch {
	case err != nil:
		s.hub.counters.telemetryBad.Add(1)
		s.hub.log.Debug("telemetry can't be read", "cluster", s.cluster.name, "error", err)
	case s.hub.cfg.OnTelemetry != nil:
		s.hub.counters.telemetry.Add(1)
		s.hub.cfg.OnTelemetry(TelemetryBatch{Cluster: s.cluster.name, Agent: s.hello.AgentVersion, Offset: s.cluster.clockOffset(), Kind: m.GetKind(), Data: data})
	}
	s.out.put(outTelemetryAck, &relayv1.ServerMessage{Kind: &relayv1.ServerMessage_TelemetryAck{TelemetryAck: &relayv1.TelemetryAck{Sequence: m.GetSequence()}}})
	return nil
}

func (c *cluster) clockOffset() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offset
}
