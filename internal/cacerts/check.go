package cacerts

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// newKey makes a key and its PEM.
func newKey(algorithm string) (crypto.Signer, []byte, error) {
	var key crypto.Signer
	var err error
	switch algorithm {
	case "RSA-2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "RSA-4096":
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSA-P256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSA-P384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		return nil, nil, fmt.Errorf("key algorithm %q is not known", algorithm)
	}
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// newRequest makes the certificate request of a slot.
func newRequest(key crypto.Signer, o mesh.IntermediateOrder) ([]byte, error) {
	r := &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{o.Organization}, CommonName: o.CommonName}}
	for _, text := range o.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		r.URIs = append(r.URIs, u)
	}
	return x509.CreateCertificateRequest(rand.Reader, r, key)
}

// checkChain says what is wrong with the chain that came for a slot. A root that is not known yet is no fault before the chain is to sign.
func checkChain(o mesh.IntermediateOrder, s slot, roots []*x509.Certificate, signs bool, now time.Time) error {
	chain, err := parse(o.Chain)
	if err != nil {
		return err
	}
	if len(chain) == 0 {
		return errors.New("it is empty")
	}
	if publicOf(chain[0].PublicKey) != s.public() {
		return errors.New("its first certificate is for another key")
	}
	if !chain[0].IsCA {
		return errors.New("its first certificate is no CA certificate")
	}
	own, err := parse(o.Root)
	if err != nil {
		return fmt.Errorf("its root: %w", err)
	}
	if !signs {
		if len(own) == 0 {
			return nil
		}
		roots = own
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// checkFiles says what istiod, or whoever meets its certificates, would have against a cacerts.
func checkFiles(files map[string][]byte, _ time.Time) error {
	for _, name := range []string{caCertFile, caKeyFile, chainFile, rootFile} {
		if len(files[name]) == 0 {
			return fmt.Errorf("%s is empty", name)
		}
	}
	return nil
}

// withOwnCRL is the CRLs of a directive and an empty one signed by the signer itself: istiod takes a set only if every certificate of cert-chain.pem has signed one of it
// (istio#61075). The one that is stored is kept while it holds, so that the Secret does not change for nothing.
func withOwnCRL(crls, stored []byte, signer *x509.Certificate, key crypto.Signer, now time.Time) ([]byte, error) {
	if len(crls) > 0 && crls[len(crls)-1] != '\n' {
		crls = append(bytes.Clone(crls), '\n')
	}
	if own, ok := bytes.CutPrefix(stored, crls); ok {
		if b, rest := pem.Decode(own); b != nil && len(bytes.TrimSpace(rest)) == 0 {
			if l, err := x509.ParseRevocationList(b.Bytes); err == nil && l.CheckSignatureFrom(signer) == nil && l.NextUpdate.After(now) && len(l.RevokedCertificateEntries) == 0 {
				return stored, nil
			}
		}
	}
	// It lives as long as its signer: nobody is there to renew it, and it says nothing that could become wrong.
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(now.Unix()), ThisUpdate: now.Add(-time.Hour), NextUpdate: signer.NotAfter}, signer, key)
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(crls), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...), nil
}
