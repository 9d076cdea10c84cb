package mesh_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
)

func named(i int) mesh.Ref {
	return mesh.Ref{Group: "g", Version: "v1", Kind: "K", Namespace: fmt.Sprintf("ns-%d", i%7), Name: fmt.Sprintf("o%d", i)}
}

// TestObjectsAreNeverChanged: a set that was handed out stays as it is, whatever is made from it.
func TestObjectsAreNeverChanged(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	sets, want := []mesh.Objects{{}}, []map[mesh.Ref]string{{}}
	for range 300 {
		from := r.IntN(len(sets))
		var set []mesh.Object
		var gone []mesh.Ref
		expect := maps.Clone(want[from])
		for range r.IntN(40) {
			ref := named(r.IntN(200))
			gone = append(gone, ref)
			delete(expect, ref)
		}
		for range r.IntN(40) {
			o := mesh.Object{Ref: named(r.IntN(200)), Manifest: fmt.Append(nil, r.Uint32())}
			set = append(set, o)
			expect[o.Ref] = string(o.Manifest)
		}
		sets, want = append(sets, sets[from].With(set, gone)), append(want, expect)
	}
	for i, s := range sets {
		got := map[mesh.Ref]string{}
		for ref, o := range s.All() {
			got[ref] = string(o.Manifest)
		}
		if !maps.Equal(got, want[i]) || s.Len() != len(want[i]) || len(s.Names()) != len(want[i]) {
			t.Fatalf("set %d: %d objects of %d, Len %d", i, len(got), len(want[i]), s.Len())
		}
		for j := range 200 {
			o, ok := s.Get(named(j))
			if text, there := want[i][named(j)]; ok != there || string(o.Manifest) != text {
				t.Fatalf("set %d: object %d: %q, %v", i, j, o.Manifest, ok)
			}
		}
	}
	for range sets[200].All() {
		break // a visit may end early
	}
}

// TestRefCompareIsTheOrderOfTexts, with names that end where others go on with less than a slash.
func TestRefCompareIsTheOrderOfTexts(t *testing.T) {
	t.Parallel()
	parts := []string{"", "a", "a-b", "a.b", "ab", "b", "a0"}
	r := rand.New(rand.NewPCG(3, 4))
	pick := func() string { return parts[r.IntN(len(parts))] }
	for range 20000 {
		a, b := mesh.Ref{pick(), pick(), pick(), pick(), pick()}, mesh.Ref{pick(), pick(), pick(), pick(), pick()}
		want := 0
		switch {
		case a.String() < b.String():
			want = -1
		case a.String() > b.String():
			want = 1
		}
		if got := a.Compare(b); got != want {
			t.Fatalf("%q and %q: %d, want %d", a, b, got, want)
		}
	}
}
