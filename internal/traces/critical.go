package traces

import (
	"cmp"
	"slices"
	"time"
)

// critical walks back from the end of the longest root: at every moment the trace waited for the child that ended last, or, where none ran, for the span
// itself. The sum of all segments is that root's duration.
func (a *assembler) critical() {
	spans := a.trace.Spans
	children := make([][]int, len(spans))
	root := -1
	for i := range spans {
		if p := spans[i].ParentIndex; p >= 0 {
			children[p] = append(children[p], i)
		} else if root < 0 || spans[i].Duration > spans[root].Duration {
			root = i
		}
	}
	if root < 0 {
		return
	}
	for i := range children {
		// The one that ended last comes first.
		slices.SortFunc(children[i], func(x, y int) int {
			return cmp.Or(cmp.Compare(spans[y].At+spans[y].Duration, spans[x].At+spans[x].Duration), cmp.Compare(x, y))
		})
	}
	type work struct {
		span   int
		begin  time.Duration
		cursor time.Duration // up to here the path is known, going back
		next   int           // child to look at
	}
	emit := func(span int, from, to time.Duration) {
		if to > from {
			a.trace.Critical = append(a.trace.Critical, Segment{span, from, to})
			spans[span].Critical += to - from
		}
	}
	stack := []work{{span: root, begin: spans[root].At, cursor: spans[root].At + spans[root].Duration}}
	for len(stack) > 0 {
		w := &stack[len(stack)-1]
		begin := w.begin
		if w.next == len(children[w.span]) {
			emit(w.span, begin, w.cursor)
			stack = stack[:len(stack)-1]
			continue
		}
		c := children[w.span][w.next]
		w.next++
		from, to := max(spans[c].At, begin), min(spans[c].At+spans[c].Duration, w.cursor)
		if to <= from {
			continue
		}
		emit(w.span, to, w.cursor)
		w.cursor = from
		stack = append(stack, work{span: c, begin: from, cursor: to})
	}
	slices.SortFunc(a.trace.Critical, func(x, y Segment) int { return cmp.Compare(x.From, y.From) })
}
