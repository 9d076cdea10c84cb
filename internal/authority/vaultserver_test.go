package authority_test

import (
	"context"
	"maps"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
	"ambitmesh.dev/ambit/test/vaulttest"
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

// vaultServer is a real Vault, and authorities that lead to it.
type vaultServer struct {
	*vaulttest.Server
	t *testing.T
}

func startVault(t *testing.T) *vaultServer {
	t.Helper()
	return &vaultServer{vaulttest.Start(t), t}
}

// authority is what a policy with these fields leads to.
func (v *vaultServer) authority(caPath, csrPath, token string) authority.Authority {
	return v.at(v.Address, caPath, csrPath, token, 0)
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
	v.Post("sys/auth/kubernetes", map[string]any{"type": "kubernetes"})
	v.Post("auth/kubernetes/config", map[string]any{
		"kubernetes_host": cfg.Host, "kubernetes_ca_cert": string(cfg.CAData), "token_reviewer_jwt": k.token(v.t.Context(), "reviewer"), "disable_local_ca_jwt": true,
	})
	v.Post("auth/kubernetes/role/ambit", map[string]any{
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
