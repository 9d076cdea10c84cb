package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	caapi "istio.io/api/security/v1alpha1"
)

// authority is a certificate authority for tests.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{}
	a.cert, a.key = a.sign(t, tmpl, nil)
	a.pem = encode(a.cert)
	return a
}

func encode(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// sign makes a certificate; the authority signs itself when it has no certificate yet.
func (a *authority) sign(t *testing.T, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if pub == nil {
		pub = key.Public()
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.NotBefore = time.Now().Add(-time.Minute)
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func svidTemplate(id string) *x509.Certificate {
	uri, _ := url.Parse(id)
	return &x509.Certificate{
		URIs:        []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

// svid is a client certificate as a peer would present it.
func (a *authority) svid(t *testing.T, id string) tls.Certificate {
	t.Helper()
	cert, key := a.sign(t, svidTemplate(id), nil)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// fakeIstiod is the certificate service of istiod: it signs any CSR that comes
// with the expected token.
type fakeIstiod struct {
	caapi.UnimplementedIstioCertificateServiceServer
	t     *testing.T
	ca    *authority
	life  time.Duration
	calls chan struct{}
}

func (f *fakeIstiod) CreateCertificate(ctx context.Context, req *caapi.IstioCertificateRequest) (*caapi.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := fmt.Sprint(md.Get("authorization"), md.Get("clusterid")); got != "[Bearer good] [cluster-1]" {
		return nil, status.Error(codes.Unauthenticated, got)
	}
	block, _ := pem.Decode([]byte(req.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	tmpl := svidTemplate(csr.URIs[0].String())
	tmpl.NotAfter = time.Now().Add(f.life)
	cert, _ := f.ca.sign(f.t, tmpl, csr.PublicKey)
	select {
	case f.calls <- struct{}{}:
	default:
	}
	return &caapi.IstioCertificateResponse{CertChain: []string{encode(cert), f.ca.pem}}, nil
}

// mesh is a proxy with an identity from a fake istiod, serving HBONE.
type mesh struct {
	istiod   *fakeIstiod
	id       *identity
	rootFile string
	addr     string // of HBONE
}

func newMesh(t *testing.T, ca *authority, life time.Duration) *mesh {
	t.Helper()
	m := &mesh{istiod: &fakeIstiod{t: t, ca: ca, life: life, calls: make(chan struct{}, 10)}}
	server, key := ca.sign(t, &x509.Certificate{DNSNames: []string{"localhost"}}, nil)
	creds := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{
		{Certificate: [][]byte{server.Raw}, PrivateKey: key},
	}})
	gs := grpc.NewServer(grpc.Creds(creds))
	caapi.RegisterIstioCertificateServiceServer(gs, m.istiod)
	ca0 := listen(t)
	go func() { _ = gs.Serve(ca0) }()
	t.Cleanup(gs.Stop)

	dir := t.TempDir()
	m.rootFile = filepath.Join(dir, "root-cert.pem")
	write(t, m.rootFile, ca.pem)
	write(t, filepath.Join(dir, "token"), "good\n")
	_, port, err := net.SplitHostPort(ca0.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	m.id = newIdentity(config{
		caAddress: "localhost:" + port, clusterID: "cluster-1", trustDomain: "cluster.local", namespace: "istio-eastwest",
		account: "istio-eastwest", tokenFile: filepath.Join(dir, "token"), rootFile: m.rootFile,
	}, slog.New(slog.DiscardHandler))
	m.id.poll = 10 * time.Millisecond

	ctx, cancel := context.WithCancel(context.Background())
	h := newHBONE(m.id, slog.New(slog.DiscardHandler))
	hl := listen(t)
	m.addr = hl.Addr().String()
	ended := make(chan error, 2)
	go func() { ended <- m.id.run(ctx) }()
	go func() { ended <- h.serve(ctx, hl) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return m
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m *mesh) waitReady(t *testing.T) {
	t.Helper()
	select {
	case <-m.id.ready:
	case <-time.After(10 * time.Second):
		t.Fatalf("no certificate: %s", m.id.notReady())
	}
}

// connect opens a tunnel to target as the peer with cert, trusting one root.
func (m *mesh) connect(cert tls.Certificate, trust *authority, target string) (string, *tunnel, error) {
	roots := x509.NewCertPool()
	roots.AddCert(trust.cert)
	t, err := connect(context.Background(), m.addr, target, &cert, roots)
	if err != nil {
		return "", nil, err
	}
	return t.peer, t, nil
}

const payments = "spiffe://cluster.local/ns/payments/sa/payments"

// TestTunnel takes a request through HBONE with certificates from istiod's API.
func TestTunnel(t *testing.T) {
	ca := newAuthority(t, "root-a")
	m := newMesh(t, ca, time.Hour)
	m.waitReady(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello ", r.URL.Path) }))
	defer backend.Close()

	server, tunnel, err := m.connect(ca.svid(t, payments), ca, backend.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	if want := "spiffe://cluster.local/ns/istio-eastwest/sa/istio-eastwest"; server != want {
		t.Errorf("server is %s, want %s", server, want)
	}
	for _, path := range []string{"/one", "/two"} { // the tunnel stays open between requests
		fmt.Fprintf(tunnel, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(tunnel), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "hello "+path {
			t.Errorf("got %q, %v", body, err)
		}
	}
}

// TestTry is the command for people: an own SVID from istiod, one request.
func TestTry(t *testing.T) {
	m := newMesh(t, newAuthority(t, "root-a"), time.Hour)
	m.waitReady(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer backend.Close()
	target := backend.Listener.Addr().String()
	var out strings.Builder
	if err := try(t.Context(), m.id.cfg, []string{m.addr, target}, &out); err != nil {
		t.Fatal(err)
	}
	const id = "spiffe://cluster.local/ns/istio-eastwest/sa/istio-eastwest"
	if want := id + " -> " + id + " -> " + target + ": 200 OK\nhello"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if err := try(t.Context(), m.id.cfg, nil, &out); err == nil {
		t.Error("no error without arguments")
	}
}

// TestRefusals: peers of another root, without SPIFFE ID, or with a CA
// certificate get no tunnel; an unreachable target is a 503.
func TestRefusals(t *testing.T) {
	ca, other := newAuthority(t, "root-a"), newAuthority(t, "root-b")
	m := newMesh(t, ca, time.Hour)
	m.waitReady(t)
	noID, noIDKey := ca.sign(t, &x509.Certificate{DNSNames: []string{"payments"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, nil)
	caTmpl := svidTemplate(payments)
	caTmpl.IsCA, caTmpl.BasicConstraintsValid = true, true
	isCA, isCAKey := ca.sign(t, caTmpl, nil)
	expired := svidTemplate(payments)
	expired.NotAfter = time.Now().Add(-time.Second)
	old, oldKey := ca.sign(t, expired, nil)
	for name, cert := range map[string]tls.Certificate{
		"other root":     other.svid(t, payments),
		"no SPIFFE ID":   {Certificate: [][]byte{noID.Raw}, PrivateKey: noIDKey},
		"CA certificate": {Certificate: [][]byte{isCA.Raw}, PrivateKey: isCAKey},
		"expired":        {Certificate: [][]byte{old.Raw}, PrivateKey: oldKey},
		"none":           {},
	} {
		if _, tunnel, err := m.connect(cert, ca, "127.0.0.1:1"); err == nil {
			tunnel.Close()
			t.Errorf("%s: got a tunnel", name)
		}
	}
	_, _, err := m.connect(ca.svid(t, payments), ca, "127.0.0.1:1")
	if err == nil || !strings.Contains(err.Error(), "503") { // our own error above, not a foreign string
		t.Errorf("unreachable target: %v", err)
	}
}

// TestRootsReload rotates the root as the management plane does: the running
// proxy accepts peers of both roots, then only of the new one, and asks for a
// new certificate each time.
func TestRootsReload(t *testing.T) {
	a, b := newAuthority(t, "root-a"), newAuthority(t, "root-b")
	m := newMesh(t, a, time.Hour)
	m.waitReady(t)
	backend := listen(t)
	accepts := func(peer *authority) bool {
		_, tunnel, err := m.connect(peer.svid(t, payments), a, backend.Addr().String())
		if err != nil {
			return false
		}
		tunnel.Close()
		return true
	}
	drain(m.istiod.calls)
	for _, step := range []struct {
		roots        string
		wantA, wantB bool
	}{{a.pem, true, false}, {a.pem + b.pem, true, true}} {
		write(t, m.rootFile, step.roots)
		eventually(t, func() bool { return accepts(b) == step.wantB })
		if got := accepts(a); got != step.wantA {
			t.Errorf("accepts root-a: %v, want %v", got, step.wantA)
		}
	}
	select {
	case <-m.istiod.calls:
	case <-time.After(5 * time.Second):
		t.Error("a changed bundle did not cause a new certificate")
	}
	write(t, m.rootFile, b.pem)
	eventually(t, func() bool { return !accepts(a) })
}

// TestRenewal: a short-lived certificate is replaced before it expires.
func TestRenewal(t *testing.T) {
	m := newMesh(t, newAuthority(t, "root-a"), 2*time.Second)
	m.waitReady(t)
	first := m.id.svid.Load()
	eventually(t, func() bool { return m.id.svid.Load() != first })
	if why := m.id.notReady(); why != "" {
		t.Error(why)
	}
}

// TestNotReady: while istiod refuses, the proxy is not ready and says why; it
// recovers by itself.
func TestNotReady(t *testing.T) {
	ca := newAuthority(t, "root-a")
	dir := t.TempDir()
	id := newIdentity(config{caAddress: "127.0.0.1:1", rootFile: filepath.Join(dir, "missing")}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- id.run(ctx) }()
	rec := func() int {
		w := httptest.NewRecorder()
		statusHandler(id, newHBONE(id, id.log)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz/ready", nil))
		return w.Code
	}
	if got := rec(); got != http.StatusServiceUnavailable {
		t.Errorf("ready without a certificate: %d", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	cert := ca.svid(t, payments)
	id.svid.Store(&cert)
	if got := rec(); got != http.StatusOK {
		t.Errorf("not ready with a good certificate: %d", got)
	}
}

// TestPassthrough copies both ways and half-closes.
func TestPassthrough(t *testing.T) {
	target := listen(t)
	go func() {
		c, err := target.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c) // echoes until the client has closed its side
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	free := listen(t)
	addr := free.Addr().String()
	_ = free.Close()
	go func() { _ = passthrough(ctx, addr, target.Addr().String(), slog.New(slog.DiscardHandler)) }()
	var c net.Conn
	eventually(t, func() (ok bool) {
		var err error
		c, err = net.Dial("tcp", addr)
		return err == nil
	})
	defer c.Close()
	if _, err := io.WriteString(c, "through"); err != nil {
		t.Fatal(err)
	}
	closeWrite(c)
	if got, err := io.ReadAll(c); err != nil || string(got) != "through" {
		t.Errorf("got %q, %v", got, err)
	}
}

func drain(c chan struct{}) {
	for len(c) > 0 {
		<-c
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("did not happen within 10 s")
}
