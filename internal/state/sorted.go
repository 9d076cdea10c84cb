package state

import (
	"cmp"
	"maps"
	"slices"
)

// edits are what is to become different in a sorted list: by name, nil for what is gone.
type edits[E any] map[string]*E

// lister knows how a kind of list is sorted and compared.
type lister[E any] struct {
	name func(*E) string
	same func(a, b *E) bool
}

// merge returns list with the edits done, and whether anything is different. list, sorted by name, is not touched: others hold it. Costs O(list + edits log edits),
// so that thousands of first items cost no more than a sort. What is equal to an element of alike, which may be nil, shares its memory.
func (l lister[E]) merge(list []E, e edits[E], alike []E) ([]E, bool) {
	if len(e) == 0 {
		return list, false
	}
	names := slices.Sorted(maps.Keys(e))
	out := make([]E, 0, len(list)+len(names))
	changed := false
	put := func(n string) {
		if v := e[n]; v != nil {
			out = append(out, l.share(n, v, alike))
			changed = true
		}
	}
	for i := range list {
		was := l.name(&list[i])
		for len(names) > 0 && names[0] < was {
			put(names[0])
			names = names[1:]
		}
		if len(names) == 0 || names[0] != was {
			out = append(out, list[i])
			continue
		}
		switch v := e[was]; {
		case v == nil:
			changed = true
		case l.same(v, &list[i]):
			out = append(out, list[i])
		default:
			put(was)
		}
		names = names[1:]
	}
	for _, n := range names {
		put(n)
	}
	switch {
	case !changed:
		return list, false
	case len(out) == 0:
		return nil, true
	case len(out) == len(alike) && slices.EqualFunc(out, alike, func(a, b E) bool { return l.same(&a, &b) }):
		return alike, true
	}
	return slices.Clip(out), true
}

// share returns the element of alike that is equal to v, else v.
func (l lister[E]) share(name string, v *E, alike []E) E {
	i, ok := slices.BinarySearchFunc(alike, name, func(x E, n string) int { return cmp.Compare(l.name(&x), n) })
	if ok && l.same(v, &alike[i]) {
		return alike[i]
	}
	return *v
}
