package cli

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/test/kubetest"
)

// pkiRun runs a verb of `pki` without a kubeconfig.
func pkiRun(t *testing.T, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := Run(t.Context(), append([]string{"pki", "--kubeconfig", "/does/not/exist"}, args...), Streams{Out: &out, Err: &errs})
	t.Logf("meshctl pki %s: exit %d\n%s%s", strings.Join(args, " "), code, &out, &errs)
	return result{code, out.String(), errs.String()}
}

// must runs a verb that has to succeed.
func pkiMust(t *testing.T, args ...string) result {
	t.Helper()
	r := pkiRun(t, args...)
	if r.code != ExitOK {
		t.Fatalf("exit %d: %s", r.code, r.err)
	}
	return r
}

// contents reads a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		raw, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// private checks that nobody but the owner may read a folder and what is in it.
func private(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"."}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	for _, name := range all {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %s, %v", filepath.Join(dir, name), info.Mode(), err)
		}
	}
}

func names(files map[string]string) []string {
	var out []string
	for n := range files {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// TestPKIPage: what the operators' page does with scripts, and what it can't: two clusters that trust each other, under one root.
func TestPKIPage(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "safe", "root-ca-2026Q2")
	pkiMust(t, "gen-root", "--out", root, "--key", "ECDSA-P384", "--org", "Bank", "--ttl", "15y")
	if diff := cmp.Diff([]string{"root-cert.pem", "root-key.pem"}, names(contents(t, root))); diff != "" {
		t.Fatal(diff)
	}
	one := filepath.Join(dir, "prod-eu-west-3-cacerts")
	pkiMust(t, "gen-intermediate", "prod-eu-west-3", "--root-ca-cert", filepath.Join(root, "root-cert.pem"), "--root-ca-key", filepath.Join(root, "root-key.pem"), "--out", one)
	if diff := cmp.Diff([]string{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"}, names(contents(t, one))); diff != "" {
		t.Fatal(diff)
	}
	private(t, root)
	private(t, one)
	many := filepath.Join(dir, "tmp")
	pkiMust(t, "gen-intermediate", "cluster-1", "cluster-2", "--root", root, "--out", many, "--key", "RSA-3072", "--ttl", "730d")
	pkiMust(t, "verify", one, "--against", filepath.Join(many, "cluster-2"))
	pkiMust(t, "verify", filepath.Join(many, "cluster-1"), "--against", filepath.Join(many, "cluster-2"))

	certs, err := pki.ParseCertificates([]byte(contents(t, one)["ca-cert.pem"]))
	if err != nil {
		t.Fatal(err)
	}
	c := certs[0]
	if c.URIs[0].String() != "spiffe://cluster.local/ns/istio-system/sa/istiod" || !strings.HasPrefix(c.Subject.CommonName, "prod-eu-west-3 Intermediate CA ") || !c.MaxPathLenZero {
		t.Errorf("%s, %v", c.Subject, c.URIs)
	}
}

// TestPKIDualTrust: with --trust, clusters under two roots accept each other, which without it they do not.
func TestPKIDualTrust(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	pkiMust(t, "gen-root", "--out", at("r1"), "--key", "ECDSA-P256")
	pkiMust(t, "gen-root", "--out", at("r2"), "--key", "ECDSA-P256")
	pkiMust(t, "gen-intermediate", "c1", "--root", at("r1"), "--out", at("c1"))
	pkiMust(t, "gen-intermediate", "c2", "--root", at("r2"), "--out", at("c2"))
	if r := pkiRun(t, "verify", at("c1"), "--against", at("c2")); r.code != ExitFailed || strings.Count(r.out, "refuses the workloads of") != 2 {
		t.Errorf("exit %d: %s", r.code, r.out)
	}
	pkiMust(t, "gen-intermediate", "c1", "--root", at("r1"), "--out", at("d1"), "--trust", at("r2/root-cert.pem"))
	pkiMust(t, "gen-intermediate", "c2", "--root", at("r2"), "--out", at("d2"), "--trust", at("r1/root-cert.pem"), "--trust", at("r1/root-cert.pem"))
	pkiMust(t, "verify", at("d1"), "--against", at("d2"))

	// The root that signs comes first: istiod's metric of expiry shows the first only.
	roots, err := pki.ParseCertificates([]byte(contents(t, at("d2"))["root-cert.pem"]))
	signer, err2 := pki.ParseCertificates([]byte(contents(t, at("d2"))["ca-cert.pem"]))
	if err != nil || err2 != nil || len(roots) != 2 || signer[0].CheckSignatureFrom(roots[0]) != nil {
		t.Errorf("%d roots, %v, %v", len(roots), err, err2)
	}

	// A rotation: the bundle of both roots is there before the new intermediate, which leaves it as it is to the byte, whichever root signs.
	both := contents(t, at("r1"))["root-cert.pem"] + contents(t, at("r2"))["root-cert.pem"]
	if err := os.WriteFile(at("both.pem"), []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{"r1", "r2"} {
		pkiMust(t, "gen-intermediate", "c1", "--root", at(root), "--out", at("by-"+root), "--trust", at("both.pem"))
		if contents(t, at("by-"+root))["root-cert.pem"] != both {
			t.Errorf("signed by %s: the bundle is another one", root)
		}
	}
	pkiMust(t, "verify", at("by-r1"), "--against", at("by-r2"))
}

// TestPKIWritesAllOrNothing: nothing is overwritten unless asked, and a refusal or a failure leaves every file as it was.
func TestPKIWritesAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	root, out := filepath.Join(dir, "root"), filepath.Join(dir, "out")
	pkiMust(t, "gen-root", "--out", root, "--key", "ECDSA-P256")
	before := contents(t, root)
	if r := pkiRun(t, "gen-root", "--out", root); r.code != ExitUsage || !strings.Contains(r.err, "--force") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if diff := cmp.Diff(before, contents(t, root)); diff != "" {
		t.Errorf("overwritten: %s", diff)
	}
	pkiMust(t, "gen-root", "--out", root, "--key", "ECDSA-P256", "--force")
	after := contents(t, root)
	if cmp.Equal(before, after) || len(after) != 2 {
		t.Errorf("--force: %v", names(after))
	}

	// One of three clusters has files already: none is written.
	pkiMust(t, "gen-intermediate", "c2", "--root", root, "--out", filepath.Join(out, "c2"))
	before = contents(t, out)
	if r := pkiRun(t, "gen-intermediate", "c1", "c2", "c3", "--root", root, "--out", out); r.code != ExitUsage {
		t.Errorf("exit %d", r.code)
	}
	if diff := cmp.Diff(before, contents(t, out)); diff != "" {
		t.Error(diff)
	}

	// A failure in the middle: the last file can't be replaced, because a directory is there. What was replaced before it comes back.
	blocked := filepath.Join(out, "c2", "root-cert.pem")
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(blocked, "in-the-way"), 0o700); err != nil {
		t.Fatal(err)
	}
	before = contents(t, out)
	if r := pkiRun(t, "gen-intermediate", "c2", "--root", root, "--out", filepath.Join(out, "c2"), "--force"); r.code != ExitFailed {
		t.Errorf("exit %d", r.code)
	}
	if diff := cmp.Diff(before, contents(t, out)); diff != "" {
		t.Errorf("half-written: %s", diff)
	}
}

func TestPKIRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	pkiMust(t, "gen-root", "--out", at("root"), "--key", "ECDSA-P256")
	pkiMust(t, "gen-root", "--out", at("other"), "--key", "ECDSA-P256")
	before := names(contents(t, dir))
	for name, args := range map[string][]string{
		"no out":              {"gen-root"},
		"key algorithm":       {"gen-root", "--out", at("x"), "--key", "RSA-1024"},
		"lifetime":            {"gen-root", "--out", at("x"), "--ttl", "0d"},
		"lifetime of ages":    {"gen-root", "--out", at("x"), "--ttl", "101y"},
		"lifetime overflows":  {"gen-root", "--out", at("x"), "--ttl", "99999999999999d"},
		"lifetime of words":   {"gen-root", "--out", at("x"), "--ttl", "soon"},
		"no lifetime":         {"gen-root", "--out", at("x"), "--ttl", ""},
		"name too long":       {"gen-root", "--out", at("x"), "--common-name", strings.Repeat("x", 60)},
		"an argument":         {"gen-root", "x", "--out", at("x")},
		"format":              {"gen-root", "--out", at("x"), "-o", "wide"},
		"no cluster":          {"gen-intermediate", "--root", at("root"), "--out", at("x")},
		"a path as cluster":   {"gen-intermediate", "../x", "--root", at("root"), "--out", at("x")},
		"one cluster twice":   {"gen-intermediate", "a", "a", "--root", at("root"), "--out", at("x")},
		"no root":             {"gen-intermediate", "a", "--out", at("x")},
		"two roots":           {"gen-intermediate", "a", "--root", at("root"), "--root-ca-cert", at("root/root-cert.pem"), "--out", at("x")},
		"root is not there":   {"gen-intermediate", "a", "--root", at("nowhere"), "--out", at("x")},
		"another root's key":  {"gen-intermediate", "a", "--root-ca-cert", at("root/root-cert.pem"), "--root-ca-key", at("other/root-key.pem"), "--out", at("x")},
		"nowhere to write":    {"gen-intermediate", "a", "--root", at("root")},
		"Secret of two":       {"gen-intermediate", "a", "b", "--root", at("root"), "--secret"},
		"Secret as JSON":      {"gen-intermediate", "a", "--root", at("root"), "--secret", "-o", "json"},
		"trust domain":        {"gen-intermediate", "a", "--root", at("root"), "--out", at("x"), "--trust-domain", "spiffe://a"},
		"trusts what is none": {"gen-intermediate", "a", "--root", at("root"), "--out", at("x"), "--trust", at("other/root-key.pem")},
		"verify what":         {"verify"},
		"verify two":          {"verify", at("root"), at("other")},
		"verify two sources":  {"verify", at("root"), "-f", at("x")},
		"verify nothing":      {"verify", at("nowhere")},
		"against nothing":     {"verify", at("root"), "--against", at("nowhere")},
		"verify a lost file":  {"verify", "-f", at("nowhere")},
	} {
		if r := pkiRun(t, args...); r.code != ExitUsage || r.err == "" || strings.Contains(r.out+r.err, "PRIVATE KEY-----") {
			t.Errorf("%s: exit %d: %s", name, r.code, r.err)
		}
	}
	if diff := cmp.Diff(before, names(contents(t, dir))); diff != "" {
		t.Errorf("something was written: %s", diff)
	}
}

// TestPKISecret: the manifest is what the API server takes, and verify reads it back, from a file and from the cluster.
func TestPKISecret(t *testing.T) {
	dir := t.TempDir()
	root, file := filepath.Join(dir, "root"), filepath.Join(dir, "secret.yaml")
	pkiMust(t, "gen-root", "--out", root, "--key", "ECDSA-P256")
	w := newWorld(t)
	live := func(args ...string) result {
		return w.meshctl(append([]string{"pki", "verify", "--context", "mgmt", "--istio-namespace", w.ns}, args...)...)
	}
	if r := live(); r.code != ExitUsage || !strings.Contains(r.err, "root of its own") {
		t.Errorf("no Secret: exit %d: %s", r.code, r.err)
	}
	r := pkiMust(t, "gen-intermediate", "c1", "--root", root, "--secret", "--istio-namespace", w.ns)
	if err := os.WriteFile(file, []byte(r.out), 0o600); err != nil {
		t.Fatal(err)
	}
	pkiMust(t, "verify", "-f", file)
	var s corev1.Secret
	if err := yaml.UnmarshalStrict([]byte(r.out), &s); err != nil {
		t.Fatal(err)
	}
	if s.Name != "cacerts" || s.Namespace != w.ns || s.Type != corev1.SecretTypeOpaque || len(s.Data) != 4 {
		t.Errorf("%s/%s, %s, %d keys", s.Namespace, s.Name, s.Type, len(s.Data))
	}
	w.must(kubetest.Client(t, w.mgmtCfg).Create(t.Context(), &s))
	if r := live(); r.code != ExitOK {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	// The page's recipe: the old root and the new one into ca-cert.pem.
	s.Data["ca-cert.pem"] = append(slices.Clone(s.Data["root-cert.pem"]), s.Data["ca-cert.pem"]...)
	w.must(w.mgmt.Update(t.Context(), &s))
	r = live("-o", "json")
	var report verifyReport
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		t.Fatal(err)
	}
	if r.code != ExitFailed || report.OK || report.Loads || report.Problems[0].File != "ca-cert.pem" || !strings.Contains(report.Problems[0].Fix, "root-cert.pem") {
		t.Errorf("exit %d: %+v", r.code, report)
	}
	if strings.Contains(r.out, "PRIVATE") {
		t.Error("a key was printed")
	}
	w.must(client.IgnoreNotFound(w.mgmt.Delete(t.Context(), &s)))
}

// TestPKIVerifyGiven: the exit code and JSON of directories with and without a fault; a mounted Secret's links are followed.
func TestPKIVerifyGiven(t *testing.T) {
	given := func(name string) string { return filepath.Join("..", "pki", "testdata", "cacerts", name, "files") }
	for name, want := range map[string]int{"good": ExitOK, "good-two-roots": ExitOK, "chain-empty": ExitFailed, "key-of-another": ExitFailed, "tls": ExitFailed, "page-names": ExitFailed} {
		r := pkiRun(t, "verify", given(name), "-o", "json")
		var report verifyReport
		if err := json.Unmarshal([]byte(r.out), &report); err != nil {
			t.Fatal(err)
		}
		if r.code != want || report.OK != (want == ExitOK) || report.Problems == nil {
			t.Errorf("%s: exit %d, %+v", name, r.code, report)
		}
	}
	mount := t.TempDir()
	if err := os.Mkdir(filepath.Join(mount, "..2026"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range contents(t, given("good")) {
		path := filepath.Join(mount, "..2026", name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..2026", name), filepath.Join(mount, name)); err != nil {
			t.Fatal(err)
		}
	}
	pkiMust(t, "verify", mount)
	if err := os.WriteFile(filepath.Join(mount, "dump"), make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := pkiRun(t, "verify", mount); r.code != ExitUsage {
		t.Errorf("a large file: exit %d", r.code)
	}
}

// TestPKIRootEndsFirst: an intermediate does not outlive its root.
func TestPKIRootEndsFirst(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	pkiMust(t, "gen-root", "--out", root, "--key", "ECDSA-P256", "--ttl", "72h")
	r := pkiMust(t, "gen-intermediate", "c1", "--root", root, "--out", filepath.Join(dir, "c1"), "-o", "json")
	var made []generated
	if err := json.Unmarshal([]byte(r.out), &made); err != nil {
		t.Fatal(err)
	}
	ends, err := time.Parse(time.RFC3339, made[0].Certificates[0].NotAfter)
	if err != nil || time.Until(ends) > 72*time.Hour {
		t.Errorf("ends %s, %v", ends, err)
	}
	if len(made[0].Problems) == 0 {
		t.Error("nobody says that the root ends soon")
	}
	var c *x509.Certificate
	if certs, err := pki.ParseCertificates([]byte(contents(t, filepath.Join(dir, "c1"))["cert-chain.pem"])); err == nil {
		c = certs[0]
	}
	if c == nil || !c.NotAfter.Equal(ends) {
		t.Errorf("%v", c)
	}
}
