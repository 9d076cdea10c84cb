package svid

import (
	"crypto/x509"
	"errors"
	"fmt"
)

// Verify checks a peer's chain against the roots and returns its SPIFFE ID
// (X.509-SVID: exactly one URI, SPIFFE X.509-SVID 4.1 and 5).
func Verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("peer sent no certificate")
	}
	leaf, inter := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" {
		return "", fmt.Errorf("peer certificate %q is not an SVID: it has %d URIs", leaf.Subject, len(leaf.URIs))
	}
	id := leaf.URIs[0].String()
	if leaf.IsCA {
		return "", fmt.Errorf("peer %s presents a CA certificate", id)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return "", fmt.Errorf("peer %s: %w", id, err)
	}
	return id, nil
}
