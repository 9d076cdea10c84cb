package relay

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
)

func TestVersionSkew(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	a.stop()
	hello := func(low, high uint32) *relayv1.ServerMessage {
		h := helloOf("prod")
		h.MinProtocol, h.Protocol, h.AgentVersion = low, high, "9.9.9"
		_, m, err := open(t, s.raw(a), h)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if w := hello(1, 7).GetWelcome(); w.GetProtocol() != Protocol { // newer agent that still speaks ours
		t.Errorf("welcome: %v", w)
	}
	if g := hello(2, 7).GetGoodbye(); g.GetReason() != relayv1.Goodbye_VERSION_SKEW || !strings.Contains(g.GetMessage(), "upgrade the management server first") {
		t.Errorf("an agent that is too new: %v", g)
	}
	if g := hello(0, 0).GetGoodbye(); g.GetReason() != relayv1.Goodbye_PROTOCOL_ERROR {
		t.Errorf("nonsense: %v", g)
	}
	// Additive: an unknown arm of the oneof (field 15) is skipped by an older server.
	stream, m, err := open(t, s.raw(a), helloOf("prod"))
	if err != nil || m.GetWelcome() == nil {
		t.Fatal(m, err)
	}
	future := &relayv1.AgentMessage{}
	future.ProtoReflect().SetUnknown([]byte{15<<3 | 2, 1, 'x'})
	for _, m := range []*relayv1.AgentMessage{future, {Kind: &relayv1.AgentMessage_Heartbeat{Heartbeat: &relayv1.Heartbeat{T1: 1}}}} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	for m, err = stream.Recv(); err == nil && m.GetHeartbeat() == nil; m, err = stream.Recv() {
	}
	if err != nil || m.GetHeartbeat().GetT1() != 1 {
		t.Errorf("after an unknown message: %v, %v", m, err)
	}
}

// TestHostileMessages: each ends that session with a reason, and no other one.
func TestHostileMessages(t *testing.T) {
	s := newSite(t)
	good := s.newAgent("good")
	good.waitConnected()
	a := s.newAgent("prod")
	a.waitConnected()
	a.stop()
	chunk := func(c *relayv1.Chunk) *relayv1.AgentMessage {
		return &relayv1.AgentMessage{Kind: &relayv1.AgentMessage_Inventory{Inventory: c}}
	}
	for name, m := range map[string]*relayv1.AgentMessage{
		"100 MiB":      chunk(&relayv1.Chunk{Epoch: "e", Through: 1, Head: 1, Items: []*relayv1.Item{{Type: "t", Name: "n", Version: 1, Value: make([]byte, 100<<20)}}}),
		"900 KiB":      chunk(&relayv1.Chunk{Epoch: "e", Through: 1, Head: 1, Items: []*relayv1.Item{{Type: "t", Name: "n", Version: 1, Value: make([]byte, 900<<10)}}}),
		"no epoch":     chunk(&relayv1.Chunk{}),
		"gap":          chunk(&relayv1.Chunk{Epoch: "e", After: 5, Through: 6, Head: 6}),
		"nil item":     chunk(&relayv1.Chunk{Epoch: "e", Through: 1, Head: 1, Items: []*relayv1.Item{nil}}),
		"false ack":    {Kind: &relayv1.AgentMessage_DesiredAck{DesiredAck: &relayv1.Ack{Chunks: 1 << 60}}},
		"second hello": {Kind: &relayv1.AgentMessage_Hello{Hello: helloOf("prod")}},
	} {
		t.Run(name, func(t *testing.T) {
			stream, first, err := open(t, s.raw(a), helloOf("prod"))
			if err != nil || first.GetWelcome() == nil {
				t.Fatal(first, err)
			}
			_ = stream.Send(m)
			for err == nil {
				_, err = stream.Recv()
			}
			if name != "100 MiB" && name != "nil item" { // gRPC answers the first itself
				wantRefusal(t, err, relayv1.Goodbye_PROTOCOL_ERROR)
			}
		})
	}
	if !good.spoke.Status().Connected || s.office.admitted > 20 {
		t.Error("another session was harmed")
	}
	wait(t, "no session left", func() bool { return !s.info("prod").Connected })
}

func TestSessionNeedsACertificate(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	c, err := a.spoke.dial(a.store.get(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, m, err := open(t, c, helloOf("prod"))
	if err != nil || m.GetGoodbye().GetReason() != relayv1.Goodbye_BAD_CERTIFICATE {
		t.Errorf("without a certificate: %v, %v", m, err)
	}
	// Without TLS 1.3, and without TLS.
	old := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	cc, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(old))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if _, err := relayv1.NewRelayClient(cc).Renew(t.Context(), &relayv1.RenewRequest{}); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
}

func TestStrangersAreFew(t *testing.T) {
	s := newSite(t, func(c *HubConfig) { c.MaxStrangers = 5 })
	a := s.newAgent("prod")
	a.waitConnected()
	var conns []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	wait(t, "15 turned away", func() bool { return s.hub.counters.turnedAway.Load() == 15 })
	if n := s.hub.strangers.Load(); n != 5 {
		t.Errorf("%d strangers", n)
	}
	if !a.spoke.Status().Connected {
		t.Error("strangers throw out an admitted session")
	}
	for _, c := range conns {
		c.Close()
	}
	wait(t, "room again", func() bool { return s.hub.strangers.Load() == 0 })
	s.newAgent("other").waitConnected()
}

// TestReconnect: somebody replaced what is stored; the agent uses it at once, whether it is in session or waiting.
func TestReconnect(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	before := s.info("prod").Identity.Key
	minted := s.minted("prod").get()
	a.store.mu.Lock()
	a.store.st = minted
	a.store.mu.Unlock()
	a.spoke.Reconnect("Secret replaced")
	wait(t, "in session with the new key", func() bool { i := s.info("prod"); return i.Connected && i.Identity.Key != before })
}

func TestTooManySessions(t *testing.T) {
	s := newSite(t, func(c *HubConfig) { c.MaxSessions = 1 })
	s.newAgent("c1").waitConnected()
	s.newAgent("c2").waitError("as many sessions")
}

// TestRefusalBackOff: an agent that ignores what it is told does not reach the Gate each time.
func TestRefusalBackOff(t *testing.T) {
	s := newSite(t)
	counting := &countingGate{Gate: s.office}
	s.stop()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	s.address = l.Addr().String()
	s.start(l, func(c *HubConfig) { c.Gate = counting })
	a := s.runAgentStopped("prod", s.minted("prod"))
	for range 20 {
		_, m, err := open(t, s.raw(a), helloOf("prod"))
		if g := m.GetGoodbye(); err != nil || g.GetReason() != relayv1.Goodbye_NOT_REGISTERED || g.GetRetryAfterSeconds() == 0 {
			t.Fatal(m, err)
		}
	}
	if counting.admits > 2 {
		t.Errorf("the Gate was asked %d times", counting.admits)
	}
}

type countingGate struct {
	Gate
	admits int
}

func (g *countingGate) Admit(ctx context.Context, id Identity, h Hello) error {
	g.admits++
	return g.Gate.Admit(ctx, id, h)
}

func (c SpokeConfig) with(t testing.TB) SpokeConfig {
	t.Helper()
	if c.Inventory == nil {
		c.Inventory = newTestSource()
	}
	return c
}
