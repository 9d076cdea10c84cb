package observe

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// maxForeign bounds the spec that is reported of a policy that is not ours, in bytes of JSON; maxScope what is kept of a larger one to say where it applies.
const (
	maxForeign = 64 << 10
	maxScope   = 4 << 10
)

// foreignItem reads a policy of Istio's that is not ours: it lacks our owner label, or has it without our ever having applied it, as the copy of one of ours does.
func foreignItem(kind string) func(*unstructured.Unstructured) (synclog.Key, any, bool) {
	return func(u *unstructured.Unstructured) (synclog.Key, any, bool) {
		labelled, applied := u.GetLabels()[mesh.OwnerLabel] == mesh.OwnerValue, appliedByUs(u)
		if labelled && applied {
			return noItem(u)
		}
		p := mesh.ForeignPolicy{Namespace: u.GetNamespace(), Kind: kind, Name: u.GetName(), Spec: foreignSpec(kind, u.Object["spec"])}
		p.DryRun, _ = strconv.ParseBool(u.GetAnnotations()["istio.io/dry-run"]) // as istiod reads it
		// The names that translation gives: somebody took the label off, on purpose or not.
		p.Taken = !labelled && (applied || strings.HasPrefix(p.Name, "accesspolicy-") || strings.HasPrefix(p.Name, "isolation-"))
		return synclog.Key{Type: mesh.ItemForeign, Name: p.Namespace + "/" + kind + "/" + p.Name}, p, true
	}
}

func appliedByUs(u *unstructured.Unstructured) bool {
	return slices.ContainsFunc(u.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == mesh.FieldManager && m.Operation == metav1.ManagedFieldsOperationApply
	})
}

// foreignSpec is the spec as it is. One that is too large to be sent becomes one that allows as much as the kind can, so that it is never overlooked, in the same place if that
// can be said briefly, with a note.
func foreignSpec(kind string, spec any) json.RawMessage {
	raw, err := json.Marshal(spec)
	if err == nil && len(raw) <= maxForeign {
		if string(raw) == "null" {
			return json.RawMessage("{}") // no spec says no more than an empty one
		}
		return raw
	}
	short := map[string]any{"note": fmt.Sprintf("the spec has %d bytes, more than the %d that are reported: taken as allowing anything", len(raw), maxForeign)}
	was, _ := spec.(map[string]any)
	for _, k := range []string{"selector", "targetRef", "targetRefs"} {
		if scope, err := json.Marshal(was[k]); err == nil && was[k] != nil && len(scope) <= maxScope {
			short[k] = was[k]
		}
	}
	switch action, _ := was["action"].(string); {
	case kind == "PeerAuthentication":
		short["mtls"] = map[string]any{"mode": "DISABLE"}
	case action == "DENY" || action == "AUDIT" || action == "CUSTOM": // whatever its rules say, it allows nothing
		short["action"] = action
	default:
		short["action"], short["rules"] = "ALLOW", []any{map[string]any{}}
	}
	if raw, err = json.Marshal(short); err != nil { // maps and strings only
		return json.RawMessage(`{"action":"ALLOW","rules":[{}]}`)
	}
	return raw
}
