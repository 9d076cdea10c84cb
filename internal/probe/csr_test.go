package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// asked runs the CSR probe against a CA.
func asked(t *testing.T, c *ca, roots *x509.CertPool) (answer, error) {
	t.Helper()
	c.t = t
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return ask(ctx, question{
		address: c.serve(), names: []string{"istiod.istio-system.svc", "istiod-1-30.istio-system.svc"}, cluster: "c1", roots: roots, dial: loopback,
		token: func() (string, error) { return "our-token", nil },
	})
}

func TestAsk(t *testing.T) {
	r1, r2 := newAuthority(t, "root g1", nil), newAuthority(t, "root g2", nil)
	i1, i2 := newAuthority(t, "c1 g1", r1), newAuthority(t, "c1 g2", r2)
	serving := func(i *authority, names ...string) tls.Certificate { return i.leaf(t, names...).tls(i.cert) }
	same := cmp.Comparer((*x509.Certificate).Equal)

	t.Run("signer, chain and roots", func(t *testing.T) {
		c := &ca{serving: serving(i2, "istiod-1-30.istio-system.svc"), signer: i2, token: "our-token", elements: []string{pemOf(i2.cert), pemOf(r1.cert, r2.cert)}}
		got, err := asked(t, c, pool(r1.cert, r2.cert))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([][]*x509.Certificate{{i2.cert}, {r1.cert, r2.cert}, {i2.cert}}, [][]*x509.Certificate{got.chain, got.roots, got.serving[1:]}, same); d != "" {
			t.Error(d)
		}
		if got.leaf.CheckSignatureFrom(i2.cert) != nil {
			t.Error("the leaf is not i2's")
		}
		if d := cmp.Diff([]string{"Bearer our-token c1"}, c.asked); d != "" || c.seconds != 600 {
			t.Error(d, c.seconds)
		}
	})
	t.Run("the chain in one element", func(t *testing.T) {
		c := &ca{serving: serving(i1, "istiod.istio-system.svc"), signer: i1, token: "our-token", elements: []string{pemOf(i1.cert, r1.cert), pemOf(r1.cert)}}
		got, err := asked(t, c, pool(r1.cert))
		if d := cmp.Diff([]*x509.Certificate{i1.cert, r1.cert}, got.chain, same); d != "" || err != nil {
			t.Error(d, err)
		}
	})
	t.Run("what does not verify is recorded, and gets no token", func(t *testing.T) {
		for name, c := range map[string]*ca{
			"unknown root": {serving: serving(i2, "istiod.istio-system.svc"), signer: i2, token: "our-token"},
			"other name":   {serving: serving(i1, "istiod.elsewhere.svc"), signer: i1, token: "our-token"},
		} {
			got, err := asked(t, c, pool(r1.cert))
			if err == nil || !strings.Contains(err.Error(), "token was not sent") {
				t.Errorf("%s: %v", name, err)
			}
			if len(got.serving) != 2 || !got.serving[1].Equal(c.signer.cert) {
				t.Errorf("%s: what it serves is not recorded: %v", name, got.serving)
			}
			if len(c.asked) > 0 {
				t.Errorf("%s: it was shown %q", name, c.asked)
			}
		}
	})
	t.Run("no token: what it serves is recorded all the same", func(t *testing.T) {
		c := &ca{t: t, serving: serving(i1, "istiod.istio-system.svc"), signer: i1}
		lack := errors.New("no token")
		got, err := ask(t.Context(), question{address: c.serve(), names: []string{"istiod.istio-system.svc"}, roots: pool(r1.cert), dial: loopback, token: func() (string, error) { return "", lack }})
		if !errors.Is(err, lack) || len(got.serving) != 2 || len(c.asked) > 0 {
			t.Error(err, got.serving, c.asked)
		}
	})
	t.Run("it refuses", func(t *testing.T) {
		_, err := asked(t, &ca{serving: serving(i1, "istiod.istio-system.svc"), signer: i1, token: "another"}, pool(r1.cert))
		if err == nil || err.Error() != "Unauthenticated: request authenticate failure" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("answers that are none", func(t *testing.T) {
		for name, elements := range map[string][]string{
			"leaf only": nil, "empty roots": {""}, "a certificate that is none": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
		} {
			if _, err := asked(t, &ca{serving: serving(i1, "istiod.istio-system.svc"), signer: i1, token: "our-token", elements: elements}, pool(r1.cert)); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}
