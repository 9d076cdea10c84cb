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
	"log/slog"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/kube/follow"
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
	object   string // the name of the only objects of interest, in whatever namespace; empty: all
	labels   string // selector; empty: all
	fields   string // selector; empty: all
	optional bool   // its CRD may be missing: then there are none
	// item converts an object; ok is false when it is of no interest.
	item func(*unstructured.Unstructured) (key synclog.Key, value any, ok bool)
	// fact, if set, gets the object too (nil when it is gone): it is part of what is known of the cluster as a whole.
	fact func(f *facts, name string, o *unstructured.Unstructured)
}

func kinds() []kind {
	return []kind{
		{resource: gvr("", "v1", "namespaces"), item: namespaceItem, fact: (*facts).namespace},
		{resource: gvr("", "v1", "services"), item: serviceItem, fact: (*facts).service},
		{resource: gvr("", "v1", "serviceaccounts"), item: serviceAccountItem},
		{resource: gvr("apps", "v1", "deployments"), item: workloadItem("Deployment"), fact: (*facts).deployment},
		{resource: gvr("apps", "v1", "statefulsets"), item: workloadItem("StatefulSet")},
		{resource: gvr("apps", "v1", "daemonsets"), item: workloadItem("DaemonSet")},
		{resource: gvr("batch", "v1", "cronjobs"), item: cronJobItem},
		{resource: gvr("batch", "v1", "jobs"), item: jobItem},
		{resource: gvr("", "v1", "pods"), labels: uncontrolled, fields: unfinished, item: podItem},
		{resource: gvr("security.istio.io", "v1", "authorizationpolicies"), optional: true, item: foreignItem("AuthorizationPolicy")},
		{resource: gvr("security.istio.io", "v1", "peerauthentications"), optional: true, item: foreignItem("PeerAuthentication")},
		meshConfig("istio"),
		{resource: gvr("gateway.networking.k8s.io", "v1", "gateways"), optional: true, item: gatewayItem},
	}
}

const (
	// uncontrolled selects the Pods that no Deployment, ReplicaSet, StatefulSet, DaemonSet or Job made, by the labels that these give them: the API server leaves the others out,
	// which are nearly all, and whose owners are observed.
	uncontrolled = "!pod-template-hash,!controller-revision-hash,!controller-uid,!batch.kubernetes.io/controller-uid"
	unfinished   = "status.phase!=Succeeded,status.phase!=Failed"
)

// meshConfig watches the MeshConfig of a revision by its name alone: a cluster has many ConfigMaps, and they are not ours to read.
func meshConfig(name string) kind {
	return kind{resource: gvr("", "v1", "configmaps"), object: name, item: noItem, fact: (*facts).configMap}
}

// nodes are watched only where an east-west gateway is reached by their ports.
func nodes() kind {
	return kind{resource: gvr("", "v1", "nodes"), item: noItem, fact: (*facts).node}
}

// maxRevisions bounds the watches that labels of Deployments can make us open.
const maxRevisions = 16

func gvr(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}

// Run watches until ctx ends; it returns nil then. A kind that can't be listed is retried for ever, with back-off, and named in the cluster item's warnings;
// the inventory is not complete before every kind has been listed.
func Run(ctx context.Context, cfg Config) error {
	var wg sync.WaitGroup
	o := &observer{cfg: cfg, facts: newFacts(cfg.KubernetesVersion), waiting: map[*sink]bool{}, revisions: map[string]bool{}}
	o.start = func(k kind) {
		s := &sink{o: o, kind: k, keys: map[string]synclog.Key{}}
		o.waiting[s] = true
		wg.Go(func() { s.follow(ctx) })
	}
	o.mu.Lock()
	for _, k := range kinds() {
		o.start(k)
	}
	o.mu.Unlock()
	wg.Wait()
	return nil
}

// observer joins the watches: one lock, since items are small and changes are rare compared with what a CPU does.
type observer struct {
	cfg   Config
	start func(kind) // o.mu is held

	mu        sync.Mutex
	facts     *facts
	waiting   map[*sink]bool // not listed yet
	revisions map[string]bool
	nodes     bool // are watched
	done      bool
}

// reportFacts sends what is known of the cluster as a whole; the Source drops an unchanged value. o.mu is held.
func (o *observer) reportFacts() {
	o.set(synclog.Key{Type: mesh.ItemCluster, Name: mesh.ItemCluster}, o.facts.info())
	for _, r := range o.facts.revisions() {
		if !o.revisions[r] && len(o.revisions) < maxRevisions {
			o.revisions[r] = true
			o.start(meshConfig("istio-" + r))
		}
	}
	if len(o.facts.nodePorts) > 0 && !o.nodes {
		o.nodes = true
		o.start(nodes())
	}
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

// listed notes that a kind has been listed once; the last one makes the inventory complete. o.mu is held.
func (o *observer) listed(s *sink) {
	delete(o.waiting, s)
	if o.done || len(o.waiting) > 0 {
		return
	}
	o.done = true
	o.reportFacts()
	o.cfg.Source.SetComplete(true)
	o.cfg.Log.Info("inventory complete")
}

// sink keeps one kind up to date. It keeps the keys of items, and no objects.
type sink struct {
	o    *observer
	kind kind
	keys map[string]synclog.Key // by namespace/name; the zero Key: a fact only
}

func (s *sink) follow(ctx context.Context) {
	cfg := follow.Config{
		Client: s.o.cfg.Client.Resource(s.kind.resource), Name: s.kind.resource.Resource, Optional: s.kind.optional, Log: s.o.cfg.Log,
		Failed: func(err error) {
			s.o.mu.Lock()
			defer s.o.mu.Unlock()
			if s.o.facts.warn(s.kind.resource.Resource, err) {
				s.o.reportFacts()
			}
		},
	}
	cfg.Labels, cfg.Fields = s.kind.labels, s.kind.fields
	if s.kind.object != "" {
		cfg.Fields = "metadata.name=" + s.kind.object
	}
	follow.Run(ctx, cfg, s)
}

// Set reports an object.
func (s *sink) Set(u *unstructured.Unstructured) {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	name := follow.Name(u)
	if s.kind.fact != nil {
		s.kind.fact(s.o.facts, name, u)
		s.o.reportFacts()
	}
	key, value, wanted := s.kind.item(u)
	switch {
	case wanted:
		s.keys[name] = key
		s.o.set(key, value)
	case s.kind.fact != nil:
		s.keys[name] = key
	default: // it may have been of interest before
		s.remove(name)
	}
}

// Gone takes an object back.
func (s *sink) Gone(u *unstructured.Unstructured) {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	s.remove(follow.Name(u))
}

func (s *sink) remove(name string) {
	key, known := s.keys[name]
	if !known {
		return
	}
	delete(s.keys, name)
	if s.kind.fact != nil {
		s.kind.fact(s.o.facts, name, nil)
		s.o.reportFacts()
	}
	if key != (synclog.Key{}) {
		s.o.cfg.Source.Delete(key)
	}
}

// Listed takes back what is not there any more.
func (s *sink) Listed(present map[string]bool) {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	for name := range s.keys {
		if !present[name] {
			s.remove(name)
		}
	}
	s.o.listed(s)
}
