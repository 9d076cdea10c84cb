// Package apply makes a cluster be as desired, and keeps it so.
//
// In: changes of the desired state (objects of the relay's downward log). Out: server-side applies under one field manager, deletes, and an Outcome per object.
// What somebody else changes or deletes is seen by watch and put back. It must not decide what is desired, delete anything it has not listed in its inventory,
// delete by an incomplete desired state, or touch an object that does not carry our owner label.
//
// The loop is gather, decide (plan.go, pure), act.
package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

const (
	// FieldManager is the one manager of all we apply.
	FieldManager = mesh.FieldManager
	// OwnerLabel with value OwnerValue marks what is ours. Where a person has removed it, the object is theirs.
	OwnerLabel = mesh.OwnerLabel
	// OwnerValue is the value of OwnerLabel.
	OwnerValue = mesh.OwnerValue

	parallel = 8 // applies at a time
	timeout  = 30 * time.Second
)

// Config is what New needs.
type Config struct {
	Client    dynamic.Interface
	Get       func(ctx context.Context, path string) ([]byte, error) // reads a discovery path of the API server
	Namespace string                                                 // where the inventory is kept
	Outcomes  *synclog.Source                                        // gets an item per object
	Log       *slog.Logger
}

// Applier applies. New allocates, Run works.
type Applier struct {
	cfg       Config
	resources *resources
	inventory *inventory
	heldStore *heldStore
	wake      chan struct{}

	mu       sync.Mutex
	desired  map[mesh.Ref]wish
	complete bool
	state    map[mesh.Ref]known
	live     map[mesh.Ref]left   // what is ours in the cluster, by watch: what we left there, zero before we applied
	refused  map[mesh.Ref]string // what istiod says against an object; absent: nothing
	recalled map[mesh.Ref]bool   // of desired, by an earlier life's note: the management server has not spoken of it yet
	fresh    map[mesh.Ref]bool   // listed by this life and not applied yet: whoever misses it did not delete it
	watched  map[scope]bool
	blind    map[scope]bool // whose watch does not work at present: what it told may be out of date
	drifted  int            // objects put back since the start
	follow   func(scope)    // starts a watch that ends with Run
}

// New allocates an Applier.
func New(cfg Config) *Applier {
	return &Applier{
		cfg: cfg, resources: newResources(cfg.Get), inventory: newInventory(cfg.Client, cfg.Namespace), heldStore: newHeldStore(cfg.Client, cfg.Namespace), wake: make(chan struct{}, 1),
		desired: map[mesh.Ref]wish{}, state: map[mesh.Ref]known{}, live: map[mesh.Ref]left{}, refused: map[mesh.Ref]string{}, fresh: map[mesh.Ref]bool{}, recalled: map[mesh.Ref]bool{}, watched: map[scope]bool{}, blind: map[scope]bool{},
	}
}

// Desired takes changes of the desired state; it returns at once.
func (a *Applier) Desired(_ context.Context, c synclog.Changes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, value := range c.Set {
		if ref, ok := mesh.ParseRef(key.Name); ok && key.Type == mesh.ItemObject {
			a.desired[ref] = newWish(value)
			delete(a.recalled, ref)
		}
	}
	for _, key := range c.Deleted {
		if ref, ok := mesh.ParseRef(key.Name); ok && key.Type == mesh.ItemObject {
			a.forget(ref)
		}
	}
	if a.complete = c.Complete; a.complete {
		for ref := range a.recalled { // the management server has told all it wants, and not this
			a.forget(ref)
		}
	}
	a.poke()
}

// forget notes that an object is not desired any more. a.mu is held.
func (a *Applier) forget(ref mesh.Ref) {
	delete(a.desired, ref)
	delete(a.recalled, ref)
	a.cfg.Outcomes.Delete(synclog.Key{Type: mesh.ItemOutcome, Name: ref.String()})
}

// Stats counts what an Applier has to do with.
type Stats struct {
	Desired int `json:"desired"`
	Applied int `json:"applied"` // of Desired, as they should be
	Failed  int `json:"failed"`  // of Desired, not taken by the cluster
	Held    int `json:"held"`    // of Desired, suspended by an override and left as they are
	Taken   int `json:"taken"`   // of Desired, without our owner label: somebody took them over
	PutBack int `json:"putBack"` // drift corrected since the start
}

// Stats tells how it is doing.
func (a *Applier) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Stats{Desired: len(a.desired), PutBack: a.drifted}
	for ref, w := range a.desired {
		switch k := a.state[ref]; {
		case k.hash != w.hash:
		case k.held:
			s.Held++
		case k.taken:
			s.Taken++
		case k.ok && !k.drifted:
			s.Applied++
		case k.tries > 0:
			s.Failed++
		}
	}
	return s
}

func (a *Applier) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends; it returns nil then.
func (a *Applier) Run(ctx context.Context) error {
	var watches sync.WaitGroup
	defer watches.Wait()
	a.mu.Lock()
	a.follow = func(s scope) { watches.Go(func() { a.watch(ctx, s) }) }
	a.mu.Unlock()
	for failures := 0; ; {
		err := a.inventory.load(ctx)
		if err == nil {
			err = a.recall(ctx)
		}
		if err == nil {
			break
		}
		failures++
		a.cfg.Log.Error("nothing is applied before the inventory can be read", "error", err)
		if !sleep(ctx, backOff(failures)) {
			return nil
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		next := a.reconcile(ctx)
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// reconcile decides and acts once; it returns when to come back though nothing changes.
func (a *Applier) reconcile(ctx context.Context) time.Time {
	a.mu.Lock()
	p := decide(a.desired, a.complete, a.inventory.refs, a.state, time.Now())
	wishes := make(map[mesh.Ref]wish, len(p.Apply))
	for _, ref := range p.Apply {
		wishes[ref] = a.desired[ref]
	}
	a.mu.Unlock()

	a.remember(ctx)
	defer a.remember(ctx)
	if err := a.inventory.add(ctx, p.Record); err != nil && ctx.Err() == nil {
		// What is listed already goes on; what is new waits, since it could never be pruned.
		for _, ref := range p.Record {
			a.settle(ctx, ref, wishes[ref], attempt{err: fmt.Errorf("not applied yet, because it can't be listed in ConfigMap %s/%s first: %w", a.cfg.Namespace, InventoryName, err)})
		}
		p.Apply = slices.DeleteFunc(p.Apply, func(r mesh.Ref) bool { return !a.inventory.refs[r] })
	} else {
		a.mu.Lock()
		for _, ref := range p.Record {
			a.fresh[ref] = true
		}
		a.mu.Unlock()
	}
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, ref := range p.Apply {
		g.Go(func() error { a.apply(ctx, ref, wishes[ref]); return nil })
	}
	_ = g.Wait() // no apply returns an error: each is an outcome

	pruned := p.Drop
	var mu sync.Mutex
	for _, ref := range p.Prune {
		g.Go(func() error {
			if a.prune(ctx, ref) {
				mu.Lock()
				pruned = append(pruned, ref)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait()
	if len(pruned) > 0 {
		if err := a.inventory.remove(ctx, pruned); err != nil {
			a.cfg.Log.Error("pruned objects are still listed; they will be looked for again", "error", err)
			return time.Now().Add(5 * time.Second)
		}
		a.mu.Lock()
		for _, ref := range pruned {
			delete(a.state, ref)
			delete(a.fresh, ref)
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return decide(a.desired, a.complete, a.inventory.refs, a.state, time.Now()).wakeAt()
}

// wakeAt is when to look again: at once if something is left to do, else when a failed one is due.
func (p plan) wakeAt() time.Time {
	if len(p.Apply)+len(p.Prune) > 0 {
		return time.Now()
	}
	return p.Wake
}

// attempt is what came of an apply.
type attempt struct {
	live    *unstructured.Unstructured // as it is now; nil: not there
	drift   *mesh.Drift                // what somebody else had done to it, found on the way; nil: nothing
	held    bool                       // left as it was found
	differs bool                       // held, and not as desired
	taken   bool                       // our owner label is off
	err     error
}

func (a *Applier) apply(ctx context.Context, ref mesh.Ref, w wish) {
	a.mu.Lock()
	_, ours := a.live[ref]
	ours = ours && len(a.blind) == 0 && !a.state[ref].taken
	k, fresh := a.state[ref], a.fresh[ref]
	a.mu.Unlock()
	wasThere := k.ok && !k.absent
	var got attempt
	if held := w.hold.at(time.Now()); held && !fresh {
		got = a.leave(ctx, ref, w, wasThere)
	} else if got = a.put(ctx, ref, w, ours, wasThere && !k.held && k.hash == w.hash); held && got.err == nil {
		got = a.leave(ctx, ref, w, true) // it never was applied: there has to be something to hold
	}
	if ctx.Err() != nil {
		return
	}
	a.settle(ctx, ref, w, got)
}

// settle notes and reports what became of an apply.
func (a *Applier) settle(ctx context.Context, ref mesh.Ref, w wish, got attempt) {
	a.mu.Lock()
	old := a.state[ref]
	k := known{hash: w.hash, ok: got.err == nil, drifts: old.drifts, drift: old.drift, held: got.held, differs: got.differs, taken: got.taken, last: old.last, told: old.told}
	k.absent = got.err == nil && got.live == nil
	if got.drift != nil && (k.last == nil || k.last.Corrected || got.taken || old.taken || got.drift.At.After(k.last.At)) {
		k.last = got.drift
	}
	var corrected *mesh.Drift
	if got.err != nil {
		k.err = got.err.Error()
		k.drifted = old.drifted && !got.taken // still to be put back
		if old.hash == w.hash {
			k.tries = old.tries
		}
		k.tries++
		k.next = time.Now().Add(backOff(k.tries))
	} else {
		delete(a.fresh, ref)
		if got.live != nil {
			a.live[ref] = leftAs(got.live)
		}
		if !k.held && k.last != nil && !k.last.Corrected {
			back := *k.last
			back.Corrected = true
			k.last = &back
			a.drifted++
			if now := time.Now(); exact(ref) && now.Sub(k.told) > tellEvery {
				corrected, k.told = &back, now
			}
		}
	}
	a.state[ref] = k
	if _, wanted := a.desired[ref]; wanted {
		a.report(ref)
	}
	a.mu.Unlock()
	if got.err != nil && k.err != old.err { // once, however often it is tried again
		a.cfg.Log.Warn("an object was not applied", "object", ref.String(), "error", got.err)
	}
	if corrected != nil {
		a.tell(ctx, ref, got.live, corrected)
	}
}

// report sends the outcome of an object as it is known. a.mu is held: two outcomes of an object must not overtake each other.
func (a *Applier) report(ref mesh.Ref) {
	raw, err := json.Marshal(a.state[ref].outcome(a.refused[ref]))
	if err == nil {
		err = a.cfg.Outcomes.Set(synclog.Key{Type: mesh.ItemOutcome, Name: ref.String()}, raw)
	}
	if err != nil {
		a.cfg.Log.Error("an outcome can't be reported", "object", ref.String(), "error", err)
	}
}

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
