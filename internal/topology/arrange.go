package topology

import (
	"cmp"
	"math"
	"slices"
)

// arrange puts nodes into columns: callers left of callees (longest path, back edges ignored), each column ordered by the barycentre of its neighbours.
// At most maxCols columns; deterministic for sorted nodes.
func arrange(nodes []Party, callees map[Party][]Party, maxCols int) [][]Party {
	layer := layersOf(nodes, callees)
	depth := 1
	for _, l := range layer {
		depth = max(depth, l+1)
	}
	columns := make([][]Party, depth)
	for _, n := range nodes {
		columns[layer[n]] = append(columns[layer[n]], n)
	}
	barycentre(columns, callees)
	return wrap(columns, len(nodes), maxCols)
}

// layersOf is the length of the longest way to each node that follows no back edge.
func layersOf(nodes []Party, callees map[Party][]Party) map[Party]int {
	const visiting, done = 1, 2
	state, layer := map[Party]int{}, map[Party]int{}
	var order []Party
	forward := map[Party][]Party{}
	var visit func(n Party)
	visit = func(n Party) {
		state[n] = visiting
		next := slices.Clone(callees[n])
		slices.SortFunc(next, compareParties)
		for _, c := range slices.Compact(next) {
			if state[c] == visiting {
				continue // a cycle: this edge will point backwards
			}
			forward[n] = append(forward[n], c)
			if state[c] == 0 {
				visit(c)
			}
		}
		state[n] = done
		order = append(order, n)
	}
	for _, n := range nodes {
		if state[n] == 0 {
			visit(n)
		}
	}
	for _, n := range slices.Backward(order) {
		for _, c := range forward[n] {
			layer[c] = max(layer[c], layer[n]+1)
		}
	}
	return layer
}

// barycentre orders each column by the mean place of its nodes' neighbours, sweeping right and left.
func barycentre(columns [][]Party, callees map[Party][]Party) {
	near := map[Party][]Party{}
	for _, c := range columns {
		for _, from := range c {
			near[from] = append(near[from], callees[from]...)
			for _, to := range callees[from] {
				near[to] = append(near[to], from)
			}
		}
	}
	place := map[Party]float64{}
	note := func(c []Party) {
		for i, n := range c {
			place[n] = (float64(i) + 0.5) / float64(len(c))
		}
	}
	for _, c := range columns {
		note(c)
	}
	want := map[Party]float64{}
	for sweep := range sweeps {
		for i := range columns {
			if sweep%2 == 1 {
				i = len(columns) - 1 - i
			}
			for _, n := range columns[i] {
				want[n] = place[n]
				if len(near[n]) > 0 {
					sum := 0.0
					for _, o := range near[n] {
						sum += place[o]
					}
					want[n] = sum / float64(len(near[n]))
				}
			}
			slices.SortStableFunc(columns[i], func(a, b Party) int { return cmp.Or(cmp.Compare(want[a], want[b]), compareParties(a, b)) })
			note(columns[i])
		}
	}
}

// wrap breaks tall columns, and lays everything in rows when there would still be too many columns.
func wrap(columns [][]Party, n, maxCols int) [][]Party {
	tall := max(3, int(math.Ceil(math.Sqrt(float64(2*n)))))
	var out [][]Party
	for _, c := range columns {
		for part := range slices.Chunk(c, tall) {
			out = append(out, part)
		}
	}
	if len(out) <= maxCols {
		return out
	}
	all := slices.Concat(columns...)
	out = out[:0]
	for part := range slices.Chunk(all, (n+maxCols-1)/maxCols) {
		out = append(out, part)
	}
	return out
}

// placeNeighbourhood lays the nodes out in columns by their distance from the focus.
func placeNeighbourhood(v *View) {
	columns := map[int][]*Node{}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		columns[n.Hops] = append(columns[n.Hops], n)
	}
	y := map[Party]float64{}
	near := map[Party][]Party{}
	for i := range v.Edges {
		e := &v.Edges[i]
		near[e.From] = append(near[e.From], e.To)
		near[e.To] = append(near[e.To], e.From)
	}
	hops := make([]int, 0, len(columns))
	for h := range columns {
		hops = append(hops, h)
	}
	// From the focus outwards: each column is ordered by what it hangs on.
	slices.SortFunc(hops, func(a, b int) int { return cmp.Or(cmp.Compare(abs(a), abs(b)), cmp.Compare(a, b)) })
	for _, h := range hops {
		column := columns[h]
		want := map[*Node]float64{}
		for _, n := range column {
			sum, k := 0.0, 0
			for _, o := range near[n.Party] {
				if at, ok := y[o]; ok {
					sum, k = sum+at, k+1
				}
			}
			if k > 0 {
				want[n] = sum / float64(k)
			}
		}
		slices.SortStableFunc(column, func(a, b *Node) int { return cmp.Or(cmp.Compare(want[a], want[b]), compareParties(a.Party, b.Party)) })
		for i, n := range column {
			n.X, n.Y, n.W, n.H = float64(h)*(cellWidth+80), (float64(i)-float64(len(column)-1)/2)*cellHeight, NodeWidth, NodeHeight
			y[n.Party] = n.Y
		}
	}
}
