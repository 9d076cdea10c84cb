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
	"unicode/utf8"

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
