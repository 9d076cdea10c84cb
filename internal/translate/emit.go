package translate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// emit writes the objects of one namespace of one cluster, over all that is guarded there.
func (at *placeWork) emit() error {
	at.plain = !slices.ContainsFunc(at.parts, func(p *part) bool { return !p.plain() })
	for i, p := range at.parts {
		if p.authz && !at.reuse(i) {
			if err := at.authorize(i); err != nil {
				return err
			}
		}
		if w := at.of[i]; w != nil {
			w.widened = append(w.widened, at.widened(p)...)
		}
	}
	return at.authenticate()
}

// reuse keeps a part's AuthorizationPolicy where it can't be another than before.
func (at *placeWork) reuse(i int) bool {
	p, sh := at.parts[i], at.of[i]
	if !at.plain || !at.before.plain || sh == nil || sh.added || slices.ContainsFunc(p.entries, func(e resolved) bool { return len(e.l7) > 0 }) {
		return false
	}
	ref := at.ref(kindAuthorization, p.podName)
	old := at.before.written[ref]
	if old == nil {
		return false
	}
	at.written[ref] = old
	sh.objects = append(sh.objects, objectID{kindAuthorization, p.podName})
	return true
}

// authorize writes the AuthorizationPolicies of one part.
func (at *placeWork) authorize(i int) error {
	p, w := at.parts[i], at.of[i]
	if p.waypoint == nil {
		if j := slices.IndexFunc(p.entries, func(e resolved) bool { return len(e.l7) > 0 }); j >= 0 && w != nil {
			w.unenforceable(at.noWaypoint(p, &p.entries[j]))
		}
		spec := authorizationSpec{Action: "ALLOW", Selector: selectorOf(p.labels)}
		if w != nil && p.plain() {
			spec.Rules = w.open
		} else {
			spec.Rules = at.rules(i, l4(p.entries))
		}
		return at.write(i, "", spec)
	}
	// Behind a waypoint the Pods see the waypoint's identity only: they take nobody else, and the waypoint asks who the client is.
	var doors []mesh.Principal
	for _, td := range at.f.domains {
		doors = append(doors, principal(td, p.waypoint.Namespace, p.waypoint.Name))
	}
	door := []resolved{{authz: &securityv2.Authorization{}}}
	if len(doors) > 0 { // else no trust domain is known yet, and nobody gets in
		door[0].sources = []source{{Principals: doors}}
	}
	if err := at.write(i, "", authorizationSpec{Action: "ALLOW", Selector: selectorOf(p.labels), Rules: at.rules(i, door)}); err != nil {
		return err
	}
	for _, s := range at.behind(p) {
		err := at.write(i, "service/"+s.name, authorizationSpec{
			Action: "ALLOW", TargetRefs: []targetRef{{Kind: "Service", Name: s.name}}, Rules: at.serviceRules(i, s),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// behind are the Services whose waypoint has to ask: those of the part, and others that lead to the same Pods, or they would be a way around. What is
// guarded by a part of its own already is not opened to this one's clients.
func (at *placeWork) behind(p *part) []service {
	out := slices.Clone(p.services)
	for i := range at.n.Services {
		svc := &at.n.Services[i]
		if len(svc.Selector) == 0 || !mayOverlap(svc.Selector, p.labels) || slices.ContainsFunc(p.services, func(s service) bool { return s.name == svc.Name }) ||
			waypointOf(at.c.Inventory, at.n, at.ns, svc).gateway == nil {
			continue
		}
		own, whole := at.direct(svc.Name)
		if whole {
			continue
		}
		s := service{name: svc.Name, ports: mapped(svc, p.ports, own), only: mapped(svc, p.only, own)}
		if s.ports == nil || len(s.ports) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// direct are the ports of a Service that parts guard because they select it; whole: all of them.
func (at *placeWork) direct(name string) (ports []int32, whole bool) {
	for _, o := range at.parts {
		for _, s := range o.services {
			if o.authz && s.name == name {
				if s.ports == nil {
					return nil, true
				}
				ports = union(ports, s.ports)
			}
		}
	}
	return ports, false
}

// mapped are the ports of svc that may lead to ports of Pods, but for those in without. nil (every port of the Pods) is nil if there is nothing to leave out.
func mapped(svc *mesh.Service, pods, without []int32) []int32 {
	if pods == nil && len(without) == 0 {
		return nil
	}
	out := []int32{}
	for _, port := range svc.Ports {
		target, ok := targetPort(port)
		if !slices.Contains(without, port.Number) && (pods == nil || !ok || slices.Contains(pods, target)) {
			out = append(out, port.Number)
		}
	}
	return out
}

func (at *placeWork) noWaypoint(p *part, e *resolved) string {
	what := "Pods of " + labelText(p.labels)
	if len(p.services) > 0 {
		what = "Service " + at.ns + "/" + p.services[0].name
	}
	why := "no waypoint is bound to it"
	if p.missing != "" {
		why = fmt.Sprintf("its waypoint %s is missing", p.missing)
	}
	return fmt.Sprintf("%s of entry %d can only be checked by a waypoint, and %s has none (%s): nothing is allowed by that entry", strings.Join(e.l7, ", "), e.index, what, why)
}

// l4 are the entries that need no waypoint.
func l4(entries []resolved) []resolved {
	return slices.DeleteFunc(slices.Clone(entries), func(e resolved) bool { return len(e.l7) > 0 })
}

// anyPort are the rules of entries for every port.
func anyPort(entries []resolved) []rule {
	var out []rule
	for _, e := range entries {
		if ru, ok := e.rule(nil, nil); ok {
			out = append(out, ru)
		}
	}
	return out
}

// rules are those for the Pods.
func (at *placeWork) rules(i int, entries []resolved) []rule {
	var out []rule
	ports := at.parts[i].ports
	for _, e := range entries {
		if ru, ok := e.rule(ports, at.parts[i].only); ok {
			out = append(out, ru)
		}
	}
	if ports == nil {
		return out
	}
	// Ports that nobody guards stay open, though an ALLOW is in scope now. What another policy guards must not be opened by this.
	closed := ports
	for j, o := range at.parts {
		if j == i || !o.authz || !mayOverlap(at.parts[i].labels, o.labels) {
			continue
		}
		if o.ports == nil {
			return out
		}
		closed = union(closed, o.ports)
	}
	return append(out, rule{To: []ruleTo{{Operation: operation{NotPorts: texts(closed)}}}})
}

// serviceRules are those for the waypoint before a Service, whose ports are the Service's.
func (at *placeWork) serviceRules(i int, s service) []rule {
	var out []rule
	for _, e := range at.parts[i].entries {
		if ru, ok := e.rule(s.ports, s.only); ok {
			out = append(out, ru)
		}
	}
	if s.ports == nil {
		return out
	}
	closed := s.ports
	for j, o := range at.parts {
		if j == i || !o.authz || o.waypoint == nil {
			continue
		}
		for _, other := range at.behind(o) {
			switch {
			case other.name != s.name:
			case other.ports == nil:
				return out
			default:
				closed = union(closed, other.ports)
			}
		}
	}
	return append(out, rule{To: []ruleTo{{Operation: operation{NotPorts: texts(closed)}}}})
}

func texts(ports []int32) []string {
	out := make([]string, len(ports))
	for i, p := range ports {
		out[i] = strconv.Itoa(int(p))
	}
	return out
}

// rule turns an entry into a rule; ok is false when it allows nobody.
func (e *resolved) rule(ports, only []int32) (rule, bool) {
	if len(e.sources) == 0 || only != nil && len(only) == 0 {
		return rule{}, false
	}
	if only != nil {
		ports = union(only, nil)
	}
	var ru rule
	for _, s := range e.sources {
		ru.From = append(ru.From, ruleFrom{s})
	}
	op := operation{Methods: e.authz.AllowedMethods, Paths: e.authz.AllowedPaths, Ports: texts(ports)}
	if len(op.Methods)+len(op.Paths)+len(op.Ports) > 0 {
		ru.To = []ruleTo{{op}}
	}
	if m := e.authz.Match; m != nil && m.Request != nil {
		for _, name := range keys(m.Request.Headers) {
			h := m.Request.Headers[name]
			c := ruleWhen{Key: "request.headers[" + name + "]", Values: h.Values, NotValues: h.NotValues}
			if len(h.Values)+len(h.NotValues) == 0 {
				c.Values = []string{"*"} // it must be there
			}
			ru.When = append(ru.When, c)
		}
	}
	return ru, true
}

// write adds one object to the result and to its policy's report.
func (at *placeWork) write(i int, target string, spec authorizationSpec) error {
	p := at.parts[i]
	key := p.source.Namespace + "/" + p.source.Name + "|" + p.key() + "|" + target
	if p.twin != "" {
		key += "|" + p.twin
	}
	name := objectName(p.prefix, p.name, key)
	if target == "" {
		p.podName = name
	}
	return at.put(kindAuthorization, name, []int{i}, spec)
}

// put adds an object that serves the parts; the first gives it its labels.
func (at *placeWork) put(kind, name string, parts []int, spec any) error {
	p := at.parts[parts[0]]
	id := objectID{kind, name}
	o := &written{origin: p.origin, spec: spec}
	var held *mesh.Override
	all := true
	for _, i := range parts {
		w := at.of[i]
		if w == nil {
			all = false
			continue
		}
		if !slices.Contains(w.objects, id) {
			w.objects = append(w.objects, id)
		}
		switch {
		case w.override == nil:
			all = false
		case held == nil || w.override.Until.Before(held.Until):
			held = w.override
		}
	}
	if held != nil && all { // others rely on the object too, unless they are suspended as well
		reason := held.Reason
		if held.By != "" {
			reason += " (" + held.By + ")"
		}
		o.annotations = map[string]string{
			securityv2.AnnotationHoldUntil: held.Until.UTC().Format(time.RFC3339), securityv2.AnnotationHoldReason: reason,
		}
	}
	return at.keep(at.ref(kind, name), o)
}

func strictness(m securityv2.TLSMode) int {
	return slices.Index([]securityv2.TLSMode{"", securityv2.TLSDisable, securityv2.TLSPermissive, securityv2.TLSStrict}, m)
}

// authenticate writes one PeerAuthentication per selector. Only one holds for a Pod, the oldest of those that select it, whatever the others say; so each
// asks for the STRICT of any that may select the same Pods. A Pod that only one selects may be guarded more strictly than asked for, never less.
func (at *placeWork) authenticate() error {
	groups := map[string][]int{}
	for i, p := range at.parts {
		if p.mode != "" {
			groups[p.podKey()] = append(groups[p.podKey()], i)
		}
	}
	for _, k := range keys(groups) {
		parts := groups[k]
		first := at.parts[parts[0]]
		own := slices.ContainsFunc(parts, func(i int) bool { return at.parts[i].mode == securityv2.TLSStrict })
		if others := at.stricterThan(parts); own {
			parts = append(parts, others...)
		} else if len(others) > 0 {
			for _, i := range parts {
				if w := at.of[i]; w != nil {
					w.unenforceable(fmt.Sprintf("%s of the Pods %s in namespace %s is not written, because %s asks for STRICT of Pods that may be the same", at.parts[i].mode, labelText(first.labels), at.ns, at.parts[others[0]].source.Name))
				}
			}
			continue
		}
		if first.peerName == "" {
			first.peerName = objectName(first.prefix, first.name, first.source.Namespace+"/"+first.source.Name+"|"+k+"|mtls")
		}
		if err := at.put(kindAuthentication, first.peerName, parts, at.strictest(parts)); err != nil {
			return err
		}
	}
	return nil
}

// stricterThan are other parts that ask for STRICT of Pods that these may select. One without a selector gives way to any with one.
func (at *placeWork) stricterThan(parts []int) []int {
	first := at.parts[parts[0]]
	if len(first.labels) == 0 {
		return nil
	}
	var out []int
	for i, p := range at.parts {
		if p.mode == securityv2.TLSStrict && !slices.Contains(parts, i) && mayOverlap(p.labels, first.labels) {
			out = append(out, i)
		}
	}
	return out
}

// strictest is the strictest that any of the parts asks for, of the Pods of the first.
func (at *placeWork) strictest(parts []int) authenticationSpec {
	spec := authenticationSpec{Selector: selectorOf(at.parts[parts[0]].labels)}
	whole := securityv2.TLSMode("")
	byPort := map[int32]securityv2.TLSMode{}
	for _, i := range parts {
		p := at.parts[i]
		if p.ports == nil || spec.Selector == nil { // ports can't be told apart without a selector
			whole = stricter(whole, p.mode)
			continue
		}
		for _, port := range p.ports {
			byPort[port] = stricter(byPort[port], p.mode)
		}
	}
	if whole != "" {
		spec.MTLS = &mtls{string(whole)}
	}
	for _, port := range slices.Sorted(maps.Keys(byPort)) {
		if mode := stricter(whole, byPort[port]); mode != whole {
			if spec.PortLevel == nil {
				spec.PortLevel = map[string]mtls{}
			}
			spec.PortLevel[strconv.Itoa(int(port))] = mtls{string(mode)}
		}
	}
	return spec
}

func stricter(a, b securityv2.TLSMode) securityv2.TLSMode {
	if strictness(b) > strictness(a) {
		return b
	}
	return a
}
