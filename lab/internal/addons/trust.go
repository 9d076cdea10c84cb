package addons

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Lifetimes of the lab's certificate authorities.
const (
	rootLifetime         = 10 * 365 * 24 * time.Hour
	intermediateLifetime = 365 * 24 * time.Hour
	backdate             = time.Hour
)

// Root is a certificate authority that the istiods of a lab share, made by hand
// as in Istio's own guide to plugged-in certificates. Its key is kept nowhere.
type Root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewRoot makes a root with a name of its own.
func NewRoot(now time.Time) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of the lab's root: %w", err)
	}
	r := &Root{key: key}
	r.cert, err = r.sign(&x509.Certificate{Subject: pkix.Name{
		Organization: []string{"Ambit lab"}, CommonName: "Root CA " + now.UTC().Format("20060102-150405"),
	}}, nil, key, now.Add(rootLifetime), now)
	return r, err
}

// CACerts is the Secret cacerts of a cluster, with an intermediate of its own.
func (r *Root) CACerts(cluster string, now time.Time) (*unstructured.Unstructured, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of the intermediate of %s: %w", cluster, err)
	}
	cert, err := r.sign(&x509.Certificate{
		Subject:        pkix.Name{Organization: []string{"Ambit lab"}, CommonName: "Intermediate CA " + cluster},
		MaxPathLenZero: true,
	}, r.cert, key, now.Add(intermediateLifetime), now)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("key of the intermediate of %s: %w", cluster, err)
	}
	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Secret",
		"metadata":   map[string]any{"name": "cacerts", "namespace": IstioNamespace},
		"data": map[string]any{
			"ca-cert.pem":    encode("CERTIFICATE", cert.Raw),
			"ca-key.pem":     encode("PRIVATE KEY", der),
			"cert-chain.pem": encode("CERTIFICATE", cert.Raw),
			"root-cert.pem":  encode("CERTIFICATE", r.cert.Raw),
		},
	}}, nil
}

// sign completes a CA certificate for key; without parent it signs itself.
func (r *Root) sign(t, parent *x509.Certificate, key *ecdsa.PrivateKey, until, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	t.SerialNumber, t.NotBefore, t.NotAfter = serial, now.Add(-backdate), until
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), r.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", t.Subject, err)
	}
	return x509.ParseCertificate(der)
}
