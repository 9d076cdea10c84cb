package translate

import (
	"maps"
	"slices"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// label is a label with its value.
type label struct{ key, value string }

// index finds the namespaces where some object carries a label.
type index map[label]map[place]bool

func (x index) add(l map[string]string, at place) {
	for k, v := range l {
		m := x[label{k, v}]
		if m == nil {
			m = map[place]bool{}
			x[label{k, v}] = m
		}
		m[at] = true
	}
}

func (x index) remove(l map[string]string, at place) {
	for k, v := range l {
		m := x[label{k, v}]
		delete(m, at)
		if len(m) == 0 {
			delete(x, label{k, v})
		}
	}
}

// with are the places where some object may carry all of the labels; all is true when there are none to go by.
func (x index) with(labels map[string]string) (places map[place]bool, all bool) {
	if len(labels) == 0 {
		return nil, true
	}
	first := true
	for k, v := range labels {
		if m := x[label{k, v}]; first || len(m) < len(places) {
			places, first = m, false
		}
	}
	return places, false
}

// indices are those over all namespaces that are known of.
type indices struct {
	services, accounts, workloads index
	places                        map[place]*mesh.NamespaceInventory
}

func newIndices() *indices {
	return &indices{services: index{}, accounts: index{}, workloads: index{}, places: map[place]*mesh.NamespaceInventory{}}
}

// put makes n what is known of a place; nil: nothing any more.
func (x *indices) put(at place, n *mesh.NamespaceInventory) {
	if old := x.places[at]; old != nil {
		x.each(old, func(i index, l map[string]string) { i.remove(l, at) })
		delete(x.places, at)
	}
	if n != nil {
		x.each(n, func(i index, l map[string]string) { i.add(l, at) })
		x.places[at] = n
	}
}

func (x *indices) each(n *mesh.NamespaceInventory, f func(index, map[string]string)) {
	for i := range n.Services {
		f(x.services, n.Services[i].Labels)
	}
	for i := range n.ServiceAccounts {
		f(x.accounts, n.ServiceAccounts[i].Labels)
	}
	for i := range n.Workloads {
		f(x.workloads, n.Workloads[i].Labels)
	}
}

// visit calls f for the places where an object of one of the kinds may match sel, in no order.
func (x *indices) visit(sel *securityv2.ObjectSelector, f func(place), kinds ...index) {
	if sel == nil {
		sel = &securityv2.ObjectSelector{}
	}
	fits := func(at place) bool {
		return (sel.Cluster == "" || sel.Cluster == string(at.cluster)) && (sel.Namespace == "" || sel.Namespace == at.namespace)
	}
	if sel.Cluster != "" && sel.Namespace != "" {
		if at := (place{mesh.ClusterName(sel.Cluster), sel.Namespace}); x.places[at] != nil {
			f(at)
		}
		return
	}
	all := len(kinds) == 0
	for _, k := range kinds {
		places, any := k.with(sel.Labels)
		all = all || any
		for at := range places {
			if fits(at) {
				f(at)
			}
		}
	}
	if all {
		for at := range x.places {
			if fits(at) {
				f(at)
			}
		}
	}
}

// candidates are the places where w may have a share.
func (x *indices) candidates(w *policyWork) map[place]bool {
	out := map[place]bool{}
	if w.bad || layerOff(w.p) {
		return out
	}
	add := func(at place) { out[at] = true }
	spec := &w.p.Spec
	switch {
	case len(spec.ApplyToWorkloads) > 0:
		for i := range spec.ApplyToWorkloads { // by the Pods' labels, whether there are Pods or not
			x.visit(spec.ApplyToWorkloads[i].Selector, add)
		}
	case len(spec.ApplyToDestinations) == 0:
		x.visit(nil, add)
	default:
		for i := range spec.ApplyToDestinations {
			x.visit(spec.ApplyToDestinations[i].Selector, add, x.services)
		}
	}
	return out
}

// setKey names a clientSet: equal selectors of the same workspace share one.
type setKey struct {
	ws                               *workspace
	labels, name, namespace, cluster string
}

// clientSet are the ServiceAccounts that a selector finds, counted by principal, so that a change of one namespace costs no more than that.
type clientSet struct {
	ws       *workspace // nil: the whole mesh
	sel      securityv2.ObjectSelector
	at       map[place]clientsAt
	accounts map[mesh.Principal]int
	byPods   map[mesh.Principal]int
	changed  bool
}

type clientsAt struct{ accounts, byPods []mesh.Principal }

// clients finds or makes the set of a selector.
func (f *fleet) clients(ws *workspace, sel *securityv2.ObjectSelector) *clientSet {
	k := setKey{ws, selectorKey(sel.Labels), sel.Name, sel.Namespace, sel.Cluster}
	if s := f.sets[k]; s != nil {
		return s
	}
	s := &clientSet{ws: ws, sel: *sel, at: map[place]clientsAt{}, accounts: map[mesh.Principal]int{}, byPods: map[mesh.Principal]int{}}
	f.x.visit(sel, func(at place) { s.look(f, at) }, f.x.accounts, f.x.workloads)
	s.changed = false
	f.sets[k] = s
	return s
}

// look takes up what is at a place now.
func (s *clientSet) look(f *fleet, at place) {
	now := s.find(f, at)
	old := s.at[at]
	if slices.Equal(now.accounts, old.accounts) && slices.Equal(now.byPods, old.byPods) {
		return
	}
	s.count(s.accounts, old.accounts, -1)
	s.count(s.byPods, old.byPods, -1)
	s.count(s.accounts, now.accounts, 1)
	s.count(s.byPods, now.byPods, 1)
	if len(now.accounts)+len(now.byPods) == 0 {
		delete(s.at, at)
	} else {
		s.at[at] = now
	}
}

func (s *clientSet) count(m map[mesh.Principal]int, of []mesh.Principal, by int) {
	for _, p := range of {
		was := m[p]
		if was+by == 0 {
			delete(m, p)
		} else {
			m[p] = was + by
		}
		s.changed = s.changed || was == 0 || was+by == 0
	}
}

func (s *clientSet) find(f *fleet, at place) clientsAt {
	var out clientsAt
	n := f.x.places[at]
	sel := &s.sel
	if n == nil || sel.Namespace != "" && sel.Namespace != at.namespace || sel.Cluster != "" && sel.Cluster != string(at.cluster) || !(scope{f, s.ws}).has(at.cluster, at.namespace) {
		return out
	}
	c := f.s.Cluster(at.cluster)
	if c == nil || trustDomain(c) == "" {
		return out
	}
	for i := range n.ServiceAccounts {
		if a := &n.ServiceAccounts[i]; matches(sel, at.cluster, at.namespace, a.Name, a.Labels) {
			out.accounts = append(out.accounts, principal(trustDomain(c), at.namespace, a.Name))
		}
	}
	if len(sel.Labels) == 0 {
		return out
	}
	for i := range n.Workloads {
		w := &n.Workloads[i]
		name := serviceAccount(w)
		if matches(sel, at.cluster, at.namespace, name, w.Labels) {
			out.byPods = append(out.byPods, principal(trustDomain(c), at.namespace, name))
		}
	}
	return out
}

// serviceAccount that a workload runs as: Kubernetes makes it "default" where none is named.
func serviceAccount(w *mesh.Workload) string {
	if w.ServiceAccount == "" {
		return "default"
	}
	return w.ServiceAccount
}

// sweep drops the sets that no policy uses any more.
func (f *fleet) sweep(work []*policyWork) {
	used := map[*clientSet]bool{}
	for _, w := range work {
		for _, s := range w.res.sets {
			used[s] = true
		}
	}
	for _, ws := range f.workspaces {
		if s := f.sets[setKey{ws: ws, labels: selectorKey(nil)}]; s != nil {
			used[s] = true // of isolation
		}
	}
	maps.DeleteFunc(f.sets, func(_ setKey, s *clientSet) bool { return !used[s] })
}
