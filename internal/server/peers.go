package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

// peerMemo is what was said of a cluster's peers, and of what: while both are the same, so is that.
type peerMemo struct {
	peering   *mesh.Peering
	inventory *mesh.Inventory
	status    report.PeeringStatus
}

// peering is the status of a cluster's peering; nil while the server does not know everything yet.
func (r *reporter) peering(v *view, c *mesh.Cluster, names []mesh.ClusterName) *report.PeeringStatus {
	if !v.warm || v.result.Peering == nil {
		return nil
	}
	m, ok := r.peers[c.Name]
	if !ok || m.peering != v.result.Peering || m.inventory != c.Inventory {
		m = peerMemo{v.result.Peering, c.Inventory, report.Peering(v.result.Peering, c, names)}
		r.peers[c.Name] = m
		for state, n := range map[string]int{
			"reachable": m.status.Counts.Reachable, "unreachable": m.status.Counts.Unreachable, "pending": m.status.Counts.Pending, "missing": m.status.Counts.Missing,
		} {
			r.metrics.peers.WithLabelValues(string(c.Name), state).Set(float64(n))
		}
	}
	return &m.status
}

func (r *reporter) forgetPeers(c mesh.ClusterName) {
	delete(r.peers, c)
	r.metrics.peers.DeletePartialMatch(prometheus.Labels{"cluster": string(c)})
}
