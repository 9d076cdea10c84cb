package relay

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// Kinds of messages in a hub session's outbox, most urgent first.
const (
	outHeartbeat = iota
	outAck
	outTrust
	outTelemetryAck
	outKinds
)

// session is one agent's running session, hub side. Two goroutines: Session itself writes, receive reads.
type session struct {
	hub      *Hub
	cluster  *cluster
	conn     *peerConn
	hello    Hello
	identity Identity
	held     synclog.Position // of the desired state, when the session began
	pump     *pump
	out      *outbox[*relayv1.ServerMessage]
	chunks   uint64 // of inventory received
	parts    telemetryParts

	once     sync.Once
	ended    chan struct{} // closed by end
	over     chan struct{} // closed when Session returns
	why      *Refusal      // set before ended is closed
	cut      *time.Timer   // closes the connection if the goodbye does not get through
	watchdog *time.Timer
}

// end ends the session: what the agent sends from now on is ignored, it is told why if it listens, and the connection is cut if not.
func (s *session) end(r *Refusal) {
	s.once.Do(func() {
		s.why = r
		now := time.Now()
		if s.cluster.detach(s, now) {
			s.hub.tell(s.cluster.name)
		}
		s.cut = time.AfterFunc(partingTime, func() { _ = s.conn.Close() })
		close(s.ended)
	})
}

// Session implements relayv1.RelayServer.
func (h *Hub) Session(stream grpc.BidiStreamingServer[relayv1.AgentMessage, relayv1.ServerMessage]) error {
	conn, err := peerOf(stream.Context())
	if err != nil {
		return err
	}
	s, protocol, r := h.admit(stream, conn)
	if r != nil {
		_ = stream.Send(&relayv1.ServerMessage{Kind: &relayv1.ServerMessage_Goodbye{Goodbye: toGoodbye(r)}})
		return toStatus(r)
	}
	defer conn.sessionOver()
	defer h.sessionOver(s)
	welcome := &relayv1.Welcome{
		ServerVersion: h.cfg.Version, Protocol: protocol, Inventory: fromPosition(s.cluster.inventory.Resume()),
		TrustBundle:      &relayv1.TrustBundle{RootDer: h.cfg.Family.Current().TrustBundle()},
		HeartbeatSeconds: uint32(max(h.cfg.Heartbeat/time.Second, 1)), //nolint:gosec // seconds
	}
	if err := stream.Send(&relayv1.ServerMessage{Kind: &relayv1.ServerMessage_Welcome{Welcome: welcome}}); err != nil {
		s.end(Refuse(relayv1.Goodbye_REASON_UNSPECIFIED, "connection lost: %v", err))
		return err
	}
	go s.receive(stream)
	return s.send(stream)
}

// admit reads the Hello, decides, and makes the session the running one of its cluster.
func (h *Hub) admit(stream grpc.BidiStreamingServer[relayv1.AgentMessage, relayv1.ServerMessage], conn *peerConn) (*session, uint32, *Refusal) {
	remote := conn.RemoteAddr().String()
	id, err := conn.identity()
	if err != nil {
		r := Refuse(relayv1.Goodbye_BAD_CERTIFICATE, "%s", clip(err.Error()))
		h.note(r, remote, mesh.ClusterName(conn.claimed))
		return nil, 0, r
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, 0, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "no greeting: %v", err)
	}
	hello, protocol, err := parseHello(m.GetHello())
	if err != nil {
		r := refusalIn(err)
		h.note(r, remote, id.Cluster)
		return nil, 0, r
	}
	hello.Remote = remote
	if hello.Cluster != id.Cluster {
		r := Refuse(relayv1.Goodbye_WRONG_CLUSTER, "the agent calls itself %q, but its client certificate is that of %q: %s was copied from another cluster, or the agent's --cluster is wrong; register %q to get it a certificate of its own", hello.Cluster, id.Cluster, family.ClientSecret, hello.Cluster)
		h.note(r, remote, id.Cluster, hello.Cluster)
		return nil, 0, r
	}
	at := attempt{id.Cluster, id.Key, hello.UID}
	if r := h.isBarred(at); r != nil {
		return nil, 0, r
	}
	if r := h.askGate(stream.Context(), "session", func(ctx context.Context) error { return h.cfg.Gate.Admit(ctx, id, hello) }); r != nil {
		r = h.remember(at, r)
		h.note(r, remote, id.Cluster)
		return nil, 0, r
	}
	s := &session{
		hub: h, conn: conn, hello: hello, identity: id, held: toPosition(m.GetHello().GetDesired()),
		out: newOutbox[*relayv1.ServerMessage](outKinds), ended: make(chan struct{}), over: make(chan struct{}),
	}
	if r := h.attach(s); r != nil {
		h.note(r, remote, id.Cluster)
		return nil, 0, r
	}
	return s, protocol, nil
}

// askGate asks, and makes a Refusal of any error.
func (h *Hub) askGate(ctx context.Context, what string, ask func(context.Context) error) *Refusal {
	ctx, cancel := context.WithTimeout(ctx, gateTime)
	defer cancel()
	err := ask(ctx)
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	h.log.Warn("can't decide now", "about", what, "error", err)
	return Refuse(relayv1.Goodbye_OVERLOADED, "the management server can't decide about this %s at the moment (its log says why); the agent tries again by itself", what)
}

// isBarred answers from memory, if it was decided a moment ago.
func (h *Hub) isBarred(a attempt) *Refusal {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if b, ok := h.barred[a.cluster]; ok && now.Before(b.until) {
		return b.refusal
	}
	if b, ok := h.recent[a]; ok && now.Before(b.until) {
		return b.refusal
	}
	return nil
}

// remember keeps the Gate's refusal for half the time the agent is told to stay away, and sets that time if the Gate did not.
func (h *Hub) remember(a attempt, r *Refusal) *Refusal {
	told := *r
	if told.RetryAfter == 0 {
		told.RetryAfter = retryAfter(r.Reason)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.recent) >= 4096 {
		clear(h.recent)
	}
	h.recent[a] = bar{&told, time.Now().Add(told.RetryAfter / 2)}
	return &told
}

// retryAfter is short where a person is about to change something, long where nothing but an upgrade helps.
func retryAfter(r relayv1.Goodbye_Reason) time.Duration {
	switch r {
	case relayv1.Goodbye_NOT_REGISTERED, relayv1.Goodbye_OVERLOADED:
		return 2 * time.Second
	case relayv1.Goodbye_VERSION_SKEW:
		return time.Minute
	default:
		return 10 * time.Second
	}
}

func (h *Hub) attach(s *session) *Refusal {
	h.mu.Lock()
	// Again, under the lock: a cluster that was refused while the Gate was thinking must not slip in.
	b, isBarred := h.barred[s.identity.Cluster]
	switch {
	case isBarred && time.Now().Before(b.until):
		h.mu.Unlock()
		return b.refusal
	case h.closing:
		h.mu.Unlock()
		return Refuse(relayv1.Goodbye_SHUTTING_DOWN, "the management server is stopping; another one takes over")
	case h.sessions >= h.cfg.MaxSessions:
		h.mu.Unlock()
		return &Refusal{Reason: relayv1.Goodbye_OVERLOADED, RetryAfter: time.Minute, Message: "the management server has as many sessions as it is configured for"}
	}
	h.sessions++
	s.cluster = h.clusterLocked(s.identity.Cluster)
	s.conn.admitted()
	s.pump = newPump(s.cluster.desired, s.held)
	s.watchdog = time.AfterFunc(deadAfter(h.cfg.Heartbeat), func() {
		s.end(Refuse(relayv1.Goodbye_REASON_UNSPECIFIED, "nothing was heard from the agent for %s", deadAfter(h.cfg.Heartbeat)))
	})
	replaced := s.cluster.attach(s, time.Now())
	h.mu.Unlock()
	if replaced != nil {
		replaced.end(&Refusal{Reason: relayv1.Goodbye_REPLACED, RetryAfter: 10 * time.Second, Message: "the agent of this cluster opened a newer session from " + s.hello.Remote})
	}
	h.tell(s.cluster.name)
	h.log.Info("agent connected", "cluster", s.cluster.name, "remote", s.hello.Remote, "agentVersion", s.hello.AgentVersion, "uid", s.hello.UID, "key", s.identity.Key.String(), "replaces", replaced != nil)
	return nil
}

func (h *Hub) sessionOver(s *session) {
	s.end(Refuse(relayv1.Goodbye_REASON_UNSPECIFIED, "the agent closed the connection"))
	s.watchdog.Stop()
	s.cut.Stop()
	h.mu.Lock()
	h.sessions--
	h.mu.Unlock()
	close(s.over)
	h.log.Info("agent disconnected", "cluster", s.cluster.name, "remote", s.hello.Remote, "why", s.why.Message)
}

// send is the writing half: what is in the outbox first, then the desired state as far as the window allows.
func (s *session) send(stream grpc.BidiStreamingServer[relayv1.AgentMessage, relayv1.ServerMessage]) error {
	check := time.NewTicker(ackTimeout / 4)
	defer check.Stop()
	for {
		changed := s.cluster.desired.Changed()
		for more := true; more && !s.hasEnded(); {
			for _, m := range s.out.take() {
				if hb := m.GetHeartbeat(); hb != nil {
					hb.T3 = time.Now().UnixNano()
				}
				if err := stream.Send(m); err != nil {
					return s.lost(err)
				}
			}
			chunk := s.pump.next(time.Now())
			if more = chunk != nil; more {
				if err := stream.Send(&relayv1.ServerMessage{Kind: &relayv1.ServerMessage_Desired{Desired: chunk}}); err != nil {
					return s.lost(err)
				}
			}
		}
		select {
		case <-changed:
		case <-s.out.ready:
		case <-s.pump.room:
		case <-check.C:
			if s.pump.stalled(time.Now()) {
				s.end(Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "the agent acknowledged nothing for %s while desired state was on its way to it", ackTimeout))
			}
		case <-stream.Context().Done():
			return s.lost(stream.Context().Err())
		case <-s.ended:
			_ = stream.Send(&relayv1.ServerMessage{Kind: &relayv1.ServerMessage_Goodbye{Goodbye: toGoodbye(s.why)}})
			return toStatus(s.why)
		}
	}
}

func (s *session) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// lost ends the session because of the connection; if it was ended by us before, that is the reason given.
func (s *session) lost(err error) error {
	s.end(Refuse(relayv1.Goodbye_REASON_UNSPECIFIED, "connection lost: %v", err))
	return toStatus(s.why)
}

// receive is the reading half. It ends when the stream does, which is when Session returns at the latest.
func (s *session) receive(stream grpc.BidiStreamingServer[relayv1.AgentMessage, relayv1.ServerMessage]) {
	for {
		m, err := stream.Recv()
		if err != nil {
			s.end(receiveError(err))
			return
		}
		if s.hasEnded() {
			return
		}
		s.watchdog.Reset(deadAfter(s.hub.cfg.Heartbeat))
		if r := s.handle(m, time.Now()); r != nil {
			s.hub.note(r, s.hello.Remote, s.cluster.name)
			s.end(r)
			return
		}
	}
}

func (s *session) handle(m *relayv1.AgentMessage, now time.Time) *Refusal {
	switch k := m.GetKind().(type) {
	case *relayv1.AgentMessage_Inventory:
		mine, err := s.cluster.take(s, toChunk(k.Inventory))
		if err != nil {
			return Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "inventory of %q: %s", s.cluster.name, clip(err.Error()))
		}
		if !mine {
			return nil
		}
		s.chunks++
		s.out.put(outAck, &relayv1.ServerMessage{Kind: &relayv1.ServerMessage_InventoryAck{InventoryAck: &relayv1.Ack{
			Position: fromPosition(s.cluster.inventory.Position()), Chunks: s.chunks,
		}}})
		s.hub.tell(s.cluster.name)
	case *relayv1.AgentMessage_DesiredAck:
		if !s.pump.ack(k.DesiredAck.GetChunks(), now) {
			return Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "the agent acknowledges more than it was sent")
		}
		s.cluster.acknowledged(s, toPosition(k.DesiredAck.GetPosition()))
	case *relayv1.AgentMessage_Heartbeat:
		s.cluster.beat(s, time.Duration(k.Heartbeat.GetOffset()), time.Duration(k.Heartbeat.GetRoundTrip()), now)
		s.out.put(outHeartbeat, &relayv1.ServerMessage{Kind: &relayv1.ServerMessage_Heartbeat{Heartbeat: &relayv1.HeartbeatReply{
			T1: k.Heartbeat.GetT1(), T2: now.UnixNano(),
		}}})
		if id, _ := s.conn.identity(); now.After(id.NotAfter) {
			return Refuse(relayv1.Goodbye_BAD_CERTIFICATE, "the client certificate of %q expired during the session, at %s, and was not renewed", s.cluster.name, id.NotAfter.UTC().Format(time.RFC3339))
		}
	case *relayv1.AgentMessage_Telemetry:
		return s.takeTelemetry(k.Telemetry)
	case *relayv1.AgentMessage_Hello:
		return Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "a second greeting in one session")
	default: // of a newer agent: additive, so not for us
	}
	return nil
}

// receiveError says why reading ended: if the peer broke a limit, say so rather than "connection lost".
func receiveError(err error) *Refusal {
	if tooLarge(err) {
		return Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "the agent sent a message of more than %d bytes", maxMessage)
	}
	return Refuse(relayv1.Goodbye_REASON_UNSPECIFIED, "connection lost: %v", err)
}
