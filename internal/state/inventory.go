package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
)

// inventory is one cluster's, as it came. What it hands out is never touched again: a change makes new parts of what it concerns and keeps the others.
type inventory struct {
	complete   bool
	info       mesh.ClusterInfo
	outcomes   map[mesh.Ref]mesh.Outcome
	probes     map[string]mesh.PeerProbe
	segments   *mesh.SegmentState
	namespaces map[string]*mesh.NamespaceInventory
	named      map[string]bool // namespaces with an item of their own, not only with things in them

	out *mesh.Inventory // of the above, or nil when something has changed since
}

func newInventory() *inventory {
	return &inventory{outcomes: map[mesh.Ref]mesh.Outcome{}, namespaces: map[string]*mesh.NamespaceInventory{}, named: map[string]bool{}}
}

// snapshot is nil for a cluster that has not reported.
func (i *inventory) snapshot() *mesh.Inventory {
	if i == nil {
		return nil
	}
	if i.out == nil {
		i.out = &mesh.Inventory{Complete: i.complete, Info: i.info, Outcomes: i.outcomes, PeerProbes: i.probes, Segments: i.segments}
		if i.complete { // half of what runs in a cluster is no ground to decide on, and would be translated once for each portion that comes
			i.out.Namespaces = i.namespaces
		}
	}
	return i.out
}

// batch is what one change does to one namespace.
type batch struct {
	labels          *map[string]string // set: the Namespace itself was reported
	gone            bool               // the Namespace itself is gone
	services        edits[mesh.Service]
	serviceAccounts edits[mesh.ServiceAccount]
	workloads       edits[mesh.Workload]
	gateways        edits[mesh.Gateway]
	foreign         edits[mesh.ForeignPolicy]
}

func (i *inventory) observe(ch Change, m models, bad func(mesh.ItemKey, error)) (changed []mesh.Ref) {
	batches := map[string]*batch{}
	outcomes := map[mesh.Ref]*mesh.Outcome{}
	probes := map[string]*mesh.PeerProbe{}
	take := func(key mesh.ItemKey, value []byte) {
		if key.Type == mesh.ItemSegments {
			if err := i.takeSegments(value); err != nil {
				bad(key, err)
			}
			return
		}
		if key.Type == mesh.ItemPeerProbe {
			if err := takeProbe(key.Name, value, probes); err != nil {
				bad(key, err)
			}
			return
		}
		if err := i.take(key, value, batches, outcomes); err != nil {
			bad(key, err)
		}
	}
	if ch.Gone != nil {
		for key := range ch.Gone {
			take(key, nil)
		}
	}
	if ch.Set != nil {
		for key, value := range ch.Set {
			take(key, value)
		}
	}
	if i.complete != ch.Complete {
		i.complete, i.out = ch.Complete, nil
	}
	i.namespacesFrom(batches, m)
	i.probesFrom(probes)
	return i.outcomesFrom(outcomes)
}

// take decodes one item into where it belongs; value nil: it is gone.
func (i *inventory) take(key mesh.ItemKey, value []byte, batches map[string]*batch, outcomes map[mesh.Ref]*mesh.Outcome) error {
	switch key.Type {
	case mesh.ItemCluster:
		var info mesh.ClusterInfo
		if value != nil {
			if err := json.Unmarshal(value, &info); err != nil {
				return err
			}
		}
		if !reflect.DeepEqual(info, i.info) {
			i.info, i.out = info, nil
		}
		return nil
	case mesh.ItemOutcome:
		ref, ok := mesh.ParseRef(key.Name)
		if !ok {
			return fmt.Errorf("outcome %q: want group/version/kind/namespace/name", key.Name)
		}
		outcomes[ref] = nil
		if value == nil {
			return nil
		}
		var o mesh.Outcome
		if err := json.Unmarshal(value, &o); err != nil {
			delete(outcomes, ref)
			return err
		}
		outcomes[ref] = &o
		return nil
	}
	ns, name, _ := strings.Cut(key.Name, "/")
	b := batches[ns]
	if b == nil {
		b = &batch{}
		batches[ns] = b
	}
	switch key.Type {
	case mesh.ItemNamespace:
		if value == nil {
			b.gone, b.labels = true, nil
			return nil
		}
		var n mesh.Namespace
		if err := json.Unmarshal(value, &n); err != nil {
			return err
		}
		if err := expect(key.Name, n.Name); err != nil {
			return err
		}
		b.gone, b.labels = false, &n.Labels
		return nil
	case mesh.ItemService:
		return into(&b.services, name, value, func(s *mesh.Service) error { return expect(key.Name, s.Namespace, s.Name) })
	case mesh.ItemServiceAccount:
		return into(&b.serviceAccounts, name, value, func(s *mesh.ServiceAccount) error { return expect(key.Name, s.Namespace, s.Name) })
	case mesh.ItemWorkload:
		return into(&b.workloads, byName(name), value, func(w *mesh.Workload) error { return expect(key.Name, w.Namespace, w.Kind, w.Name) })
	case mesh.ItemGateway:
		return into(&b.gateways, name, value, func(g *mesh.Gateway) error { return expect(key.Name, g.Namespace, g.Name) })
	case mesh.ItemForeign:
		return into(&b.foreign, byName(name), value, func(f *mesh.ForeignPolicy) error { return expect(key.Name, f.Namespace, f.Kind, f.Name) })
	}
	return nil // types of a newer agent, or not needed yet
}

// takeProbe decodes one; value nil: it is gone.
func takeProbe(name string, value []byte, probes map[string]*mesh.PeerProbe) error {
	if value == nil {
		probes[name] = nil
		return nil
	}
	p := new(mesh.PeerProbe)
	if err := json.Unmarshal(value, p); err != nil {
		return err
	}
	probes[name] = p
	return nil
}

// takeSegments decodes the state of Segments; value nil: it is gone.
func (i *inventory) takeSegments(value []byte) error {
	var st *mesh.SegmentState
	if value != nil {
		st = new(mesh.SegmentState)
		if err := json.Unmarshal(value, st); err != nil {
			return err
		}
	}
	i.segments, i.out = st, nil
	return nil
}

// probesFrom makes a new map of probes if any is different.
func (i *inventory) probesFrom(probes map[string]*mesh.PeerProbe) {
	cloned := false
	for name, p := range probes {
		old, had := i.probes[name]
		if p == nil && !had || p != nil && had && *p == old {
			continue
		}
		if !cloned {
			i.probes, i.out, cloned = maps.Clone(i.probes), nil, true
			if i.probes == nil {
				i.probes = map[string]mesh.PeerProbe{}
			}
		}
		if p == nil {
			delete(i.probes, name)
		} else {
			i.probes[name] = *p
		}
	}
}

// byName turns "Kind/name" into what such lists are sorted by: the name first. The zero byte sorts before every character of a name.
func byName(kindAndName string) string {
	kind, name, _ := strings.Cut(kindAndName, "/")
	return name + "\x00" + kind
}

// expect compares what an item says of itself with the name it came under.
func expect(name string, parts ...string) error {
	if got := strings.Join(parts, "/"); got != name {
		return fmt.Errorf("it calls itself %q", got)
	}
	return nil
}

func into[E any](e *edits[E], name string, value []byte, check func(*E) error) error {
	if *e == nil {
		*e = edits[E]{}
	}
	if value == nil {
		(*e)[name] = nil
		return nil
	}
	v := new(E)
	if err := json.Unmarshal(value, v); err != nil {
		return err
	}
	if err := check(v); err != nil {
		return err
	}
	(*e)[name] = v
	return nil
}

func equal[E any](a, b *E) bool { return reflect.DeepEqual(a, b) }

func size(n *mesh.NamespaceInventory) int {
	return len(n.Services) + len(n.ServiceAccounts) + len(n.Workloads) + len(n.Gateways) + len(n.Foreign)
}

// models are a shard of each namespace, of some cluster: see apply.
type models map[string]*mesh.NamespaceInventory

// namespacesFrom makes new shards of the namespaces whose content is different now.
func (i *inventory) namespacesFrom(batches map[string]*batch, m models) {
	cloned := false
	for ns, b := range batches {
		old := i.namespaces[ns]
		if old == nil {
			old = &mesh.NamespaceInventory{}
		}
		alike := m[ns]
		if alike == nil {
			alike = &mesh.NamespaceInventory{}
		}
		next, changed := b.apply(old, alike)
		switch {
		case b.gone:
			delete(i.named, ns)
		case b.labels != nil:
			i.named[ns] = true
		}
		exists := i.named[ns] || len(next.Services)+len(next.ServiceAccounts)+len(next.Workloads)+len(next.Gateways)+len(next.Foreign) > 0
		if !changed && exists == (i.namespaces[ns] != nil) {
			continue
		}
		if !cloned {
			i.namespaces, cloned, i.out = maps.Clone(i.namespaces), true, nil
		}
		if exists {
			i.namespaces[ns] = next
		} else {
			delete(i.namespaces, ns)
		}
		switch {
		case exists && (alike == old || size(next) > size(alike)):
			m[ns] = next
		case !exists && alike == old:
			delete(m, ns)
		}
	}
}

func services() lister[mesh.Service] {
	return lister[mesh.Service]{func(s *mesh.Service) string { return s.Name }, equal[mesh.Service]}
}

func serviceAccounts() lister[mesh.ServiceAccount] {
	return lister[mesh.ServiceAccount]{func(s *mesh.ServiceAccount) string { return s.Name }, equal[mesh.ServiceAccount]}
}

func workloads() lister[mesh.Workload] {
	return lister[mesh.Workload]{func(w *mesh.Workload) string { return byName(w.Kind + "/" + w.Name) }, equal[mesh.Workload]}
}

func gateways() lister[mesh.Gateway] {
	return lister[mesh.Gateway]{func(g *mesh.Gateway) string { return g.Name }, equal[mesh.Gateway]}
}

func foreign() lister[mesh.ForeignPolicy] {
	return lister[mesh.ForeignPolicy]{func(f *mesh.ForeignPolicy) string { return byName(f.Kind + "/" + f.Name) }, equal[mesh.ForeignPolicy]}
}

// apply makes a new shard of old, or returns old when nothing is different. alike is another cluster's shard of that namespace, or empty: what is the same in it is
// shared, since the clusters of a mesh run much the same.
func (b *batch) apply(old, alike *mesh.NamespaceInventory) (*mesh.NamespaceInventory, bool) {
	next, changed := *old, false
	note := func(c bool) { changed = changed || c }
	switch {
	case b.gone && next.Labels != nil:
		next.Labels = nil
		note(true)
	case b.labels != nil && !maps.Equal(*b.labels, next.Labels):
		next.Labels = *b.labels
		note(true)
	}
	var c bool
	next.Services, c = services().merge(next.Services, b.services, alike.Services)
	note(c)
	next.ServiceAccounts, c = serviceAccounts().merge(next.ServiceAccounts, b.serviceAccounts, alike.ServiceAccounts)
	note(c)
	next.Workloads, c = workloads().merge(next.Workloads, b.workloads, alike.Workloads)
	note(c)
	next.Gateways, c = gateways().merge(next.Gateways, b.gateways, alike.Gateways)
	note(c)
	next.Foreign, c = foreign().merge(next.Foreign, b.foreign, alike.Foreign)
	note(c)
	if !changed {
		return old, false
	}
	return &next, true
}

// outcomesFrom makes a new map of outcomes if any is different, and says which are.
func (i *inventory) outcomesFrom(outcomes map[mesh.Ref]*mesh.Outcome) (changed []mesh.Ref) {
	for ref, o := range outcomes {
		old, had := i.outcomes[ref]
		if o == nil && !had || o != nil && had && reflect.DeepEqual(*o, old) {
			continue
		}
		changed = append(changed, ref)
	}
	if len(changed) == 0 {
		return nil
	}
	i.outcomes, i.out = maps.Clone(i.outcomes), nil
	for _, ref := range changed {
		if o := outcomes[ref]; o != nil {
			i.outcomes[ref] = *o
		} else {
			delete(i.outcomes, ref)
		}
	}
	slices.SortFunc(changed, mesh.Ref.Compare)
	return changed
}
