package translate

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// place is a namespace of a cluster.
type place struct {
	cluster   mesh.ClusterName
	namespace string
}

func (p place) String() string { return string(p.cluster) + "/" + p.namespace }

// claim says which workspaces claim a place. More than one is a conflict, and then it belongs to none.
type claim struct {
	by     []*workspace
	config bool // resources of the mesh are read there
}

func (c *claim) owner() *workspace {
	if c == nil || len(c.by) != 1 {
		return nil
	}
	return c.by[0]
}

// workspace is a Workspace with what follows from it.
type workspace struct {
	*mesh.Workspace
	name      string
	places    []place
	clusters  map[mesh.ClusterName]bool
	settings  *mesh.WorkspaceSettings // nil: none
	conflicts []string
	imports   []*workspace // that it imports from and that export to it
}

// fleet is the part of a Snapshot that says what belongs to whom.
type fleet struct {
	s          *mesh.Snapshot
	claims     map[place]*claim
	workspaces []*workspace
	global     *mesh.WorkspaceSettings
	settings   map[*mesh.WorkspaceSettings]mesh.SettingsReport

	x       *indices
	sets    map[setKey]*clientSet
	silent  []*mesh.Cluster    // whose trust domain is not known
	domains []mesh.TrustDomain // of the mesh
	guard   sync.Mutex
	near    map[string][]source // of isolation, by the workspaces that may call
}

func matchName(pattern, name string) bool {
	if pattern == "" || pattern == "*" {
		return true
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// namespacesOf lists the namespaces of a cluster with their labels: of the management cluster as the server sees them, and those where resources lie.
func namespacesOf(s *mesh.Snapshot, c mesh.ClusterName, inv *mesh.Inventory) map[string]map[string]string {
	out := map[string]map[string]string{}
	if inv != nil {
		for n, i := range inv.Namespaces {
			out[n] = i.Labels
		}
	}
	if string(c) != s.ManagementCluster {
		return out
	}
	for n, labels := range s.Namespaces {
		if _, known := out[n]; !known || labels != nil {
			out[n] = labels
		}
	}
	home := func(ns string) {
		if _, known := out[ns]; !known {
			out[ns] = nil
		}
	}
	for _, p := range s.Policies {
		home(p.Source.Namespace)
	}
	for _, st := range s.Settings {
		home(st.Source.Namespace)
	}
	return out
}

func newFleet(s *mesh.Snapshot) *fleet {
	f := &fleet{s: s, claims: map[place]*claim{}, settings: map[*mesh.WorkspaceSettings]mesh.SettingsReport{}, x: newIndices(), sets: map[setKey]*clientSet{}, near: map[string][]source{}}
	type member struct {
		name   mesh.ClusterName
		labels map[string]string
		spaces map[string]map[string]string
	}
	var members []member
	if len(s.Workspaces) > 0 {
		for i := range s.Clusters {
			c := &s.Clusters[i]
			inv := c.Inventory
			if c.Invalid != "" {
				inv = nil // what it has counts nowhere
			}
			members = append(members, member{c.Name, c.Labels, namespacesOf(s, c.Name, inv)})
		}
		if s.ManagementCluster != "" && s.Cluster(mesh.ClusterName(s.ManagementCluster)) == nil {
			management := mesh.ClusterName(s.ManagementCluster)
			members = append(members, member{management, nil, namespacesOf(s, management, nil)})
		}
	}
	for _, w := range s.Workspaces {
		ws := &workspace{Workspace: w, name: w.Source.Name, clusters: map[mesh.ClusterName]bool{}}
		f.workspaces = append(f.workspaces, ws)
		if w.Invalid != "" {
			continue
		}
		for _, m := range members {
			for ns, labels := range m.spaces {
				if in, config := selects(&w.Spec, m.name, m.labels, ns, labels); in {
					ws.places = append(ws.places, place{m.name, ns})
					c := f.claims[place{m.name, ns}]
					if c == nil {
						c = &claim{}
						f.claims[place{m.name, ns}] = c
					}
					c.by = append(c.by, ws)
					c.config = config
				}
			}
		}
		slices.SortFunc(ws.places, func(a, b place) int { return strings.Compare(a.String(), b.String()) })
	}
	for _, ws := range f.workspaces {
		mine := ws.places[:0:0]
		for _, p := range ws.places {
			c := f.claims[p]
			if len(c.by) == 1 {
				mine = append(mine, p)
				ws.clusters[p.cluster] = true
				continue
			}
			var names []string
			for _, other := range c.by {
				if other != ws {
					names = append(names, other.name)
				}
			}
			ws.conflicts = append(ws.conflicts, fmt.Sprintf("namespace %s of cluster %s is claimed by %s too", p.namespace, p.cluster, strings.Join(names, ", ")))
		}
		ws.places = mine
	}
	f.assignSettings()
	f.assignImports()
	return f
}

func selects(spec *adminv2.WorkspaceSpec, cluster mesh.ClusterName, clusterLabels map[string]string, ns string, labels map[string]string) (in, config bool) {
	on := func(b *bool) bool { return b == nil || *b }
	for _, c := range spec.WorkloadClusters {
		if !matchName(c.Name, string(cluster)) || !covers(clusterLabels, c.Selector) {
			continue
		}
		for _, n := range c.Namespaces {
			if matchName(n.Name, ns) && covers(labels, n.Labels) {
				in, config = true, config || on(c.ConfigEnabled) && on(n.ConfigEnabled)
			}
		}
	}
	return in, config
}

func (f *fleet) assignSettings() {
	for _, st := range f.s.Settings {
		r := mesh.SettingsReport{Approval: adminv2.ApprovalAccepted}
		at := place{mesh.ClusterName(f.s.ManagementCluster), st.Source.Namespace}
		c := f.claims[at]
		ws := c.owner()
		switch {
		case st.Invalid != "":
			r.Approval, r.Message = adminv2.ApprovalInvalid, st.Invalid
		case st.Source.Namespace == f.s.AdminNamespace && st.Source.Name == adminv2.GlobalSettings:
			f.global = st
		case c != nil && len(c.by) > 1:
			r.Approval, r.Message = adminv2.ApprovalInvalid, conflictSentence(at, c)
		case ws == nil || !c.config:
			r.Approval, r.Message = adminv2.ApprovalInvalid, fmt.Sprintf("namespace %q of the management cluster belongs to no workspace with configuration enabled: move it to one that does", st.Source.Namespace)
		case ws.settings != nil:
			r.Approval, r.Workspace = adminv2.ApprovalWarning, ws.name
			r.Message = fmt.Sprintf("workspace %s has WorkspaceSettings already, %s/%s: delete one of them", ws.name, ws.settings.Source.Namespace, ws.settings.Source.Name)
		default:
			ws.settings, r.Workspace = st, ws.name
			r.Message = withoutEffect(&st.Spec)
			if r.Message != "" {
				r.Approval = adminv2.ApprovalWarning
			}
		}
		f.settings[st] = r
	}
	if f.global != nil {
		for _, ws := range f.workspaces {
			ws.settings = f.global
		}
	}
}

func withoutEffect(spec *adminv2.WorkspaceSettingsSpec) string {
	o := spec.Options
	if o == nil {
		return ""
	}
	var what []string
	if o.ServiceIsolation != nil && o.ServiceIsolation.TrimProxyConfig != nil && *o.ServiceIsolation.TrimProxyConfig {
		what = append(what, "serviceIsolation.trimProxyConfig")
	}
	if o.ServiceIsolation != nil && o.ServiceIsolation.EnforcementLayers != nil && o.ServiceIsolation.EnforcementLayers.CNI != nil && *o.ServiceIsolation.EnforcementLayers.CNI {
		what = append(what, "serviceIsolation.enforcementLayers.cni")
	}
	if o.TrimAllProxyConfig != nil && *o.TrimAllProxyConfig {
		what = append(what, "trimAllProxyConfig")
	}
	if o.VirtualDestClientMode != nil {
		what = append(what, "virtualDestClientMode")
	}
	if len(what) == 0 {
		return ""
	}
	return strings.Join(what, ", ") + ": without effect in an ambient mesh"
}

func conflictSentence(p place, c *claim) string {
	names := make([]string, len(c.by))
	for i, w := range c.by {
		names[i] = w.name
	}
	return fmt.Sprintf("namespace %s of cluster %s is claimed by workspaces %s: let one of them have it", p.namespace, p.cluster, strings.Join(names, " and "))
}

// shares reports whether a list of sharings names ws; resources are looked at per Service.
func shares(list []adminv2.Sharing, ws *workspace) bool {
	return slices.ContainsFunc(list, func(s adminv2.Sharing) bool { return namesWorkspace(s, ws) })
}

func namesWorkspace(s adminv2.Sharing, ws *workspace) bool {
	return slices.ContainsFunc(s.Workspaces, func(w adminv2.WorkspaceSelector) bool {
		return (w.Name != "" || len(w.Selector) > 0) && matchName(w.Name, ws.name) && covers(ws.Labels, w.Selector)
	})
}

func (f *fleet) assignImports() {
	for _, ws := range f.workspaces {
		if ws.settings == nil {
			continue
		}
		for _, other := range f.workspaces {
			if other != ws && other.settings != nil && shares(ws.settings.Spec.ImportFrom, other) && shares(other.settings.Spec.ExportTo, ws) {
				ws.imports = append(ws.imports, other)
			}
		}
	}
}

// sharedWith reports whether a Service of ws reaches other: exported by ws and imported by other.
func sharedWith(ws, other *workspace, c mesh.ClusterName, svc *mesh.Service) bool {
	side := func(list []adminv2.Sharing, with *workspace) bool {
		return slices.ContainsFunc(list, func(s adminv2.Sharing) bool {
			return namesWorkspace(s, with) && (len(s.Resources) == 0 || slices.ContainsFunc(s.Resources, func(r adminv2.ResourceSelector) bool {
				return (r.Kind == "" || r.Kind == adminv2.ResourceAll || r.Kind == adminv2.ResourceService) && covers(svc.Labels, r.Labels) &&
					(r.Name == "" || r.Name == svc.Name) && (r.Namespace == "" || r.Namespace == svc.Namespace) && (r.Cluster == "" || r.Cluster == string(c))
			}))
		})
	}
	return ws.settings != nil && other.settings != nil && side(ws.settings.Spec.ExportTo, other) && side(other.settings.Spec.ImportFrom, ws)
}

// isolated reports whether a workspace's services are guarded.
func (ws *workspace) isolated() bool {
	if ws == nil || ws.settings == nil || ws.settings.Spec.Options == nil {
		return false
	}
	i := ws.settings.Spec.Options.ServiceIsolation
	return i != nil && i.Enabled && (i.EnforcementLayers == nil || i.EnforcementLayers.Mesh == nil || *i.EnforcementLayers.Mesh)
}

// neighbours are the ServiceAccounts of ws and of the workspaces that a Service of it is shared with.
func (f *fleet) neighbours(ws *workspace, c mesh.ClusterName, svc *mesh.Service) []source {
	var key strings.Builder
	var callers []*workspace
	for _, other := range f.workspaces {
		if other == ws || sharedWith(ws, other, c, svc) {
			callers = append(callers, other)
			key.WriteString(other.name + "/")
		}
	}
	f.guard.Lock()
	defer f.guard.Unlock()
	if out, ok := f.near[key.String()]; ok {
		return out
	}
	found := map[mesh.Principal]bool{}
	for _, w := range callers {
		for p := range f.clients(w, &securityv2.ObjectSelector{}).accounts {
			found[p] = true
		}
	}
	var out []source
	if len(found) > 0 {
		out = []source{{Principals: sortedKeys(found)}}
	}
	f.near[key.String()] = out
	return out
}
