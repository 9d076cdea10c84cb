package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/relay/family"
)

// Kinds of messages in a spoke session's outbox, most urgent first.
const (
	upHeartbeat = iota
	upAck
	upKinds // telemetry comes after these and after inventory
)

// spokeSession is one session, agent side.
type spokeSession struct {
	spoke  *Spoke
	conn   *hubConn
	stream grpc.BidiStreamingClient[relayv1.AgentMessage, relayv1.ServerMessage]
	stored StoredIdentity // touched by the renewing goroutine and by the reading one: see bundles
	beat   time.Duration
	pump   *pump
	tele   *telemetryCursor
	out    *outbox[*relayv1.AgentMessage]
	chunks uint64
	watch  *time.Timer
	// bundles hands trust bundles to the one goroutine that stores identities.
	bundles chan *relayv1.TrustBundle
}

// session runs one session until it ends, and says why it did.
func (s *Spoke) session(ctx context.Context, st StoredIdentity) error {
	conn, err := s.dial(st, true)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	greeting := time.AfterFunc(attemptTime, func() { cancel(fmt.Errorf("no answer within %s", attemptTime)) })
	defer greeting.Stop()
	ss := &spokeSession{
		spoke: s, conn: conn, stored: st, out: newOutbox[*relayv1.AgentMessage](upKinds), bundles: make(chan *relayv1.TrustBundle, 1),
	}
	if err := ss.greet(ctx); err != nil {
		return ss.explain(ctx, err)
	}
	greeting.Stop()
	defer s.log.Debug("session ended", "server", s.cfg.ServerAddress)
	// A hub that says nothing is as good as gone.
	dead := deadAfter(ss.beat)
	ss.watch = time.AfterFunc(dead, func() { cancel(fmt.Errorf("nothing was heard from the management server for %s", dead)) })
	defer ss.watch.Stop()
	g, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() { cancel(nil) }) // the stream's context is ctx: end all when one ends
	defer stop()
	g.Go(func() error { return ss.receive() })
	g.Go(func() error { return ss.send(gctx) })
	g.Go(func() error { return ss.keepIdentity(gctx) })
	return ss.explain(ctx, g.Wait())
}

// explain prefers our own reason for ending to what gRPC made of it.
func (ss *spokeSession) explain(ctx context.Context, err error) error {
	if r := refusalIn(err); r != nil {
		return r
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the management server closed the session without a reason")
	}
	return ss.conn.explain(err)
}

func (ss *spokeSession) greet(ctx context.Context) error {
	s := ss.spoke
	var err error
	if ss.stream, err = relayv1.NewRelayClient(ss.conn).Session(ctx); err != nil {
		return err
	}
	err = ss.stream.Send(&relayv1.AgentMessage{Kind: &relayv1.AgentMessage_Hello{Hello: &relayv1.Hello{
		Cluster: string(s.cfg.Cluster), ClusterUid: string(s.cfg.UID), AgentVersion: s.cfg.Version,
		Protocol: Protocol, MinProtocol: MinProtocol, Desired: fromPosition(s.desired.Resume()),
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // EOF: the reason is to be received
		return err
	}
	m, err := ss.stream.Recv()
	if err != nil {
		return err
	}
	if g := m.GetGoodbye(); g != nil {
		return fromGoodbye(g)
	}
	w := m.GetWelcome()
	if w == nil {
		return fmt.Errorf("the management server begins a session with a %T", m.GetKind())
	}
	ss.beat = min(max(time.Duration(w.GetHeartbeatSeconds())*time.Second, time.Second), time.Minute)
	ss.pump = newPump(s.cfg.Inventory, toPosition(w.GetInventory()))
	ss.tele = s.cfg.Telemetry.cursor()
	ss.bundles <- w.GetTrustBundle()
	s.connected(w.GetServerVersion())
	s.log.Info("connected to the management server", "server", s.cfg.ServerAddress, "cluster", s.cfg.Cluster, "serverVersion", w.GetServerVersion(), "protocol", w.GetProtocol())
	return nil
}

func (ss *spokeSession) send(ctx context.Context) error {
	beat := time.NewTicker(ss.beat)
	defer beat.Stop()
	ss.queueHeartbeat()
	for {
		changed, more := ss.spoke.cfg.Inventory.Changed(), true
		for more {
			for _, m := range ss.out.take() {
				if hb := m.GetHeartbeat(); hb != nil {
					hb.T1 = time.Now().UnixNano()
				}
				if err := ss.stream.Send(m); err != nil {
					return sendError(err)
				}
			}
			chunk := ss.pump.next(time.Now())
			if more = chunk != nil; more {
				if err := ss.stream.Send(&relayv1.AgentMessage{Kind: &relayv1.AgentMessage_Inventory{Inventory: chunk}}); err != nil {
					return sendError(err)
				}
				continue
			}
			if m := ss.tele.next(); m != nil {
				more = true
				if err := ss.stream.Send(&relayv1.AgentMessage{Kind: &relayv1.AgentMessage_Telemetry{Telemetry: m}}); err != nil {
					return sendError(err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-ss.out.ready:
		case <-ss.pump.room:
		case <-ss.tele.ready():
		case <-beat.C:
			ss.queueHeartbeat()
			if ss.pump.stalled(time.Now()) {
				return fmt.Errorf("the management server acknowledged nothing for %s while inventory was on its way", ackTimeout)
			}
		}
	}
}

// sendError drops io.EOF: the stream has ended, and receive learns why.
func sendError(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (ss *spokeSession) queueHeartbeat() {
	st := ss.spoke.Status()
	ss.out.put(upHeartbeat, &relayv1.AgentMessage{Kind: &relayv1.AgentMessage_Heartbeat{Heartbeat: &relayv1.Heartbeat{
		Offset: int64(st.Offset), RoundTrip: int64(st.RTT),
	}}})
}

func (ss *spokeSession) receive() error {
	for measured := false; ; {
		m, err := ss.stream.Recv()
		if err != nil {
			return err
		}
		ss.watch.Reset(deadAfter(ss.beat))
		switch k := m.GetKind().(type) {
		case *relayv1.ServerMessage_Desired:
			if err := ss.spoke.desired.Apply(toChunk(k.Desired)); err != nil {
				return fmt.Errorf("desired state: %w", err)
			}
			ss.chunks++
			ss.out.put(upAck, &relayv1.AgentMessage{Kind: &relayv1.AgentMessage_DesiredAck{DesiredAck: &relayv1.Ack{
				Position: fromPosition(ss.spoke.desired.Position()), Chunks: ss.chunks,
			}}})
		case *relayv1.ServerMessage_InventoryAck:
			if !ss.pump.ack(k.InventoryAck.GetChunks(), time.Now()) {
				return errors.New("the management server acknowledges more than it was sent")
			}
			ss.spoke.cfg.Inventory.Acked(toPosition(k.InventoryAck.GetPosition()))
		case *relayv1.ServerMessage_TelemetryAck:
			ss.tele.acked(k.TelemetryAck.GetSequence())
		case *relayv1.ServerMessage_Heartbeat:
			t := stamps{k.Heartbeat.GetT1(), k.Heartbeat.GetT2(), k.Heartbeat.GetT3(), time.Now().UnixNano()}
			ss.spoke.measured(t.measure())
			if !measured { // let the hub know now, not with the next beat
				measured = true
				ss.queueHeartbeat()
			}
		case *relayv1.ServerMessage_TrustBundle:
			select {
			case <-ss.bundles: // only the latest counts
			default:
			}
			ss.bundles <- k.TrustBundle
		case *relayv1.ServerMessage_Goodbye:
			return fromGoodbye(k.Goodbye)
		default: // of a newer server: additive, so not for us
		}
	}
}

// keepIdentity stores trust bundles as they come, and renews the certificate in time.
func (ss *spokeSession) keepIdentity(ctx context.Context) error {
	s := ss.spoke
	wait := untilRenewal(s.credential().identity, time.Now().Add(s.Status().Offset), s.cfg.RenewRatio)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-ss.bundles:
			ss.stored = s.learn(ctx, ss.stored, b)
			continue
		case <-timer.C:
		}
		if err := ss.renew(ctx); err != nil {
			failures++
			// Often enough before it is too late, not so often that a thousand agents are a burden.
			left := s.credential().identity.NotAfter.Sub(time.Now().Add(s.Status().Offset))
			wait = max(min(left/10, time.Hour), time.Second) + jitter(10*time.Second)
			s.log.Warn("certificate not renewed", "cluster", s.cfg.Cluster, "failures", failures, "notAfter", s.credential().identity.NotAfter, "retryIn", wait.Round(time.Second), "error", err)
		} else {
			failures = 0
			wait = untilRenewal(s.credential().identity, time.Now().Add(s.Status().Offset), s.cfg.RenewRatio)
		}
		timer.Reset(wait)
	}
}

// untilRenewal is how long to wait before the certificate id is renewed: until ratio of its life is over, up to a tenth earlier so
// that agents that were registered together don't renew together. What the hub issues begins family.Backdate in the past.
func untilRenewal(id Identity, now time.Time, ratio float64) time.Duration {
	life := id.NotAfter.Sub(id.NotBefore)
	if life > family.Backdate {
		life -= family.Backdate
	}
	due := time.Duration(float64(life) * ratio)
	due -= jitter(due / 10)
	return max(id.NotAfter.Add(-life).Add(due).Sub(now), time.Second)
}

// renew gets a certificate for a new key, on the session's own connection; the session goes on.
func (ss *spokeSession) renew(ctx context.Context) error {
	s := ss.spoke
	key, err := family.NewKey()
	if err != nil {
		return err
	}
	csr, err := family.NewCSR(key, s.cfg.Cluster)
	if err != nil {
		return err
	}
	callCtx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	res, err := relayv1.NewRelayClient(ss.conn).Renew(callCtx, &relayv1.RenewRequest{CsrDer: csr, AgentVersion: s.cfg.Version})
	if err != nil {
		return ss.conn.explain(err)
	}
	st, cred, err := s.adopt(ctx, ss.stored, key, res)
	if err != nil {
		return err
	}
	ss.stored = st
	s.use(cred)
	s.log.Info("certificate renewed", "cluster", s.cfg.Cluster, "key", cred.identity.Key.String(), "notAfter", cred.identity.NotAfter)
	return nil
}
