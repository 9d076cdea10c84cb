package translate

import (
	"fmt"
	"slices"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// counts are the Services of one namespace, as its workspace's report counts them.
type counts struct {
	private, exported int
	imported          map[*workspace]int // by who imports
	gateways          []int              // by settings: how many are east-west gateways
}

// count counts a namespace.
func (f *fleet) count(at place, n *mesh.NamespaceInventory) counts {
	var out counts
	if ws := f.claims[at].owner(); ws != nil {
		for i := range n.Services {
			shared := false
			for _, o := range f.workspaces {
				if o == ws || !sharedWith(ws, o, at.cluster, &n.Services[i]) {
					continue
				}
				shared = true
				if out.imported == nil {
					out.imported = map[*workspace]int{}
				}
				out.imported[o]++
			}
			if shared {
				out.exported++
			} else {
				out.private++
			}
		}
	}
	for i, st := range f.s.Settings {
		if c := eastWestGateways(st, at, n); c > 0 {
			if out.gateways == nil {
				out.gateways = make([]int, len(f.s.Settings))
			}
			out.gateways[i] = c
		}
	}
	return out
}

// report says what became of every Workspace and WorkspaceSettings.
func (t *Translator) report(r *Result) {
	policies := map[*workspace]int{}
	for _, w := range t.work {
		policies[w.scope.ws]++
	}
	all := map[*workspace]*mesh.ServiceCounts{}
	for _, ws := range t.f.workspaces {
		all[ws] = &mesh.ServiceCounts{}
	}
	gateways := make([]int, len(t.f.s.Settings))
	for c, st := range t.clusters {
		for ns, p := range st.places {
			if own := all[t.f.claims[place{c, ns}].owner()]; own != nil {
				own.Private += p.counts.private
				own.Exported += p.counts.exported
			}
			for ws, n := range p.counts.imported {
				all[ws].Imported += n
			}
			for i, n := range p.counts.gateways {
				gateways[i] += n
			}
		}
	}
	for _, ws := range t.f.workspaces {
		out := ws.report()
		out.Services, out.Policies = *all[ws], policies[ws]
		r.Workspaces[ws.Source] = out
	}
	for i, st := range t.f.s.Settings {
		out := t.f.settings[st]
		out.EastWestGateways = gateways[i]
		r.Settings[st.Source] = out
	}
}

func (ws *workspace) report() mesh.WorkspaceReport {
	out := mesh.WorkspaceReport{Approval: adminv2.ApprovalAccepted, Clusters: len(ws.clusters), Namespaces: len(ws.places), ImportedWorkspaces: len(ws.imports)}
	if ws.settings != nil {
		out.Settings = ws.settings.Source
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

// eastWestGateways counts the east-west gateways of a namespace that settings select; by default those labelled istio=eastwestgateway.
func eastWestGateways(st *mesh.WorkspaceSettings, at place, n *mesh.NamespaceInventory) int {
	list := []adminv2.EastWestGatewaySelector{{Selector: &adminv2.ServiceSelector{Labels: map[string]string{"istio": "eastwestgateway"}}}}
	if o := st.Spec.Options; o != nil && len(o.EastWestGateways) > 0 {
		list = o.EastWestGateways
	}
	count := 0
	for j := range n.Services {
		svc := &n.Services[j]
		if slices.ContainsFunc(list, func(g adminv2.EastWestGatewaySelector) bool {
			s := g.Selector
			return s == nil || covers(svc.Labels, s.Labels) && (s.Name == "" || s.Name == svc.Name) && (s.Namespace == "" || s.Namespace == at.namespace) && (s.Cluster == "" || s.Cluster == string(at.cluster))
		}) {
			count++
		}
	}
	return count
}
