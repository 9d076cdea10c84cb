package traces

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// maxMove is how far a span may be moved into its parent on top of its cluster's shift; a greater distance is told, not mended.
const maxMove = time.Second

// Assemble joins spans of one trace, in any order and with repetitions, as they came from several clusters. nil for none.
func Assemble(id TraceID, spans []Span, o Options) *Trace {
	a := assembler{options: o, trace: &Trace{ID: id, Raw: o.Raw}, index: map[SpanID]int{}}
	a.take(spans)
	if len(a.nodes) == 0 {
		return nil
	}
	a.shift()
	a.link()
	a.flatten()
	a.transits()
	a.critical()
	a.notes()
	return a.trace
}

type node struct {
	Placed
	start    time.Time // adjusted
	children []int
	parent   int
}

func (n *node) end() time.Time { return n.start.Add(n.Duration) }

type assembler struct {
	options Options
	trace   *Trace
	nodes   []node
	index   map[SpanID]int
	roots   []int
	moved   int
	missing int
}

// take removes repetitions: what was replayed, or kept by two stores. The longer one stays, for a span may be sent again when it has ended.
func (a *assembler) take(spans []Span) {
	for _, s := range spans {
		if i, ok := a.index[s.ID]; ok {
			if s.Duration > a.nodes[i].Duration {
				a.nodes[i].Span = s
			}
			continue
		}
		if len(a.nodes) >= MaxSpans {
			a.trace.Truncated++
			continue
		}
		a.index[s.ID] = len(a.nodes)
		a.nodes = append(a.nodes, node{Placed: Placed{Span: s, ParentIndex: -1}, parent: -1})
	}
}

// shift puts all clusters on the server's clock: one constant shift per cluster, from its heartbeats.
func (a *assembler) shift() {
	parts := map[mesh.ClusterName]*ClusterPart{}
	for i := range a.nodes {
		n := &a.nodes[i]
		p := parts[n.Cluster]
		if p == nil {
			p = &ClusterPart{Clock: Clock{Cluster: n.Cluster}}
			if at := slices.IndexFunc(a.options.Clocks, func(c Clock) bool { return c.Cluster == n.Cluster }); at >= 0 {
				p.Clock = a.options.Clocks[at]
			}
			if p.Known && !a.options.Raw {
				p.Shifted = p.Offset
			}
			parts[n.Cluster] = p
		}
		p.Spans++
		n.Shift = p.Shifted
		n.start = n.Start.Add(n.Shift)
	}
	for _, p := range parts {
		a.trace.Clusters = append(a.trace.Clusters, *p)
	}
	slices.SortFunc(a.trace.Clusters, func(a, b ClusterPart) int { return cmp.Compare(a.Cluster, b.Cluster) })
}

// link finds parents. A span whose parents lead back to itself is taken as a root: IDs can repeat, and bytes can lie.
func (a *assembler) link() {
	for i := range a.nodes {
		n := &a.nodes[i]
		if n.Parent == (SpanID{}) {
			continue
		}
		p, ok := a.index[n.Parent]
		switch {
		case !ok:
			n.Missing = a.whyMissing(n)
			a.missing++
		case a.leadsTo(p, i):
			n.Warning = "its parents lead back to itself: shown as a root"
		default:
			n.parent = p
		}
	}
	for i := range a.nodes {
		if p := a.nodes[i].parent; p >= 0 {
			a.nodes[p].children = append(a.nodes[p].children, i)
		} else {
			a.roots = append(a.roots, i)
		}
	}
	if !a.options.Raw {
		for _, r := range a.roots {
			a.moveInto(r)
		}
	}
	byStart := func(x, y int) int {
		return cmp.Or(a.nodes[x].start.Compare(a.nodes[y].start), slices.Compare(a.nodes[x].ID[:], a.nodes[y].ID[:]))
	}
	for i := range a.nodes {
		slices.SortFunc(a.nodes[i].children, byStart)
	}
	slices.SortFunc(a.roots, byStart)
}

// leadsTo reports whether from's chain of parents, as far as it is linked, reaches to.
func (a *assembler) leadsTo(from, to int) bool {
	for at := from; at >= 0; at = a.nodes[at].parent {
		if at == to {
			return true
		}
	}
	return false
}

// moveInto mends what the constant shift leaves: where a call enters another process and the callee leaves its caller's span, the callee with all it caused
// in its cluster is centred in the caller, as Jaeger does, assuming that both ways take as long. Iterative: a trace may be a chain of 10,000.
func (a *assembler) moveInto(root int) {
	type visit struct {
		i     int
		moved time.Duration
	}
	stack := []visit{{root, 0}}
	for len(stack) > 0 {
		v := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		n := &a.nodes[v.i]
		n.Shift += v.moved
		n.start = n.start.Add(v.moved)
		for _, ci := range n.children {
			c := &a.nodes[ci]
			moved := time.Duration(0)
			if c.Cluster == n.Cluster {
				moved = v.moved
			}
			at := c.start.Add(moved)
			outside := at.Before(n.start) || at.Add(c.Duration).After(n.end())
			if outside && c.Cluster != n.Cluster && c.Duration <= n.Duration {
				delta := n.start.Add((n.Duration - c.Duration) / 2).Sub(at)
				if delta.Abs() <= maxMove {
					moved += delta
					c.Warning = fmt.Sprintf("moved by %s into its caller's span: the clocks of %s and %s still differ by at least that", delta.Round(time.Microsecond), n.Cluster, c.Cluster)
					a.moved++
				} else {
					c.Warning = fmt.Sprintf("outside its caller's span by more than %s: not moved", maxMove)
				}
			}
			stack = append(stack, visit{ci, moved})
		}
	}
}

// settled is how old a trace is when all that comes has come: exporters hold spans for seconds, agents for two more.
const settled = 30 * time.Second

// whyMissing explains a parent that is not there.
func (a *assembler) whyMissing(n *node) string {
	if now := a.options.Now; !now.IsZero() && now.Sub(n.end()) < settled {
		return "parent not received yet: the trace is of a moment ago"
	}
	var gaps []string
	for _, g := range a.options.Gaps {
		if g.From.Before(n.start.Add(n.Duration)) && (g.To.IsZero() || g.To.After(n.start)) {
			until := "now"
			if !g.To.IsZero() {
				until = g.To.UTC().Format("15:04:05")
			}
			gaps = append(gaps, fmt.Sprintf("%s's agent offline %s-%s", g.Cluster, g.From.UTC().Format("15:04:05"), until))
		}
	}
	for _, c := range a.options.Unanswered {
		gaps = append(gaps, fmt.Sprintf("%s did not answer", c))
	}
	if len(gaps) > 0 {
		return "parent not received (" + strings.Join(gaps, ", ") + ")"
	}
	return "parent not received: it was not sampled, not sent, or its process does not export spans"
}

// flatten writes the spans depth first and gives every one its final index.
func (a *assembler) flatten() {
	var begin, end time.Time
	for i := range a.nodes {
		n := &a.nodes[i]
		if begin.IsZero() || n.start.Before(begin) {
			begin = n.start
		}
		if n.end().After(end) {
			end = n.end()
		}
	}
	a.trace.Start, a.trace.Duration = begin, end.Sub(begin)
	at := make([]int, len(a.nodes)) // final index of a node
	var stack []int
	for _, r := range slices.Backward(a.roots) {
		stack = append(stack, r)
	}
	a.trace.Spans = make([]Placed, 0, len(a.nodes))
	for len(stack) > 0 {
		i := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		n := &a.nodes[i]
		n.At = n.start.Sub(begin)
		n.Children = len(n.children)
		if n.parent >= 0 {
			n.ParentIndex = at[n.parent]
			n.Depth = a.nodes[n.parent].Depth + 1
		}
		at[i] = len(a.trace.Spans)
		a.trace.Spans = append(a.trace.Spans, n.Placed)
		if n.Error {
			a.trace.Errors++
		}
		for _, c := range slices.Backward(n.children) {
			stack = append(stack, c)
		}
	}
}

// transits finds where a call left one process and entered another, and what lies between them that nobody measured.
func (a *assembler) transits() {
	spans := a.trace.Spans
	for i := range spans {
		c := &spans[i]
		if c.ParentIndex < 0 || c.Kind != Server && c.Kind != Consumer {
			continue
		}
		p := &spans[c.ParentIndex]
		if p.Service == c.Service && p.Cluster == c.Cluster && p.Namespace == c.Namespace {
			continue
		}
		t := Transit{Parent: c.ParentIndex, Child: i, Out: max(0, c.At-p.At), Back: max(0, p.At+p.Duration-c.At-c.Duration), Path: "ztunnel -> ztunnel"}
		if p.Cluster != c.Cluster {
			t.Path = fmt.Sprintf("ztunnel -> east-west gateway of %s -> ztunnel", c.Cluster)
			if a.options.RTT != nil {
				if rtt, ok := a.options.RTT(p.Cluster, c.Cluster); ok {
					t.RTT = &rtt
				}
			}
		}
		a.trace.Transits = append(a.trace.Transits, t)
	}
}

func (a *assembler) notes() {
	note := func(format string, args ...any) { a.trace.Notes = append(a.trace.Notes, fmt.Sprintf(format, args...)) }
	for _, c := range a.trace.Clusters {
		switch {
		case c.Shifted.Abs() >= time.Millisecond:
			note("%s shifted by %s, give or take %s: its clock differs from the server's", c.Cluster, c.Shifted.Round(time.Millisecond), c.Error.Round(time.Millisecond))
		case !c.Known && len(a.trace.Clusters) > 1:
			note("%s's clock is not known: its spans stand as they came", c.Cluster)
		}
	}
	if a.moved > 0 {
		note("%d spans were moved into their callers' spans beyond that", a.moved)
	}
	if a.missing > 0 {
		note("%d spans name a parent that was not received", a.missing)
	}
	for _, c := range a.options.Unanswered {
		note("%s did not answer: its spans may be missing", c)
	}
	if a.trace.Truncated > 0 {
		note("%d spans beyond the first %d are not shown", a.trace.Truncated, MaxSpans)
	}
}
