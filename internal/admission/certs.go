package admission

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// Lives of the webhook's own certificates. Both are renewed when a third of the life remains; both are backdated an hour.
const (
	caLife      = 5 * 365 * 24 * time.Hour
	servingLife = 90 * 24 * time.Hour
	backdate    = time.Hour
	settle      = time.Minute // for every API server to have read a changed caBundle
)

// Keys of the Secret that replicas share.
const (
	keyCACert  = "ca.crt"  // bundle: the CA that signs now first, then earlier ones that are still valid
	keyCAKey   = "ca.key"  // of the first of ca.crt
	keyTLSCert = "tls.crt" // serving certificate
	keyTLSKey  = "tls.key"
)

// material is what the Secret holds.
type material map[string][]byte

// next is what the Secret should hold, given what it holds: unchanged, a new CA beside the old one, or a new serving certificate.
// A new CA signs nothing until published, i.e. until the API server is told to trust it: so no request ever meets a certificate it can't verify.
// The string says what was done; empty: nothing.
func next(m material, names []string, published bool, now time.Time) (material, string, error) {
	cas, caErr := parseCerts(m[keyCACert])
	caKey, keyErr := parseKey(m[keyCAKey])
	leaf, leafErr := parseCerts(m[keyTLSCert])
	_, pairErr := tls.X509KeyPair(m[keyTLSCert], m[keyTLSKey])
	usable := caErr == nil && keyErr == nil && cas[0].IsCA && caKey.PublicKey.Equal(cas[0].PublicKey) && now.Before(cas[0].NotAfter)
	switch {
	case !usable: // none yet, or damaged: nothing can be kept
		caPEM, keyPEM, ca, key, err := newCA(now)
		if err != nil {
			return nil, "", err
		}
		out, err := withLeaf(material{keyCACert: caPEM, keyCAKey: keyPEM}, ca, key, names, now)
		return out, "made a certificate authority and a serving certificate", err
	case due(cas[0], now):
		caPEM, keyPEM, _, _, err := newCA(now)
		if err != nil {
			return nil, "", err
		}
		for _, old := range cas {
			if now.Before(old.NotAfter) {
				caPEM = append(caPEM, certPEM(old.Raw)...)
			}
		}
		return material{keyCACert: caPEM, keyCAKey: keyPEM, keyTLSCert: m[keyTLSCert], keyTLSKey: m[keyTLSKey]}, "made a successor of the certificate authority", nil
	case leafErr != nil || pairErr != nil || due(leaf[0], now) || !covers(leaf[0], names):
	case published && leaf[0].CheckSignatureFrom(cas[0]) != nil && now.Sub(cas[0].NotBefore) > backdate+settle:
	default:
		return m, "", nil
	}
	out, err := withLeaf(m, cas[0], caKey, names, now)
	return out, "made a serving certificate", err
}

func due(c *x509.Certificate, now time.Time) bool {
	return now.After(c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3))
}

func covers(c *x509.Certificate, names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return c.VerifyHostname(n) != nil })
}

func withLeaf(m material, ca *x509.Certificate, caKey *ecdsa.PrivateKey, names []string, now time.Time) (material, error) {
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, NotBefore: now.Add(-backdate), NotAfter: now.Add(servingLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, key, err := sign(t, ca, caKey)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return material{keyCACert: m[keyCACert], keyCAKey: m[keyCAKey], keyTLSCert: certPEM(der), keyTLSKey: keyPEM}, nil
}

func newCA(now time.Time) (caPEM, keyPEM []byte, ca *x509.Certificate, key *ecdsa.PrivateKey, err error) {
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: "gloo-mesh-mgmt-server webhook CA"}, NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, key, err := sign(t, nil, nil)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, nil, nil, fmt.Errorf("webhook CA: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return certPEM(der), keyPEM, ca, key, err
}

// sign makes a key and a certificate for it; without a parent it signs itself.
func sign(t, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("webhook key: %w", err)
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, fmt.Errorf("webhook serial number: %w", err)
	}
	if parent == nil {
		parent, parentKey = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, fmt.Errorf("webhook certificate %q: %w", t.Subject.CommonName, err)
	}
	return der, key, nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("webhook key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("webhook Secret: %s holds no PEM key", keyCAKey)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("webhook Secret: %s: %w", keyCAKey, err)
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("webhook Secret: %s is a %T, want ECDSA", keyCAKey, k)
	}
	return ec, nil
}

func parseCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(b); len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, fmt.Errorf("not PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		out, rest = append(out, c), bytes.TrimSpace(after)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no certificate")
	}
	return out, nil
}
