package family

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// VerifyClient checks a presented chain (leaf first) and returns the cluster it names. The leaf must be issued by the signing CA or
// by an earlier one; whatever else the caller sent along is not looked at, so leaf-only certificates minted by hand are as good.
// The error is a sentence for the agent's operator.
func (f *Family) VerifyClient(chain []*x509.Certificate, now time.Time) (mesh.ClusterName, error) {
	if len(chain) == 0 {
		return "", errors.New("no client certificate was presented")
	}
	leaf := chain[0]
	// The issuer first: what a stranger's certificate says is of no interest.
	at := now
	if d := leaf.NotBefore.Sub(now); d > 0 && d <= Skew {
		at = leaf.NotBefore
	}
	pool := x509.NewCertPool()
	pool.AddCert(f.Signing.Cert)
	for _, c := range f.Previous {
		pool.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && !now.Before(leaf.NotAfter):
		return "", fmt.Errorf("the client certificate of %q expired at %s (it is %s here): enrol again with `meshctl cluster register`", leaf.Subject.CommonName, stamp(leaf.NotAfter), stamp(now))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && at.Before(leaf.NotBefore):
		return "", fmt.Errorf("the client certificate of %q is valid from %s only (it is %s here): compare the clocks of both clusters", leaf.Subject.CommonName, stamp(leaf.NotBefore), stamp(now))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "", fmt.Errorf("the client certificate of %q may not be used for client authentication: issue it with the extended key usage clientAuth", leaf.Subject.CommonName)
	case f.fits(leaf):
		return "", fmt.Errorf("the client certificate of %q does not verify: %w", leaf.Subject.CommonName, err)
	default:
		return "", fmt.Errorf("the client certificate of %q was issued by %q, which is not this management server's signing CA (%s: %q): this certificate belongs to another installation or to a former certificate family; enrol again with `meshctl cluster register`", leaf.Subject.CommonName, leaf.Issuer.CommonName, SigningSecret, f.Signing.Cert.Subject.CommonName)
	}
	if leaf.IsCA {
		return "", fmt.Errorf("the client certificate of %q is a CA certificate: a cluster needs a leaf", leaf.Subject.CommonName)
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) { // no extension at all means "any" to Verify, not to us
		return "", fmt.Errorf("the client certificate of %q lacks the extended key usage clientAuth", leaf.Subject.CommonName)
	}
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != leaf.Subject.CommonName {
		return "", fmt.Errorf("the client certificate names %q as CN and %q as DNS names: both must be the cluster's name", leaf.Subject.CommonName, leaf.DNSNames)
	}
	c := mesh.ClusterName(leaf.Subject.CommonName)
	if err := c.Validate(); err != nil {
		return "", fmt.Errorf("the client certificate: %w", err)
	}
	return c, nil
}

// fits reports whether one of our signing CAs has signed leaf, whatever else is wrong with it.
func (f *Family) fits(leaf *x509.Certificate) bool {
	for _, c := range append([]*x509.Certificate{f.Signing.Cert}, f.Previous...) {
		if leaf.CheckSignatureFrom(c) == nil {
			return true
		}
	}
	return false
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// VerifyServer checks the server leaf against a bundle, as an agent would.
func VerifyServer(chain, bundle []*x509.Certificate, name string, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("no server certificate")
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range bundle {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, DNSName: name, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}
