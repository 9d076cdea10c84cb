// Package translate turns a Snapshot into what every cluster should have, with the explanation.
//
// In: an immutable mesh.Snapshot. Out: Result: objects per cluster, and conditions per source object. Pure: the same snapshot always gives the same result,
// byte for byte, and the snapshot is not touched. It must not do I/O, read a clock or know a client. One file per kind.
package translate

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Result is what translation decided and why.
type Result struct {
	// Objects are the whole desired state of each registered, valid cluster. A cluster without an entry is left alone.
	Objects map[mesh.ClusterName]Objects
	// Conditions explain each source object, sorted by type.
	Conditions map[mesh.Ref][]mesh.Condition
	// Policies, Workspaces and Settings say what became of each, by source.
	Policies   map[mesh.Ref]mesh.PolicyReport
	Workspaces map[mesh.Ref]mesh.WorkspaceReport
	Settings   map[mesh.Ref]mesh.SettingsReport
	// Changed says how Objects differ from those of the Translator's Result before.
	Changed map[mesh.ClusterName]Delta
}

// Delta is how a cluster's objects differ from those before, each list sorted. A cluster whose desired state is dropped altogether has no Delta: nobody may
// conclude from that.
type Delta struct{ Set, Gone []mesh.Ref }

// Translator translates one Snapshot after another and recomputes only what changed between them. The answer is that of All. For one caller at a time.
type Translator struct {
	last map[mesh.ClusterName]Objects
}

// New returns a Translator that has seen nothing.
func New() *Translator { return &Translator{} }

// Next translates s. The Result shares memory with later ones: don't change it.
func (t *Translator) Next(s *mesh.Snapshot) (Result, error) {
	r, err := All(s)
	if err != nil {
		return Result{}, err
	}
	r.Changed = map[mesh.ClusterName]Delta{}
	for c, now := range r.Objects {
		if d := difference(t.last[c], now); len(d.Set)+len(d.Gone) > 0 {
			r.Changed[c] = d
		}
	}
	t.last = r.Objects
	return r, nil
}

func difference(before, now Objects) Delta {
	var d Delta
	for ref, o := range now {
		if old, ok := before[ref]; !ok || old.Hash != o.Hash {
			d.Set = append(d.Set, ref)
		}
	}
	for ref := range before {
		if _, ok := now[ref]; !ok {
			d.Gone = append(d.Gone, ref)
		}
	}
	slices.SortFunc(d.Set, mesh.Ref.Compare)
	slices.SortFunc(d.Gone, mesh.Ref.Compare)
	return d
}

// Objects is a set of desired objects by name.
type Objects map[mesh.Ref]mesh.Object

// Names lists the objects in order.
func (o Objects) Names() []mesh.Ref { return slices.SortedFunc(maps.Keys(o), mesh.Ref.Compare) }

// kind translates one kind of source for all clusters. The list of kinds below is the registry.
type kind func(*mesh.Snapshot, *Result) error

// All translates everything. An error means a fault in the translator, never in what people wrote.
func All(s *mesh.Snapshot) (Result, error) {
	r := Result{
		Objects: map[mesh.ClusterName]Objects{}, Conditions: map[mesh.Ref][]mesh.Condition{}, Policies: map[mesh.Ref]mesh.PolicyReport{},
		Workspaces: map[mesh.Ref]mesh.WorkspaceReport{}, Settings: map[mesh.Ref]mesh.SettingsReport{},
	}
	for _, k := range []kind{membership, policies} {
		if err := k(s, &r); err != nil {
			return Result{}, err
		}
	}
	for _, cs := range r.Conditions {
		slices.SortFunc(cs, func(a, b mesh.Condition) int { return cmpText(a.Type, b.Type) })
	}
	r.Changed = map[mesh.ClusterName]Delta{}
	for c, objects := range r.Objects {
		r.Changed[c] = difference(nil, objects)
	}
	return r, nil
}

func cmpText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// add puts an object into a cluster's desired state. Two sources that want the same object are a fault.
func (r *Result) add(c mesh.ClusterName, ref mesh.Ref, manifest any) error {
	raw, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("cluster %q: encode %s: %w", c, ref, err)
	}
	set := r.Objects[c]
	if set == nil {
		set = Objects{}
		r.Objects[c] = set
	}
	if _, taken := set[ref]; taken {
		return fmt.Errorf("cluster %q: two sources want %s", c, ref)
	}
	set[ref] = mesh.Object{Ref: ref, Manifest: raw, Hash: mesh.FingerprintOf(raw)}
	return nil
}

// labels are those every translated object carries; the names are the product's.
func labels(c mesh.ClusterName, parent mesh.Ref, parentCluster string) map[string]string {
	return map[string]string{
		"owner.gloo.solo.io/name":           "gloo-mesh",
		"reconciler.mesh.gloo.solo.io/name": "translator",
		"relay.solo.io/cluster":             string(c),
		"gloo.solo.io/parent_cluster":       parentCluster,
		"gloo.solo.io/parent_group":         parent.Group,
		"gloo.solo.io/parent_version":       parent.Version,
		"gloo.solo.io/parent_kind":          parent.Kind,
		"gloo.solo.io/parent_namespace":     parent.Namespace,
		"gloo.solo.io/parent_name":          parent.Name,
	}
}
