package mesh

import (
	"bytes"
	"hash/maphash"
	"iter"
	"maps"
	"slices"
)

// Objects is a set of objects by name that is never changed: With makes another one, which shares what is the same. That costs in proportion to what is changed, not to the
// whole: a cluster has thousands of objects, and a change of one policy is a change of few in each of a thousand clusters. The zero value is empty.
type Objects struct {
	parts *[objectParts]map[Ref]Object
	n     int
}

// objectParts is how many parts a set has; those that are not touched are shared.
const objectParts = 64

var objectSeed = maphash.MakeSeed() //nolint:gochecknoglobals // which part a name is in means nothing to anybody

func partOf(ref Ref) uint64 { return maphash.Comparable(objectSeed, ref) % objectParts }

// ObjectsOf is the set of those objects.
func ObjectsOf(all ...Object) Objects { return Objects{}.With(all, nil) }

// Len is the number of objects.
func (o Objects) Len() int { return o.n }

// Get returns the object of that name.
func (o Objects) Get(ref Ref) (Object, bool) {
	if o.parts == nil {
		return Object{}, false
	}
	found, ok := o.parts[partOf(ref)][ref]
	return found, ok
}

// All visits the objects in no order.
func (o Objects) All() iter.Seq2[Ref, Object] {
	return func(yield func(Ref, Object) bool) {
		if o.parts == nil {
			return
		}
		for _, part := range o.parts {
			for ref, object := range part {
				if !yield(ref, object) {
					return
				}
			}
		}
	}
}

// Equal reports whether both hold the same objects.
func (o Objects) Equal(other Objects) bool {
	if o.n != other.n {
		return false
	}
	for ref, a := range o.All() {
		if b, ok := other.Get(ref); !ok || a.Hash != b.Hash || !bytes.Equal(a.Manifest, b.Manifest) {
			return false
		}
	}
	return true
}

// Names lists the objects in order.
func (o Objects) Names() []Ref {
	out := make([]Ref, 0, o.n)
	for ref := range o.All() {
		out = append(out, ref)
	}
	slices.SortFunc(out, Ref.Compare)
	return out
}

// With is the set without gone, and then with set.
func (o Objects) With(set []Object, gone []Ref) Objects {
	if len(set)+len(gone) == 0 {
		return o
	}
	now := Objects{parts: &[objectParts]map[Ref]Object{}}
	if o.parts != nil {
		*now.parts = *o.parts
	}
	now.n = o.n
	var mine [objectParts]bool
	part := func(ref Ref) map[Ref]Object {
		i := partOf(ref)
		if !mine[i] {
			mine[i] = true
			if now.parts[i] = maps.Clone(now.parts[i]); now.parts[i] == nil {
				now.parts[i] = map[Ref]Object{}
			}
		}
		return now.parts[i]
	}
	for _, ref := range gone {
		p := part(ref)
		if _, ok := p[ref]; ok {
			delete(p, ref)
			now.n--
		}
	}
	for _, object := range set {
		p := part(object.Ref)
		if _, ok := p[object.Ref]; !ok {
			now.n++
		}
		p[object.Ref] = object
	}
	return now
}
