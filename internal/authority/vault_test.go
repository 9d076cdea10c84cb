package authority_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// The page's paths, which the product derives the call from, and those of a real Vault: each signs.
func TestVaultSigns(t *testing.T) {
	v := startVault(t)
	v.Root("pki", "R1")
	for name, paths := range map[string][2]string{
		"root/sign-intermediate": {"pki/ca", "pki/root/sign-intermediate"},
		"v1":                     {"/v1/pki/cert/ca", "/v1/pki/root/sign-intermediate"},
		"the older fields":       {"pki/root/sign-intermediate", "pki_int/intermediate/generate/exported"},
		"issuer":                 {"", "pki/issuer/default/sign-intermediate"},
	} {
		t.Run(name, func(t *testing.T) {
			a := v.authority(paths[0], paths[1], v.Token("pki/issuer/+/sign-intermediate"))
			roots, err := a.Roots(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r, key := request(t, "east")
			got, err := a.SignIntermediate(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			c := got.Chain[0]
			if len(got.Chain) != 1 || !got.Root.Equal(roots[0]) || got.Root.Subject.CommonName != "R1" {
				t.Errorf("chain %d, root %s", len(got.Chain), got.Root.Subject)
			}
			if !c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) || !c.MaxPathLenZero || c.Subject.String() != r.Subject.String() {
				t.Errorf("got %s, path length %d", c.Subject, c.MaxPathLen)
			}
			if len(c.URIs) != 1 || c.URIs[0].String() != r.URIs[0].String() || len(c.DNSNames) != 0 {
				t.Errorf("URIs %v, DNS names %v", c.URIs, c.DNSNames)
			}
			if back := time.Since(c.NotBefore); back < 9*time.Minute {
				t.Errorf("back-dated by %s: clocks differ by more", back)
			}
			if got.Note != "" {
				t.Errorf("note: %s", got.Note)
			}
		})
	}
}

// A mount that is an intermediate itself: the chain is complete, the root last and left out.
func TestVaultChain(t *testing.T) {
	v := startVault(t)
	v.Root("pki_root", "R1")
	v.Intermediate("pki_int", "pki_root", true)
	v.Intermediate("pki_lost", "pki_root", false)
	token := v.Token("+/issuer/+/sign-intermediate")
	for _, mount := range []string{"pki_int", "pki_lost"} { // pki_lost knows nothing above itself: caPath does
		r, _ := request(t, "east")
		got, err := v.authority("pki_root/ca", mount+"/root/sign-intermediate", token).SignIntermediate(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: %v", mount, err)
		}
		if len(got.Chain) != 2 || got.Root.Subject.CommonName != "R1" || got.Chain[1].Subject.CommonName != mount {
			t.Errorf("%s: chain of %d under %s", mount, len(got.Chain), got.Root.Subject)
		}
	}
	_, err := v.authority("", "pki_lost/root/sign-intermediate", token).Roots(t.Context())
	misconfigured(t, err, "nobody knows the issuer of CN=pki_lost")
}

// A second root appears and becomes the default: Roots shows it, and what began under the first is still signed under the first.
func TestVaultSwitchOfTheDefaultIssuer(t *testing.T) {
	v := startVault(t)
	first := v.Root("pki", "R1")
	a := v.authority("pki/ca", "pki/root/sign-intermediate", v.Token("pki/issuer/+/sign-intermediate"))
	pinned := v.authority("pki/ca", "pki/issuer/"+first+"/sign-intermediate", v.Token("pki/issuer/+/sign-intermediate"))
	before, err := a.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second := v.Post("pki/root/rotate/internal", map[string]any{"common_name": "R2", "issuer_name": "r2"})["issuer_id"]
	r, _ := request(t, "east")
	if got, err := a.SignIntermediate(t.Context(), r); err != nil || !got.Root.Equal(before[0]) {
		t.Errorf("before the switch: root %v, %v", got.Root, err)
	}
	v.Post("pki/config/issuers", map[string]any{"default": second})
	after, err := a.Roots(t.Context())
	if err != nil || after[0].Subject.CommonName != "R2" {
		t.Fatalf("after the switch: %v, %v", after, err)
	}
	got, err := a.SignIntermediate(t.Context(), r)
	if err != nil || !got.Root.Equal(after[0]) || !strings.Contains(got.Issuer, fmt.Sprint(second)) {
		t.Errorf("after the switch: %q, %v", got.Issuer, err)
	}
	r.Root = mesh.FingerprintOf(before[0].Raw)
	if got, err = a.SignIntermediate(t.Context(), r); err != nil || !got.Root.Equal(before[0]) {
		t.Errorf("a cluster that is still under R1: %q, %v", got.Issuer, err)
	}
	r.Root = mesh.Fingerprint{}
	if got, err = pinned.SignIntermediate(t.Context(), r); err != nil || !got.Root.Equal(before[0]) {
		t.Errorf("pinned: %q, %v", got.Issuer, err)
	}
	r.Root = mesh.Fingerprint{1}
	_, err = a.SignIntermediate(t.Context(), r)
	misconfigured(t, err, "leads to root")
}

// A policy that allows nothing but the path that people wrote is enough, unless the default has moved meanwhile.
func TestVaultNarrowPolicy(t *testing.T) {
	v := startVault(t)
	v.Root("pki", "R1")
	a := v.authority("pki/ca", "pki/root/sign-intermediate", v.Token("pki/root/sign-intermediate"))
	r, _ := request(t, "east")
	if _, err := a.SignIntermediate(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	before, err := a.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second := v.Post("pki/root/rotate/internal", map[string]any{"common_name": "R2", "not_before_duration": "1h"})["issuer_id"]
	v.Post("pki/config/issuers", map[string]any{"default": second})
	r.Root = mesh.FingerprintOf(before[0].Raw)
	_, err = a.SignIntermediate(t.Context(), r)
	misconfigured(t, err, "with another issuer than")
}

func TestVaultRefusals(t *testing.T) {
	v := startVault(t)
	v.Root("pki", "R1")
	v.Post("pki/roles/intermediate", map[string]any{"allow_any_name": true, "enforce_hostnames": false, "allowed_uri_sans": "*", "max_ttl": "8760h", "key_type": "any"})
	all := v.Token("+/sign/+", "+/issuer/+/sign-intermediate", "+/root/sign-intermediate")
	sign := func(t *testing.T, csrPath, token string, change func(*authority.Request)) (authority.Answer, error) {
		r, _ := request(t, "east")
		if change != nil {
			change(&r)
		}
		return v.authority("pki/ca", csrPath, token).SignIntermediate(t.Context(), r)
	}
	t.Run("a role", func(t *testing.T) {
		_, err := sign(t, "pki/sign/intermediate", all, nil)
		misconfigured(t, err, "Vault returned CA:false: pki/sign/intermediate names a role")
		if bad, _ := errors.AsType[*authority.Misconfigured](err); bad == nil || !strings.Contains(bad.Fix, "pki/root/sign-intermediate") {
			t.Errorf("fix: %v", err)
		}
	})
	t.Run("no such role", func(t *testing.T) { // what the operators' page writes, on a Vault without that role
		_, err := sign(t, "pki/sign/absent", all, nil)
		misconfigured(t, err, "pki/sign/absent names a role, and roles sign leaves only: use pki/root/sign-intermediate")
	})
	t.Run("no such mount", func(t *testing.T) {
		_, err := sign(t, "pki_root/root/sign-intermediate", all, nil)
		misconfigured(t, err, `no issuer "default" at mount "pki_root"`)
	})
	t.Run("policy", func(t *testing.T) {
		_, err := sign(t, "pki/root/sign-intermediate", v.Token("secret/*"), nil)
		isRefused(t, err, `want a Vault policy with path "pki/root/sign-intermediate"`)
	})
	t.Run("token is no token", func(t *testing.T) {
		_, err := sign(t, "pki/root/sign-intermediate", "hvs.not-a-token", nil)
		isRefused(t, err, "and a token that lives")
		if strings.Contains(err.Error(), "hvs.") {
			t.Errorf("a token in an error: %v", err)
		}
	})
	t.Run("longer than the mount allows", func(t *testing.T) {
		v.Post("sys/mounts/pki/tune", map[string]any{"max_lease_ttl": "240h"})
		a, err := sign(t, "pki/root/sign-intermediate", all, func(r *authority.Request) { r.TTL = 2000 * time.Hour })
		if err != nil || !strings.Contains(a.Note, "max_lease_ttl") {
			t.Errorf("note %q, %v", a.Note, err)
		}
	})
	t.Run("longer than the issuer", func(t *testing.T) {
		v.Mount("short")
		v.Post("short/root/generate/internal", map[string]any{"common_name": "short", "ttl": "24h"})
		a, err := sign(t, "short/root/sign-intermediate", all, func(r *authority.Request) { r.TTL = 100 * time.Hour })
		if err != nil || a.Chain[0].NotAfter.After(a.Root.NotAfter) || !strings.Contains(a.Note, "issuer's own end") {
			t.Errorf("note %q, %v", a.Note, err)
		}
	})
	t.Run("sealed", func(t *testing.T) { // the last: it stays so
		v.Post("sys/seal", nil)
		_, err := sign(t, "pki/root/sign-intermediate", all, nil)
		if _, ok := authority.AsUnavailable(err); !ok || !strings.Contains(err.Error(), "sealed") {
			t.Errorf("got %v", err)
		}
	})
}

// Tokens end: one 403 leads to a new login, whatever the method.
func TestVaultLogins(t *testing.T) {
	v := startVault(t)
	v.Root("pki", "R1")
	v.Policy("sign", "pki/issuer/+/sign-intermediate")
	kube := v.kubernetes()
	v.Post("sys/auth/approle", map[string]any{"type": "approle"})
	v.Post("auth/approle/role/ambit", map[string]any{"token_policies": "sign"})
	secretID := fmt.Sprint(v.Post("auth/approle/role/ambit/secret-id", nil)["secret_id"])
	roleID := fmt.Sprint(v.Get("auth/approle/role/ambit/role-id")["role_id"])
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "token"), []byte(kube.token(t.Context(), "ambit")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		vault   mesh.Vault
		secrets secrets
	}{
		"approle":                {mesh.Vault{AppRole: &mesh.VaultAppRole{Mount: "auth/approle", RoleID: roleID, Secret: "s"}}, secrets{"s": {"secret-id": []byte(secretID)}}},
		"kubernetes, by request": {mesh.Vault{Kubernetes: &mesh.VaultKubernetes{Mount: "auth/kubernetes", Role: "ambit", ServiceAccount: "ambit"}}, nil},
		"kubernetes, mounted":    {mesh.Vault{Kubernetes: &mesh.VaultKubernetes{Mount: "auth/kubernetes", Role: "ambit", Folder: folder}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.vault.Server, c.vault.Mount, c.vault.SignPath = v.Address, "pki", "pki/root/sign-intermediate"
			a := authority.Vault{Vault: c.vault, Secrets: c.secrets, Now: time.Now, Token: func(ctx context.Context, sa string) (string, error) { return kube.token(ctx, sa), nil }}.New()
			for range 2 { // the second time with the token of the first
				r, _ := request(t, "east")
				if _, err := a.SignIntermediate(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			v.Post("sys/leases/revoke-prefix/auth", nil)
			r, _ := request(t, "east")
			if _, err := a.SignIntermediate(t.Context(), r); err != nil {
				t.Errorf("after its token was revoked: %v", err)
			}
		})
	}
	t.Run("another service account", func(t *testing.T) {
		a := authority.Vault{
			Vault: mesh.Vault{Server: v.Address, Mount: "pki", SignPath: "pki/root/sign-intermediate", Kubernetes: &mesh.VaultKubernetes{Mount: "auth/kubernetes", Role: "ambit", ServiceAccount: "mallory"}},
			Now:   time.Now, Token: func(ctx context.Context, sa string) (string, error) { return kube.token(ctx, sa), nil },
		}.New()
		r, _ := request(t, "east")
		_, err := a.SignIntermediate(t.Context(), r)
		isRefused(t, err, "the login is refused")
	})
}

// Faults between us and Vault: each is told apart, and one Vault that hangs holds up nobody else.
func TestVaultFaults(t *testing.T) {
	v := startVault(t)
	v.Root("pki", "R1")
	token := v.Token("pki/issuer/+/sign-intermediate")
	target, err := url.Parse(v.Address)
	if err != nil {
		t.Fatal(err)
	}
	var fault atomic.Value
	fault.Store("")
	forward := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch fault.Load() {
		case "throttle":
			w.Header().Set("Retry-After", "7")
			http.Error(w, `{"errors":["request path \"pki\": rate limit quota exceeded"]}`, http.StatusTooManyRequests)
		case "hang":
			<-r.Context().Done()
		case "cut":
			panic(http.ErrAbortHandler)
		case "502":
			http.Error(w, "<html>bad gateway</html>", http.StatusBadGateway)
		default:
			forward.ServeHTTP(w, r)
		}
	}))
	defer proxy.Close()
	away := v.at(proxy.URL, "pki/ca", "pki/root/sign-intermediate", token, 3*time.Second)
	for _, f := range []string{"", "throttle", "hang", "cut", "502", ""} {
		fault.Store(f)
		began := time.Now()
		r, _ := request(t, "east")
		_, err := away.SignIntermediate(t.Context(), r)
		u, ok := authority.AsUnavailable(err)
		switch {
		case f == "" && err != nil, f != "" && !ok:
			t.Errorf("%q: got %v", f, err)
		case f == "throttle" && u.RetryAfter != 7*time.Second:
			t.Errorf("throttled: retry after %s", u.RetryAfter)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%q: took %s", f, took)
		}
	}
	fault.Store("hang")
	good := v.authority("pki/ca", "pki/root/sign-intermediate", token)
	var held atomic.Int32
	for range 40 {
		go func() {
			_, _ = away.Roots(t.Context())
			held.Add(1)
		}()
	}
	began := time.Now()
	r, _ := request(t, "west")
	if _, err := good.SignIntermediate(t.Context(), r); err != nil || time.Since(began) > time.Minute {
		t.Errorf("beside a Vault that hangs: %v after %s", err, time.Since(began))
	}
	for end := time.Now().Add(time.Minute); held.Load() < 40 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := held.Load(); n != 40 {
		t.Errorf("%d of 40 questions to a Vault that hangs ended", n)
	}
}

// Vault's own certificate is verified by the bundle, and by nothing else.
func TestVaultTLS(t *testing.T) {
	v := startVault(t)
	v.Root("pki", "R1")
	target, err := url.Parse(v.Address)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(target))
	defer s.Close()
	bundle := pki.EncodeCertificates(s.Certificate())
	vault := mesh.Vault{Server: s.URL, Mount: "pki"}
	_, err = authority.Vault{Vault: vault, Now: time.Now}.New().Roots(t.Context())
	misconfigured(t, err, "caBundle")
	vault.Bundle = bundle
	if _, err = (authority.Vault{Vault: vault, Now: time.Now}).New().Roots(t.Context()); err != nil {
		t.Error(err)
	}
	vault.Bundle, vault.BundleSecret = nil, "ca"
	if _, err = (authority.Vault{Vault: vault, Now: time.Now, Secrets: secrets{"ca": {"root-cert.pem": bundle}}}).New().Roots(t.Context()); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, bytes.TrimSpace(bundle), 0o600); err != nil {
		t.Fatal(err)
	}
	vault.BundleSecret, vault.BundleFile = "", file
	if _, err = (authority.Vault{Vault: vault, Now: time.Now}).New().Roots(t.Context()); err != nil {
		t.Error(err)
	}
}

// request is one of a cluster, with a key of its own.
func request(t testing.TB, cluster mesh.ClusterName) (authority.Request, crypto.Signer) {
	t.Helper()
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	subject := pkix.Name{Organization: []string{"gloo-mesh"}, CommonName: string(cluster) + " g1"}
	u, err := url.Parse("spiffe://cluster.local/ns/istio-system/sa/istiod")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, pkix.Name{CommonName: "ignored"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return authority.Request{Cluster: cluster, Generation: "g1", CSR: csr, Subject: subject, URIs: []*url.URL{u}, TTL: 100 * time.Hour}, key
}

func misconfigured(t *testing.T, err error, want string) {
	t.Helper()
	if _, ok := errors.AsType[*authority.Misconfigured](err); !ok || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want Misconfigured with %q", err, want)
	}
}

func isRefused(t *testing.T, err error, want string) {
	t.Helper()
	if _, ok := errors.AsType[*authority.Refused](err); !ok || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want Refused with %q", err, want)
	}
}
