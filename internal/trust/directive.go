package trust

import (
	"fmt"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

const (
	defaultOrganization = "gloo-mesh"
	defaultAlgorithm    = "RSA-4096"
	maxCommonName       = 64 // RFC 5280 appendix A: ub-common-name
)

// direct makes the directives of all admitted members.
func (w *work) direct() {
	for _, name := range w.admitted() {
		w.put(name, w.directive(name))
	}
	w.dirty = false
}

// put makes d the directive in force; nil leaves the cluster what it has. One that differs from the last gets the next number.
func (w *work) put(name mesh.ClusterName, d *mesh.TrustDirective) {
	if d == nil {
		delete(w.directives, name)
		delete(w.prints, name)
		return
	}
	m := w.r.Members[name]
	d.Turn = m.Turn
	if w.off(ruleTurn) {
		d.Turn = 0
	}
	_, f := Encode(d)
	if f != m.Directed {
		if m.Turn++; !w.off(ruleTurn) {
			d.Turn = m.Turn
		}
		_, m.Directed = Encode(d)
	}
	if key := w.readyKey(w.fleet[name], d); key != m.ReadyFor { // what was seen before is of another bundle or signer, also if it comes back
		m.Ready, m.ReadyFor = time.Time{}, key
	}
	w.r.Members[name] = m
	w.directives[name], w.prints[name] = d, m.Directed
}

// printOf is the fingerprint of the directive in force; zero: none.
func (w *work) printOf(name mesh.ClusterName) mesh.Fingerprint { return w.prints[name] }

// directive is what an admitted member is told. A cluster that has not been seen since the hub began is told nothing: it keeps what it has.
func (w *work) directive(name mesh.ClusterName) *mesh.TrustDirective {
	r, m, c := &w.r, w.r.Members[name], w.fleet[name]
	if c.Observation == nil {
		return nil
	}
	signer := m.Old
	if r.Signs() == r.Incoming && (r.Phase != Switching || w.switched(name)) {
		signer = m.New
	}
	if r.Far == Switching && (r.Phase == AddingRoot || r.Phase == Switching) && !w.holds(c, signer) {
		for _, other := range []string{m.Old, m.New} { // both roots are trusted: better sign under the other one than not at all
			if w.holds(c, other) {
				signer = other
			}
		}
	}
	d := w.base(name, &m)
	d.Signer = signer
	d.Bundle = bundle(r.Trusts())
	if w.off(ruleSameBytes) && r.Phase == Switching {
		d.Bundle = bundle([]*Root{r.Incoming, &r.Current})
	}
	d.CRL = w.crl(c, r.Trusts(), d)
	d.Restart = w.restart(c, fmt.Sprintf("%s-%d", r.Phase, r.Turn))
	return d
}

// base lists the slots of a cluster.
func (w *work) base(name mesh.ClusterName, m *Member) *mesh.TrustDirective {
	d := &mesh.TrustDirective{Policy: w.want.Policy, Adopt: w.want.Adopt}
	ids := []string{m.Old, m.New, m.Fresh, m.Retired}
	if k := w.kept[name]; k != nil && !m.Admitted {
		ids = append(ids, k.Slot, k.Taken)
	}
	for i, id := range ids {
		done := id == m.Old && w.r.Phase == Finished // S5: its key is destroyed
		if id == "" || done || slices.Contains(ids[:i], id) {
			continue
		}
		d.Intermediates = append(d.Intermediates, w.order(name, m, id))
	}
	return d
}

// order describes a slot.
func (w *work) order(name mesh.ClusterName, m *Member, id string) mesh.IntermediateOrder {
	c, want := w.fleet[name], w.want
	o := mesh.IntermediateOrder{ID: id, Organization: want.Organization, Algorithm: want.Algorithm, CommonName: commonName(name, id)}
	if o.Organization == "" {
		o.Organization = defaultOrganization
	}
	if o.Algorithm == "" {
		o.Algorithm = defaultAlgorithm
	}
	if c.TrustDomain != "" {
		o.URIs = []string{"spiffe://" + string(c.TrustDomain) + "/ns/istio-system/sa/istiod"}
	}
	root := w.rootOf(m, id)
	if root != nil {
		o.Generation = root.Generation
	}
	i, ok := w.issued(c, id)
	if !ok || root != nil && i.Root != root.Fingerprint {
		return o
	}
	if i.Algorithm != "" {
		o.Algorithm = i.Algorithm
	}
	o.Chain = i.Chain
	if root != nil {
		o.Root = pemOf(root.Certificate)
	}
	if k := w.kept[name]; k != nil && k.Taken == id {
		o.Take = k.Take
	}
	if w.r.CrossSigned && root != nil && root == w.r.Incoming && w.r.Phase.before(DroppingRoot) {
		o.Chain = join(i.Chain, pemOf(root.CrossSigned))
	}
	return o
}

// commonName carries cluster and slot, so that no two CAs of the mesh share a name (facts: T8). A long name is cut, and told apart by a hash.
func commonName(name mesh.ClusterName, id string) string {
	if s := string(name) + " " + id; len(s) <= maxCommonName {
		return s
	}
	sum := mesh.FingerprintOf([]byte(name)).String()[:12]
	return fmt.Sprintf("%.*s-%s %s", maxCommonName-len(id)-len(sum)-2, string(name), sum, id)
}

// bundle is root-cert.pem: the same roots in the same order give the same bytes.
func bundle(roots []*Root) []byte {
	files := make([][]byte, 0, len(roots))
	for _, r := range roots {
		files = append(files, pemOf(r.Certificate))
	}
	return join(files...)
}

// restart says what has to be restarted for a bundle to be in force, if the policy lets us.
func (w *work) restart(c *Cluster, token string) mesh.RestartOrder {
	if w.r.Incoming == nil || w.r.Phase == Preparing && !w.r.Back || w.r.Phase == Finished || !w.restarts() {
		return mesh.RestartOrder{}
	}
	o := mesh.RestartOrder{DataPlane: token}
	if needsRestart(c.Observation) {
		o.Istiod = token
	}
	return o
}

func (w *work) restarts() bool { return w.want.Restart || w.want.Emergency != nil }

// needsRestart reports whether some istiod will not take a bundle while it runs (istio#47063: needs ISTIO_MULTIROOT_MESH). One that has taken it by a restart still needs to be told the
// same: the token stays.
func needsRestart(o *mesh.TrustObservation) bool {
	return o != nil && slices.ContainsFunc(o.Istiods, func(p mesh.IstiodProbe) bool { return !hotRoots(p) })
}

// hotRoots reports whether an istiod takes a changed root-cert.pem without a restart.
func hotRoots(p mesh.IstiodProbe) bool {
	return p.MultiRoot && mesh.IstiodCan(p.Version, mesh.RootReload)
}
