package pki_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"ambitmesh.dev/ambit/internal/pki"
)

// What parses foreign bytes must not panic, and what it takes must come back the same.

// seeds adds every file of testdata/cacerts.
func seeds(f *testing.F) {
	f.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "cacerts", "*", "files", "*"))
	if err != nil || len(paths) == 0 {
		f.Fatal("no testdata", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
}

func FuzzParseCertificates(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := pki.ParseCertificates(text)
		if err != nil {
			return
		}
		again, err := pki.ParseCertificates(pki.EncodeCertificates(got...))
		if err != nil || len(again) != len(got) || len(got) == 0 {
			t.Fatalf("%d certificates, encoded and read again %d: %v", len(got), len(again), err)
		}
		_ = pki.CheckIntermediate(got, got, pki.Expect{Now: now})
	})
}

func FuzzParseKey(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := pki.ParseKey(text)
		if err != nil {
			return
		}
		encoded, err := pki.EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		again, err := pki.ParseKey(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := pki.EncodeKey(again); err != nil || !bytes.Equal(twice, encoded) {
			t.Fatalf("encoded twice, %v:\n%s\n%s", err, encoded, twice)
		}
	})
}

func FuzzParseCSR(f *testing.F) {
	for _, a := range []pki.KeyAlgorithm{pki.RSA2048, pki.ECDSAP256} {
		key, err := pki.GenerateKey(a)
		if err != nil {
			f.Fatal(err)
		}
		der, err := pki.NewCSR(key, make_(f, "c1", nil).cert.Subject, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	root := make_(f, "Root g1", nil)
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := pki.ParseCSR(der)
		if err != nil {
			return
		}
		_, _ = pki.SignIntermediate(csr, root.cert, root.key, pki.IntermediateOptions{Subject: csr.Subject, TTL: 1, Now: now})
	})
}

// FuzzVerifyCACerts: whatever is in the files, there is a verdict; and what it calls good, Presented can read.
func FuzzVerifyCACerts(f *testing.F) {
	paths, err := filepath.Glob(filepath.Join("testdata", "cacerts", "*"))
	if err != nil {
		f.Fatal(err)
	}
	for _, dir := range paths {
		c := readCase(f, dir)
		if _, ok := c[pki.FileTLSCert]; ok {
			f.Add(true, c[pki.FileTLSCert], c[pki.FileTLSKey], []byte{}, c[pki.FileTLSRoot], c[pki.FileCRL])
		} else {
			f.Add(false, c[pki.FileCACert], c[pki.FileCAKey], c[pki.FileCertChain], c[pki.FileRootCert], c[pki.FileCRL])
		}
	}
	f.Fuzz(func(t *testing.T, tls bool, cert, key, chain, root, crl []byte) {
		c := files{pki.FileCACert: cert, pki.FileCAKey: key, pki.FileCertChain: chain, pki.FileRootCert: root}
		if tls {
			c = files{pki.FileTLSCert: cert, pki.FileTLSKey: key, pki.FileTLSRoot: root}
		}
		if len(crl) > 0 {
			c[pki.FileCRL] = crl
		}
		problems := pki.VerifyCACerts(c, now)
		if _, _, err := pki.Presented(c); err != nil && len(problems) == 0 {
			t.Fatalf("no problem, and %v", err)
		}
		for _, p := range problems {
			if p.Message == "" {
				t.Fatalf("a problem without words: %+v", problems)
			}
		}
		_ = pki.VerifyPair(c, c, "a", "b", now)
	})
}

func FuzzCRL(f *testing.F) {
	seeds(f)
	root := make_(f, "Root g1", nil)
	f.Add(root.crl(f, end, root))
	f.Fuzz(func(t *testing.T, text []byte) {
		lists, err := pki.ParseCRLs(text)
		if err == nil && len(lists) == 0 {
			t.Fatal("no list and no error")
		}
		_ = pki.CheckCRL(text, certs(root), certs(root), now)
	})
}

func FuzzOpenKey(f *testing.F) {
	wrap := bytes.Repeat([]byte{7}, 32)
	sealed, err := pki.SealKey([]byte("key"), wrap)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, text []byte) {
		if key, err := pki.OpenKey(text, wrap); err == nil && string(key) != "key" {
			t.Fatalf("opened something that was not sealed: %q", key)
		}
	})
}
