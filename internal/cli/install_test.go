package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionapi "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/internal/relay/family"
)

// relayFamily writes a real family of the relay's five Secrets.
func (w *world) relayFamily(c client.Client) *family.Family {
	w.t.Helper()
	fam, err := family.Generate(time.Now(), family.Options{ServerNames: defaultServerNames(w.ns)})
	w.must(err)
	data, err := fam.Secrets()
	w.must(err)
	chain, key, err := fam.NewClient("mgmt", time.Now(), time.Hour)
	w.must(err)
	for name, d := range map[string]map[string][]byte{
		secretRoot: data.Root, secretSigning: data.Signing, secretServer: data.Server,
		secretClient: {"tls.crt": chain, "tls.key": key, "ca.crt": data.Root["ca.crt"]},
		secretToken:  {"token": []byte("0123456789abcdef0123456789abcdef")},
	} {
		w.must(c.Create(w.t.Context(), &corev1.Secret{ObjectMeta: madeByServer(w.ns, name), Data: d}))
	}
	return fam
}

func (w *world) secret(c client.Client, name string) *corev1.Secret {
	w.t.Helper()
	var s corev1.Secret
	w.must(c.Get(w.t.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, &s))
	return &s
}

// family reads what the management cluster has.
func (w *world) family() *family.Family {
	w.t.Helper()
	secrets := map[string]*corev1.Secret{}
	for _, name := range relaySecrets() {
		secrets[name] = w.secret(w.mgmt, name)
	}
	fam, problems := family.Parse(familySecrets(secrets), time.Now())
	if fam == nil {
		w.t.Fatal(problems)
	}
	return fam
}

func TestRelayRepair(t *testing.T) {
	w := newWorld(t)
	fam := w.relayFamily(w.mgmt)
	check := func(code int, words ...string) {
		t.Helper()
		r := w.meshctl("relay", "check", "--mgmt-context", "mgmt")
		if r.code != code {
			t.Errorf("relay check: exit %d, want %d", r.code, code)
		}
		for _, word := range words {
			if !strings.Contains(r.out, word) {
				t.Errorf("relay check does not name %q", word)
			}
		}
	}
	check(ExitOK, "one chain")
	identity, key, err := fam.NewClient("cluster-1", time.Now(), time.Hour)
	w.must(err)
	// The server's Secret of another family, as after restoring half a backup.
	stranger, err := family.Generate(time.Now(), family.Options{ServerNames: defaultServerNames(w.ns)})
	w.must(err)
	data, err := stranger.Secrets()
	w.must(err)
	s := w.secret(w.mgmt, secretServer)
	s.Data = data.Server
	w.must(w.mgmt.Update(t.Context(), s))
	s = w.secret(w.mgmt, secretSigning)
	s.Data["tls.key"] = data.Signing["tls.key"]
	w.must(w.mgmt.Update(t.Context(), s))
	w.must(w.mgmt.Delete(t.Context(), w.secret(w.mgmt, secretToken)))
	check(ExitFailed, secretServer, secretSigning, "meshctl relay repair")
	root := w.secret(w.mgmt, secretRoot)

	if r := w.meshctl("relay", "repair", "--mgmt-context", "mgmt"); r.code != ExitOK || strings.Contains(r.out, "PRIVATE KEY") {
		t.Errorf("relay repair: exit %d", r.code)
	}
	check(ExitOK, "one chain")
	if diff := cmp.Diff(root.Data, w.secret(w.mgmt, secretRoot).Data); diff != "" {
		t.Error("repairing changed the root")
	}
	if problems := w.family().CheckClient(identity, key, "cluster-1", time.Now()); len(problems) > 0 {
		t.Errorf("the agents' certificates are refused after the repair: %v", problems)
	}
	if r := w.meshctl("relay", "repair", "--mgmt-context", "mgmt"); r.code != ExitOK || !strings.Contains(r.out, "nothing to repair") {
		t.Errorf("second repair: exit %d", r.code)
	}
}

func TestRelayRotate(t *testing.T) {
	w := newWorld(t)
	fam := w.relayFamily(w.mgmt)
	held := x509.NewCertPool() // what agents trust before the rotation
	for _, c := range fam.Bundle {
		held.AddCert(c)
	}
	identity, key, err := fam.NewClient("cluster-1", time.Now(), time.Hour)
	w.must(err)
	r := w.meshctl("relay", "rotate", "--mgmt-context", "mgmt")
	if r.code != ExitOK || strings.Contains(r.out, "PRIVATE KEY") {
		t.Fatalf("exit %d", r.code)
	}
	root := parseCertificates(w.secret(w.mgmt, secretRoot).Data["tls.crt"])[0]
	if !root.Equal(fam.Next.Cert) {
		t.Error("the root is not the former successor")
	}
	server := parseCertificates(w.secret(w.mgmt, secretServer).Data["tls.crt"])[0]
	if _, err := server.Verify(x509.VerifyOptions{Roots: held, DNSName: serverName + "." + w.ns}); err != nil {
		t.Errorf("agents that connected before the rotation refuse the server now: %v", err)
	}
	if problems := w.family().CheckClient(identity, key, "cluster-1", time.Now()); len(problems) > 0 {
		t.Errorf("the agents' certificates are refused: %v", problems)
	}
	if r := w.meshctl("relay", "check", "--mgmt-context", "mgmt", "-o", "json"); r.code != ExitOK {
		t.Errorf("check after rotating: exit %d", r.code)
	}
}

func TestRelayLeavesSuppliedSecrets(t *testing.T) {
	w := newWorld(t)
	w.relayFamily(w.mgmt)
	s := w.secret(w.mgmt, secretServer)
	s.Labels = nil
	w.must(w.mgmt.Update(t.Context(), s))
	root := w.secret(w.mgmt, secretRoot)
	w.refused(w.meshctl("relay", "rotate", "--mgmt-context", "mgmt"), ExitFailed, secretServer, "--force", "nothing was changed")
	if w.secret(w.mgmt, secretRoot).ResourceVersion != root.ResourceVersion {
		t.Error("something was changed")
	}
	if r := w.meshctl("relay", "rotate", "--mgmt-context", "mgmt", "--force"); r.code != ExitOK {
		t.Errorf("with --force: exit %d", r.code)
	}
}

func TestRelayWithoutSecrets(t *testing.T) {
	w := newWorld(t)
	w.refused(w.meshctl("relay", "check", "--mgmt-context", "mgmt"), ExitFailed, "meshctl install")
}

// webhook answers admission reviews with yes.
func webhook(t *testing.T) (*httptest.Server, []byte, *atomic.Int32) {
	t.Helper()
	var asked atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var review admissionapi.AdmissionReview
		_ = json.NewDecoder(r.Body).Decode(&review)
		review.Response = &admissionapi.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(server.Close)
	return server, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), &asked
}

// serve plays the management server and the cluster's network: the Deployment comes up, the five Secrets appear, and later the webhook answers.
func (w *world) serve(c client.WithWatch) *atomic.Int32 {
	w.t.Helper()
	server, ca, asked := webhook(w.t)
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		made := false
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			w.finalize(ctx)
			var d appsv1.Deployment
			if c.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: serverName}, &d) != nil {
				continue
			}
			d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1, ReadyReplicas: 1}
			_ = c.Status().Update(ctx, &d)
			if !made {
				w.relayFamily(c)
				made = true
			}
			config := admissionv1.WebhookClientConfig{URL: new(string), CABundle: ca}
			*config.URL = server.URL + "/validate"
			var m admissionv1.MutatingWebhookConfiguration
			if c.Get(ctx, client.ObjectKey{Name: serverName}, &m) == nil && m.Webhooks[0].ClientConfig.URL == nil {
				for i := range m.Webhooks {
					m.Webhooks[i].ClientConfig = config
				}
				_ = c.Update(ctx, &m)
			}
			var v admissionv1.ValidatingWebhookConfiguration
			if c.Get(ctx, client.ObjectKey{Name: serverName}, &v) == nil && v.Webhooks[0].ClientConfig.URL == nil {
				for i := range v.Webhooks {
					v.Webhooks[i].ClientConfig = config
				}
				_ = c.Update(ctx, &v)
			}
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
		_ = c.Delete(context.Background(), &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: serverName}})
		_ = c.Delete(context.Background(), &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: serverName}})
	})
	return asked
}

func TestInstallAndCheck(t *testing.T) {
	w := newWorld(t)
	if r := w.meshctl("check", "--kubecontext", "prod-eu-west-3", "--plain"); r.code != ExitFailed || !strings.Contains(r.out, "meshctl install") {
		t.Errorf("check before the installation: exit %d", r.code)
	}
	if r := w.meshctl("install", "--kubecontext", "prod-eu-west-3", "--dry-run"); r.code != ExitOK || !strings.Contains(r.out, "kind: CustomResourceDefinition") || !strings.Contains(r.out, "kind: ValidatingWebhookConfiguration") {
		t.Errorf("dry run: exit %d", r.code)
	}
	asked := w.serve(w.remote)
	r := w.meshctl("install", "--kubecontext", "prod-eu-west-3", "--set", "glooMgmtServer.serviceType=LoadBalancer", "--timeout", "30s")
	if r.code != ExitOK || asked.Load() == 0 {
		t.Fatalf("exit %d, webhook asked %d times", r.code, asked.Load())
	}
	var service corev1.Service
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: serverName}, &service))
	if service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		t.Errorf("Service is a %s", service.Spec.Type)
	}
	var probes adminv2.KubernetesClusterList
	w.must(w.remote.List(t.Context(), &probes, client.InNamespace(w.ns)))
	if len(probes.Items) != 0 {
		t.Errorf("the dry-run probe left %v", probes.Items)
	}
	// No clusters yet: a hint, no error.
	r = w.meshctl("check", "--kubecontext", "prod-eu-west-3", "--plain")
	if r.code != ExitOK || !strings.Contains(r.out, "no clusters are registered") || !strings.Contains(r.out, "[warning]") || strings.Contains(r.out, "[error]") {
		t.Errorf("check with no clusters: exit %d", r.code)
	}
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster-1", Namespace: w.ns}}
	w.must(w.remote.Create(t.Context(), kc))
	set := func(connection adminv2.ConnectionState) {
		t.Helper()
		now := metav1.Now()
		kc.Status = adminv2.KubernetesClusterStatus{Connection: connection, AgentVersion: "2.12.0", LastHeartbeat: &now}
		w.must(w.remote.Status().Update(t.Context(), kc))
	}
	set(adminv2.ConnectionConnected)
	if r := w.meshctl("check", "--kubecontext", "prod-eu-west-3", "--plain"); r.code != ExitOK || strings.Contains(r.out, "[warning]") {
		t.Errorf("check with everything well: exit %d", r.code)
	}
	set(adminv2.ConnectionDisconnected)
	r = w.meshctl("check", "--kubecontext", "prod-eu-west-3", "-o", "json")
	var report checkReport
	if err := json.Unmarshal([]byte(r.out), &report); err != nil || r.code != ExitFailed || report.Status != "error" {
		t.Errorf("check with a cluster out: exit %d, %v, %s", r.code, err, report.Status)
	}
	for args, want := range map[string]string{
		"cluster list":         "CLUSTER     NAMESPACE",
		"cluster list -o wide": "LAST HEARTBEAT",
		"cluster list -o json": `"status": "Disconnected"`,
		"cluster list -o yaml": "status: Disconnected",
		"version":              serverName,
		"version -o json":      `"version": "2.12.0"`,
	} {
		if r := w.meshctl(append(strings.Fields(args), "--kubecontext", "prod-eu-west-3")...); r.code != ExitOK || !strings.Contains(r.out, want) {
			t.Errorf("%s: exit %d, want %q", args, r.code, want)
		}
	}
	if r := w.meshctl("__complete", "--kubecontext", "prod-eu-west-3", "cluster", "deregister", "clu"); !strings.HasPrefix(r.out, "cluster-1\n") {
		t.Error("the cluster's name is not completed")
	}
	if r := w.meshctl("__complete", "cluster", "register", "x", "--mgmt-context", "mg"); !strings.HasPrefix(r.out, "mgmt\n") {
		t.Error("the context's name is not completed")
	}
	w.refused(w.meshctl("uninstall", "--kubecontext", "prod-eu-west-3"), ExitFailed, "cluster-1", "--force")
	if r := w.meshctl("uninstall", "--kubecontext", "prod-eu-west-3", "--force"); r.code != ExitOK {
		t.Errorf("uninstall: exit %d", r.code)
	}
	w.secret(w.remote, secretRoot) // kept: installing again takes up where it left
	if r := w.meshctl("uninstall", "--kubecontext", "prod-eu-west-3", "--purge", "--force"); r.code != ExitOK {
		t.Errorf("purge: exit %d", r.code)
	}
}

// TestUpgradeLeavesWhatOthersOwn: a Service type given by hand, and the caBundle that the server sets, survive upgrades; so do values given earlier.
func TestUpgradeLeavesWhatOthersOwn(t *testing.T) {
	w := newWorld(t)
	a := &app{log: newDiscard(), Globals: Globals{Kubeconfig: w.kubeconfig, Namespace: w.ns}}
	c, err := a.connect("", "prod-eu-west-3", "")
	w.must(err)
	w.must(w.remote.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.ns}}))
	h := &helm{cluster: c, namespace: w.ns, app: a}
	t.Cleanup(func() { _, _ = h.uninstall(charts.Platform) })
	values := map[string]any{"glooMgmtServer": map[string]any{"enabled": true}}
	apply := func(more map[string]any) {
		t.Helper()
		_, err := h.apply(t.Context(), charts.Platform, charts.Platform, merge(values, more))
		w.must(err)
	}
	apply(nil)
	var service corev1.Service
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: serverName}, &service))
	if service.Spec.Type != corev1.ServiceTypeClusterIP {
		t.Errorf("default type is %s", service.Spec.Type)
	}
	w.must(w.remote.Patch(t.Context(), &service, client.RawPatch(types.StrategicMergePatchType, []byte(`{"spec":{"type":"LoadBalancer"}}`)), client.FieldOwner("kubectl-patch")))
	var hook admissionv1.ValidatingWebhookConfiguration
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Name: serverName}, &hook))
	_, bundle, _ := webhook(t)
	hook.Webhooks[0].ClientConfig.CABundle = bundle
	w.must(w.remote.Update(t.Context(), &hook, client.FieldOwner("gloo-mesh-mgmt-server")))
	for _, more := range []map[string]any{
		nil,
		{"common": map[string]any{"verbose": true}},
		{"glooMgmtServer": map[string]any{"enabled": true, "serviceType": "ClusterIP"}}, // said in a values file all along
	} {
		apply(more)
		w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: serverName}, &service))
		if service.Spec.Type != corev1.ServiceTypeLoadBalancer {
			t.Errorf("values %v: an upgrade made the Service a %s", more, service.Spec.Type)
		}
		w.must(w.remote.Get(t.Context(), client.ObjectKey{Name: serverName}, &hook))
		if diff := cmp.Diff(string(bundle), string(hook.Webhooks[0].ClientConfig.CABundle)); diff != "" {
			t.Errorf("values %v: an upgrade changed the caBundle:\n%s", more, diff)
		}
	}
}
