package translate

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Translator translates one Snapshot after another and recomputes only what changed between them. The answer is that of All. For one caller at a time.
//
// What is kept: which ServiceAccounts each selector finds, by namespace; what each policy guards in each namespace (a share); what each object was made of.
// A change of a policy costs the namespaces where it has, or had, a share. A change of a namespace costs that namespace, and the policies whose clients are
// others by it. Changes of Workspaces and WorkspaceSettings cost everything but the encoding.
type Translator struct {
	f        *fleet
	work     []*policyWork // in the order of the Snapshot
	clusters map[mesh.ClusterName]*clusterState
	peers    peerState
	result   Result
}

// clusterState is what is known of a cluster from the round before.
type clusterState struct {
	known   bool // it has its objects
	member  memberKey
	objects Objects
	places  map[string]*placeState
}

// New returns a Translator that has seen nothing.
func New() *Translator { return &Translator{} }

// Next translates s. The Result shares memory with other ones: don't change it. After an error the Translator has forgotten everything.
func (t *Translator) Next(s *mesh.Snapshot) (Result, error) {
	r := round{t: t, s: s, changes: t.compare(s), changed: map[*policyWork]bool{}, tasks: map[mesh.ClusterName]map[string]*task{}}
	r.policies()
	r.plan()
	if err := r.work(); err != nil {
		*t = Translator{}
		return Result{}, err
	}
	t.result = r.result()
	return t.result, nil
}

// changes are how a Snapshot differs from the one before.
type changes struct {
	fresh    bool                               // everything may be different
	clusters bool                               // a cluster as such is another: one more, one less, another trust domain
	places   map[place]bool                     // that have to be looked at with all policies
	policies map[struct{ ns, name string }]bool // whose overrides are others
}

// usable are the namespaces that a cluster has reported; nil: none, or it does not count.
func usable(c *mesh.Cluster) map[string]*mesh.NamespaceInventory {
	if c == nil || c.Invalid != "" || c.Inventory == nil {
		return nil
	}
	return c.Inventory.Namespaces
}

// compare finds the differences, and brings the fleet up to date with them.
func (t *Translator) compare(s *mesh.Snapshot) *changes {
	ch := &changes{places: map[place]bool{}, policies: map[struct{ ns, name string }]bool{}}
	if t.f == nil || t.otherStructure(s) {
		return t.renew(s, ch)
	}
	before := t.f.s
	t.f.s = s
	look := map[place]bool{} // where ServiceAccounts may be others
	spaces := false          // which namespaces there are, or their labels, or those of clusters
	bothClusters(before, s, func(a, b *mesh.Cluster) {
		spaces = t.compareCluster(a, b, ch, look) || spaces
	})
	if spaces && len(s.Workspaces) > 0 || t.otherHomes(before, s) {
		again := newFleet(s)
		if t.f.otherClaims(again, mesh.ClusterName(s.ManagementCluster)) {
			return t.renew(s, ch)
		}
		t.f.adopt(again, ch, look)
	}
	t.f.observe()
	for _, set := range t.f.sets {
		set.changed = false
		for at := range look {
			set.look(t.f, at)
		}
	}
	t.spread(ch)
	for _, list := range [][]*mesh.Override{before.Overrides, s.Overrides} {
		for _, o := range list {
			if !slices.Contains(before.Overrides, o) || !slices.Contains(s.Overrides, o) {
				ch.policies[struct{ ns, name string }{o.Policy.Namespace, o.Policy.Name}] = true
			}
		}
	}
	return ch
}

// otherStructure: what decides on the scope of every policy is another.
func (t *Translator) otherStructure(s *mesh.Snapshot) bool {
	b := t.f.s
	return b.ServerVersion != s.ServerVersion || b.ManagementCluster != s.ManagementCluster || b.AdminNamespace != s.AdminNamespace ||
		!slices.Equal(b.Workspaces, s.Workspaces) || !slices.Equal(b.Settings, s.Settings)
}

// otherHomes: the namespaces of the management cluster are others, so workspaces may claim others.
func (t *Translator) otherHomes(b, s *mesh.Snapshot) bool {
	if len(s.Workspaces) == 0 {
		return false
	}
	homes := func(s *mesh.Snapshot) []string {
		var out []string
		for _, p := range s.Policies {
			out = append(out, p.Source.Namespace)
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return !maps.EqualFunc(b.Namespaces, s.Namespaces, func(a, b map[string]string) bool { return (a == nil) == (b == nil) && maps.Equal(a, b) }) ||
		!slices.Equal(homes(b), homes(s))
}

// renew starts from scratch, but for the objects.
func (t *Translator) renew(s *mesh.Snapshot, ch *changes) *changes {
	t.f, t.work, ch.fresh = newFleet(s), nil, true
	for i := range s.Clusters {
		c := &s.Clusters[i]
		for ns, n := range usable(c) {
			t.f.x.put(place{c.Name, ns}, n)
			ch.places[place{c.Name, ns}] = true
		}
	}
	for c, st := range t.clusters {
		for ns := range st.places {
			ch.places[place{c, ns}] = true
		}
	}
	t.f.observe()
	t.f.domains = t.f.trustDomains()
	return ch
}

// bothClusters visits the clusters of two Snapshots by name; one of the two may be nil.
func bothClusters(a, b *mesh.Snapshot, visit func(a, b *mesh.Cluster)) {
	i, j := 0, 0
	for i < len(a.Clusters) || j < len(b.Clusters) {
		switch {
		case j == len(b.Clusters) || i < len(a.Clusters) && a.Clusters[i].Name < b.Clusters[j].Name:
			visit(&a.Clusters[i], nil)
			i++
		case i == len(a.Clusters) || b.Clusters[j].Name < a.Clusters[i].Name:
			visit(nil, &b.Clusters[j])
			j++
		default:
			visit(&a.Clusters[i], &b.Clusters[j])
			i, j = i+1, j+1
		}
	}
}

// compareCluster reports whether namespaces, or labels that workspaces may select, are others.
func (t *Translator) compareCluster(a, b *mesh.Cluster, ch *changes, look map[place]bool) (spaces bool) {
	one := b
	if one == nil {
		one = a
	}
	whole := a == nil || b == nil || standing(a) != standing(b)
	ch.clusters = ch.clusters || whole
	if !whole && a.Inventory == b.Inventory {
		return !maps.Equal(a.Labels, b.Labels)
	}
	old, now := usable(a), usable(b)
	siblings := false
	touch := func(ns string) {
		x, y := old[ns], now[ns]
		at := place{one.Name, ns}
		if x == y && !whole {
			return
		}
		t.f.x.put(at, y)
		ch.places[at], look[at] = true, true
		spaces = spaces || x == nil || y == nil || !maps.Equal(x.Labels, y.Labels)
		if !whole {
			siblings = siblings || x == nil || y == nil || !reflect.DeepEqual(x.Gateways, y.Gateways) || ns == rootNamespace(b)
			ch.clusters = ch.clusters || trustDomain(b) == "" // who can't be named is counted in no set
		}
	}
	for ns := range old {
		touch(ns)
	}
	for ns := range now {
		if old[ns] == nil {
			touch(ns)
		}
	}
	if siblings { // a waypoint, or a policy of the root namespace, that others depend on
		for ns := range now {
			ch.places[place{one.Name, ns}] = true
		}
	}
	return spaces || whole || !maps.Equal(a.Labels, b.Labels)
}

// standing is what a cluster is to translation, beside its namespaces.
func standing(c *mesh.Cluster) [5]string {
	out := [5]string{c.Invalid, "known", "reported", string(trustDomain(c))}
	if c.UID == "" {
		out[1] = ""
	}
	if c.Inventory == nil {
		out[2] = ""
	} else {
		out[4] = rootNamespace(c)
	}
	return out
}

// spread marks the namespaces that depend on something that is everywhere: the waypoints' identities, and who belongs to a workspace.
func (t *Translator) spread(ch *changes) {
	domains := t.f.trustDomains()
	doors := !slices.Equal(domains, t.f.domains)
	t.f.domains = domains
	members := false
	for _, ws := range t.f.workspaces {
		if s := t.f.sets[setKey{ws: ws, labels: selectorKey(nil)}]; s != nil && s.changed {
			members = true
		}
	}
	if members {
		clear(t.f.near)
	}
	if !doors && !members {
		return
	}
	for c, st := range t.clusters {
		for ns, p := range st.places {
			if doors && p.waypoints || members && p.isolated {
				ch.places[place{c, ns}] = true
			}
		}
	}
}

// otherClaims: workspaces claim other namespaces of the management cluster, on which the scope of every policy and of every settings depends.
func (f *fleet) otherClaims(again *fleet, management mesh.ClusterName) bool {
	differs := func(a, b map[place]*claim) bool {
		for at, c := range a {
			if at.cluster == management && c.text() != b[at].text() {
				return true
			}
		}
		return false
	}
	return differs(f.claims, again.claims) || differs(again.claims, f.claims)
}

func (c *claim) text() string {
	if c == nil {
		return ""
	}
	var out strings.Builder
	for _, w := range c.by {
		out.WriteString(w.name + "/")
	}
	if c.config {
		out.WriteString("+")
	}
	return out.String()
}

// adopt takes the claims of again, with the workspaces that others point to.
func (f *fleet) adopt(again *fleet, ch *changes, look map[place]bool) {
	mine := map[*workspace]*workspace{}
	for i, ws := range again.workspaces {
		mine[ws] = f.workspaces[i]
		ch.clusters = ch.clusters || !maps.Equal(f.workspaces[i].clusters, ws.clusters) || !slices.Equal(f.workspaces[i].conflicts, ws.conflicts)
		f.workspaces[i].places, f.workspaces[i].clusters, f.workspaces[i].conflicts = ws.places, ws.clusters, ws.conflicts
	}
	before := f.claims
	f.claims = again.claims
	for _, c := range f.claims {
		for i := range c.by {
			c.by[i] = mine[c.by[i]]
		}
	}
	for _, m := range []map[place]*claim{before, f.claims} {
		for at := range m {
			if before[at].text() != f.claims[at].text() {
				ch.places[at], look[at] = true, true
			}
		}
	}
}

// observe takes up what follows from the clusters as such.
func (f *fleet) observe() {
	f.silent = nil
	for i := range f.s.Clusters {
		if c := &f.s.Clusters[i]; c.Invalid == "" && trustDomain(c) == "" {
			f.silent = append(f.silent, c)
		}
	}
}

// trustDomains of the mesh, sorted.
func (f *fleet) trustDomains() []mesh.TrustDomain {
	found := map[mesh.TrustDomain]bool{}
	for i := range f.s.Clusters {
		if td := trustDomain(&f.s.Clusters[i]); td != "" {
			found[td] = true
		}
	}
	return sortedKeys(found)
}
