package family

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
)

var (
	now  = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	opts = Options{ServerNames: []string{"*.gloo-mesh", "gloo-mesh-mgmt-server.gloo-mesh.svc", "localhost", "127.0.0.1"}}
)

func generate(t testing.TB) *Family {
	t.Helper()
	f, err := Generate(now, opts)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func client(t testing.TB, f *Family, c mesh.ClusterName, at time.Time) []*x509.Certificate {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	ders, err := f.IssueClient(key.Public(), c, at, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var out []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, cert)
	}
	return out
}

func TestGenerateFitsAndSurvivesTheSecrets(t *testing.T) {
	f := generate(t)
	if p := append(f.Check(now), f.CheckServerNames(opts.ServerNames)...); len(p) > 0 {
		t.Fatal(p)
	}
	s, err := f.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	g, problems := Parse(s, now)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	again, err := g.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, again); d != "" {
		t.Errorf("Secrets -> Parse -> Secrets (-want +got):\n%s", d)
	}
	if got, err := g.VerifyClient(client(t, f, "prod", now), now); err != nil || got != "prod" {
		t.Errorf("%q, %v", got, err)
	}
	if err := VerifyServer(g.Server.Chain, []*x509.Certificate{f.Root.Cert}, "gloo-mesh-mgmt-server.gloo-mesh", now); err != nil {
		t.Error(err)
	}
}

func TestRotateCutsNobodyOff(t *testing.T) {
	f := generate(t)
	held := f.Bundle // by an agent, as PEM in its Secret
	leaf := client(t, f, "prod", now)
	for i := range 5 {
		at := now.Add(time.Duration(i+1) * time.Hour)
		n, err := f.Rotate(at, opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifyServer(n.Server.Chain, held, "localhost", at); err != nil {
			t.Fatalf("rotation %d: the agent refuses the new server: %v", i, err)
		}
		if _, err := n.VerifyClient(leaf, at); err != nil {
			t.Fatalf("rotation %d: the server refuses the agent: %v", i, err)
		}
		if err := VerifyServer(f.Server.Chain, n.Bundle, "localhost", at); err != nil {
			t.Errorf("rotation %d: an agent with the new bundle refuses the old server (restored backup): %v", i, err)
		}
		if p := n.Check(at); len(p) > 0 {
			t.Fatalf("rotation %d: %v", i, p)
		}
		f, held = n, n.Bundle
	}
	later := now.Add(8 * 24 * time.Hour)
	m, err := f.Maintain(later, opts)
	if err != nil || m == nil {
		t.Fatal(m, err)
	}
	if len(m.Bundle) != 2 || !m.Bundle[0].Equal(f.Root.Cert) || !m.Bundle[1].Equal(f.Next.Cert) {
		t.Errorf("the bundle still has %d roots", len(m.Bundle))
	}
	if m, err = m.Maintain(later, opts); m != nil || err != nil {
		t.Errorf("nothing is left to do, but: %v, %v", m, err)
	}
}

func TestMaintainKeepsAFamilyValidForYears(t *testing.T) {
	f := generate(t)
	held := f.Bundle
	for at := now; at.Before(now.AddDate(4, 0, 0)); at = at.AddDate(0, 0, 7) {
		leaf := client(t, f, "prod", at)
		n, err := f.Maintain(at, opts)
		if err != nil {
			t.Fatal(err)
		}
		if n != nil {
			f = n
		}
		if p := f.Check(at); len(p) > 0 {
			t.Fatalf("%s: %v", at, p)
		}
		if _, err := f.VerifyClient(leaf, at); err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		if err := VerifyServer(f.Server.Chain, held, "localhost", at); err != nil {
			t.Fatalf("%s: %v", at, err)
		}
	}
	if len(f.Previous) > 2 {
		t.Errorf("%d former signing CAs are still accepted", len(f.Previous))
	}
}

// custom signs any template with the family's signing CA.
func custom(t *testing.T, f *Family, change func(*x509.Certificate)) []*x509.Certificate {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "prod"}, DNSNames: []string{"prod"}, NotBefore: now.Add(-time.Minute),
		NotAfter: now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, f.Signing.Cert, key.Public(), f.Signing.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{cert}
}

func TestVerifyClient(t *testing.T) {
	f := generate(t)
	ten := 10 * time.Minute
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		want  string // words of the refusal; empty: accepted
	}{
		"leaf only":               {custom(t, f, func(*x509.Certificate) {}), ""},
		"minted by a clock ahead": {custom(t, f, func(c *x509.Certificate) { c.NotBefore = now.Add(ten) }), ""},
		"from the future":         {custom(t, f, func(c *x509.Certificate) { c.NotBefore = now.Add(30 * time.Minute) }), "clocks"},
		"expired":                 {custom(t, f, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), "expired"},
		"no certificate":          {nil, "no client certificate"},
		"CA":                      {custom(t, f, func(c *x509.Certificate) { c.IsCA = true }), "CA"},
		"the signing CA itself":   {[]*x509.Certificate{f.Signing.Cert}, "CA"},
		"no EKU":                  {custom(t, f, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), "clientAuth"},
		"server EKU":              {custom(t, f, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "clientAuth"},
		"SAN differs":             {custom(t, f, func(c *x509.Certificate) { c.DNSNames = []string{"other"} }), "other"},
		"no SAN":                  {custom(t, f, func(c *x509.Certificate) { c.DNSNames = nil }), "DNS names"},
		"two SANs":                {custom(t, f, func(c *x509.Certificate) { c.DNSNames = []string{"prod", "other"} }), "other"},
		"not a cluster name":      {custom(t, f, func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "a.b", []string{"a.b"} }), "a.b"},
		"of another family":       {client(t, generate(t), "prod", now), "another installation"},
		"the server's":            {f.Server.Chain, "another installation"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := f.VerifyClient(c.chain, now)
			switch {
			case c.want == "" && (err != nil || got != "prod"):
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("want a refusal that says %q, got %v", c.want, err)
			}
		})
	}
}

func TestSigningCACannotPoseAsServer(t *testing.T) {
	f := generate(t)
	forged := custom(t, f, func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"localhost"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	if err := VerifyServer(append(forged, f.Signing.Cert), f.Bundle, "localhost", now); err == nil {
		t.Error("a server certificate made with the signing CA's key is accepted")
	}
}

func TestCheckCSR(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	make := func(change func(*x509.CertificateRequest), key crypto.Signer) []byte {
		r := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "prod"}, DNSNames: []string{"prod"}}
		change(r)
		der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	same := func(*x509.CertificateRequest) {}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	broken := make(same, key)
	broken[len(broken)-1] ^= 1
	for name, c := range map[string]struct {
		der []byte
		ok  bool
	}{
		"right":       {make(same, key), true},
		"other CN":    {make(func(r *x509.CertificateRequest) { r.Subject.CommonName = "other" }, key), false},
		"other SAN":   {make(func(r *x509.CertificateRequest) { r.DNSNames = []string{"other"} }, key), false},
		"two SANs":    {make(func(r *x509.CertificateRequest) { r.DNSNames = []string{"prod", "other"} }, key), false},
		"IP SAN":      {make(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{{127, 0, 0, 1}} }, key), false},
		"weak RSA":    {make(same, weak), false},
		"P-224":       {make(same, p224), false},
		"signature":   {broken, false},
		"not DER":     {[]byte("nonsense"), false},
		"empty":       {nil, false},
		"100 MiB":     {make2(100 << 20), false},
		"certificate": {generate(t).Root.Cert.Raw, false},
	} {
		t.Run(name, func(t *testing.T) {
			pub, err := CheckCSR(c.der, "prod")
			if (err == nil) != c.ok || (err == nil) != (pub != nil) {
				t.Errorf("%v, %v", pub, err)
			}
		})
	}
}

func make2(n int) []byte { return make([]byte, n) }

func FuzzCheckCSR(f *testing.F) {
	key, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	csr, err := NewCSR(key, "prod")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte{})
	fam := generate(f)
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := CheckCSR(der, "prod")
		if err != nil {
			return
		}
		chain, err := fam.IssueClient(pub, "prod", now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if c, err := fam.VerifyClient([]*x509.Certificate{leaf}, now); err != nil || c != "prod" {
			t.Fatalf("issued what is not accepted: %q, %v", c, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	s, err := generate(f).Secrets()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0, 200, 'x'}, []byte{}, []byte{0, 40, 'A', 0, 41, 'B'}, []byte{})
	f.Fuzz(func(_ *testing.T, ca, crt, key, serverKey []byte) {
		fam, _ := Parse(Secrets{
			Root:    map[string][]byte{"ca.crt": edited(s.Root["ca.crt"], ca)},
			Signing: map[string][]byte{"tls.crt": edited(s.Signing["tls.crt"], crt), "tls.key": edited(s.Signing["tls.key"], key)},
			Server:  map[string][]byte{"tls.crt": s.Server["tls.crt"], "tls.key": edited(s.Server["tls.key"], serverKey)},
		}, now)
		if fam != nil {
			fam.Check(now)
		}
	})
}

// TestOutOfStep breaks one Secret at a time: the problem names that Secret, and Repair mends it from the root.
func TestOutOfStep(t *testing.T) {
	f, other := generate(t), generate(t)
	theirs, err := other.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Secrets)
		secret string
		fatal  bool
		mends  bool
	}{
		"server of another family":   {func(s *Secrets) { s.Server = theirs.Server }, ServerSecret, false, true},
		"server key of another":      {func(s *Secrets) { s.Server["tls.key"] = theirs.Server["tls.key"] }, ServerSecret, true, true},
		"server gone":                {func(s *Secrets) { s.Server = nil }, ServerSecret, true, true},
		"server not PEM":             {func(s *Secrets) { s.Server["tls.crt"] = []byte("x") }, ServerSecret, true, true},
		"signing of another family":  {func(s *Secrets) { s.Signing = theirs.Signing }, SigningSecret, false, true},
		"signing key of another":     {func(s *Secrets) { s.Signing["tls.key"] = theirs.Signing["tls.key"] }, SigningSecret, false, true},
		"signing gone":               {func(s *Secrets) { s.Signing = nil }, SigningSecret, true, true},
		"root of another family":     {func(s *Secrets) { s.Root = theirs.Root }, SigningSecret, false, true},
		"root gone":                  {func(s *Secrets) { s.Root = nil }, RootSecret, true, false},
		"root not in its own bundle": {func(s *Secrets) { s.Root["ca.crt"] = s.Root["next.crt"] }, RootSecret, false, false},
		"successor not in bundle":    {func(s *Secrets) { s.Root["ca.crt"] = s.Root["tls.crt"] }, RootSecret, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := f.Secrets()
			if err != nil {
				t.Fatal(err)
			}
			c.change(&s)
			got, problems := Parse(s, now)
			if !slices.ContainsFunc(problems, func(p Problem) bool { return p.Secret == c.secret && p.Fatal == c.fatal && p.Fix != "" }) {
				t.Errorf("problems: %v", problems)
			}
			if (got == nil) != c.fatal {
				t.Errorf("family %v, want fatal %v", got, c.fatal)
			}
			if !c.mends {
				return
			}
			g, done, err := Repair(s, now, opts)
			if err != nil || len(done) == 0 {
				t.Fatal(done, err)
			}
			if p := g.Check(now); len(p) > 0 {
				t.Errorf("after repair (%v): %v", done, p)
			}
		})
	}
}

func TestRepairKeepsCertificatesInUse(t *testing.T) {
	f := generate(t)
	leaf := client(t, f, "prod", now)
	s, err := f.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	delete(s.Signing, "tls.key")
	if g, _ := Parse(s, now); g == nil || g.Signing.Key != nil {
		t.Fatal("a signing CA without its key still verifies")
	}
	s.Signing["tls.key"] = []byte("garbage")
	g, done, err := Repair(s, now, opts)
	if err != nil || len(done) != 1 {
		t.Fatal(done, err)
	}
	if _, err := g.VerifyClient(leaf, now); err != nil {
		t.Errorf("a cluster falls out because of the repair: %v", err)
	}
	whole, done, err := Repair(Secrets{}, now, opts)
	if err != nil || whole == nil || len(done) != 1 {
		t.Error(whole, done, err)
	}
	ok, err := f.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err = Repair(ok, now, opts); err != nil || len(done) > 0 {
		t.Errorf("a sound family was repaired: %v, %v", done, err)
	}
}

func TestCheckClientAndNames(t *testing.T) {
	f := generate(t)
	chain, key, err := f.NewClient("prod", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := f.NewClient("prod", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if p := f.CheckClient(chain, key, "prod", now); len(p) > 0 {
		t.Error(p)
	}
	for what, p := range map[string][]Problem{
		"other cluster": f.CheckClient(chain, key, "staging", now), "other key": f.CheckClient(chain, otherKey, "prod", now),
		"expired": f.CheckClient(chain, key, "prod", now.Add(2*time.Hour)), "other family": generate(t).CheckClient(chain, key, "prod", now),
		"no PEM": f.CheckClient([]byte("x"), key, "prod", now), "token": CheckToken([]byte("short")), "name": f.CheckServerNames([]string{"elsewhere.example"}),
		"address": f.CheckServerNames([]string{"10.0.0.1"}),
	} {
		if len(p) != 1 {
			t.Errorf("%s: %v", what, p)
		}
	}
}

// TestOpenSSL mints a client certificate as the published scripts do.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl on this machine")
	}
	f, err := Generate(time.Now(), opts)
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, map[string][]byte{
		"ca.crt": s.Signing["tls.crt"], "ca.key": s.Signing["tls.key"],
		"ext": []byte("subjectAltName=DNS:prod\nextendedKeyUsage=clientAuth\n"),
	})
	run := func(args ...string) {
		cmd := exec.Command(openssl, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	run("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "c.key", "-out", "c.csr", "-subj", "/CN=prod")
	run("x509", "-req", "-in", "c.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "365", "-extfile", "ext", "-out", "c.crt")
	if p := f.CheckClient(read(t, filepath.Join(dir, "c.crt")), read(t, filepath.Join(dir, "c.key")), "prod", time.Now()); len(p) > 0 {
		t.Error(p)
	}
}

func TestParseKeyAcceptsWhatToolsWrite(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	params := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}})
	if k, err := ParseKey(append(params, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...)); err != nil || !ec.PublicKey.Equal(k.Public()) {
		t.Error(err)
	}
	for _, bad := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParseKey([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}
