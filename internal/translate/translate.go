// Package translate turns a Snapshot into what every cluster should have, with the explanation.
//
// In: an immutable mesh.Snapshot. Out: Result: objects per cluster, and conditions per source object. Pure: the same snapshot always gives the same result,
// byte for byte, and the snapshot is not touched. It must not do I/O, read a clock or know a client. One file per kind.
package translate

import (
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

// Objects is a set of desired objects by name.
type Objects map[mesh.Ref]mesh.Object

// Names lists the objects in order.
func (o Objects) Names() []mesh.Ref { return slices.SortedFunc(maps.Keys(o), mesh.Ref.Compare) }

// All translates everything. An error means a fault in the translator, never in what people wrote.
func All(s *mesh.Snapshot) (Result, error) { return New().Next(s) }

// sortRefs orders refs by their text, which is made once for each.
func sortRefs(refs []mesh.Ref) {
	if len(refs) < 16 {
		slices.SortFunc(refs, mesh.Ref.Compare)
		return
	}
	texts := make(map[mesh.Ref]string, len(refs))
	for _, r := range refs {
		texts[r] = r.String()
	}
	slices.SortFunc(refs, func(a, b mesh.Ref) int { return cmpText(texts[a], texts[b]) })
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
