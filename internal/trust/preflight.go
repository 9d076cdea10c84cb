package trust

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Preflight says what would keep a rotation to want.Root from starting, and what it would entail. It reads certificates; Next asks it once, at the start.
func Preflight(r Rotation, want Want, fleet []Cluster, now time.Time) []Finding {
	w := newWork(r, want, fleet, now, 0)
	w.members()
	if want.Root == nil || w.r.Current.Fingerprint.IsZero() {
		return nil
	}
	w.slots()
	return preflight(w)
}

// maxSkew is how far a cluster's clock may be off. istiod back-dates leaves by 2 minutes (facts: T15).
const maxSkew = 2 * time.Minute

// checks collects findings.
type checks struct {
	w    *work
	name mesh.ClusterName
	out  []Finding
}

func (k *checks) refuse(code, message, source string) {
	k.out = append(k.out, Finding{k.name, code, true, message, source})
}

func (k *checks) note(code, message, source string) {
	k.out = append(k.out, Finding{k.name, code, false, message, source})
}

func preflight(w *work) []Finding {
	k := &checks{w: w}
	k.roots()
	domains := map[mesh.TrustDomain][]string{}
	for _, name := range w.names {
		c, m := w.fleet[name], w.r.Members[name]
		k.name = name
		switch {
		case m.Admitted:
			k.member(c)
			domains[c.TrustDomain] = append(domains[c.TrustDomain], string(name))
		case m.Fence != nil:
			k.note("Fenced", "it is fenced by "+m.Fence.By+", so that the rotation goes on without it", "")
		default:
			k.outsider(c)
		}
	}
	k.name = ""
	if len(domains) > 1 {
		var said []string
		for d, names := range domains {
			said = append(said, fmt.Sprintf("%q (%s)", d, strings.Join(names, ", ")))
		}
		slices.Sort(said)
		k.refuse("TrustDomains", "the clusters have different trust domains: "+strings.Join(said, "; ")+". Rotate each trust domain by a policy of its own", "istio#61608")
	}
	return k.out
}

// roots looks at the old and the new root.
func (k *checks) roots() {
	w := k.w
	incoming := w.want.Root
	old, err := x509.ParseCertificate(w.r.Current.Certificate)
	if err != nil {
		k.refuse("OldRoot", "the present root can't be read: "+err.Error(), "")
		return
	}
	root, err := x509.ParseCertificate(incoming.Certificate)
	if err != nil {
		k.refuse("NewRoot", "the new root can't be read: "+err.Error(), "")
		return
	}
	if bytes.Equal(old.RawSubject, root.RawSubject) && !w.off(ruleNames) {
		k.refuse("SameName", fmt.Sprintf("old and new root have the same name, %q: verifiers that choose an issuer by name would fail, and probes could not tell them apart. Give the new root a name of its own", incoming.Subject), "facts: T8")
	}
	if bytes.Equal(old.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) {
		k.refuse("SameKey", "old and new root have the same key: make a new one", "facts: preflight")
	}
	for _, p := range w.r.Passive {
		if p.Subject == incoming.Subject {
			k.refuse("SameName", "a passive root has the new root's name, "+p.Subject, "facts: T8")
		}
	}
	k.rootItself(root, incoming)
	if w.want.CrossSign && w.want.Emergency == nil {
		k.cross(old, incoming)
	}
}

func (k *checks) rootItself(root *x509.Certificate, r *Root) {
	now := k.w.now
	if !root.IsCA || root.KeyUsage != 0 && root.KeyUsage&x509.KeyUsageCertSign == 0 {
		k.refuse("NewRoot", "the new root may not sign certificates: it needs CA:true and keyCertSign", "RFC 5280 4.2.1.9")
	}
	if len(root.SubjectKeyId) == 0 {
		k.refuse("NoKeyID", "the new root has no subject key identifier, by which verifiers tell issuers apart", "facts: T8")
	}
	if len(root.PermittedURIDomains)+len(root.ExcludedURIDomains) > 0 {
		k.refuse("NameConstraints", "the new root has URI name constraints: ztunnel since 1.29.6 and 1.30.0 rejects such chains", "rustls-webpki 0.103.12")
	}
	if root.MaxPathLenZero {
		k.refuse("PathLength", "the new root allows no CA below it (path length 0)", "RFC 5280 4.2.1.9")
	}
	switch {
	case now.Before(root.NotBefore):
		k.refuse("NotYetValid", "the new root is not valid yet", "facts: T15")
	case now.Before(root.NotBefore.Add(maxSkew)):
		k.refuse("NotBackDated", "the new root is valid since less than 2 minutes ago: clusters whose clock is behind would refuse it. Wait", "facts: T15")
	case root.NotAfter.Before(now.Add(2 * k.w.ttl())):
		k.note("ShortRoot", "the new root ends before two lifetimes of an intermediate are over", "")
	}
	if r.Generation <= k.w.r.Current.Generation {
		k.refuse("Generation", fmt.Sprintf("the new root has generation %d, which is not above %d", r.Generation, k.w.r.Current.Generation), "")
	}
}

func (w *work) ttl() time.Duration {
	if w.want.TTL > 0 {
		return w.want.TTL
	}
	return defaultTTL
}

// cross looks at the new root as certified by the old one.
func (k *checks) cross(old *x509.Certificate, incoming *Root) {
	if len(incoming.CrossSigned) == 0 {
		k.refuse("NotCrossSigned", "the policy wants the new root cross-signed, and it is not: the authority of the old root has to do it, or do without", "")
		return
	}
	x, err := x509.ParseCertificate(incoming.CrossSigned)
	if err != nil {
		k.refuse("CrossSigned", "the cross-signed root can't be read: "+err.Error(), "")
		return
	}
	if err := x.CheckSignatureFrom(old); err != nil {
		k.refuse("CrossSigned", "the cross-signed root is not signed by the old root: "+err.Error(), "")
	}
	if root, err := x509.ParseCertificate(incoming.Certificate); err == nil && !bytes.Equal(root.RawSubjectPublicKeyInfo, x.RawSubjectPublicKeyInfo) {
		k.refuse("CrossSigned", "the cross-signed root has another key than the new root", "")
	}
	if (old.MaxPathLen > 0 || old.MaxPathLenZero) && old.MaxPathLen < 2 {
		k.refuse("PathLength", fmt.Sprintf("the old root allows a path length of %d, and a cross-signed root needs 2: do without it", old.MaxPathLen), "RFC 5280 4.2.1.9")
	}
}

// outsider looks at a cluster that is not admitted.
func (k *checks) outsider(c *Cluster) {
	o := c.Observation
	if o == nil {
		k.note("NotAdmitted", "nothing is known of it; it will be brought to whatever the mesh is in then", "")
		return
	}
	for _, p := range o.Istiods {
		if slices.Contains(p.Roots, k.w.r.Current.Fingerprint) {
			k.refuse("Outsider", "it trusts the present root and is not admitted, so that the rotation would cut it off: let the policy adopt it, wait until it has joined, or fence it", "facts: preflight")
			return
		}
	}
	if m := k.w.r.Members[c.Name]; m.Joining != "" && m.Joining != Preparing {
		k.refuse("Joining", "it is on its way to the present root: wait until it has joined, or fence it", "")
	}
}

// member looks at a cluster that takes part.
func (k *checks) member(c *Cluster) {
	o := c.Observation
	if !c.Connected || o == nil {
		k.refuse("Unknown", "its agent is not connected, or has not reported: bring it back, or go on without it by `meshctl trust fence "+string(c.Name)+"`", "facts: preflight")
		return
	}
	if c.TrustDomain == "" {
		k.refuse("TrustDomains", "its trust domain is unknown", "istio#61608")
	}
	if off := c.Offset.Abs(); off > maxSkew {
		k.refuse("Clock", "its clock is more than 2 minutes off: set it", "facts: T15")
	}
	k.secret(c)
	k.istiods(c)
	k.dataPlane(c)
	k.intermediate(c)
}

func (k *checks) secret(c *Cluster) {
	s := c.Observation.Secret
	switch {
	case s == nil:
		k.refuse("NoSecret", "it has no Secret cacerts: a certificate authority outside issues there, and must be given the new root itself", "facts: T16")
		return
	case s.TLSLayout:
		k.refuse("Layout", "its cacerts has the keys tls.crt, tls.key and ca.crt, which istiod reads first and which hold one root: use ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem", "istio#50420, facts: T14")
	case s.Owner != mesh.OwnerValue:
		k.refuse("Owner", "its cacerts belongs to "+s.Owner+": let the policy adopt it", "facts: T18")
	case s.Foreign != "":
		k.refuse("Owner", s.Foreign+" has changed its cacerts: stop it from writing", "facts: T18")
	}
	if s.CRL.IsZero() && len(k.w.want.CRLs) == 0 {
		return
	}
	if len(k.w.want.CRLs) == 0 {
		k.refuse("CRL", "its cacerts has a "+"ca-crl.pem that is none of ours: it can't be completed for the new root, and istiod drops the whole update then; take it out", "istio#61075, envoy#18268")
		return
	}
	for _, root := range []*Root{&k.w.r.Current, k.w.want.Root} {
		if len(k.w.want.CRLs[root.Fingerprint]) == 0 {
			k.note("CRL", "there is no revocation list by root "+root.Subject+": what was revoked under the other one is refused for as long as that one is trusted, which is all that is needed", "istio#61075")
		}
	}
}

func (k *checks) istiods(c *Cluster) {
	o := c.Observation
	trusted := fingerprints(k.w.r.Trusts())
	if len(o.Istiods) == 0 && len(o.Verifiers) > 0 {
		k.refuse("Istiod", "no istiod was found", "")
	}
	for _, p := range o.Istiods {
		what := "istiod " + p.Pod
		switch {
		case p.Error != "":
			k.refuse("Istiod", what+" could not be asked: "+p.Error, "facts: T5")
			continue
		case !sameSet(p.Roots, trusted):
			k.refuse("Istiod", what+" hands out another bundle than the present root", "facts: T4")
		case !mesh.IstiodCan(p.Version, mesh.KeyReload):
			k.refuse("Version", fmt.Sprintf("%s is %q: one before 1.19, or of an unknown version, may not reload cacerts", what, p.Version), "AUTO_RELOAD_PLUGIN_CERTS")
		}
		if p.MaxLeafTTL > 0 && time.Duration(p.MaxLeafTTL)*time.Second < defaultLeaf && k.w.want.LongestLeaf == 0 {
			k.refuse("MaxLeafTTL", what+" grants less than the 24 h that ztunnel and proxies ask for by default, and refuses to issue more: raise MAX_WORKLOAD_CERT_TTL, or set SECRET_TTL everywhere and vouch for it (longestLeaf)", "facts: T13")
		}
		if !hotRoots(p) {
			k.hotless(what)
		} else if !mesh.IstiodCan(p.Version, mesh.RootSetCompare) {
			k.bytes(what)
		}
	}
	for _, g := range slices.Concat(o.ConfigMaps, o.Webhooks) {
		if !sameSet(g.Roots, trusted) {
			k.refuse("Bundle", counted(g.Count, "object", g.Examples)+" holds another bundle than cacerts: look for another writer or revision", "istio#36478, facts: T10")
		}
	}
}

func (k *checks) bytes(what string) {
	message := what + " is before 1.30 and compares bundles as bytes; what is written takes care of it"
	if len(k.w.r.Passive) > 0 {
		message = what + " is before 1.30 and compares bundles as bytes: with passive roots in the bundle it takes a changed root only when it starts, so restart it when the rotation waits for it"
	}
	k.note("BytesCompared", message, "istio#59909")
}

func (k *checks) hotless(what string) {
	const why = " takes a changed root only when it starts (ISTIO_MULTIROOT_MESH is off, or it is before 1.20)"
	if k.w.restarts() {
		k.note("Restart", what+why+": it will be restarted twice", "istio#47063")
		return
	}
	k.note("RestartByHand", what+why+": restart it when the rotation waits for it, twice, or set autoRestartPods, or roll ISTIO_MULTIROOT_MESH=true out before", "istio#47063")
}

func (k *checks) dataPlane(c *Cluster) {
	for _, g := range c.Observation.Verifiers {
		what := counted(g.Count, g.Kind, g.Examples)
		switch {
		case g.Error != "" || !g.Known:
			k.note("Unseen", what+" can't be probed: the rotation waits for as long as their certificates may live, unless they are restarted or seen", "facts: T7")
		case g.Kind == "ztunnel" && !mesh.ZtunnelCan(g.Version, mesh.CARootReload) && !k.w.restarts():
			k.refuse("Ztunnel", fmt.Sprintf("%s: ztunnel %q does not read a changed root for its own client of istiod, and would not renew any more: update it to 1.28.6, 1.29.2 or 1.30, or set autoRestartPods", what, g.Version), "ztunnel#1679, facts: T3")
		case g.Kind == "ztunnel" && !mesh.ZtunnelCan(g.Version, mesh.CARootReload):
			k.note("ZtunnelRestart", fmt.Sprintf("%s: ztunnel %q will be restarted once it can read both roots", what, g.Version), "ztunnel#1679")
		case !slices.Contains(g.Accepts, k.w.r.Current.Subject):
			k.refuse("Verifier", what+" does not accept the present root", "facts: T1")
		}
	}
}

// intermediate looks at the intermediate under the new root, if it is there.
func (k *checks) intermediate(c *Cluster) {
	i, ok := c.Issued[k.w.r.Members[c.Name].New]
	if !ok {
		return
	}
	if i.NotAfter.Before(k.w.now.Add(4 * defaultLeaf)) {
		k.note("ShortIntermediate", "its new intermediate ends within four lifetimes of a leaf", "istio#59768")
	}
	if certs, err := parseAll(i.Chain); err == nil && len(certs) > 0 && (len(certs[0].SubjectKeyId) == 0 || len(certs[0].AuthorityKeyId) == 0) {
		k.refuse("NoKeyID", "its new intermediate lacks a subject or authority key identifier", "facts: T8")
	}
}
