package validate

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Decode reads one JSON object into the struct that out points to. Fields that the struct does not have are errors that name the field probably meant;
// so are values of the wrong type, and placeholders of templates that nobody filled in. The rest of metadata, and status, are left to the API server.
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
	w.metadata(tree)
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
	up   []level  // the objects around the value, outermost first
	free bool     // inside free text, where a '$' may be meant
	errs field.ErrorList
}

// level is an object around a value: where it is ("" for the top), and its type.
type level struct {
	name string
	typ  reflect.Type
}

func decodesItself(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[json.Unmarshaler]()) || t.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func direct(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// metadata looks for placeholders only: the API server has rules for the rest, but its message would not say what happened.
func (w *walker) metadata(tree map[string]any) {
	meta, ok := tree["metadata"].(map[string]any)
	if !ok {
		return
	}
	path := field.NewPath("metadata")
	for _, key := range []string{"name", "namespace"} {
		if s, ok := meta[key].(string); ok {
			w.placeholder(path.Child(key), s)
		}
	}
	labels, _ := meta["labels"].(map[string]any)
	for _, key := range sorted(labels) {
		if s, ok := labels[key].(string); ok {
			w.placeholder(path.Child("labels").Key(key), s)
		}
	}
}

// placeholder reports whether s holds one, and says so.
func (w *walker) placeholder(path *field.Path, s string) bool {
	why := placeholder(s, w.free)
	if why != "" {
		w.errs = append(w.errs, field.Invalid(path, s, why))
	}
	return why != ""
}

func (w *walker) value(path *field.Path, v any, t reflect.Type) {
	t = direct(t)
	if v == nil {
		return
	}
	if s, ok := v.(string); ok && w.placeholder(path, s) {
		return
	}
	if t == reflect.TypeFor[metav1.Duration]() {
		w.duration(path, v)
		return
	}
	if decodesItself(reflect.PointerTo(t)) {
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if m, ok := v.(map[string]any); ok {
			w.object(path, m, t, false)
			return
		}
		w.wrongType(path, v, wantObject(path, v, t))
	case reflect.Map:
		m, ok := v.(map[string]any)
		if !ok {
			w.wrongType(path, v, wantMap(v))
			return
		}
		w.entries(path, m, t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			w.bytes(path, v)
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
	default:
		w.scalar(path, v, t)
	}
}

func (w *walker) scalar(path *field.Path, v any, t reflect.Type) {
	switch t.Kind() {
	case reflect.Bool:
		if s, ok := v.(string); ok && (s == "true" || s == "false") {
			w.errs = append(w.errs, field.Invalid(path, v, fmt.Sprintf("want a boolean: write %s without quotes", s)))
		} else if _, ok := v.(bool); !ok {
			w.wrongType(path, v, "true or false")
		}
	case reflect.String:
		if _, ok := v.(string); !ok {
			w.wrongType(path, v, wantString(v))
		}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64:
		w.whole(path, v, t)
	case reflect.Float32, reflect.Float64:
		w.fraction(path, v, t)
	default:
	}
}

func (w *walker) fraction(path *field.Path, v any, t reflect.Type) {
	if n, ok := v.(json.Number); ok {
		if _, err := strconv.ParseFloat(n.String(), t.Bits()); err != nil {
			w.wrongType(path, v, "a number that is not huge")
		}
		return
	}
	want := "a number"
	if s, is := v.(string); is {
		percent, isPercent := strings.CutSuffix(strings.TrimSpace(s), "%")
		switch f, err := strconv.ParseFloat(strings.TrimSpace(percent), 64); {
		case err != nil:
		case isPercent:
			want += fmt.Sprintf(": write %v for %s", f/100, s)
		default:
			want += fmt.Sprintf(": write %s without quotes", s)
		}
	}
	w.wrongType(path, v, want)
}

// bytes checks what stands as base64.
func (w *walker) bytes(path *field.Path, v any) {
	s, ok := v.(string)
	switch {
	case !ok:
		w.wrongType(path, v, "base64 in a string")
	case strings.Contains(s, "-----BEGIN"):
		w.errs = append(w.errs, field.Invalid(path, field.OmitValueType{}, "that is PEM as it is: want it base64-encoded, the output of base64 -w0 FILE"))
	default:
		if _, err := base64.StdEncoding.DecodeString(s); err != nil {
			w.errs = append(w.errs, field.Invalid(path, field.OmitValueType{}, "want base64: the output of base64 -w0 FILE"))
		}
	}
}

func (w *walker) whole(path *field.Path, v any, t reflect.Type) {
	n, ok := v.(json.Number)
	if !ok {
		want := "a number"
		if s, is := v.(string); is {
			if _, err := strconv.Atoi(s); err == nil {
				want += ": write " + s + " without quotes"
			}
		}
		w.wrongType(path, v, want)
		return
	}
	var err error
	if unsigned := t.Kind() == reflect.Uint32 || t.Kind() == reflect.Uint64; unsigned {
		_, err = strconv.ParseUint(n.String(), 10, t.Bits())
	} else {
		_, err = strconv.ParseInt(n.String(), 10, t.Bits())
	}
	if err != nil {
		w.wrongType(path, v, "a whole number that is not negative, nor huge")
	}
}

// entries walks a map, whose keys are the author's.
func (w *walker) entries(path *field.Path, m map[string]any, elem reflect.Type) {
	for _, k := range sorted(m) {
		if w.placeholder(path, k) {
			continue
		}
		if lastOf(path) == "clusterSelector" && (k == "selector" || k == "labels" || k == "matchLabels") && !isScalar(m[k]) {
			w.wrongType(path.Key(k), m[k], "the labels of clusters here, without "+k+" around them: write clusterSelector: {region: eu}")
			continue
		}
		if elem.Kind() == reflect.String && len(w.up) > 0 && !isScalar(m[k]) {
			if around := w.up[len(w.up)-1]; fields(around.typ)[k] != nil {
				w.errs = append(w.errs, field.Invalid(path.Key(k), shown(m[k]), fmt.Sprintf("want a string here. %q is a field of its own beside %q: indent it less", k, lastOf(path))))
				continue
			}
		}
		w.value(path.Key(k), m[k], elem)
	}
}

func (w *walker) wrongType(path *field.Path, v any, want string) {
	w.errs = append(w.errs, field.Invalid(path, shown(v), "want "+want))
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
			free := w.free
			w.free = free || isFreeText(key)
			w.up = append(w.up, level{lastOf(path), t})
			w.value(child, m[key], f)
			w.up, w.free = w.up[:len(w.up)-1], free
		default:
			w.errs = append(w.errs, field.Forbidden(child, w.unknown(key, known, t, top)))
		}
	}
}

// fields lists a struct's JSON fields with their types; embedded structs count as their fields.
func fields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && f.Anonymous:
			maps.Copy(out, fields(direct(f.Type)))
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
