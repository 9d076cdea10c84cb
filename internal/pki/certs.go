package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
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
	Backdate = 10 * time.Minute
	// maxCertificates bounds one PEM text.
	maxCertificates = 256
)

// ParseCertificates reads the certificates of a PEM text, at least one. Other blocks, and rubbish between them, are errors: istiod would not see what a person sees.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("certificates: %d bytes, at most %d", len(text), maxPEM)
	}
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("certificates: after %d of them comes something that is not PEM", len(out))
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("certificates: PEM block %d is a %s", len(out)+1, block.Type)
		}
		if len(out) == maxCertificates {
			return nil, fmt.Errorf("certificates: more than %d", maxCertificates)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificates: number %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("certificates: there is none")
	}
	return out, nil
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
	if len(der) > maxPEM {
		return nil, fmt.Errorf("certificate request: %d bytes, at most %d", len(der), maxPEM)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
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
	case !issuer.IsCA:
		return nil, fmt.Errorf("intermediate %s: the issuer %s is no CA", o.Subject, issuer.Subject)
	case issuer.MaxPathLenZero:
		return nil, fmt.Errorf("intermediate %s: the issuer %s may sign leaves only (path length 0)", o.Subject, issuer.Subject)
	case !sameKey(issuer.PublicKey, issuerKey.Public()):
		return nil, fmt.Errorf("intermediate %s: the key is not that of the issuer %s", o.Subject, issuer.Subject)
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
