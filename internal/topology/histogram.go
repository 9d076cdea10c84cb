package topology

// NumBuckets is the number of buckets of a latency histogram.
const NumBuckets = 14

// Bounds are the upper bounds of all buckets but the last, in milliseconds: Istio's own up to 10 s, so that nothing is re-bucketed on the way.
func Bounds() [NumBuckets - 1]float64 {
	return [...]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000}
}

// BucketOf is the index of the bucket in which a duration in milliseconds falls.
func BucketOf(ms float64) int {
	for i, b := range Bounds() {
		if ms <= b {
			return i
		}
	}
	return NumBuckets - 1
}

// Histogram counts requests per bucket (not cumulatively), with the sum of their durations in milliseconds.
type Histogram struct {
	Buckets [NumBuckets]float64
	Sum     float64
}

// Count is the number of requests.
func (h *Histogram) Count() float64 {
	n := 0.0
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// Add adds o to h.
func (h *Histogram) Add(o *Histogram) {
	for i, b := range o.Buckets {
		h.Buckets[i] += b
	}
	h.Sum += o.Sum
}

// Separate turns cumulative buckets, as Prometheus counts, into counts of each. Bounds that the source did not have are empty.
func (h *Histogram) Separate() {
	below := 0.0
	for i, n := range h.Buckets {
		h.Buckets[i] = max(0, n-below)
		below = max(below, n)
	}
}

// Quantile interpolates linearly within the bucket, as Prometheus does, and says which bucket that is. ok is false for an empty histogram.
func (h *Histogram) Quantile(q float64) (out Quantile, ok bool) {
	total := h.Count()
	if total <= 0 {
		return out, false
	}
	rank, seen := q*total, 0.0
	for i, n := range h.Buckets {
		if n == 0 || seen+n < rank {
			seen += n
			continue
		}
		out = bucket(i)
		if out.High > 0 {
			out.Value = out.Low + (out.High-out.Low)*(rank-seen)/n
		}
		return out, true
	}
	// Rounding left rank above what was seen: the last bucket that holds anything.
	for i := NumBuckets - 1; i >= 0; i-- {
		if h.Buckets[i] > 0 {
			out = bucket(i)
			out.Value = max(out.Low, out.High)
			return out, true
		}
	}
	return out, false
}

// bucket is the bounds of a bucket, with the lower one as value.
func bucket(i int) (q Quantile) {
	below := 0.0
	for j, b := range Bounds() {
		if j == i {
			return Quantile{Value: below, Low: below, High: b}
		}
		below = b
	}
	return Quantile{Value: below, Low: below}
}

// latency describes h as seen by one reporter; nil for an empty one.
func (h *Histogram) latency(src Source, shared int) *Latency {
	p50, ok := h.Quantile(0.50)
	if !ok {
		return nil
	}
	p95, _ := h.Quantile(0.95)
	p99, _ := h.Quantile(0.99)
	return &Latency{P50: p50, P95: p95, P99: p99, Mean: h.Sum / h.Count(), Buckets: h.Buckets, By: src.By, Cluster: src.Cluster, Shared: shared}
}
