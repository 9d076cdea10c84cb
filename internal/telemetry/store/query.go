package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"

	"ambitmesh.dev/ambit/internal/topology"
)

// ErrBadQuery is the error of an expression that can't be parsed, or of a range without sense.
var ErrBadQuery = errors.New("bad query")

// maxSteps is how many points a range query may have per series, as in Prometheus.
const maxSteps = 11_000

// Result is the `data` of Prometheus' query API: encoding/json writes it as Grafana reads it.
type Result struct {
	Type  parser.ValueType `json:"resultType"` // "vector", "matrix", "scalar", "string"
	Value parser.Value     `json:"result"`
	// Warnings stand beside data in the API.
	Warnings []string `json:"-"`
}

// Query evaluates an expression at a time: GET /api/v1/query. Errors wrap ErrBadQuery where the asker is to blame.
func (s *Store) Query(ctx context.Context, expr string, at time.Time) (*Result, error) {
	q, err := s.engine.NewInstantQuery(ctx, s.db, nil, expr, at)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadQuery, err)
	}
	return s.exec(ctx, q, expr)
}

// QueryRange evaluates an expression at each step: GET /api/v1/query_range.
func (s *Store) QueryRange(ctx context.Context, expr string, from, to time.Time, step time.Duration) (*Result, error) {
	switch {
	case step <= 0:
		return nil, fmt.Errorf("%w: step %s: want more than 0", ErrBadQuery, step)
	case to.Before(from):
		return nil, fmt.Errorf("%w: ends at %s, before it begins at %s", ErrBadQuery, to, from)
	case to.Sub(from)/step > maxSteps:
		return nil, fmt.Errorf("%w: more than %d points per series: make the step larger", ErrBadQuery, maxSteps)
	}
	q, err := s.engine.NewRangeQuery(ctx, s.db, nil, expr, from, to, step)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadQuery, err)
	}
	return s.exec(ctx, q, expr)
}

// exec runs a query. What it gives back must be written before the next Close of the query would recycle it, so values are copied.
func (s *Store) exec(ctx context.Context, q promql.Query, expr string) (*Result, error) {
	defer q.Close()
	res := q.Exec(ctx)
	if res.Err != nil {
		return nil, fmt.Errorf("query %q: %w", expr, res.Err)
	}
	out := &Result{Type: res.Value.Type(), Value: res.Value}
	if m, ok := res.Value.(promql.Matrix); ok {
		own := make(promql.Matrix, len(m))
		for i, series := range m {
			series.Floats, series.Histograms = slices.Clone(series.Floats), slices.Clone(series.Histograms)
			own[i] = series
		}
		out.Value = own
	}
	warnings, infos := res.Warnings.AsStrings(expr, 10, 10)
	out.Warnings = append(warnings, infos...)
	return out, nil
}

// LabelNames lists names of labels: GET /api/v1/labels.
func (s *Store) LabelNames(ctx context.Context, from, to time.Time) ([]string, error) {
	q, err := s.db.Querier(from.UnixMilli(), to.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("telemetry store: %w", err)
	}
	defer q.Close() //nolint:errcheck // read only
	names, _, err := q.LabelNames(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("telemetry store: %w", err)
	}
	return names, nil
}

// LabelValues lists the values of a label: GET /api/v1/label/NAME/values.
func (s *Store) LabelValues(ctx context.Context, name string, from, to time.Time) ([]string, error) {
	q, err := s.db.Querier(from.UnixMilli(), to.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("telemetry store: %w", err)
	}
	defer q.Close() //nolint:errcheck // read only
	values, _, err := q.LabelValues(ctx, name, nil)
	if err != nil {
		return nil, fmt.Errorf("telemetry store: %w", err)
	}
	return values, nil
}

// Series lists the label sets that a selector matches: GET /api/v1/series. At most limit of them.
func (s *Store) Series(ctx context.Context, selector string, from, to time.Time, limit int) ([]map[string]string, error) {
	matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadQuery, err)
	}
	q, err := s.db.Querier(from.UnixMilli(), to.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("telemetry store: %w", err)
	}
	defer q.Close() //nolint:errcheck // read only
	set := q.Select(ctx, false, nil, matchers...)
	out := []map[string]string{}
	for set.Next() && len(out) < limit {
		out = append(out, set.At().Labels().Map())
	}
	if err := set.Err(); err != nil {
		return nil, fmt.Errorf("telemetry store: %w", err)
	}
	return out, nil
}

// Point is one moment of an edge. NaN is "not measured"; encoding/json can't write it, so a reader turns it into null.
type Point struct {
	At                     time.Time
	Rate, Errors           float64 // requests per second; share of them that failed, 0 to 1
	P50, P95, P99          float64 // milliseconds
	Opened, Failed, Denied float64 // connections per second
	SentBytes, Received    float64 // per second
}

// EdgeSeries is the history of one edge, or of a whole service, namespace or cluster where parts of k are empty. Of the reporters the server's side counts, or the
// client's where the server's is silent: never both. step must be at least topology.Interval.
func (s *Store) EdgeSeries(ctx context.Context, k topology.Key, from, to time.Time, step time.Duration) ([]Point, error) {
	step = max(step, topology.Interval)
	window := max(step, time.Minute)
	points := map[int64]*Point{}
	nan := math.NaN()
	at := func(t int64) *Point {
		p := points[t]
		if p == nil {
			p = &Point{At: time.UnixMilli(t).UTC(), Rate: nan, Errors: nan, P50: nan, P95: nan, P99: nan, Opened: nan, Failed: nan, Denied: nan, SentBytes: nan, Received: nan}
			points[t] = p
		}
		return p
	}
	server := selector(k, topology.ByWaypoint, topology.ByDestination)
	client := selector(k, topology.BySource)
	rate := func(metric, more, by string, sel string) string {
		return fmt.Sprintf("sum(rate(%s{reporter=%q%s%s}[%s]))", metric, by, sel, more, window)
	}
	first := func(metric, more string) string { // the first reporter that has it
		return rate(metric, more, "waypoint", server) + " or " + rate(metric, more, "destination", server) + " or " + rate(metric, more, "source", client)
	}
	failed := func(more string) string { // a call that was refused reaches no server
		return rate(MetricFailed, more, "source", client) + " or " + rate(MetricFailed, more, "destination", server) + " or " + rate(MetricFailed, more, "waypoint", server)
	}
	quantile := func(q float64) string {
		h := func(by, sel string) string {
			return fmt.Sprintf("histogram_quantile(%v, sum(rate(%s{reporter=%q%s}[%s])))", q, MetricDuration, by, sel, max(window, 5*time.Minute))
		}
		return h("waypoint", server) + " or " + h("destination", server) + " or " + h("source", client)
	}
	for _, x := range []struct {
		expr string
		set  func(p *Point, v float64)
	}{
		{first(MetricRequests, ""), func(p *Point, v float64) { p.Rate = v }},
		{first(MetricRequests, `,class=~"server_error|no_response"`), func(p *Point, v float64) { p.Errors = v }},
		{quantile(0.5), func(p *Point, v float64) { p.P50 = v }},
		{quantile(0.95), func(p *Point, v float64) { p.P95 = v }},
		{quantile(0.99), func(p *Point, v float64) { p.P99 = v }},
		{first(MetricOpened, ""), func(p *Point, v float64) { p.Opened = v }},
		{failed(""), func(p *Point, v float64) { p.Failed = v }},
		{failed(`,flag="DENY"`), func(p *Point, v float64) { p.Denied = v }},
		{first(MetricSent, ""), func(p *Point, v float64) { p.SentBytes = v }},
		{first(MetricReceived, ""), func(p *Point, v float64) { p.Received = v }},
	} {
		res, err := s.QueryRange(ctx, x.expr, from, to, step)
		if err != nil {
			return nil, err
		}
		m, ok := res.Value.(promql.Matrix)
		if !ok {
			continue
		}
		for _, series := range m {
			for _, f := range series.Floats {
				x.set(at(f.T), f.F)
			}
		}
	}
	out := make([]Point, 0, len(points))
	for _, p := range points {
		switch {
		case p.Rate > 0 && math.IsNaN(p.Errors):
			p.Errors = 0
		case p.Rate > 0:
			p.Errors /= p.Rate
		default:
			p.Errors = nan
		}
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Point) int { return a.At.Compare(b.At) })
	return out, nil
}

// selector gives matchers, each after a comma, for an edge by what each side knows: neither may name the other's cluster.
func selector(k topology.Key, by ...topology.Reporter) string {
	var parts []string
	add := func(label, value string) {
		if value != "" && value != topology.Unknown {
			parts = append(parts, fmt.Sprintf(",%s=%q", label, value))
		}
	}
	if slices.Contains(by, topology.BySource) {
		add("source_cluster", string(k.From.Cluster))
	} else {
		add("destination_cluster", string(k.To.Cluster))
		if c := string(k.From.Cluster); c != "" && c != topology.Unknown {
			parts = append(parts, fmt.Sprintf(",source_cluster=~%q", "|"+regexp.QuoteMeta(c)))
		}
	}
	add("source_namespace", k.From.Namespace)
	add("source_service", k.From.Service)
	add("destination_namespace", k.To.Namespace)
	add("destination_service", k.To.Service)
	return strings.Join(parts, "")
}
