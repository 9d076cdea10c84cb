package translate_test

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// The oracle says what the AccessPolicies mean, by brute force over the inventory and without Istio in mind. It shares no code with the translator.
//
// An answer has two bounds. must: such a call has to get through. may: it is allowed to. They are the same but where the cluster can't enforce the policy
// (then stricter is right), and where docs leave it open; each such place says so below ("loose").

type oracle struct {
	s      *mesh.Snapshot
	guards map[place][]*guard
	strict map[place][]strictness
	claims map[place][]*mesh.Workspace
	// told are the policies that guard something in a cluster, and those that it can't enforce.
	told, unenforceable map[mesh.ClusterName]map[mesh.Ref]bool
}

// place is a namespace of a cluster.
type place struct {
	cluster mesh.ClusterName
	ns      string
}

// guard is what one policy (or isolation) says of one Service, or of the Pods with some labels.
type guard struct {
	policy    mesh.Ref // zero: isolation
	service   string   // empty: workloads
	selector  map[string]string
	ports     map[string]bool // of the Pods; nil: all
	svcPorts  map[int32]bool  // of the Service; nil: all
	except    map[string]bool // but for these of the Pods
	svcExcept map[int32]bool  // but for these of the Service
	entries   []access
	l7        bool
	waypoint  string          // "namespace/name" of the one bound; empty: none
	named     string          // waypoint that is named but not there
	sure      map[string]bool // ports of the Pods where what it allows must get through; nil: all
	loose     bool            // what it allows may be refused
	unbounded bool            // it may be missing
}

// access is an entry of authzList with its clients resolved.
type access struct {
	authz   *securityv2.Authorization
	clients []clients
}

// clients are what one of allowedClients selects.
type clients struct {
	any    bool
	names  map[string]bool
	unsure map[string]bool // loose
	jwt    *securityv2.RequestIdentityMatcher
}

type strictness struct {
	selector map[string]string
	ports    map[string]bool // nil: all
	except   map[string]bool
	loose    bool
}

func (s strictness) onPod(port string) bool {
	return (s.ports == nil || s.ports[port]) && !s.except[port]
}

func oracleOf(s *mesh.Snapshot) *oracle {
	o := &oracle{
		s: s, guards: map[place][]*guard{}, strict: map[place][]strictness{}, claims: map[place][]*mesh.Workspace{},
		told: map[mesh.ClusterName]map[mesh.Ref]bool{}, unenforceable: map[mesh.ClusterName]map[mesh.Ref]bool{},
	}
	for i := range s.Clusters {
		o.told[s.Clusters[i].Name], o.unenforceable[s.Clusters[i].Name] = map[mesh.Ref]bool{}, map[mesh.Ref]bool{}
	}
	for _, p := range s.Policies {
		o.policy(p)
	}
	o.isolation()
	return o
}

// each calls f for every namespace that is known of.
func (o *oracle) each(f func(place, *mesh.Cluster, *mesh.NamespaceInventory)) {
	for i := range o.s.Clusters {
		c := &o.s.Clusters[i]
		if c.Inventory == nil || c.Invalid != "" {
			continue
		}
		for _, ns := range slices.Sorted(maps.Keys(c.Inventory.Namespaces)) {
			f(place{c.Name, ns}, c, c.Inventory.Namespaces[ns])
		}
	}
}

// wild is a pattern with * and ?, as workspaces have it; empty: any.
func wild(pattern, v string) bool {
	if pattern == "" {
		return true
	}
	return wildMatch(pattern, v)
}

func wildMatch(p, v string) bool {
	switch {
	case p == "":
		return v == ""
	case p[0] == '*':
		return wildMatch(p[1:], v) || v != "" && wildMatch(p, v[1:])
	case v == "":
		return false
	case p[0] == '?' || p[0] == v[0]:
		return wildMatch(p[1:], v[1:])
	}
	return false
}

// owner is the workspace that a namespace belongs to; conflict: several claim it. config: its resources are read there.
func (o *oracle) owner(at place) (ws *mesh.Workspace, config, conflict bool) {
	var labels, nsLabels map[string]string
	if c := o.s.Cluster(at.cluster); c != nil {
		labels = c.Labels
		if c.Inventory != nil && c.Inventory.Namespaces[at.ns] != nil {
			nsLabels = c.Inventory.Namespaces[at.ns].Labels
		}
	}
	if string(at.cluster) == o.s.ManagementCluster && o.s.Namespaces[at.ns] != nil {
		nsLabels = o.s.Namespaces[at.ns]
	}
	on := func(b *bool) bool { return b == nil || *b }
	for _, w := range o.s.Workspaces {
		claimed := false
		for _, e := range w.Spec.WorkloadClusters {
			if w.Invalid != "" || !wild(e.Name, string(at.cluster)) || !contains(labels, e.Selector) {
				continue
			}
			for _, n := range e.Namespaces {
				if wild(n.Name, at.ns) && contains(nsLabels, n.Labels) {
					claimed = true
					config = config || on(e.ConfigEnabled) && on(n.ConfigEnabled)
				}
			}
		}
		if claimed && ws != nil {
			return nil, false, true
		}
		if claimed {
			ws = w
		}
	}
	return ws, config, false
}

func (o *oracle) ownerName(at place) string {
	if w, _, _ := o.owner(at); w != nil {
		return w.Source.Name
	}
	return ""
}

// scope is where a policy holds: ok is false if nowhere.
func (o *oracle) scope(p *mesh.AccessPolicy) (workspace *mesh.Workspace, ok bool) {
	ws, config, conflict := o.owner(place{mesh.ClusterName(o.s.ManagementCluster), p.Source.Namespace})
	switch {
	case conflict || p.Invalid != "":
		return nil, false
	case ws == nil:
		return nil, p.Source.Namespace == o.s.AdminNamespace
	}
	return ws, config
}

func (o *oracle) policy(p *mesh.AccessPolicy) {
	ws, ok := o.scope(p)
	cfg := p.Spec.Config
	if !ok || cfg == nil || ws != nil && len(p.Spec.ApplyToWorkloads) > 0 && o.isolated(ws) {
		return
	}
	if l := cfg.EnforcementLayers; l != nil && l.Mesh != nil && !*l.Mesh {
		return
	}
	list := cfg.AuthzList
	if len(list) == 0 && cfg.Authz != nil {
		list = []securityv2.Authorization{*cfg.Authz}
	}
	proto := guard{policy: p.Source}
	guarded := false
	for i := range list {
		if list[i].DryRun {
			continue
		}
		guarded = true
		e := access{authz: &list[i]}
		for j := range list[i].AllowedClients {
			e.clients = append(e.clients, o.clients(&list[i].AllowedClients[j], ws))
		}
		proto.entries = append(proto.entries, e)
		proto.l7 = proto.l7 || e.l7()
	}
	tls := cfg.Authn != nil && (cfg.Authn.TLSMode == securityv2.TLSStrict || cfg.Authn.MTLS != nil && cfg.Authn.MTLS.Required)
	o.each(func(at place, c *mesh.Cluster, ns *mesh.NamespaceInventory) {
		for _, g := range o.selected(p, ws, at, c, ns) {
			g.policy, g.entries, g.l7 = proto.policy, proto.entries, proto.l7
			if tls {
				o.strict[at] = append(o.strict[at], strictness{g.selector, g.ports, g.except, g.loose || g.unbounded})
			}
			if guarded {
				o.add(at, c, ns, g)
			}
			if (guarded || tls) && !g.unbounded {
				o.told[at.cluster][p.Source] = true
				if !meshed(ns) {
					o.unenforceable[at.cluster][p.Source] = true
				}
			}
			if (guarded || tls) && ws != nil && at.ns == rootNamespace(c) {
				o.told[at.cluster][p.Source], o.unenforceable[at.cluster][p.Source] = true, true
			}
		}
	})
}

func meshed(ns *mesh.NamespaceInventory) bool {
	return ns.Labels["istio.io/dataplane-mode"] == "ambient" || ns.Labels["istio-injection"] == "enabled" || ns.Labels["istio.io/rev"] != ""
}

// add finds the Service's waypoint and adds the guard.
func (o *oracle) add(at place, c *mesh.Cluster, ns *mesh.NamespaceInventory, g *guard) {
	if g.service != "" {
		g.waypoint, g.named = boundWaypoint(at, c, ns, g.service)
	}
	if g.l7 && g.waypoint == "" {
		if !g.unbounded {
			o.unenforceable[at.cluster][g.policy] = true
		}
		g.loose = true
	}
	o.guards[at] = append(o.guards[at], g)
}

// boundWaypoint is the waypoint of a Service, or the name of one that is not there (or does not serve Services).
func boundWaypoint(at place, c *mesh.Cluster, ns *mesh.NamespaceInventory, service string) (bound, named string) {
	labels := ns.Labels
	for _, s := range ns.Services {
		if s.Name == service && s.Labels["istio.io/use-waypoint"] != "" {
			labels = s.Labels
		}
	}
	name, in := labels["istio.io/use-waypoint"], labels["istio.io/use-waypoint-namespace"]
	if name == "" || name == "none" {
		return "", ""
	}
	if in == "" {
		in = at.ns
	}
	if n := c.Inventory.Namespaces[in]; n != nil {
		for _, g := range n.Gateways {
			if g.Name == name && g.Class == "istio-waypoint" && slices.Contains([]string{"", "service", "all"}, g.Labels["istio.io/waypoint-for"]) {
				return in + "/" + name, ""
			}
		}
	}
	return "", in + "/" + name
}

// selected are the guards, without their entries, that a policy puts in a namespace.
func (o *oracle) selected(p *mesh.AccessPolicy, ws *mesh.Workspace, at place, c *mesh.Cluster, ns *mesh.NamespaceInventory) []*guard {
	owner := o.ownerName(at)
	if ws != nil && owner != ws.Source.Name {
		return nil
	}
	ours := func(sel *securityv2.ObjectSelector) bool {
		return sel == nil || (sel.Namespace == "" || sel.Namespace == at.ns) && (sel.Cluster == "" || sel.Cluster == string(at.cluster)) &&
			(sel.Workspace == "" || sel.Workspace == owner)
	}
	// Loose: which namespaces of the system are taken by a mesh-wide selector that names none. In Istio's root namespace nothing can be guarded at all: what is
	// there holds in every namespace.
	system := ws == nil && o.system(at, c, ns)
	free := func(sel *securityv2.ObjectSelector) bool {
		return at.ns == rootNamespace(c) || system && (sel == nil || sel.Namespace == "")
	}
	var out []*guard
	for i := range p.Spec.ApplyToWorkloads {
		sel := p.Spec.ApplyToWorkloads[i].Selector
		if !ours(sel) {
			continue
		}
		g := &guard{}
		if sel != nil {
			g.selector = sel.Labels
		}
		g.unbounded = free(sel)
		out = append(out, g)
	}
	if len(p.Spec.ApplyToWorkloads) > 0 {
		return out
	}
	destinations := p.Spec.ApplyToDestinations
	if len(destinations) == 0 && !system {
		destinations = []securityv2.DestinationSelector{{}}
	}
	for i := range destinations {
		d := &destinations[i]
		if !ours(d.Selector) {
			continue
		}
		for j := range ns.Services {
			svc := &ns.Services[j]
			if d.Selector != nil && (!contains(svc.Labels, d.Selector.Labels) || d.Selector.Name != "" && d.Selector.Name != svc.Name) || len(svc.Selector) == 0 {
				continue
			}
			if g := onPort(svc, d.Port); g != nil {
				g.unbounded = free(d.Selector)
				out = append(out, g)
			}
		}
	}
	return out
}

func (o *oracle) system(at place, c *mesh.Cluster, ns *mesh.NamespaceInventory) bool {
	return at.ns == rootNamespace(c) || at.ns == "istio-system" || strings.HasPrefix(at.ns, "kube-") || at.ns == o.s.AdminNamespace ||
		slices.ContainsFunc(ns.Gateways, func(g mesh.Gateway) bool { return g.Class != "istio-waypoint" })
}

// onPort guards a Service, or one port of it; nil: it has no such port.
func onPort(svc *mesh.Service, port *securityv2.PortSelector) *guard {
	g := &guard{service: svc.Name, selector: svc.Selector}
	if port == nil || port.Number == 0 && port.Name == "" {
		return g
	}
	g.ports, g.svcPorts = map[string]bool{}, map[int32]bool{}
	for _, p := range svc.Ports {
		if port.Number != 0 && p.Number != int32(port.Number) || port.Name != "" && p.Name != port.Name {
			continue
		}
		g.svcPorts[p.Number] = true
		g.ports[target(p)] = true
		if _, err := strconv.Atoi(target(p)); err != nil {
			// The number is known to the Pods only: the whole Service is guarded.
			g.ports, g.svcPorts, g.loose = nil, nil, true
			return g
		}
	}
	if len(g.svcPorts) == 0 {
		return nil
	}
	return g
}

func target(p mesh.ServicePort) string {
	if p.TargetPort == "" {
		return strconv.Itoa(int(p.Number))
	}
	return p.TargetPort
}

// clients resolves one of allowedClients.
func (o *oracle) clients(id *securityv2.IdentitySelector, ws *mesh.Workspace) clients {
	out := clients{jwt: id.RequestIdentityMatcher, names: map[string]bool{}, unsure: map[string]bool{}}
	sel := id.ServiceAccountSelector
	if sel == nil {
		out.any = id.ExternalWorkloadSelector == nil
		return out
	}
	into := out.names
	if id.ExternalWorkloadSelector != nil {
		into = out.unsure // loose: nobody is both
	}
	trusted := func(cluster string) string {
		if c := o.s.Cluster(mesh.ClusterName(cluster)); c != nil && c.Inventory != nil && c.Invalid == "" {
			return string(c.Inventory.Info.TrustDomain)
		}
		return ""
	}
	add := func(cluster, ns, name string) {
		if td := trusted(cluster); td != "" {
			into[td+"/ns/"+ns+"/sa/"+name] = true
		}
	}
	here := func(at place) bool {
		owner := o.ownerName(at)
		switch {
		case sel.Namespace != "" && sel.Namespace != at.ns, sel.Cluster != "" && sel.Cluster != string(at.cluster):
			return false
		case sel.Workspace != "":
			return sel.Workspace == owner
		}
		return ws == nil || ws.Source.Name == owner
	}
	found := false
	o.each(func(at place, _ *mesh.Cluster, ns *mesh.NamespaceInventory) {
		for _, sa := range ns.ServiceAccounts {
			if here(at) && contains(sa.Labels, sel.Labels) && (sel.Name == "" || sel.Name == sa.Name) {
				found = true
				add(string(at.cluster), at.ns, sa.Name)
			}
		}
	})
	if sel.Name != "" && sel.Namespace != "" && sel.Cluster != "" && here(place{mesh.ClusterName(sel.Cluster), sel.Namespace}) && !found {
		if c := o.s.Cluster(mesh.ClusterName(sel.Cluster)); len(sel.Labels) > 0 || ws != nil && (c == nil || c.Inventory == nil || c.Inventory.Namespaces[sel.Namespace] == nil) {
			into = out.unsure // loose: it can't have the labels yet; nor is it sure that its namespace will be the workspace's
		}
		add(sel.Cluster, sel.Namespace, sel.Name)
		found = len(sel.Labels) == 0
	}
	if found || len(sel.Labels) == 0 {
		return out
	}
	o.each(func(at place, _ *mesh.Cluster, ns *mesh.NamespaceInventory) {
		for _, w := range ns.Workloads {
			sa := w.ServiceAccount
			if sa == "" {
				sa = "default"
			}
			if here(at) && contains(w.Labels, sel.Labels) && (sel.Name == "" || sel.Name == sa) {
				add(string(at.cluster), at.ns, sa)
			}
		}
	})
	return out
}
