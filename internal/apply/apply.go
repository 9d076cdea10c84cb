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
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

const (
	// FieldManager is the one manager of all we apply.
	FieldManager = "gloo-mesh-agent"
	// OwnerLabel with value OwnerValue marks what is ours. Where a person has removed it, the object is theirs.
	OwnerLabel = "owner.gloo.solo.io/name"
	// OwnerValue is the value of OwnerLabel.
	OwnerValue = "gloo-mesh"

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
	wake      chan struct{}

	mu       sync.Mutex
	desired  map[mesh.Ref]wish
	complete bool
	state    map[mesh.Ref]known
	live     map[mesh.Ref]mesh.Fingerprint // what is ours in the cluster, by watch: fingerprint of what we left there, zero before we applied
	watched  map[scope]bool
	blind    map[scope]bool // whose watch does not work at present: what it told may be out of date
	drifted  int            // objects put back since the start
	follow   func(scope)    // starts a watch that ends with Run
}

// New allocates an Applier.
func New(cfg Config) *Applier {
	return &Applier{
		cfg: cfg, resources: newResources(cfg.Get), inventory: newInventory(cfg.Client, cfg.Namespace), wake: make(chan struct{}, 1),
		desired: map[mesh.Ref]wish{}, state: map[mesh.Ref]known{}, live: map[mesh.Ref]mesh.Fingerprint{}, watched: map[scope]bool{}, blind: map[scope]bool{},
	}
}

// Desired takes changes of the desired state; it returns at once.
func (a *Applier) Desired(_ context.Context, c synclog.Changes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, value := range c.Set {
		if ref, ok := mesh.ParseRef(key.Name); ok && key.Type == mesh.ItemObject {
			a.desired[ref] = wish{manifest: value, hash: mesh.FingerprintOf(value)}
		}
	}
	for _, key := range c.Deleted {
		if ref, ok := mesh.ParseRef(key.Name); ok && key.Type == mesh.ItemObject {
			delete(a.desired, ref)
			a.cfg.Outcomes.Delete(synclog.Key{Type: mesh.ItemOutcome, Name: key.Name})
		}
	}
	a.complete = c.Complete
	a.poke()
}

// Stats counts what an Applier has to do with.
type Stats struct {
	Desired int `json:"desired"`
	Applied int `json:"applied"` // of Desired, as they should be
	Failed  int `json:"failed"`  // of Desired, not taken by the cluster
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

	if err := a.inventory.add(ctx, p.Record); err != nil && ctx.Err() == nil {
		// What is listed already goes on; what is new waits, since it could never be pruned.
		for _, ref := range p.Record {
			a.settle(ref, wishes[ref], nil, fmt.Errorf("not applied yet, because it can't be listed in ConfigMap %s/%s first: %w", a.cfg.Namespace, InventoryName, err))
		}
		p.Apply = slices.DeleteFunc(p.Apply, func(r mesh.Ref) bool { return !a.inventory.refs[r] })
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

func (a *Applier) apply(ctx context.Context, ref mesh.Ref, w wish) {
	a.mu.Lock()
	_, ours := a.live[ref]
	ours = ours && len(a.blind) == 0
	a.mu.Unlock()
	result, err := a.put(ctx, ref, w, ours)
	if ctx.Err() != nil {
		return
	}
	a.settle(ref, w, result, err)
}

// settle notes and reports what became of an apply.
func (a *Applier) settle(ref mesh.Ref, w wish, result *unstructured.Unstructured, err error) {
	out := mesh.Outcome{Hash: w.hash, OK: err == nil}
	a.mu.Lock()
	k := known{hash: w.hash, ok: err == nil, drifts: a.state[ref].drifts, drift: a.state[ref].drift}
	if err != nil {
		out.Error = err.Error()
		if old := a.state[ref]; old.hash == w.hash {
			k.tries = old.tries
		}
		k.tries++
		k.next = time.Now().Add(backOff(k.tries))
	} else {
		a.live[ref] = fingerprint(result)
	}
	a.state[ref] = k
	_, wanted := a.desired[ref]
	a.mu.Unlock()
	if err != nil {
		a.cfg.Log.Warn("an object was not applied", "object", ref.String(), "error", err)
	}
	if wanted {
		a.report(ref, out)
	}
}

func (a *Applier) report(ref mesh.Ref, out mesh.Outcome) {
	raw, err := json.Marshal(out)
	if err == nil {
		err = a.cfg.Outcomes.Set(synclog.Key{Type: mesh.ItemOutcome, Name: ref.String()}, raw)
	}
	if err != nil {
		a.cfg.Log.Error("an outcome can't be reported", "object", ref.String(), "error", err)
	}
}

// put applies one object. It asks first whether the object is somebody else's, unless the watch has shown that it is ours.
func (a *Applier) put(ctx context.Context, ref mesh.Ref, w wish, ours bool) (*unstructured.Unstructured, error) {
	u, err := parse(ref, w.manifest)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, res, err := a.client(ctx, ref)
	if err != nil {
		return nil, err
	}
	a.ensureWatch(res, ref)
	if !ours {
		live, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
		switch {
		case err == nil && live.GetLabels()[OwnerLabel] != OwnerValue:
			return nil, fmt.Errorf("%s %s exists and is not ours (no label %s=%s): delete it or give it the label, or rename what wants it", ref.Kind, nameOf(ref), OwnerLabel, OwnerValue)
		case err != nil && !apierrors.IsNotFound(err):
			return nil, explain(ref, "get", res, err)
		}
	}
	result, err := client.Apply(ctx, ref.Name, u, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	if apierrors.IsNotFound(err) {
		// Its namespace is missing, or its CRD has gone since the kind was looked up.
		a.resources.forget(ref)
		if _, missing := a.resources.find(ctx, ref); missing != nil {
			return nil, missing
		}
	}
	if err != nil {
		return nil, explain(ref, "patch", res, err)
	}
	return result, nil
}

// parse reads a manifest and holds it against its name: an object under another's name would never be pruned.
func parse(ref mesh.Ref, manifest []byte) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(manifest); err != nil {
		return nil, fmt.Errorf("%s %s: the manifest can't be read: %w", ref.Kind, nameOf(ref), err)
	}
	gvk := u.GroupVersionKind()
	got := mesh.Ref{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Namespace: u.GetNamespace(), Name: u.GetName()}
	if got != ref {
		return nil, fmt.Errorf("the manifest sent as %s is one of %s", ref, got)
	}
	if u.GetLabels()[OwnerLabel] != OwnerValue {
		return nil, fmt.Errorf("%s %s: the manifest lacks the label %s=%s", ref.Kind, nameOf(ref), OwnerLabel, OwnerValue)
	}
	return u, nil
}

func nameOf(r mesh.Ref) string {
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

// explain puts what, where and which before the API server's words.
func explain(ref mesh.Ref, verb string, res resource, err error) error {
	if missing := missingRight(err); missing != "" {
		return fmt.Errorf("the agent may not %s %s in namespace %q: its ClusterRole lacks that: %w", missing, res.GroupResource(), ref.Namespace, err)
	}
	return fmt.Errorf("%s %s %s: %w", verb, ref.Kind, nameOf(ref), err)
}

// missingRight is the verb that authorization refused, or "". "Forbidden" is also what admission, quotas and namespaces that are being deleted answer;
// only authorization says who "cannot VERB resource" (k8s.io/apiserver, responsewriters.ForbiddenMessage). The verb need not be the one
// asked for: an apply that would create needs create as well as patch.
func missingRight(err error) string {
	if !apierrors.IsForbidden(err) {
		return ""
	}
	_, rest, _ := strings.Cut(err.Error(), " cannot ")
	verb, _, ok := strings.Cut(rest, " resource ")
	if !ok || strings.Contains(verb, " ") {
		return ""
	}
	return verb
}

func (a *Applier) client(ctx context.Context, ref mesh.Ref) (dynamic.ResourceInterface, resource, error) {
	res, err := a.resources.find(ctx, ref)
	if err != nil {
		return nil, resource{}, err
	}
	r := a.cfg.Client.Resource(res.GroupVersionResource)
	if res.namespaced {
		return r.Namespace(ref.Namespace), res, nil
	}
	return r, res, nil
}

// prune deletes what is ours and no longer desired; done means that it need not be listed any more.
func (a *Applier) prune(ctx context.Context, ref mesh.Ref) (done bool) {
	err := a.remove(ctx, ref)
	if ctx.Err() != nil {
		return false
	}
	if err == nil || errors.As(err, new(unknownKind)) {
		return true
	}
	a.cfg.Log.Warn("an object that is no longer desired could not be deleted", "object", ref.String(), "error", err)
	a.mu.Lock()
	k := a.state[ref]
	k.tries++
	k.next = time.Now().Add(backOff(k.tries))
	a.state[ref] = k
	a.mu.Unlock()
	return false
}

func (a *Applier) remove(ctx context.Context, ref mesh.Ref) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, res, err := a.client(ctx, ref)
	if err != nil {
		return err
	}
	live, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return explain(ref, "get", res, err)
	case live.GetLabels()[OwnerLabel] != OwnerValue:
		a.cfg.Log.Info("an object that is no longer desired is left: somebody took our owner label off", "object", ref.String())
		return nil
	}
	uid := live.GetUID()
	err = client.Delete(ctx, ref.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain(ref, "delete", res, err)
	}
	a.cfg.Log.Info("an object that is no longer desired was deleted", "object", ref.String())
	return nil
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
