package trust

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// The model of a cluster, from facts/trust-and-istio.md:
//   - the agent applies the last directive whenever it likes, and writes cacerts at once;
//   - each istiod replica reloads cacerts whenever it likes. Changed roots are refused, with everything else, without multi-root, and unless one bundle is part of the other. A restart takes
//     anything. With the reload its own serving certificate changes;
//   - the leader, any replica at any time, writes the root ConfigMap and the webhooks' caBundle;
//   - a verifier fetches leaf and roots from any replica whenever it likes, if the ConfigMap trusts that replica's serving certificate;
//   - the agent looks at all of it at one moment, or (split) at istiods first and at the rest some time later.
// All the lag there is, is in "whenever it likes".

const most = 2 // replicas and verifiers of a cluster

// local is the state of a cluster, in numbers of the universe.
type local struct {
	member, issued, kept           uint16 // what the hub keeps
	obs, out                       uint16 // what the hub has in memory: the last observation, and the directive that it publishes
	applied, secret, done          uint16 // the agent: the directive in force, cacerts, whose restarts are done
	pend                           uint16 // the first half of an observation
	istiod, verifier               [most]uint16
	maps, hooks                    uint16 // bundles
	age                            [most]uint8
	away, fenced, foreign, writing bool // writing: the foreign writer is still at it
}

type state struct {
	global uint16
	want   wanted
	gone   uint8 // crashes so far
	asked  uint8 // rollbacks and fences asked for or taken back
	c      [3]local
}

// wanted is what people ask for.
type wanted uint8

const (
	wantSecond wanted = 1 << iota // root 2
	wantBack
)

// obsKey is an observation in numbers.
type obsKey struct {
	applied, secret, done, maps, hooks uint16
	istiod, verifier                   [most]uint16
	foreign, ordered                   bool
}

type memoKey struct {
	global uint16
	want   wanted
	c      [3][5]uint16
	flags  [3]bool
}

type outcome struct {
	global               uint16
	member, kept, issued [3]uint16
	out                  [3]uint16
	blocked              [3]bool
}

// start is a mesh under root 1, with clusters of their own root beside it, where root 2 has just been asked for.
func (u *universe) start() state {
	r := Rotation{Phase: Steady, Current: u.r1.root, Generation: 1}
	s := state{global: u.globals.id(mustJSON(r)), want: wantSecond}
	for c := range u.clusters {
		l := &s.c[c]
		if len(u.own) > c && u.own[c] {
			m := u.material(material{"", 'o', "o"})
			for i := range most {
				l.istiod[i], l.verifier[i] = m, m
			}
			l.maps, l.hooks = u.bundles.id("o"), u.bundles.id("o")
			l.member = u.memberID(c, Member{})
			if u.shared { // cacerts made by hand
				l.secret = m
			}
			continue
		}
		m := u.material(material{"g1-1", '1', "1"})
		l.secret, l.issued = m, u.issued.id("g1-1=1")
		for i := range most {
			l.istiod[i], l.verifier[i] = m, m
		}
		l.maps, l.hooks = u.bundles.id("1"), u.bundles.id("1")
		l.member = u.memberID(c, Member{Admitted: true, Old: "g1-1", Serial: 1})
		l.writing = u.foreign
	}
	for c := range u.clusters {
		s.c[c].obs = u.observation(u.key(&s.c[c]))
	}
	return s
}

// key is what a cluster looks like at this moment.
func (u *universe) key(l *local) obsKey {
	return obsKey{l.applied, l.secret, l.done, l.maps, l.hooks, l.istiod, l.verifier, l.foreign, true}
}

func (u *universe) observation(k obsKey) uint16 {
	if u.replicas == 2 && k.istiod[0] > k.istiod[1] {
		k.istiod[0], k.istiod[1] = k.istiod[1], k.istiod[0]
	}
	n, ok := u.obs[k]
	if !ok {
		if n = uint16(len(u.obsOf)); n == 65535 {
			panic("too many observations")
		}
		u.obs[k], u.obsOf = n, append(u.obsOf, k)
	}
	return n
}

// build makes the observation that cluster c reports.
func (u *universe) build(c int, n uint16) *mesh.TrustObservation {
	if n == 0 {
		return nil
	}
	id := [2]uint16{n, uint16(c)}
	if o := u.built[id]; o != nil {
		return o
	}
	k := u.obsOf[n]
	o := &mesh.TrustObservation{Ordered: k.ordered, Certificates: map[mesh.Fingerprint][]byte{}}
	for _, r := range []Root{u.r1.root, u.r2.root, u.owns[c].root} {
		o.Certificates[r.Fingerprint] = r.Certificate
	}
	if k.applied != 0 {
		d := u.dir(c, k.applied)
		o.Applied = u.prints[[2]uint16{k.applied, uint16(c)}]
		for _, i := range d.Intermediates {
			s := mesh.Slot{ID: i.ID}
			if len(i.Chain) > 0 {
				s.Signer = u.cert(c, i.ID, u.slotRoot(c, &i)).Signer
			}
			o.Slots = append(o.Slots, s)
		}
	}
	if k.done != 0 {
		o.Restarted.Done = u.dir(c, k.done).Restart
	}
	signer := func(m material) mesh.Fingerprint { return u.cert(c, m.slot, m.root).Signer }
	if k.secret != 0 {
		m := u.mats[k.secret]
		o.Secret = &mesh.CACerts{Owner: mesh.OwnerValue, Signer: signer(m), Roots: u.roots(c, m.bundle), Chain: []mesh.Fingerprint{signer(m)}}
		if k.foreign {
			o.Secret.Foreign = "somebody"
		}
		if m.slot == "" {
			o.Secret.Owner = "kubectl"
			o.Secret.Bundle = pemOf(u.owns[c].root.Certificate)
		}
	}
	version := "1.30.1"
	if u.bytes {
		version = "1.29.2"
	}
	for i := range u.replicas {
		m := u.mats[k.istiod[i]]
		o.Istiods = append(o.Istiods, mesh.IstiodProbe{
			Pod: fmt.Sprint("istiod-", i), Version: version, MultiRoot: u.hot, MaxLeafTTL: int64(4 * tick / time.Second), Signer: signer(m), Roots: u.roots(c, m.bundle), Serving: []mesh.Fingerprint{signer(m)},
		})
	}
	o.ConfigMaps = []mesh.BundleGroup{{Roots: u.roots(c, u.bundles.text[k.maps]), Count: 1}}
	if u.webhooks {
		o.Webhooks = []mesh.BundleGroup{{Roots: u.roots(c, u.bundles.text[k.hooks]), Count: 1}}
	}
	for i := range u.verifiers {
		o.Verifiers = append(o.Verifiers, u.verifierGroup(c, i, u.mats[k.verifier[i]]))
	}
	u.built[id] = o
	return o
}

func (u *universe) verifierGroup(c, i int, m material) mesh.VerifierGroup {
	g := mesh.VerifierGroup{Kind: "ztunnel", Version: "1.30.1", Issuer: u.cert(c, m.slot, m.root).Signer, Known: true, Count: 1}
	if i == 1 && u.secondKind != "" {
		g.Kind = u.secondKind
	}
	if u.silent && i == u.verifiers-1 {
		g.Known, g.Error, g.Issuer = false, "no answer", mesh.Fingerprint{}
		return g
	}
	for j := range len(m.bundle) {
		g.Accepts = append(g.Accepts, u.rootOf(c, m.bundle[j]).Subject)
	}
	sort.Strings(g.Accepts)
	return g
}

// next asks the real Next.
func (u *universe) next(s *state) outcome {
	key := memoKey{global: s.global, want: s.want}
	for c := range u.clusters {
		l := &s.c[c]
		key.c[c] = [5]uint16{l.member, l.issued, l.kept, l.obs, 0}
		if l.away {
			key.c[c][4] |= 1
		}
		key.flags[c] = l.fenced
	}
	if o, ok := u.memo[key]; ok {
		return o
	}
	r, want, fleet := u.inputs(s)
	step := next(r, want, fleet, u.now(s), u.without)
	var o outcome
	bare := step.Rotation
	members := bare.Members
	bare.Members = nil
	o.global = u.globals.id(mustJSON(bare))
	for c := range u.clusters {
		name := u.name(c)
		o.kept[c] = s.c[c].kept
		if k, ok := step.Keep[name]; ok {
			o.kept[c] = u.kept.id(k.Slot + "|" + k.Take + "|" + u.labels(k.Bundle) + "|" + k.Taken + "|" + fmt.Sprint(k.Number))
		}
		o.out[c] = s.c[c].out
		if d := step.Directives[name]; d != nil {
			o.out[c] = u.directive(c, d)
		}
		o.member[c] = u.memberID(c, members[name])
		o.issued[c] = s.c[c].issued
		o.blocked[c] = slices.ContainsFunc(step.Blockers, func(b Blocker) bool { return b.Cluster == name })
	}
	for _, order := range step.Sign {
		c := int(order.Cluster[1] - '0')
		set := strings.Fields(u.issued.text[o.issued[c]])
		set = append(set, order.Slot+"="+string(u.label[order.Root]))
		slices.Sort(set)
		o.issued[c] = u.issued.id(strings.Join(set, " "))
	}
	u.memo[key] = o
	return o
}

// now is always the same: when time passes, what is remembered of it moves back instead, so that there is no end to it and yet no end of states.
func (u *universe) now(*state) time.Time { return epoch }

// older moves a member's memory of time back by a tick; what is very old stays.
func (u *universe) older(id uint16) uint16 {
	number, rest, _ := strings.Cut(u.members.text[id], " ")
	m := fromJSON[Member](rest)
	if m.Ready.IsZero() || !m.Ready.After(epoch.Add(-6*tick)) {
		return id
	}
	m.Ready = m.Ready.Add(-tick)
	return u.members.id(number + " " + mustJSON(m))
}

// inputs are the arguments of Next in a state.
func (u *universe) inputs(s *state) (Rotation, Want, []Cluster) {
	r := fromJSON[Rotation](u.globals.text[s.global])
	r.Members = map[mesh.ClusterName]Member{}
	want := Want{Authority: "test", FileLag: -1, Restart: u.restart, Adopt: true, Fences: map[mesh.ClusterName]Fence{}}
	want.Root = &u.r1.root
	if s.want&wantSecond != 0 {
		want.Root = &u.r2.root
	}
	if s.want&wantBack != 0 {
		want.Rollback = &Rollback{Generation: 2}
	}
	if u.files {
		want.FileLag = tick
	}
	if u.canary {
		want.Canary = u.name(0)
	}
	var fleet []Cluster
	for c := range u.clusters {
		l := &s.c[c]
		name := u.name(c)
		r.Members[name] = u.memberOf(c, l.member)
		if l.fenced {
			want.Fences[name] = Fence{Request: Request{By: "jane"}, Effective: true}
		}
		cl := Cluster{Name: name, TrustDomain: "cluster.local", Connected: !l.away, Observation: u.build(c, l.obs), Issued: map[string]Issued{}, Requests: map[string]bool{}}
		for f := range strings.FieldsSeq(u.issued.text[l.issued]) {
			slot, root, _ := strings.Cut(f, "=")
			cl.Issued[slot] = u.cert(c, slot, root[0])
		}
		if l.obs != 0 && u.obsOf[l.obs].applied != 0 {
			for _, i := range u.dir(c, u.obsOf[l.obs].applied).Intermediates {
				if len(i.Chain) == 0 && i.Take == "" {
					cl.Requests[i.ID] = true
				}
			}
		}
		if l.kept != 0 {
			cl.Kept = u.keptOf(c, l.kept)
		}
		fleet = append(fleet, cl)
	}
	return r, want, fleet
}

func (u *universe) keptOf(c int, n uint16) *Kept {
	f := strings.Split(u.kept.text[n], "|")
	k := &Kept{Slot: f[0], Take: f[1], Taken: f[3]}
	_, _ = fmt.Sscan(f[4], &k.Number)
	for i := range len(f[2]) {
		root := u.rootOf(c, f[2][i])
		k.Roots = append(k.Roots, Root{Generation: root.Generation, Certificate: root.Certificate, Fingerprint: root.Fingerprint, Subject: root.Subject})
		k.Bundle = join(k.Bundle, pemOf(root.Certificate))
	}
	if k.Taken != "" {
		k.Issued = u.cert(c, k.Taken, 'o')
	}
	return k
}

func (u *universe) admitted(l *local) bool {
	return strings.Contains(u.members.text[l.member], `"admitted":true`) && !l.fenced
}

// harm names two live parties that reject each other; empty: there are none.
func (u *universe) harm(s *state) string {
	trusts := func(m material, c int, root byte, from int) bool {
		return root == 'o' && (c == from || u.shared) && strings.IndexByte(m.bundle, 'o') >= 0 || root != 'o' && strings.IndexByte(m.bundle, root) >= 0
	}
	for c := range u.clusters {
		l := &s.c[c]
		for i := range u.replicas {
			serves := u.mats[l.istiod[i]].root
			file := l.maps
			if u.files {
				file = l.hooks
			}
			if strings.IndexByte(u.bundles.text[file], serves) < 0 {
				return fmt.Sprintf("clients of istiod %d in c%d reject it: it serves under root %c, the root ConfigMap holds %s", i, c, serves, u.bundles.text[file])
			}
			if u.webhooks && strings.IndexByte(u.bundles.text[l.hooks], serves) < 0 {
				return fmt.Sprintf("the API server of c%d rejects istiod %d as a webhook: it serves under root %c, caBundle holds %s", c, i, serves, u.bundles.text[l.hooks])
			}
		}
		for d := range u.clusters {
			if c != d && !u.shared && (!u.admitted(l) || !u.admitted(&s.c[d])) {
				continue
			}
			for i := range u.verifiers {
				for j := range u.verifiers {
					if u.dead(l, i) || u.dead(&s.c[d], j) {
						continue
					}
					p, t := u.mats[l.verifier[i]], u.mats[s.c[d].verifier[j]]
					if !trusts(t, d, p.root, c) {
						return fmt.Sprintf("verifier %d of c%d trusts %s and rejects verifier %d of c%d, which presents root %c", j, d, t.bundle, i, c, p.root)
					}
				}
			}
		}
	}
	return ""
}

// dead: its leaf has run out.
func (u *universe) dead(l *local, i int) bool { return u.time && l.age[i] >= u.life(i) }

// life of a leaf in ticks: one that can't be probed has the longest that istiod grants.
func (u *universe) life(i int) uint8 {
	if u.silent && i == u.verifiers-1 {
		return 4
	}
	return 2
}
