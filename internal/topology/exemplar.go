package topology

import "slices"

// examples are the last traces that passed over an edge, per bucket of duration, so that a slow bucket keeps its examples however many fast ones pass.
type examples struct {
	byBucket [NumBuckets][]Exemplar
}

// AddExemplar remembers a trace for an edge: the last three per bucket. Unknown edges are remembered too, under the cluster of their called end.
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
	x.byBucket[e.Bucket] = append(b, e)
	t.frame = nil
}

func (t *Table) exemplars(k Key) []Exemplar {
	c := t.clusters[k.To.Cluster]
	if c == nil || c.examples[k] == nil {
		return nil
	}
	var out []Exemplar
	for _, b := range slices.Backward(c.examples[k].byBucket[:]) {
		for _, e := range slices.Backward(b) {
			out = append(out, e)
		}
	}
	return out
}
