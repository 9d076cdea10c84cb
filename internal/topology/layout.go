package topology

import (
	"cmp"
	"math"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Sizes of a picture, in its own units; a browser scales them.
const (
	NodeWidth  = 160.0
	NodeHeight = 44.0
	cellWidth  = NodeWidth + 56
	cellHeight = NodeHeight + 28
	blockPad   = 28.0 // frame and title of a namespace
	regionPad  = 40.0 // frame and title of a cluster
	regionGap  = 160.0
	aspect     = 1.6 // of the whole picture
	sweeps     = 6
)

// layouts hold a position for every party ever drawn. What has one keeps it: a new service takes a free cell of its namespace, a namespace that is full
// gets another block below, a new cluster stands to the right. So pictures of different people, times and filters can be laid over each other.
type layouts struct {
	version uint64
	byLevel map[Level]*plan
}

// plan is the layout of one level: clusters (regions) side by side, each a column of shelves with blocks, each a grid of cells.
type plan struct {
	level   Level
	at      map[Party]point
	blocks  map[Party][]*block
	regions map[mesh.ClusterName]*region
	right   float64
}

type point struct{ X, Y float64 }

type block struct {
	x, y       float64
	cols, rows int
	used       []bool
}

type region struct {
	x, w, h     float64
	shelfX      float64
	shelfY      float64
	shelfHeight float64
}

func newLayouts() layouts {
	l := layouts{version: 1, byLevel: map[Level]*plan{}}
	for _, level := range []Level{LevelNamespace, LevelService} {
		l.byLevel[level] = &plan{level: level, at: map[Party]point{}, blocks: map[Party][]*block{}, regions: map[mesh.ClusterName]*region{}}
	}
	l.byLevel[LevelCluster] = &plan{level: LevelCluster, at: map[Party]point{}}
	return l
}

// Relayout forgets all positions: the next view is laid out from scratch. For a person who asks for it, never by itself.
func (t *Table) Relayout() {
	t.mu.Lock()
	defer t.mu.Unlock()
	version := t.layouts.version
	t.layouts = newLayouts()
	t.layouts.version = version + 1
	t.touch()
}

// learn gives a position to every end of rows, and to every cluster, that has none.
func (l *layouts) learn(rows []Edge, clusters []ClusterState) {
	for _, p := range l.byLevel {
		if p.level == LevelCluster {
			for i := range rows {
				p.spiral(Party{Cluster: rows[i].From.Cluster})
				p.spiral(Party{Cluster: rows[i].To.Cluster})
			}
			for _, c := range clusters {
				p.spiral(Party{Cluster: c.Name})
			}
			continue
		}
		p.learn(rows)
	}
}

// spiral puts clusters on a sunflower: adding one moves none, and no three stand in line, so that edges don't hide behind boxes.
func (p *plan) spiral(c Party) {
	if _, ok := p.at[c]; ok {
		return
	}
	const golden = math.Pi * 0.7639320225002103 // pi * (3 - sqrt 5)
	i := float64(len(p.at))
	r := 1.5 * cellWidth * math.Sqrt(i)
	p.at[c] = point{r * math.Cos(golden*i), 0.7 * r * math.Sin(golden*i)}
}

func (p *plan) blockOf(n Party) Party {
	if p.level == LevelNamespace {
		return n.At(LevelCluster)
	}
	return n.At(LevelNamespace)
}

func (p *plan) learn(rows []Edge) {
	fresh := map[Party][]Party{} // by block
	seen := map[Party]bool{}
	for i := range rows {
		for _, n := range [2]Party{rows[i].From.At(p.level), rows[i].To.At(p.level)} {
			if _, placed := p.at[n]; placed || seen[n] {
				continue
			}
			seen[n] = true
			fresh[p.blockOf(n)] = append(fresh[p.blockOf(n)], n)
		}
	}
	if len(fresh) == 0 {
		return
	}
	callees := map[Party][]Party{}
	for i := range rows {
		from, to := rows[i].From.At(p.level), rows[i].To.At(p.level)
		if from != to && seen[from] && seen[to] && p.blockOf(from) == p.blockOf(to) {
			callees[from] = append(callees[from], to)
		}
	}
	p.openRegions(fresh)
	blocks := make([]Party, 0, len(fresh))
	for b := range fresh {
		blocks = append(blocks, b)
	}
	slices.SortFunc(blocks, compareParties)
	for _, b := range blocks {
		slices.SortFunc(fresh[b], compareParties)
		p.fill(b, fresh[b], callees)
	}
}

// openRegions makes room for clusters that are new: each as wide as its share of a picture of the wanted proportions.
func (p *plan) openRegions(fresh map[Party][]Party) {
	count := map[mesh.ClusterName]int{}
	for b, nodes := range fresh {
		if p.regions[b.Cluster] == nil {
			count[b.Cluster] += len(nodes) + 2 // a block is never quite full
		}
	}
	names := make([]mesh.ClusterName, 0, len(count))
	for c := range count {
		names = append(names, c)
	}
	slices.SortFunc(names, func(a, b mesh.ClusterName) int {
		// Ends that are no cluster stand last.
		return cmp.Or(cmp.Compare(odd(a), odd(b)), cmp.Compare(a, b))
	})
	for _, c := range names {
		area := float64(count[c]) * 1.5 * cellWidth * cellHeight
		w := math.Sqrt(area * aspect / float64(len(names)))
		w = math.Max(2, math.Ceil(w/cellWidth))*cellWidth + 2*blockPad
		p.regions[c] = &region{x: p.right, w: w, shelfY: regionPad}
		p.right += w + regionGap
	}
}

func odd(c mesh.ClusterName) int {
	if c == Unknown || c == External {
		return 1
	}
	return 0
}

// fill places new nodes of one block: into free cells of what there is, then into a new block.
func (p *plan) fill(key Party, nodes []Party, callees map[Party][]Party) {
	for _, b := range p.blocks[key] {
		for i := range b.used {
			if len(nodes) == 0 {
				return
			}
			if !b.used[i] {
				p.put(b, i, nodes[0])
				nodes = nodes[1:]
			}
		}
	}
	if len(nodes) == 0 {
		return
	}
	r := p.regions[key.Cluster]
	maxCols := max(1, int((r.w-2*blockPad)/cellWidth))
	columns := arrange(nodes, callees, maxCols)
	b := &block{cols: len(columns)}
	for _, c := range columns {
		b.rows = max(b.rows, len(c))
	}
	b.rows++ // room for those to come
	b.used = make([]bool, b.cols*b.rows)
	b.x, b.y = r.take(float64(b.cols)*cellWidth+2*blockPad, float64(b.rows)*cellHeight+2*blockPad)
	p.blocks[key] = append(p.blocks[key], b)
	for col, list := range columns {
		top := (b.rows - 1 - len(list)) / 2
		for row, n := range list {
			p.put(b, col*b.rows+top+row, n)
		}
	}
}

// take finds room on the current shelf, or opens the next one below.
func (r *region) take(w, h float64) (x, y float64) {
	if r.shelfX > 0 && r.shelfX+w > r.w {
		r.shelfY += r.shelfHeight + blockPad/2
		r.shelfX, r.shelfHeight = 0, 0
	}
	x, y = r.x+r.shelfX, r.shelfY
	r.shelfX += w + blockPad/2
	r.shelfHeight = math.Max(r.shelfHeight, h)
	r.h = r.shelfY + r.shelfHeight + blockPad
	return x, y
}

func (p *plan) put(b *block, i int, n Party) {
	b.used[i] = true
	col, row := i/b.rows, i%b.rows
	p.at[n] = point{b.x + blockPad + (float64(col)+0.5)*cellWidth, b.y + blockPad + (float64(row)+0.5)*cellHeight}
}

// place copies positions into a view. A neighbourhood has its own: callers to the left, callees to the right.
func (l *layouts) place(v *View, q Query) {
	v.Layout = l.version
	if q.Level == LevelNeighbourhood {
		placeNeighbourhood(v)
		return
	}
	p := l.byLevel[q.Level]
	blocks := map[Party]bool{}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		at := p.at[n.Party]
		n.X, n.Y, n.W, n.H = at.X, at.Y, NodeWidth, NodeHeight
		if p.blocks != nil {
			blocks[p.blockOf(n.Party)] = true
			blocks[n.At(LevelCluster)] = true
		}
	}
	for b := range blocks {
		if r := p.regions[b.Cluster]; r != nil && b.Namespace == "" {
			v.Boxes = append(v.Boxes, Box{Party: b, X: r.x - blockPad, Y: 0, W: r.w + 2*blockPad, H: r.h})
			continue
		}
		for _, k := range p.blocks[b] {
			v.Boxes = append(v.Boxes, Box{Party: b, X: k.x, Y: k.y, W: float64(k.cols)*cellWidth + 2*blockPad, H: float64(k.rows)*cellHeight + 2*blockPad})
		}
	}
	slices.SortFunc(v.Boxes, func(a, b Box) int {
		return cmp.Or(compareParties(a.Party, b.Party), cmp.Compare(a.Y, b.Y), cmp.Compare(a.X, b.X))
	})
}
