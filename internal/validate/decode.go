package validate

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Decode reads one JSON object into the struct that out points to. Fields that the struct does not have are errors that name the field probably meant;
// so are values of the wrong type. metadata and status are left to the API server.
func Decode(raw []byte, out any) field.ErrorList {
	var tree map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return field.ErrorList{field.Invalid(field.NewPath(""), "", fmt.Sprintf("not a JSON object: %v", err))}
	}
	if _, err := d.Token(); err != io.EOF {
		return field.ErrorList{field.Invalid(field.NewPath(""), "", "more than one JSON object: want one")}
	}
	w := walker{skip: []string{"apiVersion", "kind", "metadata", "status"}}
	w.object(nil, tree, reflect.TypeOf(out).Elem(), true)
	if len(w.errs) > 0 {
		return w.errs
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return field.ErrorList{field.Invalid(field.NewPath(""), "", err.Error())}
	}
	return nil
}

type walker struct {
	skip []string // at the top level
	errs field.ErrorList
}

func decodesItself(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[json.Unmarshaler]()) || t.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func (w *walker) value(path *field.Path, v any, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil || decodesItself(reflect.PointerTo(t)) {
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if m, ok := v.(map[string]any); ok {
			w.object(path, m, t, false)
			return
		}
		w.wrongType(path, v, "an object ("+strings.Join(names(fields(t)), ", ")+")")
	case reflect.Map:
		m, ok := v.(map[string]any)
		if !ok {
			w.wrongType(path, v, "a map")
			return
		}
		for _, k := range sorted(m) {
			w.value(path.Key(k), m[k], t.Elem())
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return
		}
		l, ok := v.([]any)
		if !ok {
			w.wrongType(path, v, "a list: begin each entry with '- '")
			return
		}
		for i, e := range l {
			w.value(path.Index(i), e, t.Elem())
		}
	case reflect.Bool:
		if s, ok := v.(string); ok && (s == "true" || s == "false") {
			w.errs = append(w.errs, field.Invalid(path, v, fmt.Sprintf("want a boolean: write %s without quotes", s)))
		} else if _, ok := v.(bool); !ok {
			w.wrongType(path, v, "true or false")
		}
	case reflect.String:
		if _, ok := v.(string); !ok {
			w.wrongType(path, v, "a string: put it in quotes")
		}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Float32, reflect.Float64:
		if _, ok := v.(json.Number); !ok {
			w.wrongType(path, v, "a number")
		}
	default:
	}
}

func (w *walker) wrongType(path *field.Path, v any, want string) {
	w.errs = append(w.errs, field.Invalid(path, v, "want "+want))
}

func (w *walker) object(path *field.Path, m map[string]any, t reflect.Type, top bool) {
	known := fields(t)
	for _, key := range sorted(m) {
		child := field.NewPath(key)
		if path != nil {
			child = path.Child(key)
		}
		f, ok := known[key]
		switch {
		case ok && top && slices.Contains(w.skip, key):
		case ok:
			w.value(child, m[key], f)
		default:
			w.errs = append(w.errs, field.Forbidden(child, unknown(key, known, t, top)))
		}
	}
}

// unknown says what was probably meant: a field of the same object, or one of an object inside it (wrong indentation).
func unknown(key string, known map[string]reflect.Type, t reflect.Type, top bool) string {
	if s, ok := Nearest(key, names(known)); ok {
		return fmt.Sprintf("unknown field: did you mean %q?", s)
	}
	for _, name := range names(known) {
		ft := known[name]
		for ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if ft.Kind() != reflect.Struct || top && (name == "metadata" || name == "status") {
			continue
		}
		if s, ok := Nearest(key, names(fields(ft))); ok {
			return fmt.Sprintf("unknown field here: did you mean %q inside %q? (indent it further)", s, name)
		}
	}
	return fmt.Sprintf("unknown field: %s has %s", strings.TrimSuffix(t.Name(), "Spec"), strings.Join(names(known), ", "))
}

// fields lists a struct's JSON fields with their types; embedded structs count as their fields.
func fields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && f.Anonymous:
			ft := f.Type
			for ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			maps.Copy(out, fields(ft))
		case name == "":
			out[f.Name] = f.Type
		default:
			out[name] = f.Type
		}
	}
	return out
}

func names(m map[string]reflect.Type) []string { return sorted(m) }

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Nearest finds the candidate that word was probably meant to be: equal but for case, or at an edit distance (transpositions count once) of
// at most a third of its length. ok is false when none is near. Ties go to the first candidate in order.
func Nearest(word string, candidates []string) (best string, ok bool) {
	limit := max(1, len(word)/3)
	for _, c := range candidates {
		if strings.EqualFold(c, word) {
			return c, true
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d <= limit && d < max(len(c), 2) {
			best, ok, limit = c, true, d-1
		}
	}
	return best, ok
}

// distance is the optimal string alignment distance.
func distance(a, b string) int {
	row := func() []int { return make([]int, len(b)+1) }
	before, prev, cur := row(), row(), row()
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

// preGA maps groups and versions of older releases, still found in published YAML, to today's.
func preGA() map[string]string {
	return map[string]string{
		"security.gloo.solo.io/v2":              "security.policy.gloo.solo.io/v2",
		"admin.gloo.solo.io/v1":                 "admin.gloo.solo.io/v2",
		"admin.enterprise.mesh.gloo.solo.io/v1": "admin.gloo.solo.io/v2",
		"multicluster.solo.io/v1alpha1":         "admin.gloo.solo.io/v2",
		"policy.gloo.solo.io/v2":                "security.policy.gloo.solo.io/v2",
	}
}

// APIVersion answers for an apiVersion the API server does not know: the one that was probably meant, or "".
func APIVersion(given string, served []string) string {
	if now, ok := preGA()[given]; ok {
		return now
	}
	group, _, _ := strings.Cut(given, "/")
	for _, s := range served {
		if g, _, _ := strings.Cut(s, "/"); g == group {
			return s
		}
	}
	best, _ := Nearest(given, served)
	return best
}
