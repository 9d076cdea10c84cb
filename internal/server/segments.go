package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/translate"
)

// segments is what was decided about Segments last, and what of it the clusters are told.
type segments struct {
	plan  translate.SegmentPlan
	items map[mesh.ClusterName][]byte // orders
}

// decideSegments decides anew. A cluster that has nothing to do with any Segment, and never had, is told nothing. What was told stays while nothing may go out.
func (l *loop) decideSegments(snap *mesh.Snapshot, w translate.Warmth) error {
	if !w.Add {
		return nil
	}
	next := segments{plan: translate.Segments(snap), items: make(map[mesh.ClusterName][]byte, len(l.segments.items))}
	for c, o := range next.plan.Orders {
		m := snap.Cluster(c)
		if _, told := l.segments.items[c]; !told && len(o.Services)+len(o.Hosts) == 0 && m.Inventory.Segments == nil {
			continue
		}
		o.Complete = w.Remove
		raw, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("cluster %q: encode the order about Segments: %w", c, err)
		}
		next.items[c] = raw
	}
	for c, raw := range l.segments.items { // of a cluster that is not known at present
		if _, decided := next.items[c]; !decided && snap.Cluster(c) != nil {
			next.items[c] = raw
		}
	}
	l.segments = next
	return nil
}

// more is what a cluster is told beside objects and trust.
func (l *loop) more(c mesh.ClusterName) map[mesh.ItemKey][]byte {
	items := l.tokens.Items(c)
	order, ok := l.segments.items[c]
	if !ok {
		return items
	}
	out := make(map[mesh.ItemKey][]byte, len(items)+1)
	maps.Copy(out, items)
	out[mesh.ItemKey{Type: mesh.ItemSegments, Name: mesh.ItemSegments}] = order
	return out
}

// fingerprints name the orders.
func (s *segments) fingerprints() map[mesh.ClusterName]mesh.Fingerprint {
	out := make(map[mesh.ClusterName]mesh.Fingerprint, len(s.items))
	for c, raw := range s.items {
		out[c] = mesh.FingerprintOf(raw)
	}
	return out
}

// reportSegments writes the statuses of Segments: few, so all are looked at.
func (r *reporter) reportSegments(ctx context.Context, v *view) error {
	if !v.warm {
		return nil
	}
	orders := v.segments.fingerprints()
	for _, seg := range v.snapshot.Segments {
		o, ok := r.state.Object(seg.Source).(*networkingv2alpha1.Segment)
		if !ok || string(o.UID) != seg.UID {
			continue
		}
		rep, ok := v.segments.plan.Reports[seg.Source]
		if !ok {
			continue
		}
		next := report.NextSegment(r.segments.Last(o, o.Status), seg, &rep, translate.SegmentStatus(v.snapshot, &rep, orders), v.at)
		if err := r.wrote(r.segments.Write(ctx, o, o.Status, next)); err != nil {
			return err
		}
	}
	return nil
}
