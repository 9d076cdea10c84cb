package translate_test

import (
	"strconv"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
)

// bounds answer whether a call gets through: must it, may it.
type bounds struct{ must, may bool }

func (b bounds) or(o bounds) bounds  { return bounds{b.must || o.must, b.may || o.may} }
func (b bounds) and(o bounds) bounds { return bounds{b.must && o.must, b.may && o.may} }

func surely(b bool) bounds { return bounds{b, b} }

func (e access) l7() bool {
	if len(e.authz.AllowedPaths)+len(e.authz.AllowedMethods)+len(e.authz.AllowedRemoteIPBlocks) > 0 {
		return true
	}
	if m := e.authz.Match; m != nil && m.Request != nil && len(m.Request.Headers) > 0 {
		return true
	}
	for _, c := range e.clients {
		if c.jwt != nil {
			return true
		}
	}
	return false
}

func (e access) allows(c conn) bounds {
	who := bounds{}
	for _, cl := range e.clients {
		who = who.or(cl.allows(c))
	}
	a := e.authz
	what := surely(inBlocks(a.AllowedIPBlocks, nil, c.ip) && inBlocks(a.AllowedRemoteIPBlocks, nil, c.remoteIP) && among(a.AllowedPaths, nil, c.path) && among(a.AllowedMethods, nil, c.method))
	if a.Match != nil && a.Match.Request != nil {
		for name, h := range a.Match.Request.Headers {
			what = what.and(surely(among(h.Values, h.NotValues, c.headers[name])))
			if len(h.Values)+len(h.NotValues) == 0 {
				what.must = false // loose: what such a header means
			}
		}
	}
	return who.and(what)
}

func (cl clients) allows(c conn) bounds {
	var b bounds
	switch {
	case cl.any:
		b = bounds{c.principal != "", c.principal != "" || cl.jwt != nil} // loose: a JWT without an identity of the mesh
	case cl.names[c.principal]:
		b = surely(true)
	case cl.unsure[c.principal]:
		b = bounds{false, true}
	}
	if cl.jwt != nil {
		b = b.and(surely(among(cl.jwt.RequestPrincipals, cl.jwt.NotRequestPrincipals, c.jwt)))
	}
	return b
}

func (g *guard) onPod(port string) bool { return (g.ports == nil || g.ports[port]) && !g.except[port] }

func (g *guard) onService(port int32) bool {
	return (g.svcPorts == nil || g.svcPorts[port]) && !g.svcExcept[port]
}

func (g *guard) selects(l map[string]string) bool { return contains(l, g.selector) }

// allows is what the guard itself says of a request.
func (g *guard) allows(c conn) bounds {
	b := bounds{may: g.unbounded}
	for _, e := range g.entries {
		b = b.or(e.allows(c))
	}
	if g.loose || g.unbounded {
		b.must = false
	}
	return b
}

// direct is what it says of a connection to a Pod that comes through no waypoint: behind a bound waypoint, only that may.
func (g *guard) direct(o *oracle, c conn) bounds {
	b := bounds{may: g.unbounded}
	switch {
	case g.waypoint != "":
		return b.or(surely(o.isWaypoint(g.waypoint, c.principal)).and(bounds{!g.loose, true}))
	case g.l7:
		// Loose: nothing, or those of the entries that need no waypoint, or the waypoint that is missing.
		b.may = b.may || g.named != "" && o.isWaypoint(g.named, c.principal)
		for _, e := range g.entries {
			b.may = b.may || !e.l7() && e.allows(c).may
		}
		return b
	}
	return g.allows(c)
}

// isWaypoint: the waypoint's identity in any trust domain of the mesh.
func (o *oracle) isWaypoint(name, principal string) bool {
	ns, sa, _ := strings.Cut(name, "/")
	for i := range o.s.Clusters {
		if c := &o.s.Clusters[i]; c.Inventory != nil && c.Inventory.Info.TrustDomain != "" && principal == string(c.Inventory.Info.TrustDomain)+"/ns/"+ns+"/sa/"+sa {
			return true
		}
	}
	return false
}

// onPodAt are the guards of a Pod, and those of them that guard the port.
func (o *oracle) onPodAt(at place, labels map[string]string, port string) (all, here []*guard) {
	for _, g := range o.guards[at] {
		if g.selects(labels) {
			all = append(all, g)
			if g.onPod(port) {
				here = append(here, g)
			}
		}
	}
	return all, here
}

// open is the answer for a port that nothing guards on this Pod. Loose: when another guard might select Pods that one of this Pod's guards selects as well, the
// port may be closed, since no selector can say "those, but not these".
func (o *oracle) open(at place, labels map[string]string, guards []*guard) bounds {
	b := surely(true)
	for _, g := range guards {
		b.must = b.must && !g.loose && !g.unbounded
		for _, other := range o.guards[at] {
			b.must = b.must && (other.selects(labels) || contradict(g.selector, other.selector))
		}
	}
	return b
}

func contradict(a, b map[string]string) bool {
	for k, v := range a {
		if w, ok := b[k]; ok && v != w {
			return true
		}
	}
	return false
}

// podCall answers for a connection straight to a Pod.
func (o *oracle) podCall(at place, labels map[string]string, c conn) bounds {
	port := strconv.Itoa(c.port)
	all, here := o.onPodAt(at, labels, port)
	b := bounds{}
	if len(here) == 0 {
		b = o.open(at, labels, all)
	}
	for _, g := range here {
		said := g.direct(o, c)
		said.must = said.must && (g.sure == nil || g.sure[port])
		b = b.or(said)
	}
	if c.principal == "" {
		b = b.and(o.plain(at, labels, port))
	}
	return b
}

// plain answers whether a port takes plain text, as far as authentication goes. Loose: only one PeerAuthentication holds for a Pod, so what overlaps may be as
// strict as the strictest.
func (o *oracle) plain(at place, labels map[string]string, port string) bounds {
	b := surely(true)
	for _, s := range o.strict[at] {
		if !contains(labels, s.selector) {
			continue
		}
		if s.onPod(port) {
			b = b.and(bounds{false, s.loose})
		}
		for _, other := range o.strict[at] {
			b.must = b.must && (contains(labels, other.selector) || contradict(s.selector, other.selector)) && !s.loose && !other.loose
		}
	}
	return b
}

// serviceCall answers for a request to a Service behind a bound waypoint that reaches a Pod with these labels; c.port is the Service's.
// What guards the Pods at that port on behalf of another Service holds too: the Pods can't tell the Services apart.
func (o *oracle) serviceCall(at place, svc string, port mesh.ServicePort, labels map[string]string, c conn) bounds {
	all, pod := o.onPodAt(at, labels, target(port))
	var own bounds
	n := 0
	for _, g := range o.guards[at] {
		if g.service == svc && g.onService(port.Number) {
			said := g.allows(c)
			said.must = said.must && (g.sure == nil || g.sure[target(port)])
			own = own.or(said)
			n++
		}
	}
	union := own
	for _, g := range pod {
		union = union.or(g.allows(c))
	}
	switch {
	case n > 0:
		// A cluster that has not told its trust domain: nobody can name its waypoint.
		known := o.s.Cluster(at.cluster).Inventory.Info.TrustDomain != ""
		return bounds{own.must && known, union.may}
	case len(pod) > 0:
		return bounds{false, union.may}
	}
	b := o.open(at, labels, all)
	for _, g := range o.guards[at] {
		// Loose: a waypoint can't tell which Pods it will reach, so all Services that might share Pods with a guarded one may be guarded as well.
		b.must = b.must && (g.waypoint == "" || contradict(g.selector, o.service(at, svc).Selector))
	}
	return b
}

func (o *oracle) service(at place, name string) mesh.Service {
	for _, s := range o.s.Cluster(at.cluster).Inventory.Namespaces[at.ns].Services {
		if s.Name == name {
			return s
		}
	}
	return mesh.Service{}
}
