package trust

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"ambitmesh.dev/ambit/internal/mesh"
)

// search visits every state that can be reached, each once, clusters that are alike being allowed to change places.
type search struct {
	*universe
	seen  map[state]int32 // where it is in order
	order []state
	from  []int32
	ends  map[state]bool // states that a helpful world brings to the end
	bad   string
	badAt int32
}

// newSearch begins at the start.
func newSearch(s setup, without rule) *search {
	x := &search{universe: newUniverse(s, without), seen: map[state]int32{}, ends: map[state]bool{}}
	s0 := x.start()
	if !slices.Contains(s.own, true) {
		s0.want = 0
		for range 5 {
			s0 = x.help(s0)
		}
		s0.want = wantSecond
		for c := range x.clusters {
			s0.c[c].writing = s.foreign
		}
	}
	x.add(s0, -1)
	return x
}

func compareLocals(a, b *local) int {
	x := (*[unsafe.Sizeof(local{})]byte)(unsafe.Pointer(a))
	y := (*[unsafe.Sizeof(local{})]byte)(unsafe.Pointer(b))
	return slices.Compare(x[:], y[:])
}

// canonical sorts what is alike: replicas, verifiers, clusters.
func (x *search) canonical(s *state) {
	for c := range x.clusters {
		l := &s.c[c]
		x.renumber(l)
		if x.replicas == 1 {
			l.istiod[1] = 0
		} else if l.istiod[0] > l.istiod[1] {
			l.istiod[0], l.istiod[1] = l.istiod[1], l.istiod[0]
		}
		if x.verifiers == 1 {
			l.verifier[1], l.age[1] = 0, 0
		} else if x.secondKind == "" && !x.silent && cmp.Or(cmp.Compare(l.verifier[0], l.verifier[1]), cmp.Compare(l.age[0], l.age[1])) > 0 {
			l.verifier[0], l.verifier[1], l.age[0], l.age[1] = l.verifier[1], l.verifier[0], l.age[1], l.age[0]
		}
	}
	first := 0
	if x.canary {
		first = 1
	}
	rest := s.c[first:x.clusters]
	for i := 1; i < len(rest); i++ {
		for j := i; j > 0 && compareLocals(&rest[j-1], &rest[j]) > 0; j-- {
			rest[j-1], rest[j] = rest[j], rest[j-1]
		}
	}
}

func (x *search) add(s state, from int32) {
	x.canonical(&s)
	if _, ok := x.seen[s]; ok {
		return
	}
	n := int32(len(x.order))
	x.seen[s], x.order, x.from = n, append(x.order, s), append(x.from, from)
	if why := x.harm(&s); why != "" && x.bad == "" {
		x.bad, x.badAt = why, n
	}
}

// run searches until all is seen, something is wrong, or there are too many states.
func (x *search) run() {
	limit := cmp.Or(x.maxStates, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 1))
	var frontier []int32
	for next := 0; x.bad == "" && len(x.order) < limit; {
		for ; next < len(x.order); next++ {
			frontier = append(frontier, int32(next))
		}
		if len(frontier) == 0 {
			return
		}
		i := 0
		if x.deep { // the last or any
			if i = len(frontier) - 1; rnd.IntN(4) == 0 {
				i = rnd.IntN(len(frontier))
			}
			frontier[i], frontier[0] = frontier[0], frontier[i]
		}
		n := frontier[0]
		if x.deep {
			last := len(frontier) - 1
			frontier[0], frontier = frontier[last], frontier[:last]
		} else {
			frontier = frontier[1:]
		}
		x.successors(x.order[n], n)
	}
}

// hub lets Next act on what the hub knows.
func (x *search) hub(s state) state {
	o := x.next(&s)
	s.global = o.global
	for c := range x.clusters {
		l := &s.c[c]
		l.member, l.kept, l.issued, l.out = o.member[c], o.kept[c], o.issued[c], o.out[c]
	}
	return s
}

func (x *search) successors(s state, n int32) {
	x.add(x.hub(s), n)
	x.people(s, n)
	if int(s.gone) < x.crashes {
		t := s
		t.gone++
		for c := range x.clusters {
			t.c[c].obs, t.c[c].out = 0, 0
		}
		x.add(t, n)
		for c := range x.clusters { // an agent forgets: what it has applied, and that it has keys
			t := s
			t.gone++
			t.c[c].applied, t.c[c].pend, t.c[c].done = 0, 0, 0
			x.add(t, n)
		}
	}
	if x.time {
		x.pass(s, n)
	}
	for c := range x.clusters {
		if c > 0 && s.c[c] == s.c[c-1] && (!x.canary || c != 1) {
			continue
		}
		x.cluster(s, c, n)
	}
}

func (x *search) people(s state, n int32) {
	if x.rollback && int(s.asked) < x.acts && strings.Contains(x.globals.text[s.global], `"incoming"`) {
		t := s
		t.want ^= wantBack
		t.asked++
		x.add(t, n)
	}
	away := 0
	for c := range x.clusters {
		if s.c[c].away {
			away++
		}
	}
	for c := range x.clusters {
		t := s
		l := &t.c[c]
		if x.away > 0 && (l.away || away < x.away) {
			l.away = !l.away
			x.add(t, n)
		}
		if x.fence && int(s.asked) < x.acts && (s.c[c].fenced || s.c[c].away) {
			t := s
			t.asked++
			t.c[c].fenced = !t.c[c].fenced
			x.add(t, n)
		}
	}
}

// pass: time passes; leaves grow old. What is a file must have followed its ConfigMap.
func (x *search) pass(s state, n int32) {
	for c := range x.clusters {
		l := &s.c[c]
		l.member = x.older(l.member)
		if x.files && l.hooks != l.maps {
			return
		}
		for i := range x.verifiers {
			l.age[i] = min(l.age[i]+1, x.life(i))
		}
	}
	x.add(s, n)
}

// cluster lets one thing happen in a cluster.
func (x *search) cluster(s state, c int, n int32) {
	try := func(change func(l *local)) {
		t := s
		change(&t.c[c])
		if t != s {
			x.add(t, n)
		}
	}
	l := &s.c[c]
	if !l.away {
		try(x.apply)
		x.observe(s, c, n)
	}
	for i := range x.replicas {
		try(func(l *local) { x.reload(c, l, i) })
		try(func(l *local) { x.restartIstiod(l, i) })
		try(func(l *local) { l.maps = x.bundles.id(x.mats[l.istiod[i]].bundle) })
		if x.webhooks {
			try(func(l *local) { l.hooks = x.bundles.id(x.mats[l.istiod[i]].bundle) })
		}
		for j := range x.verifiers {
			try(func(l *local) { x.fetch(l, j, i) })
		}
	}
	try(func(l *local) { x.restartAll(c, l) })
	if x.files {
		try(func(l *local) { l.hooks = l.maps })
	}
	if l.writing && x.mats[l.secret].slot == "g1-1" && x.mats[l.secret].bundle == "12" && l.obs != 0 && x.obsOf[l.obs].applied != l.applied {
		try(func(l *local) { l.secret, l.foreign = x.material(material{"g1-1", '1', "1"}), true })
	}
	if l.foreign {
		try(func(l *local) { x.settleForeign(c, l) })
	}
}

func (x *search) settleForeign(c int, l *local) {
	l.foreign, l.writing = false, false
	x.write(c, l)
}

// apply: the agent takes the directive that is published and writes cacerts.
func (x *search) apply(l *local) {
	if l.out != 0 && l.out != l.applied {
		l.applied = l.out
		if !l.foreign {
			x.write(0, l)
		}
	}
}

func (x *search) write(_ int, l *local) {
	c := slices.IndexFunc(x.dirs[l.applied], func(d *mesh.TrustDirective) bool { return d != nil })
	d := x.dir(c, l.applied)
	for _, i := range d.Intermediates {
		if i.ID == d.Signer && len(i.Chain) > 0 {
			l.secret = x.material(material{i.ID, x.slotRoot(c, &i), x.labels(d.Bundle)})
		}
	}
}

// reload: istiod takes cacerts while it runs, or refuses.
func (x *search) reload(_ int, l *local, i int) {
	if l.secret == 0 {
		return
	}
	old, now := x.mats[l.istiod[i]], x.mats[l.secret]
	switch {
	case old.slot == "" && !x.shared: // it signs by itself and does not look
		return
	case old.bundle == now.bundle:
	case !x.hot:
		return
	case x.bytes && !strings.Contains(old.bundle, now.bundle) && !strings.Contains(now.bundle, old.bundle):
		return
	case !x.bytes && !subset(old.bundle, now.bundle) && !subset(now.bundle, old.bundle):
		return
	}
	l.istiod[i] = l.secret
}

func subset(a, b string) bool {
	return !strings.ContainsFunc(a, func(r rune) bool { return !strings.ContainsRune(b, r) })
}

// restartIstiod: at any time where somebody has to do it by hand; where the agent does it, when it is told to.
func (x *search) restartIstiod(l *local, i int) {
	byHand := !x.restart && (!x.hot || len(x.own) > 0)
	if l.secret != 0 && (byHand || x.restarting(l)) {
		l.istiod[i] = l.secret
	}
}

func (x *search) anyDir(n uint16) *mesh.TrustDirective {
	return x.dirs[n][slices.IndexFunc(x.dirs[n], func(d *mesh.TrustDirective) bool { return d != nil })]
}

func (x *search) restarting(l *local) bool {
	return x.restart && l.applied != 0 && x.anyDir(l.applied).Restart.DataPlane != "" && (l.done == 0 || x.anyDir(l.done).Restart != x.anyDir(l.applied).Restart)
}

// restartAll: when istiods and the ConfigMap are as told, the agent restarts all verifiers.
func (x *search) restartAll(_ int, l *local) {
	if !x.restarting(l) || x.bundles.text[l.maps] != x.mats[l.secret].bundle {
		return
	}
	for i := range x.replicas {
		if l.istiod[i] != l.secret {
			return
		}
	}
	for j := range x.verifiers {
		l.verifier[j], l.age[j] = l.secret, 0
	}
	l.done = l.applied
}

// fetch: a verifier fetches leaf and roots from a replica that its client trusts.
func (x *search) fetch(l *local, j, i int) {
	file := l.maps
	if x.files {
		file = l.hooks
	}
	if strings.IndexByte(x.bundles.text[file], x.mats[l.istiod[i]].root) >= 0 {
		l.verifier[j], l.age[j] = l.istiod[i], 0
	}
}

// observe: the agent looks and the hub hears of it. With split it looks twice.
func (x *search) observe(s state, c int, n int32) {
	l := &s.c[c]
	k := x.key(l)
	if x.split || x.unordered {
		t := s
		t.c[c].pend = x.observation(k)
		if l.pend != t.c[c].pend {
			x.add(t, n)
		}
		if l.pend == 0 {
			return
		}
		first := x.obsOf[l.pend]
		k.applied, k.ordered = first.applied, !x.unordered
		if x.unordered {
			k.verifier, k.maps, k.hooks = first.verifier, first.maps, first.hooks
		} else {
			k.istiod, k.secret, k.done = first.istiod, first.secret, first.done
		}
	}
	t := s
	t.c[c].obs, t.c[c].pend = x.observation(k), 0
	if t.c[c].obs == l.obs {
		return
	}
	if !x.time && x.without&(ruleApplied|ruleReachable) == 0 && x.useless(&s, &t, c) {
		return
	}
	x.add(t, n)
}

// useless reports whether the hub can do nothing with an observation that it could not do with the one before, now or later: the cluster is blocked by it, and nothing else comes of it. Where there is no time it
// can't be of use later, since it counts for the directive it was made under, and a phase that ends changes the directive.
func (x *search) useless(s, t *state, c int) bool {
	a, b := x.next(s), x.next(t)
	return b.blocked[c] && a.global == b.global && a.member == b.member && a.kept == b.kept && a.issued == b.issued && a.out == b.out
}

// finishes reports whether a helpful world brings a state to the end: all are connected and everything happens. why says how it ends if not.
func (x *search) finishes(s state) (ok bool, why string) {
	var path []state
	for range 60 {
		x.canonical(&s)
		if done, seen := x.ends[s]; seen {
			ok = done
			break
		}
		path = append(path, s)
		t := x.help(s)
		x.canonical(&t)
		if t == s {
			ok, why = x.end(&s)
			break
		}
		s = t
	}
	for _, p := range path {
		x.ends[p] = ok
	}
	return ok, why
}

// help lets everything helpful happen once.
func (x *search) help(s state) state {
	s = x.hub(s)
	for c := range x.clusters {
		l := &s.c[c]
		l.away, l.fenced = false, false
		if l.foreign || l.writing {
			if l.applied != 0 {
				x.settleForeign(c, l)
			}
		}
		x.apply(l)
		for i := range x.replicas {
			x.reload(c, l, i)
			x.restartIstiod(l, i)
			l.maps = x.bundles.id(x.mats[l.istiod[i]].bundle)
			if x.webhooks || x.files {
				l.hooks = l.maps
			}
		}
		for j := range x.verifiers {
			x.fetch(l, j, 0)
		}
		x.restartAll(c, l)
		l.obs, l.pend = x.observation(x.key(l)), 0
		if x.time {
			l.member = x.older(l.member)
		}
	}
	return x.hub(s)
}

// end says whether a state is where a rotation may end.
func (x *search) end(s *state) (bool, string) {
	r := fromJSON[Rotation](x.globals.text[s.global])
	want := "root 2"
	if s.want&wantBack != 0 && r.Incoming == nil && r.Current.Generation == 1 {
		want = "root 1"
	}
	for c := range x.clusters {
		if !x.admitted(&s.c[c]) {
			return false, fmt.Sprintf("c%d is not admitted: %s", c, x.show(s))
		}
	}
	if r.Phase != Steady || !strings.Contains(r.Current.Subject, want) {
		return false, x.show(s)
	}
	return true, ""
}

// show writes a state, and what Next waits for in it.
func (x *search) show(s *state) string {
	var b strings.Builder
	r, want, fleet := x.inputs(s)
	fmt.Fprintf(&b, "phase %s back=%t far=%s want=%b\n", r.Phase, r.Back, r.Far, s.want)
	for c := range x.clusters {
		l := &s.c[c]
		m := func(n uint16) string { return x.materials.text[n] }
		fmt.Fprintf(&b, "  c%d: %s\n      out {%s} applied {%s}\n      cacerts %s istiods %s %s verifiers %s %s age %v maps %s hooks %s away=%t fenced=%t foreign=%t kept %s\n", c, x.members.text[l.member], x.directives.text[l.out], x.directives.text[l.applied],
			m(l.secret), m(l.istiod[0]), m(l.istiod[1]), m(l.verifier[0]), m(l.verifier[1]), l.age, x.bundles.text[l.maps], x.bundles.text[l.hooks], l.away, l.fenced, l.foreign, x.kept.text[l.kept])
		if l.obs != 0 {
			k := x.obsOf[l.obs]
			fmt.Fprintf(&b, "      seen: applied {%s} istiods %s %s verifiers %s %s\n", x.directives.text[k.applied], m(k.istiod[0]), m(k.istiod[1]), m(k.verifier[0]), m(k.verifier[1]))
		}
	}
	step := next(r, want, fleet, x.now(s), x.without)
	fmt.Fprintf(&b, "  reason %s\n", step.Reason)
	for _, blocker := range step.Blockers {
		fmt.Fprintf(&b, "  waits: %s\n", blocker.text())
	}
	for _, f := range step.Findings {
		fmt.Fprintf(&b, "  finding: %t %s\n", f.Refuses, f.text())
	}
	return b.String()
}

// trace writes the way to a state.
func (x *search) trace(n int32) string {
	var way []int32
	for ; n >= 0; n = x.from[n] {
		way = append(way, n)
	}
	slices.Reverse(way)
	var b strings.Builder
	for _, n := range way[max(0, len(way)-6):] {
		b.WriteString(x.show(&x.order[n]))
	}
	return b.String()
}

// check searches, and fails the test on harm, and on a state from which a helpful world does not come to the end.
func check(t *testing.T, s setup) {
	t.Helper()
	switch {
	case testing.Short():
		s.maxStates = min(cmp.Or(s.maxStates, 10000), 10000)
	case os.Getenv("AMBIT_MODEL") == "full": // hours, if one likes
		s.maxStates = 4 << 20
	}
	x := newSearch(s, 0)
	x.run()
	if x.bad != "" {
		t.Fatalf("%s\n%s", x.bad, x.trace(x.badAt))
	}
	whole := "all of them"
	if limit := cmp.Or(x.maxStates, 1<<20); len(x.order) >= limit {
		whole = fmt.Sprintf("the first %d, breadth first", limit)
		if s.deep {
			whole = fmt.Sprintf("%d of more, depth first with leaps", limit)
		}
	}
	for _, st := range x.order {
		if ok, why := x.finishes(st); !ok {
			t.Fatalf("a helpful world does not finish from:\n%s\nbut ends in:\n%s", x.show(&st), why)
		}
	}
	reached := map[string]bool{}
	for _, st := range x.order {
		r := fromJSON[Rotation](x.globals.text[st.global])
		reached[r.State()] = true
		if r.Phase == Steady && r.Current.Generation == 2 {
			reached["done"] = true
		}
	}
	t.Logf("%d states searched (%s), up to %s: %s; Next called with %d different inputs", len(x.order), whole, strings.Join(slices.Sorted(maps.Keys(reached)), " "), s, len(x.memo))
}
