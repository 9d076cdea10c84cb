// Package authz decides, with the rules of ztunnel's L4 authorization, whether a
// connection to a workload is allowed, and says by what.
//
// In: policies as istiod sends them (istio.security.Authorization), a workload's
// namespace and list of policies, and a connection. Out: a Verdict. It is pure:
// no clock, no network. It follows ztunnel (src/rbac.rs and src/state.rs), not
// the meaning somebody intended: what ztunnel gets wrong it gets wrong too.
package authz

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"istio.io/istio/pkg/workloadapi/security"
)

// Conn is a connection to a workload.
type Conn struct {
	Principal string // SPIFFE ID without "spiffe://"; empty: plain text
	Source    netip.Addr
	Dest      netip.AddrPort // of the Pod
}

// Workload is the destination, as far as policies are concerned.
type Workload struct {
	Namespace string
	Policies  []string // "namespace/name" of policies whose selector matches it
}

// Verdict is a decision and its reason.
type Verdict struct {
	Allowed bool     `json:"allowed"`
	By      []string `json:"by,omitempty"` // "namespace/name" of the deciding policies
	Text    string   `json:"text"`         // for people
}

// Decide evaluates the policies in scope of w: any DENY that matches denies;
// without an ALLOW in scope all is allowed; any ALLOW that matches allows;
// everything else is denied. A policy that w names but that is not in policies
// is skipped, as ztunnel does: for the moment before it arrives the workload is
// open to what it would deny.
func Decide(policies map[string]*security.Authorization, w Workload, c Conn) Verdict {
	deny, allow := inScope(policies, w)
	for _, p := range deny {
		if matches(p, c) {
			return Verdict{By: []string{Key(p)}, Text: denyText(p, c)}
		}
	}
	if len(allow) == 0 {
		return Verdict{Allowed: true, Text: "no ALLOW policy applies to the destination and no DENY policy matches"}
	}
	for _, p := range allow {
		if matches(p, c) {
			return Verdict{Allowed: true, By: []string{Key(p)}, Text: "AuthorizationPolicy " + Key(p) + " allows " + caller(c)}
		}
	}
	v := Verdict{}
	var texts []string
	for _, p := range allow {
		v.By = append(v.By, Key(p))
		texts = append(texts, "AuthorizationPolicy "+Key(p)+" allows "+describe(p))
	}
	v.Text = strings.Join(texts, "; ") + "; the caller is " + caller(c)
	return v
}

// Key names a policy.
func Key(p *security.Authorization) string { return p.GetNamespace() + "/" + p.GetName() }

// inScope are the policies that apply to w, by name: global ones, those of its
// namespace, and those it names. Dry-run policies are only logged by ztunnel.
func inScope(policies map[string]*security.Authorization, w Workload) (deny, allow []*security.Authorization) {
	for _, p := range policies {
		if p.GetDryRun() {
			continue
		}
		in := false
		switch p.GetScope() {
		case security.Scope_GLOBAL:
			in = true
		case security.Scope_NAMESPACE:
			in = p.GetNamespace() == w.Namespace
		case security.Scope_WORKLOAD_SELECTOR:
			in = slices.Contains(w.Policies, Key(p))
		}
		switch {
		case !in:
		case p.GetAction() == security.Action_DENY:
			deny = append(deny, p)
		default:
			allow = append(allow, p)
		}
	}
	byKey := func(a, b *security.Authorization) int { return strings.Compare(Key(a), Key(b)) }
	slices.SortFunc(deny, byKey)
	slices.SortFunc(allow, byKey)
	return deny, allow
}

// matches: groups are ORed, the rules of a group ANDed, the matches of a rule
// ORed. A policy without groups matches nothing, a group without rules
// everything, an empty match nothing.
func matches(p *security.Authorization, c Conn) bool {
	for _, g := range p.GetGroups() {
		if allRules(g.GetRules(), c) {
			return true
		}
	}
	return false
}

func allRules(rules []*security.Rules, c Conn) bool {
	for _, r := range rules {
		any := slices.ContainsFunc(r.GetMatches(), func(m *security.Match) bool { return !empty(m) && matchOne(m, c) })
		if !any {
			return false
		}
	}
	return true
}

func empty(m *security.Match) bool {
	return len(m.GetNamespaces())+len(m.GetNotNamespaces())+len(m.GetServiceAccounts())+len(m.GetNotServiceAccounts())+
		len(m.GetPrincipals())+len(m.GetNotPrincipals())+len(m.GetSourceIps())+len(m.GetNotSourceIps())+
		len(m.GetDestinationIps())+len(m.GetNotDestinationIps())+len(m.GetDestinationPorts())+len(m.GetNotDestinationPorts()) == 0
}

// matchOne: the kinds of conditions are ANDed, the values of one kind ORed.
func matchOne(m *security.Match, c Conn) bool {
	ns, sa := account(c.Principal)
	namespace := func(s *security.StringMatch) bool { return text(s, ns) }
	principal := func(s *security.StringMatch) bool { return text(s, c.Principal) }
	serviceAccount := func(s *security.ServiceAccountMatch) bool {
		return c.Principal != "" && s.GetNamespace() == ns && s.GetServiceAccount() == sa
	}
	source := func(a *security.Address) bool { return contains(a, c.Source) }
	dest := func(a *security.Address) bool { return contains(a, c.Dest.Addr()) }
	port := func(p uint32) bool { return p == uint32(c.Dest.Port()) }
	return condition(m.GetNamespaces(), m.GetNotNamespaces(), namespace) &&
		condition(m.GetServiceAccounts(), m.GetNotServiceAccounts(), serviceAccount) &&
		condition(m.GetPrincipals(), m.GetNotPrincipals(), principal) &&
		condition(m.GetSourceIps(), m.GetNotSourceIps(), source) &&
		condition(m.GetDestinationIps(), m.GetNotDestinationIps(), dest) &&
		condition(m.GetDestinationPorts(), m.GetNotDestinationPorts(), port)
}

// condition: one of yes and none of no; an empty list restricts nothing.
func condition[T any](yes, no []T, is func(T) bool) bool {
	return (len(yes) == 0 || slices.ContainsFunc(yes, is)) && !slices.ContainsFunc(no, is)
}

// text compares a value that is empty when the peer has no identity; no pattern
// matches that.
func text(s *security.StringMatch, v string) bool {
	if v == "" {
		return false
	}
	switch m := s.GetMatchType().(type) {
	case *security.StringMatch_Exact:
		return v == m.Exact
	case *security.StringMatch_Prefix:
		return strings.HasPrefix(v, m.Prefix)
	case *security.StringMatch_Suffix:
		return strings.HasSuffix(v, m.Suffix)
	case *security.StringMatch_Presence:
		return true
	}
	return false
}

func contains(a *security.Address, ip netip.Addr) bool {
	base, ok := netip.AddrFromSlice(a.GetAddress())
	if !ok {
		return false
	}
	p, err := base.Prefix(int(a.GetLength()))
	return err == nil && p.Contains(ip.Unmap())
}

// account splits TD/ns/NS/sa/SA.
func account(principal string) (ns, sa string) {
	parts := strings.Split(principal, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return "", ""
	}
	return parts[2], parts[4]
}

func caller(c Conn) string {
	if c.Principal == "" {
		return "a caller without identity (plain text)"
	}
	return c.Principal
}

// strictPrefix begins the names of the policies that istiod makes from
// PeerAuthentications (pilot/pkg/serviceregistry/ambient/policies.go).
const (
	strictName      = "istio_converted_static_strict"
	convertedPrefix = "converted_peer_authentication_"
)

func denyText(p *security.Authorization, c Conn) string {
	if strings.HasPrefix(p.GetName(), strictName) || strings.HasPrefix(p.GetName(), convertedPrefix) {
		return "PeerAuthentication STRICT (" + Key(p) + ") denies " + caller(c)
	}
	return "AuthorizationPolicy " + Key(p) + " denies " + caller(c)
}

// describe says for people what an ALLOW policy allows.
func describe(p *security.Authorization) string {
	if len(p.GetGroups()) == 0 {
		return "nobody"
	}
	var groups []string
	for _, g := range p.GetGroups() {
		var rules []string
		for _, r := range g.GetRules() {
			var ms []string
			for _, m := range r.GetMatches() {
				ms = append(ms, describeMatch(m))
			}
			if len(ms) == 0 {
				ms = []string{"nothing"}
			}
			rules = append(rules, strings.Join(ms, " or "))
		}
		if len(rules) == 0 {
			rules = []string{"everybody"}
		}
		groups = append(groups, strings.Join(rules, " "))
	}
	return "only " + strings.Join(groups, ", or ")
}

func describeMatch(m *security.Match) string {
	var out []string
	add := func(word string, values []string) {
		if len(values) > 0 {
			out = append(out, word+strings.Join(values, ", "))
		}
	}
	add("", each(m.GetPrincipals(), pattern))
	add("not ", each(m.GetNotPrincipals(), pattern))
	add("namespace ", each(m.GetNamespaces(), pattern))
	add("not namespace ", each(m.GetNotNamespaces(), pattern))
	add("service account ", each(m.GetServiceAccounts(), accountName))
	add("not service account ", each(m.GetNotServiceAccounts(), accountName))
	add("from ", each(m.GetSourceIps(), cidr))
	add("not from ", each(m.GetNotSourceIps(), cidr))
	add("at ", each(m.GetDestinationIps(), cidr))
	add("not at ", each(m.GetNotDestinationIps(), cidr))
	add("on port ", each(m.GetDestinationPorts(), number))
	add("not on port ", each(m.GetNotDestinationPorts(), number))
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, " ")
}

func each[T any](list []T, f func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}

func accountName(s *security.ServiceAccountMatch) string {
	return s.GetNamespace() + "/" + s.GetServiceAccount()
}

func number(p uint32) string { return fmt.Sprint(p) }

func cidr(a *security.Address) string {
	if ip, ok := netip.AddrFromSlice(bytes.Clone(a.GetAddress())); ok {
		return netip.PrefixFrom(ip, int(a.GetLength())).String()
	}
	return "an invalid address"
}

func pattern(s *security.StringMatch) string {
	switch m := s.GetMatchType().(type) {
	case *security.StringMatch_Exact:
		return m.Exact
	case *security.StringMatch_Prefix:
		return m.Prefix + "*"
	case *security.StringMatch_Suffix:
		return "*" + m.Suffix
	case *security.StringMatch_Presence:
		return "any identity"
	}
	return "nothing"
}
