// Package svid keeps X.509 SVIDs of the lab's stand-ins: certificates for
// SPIFFE IDs, signed by the cluster's real istiod.
//
// In go the address of istiod's CA, a service account token and the root bundle
// that istiod publishes; out come a certificate and the roots to judge peers by,
// both replaced while in use, and the check of a peer's chain (Verify). As in
// ztunnel, the roots for peers are those of istiod's answer to the CSR and change
// only with the certificate, at half of its life; the root bundle, a file, is
// what istiod itself is judged by. It must not keep keys anywhere but in memory.
package svid

import (
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
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	caapi "istio.io/api/security/v1alpha1"
)

// Config says whose SVID it is and who signs it.
type Config struct {
	CAAddress string // host:port of istiod's CA
	ClusterID string
	TokenFile string // service account token for istiod
	RootFile  string // PEM bundle that istiod is judged by, read at each request
	ID        string // SPIFFE ID
	// Impersonate asks for ID with the token of another account, as ztunnel
	// does for the Pods of its node; istiod allows it to
	// CA_TRUSTED_NODE_ACCOUNTS only.
	Impersonate bool
	// TTL is the life to ask for (SECRET_TTL); 24 h when zero.
	TTL time.Duration
}

// secret is an SVID and what came with it.
type secret struct {
	cert  *tls.Certificate
	roots *x509.CertPool
}

// Identity is an SVID and the roots it trusts, both replaced while in use.
type Identity struct {
	cfg   Config
	log   *slog.Logger
	now   atomic.Pointer[secret]
	ready chan struct{} // closed with the first SVID
	once  sync.Once

	mu      sync.Mutex
	problem string // why there is no usable SVID; "" when there is
}

// New returns an identity without a certificate; Run gets one.
func New(cfg Config, log *slog.Logger) *Identity {
	if cfg.TTL == 0 {
		cfg.TTL = 24 * time.Hour
	}
	return &Identity{cfg: cfg, log: log.With("id", cfg.ID), ready: make(chan struct{}), problem: "no certificate yet"}
}

// Run keeps the identity fresh until ctx ends: it renews the SVID at half of
// its life, and tries again when istiod refuses or is away.
func (id *Identity) Run(ctx context.Context) {
	backoff := 100 * time.Millisecond
	for {
		wait := backoff
		if err := id.renew(ctx); err == nil {
			backoff = 100 * time.Millisecond
			// At least the pause: with a clock ahead of istiod's a new certificate may have ended.
			wait = max(backoff, time.Until(id.Certificate().Leaf.NotAfter)/2)
		} else if ctx.Err() == nil {
			id.log.Warn("no new certificate", "error", err)
			id.setProblem(err)
			backoff = min(2*backoff, 5*time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Once gets one certificate, without keeping it fresh.
func (id *Identity) Once(ctx context.Context) error { return id.renew(ctx) }

// Certificate is the SVID of the moment, nil before the first.
func (id *Identity) Certificate() *tls.Certificate {
	if s := id.now.Load(); s != nil {
		return s.cert
	}
	return nil
}

// Roots are the roots trusted at the moment, nil before the first SVID.
func (id *Identity) Roots() *x509.CertPool {
	if s := id.now.Load(); s != nil {
		return s.roots
	}
	return nil
}

// Ready is closed when there is a first SVID.
func (id *Identity) Ready() <-chan struct{} { return id.ready }

// renew asks istiod for a certificate and starts to use it.
func (id *Identity) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	got, err := id.request(ctx)
	if err != nil {
		return err
	}
	id.now.Store(got)
	id.mu.Lock()
	id.problem = ""
	id.mu.Unlock()
	id.once.Do(func() { close(id.ready) })
	id.log.Info("certificate issued", "issuer", got.cert.Leaf.Issuer, "notAfter", got.cert.Leaf.NotAfter)
	return nil
}

// request sends a CSR for a fresh key to istiod.
func (id *Identity) request(ctx context.Context) (*secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	csr, err := newCSR(key, id.cfg.ID)
	if err != nil {
		return nil, err
	}
	conn, err := Dial(id.cfg.CAAddress, id.cfg.RootFile)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, err = Authenticate(ctx, id.cfg.TokenFile, id.cfg.ClusterID)
	if err != nil {
		return nil, err
	}
	req := &caapi.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(id.cfg.TTL.Seconds())}
	if id.cfg.Impersonate {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id.cfg.ID)}}
	}
	resp, err := caapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("istiod %s: %w", id.cfg.CAAddress, err)
	}
	return assemble(resp.GetCertChain(), key)
}

// Authenticate adds to ctx what istiod asks of its clients.
func Authenticate(ctx context.Context, tokenFile, clusterID string) (context.Context, error) {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("istio token: %w", err)
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token)), "clusterid", clusterID), nil
}

// Dial connects to istiod's secure port, trusting the root bundle in a file as
// it is now.
func Dial(address, rootFile string) (*grpc.ClientConn, error) {
	data, err := os.ReadFile(rootFile)
	if err != nil {
		return nil, fmt.Errorf("root bundle: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("root bundle %s has no certificate", rootFile)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(transport(pool, address)))
	if err != nil {
		return nil, fmt.Errorf("istiod %s: %w", address, err)
	}
	return conn, nil
}

// newCSR makes a PEM request. istiod takes the identity from the token, not
// from here; the SAN is what other agents send.
func newCSR(key crypto.Signer, id string) ([]byte, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("SPIFFE ID %q: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return nil, fmt.Errorf("make CSR: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// assemble joins the answer of istiod (leaf, intermediates, and last the root
// bundle, which is not sent in handshakes) with the key.
func assemble(chain []string, key crypto.Signer) (*secret, error) {
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
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(chain[len(chain)-1])) {
		return nil, errors.New("istiod answered without roots")
	}
	return &secret{cert, roots}, nil
}

// Expiry is when the SVID of the moment ends, the epoch when there is none.
func (id *Identity) Expiry() time.Time {
	if c := id.Certificate(); c != nil {
		return c.Leaf.NotAfter
	}
	return time.Unix(0, 0)
}

// NotReady says why there is no valid SVID, or "".
func (id *Identity) NotReady() string {
	if c := id.Certificate(); c != nil && time.Now().Before(c.Leaf.NotAfter) {
		return "" // a failed renewal is no reason to drop traffic while the old one is good
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.problem == "" {
		return "the certificate has expired"
	}
	return id.problem
}

func (id *Identity) setProblem(err error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.problem = err.Error()
}
