package translate

import (
	"fmt"
	"slices"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// report says what became of every Workspace and WorkspaceSettings.
func (f *fleet) report(r *Result, work []*policyWork) {
	for _, ws := range f.workspaces {
		r.Workspaces[ws.Source] = f.workspaceReport(ws, work)
	}
	for st, report := range f.settings {
		report.EastWestGateways = f.gateways(st)
		r.Settings[st.Source] = report
	}
}

func (f *fleet) workspaceReport(ws *workspace, work []*policyWork) mesh.WorkspaceReport {
	out := mesh.WorkspaceReport{Approval: adminv2.ApprovalAccepted, Clusters: len(ws.clusters), Namespaces: len(ws.places), ImportedWorkspaces: len(ws.imports)}
	if ws.settings != nil {
		out.Settings = ws.settings.Source
	}
	for _, w := range work {
		if w.scope.ws == ws {
			out.Policies++
		}
	}
	f.eachService(ws, func(c mesh.ClusterName, svc *mesh.Service) {
		shared := slices.ContainsFunc(f.workspaces, func(o *workspace) bool { return o != ws && sharedWith(ws, o, c, svc) })
		if shared {
			out.Services.Exported++
		} else {
			out.Services.Private++
		}
	})
	for _, other := range ws.imports {
		f.eachService(other, func(c mesh.ClusterName, svc *mesh.Service) {
			if sharedWith(other, ws, c, svc) {
				out.Services.Imported++
			}
		})
	}
	switch {
	case ws.Invalid != "":
		out.Approval, out.Message = adminv2.ApprovalInvalid, ws.Invalid
	case len(ws.conflicts) > 0:
		out.Approval = adminv2.ApprovalWarning
		out.Message = strings.Join(ws.conflicts[:min(3, len(ws.conflicts))], "; ")
		if n := len(ws.conflicts) - 3; n > 0 {
			out.Message += fmt.Sprintf("; and %d more", n)
		}
		out.Message += ": such a namespace belongs to neither"
	case len(ws.Spec.WorkloadClusters) > 0 && len(ws.places) == 0:
		out.Approval, out.Message = adminv2.ApprovalWarning, "no namespace is selected: compare workloadClusters with the names and labels of clusters and namespaces"
	}
	return out
}

func (f *fleet) eachService(ws *workspace, visit func(mesh.ClusterName, *mesh.Service)) {
	for _, p := range ws.places {
		c := f.s.Cluster(p.cluster)
		if c == nil || c.Inventory == nil || c.Inventory.Namespaces[p.namespace] == nil {
			continue
		}
		n := c.Inventory.Namespaces[p.namespace]
		for i := range n.Services {
			visit(p.cluster, &n.Services[i])
		}
	}
}

// gateways counts the east-west gateways that settings select; by default those labelled istio=eastwestgateway.
func (f *fleet) gateways(st *mesh.WorkspaceSettings) int {
	list := []adminv2.EastWestGatewaySelector{{Selector: &adminv2.ServiceSelector{Labels: map[string]string{"istio": "eastwestgateway"}}}}
	if o := st.Spec.Options; o != nil && len(o.EastWestGateways) > 0 {
		list = o.EastWestGateways
	}
	count := 0
	for i := range f.s.Clusters {
		c := &f.s.Clusters[i]
		if c.Inventory == nil {
			continue
		}
		for ns, n := range c.Inventory.Namespaces {
			for j := range n.Services {
				svc := &n.Services[j]
				if slices.ContainsFunc(list, func(g adminv2.EastWestGatewaySelector) bool {
					s := g.Selector
					return s == nil || covers(svc.Labels, s.Labels) && (s.Name == "" || s.Name == svc.Name) && (s.Namespace == "" || s.Namespace == ns) && (s.Cluster == "" || s.Cluster == string(c.Name))
				}) {
					count++
				}
			}
		}
	}
	return count
}
