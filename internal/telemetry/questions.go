package telemetry

import (
	"cmp"
	"context"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/telemetry/store"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/traces"
)

// maxGaps is how many absences of agents are remembered to explain what is missing in traces.
const maxGaps = 1000

// watchSessions remembers clocks and absences.
func (t *Telemetry) watchSessions(ctx context.Context) {
	if t.cfg.Sessions == nil {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.note(t.cfg.Sessions())
		}
	}
}

// note takes what the relay says of its sessions.
func (t *Telemetry) note(sessions []relay.SessionInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range sessions {
		t.agents[s.Cluster] = s
		if s.RTT > 0 {
			t.clocks[s.Cluster] = traces.Clock{Cluster: s.Cluster, Offset: s.Offset, Error: s.RTT / 2, Known: true}
		}
		i := slices.IndexFunc(t.gaps, func(g traces.Gap) bool { return g.Cluster == s.Cluster && g.To.IsZero() })
		switch {
		case !s.Connected && i < 0:
			t.gaps = append(t.gaps, traces.Gap{Cluster: s.Cluster, From: s.Since})
		case s.Connected && i >= 0:
			t.gaps[i].To = s.Since
		}
	}
	if n := len(t.gaps) - maxGaps; n > 0 {
		t.gaps = slices.Delete(t.gaps, 0, n)
	}
}

// Trace joins a trace. raw leaves times as they came. Errors wrap traces.ErrNotFound and ErrNotKept.
func (t *Telemetry) Trace(ctx context.Context, id traces.TraceID, raw bool) (*traces.Trace, error) {
	s, err := t.open()
	if err != nil {
		return nil, err
	}
	spans, err := s.traces.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	o := traces.Options{Raw: raw, Now: now, RTT: t.rtt(now)}
	t.mu.Lock()
	for _, c := range t.clocks {
		o.Clocks = append(o.Clocks, c)
	}
	o.Gaps = slices.Clone(t.gaps)
	t.mu.Unlock()
	return traces.Assemble(id, spans, o), nil
}

// rtt looks up probed round trips.
func (t *Telemetry) rtt(now time.Time) func(from, to mesh.ClusterName) (time.Duration, bool) {
	links := t.table.Links(now)
	return func(from, to mesh.ClusterName) (time.Duration, bool) {
		for _, l := range links {
			if l.From == from && l.To == to && l.RTT != nil {
				return time.Duration(*l.RTT * float64(time.Millisecond)), true
			}
		}
		return 0, false
	}
}

// SearchTraces lists traces. Errors wrap ErrNotKept.
func (t *Telemetry) SearchTraces(ctx context.Context, q traces.Query) ([]traces.Summary, error) {
	s, err := t.open()
	if err != nil {
		return nil, err
	}
	return s.traces.Search(ctx, q)
}

// Coverage is what can and can not be seen.
type Coverage struct {
	At       time.Time         `json:"at"`
	Clusters []ClusterCoverage `json:"clusters"`
	// Kept is false with the reason in Why, where there is no history and no traces.
	Kept    bool         `json:"kept"`
	Why     string       `json:"why,omitempty"`
	Metrics store.Stats  `json:"metrics"`
	Traces  traces.Stats `json:"traces"`
	Dropped uint64       `json:"dropped"` // batches that the disk could not take in time
	Refused uint64       `json:"refused"` // batches that could not be read
}

// ClusterCoverage is one cluster's part.
type ClusterCoverage struct {
	topology.ClusterState
	Connected bool         `json:"connected"`
	Clock     traces.Clock `json:"clock"`
	L4Only    int          `json:"l4Only"`   // edges to its services without request latency
	Measured  int          `json:"measured"` // edges to its services with it
	// Missing are sentences: what is not seen, and what to do.
	Missing []string `json:"missing,omitempty"`
}

// Coverage tells what can and can not be seen.
func (t *Telemetry) Coverage(ctx context.Context) (Coverage, error) {
	now := time.Now()
	out := Coverage{At: now.UTC(), Dropped: t.dropped.Load(), Refused: t.bad.Load()}
	if s, err := t.open(); err != nil {
		out.Why = err.Error()
	} else {
		out.Kept = true
		out.Metrics = s.history.Stats()
		if out.Traces, err = s.traces.Stats(ctx); err != nil {
			out.Why = err.Error()
		}
	}
	v, err := t.table.Snapshot(topology.Query{Level: topology.LevelService}, now)
	if err != nil {
		return out, err
	}
	byName := map[mesh.ClusterName]*ClusterCoverage{}
	for _, c := range v.Clusters {
		byName[c.Name] = &ClusterCoverage{ClusterState: c}
	}
	for i := range v.Edges {
		e := &v.Edges[i]
		c := byName[e.To.Cluster]
		switch {
		case c == nil:
		case e.L4Only():
			c.L4Only++
		case e.Server != nil:
			c.Measured++
		}
	}
	t.mu.Lock()
	for name, s := range t.agents {
		c := byName[name]
		if c == nil {
			c = &ClusterCoverage{ClusterState: topology.ClusterState{Name: name, Stale: true}}
			byName[name] = c
		}
		c.Connected, c.Clock = s.Connected, t.clocks[name]
	}
	t.mu.Unlock()
	for _, c := range byName {
		c.Missing = c.missing()
		out.Clusters = append(out.Clusters, *c)
	}
	slices.SortFunc(out.Clusters, func(a, b ClusterCoverage) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (c *ClusterCoverage) missing() (out []string) {
	switch {
	case c.Reports == 0 && c.Connected:
		return []string{"connected, but has sent no telemetry: its agent is too old, or runs with --telemetry=false"}
	case c.Reports == 0:
		return []string{"has sent no telemetry since this server started: its agent is not connected"}
	case c.Stale:
		out = append(out, "no data since "+c.LastReport.UTC().Format(time.RFC3339))
	}
	seen := map[string]bool{}
	for _, s := range c.Scrapes {
		seen[s.Source] = true
		if s.Error != "" {
			out = append(out, s.Source+": "+s.Error)
		}
	}
	if !seen["ztunnel"] {
		out = append(out, "no ztunnel found: connections are not seen")
	}
	if !seen["waypoint"] {
		out = append(out, "no waypoint: no request latency; istioctl waypoint apply -n NAMESPACE --enroll-namespace")
	}
	for _, h := range c.Caps {
		out = append(out, "cap "+h.Cap+" was hit")
	}
	return out
}
