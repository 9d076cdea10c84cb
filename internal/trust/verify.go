package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// verify checks a presented chain, which begins with the intermediate, as a verifier would check a leaf under it. It is the only place that asks X.509.
func verify(chain, roots []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("nothing is presented")
	}
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		anchors.AddCert(r)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	found, err := chain[0].Verify(x509.VerifyOptions{
		Roots: anchors, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return err
	}
	for _, path := range found {
		if err = leafFits(path); err == nil {
			return nil
		}
	}
	return err
}

// leafFits checks what Verify can't, since the leaf is not in the path: path lengths (RFC 5280 4.2.1.9) and that the intermediate may sign.
func leafFits(path []*x509.Certificate) error {
	for i, c := range path {
		switch {
		case !c.IsCA:
			return fmt.Errorf("%s is no CA certificate", c.Subject)
		case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return fmt.Errorf("%s may not sign certificates", c.Subject)
		case (c.MaxPathLen > 0 || c.MaxPathLenZero) && c.MaxPathLen < i:
			return fmt.Errorf("%s allows a path length of %d, and %d CAs stand below it", c.Subject, c.MaxPathLen, i)
		}
	}
	return nil
}
