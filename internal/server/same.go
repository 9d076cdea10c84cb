package server

import (
	"reflect"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// alike says whether b says nothing to translation that a did not: only outcomes of applies differ, which is what agents report most. It looks at pointers, since what
// has not changed is the same pointer (internal/state).
func alike(a, b *mesh.Snapshot) bool {
	if a == nil || a.ServerVersion != b.ServerVersion || a.ManagementCluster != b.ManagementCluster || a.AdminNamespace != b.AdminNamespace || a.Peering != b.Peering || !sameMap(a.Namespaces, b.Namespaces) ||
		!slices.Equal(a.Policies, b.Policies) || !slices.Equal(a.Workspaces, b.Workspaces) || !slices.Equal(a.Settings, b.Settings) || !slices.Equal(a.Overrides, b.Overrides) || !slices.Equal(a.Segments, b.Segments) {
		return false
	}
	return slices.EqualFunc(a.Clusters, b.Clusters, func(x, y mesh.Cluster) bool {
		was, is := x.Inventory, y.Inventory
		x.Inventory, y.Inventory = nil, nil
		if !reflect.DeepEqual(x, y) || (was == nil) != (is == nil) {
			return false
		}
		return was == is || was.Complete == is.Complete && sameMap(was.Namespaces, is.Namespaces) && reflect.DeepEqual(was.Info, is.Info)
	})
}

// sameMap says whether a and b are one map.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}
