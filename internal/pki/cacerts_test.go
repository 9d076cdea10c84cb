package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/pki"
)

type files = map[string][]byte

// istiod is a cacerts in Istio's layout: signer (with key), what signed it, roots.
func istiod(t testing.TB, signer *ca, between []*ca, roots ...*ca) files {
	t.Helper()
	return files{
		pki.FileCACert: pem_(signer), pki.FileCAKey: signer.keyPEM(t), pki.FileCertChain: pem_(append([]*ca{signer}, between...)...), pki.FileRootCert: pem_(roots...),
	}
}

func (m *maker) tls(signer *ca, roots ...*ca) files {
	return files{pki.FileTLSCert: pem_(signer), pki.FileTLSKey: signer.keyPEM(m.t), pki.FileTLSRoot: pem_(roots...)}
}

// maker makes the cacerts of the cases, when testdata is written anew.
type maker struct {
	t    testing.TB
	root *ca
	ca   *ca
}

// with is the good cacerts, changed.
func (m *maker) with(change func(f files)) files {
	f := istiod(m.t, m.ca, nil, m.root)
	change(f)
	return f
}

func set(name string, text []byte) func(f files) { return func(f files) { f[name] = text } }

// one is a cacerts whose intermediate has faults.
func (m *maker) one(faults ...fault) files {
	return istiod(m.t, make_(m.t, "c1 g1", m.root, faults...), nil, m.root)
}

// under is a cacerts whose root has faults.
func (m *maker) under(faults ...fault) files {
	root := make_(m.t, "Root g1", nil, faults...)
	return istiod(m.t, make_(m.t, "c1 g1", root), nil, root)
}

func (m *maker) rsa(bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

// damaged breaks the base64 of a PEM block.
func damaged(text []byte) []byte {
	return bytes.Replace(text, []byte("-----BEGIN CERTIFICATE-----\nMII"), []byte("-----BEGIN CERTIFICATE-----\nM*I"), 1)
}

// cacertsCases are the directories of testdata/cacerts. Each differs from a good one in exactly one thing.
var cacertsCases = map[string]func(m *maker) files{
	"good":           func(m *maker) files { return m.with(func(files) {}) },
	"good-two-roots": func(m *maker) files { return m.with(set(pki.FileRootCert, pem_(m.root, make_(m.t, "Root g2", nil)))) },
	"good-chain-of-two": func(m *maker) files {
		middle := make_(m.t, "Issuing CA", m.root, pathLen(1))
		return istiod(m.t, make_(m.t, "c1 g1", middle), []*ca{middle}, m.root)
	},
	"good-cross-signed": func(m *maker) files { // I2 and X, trusted by the old root only
		r2 := make_(m.t, "Root g2", nil)
		x := withKey(m.t, r2.key, "Root g2", m.root, pathLen(1))
		return istiod(m.t, make_(m.t, "c1 g2", r2), []*ca{x}, m.root)
	},
	"good-rsa": func(m *maker) files {
		root := withKey(m.t, m.rsa(3072), "Root g1", nil)
		return istiod(m.t, withKey(m.t, m.rsa(2048), "c1 g1", root), nil, root)
	},
	"good-sec1": func(m *maker) files {
		return m.with(func(f files) {
			der, err := x509.MarshalECPrivateKey(m.ca.key.(*ecdsa.PrivateKey))
			if err != nil {
				m.t.Fatal(err)
			}
			f[pki.FileCAKey] = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
		})
	},
	"good-eku-both":           func(m *maker) files { return m.one(eku(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)) },
	"good-root-also-in-chain": func(m *maker) files { return m.with(set(pki.FileCertChain, pem_(m.ca, m.root))) },
	"good-crl": func(m *maker) files {
		return m.with(set(pki.FileCRL, append(m.root.crl(m.t, end), m.ca.crl(m.t, end)...)))
	},
	"good-crl-revokes-another": func(m *maker) files { // as every other cluster has it when one was revoked
		return m.with(set(pki.FileCRL, append(m.root.crl(m.t, end, make_(m.t, "c2 g1", m.root)), m.ca.crl(m.t, end)...)))
	},

	"empty":         func(*maker) files { return files{} },
	"page-names":    func(m *maker) files { return files{"root-ca.crt": pem_(m.root), "ca.pem": pem_(m.ca)} },
	"no-key":        func(m *maker) files { return m.with(func(f files) { delete(f, pki.FileCAKey) }) },
	"no-chain-file": func(m *maker) files { return m.with(func(f files) { delete(f, pki.FileCertChain) }) },
	"no-root":       func(m *maker) files { return m.with(func(f files) { delete(f, pki.FileRootCert) }) },
	"no-cert":       func(m *maker) files { return m.with(func(f files) { delete(f, pki.FileCACert) }) },

	"cert-not-pem":   func(m *maker) files { return m.with(set(pki.FileCACert, m.ca.cert.Raw)) },
	"cert-is-a-key":  func(m *maker) files { return m.with(set(pki.FileCACert, m.ca.keyPEM(m.t))) },
	"key-not-pem":    func(m *maker) files { return m.with(set(pki.FileCAKey, []byte("secret"))) },
	"key-of-another": func(m *maker) files { return m.with(set(pki.FileCAKey, m.root.keyPEM(m.t))) },
	"key-encrypted": func(m *maker) files {
		return m.with(set(pki.FileCAKey, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})))
	},
	"key-ec-parameters": func(m *maker) files {
		return m.with(func(f files) {
			f[pki.FileCAKey] = append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), f[pki.FileCAKey]...)
		})
	},
	"roots-before-cert": func(m *maker) files {
		return m.with(set(pki.FileCACert, pem_(m.root, make_(m.t, "Root g2", nil), m.ca)))
	}, // the operators' page (T6)
	"roots-after-cert": func(m *maker) files { return m.with(set(pki.FileCACert, pem_(m.ca, m.root))) },
	"not-a-ca":         func(m *maker) files { return m.one(leaf) },
	"another-root":     func(m *maker) files { return m.with(set(pki.FileRootCert, pem_(make_(m.t, "Root g2", nil)))) },
	"root-empty":       func(m *maker) files { return m.with(set(pki.FileRootCert, nil)) },
	"root-damaged": func(m *maker) files {
		return m.with(set(pki.FileRootCert, append(damaged(pem_(make_(m.t, "Root g2", nil))), pem_(m.root)...)))
	},
	"cert-expired":         func(m *maker) files { return m.one(ends(begin.AddDate(1, 0, 0))) },
	"cert-not-begun":       func(m *maker) files { return m.one(begins(end.AddDate(-1, 0, 0))) },
	"eku-without-server":   func(m *maker) files { return m.one(eku(x509.ExtKeyUsageClientAuth)) },
	"eku-without-client":   func(m *maker) files { return m.one(eku(x509.ExtKeyUsageServerAuth)) },
	"root-eku":             func(m *maker) files { return m.under(eku(x509.ExtKeyUsageCodeSigning)) },
	"usage-no-certsign":    func(m *maker) files { return m.one(usage(x509.KeyUsageCRLSign)) },
	"usage-no-crlsign":     func(m *maker) files { return m.one(usage(x509.KeyUsageCertSign)) },
	"no-aki":               func(m *maker) files { return m.one(noAKI) },
	"other-aki":            func(m *maker) files { return m.one(otherAKI) },
	"no-ski":               func(m *maker) files { return m.one(noSKI) },
	"uri-constraints":      func(m *maker) files { return m.one(constrainURIs) },
	"root-uri-constraints": func(m *maker) files { return m.under(constrainURIs) },
	"sha1": func(m *maker) files {
		root := withKey(m.t, m.rsa(2048), "Root g1", nil)
		return istiod(m.t, make_(m.t, "c1 g1", root, signature(x509.SHA1WithRSA)), nil, root)
	},
	"rsa-1024":         func(m *maker) files { return istiod(m.t, withKey(m.t, m.rsa(1024), "c1 g1", m.root), nil, m.root) },
	"root-path-length": func(m *maker) files { return m.under(pathLen(0)) },
	"path-length": func(m *maker) files { // room for the intermediate, none for what it signs
		middle := make_(m.t, "Issuing CA", m.root, pathLen(0))
		return istiod(m.t, make_(m.t, "c1 g1", middle), []*ca{middle}, m.root)
	},
	"outlives-root":   func(m *maker) files { return m.under(ends(end.AddDate(-1, 0, 0))) },
	"signs-with-root": func(m *maker) files { return istiod(m.t, m.root, nil, m.root) },

	"chain-empty":     func(m *maker) files { return m.with(set(pki.FileCertChain, nil)) },
	"chain-root-only": func(m *maker) files { return m.with(set(pki.FileCertChain, pem_(m.root))) },
	"chain-order": func(m *maker) files {
		middle := make_(m.t, "Issuing CA", m.root, pathLen(1))
		signer := make_(m.t, "c1 g1", middle)
		f := istiod(m.t, signer, nil, m.root)
		f[pki.FileCertChain] = pem_(middle, signer)
		return f
	},
	"chain-incomplete": func(m *maker) files {
		return istiod(m.t, make_(m.t, "c1 g1", make_(m.t, "Issuing CA", m.root, pathLen(1))), nil, m.root)
	},
	"chain-rubbish": func(m *maker) files { return m.with(set(pki.FileCertChain, append(pem_(m.ca), "-----BEGIN"...))) },

	"second-root-expired": func(m *maker) files {
		return m.with(set(pki.FileRootCert, pem_(m.root, make_(m.t, "Root g0", nil, ends(begin.AddDate(2, 0, 0))))))
	},
	"second-root-not-begun": func(m *maker) files {
		return m.with(set(pki.FileRootCert, pem_(m.root, make_(m.t, "Root g2", nil, begins(end.AddDate(-1, 0, 0))))))
	},
	"second-root-no-ca": func(m *maker) files {
		return m.with(set(pki.FileRootCert, pem_(m.root, make_(m.t, "a server", nil, leaf))))
	},
	"root-twice":      func(m *maker) files { return m.with(set(pki.FileRootCert, pem_(m.root, m.root))) },
	"roots-same-name": func(m *maker) files { return m.with(set(pki.FileRootCert, pem_(m.root, make_(m.t, "Root g1", nil)))) },
	"roots-same-name-no-aki": func(m *maker) files {
		f := m.one(noAKI)
		f[pki.FileRootCert] = append(f[pki.FileRootCert], pem_(make_(m.t, "Root g1", nil))...)
		return f
	},
	"intermediate-as-root": func(m *maker) files { return m.with(set(pki.FileRootCert, pem_(m.ca))) },

	"root-key-beside": func(m *maker) files { return m.with(set("root-key.pem", m.root.keyPEM(m.t))) },
	"key-in-root-cert": func(m *maker) files {
		return m.with(set(pki.FileRootCert, append(m.root.keyPEM(m.t), pem_(m.root)...)))
	},
	"key-in-cert-chain": func(m *maker) files { return m.with(set(pki.FileCertChain, append(pem_(m.ca), m.ca.keyPEM(m.t)...))) },
	"istio-generated":   func(m *maker) files { return m.with(set("istio-generated", nil)) },

	"crl-without-intermediate": func(m *maker) files { return m.with(set(pki.FileCRL, m.root.crl(m.t, end))) },
	"crl-without-root":         func(m *maker) files { return m.with(set(pki.FileCRL, m.ca.crl(m.t, end))) },
	"crl-not-pem":              func(m *maker) files { return m.with(set(pki.FileCRL, []byte("no list"))) },
	"crl-is-a-certificate":     func(m *maker) files { return m.with(set(pki.FileCRL, pem_(m.root))) },
	"crl-empty-file":           func(m *maker) files { return m.with(set(pki.FileCRL, nil)) },
	"crl-ended": func(m *maker) files {
		return m.with(set(pki.FileCRL, append(m.root.crl(m.t, begin.AddDate(1, 0, 0)), m.ca.crl(m.t, end)...)))
	},
	"crl-revokes-signer": func(m *maker) files {
		return m.with(set(pki.FileCRL, append(m.root.crl(m.t, end, m.ca), m.ca.crl(m.t, end)...)))
	},
	"crl-forged": func(m *maker) files { // another CA of the root's name
		return m.with(set(pki.FileCRL, append(make_(m.t, "Root g1", nil).crl(m.t, end), m.ca.crl(m.t, end)...)))
	},

	"tls":         func(m *maker) files { return m.tls(m.ca, m.root) },
	"tls-no-root": func(m *maker) files { f := m.tls(m.ca, m.root); delete(f, pki.FileTLSRoot); return f },
	"tls-no-key":  func(m *maker) files { f := m.tls(m.ca, m.root); delete(f, pki.FileTLSKey); return f },
	"tls-no-newline": func(m *maker) files {
		f := m.tls(m.ca, m.root)
		f[pki.FileTLSCert] = bytes.TrimSpace(f[pki.FileTLSCert])
		return f
	},
	"tls-crl": func(m *maker) files { f := m.tls(m.ca, m.root); f[pki.FileCRL] = m.root.crl(m.t, end); return f },
	"both-layouts": func(m *maker) files { // Istio's is good, and tls.crt wins
		other := make_(m.t, "Root g2", nil)
		f := m.with(func(files) {})
		maps.Copy(f, m.tls(make_(m.t, "c1 g2", other), m.root))
		return f
	},
	"tls-key-without-cert": func(m *maker) files { return m.with(set(pki.FileTLSRoot, pem_(m.root))) },
}

// TestVerifyCACerts judges each directory of testdata/cacerts, and finds exactly what want.json says. lab/istio/pkicheck asks istiod's own code about the same directories.
// UPDATE=1 makes the certificates anew and writes down what is found: read the difference.
func TestVerifyCACerts(t *testing.T) {
	if os.Getenv("UPDATE") != "" {
		writeCases(t)
	}
	for name := range cacertsCases {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata", "cacerts", name)
			raw, err := os.ReadFile(filepath.Join(dir, "want.json"))
			if err != nil {
				t.Fatal(err)
			}
			var want []pki.Problem
			if err := json.Unmarshal(raw, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, pki.VerifyCACerts(readCase(t, dir), now)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	entries, err := os.ReadDir(filepath.Join("testdata", "cacerts"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if cacertsCases[e.Name()] == nil {
			t.Errorf("testdata/cacerts/%s belongs to no case", e.Name())
		}
	}
}

// readCase reads the files directory: Git keeps no empty one, so it may be absent.
func readCase(t testing.TB, dir string) files {
	t.Helper()
	out := files{}
	entries, err := os.ReadDir(filepath.Join(dir, "files"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if out[e.Name()], err = os.ReadFile(filepath.Join(dir, "files", e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func writeCases(t *testing.T) {
	root := make_(t, "Root g1", nil)
	m := &maker{t: t, root: root, ca: make_(t, "c1 g1", root)}
	for _, name := range slices.Sorted(maps.Keys(cacertsCases)) {
		dir := filepath.Join("testdata", "cacerts", name)
		if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
			t.Fatal(err)
		}
		f := cacertsCases[name](m)
		for file, text := range f {
			if err := os.WriteFile(filepath.Join(dir, "files", file), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := json.MarshalIndent(pki.VerifyCACerts(f, now), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "want.json"), append(raw, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVerifyCACertsSoon: what ends soon, which testdata can't hold.
func TestVerifyCACertsSoon(t *testing.T) {
	root := make_(t, "Root g1", nil)
	short := make_(t, "Root g1", nil, ends(now.Add(89*24*time.Hour)))
	for name, c := range map[string]struct {
		files files
		want  []string // files with a problem
	}{
		"intermediate with 49 hours": {istiod(t, make_(t, "c1", root, ends(now.Add(49*time.Hour))), nil, root), nil},
		"intermediate with 47 hours": {istiod(t, make_(t, "c1", root, ends(now.Add(47*time.Hour))), nil, root), []string{pki.FileCACert}},
		"root with 89 days":          {istiod(t, make_(t, "c1", short, ends(now.Add(60*24*time.Hour))), nil, short), []string{pki.FileRootCert}},
	} {
		var got []string
		for _, p := range pki.VerifyCACerts(c.files, now) {
			got = append(got, p.File)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
}
