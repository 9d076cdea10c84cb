package authority

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// Revoker is an Authority that signs the revocation list of the CA that signs intermediates.
type Revoker interface {
	// RevocationList is its list, PEM, of exactly these certificates. It ends with its issuer: a server that is away must not make it end (Envoy refuses all of an issuer whose
	// list has ended, ztunnel ignores the list), and it travels to istiod by a Secret, so that an older one can't be slipped in.
	RevocationList(ctx context.Context, revoked []pki.Revoked) ([]byte, error)
}

// WhyNoList says why an authority can't revoke what it has signed; empty: it can.
func WhyNoList(a mesh.Authority) string {
	switch {
	case a.Generated != nil, a.Secret != "":
		return ""
	case a.Vault != nil:
		return "Vault's list ends after hours (72 by default) and is lost to the mesh then, and the server has no right to revoke there"
	case a.AWS != nil:
		return "AWS Private CA publishes its list to S3, hours later and for days only"
	case a.CertManager != nil:
		return "cert-manager has no revocation"
	default:
		return "the policy names no authority"
	}
}

// RevocationList implements Revoker. istiod wants a list of every CA between the workload and the root (istio#61075), so that one whose key is elsewhere makes it impossible.
func (l *local) RevocationList(ctx context.Context, revoked []pki.Revoked) ([]byte, error) {
	m, err := l.material(ctx)
	if err != nil {
		return nil, err
	}
	if len(m.above) > 0 {
		return nil, &Refused{Detail: fmt.Sprintf("%s: the key of %s is not there, and istiod takes no lists without one of it (istio#61075)", l.issuer, m.above[0].Subject)}
	}
	now := l.now()
	list, err := pki.NewCRL(pki.CRLIssuer{Certificate: m.cert, Key: m.key, Revoked: revoked}, pki.CRLOptions{Number: big.NewInt(now.UnixNano() / int64(time.Millisecond)), Now: now})
	if err != nil {
		return nil, &Misconfigured{Detail: l.issuer, Fix: "it needs the key usage CRL signing", Err: err}
	}
	return list, nil
}
