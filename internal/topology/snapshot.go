package topology

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// ErrNoSuchNode is the error of a query whose focus the view does not hold.
var ErrNoSuchNode = errors.New("no such node")

// ErrNoHistory is the error of a query for a time before the first recorded frame.
var ErrNoHistory = errors.New("no history")

// frame is everything that was true at one time: rows at the level of services, sorted by key.
type frame struct {
	at         time.Time
	generation uint64
	historic   bool
	rows       []Edge
	clusters   []ClusterState
	links      []Link
}

// Snapshot answers q. Errors wrap ErrNoSuchNode (focus) and ErrNoHistory (At); an invalid level is an error too.
func (t *Table) Snapshot(q Query, now time.Time) (*View, error) {
	if q.Level == "" {
		q.Level = LevelCluster
	}
	if !q.Level.Valid() {
		return nil, fmt.Errorf("level %q: want cluster, namespace, service or neighbourhood", q.Level)
	}
	f, err := t.frameAt(q.At, now)
	if err != nil {
		return nil, err
	}
	v := &View{At: f.at, Generation: f.generation, Level: q.Level, Focus: q.Focus, Historic: f.historic, Links: f.links, Clusters: f.clusters}
	if q.Level == LevelService && q.whole() {
		v.Edges = f.rows // shared: neither is changed
	} else {
		rows, err := f.choose(q)
		if err != nil {
			return nil, err
		}
		v.Edges = summed(rows, q.Level)
		v.trim(q.Max)
	}
	v.nodes(q)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.layouts.place(v, q)
	return v, nil
}

// Edge is one edge at the level of services, as of at (zero: now); ok is false if it is not in the table. Errors wrap ErrNoHistory.
func (t *Table) Edge(k Key, at, now time.Time) (e Edge, ok bool, err error) {
	f, err := t.frameAt(at, now)
	if err != nil {
		return e, false, err
	}
	i, ok := slices.BinarySearchFunc(f.rows, k, func(e Edge, k Key) int { return compareKeys(e.Key, k) })
	if !ok {
		return e, false, nil
	}
	return f.rows[i], true, nil
}

// Clusters are the states of all clusters that ever reported, sorted by name.
func (t *Table) Clusters(now time.Time) []ClusterState {
	t.mu.Lock()
	defer t.mu.Unlock()
	out, _ := t.states(now)
	return out
}

// Links are the probed ways between clusters, sorted.
func (t *Table) Links(now time.Time) []Link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.links(now)
}

func (t *Table) frameAt(at, now time.Time) (*frame, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at.IsZero() || !at.Before(now) {
		return t.current(now), nil
	}
	f, err := t.history.at(at)
	if err != nil {
		return nil, err
	}
	t.layouts.learn(f.rows, f.clusters)
	return f, nil
}

// current is the frame of now: computed anew only after a change, or when a cluster went stale since.
func (t *Table) current(now time.Time) *frame {
	clusters, stale := t.states(now)
	if f := t.frame; f != nil && slices.EqualFunc(f.clusters, clusters, func(a, b ClusterState) bool { return a.Name == b.Name && a.Stale == b.Stale }) {
		return f
	}
	f := &frame{at: now, generation: t.generation, clusters: clusters, links: t.links(now)}
	rtt := map[Key]*float64{}
	for i := range f.links {
		l := &f.links[i]
		rtt[Key{Party{Cluster: l.From}, Party{Cluster: l.To}}] = l.RTT
	}
	if t.stitched == nil {
		t.stitched = slices.SortedFunc(maps.Values(stitch(t.clusters)), func(a, b *rowOf) int { return compareKeys(a.key, b.key) })
	}
	f.rows = make([]Edge, len(t.stitched))
	for i, row := range t.stitched {
		e := &f.rows[i]
		t.edge(row, stale, e)
		t.addSpans(e, now)
		e.split(rtt[Key{e.From.At(LevelCluster), e.To.At(LevelCluster)}])
	}
	t.layouts.learn(f.rows, f.clusters)
	t.frame = f
	return f
}

func (t *Table) states(now time.Time) ([]ClusterState, map[mesh.ClusterName]bool) {
	out, stale := make([]ClusterState, 0, len(t.clusters)), map[mesh.ClusterName]bool{}
	for name, c := range t.clusters {
		s := c.state
		if s.Stale = now.Sub(s.LastReport) > StaleAfter; s.Stale {
			stale[name] = true
			s.StaleSince = s.LastReport
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b ClusterState) int { return cmp.Compare(a.Name, b.Name) })
	return out, stale
}

func (t *Table) links(time.Time) []Link {
	var out []Link
	for from, c := range t.clusters {
		for to, p := range c.probes {
			if l, ok := p.link(c.n); ok {
				l.From, l.To = from, to
				out = append(out, l)
			}
		}
	}
	slices.SortFunc(out, func(a, b Link) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return out
}

// link sums the probes of the last minute; ok is false if there were none: the peer is gone.
func (p *probes) link(n uint64) (l Link, ok bool) {
	lost, sum := 0, time.Duration(0)
	for i := range p.slots {
		s := &p.slots[i]
		if s.n == 0 || s.n+rateSlots <= n {
			continue
		}
		l.Sent += s.r.Sent
		lost += s.r.Lost
		got := s.r.Sent - s.r.Lost
		sum += s.r.Mean * time.Duration(got)
		if got > 0 {
			if lo := ms(s.r.Min); l.Min == 0 || lo < l.Min {
				l.Min = lo
			}
			l.Max = max(l.Max, ms(s.r.Max))
		}
		if s.at.After(l.At) {
			l.At, l.Why = s.at, s.r.Error
		}
	}
	if l.Sent == 0 {
		return l, false
	}
	l.Loss = float64(lost) / float64(l.Sent)
	if got := l.Sent - lost; got > 0 {
		mean := ms(sum / time.Duration(got))
		l.RTT = &mean
	}
	return l, true
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func compareParties(a, b Party) int {
	return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Service, b.Service))
}

func compareKeys(a, b Key) int {
	return cmp.Or(compareParties(a.From, b.From), compareParties(a.To, b.To))
}
