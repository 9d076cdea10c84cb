// Package observe reports what a cluster runs: watches in, compact inventory items out.
//
// In: a client of the cluster's API server. Out: items in a synclog.Source, set and deleted as the cluster changes, complete once
// every kind has been listed. It never polls and keeps no copy of an object: what a watch brings is converted and forgotten.
// It must not write to the cluster, and must not decide anything: what an item means is the management server's business.
//
// A new kind to observe is a row in kinds() and a pure conversion function.
package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// Config is what Run needs.
type Config struct {
	Client dynamic.Interface
	Source *synclog.Source
	Log    *slog.Logger
	// KubernetesVersion of the API server, for the cluster item.
	KubernetesVersion string
}

// kind is one kind of object to watch.
type kind struct {
	resource schema.GroupVersionResource
	fields   string // field selector; empty: all
	optional bool   // its CRD may be missing: then there are none
	// item converts an object; ok is false when it is of no interest.
	item func(*unstructured.Unstructured) (key synclog.Key, value any, ok bool)
	// fact, if set, gets the object too (nil when it is gone): it is part of what is known of the cluster as a whole.
	fact func(f *facts, name string, o *unstructured.Unstructured)
}

func kinds() []kind {
	return []kind{
		{resource: gvr("", "v1", "namespaces"), item: namespaceItem, fact: (*facts).namespace},
		{resource: gvr("", "v1", "services"), item: serviceItem},
		{resource: gvr("", "v1", "serviceaccounts"), item: serviceAccountItem},
		{resource: gvr("apps", "v1", "deployments"), item: workloadItem("Deployment"), fact: (*facts).deployment},
		{resource: gvr("apps", "v1", "statefulsets"), item: workloadItem("StatefulSet")},
		{resource: gvr("apps", "v1", "daemonsets"), item: workloadItem("DaemonSet")},
		meshConfigs("istio"),
		{resource: gvr("gateway.networking.k8s.io", "v1", "gateways"), optional: true, item: gatewayItem},
	}
}

// meshConfigs watches the ConfigMaps of one name in all namespaces: MeshConfigs are called istio, or istio-REVISION. Never all ConfigMaps: they may be large.
func meshConfigs(name string) kind {
	return kind{resource: gvr("", "v1", "configmaps"), fields: "metadata.name=" + name, item: noItem, fact: (*facts).configMap}
}

func gvr(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}

// Run watches until ctx ends; it returns nil then. A kind that can't be listed is retried for ever, with back-off, and named in the cluster item's warnings;
// the inventory is not complete before every kind has been listed.
func Run(ctx context.Context, cfg Config) error {
	all := kinds()
	o := &observer{cfg: cfg, facts: newFacts(cfg.KubernetesVersion), listed: make([]bool, len(all)), revisions: map[string]bool{}}
	o.watchRevision = func(revision string) {
		o.tasks.Go(func() { o.watch(ctx, -1, meshConfigs("istio-"+revision)) })
	}
	for i, k := range all {
		o.tasks.Go(func() { o.watch(ctx, i, k) })
	}
	o.tasks.Wait()
	return nil
}

// observer joins the watches: one lock, since items are small and changes are rare compared with what a CPU does.
type observer struct {
	cfg           Config
	tasks         sync.WaitGroup
	watchRevision func(revision string)

	mu     sync.Mutex
	facts  *facts
	listed []bool
	done   bool
	// revisions of istiod whose MeshConfig is being watched.
	revisions map[string]bool
}

// reportFacts sends what is known of the cluster as a whole; the Source drops an unchanged value. o.mu is held.
func (o *observer) reportFacts() {
	for _, d := range o.facts.istiods {
		if d.revision != "" && !o.revisions[d.revision] {
			o.revisions[d.revision] = true
			o.watchRevision(d.revision)
		}
	}
	o.set(synclog.Key{Type: mesh.ItemCluster, Name: mesh.ItemCluster}, o.facts.info())
}

func (o *observer) set(key synclog.Key, value any) {
	raw, err := json.Marshal(value)
	if err == nil {
		err = o.cfg.Source.Set(key, raw)
	}
	if err != nil {
		o.cfg.Log.Error("an object can't be reported", "item", key.String(), "error", err)
	}
}

// hasListed notes that kind i has been listed once; the last one makes the inventory complete. o.mu is held.
func (o *observer) hasListed(i int) {
	if o.done || i < 0 {
		return
	}
	o.listed[i] = true
	for _, l := range o.listed {
		if !l {
			return
		}
	}
	o.done = true
	o.reportFacts()
	o.cfg.Source.SetComplete(true)
	o.cfg.Log.Info("inventory complete")
}

// watch keeps one kind up to date.
func (o *observer) watch(ctx context.Context, i int, k kind) {
	s := &sink{o: o, i: i, kind: k, keys: map[string]synclog.Key{}}
	client := o.cfg.Client.Resource(k.resource)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.FieldSelector = k.fields
			list, err := client.List(ctx, opts)
			if err != nil {
				if k.optional && apierrors.IsNotFound(err) {
					_ = s.Replace(nil, "")
					return nil, fmt.Errorf("%s are not known to this cluster (yet): %w", k.resource.Resource, err)
				}
				o.warn(k.resource.Resource, err)
				return nil, err
			}
			o.warn(k.resource.Resource, nil)
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = k.fields
			return client.Watch(ctx, opts)
		},
	}
	r := cache.NewReflectorWithOptions(withoutWatchList{lw}, &unstructured.Unstructured{}, s, cache.ReflectorOptions{Name: k.resource.Resource})
	r.RunWithContext(ctx)
}

// warn notes, or with nil forgets, that a kind can't be listed.
func (o *observer) warn(resource string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.facts.warn(resource, err) {
		o.reportFacts()
	}
}

// sink is the store a reflector fills: it keeps the item keys of a kind and no objects.
type sink struct {
	o    *observer
	i    int
	kind kind
	keys map[string]synclog.Key // by namespace/name
}

func (s *sink) apply(obj any) error {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return fmt.Errorf("watch of %s brought a %T", s.kind.resource.Resource, obj)
	}
	name := objectName(u)
	if s.kind.fact != nil {
		s.kind.fact(s.o.facts, name, u)
		s.o.reportFacts()
	}
	key, value, wanted := s.kind.item(u)
	if !wanted {
		return nil
	}
	s.keys[name] = key
	s.o.set(key, value)
	return nil
}

func (s *sink) remove(name string) {
	if s.kind.fact != nil {
		s.kind.fact(s.o.facts, name, nil)
		s.o.reportFacts()
	}
	if key, ok := s.keys[name]; ok {
		delete(s.keys, name)
		s.o.cfg.Source.Delete(key)
	}
}

// Add is a watch's ADDED.
func (s *sink) Add(obj any) error { return s.Update(obj) }

// Update is a watch's MODIFIED.
func (s *sink) Update(obj any) error {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	return s.apply(obj)
}

// Delete is a watch's DELETED.
func (s *sink) Delete(obj any) error {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	if u, ok := obj.(*unstructured.Unstructured); ok {
		s.remove(objectName(u))
	}
	return nil
}

// Replace is a whole list.
func (s *sink) Replace(list []any, _ string) error {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	present := make(map[string]bool, len(list))
	for _, obj := range list {
		if u, ok := obj.(*unstructured.Unstructured); ok {
			present[objectName(u)] = true
		}
		if err := s.apply(obj); err != nil {
			return err
		}
	}
	for name := range s.keys {
		if !present[name] {
			s.remove(name)
		}
	}
	if s.kind.fact != nil {
		if s.kind.fields == "" { // else another watch brings the rest
			s.o.facts.keepOnly(s.kind.resource.Resource, present)
		}
	}
	s.o.hasListed(s.i)
	return nil
}

// Resync is not used: nothing is cached that could be handed out again.
func (s *sink) Resync() error { return nil }

// withoutWatchList makes a reflector page through an ordinary list first: an initial list by watch would deliver objects one by one, and Replace,
// by which we know that a kind has been seen whole, only at the end with all of them in memory.
type withoutWatchList struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is how a reflector asks.
func (withoutWatchList) IsWatchListSemanticsUnSupported() bool { return true }

func objectName(u *unstructured.Unstructured) string {
	if ns := u.GetNamespace(); ns != "" {
		return ns + "/" + u.GetName()
	}
	return u.GetName()
}
