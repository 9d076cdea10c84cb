package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// Keys of Secrets with a CA, as Istio's cacerts and as kubernetes.io/tls have them.
const (
	keyCert, keyKey, keyChain, keyRoot = "ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"
	tlsCert, tlsKey, tlsCA             = "tls.crt", "tls.key", "ca.crt"
)

// Secrets reads and makes Secrets of the management cluster.
type Secrets interface {
	// Get returns the data of a Secret, nil if there is none.
	Get(ctx context.Context, name string) (map[string][]byte, error)
	// Create makes a Secret; one that exists already is left as it is, and its data returned.
	Create(ctx context.Context, name string, data map[string][]byte) (map[string][]byte, error)
}

// local signs with a key that this server holds.
type local struct {
	issuer string // for people
	now    func() time.Time
	load   func(ctx context.Context) (*material, error)

	mu   sync.Mutex
	last *material
}

// material is a CA: its certificate and key, the chain to the root, and the root.
type material struct {
	cert  *x509.Certificate
	key   crypto.Signer
	above []*x509.Certificate // issuers of cert up to but not including root
	root  *x509.Certificate
	roots []*x509.Certificate // all that the Secret's bundle holds, root first
}

// Generated is a root that the server makes, once for each generation, and keeps in a Secret.
type Generated struct {
	Secrets      Secrets
	Secret       string // name of the Secret: one for each policy and generation
	Generation   mesh.Generation
	Algorithm    pki.KeyAlgorithm
	Organization string
	TTL          time.Duration
	Now          func() time.Time
}

// New returns the authority. The root is made when it is first needed.
func (g Generated) New() Authority {
	return &local{issuer: fmt.Sprintf("generated root, generation %d, Secret %s", g.Generation, g.Secret), now: g.Now, load: g.load}
}

func (g Generated) load(ctx context.Context) (*material, error) {
	data, err := g.Secrets.Get(ctx, g.Secret)
	if err == nil && data == nil {
		if data, err = g.generate(); err == nil {
			data, err = g.Secrets.Create(ctx, g.Secret, data)
		}
	}
	if err != nil {
		return nil, &Unavailable{Detail: "Secret " + g.Secret, Err: err}
	}
	return read(g.Secret, data)
}

// generate makes a root. Its name holds the generation and something random: no two roots may share one (facts: T8).
func (g Generated) generate() (map[string][]byte, error) {
	key, err := pki.GenerateKey(g.Algorithm)
	if err != nil {
		return nil, err
	}
	var unique [4]byte
	_, _ = rand.Read(unique[:]) // never fails
	root, err := pki.NewRoot(key, pki.RootOptions{
		Subject: pkix.Name{Organization: []string{g.Organization}, CommonName: fmt.Sprintf("Root CA g%d %s", g.Generation, hex.EncodeToString(unique[:]))},
		TTL:     g.TTL, Now: g.Now(),
	})
	if err != nil {
		return nil, err
	}
	text, err := pki.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	cert := pki.EncodeCertificates(root)
	return map[string][]byte{keyCert: cert, keyKey: text, keyChain: cert, keyRoot: cert}, nil
}

// FromSecret is a CA that people supply.
type FromSecret struct {
	Secrets Secrets
	Secret  string
	Now     func() time.Time
}

// New returns the authority.
func (s FromSecret) New() Authority {
	return &local{issuer: "Secret " + s.Secret, now: s.Now, load: func(ctx context.Context) (*material, error) {
		data, err := s.Secrets.Get(ctx, s.Secret)
		if err != nil {
			return nil, &Unavailable{Detail: "Secret " + s.Secret, Err: err}
		}
		if data == nil {
			return nil, &Misconfigured{Detail: "there is no Secret " + s.Secret, Fix: fmt.Sprintf("make it, with %s, %s, %s and %s, in the policy's namespace", keyCert, keyKey, keyRoot, keyChain)}
		}
		return read(s.Secret, data)
	}}
}

// read understands both layouts; where both are, Istio's.
func read(name string, data map[string][]byte) (*material, error) {
	fail := func(key, format string, args ...any) (*material, error) {
		return nil, &Misconfigured{Detail: fmt.Sprintf("Secret %s, key %s: ", name, key) + fmt.Sprintf(format, args...)}
	}
	certKey, keyName, rootKey := keyCert, keyKey, keyRoot
	if data[keyCert] == nil && data[tlsCert] != nil {
		certKey, keyName, rootKey = tlsCert, tlsKey, tlsCA
	}
	for _, k := range []string{certKey, keyName} {
		if len(data[k]) == 0 {
			return fail(k, "it is missing: want %s and %s, or %s and %s", keyCert, keyKey, tlsCert, tlsKey)
		}
	}
	certs, err := pki.ParseCertificates(data[certKey])
	if err != nil {
		return fail(certKey, "%v", err)
	}
	key, err := pki.ParseKey(data[keyName])
	if err != nil {
		return fail(keyName, "%v", err)
	}
	m := &material{cert: certs[0], key: key, above: certs[1:]}
	if !m.cert.IsCA {
		return fail(certKey, "%s is no CA certificate", m.cert.Subject)
	}
	if k, ok := m.cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(key.Public()) {
		return fail(keyName, "it is not the key of %s", m.cert.Subject)
	}
	if len(data[rootKey]) > 0 {
		if m.roots, err = pki.ParseCertificates(data[rootKey]); err != nil {
			return fail(rootKey, "%v", err)
		}
	} else if m.cert.CheckSignatureFrom(m.cert) == nil {
		m.roots = []*x509.Certificate{m.cert} // a self-signed CA is its own root
	} else {
		return fail(rootKey, "it is missing, and %s is not self-signed: nobody knows its root", m.cert.Subject)
	}
	if len(data[keyChain]) > 0 {
		chain, err := pki.ParseCertificates(data[keyChain])
		if err != nil {
			return fail(keyChain, "%v", err)
		}
		m.above = append(m.above, chain...)
	}
	return m, m.anchor(name)
}

// anchor finds the root that cert leads to, and keeps what lies between.
func (m *material) anchor(name string) error {
	isRoot := func(c *x509.Certificate) bool {
		return slices.ContainsFunc(m.roots, func(r *x509.Certificate) bool { return r.Equal(c) })
	}
	var above []*x509.Certificate
	at := m.cert
	for range 10 {
		for _, r := range m.roots {
			if at.Equal(r) || at.CheckSignatureFrom(r) == nil {
				m.root, m.above = r, above
				m.roots = append([]*x509.Certificate{r}, slices.DeleteFunc(slices.Clone(m.roots), r.Equal)...)
				return nil
			}
		}
		i := slices.IndexFunc(m.above, func(c *x509.Certificate) bool { return !c.Equal(at) && !isRoot(c) && at.CheckSignatureFrom(c) == nil })
		if i < 0 {
			break
		}
		at = m.above[i]
		above = append(above, at)
	}
	return &Misconfigured{Detail: fmt.Sprintf("Secret %s: %s does not lead to any root of %s", name, m.cert.Subject, keyRoot), Fix: "put the certificates between into " + keyChain}
}

// Roots implements Authority.
func (l *local) Roots(ctx context.Context) ([]*x509.Certificate, error) {
	m, err := l.material(ctx)
	if err != nil {
		return nil, err
	}
	return m.roots, nil
}

// material is read each time: people replace Secrets. While the API server is away the last one serves.
func (l *local) material(ctx context.Context) (*material, error) {
	m, err := l.load(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, away := AsUnavailable(err); away && l.last != nil {
		return l.last, nil
	}
	if err == nil {
		l.last = m
	}
	return m, err
}

// SignIntermediate implements Authority.
func (l *local) SignIntermediate(ctx context.Context, r Request) (Answer, error) {
	m, err := l.material(ctx)
	if err != nil {
		return Answer{}, err
	}
	csr, err := pki.ParseCSR(r.CSR)
	if err != nil {
		return Answer{}, &Refused{Err: err}
	}
	now := l.now()
	cert, err := pki.SignIntermediate(csr, m.cert, m.key, pki.IntermediateOptions{Subject: r.Subject, URIs: r.URIs, TTL: r.TTL, Now: now})
	if err != nil {
		return Answer{}, &Misconfigured{Detail: l.issuer, Err: err}
	}
	a := Answer{Chain: []*x509.Certificate{cert}, Root: m.root, Issuer: l.issuer}
	if !m.cert.Equal(m.root) {
		a.Chain = append(append(a.Chain, m.cert), m.above...)
	}
	return a, check(a, r, csr, now)
}

// CrossSign implements CrossSigner.
func (l *local) CrossSign(ctx context.Context, root *x509.Certificate) (*x509.Certificate, error) {
	m, err := l.material(ctx)
	if err != nil {
		return nil, err
	}
	if !m.cert.Equal(m.root) {
		return nil, &Refused{Detail: l.issuer + " does not hold the root's key"}
	}
	c, err := pki.CrossSign(root, m.root, m.key, l.now())
	if err != nil {
		return nil, &Refused{Detail: l.issuer, Err: err}
	}
	return c, nil
}
