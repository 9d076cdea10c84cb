package trust

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

const (
	defaultFileLag = 90 * time.Second
	// clockSlack is for clocks: istiod back-dates leaves by 2 minutes (facts: T15), observations are stamped to the minute.
	clockSlack = 3 * time.Minute
)

// need is what a barrier asks of a cluster.
type need struct {
	oldSlot, newSlot bool   // the intermediate is made, certified and checked
	slots, alsoSlot  string // the same, for these
	destroyed        bool   // keys that are not directed are gone
	ready            bool   // cacerts, every istiod, root ConfigMaps and webhooks are as directed
	trust            []*Root
	gone             []*Root // nobody trusts these
	issuer           *Root   // everybody presents this one
	someIssuer       *Root   // somebody does
	files            bool    // ConfigMaps have become files
}

// all reports whether every admitted member is proven to be what is needed. What is not becomes Blockers.
func (w *work) all(n need) bool {
	ok := true
	for _, name := range w.admitted() {
		if c := w.fleet[name]; !w.proven(c, n) {
			ok = false
		}
	}
	return ok
}

// proven asks one cluster.
func (w *work) proven(c *Cluster, n need) bool {
	before := len(w.step.Blockers)
	m := w.r.Members[c.Name]
	if !c.Connected && w.off(ruleReachable) {
		return true
	}
	if !c.Connected {
		w.block(c.Name, "the cluster", "its agent is not connected, so nothing is known of it: bring it back, or go on without it by `meshctl trust fence "+string(c.Name)+"`")
		return false
	}
	o := c.Observation
	if o == nil {
		w.block(c.Name, "the cluster", "its agent has not reported what the cluster trusts yet")
		return false
	}
	w.slotsHeld(c, &m, n)
	d := w.directives[c.Name]
	switch {
	case d == nil || o.Applied != w.printOf(c.Name) && !w.off(ruleApplied):
		w.block(c.Name, "the cluster", "what it reports is from before the last directive: its agent has not applied it, or not probed since"+problems(o))
		return false
	case n.destroyed:
		w.slotsGone(c, d)
		return len(w.step.Blockers) == before
	case !n.ready:
		return len(w.step.Blockers) == before
	case !o.Ordered && !w.off(ruleOrdered):
		w.block(c.Name, "the cluster", "its agent does not say that it asked istiods before verifiers, which proves nothing: update the agent")
		return false
	}
	isReady := w.readyOr(c, d, true)
	w.restarted(c, d)
	w.filesLag(c, n)
	w.verifiers(c, n, isReady)
	return len(w.step.Blockers) == before
}

func problems(o *mesh.TrustObservation) string {
	if len(o.Problems) == 0 {
		return ""
	}
	return " (" + strings.Join(o.Problems, "; ") + ")"
}

func (w *work) slotsHeld(c *Cluster, m *Member, n need) {
	held := func(id string, root *Root) {
		if why := w.whyNotHeld(c, id, root); why != "" {
			w.block(c.Name, "its intermediate", why)
		}
	}
	if n.oldSlot {
		held(m.Old, &w.r.Current)
	}
	if n.newSlot {
		held(m.New, w.r.Incoming)
	}
	if n.slots != "" {
		held(n.slots, w.rootOf(m, n.slots))
	}
	if n.alsoSlot != "" {
		held(n.alsoSlot, nil)
	}
}

func (w *work) slotsGone(c *Cluster, d *mesh.TrustDirective) {
	for _, s := range c.Observation.Slots {
		if !slices.ContainsFunc(d.Intermediates, func(i mesh.IntermediateOrder) bool { return i.ID == s.ID }) {
			w.block(c.Name, "the key of slot "+s.ID, "it is not destroyed yet")
		}
	}
}

// ready looks at all admitted members and notes since when they have been ready.
func (w *work) ready() {
	for _, name := range w.admitted() {
		w.note(name)
	}
}

// note keeps Ready (put ends it when bundle or signer change): since when istiods, ConfigMaps and webhooks have all been as directed. Only being seen otherwise ends it: a replica that could not be asked may be new, and then it
// began with what is directed.
func (w *work) note(name mesh.ClusterName) {
	c, d, m := w.fleet[name], w.directives[name], w.r.Members[name]
	if d == nil || !c.Connected || c.Observation.Applied != w.printOf(name) || !c.Observation.Ordered {
		return
	}
	switch seen := w.readyOr(c, d, false); {
	case seen && m.Ready.IsZero():
		m.Ready = w.now
	case !seen && w.contradicts(c, d):
		m.Ready = time.Time{}
	}
	w.r.Members[name] = m
}

// readyKey names bundle and root of the signer.
func (w *work) readyKey(c *Cluster, d *mesh.TrustDirective) string {
	root := w.signerRoot(c, d)
	return mesh.FingerprintOf(d.Bundle).String()[:12] + "/" + root.String()[:12]
}

// signerRoot is the root that the directed signer leads to.
func (w *work) signerRoot(c *Cluster, d *mesh.TrustDirective) mesh.Fingerprint {
	i, _ := w.issued(c, d.Signer)
	return i.Root
}

// contradicts reports whether an istiod was seen with something else than what is directed.
func (w *work) contradicts(c *Cluster, d *mesh.TrustDirective) bool {
	for _, p := range c.Observation.Istiods {
		if p.Error == "" && w.whyIstiod(c, d, p) != "" {
			return true
		}
	}
	return false
}

// readyOr asks everything but verifiers. With say, what is not as directed becomes a blocker.
func (w *work) readyOr(c *Cluster, d *mesh.TrustDirective, say bool) bool {
	ok := true
	no := func(what, why string) {
		if ok = false; say {
			w.block(c.Name, what, why)
		}
	}
	o := c.Observation
	roots := w.directedRoots(c, d)
	if why := w.whySecret(c, d, roots); why != "" && !w.off(ruleSecret) {
		no("Secret cacerts", why)
	}
	if len(o.Istiods) == 0 && len(o.Verifiers)+len(o.ConfigMaps) == 0 { // nothing runs yet
		return ok
	}
	if len(o.Istiods) == 0 {
		no("istiod", "none was found, though there are workloads in the mesh")
	}
	for i, p := range o.Istiods {
		if w.off(ruleIstiods) || i < len(o.Istiods)-1 && w.off(ruleReplicas) {
			continue
		}
		if why := w.whyIstiod(c, d, p); why != "" {
			no("istiod "+p.Pod, why)
		}
	}
	if !w.off(ruleConfigMaps) {
		for _, g := range o.ConfigMaps {
			if !sameSet(g.Roots, roots) {
				no(counted(g.Count, "root ConfigMap", g.Examples), "it does not hold the bundle that is directed: istiod's leader writes it; look for another writer or revision if this lasts")
			}
		}
		if len(o.ConfigMaps) == 0 {
			no("root ConfigMaps", "none was found: is ENABLE_CLUSTER_TRUST_BUNDLE_API on, or PILOT_CA_CERT_CONFIGMAP changed?")
		}
	}
	for _, g := range o.Webhooks {
		if !sameSet(g.Roots, roots) && !w.off(ruleWebhooks) {
			no(counted(g.Count, "webhook", g.Examples), "its caBundle is not the bundle that is directed: GitOps or another revision of istiod may write it too (istio#36478)")
		}
	}
	return ok
}

// directedRoots are the roots of the directed bundle.
func (w *work) directedRoots(c *Cluster, d *mesh.TrustDirective) []mesh.Fingerprint {
	if m := w.r.Members[c.Name]; !m.Admitted {
		return fingerprints(w.joinRoots(c.Name, m.Joining))
	}
	return fingerprints(w.r.Trusts())
}

func (w *work) whySecret(c *Cluster, d *mesh.TrustDirective, roots []mesh.Fingerprint) string {
	s := c.Observation.Secret
	signer, _ := w.issued(c, d.Signer)
	switch {
	case s == nil:
		return "it does not exist"
	case s.Foreign != "":
		return s.Foreign + " has changed it: stop it from writing, it is ours (facts: T18)"
	case s.Owner != mesh.OwnerValue:
		return "it belongs to " + s.Owner
	case s.Signer != signer.Signer || !sameSet(s.Roots, roots):
		return "it does not hold what is directed: look at the agent's log if this lasts" + problems(c.Observation)
	}
	return ""
}

// whyIstiod says what is not as directed in one replica; empty: nothing. A renewed intermediate under the same root is as good.
func (w *work) whyIstiod(c *Cluster, d *mesh.TrustDirective, p mesh.IstiodProbe) string {
	root := w.signerRoot(c, d)
	switch {
	case p.Error != "":
		return "it could not be asked: " + p.Error
	case !sameSet(p.Roots, w.directedRoots(c, d)):
		if !hotRoots(p) {
			return "it hands out another bundle than directed, and takes a changed root only when it starts: restart it, or set autoRestartPods (ISTIO_MULTIROOT_MESH is off, or it is before 1.20; istio#47063)"
		}
		return "it hands out another bundle than directed: it reloads within 90 s, unless it refuses (look for \"root\" or \"CRL\" in its log; istio#61075)"
	case w.rootByIssuer(c, p.Signer) != root:
		return "it signs with another intermediate than directed"
	case len(p.Serving) == 0:
		return "what it serves on 15012 was not seen"
	case w.rootByIssuer(c, p.Serving[0]) != root:
		return "its own certificate on 15012 is not from the intermediate that is directed"
	}
	return ""
}

// rootByIssuer is the root that an intermediate of the cluster leads to; zero: unknown.
func (w *work) rootByIssuer(c *Cluster, issuer mesh.Fingerprint) mesh.Fingerprint {
	if w.issuers[c.Name] == nil {
		all := map[mesh.Fingerprint]mesh.Fingerprint{}
		for _, i := range c.Issued {
			all[i.Signer] = i.Root
		}
		if k := w.kept[c.Name]; k != nil && k.Taken != "" {
			all[k.Issued.Signer] = k.Issued.Root
		}
		w.issuers[c.Name] = all
	}
	return w.issuers[c.Name][issuer]
}

// restarted asks for the restarts that are directed, and for those that the data plane needs in any case.
func (w *work) restarted(c *Cluster, d *mesh.TrustDirective) {
	done := c.Observation.Restarted
	if d.Restart.Istiod != done.Done.Istiod && d.Restart.Istiod != "" || d.Restart.DataPlane != done.Done.DataPlane && d.Restart.DataPlane != "" {
		doing := done.Doing
		if doing == "" {
			doing = "not begun"
		}
		w.block(c.Name, "restarts", "they are under way: "+doing)
	}
}

func (w *work) filesLag(c *Cluster, n need) {
	lag := w.want.FileLag
	if lag == 0 {
		lag = defaultFileLag
	}
	m := w.r.Members[c.Name]
	if n.files && w.directives[c.Name].Restart.DataPlane == "" {
		for _, g := range c.Observation.Verifiers {
			if g.Kind == "ztunnel" && g.Error == "" && !mesh.ZtunnelCan(g.Version, mesh.CARootReload) {
				w.block(c.Name, counted(g.Count, g.Kind, g.Examples), fmt.Sprintf("ztunnel %q does not read a changed root for its own client of istiod: update it to 1.28.6, 1.29.2 or 1.30, or set autoRestartPods (ztunnel#1679)", g.Version))
			}
		}
	}
	if !n.files || lag < 0 || w.off(ruleFiles) || m.Ready.IsZero() || len(c.Observation.ConfigMaps) == 0 {
		return
	}
	if until := m.Ready.Add(lag); w.now.Before(until) {
		w.blockUntil(c.Name, "root ConfigMaps", "Pods see them as files some time after they have changed, and need them to reach istiod", until)
	}
}

// counted names things: "2 waypoints (prod/wp-1, prod/wp-2)".
func counted(n int, what string, examples []string) string {
	if n != 1 {
		what = fmt.Sprintf("%d %ss", n, what)
	}
	if len(examples) == 0 {
		return what
	}
	more := ""
	if n > len(examples) {
		more = ", ..."
	}
	return what + " (" + strings.Join(examples, ", ") + more + ")"
}
