package rotation

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/vaulttest"
)

func (m *testMesh) secret(name string, data map[string][]byte) {
	m.t.Helper()
	if err := m.client.Create(m.t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: name}, Data: data}); err != nil {
		m.t.Fatal(err)
	}
}

// aMinuteLater lets the keeper look at the policy's root at once.
func (m *testMesh) aMinuteLater(policy string) {
	k := m.keeper
	k.mu.Lock()
	a := k.roots[policy]
	a.at = a.at.Add(-lookAtRoots - time.Second)
	k.roots[policy] = a
	k.mu.Unlock()
	k.Ring()
}

func generated(algorithm adminv2.KeyAlgorithm, bits uint32) adminv2.RootTrustConfig {
	return adminv2.RootTrustConfig{MgmtServerCa: &adminv2.MgmtServerCa{Generated: &adminv2.CommonCertOptions{KeyAlgorithm: algorithm, RSAKeySizeBytes: bits}}}
}

// inVault is the operators' page: mgmtServerCa and agentCa together.
func inVault(server, csrPath, issuer string) adminv2.RootTrustConfig {
	return adminv2.RootTrustConfig{
		MgmtServerCa: &adminv2.MgmtServerCa{Generated: &adminv2.CommonCertOptions{}},
		AgentCa:      &adminv2.AgentCa{Vault: &adminv2.VaultCA{Server: server, CaPath: "pki/ca", CsrPath: csrPath, Issuer: issuer, TokenSecretRef: &adminv2.ObjectRef{Name: "vault-token"}}},
	}
}

// Every change of who issues, or of what the root's key is, is a rotation to the end: both clusters sign under the new root, and nothing trusts the old one.
func TestChangesOfTheAuthorityRotate(t *testing.T) {
	v := vaulttest.Start(t)
	v.Root("pki", "R1")
	m := newMesh(t, "a-1", "a-2")
	m.secret("vault-token", map[string][]byte{"token": []byte(v.Token("pki/issuer/+/sign-intermediate"))})
	const sign = "pki/root/sign-intermediate"
	var before adminv2.RootStatus
	for n, step := range []struct {
		name   string
		change func()
		issuer string
	}{
		{"generated, RSA-2048", func() { m.apply("a", generated("", 2048)) }, "generated RSA-2048"},
		{"RSA-4096", func() { m.apply("a", generated("", 4096)) }, "generated RSA-4096"},
		{"ECDSA", func() { m.apply("a", generated(adminv2.KeyECDSAP256, 0)) }, "generated ECDSA-P256"},
		{"Vault", func() { m.apply("a", inVault(v.Address, sign, "")) }, "Vault " + v.Address},
		{"another default issuer in Vault", func() {
			next := v.Post("pki/root/rotate/internal", map[string]any{"common_name": "R2", "not_before_duration": "1h"})
			v.Post("pki/config/issuers", map[string]any{"default": next["issuer_id"]})
			m.aMinuteLater("a")
		}, "Vault " + v.Address},
		{"another issuer in Vault, pinned by the policy", func() {
			v.Post("pki/root/rotate/internal", map[string]any{"common_name": "R3", "issuer_name": "r3", "not_before_duration": "1h"})
			m.apply("a", inVault(v.Address, sign, "r3"))
		}, "pki/root/sign-intermediate r3"},
		{"generated again", func() { m.apply("a", generated(adminv2.KeyECDSAP256, 0)) }, "generated ECDSA-P256"},
	} {
		step.change()
		root := m.steady("a", step.issuer, before.Fingerprint)
		if root.Generation != int64(n+1) {
			t.Errorf("%s: root of generation %d, want %d", step.name, root.Generation, n+1)
		}
		for _, c := range []mesh.ClusterName{"a-1", "a-2"} {
			if i := m.issued(c); i == nil || i.Root.String() != root.Fingerprint {
				t.Errorf("%s: %s does not sign under %s", step.name, c, root.Subject)
			}
		}
		before = root
	}
}

// The login may change without a rotation, and the record of who issues under a root follows: the old token may be gone.
func TestAnotherLoginIsNoRotation(t *testing.T) {
	v := vaulttest.Start(t)
	v.Root("pki", "R1")
	m := newMesh(t, "a-1")
	old := v.Token("pki/issuer/+/sign-intermediate")
	m.secret("vault-token", map[string][]byte{"token": []byte(old)})
	m.apply("a", inVault(v.Address, "pki/root/sign-intermediate", ""))
	root := m.steady("a", "Vault", "")
	m.secret("other", map[string][]byte{"token": []byte(v.Token("pki/issuer/+/sign-intermediate"))})
	config := inVault(v.Address, "pki/root/sign-intermediate", "")
	config.AgentCa.Vault.TokenSecretRef.Name = "other"
	m.apply("a", config)
	gone := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: "vault-token"}}
	if err := m.client.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if err := v.Client.Auth().Token().RevokeTree(old); err != nil {
		t.Fatal(err)
	}
	m.join("a-2")
	for end := time.Now().Add(limit); m.issued("a-2") == nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a cluster that came later got nothing: %+v", m.status("a").Conditions)
		}
	}
	if now := m.steady("a", "Vault", ""); now.Fingerprint != root.Fingerprint || now.Generation != 1 {
		t.Errorf("root %s of generation %d, want still %s", now.Subject, now.Generation, root.Subject)
	}
}

// A person who reads the status learns what is wrong and what to do: at the policy, and at the cluster.
func TestReasonsReachStatus(t *testing.T) {
	v := vaulttest.Start(t)
	v.Root("pki", "R1")
	v.Post("pki/roles/intermediate", map[string]any{"allow_any_name": true, "enforce_hostnames": false, "allowed_uri_sans": "*", "key_type": "any"})
	m := newMesh(t, "a-1", "b-1")
	m.secret("vault-token", map[string][]byte{"token": []byte(v.Token("pki/sign/+", "pki/issuer/+/sign-intermediate"))})
	m.apply("a", inVault(v.Address, "pki/sign/intermediate", "")) // as the page has it
	const want = "Vault returned CA:false: pki/sign/intermediate names a role, and roles sign leaves only; use pki/root/sign-intermediate"
	m.until("a", want, func(s adminv2.RootTrustPolicyStatus) bool {
		return s.State == adminv2.ApprovalFailed && strings.Contains(s.Message, want) && len(s.Clusters) == 1 && strings.Contains(s.Clusters[0].Message, want)
	})
	if st := m.keeper.Status("a-1"); st == nil || !strings.Contains(st.Message, want) || len(st.Problems) == 0 || !strings.Contains(st.Problems[0], want) {
		t.Errorf("caStatus: %+v", st)
	}
	m.apply("a", inVault(v.Address, "pki/root/sign-intermediate", "")) // the correction heals it
	m.steady("a", "Vault", "")

	// No root at all: a ServiceAccount that is not there.
	config := inVault(v.Address, "pki/root/sign-intermediate", "")
	config.AgentCa.Vault.TokenSecretRef, config.AgentCa.Vault.CaPath = nil, ""
	config.AgentCa.Vault.KubernetesAuth = &adminv2.VaultKubernetesAuth{Role: "gloo-mesh-mgmt", ServiceAccountRef: &adminv2.ObjectRef{Name: "absent"}}
	m.apply("b", config)
	const absent = "there is no such ServiceAccount; make it in the policy's namespace"
	m.until("b", absent, func(s adminv2.RootTrustPolicyStatus) bool { return strings.Contains(s.Message, absent) })
}

// An authority that hangs for one cluster, or for all, keeps nobody else waiting: neither its other clusters nor other policies.
func TestAnAuthorityThatHangsStallsNobodyElse(t *testing.T) {
	v := vaulttest.Start(t)
	v.Root("pki", "R1")
	target, err := url.Parse(v.Address)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	hang := func(match string) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if strings.Contains(r.URL.Path, "sign-intermediate") && bytes.Contains(body, []byte(match)) {
				<-r.Context().Done()
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			forward.ServeHTTP(w, r)
		}))
		t.Cleanup(s.Close)
		return s
	}
	clusters := []mesh.ClusterName{"a-1", "a-2", "b-1"}
	for n := range 3 * maxSigning {
		clusters = append(clusters, mesh.ClusterName(fmt.Sprintf("c-%d", n)))
	}
	everyone, one := hang("c-"), hang("a-1") // before the mesh, so that they end after it
	m := newMesh(t, clusters...)
	m.secret("vault-token", map[string][]byte{"token": []byte(v.Token("pki/issuer/+/sign-intermediate"))})
	m.apply("c", inVault(everyone.URL, "pki/root/sign-intermediate", "")) // for all of its clusters
	m.until("c", "asked", func(s adminv2.RootTrustPolicyStatus) bool { return len(s.Roots) == 1 })
	m.apply("a", inVault(one.URL, "pki/root/sign-intermediate", "")) // for one
	m.apply("b", generated(adminv2.KeyECDSAP256, 0))
	m.steady("b", "generated", "")
	m.until("a", "a-2 signed", func(adminv2.RootTrustPolicyStatus) bool { return m.issued("a-2") != nil })
	if m.issued("a-1") != nil || m.issued("c-0") != nil {
		t.Error("the authority did not hang: the test proves nothing")
	}
	m.until("a", "said", func(s adminv2.RootTrustPolicyStatus) bool {
		return s.State == adminv2.ApprovalFailed && strings.Contains(s.Message, "cluster a-1: the certificate authority does not answer: Vault ")
	})
}
