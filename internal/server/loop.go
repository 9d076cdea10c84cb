package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/registry"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/rotation"
	"ambitmesh.dev/ambit/internal/state"
	"ambitmesh.dev/ambit/internal/telemetry"
	"ambitmesh.dev/ambit/internal/tokens"
	"ambitmesh.dev/ambit/internal/translate"
)

const (
	// lookEvery is how often heartbeats and refusals are looked at when nothing else happens.
	lookEvery = 5 * time.Second
	// settleFor is the least time from one round to the next when agents report: what they report comes in bursts. The first after quiet goes at once.
	settleFor = 20 * time.Millisecond
	// briskly is the same when people write something.
	briskly = 5 * time.Millisecond
)

// loop is the one way through: snapshot, translate, publish. What it comes to goes to the reporter. Only the leader runs it.
type loop struct {
	cfg        *Config
	log        *slog.Logger
	hub        *relay.Hub
	registry   *registry.Registry
	state      *state.State
	trust      *rotation.Board
	keeper     *rotation.Keeper
	tokens     *tokens.Board
	telemetry  *telemetry.Telemetry
	translator *translate.Translator
	reporter   *reporter
	metrics    *metrics
	written    bell // rings when somebody writes an object that is read here
	started    time.Time

	relayBell bell
	mu        sync.Mutex
	changed   map[mesh.ClusterName]bool // by the relay, since the last round

	snapshot *mesh.Snapshot // translated last; nil: translate anew
	result   translate.Result

	first  firstSeen
	kept   map[mesh.ClusterName]map[mesh.Ref]bool // not published in the last round
	known  map[mesh.ClusterName]string            // registered, as of the last round: name to metadata.uid
	sent   map[mesh.ClusterName]sent
	warmth translate.Warmth
	wake   time.Time // when an override ends; zero: none does

	tokenMembers int       // clusters there were when tokens were last decided about
	tokensNext   time.Time // not before

	segments segments
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
		begin := time.Now()
		if err := l.once(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("round not finished, trying again", "error", err)
		}
		if !l.await(ctx, tick.C, begin) {
			return nil
		}
	}
}

// await returns when the next round is due, which is false when ctx has ended: at once after quiet, a moment later in a burst, so that what comes together is handled together.
func (l *loop) await(ctx context.Context, tick <-chan time.Time, begin time.Time) bool {
	var ends <-chan time.Time
	if !l.wake.IsZero() {
		ends = time.After(max(time.Until(l.wake), briskly))
	}
	least := settleFor
	select {
	case <-ctx.Done():
		return false
	case <-tick:
	case <-ends:
	case <-l.relayBell:
	case <-l.written:
		least = briskly
	}
	rest := time.Until(begin.Add(least))
	if rest <= 0 {
		return true
	}
	settled := time.NewTimer(rest)
	defer settled.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-settled.C:
		return true
	case <-l.written: // people don't wait for agents
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Until(begin.Add(briskly))):
		return true
	}
}

func (l *loop) once(ctx context.Context) error {
	begin := time.Now()
	defer func() { l.metrics.round.Observe(time.Since(begin).Seconds()) }()
	n := news{touched: l.observe()}
	snap, sources, err := l.state.Take(ctx, begin)
	if err != nil {
		l.reporter.post(nil, n)
		return err
	}
	n.changed, n.gone = sources.Changed, sources.Gone
	l.wake = sources.NextEnd
	members := l.membership(ctx, sources.Clusters) // its error must not keep the rest from working
	translated := time.Now()
	result := l.result
	if alike(l.snapshot, snap) {
		result.Changed = nil
	} else if result, err = l.translator.Next(snap); err != nil {
		l.snapshot = nil
		for c, s := range l.sent { // nobody knows what the next delta will be against
			s.whole = false
			l.sent[c] = s
		}
		l.reporter.post(nil, n)
		return fmt.Errorf("translate: %w", err)
	}
	l.snapshot, l.result = snap, result
	if l.first == nil {
		l.first = seen(snap)
	}
	l.metrics.translation.Observe(time.Since(translated).Seconds())
	tokens := l.decideTokens(snap, begin)
	published := errors.Join(tokens, l.publish(snap, &result))
	for _, d := range result.Changed {
		for _, refs := range [][]mesh.Ref{d.Set, d.Gone} {
			for _, ref := range refs {
				n.touched[ref] = true
			}
		}
	}
	l.reporter.post(l.view(snap, sources, result), n)
	if len(n.changed)+len(n.gone) > 0 {
		l.keeper.Ring()
	}
	return errors.Join(members, published)
}

// observe takes up what changed in the inventories, and says of which objects another outcome is known.
func (l *loop) observe() map[mesh.Ref]bool {
	l.mu.Lock()
	changed := l.changed
	l.changed = map[mesh.ClusterName]bool{}
	l.mu.Unlock()
	touched := map[mesh.Ref]bool{}
	for c := range changed {
		ch, warm := l.hub.TakeInventory(c)
		outcomes := l.state.Observe(c, state.Change{
			Complete: warm,
			Set: func(yield func(mesh.ItemKey, []byte) bool) {
				for k, v := range ch.Set {
					if !l.trust.Take(c, mesh.ItemKey(k), v) && !l.tokens.Take(c, mesh.ItemKey(k), v) && !yield(mesh.ItemKey(k), v) {
						return
					}
				}
			},
			Gone: func(yield func(mesh.ItemKey) bool) {
				for _, k := range ch.Deleted {
					if !l.trust.Take(c, mesh.ItemKey(k), nil) && !l.tokens.Take(c, mesh.ItemKey(k), nil) && !yield(mesh.ItemKey(k)) {
						return
					}
				}
			},
		})
		for _, ref := range outcomes {
			touched[ref] = true
		}
	}
	return touched
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
		l.trust.Forget(c)
		l.tokens.Forget(c)
		l.telemetry.Forget(c)
		delete(l.sent, c)
	}
	for c, uid := range registered {
		if l.known[c] != uid {
			l.hub.Allow(c)
		}
	}
	l.known = registered
	return err
}

// sent is how far the hub has a cluster's desired state.
type sent struct {
	whole    bool // it has all of the state before this round
	complete bool // and was told so
	ever     bool
	// directive of trust that it has.
	directive []byte
	// tokens are the items about tokens that it has.
	tokens map[mesh.ItemKey][]byte
}

// publish hands each cluster's desired state to the hub, as far as safe mode allows: whole the first time, after that only what changed.
func (l *loop) publish(snap *mesh.Snapshot, result *translate.Result) error {
	w := translate.Warm(snap, time.Since(l.started), l.cfg.WarmGrace)
	l.metrics.waiting.Set(float64(len(w.Waiting)))
	if w.Reason != l.warmth.Reason {
		l.log.Info("safe mode", "send", w.Add, "remove", w.Remove, "why", w.Reason)
	}
	l.warmth = w
	if err := l.decideSegments(snap, w); err != nil {
		return err
	}
	for c, s := range l.sent {
		if _, wanted := result.Objects[c]; !wanted { // left alone for now: later deltas won't tell how it differs from what the hub has
			s.whole = false
			l.sent[c] = s
		}
	}
	var kept map[mesh.ClusterName]map[mesh.Ref]bool
	if w.Add && !w.Remove {
		kept = l.first.kept(snap, result)
	}
	for c, s := range l.sent {
		if !maps.Equal(kept[c], l.kept[c]) {
			s.whole = false
			l.sent[c] = s
		}
	}
	l.kept = kept
	var errs []error
	for c, objects := range result.Objects {
		s := l.sent[c]
		delta, differs := result.Changed[c]
		if !w.Add {
			s.whole = s.whole && !differs
			l.sent[c] = s
			continue
		}
		m := snap.Cluster(c)
		directive, decided := l.trust.Directive(c)
		more := l.more(c)
		// its own inventory decides too: what should be in a cluster depends on what is there
		complete := w.Remove && decided && (m.SkipWarming || m.Inventory != nil && m.Inventory.Complete)
		var err error
		switch {
		case !s.whole || s.complete != complete:
			err = l.hub.Publish(c, with(without(items(objects, nil), kept[c]), directive, more), complete)
		case differs:
			err = l.hub.Update(c, with(without(items(objects, delta.Set), kept[c]), directive, more), slices.Concat(keys(delta.Gone), vanished(s.tokens, more)), complete)
		default:
			continue
		}
		if err != nil {
			s.whole = false
			errs = append(errs, fmt.Errorf("cluster %q: publish: %w", c, err))
		} else {
			s = sent{whole: true, complete: complete, ever: true, directive: directive, tokens: more}
		}
		l.sent[c] = s
	}
	return errors.Join(append(errs, l.direct(snap))...)
}

// direct hands directives of trust and what is about tokens to clusters that got nothing else in this round. Safe mode is not asked: what the engines decide rests on each cluster's own
// observation, and a directive says the whole of itself.
func (l *loop) direct(snap *mesh.Snapshot) error {
	var errs []error
	for i := range snap.Clusters {
		c := snap.Clusters[i].Name
		s := l.sent[c]
		directive, _ := l.trust.Directive(c)
		more := l.more(c)
		if (directive == nil || bytes.Equal(directive, s.directive)) && maps.EqualFunc(more, s.tokens, bytes.Equal) {
			continue
		}
		if err := l.hub.Update(c, with(nil, directive, more), vanished(s.tokens, more), s.complete); err != nil {
			errs = append(errs, fmt.Errorf("cluster %q: directives: %w", c, err))
			continue
		}
		s.directive, s.tokens = directive, more
		l.sent[c] = s
	}
	return errors.Join(errs...)
}

// with adds a directive of trust (nil: there is none) and what is about tokens.
func with(items map[synclog.Key][]byte, directive []byte, tokens map[mesh.ItemKey][]byte) map[synclog.Key][]byte {
	if items == nil {
		items = map[synclog.Key][]byte{}
	}
	if directive != nil {
		items[synclog.Key{Type: mesh.ItemTrust, Name: mesh.ItemTrust}] = directive
	}
	for k, v := range tokens {
		items[synclog.Key(k)] = v
	}
	return items
}

// vanished are the keys that were and are not.
func vanished(was, is map[mesh.ItemKey][]byte) []synclog.Key {
	var out []synclog.Key
	for k := range was {
		if _, still := is[k]; !still {
			out = append(out, synclog.Key(k))
		}
	}
	return out
}

func key(ref mesh.Ref) synclog.Key {
	return synclog.Key{Type: mesh.ItemObject, Name: ref.String()}
}

func keys(refs []mesh.Ref) []synclog.Key {
	out := make([]synclog.Key, len(refs))
	for i, ref := range refs {
		out[i] = key(ref)
	}
	return out
}

// without takes the items of refs out.
func without(items map[synclog.Key][]byte, refs map[mesh.Ref]bool) map[synclog.Key][]byte {
	for ref := range refs {
		delete(items, key(ref))
	}
	return items
}

// items are those objects as the relay carries them; only nil: all.
func items(objects translate.Objects, only []mesh.Ref) map[synclog.Key][]byte {
	if only == nil {
		out := make(map[synclog.Key][]byte, objects.Len())
		for ref, o := range objects.All() {
			out[key(ref)] = o.Manifest
		}
		return out
	}
	out := make(map[synclog.Key][]byte, len(only))
	for _, ref := range only {
		if o, ok := objects.Get(ref); ok {
			out[key(ref)] = o.Manifest
		}
	}
	return out
}

// view is what the reporter needs of this round.
func (l *loop) view(snap *mesh.Snapshot, src state.Sources, result translate.Result) *view {
	v := &view{at: time.Now(), snapshot: snap, clusters: src.Clusters, ended: src.Ended, result: result, segments: l.segments, warm: l.warmth.Add, why: l.warmth.Reason, published: make(map[mesh.ClusterName]bool, len(l.sent))}
	for c, s := range l.sent {
		v.published[c] = s.ever
	}
	return v
}
