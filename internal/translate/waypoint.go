package translate

import (
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Labels of Istio's ambient mode.
const (
	labelDataplane         = "istio.io/dataplane-mode"
	labelWaypoint          = "istio.io/use-waypoint"
	labelWaypointNamespace = "istio.io/use-waypoint-namespace"
	labelWaypointFor       = "istio.io/waypoint-for"
	labelInjection         = "istio-injection"
	labelSidecar           = "sidecar.istio.io/inject"
	labelRevision          = "istio.io/rev"
	waypointClass          = "istio-waypoint"
)

// binding is what stands before a Service.
type binding struct {
	named   string // "namespace/name" of the waypoint that the labels name; empty: none
	gateway *mesh.Gateway
}

// waypointOf finds the waypoint of a Service: the Service's label counts before the namespace's, "none" is none (istio.io/docs/ambient/usage/waypoint).
func waypointOf(inv *mesh.Inventory, n *mesh.NamespaceInventory, ns string, svc *mesh.Service) binding {
	labels := svc.Labels
	if labels[labelWaypoint] == "" {
		labels = n.Labels
	}
	name := labels[labelWaypoint]
	if name == "" || name == "none" {
		return binding{}
	}
	where := labels[labelWaypointNamespace]
	if where == "" {
		where = ns
	}
	b := binding{named: where + "/" + name}
	home := inv.Namespaces[where]
	if home == nil {
		return b
	}
	i := slices.IndexFunc(home.Gateways, func(g mesh.Gateway) bool { return g.Name == name && g.Class == waypointClass })
	if i < 0 {
		return b
	}
	switch home.Gateways[i].Labels[labelWaypointFor] {
	case "", "service", "all":
		b.gateway = &home.Gateways[i]
	}
	return b
}

// inMesh reports whether the data plane of the mesh sees the Pods of a namespace.
func inMesh(labels map[string]string) bool {
	return labels[labelDataplane] == "ambient" || labels[labelInjection] == "enabled" || labels[labelRevision] != "" || labels[labelSidecar] == "true"
}
