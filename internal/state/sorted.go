package state

import (
	"cmp"
	"maps"
	"slices"
)

// edits are what is to become different in a sorted list: by name, nil for what is gone.
type edits[E any] map[string]*E

// merge returns list with the edits done, and whether anything is different. list, sorted by name, is not touched: others hold it. Costs O(list + edits log edits),
// so that thousands of first items cost no more than a sort.
func merge[E any](list []E, e edits[E], name func(*E) string, same func(a, b *E) bool) ([]E, bool) {
	if len(e) == 0 {
		return list, false
	}
	names := slices.Sorted(maps.Keys(e))
	out := make([]E, 0, len(list)+len(names))
	changed := false
	put := func(n string) {
		if v := e[n]; v != nil {
			out = append(out, *v)
			changed = true
		}
	}
	for i := range list {
		was := name(&list[i])
		for len(names) > 0 && names[0] < was {
			put(names[0])
			names = names[1:]
		}
		if len(names) == 0 || cmp.Compare(names[0], was) != 0 {
			out = append(out, list[i])
			continue
		}
		switch v := e[was]; {
		case v == nil:
			changed = true
		case same(v, &list[i]):
			out = append(out, list[i])
		default:
			out = append(out, *v)
			changed = true
		}
		names = names[1:]
	}
	for _, n := range names {
		put(n)
	}
	if !changed {
		return list, false
	}
	if len(out) == 0 {
		return nil, true
	}
	return slices.Clip(out), true
}
