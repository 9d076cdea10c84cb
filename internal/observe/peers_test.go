package observe

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/test/kubetest"
)

// gatewayCRD is as much of Gateway API as an API server needs to store Gateways.
const gatewayCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gateways.gateway.networking.k8s.io, annotations: {api-approved.kubernetes.io: "https://github.com/kubernetes-sigs/gateway-api/pull/1"}}
spec:
  group: gateway.networking.k8s.io
  scope: Namespaced
  names: {kind: Gateway, plural: gateways, singular: gateway, listKind: GatewayList}
  versions: [{name: v1, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`

// TestPeeringInventory shows on a real API server what peering is decided from: east-west gateways and peers that people made are reported, our own peers are not; node ports and the
// addresses of nodes are, as soon as an east-west gateway is reached by them; and what istiod says of automatic peering.
func TestPeeringInventory(t *testing.T) {
	cfg := kubetest.Start(t)
	kube, typed := dynamic.NewForConfigOrDie(cfg), kubernetes.NewForConfigOrDie(cfg)
	ns := kubetest.Namespace(t, kubetest.Client(t, cfg))
	ctx := t.Context()
	crds := kube.Resource(gvr("apiextensions.k8s.io", "v1", "customresourcedefinitions"))
	if _, err := crds.Create(ctx, parse(t, gatewayCRD), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	gateways := kube.Resource(gvr("gateway.networking.k8s.io", "v1", "gateways")).Namespace(ns)
	within := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not seen: " + what)
			}
		}
	}
	within("Gateways are served", func() bool { _, err := gateways.List(ctx, metav1.ListOptions{}); return err == nil })

	gateway := func(name, class string, labels map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": map[string]any{"name": name, "namespace": ns, "labels": labels},
			"spec": map[string]any{"gatewayClassName": class},
		}}
	}
	owner := map[string]any{mesh.OwnerLabel: mesh.OwnerValue}
	for _, g := range []*unstructured.Unstructured{
		gateway("ew", mesh.ClassEastWest, map[string]any{mesh.LabelNetwork: "n1"}), gateway("by-hand", mesh.ClassRemote, map[string]any{mesh.LabelNetwork: "n2"}),
		gateway("copy-of-ours", mesh.ClassRemote, owner), gateway(mesh.PeerPrefix+"west", mesh.ClassRemote, owner),
	} {
		if _, err := gateways.Create(ctx, g, metav1.CreateOptions{FieldManager: "kubectl"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := gateways.Apply(ctx, "applied", gateway("applied", mesh.ClassRemote, owner), metav1.ApplyOptions{FieldManager: mesh.FieldManager}); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{"n-1": "203.0.113.4", "n-2": "203.0.113.5"} {
		node, err := typed.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeExternalIP, Address: address}}
		if name == "n-2" { // n-1 is not ready
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		}
		if _, err := typed.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	src := synclog.NewSource("test")
	go func() {
		_ = Run(ctx, Config{Client: kube, Source: src, Log: slog.New(slog.DiscardHandler), KubernetesVersion: "v1"})
	}()
	reader, sink := src.Cursor(synclog.Position{}), synclog.NewSink(synclog.Limits{}, false)
	look := func() (map[synclog.Key][]byte, bool) {
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
		return s.Items, s.Complete
	}
	info := func() (out mesh.ClusterInfo) {
		items, _ := look()
		_ = json.Unmarshal(items[synclog.Key{Type: mesh.ItemCluster, Name: mesh.ItemCluster}], &out)
		return out
	}
	within("complete", func() bool { _, complete := look(); return complete })
	items, _ := look()
	got := map[string]bool{}
	for key := range items {
		if key.Type == mesh.ItemGateway {
			got[key.Name] = true
		}
	}
	if d := cmp.Diff(map[string]bool{ns + "/ew": true, ns + "/by-hand": true, ns + "/copy-of-ours": true}, got); d != "" {
		t.Errorf("Gateways reported (-want +got):\n%s", d)
	}
	if i := info(); len(i.NodeAddresses) != 0 {
		t.Errorf("nodes are told of without need: %v", i.NodeAddresses)
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "ew", Labels: map[string]string{"gateway.networking.k8s.io/gateway-class-name": mesh.ClassEastWest}},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "hbone", Port: 15008, NodePort: 31508}}},
	}
	if _, err := typed.CoreV1().Services(ns).Create(ctx, service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	within("the address of the node that is ready", func() bool { return cmp.Equal(info().NodeAddresses, []string{"203.0.113.5"}) })
	var reported mesh.Service
	items, _ = look()
	if err := json.Unmarshal(items[synclog.Key{Type: mesh.ItemService, Name: ns + "/ew"}], &reported); err != nil || len(reported.Ports) != 1 || reported.Ports[0].NodePort != 31508 {
		t.Errorf("Service: %+v, %v", reported, err)
	}
}

// TestAutomaticPeering reads what istiod says of it.
func TestAutomaticPeering(t *testing.T) {
	for value, want := range map[string]string{"true": "true", "False": "false"} {
		f, u := newFacts(""), parse(t, istiodYAML)
		c := objects(u.Object, "spec", "template", "spec", "containers")
		c[0]["env"] = []any{map[string]any{"name": mesh.EnvAutomaticPeering, "value": value}}
		f.deployment("istio-system/istiod", u)
		if got := f.info().AutomaticPeering; got != want {
			t.Errorf("%s: %q, want %q", value, got, want)
		}
	}
}
