package translate

import (
	"fmt"
	"slices"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// finish words what became of a policy.
func (w *policyWork) finish() mesh.PolicyReport {
	r := w.report
	if w.bad {
		return r
	}
	r.ServiceAccounts = w.res.accounts
	f := w.scope.f
	r.Clusters = make([]mesh.PolicyClusterReport, 0, len(w.shares))
	for i := range f.s.Clusters {
		c := &f.s.Clusters[i]
		shares := w.shares[c.Name]
		waits := w.awaits(c)
		if len(shares) == 0 && !waits {
			continue
		}
		one := mesh.PolicyClusterReport{Cluster: c.Name}
		if waits {
			one.Waiting = "the cluster has not reported what it runs"
		}
		var notes []string
		for _, sh := range shares {
			if len(sh.parts) > 0 {
				r.Namespaces++
			}
			r.DestinationPorts += sh.guards
			for _, o := range sh.objects {
				one.Objects = append(one.Objects, o.ref(sh.at.namespace))
			}
			one.Widened = append(one.Widened, sh.widened...)
			notes = append(notes, sh.notes...)
			if sh.override != nil {
				one.Override = sh.override
			}
		}
		sortRefs(one.Objects)
		slices.Sort(one.Widened)
		one.Widened = slices.Compact(one.Widened)
		one.Unenforceable = some(notes)
		r.Clusters = append(r.Clusters, one)
	}
	if len(r.Clusters) == 0 {
		r.Clusters = nil
	}
	resolved := w.resolved(r.Namespaces)
	r.Conditions = []mesh.Condition{{Type: securityv2.ConditionAccepted, Status: mesh.True, Reason: securityv2.ReasonValid, Message: "the policy is valid"}, resolved}
	r.Approval = adminv2.ApprovalAccepted
	if resolved.Status != mesh.True || len(w.res.notes) > 0 {
		r.Approval, r.Message = adminv2.ApprovalWarning, resolved.Message
		if resolved.Status == mesh.True {
			r.Message = strings.Join(w.res.notes, "; ")
		}
	}
	return r
}

// some joins sentences: the first few, and how many more.
func some(l []string) string {
	const most = 3
	if len(l) <= most {
		return strings.Join(l, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(l[:most], "; "), len(l)-most)
}

func (w *policyWork) resolved(namespaces int) mesh.Condition {
	c := mesh.Condition{Type: securityv2.ConditionResolved, Status: mesh.False}
	nobody := len(w.res.entries) > 0 && !slices.ContainsFunc(w.res.entries, func(e resolved) bool { return len(e.sources) > 0 })
	switch {
	case namespaces == 0 && !layerOff(w.p) && w.excuse() != "":
		c.Reason, c.Message = securityv2.ReasonNoDestinations, "what is selected can't be guarded: "+w.excuse()
	case namespaces == 0 && !layerOff(w.p):
		c.Reason, c.Message = securityv2.ReasonNoDestinations, "no Service or workload in any cluster is selected, so nothing is guarded: compare applyToDestinations with the labels of the Services (not of their Pods)"
	case nobody:
		c.Reason, c.Message = securityv2.ReasonNoClients, "no client is selected, so nobody is allowed: compare allowedClients with the labels of the ServiceAccounts"
		if len(w.res.notes) > 0 {
			c.Message += " (" + strings.Join(w.res.notes, "; ") + ")"
		}
	case len(w.res.waiting) > 0:
		c.Status, c.Reason = mesh.Unknown, securityv2.ReasonStaleClients
		c.Message = "clients of these clusters can't be named before they have reported: " + joinNames(w.res.waiting)
	case len(w.res.byPods) > 0:
		c.Status, c.Reason = mesh.True, securityv2.ReasonServiceAccountsByPods
		c.Message = fmt.Sprintf("no ServiceAccount has the labels %s, but workloads do: their ServiceAccounts are allowed", strings.Join(w.res.byPods, "; "))
	default:
		c.Status, c.Reason, c.Message = mesh.True, securityv2.ReasonResolved, "destinations and clients are found"
	}
	return c
}

// excuse says why nothing is guarded, other than that nothing is selected; empty: no such reason.
func (w *policyWork) excuse() string {
	var notes []string
	for i := range w.scope.f.s.Clusters {
		for _, sh := range w.shares[w.scope.f.s.Clusters[i].Name] {
			notes = append(notes, sh.notes...)
		}
	}
	if len(notes) == 0 && w.scope.ws != nil {
		notes = w.scope.ws.conflicts
	}
	return some(notes)
}

func joinNames(names []mesh.ClusterName) string {
	out := make([]string, 0, min(len(names), 5))
	for i, n := range names {
		if i == 5 {
			return strings.Join(out, ", ") + fmt.Sprintf(" and %d more", len(names)-5)
		}
		out = append(out, string(n))
	}
	return strings.Join(out, ", ")
}
