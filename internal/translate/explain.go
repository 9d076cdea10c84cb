package translate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Question asks whether a ServiceAccount may call a Service.
type Question struct {
	FromCluster                       mesh.ClusterName
	FromNamespace, FromServiceAccount string
	ToCluster                         mesh.ClusterName
	ToNamespace, ToService            string
	Port                              int32  // of the Service; 0: any
	Method, Path                      string // of an HTTP request; empty: any
}

// Answer says yes or no, and why.
type Answer struct {
	Allowed bool
	// Decided says which rule decides, a sentence each, in the order in which it is asked: the waypoint, then the Pods.
	Decided []string
	// Caveats say what could make it otherwise.
	Caveats []string
}

// Explainer answers Questions about one Result: what the policies in a cluster, ours and others, let through by ztunnel's and the waypoint's rules. It tells
// what happens there once everything is applied, not what was meant. For one caller at a time.
type Explainer struct {
	s      *mesh.Snapshot
	r      Result
	places map[place][]*livePolicy
	asked  map[*livePolicy]bool // in scope of the present Question
}

// NewExplainer returns an Explainer.
func NewExplainer(s *mesh.Snapshot, r Result) *Explainer {
	return &Explainer{s: s, r: r, places: map[place][]*livePolicy{}}
}

// Explain answers one Question.
func Explain(s *mesh.Snapshot, r Result, q Question) Answer { return NewExplainer(s, r).Ask(q) }

// livePolicy is an AuthorizationPolicy or a PeerAuthentication in a cluster, whoever wrote it.
type livePolicy struct {
	kind, namespace, name string
	parent                string // the AccessPolicy or Workspace it comes from; empty: not ours
	source                mesh.Ref
	spec                  liveSpec
	unreadable            bool
}

type liveSpec struct {
	Selector   *podSelector `json:"selector"`
	TargetRef  *targetRef   `json:"targetRef"`
	TargetRefs []targetRef  `json:"targetRefs"`
	Action     string       `json:"action"`
	Rules      []liveRule   `json:"rules"`
	MTLS       *mtls        `json:"mtls"`
}

type liveRule struct {
	From []struct {
		Source liveSource `json:"source"`
	} `json:"from"`
	To []struct {
		Operation liveOperation `json:"operation"`
	} `json:"to"`
	When []ruleWhen `json:"when"`
}

type liveSource struct {
	Principals           []string `json:"principals"`
	NotPrincipals        []string `json:"notPrincipals"`
	Namespaces           []string `json:"namespaces"`
	NotNamespaces        []string `json:"notNamespaces"`
	ServiceAccounts      []string `json:"serviceAccounts"`
	IPBlocks             []string `json:"ipBlocks"`
	NotIPBlocks          []string `json:"notIpBlocks"`
	RemoteIPBlocks       []string `json:"remoteIpBlocks"`
	NotRemoteIPBlocks    []string `json:"notRemoteIpBlocks"`
	RequestPrincipals    []string `json:"requestPrincipals"`
	NotRequestPrincipals []string `json:"notRequestPrincipals"`
}

type liveOperation struct {
	Ports      []string `json:"ports"`
	NotPorts   []string `json:"notPorts"`
	Methods    []string `json:"methods"`
	NotMethods []string `json:"notMethods"`
	Paths      []string `json:"paths"`
	NotPaths   []string `json:"notPaths"`
	Hosts      []string `json:"hosts"`
	NotHosts   []string `json:"notHosts"`
}

func (p *livePolicy) refs() []targetRef {
	if p.spec.TargetRef != nil {
		return append(slices.Clone(p.spec.TargetRefs), *p.spec.TargetRef)
	}
	return p.spec.TargetRefs
}

// String names it for a person.
func (p *livePolicy) String() string {
	own := fmt.Sprintf("%s %s/%s", p.kind, p.namespace, p.name)
	if p.parent == "" {
		return own + " (not made by the mesh)"
	}
	return fmt.Sprintf("%s (%s)", p.parent, own)
}

// at are the policies in a namespace.
func (e *Explainer) at(c *mesh.Cluster, ns string) []*livePolicy {
	key := place{c.Name, ns}
	if l, ok := e.places[key]; ok {
		return l
	}
	// all namespaces of the cluster at once: the objects are in no order
	for ref, o := range e.r.Objects[c.Name].All() {
		if ref.Group != istioGroup {
			continue
		}
		p := &livePolicy{kind: ref.Kind, namespace: ref.Namespace, name: ref.Name}
		var m struct {
			Metadata objectMeta `json:"metadata"`
			Spec     liveSpec   `json:"spec"`
		}
		p.unreadable = json.Unmarshal(o.Manifest, &m) != nil
		p.spec = m.Spec
		l := m.Metadata.Labels
		p.source = mesh.Ref{
			Group: l["gloo.solo.io/parent_group"], Version: l["gloo.solo.io/parent_version"], Kind: l["gloo.solo.io/parent_kind"],
			Namespace: l["gloo.solo.io/parent_namespace"], Name: l["gloo.solo.io/parent_name"],
		}
		p.parent = fmt.Sprintf("%s %s/%s", p.source.Kind, p.source.Namespace, p.source.Name)
		e.places[place{c.Name, ref.Namespace}] = append(e.places[place{c.Name, ref.Namespace}], p)
	}
	for n, inv := range c.Inventory.Namespaces {
		for i := range inv.Foreign {
			f := &inv.Foreign[i]
			if f.DryRun {
				continue
			}
			p := &livePolicy{kind: f.Kind, namespace: n, name: f.Name}
			p.unreadable = json.Unmarshal(f.Spec, &p.spec) != nil
			e.places[place{c.Name, n}] = append(e.places[place{c.Name, n}], p)
		}
		if e.places[place{c.Name, n}] == nil {
			e.places[place{c.Name, n}] = []*livePolicy{}
		}
		slices.SortFunc(e.places[place{c.Name, n}], func(a, b *livePolicy) int { return strings.Compare(a.kind+"/"+a.name, b.kind+"/"+b.name) })
	}
	return e.places[key]
}

// call is what ztunnel or a waypoint is asked.
type call struct {
	principal    mesh.Principal
	port         int32 // 0: any
	method, path string
	layer7       bool // a waypoint asks
}

// request is what of a call a rule may look at, beside who calls.
func (c call) request() string {
	out := ""
	if c.port != 0 {
		out += fmt.Sprintf(" on port %d", c.port)
	}
	if c.layer7 && c.method+c.path != "" {
		out += " with " + strings.TrimSpace(c.method+" "+c.path)
	}
	return out
}

// Ask answers a Question.
func (e *Explainer) Ask(q Question) Answer {
	from, to := e.s.Cluster(q.FromCluster), e.s.Cluster(q.ToCluster)
	switch {
	case from == nil:
		return Answer{Decided: []string{fmt.Sprintf("cluster %q is not registered", q.FromCluster)}}
	case to == nil:
		return Answer{Decided: []string{fmt.Sprintf("cluster %q is not registered", q.ToCluster)}}
	case trustDomain(from) == "":
		return Answer{Decided: []string{fmt.Sprintf("cluster %q has not reported its trust domain, so the caller has no name yet", q.FromCluster)}}
	case to.Inventory == nil || to.Inventory.Namespaces[q.ToNamespace] == nil:
		return Answer{Decided: []string{fmt.Sprintf("cluster %q has reported no namespace %q", q.ToCluster, q.ToNamespace)}}
	}
	n := to.Inventory.Namespaces[q.ToNamespace]
	i := slices.IndexFunc(n.Services, func(s mesh.Service) bool { return s.Name == q.ToService })
	if i < 0 {
		return Answer{Decided: []string{fmt.Sprintf("cluster %q has no Service %s/%s", q.ToCluster, q.ToNamespace, q.ToService)}}
	}
	svc := &n.Services[i]
	a := Answer{Allowed: true}
	e.asked = map[*livePolicy]bool{}
	if q.Port != 0 && !slices.ContainsFunc(svc.Ports, func(p mesh.ServicePort) bool { return p.Number == q.Port }) {
		a.caveat(fmt.Sprintf("Service %s/%s has no port %d", q.ToNamespace, q.ToService, q.Port))
	}
	if !inMesh(n.Labels) {
		a.caveat(fmt.Sprintf("namespace %s of cluster %s is not in the mesh: no policy is enforced there", q.ToNamespace, q.ToCluster))
	}
	who := call{principal: principal(trustDomain(from), q.FromNamespace, q.FromServiceAccount), port: q.Port, method: q.Method, path: q.Path}
	if sa := from.Inventory.Namespaces[q.FromNamespace]; sa == nil || !slices.ContainsFunc(sa.ServiceAccounts, func(x mesh.ServiceAccount) bool { return x.Name == q.FromServiceAccount }) {
		a.caveat(fmt.Sprintf("cluster %s has no ServiceAccount %s/%s at present", q.FromCluster, q.FromNamespace, q.FromServiceAccount))
	}
	if b := waypointOf(to.Inventory, n, q.ToNamespace, svc); b.gateway != nil {
		who.layer7 = true
		e.decide(&a, to, q.ToNamespace, who, "at the waypoint "+b.named+": ", func(p *livePolicy) bool {
			return slices.ContainsFunc(p.refs(), func(r targetRef) bool {
				return r.Kind == "Service" && r.Name == svc.Name && p.namespace == q.ToNamespace || r.Kind == "Gateway" && r.Name == b.gateway.Name && p.namespace == b.gateway.Namespace
			})
		})
		who = call{principal: principal(trustDomain(to), b.gateway.Namespace, b.gateway.Name), port: who.port}
	}
	who.port = podPort(svc, q.Port)
	for _, labels := range podsOf(n, svc) {
		e.decide(&a, to, q.ToNamespace, who, "", func(p *livePolicy) bool {
			return len(p.refs()) == 0 && (p.spec.Selector == nil || covers(labels, p.spec.Selector.MatchLabels))
		})
	}
	e.caveats(&a, q)
	return a
}

func (a *Answer) caveat(s string) {
	if !slices.Contains(a.Caveats, s) {
		a.Caveats = append(a.Caveats, s)
	}
}

// podsOf are the kinds of Pods behind a Service, by their labels: those of the workloads that are known, else as the Service selects them.
func podsOf(n *mesh.NamespaceInventory, svc *mesh.Service) []map[string]string {
	var out []map[string]string
	for i := range n.Workloads {
		if len(svc.Selector) > 0 && covers(n.Workloads[i].Labels, svc.Selector) {
			out = append(out, n.Workloads[i].Labels)
		}
	}
	if len(out) == 0 {
		out = append(out, svc.Selector)
	}
	return out
}

func podPort(svc *mesh.Service, port int32) int32 {
	for _, p := range svc.Ports {
		if p.Number == port {
			if target, ok := targetPort(p); ok {
				return target
			}
		}
	}
	return port
}

// decide asks the policies in scope: any DENY that matches denies; no ALLOW in scope allows; else an ALLOW has to match.
func (e *Explainer) decide(a *Answer, c *mesh.Cluster, ns string, who call, where string, inScope func(*livePolicy) bool) {
	list := e.at(c, ns)
	if root := rootNamespace(c); root != ns {
		list = append(slices.Clone(list), e.at(c, root)...)
	}
	var allows, matching []*livePolicy
	say := func(allowed bool, format string, args ...any) {
		a.Allowed = a.Allowed && allowed
		if s := where + fmt.Sprintf(format, args...); !slices.Contains(a.Decided, s) {
			a.Decided = append(a.Decided, s)
		}
	}
	for _, p := range list {
		if p.kind != kindAuthorization || !inScope(p) {
			continue
		}
		e.asked[p] = true
		hit, why := p.matches(who)
		switch {
		case p.unreadable:
			a.caveat(p.String() + " can't be read")
		case p.spec.Action == "DENY" && hit:
			say(false, "denied by %s", p)
			return
		case p.spec.Action == "" || p.spec.Action == "ALLOW":
			allows = append(allows, p)
			if hit {
				matching = append(matching, p)
				if why != "" {
					a.caveat(fmt.Sprintf("%s: only %s", p, why))
				}
			}
		}
	}
	switch {
	case len(allows) == 0:
		say(true, "no policy guards it: everybody may")
	case len(matching) > 0:
		say(true, "allowed by %s", matching[0])
	default:
		names := make([]string, len(allows))
		for i, p := range allows {
			names[i] = p.String()
		}
		if len(names) > 3 {
			names = append(names[:3], fmt.Sprintf("%d more", len(allows)-3))
		}
		say(false, "not allowed by %s: no rule there fits %s%s", strings.Join(names, ", nor by "), who.principal, who.request())
	}
}

// matches reports whether some rule matches, and under what condition that the Question leaves open.
func (p *livePolicy) matches(who call) (hit bool, why string) {
	for i := range p.spec.Rules {
		r := &p.spec.Rules[i]
		open := &conditions{}
		if !who.layer7 && r.needsWaypoint() {
			if p.spec.Action != "DENY" {
				continue // ztunnel drops such a rule of an ALLOW
			}
			var ok bool
			if r, ok = r.atZtunnel(); !ok {
				continue
			}
		}
		if r.from(who, open) && r.to(who, open) && r.when(open) {
			if len(open.list) == 0 {
				return true, ""
			}
			hit, why = true, strings.Join(open.list, " and ")
		}
	}
	return hit, why
}

// conditions that a Question leaves open.
type conditions struct{ list []string }

func (c *conditions) add(is bool, format string, args ...any) {
	if is {
		c.list = append(c.list, fmt.Sprintf(format, args...))
	}
}

func (r *liveRule) needsWaypoint() bool {
	for i := range r.From {
		s := &r.From[i].Source
		if len(s.RequestPrincipals)+len(s.NotRequestPrincipals)+len(s.RemoteIPBlocks)+len(s.NotRemoteIPBlocks) > 0 {
			return true
		}
	}
	for i := range r.To {
		o := &r.To[i].Operation
		if len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths)+len(o.Hosts)+len(o.NotHosts) > 0 {
			return true
		}
	}
	return slices.ContainsFunc(r.When, func(w ruleWhen) bool {
		switch w.Key {
		case "source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port":
			return false // ztunnel knows these
		}
		return true
	})
}

// atZtunnel is what ztunnel makes of a rule of a DENY: it leaves out what it can't see, and a rule of which nothing is left never matches.
func (r *liveRule) atZtunnel() (rule *liveRule, ok bool) {
	out := &liveRule{When: slices.DeleteFunc(slices.Clone(r.When), func(w ruleWhen) bool { return (&liveRule{When: []ruleWhen{w}}).needsWaypoint() })}
	for _, f := range r.From {
		s := &f.Source
		if s.RequestPrincipals, s.NotRequestPrincipals, s.RemoteIPBlocks, s.NotRemoteIPBlocks = nil, nil, nil, nil; !reflect.ValueOf(*s).IsZero() {
			out.From = append(out.From, f)
		}
	}
	for _, t := range r.To {
		o := &t.Operation
		if len(o.Ports)+len(o.NotPorts) > 0 {
			*o = liveOperation{Ports: o.Ports, NotPorts: o.NotPorts}
			out.To = append(out.To, t)
		}
	}
	return out, (len(out.From) > 0 || len(r.From) == 0) && (len(out.To) > 0 || len(r.To) == 0) && (len(out.When) > 0 || len(r.When) == 0)
}

func (r *liveRule) from(who call, open *conditions) bool {
	if len(r.From) == 0 {
		return true
	}
	for i := range r.From {
		s := &r.From[i].Source
		ns, sa := namesOf(who.principal)
		switch {
		case len(s.Principals) > 0 && !anyMatches(s.Principals, string(who.principal)), anyMatches(s.NotPrincipals, string(who.principal)):
		case len(s.Namespaces) > 0 && !anyMatches(s.Namespaces, ns), anyMatches(s.NotNamespaces, ns):
		case len(s.ServiceAccounts) > 0 && !slices.Contains(s.ServiceAccounts, ns+"/"+sa):
		default:
			open.add(len(s.IPBlocks)+len(s.NotIPBlocks) > 0, "from certain addresses")
			open.add(len(s.RemoteIPBlocks)+len(s.NotRemoteIPBlocks) > 0, "for certain original addresses")
			open.add(len(s.RequestPrincipals)+len(s.NotRequestPrincipals) > 0, "with certain request principals")
			return true
		}
	}
	return false
}

func namesOf(p mesh.Principal) (ns, sa string) {
	parts := strings.Split(string(p), "/")
	if len(parts) != 5 {
		return "", ""
	}
	return parts[2], parts[4]
}

func (r *liveRule) to(who call, open *conditions) bool {
	if len(r.To) == 0 {
		return true
	}
	for i := range r.To {
		o := &r.To[i].Operation
		port := strconv.Itoa(int(who.port))
		switch {
		case who.port != 0 && (len(o.Ports) > 0 && !slices.Contains(o.Ports, port) || slices.Contains(o.NotPorts, port)):
		case who.method != "" && (len(o.Methods) > 0 && !anyMatches(o.Methods, who.method) || anyMatches(o.NotMethods, who.method)):
		case who.path != "" && (len(o.Paths) > 0 && !anyMatches(o.Paths, who.path) || anyMatches(o.NotPaths, who.path)):
		default:
			open.add(who.port == 0 && len(o.Ports) > 0, "on port %s", strings.Join(o.Ports, ", "))
			open.add(who.port == 0 && len(o.NotPorts) > 0, "on ports other than %s", strings.Join(o.NotPorts, ", "))
			open.add(who.method == "" && len(o.Methods) > 0, "for method %s", strings.Join(o.Methods, ", "))
			open.add(who.path == "" && len(o.Paths) > 0, "for path %s", strings.Join(o.Paths, ", "))
			open.add(len(o.Hosts)+len(o.NotHosts) > 0, "for certain hosts")
			return true
		}
	}
	return false
}

func (r *liveRule) when(open *conditions) bool {
	for _, w := range r.When {
		open.add(true, "when %s fits", w.Key)
	}
	return true
}

// anyMatches is Istio's string match: exact, prefix ("a*"), suffix ("*a"), or "*" for anything that is not empty.
func anyMatches(patterns []string, v string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		switch {
		case p == "*":
			return v != ""
		case strings.HasPrefix(p, "*"):
			return strings.HasSuffix(v, p[1:])
		case strings.HasSuffix(p, "*"):
			return strings.HasPrefix(v, p[:len(p)-1])
		}
		return p == v
	})
}

// caveats adds what translation knows of the policies that have a say.
func (e *Explainer) caveats(a *Answer, q Question) {
	for p := range e.asked {
		for _, c := range e.r.Policies[p.source].Clusters {
			if c.Cluster != q.ToCluster {
				continue
			}
			if c.Unenforceable != "" {
				a.caveat(p.parent + ": " + c.Unenforceable)
			}
			if o := c.Override; o != nil {
				a.caveat(fmt.Sprintf("%s is suspended there by PolicyOverride %s until %s: its objects may have been changed", p.parent, o.Source.Name, o.Until.UTC().Format(time.RFC3339)))
			}
		}
	}
	slices.Sort(a.Caveats)
}
