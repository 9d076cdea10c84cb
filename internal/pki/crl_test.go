package pki_test

import (
	"bytes"
	"crypto/x509"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/pki"
)

// TestRevokedBundle: the bundle of an incident. The root revokes c2's intermediate; every other CA signs an empty list.
func TestRevokedBundle(t *testing.T) {
	root := make_(t, "Root g1", nil)
	c1, c2, c3 := make_(t, "c1 g1", root), make_(t, "c2 g1", root), make_(t, "c3 g1", root)
	o := pki.CRLOptions{Number: big.NewInt(now.Unix()), TTL: 24 * time.Hour, Now: now}
	of := func(c *ca, revoked ...pki.Revoked) pki.CRLIssuer {
		return pki.CRLIssuer{Certificate: c.cert, Key: c.key, Revoked: revoked}
	}
	theirs, err := pki.NewCRL(of(c3), o) // made in its cluster, where its key is
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := pki.RevokedBundle([]pki.CRLIssuer{of(root, pki.Revoked{Serial: c2.cert.SerialNumber, Reason: 1}), of(c1), of(c2)}, [][]byte{theirs}, o)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text  []byte
		chain []*ca
		at    time.Time
		want  string
	}{
		"c1":                         {bundle, []*ca{c1}, now, ""},
		"c1 and the root":            {bundle, []*ca{c1, root}, now, ""},
		"c3":                         {bundle, []*ca{c3}, now, ""},
		"c2 is revoked":              {bundle, []*ca{c2}, now, "revoked"},
		"the lists have ended":       {bundle, []*ca{c1}, now.Add(24 * time.Hour), "crl"},
		"not yet":                    {bundle, []*ca{c1}, now.Add(-time.Hour), "crl"},
		"a new intermediate":         {bundle, []*ca{make_(t, "c4 g1", root)}, now, "crl"},
		"without the root's":         {theirs, []*ca{c3}, now, "crl"},
		"rubbish":                    {[]byte("no list"), []*ca{c3}, now, "crl"},
		"an earlier key of the name": {bundle, []*ca{make_(t, "c1 g1", root)}, now, "crl"}, // the list of that name is another's
	} {
		if got := checkOf(pki.CheckCRL(c.text, certs(c.chain...), certs(root), c.at)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	// A list that its issuer did not sign revokes nothing: serial numbers are of one issuer only.
	forged := make_(t, "Root g1", nil)
	text, err := pki.RevokedBundle([]pki.CRLIssuer{of(forged, pki.Revoked{Serial: c1.cert.SerialNumber}), of(root), of(c1)}, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.CheckCRL(text, certs(c1), certs(root), now); err != nil {
		t.Errorf("a forged list counts: %v", err)
	}
	opensslCRL(t, bundle, root, c1, c2)
}

// opensslCRL: OpenSSL, which as Envoy's BoringSSL wants a list of every CA, accepts c1 and refuses c2.
func opensslCRL(t *testing.T, bundle []byte, root, good, revoked *ca) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl on this machine: only our own checks were made")
	}
	dir := t.TempDir()
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("root", pem_(root))
	write("crl", bundle)
	for _, c := range []struct {
		ca *ca
		ok bool
	}{{good, true}, {revoked, false}} {
		write("leaf", pem_(make_(t, "", c.ca, leaf)))
		write("chain", pem_(c.ca))
		cmd := exec.CommandContext(t.Context(), "openssl", "verify", "-crl_check_all", "-attime", big.NewInt(now.Unix()).String(), "-CAfile", "root", "-untrusted", "chain", "-CRLfile", "crl", "leaf")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.ok || (!c.ok && !bytes.Contains(out, []byte("revoked"))) {
			t.Errorf("%s: openssl: %v\n%s", c.ca.cert.Subject, err, out)
		}
	}
}

func TestNewCRLRefuses(t *testing.T) {
	root, other := make_(t, "Root g1", nil), make_(t, "Root g2", nil)
	mute := make_(t, "c1", root, usage(x509.KeyUsageCertSign))
	o := pki.CRLOptions{Number: big.NewInt(1), Now: now}
	for name, c := range map[string]struct {
		i pki.CRLIssuer
		o pki.CRLOptions
	}{
		"no key":             {pki.CRLIssuer{Certificate: root.cert}, o},
		"no certificate":     {pki.CRLIssuer{Key: root.key}, o},
		"another key":        {pki.CRLIssuer{Certificate: root.cert, Key: other.key}, o},
		"no number":          {pki.CRLIssuer{Certificate: root.cert, Key: root.key}, pki.CRLOptions{Now: now}},
		"no cRLSign":         {pki.CRLIssuer{Certificate: mute.cert, Key: mute.key}, o},
		"entry of no serial": {pki.CRLIssuer{Certificate: root.cert, Key: root.key, Revoked: []pki.Revoked{{}}}, o},
	} {
		if _, err := pki.NewCRL(c.i, c.o); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	if _, err := pki.RevokedBundle(nil, nil, o); err == nil {
		t.Error("a bundle of nothing")
	}
	if _, err := pki.RevokedBundle(nil, [][]byte{pem_(root)}, o); err == nil {
		t.Error("a certificate among the lists")
	}
}
