package test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/lab/istio/internal/svid"
)

// tlsServer greets whoever passes id's ServerTLS, and keeps what was refused.
type tlsServer struct {
	address string
	mu      sync.Mutex
	refused []error
}

func newTLSServer(t *testing.T, id *svid.Identity) *tlsServer {
	t.Helper()
	s := &tlsServer{}
	config := id.ServerTLS(func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused = append(s.refused, err)
	})
	l := tls.NewListener(listen(t, "127.0.0.1:0"), config)
	s.address = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.WriteString(c, "hello")
			}()
		}
	}()
	return s
}

// greet connects and returns the state when the server has spoken.
func (s *tlsServer) greet(t *testing.T, config *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	raw, err := net.DialTimeout("tcp", s.address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, config)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	got, err := io.ReadAll(c)
	if err == nil && string(got) != "hello" {
		err = errors.New("no greeting")
	}
	return c.ConnectionState(), err
}

// refusedCount is how many peers the server turned away itself.
func (s *tlsServer) refusedCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.refused)
}

// TestServerTLS: who gets in.
func TestServerTLS(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	i := newIstiod(t, a)
	s := newTLSServer(t, i.identity(appID))
	change := func(f func(*x509.Certificate), ids ...string) tls.Certificate {
		tmpl := svidTemplate(t, ids...)
		f(tmpl)
		return a.leaf(t, tmpl)
	}
	same := func(*x509.Certificate) {}
	noInter := a.svid(t, webID)
	noInter.Certificate = noInter.Certificate[:1]
	for _, c := range []struct {
		name string
		cert tls.Certificate
		want bool
	}{
		{"an SVID", a.svid(t, webID), true},
		{"the same identity", a.svid(t, appID), true},
		{"wrong root", b.svid(t, webID), false},
		{"no intermediate", noInter, false},
		{"another trust domain", a.svid(t, "spiffe://td2/ns/shop/sa/web"), false},
		{"a trust domain that begins alike", a.svid(t, "spiffe://cluster.local.evil/ns/shop/sa/web"), false},
		{"expired", change(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, webID), false},
		{"not yet valid", change(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(3 * time.Hour) }, webID), false},
		{"for servers only", change(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, webID), false},
		{"a CA", change(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, webID), false},
		{"no SPIFFE ID", change(func(c *x509.Certificate) { c.DNSNames = []string{"web"} }), false},
		{"two SPIFFE IDs", change(same, webID, appID), false},
		{"another scheme", change(same, "https://cluster.local/ns/shop/sa/web"), false},
		{"none", tls.Certificate{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := s.refusedCount()
			_, err := s.greet(t, &tls.Config{
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.cert, nil },
				InsecureSkipVerify:   true, NextProtos: []string{"h2"},
			})
			if (err == nil) != c.want {
				t.Errorf("got in: %v, want %v (%v)", err == nil, c.want, err)
			}
			if heard := s.refusedCount() > before; heard == c.want && c.name != "none" {
				t.Errorf("refused was told: %v", heard)
			}
		})
	}
}

// TestAcceptableCAs: the handshake names the roots of the moment, which is how a
// probe sees what a proxy trusts; the next handshake shows the next ones.
func TestAcceptableCAs(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	i := newIstiod(t, a)
	id := i.identity(appID)
	s := newTLSServer(t, id)
	names := func() []string {
		var got []string
		mine := a.svid(t, webID)
		cache := tls.NewLRUClientSessionCache(1)
		for range 2 { // the second time a session could be resumed
			got = nil
			state, err := s.greet(t, &tls.Config{
				GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
					for _, raw := range r.AcceptableCAs {
						switch string(raw) {
						case string(a.root.RawSubject):
							got = append(got, "a")
						case string(b.root.RawSubject):
							got = append(got, "b")
						default:
							got = append(got, "another")
						}
					}
					return &mine, nil
				},
				InsecureSkipVerify: true, NextProtos: []string{"h2"}, ClientSessionCache: cache, ServerName: "app",
			})
			if err != nil || state.DidResume {
				t.Errorf("resumed %v, %v", state.DidResume, err)
			}
		}
		return got
	}
	if d := cmp.Diff([]string{"a"}, names()); d != "" {
		t.Error(d)
	}
	i.set(func() { i.bundle = []*x509.Certificate{a.root, b.root} })
	if err := id.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a", "b"}, names()); d != "" {
		t.Error(d)
	}
}

// TestServerWithoutCertificate refuses everybody and does not panic.
func TestServerWithoutCertificate(t *testing.T) {
	a := newAuthority(t, "a")
	s := newTLSServer(t, svid.New(newIstiod(t, a).svidConfig(appID), discard))
	if _, err := s.greet(t, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{a.svid(t, webID)}}); err == nil {
		t.Error("got in")
	}
}

// TestClientTLS: which servers a client talks to.
func TestClientTLS(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	client := newIstiod(t, a).identity(webID)
	sameMesh := newTLSServer(t, newIstiod(t, a).identity(appID))
	// It trusts a, so that only the client can object.
	foreign := newIstiod(t, b)
	foreign.bundle = []*x509.Certificate{a.root}
	otherMesh := newTLSServer(t, foreign.identity(appID))
	errOther := errors.New("meant somebody else")
	for _, c := range []struct {
		name   string
		server *tlsServer
		accept error
		want   bool
	}{
		{"the one meant", sameMesh, nil, true},
		{"not the one meant", sameMesh, errOther, false},
		{"wrong root", otherMesh, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked string
			config, err := client.ClientTLS(func(peer string) error { asked = peer; return c.accept })
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.server.greet(t, config)
			if (err == nil) != c.want {
				t.Errorf("connected: %v, want %v (%v)", err == nil, c.want, err)
			}
			if c.accept != nil && !errors.Is(err, c.accept) {
				t.Errorf("error %v, want %v", err, c.accept)
			}
			if c.server == sameMesh && asked != appID {
				t.Errorf("asked about %q", asked)
			}
			if c.server == otherMesh && asked != "" {
				t.Errorf("asked about %q of another root", asked)
			}
		})
	}
}

func TestDomain(t *testing.T) {
	for in, want := range map[string]string{webID: "cluster.local", "spiffe://td": "td", "": ""} {
		if got := svid.Domain(in); got != want {
			t.Errorf("Domain(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestVerifyNothing(t *testing.T) {
	if _, err := svid.Verify(nil, pool(), x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("no certificate, but accepted")
	}
}
