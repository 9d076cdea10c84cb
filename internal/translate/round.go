package translate

import (
	"errors"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"ambitmesh.dev/ambit/internal/mesh"
)

// round is one Next.
type round struct {
	*changes
	t       *Translator
	s       *mesh.Snapshot
	changed map[*policyWork]bool // whose report has to be written again
	lost    []*policyWork        // that are not there any more, or not as they were
	began   []*policyWork        // that are new, or not as they were
	tasks   map[mesh.ClusterName]map[string]*task
	deltas  map[mesh.ClusterName]Delta
	peers   peerDelta
	reports bool // of workspaces and settings too
}

// task is a namespace to be done again.
type task struct {
	whole bool          // with all policies
	with  []*policyWork // else: these
	lost  bool          // some policy had a share that is void

	before, now *placeState
	set         []mesh.Object
	gone        []mesh.Ref
	err         error
}

// policies finds the policies that are others than before, or have other clients.
func (r *round) policies() {
	t := r.t
	before := make(map[mesh.Ref]*policyWork, len(t.work))
	for _, w := range t.work {
		before[w.p.Source] = w
	}
	work := make([]*policyWork, len(r.s.Policies))
	for i, p := range r.s.Policies {
		w := before[p.Source]
		delete(before, p.Source)
		if w == nil || !r.same(w, p) {
			if w != nil {
				r.lost = append(r.lost, w)
			}
			w = begin(t.f, p)
			r.began = append(r.began, w)
			r.changed[w] = true
		}
		if r.clusters {
			r.changed[w] = true // who is waited for may be another
		}
		w.order = i
		work[i] = w
	}
	for _, w := range before {
		r.lost = append(r.lost, w)
	}
	r.reports = r.fresh || len(r.places) > 0 || len(r.lost)+len(r.began) > 0
	t.work = work
	if len(r.lost) > 0 {
		t.f.sweep(work)
	}
}

// same reports whether w says of p what would be said now.
func (r *round) same(w *policyWork, p *mesh.AccessPolicy) bool {
	if w.p != p || r.changes.policies[struct{ ns, name string }{p.Source.Namespace, p.Source.Name}] {
		return false
	}
	if w.bad || !r.clusters && !slices.ContainsFunc(w.res.sets, func(s *clientSet) bool { return s.changed }) {
		return true
	}
	now := w.scope.resolve(p)
	now.sets = w.res.sets // which are the same: the policy is
	return reflect.DeepEqual(now, w.res)
}

// plan lists the namespaces to be done again.
func (r *round) plan() {
	for at := range r.places {
		r.task(at).whole = true
	}
	for _, w := range r.lost {
		for _, list := range w.shares {
			for _, sh := range list {
				r.task(sh.at).lost = true
			}
		}
	}
	for _, w := range r.began {
		for at := range r.t.f.x.candidates(w) {
			if t := r.task(at); r.fresh || !t.whole {
				t.with = append(t.with, w)
			}
		}
	}
}

func (r *round) task(at place) *task {
	m := r.tasks[at.cluster]
	if m == nil {
		m = map[string]*task{}
		r.tasks[at.cluster] = m
	}
	t := m[at.namespace]
	if t == nil {
		t = &task{}
		m[at.namespace] = t
	}
	return t
}

// work does the namespaces, the clusters side by side, and then takes up what came out.
func (r *round) work() error {
	t := r.t
	if t.clusters == nil {
		t.clusters = map[mesh.ClusterName]*clusterState{}
	}
	valid := map[mesh.ClusterName]bool{}
	for i := range r.s.Clusters {
		c := &r.s.Clusters[i]
		if c.Invalid != "" {
			continue
		}
		valid[c.Name] = true
		if t.clusters[c.Name] == nil {
			t.clusters[c.Name] = &clusterState{places: map[string]*placeState{}}
		}
	}
	names := slices.Sorted(maps.Keys(r.tasks))
	sideBySide(len(names), func(i int) {
		for ns, task := range r.tasks[names[i]] {
			r.do(place{names[i], ns}, task)
		}
	})
	for _, c := range names {
		st := t.clusters[c]
		for ns, task := range r.tasks[c] {
			if task.err != nil {
				return task.err
			}
			r.take(place{c, ns}, st, task)
		}
	}
	maps.DeleteFunc(t.clusters, func(c mesh.ClusterName, _ *clusterState) bool { return !valid[c] })
	var err error
	if r.peers, err = t.peers.next(r.s); err != nil {
		return err
	}
	r.deltas = map[mesh.ClusterName]Delta{}
	deltas, errs := make([]Delta, len(r.s.Clusters)), make([]error, len(r.s.Clusters))
	sideBySide(len(deltas), func(i int) {
		if c := &r.s.Clusters[i]; valid[c.Name] {
			deltas[i], errs[i] = r.objects(c, t.clusters[c.Name])
		}
	})
	for i, d := range deltas {
		if len(d.Set)+len(d.Gone) > 0 {
			r.deltas[r.s.Clusters[i].Name] = d
		}
	}
	return errors.Join(errs...)
}

// sideBySide runs n jobs on all processors.
func sideBySide(n int, job func(int)) {
	var next atomic.Int64
	var wait sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wait.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				job(i)
			}
		})
	}
	wait.Wait()
}

// do translates one namespace. It writes to nothing but the task.
func (r *round) do(at place, t *task) {
	f := r.t.f
	st := r.t.clusters[at.cluster]
	t.before = &placeState{}
	if st != nil && st.places[at.namespace] != nil {
		t.before = st.places[at.namespace]
	}
	n := f.x.places[at]
	if n == nil || st == nil {
		t.gone = slices.Collect(maps.Keys(t.before.written))
		return
	}
	c := f.s.Cluster(at.cluster)
	w := placeWork{f: f, c: c, ns: at.namespace, n: n, root: rootPolicies(c, at.namespace), before: t.before, have: st.objects}
	var shares []*share
	find := t.with
	if t.whole && !r.fresh {
		find = r.t.work
	} else if !r.fresh {
		for _, sh := range t.before.shares {
			if sh.order < len(r.t.work) && r.t.work[sh.order] == sh.policyWork {
				shares = append(shares, sh)
			}
		}
	}
	found := 0
	for _, p := range find {
		if sh := w.find(p); sh != nil {
			shares = append(shares, sh)
			found++
		}
	}
	if !t.whole && found == 0 && !t.lost {
		t.now = t.before // nothing of it is here
		return
	}
	slices.SortFunc(shares, func(a, b *share) int { return a.order - b.order })
	t.now, t.err = w.run(shares)
	if t.err != nil {
		return
	}
	t.set, t.gone = w.set, w.gone()
	t.now.counts = t.before.counts
	if t.whole {
		t.now.counts = f.count(at, n)
	}
}

// take makes what came out of a namespace the state that counts.
func (r *round) take(at place, st *clusterState, t *task) {
	if t.now == t.before {
		return
	}
	kept := map[*share]bool{}
	if t.now != nil {
		for _, sh := range t.now.shares {
			if !sh.added {
				kept[sh] = true
			}
			if sh.added || sh.altered {
				r.changed[sh.policyWork] = true
			}
		}
	}
	for _, sh := range t.before.shares {
		if !kept[sh] {
			sh.forget()
			r.changed[sh.policyWork] = true
		}
	}
	if st == nil {
		return
	}
	if t.now == nil {
		delete(st.places, at.namespace)
		return
	}
	for _, sh := range t.now.shares {
		if sh.added {
			sh.added = false
			sh.remember()
		}
	}
	st.places[at.namespace] = t.now
}

// remember and forget keep the list of a policy's shares in a cluster, by namespace.
func (sh *share) remember() {
	l := sh.shares[sh.at.cluster]
	i, found := slices.BinarySearchFunc(l, sh.at.namespace, func(o *share, ns string) int { return cmpText(o.at.namespace, ns) })
	if found {
		l[i] = sh
		return
	}
	sh.shares[sh.at.cluster] = slices.Insert(l, i, sh)
}

func (sh *share) forget() {
	l := slices.DeleteFunc(sh.shares[sh.at.cluster], func(o *share) bool { return o == sh })
	if len(l) == 0 {
		delete(sh.shares, sh.at.cluster)
		return
	}
	sh.shares[sh.at.cluster] = l
}

// objects brings a cluster's objects up to date. The set that was handed out before stays as it is.
func (r *round) objects(c *mesh.Cluster, st *clusterState) (d Delta, err error) {
	var set []mesh.Object
	var gone []mesh.Ref
	for _, t := range r.tasks[c.Name] {
		set, gone = append(set, t.set...), append(gone, t.gone...)
	}
	peers, left := r.peers(c.Name, st.known)
	set, gone = append(set, peers...), append(gone, left...)
	if k := memberOf(r.s, c); !st.known || k != st.member {
		o, err := k.object()
		if err != nil {
			return d, err
		}
		if ref := st.member.ref(); st.known && ref != o.Ref {
			gone = append(gone, ref)
		}
		if old, _ := st.objects.Get(o.Ref); old.Hash != o.Hash {
			set = append(set, o)
		}
		st.member = k
	}
	st.known = true
	st.objects = st.objects.With(set, gone)
	d.Gone = append(d.Gone, gone...)
	for _, o := range set {
		d.Set = append(d.Set, o.Ref)
	}
	sortRefs(d.Set)
	sortRefs(d.Gone)
	return d, nil
}

// result puts together what is to be told.
func (r *round) result() Result {
	t := r.t
	out := Result{
		Objects: make(map[mesh.ClusterName]Objects, len(t.clusters)), Conditions: membership(r.s), Policies: make(map[mesh.Ref]mesh.PolicyReport, len(t.work)),
		Workspaces: t.result.Workspaces, Settings: t.result.Settings, Changed: r.deltas, Peering: t.peers.peering,
	}
	for c, st := range t.clusters {
		out.Objects[c] = st.objects
	}
	for _, w := range t.work {
		if r.changed[w] {
			out.Policies[w.p.Source] = w.finish()
		} else {
			out.Policies[w.p.Source] = t.result.Policies[w.p.Source]
		}
	}
	if r.reports {
		out.Workspaces, out.Settings = map[mesh.Ref]mesh.WorkspaceReport{}, map[mesh.Ref]mesh.SettingsReport{}
		t.report(&out)
	}
	return out
}
