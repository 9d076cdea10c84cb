package admission

import (
	"fmt"
	"strings"
	"time"
)

// record is a pair of annotations that hold who and when. They are the webhook's: nobody else can write them, our own servers included.
type record struct {
	by, at string
	// verb says what is recorded: "changes it".
	verb string
	// onChange: written anew whenever somebody changes the object (not its metadata or status), and not only on creation.
	onChange bool
}

// patch is an operation of a JSON Patch (RFC 6902).
type patch struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// patches makes the annotations what they should be.
func (r record) patches(c *change, user string, now time.Time) (patches []patch, warnings []string) {
	if c.created || r.onChange && c.changed {
		if given := c.now.Annotations[r.by]; given != "" && given != user && given != c.before.Annotations[r.by] {
			warnings = append(warnings, fmt.Sprintf("annotation %s says %q; it records who %s, which is you: %q", r.by, given, r.verb, user))
		}
		return r.patch(c, map[string]string{r.by: user, r.at: now.UTC().Format(time.RFC3339)}), warnings
	}
	want := map[string]string{}
	for _, key := range []string{r.at, r.by} {
		was, had := c.before.Annotations[key]
		is, given := c.now.Annotations[key]
		switch {
		case !r.onChange && given: // validate refuses one that was changed
		case given && is != was:
			warnings = append(warnings, fmt.Sprintf("annotation %s can't be set by hand: left as it was", key))
			want[key] = was
		case had && !given:
			want[key] = was
		}
	}
	return r.patch(c, want), warnings
}

// patch sets annotations; an empty value takes one away.
func (r record) patch(c *change, want map[string]string) (patches []patch) {
	if len(want) > 0 && c.now.Annotations == nil {
		patches = append(patches, patch{"add", "/metadata/annotations", map[string]string{}})
	}
	for _, key := range []string{r.at, r.by} {
		value, ok := want[key]
		path := "/metadata/annotations/" + strings.ReplaceAll(key, "/", "~1")
		switch _, given := c.now.Annotations[key]; {
		case !ok:
		case value != "":
			patches = append(patches, patch{"add", path, value})
		case given:
			patches = append(patches, patch{"remove", path, nil})
		}
	}
	return patches
}

// forged says what is wrong with the record after everybody's mutating webhooks; "" for nothing. A KubernetesCluster's is compared by its rules.
func (r record) forged(c *change, user string) string {
	if !r.onChange {
		return ""
	}
	by, at := c.now.Annotations[r.by], c.now.Annotations[r.at]
	if !c.changed {
		if by != c.before.Annotations[r.by] || at != c.before.Annotations[r.at] {
			return fmt.Sprintf("annotations %s and %s record the last change, which this is not: something that came after the management server's webhook changed them", r.by, r.at)
		}
		return ""
	}
	if _, err := time.Parse(time.RFC3339, at); by != user || err != nil {
		return fmt.Sprintf("annotations %s and %s say %q and %q: they should record this change, by %q. The management server's mutating webhook was not asked, or something after it changed them", r.by, r.at, by, at, user)
	}
	return ""
}
