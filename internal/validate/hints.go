package validate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// unknown says what was probably meant by a field that is not there, in this order: a misspelling; wrong indentation, with the field inside an object or list below, or in
// an object around; the word for it in Istio's own resources.
func (w *walker) unknown(key string, known map[string]reflect.Type, t reflect.Type, top bool) string {
	if s, ok := Nearest(key, names(known)); ok {
		return fmt.Sprintf("unknown field: did you mean %q?", s)
	}
	if top && (key == "name" || key == "namespace" || key == "labels" || key == "annotations") {
		return fmt.Sprintf("unknown field here: did you mean %q inside \"metadata\"? (indent it further)", key)
	}
	if where, s, ok := below(key, t, top, func(word string, candidates []string) (string, bool) {
		for _, c := range candidates {
			if strings.EqualFold(c, word) {
				return c, true
			}
		}
		return "", false
	}); ok {
		return fmt.Sprintf("unknown field here: did you mean %q inside %s? (indent it further)", s, where)
	}
	for _, around := range slices.Backward(w.up) {
		if fields(around.typ)[key] == nil {
			continue
		}
		if around.name == "" {
			return fmt.Sprintf("unknown field here: %q stands at the beginning of the line, beside spec (indent it less)", key)
		}
		return fmt.Sprintf("unknown field here: did you mean %q of %q? (indent it less)", key, around.name)
	}
	if hint := istioWord(key, t); hint != "" {
		return "unknown field: " + hint
	}
	if hint := trustWord(key, t); hint != "" {
		return "unknown field: " + hint
	}
	if where, s, ok := below(key, t, top, Nearest); ok {
		return fmt.Sprintf("unknown field here: did you mean %q inside %s? (indent it further)", s, where)
	}
	if len(known) == 0 {
		return fmt.Sprintf("unknown field: %q takes none, write {}", t.Name())
	}
	return fmt.Sprintf("unknown field: %s has %s", strings.TrimSuffix(t.Name(), "Spec"), strings.Join(names(known), ", "))
}

// below looks for key in the objects and lists of objects inside t, level by level.
func below(key string, t reflect.Type, top bool, match func(string, []string) (string, bool)) (where, name string, ok bool) {
	type place struct {
		typ   reflect.Type
		where string
	}
	for here, depth := []place{{t, ""}}, 0; len(here) > 0 && depth < 5; depth++ {
		var next []place
		for _, p := range here {
			known := fields(p.typ)
			for _, n := range ordered(p.typ) {
				if top && depth == 0 && (n == "metadata" || n == "status") {
					continue
				}
				ft, inside := direct(known[n]), fmt.Sprintf("%q", n)
				if ft.Kind() == reflect.Slice {
					ft, inside = direct(ft.Elem()), "an entry of "+inside
				}
				if ft.Kind() != reflect.Struct || decodesItself(reflect.PointerTo(ft)) {
					continue
				}
				if s, ok := match(key, names(fields(ft))); ok {
					return inside, s, true
				}
				next = append(next, place{ft, inside})
			}
		}
		here = next
	}
	return "", "", false
}

// ordered lists a struct's fields as they are declared: the usual one stands first.
func ordered(t reflect.Type) []string {
	var out []string
	for f := range t.Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" && f.IsExported() {
			out = append(out, name)
		}
	}
	return out
}

// istioWord translates the words of Istio's AuthorizationPolicy and PeerAuthentication, which many authors know by heart.
func istioWord(key string, t reflect.Type) string {
	if !strings.HasSuffix(t.PkgPath(), "/security/v2") {
		return ""
	}
	return map[string]string{
		"principals":      "clients are selected, not spelt: write allowedClients: [{serviceAccountSelector: {name: ..., namespace: ...}}]",
		"serviceAccounts": "write allowedClients: [{serviceAccountSelector: {name: ..., namespace: ...}}]",
		"source":          "write allowedClients: [{serviceAccountSelector: {...}}] in config.authz",
		"from":            "write allowedClients: [{serviceAccountSelector: {...}}] in config.authz",
		"namespaces":      "write allowedClients: [{serviceAccountSelector: {namespace: ...}}]",
		"rules":           "an AccessPolicy has config.authz (one rule) or config.authzList (several)",
		"to":              "write allowedPaths and allowedMethods in config.authz; ports are in applyToDestinations",
		"action":          "an AccessPolicy only allows: whom no rule allows is denied",
		"ports":           "ports are in applyToDestinations: port: {number: ...} of an entry",
		"methods":         `did you mean "allowedMethods"?`,
		"paths":           `did you mean "allowedPaths"?`,
		"ipBlocks":        `did you mean "allowedIpBlocks"?`,
		"remoteIpBlocks":  `did you mean "allowedRemoteIpBlocks"?`,
		"matchLabels":     `did you mean "labels"?`,
		"mode":            "write tlsMode: STRICT in config.authn",
	}[key]
}

// lastOf is the last name of a path, without indexes.
func lastOf(path *field.Path) string {
	if path == nil {
		return ""
	}
	s := path.String()
	s = s[strings.LastIndexByte(s, '.')+1:]
	s, _, _ = strings.Cut(s, "[")
	return s
}

func isScalar(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return false
	}
	return true
}

// shown is how a value stands in a message: in full unless it is long.
func shown(v any) any {
	if raw, err := json.Marshal(v); err != nil || len(raw) > 120 {
		return field.OmitValueType{}
	}
	return v
}

// wantObject says what belongs in the place of v, as it would be written.
func wantObject(path *field.Path, v any, t reflect.Type) string {
	known, name := fields(t), lastOf(path)
	if _, is := v.(bool); is {
		for _, flag := range []string{"enabled", "required"} {
			if f, ok := known[flag]; ok && direct(f).Kind() == reflect.Bool {
				return fmt.Sprintf("an object: write %s: {%s: %v}", name, flag, v)
			}
		}
	}
	if l, is := v.([]any); is {
		if len(l) == 1 {
			return fmt.Sprintf("an object (%s), not a list: leave the '- ' out", strings.Join(names(known), ", "))
		}
		return fmt.Sprintf("one object (%s), not a list", strings.Join(names(known), ", "))
	}
	if s, is := v.(string); is {
		if account, namespace, ok := serviceAccount(s); ok && known["serviceAccountSelector"] != nil {
			return fmt.Sprintf("an object: write serviceAccountSelector: {name: %s, namespace: %s}", account, namespace)
		}
		if example := exampleOf(t, s, 2); example != "" {
			return "an object: write " + example
		}
	}
	if _, is := v.(json.Number); is && known["number"] != nil {
		return fmt.Sprintf("an object: write %s: {number: %v}", name, v)
	}
	return "an object (" + strings.Join(names(known), ", ") + ")"
}

// exampleOf writes an object of type t whose name is s; empty when t has no place for a name.
func exampleOf(t reflect.Type, s string, depth int) string {
	known := fields(t)
	if known["name"] != nil {
		return fmt.Sprintf("{name: %s}", s)
	}
	if depth == 0 {
		return ""
	}
	for _, first := range []string{"serviceAccountSelector", "selector", "workspaces", "namespaces"} {
		f, ok := known[first]
		if !ok {
			continue
		}
		f = direct(f)
		if f.Kind() == reflect.Slice {
			if inner := exampleOf(direct(f.Elem()), s, depth-1); inner != "" {
				return fmt.Sprintf("{%s: [%s]}", first, inner)
			}
		} else if f.Kind() == reflect.Struct {
			if inner := exampleOf(f, s, depth-1); inner != "" {
				return fmt.Sprintf("{%s: %s}", first, inner)
			}
		}
	}
	return ""
}

func wantMap(v any) string {
	if s, ok := v.(string); ok {
		for _, sep := range []string{"=", ":"} {
			if key, value, ok := strings.Cut(s, sep); ok && key != "" {
				return fmt.Sprintf("a map: write {%s: %s}", strings.TrimSpace(key), strings.TrimSpace(value))
			}
		}
	}
	if _, ok := v.([]any); ok {
		return "a map, not a list: leave the '- ' out"
	}
	return "a map"
}

func wantString(v any) string {
	if isScalar(v) {
		return "a string: put it in quotes"
	}
	return "a string"
}

// duration checks a metav1.Duration, whose own message is of Go's time package.
func (w *walker) duration(path *field.Path, v any) {
	s, ok := v.(string)
	if !ok {
		w.wrongType(path, v, fmt.Sprintf("a duration with its unit: write %q, %q or %q", "90s", "30m", "2h"))
		return
	}
	if _, err := time.ParseDuration(s); err == nil {
		return
	}
	if m := days.FindStringSubmatch(s); m != nil {
		w.wrongType(path, v, fmt.Sprintf("hours (h), minutes (m) and seconds (s): a duration has no unit %q, write %q for a day", m[1], "24h"))
		return
	}
	w.wrongType(path, v, fmt.Sprintf("a duration such as %q, %q or %q", "90s", "30m", "2h"))
}

var days = regexp.MustCompile(`^\s*[0-9.]+\s*(d|days?|w|weeks?)$`)

// isFreeText: in these fields people may mean a '$'.
func isFreeText(key string) bool {
	switch key {
	case "reason", "allowedPaths", "values", "notValues":
		return true
	}
	return false
}

var (
	helmPlaceholder   = regexp.MustCompile(`\{\{.*`)
	shellPlaceholder  = regexp.MustCompile(`\$\{[^}]*\}?|\$\([^)]*\)`)
	bareShellVariable = regexp.MustCompile(`\$[A-Za-z_][A-Za-z0-9_]*`)
	docPlaceholder    = regexp.MustCompile(`^<[^<>]+>$`)
)

// placeholder says what is wrong with a value in which a template's placeholder was left; "" for none. In free text a bare $NAME may be meant.
func placeholder(s string, free bool) string {
	if m := helmPlaceholder.FindString(s); m != "" {
		if i := strings.Index(m, "}}"); i >= 0 {
			m = m[:i+2]
		}
		return fmt.Sprintf("the placeholder %q was left in: render the chart first (helm template), or write the value", m)
	}
	m := shellPlaceholder.FindString(s)
	if m == "" && !free {
		m = bareShellVariable.FindString(s)
	}
	if m != "" {
		return fmt.Sprintf("the placeholder %q was left in: run the file through envsubst first (is the variable set?), or write the value", m)
	}
	if !free && docPlaceholder.MatchString(s) {
		return fmt.Sprintf("the placeholder %q was left in: write the value, without < and >", s)
	}
	return ""
}
