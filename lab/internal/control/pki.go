package control

import (
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
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 2 * 365 * 24 * time.Hour
	// renewBefore is how long before its end a certificate is replaced.
	renewBefore = 30 * 24 * time.Hour
	// backdate allows for clocks that differ a little.
	backdate = time.Hour
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// leaf says what a certificate is to be.
type leaf struct {
	cn     string
	groups []string // subject organizations: Kubernetes groups
	names  []string // DNS names
	ips    []netip.Addr
	usage  []x509.ExtKeyUsage
}

// ensureAuthority reads the authority in certPath and keyPath, or makes one when
// there is none or the one there soon ends.
func ensureAuthority(certPath, keyPath, cn string, now time.Time) (authority, error) {
	a, err := readAuthority(certPath, keyPath)
	if err == nil && now.Add(renewBefore).Before(a.cert.NotAfter) {
		return a, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return authority{}, err // damaged: nothing is overwritten that somebody may want back
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return authority{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	if err := writePair(certPath, keyPath, der, key); err != nil {
		return authority{}, err
	}
	return readAuthority(certPath, keyPath)
}

func readAuthority(certPath, keyPath string) (authority, error) {
	cert, key, err := readPair(certPath, keyPath)
	if err != nil {
		return authority{}, err
	}
	if !cert.IsCA {
		return authority{}, fmt.Errorf("%s: not a certificate authority", certPath)
	}
	return authority{cert: cert, key: key}, nil
}

// ensureLeaf writes a certificate and its key unless those there already are what
// is asked for: same names, usages and issuer, and not soon at their end.
func (a authority) ensureLeaf(certPath, keyPath string, want leaf, now time.Time) error {
	if cert, _, err := readPair(certPath, keyPath); err == nil && a.satisfies(cert, want, now) {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: want.cn, Organization: want.groups},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLifetime),
		DNSNames: want.names, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: want.usage,
		BasicConstraintsValid: true,
	}
	for _, ip := range want.ips {
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate for %q: %w", want.cn, err)
	}
	return writePair(certPath, keyPath, der, key)
}

func (a authority) satisfies(cert *x509.Certificate, want leaf, now time.Time) bool {
	var ips []netip.Addr
	for _, ip := range cert.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		ips = append(ips, addr.Unmap())
	}
	return cert.CheckSignatureFrom(a.cert) == nil && now.Add(renewBefore).Before(cert.NotAfter) &&
		cert.Subject.CommonName == want.cn && slices.Equal(cert.Subject.Organization, want.groups) &&
		slices.Equal(cert.DNSNames, want.names) && slices.Equal(ips, want.ips) && slices.Equal(cert.ExtKeyUsage, want.usage)
}

// ensureServiceAccountKey makes the pair that signs and verifies service account
// tokens. RSA, as in most clusters: some verifiers of tokens know only RS256.
func ensureServiceAccountKey(privatePath, publicPath string) error {
	if _, err := os.Stat(privatePath); err == nil {
		if _, err := os.Stat(publicPath); err == nil {
			return nil
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := writePEM(publicPath, "PUBLIC KEY", public, 0o644); err != nil {
		return err
	}
	return writePEM(privatePath, "PRIVATE KEY", der, 0o600)
}

func newSerial() (*big.Int, error) {
	// RFC 5280 4.1.2.2: positive, at most 20 bytes.
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func readPair(certPath, keyPath string) (*x509.Certificate, crypto.Signer, error) {
	block, err := readPEM(certPath)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(block)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", certPath, err)
	}
	block, err = readPEM(keyPath)
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(block)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", keyPath, err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, fmt.Errorf("%s: not the key of %s", keyPath, certPath)
	}
	return cert, signer, nil
}

// writePair writes the key before the certificate: a pair of which only the key
// was written counts as absent.
func writePair(certPath, keyPath string, der []byte, key crypto.Signer) error {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(keyPath, "PRIVATE KEY", pkcs8, 0o600); err != nil {
		return err
	}
	return writePEM(certPath, "CERTIFICATE", der, 0o644)
}

func readPEM(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", path)
	}
	return block.Bytes, nil
}

func writePEM(path, kind string, der []byte, mode fs.FileMode) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// writeFile replaces path in one step, so that no reader sees half a file.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
