package authority_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/pki"
)

// Two generations side by side: each keeps its root, and roots never share a name (facts: T8).
func TestGeneratedKeepsItsRoots(t *testing.T) {
	s := secrets{}
	open := func(name string) authority.Authority {
		return authority.Generated{Secrets: s, Secret: name, Generation: 1, Algorithm: pki.ECDSAP256, Organization: "gloo-mesh", TTL: 1000 * time.Hour, Now: time.Now}.New()
	}
	first, second := root(t, open("r1")), root(t, open("r2"))
	if first.Equal(second) || first.Subject.String() == second.Subject.String() {
		t.Errorf("two roots are called %s", first.Subject)
	}
	if again := root(t, open("r1")); !again.Equal(first) {
		t.Error("after a restart the root is another one")
	}
	r, _ := request(t, "east")
	a, err := open("r2").SignIntermediate(t.Context(), r)
	if err != nil || !a.Root.Equal(second) || len(a.Chain) != 1 {
		t.Fatalf("%v, %v", a, err)
	}
	cross, err := open("r1").(authority.CrossSigner).CrossSign(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	leaf := []*x509.Certificate{a.Chain[0], cross}
	for _, trusts := range []*x509.Certificate{first, second} {
		if err := pki.VerifyPeer(leaf, []*x509.Certificate{trusts}, time.Now()); err != nil {
			t.Errorf("who trusts %s: %v", trusts.Subject, err)
		}
	}
}

// A CA of several levels, in both layouts, and every way to get it wrong.
func TestFromSecret(t *testing.T) {
	rootKey, rootCert := newRoot(t, "root")
	key, err := pki.GenerateKey(pki.ECDSAP384)
	if err != nil {
		t.Fatal(err)
	}
	text, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	issuing := signCA(t, rootCert, rootKey, key, "issuing")
	_, other := newRoot(t, "other")
	pem := func(c ...*x509.Certificate) []byte { return pki.EncodeCertificates(c...) }
	for name, c := range map[string]struct {
		data map[string][]byte
		want string // of the error; empty: it signs
	}{
		"istio":            {map[string][]byte{"ca-cert.pem": pem(issuing), "ca-key.pem": text, "root-cert.pem": pem(rootCert), "cert-chain.pem": pem(issuing, rootCert)}, ""},
		"tls":              {map[string][]byte{"tls.crt": pem(issuing), "tls.key": text, "ca.crt": pem(rootCert)}, ""},
		"two roots":        {map[string][]byte{"tls.crt": pem(issuing), "tls.key": text, "ca.crt": pem(other, rootCert)}, ""},
		"no Secret":        {nil, "there is no Secret ca"},
		"no key":           {map[string][]byte{"tls.crt": pem(issuing), "ca.crt": pem(rootCert)}, "key tls.key: it is missing"},
		"another's key":    {map[string][]byte{"tls.crt": pem(rootCert), "tls.key": text, "ca.crt": pem(rootCert)}, "it is not the key of CN=root"},
		"no root":          {map[string][]byte{"tls.crt": pem(issuing), "tls.key": text}, "nobody knows its root"},
		"another root":     {map[string][]byte{"tls.crt": pem(issuing), "tls.key": text, "ca.crt": pem(other)}, "does not lead to any root"},
		"not PEM":          {map[string][]byte{"tls.crt": []byte("hello"), "tls.key": text, "ca.crt": pem(rootCert)}, "key tls.crt"},
		"key is no key":    {map[string][]byte{"tls.crt": pem(issuing), "tls.key": pem(rootCert), "ca.crt": pem(rootCert)}, "key tls.key"},
		"root is not a CA": {map[string][]byte{"tls.crt": pem(leaf(t, rootCert, rootKey, key)), "tls.key": text, "ca.crt": pem(rootCert)}, "is no CA certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s := secrets{}
			if c.data != nil {
				s["ca"] = c.data
			}
			r, _ := request(t, "east")
			a, err := authority.FromSecret{Secrets: s, Secret: "ca", Now: time.Now}.New().SignIntermediate(t.Context(), r)
			if c.want != "" {
				misconfigured(t, err, c.want)
				return
			}
			if err != nil || !a.Root.Equal(rootCert) || len(a.Chain) != 2 || !a.Chain[1].Equal(issuing) {
				t.Errorf("%v, %v", a, err)
			}
		})
	}
}

// While the API server is away the key that is known serves on.
func TestLocalSurvivesAnOutage(t *testing.T) {
	s := &outage{secrets: secrets{}}
	a := authority.Generated{Secrets: s, Secret: "r1", Generation: 1, Algorithm: pki.ECDSAP256, Organization: "o", TTL: time.Hour * 1000, Now: time.Now}.New()
	s.err = errors.New("connection refused")
	if _, err := a.Roots(t.Context()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("before anything was read: %v", err)
	}
	s.err = nil
	before := root(t, a)
	s.err = errors.New("connection refused")
	if !root(t, a).Equal(before) {
		t.Error("another root")
	}
}

type outage struct {
	secrets
	err error
}

func (o *outage) Get(ctx context.Context, name string) (map[string][]byte, error) {
	if o.err != nil {
		return nil, o.err
	}
	return o.secrets.Get(ctx, name)
}

// BenchmarkSignIntermediate is what one core signs and checks. The keys of clusters are made there; theirs here are ECDSA P-256.
//
//	go test ./internal/authority -run '^$' -bench SignIntermediate -cpu 1
func BenchmarkSignIntermediate(b *testing.B) {
	for _, alg := range []pki.KeyAlgorithm{pki.ECDSAP256, pki.RSA2048, pki.RSA4096} {
		b.Run(string(alg), func(b *testing.B) {
			a := authority.Generated{Secrets: secrets{}, Secret: "r", Generation: 1, Algorithm: alg, Organization: "gloo-mesh", TTL: 1000 * time.Hour, Now: time.Now}.New()
			r, _ := request(b, "east")
			for b.Loop() {
				if _, err := a.SignIntermediate(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signed/s")
		})
	}
}

func root(t *testing.T, a authority.Authority) *x509.Certificate {
	t.Helper()
	roots, err := a.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return roots[0]
}

func subject(name string) pkix.Name { return pkix.Name{CommonName: name} }
