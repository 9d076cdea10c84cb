package trust

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// work is one call of Next: a copy of the state that may be changed, and what the caller knows.
type work struct {
	r       Rotation
	want    Want
	fleet   map[mesh.ClusterName]*Cluster
	names   []mesh.ClusterName // of fleet, sorted
	now     time.Time
	without rule

	step       Step
	kept       map[mesh.ClusterName]*Kept // of fleet, as of now
	directives map[mesh.ClusterName]*mesh.TrustDirective
	prints     map[mesh.ClusterName]mesh.Fingerprint
	issuers    map[mesh.ClusterName]map[mesh.Fingerprint]mesh.Fingerprint // intermediate to root
	dirty      bool                                                       // directives have to be made anew
}

func (w *work) off(r rule) bool { return w.without&r != 0 }

// Next decides what to do. It is a function of its arguments: called again with the same it gives the same, called after a crash it goes on. fleet has to be complete.
func Next(r Rotation, want Want, fleet []Cluster, now time.Time) Step {
	return next(r, want, fleet, now, 0)
}

func next(r Rotation, want Want, fleet []Cluster, now time.Time, without rule) Step {
	w := newWork(r, want, fleet, now, without)
	w.members()
	w.root()
	if w.r.Current.Fingerprint.IsZero() {
		w.step.Rotation = w.r
		w.step.Reason = "there is no root yet"
		w.step.Conditions = w.conditions()
		return w.step
	}
	w.rollback()
	w.slots()
	w.direct()
	w.ready()
	asked := slices.Clip(w.step.Blockers)
	for range 2 * len(phases) { // backwards, several phases may need no proof
		w.step.Blockers = asked
		if !w.advance() {
			break
		}
		w.slots()
		w.direct()
	}
	w.join()
	w.sign()
	w.step.Rotation = w.r
	w.step.Directives = w.directives
	w.step.Conditions = w.conditions()
	w.wait()
	return w.step
}

func newWork(r Rotation, want Want, fleet []Cluster, now time.Time, without rule) *work {
	w := &work{
		r: r, want: want, now: now, without: without,
		fleet:      make(map[mesh.ClusterName]*Cluster, len(fleet)),
		kept:       make(map[mesh.ClusterName]*Kept, len(fleet)),
		directives: make(map[mesh.ClusterName]*mesh.TrustDirective, len(fleet)),
		prints:     make(map[mesh.ClusterName]mesh.Fingerprint, len(fleet)),
		issuers:    make(map[mesh.ClusterName]map[mesh.Fingerprint]mesh.Fingerprint, len(fleet)),
	}
	w.r.Members = make(map[mesh.ClusterName]Member, len(fleet))
	w.r.Began = maps.Clone(r.Began)
	if w.r.Began == nil {
		w.r.Began = map[Phase]time.Time{}
	}
	if r.Incoming != nil {
		in := *r.Incoming
		w.r.Incoming = &in
	}
	if w.r.Phase == "" {
		w.r.Phase = Steady
	}
	if w.want.LongestLeaf < 0 {
		w.want.LongestLeaf = 0
	}
	for i := range fleet {
		c := &fleet[i]
		w.fleet[c.Name], w.kept[c.Name] = c, c.Kept
		w.r.Members[c.Name] = r.Members[c.Name]
	}
	w.names = slices.Sorted(maps.Keys(w.fleet))
	return w
}

// members applies fences. A cluster that was fenced, and one that is new, has to be admitted.
func (w *work) members() {
	for _, name := range w.names {
		m := w.r.Members[name]
		f, fenced := w.want.Fences[name]
		switch {
		case fenced && f.Effective && m.Fence == nil:
			at := f.Request
			m.Fence, m.Admitted = &at, false
		case !fenced && m.Fence != nil:
			m.Fence = nil
		}
		w.r.Members[name] = m
	}
}

// root sees to it that there is one, and starts a rotation when another is wanted.
func (w *work) root() {
	r, want := &w.r, w.want.Root
	if r.Phase == Steady {
		w.askRoot()
		r.Passive = w.want.Passive
	}
	switch {
	case want == nil:
		return
	case r.Current.Fingerprint.IsZero():
		r.Current = *want
		r.Current.CrossSigned = nil
		r.Generation = max(r.Generation, want.Generation)
		w.enter(Steady, "the first root is "+want.Subject)
		return
	case r.Phase != Steady:
		return
	case want.Fingerprint == r.Current.Fingerprint:
		if want.Authority != "" {
			r.Current.Authority = want.Authority
		}
		r.Current.Generation = max(r.Current.Generation, want.Generation)
		r.Generation = max(r.Generation, r.Current.Generation)
		return
	case w.want.Rollback != nil && w.want.Rollback.Generation == want.Generation:
		w.step.Reason = "root " + want.Subject + " was rolled back by " + w.want.Rollback.By
		return
	case w.want.Paused != nil:
		w.block("", "the rotation", "it is paused by "+w.want.Paused.By+": `meshctl trust resume` when it may begin")
		return
	}
	w.step.Findings = preflight(w)
	if slices.ContainsFunc(w.step.Findings, func(f Finding) bool { return f.Refuses }) {
		w.step.Reason = "a rotation to " + want.Subject + " does not start"
		return
	}
	in := *want
	r.Incoming, r.Generation = &in, max(r.Generation, in.Generation)
	r.Began, r.CanaryProven, r.Far = map[Phase]time.Time{}, time.Time{}, ""
	r.CrossSigned = w.want.CrossSign && w.want.Emergency == nil && len(in.CrossSigned) > 0
	w.enter(Preparing, "the policy wants root "+in.Subject)
}

// askRoot asks the authority when what the policy says of it has changed, or a new root is asked for.
func (w *work) askRoot() {
	cur, want := w.r.Current, w.want
	answered := want.Root != nil && want.Root.Authority == want.Authority && want.Root.Generation >= want.Generation
	var why string
	switch {
	case answered:
		return
	case cur.Fingerprint.IsZero():
		why = "there is no root yet"
	case cur.Authority != want.Authority:
		why = fmt.Sprintf("the policy's authority is %q now, and was %q", want.Authority, cur.Authority)
	case cur.Generation < want.Generation:
		why = fmt.Sprintf("generation %d is asked for", want.Generation)
	default:
		return
	}
	w.step.Root = &RootOrder{Generation: max(w.r.Generation+1, want.Generation), Authority: want.Authority, Reason: why}
}

func (w *work) rollback() {
	r, want := &w.r, w.want.Rollback
	r.Back = r.Incoming != nil && r.Phase != Finished && want != nil && want.Generation == r.Incoming.Generation
}

func (w *work) block(c mesh.ClusterName, what, why string) {
	w.step.Blockers = append(w.step.Blockers, Blocker{Cluster: c, What: what, Why: why})
}

func (w *work) blockUntil(c mesh.ClusterName, what, why string, until time.Time) {
	w.step.Blockers = append(w.step.Blockers, Blocker{Cluster: c, What: what, Why: why, Until: until})
}

// admitted are the members that everybody waits for, sorted.
func (w *work) admitted() []mesh.ClusterName {
	return slices.DeleteFunc(slices.Clone(w.names), func(c mesh.ClusterName) bool { return !w.r.Members[c].Admitted })
}

func (w *work) clusters() string {
	if n := len(w.admitted()); n != 1 {
		return fmt.Sprintf("%d clusters", n)
	}
	return "1 cluster"
}

// every makes a reason: "every one of 3 clusters trusts both roots".
func (w *work) every(what string) string {
	return "every one of " + w.clusters() + " " + what
}

// wait finds when time alone may change the answer.
func (w *work) wait() {
	at := func(t time.Time) {
		if d := t.Sub(w.now); d > 0 && (w.step.Wait == 0 || d < w.step.Wait) {
			w.step.Wait = d
		}
	}
	for _, b := range w.step.Blockers {
		at(b.Until)
	}
	for _, name := range w.names {
		m, c := w.r.Members[name], w.fleet[name]
		for _, id := range []string{m.Old, m.New, m.Fresh} {
			i, ok := c.Issued[id]
			if ok && m.Replaces != id && id != m.Fresh {
				at(w.renewAt(name, id, i))
			}
			if ok {
				at(refusedUntil(c, id, i))
			}
		}
	}
}

// conditions says where things stand, without times and counters that change by themselves.
func (w *work) conditions() []mesh.Condition {
	r := &w.r
	var out []mesh.Condition
	progress := mesh.Condition{Type: "Rotating", Status: mesh.False, Reason: r.State(), Message: "all sign under root " + r.Current.Subject}
	switch {
	case r.Current.Fingerprint.IsZero():
		progress.Message = "there is no root yet"
	case r.Incoming != nil:
		progress.Status = mesh.True
		progress.Message = fmt.Sprintf("from root %s to %s: %s", r.Current.Subject, r.Incoming.Subject, phaseText[r.Phase])
		if r.Back {
			progress.Message = fmt.Sprintf("back from root %s to %s: %s", r.Incoming.Subject, r.Current.Subject, phaseText[r.Phase])
		}
	}
	out = append(out, progress)
	if i := slices.IndexFunc(w.step.Findings, func(f Finding) bool { return f.Refuses }); i >= 0 {
		out = append(out, mesh.Condition{Type: "Refused", Status: mesh.True, Reason: w.step.Findings[i].Code, Message: w.step.Findings[i].text()})
	}
	waits := mesh.Condition{Type: "Waiting", Status: mesh.False, Reason: "Nothing", Message: "nothing is waited for"}
	if n := len(w.step.Blockers); n > 0 {
		waits.Status, waits.Reason, waits.Message = mesh.True, "Observation", summary(w.step.Blockers)
	}
	return append(out, waits)
}

var phaseText = map[Phase]string{ //nolint:gochecknoglobals // texts of a type's values
	Preparing:    "intermediates under the new root are being certified",
	AddingRoot:   "both roots are being distributed, the old one signs",
	Switching:    "both roots are trusted, clusters change to the new one",
	DroppingRoot: "the old root is being withdrawn",
	Finished:     "keys under the old root are being destroyed",
	Steady:       "nothing changes",
}

// summary names at most 5 clusters, each with its first blocker.
func summary(all []Blocker) string {
	const most = 5
	var said []string
	seen := map[mesh.ClusterName]bool{}
	for _, b := range all {
		if seen[b.Cluster] {
			continue
		}
		if seen[b.Cluster] = true; len(said) < most {
			said = append(said, b.text())
		}
	}
	if more := len(seen) - len(said); more > 0 {
		said = append(said, fmt.Sprintf("and %d more clusters", more))
	}
	return strings.Join(said, "; ")
}

func (b Blocker) text() string {
	if b.Cluster == "" {
		return b.What + ": " + b.Why
	}
	return string(b.Cluster) + ": " + b.What + ": " + b.Why
}

func (f Finding) text() string {
	if f.Cluster == "" {
		return f.Message
	}
	return string(f.Cluster) + ": " + f.Message
}
