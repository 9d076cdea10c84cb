package trust_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/test/vaulttest"
)

// vaultPod is a real Vault (lab/vault) beside the management server. It asks the API server itself who logs in.
const vaultPod = `
ln -sf "$vault" images/vault
kubectl --context mgmt apply -f - >/dev/null <<'EOF'
apiVersion: v1
kind: Namespace
metadata: { name: vault }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: vault, namespace: vault }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: vault-reviews-tokens }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator" }
subjects: [{ kind: ServiceAccount, name: vault, namespace: vault }]
---
apiVersion: v1
kind: Pod
metadata: { name: vault, namespace: vault, labels: { app: vault } }
spec:
  serviceAccountName: vault
  containers:
    - { name: vault, image: vault, args: [-listen, "0.0.0.0:8200"], ports: [{ containerPort: 8200 }] }
---
apiVersion: v1
kind: Service
metadata: { name: vault, namespace: vault }
spec: { selector: { app: vault }, ports: [{ port: 8200 }] }
EOF`

// startVault sets a Vault up as its manual and docs/ops/authorities.md say: a root at pki_root, and a role that may have it sign intermediates, for the management server's own service account.
func startVault(t *testing.T) {
	t.Helper()
	lab.Run(t, "vault=$(cd '"+lab.Root+"' && labbuild vault)"+vaultPod)
	said := lab.Eventually(t, time.Minute, `kubectl --context mgmt -n vault logs vault`, func(out string) bool { return len(strings.Fields(out)) >= 2 })
	v := vaulttest.At(t, forward(t), strings.Fields(said)[1])
	v.Root("pki_root", "Root in Vault")
	v.Policy("gloo-mesh-mgmt", "pki_root/issuer/+/sign-intermediate")
	v.Post("sys/auth/kubernetes", map[string]any{"type": "kubernetes"})
	v.Post("auth/kubernetes/config", map[string]any{"kubernetes_host": "https://kubernetes.default.svc"})
	v.Post("auth/kubernetes/role/gloo-mesh-mgmt", map[string]any{
		"bound_service_account_names": "gloo-mesh-mgmt-server", "bound_service_account_namespaces": "gloo-mesh", "token_policies": "gloo-mesh-mgmt",
	})
}

// forward is where Vault can be reached from here, until the test ends.
func forward(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(lab.State, "bin", "kubectl"), "--kubeconfig", filepath.Join(lab.State, "kubeconfig"), "--context", "mgmt", "-n", "vault", "port-forward", "pod/vault", ":8200")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	at := regexp.MustCompile(`127\.0\.0\.1:[0-9]+`).FindString(line)
	if at == "" {
		t.Fatalf("port-forward says %q, %v", line, err)
	}
	return "http://" + at
}

// inVault is the page's policy; the test's certificates live shorter.
func inVault(csrPath string) string {
	return `
kubectl --context mgmt -n gloo-mesh apply -f - <<'EOF'
apiVersion: admin.gloo.solo.io/v2
kind: RootTrustPolicy
metadata:
  name: root-trust-policy
  namespace: gloo-mesh
spec:
  config:
    mgmtServerCa:
      generated: {}
    intermediateCertOptions:
      secretRotationGracePeriodRatio: 0.5
    autoRestartPods: true
    agentCa:
      vault:
        caPath: pki_root/ca
        csrPath: ` + csrPath + `
        server: http://vault.vault.svc:8200
        kubernetesAuth:
          role: gloo-mesh-mgmt
  rotation: { fileLag: 5s }
EOF`
}
