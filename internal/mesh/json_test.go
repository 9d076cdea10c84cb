package mesh_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ambitmesh.dev/ambit/internal/mesh"
)

// TestSnapshotRoundTrip: a Snapshot saved for offline use is read back as it was. An absent list and an empty one mean the same everywhere but in
// Snapshot.Namespaces and Cluster.Inventory, where absent is "not known".
func TestSnapshotRoundTrip(t *testing.T) {
	for seed := range uint64(200) {
		f := filler{rand.New(rand.NewPCG(seed, 3))}
		var want, got mesh.Snapshot
		f.fill(reflect.ValueOf(&want).Elem(), 0)
		raw, err := json.Marshal(&want)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, raw)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		if (want.Namespaces == nil) != (got.Namespaces == nil) {
			t.Fatalf("seed %d: not known and none became the same: %v, %v", seed, want.Namespaces == nil, got.Namespaces == nil)
		}
		for i := range want.Clusters {
			if (want.Clusters[i].Inventory == nil) != (got.Clusters[i].Inventory == nil) {
				t.Fatalf("seed %d: an absent inventory and an empty one became the same", seed)
			}
		}
	}
}

func TestRefJSON(t *testing.T) {
	ref := mesh.Ref{Group: "security.istio.io", Version: "v1", Kind: "AuthorizationPolicy", Namespace: "billing", Name: "x"}
	raw, err := json.Marshal(map[mesh.Ref]mesh.Ref{ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"security.istio.io/v1/AuthorizationPolicy/billing/x":{"Group":"security.istio.io","Version":"v1","Kind":"AuthorizationPolicy","Namespace":"billing","Name":"x"}}`
	if diff := cmp.Diff(want, string(raw)); diff != "" {
		t.Error(diff)
	}
	var got map[mesh.Ref]mesh.Ref
	if err := json.Unmarshal(raw, &got); err != nil || got[ref] != ref {
		t.Errorf("%v, %v", got, err)
	}
	if err := json.Unmarshal([]byte(`{"a/b":{}}`), &got); err == nil {
		t.Error("a key that is no Ref was taken")
	}
}

// filler gives every exported field a random value that can occur.
type filler struct{ *rand.Rand }

func (f filler) text() string {
	return []string{"", "billing", "cluster-1", "ns/a", "käse \"<&>", "*", fmt.Sprint(f.Uint32())}[f.IntN(7)]
}

func (f filler) fill(v reflect.Value, depth int) {
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		if f.IntN(3) > 0 {
			v.Set(reflect.ValueOf(time.Unix(f.Int64N(1<<33), f.Int64N(1e9)).UTC()))
		}
		return
	case reflect.TypeFor[json.RawMessage]():
		if f.IntN(3) > 0 {
			v.SetBytes([]byte(`{"rules":[{}],"n":` + fmt.Sprint(f.Uint32()) + `}`))
		}
		return
	case reflect.TypeFor[mesh.Ref]():
		v.Set(reflect.ValueOf(mesh.Ref{Group: "g.io", Version: "v1", Kind: "K", Namespace: []string{"", "ns"}[f.IntN(2)], Name: fmt.Sprint("n", f.Uint32())}))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			f.fill(field, depth+1)
		}
	case reflect.Pointer:
		if depth < 3 || f.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(v.Elem(), depth+1)
		}
	case reflect.Slice:
		n := f.IntN(3)
		if depth == 1 {
			n = 2
		}
		for range n {
			e := reflect.New(v.Type().Elem()).Elem()
			if e.Kind() == reflect.Pointer { // a list has no holes
				e.Set(reflect.New(e.Type().Elem()))
				f.fill(e.Elem(), depth+1)
			} else {
				f.fill(e, depth+1)
			}
			v.Set(reflect.Append(v, e))
		}
	case reflect.Map:
		if f.IntN(4) == 0 {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for range f.IntN(3) {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(k, depth+1)
			f.fill(e, depth+1)
			v.SetMapIndex(k, e)
		}
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i), depth+1)
		}
	case reflect.String:
		v.SetString(f.text())
	case reflect.Bool:
		v.SetBool(f.IntN(2) == 0)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(f.Int64N(1 << 31))
	case reflect.Uint8, reflect.Uint32:
		v.SetUint(f.Uint64N(256))
	case reflect.Float64:
		v.SetFloat(float64(f.IntN(100)) / 100)
	default:
		panic("a field of a kind that the test does not know: " + v.Type().String())
	}
}
