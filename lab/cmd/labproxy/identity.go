package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	caapi "istio.io/api/security/v1alpha1"
)

// identity is the SVID of this workload and the roots it trusts, both replaced
// while in use.
type identity struct {
	cfg  config
	log  *slog.Logger
	poll time.Duration // how often the root file is looked at

	svid  atomic.Pointer[tls.Certificate]
	roots atomic.Pointer[x509.CertPool]
	ready chan struct{} // closed with the first SVID
	once  sync.Once

	mu      sync.Mutex
	problem string // why there is no usable SVID; "" when there is
}

func newIdentity(cfg config, log *slog.Logger) *identity {
	return &identity{cfg: cfg, log: log, poll: time.Second, ready: make(chan struct{}), problem: "no certificate yet"}
}

// run keeps the identity fresh until ctx ends: it renews the SVID at half of
// its life and when the root bundle changes, and tries again when istiod
// refuses or is away.
func (id *identity) run(ctx context.Context) error {
	var bundle []byte
	var due time.Time
	backoff := 100 * time.Millisecond
	tick := time.NewTicker(id.poll)
	defer tick.Stop()
	for {
		data, changed, err := id.loadRoots(bundle)
		if err == nil && (changed || time.Now().After(due)) {
			bundle = data
			err = id.renew(ctx)
			due = id.halfLife()
		}
		if err != nil && ctx.Err() == nil {
			id.log.Warn("no new certificate", "error", err)
			id.setProblem(err)
			due = time.Now().Add(backoff)
			backoff = min(2*backoff, 5*time.Second)
			if !sleep(ctx, time.Until(due)) {
				return nil
			}
			continue
		}
		backoff = 100 * time.Millisecond
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// loadRoots reads the root bundle and starts to trust it if it differs from last.
func (id *identity) loadRoots(last []byte) (data []byte, changed bool, err error) {
	data, err = os.ReadFile(id.cfg.rootFile)
	if err != nil {
		return nil, false, fmt.Errorf("root bundle: %w", err)
	}
	if bytes.Equal(data, last) {
		return data, false, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, false, fmt.Errorf("root bundle %s has no certificate", id.cfg.rootFile)
	}
	id.roots.Store(pool)
	id.log.Info("root bundle loaded", "roots", strings.Count(string(data), "BEGIN CERTIFICATE"))
	return data, true, nil
}

// renew asks istiod for a certificate and starts to use it.
func (id *identity) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cert, err := id.request(ctx)
	if err != nil {
		return err
	}
	id.svid.Store(cert)
	id.mu.Lock()
	id.problem = ""
	id.mu.Unlock()
	id.once.Do(func() { close(id.ready) })
	id.log.Info("certificate issued", "id", cert.Leaf.URIs, "notAfter", cert.Leaf.NotAfter)
	return nil
}

// request sends a CSR for a fresh key to istiod, authenticated by the Pod's
// token.
func (id *identity) request(ctx context.Context) (*tls.Certificate, error) {
	token, err := os.ReadFile(id.cfg.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("istio token: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	csr, err := newCSR(key, id.cfg)
	if err != nil {
		return nil, err
	}
	creds := credentials.NewTLS(&tls.Config{
		RootCAs: id.roots.Load(), ServerName: serverName(id.cfg.caAddress), MinVersion: tls.VersionTLS12,
	})
	conn, err := grpc.NewClient("passthrough:///"+id.cfg.caAddress, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, fmt.Errorf("istiod %s: %w", id.cfg.caAddress, err)
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx,
		"authorization", "Bearer "+strings.TrimSpace(string(token)), "clusterid", id.cfg.clusterID)
	resp, err := caapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx,
		&caapi.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64((24 * time.Hour).Seconds())})
	if err != nil {
		return nil, fmt.Errorf("istiod %s: %w", id.cfg.caAddress, err)
	}
	return assemble(resp.GetCertChain(), key)
}

// newCSR makes a PEM request. istiod takes the identity from the token, not
// from here; the SAN is what other agents send.
func newCSR(key crypto.Signer, cfg config) ([]byte, error) {
	uri := &url.URL{Scheme: "spiffe", Host: cfg.trustDomain, Path: "/ns/" + cfg.namespace + "/sa/" + cfg.account}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return nil, fmt.Errorf("make CSR: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// assemble joins the answer of istiod (leaf, intermediates, and last the root
// bundle, which is not sent in handshakes) with the key.
func assemble(chain []string, key crypto.Signer) (*tls.Certificate, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("istiod answered with %d certificates, want a leaf and the roots", len(chain))
	}
	cert := &tls.Certificate{PrivateKey: key}
	for rest := []byte(strings.Join(chain[:len(chain)-1], "\n")); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	if len(cert.Certificate) == 0 {
		return nil, errors.New("istiod answered without a certificate")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("certificate from istiod: %w", err)
	}
	cert.Leaf = leaf
	return cert, nil
}

// halfLife is when the SVID is due for renewal.
func (id *identity) halfLife() time.Time {
	leaf := id.svid.Load()
	if leaf == nil {
		return time.Time{}
	}
	now := time.Now()
	return now.Add(leaf.Leaf.NotAfter.Sub(now) / 2)
}

func (id *identity) expiry() time.Time {
	if c := id.svid.Load(); c != nil {
		return c.Leaf.NotAfter
	}
	return time.Unix(0, 0)
}

// notReady says why the workload has no valid identity, or "".
func (id *identity) notReady() string {
	if c := id.svid.Load(); c != nil && time.Now().Before(c.Leaf.NotAfter) {
		return "" // a failed renewal is no reason to drop traffic while the old one is good
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.problem == "" {
		return "the certificate has expired"
	}
	return id.problem
}

func (id *identity) setProblem(err error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.problem = err.Error()
}
