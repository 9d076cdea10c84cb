package server

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/tokens"
)

// tokensShare is how many times as long as a decision took the next one waits: it costs as much as there are pairs, and others wait for the round.
const tokensShare = 10

// decideTokens decides who holds tokens for whom, when there is news.
func (l *loop) decideTokens(snap *mesh.Snapshot, now time.Time) error {
	if l.cfg.RemoteSecrets.Off || !l.tokens.Due(now, lookEvery) && l.tokenMembers == len(l.known) || now.Before(l.tokensNext) {
		return nil
	}
	l.tokenMembers = len(l.known)
	defer func() { l.tokensNext = now.Add(tokensShare * time.Since(now)) }()
	seen := sessions(l.hub)
	members := make([]tokens.Member, 0, len(snap.Clusters))
	for i := range snap.Clusters {
		c := &snap.Clusters[i]
		m := tokens.Member{Cluster: c.Name, Registration: c.SourceUID, Connected: seen[c.Name].Connected}
		if c.Inventory != nil {
			m.IstioID = c.Inventory.Info.IstioClusterID
		}
		members = append(members, m)
	}
	return l.tokens.Decide(members, l.tokenPairs(snap), now)
}

// tokenPairs are those of the clusters that run istiod. One that is not known, or that takes part already, is not left out because no istiod is seen at present: that would be an outage.
func (l *loop) tokenPairs(snap *mesh.Snapshot) map[tokens.Pair]bool {
	var in []mesh.ClusterName
	for i := range snap.Clusters {
		c := &snap.Clusters[i]
		r := l.tokens.Report(c.Name)
		takesPart := r != nil && len(r.Minted)+len(r.Held) > 0
		if c.Peering.Off {
			continue // somebody wants it to take no part
		}
		if c.Inventory == nil || !c.Inventory.Complete || c.Inventory.Info.IstioVersion != "" || takesPart {
			in = append(in, c.Name)
		}
	}
	out := make(map[tokens.Pair]bool, len(in)*len(in))
	for _, a := range in {
		for _, b := range in {
			if a != b {
				out[tokens.Pair{Reader: a, Target: b}] = true
			}
		}
	}
	return out
}

// tokenCollector shows, for each cluster whose istiods read others, how old its oldest token is, when the first one ends, and how many are not in use yet: three series a cluster, however
// many pairs there are.
type tokenCollector struct{ board *tokens.Board }

// Describe implements prometheus.Collector.
func (c tokenCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs() {
		ch <- d
	}
}

func (c tokenCollector) descs() [3]*prometheus.Desc {
	return [3]*prometheus.Desc{
		prometheus.NewDesc("gloo_mesh_remote_token_age_seconds", "Age of the oldest token in a remote secret of the cluster.", []string{"cluster"}, nil),
		prometheus.NewDesc("gloo_mesh_remote_token_expiry_timestamp_seconds", "When the first token in a remote secret of the cluster ends (Unix time).", []string{"cluster"}, nil),
		prometheus.NewDesc("gloo_mesh_remote_tokens", "Remote secrets of the cluster by state.", []string{"cluster", "state"}, nil),
	}
}

// Collect implements prometheus.Collector.
func (c tokenCollector) Collect(ch chan<- prometheus.Metric) {
	type sum struct {
		oldest, soonest time.Time
		states          map[tokens.State]int
	}
	all := map[mesh.ClusterName]*sum{}
	for _, p := range c.board.Pairs() {
		s := all[p.Reader]
		if s == nil {
			s = &sum{states: map[tokens.State]int{tokens.Synced: 0, tokens.Rotating: 0, tokens.Pending: 0, tokens.Expired: 0, tokens.HandMade: 0}}
			all[p.Reader] = s
		}
		s.states[p.State]++
		if p.Issued.IsZero() {
			continue
		}
		if s.oldest.IsZero() || p.Issued.Before(s.oldest) {
			s.oldest = p.Issued
		}
		if s.soonest.IsZero() || p.Expires.Before(s.soonest) {
			s.soonest = p.Expires
		}
	}
	d := c.descs()
	for name, s := range all {
		for _, state := range slices.Sorted(maps.Keys(s.states)) {
			ch <- prometheus.MustNewConstMetric(d[2], prometheus.GaugeValue, float64(s.states[state]), string(name), string(state))
		}
		if s.oldest.IsZero() {
			continue
		}
		ch <- prometheus.MustNewConstMetric(d[0], prometheus.GaugeValue, time.Since(s.oldest).Seconds(), string(name))
		ch <- prometheus.MustNewConstMetric(d[1], prometheus.GaugeValue, float64(s.soonest.Unix()), string(name))
	}
}
