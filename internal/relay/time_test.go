package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// pipes is a listener and dialer in memory, so that a hub and its agents can run in a synctest bubble: days pass in milliseconds,
// with the real protocol and real TLS.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	mu     sync.Mutex
	open   []net.Conn
	dials  []time.Time
	down   bool
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9900} }

func (p *pipes) dial(ctx context.Context, _ string) (net.Conn, error) {
	p.mu.Lock()
	p.dials = append(p.dials, time.Now())
	down := p.down
	p.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	select {
	case p.conns <- b:
		p.mu.Lock()
		p.open = append(p.open, a)
		p.mu.Unlock()
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) setDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
	for _, c := range p.open {
		c.Close()
	}
	p.open = nil
}

// bubble runs a hub and one agent under synctest until test returns.
func bubble(t *testing.T, skew time.Duration, test func(s *site, a *agent, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		s := &site{t: t, fam: newFamilies(t), office: newOffice(), address: "localhost:9900"}
		if skew != 0 { // the hub's world is `skew` ahead of the agent's: all its certificates are made then
			f, err := family.Generate(time.Now().Add(skew), family.Options{ServerNames: []string{"localhost"}})
			if err != nil {
				t.Fatal(err)
			}
			s.fam.set(f)
		}
		s.start(p)
		a := s.newAgent("prod", func(c *SpokeConfig) { c.Dial = p.dial })
		synctest.Wait()
		test(s, a, p)
		a.stop()
		p.Close()
		s.stop()
		time.Sleep(time.Minute) // timers of closed connections
	})
}

func (s *site) mustBeConnected(t *testing.T, when string) {
	t.Helper()
	if !s.info("prod").Connected {
		t.Fatalf("not connected: %s", when)
	}
}

// TestAWeek: heartbeats every 5 s, one renewal per half day, one session.
func TestADay(t *testing.T) {
	bubble(t, 0, func(s *site, a *agent, p *pipes) {
		time.Sleep(time.Minute)
		s.mustBeConnected(s.t.(*testing.T), "after a minute")
		if d := time.Since(s.info("prod").LastHeartbeat); d > 5*time.Second {
			t.Errorf("last heartbeat %s ago", d)
		}
		time.Sleep(3 * 24 * time.Hour)
		s.mustBeConnected(s.t.(*testing.T), "after three days with certificates of one")
		if n := s.hub.counters.renewals.Load(); n < 6 || n > 8 {
			t.Errorf("%d renewals in three days at ratio 0.5", n)
		}
		if s.office.admitted != 1 || len(p.dials) != 2 {
			t.Errorf("%d sessions over %d connections: want 1 over 2 (one to enrol)", s.office.admitted, len(p.dials))
		}
	})
}

// TestRenewalSurvivesAnOutage: the Gate can't record for hours; the certificate is renewed as soon as it can again.
func TestRenewalSurvivesAnOutage(t *testing.T) {
	bubble(t, 0, func(s *site, a *agent, _ *pipes) {
		time.Sleep(time.Hour)
		s.office.mu.Lock()
		s.office.err = errors.New("API server is down")
		s.office.mu.Unlock()
		time.Sleep(20 * time.Hour)
		s.mustBeConnected(s.t.(*testing.T), "during the outage")
		s.office.mu.Lock()
		s.office.err = nil
		s.office.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if s.hub.counters.renewals.Load() != 1 {
			t.Error("not renewed after the outage")
		}
		if left := time.Until(a.spoke.Status().Identity.NotAfter); left < 20*time.Hour {
			t.Errorf("certificate ends in %s", left)
		}
	})
}

// TestNeverRenewed: an agent that does not renew loses its session when its certificate ends, not later.
func TestNeverRenewed(t *testing.T) {
	bubble(t, 0, func(s *site, a *agent, _ *pipes) {
		s.office.mu.Lock()
		s.office.err = errors.New("can't record") // so nothing is renewed, nor admitted again
		s.office.mu.Unlock()
		time.Sleep(24*time.Hour - time.Minute)
		s.mustBeConnected(s.t.(*testing.T), "while the certificate is valid")
		time.Sleep(2 * time.Minute)
		if s.info("prod").Connected {
			t.Error("the session outlived its certificate")
		}
		if r := s.info("prod").LastRefusal; r == nil || r.Reason != relayv1.Goodbye_BAD_CERTIFICATE && r.Reason != relayv1.Goodbye_OVERLOADED {
			t.Errorf("refusal: %v", r)
		}
	})
}

// TestClockSkew: the clocks are 10 minutes apart, either way. Enrolment, session and renewal work.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		t.Run(skew.String(), func(t *testing.T) {
			bubble(t, skew, func(s *site, _ *agent, _ *pipes) {
				time.Sleep(time.Minute)
				s.mustBeConnected(s.t.(*testing.T), "skew "+skew.String())
				time.Sleep(30 * time.Hour)
				s.mustBeConnected(s.t.(*testing.T), "skew "+skew.String())
			})
		})
	}
	hub := func(agent int64) int64 { return agent + int64(10*time.Minute) }
	ms := int64(time.Millisecond)
	if off, rtt := (stamps{0, hub(20 * ms), hub(21 * ms), 31 * ms}).measure(); off != 10*time.Minute+5*time.Millisecond || rtt != 30*time.Millisecond {
		t.Errorf("offset %s, round trip %s", off, rtt) // 20 ms there, 10 ms back: off by half the difference
	}
	// What the agent thinks of a certificate: its clock is behind or ahead of the hub that issued it.
	fam := newFamilies(t).Current()
	for _, skew := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		chain, key, err := fam.NewClient("prod", time.Now().Add(skew), 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := loadCredential(StoredIdentity{ChainPEM: chain, KeyPEM: key}, "prod", time.Now()); err != nil {
			t.Errorf("skew %s: %v", skew, err)
		}
	}
}

// TestBackOff: full jitter up to 30 s, and back at once when the server is.
func TestBackOff(t *testing.T) {
	bubble(t, 0, func(s *site, a *agent, p *pipes) {
		p.setDown(true)
		p.mu.Lock()
		p.dials = nil
		p.mu.Unlock()
		began := time.Now()
		time.Sleep(10 * time.Minute)
		p.mu.Lock()
		dials := p.dials
		p.dials = nil
		p.mu.Unlock()
		if n := len(dials); n < 20 || n > 90 {
			t.Errorf("%d attempts in 10 minutes", n)
		}
		if first := dials[0].Sub(began); first > time.Second {
			t.Errorf("first attempt only after %s", first)
		}
		for i := 1; i < len(dials); i++ {
			if gap := dials[i].Sub(dials[i-1]); gap > backoffMax+time.Second {
				t.Errorf("a gap of %s", gap)
			}
		}
		p.setDown(false)
		time.Sleep(backoffMax + time.Second)
		s.mustBeConnected(s.t.(*testing.T), "after the outage")
	})
	if w := backoff(0, &Refusal{RetryAfter: 10 * time.Second}); w < 10*time.Second || w > 15*time.Second {
		t.Errorf("told to stay away for 10 s, comes back after %s", w)
	}
	seen := map[time.Duration]bool{}
	for range 100 {
		seen[backoff(5, nil)] = true
	}
	if len(seen) < 90 {
		t.Error("no jitter")
	}
}

// TestStalledAgent: an agent that lives but takes nothing is let go, so that it comes back and resumes.
func TestStalledAgent(t *testing.T) {
	now := time.Unix(0, 0)
	src := synclog.NewSource("e")
	for i := range 64 {
		_ = src.Set(synclog.Key{Type: "t", Name: string(rune('a' + i))}, make([]byte, 60<<10))
	}
	p := newPump(src, synclog.Position{})
	sent := 0
	for p.next(now) != nil {
		sent++
	}
	if p.inFlight > window+synclog.ChunkBytes+1024 || sent < 10 {
		t.Errorf("%d bytes in %d chunks on their way without an acknowledgement", p.inFlight, sent)
	}
	if p.stalled(now.Add(ackTimeout)) || !p.stalled(now.Add(ackTimeout+1)) {
		t.Error("stalled too early or too late")
	}
	if !p.ack(1, now.Add(time.Second)) || p.stalled(now.Add(ackTimeout+1)) || p.next(now) == nil {
		t.Error("an acknowledgement doesn't widen the window")
	}
	if p.ack(uint64(sent+5), now) || !p.ack(0, now) {
		t.Error("acknowledges more than was sent, or an old one is refused")
	}
}

func TestUntilRenewal(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		begins, life time.Duration
		low, high    time.Duration
	}{
		"issued now for a day":   {-family.Backdate, 24*time.Hour + family.Backdate, 10*time.Hour + 48*time.Minute, 12 * time.Hour},
		"for a minute":           {-family.Backdate, time.Minute + family.Backdate, 27 * time.Second, 30 * time.Second},
		"by hand for 30 minutes": {0, 30 * time.Minute, 13*time.Minute + 30*time.Second, 15 * time.Minute},
		"long due":               {-23 * time.Hour, 24 * time.Hour, time.Second, time.Second},
	} {
		id := Identity{Cluster: mesh.ClusterName("c"), NotBefore: now.Add(c.begins), NotAfter: now.Add(c.begins + c.life)}
		for range 50 {
			if got := untilRenewal(id, now, 0.5); got < c.low || got > c.high {
				t.Errorf("%s: %s, want %s to %s", name, got, c.low, c.high)
			}
		}
	}
}
