package pki_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/pki"
)

// now is when the tests are: what they make began in 2020 and ends in 2120, so that istiod's own checks, which read the clock, agree.
var (
	now   = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	begin = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	end   = time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
)

// ca is a certificate and its key, not necessarily a good one.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// fault changes what a certificate is made from: its template, and its issuer as the encoder sees it.
type fault func(t, issuer *x509.Certificate)

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// make_ makes a CA certificate without the help of the package under test. issuer nil: self-signed.
func make_(t testing.TB, name string, issuer *ca, faults ...fault) *ca {
	t.Helper()
	return withKey(t, newKey(t), name, issuer, faults...)
}

func withKey(t testing.TB, key crypto.Signer, name string, issuer *ca, faults ...fault) *ca {
	t.Helper()
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Bank"}, CommonName: name}, NotBefore: begin, NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	parent, signer := c, key
	if issuer != nil {
		copied := *issuer.cert
		parent, signer = &copied, issuer.key
		c.MaxPathLenZero = true
	}
	for _, f := range faults {
		f(c, parent)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert, key}
}

func ends(at time.Time) fault   { return func(t, _ *x509.Certificate) { t.NotAfter = at } }
func begins(at time.Time) fault { return func(t, _ *x509.Certificate) { t.NotBefore = at } }
func pathLen(n int) fault {
	return func(t, _ *x509.Certificate) { t.MaxPathLen, t.MaxPathLenZero = n, n == 0 }
}
func usage(u x509.KeyUsage) fault { return func(t, _ *x509.Certificate) { t.KeyUsage = u } }
func eku(u ...x509.ExtKeyUsage) fault {
	return func(t, _ *x509.Certificate) { t.ExtKeyUsage = u }
}
func leaf(t, _ *x509.Certificate)       { t.IsCA, t.MaxPathLenZero = false, false }
func noAKI(_, issuer *x509.Certificate) { issuer.SubjectKeyId = nil }
func otherAKI(_, issuer *x509.Certificate) {
	issuer.SubjectKeyId = []byte("another key")
}
func constrainURIs(t, _ *x509.Certificate) { t.PermittedURIDomains = []string{"cluster.local"} }
func signature(a x509.SignatureAlgorithm) fault {
	return func(t, _ *x509.Certificate) { t.SignatureAlgorithm = a }
}

// noSKI: Go gives every CA an identifier, so the basic constraints are written by hand.
func noSKI(t, _ *x509.Certificate) {
	value, _ := asn1.Marshal(struct{ CA bool }{true})
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero, t.SubjectKeyId = false, false, false, nil
	t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: value})
}

func pem_(cs ...*ca) []byte {
	var b bytes.Buffer
	for _, c := range cs {
		b.Write(pki.EncodeCertificates(c.cert))
	}
	return b.Bytes()
}

func certs(cs ...*ca) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range cs {
		out = append(out, c.cert)
	}
	return out
}

func (c *ca) keyPEM(t testing.TB) []byte {
	t.Helper()
	text, err := pki.EncodeKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// crl is the list of an issuer.
func (c *ca) crl(t testing.TB, until time.Time, revoked ...*ca) []byte {
	t.Helper()
	i := pki.CRLIssuer{Certificate: c.cert, Key: c.key}
	for _, r := range revoked {
		i.Revoked = append(i.Revoked, pki.Revoked{Serial: r.cert.SerialNumber, Reason: 1})
	}
	text, err := pki.NewCRL(i, pki.CRLOptions{Number: big.NewInt(1), TTL: until.Sub(begin), Now: begin})
	if err != nil {
		t.Fatal(err)
	}
	return text
}
