package admission_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/admission"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/validate"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

var registered = time.Date(2026, 2, 12, 10, 14, 0, 0, time.UTC)

// webhook is a running webhook, and the API server that asks it.
type webhook struct {
	cfg   *rest.Config
	admin client.Client
	certs *admission.Certificates
	stop  func()

	mu      sync.Mutex
	now     time.Time
	deleted []string
	snap    *mesh.Snapshot // what the server knows
	records []audit.Record
	full    error // why nothing can be recorded
}

func (w *webhook) record(_ context.Context, r ...audit.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full != nil {
		return w.full
	}
	for i := range r {
		w.records = append(w.records, audit.Clean(r[i]))
	}
	return nil
}

func (w *webhook) snapshot() *mesh.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snap
}

func start(t *testing.T) *webhook {
	t.Helper()
	w := &webhook{cfg: kubetest.Start(t), now: registered}
	w.admin = kubetest.Client(t, w.cfg)
	kubetest.Ensure(t, w.admin, "gloo-mesh")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	register(t, w.admin, "https://"+l.Addr().String())
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	w.certs = admission.NewCertificates(w.admin, "gloo-mesh", "gloo-mesh-mgmt-server", admission.ServerNames("w", "gloo-mesh", "cluster.local"), log)
	if err := w.certs.Keep(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	h := admission.NewHandler(validate.Options{AdminNamespace: "gloo-mesh", Snapshot: w.snapshot}, w.clock, log, func(d admission.Deletion) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.deleted = append(w.deleted, d.User+" "+d.Object.GetName())
	}, w.record)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- admission.Serve(ctx, l, h, w.certs, log) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		w.stop()
		for _, o := range []client.Object{&admissionregistrationv1.MutatingWebhookConfiguration{}, &admissionregistrationv1.ValidatingWebhookConfiguration{}} {
			o.SetName("gloo-mesh-mgmt-server")
			if err := w.admin.Delete(context.Background(), o); err != nil {
				t.Error(err)
			}
		}
		eventually(t, func() error { return deleteAll(w.admin) }) // once the API server has learnt that there is nobody to ask
	})
	// the API server learns of configurations by a watch: wait until it asks
	eventually(t, func() error {
		kc := cluster("probe")
		if err := w.admin.Create(t.Context(), kc, client.DryRunAll); err != nil {
			return err
		}
		if kc.Annotations[adminv2.AnnotationRegisteredBy] == "" {
			return fmt.Errorf("not asked yet")
		}
		return nil
	})
	return w
}

func (w *webhook) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *webhook) later(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func deleteAll(c client.Client) error {
	for _, o := range []client.Object{&adminv2.KubernetesCluster{}, &adminv2.Workspace{}, &adminv2.WorkspaceSettings{}, &adminv2.RootTrustPolicy{}, &adminv2.RotationRequest{}, &securityv2.AccessPolicy{}, &securityv2.PolicyOverride{}} {
		if err := c.DeleteAllOf(context.Background(), o, client.InNamespace("gloo-mesh")); err != nil {
			return err
		}
	}
	return nil
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// register makes the configurations as the chart does, but for an address instead of a Service.
func register(t *testing.T, c client.Client, url string) {
	t.Helper()
	fail, scope, none, dry := admissionregistrationv1.Fail, admissionregistrationv1.NamespacedScope, admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.SideEffectClassNoneOnDryRun
	five := int32(5)
	rules := func(ops ...admissionregistrationv1.OperationType) []admissionregistrationv1.RuleWithOperations {
		return []admissionregistrationv1.RuleWithOperations{
			{Operations: ops, Rule: admissionregistrationv1.Rule{
				APIGroups: []string{"admin.gloo.solo.io"}, APIVersions: []string{"v2"}, Resources: []string{"kubernetesclusters", "workspaces", "workspacesettings", "roottrustpolicies", "rotationrequests"}, Scope: &scope,
			}},
			{Operations: ops, Rule: admissionregistrationv1.Rule{
				APIGroups: []string{"security.policy.gloo.solo.io"}, APIVersions: []string{"v2"}, Resources: []string{"accesspolicies", "policyoverrides"}, Scope: &scope,
			}},
		}
	}
	at := func(path string) admissionregistrationv1.WebhookClientConfig {
		u := url + path
		return admissionregistrationv1.WebhookClientConfig{URL: &u}
	}
	name := metav1.ObjectMeta{Name: "gloo-mesh-mgmt-server"}
	for _, o := range []client.Object{
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: name, Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "mutate.admin.gloo.solo.io", ClientConfig: at("/mutate"), Rules: rules("CREATE", "UPDATE"), FailurePolicy: &fail, SideEffects: &none, TimeoutSeconds: &five, AdmissionReviewVersions: []string{"v1"},
		}}},
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: name, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "validate.admin.gloo.solo.io", ClientConfig: at("/validate"), Rules: rules("CREATE", "UPDATE", "DELETE"), FailurePolicy: &fail, SideEffects: &dry, TimeoutSeconds: &five, AdmissionReviewVersions: []string{"v1"},
		}}},
	} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

func cluster(name string) *adminv2.KubernetesCluster {
	return &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "gloo-mesh"}}
}

func (w *webhook) as(t *testing.T, user string) client.Client {
	return kubetest.Client(t, kubetest.As(w.cfg, user, "system:masters"))
}

func TestWhoRegisteredIsRecordedAndKept(t *testing.T) {
	w := start(t)
	jane, mallory := w.as(t, "jane.doe@bank.example.com"), w.as(t, "mallory")
	record := map[string]string{adminv2.AnnotationRegisteredBy: "jane.doe@bank.example.com", adminv2.AnnotationRegisteredAt: "2026-02-12T10:14:00Z"}
	is := func(want map[string]string) {
		t.Helper()
		kc := cluster("prod-eu-west-3")
		if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(kc), kc); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, kc.Annotations); diff != "" {
			t.Errorf("annotations: %s", diff)
		}
	}
	kc := cluster("prod-eu-west-3")
	kc.Annotations = map[string]string{adminv2.AnnotationRegisteredBy: "somebody.else"}
	if err := jane.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	is(record)

	for _, value := range []string{"mallory", ""} {
		change := client.MergeFrom(kc.DeepCopy())
		forged := kc.DeepCopy()
		forged.Annotations[adminv2.AnnotationRegisteredBy] = value
		err := mallory.Patch(t.Context(), forged, change)
		if !errors.IsInvalid(err) || !strings.Contains(err.Error(), "registered-by") {
			t.Errorf("registered-by=%q: %v; want a refusal that names the annotation", value, err)
		}
	}
	is(record)

	// a manifest from git, which has no annotations, replaces the object
	plain := cluster("prod-eu-west-3")
	plain.ResourceVersion, plain.Labels = kc.ResourceVersion, map[string]string{"region": "eu"}
	if err := mallory.Update(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	is(record)

	if err := mallory.Delete(t.Context(), plain, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if err := mallory.Delete(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff([]string{"mallory prod-eu-west-3"}, w.deleted); diff != "" {
		t.Errorf("recorded deletions: %s", diff)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	w := start(t)
	kubetest.Ensure(t, w.admin, "elsewhere")
	for name, tc := range map[string]struct{ object, want string }{
		"misspelt field": {
			`{"apiVersion":"admin.gloo.solo.io/v2","kind":"KubernetesCluster","metadata":{"name":"a","namespace":"gloo-mesh"},"spec":{"clusterDomian":"x.y"}}`,
			`KubernetesCluster "a": spec.clusterDomian: Forbidden: unknown field: did you mean "clusterDomain"?`,
		},
		"indentation": {
			`{"apiVersion":"admin.gloo.solo.io/v2","kind":"KubernetesCluster","metadata":{"name":"a","namespace":"gloo-mesh"},"skipWarming":true}`,
			`KubernetesCluster "a": skipWarming: Forbidden: unknown field here: did you mean "skipWarming" inside "spec"? (indent it further)`,
		},
		"name": {`{"apiVersion":"admin.gloo.solo.io/v2","kind":"KubernetesCluster","metadata":{"name":"prod.eu","namespace":"gloo-mesh"}}`, `no '_' or '.'`},
		"domain": {
			`{"apiVersion":"admin.gloo.solo.io/v2","kind":"KubernetesCluster","metadata":{"name":"a","namespace":"gloo-mesh"},"spec":{"clusterDomain":"Not A Domain"}}`,
			`spec.clusterDomain: Invalid value: "Not A Domain"`,
		},
		"namespace": {`{"apiVersion":"admin.gloo.solo.io/v2","kind":"KubernetesCluster","metadata":{"name":"a","namespace":"elsewhere"}}`, `create it in namespace "gloo-mesh"`},
	} {
		t.Run(name, func(t *testing.T) {
			u := &unstructured.Unstructured{}
			if err := u.UnmarshalJSON([]byte(tc.object)); err != nil {
				t.Fatal(err)
			}
			err := w.admin.Create(t.Context(), u, client.FieldValidation("Strict")) // as kubectl does
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
	good := &unstructured.Unstructured{}
	if err := good.UnmarshalJSON([]byte(`{"apiVersion":"admin.gloo.solo.io/v2","kind":"KubernetesCluster","metadata":{"name":"prod-eu-west-3","namespace":"gloo-mesh"},"spec":{"clusterDomain":"cluster.local"}}`)); err != nil {
		t.Fatal(err)
	}
	if err := w.admin.Create(t.Context(), good, client.FieldValidation("Strict")); err != nil {
		t.Errorf("the page's manifest: %v", err)
	}
}

func TestWebhookDownRefusesWrites(t *testing.T) {
	w := start(t)
	w.stop()
	if err := w.admin.Create(t.Context(), cluster("unrecorded")); err == nil {
		t.Error("a write went through with nobody there to record it")
	}
	var list adminv2.KubernetesClusterList
	if err := w.admin.List(t.Context(), &list, client.InNamespace("gloo-mesh")); err != nil || len(list.Items) != 0 {
		t.Errorf("stored: %d, %v", len(list.Items), err)
	}
}

func TestBundleIsRestoredAndCertificateShared(t *testing.T) {
	w := start(t)
	get := func() *admissionregistrationv1.ValidatingWebhookConfiguration {
		v := &admissionregistrationv1.ValidatingWebhookConfiguration{}
		if err := w.admin.Get(t.Context(), client.ObjectKey{Name: "gloo-mesh-mgmt-server"}, v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	right := get().Webhooks[0].ClientConfig.CABundle
	edited := get()
	ignore := admissionregistrationv1.Ignore
	edited.Webhooks[0].ClientConfig.CABundle, edited.Webhooks[0].FailurePolicy = nil, &ignore
	if err := w.admin.Update(t.Context(), edited); err != nil {
		t.Fatal(err)
	}
	if err := w.certs.Keep(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(right, get().Webhooks[0].ClientConfig.CABundle); diff != "" {
		t.Errorf("caBundle was not put back: %s", diff)
	}
	if got := *get().Webhooks[0].FailurePolicy; got != admissionregistrationv1.Fail {
		t.Errorf("failurePolicy %s was left", got)
	}
	version := get().ResourceVersion
	standby := admission.NewCertificates(w.admin, "gloo-mesh", "gloo-mesh-mgmt-server", nil, slog.New(slog.DiscardHandler))
	if err := standby.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	mine, err1 := w.certs.Get(nil)
	theirs, err2 := standby.Get(nil)
	if err1 != nil || err2 != nil || !mine.Leaf.Equal(theirs.Leaf) {
		t.Errorf("replicas serve different certificates (%v, %v)", err1, err2)
	}
	if err := w.certs.Keep(t.Context(), time.Now()); err != nil || get().ResourceVersion != version {
		t.Errorf("nothing to do, but something was written (%v)", err)
	}
	// 80 days later the serving certificate is renewed, both replicas take it up without a restart
	if err := w.certs.Keep(t.Context(), time.Now().Add(80*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := standby.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	renewed, _ := standby.Get(nil)
	if renewed.Leaf.Equal(mine.Leaf) {
		t.Error("not renewed")
	}
	if err := w.admin.Create(t.Context(), cluster("after-renewal")); err != nil {
		t.Error(err)
	}
	// Secret deleted by mistake: made again, told to the API server, writes work
	if err := w.admin.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: admission.Secret, Namespace: "gloo-mesh"}}); err != nil {
		t.Fatal(err)
	}
	if err := w.certs.Keep(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return client.IgnoreAlreadyExists(w.admin.Create(t.Context(), cluster("after-loss"))) })
}
