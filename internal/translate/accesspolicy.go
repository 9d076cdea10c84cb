package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// part is what one policy (or a workspace's isolation) guards in one namespace of a cluster: the Pods of one selector.
type part struct {
	*origin
	labels   map[string]string // Pods; empty: every Pod of the namespace
	ports    []int32           // of the Pods; nil: all
	only     []int32           // of the Pods: every port is guarded, and these alone are allowed by the entries; nil: no such restriction
	services []service         // that led here; none when workloads were selected
	waypoint *mesh.Gateway     // nil: none
	authz    bool              // an AuthorizationPolicy is wanted
	entries  []resolved
	mode     securityv2.TLSMode // empty: not said
	missing  string             // a waypoint that is named and not there

	twin     string // tells apart parts of one origin for the same Pods
	selector string // selectorKey of labels
	podName  string // of its AuthorizationPolicy for the Pods, once there is one
	peerName string // of the PeerAuthentication of which it is the first part, once asked for
}

// origin is what parts come from. There are many parts of few.
type origin struct {
	source mesh.Ref
	prefix string // of the objects' names
	name   string
	ws     string
}

type service struct {
	name  string
	ports []int32 // of the Service; nil: all
	only  []int32 // as part.only, of the Service
}

func (p *part) key() string {
	w := ""
	if p.waypoint != nil {
		w = p.waypoint.Namespace + "/" + p.waypoint.Name
	}
	return p.podKey() + w
}

func (p *part) podKey() string {
	if p.selector == "" {
		p.selector = selectorKey(p.labels)
	}
	return p.selector
}

// plain: its AuthorizationPolicy depends on nothing but itself, as long as all parts of the namespace are so.
func (p *part) plain() bool { return p.ports == nil && p.only == nil && p.waypoint == nil }

// policyWork is a policy on its way through.
type policyWork struct {
	p      *mesh.AccessPolicy
	order  int // in the Snapshot
	report mesh.PolicyReport
	scope  scope
	res    resolution
	bad    bool // not translated
	origin *origin
	open   []rule // of the entries that need no waypoint, on all ports
	shares map[mesh.ClusterName][]*share
}

func begin(f *fleet, p *mesh.AccessPolicy) *policyWork {
	w := &policyWork{p: p, shares: map[mesh.ClusterName][]*share{}, scope: scope{f: f}}
	refuse := func(reason, message string) *policyWork {
		w.bad = true
		w.report.Approval, w.report.Message = adminv2.ApprovalInvalid, message
		w.report.Conditions = []mesh.Condition{{Type: securityv2.ConditionAccepted, Status: mesh.False, Reason: reason, Message: message}}
		return w
	}
	if why := invalid(p); why != "" {
		return refuse(securityv2.ReasonInvalid, why)
	}
	at := place{mesh.ClusterName(f.s.ManagementCluster), p.Source.Namespace}
	c := f.claims[at]
	switch {
	case c != nil && len(c.by) > 1:
		return refuse(securityv2.ReasonNamespaceConflict, conflictSentence(at, c))
	case c.owner() != nil && c.config:
		w.scope.ws = c.owner()
		w.report.Workspace = w.scope.ws.name
	case p.Source.Namespace != f.s.AdminNamespace:
		return refuse(securityv2.ReasonNoWorkspace,
			fmt.Sprintf("namespace %q of the management cluster belongs to no workspace: move the policy to %q for the whole mesh, or add the namespace to a workspace", p.Source.Namespace, f.s.AdminNamespace))
	}
	if w.scope.ws.isolated() && len(p.Spec.ApplyToWorkloads) > 0 {
		return refuse(securityv2.ReasonInvalid, fmt.Sprintf("workspace %s has serviceIsolation: use applyToDestinations, since isolation can't know what applyToWorkloads replaces", w.report.Workspace))
	}
	w.res = w.scope.resolve(p)
	w.origin = &origin{source: p.Source, prefix: "accesspolicy", name: p.Source.Name, ws: w.report.Workspace}
	w.open = anyPort(l4(w.res.entries))
	return w
}

// invalid says what is wrong with a policy, as far as translation could not give it a meaning; internal/validate knows more.
func invalid(p *mesh.AccessPolicy) string {
	if p.Invalid != "" {
		return p.Invalid
	}
	for _, d := range p.Spec.ApplyToDestinations {
		if d.Kind != "" && d.Kind != securityv2.DestinationService && len(p.Spec.ApplyToWorkloads) == 0 {
			return fmt.Sprintf("destinations of kind %s can't be guarded: write kind: SERVICE, or leave it out", d.Kind)
		}
	}
	if c := p.Spec.Config; c != nil && tlsMode(c.Authn) == securityv2.TLSDisable &&
		slices.ContainsFunc(authorizations(p), func(a securityv2.Authorization) bool { return len(a.AllowedClients) > 0 }) {
		return "allowedClients are known by mutual TLS, and authn.tlsMode is DISABLE: write STRICT"
	}
	return ""
}

// awaits reports whether a cluster has not reported that may have the destination.
func (w *policyWork) awaits(c *mesh.Cluster) bool {
	return c.Invalid == "" && c.Inventory == nil && c.UID != "" && (w.scope.ws == nil || w.scope.ws.clusters[c.Name]) && w.reaches(c.Name)
}

// reaches reports whether some selector could select something in c.
func (w *policyWork) reaches(c mesh.ClusterName) bool {
	could := func(s *securityv2.ObjectSelector) bool { return s == nil || s.Cluster == "" || s.Cluster == string(c) }
	spec := &w.p.Spec
	if len(spec.ApplyToWorkloads) > 0 {
		return slices.ContainsFunc(spec.ApplyToWorkloads, func(s securityv2.WorkloadSelector) bool { return could(s.Selector) })
	}
	return len(spec.ApplyToDestinations) == 0 || slices.ContainsFunc(spec.ApplyToDestinations, func(s securityv2.DestinationSelector) bool { return could(s.Selector) })
}

func tlsMode(a *securityv2.Authentication) securityv2.TLSMode {
	switch {
	case a == nil:
		return ""
	case a.TLSMode != "":
		return a.TLSMode
	case a.MTLS != nil && a.MTLS.Required:
		return securityv2.TLSStrict
	}
	return ""
}

// layerOff reports whether the policy asks not to be enforced by the mesh.
func layerOff(p *mesh.AccessPolicy) bool {
	c := p.Spec.Config
	return c != nil && c.EnforcementLayers != nil && c.EnforcementLayers.Mesh != nil && !*c.EnforcementLayers.Mesh
}

func (at *placeWork) workloads(w *share) []*part {
	seen := map[string]*part{}
	var out []*part
	for i := range w.p.Spec.ApplyToWorkloads {
		sel := w.p.Spec.ApplyToWorkloads[i].Selector
		if sel == nil {
			sel = &securityv2.ObjectSelector{}
		}
		if !at.inWorkspace(sel.Workspace) || sel.Cluster != "" && sel.Cluster != string(at.c.Name) || sel.Namespace != "" && sel.Namespace != at.ns {
			continue
		}
		if w.scope.ws == nil && sel.Namespace == "" && len(sel.Labels) == 0 && at.system() {
			continue
		}
		if k := selectorKey(sel.Labels); seen[k] == nil {
			seen[k] = at.part(w, sel.Labels)
			out = append(out, seen[k])
			if seen[k].authz {
				at.strangers(w, sel.Labels)
			}
		}
	}
	return out
}

// strangers says which calls workloads will refuse though their clients are allowed: a waypoint hands them on under its own name.
func (at *placeWork) strangers(w *share, labels map[string]string) {
	for i := range at.n.Services {
		svc := &at.n.Services[i]
		if len(svc.Selector) == 0 || !mayOverlap(svc.Selector, labels) {
			continue
		}
		if g := waypointOf(at.c.Inventory, at.n, at.ns, svc).gateway; g != nil {
			w.unenforceable(fmt.Sprintf("what reaches the Pods through waypoint %s/%s of Service %s/%s is refused, since they see the waypoint and not the client: use applyToDestinations", g.Namespace, g.Name, at.ns, svc.Name))
		}
	}
}

func (at *placeWork) part(w *share, labels map[string]string) *part {
	p := &part{origin: w.origin, labels: labels, entries: w.res.entries}
	if c := w.p.Spec.Config; c != nil {
		p.mode = tlsMode(c.Authn)
		p.authz = len(w.res.entries) > 0 // dry runs alone enforce nothing
	}
	return p
}

// inWorkspace reports whether the namespace belongs to the workspace of that name; empty: any will do.
func (at *placeWork) inWorkspace(name string) bool {
	if name == "" {
		return true
	}
	ws := at.f.claims[place{at.c.Name, at.ns}].owner()
	return ws != nil && ws.name == name
}

// system: namespaces that a mesh-wide policy for "everything" leaves out, or the mesh could not work any more.
func (at *placeWork) system() bool {
	return at.ns == at.f.s.AdminNamespace || at.ns == "istio-system" || at.ns == rootNamespace(at.c) || strings.HasPrefix(at.ns, "kube-") ||
		slices.ContainsFunc(at.n.Gateways, func(g mesh.Gateway) bool { return g.Class != waypointClass })
}

func (at *placeWork) destinations(w *share) []*part {
	seen := map[string]*part{}
	var out []*part
	for i := range at.n.Services {
		svc := &at.n.Services[i]
		hit, ports := at.selected(w, svc)
		if !hit {
			continue
		}
		if len(svc.Selector) == 0 {
			w.unenforceable(fmt.Sprintf("Service %s/%s has no selector, so its Pods are not known", at.ns, svc.Name))
			continue
		}
		p := at.part(w, svc.Selector)
		b := waypointOf(at.c.Inventory, at.n, at.ns, svc)
		p.waypoint = b.gateway
		if b.gateway == nil {
			p.missing = b.named
		}
		podPorts, all := at.podPorts(w, svc, ports)
		if !all {
			p.ports = podPorts
		}
		if before := seen[p.key()]; before != nil {
			before.merge(p)
			p = before
		} else {
			seen[p.key()] = p
			out = append(out, p)
		}
		sp := service{name: svc.Name}
		if !all { // another port of the Service that leads to the same port of the Pods would be a way around
			sp.ports = mapped(svc, podPorts, nil)
		}
		p.services = append(p.services, sp)
		w.guards += guards(svc, ports)
	}
	for _, p := range out { // Pods that are guarded for one Service's sake are so for the others', or those would be a way around
		for i := range p.services {
			j := slices.IndexFunc(at.n.Services, func(svc mesh.Service) bool { return svc.Name == p.services[i].name })
			if p.services[i].ports != nil {
				p.services[i].ports = mapped(&at.n.Services[j], p.ports, nil)
			}
		}
	}
	return out
}

// guards counts the Service ports that are guarded.
func guards(svc *mesh.Service, ports []int32) int {
	if ports == nil {
		return len(svc.Ports)
	}
	return len(ports)
}

func (p *part) merge(o *part) {
	if p.ports == nil || o.ports == nil {
		p.ports = nil
		return
	}
	p.ports = union(p.ports, o.ports)
}

func union(a, b []int32) []int32 {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// selected reports whether the policy selects svc, and which of its ports; nil: all.
func (at *placeWork) selected(w *share, svc *mesh.Service) (hit bool, ports []int32) {
	list := w.p.Spec.ApplyToDestinations
	if len(list) == 0 {
		return w.scope.ws != nil || !at.system(), nil
	}
	for i := range list {
		d := &list[i]
		if d.Selector != nil && !at.inWorkspace(d.Selector.Workspace) {
			continue
		}
		if !matches(d.Selector, at.c.Name, at.ns, svc.Name, svc.Labels) {
			continue
		}
		everything := d.Selector == nil || d.Selector.Name == "" && d.Selector.Namespace == "" && len(d.Selector.Labels) == 0
		if everything && w.scope.ws == nil && at.system() {
			continue
		}
		if d.Port == nil || d.Port.Number == 0 && d.Port.Name == "" {
			return true, nil
		}
		for _, p := range svc.Ports {
			if (d.Port.Number == 0 || p.Number == int32(d.Port.Number)) && (d.Port.Name == "" || p.Name == d.Port.Name) { //nolint:gosec // a port, checked by validate
				hit, ports = true, union(ports, []int32{p.Number})
			}
		}
	}
	return hit, ports
}

// podPorts turns ports of a Service into those of its Pods. all: every port has to be guarded, because one can't be told.
func (at *placeWork) podPorts(w *share, svc *mesh.Service, ports []int32) (out []int32, all bool) {
	if ports == nil {
		return nil, true
	}
	for _, p := range svc.Ports {
		if !slices.Contains(ports, p.Number) {
			continue
		}
		target, ok := targetPort(p)
		if !ok {
			w.unenforceable(fmt.Sprintf("port %d of Service %s/%s leads to the named port %q, whose number is not known: every port of its Pods is guarded instead", p.Number, at.ns, svc.Name, p.TargetPort))
			return nil, true
		}
		out = union(out, []int32{target})
	}
	return out, false
}

// isolate adds the guards of a workspace with serviceIsolation, for what no policy guards of its Services.
func (at *placeWork) isolate() {
	ws := at.f.claims[place{at.c.Name, at.ns}].owner()
	if !ws.isolated() || at.ns == rootNamespace(at.c) {
		return
	}
	taken := map[string]*taking{}
	for i, p := range at.parts {
		for _, s := range p.services {
			if at.of[i] == nil || !p.authz {
				continue
			}
			if taken[s.name] == nil {
				taken[s.name] = &taking{}
			}
			taken[s.name].add(p, s)
		}
	}
	for i := range at.n.Services {
		svc := &at.n.Services[i]
		t := taken[svc.Name]
		if len(svc.Selector) == 0 || t != nil && t.whole {
			continue
		}
		p := &part{
			origin: &origin{source: ws.Source, prefix: "isolation", name: ws.name, ws: ws.name}, twin: svc.Name, labels: svc.Selector, authz: true, mode: securityv2.TLSStrict,
			services: []service{{name: svc.Name}}, entries: []resolved{{authz: &securityv2.Authorization{}, sources: at.f.neighbours(ws, at.c.Name, svc)}},
		}
		if t != nil {
			p.only, p.services[0].only = at.rest(svc, t)
		}
		p.waypoint = waypointOf(at.c.Inventory, at.n, at.ns, svc).gateway
		at.parts, at.of = append(at.parts, p), append(at.of, nil)
	}
}

// rest are the ports of a Service, and those of its Pods, that no policy guards; never nil.
func (at *placeWork) rest(svc *mesh.Service, t *taking) (pods, ports []int32) {
	pods, ports = []int32{}, []int32{}
	for _, p := range svc.Ports {
		if slices.Contains(t.service, p.Number) {
			continue
		}
		if target, ok := targetPort(p); ok && !slices.Contains(t.pods, target) {
			pods, ports = append(pods, target), append(ports, p.Number)
		}
	}
	return pods, ports
}

// targetPort is the port of the Pods; ok is false when only they know its number.
func targetPort(p mesh.ServicePort) (port int32, ok bool) {
	if p.TargetPort == "" {
		return p.Number, true
	}
	n, err := strconv.ParseInt(p.TargetPort, 10, 32)
	return int32(n), err == nil
}

// taking is what policies guard of a Service.
type taking struct {
	whole         bool
	pods, service []int32 // ports
}

func (t *taking) add(p *part, s service) {
	if p.ports == nil || s.ports == nil {
		t.whole = true
		return
	}
	t.pods, t.service = union(t.pods, p.ports), union(t.service, s.ports)
}
