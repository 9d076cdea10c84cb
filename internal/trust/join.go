package trust

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Clusters that are not admitted: new ones, which run on a root of their own, and those that were fenced. Each goes its own way to the exact state of the mesh's present phase, by the
// same steps as a rotation, so that nothing inside it breaks: its old bundle plus the phase's; then the phase's signer; then the phase's bundle alone. When the phase changes on the way,
// the way begins anew from wherever it is: each step keeps a bundle that holds the root of every live leaf, so that this is safe at any point.

// join begins and furthers the ways of all clusters that are not admitted.
func (w *work) join() {
	var joining []mesh.ClusterName
	for _, name := range w.names {
		if w.r.Members[name].Admitted {
			continue
		}
		if w.begin(name) {
			joining = append(joining, name)
		}
	}
	for _, name := range joining {
		w.slotsOf(name)
		w.put(name, w.joinDirective(name))
		w.note(name)
	}
	for range len(phases) {
		var moved []mesh.ClusterName
		for _, name := range joining {
			if w.mayMove(name, joining) {
				moved = append(moved, name)
			}
		}
		for _, name := range moved {
			w.move(name)
		}
		if len(moved) == 0 {
			break
		}
	}
	for _, name := range joining {
		if m := w.r.Members[name]; !m.Admitted {
			w.proven(w.fleet[name], w.joinNeed(name, m.Joining))
		}
	}
}

// toward names the state that a cluster is to come to.
func (w *work) toward() string {
	var b strings.Builder
	for _, root := range w.r.Trusts() {
		b.WriteString(root.Fingerprint.String()[:12] + "+")
	}
	return b.String() + w.r.Signs().Fingerprint.String()[:12]
}

// begin reports whether a cluster is on its way; it begins anew when the state to come to has changed.
func (w *work) begin(name mesh.ClusterName) bool {
	m, c := w.r.Members[name], w.fleet[name]
	outrun := w.outrun(c, &m)
	if m.Joining != "" && m.Toward == w.toward() && w.kept[name] != nil && w.kept[name].Number == m.Kept && !outrun {
		return true
	}
	o := c.Observation
	switch {
	case !c.Connected || o == nil:
		w.block(name, "the cluster", "it is not admitted: its agent has not reported what the cluster trusts")
		return false
	case m.Joining == "" && o.Secret != nil && o.Secret.Owner != mesh.OwnerValue && !w.want.Adopt:
		w.block(name, "Secret cacerts", "it belongs to "+o.Secret.Owner+" and is left alone: let the policy adopt it, or hand over by deleting it")
		return false
	}
	if outrun {
		self := *c
		seen := *o
		seen.Secret, self.Observation, m.Signing = nil, &seen, ""
		c = &self
	}
	k, why := w.keep(c, &m)
	if why != "" {
		w.block(name, "its present root", why)
		return false
	}
	w.store(name, &m, k)
	m.Joining, m.Toward, m.Ready, m.ReadyFor = Preparing, w.toward(), time.Time{}, ""
	w.r.Members[name] = m
	return true
}

// outrun reports whether an istiod started, and signs by a root of its own, in a cluster where nothing ran when its way began: cacerts came a moment too late for it.
func (w *work) outrun(c *Cluster, m *Member) bool {
	k, o := w.kept[c.Name], c.Observation
	return m.Joining != "" && c.Connected && o != nil && k != nil && k.Slot == "" && slices.ContainsFunc(o.Istiods, func(p mesh.IstiodProbe) bool {
		return p.Error == "" && !p.Signer.IsZero() && w.rootByIssuer(c, p.Signer).IsZero() && slices.Contains(p.Roots, p.Signer)
	})
}

// store gives k to be kept.
func (w *work) store(name mesh.ClusterName, m *Member, k Kept) {
	m.Kept++
	k.Number = m.Kept
	w.kept[name] = &k
	if w.step.Keep == nil {
		w.step.Keep = map[mesh.ClusterName]Kept{}
	}
	w.step.Keep[name] = k
}

// keep finds out what a cluster trusts and signs with at present. What was kept before stays in the bundle: leaves under it may live on.
func (w *work) keep(c *Cluster, m *Member) (Kept, string) {
	o := c.Observation
	var k Kept
	if old := w.kept[c.Name]; old != nil && m.Joining != "" {
		k = *old
		if old.Number != m.Kept && m.Signing == "" {
			k.Slot, k.Taken, k.Take, k.Issued = "", "", "", Issued{} // from before a crash
		}
	}
	roots, signer, raw := present(o)
	switch {
	case m.Joining != "" && m.Signing != "": // it was told to sign so, and those who saw it may be the only ones: it goes on
		k.Slot = m.Signing
	case k.Slot == "":
		if why := w.keepSigner(c, m, &k, signer); why != "" {
			return k, why
		}
	}
	if w.off(ruleOwnRoot) {
		roots, raw, k.Bundle, k.Roots = nil, nil, nil, nil
	}
	var more [][]byte
	for _, f := range roots {
		if slices.ContainsFunc(k.Roots, func(r Root) bool { return r.Fingerprint == f }) {
			continue
		}
		der, ok := o.Certificates[f]
		if !ok {
			return k, "its agent did not report a certificate of its bundle"
		}
		root, err := RootOf(der, 0, "")
		if err != nil {
			return k, "its bundle can't be read: " + err.Error()
		}
		for _, t := range w.r.Trusts() {
			if t.Fingerprint == f {
				root.Generation = t.Generation
			}
			if t.Subject == root.Subject && t.Fingerprint != f && !w.off(ruleNames) {
				return k, fmt.Sprintf("it has the same name as the mesh's, %q: verifiers that choose an issuer by name would fail (facts: T8). Give the mesh a root of another name", root.Subject)
			}
		}
		k.Roots, more = append(k.Roots, root), append(more, pemOf(der))
	}
	switch {
	case len(k.Bundle) == 0 && len(raw) > 0:
		k.Bundle = raw
	case len(more) > 0:
		k.Bundle = join(append([][]byte{k.Bundle}, more...)...)
	}
	return k, ""
}

// present reads bundle and signer of what a cluster runs on: its cacerts, or else what its istiods hand out.
func present(o *mesh.TrustObservation) (roots []mesh.Fingerprint, signer mesh.Fingerprint, raw []byte) {
	if o.Secret != nil {
		return o.Secret.Roots, o.Secret.Signer, o.Secret.Bundle
	}
	for _, p := range o.Istiods {
		for _, f := range p.Roots {
			if !slices.Contains(roots, f) {
				roots = append(roots, f)
			}
		}
		signer = p.Signer
	}
	return roots, signer, nil
}

// keepSigner finds the slot that signs at present, or takes over the key that does.
func (w *work) keepSigner(c *Cluster, m *Member, k *Kept, signer mesh.Fingerprint) string {
	if signer.IsZero() {
		if len(c.Observation.Istiods)+len(c.Observation.Verifiers) > 0 {
			return "what its istiod signs with was not seen"
		}
		return "" // nothing runs yet
	}
	for id, i := range c.Issued {
		if i.Signer == signer && (k.Slot == "" || id < k.Slot) {
			k.Slot = id
		}
	}
	if k.Slot != "" {
		return ""
	}
	return w.take(c, m, k, signer)
}

// take orders a slot for the key that is there.
func (w *work) take(c *Cluster, m *Member, k *Kept, signer mesh.Fingerprint) string {
	o := c.Observation
	chain := []mesh.Fingerprint{signer}
	k.Take = mesh.TakeSelfSigned
	var roots []mesh.Fingerprint
	if s := o.Secret; s != nil {
		if k.Take, roots = mesh.TakeCACerts, s.Roots; len(s.Chain) > 0 && s.Chain[0] == signer {
			chain = s.Chain
		}
	} else {
		for _, p := range o.Istiods {
			if p.Signer != signer || !slices.Contains(p.Roots, signer) {
				return "its istiods do not sign with a root of their own, and there is no cacerts: a certificate authority outside (istio-csr, a Kubernetes signer) issues here, and must be given the new root itself (facts: T16)"
			}
			roots = append(roots, signer)
		}
	}
	var file []byte
	for _, f := range chain {
		der, ok := o.Certificates[f]
		if !ok {
			return "its agent did not report a certificate of its chain"
		}
		file = join(file, pemOf(der))
	}
	root, why := chainRoot(file, roots, o.Certificates)
	if why != "" {
		return why
	}
	issued, err := IssuedOf(file, root)
	if err != nil {
		return err.Error()
	}
	m.Serial++
	k.Taken, k.Issued = fmt.Sprintf("taken-%d", m.Serial), issued
	k.Slot = k.Taken
	return ""
}

// joinRoots are the roots of the bundle on the way, in order.
func (w *work) joinRoots(name mesh.ClusterName, stage Phase) []*Root {
	all := w.r.Trusts()
	k := w.kept[name]
	if stage == DroppingRoot || k == nil {
		return all
	}
	var out []*Root
	for i := range k.Roots {
		out = append(out, &k.Roots[i])
	}
	if stage == Preparing {
		return out
	}
	for _, root := range all {
		if !slices.ContainsFunc(out, func(r *Root) bool { return r.Fingerprint == root.Fingerprint }) {
			out = append(out, root)
		}
	}
	return out
}

// joinSlot is the slot that a cluster signs with when it has arrived.
func (w *work) joinSlot(m Member) string {
	if w.r.Signs() == w.r.Incoming {
		return m.New
	}
	return m.Old
}

func (w *work) joinDirective(name mesh.ClusterName) *mesh.TrustDirective {
	m, c, k := w.r.Members[name], w.fleet[name], w.kept[name]
	if c.Observation == nil {
		return nil
	}
	d := w.base(name, &m)
	if m.Joining == Preparing {
		return d // without a signer cacerts is left as it is
	}
	d.Signer = w.joinSlot(m)
	if m.Joining == AddingRoot && k.Slot != "" {
		d.Signer = k.Slot
	}
	if m.Joining == DroppingRoot {
		d.Bundle = bundle(w.r.Trusts())
	} else {
		d.Bundle = k.Bundle
	}
	d.CRL = w.crl(c, w.r.Trusts(), d)
	d.Restart = w.joinRestart(c, m, k)
	m.Signing = d.Signer
	w.r.Members[name] = m
	return d
}

// joinRestart: an istiod that signed by itself looks at cacerts only when it starts (istio#44932).
func (w *work) joinRestart(c *Cluster, m Member, k *Kept) mesh.RestartOrder {
	if m.Joining == Preparing || !w.restarts() {
		return mesh.RestartOrder{}
	}
	token := fmt.Sprintf("joining-%s-%d", m.Joining, m.Kept)
	o := mesh.RestartOrder{DataPlane: token}
	if m.Joining == AddingRoot && k.Take == mesh.TakeSelfSigned || m.Joining != Switching && needsRestart(c.Observation) {
		o.Istiod = token
	}
	return o
}

// joinNeed is the barrier behind a stage.
func (w *work) joinNeed(name mesh.ClusterName, stage Phase) need {
	m := w.r.Members[name]
	switch stage {
	case Preparing:
		n := need{slots: w.joinSlot(m)}
		if k := w.kept[name]; k != nil && k.Slot != "" {
			n.alsoSlot = k.Slot
		}
		return n
	case AddingRoot:
		return need{slots: w.joinSlot(m), ready: true, trust: w.joinRoots(name, stage), files: true}
	case Switching:
		return need{ready: true, issuer: w.r.Signs()}
	default:
		var gone []*Root
		for _, root := range w.joinRoots(name, AddingRoot) {
			if !slices.ContainsFunc(w.r.Trusts(), func(t *Root) bool { return t.Fingerprint == root.Fingerprint }) {
				gone = append(gone, root)
			}
		}
		return need{ready: true, trust: w.r.Trusts(), gone: gone, issuer: w.r.Signs()}
	}
}

// mayMove reports whether a cluster has done its stage, and those that came with the same root have, too: they may be talking to each other.
func (w *work) mayMove(name mesh.ClusterName, joining []mesh.ClusterName) bool {
	blockers := w.step.Blockers
	defer func() { w.step.Blockers = blockers }()
	m := w.r.Members[name]
	if m.Admitted || w.off(ruleAdmission) {
		return !m.Admitted
	}
	if !w.proven(w.fleet[name], w.joinNeed(name, m.Joining)) {
		return false
	}
	if m.Joining == DroppingRoot {
		return m.Fence == nil
	}
	if w.off(ruleFamily) {
		return true
	}
	for _, other := range w.names {
		if other == name || w.r.Members[other].Admitted || w.r.Members[other].Fence != nil {
			continue
		}
		if !slices.Contains(joining, other) {
			if w.kept[name].Take == mesh.TakeCACerts && w.fleet[other].Observation == nil { // it may have the same root
				return false
			}
			continue
		}
		o := w.r.Members[other]
		if w.related(name, other) && (o.Joining.before(m.Joining) || o.Joining == m.Joining && !w.proven(w.fleet[other], w.joinNeed(other, o.Joining))) {
			return false
		}
	}
	return true
}

// related reports whether two clusters came with a root in common that is not the mesh's.
func (w *work) related(a, b mesh.ClusterName) bool {
	x, y := w.kept[a], w.kept[b]
	return x != nil && y != nil && x.Taken != "" && y.Taken != "" && slices.ContainsFunc(x.Roots, func(r Root) bool {
		return r.Generation == 0 && slices.ContainsFunc(y.Roots, func(s Root) bool { return r.Fingerprint == s.Fingerprint })
	})
}

// move begins the next stage, or admits.
func (w *work) move(name mesh.ClusterName) {
	m := w.r.Members[name]
	if m.Joining == DroppingRoot {
		m.Joining, m.Toward, m.Signing, m.Admitted = "", "", "", true
		w.r.Members[name] = m
		w.slotsOf(name)
		w.put(name, w.directive(name))
		return
	}
	m.Joining = phases[m.Joining.rank()+1]
	if m.Joining == AddingRoot { // whatever comes next has to contain what is told now, or an istiod may refuse it
		k := *w.kept[name]
		for _, root := range w.joinRoots(name, AddingRoot)[len(k.Roots):] {
			k.Roots = append(slices.Clip(k.Roots), Root{Generation: root.Generation, Certificate: root.Certificate, Fingerprint: root.Fingerprint, Subject: root.Subject})
			k.Bundle = join(k.Bundle, pemOf(root.Certificate))
		}
		w.store(name, &m, k)
	}
	w.r.Members[name] = m
	w.slotsOf(name)
	w.put(name, w.joinDirective(name))
	w.note(name)
}
