package topology

import (
	"cmp"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// rowOf gathers the witnesses of one edge.
type rowOf struct {
	key        Key
	sources    []*raw // client side
	servers    []*raw // server side
	all        []*raw // servers, then sources
	shared     map[*raw]int
	inferred   bool
	candidates []mesh.ClusterName
}

// meeting is where two clusters' reports of the same traffic meet: the caller's identity and the service it calls. It holds over trust domains,
// since principals carry them.
type meeting struct {
	client  Principal
	ns      string
	service string
}

// stitcher joins what is unlabelled. In multi-network ambient the client's side sees only an east-west gateway and the server's side only a principal.
type stitcher struct {
	rows    map[Key]*rowOf
	open    map[meeting][2][]*raw // 0: client side, 1: server side
	matches map[*raw][]*raw
}

// stitch turns what each cluster reported into edges.
func stitch(clusters map[mesh.ClusterName]*cluster) map[Key]*rowOf {
	s := stitcher{rows: map[Key]*rowOf{}, open: map[meeting][2][]*raw{}, matches: map[*raw][]*raw{}}
	for _, c := range clusters {
		for _, r := range c.raws {
			s.place(r)
		}
	}
	for _, sides := range s.open {
		s.join(sides[0], sides[1])
	}
	for _, row := range s.rows {
		sortRaws(row.sources)
		sortRaws(row.servers)
		row.all = slices.Concat(row.servers, row.sources)
	}
	return s.rows
}

// place puts a raw whose labels name both ends into its row, and keeps the others, with those they may meet, for join.
func (s *stitcher) place(r *raw) {
	side := 0
	if r.serverSide() {
		side = 1
	}
	known := r.from.Cluster != "" && r.to.Cluster != ""
	if known {
		s.add(Key{r.from, r.to}, r)
	}
	// Within one cluster both ends are always named; only what crosses, or may, can meet.
	if r.client == "" || known && r.from.Cluster == r.to.Cluster {
		if !known {
			s.alone(r)
		}
		return
	}
	m := meeting{r.client, r.to.Namespace, r.to.Service}
	sides := s.open[m]
	sides[side] = append(sides[side], r)
	s.open[m] = sides
}

func (r *raw) serverSide() bool { return r.by == ByWaypoint || r.by == ByDestination }

// mayMeet reports whether a client's and a server's report can be of the same traffic.
func mayMeet(a, b *raw) bool {
	if a.cluster == b.cluster {
		return false
	}
	return (a.to.Cluster == "" || a.to.Cluster == b.to.Cluster) && (b.from.Cluster == "" || b.from.Cluster == a.from.Cluster)
}

// join decides, for every report that does not name its other end, which end that is: the only one possible; or one of several, of which each has no
// other counterpart (then this report covers them together); or one of several, which is said and not guessed.
func (s *stitcher) join(clients, servers []*raw) {
	clear(s.matches)
	for _, a := range clients {
		for _, b := range servers {
			if mayMeet(a, b) {
				s.matches[a] = append(s.matches[a], b)
				s.matches[b] = append(s.matches[b], a)
			}
		}
	}
	for _, a := range clients {
		if a.to.Cluster == "" {
			s.decide(a, func(b *raw) Key { return Key{a.from, b.to} }, func(r *raw) mesh.ClusterName { return r.to.Cluster })
		}
	}
	for _, b := range servers {
		if b.from.Cluster == "" {
			s.decide(b, func(a *raw) Key { return Key{a.from, b.to} }, func(r *raw) mesh.ClusterName { return r.from.Cluster })
		}
	}
}

// decide places one report with an unnamed end. keyWith is the edge if other is its counterpart, clusterOf the end of other that is looked for.
func (s *stitcher) decide(r *raw, keyWith func(other *raw) Key, clusterOf func(other *raw) mesh.ClusterName) {
	var keys []Key
	var names []mesh.ClusterName
	alone := true // each counterpart has this one only
	for _, o := range s.matches[r] {
		if k := keyWith(o); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
		if n := clusterOf(o); !slices.Contains(names, n) {
			names = append(names, n)
		}
		alone = alone && s.onlyMatch(o, r)
	}
	switch {
	case len(keys) == 0:
		s.alone(r)
	case len(keys) == 1:
		s.add(keys[0], r).inferred = true
	case alone:
		for _, k := range keys {
			row := s.add(k, r)
			row.inferred = true
			if row.shared == nil {
				row.shared = map[*raw]int{}
			}
			row.shared[r] = len(keys)
		}
	default:
		row := s.alone(r)
		slices.Sort(names)
		row.candidates = slices.Compact(slices.Concat(row.candidates, names))
		slices.Sort(row.candidates)
		row.candidates = slices.Compact(row.candidates)
	}
}

// onlyMatch reports whether all counterparts of o are the same edge end as r: other kinds of reporters of one cluster are no alternative.
func (s *stitcher) onlyMatch(o, r *raw) bool {
	for _, x := range s.matches[o] {
		if x.cluster != r.cluster || x.from != r.from && !r.serverSide() {
			return false
		}
	}
	return true
}

// alone makes an edge with an unknown end.
func (s *stitcher) alone(r *raw) *rowOf {
	k := Key{r.from, r.to}
	if k.From.Cluster == "" {
		k.From.Cluster = Unknown
	}
	if k.To.Cluster == "" {
		k.To.Cluster = Unknown
		if k.To.Namespace == External {
			k.To.Cluster = External
		}
	}
	return s.add(k, r)
}

func (s *stitcher) add(k Key, r *raw) *rowOf {
	row := s.rows[k]
	if row == nil {
		row = &rowOf{key: k}
		s.rows[k] = row
	}
	if r.serverSide() {
		row.servers = append(row.servers, r)
	} else {
		row.sources = append(row.sources, r)
	}
	return row
}

// rank orders witnesses: the server's side first, where L7 is seen before where it is not.
func rank(by Reporter) int {
	switch by {
	case ByWaypoint:
		return 0
	case ByDestination:
		return 1
	case BySource:
		return 2
	default:
		return 3
	}
}

// sortRaws makes the choice among witnesses independent of the order of maps.
func sortRaws(rs []*raw) {
	if len(rs) < 2 {
		return
	}
	slices.SortFunc(rs, func(a, b *raw) int {
		return cmp.Or(cmp.Compare(rank(a.by), rank(b.by)), cmp.Compare(a.cluster.state.Name, b.cluster.state.Name), cmp.Compare(a.client, b.client),
			compareParties(a.from, b.from), compareParties(a.to, b.to))
	})
}
