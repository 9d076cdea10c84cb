package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/pki"
)

func TestParseCertificates(t *testing.T) {
	a, b := make_(t, "a", nil), make_(t, "b", nil)
	both := pem_(a, b)
	huge := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bytes.Repeat([]byte{1}, 1<<20)})
	for name, c := range map[string]struct {
		text []byte
		n    int    // certificates; 0: an error
		says string // part of the error: which block it is
	}{
		"two":                   {both, 2, ""},
		"text before":           {append([]byte("Certificate:\n    Data: as openssl x509 -text writes it\n"), both...), 2, ""},
		"Windows line ends":     {bytes.ReplaceAll(both, []byte("\n"), []byte("\r\n")), 2, ""},
		"empty":                 {nil, 0, "no PEM block"},
		"not PEM":               {[]byte("hello"), 0, "no PEM block"},
		"DER":                   {a.cert.Raw, 0, "DER"},
		"text after":            {append(pem_(a), "hello"...), 0, "after PEM block 1"},
		"first damaged":         {append(damaged(pem_(a)), pem_(b)...), 0, "block 1"},
		"second damaged":        {append(pem_(a), damaged(pem_(b))...), 0, "block 2"},
		"cut off":               {both[:len(both)-10], 0, "block 2"},
		"no line break between": {append(bytes.TrimSpace(pem_(a)), pem_(b)...), 0, "block 1"},
		"byte order mark":       {append([]byte("\ufeff"), pem_(a)...), 0, "block 1"},
		"a key":                 {append(pem_(a), a.keyPEM(t)...), 0, "block 2 is a PRIVATE KEY"},
		"rubbish in a block":    {append(pem_(a), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})...), 0, "block 2"},
		"too many":              {bytes.Repeat(pem_(a), 257), 0, "more than 256"},
		"too large":             {huge, 0, "at most"},
	} {
		got, err := pki.ParseCertificates(c.text)
		if (err == nil) != (c.n > 0) || (err == nil && len(got) != c.n) || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %d certificates, %v; want %d, %q", name, len(got), err, c.n, c.says)
		}
	}
	if got, err := pki.ParseCertificates(pki.EncodeCertificates(a.cert, b.cert)); err != nil || !got[0].Equal(a.cert) || !got[1].Equal(b.cert) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestParseKey(t *testing.T) {
	ec := newKey(t).(*ecdsa.PrivateKey)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	sec1, err1 := x509.MarshalECPrivateKey(ec)
	pkcs8, err8 := x509.MarshalPKCS8PrivateKey(ec)
	public, errp := x509.MarshalPKIXPublicKey(ec.Public())
	sealed, errs := pki.SealKey([]byte("k"), make([]byte, pki.WrapKeySize))
	if errs != nil {
		t.Fatal(errs)
	}
	parameters := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	for name, c := range map[string]struct {
		text []byte
		says string // empty: it is a key
	}{
		"SEC 1":                {block("EC PRIVATE KEY", sec1, err1), ""},
		"PKCS#8":               {block("PRIVATE KEY", pkcs8, err8), ""},
		"PKCS#1":               {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs), nil), ""},
		"parameters before":    {append(bytes.Clone(parameters), block("EC PRIVATE KEY", sec1, err1)...), ""},
		"parameters only":      {parameters, "EC PARAMETERS"},
		"public":               {block("PUBLIC KEY", public, errp), "PUBLIC KEY"},
		"certificate":          {pem_(make_(t, "a", nil)), "CERTIFICATE"},
		"encrypted PKCS#8":     {block("ENCRYPTED PRIVATE KEY", pkcs8, nil), "encrypted"},
		"encrypted, old way":   {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: sec1}), "encrypted"},
		"OpenSSH":              {block("OPENSSH PRIVATE KEY", pkcs8, nil), "OpenSSH"},
		"sealed":               {sealed, "sealed"},
		"two keys":             {append(block("PRIVATE KEY", pkcs8, nil), block("PRIVATE KEY", pkcs8, nil)...), "comes after it"},
		"PKCS#8 called PKCS#1": {block("RSA PRIVATE KEY", pkcs8, nil), "private key"},
		"DER":                  {pkcs8, "DER"},
		"empty":                {nil, "no PEM block"},
		"too large":            {bytes.Repeat([]byte("x"), 1<<15), "at most"},
	} {
		key, err := pki.ParseKey(c.text)
		if (err == nil) != (c.says == "") || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if err != nil {
			continue
		}
		text, err := pki.EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := pki.ParseKey(text); err != nil || pki.AlgorithmOf(again.Public()) != pki.AlgorithmOf(key.Public()) || !strings.Contains(string(text), "BEGIN PRIVATE KEY") {
			t.Errorf("%s: encoded it is %s (%v)", name, text, err)
		}
	}
}

func TestGenerateKeyRefuses(t *testing.T) {
	for _, a := range []pki.KeyAlgorithm{"", "RSA", "RSA-1024", "RSA-2049", "RSA-16384", "RSA-2048 ", "RSA-+2048", "rsa-2048", "ECDSA-P224", "Ed25519"} {
		if _, err := pki.GenerateKey(a); err == nil {
			t.Errorf("%q: made", a)
		}
	}
}

// TestParseCSR: whoever sends a request has the key, and computing with it costs little.
func TestParseCSR(t *testing.T) {
	der, err := pki.NewCSR(newKey(t), pkix.Name{CommonName: "c1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := pki.ParseCSR(der); err != nil || r.Subject.CommonName != "c1" {
		t.Errorf("%v, %v", r, err)
	}
	stolen := bytes.Replace(der, []byte("c1"), []byte("c2"), 1)
	for name, text := range map[string][]byte{"changed": stolen, "empty": nil, "cut off": der[:len(der)-1], "PEM": pem_(make_(t, "a", nil)), "too large": make([]byte, 1<<17)} {
		if r, err := pki.ParseCSR(text); err == nil {
			t.Errorf("%s: taken: %v", name, r.Subject)
		}
	}
}

func TestSealKey(t *testing.T) {
	wrap, other := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	key := []byte("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
	sealed, err := pki.SealKey(key, wrap)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pki.OpenKey(sealed, wrap); err != nil || !bytes.Equal(got, key) {
		t.Fatalf("%q, %v", got, err)
	}
	if !pki.IsSealed(sealed) || pki.IsSealed(key) || bytes.Contains(sealed, []byte("PRIVATE KEY")) {
		t.Errorf("%s", sealed)
	}
	if again, _ := pki.SealKey(key, wrap); bytes.Equal(again, sealed) {
		t.Error("two seals are the same: the nonce is not random")
	}
	if _, err := pki.OpenKey(sealed, other); !errors.Is(err, pki.ErrOtherWrapKey) {
		t.Errorf("with another key: %v", err)
	}
	// Whoever changes the header's key id, to have another key tried, is found too.
	renamed := bytes.Replace(sealed, []byte(pki.WrapKeyID(wrap)), []byte(pki.WrapKeyID(other)), 1)
	b, _ := pem.Decode(sealed)
	b.Bytes[len(b.Bytes)-1] ^= 1
	short := *b
	short.Bytes = []byte("x")
	for name, text := range map[string][]byte{
		"changed": pem.EncodeToMemory(b), "short": pem.EncodeToMemory(&short), "renamed": renamed, "not sealed": key, "twice": append(bytes.Clone(sealed), sealed...), "empty": nil,
		"version 2": bytes.Replace(sealed, []byte("Version: 1"), []byte("Version: 2"), 1),
	} {
		if _, err := pki.OpenKey(text, wrap); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := pki.OpenKey(renamed, other); err == nil {
		t.Error("a renamed seal was opened by the other key")
	}
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := pki.SealKey(key, make([]byte, n)); err == nil {
			t.Errorf("a wrapping key of %d bytes is taken", n)
		}
	}
}

func TestVerifyPair(t *testing.T) {
	r1, r2 := make_(t, "Root g1", nil), make_(t, "Root g2", nil)
	with := func(signer *ca, roots ...*ca) files { return istiod(t, signer, nil, roots...) }
	a1, b1, b2 := make_(t, "a g1", r1), make_(t, "b g1", r1), make_(t, "b g2", r2)
	clone := make_(t, "Root g1", nil)
	for name, c := range map[string]struct {
		a, b files
		want []bool // of each problem, whether it is fatal
	}{
		"one root":                     {with(a1, r1), with(b1, r1), nil},
		"both trust both":              {with(a1, r1, r2), with(b2, r1, r2), nil},
		"the page's recipe, T6":        {with(a1, r1), with(b2, r1, r2), []bool{true}}, // b has moved on, a does not know the new root
		"strangers":                    {with(a1, r1), with(b2, r2), []bool{true, true}},
		"one key for both":             {with(a1, r1), with(a1, r1), []bool{false}},
		"other roots of the same name": {with(a1, r1, r2), with(make_(t, "b g1", clone), clone, r1), []bool{true, false}},
		"nothing presented":            {files{}, with(b1, r1), []bool{true}},
	} {
		var got []bool
		for _, p := range pki.VerifyPair(c.a, c.b, "a", "b", now) {
			got = append(got, p.Fatal)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v: %+v", name, got, c.want, pki.VerifyPair(c.a, c.b, "a", "b", now))
		}
	}
	if p := pki.VerifyPair(with(a1, r1), with(b1, r1), "a", "b", end.Add(time.Hour)); len(p) != 2 {
		t.Errorf("when all has ended: %+v", p)
	}
}
