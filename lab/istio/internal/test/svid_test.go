package test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"ambitmesh.dev/ambit/lab/istio/internal/svid"
)

const (
	webID   = "spiffe://cluster.local/ns/shop/sa/web"
	appID   = "spiffe://cluster.local/ns/app/sa/app"
	otherID = "spiffe://cluster.local/ns/shop/sa/other"
)

// run keeps an identity fresh until the test ends.
func run(t *testing.T, id *svid.Identity) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); id.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

// TestCSR is what istiod is asked.
func TestCSR(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	plain := i.svidConfig(webID)
	node := i.svidConfig(appID)
	node.Impersonate, node.TTL = true, 90*time.Minute
	for _, cfg := range []svid.Config{plain, node} {
		id := svid.New(cfg, discard)
		if err := id.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-id.Ready():
		default:
			t.Error("not ready with a certificate")
		}
		if got := id.Certificate().Leaf.URIs[0].String(); got != cfg.ID {
			t.Errorf("got a certificate for %s, want %s", got, cfg.ID)
		}
		if got := len(id.Certificate().Certificate); got != 3 {
			t.Errorf("presents %d certificates, want all but the root bundle, 3", got)
		}
		if got := id.Expiry(); !got.Equal(id.Certificate().Leaf.NotAfter) {
			t.Errorf("expires %s", got)
		}
	}
	want := []csr{
		{Token: "Bearer secret", Cluster: "c1", IDs: []string{webID}, TTL: 24 * time.Hour},
		{Token: "Bearer secret", Cluster: "c1", IDs: []string{appID}, TTL: 90 * time.Minute, Impersonated: appID},
	}
	if d := cmp.Diff(want, i.requests()); d != "" {
		t.Error(d)
	}
}

// TestRoots: peers are judged by the last element of istiod's answer, not by the
// root bundle file nor by a root in the chain, and by a new one with the next
// certificate only.
func TestRoots(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	i := newIstiod(t, a)
	i.bundle = []*x509.Certificate{b.root}
	id := i.identity(webID)
	accepts := func(peer *authority) bool {
		c := peer.svid(t, appID)
		_, err := svid.Verify([]*x509.Certificate{c.Leaf, peer.inter}, id.Roots(), x509.ExtKeyUsageClientAuth)
		return err == nil
	}
	check := func(when string, wantA, wantB bool) {
		t.Helper()
		if gotA, gotB, file := accepts(a), accepts(b), accepts(i.serving); gotA != wantA || gotB != wantB || file {
			t.Errorf("%s: accepts a %v, b %v, the file's root %v; want %v, %v, false", when, gotA, gotB, file, wantA, wantB)
		}
	}
	check("the answer ends with b", false, true)
	i.set(func() { i.bundle = []*x509.Certificate{a.root, b.root} })
	write(t, i.dir, "root-cert.pem", encode(i.serving.root, newAuthority(t, "c").root))
	check("before the next certificate", false, true)
	if err := id.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("the answer ends with both", true, true)
}

// TestRenewal: at half of its life a certificate is replaced, with a new key.
func TestRenewal(t *testing.T) {
	t.Parallel()
	i := newIstiod(t, newAuthority(t, "a"))
	i.life = 4 * time.Second
	id := svid.New(i.svidConfig(webID), discard)
	run(t, id)
	<-id.Ready()
	firstCert, began := id.Certificate(), time.Now()
	eventually(t, "a second certificate", func() bool { return id.Certificate() != firstCert })
	// X.509 has whole seconds, so the first lives for 3 to 4 s.
	if took := time.Since(began); took < 1300*time.Millisecond || took > 2800*time.Millisecond {
		t.Errorf("renewed after %s of 4 s", took)
	}
	if firstCert.PrivateKey == id.Certificate().PrivateKey {
		t.Error("the key is the old one")
	}
	if why := id.NotReady(); why != "" {
		t.Error(why)
	}
}

// TestAway: while istiod is away the certificate serves until it ends; then the
// identity says why, and recovers when istiod is back.
func TestAway(t *testing.T) {
	t.Parallel()
	i := newIstiod(t, newAuthority(t, "a"))
	i.life = 4 * time.Second
	id := svid.New(i.svidConfig(webID), discard)
	run(t, id)
	<-id.Ready()
	old := id.Certificate()
	i.stop()
	time.Sleep(time.Until(old.Leaf.NotAfter) - 300*time.Millisecond) // past half of its life
	if why := id.NotReady(); why != "" || id.Certificate() != old {
		t.Errorf("a good certificate, but not ready: %q", why)
	}
	time.Sleep(time.Until(old.Leaf.NotAfter))
	eventually(t, "not ready", func() bool { return id.NotReady() != "" })
	if why := id.NotReady(); !strings.Contains(why, i.address) {
		t.Errorf("not ready: %q, want istiod's address in it", why)
	}
	i.start(i.address)
	eventually(t, "ready again", func() bool { return id.NotReady() == "" && id.Certificate() != old })
}

// TestExpired: without a failed renewal the reason is the expiry.
func TestExpired(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	i.life = -time.Second
	id := i.identity(webID)
	if why := id.NotReady(); why != "the certificate has expired" {
		t.Errorf("not ready: %q", why)
	}
}

// TestClockBehind: an istiod whose certificates have already ended is not asked
// in a loop without pause.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	i := newIstiod(t, newAuthority(t, "a"))
	i.life = -time.Minute
	run(t, svid.New(i.svidConfig(webID), discard))
	time.Sleep(time.Second)
	if n := len(i.requests()); n == 0 || n > 20 {
		t.Errorf("%d requests in 1 s", n)
	}
}

// TestNotReady is what an identity without a certificate says.
func TestNotReady(t *testing.T) {
	t.Parallel()
	i := newIstiod(t, newAuthority(t, "a"))
	dir := t.TempDir()
	empty := write(t, dir, "empty", "no PEM here\n")
	if why := svid.New(i.svidConfig(webID), discard).NotReady(); why != "no certificate yet" {
		t.Errorf("before Run: %q", why)
	}
	for _, c := range []struct {
		name   string
		change func(*svid.Config)
		refuse error
		want   string
	}{
		{"no root bundle", func(c *svid.Config) { c.RootFile = filepath.Join(dir, "roots") }, nil, filepath.Join(dir, "roots")},
		{"empty root bundle", func(c *svid.Config) { c.RootFile = empty }, nil, empty + " has no certificate"},
		{"no token", func(c *svid.Config) { c.TokenFile = filepath.Join(dir, "token") }, nil, filepath.Join(dir, "token")},
		{"istiod is not that of the bundle", func(c *svid.Config) {
			c.RootFile = write(t, dir, "foreign", encode(newAuthority(t, "foreign").root))
		}, nil, "unknown authority"},
		{"istiod refuses", func(*svid.Config) {}, status.Error(codes.Unauthenticated, "who is that"), "who is that"},
		{"bad ID", func(c *svid.Config) { c.ID = "spiffe://%" }, nil, "spiffe://%"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.set(func() { i.refuse = c.refuse })
			cfg := i.svidConfig(webID)
			c.change(&cfg)
			id := svid.New(cfg, discard)
			run(t, id)
			eventually(t, c.want, func() bool { return strings.Contains(id.NotReady(), c.want) })
			if id.Certificate() != nil || id.Roots() != nil || id.Expiry().Unix() != 0 {
				t.Error("there is a certificate")
			}
			if _, err := id.ClientTLS(func(string) error { return nil }); err == nil {
				t.Error("TLS without a certificate")
			}
		})
	}
	t.Run("recovers", func(t *testing.T) {
		cfg := i.svidConfig(webID)
		cfg.TokenFile = filepath.Join(dir, "later")
		id := svid.New(cfg, discard)
		run(t, id)
		eventually(t, "a reason", func() bool { return strings.Contains(id.NotReady(), "later") })
		i.set(func() { i.refuse = nil })
		write(t, dir, "later", "secret")
		eventually(t, "ready", func() bool { return id.NotReady() == "" })
	})
}

// TestBadAnswers: an answer that is not a chain with roots is refused, and what
// there is stays.
func TestBadAnswers(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	id := i.identity(webID)
	cert, roots := id.Certificate(), id.Roots()
	for name, answer := range map[string]func([]string) []string{
		"nothing":           func([]string) []string { return nil },
		"a leaf only":       func(c []string) []string { return c[:1] },
		"no PEM for a leaf": func(c []string) []string { return []string{"leaf", c[3]} },
		"no certificate": func(c []string) []string {
			return []string{"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", c[3]}
		},
		"no PEM for roots":   func(c []string) []string { return []string{c[0], "roots"} },
		"empty last element": func(c []string) []string { return append(c, "") },
	} {
		i.set(func() { i.answer = answer })
		if err := id.Once(t.Context()); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if id.Certificate() != cert || id.Roots() != roots {
			t.Errorf("%s: took something of it over", name)
		}
	}
}

// TestTimeout: an istiod that does not answer does not hold up a renewal for ever.
func TestTimeout(t *testing.T) {
	t.Parallel()
	silent := listen(t, "127.0.0.1:0") // never accepts
	i := newIstiod(t, newAuthority(t, "a"))
	cfg := i.svidConfig(webID)
	cfg.CAAddress = silent.Addr().String()
	began := time.Now()
	if err := svid.New(cfg, discard).Once(t.Context()); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

// TestAuthenticate: a token is trimmed and read anew each time.
func TestAuthenticate(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	id := i.identity(webID)
	write(t, i.dir, "token", "rotated")
	if err := id.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := i.requests()[1].Token; got != "Bearer rotated" {
		t.Errorf("token %q", got)
	}
	if err := os.Remove(i.dir + "/token"); err != nil {
		t.Fatal(err)
	}
	if err := id.Once(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a token: %v", err)
	}
}
