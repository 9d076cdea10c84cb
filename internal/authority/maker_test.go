package authority_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/pki"
)

func newRoot(t *testing.T, name string) (crypto.Signer, *x509.Certificate) {
	t.Helper()
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pki.NewRoot(key, pki.RootOptions{Subject: subject(name), TTL: 10000 * time.Hour, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return key, c
}

// signCA signs a CA that may have CAs below it, unlike those of package pki.
func signCA(t *testing.T, issuer *x509.Certificate, issuerKey, key crypto.Signer, name string) *x509.Certificate {
	t.Helper()
	return sign(t, issuer, issuerKey, key, &x509.Certificate{
		Subject: subject(name), IsCA: true, BasicConstraintsValid: true, MaxPathLen: -1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
}

func leaf(t *testing.T, issuer *x509.Certificate, issuerKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	return sign(t, issuer, issuerKey, key, &x509.Certificate{Subject: subject("leaf"), BasicConstraintsValid: true})
}

func sign(t *testing.T, issuer *x509.Certificate, issuerKey, key crypto.Signer, c *x509.Certificate) *x509.Certificate {
	t.Helper()
	return signKey(t, issuer, issuerKey, key.Public(), c, time.Now().Add(5000*time.Hour))
}

func signKey(t *testing.T, issuer *x509.Certificate, issuerKey crypto.Signer, key crypto.PublicKey, c *x509.Certificate, until time.Time) *x509.Certificate {
	t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), until
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, key, issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}
