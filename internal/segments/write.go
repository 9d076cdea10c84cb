package segments

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
)

// The ConfigMap from which a CoreDNS reads more of its server block: so it is called on AKS and K3s.
const (
	dnsNamespace = "kube-system"
	dnsName      = "coredns-custom"
)

// put makes one Service global, and makes it first where there is none.
func (k *Keeper) put(ctx context.Context, s mesh.SegmentService) mesh.SegmentServiceState {
	client := k.services.Namespace(s.Namespace)
	live, err := client.Get(ctx, s.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && len(s.Ports) > 0 {
		live, err = client.Create(ctx, stub(s), metav1.CreateOptions{FieldManager: FieldManager})
		if apierrors.IsNotFound(err) {
			return mesh.SegmentServiceState{Error: fmt.Sprintf("namespace %s does not exist there, so that no caller there has an address to dial: kubectl create namespace %s", s.Namespace, s.Namespace)}
		}
	}
	if err != nil {
		return mesh.SegmentServiceState{Error: fmt.Sprintf("Service %s: %v", s.Key(), err)}
	}
	ours := isStub(live)
	if live.GetLabels()[mesh.LabelStub] == mesh.LabelStubValue && !ours { // a person has made it theirs
		patch := fmt.Appendf(nil, `{"metadata":{"uid":%q,"labels":{%q:null}}}`, live.GetUID(), mesh.LabelStub)
		if _, err := client.Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager}); err != nil {
			return mesh.SegmentServiceState{Error: fmt.Sprintf("Service %s: %v", s.Key(), err)}
		}
	}
	if !has(live.GetLabels(), s.Labels) || !owns(live) {
		if err := k.label(ctx, live, s.Labels); err != nil {
			if apierrors.IsConflict(err) {
				return mesh.SegmentServiceState{Stub: ours, Error: fmt.Sprintf("Service %s: somebody else has set its label otherwise, which is left so: %v", s.Key(), err)}
			}
			return mesh.SegmentServiceState{Stub: ours, Error: fmt.Sprintf("Service %s: %v", s.Key(), err)}
		}
	}
	return mesh.SegmentServiceState{Labelled: true, Stub: ours}
}

// label applies these labels and no other field. The UID makes the apply fail, not create, when the Service was deleted meanwhile.
func (k *Keeper) label(ctx context.Context, live *unstructured.Unstructured, labels map[string]string) error {
	meta := map[string]any{"name": live.GetName(), "namespace": live.GetNamespace(), "uid": string(live.GetUID())}
	if len(labels) > 0 {
		l := map[string]any{}
		for key, v := range labels {
			l[key] = v
		}
		meta["labels"] = l
	}
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": meta}}
	_, err := k.services.Namespace(live.GetNamespace()).Apply(ctx, live.GetName(), u, metav1.ApplyOptions{FieldManager: FieldManager})
	return err
}

func has(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// owns says whether we have applied to it.
func owns(u *unstructured.Unstructured) bool {
	return slices.ContainsFunc(u.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == FieldManager && f.Operation == metav1.ManagedFieldsOperationApply
	})
}

// isStub says whether we made it and nobody has taken it over.
func isStub(u *unstructured.Unstructured) bool {
	selector, _, _ := unstructured.NestedStringMap(u.Object, "spec", "selector")
	return mesh.Service{Labels: u.GetLabels(), Selector: selector}.StubService()
}

// stub is a Service without endpoints.
func stub(s mesh.SegmentService) *unstructured.Unstructured {
	var ports []any
	for _, p := range s.Ports {
		port := map[string]any{"port": int64(p.Number), "protocol": "TCP"}
		if p.Name != "" {
			port["name"] = p.Name
		}
		if p.App != "" {
			port["appProtocol"] = p.App
		}
		ports = append(ports, port)
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"name": s.Name, "namespace": s.Namespace, "labels": map[string]any{mesh.LabelStub: mesh.LabelStubValue}},
		"spec":     map[string]any{"ports": ports},
	}}
}

// release takes back what was done to a Service: a stub goes, of another one only our label.
func (k *Keeper) release(ctx context.Context, key string) error {
	ns, name, _ := strings.Cut(key, "/")
	client := k.services.Namespace(ns)
	live, err := client.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if isStub(live) {
		uid, version := live.GetUID(), live.GetResourceVersion()
		err := client.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	if !owns(live) {
		return nil
	}
	err = k.label(ctx, live, nil)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// putDNS keeps our key of the ConfigMap, and no other.
func (k *Keeper) putDNS(ctx context.Context, order *mesh.SegmentOrder) error {
	if len(order.Hosts) == 0 && (!order.Complete || !k.listed.dns) {
		return nil
	}
	client := k.configMaps.Namespace(dnsNamespace)
	text := lines(order)
	live, err := client.Get(ctx, dnsName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && text == "":
		return nil
	case err == nil:
		if is, _, _ := unstructured.NestedString(live.Object, "data", mesh.SegmentFragment); is == text {
			return nil
		}
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("ConfigMap %s/%s: %w", dnsNamespace, dnsName, err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": dnsName, "namespace": dnsNamespace}}}
	if text != "" {
		u.Object["data"] = map[string]any{mesh.SegmentFragment: text}
	}
	if _, err := client.Apply(ctx, dnsName, u, metav1.ApplyOptions{FieldManager: FieldManager, Force: true}); err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", dnsNamespace, dnsName, err)
	}
	return nil
}

// lines are those of CoreDNS: a question for the host is one for the Service's own name, and the answer bears the name that was asked for.
func lines(order *mesh.SegmentOrder) string {
	var b strings.Builder
	for _, h := range order.Hosts {
		fmt.Fprintf(&b, "rewrite name exact %s %s\n", h.Host, h.Target)
	}
	return b.String()
}

// inventory lists what was written.
type inventory struct {
	configMaps dynamic.ResourceInterface
	services   map[string]bool
	dns        bool
}

func (i *inventory) empty() bool { return len(i.services) == 0 && !i.dns }

func (i *inventory) load(ctx context.Context) error {
	u, err := i.configMaps.Get(ctx, InventoryName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read ConfigMap %s: %w", InventoryName, err)
	}
	data, _, _ := unstructured.NestedStringMap(u.Object, "data")
	i.dns = data["dns"] != ""
	var list []string
	if data["services"] != "" {
		if err := json.Unmarshal([]byte(data["services"]), &list); err != nil {
			return fmt.Errorf("ConfigMap %s, key services: %w", InventoryName, err)
		}
	}
	for _, key := range list {
		i.services[key] = true
	}
	return nil
}

// add lists what is about to be written.
func (i *inventory) add(ctx context.Context, order *mesh.SegmentOrder) error {
	next, dns := maps.Clone(i.services), i.dns || len(order.Hosts) > 0
	for _, s := range order.Services {
		next[s.Key()] = true
	}
	return i.write(ctx, next, dns)
}

// drop takes from the list what is not there any more.
func (i *inventory) drop(ctx context.Context, gone []string, dns bool) error {
	next := maps.Clone(i.services)
	for _, key := range gone {
		delete(next, key)
	}
	return i.write(ctx, next, i.dns && dns)
}

func (i *inventory) write(ctx context.Context, services map[string]bool, dns bool) error {
	if maps.Equal(services, i.services) && dns == i.dns {
		return nil
	}
	list, err := json.Marshal(slices.Sorted(maps.Keys(services)))
	if err != nil {
		return err
	}
	data := map[string]any{"services": string(list)}
	if dns {
		data["dns"] = dnsNamespace + "/" + dnsName
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": InventoryName, "labels": map[string]any{"app": "gloo-mesh-agent"}}, "data": data,
	}}
	if _, err := i.configMaps.Apply(ctx, InventoryName, u, metav1.ApplyOptions{FieldManager: mesh.FieldManager, Force: true}); err != nil {
		return fmt.Errorf("write ConfigMap %s: %w", InventoryName, err)
	}
	i.services, i.dns = services, dns
	return nil
}
