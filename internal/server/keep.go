package server

import (
	"slices"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// firstSeen remembers the policies that were there when the server started: what is in force of them was decided by somebody who knew every cluster.
type firstSeen map[mesh.Ref]*mesh.AccessPolicy

func seen(s *mesh.Snapshot) firstSeen {
	out := make(firstSeen, len(s.Policies))
	for _, p := range s.Policies {
		out[p.Source] = p
	}
	return out
}

// kept are objects that stay as they are in their clusters, while the clients of a cluster that has not reported since the server started can't be named: without them the
// objects would lock these clients out. Only those that a cluster has already, of policies that nobody has changed since the server started: who edits a policy means it.
func (f firstSeen) kept(s *mesh.Snapshot, r *translate.Result) map[mesh.ClusterName]map[mesh.Ref]bool {
	out := map[mesh.ClusterName]map[mesh.Ref]bool{}
	for _, p := range s.Policies {
		report := r.Policies[p.Source]
		if f[p.Source] != p || !slices.ContainsFunc(report.Conditions, func(c mesh.Condition) bool {
			return c.Reason == securityv2.ReasonStaleClients || c.Reason == securityv2.ReasonNoClients
		}) {
			continue
		}
		for i := range report.Clusters {
			c := &report.Clusters[i]
			inv := s.Cluster(c.Cluster).Inventory
			if inv == nil {
				continue
			}
			for _, ref := range c.Objects {
				want, _ := r.Objects[c.Cluster].Get(ref)
				if o, has := inv.Outcomes[ref]; has && o.OK && o.Hash != want.Hash {
					if out[c.Cluster] == nil {
						out[c.Cluster] = map[mesh.Ref]bool{}
					}
					out[c.Cluster][ref] = true
				}
			}
		}
	}
	return out
}
