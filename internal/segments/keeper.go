// Package segments makes Services of a cluster global, and names answer there.
//
// In: a mesh.SegmentOrder from the management server, which says the whole of itself. Out: labels on Services that people made, stubs of Services that are only in other clusters, lines for
// the cluster's DNS, and a mesh.SegmentState: what was written, and what istiod and DNS were seen to answer. What it writes it lists first, in ConfigMap InventoryName; it takes back what is
// listed there and no longer ordered, and nothing else. It must not decide what is to be global, force a label that somebody else has set, or delete a Service that it did not make.
package segments

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/probe"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// InventoryName is the ConfigMap in the agent's namespace that lists what was written: key services, one namespace/name a line; key dns, the hosts.
const InventoryName = "gloo-mesh-agent-segments"

// FieldManager owns the labels and the lines of DNS, and nothing else, so that an empty apply takes back these alone.
const FieldManager = "gloo-mesh-agent-segments"

const (
	soon     = 200 * time.Millisecond // between looks while something is to come
	seldom   = 5 * time.Second        // the same when it has been for long
	quiet    = 15 * time.Second       // between looks while nothing changes
	hurry    = 20 * time.Second       // for how long after a change soon is
	callTime = 20 * time.Second
	askTime  = 5 * time.Second
)

// Served asks what istiod serves of Services ("namespace/name"), by name.
type Served func(ctx context.Context, wanted map[string]bool) (map[string]probe.ServedService, error)

// Config is what New needs.
type Config struct {
	Client    dynamic.Interface
	Namespace string // of the agent: where the inventory is
	Source    *synclog.Source
	Served    Served
	// Lookup resolves a name as a Pod here would; nil: by the resolver of the Pod.
	Lookup func(ctx context.Context, host string) ([]string, error)
	Log    *slog.Logger
}

// Keeper keeps the order. New allocates, Run works.
type Keeper struct {
	cfg                  Config
	wake                 chan struct{}
	services, configMaps dynamic.NamespaceableResourceInterface

	mu    sync.Mutex
	order *mesh.SegmentOrder // nil: none came yet
	hash  mesh.Fingerprint

	// Of Run alone:
	listed *inventory
	done   map[string]mesh.SegmentServiceState
	said   string
}

// New allocates a Keeper.
func New(cfg Config) *Keeper {
	if cfg.Lookup == nil {
		cfg.Lookup = net.DefaultResolver.LookupHost
	}
	core := func(resource string) dynamic.NamespaceableResourceInterface {
		return cfg.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource})
	}
	return &Keeper{cfg: cfg, wake: make(chan struct{}, 1), services: core("services"), configMaps: core("configmaps"), done: map[string]mesh.SegmentServiceState{}}
}

// Desired takes an order; it returns at once. An order that is missing, or can't be read, is no empty one: what was in force stays.
func (k *Keeper) Desired(c synclog.Changes) {
	raw, ok := c.Set[synclog.Key{Type: mesh.ItemSegments, Name: mesh.ItemSegments}]
	if !ok {
		return
	}
	o := &mesh.SegmentOrder{}
	if err := json.Unmarshal(raw, o); err != nil {
		k.cfg.Log.Error("the management server's order about Segments can't be read, so it is not followed", "error", err)
		return
	}
	k.mu.Lock()
	k.order, k.hash = o, mesh.FingerprintOf(raw)
	k.mu.Unlock()
	k.poke()
}

// Farewell is told that this cluster is deregistered: it shares nothing any more.
func (k *Keeper) Farewell() {
	k.mu.Lock()
	k.order, k.hash = &mesh.SegmentOrder{Complete: true}, mesh.Fingerprint{}
	k.mu.Unlock()
	k.poke()
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends; it returns nil then.
func (k *Keeper) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last mesh.Fingerprint
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-k.wake:
		}
		k.mu.Lock()
		order, hash := k.order, k.hash
		k.mu.Unlock()
		if hash != last {
			last, since = hash, time.Now()
		}
		changed, err := k.once(ctx, order, hash)
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("Segments are not in force, trying again", "error", err)
		}
		if changed {
			since = time.Now()
		}
		switch young := time.Since(since) < hurry; {
		case order == nil && err == nil:
			// nothing is to be done before an order comes
		case young && err == nil:
			timer.Reset(soon)
		case err != nil || k.unsettled():
			timer.Reset(seldom)
		default:
			timer.Reset(quiet)
		}
	}
}

func (k *Keeper) unsettled() bool {
	for _, s := range k.done {
		if !s.Labelled {
			return true
		}
	}
	return false
}

// once writes what is missing, takes back what is not wanted, looks, and tells. changed: it saw something else than before.
func (k *Keeper) once(ctx context.Context, order *mesh.SegmentOrder, hash mesh.Fingerprint) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if k.listed == nil {
		list := &inventory{configMaps: k.configMaps.Namespace(k.cfg.Namespace), services: map[string]bool{}}
		if err := list.load(ctx); err != nil {
			return false, err
		}
		k.listed = list
	}
	if order == nil {
		if k.listed.empty() {
			return false, nil
		}
		order = &mesh.SegmentOrder{} // nothing is written, nothing is taken back; that something is here is told
	}
	if err := k.listed.add(ctx, order); err != nil {
		return false, err
	}
	k.done = map[string]mesh.SegmentServiceState{}
	for _, s := range order.Services {
		k.done[s.Key()] = k.put(ctx, s)
	}
	dnsErr := k.putDNS(ctx, order)
	if order.Complete {
		if err := k.takeBack(ctx, order, dnsErr != nil); err != nil {
			return false, err
		}
	}
	state := k.look(ctx, order, hash)
	if dnsErr != nil {
		for h, s := range state.Hosts {
			s.Error = dnsErr.Error()
			state.Hosts[h] = s
		}
	}
	raw, err := json.Marshal(state)
	if err != nil {
		return false, err
	}
	key := synclog.Key{Type: mesh.ItemSegments, Name: mesh.ItemSegments}
	if len(order.Services)+len(order.Hosts) == 0 && k.listed.empty() && order.Complete {
		k.cfg.Source.Delete(key)
		changed, k.said = k.said != "", ""
		return changed, nil
	}
	if string(raw) != k.said {
		if err := k.cfg.Source.Set(key, raw); err != nil {
			return false, err
		}
		changed, k.said = true, string(raw)
	}
	return changed, nil
}

// takeBack undoes what is listed and not ordered. What fails stays listed.
func (k *Keeper) takeBack(ctx context.Context, order *mesh.SegmentOrder, keepDNS bool) error {
	wanted := map[string]bool{}
	for _, s := range order.Services {
		wanted[s.Key()] = true
	}
	var gone []string
	var failed error
	for _, key := range slices.Sorted(maps.Keys(k.listed.services)) {
		if wanted[key] {
			continue
		}
		if err := k.release(ctx, key); err != nil {
			failed = fmt.Errorf("take the label of Segments back from Service %s: %w", key, err)
			continue
		}
		gone = append(gone, key)
	}
	if err := k.listed.drop(ctx, gone, keepDNS || len(order.Hosts) > 0); err != nil {
		return err
	}
	return failed
}

// look asks istiod and DNS.
func (k *Keeper) look(ctx context.Context, order *mesh.SegmentOrder, hash mesh.Fingerprint) mesh.SegmentState {
	st := mesh.SegmentState{Order: hash, Services: map[string]mesh.SegmentServiceState{}, Hosts: map[string]mesh.SegmentHostState{}}
	wanted := map[string]bool{}
	for _, s := range order.Services {
		wanted[s.Key()] = true
	}
	var served map[string]probe.ServedService
	if len(wanted) > 0 {
		ask, cancel := context.WithTimeout(ctx, askTime)
		var err error
		if served, err = k.cfg.Served(ask, wanted); err != nil {
			st.Problem = err.Error()
		}
		cancel()
	}
	for key := range wanted {
		s, seen := k.done[key], served[key]
		s.VIP, s.Local, s.Remote = seen.VIP, seen.Local, seen.Remote
		st.Services[key] = s
	}
	for _, h := range order.Hosts {
		ask, cancel := context.WithTimeout(ctx, askTime)
		st.Hosts[h.Host] = k.resolve(ask, h, st.Services[h.Service].VIP)
		cancel()
	}
	return st
}

// resolve looks a host up as a Pod would.
func (k *Keeper) resolve(ctx context.Context, h mesh.SegmentHost, vip string) mesh.SegmentHostState {
	found, err := k.cfg.Lookup(ctx, h.Host+".")
	switch {
	case err != nil:
		return mesh.SegmentHostState{Error: fmt.Sprintf("host %s does not resolve there: let its CoreDNS read ConfigMap %s/%s (Corefile: `import /etc/coredns/custom/*.override`, with that ConfigMap mounted there)", h.Host, dnsNamespace, dnsName)}
	case len(found) == 0 || vip != "" && !slices.Contains(found, vip):
		return mesh.SegmentHostState{Error: fmt.Sprintf("host %s resolves there to %v, not to the Service's address %s", h.Host, found, vip)}
	}
	if vip == "" {
		vip = found[0]
	}
	return mesh.SegmentHostState{Address: vip}
}

// Remove takes back all that an agent's inventory lists, and then the inventory: what an agent that is gone can't do itself. some: there was something.
func Remove(ctx context.Context, client dynamic.Interface, namespace string) (some bool, err error) {
	k := New(Config{Client: client, Namespace: namespace, Log: slog.New(slog.DiscardHandler)})
	k.listed = &inventory{configMaps: k.configMaps.Namespace(namespace), services: map[string]bool{}}
	if err := k.listed.load(ctx); err != nil {
		return false, err
	}
	some = !k.listed.empty()
	nothing := &mesh.SegmentOrder{Complete: true}
	if err := k.putDNS(ctx, nothing); err != nil {
		return some, err
	}
	if err := k.takeBack(ctx, nothing, false); err != nil {
		return some, err
	}
	err = k.configMaps.Namespace(namespace).Delete(ctx, InventoryName, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return some, err
}
