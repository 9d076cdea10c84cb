package admission_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

const (
	trustHead   = "apiVersion: admin.gloo.solo.io/v2\nkind: RootTrustPolicy\nmetadata: {name: root-trust, namespace: gloo-mesh}\n"
	requestHead = "apiVersion: admin.gloo.solo.io/v2\nkind: RotationRequest\nmetadata: {name: chg-1234, namespace: gloo-mesh}\n"
)

// pageTrust is the operators' page, verbatim but for the indentation that the page lost.
const pageTrust = `
apiVersion: admin.gloo.solo.io/v2
kind: RootTrustPolicy
metadata:
  name: root-trust
  namespace: gloo-mesh
spec:
  config:
    mgmtServerCa:
      generated: {}
    intermediateCertOptions:
      secretRotationGracePeriodRatio: 0.5 # auto re-issue intermediates at 50% TTL
    autoRestartPods: true # gracefully roll workloads after rotation
    agentCa:
      vault: # source of truth = Vault
        caPath: pki_root/ca
        csrPath: pki_root/sign/intermediate
        server: https://vault.example.com:8200
        kubernetesAuth:
          role: gloo-mesh-mgmt
`

// The page's policy goes through as it is, and is stored as it was written: nothing is filled in, so that git and the cluster show the same.
func TestThePagesTrustPolicyIsAccepted(t *testing.T) {
	w := start(t)
	c, heard := w.listening(t)
	u := object(t, pageTrust)
	if err := c.Create(t.Context(), u, client.FieldValidation("Strict")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		`spec.config.agentCa.vault.csrPath: it names role intermediate, and Vault makes no CA certificates by roles: what it answers is refused if it is none. The path that makes them is "pki_root/root/sign-intermediate"`,
	}, heard.take()); diff != "" {
		t.Errorf("warnings: %s", diff)
	}
	stored := object(t, pageTrust)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(stored), stored); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(object(t, pageTrust).Object["spec"], stored.Object["spec"]); diff != "" {
		t.Errorf("spec: %s", diff)
	}
	if diff := cmp.Diff(map[string]string{securityv2.AnnotationChangedBy: "jane", securityv2.AnnotationChangedAt: "2026-02-12T10:14:00Z"}, stored.GetAnnotations()); diff != "" {
		t.Errorf("record: %s", diff)
	}
}

func TestPublishedTrustFormsAreAccepted(t *testing.T) {
	w := start(t)
	c, heard := w.listening(t)
	for name, spec := range map[string]string{
		"nothing":      `spec: {}`,
		"no spec":      ``,
		"generated":    `spec: {config: {mgmtServerCa: {generated: {ttlDays: 3650, rsaKeySizeBytes: 4096, orgName: gloo-mesh}}, intermediateCertOptions: {ttlDays: 365, rsaKeySizeBytes: 4096, secretRotationGracePeriodRatio: 0.1}, autoRestartPods: false}}`,
		"zero is none": `spec: {config: {mgmtServerCa: {generated: {ttlDays: 0, rsaKeySizeBytes: 0, orgName: "", secretRotationGracePeriodRatio: 0}}}}`,
		"supplied":     `spec: {config: {mgmtServerCa: {secretRef: {name: a, namespace: gloo-mesh}}, passiveCertificateAuthorities: [{secretRef: {name: b}}, {generated: {}}]}}`,
		"selection":    `spec: {applyToMeshes: [{istio: {revision: canary, namespace: istio-system, clusterSelector: {region: eu}, selector: {app: istiod}}}]}`,
		"vault":        `spec: {config: {agentCa: {vault: {caPath: pki/ca, csrPath: pki/root/sign-intermediate, server: "https://v", namespace: a, caSecretRef: {name: b}, kubernetesAuth: {mountPath: /v1/auth/kubernetes, role: r, secretTokenKey: token, serviceAccountRef: {name: d}}}}}}`,
		"vault, token": `spec: {config: {agentCa: {vault: {csrPath: pki/root/sign-intermediate, server: "https://v", caLocalPath: /a, tokenSecretRef: {name: c}}}}}`,
		"AWS":          `spec: {config: {agentCa: {awsPrivateCa: {arn: "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"}}}}`,
		"cert-manager": `spec: {config: {agentCa: {certManager: {issuerRef: {name: root, kind: ClusterIssuer}}}}}`,
		"additions":    `spec: {config: {mgmtServerCa: {generated: {keyAlgorithm: ECDSA-P384}}}, rotation: {canary: c3, soak: 10m, crossSign: true, longestLeaf: 24h, foreignClients: true}, existingCacerts: Adopt, crl: WhenNeeded}`,
	} {
		if err := c.Create(t.Context(), object(t, trustHead+spec), client.FieldValidation("Strict"), client.DryRunAll); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if lines := heard.take(); len(lines) > 0 {
			t.Errorf("%s: warnings %q", name, lines)
		}
	}
}

// Each answer says the mistake and the fix, also where the CRD alone would refuse.
func TestTrustErrorsAreAnswered(t *testing.T) {
	w := start(t)
	kubetest.Ensure(t, w.admin, "elsewhere")
	for name, tc := range map[string]struct{ object, want string }{
		"options nested":  {strings.Replace(pageTrust, "    intermediateCertOptions:\n      secret", "      intermediateCertOptions:\n        secret", 1), `RootTrustPolicy "root-trust": spec.config.mgmtServerCa.intermediateCertOptions: Forbidden: unknown field here: did you mean "intermediateCertOptions" of "config"? (indent it less)`},
		"misspelt":        {trustHead + `spec: {config: {mgmtServerCA: {}}}`, `did you mean "mgmtServerCa"?`},
		"elsewhere":       {strings.Replace(trustHead, "gloo-mesh", "elsewhere", 1), `create it in namespace "gloo-mesh"`},
		"bits":            {trustHead + `spec: {config: {mgmtServerCa: {generated: {rsaKeySizeBytes: 512}}}}`, `it is in bits, despite its name`},
		"ratio":           {trustHead + `spec: {config: {intermediateCertOptions: {secretRotationGracePeriodRatio: 50}}}`, `for 50 % write 0.5`},
		"days":            {trustHead + `spec: {config: {intermediateCertOptions: {ttlDays: 36501}}}`, `at most 36500 days`},
		"other namespace": {trustHead + `spec: {config: {mgmtServerCa: {secretRef: {name: a, namespace: kube-system}}}}`, `of its own namespace only`},
		"two roots":       {trustHead + `spec: {config: {mgmtServerCa: {generated: {}, secretRef: {name: a}}}}`, `write one of them`},
		"no CA":           {trustHead + `spec: {config: {agentCa: {}}}`, `which? write vault`},
		"vault":           {trustHead + `spec: {config: {agentCa: {vault: {}}}}`, `where is Vault?`},
		"vault: PEM":      {trustHead + `spec: {config: {agentCa: {vault: {caBundle: "-----BEGIN CERTIFICATE-----"}}}}`, `the output of base64 -w0`},
		"adopt":           {trustHead + `spec: {existingCacerts: true}`, `want a string`},
		"request":         {requestHead + `spec: {policy: p, action: pause, reason: x}`, `RotationRequest "chg-1234": spec.action: Invalid value: "pause": did you mean Pause?`},
		"request: fence":  {requestHead + `spec: {policy: p, action: Fence, reason: x}`, `which clusters?`},
		"request: reason": {requestHead + `spec: {policy: p, action: Pause}`, `spec.reason: Required value: why?`},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.admin.Create(t.Context(), object(t, tc.object), client.FieldValidation("Strict"))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

// Two policies for one mesh are refused by name, as far as the server knows of the other.
func TestTwoPoliciesForOneMesh(t *testing.T) {
	w := start(t)
	w.mu.Lock()
	w.snap = &mesh.Snapshot{
		Clusters:     []mesh.Cluster{{Name: "eu-1", Labels: map[string]string{"region": "eu"}}},
		RootPolicies: []*mesh.RootTrustPolicy{{Source: mesh.Ref{Namespace: "gloo-mesh", Name: "first"}}},
	}
	w.mu.Unlock()
	second := trustHead + `spec: {applyToMeshes: [{istio: {clusterSelector: {region: eu}}}]}`
	if err := w.admin.Create(t.Context(), object(t, second)); err == nil || !strings.Contains(err.Error(), `RootTrustPolicy "first" selects eu-1 already`) {
		t.Error(err)
	}
	elsewhere := trustHead + `spec: {applyToMeshes: [{istio: {clusterSelector: {region: us}}}]}`
	if err := w.admin.Create(t.Context(), object(t, elsewhere)); err != nil {
		t.Error(err)
	}
}

// A policy can't go in the middle of a rotation; otherwise it can, and one hears what that means.
func TestDeletingATrustPolicy(t *testing.T) {
	w := start(t)
	c, heard := w.listening(t)
	p := &adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Name: "root-trust", Namespace: "gloo-mesh"}}
	if err := c.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	until := metav1.NewTime(time.Date(2027, 2, 12, 0, 0, 0, 0, time.UTC))
	p.Status = adminv2.RootTrustPolicyStatus{Phase: adminv2.PhaseSwitching, Clusters: []adminv2.ClusterTrustStatus{{Name: "c1", Until: &until}}}
	if err := c.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), p); err == nil || !strings.Contains(err.Error(), `RootTrustPolicy "root-trust": a rotation of its root is under way (Switching)`) {
		t.Errorf("deleted in the middle of a rotation: %v", err)
	}
	p.Spec.Config = &adminv2.RootTrustConfig{AutoRestartPods: true}
	heard.take()
	if err := c.Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`spec: a rotation is under way (Switching): a change of the root takes effect when it has ended`}, heard.take()); diff != "" {
		t.Error(diff)
	}
	p.Status.Phase = adminv2.PhaseSteady
	if err := c.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	heard.take()
	if err := c.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if lines := heard.take(); len(lines) != 1 || !strings.Contains(lines[0], "the first, of cluster c1, ends on 2027-02-12") {
		t.Errorf("warnings %q", lines)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff([]string{"jane root-trust"}, w.deleted); diff != "" {
		t.Errorf("recorded deletions: %s", diff)
	}
}

// A rotation that is abandoned on purpose lets its policy go; so does one whose object is going already.
func TestAbandonedTrustPolicyGoes(t *testing.T) {
	w := start(t)
	for name, change := range map[string]func(*adminv2.RootTrustPolicy){
		"abandoned": func(p *adminv2.RootTrustPolicy) {
			p.Annotations[adminv2.AnnotationAbandonRotation] = "true"
		},
		"going": func(p *adminv2.RootTrustPolicy) {
			p.Finalizers = []string{"example.com/keep"}
		},
	} {
		p := &adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "gloo-mesh"}}
		if err := w.admin.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		change(p)
		if err := w.admin.Update(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if name == "going" {
			if err := w.admin.Delete(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
				t.Fatal(err)
			}
		}
		p.Status.Phase = adminv2.PhaseSwitching
		if err := w.admin.Status().Update(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if err := w.admin.Delete(t.Context(), p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "going" {
			p.Finalizers = nil
			if err := w.admin.Update(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
	}
}

// A request is recorded with who made it, and can't be changed, not even by them.
func TestRotationRequestsAreRecords(t *testing.T) {
	w := start(t)
	jane := w.as(t, "jane")
	u := object(t, requestHead+`spec: {policy: root-trust, action: Pause, reason: freeze}`)
	u.SetAnnotations(map[string]string{securityv2.AnnotationChangedBy: "somebody.else"})
	if err := jane.Create(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	if got := u.GetAnnotations()[securityv2.AnnotationChangedBy]; got != "jane" {
		t.Errorf("recorded %q", got)
	}
	changed := u.DeepCopy()
	if err := unstructured.SetNestedField(changed.Object, "Resume", "spec", "action"); err != nil {
		t.Fatal(err)
	}
	if err := jane.Update(t.Context(), changed); err == nil || !strings.Contains(err.Error(), "create another") {
		t.Errorf("a request was changed: %v", err)
	}
	u.Object["status"] = map[string]any{"state": "Done", "message": "paused in AddingRoot", "by": "jane"}
	if err := w.as(t, "system:serviceaccount:gloo-mesh:gloo-mesh-mgmt-server").Status().Update(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	c, heard := w.listening(t)
	if err := c.Delete(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	if lines := heard.take(); len(lines) != 1 || !strings.Contains(lines[0], "the rotation goes on once this is gone") {
		t.Errorf("warnings %q", lines)
	}
}

// Past the webhook the CRDs still refuse what can't be meant.
func TestTrustSchemasRefuseWithoutTheWebhook(t *testing.T) {
	cfg := kubetest.Start(t)
	c := kubetest.Client(t, cfg)
	kubetest.Ensure(t, c, "gloo-mesh")
	eventually(t, func() error { return c.Create(t.Context(), object(t, trustHead), client.DryRunAll) }) // the webhook of the test before is forgotten
	if err := c.Create(t.Context(), object(t, pageTrust), client.FieldValidation("Strict"), client.DryRunAll); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct{ object, want string }{
		"two roots":    {trustHead + `spec: {config: {mgmtServerCa: {generated: {}, secretRef: {name: a}}}}`, "write generated or secretRef"},
		"no CA":        {trustHead + `spec: {config: {agentCa: {}}}`, "write one of vault"},
		"login":        {trustHead + `spec: {config: {agentCa: {vault: {server: "https://v"}}}}`, "write one of tokenSecretRef"},
		"bundles":      {trustHead + `spec: {config: {agentCa: {vault: {server: "https://v", tokenSecretRef: {name: a}, caLocalPath: /a, caSecretRef: {name: a}}}}}`, "write one of caBundle"},
		"role":         {trustHead + `spec: {config: {agentCa: {vault: {server: "https://v", kubernetesAuth: {}}}}}`, "role"},
		"bits":         {trustHead + `spec: {config: {mgmtServerCa: {generated: {rsaKeySizeBytes: 512}}}}`, "in bits"},
		"days":         {trustHead + `spec: {config: {mgmtServerCa: {generated: {ttlDays: 36501}}}}`, "ttlDays"},
		"ratio":        {trustHead + `spec: {config: {mgmtServerCa: {generated: {secretRotationGracePeriodRatio: 1}}}}`, "more than 0 and less than 1"},
		"passive":      {trustHead + `spec: {config: {passiveCertificateAuthorities: [{}]}}`, "write generated or secretRef"},
		"soak":         {trustHead + `spec: {rotation: {soak: 721h}}`, "want 0s to 720h"},
		"adopt":        {trustHead + `spec: {existingCacerts: yes please}`, "Adopt"},
		"fence":        {requestHead + `spec: {policy: p, action: Fence, reason: x}`, "which clusters?"},
		"pause of one": {requestHead + `spec: {policy: p, action: Pause, clusters: [a], reason: x}`, "of single clusters"},
		"emergency":    {requestHead + `spec: {policy: p, action: Pause, emergency: true, reason: x}`, "can be an emergency"},
		"action":       {requestHead + `spec: {policy: p, action: Stop, reason: x}`, "spec.action"},
		"blank":        {requestHead + `spec: {policy: p, action: Pause, reason: " "}`, "spec.reason"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.Create(t.Context(), object(t, tc.object), client.DryRunAll); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
	request := object(t, requestHead+`spec: {policy: p, action: Pause, reason: x}`)
	if err := c.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Delete(t.Context(), request); err != nil {
			t.Error(err)
		}
	}()
	changed := request.DeepCopy()
	if err := unstructured.SetNestedField(changed.Object, "Resume", "spec", "action"); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), changed); err == nil || !strings.Contains(err.Error(), "create another") {
		t.Errorf("a request was changed: %v", err)
	}
}
