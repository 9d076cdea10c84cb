package family

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

const rootName = "gloo-mesh relay root "

func isOurs(c *x509.Certificate) bool { return strings.HasPrefix(c.Subject.CommonName, rootName) }

// NewKey makes an ECDSA P-256 key, as all keys of the relay are.
func NewKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func newSerial() (*big.Int, error) { // RFC 5280, 4.1.2.2: positive, at most 20 bytes
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// sign fills in serial and dates; parent nil means self-signed by key.
func sign(t *x509.Certificate, pub crypto.PublicKey, parent Authority, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	t.NotBefore = now.Add(-Backdate)
	t.NotAfter = now.Add(life)
	t.BasicConstraintsValid = true
	issuer := t
	if parent.Cert != nil {
		issuer = parent.Cert
		if t.NotAfter.After(issuer.NotAfter) {
			t.NotAfter = issuer.NotAfter
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, pub, parent.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %q: %w", t.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

func newRoot(now time.Time, o Options) (Authority, error) {
	key, err := NewKey()
	if err != nil {
		return Authority{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return Authority{}, err
	}
	id := sha256.Sum256(spki)
	cert, err := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: rootName + hex.EncodeToString(id[:4])}, // two roots live side by side: tell them apart
		IsCA:    true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, key.Public(), Authority{Key: key}, now, o.RootLifetime)
	return Authority{cert, key}, err
}

// newSigning makes a CA that can sign client certificates and nothing else: whoever steals its key can't pose as the server.
func newSigning(root Authority, now time.Time, o Options) (Authority, error) {
	key, err := NewKey()
	if err != nil {
		return Authority{}, err
	}
	cert, err := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "gloo-mesh relay signing CA"},
		IsCA:    true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public(), root, now, o.SigningLifetime)
	return Authority{cert, key}, err
}

func newServer(root Authority, now time.Time, o Options) (Server, error) {
	if len(o.ServerNames) == 0 {
		return Server{}, errors.New("server certificate: no names given")
	}
	key, err := NewKey()
	if err != nil {
		return Server{}, err
	}
	t := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "gloo-mesh-mgmt-server"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range o.ServerNames {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	cert, err := sign(t, key.Public(), root, now, o.ServerLifetime)
	return Server{[]*x509.Certificate{cert}, key}, err
}

// IssueClient signs a client certificate for cluster (CN and DNS SAN; EKU clientAuth) and returns its chain in DER, leaf first,
// then the signing CA. It ends with lifetime or with the signing CA, whichever is first.
func (f *Family) IssueClient(pub crypto.PublicKey, cluster mesh.ClusterName, now time.Time, lifetime time.Duration) ([][]byte, error) {
	if err := cluster.Validate(); err != nil {
		return nil, err
	}
	if err := checkKey(pub); err != nil {
		return nil, err
	}
	if f.Signing.Key == nil {
		return nil, fmt.Errorf("%s holds no key: client certificates can't be issued, only accepted", SigningSecret)
	}
	if !now.Before(f.Signing.Cert.NotAfter) {
		return nil, fmt.Errorf("%s expired at %s", SigningSecret, f.Signing.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	cert, err := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: string(cluster)}, DNSNames: []string{string(cluster)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, pub, f.Signing, now, lifetime)
	if err != nil {
		return nil, err
	}
	return [][]byte{cert.Raw, f.Signing.Cert.Raw}, nil
}

// NewClient makes a key and a certificate for it, as PEM: for the management cluster's own agent, and for tests.
func (f *Family) NewClient(cluster mesh.ClusterName, now time.Time, lifetime time.Duration) (chainPEM, keyPEM []byte, err error) {
	key, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	chain, err := f.IssueClient(key.Public(), cluster, now, lifetime)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = KeyPEM(key)
	return CertPEM(chain...), keyPEM, err
}

// maxCSR is far more than a request with the largest accepted key needs.
const maxCSR = 16 << 10

// NewCSR asks for a certificate for cluster.
func NewCSR(key crypto.Signer, cluster mesh.ClusterName) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: string(cluster)}, DNSNames: []string{string(cluster)},
	}, key)
}

// CheckCSR reads a PKCS#10 request and returns its public key, which the caller has proven to hold. The request must name cluster,
// as CN and as its only alternative name: whatever it asks for beyond that is refused rather than dropped in silence.
func CheckCSR(der []byte, cluster mesh.ClusterName) (crypto.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request has %d bytes: at most %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request is not signed by its own key: %w", err)
	}
	if csr.Subject.CommonName != string(cluster) {
		return nil, fmt.Errorf("certificate request names %q as CN, but %q is asked for", csr.Subject.CommonName, cluster)
	}
	if len(csr.DNSNames) != 1 || csr.DNSNames[0] != string(cluster) || len(csr.IPAddresses)+len(csr.URIs)+len(csr.EmailAddresses) > 0 {
		return nil, fmt.Errorf("certificate request must have the DNS name %q and no other alternative name: it has %q", cluster, csr.DNSNames)
	}
	return csr.PublicKey, nil
}

func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P224() {
			return errors.New("ECDSA key on P-224: want P-256 or larger")
		}
		return nil
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key of %d bits: want 2048 to 8192", n)
		}
		return nil
	default:
		return fmt.Errorf("key of type %T: want ECDSA, Ed25519 or RSA", pub)
	}
}

// KeyFingerprint hashes a public key (SubjectPublicKeyInfo).
func KeyFingerprint(pub crypto.PublicKey) (mesh.Fingerprint, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return mesh.Fingerprint{}, fmt.Errorf("public key: %w", err)
	}
	return mesh.FingerprintOf(spki), nil
}
