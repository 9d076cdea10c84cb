package topology

import (
	"time"
)

// spanLatency is what spans of applications say of one edge: durations only. Spans are sampled, so they say nothing of rates.
type spanLatency struct {
	slots [histSlots]spanSlot
}

type spanSlot struct {
	minute         int64
	client, server Histogram
	failed         float64
	at             time.Time
}

// maxSpanEdges bounds the edges that spans may speak of: their names are the applications' own.
const maxSpanEdges = 50_000

// SpanPair is a call as spans of both its ends saw it: what the client waited, what the server took, and whether either says that it failed.
type SpanPair struct {
	Client, Server time.Duration
	Failed         bool
}

// AddSpanPair takes one call. It makes no edge: one that no proxy reports is not
// shown. Where a waypoint or gateway measures an edge, that counts.
func (t *Table) AddSpanPair(k Key, at time.Time, p SpanPair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.spans[k]
	if x == nil {
		if len(t.spans) >= maxSpanEdges {
			clear(t.spans)
		}
		x = &spanLatency{}
		t.spans[k] = x
	}
	minute := at.Unix() / 60
	s := &x.slots[minute%histSlots]
	if s.minute != minute {
		*s = spanSlot{minute: minute}
	}
	s.at = at
	s.client.observe(ms(p.Client))
	s.server.observe(ms(p.Server))
	if p.Failed {
		s.failed++
	}
}

func (h *Histogram) observe(milliseconds float64) {
	h.Buckets[BucketOf(milliseconds)]++
	h.Sum += milliseconds
}

// addSpans fills in the latency that no proxy measured. now is the time of the frame.
func (t *Table) addSpans(e *Edge, now time.Time) {
	x := t.spans[e.Key]
	if x == nil {
		return
	}
	var client, server Histogram
	var at time.Time
	failed := 0.0
	for i := range x.slots {
		if s := &x.slots[i]; s.minute > now.Unix()/60-histSlots {
			client.Add(&s.client)
			server.Add(&s.server)
			failed += s.failed
			at = latest(at, s.at)
		}
	}
	if at.IsZero() {
		return
	}
	share := failed / client.Count()
	e.SpanErrors = &share
	if e.Server == nil {
		e.Server = server.latency(Source{By: BySpans, Cluster: e.To.Cluster}, 0)
	}
	if e.Client == nil {
		e.Client = client.latency(Source{By: BySpans, Cluster: e.From.Cluster}, 0)
	}
	e.Sources = addSource(e.Sources, Source{By: BySpans, Cluster: e.To.Cluster, At: at})
}
