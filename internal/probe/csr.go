package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// leafLife is what the probe asks for. It never uses the certificate, so a short one does least harm; istiod refuses only what is longer than MAX_WORKLOAD_CERT_TTL.
const leafLife = 10 * time.Minute

// maxAnswer bounds istiod's answer in bytes.
const maxAnswer = 1 << 20

// question is one istiod to ask.
type question struct {
	address string   // host:port
	names   []string // DNS names of which its certificate must have one
	cluster string   // what it calls this cluster (CLUSTER_ID)
	token   func() (string, error)
	roots   *x509.CertPool // by which its certificate must verify before the token is sent
	dial    Dialer
}

// answer is what an istiod showed; where asking failed, what it showed until then.
type answer struct {
	serving []*x509.Certificate // its own certificate's chain, the leaf first
	leaf    *x509.Certificate   // made for the probe
	chain   []*x509.Certificate // between leaf and roots, as it came
	roots   []*x509.Certificate
}

// ask makes a certificate request of one istiod.
func ask(ctx context.Context, q question) (answer, error) {
	var got answer
	csr, err := newCSR()
	if err != nil {
		return got, err
	}
	token, tokenErr := q.token()
	var mu sync.Mutex
	var unverified, unreached error // gRPC has reasons as text only
	conn, err := dialIstiod(q.address, q.names[0], func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := q.dial(ctx, network, address)
		mu.Lock()
		defer mu.Unlock()
		unreached = err
		return c, err
	}, func(chain []*x509.Certificate) error {
		mu.Lock()
		defer mu.Unlock()
		got.serving = chain
		if unverified = verifyServing(chain, q.names, q.roots); unverified == nil {
			unverified = tokenErr // the serving chain is known now; without a token there is nothing to ask
		}
		return unverified
	})
	if err != nil {
		return got, err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "clusterid", q.cluster)
	var response certificateResponse
	err = conn.Invoke(ctx, createCertificate, certificateRequest{csr: string(csr), seconds: int64(leafLife / time.Second)}, &response,
		grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxAnswer))
	mu.Lock()
	defer mu.Unlock()
	switch {
	case unverified != nil:
		return got, unverified
	case unreached != nil:
		return got, unreached
	case err != nil && ctx.Err() != nil:
		return got, ctx.Err()
	case err != nil:
		if s, ok := status.FromError(err); ok {
			return got, fmt.Errorf("%s: %s", s.Code(), s.Message())
		}
		return got, err
	}
	return got, got.read(response.chain)
}

// dialIstiod connects to an istiod's TLS port. verify is told what it presents, before anything is sent.
func dialIstiod(address, name string, dial Dialer, verify func([]*x509.Certificate) error) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithUserAgent("gloo-mesh-agent"),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // verified below, after what it presents has been noted
			MinVersion:         tls.VersionTLS12,
			ServerName:         name,
			VerifyConnection:   func(s tls.ConnectionState) error { return verify(s.PeerCertificates) },
		})))
}

// read takes the certificates of an answer apart: the first element is the leaf, the last one the whole bundle of roots, what is between is the chain.
func (a *answer) read(elements []string) error {
	if len(elements) < 2 {
		return fmt.Errorf("it answered with %d elements: want at least a leaf and the roots", len(elements))
	}
	var parts [][]*x509.Certificate
	for i, e := range elements {
		certs, err := certificates([]byte(e))
		if err != nil {
			return fmt.Errorf("element %d of its answer: %w", i+1, err)
		}
		parts = append(parts, certs)
	}
	last := len(parts) - 1
	switch {
	case len(parts[0]) == 0:
		return errors.New("it answered without a leaf")
	case len(parts[last]) == 0:
		return errors.New("it answered without roots")
	}
	a.leaf, a.roots = parts[0][0], parts[last]
	a.chain = slices.Concat(append([][]*x509.Certificate{parts[0][1:]}, parts[1:last]...)...)
	return nil
}

// verifyServing checks istiod's own certificate by what we know to be roots of this mesh.
func verifyServing(chain []*x509.Certificate, names []string, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("it presented no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	var first error
	for _, n := range names {
		_, err := chain[0].Verify(x509.VerifyOptions{DNSName: n, Roots: roots, Intermediates: between})
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return fmt.Errorf("its own certificate does not verify by any root known here, so our token was not sent to it (names %s): %w", strings.Join(names, ", "), first)
}

func newCSR() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// istiod takes the identity from the token and ignores what the CSR says of it.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// certificates reads the PEM certificates of foreign bytes. What is no CERTIFICATE block is skipped, as istiod does; what can't be parsed is an error.
func certificates(raw []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(raw) > 0 {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			return out, nil
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
