package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// selectsWords says in words what a policy guards.
func selectsWords(s *securityv2.AccessPolicySpec) []string {
	var out []string
	switch {
	case len(s.ApplyToWorkloads) > 0:
		for _, w := range s.ApplyToWorkloads {
			out = append(out, "Pods"+objectWords(w.Selector, "in scope"))
		}
		if len(s.ApplyToDestinations) > 0 {
			out = append(out, "(applyToDestinations is ignored, because applyToWorkloads is set)")
		}
	case len(s.ApplyToDestinations) > 0:
		for _, d := range s.ApplyToDestinations {
			line := "Services" + objectWords(d.Selector, "in scope")
			switch {
			case d.Port != nil && d.Port.Name != "":
				line += ", only their port named " + d.Port.Name
			case d.Port != nil && d.Port.Number != 0:
				line += ", only their port " + strconv.FormatUint(uint64(d.Port.Number), 10)
			}
			out = append(out, line)
		}
	default:
		out = []string{"every Service in scope"}
	}
	return out
}

// objectWords continues a plural: " with labels app=billing in namespace billing".
func objectWords(o *securityv2.ObjectSelector, all string) string {
	if o == nil {
		return " " + all
	}
	var out strings.Builder
	if o.Name != "" {
		out.WriteString(" named " + o.Name)
	}
	if len(o.Labels) > 0 {
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(o.Labels)) {
			labels = append(labels, k+"="+o.Labels[k])
		}
		out.WriteString(" with labels " + strings.Join(labels, ","))
	}
	for _, part := range []struct{ what, value string }{{"namespace", o.Namespace}, {"cluster", o.Cluster}, {"workspace", o.Workspace}} {
		if part.value != "" {
			fmt.Fprintf(&out, " in %s %s", part.what, part.value)
		}
	}
	if out.Len() == 0 {
		return " " + all
	}
	return out.String()
}

// allowsWords says in words whom a policy lets in. Nothing: it restricts nobody.
func allowsWords(c *securityv2.AccessPolicyConfig) []string {
	if c == nil || c.Authz == nil && len(c.AuthzList) == 0 {
		return []string{"everybody (it has no authz)"}
	}
	entries := c.AuthzList
	if len(entries) == 0 {
		entries = []securityv2.Authorization{*c.Authz}
	}
	var out []string
	for i := range entries {
		out = append(out, entryWords(&entries[i]))
	}
	return out
}

func entryWords(a *securityv2.Authorization) string {
	var clients []string
	for _, c := range a.AllowedClients {
		clients = append(clients, clientWords(&c))
	}
	line := strings.Join(clients, ", or ")
	if line == "" {
		line = "nobody (it has no allowedClients)"
	}
	var only []string
	for _, part := range []struct {
		what   string
		values []string
	}{
		{"methods", a.AllowedMethods}, {"paths", a.AllowedPaths}, {"from", a.AllowedIPBlocks}, {"originally from", a.AllowedRemoteIPBlocks},
	} {
		if len(part.values) > 0 {
			only = append(only, part.what+" "+strings.Join(part.values, " "))
		}
	}
	if a.Match != nil && a.Match.Request != nil {
		for _, h := range slices.Sorted(maps.Keys(a.Match.Request.Headers)) {
			only = append(only, "header "+h)
		}
	}
	if len(only) > 0 {
		line += "; only " + strings.Join(only, ", ")
	}
	if a.DryRun {
		line += " (dryRun: not enforced)"
	}
	return line
}

func clientWords(c *securityv2.IdentitySelector) string {
	var parts []string
	if c.ServiceAccountSelector != nil {
		parts = append(parts, "ServiceAccounts"+objectWords(c.ServiceAccountSelector, "in scope"))
	}
	if c.RequestIdentityMatcher != nil {
		if p := c.RequestIdentityMatcher.RequestPrincipals; len(p) > 0 {
			parts = append(parts, "with a JWT of "+strings.Join(p, " or "))
		}
		if p := c.RequestIdentityMatcher.NotRequestPrincipals; len(p) > 0 {
			parts = append(parts, "without a JWT of "+strings.Join(p, " or "))
		}
	}
	if c.ExternalWorkloadSelector != nil {
		parts = append(parts, "external workloads (not supported: nobody)")
	}
	if len(parts) == 0 {
		return "any authenticated identity"
	}
	return strings.Join(parts, " ")
}

// tlsWords says in words how clients must authenticate, empty: as the cluster has it.
func tlsWords(c *securityv2.AccessPolicyConfig) string {
	if c == nil || c.Authn == nil {
		return ""
	}
	mode := c.Authn.TLSMode
	if mode == "" && c.Authn.MTLS != nil && c.Authn.MTLS.Required {
		mode = securityv2.TLSStrict
	}
	switch mode {
	case securityv2.TLSStrict:
		return "mutual TLS is required (STRICT)"
	case securityv2.TLSPermissive:
		return "mutual TLS or plain text (PERMISSIVE)"
	case securityv2.TLSDisable:
		return "plain text (DISABLE)"
	default:
		return ""
	}
}

// todo says what to do about a state, empty: nothing.
func todo(s securityv2.PolicyState) string {
	switch s {
	case securityv2.PolicyInForce:
		return ""
	case securityv2.PolicyPending:
		return "on its way, or the cluster is away: meshctl cluster list; it is applied when the agent is back"
	case securityv2.PolicyOverridden:
		return "somebody suspended it on purpose: meshctl policy override list; end it: meshctl policy override end NAME"
	case securityv2.PolicyDrifted:
		return "somebody changed an object in the cluster: the agent puts it back by itself unless its owner label was taken off; then give the label back or delete the object"
	case securityv2.PolicyRejected:
		return "the cluster refused an object: the message is the cluster's own answer; mend what it names"
	case securityv2.PolicyUnenforceable:
		return "nothing in the cluster can enforce it: bring the namespace into the mesh, or make the waypoint; until then do not rely on it"
	default:
		return "a state that this meshctl does not know: use a newer one"
	}
}
