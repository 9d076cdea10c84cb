package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/agent"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/version"
)

// An agent's first hour: installed before its cluster is registered, registered, told what to apply.
func TestFirstHour(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, token)
	s.secret("relay-identity-token-secret", map[string][]byte{"token": []byte("shared-token-of-the-test")})
	s.run()

	s.within(10*time.Second, "ready without a registration: its Deployment must become Available", s.ready)
	s.within(10*time.Second, "the log says what is missing", func() bool { return strings.Contains(s.log.String(), "not registered") })
	if h.connected() {
		t.Fatal("connected without a registration")
	}
	h.register()
	began := time.Now()
	s.within(10*time.Second, "connected", h.connected)
	t.Logf("connected %s after the registration", time.Since(began).Round(time.Millisecond))

	s.within(5*time.Second, "the used token is deleted", func() bool { return s.data("relay-registration-token") == nil })
	own := s.data("relay-client-tls-secret")
	if diff := cmp.Diff([]string{"tls.crt", "tls.key"}, slices.Sorted(maps.Keys(own))); diff != "" {
		t.Errorf("keys of the client Secret:\n%s", diff)
	}
	if s.data("relay-identity-token-secret") == nil {
		t.Error("the shared token was deleted")
	}
	if diff := cmp.Diff(h.roots(), s.data("relay-root-tls-secret")["ca.crt"]); diff != "" {
		t.Errorf("the stored roots are not the hub's:\n%s", diff)
	}

	s.within(10*time.Second, "a complete inventory", func() bool {
		_, complete := h.hub.Inventory(name)
		return complete
	})
	var ns mesh.Namespace
	if !h.item(mesh.ItemNamespace, s.namespace, &ns) {
		t.Error("the inventory lacks the agent's own namespace")
	}

	h.publish(true, s.configMap("one", "1"))
	s.within(10*time.Second, "the object is applied", func() bool { return strings.HasPrefix(s.value("one"), "1 ") })
	s.within(10*time.Second, "its outcome is reported", func() bool {
		var o mesh.Outcome
		return h.item(mesh.ItemOutcome, "/v1/ConfigMap/"+s.namespace+"/one", &o) && o.OK
	})

	var st map[string]any
	if _, raw := s.get(s.cfg.MetricsAddress + "/status"); json.Unmarshal([]byte(raw), &st) != nil || st["connected"] != true || st["version"] != version.Version || st["lastError"] != "" {
		t.Errorf("status: %v", st)
	}
	_, m := s.get(s.cfg.MetricsAddress + "/metrics")
	for _, want := range []string{`relay_agent_connected{cluster="prod-eu-west-3"} 1`, `gloo_mesh_agent_objects_applied{cluster="prod-eu-west-3"} 1`, `gloo_mesh_agent_objects_failed{cluster="prod-eu-west-3"} 0`} {
		if !strings.Contains(m, want) {
			t.Errorf("no %s in the metrics:\n%s", want, m)
		}
	}
	log := s.log.String()
	for what, secret := range map[string]string{"the registration token": token, "the shared token": "shared-token-of-the-test", "a private key": "PRIVATE KEY", "the private key": string(own["tls.key"][40:80])} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds %s", what)
		}
	}

	// Another life with the stored identity: no token, no enrolment, the same key.
	before := h.sessions()
	s.stop()
	s.run()
	s.within(10*time.Second, "connected again", func() bool { return len(h.sessions()) > len(before) })
	if after := h.sessions(); after[len(after)-1].Key != before[0].Key {
		t.Error("a restart made another key")
	}
}

// Whoever replaces the agent's Secrets by hand need not restart it.
func TestReplacedSecretsAreTakenLive(t *testing.T) {
	h := newHub(t)
	h.register()
	s := newSite(t, h, token)
	s.run()
	s.within(10*time.Second, "connected", h.connected)
	first := h.sessions()[0]

	mint := func(n mesh.ClusterName) map[string][]byte {
		chain, key, err := h.family.NewClient(n, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{"tls.crt": chain, "tls.key": key, "ca.crt": family.CertPEM(h.family.Signing.Cert.Raw)}
	}
	s.secret("relay-client-tls-secret", mint(name))
	s.within(10*time.Second, "a session with the new key", func() bool {
		all := h.sessions()
		return all[len(all)-1].Key != first.Key
	})
	if _, kept := s.data("relay-client-tls-secret")["ca.crt"]; !kept {
		t.Error("a key of the Secret that is not ours was removed")
	}

	// A certificate of another cluster: both names are said, and where people look.
	s.secret("relay-client-tls-secret", mint("cluster-1"))
	s.within(10*time.Second, "the status names both clusters", func() bool {
		_, raw := s.get(s.cfg.MetricsAddress + "/status")
		return strings.Contains(raw, `"connected":false`) && strings.Contains(raw, "cluster-1") && strings.Contains(raw, string(name))
	})
	if !s.ready() {
		t.Error("not ready: a restart by the kubelet would not help")
	}
	s.secret("relay-client-tls-secret", mint(name))
	s.within(10*time.Second, "connected with its own again", h.connected)

	// Another root: said so.
	other := newHub(t)
	s.secret("relay-root-tls-secret", map[string][]byte{"ca.crt": other.roots()})
	s.within(10*time.Second, "the status names the Secret to mend", func() bool {
		_, raw := s.get(s.cfg.MetricsAddress + "/status")
		return strings.Contains(raw, `"connected":false`) && strings.Contains(raw, "relay-root-tls-secret")
	})
	s.secret("relay-root-tls-secret", map[string][]byte{"ca.crt": h.roots()})
	s.within(10*time.Second, "connected", h.connected)
}

// A token that arrives later (meshctl cluster register after a deregistration) is used at once.
func TestTokenArrivesLater(t *testing.T) {
	h := newHub(t)
	h.register()
	s := newSite(t, h, "")
	s.run()
	s.within(10*time.Second, "ready", s.ready)
	s.within(10*time.Second, "the log says that there is neither certificate nor token", func() bool { return strings.Contains(s.log.String(), "token") })
	s.secret("relay-registration-token", map[string][]byte{"token": []byte(token)})
	s.within(5*time.Second, "connected", h.connected)
}

// TestLeastRights lists every right the agent needs; the chart grants these.
func TestLeastRights(t *testing.T) {
	h := newHub(t)
	h.register()
	s := newSite(t, h, token)
	rule := func(group, resources, verbs string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: strings.Split(resources, ","), Verbs: strings.Split(verbs, ","), ResourceNames: names}
	}
	s.cfg.IstioNamespace, s.cfg.IstioTokenFile = s.namespace, tokenFile(t)
	s.actAs([]rbacv1.PolicyRule{
		rule("", "secrets", "get,list,watch,update", "cacerts", "gloo-mesh-cacerts-keys"), // in istiod's namespace, as deployments
		rule("apps", "deployments", "patch"),
		rule("", "secrets", "create"), // its own, at enrolment; a create can't be bound to a name
		rule("", "secrets", "get,list,watch,update,delete", s.cfg.Secrets.Root, s.cfg.Secrets.Client, s.cfg.Secrets.Registration, s.cfg.Secrets.Identity),
		rule("", "configmaps", "get,list,watch,create,patch,delete"),
	}, []rbacv1.PolicyRule{
		rule("", "namespaces", "get", "kube-system"),
		rule("", "namespaces,services,serviceaccounts,pods", "list,watch"),
		rule("apps", "deployments,statefulsets,daemonsets", "list,watch"),
		rule("batch", "jobs,cronjobs", "list,watch"),
		rule("", "configmaps", "list,watch", "istio", "istio-ca-root-cert", "istio-ca-crl"),
		rule("admissionregistration.k8s.io", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "list,watch"),
		rule("gateway.networking.k8s.io", "gateways", "list,watch"),
		rule("security.istio.io", "authorizationpolicies", "get,list,watch,create,update,patch,delete"),
		rule("security.istio.io", "peerauthentications", "get,list,watch,create,update,patch,delete"),
		rule("", "events", "create"),
	})
	s.run()
	s.within(10*time.Second, "connected", h.connected)
	s.within(10*time.Second, "a complete inventory", func() bool {
		_, complete := h.hub.Inventory(name)
		return complete
	})
	s.within(5*time.Second, "the used token is deleted", func() bool { return s.data("relay-registration-token") == nil })
	h.publish(true, s.configMap("one", "1"), s.configMap("two", "2"))
	s.within(10*time.Second, "applied", func() bool { return strings.HasPrefix(s.value("one"), "1 ") && strings.HasPrefix(s.value("two"), "2 ") })
	h.publish(true, s.configMap("one", "1"))
	s.within(10*time.Second, "pruned", func() bool { return strings.Contains(s.value("two"), "not found") })
	var cm corev1.ConfigMap
	if err := s.kube.Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "one"}, &cm); err != nil {
		t.Fatal(err)
	}
	cm.Data["key"] = "by hand"
	if err := s.kube.Update(t.Context(), &cm); err != nil {
		t.Fatal(err)
	}
	s.within(10*time.Second, "drift is put back", func() bool { return strings.HasPrefix(s.value("one"), "1 ") })
	policies(t, s, h)
	trusts(t, s, h)
	chain, key, err := h.family.NewClient(name, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	n := len(h.sessions())
	s.secret("relay-client-tls-secret", map[string][]byte{"tls.crt": chain, "tls.key": key})
	s.within(10*time.Second, "a replaced Secret is seen", func() bool { return len(h.sessions()) > n })
	if log := s.log.String(); strings.Contains(log, "forbidden") {
		t.Error("a right is missing")
	}
	var info mesh.ClusterInfo
	if !h.item(mesh.ItemCluster, mesh.ItemCluster, &info) || len(info.Warnings) > 0 {
		t.Errorf("cluster item: %+v", info)
	}
}

// policies applies one of each kind, has one opened by hand and put back, and reports one that is not ours: all that the rights to policies are for.
func policies(t *testing.T, s *site, h *hub) {
	t.Helper()
	s.istio()
	mine := func(kind, spec string) map[string]any {
		var m map[string]any
		text := fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: %s, metadata: {name: accesspolicy-one, namespace: default, labels: {owner.gloo.solo.io/name: gloo-mesh}}, spec: %s}", kind, spec)
		if err := yaml.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	closed, strict := mine("AuthorizationPolicy", "{action: ALLOW, selector: {matchLabels: {app: billing}}}"), mine("PeerAuthentication", "{mtls: {mode: STRICT}}")
	h.publish(true, closed, strict)
	outcome := func(kind string) (o mesh.Outcome) {
		h.item(mesh.ItemOutcome, "security.istio.io/v1/"+kind+"/default/accesspolicy-one", &o)
		return o
	}
	s.within(40*time.Second, "policies are applied", func() bool { return outcome("AuthorizationPolicy").OK && outcome("PeerAuthentication").OK })
	live := &unstructured.Unstructured{Object: closed}
	if err := s.kube.Patch(t.Context(), live, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"rules":[{}]}}`)), client.FieldOwner("kubectl-edit")); err != nil {
		t.Fatal(err)
	}
	s.within(10*time.Second, "an opened policy is closed, and who opened it is reported", func() bool {
		o := outcome("AuthorizationPolicy")
		return o.OK && !o.Drifted && o.Drift != nil && o.Drift.Corrected && o.Drift.Manager == "kubectl-edit"
	})
	s.within(10*time.Second, "an Event says so", func() bool {
		var events corev1.EventList
		return s.kube.List(t.Context(), &events, client.InNamespace("default")) == nil &&
			slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
				return e.Reason == "DriftCorrected" && e.InvolvedObject.Name == "accesspolicy-one"
			})
	})
	var foreign unstructured.Unstructured
	foreign.SetAPIVersion("security.istio.io/v1")
	foreign.SetKind("AuthorizationPolicy")
	foreign.SetName("open-all")
	foreign.SetNamespace("default")
	foreign.Object["spec"] = map[string]any{"rules": []any{map[string]any{}}}
	if err := s.kube.Create(t.Context(), &foreign); err != nil {
		t.Fatal(err)
	}
	s.within(50*time.Second, "a policy that is not ours is reported", func() bool { // its kind is looked for every half minute
		var p mesh.ForeignPolicy
		return h.item(mesh.ItemForeign, "default/AuthorizationPolicy/open-all", &p) && string(p.Spec) == `{"rules":[{}]}`
	})
	if items, _ := h.hub.Inventory(name); slices.ContainsFunc(slices.Collect(maps.Keys(items)), func(k synclog.Key) bool {
		return k.Type == mesh.ItemForeign && strings.Contains(k.Name, "accesspolicy")
	}) {
		t.Error("our own policies are reported as foreign")
	}
	h.publish(true)
	s.within(10*time.Second, "policies are pruned", func() bool {
		return apierrors.IsNotFound(s.kube.Get(t.Context(), client.ObjectKeyFromObject(live), live))
	})
	if err := s.kube.Delete(t.Context(), &foreign); err != nil {
		t.Fatal(err)
	}
}

func TestHubDiesAndReturns(t *testing.T) {
	h := newHub(t)
	h.register()
	s := newSite(t, h, token)
	s.run()
	s.within(10*time.Second, "connected", h.connected)
	h.publish(true, s.configMap("one", "1"), s.configMap("two", "2"))
	s.within(10*time.Second, "applied", func() bool { return strings.HasPrefix(s.value("two"), "2 ") && strings.HasPrefix(s.value("one"), "1 ") })
	want := s.value("one") + s.value("two")

	h.stop()
	s.within(20*time.Second, "the agent notices, and says what can't be reached", func() bool {
		_, raw := s.get(s.cfg.MetricsAddress + "/status")
		return strings.Contains(raw, `"connected":false`) && strings.Contains(raw, "can't be reached at "+h.address)
	})
	// Drift is still put back without a hub.
	var cm corev1.ConfigMap
	if err := s.kube.Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "one"}, &cm); err != nil {
		t.Fatal(err)
	}
	cm.Data["key"] = "by hand"
	if err := s.kube.Update(t.Context(), &cm); err != nil {
		t.Fatal(err)
	}
	s.within(10*time.Second, "drift is put back without a hub", func() bool { return s.value("one")+s.value("two") == want })
	if _, m := s.get(s.cfg.MetricsAddress + "/metrics"); !strings.Contains(m, `gloo_mesh_agent_drift_corrected_total{cluster="prod-eu-west-3"} 1`) {
		t.Errorf("the drift is not counted:\n%s", m)
	}
	if !s.ready() {
		t.Error("not ready without its hub: the kubelet could not help")
	}

	h.returns() // it knows nothing yet
	s.within(40*time.Second, "connected", h.connected)
	h.publish(false) // not warm
	time.Sleep(time.Second)
	if got := s.value("one") + s.value("two"); got != want {
		t.Fatalf("a hub that came back empty made the agent delete: %s, want %s", got, want)
	}
	h.publish(true, s.configMap("one", "1"))
	s.within(10*time.Second, "what is no longer desired goes", func() bool { return strings.Contains(s.value("two"), "not found") })
	if got := s.value("one"); !strings.HasPrefix(want, got) {
		t.Errorf("what is still desired was made anew: %s, was %s", got, want)
	}
}

// The agent's API server is away: neither the process nor the session ends, and nothing is missed.
func TestAPIServerAway(t *testing.T) {
	h := newHub(t)
	h.register()
	s := newSite(t, h, token)
	s.run()
	s.within(10*time.Second, "connected", h.connected)
	h.publish(true, s.configMap("one", "1"))
	s.within(10*time.Second, "applied", func() bool { return strings.HasPrefix(s.value("one"), "1 ") })
	sessions := len(h.sessions())

	s.gateway.setShut(true)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "late", Namespace: s.namespace},
		Spec:       corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 80}}},
	}
	if err := s.kube.Create(t.Context(), service); err != nil { // past the gateway
		t.Fatal(err)
	}
	h.publish(true, s.configMap("one", "2"))
	// client-go repeats a GET that ends in EOF ten times, a second apart, before it says so
	s.within(30*time.Second, "the hub hears that it could not be applied", func() bool {
		var o mesh.Outcome
		return h.item(mesh.ItemOutcome, "/v1/ConfigMap/"+s.namespace+"/one", &o) && !o.OK
	})
	away := 10 * time.Second
	if testing.Short() {
		away = 2 * time.Second
	}
	time.Sleep(away)
	if !h.connected() || len(h.sessions()) != sessions {
		t.Errorf("the session did not survive: connected %v, %d sessions, were %d", h.connected(), len(h.sessions()), sessions)
	}

	s.gateway.setShut(false)
	began := time.Now()
	s.within(70*time.Second, "what was desired meanwhile is applied", func() bool { return strings.HasPrefix(s.value("one"), "2 ") })
	s.within(70*time.Second, "what happened meanwhile is reported", func() bool {
		var got mesh.Service
		return h.item(mesh.ItemService, s.namespace+"/late", &got)
	})
	t.Logf("caught up %s after the API server came back", time.Since(began).Round(time.Millisecond))
}

// Started without its API server, the agent waits and says so.
func TestStartsBeforeTheAPIServer(t *testing.T) {
	h := newHub(t)
	h.register()
	s := newSite(t, h, token)
	s.gateway.setShut(true)
	s.run()
	s.within(10*time.Second, "alive", func() bool {
		code, _ := s.get(s.cfg.HealthAddress + "/healthz")
		return code == 200
	})
	s.within(10*time.Second, "unready, and why", func() bool {
		code, why := s.get(s.cfg.HealthAddress + "/readyz")
		return code == 503 && strings.Contains(why, "API server")
	})
	s.gateway.setShut(false)
	s.within(20*time.Second, "connected", h.connected)
}

func TestConfig(t *testing.T) {
	good := agent.DefaultConfig()
	good.Cluster, good.Server = "prod-eu-west-3", "hub.example.com:9900"
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for flag, change := range map[string]func(*agent.Config){
		"--cluster":                          func(c *agent.Config) { c.Cluster = "prod_eu" },
		"--relay-server-address":             func(c *agent.Config) { c.Server = ":9900" },
		"--namespace":                        func(c *agent.Config) { c.Namespace = "" },
		"--client-certificate-renewal-ratio": func(c *agent.Config) { c.RenewRatio = 1 },
		"--relay-root-tls-secret":            func(c *agent.Config) { c.Secrets.Root = "" },
		"--metrics-address":                  func(c *agent.Config) { c.MetricsAddress = "9091" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	// A port that is taken ends the agent with the address in the error.
	h := newHub(t)
	s := newSite(t, h, token)
	s.cfg.HealthAddress = h.address
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := agent.Run(ctx, s.cfg, discard()); err == nil || !strings.Contains(fmt.Sprint(err), h.address) {
		t.Errorf("a port in use: %v", err)
	}
}
