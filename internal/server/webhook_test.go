package server

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/test/kubetest"
)

// configurations makes the webhook configurations as the chart does (no caBundle), but for an address instead of a Service, and for one namespace,
// so that the other tests of this package, which run beside, are left alone.
func configurations(t *testing.T, c client.Client, name, address, ns string) {
	t.Helper()
	fail, dry := admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNoneOnDryRun
	only := &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}}
	rules := func(ops ...admissionregistrationv1.OperationType) []admissionregistrationv1.RuleWithOperations {
		return []admissionregistrationv1.RuleWithOperations{{Operations: ops, Rule: admissionregistrationv1.Rule{
			APIGroups: []string{"admin.gloo.solo.io"}, APIVersions: []string{"v2"}, Resources: []string{"kubernetesclusters"},
		}}}
	}
	at := func(path string) admissionregistrationv1.WebhookClientConfig {
		u := "https://" + address + path
		return admissionregistrationv1.WebhookClientConfig{URL: &u}
	}
	for _, o := range []client.Object{
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "mutate.admin.gloo.solo.io", ClientConfig: at("/mutate"), Rules: rules("CREATE", "UPDATE"), FailurePolicy: &fail, SideEffects: &dry, AdmissionReviewVersions: []string{"v1"}, NamespaceSelector: only,
		}}},
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "validate.admin.gloo.solo.io", ClientConfig: at("/validate"), Rules: rules("CREATE", "UPDATE", "DELETE"), FailurePolicy: &fail, SideEffects: &dry, AdmissionReviewVersions: []string{"v1"}, NamespaceSelector: only,
		}}},
	} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

// The whole server with its webhook: it publishes its certificate, registers its own cluster through it, records who registers and deregisters,
// puts an edited caBundle back, and without it nothing is written.
func TestWebhookOfTheWholeServer(t *testing.T) {
	t.Parallel()
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	cfg.WebhookAddress, cfg.WebhookConfiguration, cfg.RegisterCluster = freeAddress(t), ns, "mgmt"
	configurations(t, c, ns, cfg.WebhookAddress, ns)
	r := run(t, cfg).awaitReady()
	await(t, c, ns, "mgmt", "PENDING Pending ")

	jane := kubetest.Client(t, kubetest.As(rc, "jane.doe@bank.example.com", "system:masters"))
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "prod-eu-west-3", Namespace: ns}}
	if err := jane.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	kc = await(t, c, ns, "prod-eu-west-3", "PENDING Pending ")
	if kc.Status.RegisteredBy != "jane.doe@bank.example.com" || kc.Status.RegisteredAt == nil || time.Since(kc.Status.RegisteredAt.Time) > time.Minute {
		t.Errorf("registered by %q at %v", kc.Status.RegisteredBy, kc.Status.RegisteredAt)
	}

	edited := &admissionregistrationv1.MutatingWebhookConfiguration{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: ns}, edited); err != nil {
		t.Fatal(err)
	}
	right := string(edited.Webhooks[0].ClientConfig.CABundle)
	edited.Webhooks[0].ClientConfig.CABundle = nil
	if err := c.Update(t.Context(), edited); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if err := c.Get(t.Context(), client.ObjectKey{Name: ns}, edited); err != nil || string(edited.Webhooks[0].ClientConfig.CABundle) != right {
			return fmt.Errorf("caBundle not put back: %w", err)
		}
		return nil
	})

	eventually(t, 10*time.Second, func() error { return client.IgnoreNotFound(jane.Delete(t.Context(), kc)) })
	eventually(t, 10*time.Second, func() error {
		want := []string{"Normal Deregistered: Deregistered by jane.doe@bank.example.com", "Normal Registered: Registered by jane.doe@bank.example.com"}
		if diff := cmp.Diff(want, events(t, c, ns, "prod-eu-west-3")); diff != "" {
			return fmt.Errorf("events: %s", diff)
		}
		return nil
	})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := jane.Create(t.Context(), &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "unrecorded", Namespace: ns}}); err == nil {
		t.Error("a write went through with nobody there to record it")
	}
}
