package mesh

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
)

// Ref names one object of one cluster. Its text is the name of a desired-state item on the relay.
type Ref struct {
	Group, Version, Kind, Namespace, Name string
}

// String is "group/version/kind/namespace/name"; group and namespace may be empty.
func (r Ref) String() string {
	return strings.Join([]string{r.Group, r.Version, r.Kind, r.Namespace, r.Name}, "/")
}

// ParseRef reads what String wrote; ok is false for anything else.
func ParseRef(s string) (r Ref, ok bool) {
	p := strings.Split(s, "/")
	if len(p) != 5 || p[1] == "" || p[2] == "" || p[4] == "" {
		return Ref{}, false
	}
	return Ref{Group: p[0], Version: p[1], Kind: p[2], Namespace: p[3], Name: p[4]}, true
}

// plainRef is a Ref without methods: how it looks as a value in JSON.
type plainRef Ref

// MarshalText is String; keys of JSON maps are written so.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *Ref) UnmarshalText(b []byte) error {
	v, ok := ParseRef(string(b))
	if !ok {
		return fmt.Errorf("object %q: want group/version/kind/namespace/name", b)
	}
	*r = v
	return nil
}

// MarshalJSON writes a value field by field.
func (r Ref) MarshalJSON() ([]byte, error) { return json.Marshal(plainRef(r)) }

// UnmarshalJSON reads what MarshalJSON wrote, or the text in quotes: encoding/json calls it for keys too.
func (r *Ref) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var text string
		if err := json.Unmarshal(b, &text); err != nil {
			return err
		}
		return r.UnmarshalText([]byte(text))
	}
	return json.Unmarshal(b, (*plainRef)(r))
}

// Compare orders refs by their text, without making it.
func (r Ref) Compare(o Ref) int {
	for _, f := range [...][2]string{{r.Group, o.Group}, {r.Version, o.Version}, {r.Kind, o.Kind}, {r.Namespace, o.Namespace}} {
		if c := compareField(f[0], f[1]); c != 0 {
			return c
		}
	}
	return cmp.Compare(r.Name, o.Name)
}

// compareField orders two fields that a slash follows.
func compareField(a, b string) int {
	if a == b {
		return 0
	}
	n := min(len(a), len(b))
	if a[:n] != b[:n] {
		return cmp.Compare(a, b)
	}
	if len(a) == n {
		return cmp.Compare('/', rune(b[n]))
	}
	return cmp.Compare(rune(a[n]), '/')
}

// Object is an object a cluster should have: its name and its manifest as JSON.
type Object struct {
	Ref      Ref
	Manifest []byte
	Hash     Fingerprint // of Manifest
}

// ConditionStatus is "True", "False" or "Unknown", as Kubernetes spells them.
type ConditionStatus string

// The values of a ConditionStatus.
const (
	True    ConditionStatus = "True"
	False   ConditionStatus = "False"
	Unknown ConditionStatus = "Unknown"
)

// Condition is what a stage has to say about a source object. Its message holds no counter that changes by itself and no time.
type Condition struct {
	Type    string
	Status  ConditionStatus
	Reason  string
	Message string
}
