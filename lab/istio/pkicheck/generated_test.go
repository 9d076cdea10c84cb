package pkicheck

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	pkica "istio.io/istio/security/pkg/pki/ca"
	pkiutil "istio.io/istio/security/pkg/pki/util"
)

// TestGenerated: istiod's own CA loads what meshctl pki gen-intermediate writes, takes it over while it runs from another intermediate of the same root, and signs workload
// certificates that a peer under the same root accepts with what they present, and that OpenSSL accepts.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	meshctl := filepath.Join(dir, "meshctl")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", meshctl, "./cmd/meshctl")
	build.Dir = filepath.Join("..", "..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), meshctl, append([]string{"pki"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("meshctl pki %v: %v\n%s", args, err, out)
		}
	}
	for _, key := range []string{"RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384"} {
		t.Run(key, func(t *testing.T) {
			run("gen-root", "--out", key+"/root", "--key", key)
			run("gen-intermediate", "c1", "c2", "--root", key+"/root", "--out", key, "--key", key)
			issue(t, filepath.Join(dir, key))
		})
	}
}

func bundleOf(dir string) pkica.SigningCAFileBundle {
	at := func(name string) string { return filepath.Join(dir, name) }
	return pkica.SigningCAFileBundle{
		RootCertFile: at(pkica.RootCertFile), CertChainFiles: []string{at(pkica.CertChainFile)}, SigningCertFile: at(pkica.CACertFile), SigningKeyFile: at(pkica.CAPrivateKeyFile),
	}
}

// issue has istiod's CA sign with c1's intermediate and, after a reload, with c2's.
func issue(t *testing.T, dir string) {
	t.Helper()
	opts, err := pkica.NewPluggedCertIstioCAOptions(bundleOf(filepath.Join(dir, "c1")), time.Hour, 24*time.Hour, 2048)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := pkica.NewIstioCA(opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, cluster := range []string{"c1", "c2"} {
		b := bundleOf(filepath.Join(dir, cluster))
		if err := authority.GetCAKeyCertBundle().UpdateVerifiedKeyCertBundleFromFile(b.SigningCertFile, b.SigningKeyFile, b.CertChainFiles, b.RootCertFile, ""); err != nil {
			t.Fatalf("%s: reload: %v", cluster, err)
		}
		csr, _, err := pkiutil.GenCSR(pkiutil.CertOptions{ECSigAlg: pkiutil.EcdsaSigAlg})
		if err != nil {
			t.Fatal(err)
		}
		id := "spiffe://cluster.local/ns/billing/sa/billing"
		leaf, err := authority.Sign(csr, pkica.CertOpts{SubjectIDs: []string{id}, TTL: time.Hour})
		if err != nil {
			t.Fatalf("%s: sign: %v", cluster, err)
		}
		accepted(t, leaf, authority.GetCAKeyCertBundle().GetCertChainPem(), filepath.Join(dir, "root", "root-cert.pem"), id)
	}
}

// accepted verifies a workload's certificate with the chain that it presents, as a peer that trusts the root.
func accepted(t *testing.T, leaf, chain []byte, rootFile, id string) {
	t.Helper()
	rootPEM, err := os.ReadFile(rootFile)
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	between.AppendCertsFromPEM(chain)
	block, _ := pem.Decode(leaf)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if cert.URIs[0].String() != id {
		t.Errorf("SAN %v", cert.URIs)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Log("no openssl on this machine: only Go has verified")
		return
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{"leaf": leaf, "chain": chain} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-CAfile", rootFile, "-untrusted", filepath.Join(dir, "chain"), filepath.Join(dir, "leaf"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}
