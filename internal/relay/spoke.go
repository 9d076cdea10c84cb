package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// SpokeConfig is all an agent's end needs.
type SpokeConfig struct {
	ServerAddress string // host:port
	Authority     string // name in the server's certificate; empty: the host of ServerAddress
	Cluster       mesh.ClusterName
	UID           mesh.ClusterUID
	Version       string
	Identity      IdentityStore
	Inventory     *synclog.Source
	// OnDesired gets what has changed in the desired state since its last call; never called concurrently. It may take its time:
	// meanwhile changes are merged. Spoke.Desired gives the whole.
	OnDesired func(ctx context.Context, c synclog.Changes)
	// OnRefused, if set, is told each refusal of a hub whose certificate was verified.
	OnRefused func(r *Refusal)
	// Telemetry, if set, is sent when there is nothing else to send.
	Telemetry  *Telemetry
	RenewRatio float64 // of a certificate's life after which it is renewed; default 0.5
	Log        *slog.Logger
	// Dial is how to reach ServerAddress; nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// SpokeStatus is how the agent's end is doing, for readiness and for people.
type SpokeStatus struct {
	Connected     bool
	Since         time.Time // of the last change of Connected
	ServerVersion string
	LastError     string // why the last attempt or session ended, in one sentence; empty while connected
	Identity      Identity
	Offset        time.Duration // agent's clock plus Offset is the hub's
	RTT           time.Duration
}

// Back-off between attempts: full jitter, so that a thousand agents that lost one server don't come back together.
const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 30 * time.Second
	// backoffWaiting bounds the wait of an agent whose cluster isn't registered yet: somebody is about to do it.
	backoffWaiting = 5 * time.Second
	// steady is how long a session must have lasted for the next attempt to count as the first.
	steady = time.Minute
	// attemptTime bounds dialling, handshake and greeting.
	attemptTime = 20 * time.Second
)

// Spoke is an agent's end.
type Spoke struct {
	cfg     SpokeConfig
	log     *slog.Logger
	desired *synclog.Sink

	enrolNext bool // the hub refused our certificate: enrol again, if there is a token

	mu     sync.Mutex
	status SpokeStatus
	cred   credential // in use
	again  func()     // ends the running attempt or wait; nil before Run
}

// NewSpoke checks the configuration and allocates; Run works.
func NewSpoke(cfg SpokeConfig) (*Spoke, error) {
	host, port, err := net.SplitHostPort(cfg.ServerAddress)
	switch {
	case err != nil:
		return nil, fmt.Errorf("relay server address %q: want host:port, e.g. gloo-mesh-mgmt-server.example.com:9900: %w", cfg.ServerAddress, err)
	case host == "" || port == "":
		return nil, fmt.Errorf("relay server address %q: host or port is empty; give the address under which clusters reach Service gloo-mesh-mgmt-server, e.g. gloo-mesh-mgmt-server.example.com:9900", cfg.ServerAddress)
	case cfg.UID == "":
		return nil, errors.New("relay: the UID of the kube-system namespace is empty")
	case cfg.Identity == nil || cfg.Inventory == nil || cfg.OnDesired == nil:
		return nil, errors.New("relay: Identity, Inventory and OnDesired are needed")
	case cfg.RenewRatio < 0 || cfg.RenewRatio >= 1:
		return nil, fmt.Errorf("relay: renewal ratio %v: want more than 0 and less than 1", cfg.RenewRatio)
	}
	if err := cfg.Cluster.Validate(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if cfg.Authority == "" {
		cfg.Authority = host
	}
	if h, _, err := net.SplitHostPort(cfg.Authority); err == nil {
		cfg.Authority = h
	}
	if cfg.RenewRatio == 0 {
		cfg.RenewRatio = 0.5
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Telemetry == nil {
		cfg.Telemetry = NewTelemetry(0)
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	return &Spoke{cfg: cfg, log: cfg.Log, desired: synclog.NewSink(synclog.Limits{Bytes: 1 << 30}, true)}, nil
}

// Run enrols if needed, connects, renews, and comes back after every failure, until ctx ends; it returns nil then.
func (s *Spoke) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.deliver(ctx); return nil })
	g.Go(func() error { s.stayConnected(ctx); return nil })
	return g.Wait()
}

// deliver hands received changes to OnDesired, merged while it is busy.
func (s *Spoke) deliver(ctx context.Context) {
	complete := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.desired.News():
		}
		c := s.desired.Take()
		if len(c.Set) > 0 || len(c.Deleted) > 0 || c.Complete != complete {
			complete = c.Complete
			s.cfg.OnDesired(ctx, c)
		}
	}
}

func (s *Spoke) stayConnected(ctx context.Context) {
	attempt := 0
	for ctx.Err() == nil {
		began := time.Now()
		try, again := context.WithCancelCause(ctx)
		s.mu.Lock()
		s.again = func() { again(errAgain) }
		s.mu.Unlock()
		err := s.connect(try)
		s.disconnected(err)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			attempt = 0
		}
		if errors.Is(context.Cause(try), errAgain) {
			attempt = 0
			continue
		}
		wait := backoff(attempt, refusalIn(err))
		attempt++
		s.log.Warn("not connected to the management server", "server", s.cfg.ServerAddress, "cluster", s.cfg.Cluster, "error", err, "retryIn", wait.Round(time.Millisecond))
		select {
		case <-try.Done():
			attempt = 0
		case <-time.After(wait):
		}
		again(nil)
	}
}

// errAgain ends an attempt, a session or a wait because of Reconnect.
var errAgain = errors.New("asked to connect anew")

// Reconnect ends the running session, attempt or wait, and connects anew at once with the identity as it is stored then. For when
// somebody has replaced what is stored.
func (s *Spoke) Reconnect(why string) {
	s.mu.Lock()
	again := s.again
	s.mu.Unlock()
	if again != nil {
		s.log.Info("connecting anew", "why", why)
		again()
	}
}

// backoff is how long to wait before the next attempt.
func backoff(attempt int, r *Refusal) time.Duration {
	ceiling := min(backoffMin<<min(attempt, 10), backoffMax)
	if r == nil {
		return jitter(ceiling)
	}
	if r.Reason == relayv1.Goodbye_NOT_REGISTERED {
		ceiling = min(ceiling, backoffWaiting)
	}
	return max(jitter(ceiling), r.RetryAfter+jitter(r.RetryAfter/2))
}

func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d) //nolint:gosec // spreads load, guards nothing
}

// connect makes one attempt: enrol if needed, then a session until it ends. It always returns why it ended.
func (s *Spoke) connect(ctx context.Context) error {
	stored, err := s.cfg.Identity.Load(ctx)
	if err != nil {
		return fmt.Errorf("read the stored identity: %w", err)
	}
	cred, unusable := loadCredential(stored, s.cfg.Cluster, time.Now())
	if stored.Token != "" && (s.enrolNext || unusable != nil) {
		s.enrolNext = false
		if stored, cred, err = s.enrol(ctx, stored); err != nil {
			return fmt.Errorf("enrol cluster %q: %w", s.cfg.Cluster, err)
		}
		unusable = nil
	}
	if cred.leaf == nil {
		return unusable
	}
	if unusable != nil { // the hub has the last word, and reports it where people look
		s.log.Warn("client certificate is of no use, and there is no token to enrol again", "error", unusable)
	}
	s.use(cred)
	err = s.session(ctx, stored)
	if r := refusalIn(err); r != nil {
		if s.cfg.OnRefused != nil {
			s.cfg.OnRefused(r)
		}
		switch r.Reason {
		case relayv1.Goodbye_BAD_CERTIFICATE, relayv1.Goodbye_REVOKED, relayv1.Goodbye_WRONG_CLUSTER:
			s.enrolNext = true
		default:
		}
	}
	return err
}

func (s *Spoke) use(c credential) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cred = c
	s.status.Identity = c.identity
}

func (s *Spoke) credential() credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cred
}

func (s *Spoke) connected(serverVersion string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Connected, s.status.Since, s.status.LastError, s.status.ServerVersion = true, time.Now(), "", serverVersion
}

func (s *Spoke) disconnected(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Connected || s.status.Since.IsZero() {
		s.status.Since = time.Now()
	}
	s.status.Connected = false
	if err != nil {
		s.status.LastError = err.Error()
	}
}

func (s *Spoke) measured(offset, roundTrip time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Offset, s.status.RTT = offset, roundTrip
}

// Status tells how it is doing.
func (s *Spoke) Status() SpokeStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Desired is the whole desired state as received so far. Prune only by a Complete one.
func (s *Spoke) Desired() synclog.Snapshot { return s.desired.Snapshot() }
