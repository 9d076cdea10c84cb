package topology

import "slices"

// examples are the last traces that passed over an edge, per bucket of duration, so that a slow bucket keeps its examples however many fast ones pass.
type examples struct {
	byBucket [NumBuckets][]Exemplar
}

// AddExemplar remembers a trace for an edge: the last three per bucket. Where the caller is not known, k.From is empty: it is then an example of all edges to k.To.
func (t *Table) AddExemplar(k Key, e Exemplar) {
	if e.Bucket < 0 || e.Bucket >= NumBuckets {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.clusters[k.To.Cluster]
	if c == nil {
		return
	}
	x := c.examples[k]
	if x == nil {
		if len(c.examples) >= maxPerCluster {
			return
		}
		x = &examples{}
		c.examples[k] = x
	}
	b := x.byBucket[e.Bucket]
	if slices.ContainsFunc(b, func(o Exemplar) bool { return o.TraceID == e.TraceID }) {
		return
	}
	if len(b) == maxExemplars {
		b = slices.Delete(b, 0, 1)
	}
	x.byBucket[e.Bucket] = append(b, e) // shown with the next report
}

// exemplars are those of the edge, and those of which only the called end is known, slowest buckets first.
func (t *Table) exemplars(k Key) []Exemplar {
	c := t.clusters[k.To.Cluster]
	if c == nil || len(c.examples) == 0 {
		return nil
	}
	var out []Exemplar
	for i := NumBuckets - 1; i >= 0; i-- {
		for _, x := range []*examples{c.examples[k], c.examples[Key{To: k.To}]} {
			if x != nil {
				for _, e := range slices.Backward(x.byBucket[i]) {
					out = append(out, e)
				}
			}
		}
	}
	return out
}
