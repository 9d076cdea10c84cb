package apply

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/internal/mesh"
)

// scope is what one watch covers: a resource in one namespace, or (empty) in all.
type scope struct {
	resource
	namespace string
}

// ensureWatch sees to it that our objects of a resource are watched, from its first apply on. Objects of the agent's own namespace are watched
// there alone: that needs no right in any other namespace.
func (a *Applier) ensureWatch(res resource, ref mesh.Ref) {
	s := scope{resource: res}
	if ref.Namespace == a.cfg.Namespace {
		s.namespace = ref.Namespace
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.watched[s] {
		a.watched[s] = true
		a.follow(s)
	}
}

// watch keeps a.live right and notices drift, until ctx ends.
func (a *Applier) watch(ctx context.Context, s scope) {
	client := dynamic.ResourceInterface(a.cfg.Client.Resource(s.GroupVersionResource))
	if s.namespace != "" {
		client = a.cfg.Client.Resource(s.GroupVersionResource).Namespace(s.namespace)
	}
	f := &follower{a: a, scope: s}
	follow.Run(ctx, follow.Config{Client: client, Name: s.GroupResource().String(), Labels: OwnerLabel + "=" + OwnerValue, Optional: true, Log: a.cfg.Log, Failed: func(err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if delete(a.blind, s); err != nil {
			a.blind[s] = true
		}
	}}, f)
}

// follower is what a watch tells. It keeps fingerprints, no objects.
type follower struct {
	a     *Applier
	scope scope
}

// refOf names an object as it was read.
func refOf(u *unstructured.Unstructured) mesh.Ref {
	gvk := u.GroupVersionKind()
	return mesh.Ref{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Namespace: u.GetNamespace(), Name: u.GetName()}
}

// left is how an object was when we wrote it last.
type left struct {
	print   mesh.Fingerprint
	version uint64 // its resourceVersion; 0: unknown
}

func leftAs(u *unstructured.Unstructured) left {
	return left{print: fingerprint(u), version: versionOf(u)}
}

// versionOf is the resourceVersion as a number: within a resource, versions can be compared (Kubernetes KEP-5504; true of etcd's ever since).
func versionOf(u *unstructured.Unstructured) uint64 {
	v, err := strconv.ParseUint(u.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// seen compares an object with what we left there. f.a.mu is held.
func (f *follower) seen(u *unstructured.Unstructured) {
	ref := refOf(u)
	was, known := f.a.live[ref]
	if !known {
		f.a.live[ref] = left{}
		f.back(ref)
	}
	if was.version > versionOf(u) && versionOf(u) > 0 {
		return // news from before our own last write
	}
	if exact(ref) {
		f.status(ref, u)
	}
	if was.print == fingerprint(u) {
		return
	}
	w, wanted := f.a.desired[ref]
	if !wanted || f.a.state[ref].hash != w.hash {
		return // what is desired has changed, too: it is about to be applied
	}
	desired, err := parse(ref, w.manifest)
	if err != nil {
		return
	}
	diffs := differences(u.Object, desired.Object, exact(ref))
	if k := f.a.state[ref]; len(diffs) == 0 && !k.held {
		return
	}
	var d *mesh.Drift
	if len(diffs) > 0 {
		d = driftOf(u, diffs, exact(ref), true, time.Now())
	}
	f.drifted(ref, d)
}

// back makes the loop look at once at an object that has got our label (again). f.a.mu is held.
func (f *follower) back(ref mesh.Ref) {
	if k, tried := f.a.state[ref]; tried && !k.ok && k.tries > 0 {
		k.next = time.Time{}
		f.a.state[ref] = k
		f.a.poke()
	}
}

// status notes what istiod says. f.a.mu is held.
func (f *follower) status(ref mesh.Ref, u *unstructured.Unstructured) {
	text, known := refusal(u)
	if !known || text == f.a.refused[ref] {
		return
	}
	if text == "" {
		delete(f.a.refused, ref)
	} else {
		f.a.refused[ref] = text
		f.a.cfg.Log.Warn("istiod does not take an object of ours as it is", "object", ref.String(), "says", text)
	}
	if w, wanted := f.a.desired[ref]; wanted && f.a.state[ref].hash == w.hash {
		f.a.report(ref)
	}
}

// fightEvery bounds how long a policy that others keep changing stays as they have it.
const fightEvery = time.Second

// drifted makes the loop put an object back, or look at it when d is nil. f.a.mu is held.
func (f *follower) drifted(ref mesh.Ref, d *mesh.Drift) {
	k, applied := f.a.state[ref]
	if _, wanted := f.a.desired[ref]; !wanted || !applied || !k.ok || k.drifted {
		return
	}
	now := time.Now()
	if k = k.withDrift(now); exact(ref) {
		k.next = earlier(k.next, now.Add(fightEvery))
	}
	if d != nil {
		k.last = d
	}
	f.a.state[ref] = k
	f.a.poke()
	if d == nil || k.held {
		return // what there is to say, the loop finds out
	}
	f.a.cfg.Log.Warn("an object of ours is not as we left it; it is put back", "object", ref.String(), "manager", d.Manager, "operation", d.Operation, "what", d.What)
	f.a.report(ref)
}

// gone is the drift of an object that is not there any more. Who deleted it, the API server does not tell.
func gone() *mesh.Drift {
	return &mesh.Drift{Operation: operationDelete, At: time.Now().UTC().Truncate(time.Second), What: "deleted"}
}

// Set is told of an object of ours.
func (f *follower) Set(u *unstructured.Unstructured) {
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	f.seen(u)
}

// Gone is told that the object is gone, or our label is. Which one, put finds out.
func (f *follower) Gone(u *unstructured.Unstructured) {
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	ref := refOf(u)
	delete(f.a.live, ref)
	delete(f.a.refused, ref)
	f.drifted(ref, nil)
}

// Listed is told of all there are: what is not among them went while nobody looked. The API server answers, too: what failed is tried again now.
func (f *follower) Listed(present map[string]bool) {
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	for ref := range f.a.live {
		if f.isMine(ref) && !present[nameOf(ref)] {
			delete(f.a.live, ref)
			delete(f.a.refused, ref)
			f.drifted(ref, nil)
		}
	}
	for ref, k := range f.a.state {
		if f.isMine(ref) && !k.ok && k.tries > 0 {
			k.next = time.Time{}
			f.a.state[ref] = k
			f.a.poke()
		}
	}
}

// isMine reports whether ref is within this follower's watch.
func (f *follower) isMine(ref mesh.Ref) bool {
	return (f.scope.namespace == "" || f.scope.namespace == ref.Namespace) && f.a.resources.is(ref, f.scope.resource)
}

// fingerprint is of what a person would call the object: without status and what the API server keeps for itself.
func fingerprint(u *unstructured.Unstructured) mesh.Fingerprint {
	if u == nil {
		return mesh.Fingerprint{}
	}
	m := map[string]any{}
	for k, v := range u.Object {
		if k != "status" && k != "metadata" {
			m[k] = v
		}
	}
	m["labels"], m["annotations"] = u.GetLabels(), u.GetAnnotations()
	raw, err := json.Marshal(m)
	if err != nil {
		return mesh.Fingerprint{}
	}
	return mesh.FingerprintOf(raw)
}
