package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/pki"
)

// checkOf is which check refused.
func checkOf(err error) string {
	if bad, ok := errors.AsType[*pki.CheckError](err); ok {
		return bad.Check
	}
	if err != nil {
		return "not a CheckError: " + err.Error()
	}
	return ""
}

// TestCheckIntermediate: a certificate with exactly one fault is refused by exactly that check.
func TestCheckIntermediate(t *testing.T) {
	root := make_(t, "Root g1", nil)
	other := make_(t, "Root g2", nil)
	middle := make_(t, "Issuing CA", root, pathLen(1))
	tight := make_(t, "Tight CA", root, pathLen(0))
	rsaKey := func(bits int) *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	rsaRoot := withKey(t, rsaKey(2048), "RSA root", nil)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edRoot := withKey(t, ed, "Ed25519 root", nil)
	one := func(faults ...fault) []*ca { return []*ca{make_(t, "c1 g1", root, faults...)} }
	named := func(change func(n *pkix.Name)) fault {
		return func(c, _ *x509.Certificate) { change(&c.Subject) }
	}
	crossed := withKey(t, other.key, "Root g2", root, pathLen(1))
	for name, c := range map[string]struct {
		chain []*ca
		roots []*ca
		want  string
		minus func(*pki.Expect)
	}{
		"good":                           {one(), []*ca{root}, "", nil},
		"good, the root in the chain":    {append(one(), root), []*ca{root}, "", nil},
		"good, two levels":               {[]*ca{make_(t, "c1 g1", middle), middle}, []*ca{root}, "", nil},
		"good, cross-signed, old root":   {[]*ca{make_(t, "c1 g1", other), crossed}, []*ca{root}, "", nil},
		"good, cross-signed, new root":   {[]*ca{make_(t, "c1 g1", other), crossed}, []*ca{other}, "", nil},
		"good, cross-signed, both":       {[]*ca{make_(t, "c1 g1", other), crossed}, []*ca{root, other}, "", nil},
		"good, both extended usages":     {one(eku(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)), []*ca{root}, "", nil},
		"good, greater path length":      {one(pathLen(3)), []*ca{root}, "", nil},
		"nothing":                        {nil, []*ca{root}, "chain", nil},
		"another key":                    {one(), []*ca{root}, "key", func(e *pki.Expect) { e.PublicKey = other.key.Public() }},
		"CA:false":                       {one(leaf), []*ca{root}, "ca", nil},
		"no keyCertSign":                 {one(usage(x509.KeyUsageCRLSign)), []*ca{root}, "usage", nil},
		"no cRLSign":                     {one(usage(x509.KeyUsageCertSign)), []*ca{root}, "usage", nil},
		"serverAuth only":                {one(eku(x509.ExtKeyUsageServerAuth)), []*ca{root}, "eku", nil},
		"clientAuth only":                {one(eku(x509.ExtKeyUsageClientAuth)), []*ca{root}, "eku", nil},
		"extended usages of the issuer":  {[]*ca{make_(t, "c1 g1", middle), withKey(t, middle.key, "Issuing CA", root, pathLen(1), eku(x509.ExtKeyUsageServerAuth))}, []*ca{root}, "eku", nil},
		"begins later":                   {one(begins(now.Add(time.Minute))), []*ca{root}, "validity", nil},
		"has ended":                      {one(ends(now)), []*ca{root}, "validity", nil},
		"too short":                      {one(ends(now.Add(time.Hour))), []*ca{root}, "validity", func(e *pki.Expect) { e.MinTTL = time.Hour + time.Second }},
		"just long enough":               {one(ends(now.Add(time.Hour))), []*ca{root}, "", func(e *pki.Expect) { e.MinTTL = time.Hour }},
		"another common name":            {one(named(func(n *pkix.Name) { n.CommonName = "c1 g2" })), []*ca{root}, "subject", nil},
		"no organization":                {one(named(func(n *pkix.Name) { n.Organization = nil })), []*ca{root}, "subject", nil},
		"another unit":                   {one(), []*ca{root}, "subject", func(e *pki.Expect) { e.Subject.OrganizationalUnit = []string{"mesh"} }},
		"another country":                {one(), []*ca{root}, "subject", func(e *pki.Expect) { e.Subject.Country = []string{"DE"} }},
		"no serial number in the name":   {one(), []*ca{root}, "subject", func(e *pki.Expect) { e.Subject.SerialNumber = "7" }},
		"no SKI":                         {one(noSKI), []*ca{root}, "aki", nil},
		"no AKI":                         {one(noAKI), []*ca{root}, "aki", nil},
		"AKI is not the SKI of a root":   {one(otherAKI), []*ca{root}, "aki", nil},
		"AKI is not the SKI of the next": {[]*ca{make_(t, "c1 g1", middle, otherAKI), middle}, []*ca{root}, "aki", nil},
		"URI constraints":                {one(constrainURIs), []*ca{root}, "constraints", nil},
		"URI constraints of the issuer":  {[]*ca{make_(t, "c1 g1", middle), withKey(t, middle.key, "Issuing CA", root, pathLen(1), constrainURIs)}, []*ca{root}, "constraints", nil},
		"URI constraints of the root":    {one(), []*ca{withKey(t, root.key, "Root g1", nil, constrainURIs)}, "constraints", nil},
		"SHA-1":                          {[]*ca{make_(t, "c1 g1", rsaRoot, signature(x509.SHA1WithRSA))}, []*ca{rsaRoot}, "signature", nil},
		"Ed25519 signature":              {[]*ca{make_(t, "c1 g1", edRoot)}, []*ca{edRoot}, "signature", nil},
		"RSA-1024":                       {[]*ca{withKey(t, rsaKey(1024), "c1 g1", root)}, []*ca{root}, "signature", nil},
		"P-521":                          {[]*ca{withKey(t, p521, "c1 g1", root)}, []*ca{root}, "signature", nil},
		"another root":                   {one(), []*ca{other}, "chain", nil},
		"no root":                        {one(), nil, "chain", nil},
		"one between is missing":         {[]*ca{make_(t, "c1 g1", middle)}, []*ca{root}, "chain", nil},
		"a stranger in the chain":        {append(one(), make_(t, "Root g1", nil)), []*ca{root}, "aki", nil},
		"path length of the issuer":      {[]*ca{make_(t, "c1 g1", tight), tight}, []*ca{root}, "pathlen", nil},
		"path length of the root":        {one(), []*ca{withKey(t, root.key, "Root g1", nil, pathLen(0))}, "pathlen", nil},
		"the issuer is no CA":            {[]*ca{make_(t, "c1 g1", middle), withKey(t, middle.key, "Issuing CA", root, leaf, identified(middle))}, []*ca{root}, "ca", nil},
	} {
		t.Run(name, func(t *testing.T) {
			want := pki.Expect{Subject: pkix.Name{CommonName: "c1 g1", Organization: []string{"Bank"}}, Now: now}
			if len(c.chain) > 0 {
				want.PublicKey = c.chain[0].key.Public()
			}
			if c.minus != nil {
				c.minus(&want)
			}
			err := pki.CheckIntermediate(certs(c.chain...), certs(c.roots...), want)
			if got := checkOf(err); got != c.want {
				t.Errorf("refused by %q (%v), want %q", got, err, c.want)
			}
		})
	}
}

// identified gives a certificate that is none of a CA the key identifier that Go gives to CAs only.
func identified(like *ca) fault {
	return func(t, _ *x509.Certificate) { t.SubjectKeyId = like.cert.SubjectKeyId }
}

func TestVerifyPeer(t *testing.T) {
	r1, r2 := make_(t, "Root g1", nil), make_(t, "Root g2", nil)
	x := withKey(t, r2.key, "Root g2", r1, pathLen(1))
	xTight := withKey(t, r2.key, "Root g2", r1, pathLen(0))
	i1, i2 := make_(t, "c1 g1", r1), make_(t, "c1 g2", r2)
	svid := func(issuer *ca, faults ...fault) *ca {
		return make_(t, "", issuer, append([]fault{leaf}, faults...)...)
	}
	chain := func(cs ...*ca) []*ca { return cs }
	for name, c := range map[string]struct {
		chain, roots []*ca
		at           time.Time
		ok           bool
	}{
		"L1 by R1":                      {chain(svid(i1), i1), chain(r1), now, true},
		"L2 by R1":                      {chain(svid(i2), i2), chain(r1), now, false}, // T1
		"L2 by both":                    {chain(svid(i2), i2), chain(r1, r2), now, true},
		"L2 with X by R1":               {chain(svid(i2), i2, x), chain(r1), now, true},
		"L2 with X by R2":               {chain(svid(i2), i2, x), chain(r2), now, true},
		"L2 with X, path length 0":      {chain(svid(i2), i2, xTight), chain(r1), now, false},
		"I2 with X, path length 0":      {chain(i2, xTight), chain(r1), now, false}, // though the way to I2 is right, none to a leaf is
		"I2 with X":                     {chain(i2, x), chain(r1), now, true},
		"I1 itself":                     {chain(i1), chain(r1), now, true},
		"leaf without its intermediate": {chain(svid(i1)), chain(r1), now, false},
		"client usage":                  {chain(svid(i1, eku(x509.ExtKeyUsageClientAuth)), i1), chain(r1), now, true},
		"ended":                         {chain(svid(i1, ends(now.Add(-time.Second))), i1), chain(r1), now, false},
		"no roots":                      {chain(svid(i1), i1), nil, now, false},
		"nothing":                       {nil, chain(r1), now, false},
	} {
		if err := pki.VerifyPeer(certs(c.chain...), certs(c.roots...), c.at); (err == nil) != c.ok {
			t.Errorf("%s: accepted is %v (%v), want %v", name, err == nil, err, c.ok)
		}
	}
}

// signed is a root and an intermediate by the package itself.
func signed(t *testing.T, algorithm pki.KeyAlgorithm) (root, intermediate *ca) {
	t.Helper()
	key, err := pki.GenerateKey(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.NewRoot(key, pki.RootOptions{Subject: pkix.Name{Organization: []string{"Bank"}, CommonName: "Root g1"}, TTL: 1000 * time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	root = &ca{cert, key}
	ikey, err := pki.GenerateKey(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	uri := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/istio-system/sa/istiod"}
	der, err := pki.NewCSR(ikey, pkix.Name{CommonName: "what the cluster says"}, []*url.URL{uri})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	icert, err := pki.SignIntermediate(csr, cert, key, pki.IntermediateOptions{
		Subject: pkix.Name{Organization: []string{"Bank"}, CommonName: "c1 g1"}, URIs: []*url.URL{uri}, TTL: 2000 * time.Hour, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return root, &ca{icert, ikey}
}

// TestSign: what is signed passes our own checks and OpenSSL's, begins early enough for clocks that are behind (T15), and ends with its issuer.
func TestSign(t *testing.T) {
	for _, a := range []pki.KeyAlgorithm{pki.RSA2048, pki.RSA3072, pki.RSA4096, pki.ECDSAP256, pki.ECDSAP384} {
		t.Run(string(a), func(t *testing.T) {
			root, i := signed(t, a)
			err := pki.CheckIntermediate(certs(i), certs(root), pki.Expect{PublicKey: i.key.Public(), Subject: pkix.Name{CommonName: "c1 g1"}, MinTTL: 999 * time.Hour, Now: now})
			if err != nil {
				t.Error(err)
			}
			if pki.AlgorithmOf(i.cert.PublicKey) != a {
				t.Errorf("the key is %s", pki.AlgorithmOf(i.cert.PublicKey))
			}
			c := i.cert
			switch {
			case !c.NotAfter.Equal(root.cert.NotAfter):
				t.Errorf("ends %s, and its issuer %s", c.NotAfter, root.cert.NotAfter)
			case !c.NotBefore.Equal(now.Add(-pki.Backdate)) || !root.cert.NotBefore.Equal(now.Add(-pki.Backdate)):
				t.Errorf("begins %s, the root %s", c.NotBefore, root.cert.NotBefore)
			case !c.IsCA || !c.MaxPathLenZero || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature:
				t.Errorf("CA %v, path length %d, usage %b", c.IsCA, c.MaxPathLen, c.KeyUsage)
			case !bytes.Equal(c.AuthorityKeyId, root.cert.SubjectKeyId) || len(root.cert.SubjectKeyId) != 20:
				t.Errorf("AKI %x, SKI of the root %x", c.AuthorityKeyId, root.cert.SubjectKeyId)
			case root.cert.MaxPathLen != -1:
				t.Errorf("the root's path length is %d", root.cert.MaxPathLen)
			}
			openssl(t, i, root)
		})
	}
}

// openssl verifies by the OpenSSL of the machine.
func openssl(t *testing.T, i, root *ca) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl on this machine: only our own checks were made")
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{"root": pem_(root), "ca": pem_(i), "key": i.keyPEM(t)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := big.NewInt(now.Unix()).String()
	for _, args := range [][]string{
		{"verify", "-x509_strict", "-check_ss_sig", "-attime", at, "-CAfile", "root", "ca"},
		{"pkey", "-in", "key", "-noout", "-check"},
	} {
		cmd := exec.CommandContext(t.Context(), "openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("openssl %v: %v\n%s", args, err, out)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	root, i := signed(t, pki.ECDSAP256)
	other := make_(t, "Root g2", nil)
	der, err := pki.NewCSR(newKey(t), pkix.Name{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	good := pki.IntermediateOptions{Subject: pkix.Name{CommonName: "c2"}, TTL: time.Hour, Now: now}
	if _, err := pki.SignIntermediate(csr, root.cert, root.key, good); err != nil {
		t.Fatal(err)
	}
	late, unnamed, endless := good, good, good
	late.Now, unnamed.Subject, endless.TTL = now.Add(5000*time.Hour), pkix.Name{}, 0
	same := good
	same.Subject = pkix.Name{Organization: []string{"Bank"}, CommonName: "Root g1"}
	for name, sign := range map[string]func() (*x509.Certificate, error){
		"another key": func() (*x509.Certificate, error) { return pki.SignIntermediate(csr, root.cert, other.key, good) },
		"a leaf as issuer": func() (*x509.Certificate, error) {
			l := make_(t, "l", other, leaf)
			return pki.SignIntermediate(csr, l.cert, l.key, good)
		},
		"an intermediate as issuer": func() (*x509.Certificate, error) { return pki.SignIntermediate(csr, i.cert, i.key, good) },
		"an issuer that has ended":  func() (*x509.Certificate, error) { return pki.SignIntermediate(csr, root.cert, root.key, late) },
		"no name":                   func() (*x509.Certificate, error) { return pki.SignIntermediate(csr, root.cert, root.key, unnamed) },
		"no lifetime":               func() (*x509.Certificate, error) { return pki.SignIntermediate(csr, root.cert, root.key, endless) },
		"the issuer's name":         func() (*x509.Certificate, error) { return pki.SignIntermediate(csr, root.cert, root.key, same) },
		"no request":                func() (*x509.Certificate, error) { return pki.SignIntermediate(nil, root.cert, root.key, good) },
		"root without a name": func() (*x509.Certificate, error) {
			return pki.NewRoot(other.key, pki.RootOptions{TTL: time.Hour, Now: now})
		},
		"root of 8000 years": func() (*x509.Certificate, error) {
			return pki.NewRoot(other.key, pki.RootOptions{Subject: pkix.Name{CommonName: "r"}, TTL: 1<<63 - 1, Now: now.AddDate(7900, 0, 0)})
		},
	} {
		if c, err := sign(); err == nil {
			t.Errorf("%s: signed %s", name, c.Subject)
		}
	}
}

func TestCrossSign(t *testing.T) {
	old, tight, none, next := make_(t, "Root g1", nil), make_(t, "Root g1", nil, pathLen(1)), make_(t, "Root g1", nil, pathLen(0)), make_(t, "Root g2", nil)
	two := make_(t, "Root g1", nil, pathLen(2))
	for name, issuer := range map[string]*ca{"no path length": old, "path length 2": two} {
		x, err := pki.CrossSign(next.cert, issuer.cert, issuer.key, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		i := make_(t, "c1 g2", next)
		svid := make_(t, "", i, leaf)
		crossed := &ca{cert: x}
		for _, roots := range [][]*ca{{issuer}, {next}, {issuer, next}} {
			if err := pki.VerifyPeer(certs(svid, i, crossed), certs(roots...), now); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := pki.CheckIntermediate(certs(i, crossed), certs(roots...), pki.Expect{Now: now}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !bytes.Equal(x.SubjectKeyId, next.cert.SubjectKeyId) || !bytes.Equal(x.RawSubject, next.cert.RawSubject) {
			t.Errorf("%s: name or key identifier is not the new root's", name)
		}
	}
	ended := make_(t, "Root g0", nil, ends(now))
	for name, c := range map[string]struct{ subject, issuer, signer *ca }{
		"path length 1": {next, tight, tight}, "path length 0": {next, none, none}, "another key": {next, old, next}, "one name": {make_(t, "Root g1", nil), old, old},
		"a leaf": {make_(t, "l", old, leaf), old, old}, "ended": {next, ended, ended},
	} {
		if _, err := pki.CrossSign(c.subject.cert, c.issuer.cert, c.signer.key, now); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}
