package translate

import (
	"fmt"
	"slices"
	"strings"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// scope is the part of the mesh that a policy may speak of.
type scope struct {
	f  *fleet
	ws *workspace // nil: the whole mesh
}

func (sc scope) has(c mesh.ClusterName, ns string) bool {
	claim := sc.f.claims[place{c, ns}]
	if sc.ws == nil {
		return true
	}
	return claim.owner() == sc.ws
}

func matches(sel *securityv2.ObjectSelector, c mesh.ClusterName, ns, name string, labels map[string]string) bool {
	if sel == nil {
		return true
	}
	return (sel.Cluster == "" || sel.Cluster == string(c)) && (sel.Namespace == "" || sel.Namespace == ns) && (sel.Name == "" || sel.Name == name) && covers(labels, sel.Labels)
}

// resolution is what the allowedClients of a policy came to, entry by entry of its authorizations.
type resolution struct {
	entries  []resolved
	waiting  []mesh.ClusterName // whose ServiceAccounts can't be named yet
	byPods   []string           // selectors that matched workloads, not ServiceAccounts
	notes    []string
	accounts []mesh.Principal // of all entries that are enforced
	sets     []*clientSet     // that it is made of
}

// resolved is one Authorization that is enforced.
type resolved struct {
	index   int
	authz   *securityv2.Authorization
	sources []source // alternatives; none: nobody
	l7      []string // fields that only a waypoint can check
}

func authorizations(p *mesh.AccessPolicy) []securityv2.Authorization {
	c := p.Spec.Config
	switch {
	case c == nil:
		return nil
	case len(c.AuthzList) > 0:
		return c.AuthzList
	case c.Authz != nil:
		return []securityv2.Authorization{*c.Authz}
	}
	return nil
}

func (sc scope) resolve(p *mesh.AccessPolicy) resolution {
	var r resolution
	waiting := map[mesh.ClusterName]bool{}
	all := map[mesh.Principal]bool{}
	list := authorizations(p)
	for i := range list {
		a := &list[i]
		if a.DryRun {
			r.notes = append(r.notes, fmt.Sprintf("entry %d is a dry run and not enforced", i))
			continue
		}
		e := resolved{index: i, authz: a, l7: needsWaypoint(a)}
		union := map[mesh.Principal]bool{}
		anybody := false
		for j := range a.AllowedClients {
			id := &a.AllowedClients[j]
			found, any := sc.accounts(id, waiting, &r)
			switch {
			case id.ExternalWorkloadSelector != nil:
				r.notes = append(r.notes, "externalWorkloadSelector is not supported and selects nobody")
			case id.RequestIdentityMatcher != nil:
				src := source{RequestPrincipals: id.RequestIdentityMatcher.RequestPrincipals, NotRequestPrincipals: id.RequestIdentityMatcher.NotRequestPrincipals}
				if len(src.RequestPrincipals)+len(src.NotRequestPrincipals) == 0 {
					src.RequestPrincipals = []string{"*"}
				}
				if !any {
					if len(found) == 0 {
						continue
					}
					src.Principals = sortedKeys(found)
				}
				e.sources = append(e.sources, src)
			case any:
				anybody = true
			default:
				for pr := range found {
					union[pr] = true
				}
			}
		}
		switch {
		case anybody:
			e.sources = append(e.sources, source{Principals: []mesh.Principal{"*"}})
		case len(union) > 0:
			e.sources = append(e.sources, source{Principals: sortedKeys(union)})
		}
		for k := range e.sources {
			e.sources[k].IPBlocks, e.sources[k].RemoteIPBlocks = a.AllowedIPBlocks, a.AllowedRemoteIPBlocks
			for _, pr := range e.sources[k].Principals {
				if pr != "*" {
					all[pr] = true
				}
			}
		}
		if len(a.AllowedClients) == 0 {
			r.notes = append(r.notes, fmt.Sprintf("entry %d has no allowedClients, so it allows nobody; `allowedClients: [{}]` allows every authenticated identity", i))
		}
		r.entries = append(r.entries, e)
	}
	r.accounts = sortedKeys(all)
	r.waiting = sortedKeys(waiting)
	slices.Sort(r.byPods)
	r.byPods = slices.Compact(r.byPods)
	slices.Sort(r.notes)
	r.notes = slices.Compact(r.notes)
	return r
}

func sortedKeys[K ~string](m map[K]bool) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	if len(out) == 0 {
		return nil
	}
	return out
}

func needsWaypoint(a *securityv2.Authorization) []string {
	var out []string
	add := func(is bool, field string) {
		if is {
			out = append(out, field)
		}
	}
	add(len(a.AllowedPaths) > 0, "allowedPaths")
	add(len(a.AllowedMethods) > 0, "allowedMethods")
	add(a.Match != nil && a.Match.Request != nil && len(a.Match.Request.Headers) > 0, "match.request.headers")
	add(len(a.AllowedRemoteIPBlocks) > 0, "allowedRemoteIpBlocks")
	add(slices.ContainsFunc(a.AllowedClients, func(c securityv2.IdentitySelector) bool { return c.RequestIdentityMatcher != nil }), "requestIdentityMatcher")
	return out
}

// accounts finds the ServiceAccounts of one allowedClients entry.
func (sc scope) accounts(id *securityv2.IdentitySelector, waiting map[mesh.ClusterName]bool, r *resolution) (found map[mesh.Principal]bool, anybody bool) {
	sel := id.ServiceAccountSelector
	if sel == nil {
		return nil, id.ExternalWorkloadSelector == nil
	}
	from := sc
	if sel.Workspace != "" && (sc.ws == nil || sel.Workspace != sc.ws.name) {
		from.ws = nil
		for _, w := range sc.f.workspaces {
			if w.name == sel.Workspace {
				from.ws = w
			}
		}
		if from.ws == nil {
			r.notes = append(r.notes, fmt.Sprintf("there is no workspace %q", sel.Workspace))
			return nil, false
		}
	}
	found = map[mesh.Principal]bool{}
	if sel.Name != "" && sel.Namespace != "" && sel.Cluster != "" { // honoured before it exists
		if c := sc.f.s.Cluster(mesh.ClusterName(sel.Cluster)); c != nil && len(sel.Labels) == 0 && from.has(c.Name, sel.Namespace) {
			if td := trustDomain(c); td != "" {
				found[principal(td, sel.Namespace, sel.Name)] = true
			} else {
				waiting[c.Name] = true
			}
			return found, false
		}
	}
	set := sc.f.clients(from.ws, sel)
	r.sets = append(r.sets, set)
	accounts, pods := from.unnamed(sel, waiting)
	if len(set.accounts) > 0 || len(accounts) > 0 || len(sel.Labels) == 0 {
		for _, c := range accounts {
			waiting[c] = true
		}
		return names(set.accounts), false
	}
	for _, c := range pods {
		waiting[c] = true
	}
	if len(set.byPods) > 0 || len(pods) > 0 {
		r.byPods = append(r.byPods, labelText(sel.Labels))
	}
	return names(set.byPods), false
}

func names(counted map[mesh.Principal]int) map[mesh.Principal]bool {
	out := make(map[mesh.Principal]bool, len(counted))
	for p := range counted {
		out[p] = true
	}
	return out
}

// unnamed are the clusters where sel finds ServiceAccounts, or workloads, that have no principal yet because the trust domain is not known. Clusters that
// have not reported at all are waited for.
func (sc scope) unnamed(sel *securityv2.ObjectSelector, waiting map[mesh.ClusterName]bool) (accounts, pods []mesh.ClusterName) {
	for _, c := range sc.f.silent {
		if c.Invalid != "" || sel.Cluster != "" && sel.Cluster != string(c.Name) || sc.ws != nil && !sc.ws.clusters[c.Name] {
			continue
		}
		if c.Inventory == nil {
			if c.UID != "" {
				waiting[c.Name] = true
			}
			continue
		}
		for ns, n := range c.Inventory.Namespaces {
			if sel.Namespace != "" && sel.Namespace != ns || !sc.has(c.Name, ns) {
				continue
			}
			for i := range n.ServiceAccounts {
				if a := &n.ServiceAccounts[i]; matches(sel, c.Name, ns, a.Name, a.Labels) {
					accounts = append(accounts, c.Name)
				}
			}
			for i := range n.Workloads {
				if w := &n.Workloads[i]; matches(sel, c.Name, ns, serviceAccount(w), w.Labels) {
					pods = append(pods, c.Name)
				}
			}
		}
	}
	return accounts, pods
}

func trustDomain(c *mesh.Cluster) mesh.TrustDomain {
	if c.Inventory == nil {
		return ""
	}
	return c.Inventory.Info.TrustDomain
}

func principal(td mesh.TrustDomain, ns, sa string) mesh.Principal {
	return mesh.Principal(string(td) + "/ns/" + ns + "/sa/" + sa)
}

func labelText(labels map[string]string) string {
	var out []string
	for _, k := range keys(labels) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}
