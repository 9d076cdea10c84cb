package probe

import (
	"crypto/x509"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// asDirected says whether an observation shows all of what is directed, so that there is no hurry to look again. Nothing else hangs on it: whether a barrier is passed is for the
// management server to decide.
func asDirected(o mesh.TrustObservation, d Directed) bool {
	if d.Applied.IsZero() || d.Signer.IsZero() {
		return true // nothing is under way
	}
	if o.Applied != d.Applied || !o.Ordered {
		return false
	}
	roots, accepts := prints(d.Roots), subjects(d.Roots)
	for _, i := range o.Istiods {
		if i.Error != "" || i.Signer != d.Signer || !sameSet(i.Roots, roots) {
			return false
		}
	}
	for _, v := range o.Verifiers {
		switch {
		case v.Kind == string(roleGateway) || v.Kind == string(roleSidecar): // never seen
		case v.Error != "" || v.Issuer != d.Signer || v.Known && !slices.Equal(v.Accepts, accepts):
			return false
		}
	}
	for _, g := range slices.Concat(o.ConfigMaps, o.Webhooks) {
		if !sameSet(g.Roots, roots) {
			return false
		}
	}
	return true
}

func prints(certs []*x509.Certificate) []mesh.Fingerprint {
	var out []mesh.Fingerprint
	for _, c := range certs {
		out = append(out, fingerprint(c))
	}
	return out
}

// subjects are the names by which roots show in a CertificateRequest.
func subjects(certs []*x509.Certificate) []string {
	var raw [][]byte
	for _, c := range certs {
		raw = append(raw, c.RawSubject)
	}
	out, _ := names(raw) // a parsed certificate has a name
	return out
}

// sameSet compares regardless of order and repetition.
func sameSet(a, b []mesh.Fingerprint) bool {
	for _, f := range a {
		if !slices.Contains(b, f) {
			return false
		}
	}
	for _, f := range b {
		if !slices.Contains(a, f) {
			return false
		}
	}
	return true
}
