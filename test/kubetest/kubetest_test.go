package kubetest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// The operators' page lists columns in four ways; these two outputs satisfy what can be satisfied (shared facts, 0.2).
func TestPrinterColumns(t *testing.T) {
	cfg := kubetest.Start(t)
	c := kubetest.Client(t, cfg)
	kubetest.Ensure(t, c, "gloo-mesh")
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "prod-eu-west-3", Namespace: "gloo-mesh"}}
	if err := c.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	if kc.Spec.ClusterDomain != "cluster.local" {
		t.Errorf("default of clusterDomain: %q", kc.Spec.ClusterDomain)
	}
	beat := metav1.NewTime(time.Date(2026, 5, 15, 8, 14, 33, 0, time.UTC))
	kc.Status = adminv2.KubernetesClusterStatus{
		Common:     adminv2.CommonStatus{State: adminv2.State{Approval: adminv2.ApprovalAccepted}},
		Connection: adminv2.ConnectionConnected, AgentVersion: "2.12.0", TrustDomain: "cluster.local", RegisteredBy: "jane.doe@bank.example.com", LastHeartbeat: &beat,
	}
	if err := c.Status().Update(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	kubeconfig := kubetest.Kubeconfig(t, cfg)
	get := func(args ...string) string {
		out, err := exec.Command(filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"), append([]string{"--kubeconfig", kubeconfig, "-n", "gloo-mesh", "get"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		age := regexp.MustCompile(`\b\d+[smh]\d*s?\b`).ReplaceAllString(strings.TrimSpace(string(out)), "AGE")
		created := regexp.MustCompile(`20\d\d-[0-9-]+T[0-9:]+Z`).ReplaceAllStringFunc(age, func(s string) string {
			if s == "2026-05-15T08:14:33Z" {
				return s
			}
			return "DATE"
		})
		return regexp.MustCompile(`  +`).ReplaceAllString(created, " | ")
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"narrow": {[]string{"kubernetescluster", "prod-eu-west-3"}, "NAME | AGE | AGENT-VERSION | STATUS\nprod-eu-west-3 | AGE | 2.12.0 | Connected"},
		"wide": {[]string{"kc", "-o", "wide"}, "NAME | AGE | AGENT-VERSION | STATUS | LAST HEARTBEAT | TRUST DOMAIN | CREATED | REGISTERED BY | APPROVAL\n" +
			"prod-eu-west-3 | AGE | 2.12.0 | Connected | 2026-05-15T08:14:33Z | cluster.local | DATE | jane.doe@bank.example.com | ACCEPTED"},
		"script": {[]string{"kubernetesclusters", "-o", "jsonpath={.items[*].status.common.State.approval}"}, "ACCEPTED"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, get(tc.args...)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
