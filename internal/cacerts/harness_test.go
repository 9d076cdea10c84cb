package cacerts

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// root is a CA of the hub.
type root struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newRoot(t testing.TB, name string) *root {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &root{key: key}
	r.cert = sign(t, &x509.Certificate{Subject: pkix.Name{Organization: []string{"Ambit"}, CommonName: name}, NotAfter: time.Now().Add(24 * time.Hour)}, key.Public(), r)
	return r
}

// sign makes a CA certificate.
func sign(t testing.TB, template *x509.Certificate, key crypto.PublicKey, by *root) *x509.Certificate {
	t.Helper()
	template.SerialNumber, template.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	parent := by.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue certifies a request as the hub does.
func (r *root) issue(t testing.TB, csr []byte) []byte {
	t.Helper()
	q, err := x509.ParseCertificateRequest(csr)
	if err != nil || q.CheckSignature() != nil {
		t.Fatal("bad CSR", err)
	}
	return pemOf(sign(t, &x509.Certificate{Subject: q.Subject, URIs: q.URIs, MaxPathLenZero: true, NotAfter: time.Now().Add(12 * time.Hour)}, q.PublicKey, r))
}

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// site is a Keeper in a namespace of its own.
type site struct {
	t         *testing.T
	kube      client.Client
	cfg       *rest.Config
	namespace string
	source    *synclog.Source
	sink      *synclog.Sink
	cursor    *synclog.Cursor
	keeper    *Keeper
	changes   atomic.Int64
	stop      func()
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, cfg: kubetest.Start(t)}
	s.kube = kubetest.Client(t, s.cfg)
	s.namespace = kubetest.Namespace(t, s.kube)
	s.source = synclog.NewSource("life")
	s.source.SetComplete(true)
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// start starts a Keeper that remembers nothing.
func (s *site) start() {
	s.t.Helper()
	dyn, err := dynamic.NewForConfig(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.keeper = New(Config{Client: dyn, IstioNamespace: s.namespace, Cluster: "c1", Source: s.source, Changed: func() { s.changes.Add(1) }, Log: slog.New(slog.NewTextHandler(s.t.Output(), nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	k := s.keeper
	go func() { defer close(done); _ = k.Run(ctx) }()
	s.stop = func() { cancel(); <-done }
}

func (s *site) restart() {
	s.stop()
	s.start()
}

func (s *site) direct(d mesh.TrustDirective) {
	s.t.Helper()
	raw, err := json.Marshal(d)
	if err != nil {
		s.t.Fatal(err)
	}
	s.keeper.Direct(raw)
}

func (s *site) within(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within a minute; state: %s", what, s.state())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// stays checks that something holds for a while.
func (s *site) stays(what string, ok func() bool) {
	s.t.Helper()
	for range 40 {
		if !ok() {
			s.t.Fatalf("%s: not so; state: %s", what, s.state())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *site) state() string {
	st := s.keeper.State()
	st.Roots, st.Known, st.Mentioned = nil, nil, nil
	raw, _ := json.MarshalIndent(st, "", " ")
	return string(raw)
}

// secret reads a Secret; nil: there is none.
func (s *site) secret(name string) *corev1.Secret {
	s.t.Helper()
	var out corev1.Secret
	err := s.kube.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, &out)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return &out
}

// requests are what the hub gets.
func (s *site) requests() map[string]mesh.IntermediateRequest {
	s.t.Helper()
	if s.sink == nil {
		s.sink = synclog.NewSink(synclog.Limits{}, false)
		s.cursor = s.source.Cursor(synclog.Position{})
	}
	for {
		c, ok := s.cursor.Next()
		if !ok {
			break
		}
		if err := s.sink.Apply(c); err != nil {
			s.t.Fatal(err)
		}
	}
	out := map[string]mesh.IntermediateRequest{}
	for key, raw := range s.sink.Snapshot().Items {
		var r mesh.IntermediateRequest
		if err := json.Unmarshal(raw, &r); err != nil || key.Type != mesh.ItemTrustRequest {
			s.t.Fatal(key, err)
		}
		out[key.Name] = r
	}
	return out
}

func (s *site) problems(words string) bool {
	return strings.Contains(strings.Join(s.keeper.State().Problems, "\n"), words)
}

func order(id string, g mesh.Generation) mesh.IntermediateOrder {
	return mesh.IntermediateOrder{
		ID: id, Generation: g, Organization: "Ambit", CommonName: "c1 " + id, Algorithm: "ECDSA-P256",
		URIs: []string{"spiffe://cluster.local/ns/istio-system/sa/istiod-service-account"},
	}
}

// issued has a slot issued by a root: the directive that follows has its chain.
func (s *site) issued(d *mesh.TrustDirective, o mesh.IntermediateOrder, by *root) {
	s.t.Helper()
	d.Intermediates = append(d.Intermediates, o)
	s.direct(*d)
	name := o.ID
	s.within("a request for "+o.ID, func() bool { return s.requests()[name].ID == o.ID })
	d.Intermediates[len(d.Intermediates)-1].Chain = by.issue(s.t, s.requests()[name].CSR)
	s.direct(*d)
	s.within("the request for "+o.ID+" goes", func() bool { _, there := s.requests()[name]; return !there })
}
