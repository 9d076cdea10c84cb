package apply

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
)

// driftOf says who made the differences. wasRight: the object has been as desired, so somebody did; a field that was removed has no owner any more, but whoever wrote
// anything since our last apply is the one to ask. Otherwise the desired state may have changed, and only an owner of one of the fields is evidence; nil: there is none.
func driftOf(live *unstructured.Unstructured, diffs []difference, values, wasRight bool, now time.Time) *mesh.Drift {
	owner, newest := culprits(live.GetManagedFields(), diffs)
	switch {
	case owner == nil && !wasRight:
		return nil
	case owner == nil:
		owner = newest
	}
	out := &mesh.Drift{At: now.UTC().Truncate(time.Second), What: sentence(diffs, values)}
	if owner != nil {
		out.Manager, out.Operation = cut(owner.Manager, maxValue), string(owner.Operation)
		if owner.Time != nil {
			out.At = owner.Time.UTC()
		}
	}
	return out
}

// culprits are the other manager that wrote one of the differing fields last, and the one that wrote anything since our last apply; nil where there is none.
func culprits(managed []metav1.ManagedFieldsEntry, diffs []difference) (owner, newest *metav1.ManagedFieldsEntry) {
	var ours time.Time
	for i := range managed {
		if m := &managed[i]; isOurs(m) && m.Time != nil && m.Time.After(ours) {
			ours = m.Time.Time
		}
	}
	for i := range managed {
		m := &managed[i]
		if isOurs(m) || m.Manager == holdManager || m.Subresource != "" {
			continue
		}
		if owns(m, diffs) && later(m, owner) {
			owner = m
		}
		if m.Time != nil && !m.Time.Time.Before(ours) && later(m, newest) {
			newest = m
		}
	}
	return owner, newest
}

func isOurs(m *metav1.ManagedFieldsEntry) bool {
	return m.Manager == FieldManager && m.Subresource == ""
}

func later(m, than *metav1.ManagedFieldsEntry) bool {
	return than == nil || than.Time == nil || (m.Time != nil && m.Time.After(than.Time.Time))
}

// owns reports whether m wrote one of the fields that differ. Format of FieldsV1: structured-merge-diff, "f:NAME" for a field, {} for all that is below.
func owns(m *metav1.ManagedFieldsEntry, diffs []difference) bool {
	if m.FieldsV1 == nil {
		return false
	}
	var fields map[string]any
	if json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) != nil {
		return false
	}
	return slices.ContainsFunc(diffs, func(d difference) bool {
		node := fields
		for i, k := range d.path {
			if isIndex(k) {
				return true // lists of policies are one field
			}
			child, has := node["f:"+k]
			if !has {
				return i > 0 && len(node) == 0
			}
			node, _ = child.(map[string]any)
		}
		return true
	})
}

// wasOurs reports whether we have applied the object once: our entry stays when the owner label goes.
func wasOurs(live *unstructured.Unstructured) bool {
	for _, m := range live.GetManagedFields() {
		if m.Manager == FieldManager && m.Operation == metav1.ManagedFieldsOperationApply {
			return true
		}
	}
	return false
}

// refusal is what istiod says against a policy in its status: a condition that is False, or a policy that is bound to only a part of its targets (Istio, pilot/pkg/model:
// ZtunnelAccepted, WaypointAccepted). known is false while it speaks of an older generation only.
func refusal(u *unstructured.Unstructured) (text string, known bool) {
	list, _, _ := unstructured.NestedFieldNoCopy(u.Object, "status", "conditions")
	conditions, _ := list.([]any)
	var said []string
	for _, c := range conditions {
		c, _ := c.(map[string]any)
		kind, _ := c["type"].(string)
		if kind != "ZtunnelAccepted" && kind != "WaypointAccepted" {
			continue
		}
		if g, err := strconv.ParseInt(fmt.Sprint(c["observedGeneration"]), 10, 64); err == nil && g < u.GetGeneration() {
			return "", false
		}
		if c["status"] != "False" && c["reason"] != "PartiallyInvalid" {
			continue
		}
		reason, _ := c["reason"].(string)
		message, _ := c["message"].(string)
		said = append(said, kind+": "+cmp.Or(message, reason, "not accepted"))
	}
	slices.Sort(said)
	return cut(strings.Join(said, "; "), maxRefusal), true
}

const maxRefusal = 500
