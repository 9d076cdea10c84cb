package charts_test

import (
	"os"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// TestGuard: what RBAC can't withhold from the agent is withheld by admission, on a real API server: it has every right here.
func TestGuard(t *testing.T) {
	cfg := kubetest.Start(t)
	admin := kubetest.Client(t, cfg)
	agent := kubetest.Client(t, kubetest.As(cfg, "system:serviceaccount:gloo-mesh:gloo-mesh-agent", "system:masters"))
	other := kubetest.Client(t, kubetest.As(cfg, "system:serviceaccount:gloo-mesh:someone", "system:masters"))
	manifest, err := render(t, charts.Platform, map[string]any{"common": map[string]any{"cluster": "c1"}, "glooAgent": map[string]any{"enabled": true, "relay": map[string]any{"serverAddress": "m:9900"}}})
	if err != nil {
		t.Fatal(err)
	}
	var made []client.Object
	for _, p := range documents[admissionv1.ValidatingAdmissionPolicy](t, manifest, "ValidatingAdmissionPolicy") {
		made = append(made, &p)
	}
	for _, b := range documents[admissionv1.ValidatingAdmissionPolicyBinding](t, manifest, "ValidatingAdmissionPolicyBinding") {
		made = append(made, &b)
	}
	if len(made) != 10 {
		t.Fatalf("%d objects guard the agent", len(made))
	}
	for _, o := range made {
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = admin.Delete(t.Context(), o) }) //nolint:usetesting // the context has ended by then on purpose
	}
	ns := kubetest.Namespace(t, admin)
	token := func() *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "token-", Namespace: ns, Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}}, Type: corev1.SecretTypeServiceAccountToken,
		}
	}
	if err := admin.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: ns}}); err != nil {
		t.Fatal(err)
	}
	deploy := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "istiod", Namespace: ns}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "istiod"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "istiod"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "discovery", Image: "pilot:1"}}}},
	}}
	if err := admin.Create(t.Context(), deploy); err != nil {
		t.Fatal(err)
	}
	patch := func(c client.Client, text string) error {
		return c.Patch(t.Context(), deploy.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(text)))
	}
	const (
		restart = `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"now"}}}}}`
		image   = `{"spec":{"template":{"spec":{"containers":[{"name":"discovery","image":"theirs:1"}]}}}}`
	)
	refused := func(what, says string, try func() error) {
		t.Helper()
		var err error
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // a policy takes a moment to be in force
			if err = try(); err != nil {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("the token of a service account", "type Opaque only", func() error { return agent.Create(t.Context(), token()) })
	refused("another image", "changes nothing of what they run", func() error { return patch(agent, image) })
	if err := agent.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "cacerts", Namespace: ns}}); err != nil {
		t.Errorf("cacerts: %v", err)
	}
	if err := patch(agent, restart); err != nil {
		t.Errorf("a restart: %v", err)
	}
	if err := other.Create(t.Context(), token()); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	if err := patch(other, image); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	guardsServices(t, admin, agent, other, ns, refused)
}

// guardsServices: of Services the agent writes the labels that make them global, and stubs; of CoreDNS' ConfigMap its own key.
func guardsServices(t *testing.T, admin, agent, other client.Client, ns string, refused func(what, says string, try func() error)) {
	t.Helper()
	service := func(name string, labels, selector map[string]string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: labels}, Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Port: 80}}}}
	}
	web, stub := map[string]string{"app": "web"}, map[string]string{"gloo.solo.io/join-stub": "true"}
	theirs := service("theirs", web, web)
	if err := admin.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	patch := func(c client.Client, o client.Object, text string) error {
		return c.Patch(t.Context(), o.DeepCopyObject().(client.Object), client.RawPatch(types.MergePatchType, []byte(text)))
	}
	refused("a Service's selector", "changes nothing of what a Service is", func() error { return patch(agent, theirs, `{"spec":{"selector":{"app":"evil"}}}`) })
	refused("another label", "changes no labels", func() error { return patch(agent, theirs, `{"metadata":{"labels":{"app":null}}}`) })
	refused("a Service with endpoints", "makes no Services but stubs", func() error { return agent.Create(t.Context(), service("evil", stub, web)) })
	refused("a Service that is no stub", "makes no Services but stubs", func() error { return agent.Create(t.Context(), service("evil", web, nil)) })
	refused("somebody's Service", "deletes no Services but stubs", func() error { return agent.Delete(t.Context(), theirs.DeepCopy()) })
	if err := patch(agent, theirs, `{"metadata":{"labels":{"istio.io/global":"true"}}}`); err != nil {
		t.Errorf("the label: %v", err)
	}
	ours := service("stub", stub, nil)
	if err := agent.Create(t.Context(), ours); err != nil {
		t.Errorf("a stub: %v", err)
	}
	if err := agent.Delete(t.Context(), ours); err != nil {
		t.Errorf("a stub: %v", err)
	}
	if err := patch(other, theirs, `{"spec":{"selector":{"app":"new"}}}`); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	kubetest.Ensure(t, admin, "kube-system")
	dns := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "coredns-custom", Namespace: "kube-system"}, Data: map[string]string{"theirs.override": "log"}}
	if err := admin.Create(t.Context(), dns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Delete(t.Context(), dns) }) //nolint:usetesting // the context has ended by then on purpose
	refused("another key", "and no other", func() error { return patch(agent, dns, `{"data":{"theirs.override":"errors"}}`) })
	refused("another directive", "rewrites names of hosts", func() error { return patch(agent, dns, `{"data":{"ambit-segments.override":"forward . 192.0.2.1\n"}}`) })
	if err := patch(agent, dns, `{"data":{"ambit-segments.override":"rewrite name exact a.mesh.internal a.b.svc.cluster.local\n"}}`); err != nil {
		t.Errorf("its own key: %v", err)
	}
}
