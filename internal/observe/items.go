package observe

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

func noItem(*unstructured.Unstructured) (synclog.Key, any, bool) { return synclog.Key{}, nil, false }

func namespaceItem(u *unstructured.Unstructured) (synclog.Key, any, bool) {
	return synclog.Key{Type: mesh.ItemNamespace, Name: u.GetName()},
		mesh.Namespace{Name: u.GetName(), Labels: ownLabels(u)}, true
}

// ownLabels leaves out what Kubernetes repeats from the name.
func ownLabels(u *unstructured.Unstructured) map[string]string {
	l := u.GetLabels()
	delete(l, "kubernetes.io/metadata.name") // GetLabels returns a copy
	if len(l) == 0 {
		return nil
	}
	return l
}

func serviceAccountItem(u *unstructured.Unstructured) (synclog.Key, any, bool) {
	return synclog.Key{Type: mesh.ItemServiceAccount, Name: follow.Name(u)},
		mesh.ServiceAccount{Namespace: u.GetNamespace(), Name: u.GetName(), Labels: u.GetLabels()}, true
}

func serviceItem(u *unstructured.Unstructured) (synclog.Key, any, bool) {
	s := mesh.Service{Namespace: u.GetNamespace(), Name: u.GetName(), Labels: u.GetLabels()}
	s.Selector, _, _ = unstructured.NestedStringMap(u.Object, "spec", "selector")
	if s.Type, _, _ = unstructured.NestedString(u.Object, "spec", "type"); s.Type == "ClusterIP" {
		s.Type = ""
	}
	ip, _, _ := unstructured.NestedString(u.Object, "spec", "clusterIP")
	s.Headless = ip == "None"
	for _, p := range objects(u.Object, "spec", "ports") {
		port := servicePort(p)
		if byNodePorts(u) {
			port.NodePort = number(p["nodePort"])
		}
		s.Ports = append(s.Ports, port)
	}
	for _, in := range objects(u.Object, "status", "loadBalancer", "ingress") {
		for _, field := range []string{"ip", "hostname"} {
			if a, _ := in[field].(string); a != "" {
				s.Addresses = append(s.Addresses, a)
			}
		}
	}
	return synclog.Key{Type: mesh.ItemService, Name: follow.Name(u)}, s, true
}

// byNodePorts: it is the Service of an east-west gateway that is reached by ports of nodes.
func byNodePorts(u *unstructured.Unstructured) bool {
	kind, _, _ := unstructured.NestedString(u.Object, "spec", "type")
	class := u.GetLabels()["gateway.networking.k8s.io/gateway-class-name"]
	return kind == "NodePort" && (class == mesh.ClassEastWest || class == mesh.ClassEastWestSolo)
}

func servicePort(p map[string]any) mesh.ServicePort {
	var out mesh.ServicePort
	out.Name, _ = p["name"].(string)
	out.Number = number(p["port"])
	if out.Protocol, _ = p["protocol"].(string); out.Protocol == "TCP" {
		out.Protocol = ""
	}
	out.App, _ = p["appProtocol"].(string)
	switch t := p["targetPort"].(type) {
	case string:
		out.TargetPort = t
	default:
		if n := number(t); n != 0 && n != out.Number {
			out.TargetPort = itoa(n)
		}
	}
	return out
}

// workloadItem reads the Pod template of an owner.
func workloadItem(kind string) func(*unstructured.Unstructured) (synclog.Key, any, bool) {
	return func(u *unstructured.Unstructured) (synclog.Key, any, bool) {
		return workload(u, kind, "spec", "template")
	}
}

func cronJobItem(u *unstructured.Unstructured) (synclog.Key, any, bool) {
	return workload(u, "CronJob", "spec", "jobTemplate", "spec", "template")
}

// jobItem leaves out what a CronJob made, which is reported itself, and what has finished, which runs nothing any more.
func jobItem(u *unstructured.Unstructured) (synclog.Key, any, bool) {
	if c := metav1.GetControllerOf(u); c != nil && c.Kind == "CronJob" {
		return noItem(u)
	}
	for _, c := range objects(u.Object, "status", "conditions") {
		if (c["type"] == "Complete" || c["type"] == "Failed") && c["status"] == "True" {
			return noItem(u)
		}
	}
	return workload(u, "Job", "spec", "template")
}

// podItem reads a Pod that is its own owner, or whose controller is of a kind that is not observed.
func podItem(u *unstructured.Unstructured) (synclog.Key, any, bool) {
	if c := metav1.GetControllerOf(u); c != nil {
		switch c.Kind {
		case "StatefulSet", "DaemonSet", "Job":
			return noItem(u)
		case "Node": // the mirror of a static Pod: it has no ServiceAccount
			return noItem(u)
		}
	}
	return workload(u, "Pod")
}

// workload reads what is at path: a Pod, or the template of Pods.
func workload(u *unstructured.Unstructured, kind string, path ...string) (synclog.Key, any, bool) {
	w := mesh.Workload{Namespace: u.GetNamespace(), Kind: kind, Name: u.GetName()}
	at := func(fields ...string) []string { return append(slices.Clone(path), fields...) }
	w.Labels, _, _ = unstructured.NestedStringMap(u.Object, at("metadata", "labels")...)
	w.ServiceAccount, _, _ = unstructured.NestedString(u.Object, at("spec", "serviceAccountName")...)
	if w.ServiceAccount == "" {
		w.ServiceAccount = "default"
	}
	return synclog.Key{Type: mesh.ItemWorkload, Name: w.Namespace + "/" + kind + "/" + w.Name}, w, true
}

// gatewayItem leaves out our own peers, of which there is one for each other cluster: what became of them is told with the outcomes.
func gatewayItem(u *unstructured.Unstructured) (synclog.Key, any, bool) {
	if ownPeer(u) {
		return noItem(u)
	}
	g := mesh.Gateway{Namespace: u.GetNamespace(), Name: u.GetName(), Labels: u.GetLabels()}
	g.Class, _, _ = unstructured.NestedString(u.Object, "spec", "gatewayClassName")
	for k, v := range u.GetAnnotations() {
		if strings.HasPrefix(k, "gateway.istio.io/") || strings.HasPrefix(k, "networking.istio.io/") || strings.HasPrefix(k, "peering.solo.io/") {
			if g.Annotations == nil {
				g.Annotations = map[string]string{}
			}
			g.Annotations[k] = v
		}
	}
	for _, a := range objects(u.Object, "status", "addresses") {
		if v, _ := a["value"].(string); v != "" {
			g.Addresses = append(g.Addresses, v)
		}
	}
	for _, c := range objects(u.Object, "status", "conditions") {
		if c["type"] == "Programmed" {
			g.Programmed = c["status"] == "True"
		}
	}
	return synclog.Key{Type: mesh.ItemGateway, Name: follow.Name(u)}, g, true
}

// ownPeer: it has our label, and is ours by name or because we applied it. Without the label it is somebody's.
func ownPeer(u *unstructured.Unstructured) bool {
	class, _, _ := unstructured.NestedString(u.Object, "spec", "gatewayClassName")
	return class == mesh.ClassRemote && u.GetLabels()[mesh.OwnerLabel] == mesh.OwnerValue && (strings.HasPrefix(u.GetName(), mesh.PeerPrefix) || appliedByUs(u))
}

// objects reads a list of objects, skipping what is none.
func objects(obj map[string]any, path ...string) []map[string]any {
	list, _, _ := unstructured.NestedFieldNoCopy(obj, path...)
	items, _ := list.([]any)
	out := make([]map[string]any, 0, len(items))
	for _, i := range items {
		if m, ok := i.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}
