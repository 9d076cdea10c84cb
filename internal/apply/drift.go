package apply

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
)

const (
	policyGroup = "security.istio.io"

	maxWhat  = 300 // bytes of mesh.Drift.What
	maxValue = 100 // bytes of a value in it
)

// exact reports whether objects of r's kind must be as desired and nothing more. In an access policy what is missing says as much as what is there: one without
// `rules` allows nobody, and whoever adds the key opens it.
func exact(r mesh.Ref) bool { return r.Group == policyGroup }

// Metadata by which istiod ignores a policy, or does not enforce it: istiod skips objects of another revision (pkg/config, LabelsInRevision), and evaluates without
// effect what is marked as a dry run.
const (
	revisionLabel    = "istio.io/rev"
	dryRunAnnotation = "istio.io/dry-run"
)

// difference is a field that is not as desired.
type difference struct {
	path          []string // keys; an index of a list as "[2]"
	live, desired any      // nil: not there
}

// differences compares an object with its manifest. An object of an exact kind may have nothing beyond the manifest in spec; otherwise what we don't set belongs to others.
func differences(live, desired map[string]any, exact bool) []difference {
	var out []difference
	for _, k := range sortedKeys(desired) {
		switch k {
		case "apiVersion", "kind", "status":
		case "metadata":
			out = append(out, metadataDifferences(live, desired, exact)...)
		default:
			out = compare(out, []string{k}, live[k], desired[k], exact && k == "spec")
		}
	}
	if _, has := desired["spec"]; exact && !has {
		out = compare(out, []string{"spec"}, live["spec"], map[string]any{}, true)
	}
	return out
}

// metadataDifferences compares the labels and annotations that we set, and those that switch a policy off.
func metadataDifferences(live, desired map[string]any, exact bool) []difference {
	var out []difference
	l, _ := live["metadata"].(map[string]any)
	d, _ := desired["metadata"].(map[string]any)
	for _, k := range []string{"labels", "annotations"} {
		out = compare(out, []string{"metadata", k}, l[k], d[k], false)
	}
	if !exact {
		return out
	}
	for _, off := range [][2]string{{"labels", revisionLabel}, {"annotations", dryRunAnnotation}} {
		lm, _ := l[off[0]].(map[string]any)
		dm, _ := d[off[0]].(map[string]any)
		if _, wanted := dm[off[1]]; wanted {
			continue // compared above
		}
		if v, set := lm[off[1]]; set {
			out = append(out, difference{path: []string{"metadata", off[0], off[1]}, live: v})
		}
	}
	return out
}

// compare appends where live is not as desired. A list must have as many elements, each like its counterpart: one more element in a list of rules is a change of
// its meaning. A null in a manifest asks for nothing.
func compare(out []difference, path []string, live, desired any, exact bool) []difference {
	differs := func() []difference {
		return append(out, difference{path: slices.Clone(path), live: live, desired: desired})
	}
	switch d := desired.(type) {
	case nil:
		if exact && live != nil {
			return differs()
		}
		return out
	case map[string]any:
		l, ok := live.(map[string]any)
		if !ok {
			if live == nil && len(d) == 0 && (!exact || len(path) == 1) {
				return out
			}
			return differs()
		}
		for _, k := range sortedKeys(d) {
			out = compare(out, append(path, k), l[k], d[k], exact)
		}
		for _, k := range sortedKeys(l) {
			if _, wanted := d[k]; exact && !wanted && l[k] != nil {
				out = append(out, difference{path: append(slices.Clone(path), k), live: l[k]})
			}
		}
		return out
	case []any:
		l, ok := live.([]any)
		switch {
		case !ok && live == nil && len(d) == 0 && !exact:
			return out
		case !ok:
			return differs()
		}
		return compareLists(out, path, l, d, exact)
	default:
		a, errA := json.Marshal(live)
		b, errB := json.Marshal(desired)
		if errA == nil && errB == nil && bytes.Equal(a, b) {
			return out
		}
		return differs()
	}
}

func compareLists(out []difference, path []string, live, desired []any, exact bool) []difference {
	before := len(out)
	for i := range max(len(live), len(desired)) {
		at := append(slices.Clone(path), "["+strconv.Itoa(i)+"]")
		switch {
		case i >= len(desired):
			out = append(out, difference{path: at, live: live[i]})
		case i >= len(live):
			out = append(out, difference{path: at, desired: desired[i]})
		default:
			out = compare(out, at, live[i], desired[i], exact)
		}
	}
	if len(out) > before && plain(live) && plain(desired) { // a list of strings is one value to whoever reads about it
		return append(out[:before], difference{path: slices.Clone(path), live: live, desired: desired})
	}
	return out
}

// plain reports whether a list holds no objects and no lists.
func plain(list []any) bool {
	return !slices.ContainsFunc(list, func(v any) bool {
		switch v.(type) {
		case map[string]any, []any:
			return true
		}
		return false
	})
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// sentence says what changed, in at most maxWhat bytes. Values are told of our policies only: they hold nothing secret, other kinds may.
func sentence(diffs []difference, values bool) string {
	var b strings.Builder
	for i, d := range diffs {
		s := d.String()
		if !values {
			s = pathText(d.path) + " " + d.verb()
		}
		rest := ""
		if more := len(diffs) - i - 1; more > 0 {
			rest = fmt.Sprintf("; %d more", more)
		}
		if b.Len()+len("; ")+len(s)+len(rest) > maxWhat {
			if b.Len() == 0 {
				return cut(s, maxWhat)
			}
			fmt.Fprintf(&b, "; %d more", len(diffs)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(s)
	}
	return b.String()
}

func (d difference) verb() string {
	switch {
	case d.desired == nil:
		return "added"
	case d.live == nil:
		return "removed"
	}
	return "changed"
}

// String is e.g. `spec.action: "DENY" instead of "ALLOW"`.
func (d difference) String() string {
	at := pathText(d.path)
	switch d.verb() {
	case "added":
		return at + ": " + valueText(d.live) + " added"
	case "removed":
		return at + ": " + valueText(d.desired) + " removed"
	}
	return at + ": " + valueText(d.live) + " instead of " + valueText(d.desired)
}

var simpleKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func pathText(path []string) string {
	var b strings.Builder
	for i, k := range path {
		switch {
		case isIndex(k):
			b.WriteString(k)
		case !simpleKey.MatchString(k):
			fmt.Fprintf(&b, "[%q]", k)
		default:
			if i > 0 {
				b.WriteByte('.')
			}
			b.WriteString(k)
		}
	}
	return cut(b.String(), maxWhat/2)
}

func isIndex(k string) bool { return strings.HasPrefix(k, "[") && strings.HasSuffix(k, "]") }

func valueText(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "?"
	}
	return cut(strings.TrimSuffix(b.String(), "\n"), maxValue)
}

// cut shortens s to at most n bytes, at the border of a character.
func cut(s string, n int) string {
	const dots = "..."
	if len(s) <= n {
		return s
	}
	s = s[:n-len(dots)]
	for s != "" {
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size > 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s + dots
}

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
	if json.Unmarshal(m.FieldsV1.Raw, &fields) != nil {
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

// exactly returns live with what nobody but us may set as desired has it, and all else as it is.
func exactly(live *unstructured.Unstructured, desired map[string]any) *unstructured.Unstructured {
	u := live.DeepCopy()
	if spec, has := desired["spec"]; has {
		u.Object["spec"] = spec
	} else {
		delete(u.Object, "spec")
	}
	d := unstructured.Unstructured{Object: desired}
	labels, annotations := u.GetLabels(), u.GetAnnotations()
	if _, wanted := d.GetLabels()[revisionLabel]; !wanted {
		delete(labels, revisionLabel)
	}
	if _, wanted := d.GetAnnotations()[dryRunAnnotation]; !wanted {
		delete(annotations, dryRunAnnotation)
	}
	u.SetLabels(labels)
	u.SetAnnotations(annotations)
	return u
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
		if message == "" {
			message = reason
		}
		said = append(said, kind+": "+message)
	}
	slices.Sort(said)
	return cut(strings.Join(said, "; "), maxRefusal), true
}

const maxRefusal = 500
