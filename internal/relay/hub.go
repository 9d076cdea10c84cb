package relay

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// FamilySource gives the certificate family in force, and tells when it changes.
type FamilySource interface {
	Current() *family.Family  // never nil once the hub serves
	Changed() <-chan struct{} // closed at the next change
}

// HubConfig is all a hub needs; zero values of the optional fields mean the default.
type HubConfig struct {
	Family  FamilySource
	Gate    Gate
	Log     *slog.Logger
	Version string // the server's

	DisableEnrolment bool          // client certificates are supplied by hand: no tokens
	ClientLifetime   time.Duration // of issued certificates; default 24 h
	Heartbeat        time.Duration // default 5 s
	MaxSessions      int           // default 5,000
	MaxStrangers     int           // connections without an admitted session; default 1,024
	Inventory        synclog.Limits
	// OnTelemetry gets what an agent saw, inflated, with the cluster of its certificate. It is called from the session's reading half, in order, and must
	// return soon; it may be called again with what it had before the session was lost. nil: telemetry is acknowledged and dropped.
	OnTelemetry func(t TelemetryBatch)
}

const (
	defaultHeartbeat = 5 * time.Second
	// barFor is how long a refusal by Refuse or Forget stands without asking the Gate.
	barFor = 30 * time.Second
	// partingTime is how long a peer has to read our goodbye before the connection is cut.
	partingTime = time.Second
	// gateTime bounds a question to the Gate.
	gateTime = 15 * time.Second
	// maxEnrolments is how many enrolments are decided and signed at once; the others wait.
	maxEnrolments = 16
)

// deadAfter is how long a silent peer is believed to live: two missed heartbeats and some.
func deadAfter(heartbeat time.Duration) time.Duration { return heartbeat * 12 / 5 }

// Hub is the management server's end.
type Hub struct {
	relayv1.UnimplementedEnrolmentServer
	relayv1.UnimplementedRelayServer

	cfg        HubConfig
	log        *slog.Logger
	counters   counters
	strangers  atomic.Int64
	enrolments chan struct{}

	mu       sync.Mutex
	clusters map[mesh.ClusterName]*cluster
	barred   map[mesh.ClusterName]bar // by Refuse and Forget
	recent   map[attempt]bar          // by the Gate: not asked again at once
	sessions int
	closing  bool
	said     map[string]time.Time // refusals that were logged

	changesMu sync.Mutex
	changes   map[mesh.ClusterName]struct{}
	changed   chan struct{}
}

// attempt is what a refusal by the Gate is remembered by: not the cluster alone, or else a copied certificate would keep the real
// cluster out.
type attempt struct {
	cluster mesh.ClusterName
	key     mesh.Fingerprint
	uid     mesh.ClusterUID
}

type bar struct {
	refusal *Refusal
	until   time.Time
}

// NewHub allocates; Serve works.
func NewHub(cfg HubConfig) *Hub {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientLifetime == 0 {
		cfg.ClientLifetime = 24 * time.Hour
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = defaultHeartbeat
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 5000
	}
	if cfg.MaxStrangers == 0 {
		cfg.MaxStrangers = 1024
	}
	return &Hub{
		cfg: cfg, log: cfg.Log, enrolments: make(chan struct{}, maxEnrolments), counters: newCounters(),
		clusters: map[mesh.ClusterName]*cluster{}, barred: map[mesh.ClusterName]bar{}, recent: map[attempt]bar{}, said: map[string]time.Time{},
		changes: map[mesh.ClusterName]struct{}{}, changed: make(chan struct{}, 1),
	}
}

// Serve accepts agents until ctx ends; then it says goodbye to all and returns nil.
func (h *Hub) Serve(ctx context.Context, l net.Listener) error {
	if h.cfg.Family == nil || h.cfg.Gate == nil {
		return errors.New("relay hub: Family and Gate are needed")
	}
	h.mu.Lock()
	h.closing = false
	h.mu.Unlock()
	srv := grpc.NewServer(
		grpc.Creds(newHubCredentials(h)),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxHeaderListSize(16<<10), grpc.MaxConcurrentStreams(8),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// A thousand idle sessions should not cost a thousand large buffers.
		grpc.ReadBufferSize(8<<10), grpc.WriteBufferSize(16<<10),
		grpc.InitialWindowSize(256<<10), grpc.InitialConnWindowSize(512<<10),
	)
	relayv1.RegisterEnrolmentServer(srv, h)
	relayv1.RegisterRelayServer(srv, h)
	served := make(chan error, 1)
	go func() {
		served <- srv.Serve(&boundedListener{Listener: l, strangers: &h.strangers, limit: int64(h.cfg.MaxStrangers), turned: &h.counters.turnedAway})
	}()
	for {
		changed := h.cfg.Family.Changed()
		select {
		case <-changed:
			h.pushTrust()
		case err := <-served:
			return fmt.Errorf("relay hub on %s: %w", l.Addr(), err)
		case <-ctx.Done():
			h.endAll(Refuse(relayv1.Goodbye_SHUTTING_DOWN, "the management server is stopping; another one takes over"))
			srv.Stop()
			if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				h.log.Debug("listener", "error", err)
			}
			return nil
		}
	}
}

// pushTrust hands the new trust bundle to everyone who is connected.
func (h *Hub) pushTrust() {
	f := h.cfg.Family.Current()
	b := &relayv1.TrustBundle{RootDer: f.TrustBundle()}
	n := 0
	for _, s := range h.running() {
		s.out.put(outTrust, &relayv1.ServerMessage{Kind: &relayv1.ServerMessage_TrustBundle{TrustBundle: b}})
		n++
	}
	h.log.Info("certificate family reloaded", "roots", len(f.Bundle), "sessions", n)
}

func (h *Hub) running() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*session
	for _, c := range h.clusters {
		if s := c.current(); s != nil {
			out = append(out, s)
		}
	}
	return out
}

// endAll says goodbye to everyone and waits until it has been said, or partingTime has passed.
func (h *Hub) endAll(r *Refusal) {
	h.mu.Lock()
	h.closing = true
	h.mu.Unlock()
	deadline := time.NewTimer(2 * partingTime)
	defer deadline.Stop()
	running := h.running()
	for _, s := range running {
		s.end(r)
	}
	for _, s := range running {
		select {
		case <-s.over:
		case <-deadline.C:
			return
		}
	}
}

// Publish sets the whole desired state of one cluster. Unchanged objects cost no traffic. The hub keeps the values: don't change
// them afterwards. With complete false, objects are added and changed but none is removed, and the agent is told not to conclude
// anything from an absence. An item that is too large is named in the error, keeps its former value, and makes the state incomplete.
func (h *Hub) Publish(c mesh.ClusterName, objects map[synclog.Key][]byte, complete bool) error {
	if err := h.cluster(c).desired.Replace(objects, complete); err != nil {
		return fmt.Errorf("cluster %q: desired state: %w", c, err)
	}
	return nil
}

// Update changes the desired state of a cluster that has been published whole: it sets some objects and removes others, and leaves the rest as it is, unlooked at.
// With complete false nothing is removed, so a later complete state must be published whole. Otherwise as Publish.
func (h *Hub) Update(c mesh.ClusterName, set map[synclog.Key][]byte, gone []synclog.Key, complete bool) error {
	if err := h.cluster(c).desired.Update(set, gone, complete); err != nil {
		return fmt.Errorf("cluster %q: desired state: %w", c, err)
	}
	return nil
}

// cluster finds or makes what is kept for c.
func (h *Hub) cluster(c mesh.ClusterName) *cluster {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clusterLocked(c)
}

func (h *Hub) clusterLocked(c mesh.ClusterName) *cluster {
	cl := h.clusters[c]
	if cl == nil {
		cl = &cluster{name: c, desired: synclog.NewSource(rand.Text()), inventory: synclog.NewSink(h.cfg.Inventory, true), since: time.Now()}
		h.clusters[c] = cl
	}
	return cl
}

// Refuse ends the cluster's session now and remembers why, so that its next message is answered with r (until Allow, or
// r.RetryAfter has passed, whichever is first; then the Gate is asked again).
func (h *Hub) Refuse(c mesh.ClusterName, r *Refusal) { h.bar(c, r, false) }

// Forget does what Refuse does, and drops all that is kept for the cluster: it is no longer registered.
func (h *Hub) Forget(c mesh.ClusterName, r *Refusal) { h.bar(c, r, true) }

func (h *Hub) bar(c mesh.ClusterName, r *Refusal, forget bool) {
	h.mu.Lock()
	wait := barFor
	if r.RetryAfter > 0 {
		wait = r.RetryAfter
	}
	now := time.Now()
	maps.DeleteFunc(h.barred, func(_ mesh.ClusterName, b bar) bool { return now.After(b.until) })
	h.barred[c] = bar{r, now.Add(wait)}
	cl := h.clusters[c]
	if forget {
		delete(h.clusters, c)
	}
	h.mu.Unlock()
	if cl == nil {
		return
	}
	cl.refused(r, now)
	if s := cl.current(); s != nil {
		s.end(r)
	}
	h.tell(c)
}

// Allow forgets refusals of the cluster: the Gate is asked at its next attempt. Call it when a cluster has been registered.
func (h *Hub) Allow(c mesh.ClusterName) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.barred, c)
	maps.DeleteFunc(h.recent, func(a attempt, _ bar) bool { return a.cluster == c })
}

// Sessions lists every cluster that was published to or admitted since the hub started, by name.
func (h *Hub) Sessions() []SessionInfo {
	h.mu.Lock()
	all := make([]*cluster, 0, len(h.clusters))
	for _, c := range h.clusters {
		all = append(all, c)
	}
	h.mu.Unlock()
	slices.SortFunc(all, func(a, b *cluster) int { return strings.Compare(string(a.name), string(b.name)) })
	out := make([]SessionInfo, len(all))
	for i, c := range all {
		out[i] = c.info()
	}
	return out
}

// Inventory returns what a cluster has reported. It never lacks an item merely because it is being sent again: absence counts
// once the whole has arrived. warm is false until that has happened once. The values must not be changed.
func (h *Hub) Inventory(c mesh.ClusterName) (items map[synclog.Key][]byte, warm bool) {
	h.mu.Lock()
	cl := h.clusters[c]
	h.mu.Unlock()
	if cl == nil {
		return nil, false
	}
	warm = cl.inventory.Warm()
	return cl.inventory.Snapshot().Items, warm
}

// TakeInventory returns what of a cluster's inventory has changed since the last call; after Forget, everything. For one caller, who keeps what it needs: the hub holds the values no longer. They must not be changed.
func (h *Hub) TakeInventory(c mesh.ClusterName) (ch synclog.Changes, warm bool) {
	h.mu.Lock()
	cl := h.clusters[c]
	h.mu.Unlock()
	if cl == nil {
		return synclog.Changes{}, false
	}
	warm = cl.inventory.Warm() // before Take: at worst the next call says so
	return cl.inventory.TakeAway(), warm
}

// Changed waits until the session or the inventory of some clusters has changed since the last call, and returns their names,
// sorted. Heartbeats alone are no change. For one caller; it never blocks the hub.
func (h *Hub) Changed(ctx context.Context) ([]mesh.ClusterName, error) {
	for {
		select {
		case <-h.changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		h.changesMu.Lock()
		var out []mesh.ClusterName
		for c := range h.changes {
			out = append(out, c)
		}
		clear(h.changes)
		h.changesMu.Unlock()
		if len(out) > 0 {
			slices.Sort(out)
			return out, nil
		}
	}
}

func (h *Hub) tell(c mesh.ClusterName) {
	h.changesMu.Lock()
	h.changes[c] = struct{}{}
	h.changesMu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// note logs a refusal, not again for a minute if it is the same, and puts it on record with the clusters it concerns, if we know
// them: a name that somebody merely claims does not become a cluster.
func (h *Hub) note(r *Refusal, remote string, concerned ...mesh.ClusterName) {
	now := time.Now()
	h.counters.refused(r.Reason)
	h.mu.Lock()
	var known []*cluster
	for _, c := range slices.Compact(concerned) {
		if cl := h.clusters[c]; cl != nil {
			known = append(known, cl)
		}
	}
	key := fmt.Sprint(concerned, r.Reason)
	loud := now.Sub(h.said[key]) >= time.Minute
	if loud {
		if len(h.said) >= 1024 {
			clear(h.said)
		}
		h.said[key] = now
	}
	h.mu.Unlock()
	for _, cl := range known {
		if cl.refused(r, now) {
			h.tell(cl.name)
		}
	}
	if loud {
		h.log.Warn("agent refused", "cluster", concerned, "remote", remote, "reason", r.Reason.String(), "message", r.Message)
	}
}

func identityOf(c mesh.ClusterName, leaf *x509.Certificate) (Identity, error) {
	key, err := family.KeyFingerprint(leaf.PublicKey)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Cluster: c, Key: key, Serial: fmt.Sprintf("%x", leaf.SerialNumber), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}, nil
}
