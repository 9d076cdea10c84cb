// Package translate turns a Snapshot into what every cluster should have, with the explanation.
//
// In: an immutable mesh.Snapshot. Out: Result: objects per cluster, and conditions per source object. Pure: the same snapshot always gives the same result,
// byte for byte, and the snapshot is not touched. It must not do I/O, read a clock or know a client. One file per kind.
package translate

import (
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
	// Peering is who is peered with whom; the same pointer while nothing of it changes.
	Peering *mesh.Peering
	// Changed says how Objects differ from those of the Translator's Result before.
	Changed map[mesh.ClusterName]Delta
}

// Delta is how a cluster's objects differ from those before, each list sorted. A cluster whose desired state is dropped altogether has no Delta: nobody may
// conclude from that.
type Delta struct{ Set, Gone []mesh.Ref }

// Objects is a set of desired objects by name.
type Objects = mesh.Objects

// All translates everything. An error means a fault in the translator, never in what people wrote.
func All(s *mesh.Snapshot) (Result, error) { return New().Next(s) }

// sortRefs orders refs by their text.
func sortRefs(refs []mesh.Ref) { slices.SortFunc(refs, mesh.Ref.Compare) }

func cmpText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// policyLabels are labels and the workspace, in the order of their names: a struct is encoded five times as fast as a map.
type policyLabels struct {
	Workspace       string           `json:"context.mesh.gloo.solo.io/workspace"`
	ParentCluster   string           `json:"gloo.solo.io/parent_cluster"`
	ParentGroup     string           `json:"gloo.solo.io/parent_group"`
	ParentKind      string           `json:"gloo.solo.io/parent_kind"`
	ParentName      string           `json:"gloo.solo.io/parent_name"`
	ParentNamespace string           `json:"gloo.solo.io/parent_namespace"`
	ParentVersion   string           `json:"gloo.solo.io/parent_version"`
	Owner           string           `json:"owner.gloo.solo.io/name"`
	Reconciler      string           `json:"reconciler.mesh.gloo.solo.io/name"`
	Cluster         mesh.ClusterName `json:"relay.solo.io/cluster"`
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
