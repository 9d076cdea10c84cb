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
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	"ambitmesh.dev/ambit/test/kubetest"
)

func kubectl(t *testing.T, kubeconfig string, args ...string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"), append([]string{"--kubeconfig", kubeconfig, "-n", "gloo-mesh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

var wide = regexp.MustCompile(`  +`)

// columns is a listing of kubectl with one separator and no ages.
func columns(s string) string {
	return wide.ReplaceAllString(regexp.MustCompile(`(?m)\b\d+[smh](\d+s)?\b`).ReplaceAllString(s, "AGE"), " | ")
}

// caStatus is what cluster-3 looks like after a rotation; the time is that of the page.
func caStatus() *adminv2.ClusterCAStatus {
	at := func(s string) *metav1.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			panic(err)
		}
		t := metav1.NewTime(v)
		return &t
	}
	return &adminv2.ClusterCAStatus{
		Rotation: adminv2.RotationSucceeded, RotatedAt: at("2026-05-15T08:14:33Z"), Phase: adminv2.PhaseSteady, Policy: "gloo-mesh/root-trust", Generation: 2, Owner: "gloo-mesh",
		Message: "signs under root 2; every istiod and every verifier trusts it alone",
		Intermediate: &adminv2.CACertificate{
			Fingerprint: "b2", Generation: 2, Subject: "CN=cluster-3 g2,O=gloo-mesh", Issuer: "CN=root g2,O=gloo-mesh", Serial: "0a1b", Key: "RSA-4096",
			NotBefore: at("2026-05-15T08:00:00Z"), NotAfter: at("2027-05-15T08:00:00Z"),
		},
		Roots:     []adminv2.CACertificate{{Fingerprint: "a2", Generation: 2, Subject: "CN=root g2,O=gloo-mesh", Issuer: "CN=root g2,O=gloo-mesh", NotAfter: at("2036-05-12T08:00:00Z")}},
		LastProbe: at("2026-05-15T08:14:00Z"),
		Istiods:   []adminv2.IstiodCAStatus{{Pod: "istiod-7d9-abc", Version: "1.30.3", MultiRoot: true, Signer: "b2", Roots: []string{"a2"}, Current: true}},
		Verifiers: []adminv2.VerifierCAStatus{{Kind: "ztunnel", Total: 3, Trusting: 3, Presenting: 3}, {Kind: "waypoint", Total: 2, Trusting: 1, Presenting: 2, Unknown: 1, Behind: []string{"prod/wp-1"}}},
		Problems:  []string{"waypoint prod/wp-1 does not answer on 15008: is there a NetworkPolicy?"},
	}
}

// The page asks: `kubectl get kubernetescluster cluster-3 -o yaml | yq '.status.caStatus'`, "was the rotation successful on cluster-3?"
func TestCAStatus(t *testing.T) {
	cfg := kubetest.Start(t)
	c := kubetest.Client(t, cfg)
	kubetest.Ensure(t, c, "gloo-mesh")
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster-3", Namespace: "gloo-mesh"}}
	if err := c.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	kc.Status.CaStatus = caStatus()
	if err := c.Status().Update(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	kubeconfig := kubetest.Kubeconfig(t, cfg)
	var whole struct {
		Status struct {
			CaStatus adminv2.ClusterCAStatus `json:"caStatus"`
		} `json:"status"`
	}
	if err := yaml.Unmarshal([]byte(kubectl(t, kubeconfig, "get", "kubernetescluster", "cluster-3", "-o", "yaml")), &whole); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*caStatus(), whole.Status.CaStatus); diff != "" {
		t.Errorf("what was written is not what is read: %s", diff)
	}
	for path, want := range map[string]string{
		"{.status.caStatus.rotation} {.status.caStatus.rotatedAt}":                                          "Succeeded 2026-05-15T08:14:33Z",
		"{.status.caStatus.intermediate.notAfter}":                                                          "2027-05-15T08:00:00Z",
		"{.status.caStatus.istiods[?(@.current==true)].pod}":                                                "istiod-7d9-abc",
		"{range .status.caStatus.verifiers[*]}{.kind} {.trusting}/{.total} {end}":                           "ztunnel 3/3 waypoint 1/2",
		"{.status.caStatus.problems[0]}":                                                                    "waypoint prod/wp-1 does not answer on 15008: is there a NetworkPolicy?",
		"{.status.caStatus.roots[*].fingerprint}{' '}{.status.caStatus.owner}{' '}{.status.caStatus.phase}": "a2 gloo-mesh Steady",
	} {
		if got := kubectl(t, kubeconfig, "get", "kc", "cluster-3", "-o", "jsonpath="+path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if got := kubectl(t, kubeconfig, "get", "kc", "cluster-3", "-o", "jsonpath={.status.caStatus}"); !strings.HasPrefix(got, `{"generation":2,"intermediate":{`) {
		t.Errorf("jsonpath of the whole: %s", got)
	}
}

func TestTrustColumns(t *testing.T) {
	cfg := kubetest.Start(t)
	c := kubetest.Client(t, cfg)
	kubetest.Ensure(t, c, "gloo-mesh")
	until := metav1.NewTime(time.Date(2036, 5, 12, 8, 0, 0, 0, time.UTC))
	meta := metav1.ObjectMeta{Name: "root-trust", Namespace: "gloo-mesh"}
	engine := []byte(`{"phase":"AddingRoot","anything":{"else":[1,"x"]}}`)
	policy := &adminv2.RootTrustPolicy{ObjectMeta: meta}
	request := &adminv2.RotationRequest{ObjectMeta: metav1.ObjectMeta{Name: "chg-1234", Namespace: "gloo-mesh"}, Spec: adminv2.RotationRequestSpec{Policy: "root-trust", Action: adminv2.ActionPause, Reason: "freeze"}}
	issued := &issuancev2.IssuedCertificate{ObjectMeta: metav1.ObjectMeta{Name: "istiod-main-istio-system-c1", Namespace: "gloo-mesh"}, Spec: issuancev2.IssuedCertificateSpec{
		Hosts: []string{"spiffe://cluster.local/ns/istio-system/sa/istiod"}, AgentCa: &issuancev2.AgentCA{}, MeshRef: &issuancev2.ObjectReference{Name: "istiod", Namespace: "istio-system", Cluster: "c1"},
		CertOptions: &adminv2.CommonCertOptions{TTLDays: 365, SecretRotationGracePeriodRatio: 0.5},
	}}
	csr := &issuancev2.CertificateRequest{ObjectMeta: issued.ObjectMeta, Spec: issuancev2.CertificateRequestSpec{CertificateSigningRequest: []byte("PEM")}}
	bounce := &issuancev2.PodBounceDirective{ObjectMeta: issued.ObjectMeta, Spec: issuancev2.PodBounceDirectiveSpec{
		PodsToBounce: []issuancev2.PodSelector{{Namespace: "istio-system", Labels: map[string]string{"app": "ztunnel"}, WaitForReplicas: 3, RootCertSync: &issuancev2.RootCertSync{
			SecretRef: &adminv2.ObjectRef{Name: "cacerts"}, SecretKey: "root-cert.pem", ConfigMapRef: &adminv2.ObjectRef{Name: "istio-ca-root-cert"}, ConfigMapKey: "root-cert.pem",
		}}}, MeshRef: issued.Spec.MeshRef,
	}}
	for _, o := range []client.Object{policy, request, issued, csr, bounce} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	policy.Status = adminv2.RootTrustPolicyStatus{
		ObservedGeneration: 1, State: adminv2.ApprovalAccepted, Phase: adminv2.PhaseAddingRoot, Message: "2 of 3 clusters trust both roots",
		Roots:    []adminv2.RootStatus{{Role: adminv2.RootNext, Fingerprint: "f2", Subject: "CN=root g2", Generation: 2}, {Role: adminv2.RootActive, Fingerprint: "f1", Subject: "CN=root g1", Generation: 1, NotAfter: &until}},
		Clusters: []adminv2.ClusterTrustStatus{{Name: "c1", Phase: adminv2.PhaseAddingRoot, State: adminv2.ApprovalAccepted, Signer: "b1", Roots: []string{"f1", "f2"}, Until: &until}},
		Rotation: &runtime.RawExtension{Raw: engine},
	}
	request.Status = adminv2.RotationRequestStatus{State: adminv2.RequestDone, By: "jane", Message: "paused in AddingRoot"}
	issued.Status = issuancev2.IssuedCertificateStatus{State: issuancev2.IssuedFinished, NotAfter: &until}
	csr.Status = issuancev2.CertificateRequestStatus{State: issuancev2.RequestFailed, Error: "the CA does not answer"}
	bounce.Status = issuancev2.PodBounceDirectiveStatus{State: issuancev2.BounceBouncing, PodsBounced: []issuancev2.BouncedPodSet{{BouncedPods: []string{"ztunnel-1"}}}}
	for _, o := range []client.Object{policy, request, issued, csr, bounce} {
		if err := c.Status().Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	kubeconfig := kubetest.Kubeconfig(t, cfg)
	for name, want := range map[string]string{
		"rtp":                 "NAME | PHASE | STATE | ROOT | AGE\nroot-trust | AddingRoot | ACCEPTED | CN=root g1 | AGE",
		"roottrustpolicies":   "NAME | PHASE | STATE | ROOT | AGE\nroot-trust | AddingRoot | ACCEPTED | CN=root g1 | AGE",
		"rreq":                "NAME | POLICY | ACTION | STATE | BY | AGE\nchg-1234 | root-trust | Pause | Done | jane | AGE",
		"ic":                  "NAME | CLUSTER | STATE | UNTIL | AGE\nistiod-main-istio-system-c1 | c1 | FINISHED | 2036-05-12T08:00:00Z | AGE",
		"cr":                  "NAME | STATE | AGE\nistiod-main-istio-system-c1 | FAILED | AGE",
		"pbd":                 "NAME | CLUSTER | STATE | AGE\nistiod-main-istio-system-c1 | c1 | BOUNCING_PODS | AGE",
		"podbouncedirectives": "NAME | CLUSTER | STATE | AGE\nistiod-main-istio-system-c1 | c1 | BOUNCING_PODS | AGE",
	} {
		if diff := cmp.Diff(want, columns(kubectl(t, kubeconfig, "get", name))); diff != "" {
			t.Errorf("kubectl get %s: %s", name, diff)
		}
	}
	if got := columns(kubectl(t, kubeconfig, "get", "rtp", "-o", "wide")); !strings.HasSuffix(got, "| 2036-05-12T08:00:00Z | 2 of 3 clusters trust both roots") {
		t.Errorf("wide: %s", got)
	}
	var read adminv2.RootTrustPolicy
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(policy), &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(engine), string(read.Status.Rotation.Raw)); diff != "" && !strings.Contains(string(read.Status.Rotation.Raw), `"else":[1,"x"]`) {
		t.Errorf("the engine's record was cut: %s", diff)
	}
}
