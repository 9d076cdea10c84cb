package translate_test

import (
	"maps"
	"slices"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// settings of a workspace: its only one, in a namespace where its configuration is read; nil: none.
func (o *oracle) settings(ws *mesh.Workspace) *adminv2.WorkspaceSettingsSpec {
	for _, st := range o.s.Settings {
		w, config, _ := o.owner(place{mesh.ClusterName(o.s.ManagementCluster), st.Source.Namespace})
		if w != nil && w.Source == ws.Source && config && st.Invalid == "" {
			return &st.Spec
		}
	}
	return nil
}

func (o *oracle) isolated(ws *mesh.Workspace) bool {
	s := o.settings(ws)
	if s == nil || s.Options == nil || s.Options.ServiceIsolation == nil || !s.Options.ServiceIsolation.Enabled {
		return false
	}
	l := s.Options.ServiceIsolation.EnforcementLayers
	return l == nil || l.Mesh == nil || *l.Mesh
}

func (o *oracle) isolation() {
	for _, ws := range o.s.Workspaces {
		if !o.isolated(ws) {
			continue
		}
		o.each(func(at place, c *mesh.Cluster, ns *mesh.NamespaceInventory) {
			if o.ownerName(at) != ws.Source.Name {
				return
			}
			for i := range ns.Services {
				o.isolate(ws, at, c, ns, &ns.Services[i])
			}
		})
	}
}

// isolate guards a Service by default; an AccessPolicy on it, or on one of its ports, takes the place of the default there.
func (o *oracle) isolate(ws *mesh.Workspace, at place, c *mesh.Cluster, ns *mesh.NamespaceInventory, svc *mesh.Service) {
	if len(svc.Selector) == 0 {
		return
	}
	g := &guard{service: svc.Name, selector: svc.Selector, unbounded: o.system(at, c, ns)}
	g.except, g.svcExcept = map[string]bool{}, map[int32]bool{}
	for _, other := range o.guards[at] {
		switch {
		case other.policy.Name == "":
		case other.service == svc.Name && other.svcPorts == nil:
			return
		case other.service == svc.Name:
			maps.Copy(g.except, other.ports)
			maps.Copy(g.svcExcept, other.svcPorts)
			g.sure = map[string]bool{} // loose: ports of the Pods that the Service does not list
		case other.service == "" && contains(svc.Selector, other.selector):
			g.loose = true // loose: whether a policy on workloads takes the place of isolation
		}
	}
	for _, p := range svc.Ports {
		if g.except[target(p)] {
			g.svcExcept[p.Number] = true // another port of the Service that leads to what the policy guards
		}
		if g.sure != nil {
			g.sure[target(p)] = true
		}
	}
	for _, other := range o.guards[at] {
		if g.sure == nil || other.policy.Name == "" || contradict(svc.Selector, other.selector) {
			continue
		}
		// Loose: what remains of isolation where a policy guards the same Pods for another Service's sake.
		g.loose = g.loose || other.ports == nil
		for port := range other.ports {
			delete(g.sure, port)
		}
	}
	names := map[string]bool{}
	o.each(func(from place, fc *mesh.Cluster, fns *mesh.NamespaceInventory) {
		w, _, _ := o.owner(from)
		if w == nil || fc.Inventory.Info.TrustDomain == "" || w.Source != ws.Source && !o.shares(ws, w, at, svc) {
			return
		}
		for _, sa := range fns.ServiceAccounts {
			names[string(fc.Inventory.Info.TrustDomain)+"/ns/"+from.ns+"/sa/"+sa.Name] = true
		}
	})
	g.entries = []access{{authz: &securityv2.Authorization{}, clients: []clients{{names: names}}}}
	o.strict[at] = append(o.strict[at], strictness{g.selector, g.ports, g.except, g.loose || g.unbounded})
	o.add(at, c, ns, g)
}

// shares: the exporter lets the importer have the Service, and the importer wants it.
func (o *oracle) shares(exporter, importer *mesh.Workspace, at place, svc *mesh.Service) bool {
	out, in := o.settings(exporter), o.settings(importer)
	if out == nil || in == nil {
		return false
	}
	one := func(list []adminv2.Sharing, other *mesh.Workspace) bool {
		return slices.ContainsFunc(list, func(s adminv2.Sharing) bool {
			return slices.ContainsFunc(s.Workspaces, func(w adminv2.WorkspaceSelector) bool {
				return wild(w.Name, other.Source.Name) && contains(other.Labels, w.Selector)
			}) && (len(s.Resources) == 0 || slices.ContainsFunc(s.Resources, func(r adminv2.ResourceSelector) bool {
				return (r.Kind == "" || r.Kind == adminv2.ResourceAll || r.Kind == adminv2.ResourceService) && contains(svc.Labels, r.Labels) && (r.Name == "" || r.Name == svc.Name) &&
					(r.Namespace == "" || r.Namespace == at.ns) && (r.Cluster == "" || r.Cluster == string(at.cluster))
			}))
		})
	}
	return one(out.ExportTo, importer) && one(in.ImportFrom, exporter)
}
