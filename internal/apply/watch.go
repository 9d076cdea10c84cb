package apply

import (
	"context"
	"encoding/json"
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

func (f *follower) ref(u *unstructured.Unstructured) mesh.Ref {
	gvk := u.GroupVersionKind()
	return mesh.Ref{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Namespace: u.GetNamespace(), Name: u.GetName()}
}

// seen compares an object with what we left there. f.a.mu is held.
func (f *follower) seen(u *unstructured.Unstructured) {
	ref := f.ref(u)
	left, known := f.a.live[ref]
	if !known {
		f.a.live[ref] = mesh.Fingerprint{}
	}
	if left == fingerprint(u) {
		return
	}
	w, wanted := f.a.desired[ref]
	if !wanted {
		return
	}
	var manifest map[string]any
	if json.Unmarshal(w.manifest, &manifest) != nil || covers(u.Object, manifest) {
		return
	}
	f.drifted(ref, "changed")
}

// drifted makes the loop put an object back. f.a.mu is held.
func (f *follower) drifted(ref mesh.Ref, how string) {
	k, applied := f.a.state[ref]
	if _, wanted := f.a.desired[ref]; !wanted || !applied || !k.ok || k.drifted {
		return
	}
	f.a.state[ref] = k.withDrift(time.Now())
	f.a.drifted++
	f.a.cfg.Log.Warn("an object of ours is not as we left it; it is put back", "object", ref.String(), "how", how)
	f.a.poke()
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
	ref := f.ref(u)
	delete(f.a.live, ref)
	f.drifted(ref, "deleted, or its owner label was removed")
}

// Listed is told of all there are: what is not among them went while nobody looked. The API server answers, too: what failed is tried again now.
func (f *follower) Listed(present map[string]bool) {
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	for ref := range f.a.live {
		if f.isMine(ref) && !present[nameOf(ref)] {
			delete(f.a.live, ref)
			f.drifted(ref, "gone while the watch was broken")
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
