package traces

import (
	"cmp"
	"math"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Comparison sets two traces side by side: what took longer, ran more often, failed, or is only in one of them.
type Comparison struct {
	A          TraceID       `json:"a"`
	B          TraceID       `json:"b"`
	DurationA  time.Duration `json:"durationA"`
	DurationB  time.Duration `json:"durationB"`
	Operations []OperationAB `json:"operations"` // the greatest difference on the critical path first
}

// OperationAB is one operation of one service in both traces.
type OperationAB struct {
	Cluster   mesh.ClusterName `json:"cluster"`
	Service   string           `json:"service"`
	Name      string           `json:"name"`
	CountA    int              `json:"countA"`
	CountB    int              `json:"countB"`
	TotalA    time.Duration    `json:"totalA"` // sum of durations
	TotalB    time.Duration    `json:"totalB"`
	CriticalA time.Duration    `json:"criticalA"` // of the critical path
	CriticalB time.Duration    `json:"criticalB"`
	ErrorsA   int              `json:"errorsA,omitempty"`
	ErrorsB   int              `json:"errorsB,omitempty"`
}

// Compare sets b beside a.
func Compare(a, b *Trace) *Comparison {
	type key struct {
		cluster       mesh.ClusterName
		service, name string
	}
	ops := map[key]*OperationAB{}
	get := func(p *Placed) *OperationAB {
		k := key{p.Cluster, p.Service, p.Name}
		if ops[k] == nil {
			ops[k] = &OperationAB{Cluster: p.Cluster, Service: p.Service, Name: p.Name}
		}
		return ops[k]
	}
	for i := range a.Spans {
		p := &a.Spans[i]
		o := get(p)
		o.CountA, o.TotalA, o.CriticalA, o.ErrorsA = o.CountA+1, o.TotalA+p.Duration, o.CriticalA+p.Critical, o.ErrorsA+one(p.Error)
	}
	for i := range b.Spans {
		p := &b.Spans[i]
		o := get(p)
		o.CountB, o.TotalB, o.CriticalB, o.ErrorsB = o.CountB+1, o.TotalB+p.Duration, o.CriticalB+p.Critical, o.ErrorsB+one(p.Error)
	}
	out := &Comparison{A: a.ID, B: b.ID, DurationA: a.Duration, DurationB: b.Duration}
	for _, o := range ops {
		out.Operations = append(out.Operations, *o)
	}
	slices.SortFunc(out.Operations, func(x, y OperationAB) int {
		d := func(o OperationAB) float64 { return math.Abs(float64(o.CriticalB - o.CriticalA)) }
		return cmp.Or(cmp.Compare(d(y), d(x)), cmp.Compare(x.Cluster, y.Cluster), cmp.Compare(x.Service, y.Service), cmp.Compare(x.Name, y.Name))
	})
	return out
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}
