package tokens

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// world is a mesh as it could be: what agents did, what istiods use, what has arrived where. Messages are lost, late and repeated because each side sees the other's report only now and then.
type world struct {
	t       *testing.T
	rnd     *rand.Rand
	now     time.Time
	names   []mesh.ClusterName
	member  map[mesh.ClusterName]bool
	minted  map[mesh.ClusterName][]mesh.MintedToken // what the API server of a cluster accepts
	dead    map[string]time.Time
	uses    map[Pair]mesh.MintedToken              // what istiods of a reader use
	secret  map[Pair]mesh.MintedToken              // what is in its remote secret
	seen    map[Pair]mesh.TokenGeneration          // what its agent saw istiods on
	reports map[mesh.ClusterName]*mesh.TokenReport // as the hub has them
	orders  map[mesh.ClusterName]*mesh.TokenDirective
	in      Settings
}

func id(from mesh.ClusterName, t mesh.MintedToken) string {
	return fmt.Sprint(from, t.Peer, t.Generation)
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), now: at(0), names: []mesh.ClusterName{"a", "b", "c"}, member: map[mesh.ClusterName]bool{}, minted: map[mesh.ClusterName][]mesh.MintedToken{},
		dead: map[string]time.Time{}, uses: map[Pair]mesh.MintedToken{}, secret: map[Pair]mesh.MintedToken{}, seen: map[Pair]mesh.TokenGeneration{},
		reports: map[mesh.ClusterName]*mesh.TokenReport{}, orders: map[mesh.ClusterName]*mesh.TokenDirective{}, in: Settings{Lifetime: 10 * time.Minute, RotateEvery: 30 * time.Second},
	}
	for _, n := range w.names {
		w.member[n] = true
	}
	return w
}

// step does one thing somewhere.
func (w *world) step() {
	c := w.names[w.rnd.IntN(len(w.names))]
	o := w.names[w.rnd.IntN(len(w.names))]
	switch w.rnd.IntN(10) {
	case 0:
		w.now = w.now.Add(time.Duration(w.rnd.IntN(20)) * time.Second)
	case 1: // its report arrives
		w.reports[c] = w.report(c)
	case 2: // the hub decides, and one directive arrives
		w.orders[c] = w.decide().Directives[c]
	case 3:
		w.agent(c)
	case 4, 5: // an envelope arrives: the newest that there is
		if n := w.newest(c, o); w.member[o] && n.Generation > w.secret[Pair{o, c}].Generation {
			w.secret[Pair{o, c}] = n
		}
	case 6, 7: // istiods take it up
		if s := w.secret[Pair{c, o}]; s.Generation > 0 {
			w.uses[Pair{c, o}] = s
		}
	case 8: // its agent looks
		w.seen[Pair{c, o}] = w.uses[Pair{c, o}].Generation
	case 9:
		switch w.rnd.IntN(40) {
		case 0: // the hub is killed, and comes back without memory
			w.reports = map[mesh.ClusterName]*mesh.TokenReport{}
		case 1: // an agent is killed: it has to look anew
			for p := range w.seen {
				if p.Reader == c {
					delete(w.seen, p)
				}
			}
		case 2:
			w.member[c] = !w.member[c]
			delete(w.reports, c)
		}
	}
}

func (w *world) newest(from, peer mesh.ClusterName) (out mesh.MintedToken) {
	for _, t := range w.minted[from] {
		if t.Peer == peer && t.Generation > out.Generation {
			out = t
		}
	}
	return out
}

func (w *world) report(c mesh.ClusterName) *mesh.TokenReport {
	r := &mesh.TokenReport{Minted: slices.Clone(w.minted[c])}
	for _, o := range w.names {
		if s := w.secret[Pair{c, o}]; s.Generation > 0 {
			r.Held = append(r.Held, mesh.HeldToken{Peer: o, Generation: s.Generation, Issued: s.Issued, Expires: s.Expires, Synced: w.seen[Pair{c, o}]})
		}
	}
	return r
}

func (w *world) decide() Plan {
	in := Input{Settings: w.in, Wanted: map[Pair]bool{}}
	for _, c := range w.names {
		if !w.member[c] {
			continue
		}
		in.Members = append(in.Members, Member{Cluster: c, Connected: true, Report: w.reports[c]})
		for _, o := range w.names {
			if o != c && w.member[o] {
				in.Wanted[Pair{c, o}] = true
			}
		}
	}
	return Next(in, w.now)
}

// agent is a round of a cluster's agent, with the directive it has.
func (w *world) agent(c mesh.ClusterName) {
	d := w.orders[c]
	for _, t := range Dead(d, w.minted[c], w.now) {
		w.dead[id(c, t)] = w.now
		w.minted[c] = slices.DeleteFunc(w.minted[c], func(x mesh.MintedToken) bool { return x == t })
		u := w.uses[Pair{t.Peer, c}]
		peer := d != nil && slices.ContainsFunc(d.Peers, func(p mesh.TokenPeer) bool { return p.Cluster == t.Peer })
		if u == t && peer && t.Expires.After(w.now) {
			w.t.Fatalf("%s: the token that istiods of %s use dies (%+v)", c, t.Peer, t)
		}
	}
	if d == nil {
		return
	}
	for _, p := range d.Peers {
		if n := w.newest(c, p.Cluster); p.Mint && !w.now.Before(DueAt(c, d, p, n)) {
			w.minted[c] = append(w.minted[c], mesh.MintedToken{Peer: p.Cluster, Generation: NextGeneration(n.Generation, w.now), Issued: w.now, Expires: w.now.Add(w.in.Lifetime)})
		}
		live := 0
		for _, t := range w.minted[c] {
			if t.Peer == p.Cluster {
				live++
			}
		}
		if live > 4 {
			w.t.Fatalf("%s accepts %d tokens of %s", c, live, p.Cluster)
		}
	}
	for p := range w.secret { // what is no peer's any more is pruned
		if p.Reader == c && !slices.ContainsFunc(d.Peers, func(o mesh.TokenPeer) bool { return o.Cluster == p.Target && o.Take }) {
			delete(w.secret, p)
			delete(w.uses, p)
			delete(w.seen, p)
		}
	}
}

// settle lets everything arrive.
func (w *world) settle() {
	for range 4 {
		for _, c := range w.names {
			w.reports[c] = w.report(c)
		}
		plan := w.decide()
		for _, c := range w.names {
			if w.member[c] {
				w.orders[c] = plan.Directives[c]
			} else {
				w.orders[c] = &mesh.TokenDirective{Lifetime: 1, RotateEvery: 1} // farewell
			}
			w.agent(c)
		}
		for _, c := range w.names {
			for _, o := range w.names {
				if n := w.newest(o, c); w.member[c] && w.member[o] && n.Generation > w.secret[Pair{c, o}].Generation {
					w.secret[Pair{c, o}] = n
				}
				if s := w.secret[Pair{c, o}]; s.Generation > 0 {
					w.uses[Pair{c, o}] = s
					w.seen[Pair{c, o}] = s.Generation
				}
			}
		}
	}
}

// TestModel: in whatever order things happen, no token dies that istiods of a peer use (save by its own expiry), tokens don't heap up, and once everything arrives each pair has one
// token, in use, and clusters that left have none.
func TestModel(t *testing.T) {
	for seed := range uint64(400) {
		w := newWorld(t, seed)
		for range 600 {
			w.step()
		}
		w.settle()
		for _, c := range w.names {
			want := 0
			for _, o := range w.names {
				if o == c || !w.member[c] || !w.member[o] {
					continue
				}
				want++
				if u := w.uses[Pair{o, c}]; u != w.newest(c, o) || u.Generation == 0 {
					t.Fatalf("seed %d: istiods of %s use %+v of %s, the newest is %+v", seed, o, u, c, w.newest(c, o))
				}
			}
			if len(w.minted[c]) != want {
				t.Fatalf("seed %d: %s accepts %+v, want %d", seed, c, w.minted[c], want)
			}
			for p := range w.secret {
				if p.Reader == c && (!w.member[c] || !w.member[p.Target]) {
					t.Fatalf("seed %d: orphan: remote secret of %s in %s", seed, p.Target, c)
				}
			}
		}
	}
}
