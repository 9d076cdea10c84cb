package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
)

// shelf is the ConfigMaps of a namespace that take only so many more writes.
type shelf struct {
	dynamic.ResourceInterface
	maps map[string]*unstructured.Unstructured
	left int
}

var errDown = errors.New("the API server went away")

func (s *shelf) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	if u := s.maps[name]; u != nil {
		return u.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (s *shelf) Apply(_ context.Context, name string, u *unstructured.Unstructured, _ metav1.ApplyOptions, _ ...string) (*unstructured.Unstructured, error) {
	if s.left--; s.left < 0 {
		return nil, errDown
	}
	s.maps[name] = u.DeepCopy()
	return u, nil
}

func (s *shelf) Delete(_ context.Context, name string, _ metav1.DeleteOptions, _ ...string) error {
	if s.left--; s.left < 0 {
		return errDown
	}
	delete(s.maps, name)
	return nil
}

// Wherever a change of the inventory is cut short, no line of what stays is lost: it could never be pruned.
func TestNoLineIsLostByACrash(t *testing.T) {
	ctx := t.Context()
	refs := func(from, to int) []mesh.Ref {
		var out []mesh.Ref
		for i := from; i < to; i++ {
			out = append(out, ref("v1", fmt.Sprintf("p%05d", i)))
		}
		return out
	}
	const first, last = 1000, 3*shardLines + 500 // what was there before; what comes before it in the alphabet moves every line
	for _, removing := range []bool{false, true} {
		for writes := range 8 {
			s := &shelf{maps: map[string]*unstructured.Unstructured{}, left: 1000}
			life := func() *inventory {
				inv := &inventory{maps: s}
				if err := inv.load(ctx); err != nil {
					t.Fatal(err)
				}
				return inv
			}
			before := refs(first, last)
			inv := life()
			if err := inv.add(ctx, before); err != nil {
				t.Fatal(err)
			}
			stays := before
			s.left = writes
			var err error
			if removing {
				stays = refs(first+shardLines+10, last)
				err = inv.remove(ctx, refs(first, first+shardLines+10))
			} else {
				err = inv.add(ctx, refs(0, first))
			}
			if err != nil && !errors.Is(err, errDown) {
				t.Fatal(err)
			}
			s.left = 1000
			again := life()
			for _, r := range stays {
				if !again.refs[r] {
					t.Fatalf("removing %v, crash after %d writes: %s is lost", removing, writes, r)
				}
			}
			if err != nil && !removing && !maps.Equal(inv.refs, setOf(before)) {
				t.Errorf("a failed add is taken for done")
			}
			// The next life makes it right.
			if err := again.remove(ctx, slices.Collect(maps.Keys(again.refs))); err != nil {
				t.Fatal(err)
			}
			if left := life(); len(left.refs) != 0 || len(s.maps) != 1 {
				t.Errorf("removing %v, crash after %d writes: %d refs in %d ConfigMaps are left after all were removed", removing, writes, len(left.refs), len(s.maps))
			}
		}
	}
}

func setOf(refs []mesh.Ref) map[mesh.Ref]bool {
	out := map[mesh.Ref]bool{}
	for _, r := range refs {
		out[r] = true
	}
	return out
}
