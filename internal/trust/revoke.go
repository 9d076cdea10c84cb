package trust

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// crl is what a cluster is given in front of its own list: those of the roots that it is to trust, in their order, where they make a set that istiod takes and that harms nobody.
func (w *work) crl(c *Cluster, roots []*Root, d *mesh.TrustDirective) []byte {
	var files [][]byte
	for _, r := range roots {
		if list := w.want.CRLs[r.Fingerprint]; len(list) > 0 {
			files = append(files, list)
		}
	}
	all := join(files...)
	if len(all) == 0 || Withheld(c, SigningChain(d), all) != "" {
		return nil
	}
	return all
}

// SigningChain is the chain, PEM, that a directive has istiod sign with; nil: none.
func SigningChain(d *mesh.TrustDirective) []byte {
	for _, o := range d.Intermediates {
		if o.ID == d.Signer {
			return o.Chain
		}
	}
	return nil
}

// Withheld says why a cluster that signs with chain (PEM) is given no revocation lists though there are some; empty: it is given them.
//
// istiod refuses keys and certificates too, silently, where a CA of the chain has signed none of the lists (istio#61075). Envoy in sidecars refuses everybody whose issuer has no list
// (envoy#18268), which is every other cluster, and leaves of the intermediate before: in this version of Istio's charts waypoints and gateways of the Gateway API mount no list.
// ztunnel accepts what no list speaks of.
func Withheld(c *Cluster, chain, lists []byte) string {
	if c.Observation != nil {
		if i := slices.IndexFunc(c.Observation.Verifiers, func(g mesh.VerifierGroup) bool { return g.Kind == "sidecar" && g.Count > 0 }); i >= 0 {
			g := c.Observation.Verifiers[i]
			return counted(g.Count, g.Kind, g.Examples) + " would refuse every other cluster, since Envoy wants a list of each of their intermediates (envoy#18268): rotate the root instead (meshctl trust rotate --emergency)"
		}
	}
	certs, err := parseAll(chain)
	if err != nil || len(certs) < 2 {
		return "" // the agent adds the list of the first, and checks the rest
	}
	all := revocationLists(lists)
	for _, ca := range certs[1:] {
		if !slices.ContainsFunc(all, func(l *x509.RevocationList) bool { return l.CheckSignatureFrom(ca) == nil }) {
			return fmt.Sprintf("there is no list by %s, which is in the cluster's chain, and istiod would refuse all of cacerts without it (istio#61075): rotate the root instead (meshctl trust rotate --emergency)", name(ca.RawSubject))
		}
	}
	return ""
}

// revocationLists reads the lists of a ca-crl.pem; what is none is left out.
func revocationLists(text []byte) []*x509.RevocationList {
	var out []*x509.RevocationList
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return out
		}
		if l, err := x509.ParseRevocationList(b.Bytes); err == nil {
			out = append(out, l)
		}
	}
}
