package probe

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
)

// scene is a cluster on its way from r1 to r2.
type scene struct {
	t              *testing.T
	r1, r2, i1, i2 *authority
}

func newScene(t *testing.T) scene {
	s := scene{t: t, r1: newAuthority(t, "root g1", nil), r2: newAuthority(t, "root g2", nil)}
	s.i1, s.i2 = newAuthority(t, "c1 g1", s.r1), newAuthority(t, "c1 g2", s.r2)
	return s
}

func (s scene) istiod(name string, signer *authority, roots ...*x509.Certificate) istiod {
	return istiod{pod: pod{name: name, role: roleIstiod, maxLeaf: time.Hour}, answer: answer{leaf: signer.leaf(s.t).cert, chain: []*x509.Certificate{signer.cert}, roots: roots, serving: []*x509.Certificate{signer.leaf(s.t).cert, signer.cert}}}
}

func (s scene) verifier(name string, signer *authority, accepts ...string) verifier {
	return verifier{target: target{kind: "ztunnel", version: "1.30.1"}, pod: name, shown: Handshake{Chain: []*x509.Certificate{signer.leaf(s.t).cert, signer.cert}, Accepts: accepts, Known: len(accepts) > 0}}
}

func TestAssemble(t *testing.T) {
	s := newScene(t)
	f := findings{
		applied: mesh.FingerprintOf([]byte("directive")), at: time.Date(2026, 11, 23, 9, 0, 31, 5, time.UTC),
		istiods: []istiod{s.istiod("istio-system/istiod-1", s.i1, s.r1.cert, s.r2.cert), {pod: pod{name: "istio-system/istiod-2", maxLeaf: time.Hour}, err: errors.New("connection refused")}},
		verifiers: []verifier{
			s.verifier("app/b", s.i1, "CN=root g1", "CN=root g2"), s.verifier("app/a", s.i1, "CN=root g1", "CN=root g2"), s.verifier("app/old", s.i1, "CN=root g1"),
			{target: target{kind: "gateway"}, pod: "in/in", err: errors.New(unseen)},
		},
		view: view{
			maps:     map[string]string{"a": pemOf(s.r1.cert, s.r2.cert), "b": pemOf(s.r1.cert, s.r2.cert) + "\n", "c": "", "d": pemOf(s.r1.cert), "e": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
			webhooks: map[string]string{"mutating/x": pemOf(s.r1.cert)},
		},
	}
	for i := range f.verifiers {
		if c := f.verifiers[i].shown.Chain; len(c) > 0 {
			c[0] = f.verifiers[0].shown.Chain[0]
		}
	}
	got := assemble(f)
	fp := func(a ...*authority) (out []mesh.Fingerprint) {
		for _, a := range a {
			out = append(out, fingerprint(a.cert))
		}
		return out
	}
	until := f.verifiers[0].shown.Chain[0].NotAfter
	want := mesh.TrustObservation{
		Applied: f.applied, At: time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC),
		Certificates: map[mesh.Fingerprint][]byte{fp(s.r1)[0]: s.r1.cert.Raw, fp(s.r2)[0]: s.r2.cert.Raw, fp(s.i1)[0]: s.i1.cert.Raw},
		Istiods: []mesh.IstiodProbe{
			{Pod: "istio-system/istiod-1", MaxLeafTTL: 3600, Signer: fp(s.i1)[0], Chain: fp(s.i1), Roots: fp(s.r1, s.r2), Serving: fp(s.i1)},
			{Pod: "istio-system/istiod-2", MaxLeafTTL: 3600, Error: "connection refused"},
		},
		Verifiers: []mesh.VerifierGroup{
			{Kind: "gateway", Count: 1, Examples: []string{"in/in"}, Error: unseen},
			{Kind: "ztunnel", Version: "1.30.1", Chain: fp(s.i1), Issuer: fp(s.i1)[0], Accepts: []string{"CN=root g1", "CN=root g2"}, Known: true, LeafUntil: until, Count: 2, Examples: []string{"app/a", "app/b"}},
			{Kind: "ztunnel", Version: "1.30.1", Chain: fp(s.i1), Issuer: fp(s.i1)[0], Accepts: []string{"CN=root g1"}, Known: true, LeafUntil: until, Count: 1, Examples: []string{"app/old"}},
		},
		ConfigMaps: []mesh.BundleGroup{
			{Roots: fp(s.r1, s.r2), Count: 2, Examples: []string{"a", "b"}}, {Count: 2, Examples: []string{"c", "e"}}, {Roots: fp(s.r1), Count: 1, Examples: []string{"d"}},
		},
		Webhooks: []mesh.BundleGroup{{Roots: fp(s.r1), Count: 1, Examples: []string{"mutating/x"}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	slices.Reverse(f.verifiers)
	first, _ := json.Marshal(got)
	if again, _ := json.Marshal(assemble(f)); !bytes.Equal(first, again) {
		t.Error("the same findings gave other bytes")
	}
}

// What istiod hands out is checked as a workload would: it looks healthy from outside in all these cases.
func TestIstiodHandsOutNonsense(t *testing.T) {
	s := newScene(t)
	for name, tt := range map[string]struct {
		edit func(*answer)
		want string
	}{
		"cert-chain.pem is empty":                {func(a *answer) { a.chain = nil }, "lacks the certificate that signed"},
		"a chain of somebody else":               {func(a *answer) { a.chain, a.serving = []*x509.Certificate{s.i2.cert}, nil }, "not in the chain"},
		"roots that the chain does not end in":   {func(a *answer) { a.roots = []*x509.Certificate{s.r2.cert} }, "does not verify by its own roots"},
		"all is well":                            {func(*answer) {}, ""},
		"all is well, with a root in the chain":  {func(a *answer) { a.chain = append(a.chain, s.r1.cert) }, ""},
		"all is well, with another root in wait": {func(a *answer) { a.roots = append(a.roots, s.r2.cert) }, ""},
	} {
		i := s.istiod("istio-system/istiod-1", s.i1, s.r1.cert)
		tt.edit(&i.answer)
		got := assemble(findings{istiods: []istiod{i}}).Istiods[0].Error
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestAsDirected(t *testing.T) {
	s := newScene(t)
	d := Directed{Applied: mesh.FingerprintOf([]byte("d")), Signer: fingerprint(s.i1.cert), Roots: []*x509.Certificate{s.r1.cert, s.r2.cert}}
	both := subjects(d.Roots)
	good := func() findings {
		return findings{
			applied: d.Applied, ordered: true,
			istiods: []istiod{s.istiod("istiod", s.i1, s.r2.cert, s.r1.cert)}, verifiers: []verifier{s.verifier("app/a", s.i1, both...), {target: target{kind: "gateway"}, pod: "in/in", err: errors.New(unseen)}},
			view: view{maps: map[string]string{"a": pemOf(d.Roots...)}, webhooks: map[string]string{"mutating/x": pemOf(d.Roots...)}},
		}
	}
	if !asDirected(assemble(good()), d) {
		t.Error("all is as directed")
	}
	if !asDirected(mesh.TrustObservation{}, Directed{}) {
		t.Error("no directive: no hurry")
	}
	for name, edit := range map[string]func(*findings){
		"the directive is another":            func(f *findings) { f.applied = mesh.FingerprintOf([]byte("before")) },
		"a verifier was seen before":          func(f *findings) { f.ordered = false },
		"an istiod signs with another":        func(f *findings) { f.istiods = append(f.istiods, s.istiod("istiod-2", s.i2, d.Roots...)) },
		"an istiod lacks a root":              func(f *findings) { f.istiods = append(f.istiods, s.istiod("istiod-2", s.i1, s.r1.cert)) },
		"an istiod can't be asked":            func(f *findings) { f.istiods[0].err = errors.New("refused") },
		"a ztunnel trusts one root":           func(f *findings) { f.verifiers = append(f.verifiers, s.verifier("app/b", s.i1, both[:1]...)) },
		"a ztunnel presents another issuer's": func(f *findings) { f.verifiers = append(f.verifiers, s.verifier("app/b", s.i2, both...)) },
		"a ztunnel can't be probed": func(f *findings) {
			f.verifiers = append(f.verifiers, verifier{target: target{kind: "ztunnel"}, err: errors.New("x")})
		},
		"a ConfigMap lags": func(f *findings) { f.view.maps["b"] = pemOf(s.r1.cert) },
		"a webhook lags":   func(f *findings) { f.view.webhooks["validating/x"] = "" },
	} {
		f := good()
		edit(&f)
		if asDirected(assemble(f), d) {
			t.Errorf("%s: taken for as directed", name)
		}
	}
}

func TestAllAnswered(t *testing.T) {
	a, b := pod{name: "a", ip: "1", role: roleIstiod}, pod{name: "b", ip: "2", role: roleIstiod}
	restarted := a
	restarted.ip = "3"
	for _, tt := range []struct {
		name  string
		asked []istiod
		now   []pod
		want  bool
	}{
		{"both", []istiod{{pod: a}, {pod: b}}, []pod{a, b, {name: "web", role: roleCaptured}}, true},
		{"one is gone", []istiod{{pod: a}, {pod: b}}, []pod{b}, true},
		{"one is silent", []istiod{{pod: a}, {pod: b, err: errors.New("x")}}, []pod{a, b}, false},
		{"one has come", []istiod{{pod: a}}, []pod{a, b}, false},
		{"one has another address", []istiod{{pod: a}}, []pod{restarted}, false},
		{"none", nil, nil, false},
	} {
		if got := allAnswered(tt.asked, tt.now); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestPause(t *testing.T) {
	for _, tt := range []struct {
		done            bool
		age, took, want time.Duration
	}{
		{true, 0, time.Second, quiet},
		{false, 0, 100 * time.Millisecond, often},
		{false, 10 * time.Minute, time.Second, 30 * time.Second},
		{false, 12 * time.Hour, time.Second, seldom},
		{false, 0, 20 * time.Second, 100 * time.Second},
		{false, -time.Hour, 0, often},
	} {
		if got := pause(tt.done, tt.age, tt.took); got != tt.want {
			t.Errorf("%+v: got %s", tt, got)
		}
	}
}
