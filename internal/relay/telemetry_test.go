package relay

import (
	"bytes"
	"crypto/rand"
	"slices"
	"sync"
	"testing"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// heard collects what the hub hands on.
type heard struct {
	mu  sync.Mutex
	got []TelemetryBatch
}

func (h *heard) take(b TelemetryBatch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, b)
}

func (h *heard) batches() []TelemetryBatch {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// Telemetry arrives whole, in order, under the name of the certificate; what was sent into a cut line is sent again.
func TestTelemetry(t *testing.T) {
	var h heard
	s := newSite(t, func(c *HubConfig) { c.OnTelemetry = h.take })
	p := newProxy(t, s.address)
	ring := NewTelemetry(4 << 20)
	a := s.newAgent("prod", func(c *SpokeConfig) { c.ServerAddress, c.Telemetry = p.address(), ring })
	a.waitConnected()
	large := noise(300 << 10) // several parts, more than the window
	ring.Put(TelemetryReport, []byte("one"))
	ring.Put(TelemetryTraces, large)
	ring.Put(TelemetryReport, []byte("three"))
	wait(t, "three batches", func() bool { return len(h.batches()) == 3 })
	got := h.batches()
	if string(got[0].Data) != "one" || !bytes.Equal(got[1].Data, large) || string(got[2].Data) != "three" || got[1].Kind != TelemetryTraces {
		t.Errorf("batches of %d, %d, %d bytes", len(got[0].Data), len(got[1].Data), len(got[2].Data))
	}
	if got[0].Cluster != "prod" || got[0].Agent != "2.12.0" {
		t.Errorf("stamped %q, %q", got[0].Cluster, got[0].Agent)
	}
	wait(t, "all acknowledged", func() bool { return ring.Stats().Waiting == 0 && ring.Stats().Bytes == 0 })

	p.stallUp(true)
	ring.Put(TelemetryReport, []byte("lost in the line"))
	p.cut()
	p.stallUp(false)
	wait(t, "sent again", func() bool { b := h.batches(); return string(b[len(b)-1].Data) == "lost in the line" })
}

// An agent whose server is away keeps the newest, within its bound.
func TestTelemetryRingIsBounded(t *testing.T) {
	ring := NewTelemetry(1 << 20)
	for range 100 {
		ring.Put(TelemetryTraces, noise(50<<10))
	}
	ring.Put(TelemetryTraces, noise(2<<20)) // alone larger than the ring
	st := ring.Stats()
	if st.Bytes > 1<<20 || st.Waiting < 15 || st.Dropped != st.Put-uint64(st.Waiting) {
		t.Errorf("%+v", st)
	}
	if b := ring.batches[len(ring.batches)-1]; b.sequence != 100 {
		t.Errorf("the newest is %d", b.sequence)
	}
}

// Inventory goes before telemetry: a flood of spans delays no state.
func TestTelemetryWaitsForInventory(t *testing.T) {
	var h heard
	s := newSite(t, func(c *HubConfig) { c.OnTelemetry = h.take })
	ring := NewTelemetry(8 << 20)
	for range 50 {
		ring.Put(TelemetryTraces, noise(100<<10))
	}
	a := s.newAgent("prod", func(c *SpokeConfig) { c.Telemetry = ring })
	if err := a.inventory.Set(synclog.Key{Type: "service", Name: "x"}, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	a.inventory.SetComplete(true)
	wait(t, "inventory", func() bool { _, warm := s.hub.Inventory("prod"); return warm })
	wait(t, "telemetry", func() bool { return len(h.batches()) == 50 })
}

// A batch that inflates without end, or is nonsense, is dropped and acknowledged; parts out of order end the session.
func TestHostileTelemetry(t *testing.T) {
	var h heard
	s := newSite(t, func(c *HubConfig) { c.OnTelemetry = h.take })
	a := s.newAgent("prod")
	a.waitConnected()
	bomb, err := deflate(make([]byte, maxTelemetry+1))
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	stream, first, err := open(t, s.raw(a), helloOf("prod"))
	if err != nil || first.GetWelcome() == nil {
		t.Fatal(first, err)
	}
	exchange := func(what string, answered func(*relayv1.ServerMessage) bool, ms ...*relayv1.Telemetry) {
		t.Helper()
		for _, m := range ms {
			if err := stream.Send(&relayv1.AgentMessage{Kind: &relayv1.AgentMessage_Telemetry{Telemetry: m}}); err != nil {
				t.Fatal(err)
			}
		}
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if answered(m) {
				return
			}
		}
	}
	exchange("acknowledgement", func(m *relayv1.ServerMessage) bool { return m.GetTelemetryAck().GetSequence() == 2 },
		&relayv1.Telemetry{Sequence: 1, Data: bomb}, &relayv1.Telemetry{Sequence: 2, Data: []byte("nonsense")})
	if n := len(h.batches()); n != 0 {
		t.Errorf("%d batches handed on", n)
	}
	exchange("goodbye", func(m *relayv1.ServerMessage) bool {
		return m.GetGoodbye().GetReason() == relayv1.Goodbye_PROTOCOL_ERROR
	},
		&relayv1.Telemetry{Sequence: 3, Part: 0, Parts: 3}, &relayv1.Telemetry{Sequence: 3, Part: 2, Parts: 3})
}
