package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/registry"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/state"
	"ambitmesh.dev/ambit/internal/translate"
	"ambitmesh.dev/ambit/internal/version"
)

// lookEvery is how often heartbeats and refusals are looked at when nothing else happens.
const lookEvery = 5 * time.Second

// settleFor lets changes that come together be handled together.
const settleFor = 20 * time.Millisecond

// loop is the one way through: snapshot, translate, publish, report. Only the leader runs it.
type loop struct {
	cfg      *Config
	log      *slog.Logger
	hub      *relay.Hub
	registry *registry.Registry
	state    *state.State
	writer   *report.Writer
	events   *report.Events
	metrics  *metrics
	clusters bell // rings when a KubernetesCluster changes
	started  time.Time

	relayBell bell
	mu        sync.Mutex
	changed   map[mesh.ClusterName]bool // by the relay, since the last round

	known     map[mesh.ClusterName]string // registered, as of the last round: name to metadata.uid
	result    translate.Result
	desired   map[mesh.ClusterName]map[mesh.Ref]mesh.Fingerprint
	published map[mesh.ClusterName]bool
	refused   map[mesh.ClusterName]time.Time // last refusal told
	warmth    string
}

// follow takes note of what changes on the relay.
func (l *loop) follow(ctx context.Context) error {
	for {
		names, err := l.hub.Changed(ctx)
		if err != nil {
			return err
		}
		l.mu.Lock()
		for _, n := range names {
			l.changed[n] = true
		}
		l.mu.Unlock()
		l.relayBell.ring()
	}
}

// run goes round until ctx ends. An error of a round is of the API server's: it is logged, and the next round tries again.
func (l *loop) run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err := l.once(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("round not finished, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-l.clusters:
		case <-l.relayBell:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settleFor):
		}
	}
}

func (l *loop) once(ctx context.Context) error {
	begin := time.Now()
	defer func() { l.metrics.round.Observe(time.Since(begin).Seconds()) }()
	l.observe()
	snap, sources, err := l.state.Take(ctx)
	if err != nil {
		return err
	}
	members := l.membership(ctx, sources) // its error must not keep the rest from working
	translated := time.Now()
	if l.result, err = translate.All(snap); err != nil {
		return fmt.Errorf("translate: %w", err)
	}
	l.metrics.translation.Observe(time.Since(translated).Seconds())
	return errors.Join(members, l.publish(snap), l.report(ctx, snap, sources))
}

// observe takes up the inventories that changed.
func (l *loop) observe() {
	l.mu.Lock()
	changed := l.changed
	l.changed = map[mesh.ClusterName]bool{}
	l.mu.Unlock()
	for c := range changed {
		items, warm := l.hub.Inventory(c)
		l.state.Observe(c, func(yield func(mesh.ItemKey, []byte) bool) {
			for k, v := range items {
				if !yield(mesh.ItemKey{Type: k.Type, Name: k.Name}, v) {
					return
				}
			}
		}, warm)
	}
}

// membership ends what belongs to clusters that are gone, and lets in those that are new.
func (l *loop) membership(ctx context.Context, sources map[mesh.ClusterName]*adminv2.KubernetesCluster) error {
	registered := make(map[mesh.ClusterName]string, len(sources))
	for c, kc := range sources {
		registered[c] = string(kc.UID)
	}
	gone, err := l.registry.Reconcile(ctx, registered)
	for c, uid := range l.known {
		if registered[c] != uid && gone[c] == nil { // it never had a key, or its keys are revoked already
			gone[c] = relay.Refuse(relayv1.Goodbye_NOT_REGISTERED, "cluster %q was deregistered; run `meshctl cluster register %s` to register it again", c, c)
		}
	}
	for _, c := range slices.Sorted(maps.Keys(gone)) {
		l.log.Info("cluster deregistered", "cluster", c)
		l.hub.Forget(c, gone[c])
		l.state.Forget(c)
		delete(l.published, c)
		delete(l.refused, c)
	}
	for c, uid := range registered {
		if l.known[c] != uid {
			l.hub.Allow(c)
		}
	}
	l.known = registered
	return err
}

// publish hands each cluster's desired state to the hub, as far as safe mode allows.
func (l *loop) publish(snap *mesh.Snapshot) error {
	w := translate.Warm(snap, time.Since(l.started), l.cfg.WarmGrace)
	l.metrics.waiting.Set(float64(len(w.Waiting)))
	if w.Reason != l.warmth {
		l.warmth = w.Reason
		l.log.Info("safe mode", "send", w.Add, "remove", w.Remove, "why", w.Reason)
	}
	if !w.Add {
		return nil
	}
	l.desired = make(map[mesh.ClusterName]map[mesh.Ref]mesh.Fingerprint, len(l.result.Objects))
	var errs []error
	for c, objects := range l.result.Objects {
		items := make(map[synclog.Key][]byte, len(objects))
		prints := make(map[mesh.Ref]mesh.Fingerprint, len(objects))
		for ref, o := range objects {
			items[synclog.Key{Type: mesh.ItemObject, Name: ref.String()}] = o.Manifest
			prints[ref] = mesh.FingerprintOf(o.Manifest)
		}
		l.desired[c] = prints
		m := snap.Cluster(c)
		// its own inventory decides too: what should be in a cluster depends on what is there
		complete := w.Remove && (m.SkipWarming || m.Inventory != nil && m.Inventory.Complete)
		if err := l.hub.Publish(c, items, complete); err != nil {
			errs = append(errs, fmt.Errorf("cluster %q: publish: %w", c, err))
			continue
		}
		l.published[c] = true
	}
	return errors.Join(errs...)
}

// report says in the API what is so. The first failure to write ends it: the API server is away, and the next round will say it all.
func (l *loop) report(ctx context.Context, snap *mesh.Snapshot, sources map[mesh.ClusterName]*adminv2.KubernetesCluster) error {
	now := time.Now()
	sessions := map[mesh.ClusterName]relay.SessionInfo{}
	for _, s := range l.hub.Sessions() {
		sessions[s.Cluster] = s
	}
	count := map[adminv2.ConnectionState]int{}
	defer func() {
		for _, c := range []adminv2.ConnectionState{adminv2.ConnectionConnected, adminv2.ConnectionDisconnected, adminv2.ConnectionPending} {
			l.metrics.clusters.WithLabelValues(string(c)).Set(float64(count[c]))
		}
	}()
	for i := range snap.Clusters {
		c := &snap.Clusters[i]
		kc, s := sources[c.Name], sessions[c.Name]
		last := l.writer.Last(kc)
		if !s.Connected && last.Connection == adminv2.ConnectionConnected && now.Sub(l.started) < l.cfg.WarmGrace && !s.LastRefusalAt.After(l.started) {
			count[adminv2.ConnectionConnected]++ // this server has just started: give its agent time to come back before saying it is gone
			continue
		}
		next := report.Next(last, report.Input{
			Cluster: *c, Session: session(s, now), Conditions: l.result.Conditions[c.Source],
			Desired: l.desired[c.Name], Published: l.published[c.Name], ServerVersion: version.Version,
		}, now)
		count[next.Connection]++
		if err := l.say(ctx, kc, last, next, s, now); err != nil {
			return err
		}
		wrote, err := l.writer.Write(ctx, kc, next)
		if err != nil {
			l.metrics.statusErrors.Inc()
			return err
		}
		if wrote {
			l.metrics.statusWrites.Inc()
		}
	}
	return nil
}

// say writes the Events that go with a change of status.
func (l *loop) say(ctx context.Context, kc *adminv2.KubernetesCluster, last, next adminv2.KubernetesClusterStatus, s relay.SessionInfo, now time.Time) error {
	if last.RegisteredBy == "" && next.RegisteredBy != "" {
		if err := l.events.Once(ctx, kc, adminv2.EventRegistered, "Registered by "+next.RegisteredBy, next.RegisteredAt.Time); err != nil {
			return err
		}
	}
	c := mesh.ClusterName(kc.Name)
	if s.LastRefusal != nil && s.LastRefusalAt.After(l.refused[c]) {
		if err := l.events.Say(ctx, kc, corev1.EventTypeWarning, adminv2.EventRefused, s.LastRefusal.Message, now); err != nil {
			return err
		}
		l.refused[c] = s.LastRefusalAt
	}
	was := last.Connection
	switch {
	case next.Connection == adminv2.ConnectionConnected && was != adminv2.ConnectionConnected:
		return l.events.Say(ctx, kc, corev1.EventTypeNormal, adminv2.EventConnected, fmt.Sprintf("the agent (version %s) has connected", next.AgentVersion), now)
	case next.Connection == adminv2.ConnectionDisconnected && was == adminv2.ConnectionConnected:
		return l.events.Say(ctx, kc, corev1.EventTypeWarning, adminv2.EventDisconnected, "the agent's session has ended; the cluster keeps what it has", now)
	}
	return nil
}

// refusalsCount is how long a refusal is told beside a session that is up: somebody else tries, or tried.
const refusalsCount = 10 * time.Minute

// session puts the relay's view into the shared nouns.
func session(s relay.SessionInfo, now time.Time) mesh.Session {
	out := mesh.Session{
		Connected: s.Connected, Since: s.Since, LastHeartbeat: s.LastHeartbeat, AgentVersion: s.AgentVersion, UID: s.UID,
		Offset: s.Offset, Measured: s.RTT > 0,
	}
	if s.Connected && out.LastHeartbeat.Before(s.Since) {
		out.LastHeartbeat = s.Since // Hello is a sign of life as well
	}
	if r := s.LastRefusal; r != nil && (!s.Connected && s.LastRefusalAt.After(s.LastHeartbeat) || s.Connected && s.LastRefusalAt.After(s.Since) && now.Sub(s.LastRefusalAt) < refusalsCount) {
		switch r.Reason {
		case relayv1.Goodbye_WRONG_CLUSTER, relayv1.Goodbye_BAD_CERTIFICATE, relayv1.Goodbye_REVOKED, relayv1.Goodbye_BAD_TOKEN:
			out.Refusal, out.RefusedIdentity = r.Message, true
		case relayv1.Goodbye_NOT_REGISTERED, relayv1.Goodbye_VERSION_SKEW, relayv1.Goodbye_PROTOCOL_ERROR:
			out.Refusal = r.Message
		default: // shutting down, replaced, overloaded: it will be back
		}
	}
	return out
}
