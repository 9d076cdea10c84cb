package authority_test

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

// secrets are Secrets in memory.
type secrets map[string]map[string][]byte

func (s secrets) Get(_ context.Context, name string) (map[string][]byte, error) {
	return s[name], nil
}

func (s secrets) Create(_ context.Context, name string, data map[string][]byte) (map[string][]byte, error) {
	if have, ok := s[name]; ok {
		return have, nil
	}
	s[name] = maps.Clone(data)
	return data, nil
}

// vaultServer is a real Vault (lab/vault), for one test.
type vaultServer struct {
	t       *testing.T
	address string
	client  *vaultapi.Client
}

// startVault runs the program that AMBIT_TEST_VAULT names, until the test ends.
func startVault(t *testing.T) *vaultServer {
	t.Helper()
	program := os.Getenv("AMBIT_TEST_VAULT")
	if program == "" {
		t.Fatal("this test needs a real Vault and AMBIT_TEST_VAULT is not set: run `make unit`, which builds one; by hand: AMBIT_TEST_VAULT=$(cd lab && go run ./cmd/labbuild vault)")
	}
	cmd := exec.Command(program)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	var said []string
	for len(said) < 2 && lines.Scan() {
		said = append(said, lines.Text())
	}
	if len(said) < 2 {
		t.Fatal("Vault did not start")
	}
	c, err := vaultapi.NewClient(&vaultapi.Config{Address: said[0]})
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(said[1])
	return &vaultServer{t, said[0], c}
}

func (v *vaultServer) post(path string, data map[string]any) map[string]any {
	v.t.Helper()
	s, err := v.client.Logical().Write(path, data)
	if err != nil {
		v.t.Fatal(err)
	}
	if s == nil {
		return nil
	}
	return s.Data
}

func (v *vaultServer) get(path string) map[string]any {
	v.t.Helper()
	s, err := v.client.Logical().Read(path)
	if err != nil || s == nil {
		v.t.Fatalf("%s: %v, %v", path, s, err)
	}
	return s.Data
}

func (v *vaultServer) mount(path string) {
	v.t.Helper()
	v.post("sys/mounts/"+path, map[string]any{"type": "pki", "config": map[string]any{"max_lease_ttl": "87600h"}})
}

// root mounts a PKI engine with a root, and returns its issuer's ID.
func (v *vaultServer) root(mount, name string) string {
	v.t.Helper()
	v.mount(mount)
	return fmt.Sprint(v.post(mount+"/root/generate/internal", map[string]any{"common_name": name, "ttl": "87000h", "not_before_duration": "1h"})["issuer_id"])
}

// intermediate mounts a PKI engine below another one; whole: it knows the root too.
func (v *vaultServer) intermediate(mount, below string, whole bool) {
	v.t.Helper()
	v.mount(mount)
	csr := v.post(mount+"/intermediate/generate/internal", map[string]any{"common_name": mount})["csr"]
	signed := v.post(below+"/root/sign-intermediate", map[string]any{"csr": csr, "common_name": mount, "ttl": "80000h", "not_before_duration": "40m"})
	bundle := fmt.Sprint(signed["certificate"])
	if whole {
		bundle += "\n" + fmt.Sprint(signed["issuing_ca"])
	}
	v.post(mount+"/intermediate/set-signed", map[string]any{"certificate": bundle})
}

func (v *vaultServer) policy(name string, paths ...string) {
	v.t.Helper()
	var rules []string
	for _, p := range paths {
		rules = append(rules, fmt.Sprintf(`path %q { capabilities = ["update"] }`, p))
	}
	v.post("sys/policies/acl/"+name, map[string]any{"policy": strings.Join(rules, "\n")})
}

// token may update paths.
func (v *vaultServer) token(paths ...string) string {
	v.t.Helper()
	name := fmt.Sprintf("p%d", time.Now().UnixNano())
	v.policy(name, paths...)
	s, err := v.client.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{name}})
	if err != nil {
		v.t.Fatal(err)
	}
	return s.Auth.ClientToken
}

// authority is what a policy with these fields leads to.
func (v *vaultServer) authority(caPath, csrPath, token string) authority.Authority {
	return v.at(v.address, caPath, csrPath, token, 0)
}

func (v *vaultServer) at(server, caPath, csrPath, token string, timeout time.Duration) authority.Authority {
	v.t.Helper()
	spec := mesh.TrustOf(&adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{AgentCa: &adminv2.AgentCa{Vault: &adminv2.VaultCA{
		Server: server, CaPath: caPath, CsrPath: csrPath, TokenSecretRef: &adminv2.ObjectRef{Name: "token"},
	}}}})
	return authority.Vault{Vault: *spec.Authority.Vault, Secrets: secrets{"token": {"token": []byte(token)}}, Now: time.Now, Timeout: timeout}.New()
}

// cluster is a real API server that Vault asks who somebody is.
type cluster struct {
	t         *testing.T
	client    client.Client
	namespace string
}

// kubernetes sets up Vault's Kubernetes auth method, with a role for service account ambit.
func (v *vaultServer) kubernetes() cluster {
	v.t.Helper()
	cfg := kubetest.Start(v.t)
	k := cluster{t: v.t, client: kubetest.Client(v.t, cfg)}
	k.namespace = kubetest.Namespace(v.t, k.client)
	for _, name := range []string{"ambit", "mallory", "reviewer"} {
		if err := k.client.Create(v.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name}}); err != nil {
			v.t.Fatal(err)
		}
	}
	if err := k.client.Create(v.t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "vault-"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:auth-delegator"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: k.namespace, Name: "reviewer"}},
	}); err != nil {
		v.t.Fatal(err)
	}
	v.post("sys/auth/kubernetes", map[string]any{"type": "kubernetes"})
	v.post("auth/kubernetes/config", map[string]any{
		"kubernetes_host": cfg.Host, "kubernetes_ca_cert": string(cfg.CAData), "token_reviewer_jwt": k.token(v.t.Context(), "reviewer"), "disable_local_ca_jwt": true,
	})
	v.post("auth/kubernetes/role/ambit", map[string]any{
		"bound_service_account_names": "ambit", "bound_service_account_namespaces": k.namespace, "token_policies": "sign",
	})
	return k
}

func (k cluster) token(ctx context.Context, name string) string {
	k.t.Helper()
	r := &authenticationv1.TokenRequest{}
	if err := k.client.SubResource("token").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: name}}, r); err != nil {
		k.t.Error(err)
	}
	return r.Status.Token
}
