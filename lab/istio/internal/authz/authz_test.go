package authz

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/emptypb"
	"istio.io/istio/pkg/workloadapi/security"
)

const (
	web   = "cluster.local/ns/shop/sa/web"
	other = "cluster.local/ns/shop/sa/other"
)

// conn is a connection of web to port 8080 of the Pod 10.1.0.9.
func conn(principal string) Conn {
	return Conn{Principal: principal, Source: netip.MustParseAddr("10.1.0.5"), Dest: netip.MustParseAddrPort("10.1.0.9:8080")}
}

func exact(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: s}}
}

func prefix(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: s}}
}

func suffix(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: s}}
}

func presence() *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}
}

func strs(m ...*security.StringMatch) []*security.StringMatch { return m }

func accounts(ns, sa string) []*security.ServiceAccountMatch {
	return []*security.ServiceAccountMatch{{Namespace: ns, ServiceAccount: sa}}
}

// cidrOf is a CIDR as istiod sends it.
func cidrOf(s string) []*security.Address {
	p := netip.MustParsePrefix(s)
	return []*security.Address{{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}}
}

func principals(ids ...string) *security.Match {
	m := &security.Match{}
	for _, id := range ids {
		m.Principals = append(m.Principals, exact(id))
	}
	return m
}

func rule(ms ...*security.Match) *security.Rules     { return &security.Rules{Matches: ms} }
func group(rs ...*security.Rules) *security.Group    { return &security.Group{Rules: rs} }
func one(m *security.Match) *security.Group          { return group(rule(m)) }
func groups(gs ...*security.Group) []*security.Group { return gs }

// policy is of namespace app and of that scope, unless f says otherwise.
func policy(name string, a security.Action, gs []*security.Group, f ...func(*security.Authorization)) *security.Authorization {
	p := &security.Authorization{Name: name, Namespace: "app", Scope: security.Scope_NAMESPACE, Action: a, Groups: gs}
	for _, change := range f {
		change(p)
	}
	return p
}

func allow(name string, gs ...*security.Group) *security.Authorization {
	return policy(name, security.Action_ALLOW, gs)
}

func deny(name string, gs ...*security.Group) *security.Authorization {
	return policy(name, security.Action_DENY, gs)
}

func byKey(ps ...*security.Authorization) map[string]*security.Authorization {
	out := map[string]*security.Authorization{}
	for _, p := range ps {
		out[Key(p)] = p
	}
	return out
}

// TestEmptiness is the emptiness table of Istio's AuthorizationPolicy, as ztunnel
// has it: the difference between nobody and everybody is an empty list.
func TestEmptiness(t *testing.T) {
	nothing := &security.Match{}
	for _, c := range []struct {
		name   string
		groups []*security.Group
		match  bool
	}{
		{"no rules", nil, false},
		{"rules: []", groups(), false},
		{"rules: [{}]", groups(group()), true},
		{"rules: [{from: []}] decodes to the same", groups(&security.Group{Rules: []*security.Rules{}}), true},
		{"a rule without matches", groups(group(rule())), false},
		{"source: {}", groups(one(nothing)), false},
		{"a nil match", groups(group(rule(nil))), false},
		{"an empty match beside one that matches", groups(group(rule(nothing, principals(web)))), true},
		{"an empty match beside one that does not", groups(group(rule(nothing, principals(other)))), false},
		{"an empty match in one of two rules", groups(group(rule(nothing), rule(principals(web)))), false},
		{"empty notPrincipals", groups(one(&security.Match{NotPrincipals: strs()})), false},
		{"a string match of no kind", groups(one(&security.Match{Principals: strs(&security.StringMatch{})})), false},
		{"not a string match of no kind", groups(one(&security.Match{NotPrincipals: strs(&security.StringMatch{})})), true},
		{"one empty group of two", groups(one(principals(other)), group()), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := Workload{Namespace: "app"}
			if got := Decide(byKey(allow("p", c.groups...)), w, conn(web)); got.Allowed != c.match {
				t.Errorf("ALLOW: allowed %v, want %v: %s", got.Allowed, c.match, got.Text)
			}
			if got := Decide(byKey(deny("p", c.groups...)), w, conn(web)); got.Allowed != !c.match {
				t.Errorf("DENY: allowed %v, want %v: %s", got.Allowed, !c.match, got.Text)
			}
		})
	}
}

// TestMatch: one match, with the caller, the addresses and the port varied.
func TestMatch(t *testing.T) {
	type match = security.Match
	v6 := Conn{Principal: web, Source: netip.MustParseAddr("fd00:1::5"), Dest: netip.MustParseAddrPort("[fd00:2::9]:8080")}
	mapped := conn(web)
	mapped.Source = netip.MustParseAddr("::ffff:10.1.0.5")
	nowhere := Conn{Principal: web}
	for _, c := range []struct {
		name string
		m    *match
		c    Conn
		want bool
	}{
		{"principal, exact", &match{Principals: strs(exact(web))}, conn(web), true},
		{"principal, exact, other account", &match{Principals: strs(exact(web))}, conn(other), false},
		{"principal with spiffe:// never matches (ztunnel#1901)", &match{Principals: strs(exact("spiffe://" + web))}, conn(web), false},
		{"principal, exact, longer caller", &match{Principals: strs(exact(web))}, conn(web + "2"), false},
		{"principal, exact, other trust domain", &match{Principals: strs(exact(web))}, conn("td2/ns/shop/sa/web"), false},
		{"principals are ORed", &match{Principals: strs(exact(other), exact(web))}, conn(web), true},
		{"principal, prefix", &match{Principals: strs(prefix("cluster.local/ns/shop/"))}, conn(web), true},
		{"principal, prefix, not at the start", &match{Principals: strs(prefix("ns/shop/"))}, conn(web), false},
		{"principal, suffix", &match{Principals: strs(suffix("/sa/web"))}, conn(web), true},
		{"principal, suffix, not at the end", &match{Principals: strs(suffix("/ns/shop"))}, conn(web), false},
		{"principal, suffix, of any trust domain", &match{Principals: strs(suffix("/ns/shop/sa/web"))}, conn("evil/ns/shop/sa/web"), true},
		{"principal, presence", &match{Principals: strs(presence())}, conn(web), true},
		{"plain text: presence", &match{Principals: strs(presence())}, conn(""), false},
		{"plain text: exact empty", &match{Principals: strs(exact(""))}, conn(""), false},
		{"plain text: empty prefix", &match{Principals: strs(prefix(""))}, conn(""), false},
		{"plain text: empty suffix", &match{Principals: strs(suffix(""))}, conn(""), false},
		{"not principal", &match{NotPrincipals: strs(exact(web))}, conn(web), false},
		{"not principal, another", &match{NotPrincipals: strs(exact(web))}, conn(other), true},
		{"not principals: one of them", &match{NotPrincipals: strs(exact(other), exact(web))}, conn(web), false},
		{"plain text: not principal", &match{NotPrincipals: strs(exact(web))}, conn(""), true},
		{"plain text: not presence", &match{NotPrincipals: strs(presence())}, conn(""), true},
		{"principal and not the same", &match{Principals: strs(presence()), NotPrincipals: strs(exact(web))}, conn(web), false},
		{"principal and not another", &match{Principals: strs(presence()), NotPrincipals: strs(exact(other))}, conn(web), true},

		{"namespace", &match{Namespaces: strs(exact("shop"))}, conn(web), true},
		{"namespace, another", &match{Namespaces: strs(exact("app"))}, conn(web), false},
		{"namespace, of any trust domain", &match{Namespaces: strs(exact("shop"))}, conn("td2/ns/shop/sa/web"), true},
		{"namespace, prefix", &match{Namespaces: strs(prefix("sh"))}, conn(web), true},
		{"namespace, suffix", &match{Namespaces: strs(suffix("op"))}, conn(web), true},
		{"namespace, presence", &match{Namespaces: strs(presence())}, conn(web), true},
		{"not namespace", &match{NotNamespaces: strs(exact("shop"))}, conn(web), false},
		{"not namespace, another", &match{NotNamespaces: strs(exact("app"))}, conn(web), true},
		{"plain text: namespace", &match{Namespaces: strs(presence())}, conn(""), false},
		{"plain text: not namespace", &match{NotNamespaces: strs(exact("shop"))}, conn(""), true},
		{"an identity of another form has no namespace", &match{Namespaces: strs(presence())}, conn("cluster.local/workload/web"), false},
		{"an identity with more parts has no namespace", &match{Namespaces: strs(exact("shop"))}, conn(web + "/x"), false},

		{"service account", &match{ServiceAccounts: accounts("shop", "web")}, conn(web), true},
		{"service account ignores the trust domain", &match{ServiceAccounts: accounts("shop", "web")}, conn("evil/ns/shop/sa/web"), true},
		{"service account, other namespace", &match{ServiceAccounts: accounts("app", "web")}, conn(web), false},
		{"service account, other name", &match{ServiceAccounts: accounts("shop", "web2")}, conn(web), false},
		{"not service account", &match{NotServiceAccounts: accounts("shop", "web")}, conn(web), false},
		{"not service account, another", &match{NotServiceAccounts: accounts("shop", "web")}, conn(other), true},
		{"plain text: service account", &match{ServiceAccounts: accounts("", "")}, conn(""), false},
		{"plain text: not service account", &match{NotServiceAccounts: accounts("shop", "web")}, conn(""), true},
		{"an identity of another form: service account", &match{ServiceAccounts: accounts("shop", "web")}, conn("cluster.local/shop/web"), false},

		{"source", &match{SourceIps: cidrOf("10.1.0.0/24")}, conn(web), true},
		{"source, host", &match{SourceIps: cidrOf("10.1.0.5/32")}, conn(web), true},
		{"source, unmasked base", &match{SourceIps: cidrOf("10.1.0.77/24")}, conn(web), true},
		{"source, outside", &match{SourceIps: cidrOf("10.1.0.0/30")}, conn(web), false},
		{"source, all of v4", &match{SourceIps: cidrOf("0.0.0.0/0")}, conn(web), true},
		{"source, all of v6 has no v4", &match{SourceIps: cidrOf("::/0")}, conn(web), false},
		{"source, all of v4 has no v6", &match{SourceIps: cidrOf("0.0.0.0/0")}, v6, false},
		{"source, v6", &match{SourceIps: cidrOf("fd00:1::/64")}, v6, true},
		{"source, v6, outside", &match{SourceIps: cidrOf("fd00:3::/64")}, v6, false},
		{"source, v4 in v6", &match{SourceIps: cidrOf("10.1.0.0/24")}, mapped, true},
		{"not source", &match{NotSourceIps: cidrOf("10.1.0.0/24")}, conn(web), false},
		{"not source, another", &match{NotSourceIps: cidrOf("10.2.0.0/24")}, conn(web), true},
		{"source, no length is everything", &match{SourceIps: []*security.Address{{Address: []byte{10, 9, 9, 9}}}}, conn(web), true},
		{"source, five bytes", &match{SourceIps: []*security.Address{{Address: []byte{10, 1, 0, 5, 0}, Length: 8}}}, conn(web), false},
		{"source, length 33", &match{SourceIps: []*security.Address{{Address: []byte{10, 1, 0, 5}, Length: 33}}}, conn(web), false},
		{"source, unknown", &match{SourceIps: cidrOf("0.0.0.0/0")}, nowhere, false},
		{"destination", &match{DestinationIps: cidrOf("10.1.0.9/32")}, conn(web), true},
		{"destination is not the source", &match{DestinationIps: cidrOf("10.1.0.5/32")}, conn(web), false},
		{"destination, v6", &match{DestinationIps: cidrOf("fd00:2::/32")}, v6, true},
		{"not destination", &match{NotDestinationIps: cidrOf("10.1.0.9/32")}, conn(web), false},
		{"port", &match{DestinationPorts: []uint32{8080}}, conn(web), true},
		{"port, one of", &match{DestinationPorts: []uint32{80, 8080}}, conn(web), true},
		{"port, another", &match{DestinationPorts: []uint32{80}}, conn(web), false},
		{"port, modulo 65536", &match{DestinationPorts: []uint32{8080 + 65536}}, conn(web), false},
		{"not port", &match{NotDestinationPorts: []uint32{8080}}, conn(web), false},
		{"not port, another", &match{NotDestinationPorts: []uint32{80}}, conn(web), true},

		{"kinds are ANDed: both", &match{Principals: strs(exact(web)), DestinationPorts: []uint32{8080}}, conn(web), true},
		{"kinds are ANDed: one", &match{Principals: strs(exact(web)), DestinationPorts: []uint32{80}}, conn(web), false},
		{"kinds are ANDed: the other", &match{Principals: strs(exact(other)), DestinationPorts: []uint32{8080}}, conn(web), false},
		{"kinds are ANDed: a not of another kind", &match{Principals: strs(exact(web)), NotSourceIps: cidrOf("10.1.0.5/32")}, conn(web), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Decide(byKey(allow("p", one(c.m))), Workload{Namespace: "app"}, c.c); got.Allowed != c.want {
				t.Errorf("allowed %v, want %v: %s", got.Allowed, c.want, got.Text)
			}
		})
	}
}

// TestStructure: groups are ORed, the rules of a group ANDed, the matches of a
// rule ORed.
func TestStructure(t *testing.T) {
	yes, no := principals(web), principals(other)
	for _, c := range []struct {
		name   string
		groups []*security.Group
		want   bool
	}{
		{"groups OR: second", groups(one(no), one(yes)), true},
		{"groups OR: none", groups(one(no), one(no)), false},
		{"rules AND: both", groups(group(rule(yes), rule(yes))), true},
		{"rules AND: first fails", groups(group(rule(no), rule(yes))), false},
		{"rules AND: last fails", groups(group(rule(yes), rule(no))), false},
		{"matches OR: first", groups(group(rule(yes, no))), true},
		{"matches OR: second", groups(group(rule(no, yes))), true},
		{"matches OR: none", groups(group(rule(no, no))), false},
		{"a group that fails and one that matches", groups(group(rule(yes), rule(no)), group(rule(no, yes))), true},
		{"halves of two groups are no match", groups(group(rule(yes), rule(no)), group(rule(no), rule(yes))), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Decide(byKey(allow("p", c.groups...)), Workload{Namespace: "app"}, conn(web)); got.Allowed != c.want {
				t.Errorf("allowed %v, want %v: %s", got.Allowed, c.want, got.Text)
			}
		})
	}
}

// TestScope: which policies count for a workload.
func TestScope(t *testing.T) {
	in := func(ns string, s security.Scope) func(*security.Authorization) {
		return func(p *security.Authorization) { p.Namespace, p.Scope = ns, s }
	}
	denyAll := groups(group())
	for _, c := range []struct {
		name  string
		p     *security.Authorization
		names []string // the workload's list
		want  bool     // applies
	}{
		{"namespace, own", policy("p", security.Action_DENY, denyAll, in("app", security.Scope_NAMESPACE)), nil, true},
		{"namespace, another", policy("p", security.Action_DENY, denyAll, in("shop", security.Scope_NAMESPACE)), nil, false},
		{"namespace, another, though named", policy("p", security.Action_DENY, denyAll, in("shop", security.Scope_NAMESPACE)), []string{"shop/p"}, false},
		{"global, of any namespace", policy("p", security.Action_DENY, denyAll, in("istio-system", security.Scope_GLOBAL)), nil, true},
		{"selector, named", policy("p", security.Action_DENY, denyAll, in("app", security.Scope_WORKLOAD_SELECTOR)), []string{"app/x", "app/p"}, true},
		{"selector, not named", policy("p", security.Action_DENY, denyAll, in("app", security.Scope_WORKLOAD_SELECTOR)), []string{"app/x"}, false},
		{"selector, named in another namespace", policy("p", security.Action_DENY, denyAll, in("app", security.Scope_WORKLOAD_SELECTOR)), []string{"shop/p"}, false},
		{"an unknown scope", policy("p", security.Action_DENY, denyAll, in("app", security.Scope(9))), []string{"app/p"}, false},
		{"dry run", policy("p", security.Action_DENY, denyAll, func(p *security.Authorization) { p.DryRun = true }), nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Decide(byKey(c.p), Workload{Namespace: "app", Policies: c.names}, conn(web))
			if got.Allowed == c.want {
				t.Errorf("applies %v, want %v: %s", !got.Allowed, c.want, got.Text)
			}
		})
	}
}

// TestVerdict: the order of decisions, what they name, and the words of it.
func TestVerdict(t *testing.T) {
	toWeb := allow("to-web", one(principals(web)))
	selects := func(p *security.Authorization) { p.Scope = security.Scope_WORKLOAD_SELECTOR }
	strict := policy("istio_converted_static_strict", security.Action_DENY,
		groups(one(&security.Match{NotPrincipals: strs(presence())})), func(p *security.Authorization) { p.Namespace = "istio-system" }, selects)
	dry := allow("dry", one(principals(other)))
	dry.DryRun = true
	named := []string{"istio-system/istio_converted_static_strict", "app/not-here-yet"}
	for _, c := range []struct {
		name     string
		policies []*security.Authorization
		caller   string
		want     Verdict
	}{
		{"no policies", nil, web, Verdict{Allowed: true, Text: "no ALLOW policy applies to the destination and no DENY policy matches"}},
		{"no policies, plain text", nil, "", Verdict{Allowed: true, Text: "no ALLOW policy applies to the destination and no DENY policy matches"}},
		{"a DENY that does not match", []*security.Authorization{deny("d", one(principals(other)))}, web, Verdict{
			Allowed: true, Text: "no ALLOW policy applies to the destination and no DENY policy matches",
		}},
		{"allowed", []*security.Authorization{toWeb}, web, Verdict{
			Allowed: true, By: []string{"app/to-web"}, Text: "AuthorizationPolicy app/to-web allows cluster.local/ns/shop/sa/web",
		}},
		{"allowed by the first in the order of names", []*security.Authorization{allow("b", group()), toWeb, allow("a", group())}, web, Verdict{
			Allowed: true, By: []string{"app/a"}, Text: "AuthorizationPolicy app/a allows cluster.local/ns/shop/sa/web",
		}},
		{"an unmatched ALLOW does not hinder", []*security.Authorization{allow("a"), toWeb}, web, Verdict{
			Allowed: true, By: []string{"app/to-web"}, Text: "AuthorizationPolicy app/to-web allows cluster.local/ns/shop/sa/web",
		}},
		{"nobody", []*security.Authorization{allow("none")}, web, Verdict{
			By: []string{"app/none"}, Text: "AuthorizationPolicy app/none allows nobody; the caller is cluster.local/ns/shop/sa/web",
		}},
		{"not the caller", []*security.Authorization{toWeb}, other, Verdict{
			By: []string{"app/to-web"}, Text: "AuthorizationPolicy app/to-web allows only cluster.local/ns/shop/sa/web; the caller is cluster.local/ns/shop/sa/other",
		}},
		{"not the caller, of two policies", []*security.Authorization{toWeb, allow("none")}, other, Verdict{
			By: []string{"app/none", "app/to-web"},
			Text: "AuthorizationPolicy app/none allows nobody; AuthorizationPolicy app/to-web allows only cluster.local/ns/shop/sa/web; " +
				"the caller is cluster.local/ns/shop/sa/other",
		}},
		{"plain text to an ALLOW", []*security.Authorization{toWeb}, "", Verdict{
			By:   []string{"app/to-web"},
			Text: "AuthorizationPolicy app/to-web allows only cluster.local/ns/shop/sa/web; the caller is a caller without identity (plain text)",
		}},
		{"DENY before ALLOW", []*security.Authorization{toWeb, deny("z", one(principals(web)))}, web, Verdict{
			By: []string{"app/z"}, Text: "AuthorizationPolicy app/z denies cluster.local/ns/shop/sa/web",
		}},
		{"the first DENY in the order of names", []*security.Authorization{deny("z", group()), deny("y", group())}, web, Verdict{
			By: []string{"app/y"}, Text: "AuthorizationPolicy app/y denies cluster.local/ns/shop/sa/web",
		}},
		{"STRICT, plain text", []*security.Authorization{strict}, "", Verdict{
			By:   []string{"istio-system/istio_converted_static_strict"},
			Text: "PeerAuthentication STRICT (istio-system/istio_converted_static_strict) denies a caller without identity (plain text)",
		}},
		{"STRICT, with identity", []*security.Authorization{strict}, web, Verdict{
			Allowed: true, Text: "no ALLOW policy applies to the destination and no DENY policy matches",
		}},
		{"converted PeerAuthentication", []*security.Authorization{deny("converted_peer_authentication_strict-mtls", group())}, "", Verdict{
			By:   []string{"app/converted_peer_authentication_strict-mtls"},
			Text: "PeerAuthentication STRICT (app/converted_peer_authentication_strict-mtls) denies a caller without identity (plain text)",
		}},
		{"a dry-run ALLOW closes nothing", []*security.Authorization{dry}, web, Verdict{
			Allowed: true, Text: "no ALLOW policy applies to the destination and no DENY policy matches",
		}},
		{"a named policy that has not come is skipped", []*security.Authorization{deny("other", one(principals(other)))}, web, Verdict{
			Allowed: true, Text: "no ALLOW policy applies to the destination and no DENY policy matches",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Decide(byKey(c.policies...), Workload{Namespace: "app", Policies: named}, conn(c.caller))
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestDescribe is what people are told an ALLOW policy allows.
func TestDescribe(t *testing.T) {
	all := &security.Match{
		Principals: strs(exact("a"), prefix("b/"), suffix("/c"), presence(), nil), NotPrincipals: strs(exact("d")),
		Namespaces: strs(exact("e")), NotNamespaces: strs(exact("f")),
		ServiceAccounts: accounts("g", "h"), NotServiceAccounts: accounts("i", "j"),
		SourceIps: cidrOf("10.0.0.0/8"), NotSourceIps: cidrOf("fd00::/64"),
		DestinationIps: cidrOf("10.1.0.9/32"), NotDestinationIps: []*security.Address{{Address: []byte{1, 2, 3}}},
		DestinationPorts: []uint32{80, 8080}, NotDestinationPorts: []uint32{22},
	}
	for _, c := range []struct {
		name   string
		groups []*security.Group
		want   string
	}{
		{"no groups", nil, "nobody"},
		{"empty group", groups(group()), "only everybody"},
		{"rule without matches", groups(group(rule())), "only nothing"},
		{"empty match", groups(one(&security.Match{})), "only nothing"},
		{"two matches", groups(group(rule(principals("a"), principals("b")))), "only a or b"},
		{"two rules", groups(group(rule(principals("a")), rule(&security.Match{DestinationPorts: []uint32{80}}))), "only a on port 80"},
		{"two groups", groups(one(principals("a")), one(principals("b"))), "only a, or b"},
		{"every kind", groups(one(all)), "only a, b/*, */c, any identity, nothing not d namespace e not namespace f service account g/h " +
			"not service account i/j from 10.0.0.0/8 not from fd00::/64 at 10.1.0.9/32 not at an invalid address on port 80, 8080 not on port 22"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := describe(allow("p", c.groups...)); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}
