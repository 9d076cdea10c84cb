package translate_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// The model is an independent data plane: it decides from AuthorizationPolicies and PeerAuthentications what a ztunnel and a waypoint let through. It shares
// no code with the translator. Sources: istio pilot/pkg/serviceregistry/ambient/{authorization,policies}.go for what ztunnel is told, ztunnel's rbac.rs for
// what it makes of it, pilot/pkg/security/authz/model and networking/core/listener_waypoint.go for waypoints: their filter chains are chosen by the Service's
// address and port, so an operation's ports are the Service's there and the Pod's at ztunnel.
//
// Decoding is as the Istio API has it (proto): an empty list is an absent one. So `from: []` and `principals: []` restrict nothing.

// conn is a connection or a request on it.
type conn struct {
	principal string // without "spiffe://"; empty: plain text
	ip        string
	port      int // of the Pod at ztunnel, of the Service at a waypoint
	// The rest a waypoint sees only.
	method, path string
	headers      map[string]string
	remoteIP     string
	jwt          string // request principal, "issuer/subject"; empty: none
}

type istioMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type istioSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

func (s *istioSelector) selects(labels map[string]string) bool {
	return s == nil || contains(labels, s.MatchLabels)
}

type authorization struct {
	Selector   *istioSelector `json:"selector"`
	TargetRefs []targetRef    `json:"targetRefs"`
	Action     string         `json:"action"`
	Rules      []istioRule    `json:"rules"`

	meta istioMeta
}

type targetRef struct {
	Group string `json:"group"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

type istioRule struct {
	From []struct {
		Source istioSource `json:"source"`
	} `json:"from"`
	To []struct {
		Operation istioOperation `json:"operation"`
	} `json:"to"`
	When []istioCondition `json:"when"`
}

type istioSource struct {
	Principals           []string `json:"principals"`
	NotPrincipals        []string `json:"notPrincipals"`
	RequestPrincipals    []string `json:"requestPrincipals"`
	NotRequestPrincipals []string `json:"notRequestPrincipals"`
	Namespaces           []string `json:"namespaces"`
	NotNamespaces        []string `json:"notNamespaces"`
	IPBlocks             []string `json:"ipBlocks"`
	NotIPBlocks          []string `json:"notIpBlocks"`
	RemoteIPBlocks       []string `json:"remoteIpBlocks"`
	NotRemoteIPBlocks    []string `json:"notRemoteIpBlocks"`
}

type istioOperation struct {
	Ports      []string `json:"ports"`
	NotPorts   []string `json:"notPorts"`
	Methods    []string `json:"methods"`
	NotMethods []string `json:"notMethods"`
	Paths      []string `json:"paths"`
	NotPaths   []string `json:"notPaths"`
}

type istioCondition struct {
	Key       string   `json:"key"`
	Values    []string `json:"values"`
	NotValues []string `json:"notValues"`
}

// peerAuthentication is decoded as Istio has it; a mode is UNSET, DISABLE, PERMISSIVE or STRICT.
type peerAuthentication struct {
	Selector      *istioSelector       `json:"selector"`
	MTLS          *peerMode            `json:"mtls"`
	PortLevelMTLS map[string]*peerMode `json:"portLevelMtls"`

	meta istioMeta
}

type peerMode struct {
	Mode string `json:"mode"`
}

func (m *peerMode) strict(inherited bool) bool {
	if m == nil || m.Mode == "" || m.Mode == "UNSET" {
		return inherited
	}
	return m.Mode == "STRICT"
}

// plane is the data plane of one cluster.
type plane struct {
	root  string // Istio's root namespace
	authz []*authorization
	peers []*peerAuthentication
}

func contains(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func rootNamespace(c *mesh.Cluster) string {
	if c.Inventory != nil {
		if c.Inventory.Info.RootNamespace != "" {
			return c.Inventory.Info.RootNamespace
		}
		if c.Inventory.Info.IstioNamespace != "" {
			return c.Inventory.Info.IstioNamespace
		}
	}
	return "istio-system"
}

// planeOf is what a cluster enforces when it has exactly these objects. It refuses what Istio's webhook refuses.
func planeOf(c *mesh.Cluster, objects translate.Objects, foreign bool) (*plane, error) {
	p := &plane{root: rootNamespace(c)}
	for _, ref := range objects.Names() {
		if ref.Group != "security.istio.io" {
			continue
		}
		object, _ := objects.Get(ref)
		if err := p.manifest(ref, object.Manifest); err != nil {
			return nil, fmt.Errorf("cluster %q: %s: %w\n%s", c.Name, ref, err, object.Manifest)
		}
	}
	if !foreign || c.Inventory == nil {
		return p, nil
	}
	for _, ns := range c.Inventory.Namespaces {
		for _, f := range ns.Foreign {
			if err := p.add(f.Kind, istioMeta{Name: f.Name, Namespace: f.Namespace}, f.Spec); err != nil {
				return nil, fmt.Errorf("cluster %q: foreign %s %s/%s: %w", c.Name, f.Kind, f.Namespace, f.Name, err)
			}
		}
	}
	return p, nil
}

func strict(raw []byte, out any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(out)
}

// manifest adds one of our own objects.
func (p *plane) manifest(ref mesh.Ref, raw []byte) error {
	var o struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Metadata   istioMeta       `json:"metadata"`
		Spec       json.RawMessage `json:"spec"`
	}
	if err := strict(raw, &o); err != nil {
		return err
	}
	got := mesh.Ref{Group: "security.istio.io", Version: strings.TrimPrefix(o.APIVersion, "security.istio.io/"), Kind: o.Kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}
	if got != ref {
		return fmt.Errorf("the manifest is %s", got)
	}
	if o.Metadata.Annotations["istio.io/dry-run"] != "" {
		return fmt.Errorf("annotation istio.io/dry-run: enforced by ztunnel before 1.29")
	}
	return p.add(o.Kind, o.Metadata, o.Spec)
}

func (p *plane) add(kind string, meta istioMeta, spec []byte) error {
	if len(spec) == 0 {
		spec = []byte("{}")
	}
	switch kind {
	case "AuthorizationPolicy":
		a := &authorization{meta: meta}
		if err := strict(spec, a); err != nil {
			return err
		}
		p.authz = append(p.authz, a)
		return a.refused()
	case "PeerAuthentication":
		a := &peerAuthentication{meta: meta}
		if err := strict(spec, a); err != nil {
			return err
		}
		p.peers = append(p.peers, a)
		return a.refused()
	}
	return fmt.Errorf("kind %s is not of the model", kind)
}

// refused is Istio's webhook (ValidateAuthorizationPolicy), as far as our objects can get there.
func (a *authorization) refused() error {
	if a.Selector != nil && len(a.TargetRefs) > 0 {
		return fmt.Errorf("selector and targetRefs")
	}
	if len(a.TargetRefs) > 16 {
		return fmt.Errorf("%d targetRefs: at most 16", len(a.TargetRefs))
	}
	for _, t := range a.TargetRefs {
		if t.Kind != "Service" || t.Group != "" || t.Name == "" {
			return fmt.Errorf("targetRef %+v is not a Service", t)
		}
	}
	if a.Action != "" && a.Action != "ALLOW" && a.Action != "DENY" {
		return fmt.Errorf("action %q is not of the model", a.Action)
	}
	for i := range a.Rules {
		if err := a.Rules[i].refused(); err != nil {
			return fmt.Errorf("rule %d: %w", i, err)
		}
	}
	return nil
}

func (r *istioRule) refused() error {
	for _, f := range r.From {
		if f.Source.empty() {
			return fmt.Errorf("from.source is empty")
		}
		for _, b := range slices.Concat(f.Source.IPBlocks, f.Source.NotIPBlocks, f.Source.RemoteIPBlocks, f.Source.NotRemoteIPBlocks) {
			if _, err := prefix(b); err != nil {
				return err
			}
		}
	}
	for _, o := range r.To {
		if o.Operation.empty() {
			return fmt.Errorf("to.operation is empty")
		}
		for _, v := range slices.Concat(o.Operation.Ports, o.Operation.NotPorts) {
			if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 65535 {
				return fmt.Errorf("port %q", v)
			}
		}
		if slices.Contains(o.Operation.Methods, "") || slices.Contains(o.Operation.Paths, "") {
			return fmt.Errorf("an empty method or path")
		}
	}
	for _, w := range r.When {
		if len(w.Values)+len(w.NotValues) == 0 {
			return fmt.Errorf("when %q has no values", w.Key)
		}
	}
	return nil
}

func (s *istioSource) l4() bool {
	return len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces)+len(s.IPBlocks)+len(s.NotIPBlocks) > 0
}

func (s *istioSource) l7() bool {
	return len(s.RequestPrincipals)+len(s.NotRequestPrincipals)+len(s.RemoteIPBlocks)+len(s.NotRemoteIPBlocks) > 0
}

func (s *istioSource) empty() bool { return !s.l4() && !s.l7() }

func (o *istioOperation) l7() bool {
	return len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) > 0
}

func (o *istioOperation) empty() bool { return len(o.Ports)+len(o.NotPorts) == 0 && !o.l7() }

func (p *peerAuthentication) refused() error {
	if (p.Selector == nil || len(p.Selector.MatchLabels) == 0) && len(p.PortLevelMTLS) > 0 {
		return fmt.Errorf("portLevelMtls without selector")
	}
	return nil
}

// pod decides at the destination's ztunnel. Where the answer depends on which of several PeerAuthentications is the oldest, must and may differ.
func (p *plane) pod(ns string, labels map[string]string, c conn) (must, may bool) {
	if !p.authorized(ns, labels, c) {
		return false, false
	}
	if c.principal != "" {
		return true, true
	}
	meshwide, namespace := false, false
	for _, a := range p.peers {
		if a.Selector == nil || len(a.Selector.MatchLabels) == 0 {
			switch a.meta.Namespace {
			case p.root:
				meshwide = a.MTLS.strict(meshwide)
			case ns:
				namespace = namespace || a.MTLS.strict(false)
			}
		}
	}
	inherited := meshwide
	for _, a := range p.peers {
		if a.meta.Namespace == ns && ns != p.root && (a.Selector == nil || len(a.Selector.MatchLabels) == 0) {
			inherited = namespace
		}
	}
	must, may, any := true, false, false
	for _, a := range p.peers {
		if a.Selector == nil || len(a.Selector.MatchLabels) == 0 || a.meta.Namespace != ns || ns == p.root || !a.Selector.selects(labels) {
			continue
		}
		any = true
		s := a.PortLevelMTLS[strconv.Itoa(c.port)].strict(a.MTLS.strict(inherited))
		must, may = must && !s, may || !s
	}
	if !any {
		return !inherited, !inherited
	}
	return must, may
}

// authorized evaluates the AuthorizationPolicies of a Pod as its ztunnel does: those that deny, then those that allow.
func (p *plane) authorized(ns string, labels map[string]string, c conn) bool {
	return decide(p.authz, func(a *authorization) bool {
		// A policy of the root namespace holds in every namespace.
		return len(a.TargetRefs) == 0 && (a.meta.Namespace == ns || a.meta.Namespace == p.root) && a.Selector.selects(labels)
	}, func(a *authorization, r *istioRule) bool { return r.ztunnel(a.Action != "DENY", c) })
}

// waypoint decides at the waypoint for a Service that is bound to one.
func (p *plane) waypoint(ns, service string, c conn) bool {
	return decide(p.authz, func(a *authorization) bool {
		return a.meta.Namespace == ns && slices.ContainsFunc(a.TargetRefs, func(t targetRef) bool { return t.Name == service })
	}, func(_ *authorization, r *istioRule) bool { return r.envoy(c) })
}

func decide(policies []*authorization, applies func(*authorization) bool, matches func(*authorization, *istioRule) bool) bool {
	allows, allowed := false, false
	for _, a := range policies {
		if !applies(a) {
			continue
		}
		match := false
		for i := range a.Rules {
			match = match || matches(a, &a.Rules[i])
		}
		if a.Action == "DENY" {
			if match {
				return false
			}
			continue
		}
		allows, allowed = true, allowed || match
	}
	return !allows || allowed
}

// ztunnel evaluates a rule at L4. With a condition that it does not know, an ALLOW rule is dropped; a DENY rule is kept without the condition, and a part
// of which nothing is left never matches.
func (r *istioRule) ztunnel(allow bool, c conn) bool {
	for _, f := range r.From {
		if allow && f.Source.l7() {
			return false
		}
	}
	for _, o := range r.To {
		if allow && o.Operation.l7() {
			return false
		}
	}
	ok := len(r.From) == 0
	for _, f := range r.From {
		ok = ok || f.Source.l4() && f.Source.matchL4(c)
	}
	if !ok {
		return false
	}
	ok = len(r.To) == 0
	for _, o := range r.To {
		ok = ok || len(o.Operation.Ports)+len(o.Operation.NotPorts) > 0 && o.Operation.matchL4(c)
	}
	for _, w := range r.When {
		known, match := w.l4(c)
		ok = ok && known && match
	}
	return ok
}

// envoy evaluates a rule at a waypoint, for an HTTP request.
func (r *istioRule) envoy(c conn) bool {
	ok := len(r.From) == 0
	for _, f := range r.From {
		s := f.Source
		ok = ok || s.matchL4(c) && among(s.RequestPrincipals, s.NotRequestPrincipals, c.jwt) && inBlocks(s.RemoteIPBlocks, s.NotRemoteIPBlocks, c.remoteIP)
	}
	if !ok {
		return false
	}
	ok = len(r.To) == 0
	for _, o := range r.To {
		op := o.Operation
		ok = ok || op.matchL4(c) && among(op.Methods, op.NotMethods, c.method) && among(op.Paths, op.NotPaths, c.path)
	}
	for _, w := range r.When {
		known, match := w.l4(c)
		if name, is := strings.CutPrefix(w.Key, "request.headers["); is && !known {
			known, match = true, among(w.Values, w.NotValues, c.headers[strings.TrimSuffix(name, "]")])
		}
		switch w.Key {
		case "request.auth.principal":
			known, match = true, among(w.Values, w.NotValues, c.jwt)
		case "remote.ip":
			known, match = true, inBlocks(w.Values, w.NotValues, c.remoteIP)
		}
		ok = ok && known && match
	}
	return ok
}

func (s *istioSource) matchL4(c conn) bool {
	return among(s.Principals, s.NotPrincipals, c.principal) && among(s.Namespaces, s.NotNamespaces, namespaceOf(c.principal)) && inBlocks(s.IPBlocks, s.NotIPBlocks, c.ip)
}

func (o *istioOperation) matchL4(c conn) bool {
	return among(o.Ports, o.NotPorts, strconv.Itoa(c.port))
}

func (w *istioCondition) l4(c conn) (known, match bool) {
	switch w.Key {
	case "source.principal":
		return true, among(w.Values, w.NotValues, c.principal)
	case "source.namespace":
		return true, among(w.Values, w.NotValues, namespaceOf(c.principal))
	case "source.ip":
		return true, inBlocks(w.Values, w.NotValues, c.ip)
	case "destination.port":
		return true, among(w.Values, w.NotValues, strconv.Itoa(c.port))
	}
	return false, false
}

func namespaceOf(principal string) string {
	_, rest, _ := strings.Cut(principal, "/ns/")
	ns, _, _ := strings.Cut(rest, "/sa/")
	return ns
}

// among: any of the values (none: any value) and none of the others. An absent value ("") is matched by nothing, not even "*".
func among(values, not []string, v string) bool {
	one := func(pattern string) bool { return v != "" && glob(pattern, v) }
	return (len(values) == 0 || slices.ContainsFunc(values, one)) && !slices.ContainsFunc(not, one)
}

// glob is Istio's string match: exact, "prefix*", "*suffix", or "*".
func glob(pattern, v string) bool {
	switch {
	case pattern == "*":
		return true
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(v, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(v, pattern[:len(pattern)-1])
	}
	return pattern == v
}

func prefix(block string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(block); err == nil {
		return a.Prefix(a.BitLen())
	}
	return netip.ParsePrefix(block)
}

func inBlocks(blocks, not []string, ip string) bool {
	in := func(block string) bool {
		p, err := prefix(block)
		a, err2 := netip.ParseAddr(ip)
		return err == nil && err2 == nil && p.Contains(a)
	}
	return (len(blocks) == 0 || slices.ContainsFunc(blocks, in)) && !slices.ContainsFunc(not, in)
}
