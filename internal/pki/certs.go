package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // a key identifier, RFC 5280 4.2.1.2 (1): not for security
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

const (
	// Backdate is how long before it is made a CA certificate begins: clocks of other clusters may be behind (facts: T15; istiod gives its leaves 2 minutes).
	Backdate        = 10 * time.Minute
	maxCertificates = 256     // of one PEM text
	maxCSR          = 1 << 16 // bytes
	maxRSA          = 8192    // bits
)

// ParseCertificates reads the certificates of a PEM text, at least one and at most 256. Text before a block is allowed (RFC 7468 2); a damaged block, which readers
// of PEM pass over without a word, a block of anything else, and text at the end are errors that say which block it is.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	err := eachBlock("certificate", text, func(n int, b *pem.Block) error {
		if b.Type != "CERTIFICATE" {
			return fmt.Errorf("PEM block %d is a %s", n, b.Type)
		}
		if n > maxCertificates {
			return fmt.Errorf("more than %d", maxCertificates)
		}
		c, err := parseCertificate(b.Bytes)
		if err != nil {
			return fmt.Errorf("PEM block %d: %w", n, err)
		}
		out = append(out, c)
		return nil
	})
	return out, err
}

// parseCertificate bounds what verifying by the certificate may cost: crypto/tls draws the same line.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return c, checkSize(c.PublicKey)
}

func checkSize(key crypto.PublicKey) error {
	if k, ok := key.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSA {
		return fmt.Errorf("an RSA key of %d bits; TLS takes at most %d", k.N.BitLen(), maxRSA)
	}
	return nil
}

// eachBlock calls fn with every PEM block of a text (n counts from 1) and fails when there is none, or one is damaged: pem.Decode skips those.
func eachBlock(what string, text []byte, fn func(n int, b *pem.Block) error) error {
	if len(text) > maxPEM {
		return fmt.Errorf("%s: %d bytes, at most %d", what, len(text), maxPEM)
	}
	n := 0
	for rest := text; ; {
		block, next := pem.Decode(rest)
		used := rest[:len(rest)-len(next)]
		if block == nil {
			used = rest
		}
		begun := bytes.Count(used, []byte("-----BEGIN"))
		switch {
		case block == nil && n > 0 && len(bytes.TrimSpace(rest)) == 0:
			return nil
		case block == nil && begun == 0 && n > 0:
			return fmt.Errorf("%s: after PEM block %d comes something that is not PEM", what, n)
		case block == nil && begun == 0 && len(text) > 0 && text[0] == 0x30: // an ASN.1 sequence
			return fmt.Errorf("%s: this is DER, not PEM: convert it with `openssl x509 -inform DER` (certificates), `openssl pkey -inform DER` (keys) or `openssl crl -inform DER`", what)
		case block == nil && begun == 0:
			return fmt.Errorf("%s: there is no PEM block", what)
		case block == nil || begun != 1:
			return fmt.Errorf("%s: PEM block %d is damaged (its BEGIN and END lines, each on a line of its own, or what is between them)", what, n+1)
		}
		n++
		if err := fn(n, block); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		rest = next
	}
}

// EncodeCertificates is PEM, one after the other.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes everything
	}
	return b.Bytes()
}

// NewCSR asks for a certificate (PKCS#10, DER).
func NewCSR(key crypto.Signer, subject pkix.Name, uris []*url.URL) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, URIs: uris}, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request for %s: %w", subject, err)
	}
	return der, nil
}

// ParseCSR reads a request and checks that its sender has the key.
func ParseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request: %d bytes, at most %d", len(der), maxCSR)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := checkSize(r.PublicKey); err != nil { // before anything is computed with it
		return nil, fmt.Errorf("certificate request of %s: %w", r.Subject, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request of %s: %w", r.Subject, err)
	}
	return r, nil
}

// RootOptions say how a root is to be. Subject has to be another one for each generation of a root (facts: T8).
type RootOptions struct {
	Subject pkix.Name
	TTL     time.Duration
	Now     time.Time
}

// NewRoot makes a self-signed root. It has no limit of path length, so that it can be cross-signed.
func NewRoot(key crypto.Signer, o RootOptions) (*x509.Certificate, error) {
	if o.Subject.CommonName == "" || o.TTL <= 0 {
		return nil, errors.New("root: a common name and a lifetime are needed")
	}
	if err := checkNotAfter(o.Now.Add(o.TTL)); err != nil {
		return nil, err
	}
	t := &x509.Certificate{Subject: o.Subject, NotBefore: o.Now.Add(-Backdate), NotAfter: o.Now.Add(o.TTL), MaxPathLen: -1}
	return create(t, t, key.Public(), key)
}

// IntermediateOptions say how an intermediate is to be.
type IntermediateOptions struct {
	Subject pkix.Name
	URIs    []*url.URL
	TTL     time.Duration
	Now     time.Time
}

// SignIntermediate certifies the key of a request: CA, path length 0, and no longer than its issuer. What the request says beside its key counts for nothing.
func SignIntermediate(csr *x509.CertificateRequest, issuer *x509.Certificate, issuerKey crypto.Signer, o IntermediateOptions) (*x509.Certificate, error) {
	switch {
	case o.Subject.CommonName == "" || o.TTL <= 0:
		return nil, errors.New("intermediate: a common name and a lifetime are needed")
	case csr == nil || csr.PublicKey == nil:
		return nil, fmt.Errorf("intermediate %s: there is no request with a key", o.Subject)
	case !issuer.IsCA:
		return nil, fmt.Errorf("intermediate %s: the issuer %s is no CA", o.Subject, issuer.Subject)
	case issuer.MaxPathLenZero:
		return nil, fmt.Errorf("intermediate %s: the issuer %s may sign leaves only (path length 0)", o.Subject, issuer.Subject)
	case !sameKey(issuer.PublicKey, issuerKey.Public()):
		return nil, fmt.Errorf("intermediate %s: the key is not that of the issuer %s", o.Subject, issuer.Subject)
	case bytes.Equal(issuer.RawSubject, rawName(o.Subject)):
		return nil, fmt.Errorf("intermediate %s: that is its issuer's name, and no two CAs may share one", o.Subject)
	case !o.Now.Before(issuer.NotAfter):
		return nil, fmt.Errorf("intermediate %s: the issuer %s ended %s", o.Subject, issuer.Subject, issuer.NotAfter.UTC().Format(time.RFC3339))
	}
	t := &x509.Certificate{
		Subject: o.Subject, URIs: o.URIs, NotBefore: o.Now.Add(-Backdate), NotAfter: o.Now.Add(o.TTL), MaxPathLenZero: true,
	}
	if t.NotBefore.Before(issuer.NotBefore) {
		t.NotBefore = issuer.NotBefore
	}
	if t.NotAfter.After(issuer.NotAfter) {
		t.NotAfter = issuer.NotAfter
	}
	return create(t, issuer, csr.PublicKey, issuerKey)
}

// CrossSign certifies another root's name and key by issuer, so that who trusts only issuer accepts what that root signs. It ends when either does.
func CrossSign(subject, issuer *x509.Certificate, issuerKey crypto.Signer, now time.Time) (*x509.Certificate, error) {
	switch {
	case !issuer.IsCA || !subject.IsCA:
		return nil, fmt.Errorf("cross-sign %s by %s: both have to be CAs", subject.Subject, issuer.Subject)
	case issuer.MaxPathLenZero || issuer.MaxPathLen == 1:
		// issuer, cross-signed root, intermediate, leaf: two CAs below the issuer
		return nil, fmt.Errorf("cross-sign %s: the path length of %s is %d, and 2 is needed: leaves would be refused with \"too many intermediates\"", subject.Subject, issuer.Subject, issuer.MaxPathLen)
	case !sameKey(issuer.PublicKey, issuerKey.Public()):
		return nil, fmt.Errorf("cross-sign %s: the key is not that of %s", subject.Subject, issuer.Subject)
	case bytes.Equal(subject.RawSubject, issuer.RawSubject):
		return nil, fmt.Errorf("cross-sign %s: both roots have this name, and the certificate would look self-signed: make the new root with another", subject.Subject)
	case !now.Before(issuer.NotAfter) || !now.Before(subject.NotAfter):
		return nil, fmt.Errorf("cross-sign %s by %s: one of them has ended", subject.Subject, issuer.Subject)
	}
	t := &x509.Certificate{RawSubject: subject.RawSubject, SubjectKeyId: subject.SubjectKeyId, NotBefore: now.Add(-Backdate), NotAfter: subject.NotAfter, MaxPathLen: 1}
	if t.NotAfter.After(issuer.NotAfter) {
		t.NotAfter = issuer.NotAfter
	}
	if t.NotBefore.Before(issuer.NotBefore) {
		t.NotBefore = issuer.NotBefore
	}
	return create(t, issuer, subject.PublicKey, issuerKey)
}

// rawName is a name's encoding, nil if it can't be encoded.
func rawName(n pkix.Name) []byte {
	raw, _ := asn1.Marshal(n.ToRDNSequence()) // nil equals no name
	return raw
}

// checkNotAfter keeps to what every verifier of a mesh can read: years of four digits.
func checkNotAfter(t time.Time) error {
	if t.Year() > 9999 {
		return fmt.Errorf("root: it would end in the year %d", t.Year())
	}
	return nil
}

// create completes and signs a CA certificate.
func create(t, issuer *x509.Certificate, key crypto.PublicKey, issuerKey crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159)) // at most 20 octets, RFC 5280 4.1.2.2
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	t.SerialNumber, t.IsCA, t.BasicConstraintsValid = serial, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	if len(t.SubjectKeyId) == 0 {
		if t.SubjectKeyId, err = keyID(key); err != nil {
			return nil, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, key, issuerKey)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", t.Subject, err)
	}
	return x509.ParseCertificate(der)
}

// keyID is a key's identifier (RFC 5280 4.2.1.2, method 1).
func keyID(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	sum := sha1.Sum(spki.Key.RightAlign()) //nolint:gosec // as above
	return sum[:], nil
}
