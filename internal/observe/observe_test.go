package observe

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	return u
}

func TestItems(t *testing.T) {
	for name, tc := range map[string]struct {
		item func(*unstructured.Unstructured) (synclog.Key, any, bool)
		in   string
		key  synclog.Key
		want any
	}{
		"service": {serviceItem, `
apiVersion: v1
kind: Service
metadata: {name: ew, namespace: istio-eastwest, labels: {app: ew}}
spec:
  type: LoadBalancer
  clusterIP: 10.0.0.1
  selector: {app: ew}
  ports: [{name: hbone, port: 15008, protocol: TCP, targetPort: 15008}, {port: 80, targetPort: 8080, protocol: UDP}, {port: 81, targetPort: web}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: lb.example.com}]}}
`, synclog.Key{Type: "service", Name: "istio-eastwest/ew"}, mesh.Service{
			Namespace: "istio-eastwest", Name: "ew", Labels: map[string]string{"app": "ew"}, Selector: map[string]string{"app": "ew"}, Type: "LoadBalancer",
			Ports:     []mesh.ServicePort{{Name: "hbone", Number: 15008}, {Number: 80, TargetPort: "8080", Protocol: "UDP"}, {Number: 81, TargetPort: "web"}},
			Addresses: []string{"192.0.2.1", "lb.example.com"},
		}},
		"headless service": {
			serviceItem, "{apiVersion: v1, kind: Service, metadata: {name: db, namespace: d}, spec: {type: ClusterIP, clusterIP: None}}",
			synclog.Key{Type: "service", Name: "d/db"},
			mesh.Service{Namespace: "d", Name: "db", Headless: true},
		},
		"namespace": {
			namespaceItem, "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {kubernetes.io/metadata.name: a, istio.io/dataplane-mode: ambient}}}",
			synclog.Key{Type: "namespace", Name: "a"},
			mesh.Namespace{Name: "a", Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}},
		},
		"deployment": {
			workloadItem("Deployment"), "{apiVersion: apps/v1, kind: Deployment, metadata: {name: b, namespace: a}, spec: {template: {metadata: {labels: {app: b}}, spec: {containers: []}}}}",
			synclog.Key{Type: "workload", Name: "a/Deployment/b"},
			mesh.Workload{Namespace: "a", Kind: "Deployment", Name: "b", Labels: map[string]string{"app": "b"}, ServiceAccount: "default"},
		},
		"gateway": {gatewayItem, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: peer, namespace: edge, annotations: {gateway.istio.io/service-account: ew, other: thing}}
spec: {gatewayClassName: istio-remote}
status: {addresses: [{type: IPAddress, value: 192.0.2.9}], conditions: [{type: Accepted, status: "False"}, {type: Programmed, status: "True"}]}
`, synclog.Key{Type: "gateway", Name: "edge/peer"}, mesh.Gateway{Namespace: "edge", Name: "peer", Class: "istio-remote", Annotations: map[string]string{"gateway.istio.io/service-account": "ew"}, Addresses: []string{"192.0.2.9"}, Programmed: true}},
		"cron job": {
			cronJobItem, "{apiVersion: batch/v1, kind: CronJob, metadata: {name: nightly, namespace: a}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: b}}, spec: {serviceAccountName: batch}}}}}}",
			synclog.Key{Type: "workload", Name: "a/CronJob/nightly"},
			mesh.Workload{Namespace: "a", Kind: "CronJob", Name: "nightly", Labels: map[string]string{"app": "b"}, ServiceAccount: "batch"},
		},
		"job that runs": {
			jobItem, "{apiVersion: batch/v1, kind: Job, metadata: {name: import, namespace: a}, spec: {template: {metadata: {labels: {app: b}}, spec: {serviceAccountName: batch}}}, status: {conditions: [{type: Complete, status: \"False\"}]}}",
			synclog.Key{Type: "workload", Name: "a/Job/import"},
			mesh.Workload{Namespace: "a", Kind: "Job", Name: "import", Labels: map[string]string{"app": "b"}, ServiceAccount: "batch"},
		},
		"bare pod": {
			podItem, "{apiVersion: v1, kind: Pod, metadata: {name: debug, namespace: a, labels: {app: b}}, spec: {serviceAccountName: payments}}",
			synclog.Key{Type: "workload", Name: "a/Pod/debug"},
			mesh.Workload{Namespace: "a", Kind: "Pod", Name: "debug", Labels: map[string]string{"app": "b"}, ServiceAccount: "payments"},
		},
		"pod of an unknown controller": {
			podItem, "{apiVersion: v1, kind: Pod, metadata: {name: broker-0, namespace: a, ownerReferences: [{kind: StrimziPodSet, name: broker, controller: true}]}, spec: {serviceAccountName: kafka}}",
			synclog.Key{Type: "workload", Name: "a/Pod/broker-0"},
			mesh.Workload{Namespace: "a", Kind: "Pod", Name: "broker-0", ServiceAccount: "kafka"},
		},
		"foreign policy": {
			foreignItem("AuthorizationPolicy"), "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: open-all, namespace: billing, annotations: {istio.io/dry-run: \"1\"}}, spec: {rules: [{}]}}",
			synclog.Key{Type: "foreignpolicy", Name: "billing/AuthorizationPolicy/open-all"},
			mesh.ForeignPolicy{Namespace: "billing", Kind: "AuthorizationPolicy", Name: "open-all", Spec: json.RawMessage(`{"rules":[{}]}`), DryRun: true},
		},
		"our label taken off": {
			foreignItem("PeerAuthentication"), "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: isolation-a, namespace: billing}}",
			synclog.Key{Type: "foreignpolicy", Name: "billing/PeerAuthentication/isolation-a"},
			mesh.ForeignPolicy{Namespace: "billing", Kind: "PeerAuthentication", Name: "isolation-a", Spec: json.RawMessage(`{}`), Taken: true},
		},
		"a copy of ours, label and all": {
			foreignItem("AuthorizationPolicy"), "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: accesspolicy-copy, namespace: billing, labels: {owner.gloo.solo.io/name: gloo-mesh}, managedFields: [{manager: kubectl, operation: Apply}]}, spec: {}}",
			synclog.Key{Type: "foreignpolicy", Name: "billing/AuthorizationPolicy/accesspolicy-copy"},
			mesh.ForeignPolicy{Namespace: "billing", Kind: "AuthorizationPolicy", Name: "accesspolicy-copy", Spec: json.RawMessage(`{}`)},
		},
		"malformed": {
			serviceItem, "{apiVersion: v1, kind: Service, metadata: {name: m, namespace: d}, spec: {ports: [1, {port: x}, {port: 99999999}]}}",
			synclog.Key{Type: "service", Name: "d/m"},
			mesh.Service{Namespace: "d", Name: "m", Ports: []mesh.ServicePort{{}, {}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			key, got, ok := tc.item(parse(t, tc.in))
			if !ok || key != tc.key {
				t.Errorf("key %v, ok %v; want %v", key, ok, tc.key)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNotReported(t *testing.T) {
	for name, tc := range map[string]struct {
		item func(*unstructured.Unstructured) (synclog.Key, any, bool)
		in   string
	}{
		"job of a CronJob":     {jobItem, "{apiVersion: batch/v1, kind: Job, metadata: {name: n, namespace: a, ownerReferences: [{kind: CronJob, name: n, controller: true}]}}"},
		"finished job":         {jobItem, "{apiVersion: batch/v1, kind: Job, metadata: {name: n, namespace: a}, status: {conditions: [{type: Failed, status: \"True\"}]}}"},
		"pod of a StatefulSet": {podItem, "{apiVersion: v1, kind: Pod, metadata: {name: n, namespace: a, ownerReferences: [{kind: StatefulSet, name: n, controller: true}]}}"},
		"static pod":           {podItem, "{apiVersion: v1, kind: Pod, metadata: {name: n, namespace: a, ownerReferences: [{kind: Node, name: n, controller: true}]}}"},
		"our policy": {
			foreignItem("AuthorizationPolicy"),
			"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: n, namespace: a, labels: {owner.gloo.solo.io/name: gloo-mesh}, managedFields: [{manager: gloo-mesh-agent, operation: Apply}]}}",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if key, value, ok := tc.item(parse(t, tc.in)); ok {
				t.Errorf("reported as %s: %v", key, value)
			}
		})
	}
}

// What is too large to be sent counts as allowing anything, where it applies.
func TestLargeForeignPolicies(t *testing.T) {
	huge := strings.Repeat("x", maxForeign)
	selector := map[string]any{"matchLabels": map[string]any{"app": "billing"}}
	for name, tc := range map[string]struct {
		kind string
		spec map[string]any
		want map[string]any // but for the note
	}{
		"ALLOW":              {"AuthorizationPolicy", map[string]any{"selector": selector, "rules": huge}, map[string]any{"selector": selector, "action": "ALLOW", "rules": []any{map[string]any{}}}},
		"DENY":               {"AuthorizationPolicy", map[string]any{"action": "DENY", "rules": huge}, map[string]any{"action": "DENY"}},
		"no such action":     {"AuthorizationPolicy", map[string]any{"action": huge}, map[string]any{"action": "ALLOW", "rules": []any{map[string]any{}}}},
		"huge selector":      {"AuthorizationPolicy", map[string]any{"selector": huge}, map[string]any{"action": "ALLOW", "rules": []any{map[string]any{}}}},
		"PeerAuthentication": {"PeerAuthentication", map[string]any{"selector": selector, "portLevelMtls": huge}, map[string]any{"selector": selector, "mtls": map[string]any{"mode": "DISABLE"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var got map[string]any
			if err := json.Unmarshal(foreignSpec(tc.kind, tc.spec), &got); err != nil || got["note"] == nil {
				t.Fatalf("%v, note %v", err, got["note"])
			}
			delete(got, "note")
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

const istiodYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: istiod-gloo, namespace: istio-system, labels: {app: istiod, istio.io/rev: gloo}}
spec: {template: {metadata: {labels: {app: istiod}}, spec: {containers: [{name: discovery, image: "registry.example:5000/istio/pilot:1.30.2-distroless@sha256:00", env: [{name: CLUSTER_ID, value: cluster-1}, {name: POD_NAME, valueFrom: {}}]}]}}}
`

func TestFacts(t *testing.T) {
	f := newFacts("v1.36.3")
	f.namespace("istio-system", parse(t, "{apiVersion: v1, kind: Namespace, metadata: {name: istio-system, labels: {topology.istio.io/network: net-1}}}"))
	f.deployment("istio-system/istiod-gloo", parse(t, istiodYAML))
	f.configMap("istio-system/istio", parse(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: 'accessLogFile: /dev/stdout'}}"))
	want := mesh.ClusterInfo{TrustDomain: "cluster.local", IstioVersion: "1.30.2", Network: "net-1", KubernetesVersion: "v1.36.3", IstioNamespace: "istio-system", IstioRevision: "gloo", IstioClusterID: "cluster-1", IgnoresGlobal: true}
	if diff := cmp.Diff(want, f.info()); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	f.configMap("istio-system/istio-gloo", parse(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio-gloo, namespace: istio-system}, data: {mesh: '{trustDomain: bank.example, rootNamespace: mesh-root, serviceScopeConfigs: [{scope: GLOBAL, servicesSelector: {matchExpressions: [{key: istio.io/global, operator: Exists}]}}]}'}}"))
	want.TrustDomain, want.RootNamespace, want.IgnoresGlobal = "bank.example", "mesh-root", false
	if diff := cmp.Diff(want, f.info()); diff != "" {
		t.Errorf("the revision's MeshConfig wins (-want +got):\n%s", diff)
	}
	f.configMap("istio-system/istio-gloo", parse(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio-gloo, namespace: istio-system}, data: {mesh: '{'}}"))
	if !f.warn("services", errors.New("forbidden")) || f.warn("services", errors.New("forbidden")) {
		t.Error("warn must report a change once")
	}
	if got := f.info(); len(got.Warnings) != 2 || got.TrustDomain != "cluster.local" {
		t.Errorf("unreadable MeshConfig and unlistable services must both be said: %+v", got)
	}
	f.deployment("istio-system/istiod-gloo", nil)
	f.warn("services", nil)
	f.configMap("istio-system/istio-gloo", nil)
	f.namespace("istio-system", nil)
	if got := f.info(); got.IstioVersion != "" || got.TrustDomain != "" || got.Network != "" {
		t.Errorf("no istiod, no trust domain: %+v", got)
	}
}

func TestNewestIstiodSpeaks(t *testing.T) {
	f := newFacts("")
	for _, tag := range []string{"1.9.0", "1.30.0", "1.4.1"} {
		u := parse(t, istiodYAML)
		u.SetName("istiod-" + tag)
		c := objects(u.Object, "spec", "template", "spec", "containers")
		c[0]["image"] = "pilot:" + tag
		f.deployment("istio-system/"+u.GetName(), u)
	}
	if got := f.info(); got.IstioVersion != "1.30.0" || len(got.Warnings) != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestWatch shows the whole package against a real API server: list, complete, add, change, delete.
func TestWatch(t *testing.T) {
	cfg := kubetest.Start(t)
	typed := kubernetes.NewForConfigOrDie(cfg)
	ns := kubetest.Namespace(t, kubetest.Client(t, cfg))
	ctx := t.Context()
	src := synclog.NewSource("test")
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Client: dynamic.NewForConfigOrDie(cfg), Source: src, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), KubernetesVersion: "v1"})
	}()
	reader := src.Cursor(synclog.Position{})
	sink := synclog.NewSink(synclog.Limits{}, false)
	until := func(what string, ok func(map[synclog.Key][]byte, bool) bool) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			for {
				c, more := reader.Next()
				if !more {
					break
				}
				if err := sink.Apply(c); err != nil {
					t.Fatal(err)
				}
			}
			s := sink.Snapshot()
			if ok(s.Items, s.Complete) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not seen; have %d items, complete %v", what, len(s.Items), s.Complete)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	until("complete, though Gateways are unknown to this API server", func(_ map[synclog.Key][]byte, complete bool) bool { return complete })

	key := synclog.Key{Type: mesh.ItemServiceAccount, Name: ns + "/payments"}
	sas := typed.CoreV1().ServiceAccounts(ns)
	sa, err := sas.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "payments", Labels: map[string]string{"app": "payments"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	until("created", func(items map[synclog.Key][]byte, _ bool) bool { return items[key] != nil })
	sa.Labels["app"] = "other"
	if _, err := sas.Update(ctx, sa, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("changed", func(items map[synclog.Key][]byte, _ bool) bool {
		var got mesh.ServiceAccount
		return json.Unmarshal(items[key], &got) == nil && got.Labels["app"] == "other"
	})
	if err := sas.Delete(ctx, "payments", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("deleted", func(items map[synclog.Key][]byte, complete bool) bool { return items[key] == nil && complete })

	// Of the Pods, those that no workload speaks for.
	for name, labels := range map[string]map[string]string{"of-a-deployment": {"pod-template-hash": "5d4f"}, "of-a-job": {"batch.kubernetes.io/controller-uid": "1"}, "bare": {"app": "debug"}} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.PodSpec{ServiceAccountName: "payments", Containers: []corev1.Container{{Name: "c", Image: "c"}}},
		}
		if _, err := typed.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(name string) synclog.Key {
		return synclog.Key{Type: mesh.ItemWorkload, Name: ns + "/Pod/" + name}
	}
	until("a bare Pod", func(items map[synclog.Key][]byte, _ bool) bool {
		if items[pod("of-a-deployment")] != nil || items[pod("of-a-job")] != nil {
			t.Fatal("a Pod whose owner is observed was reported")
		}
		return items[pod("bare")] != nil
	})
	if _, err := typed.CoreV1().Pods(ns).Patch(ctx, "bare", types.MergePatchType, []byte(`{"status":{"phase":"Succeeded"}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	until("a finished Pod is gone", func(items map[synclog.Key][]byte, _ bool) bool { return items[pod("bare")] == nil })
}
