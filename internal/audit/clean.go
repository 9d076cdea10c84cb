package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxText bounds one text of a record, maxChanges its diff, maxList a list.
	maxText    = 1 << 10
	maxChanges = 100
	maxList    = 64
	maxDepth   = 32
)

// hidden stands for what is a secret.
const hidden = "[hidden: a secret]"

// secretName are names of fields whose value is a secret, whatever it looks like. Names of references (secretRef, tokenSecret) are none.
var secretName = regexp.MustCompile(`(?i)(^|[._\-/])(token|password|passwd|passphrase|secret[-_]?id|private[-_]?key|client[-_]?secret|api[-_]?key|access[-_]?key|secret[-_]?access[-_]?key|credentials?|authorization|bearer|auth[-_]?token|session[-_]?token|tls\.key|ca\.key|ca-key\.pem)$`)

// secretText is what secrets look like wherever they stand: private keys (PEM), JSON Web Tokens, bearer tokens, tokens of Vault, AWS, GitHub, Slack; passwords in URLs and after "password=".
var secretText = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z ]*PRIVATE KEY-----|$)` +
	`|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*` +
	`|(?i:\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,})` +
	`|\b(hv[sbr]|s|b)\.[A-Za-z0-9_-]{20,}` +
	`|\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}` +
	`|(?i:\b(password|passwd|secret|token|api_?key)\s*[=:]\s*[^\s&",;]{4,})` +
	`|://[^/\s:@"]*:[^/\s@"]+@`)

// text takes what looks like a secret out of a text, and bounds it.
func text(s string) string { return bound(secretText.ReplaceAllString(s, hidden)) }

func bound(s string) string {
	if len(s) <= maxText {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return strings.ToValidUTF8(s[:maxText], "") + fmt.Sprintf("... [%d bytes, SHA-256 %s]", len(s), hex.EncodeToString(sum[:]))
}

func list(in []string) []string {
	out := make([]string, 0, min(len(in), maxList))
	for i, s := range in {
		if i == maxList {
			out = append(out, fmt.Sprintf("[%d more]", len(in)-maxList))
			break
		}
		out = append(out, text(s))
	}
	return out
}

// Clean returns a record without what looks like a secret, and of bounded size. Its argument stays as it is.
func Clean(r Record) Record {
	for _, s := range []*string{&r.User, &r.Manager, &r.Source, &r.Cluster, &r.Operation, &r.Object, &r.UID, &r.Policy} {
		*s = bound(*s) // names
	}
	r.Detail = text(r.Detail)
	if r.Groups != nil {
		r.Groups = list(r.Groups)
	}
	if r.Extra != nil {
		extra := make(map[string][]string, len(r.Extra))
		for i, k := range slices.Sorted(maps.Keys(r.Extra)) {
			switch {
			case i >= maxList:
			case secretName.MatchString(k):
				extra[text(k)] = []string{hidden}
			default:
				extra[text(k)] = list(r.Extra[k])
			}
		}
		r.Extra = extra
	}
	if len(r.Diff) > 0 {
		r.Diff = cleanDiff(r.Diff)
	}
	if c := r.Certificate; c != nil {
		r.Certificate = &Certificate{text(c.Serial), text(c.Subject), text(c.Issuer), text(c.Requester), text(c.Fingerprint), text(c.NotAfter)}
	}
	if m := r.Membership; m != nil {
		r.Membership = &Membership{text(m.ClusterUID), text(m.TrustDomain), list(m.Permissions), text(m.AgentVersion)}
	}
	return r
}

func cleanDiff(in []Change) []Change {
	out := make([]Change, 0, min(len(in), maxChanges+1))
	for i, c := range in {
		if i == maxChanges {
			return append(out, Change{Path: fmt.Sprintf("[%d more fields]", len(in)-maxChanges)})
		}
		name := secretName.MatchString(c.Path)
		out = append(out, Change{Path: text(c.Path), Old: clean(c.Old, name, 0), New: clean(c.New, name, 0)})
	}
	return out
}

// clean cleans a JSON value.
func clean(v any, secret bool, depth int) any {
	switch v := v.(type) {
	case nil:
		return nil
	case map[string]any:
		if depth == maxDepth || len(v) > maxChanges {
			return fmt.Sprintf("[%d fields]", len(v))
		}
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[text(k)] = clean(x, secret || secretName.MatchString(k), depth+1)
		}
		return out
	case []any:
		if depth == maxDepth || len(v) > maxChanges {
			return fmt.Sprintf("[%d entries]", len(v))
		}
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = clean(x, secret, depth+1)
		}
		return out
	case string:
		if secret {
			return hidden
		}
		return text(v)
	case bool:
		return v
	default:
		if secret {
			return hidden
		}
		return v
	}
}

// Diff lists the fields that differ between two JSON objects: of maps field by field, of anything else whole.
func Diff(old, now map[string]any) []Change {
	var out []Change
	diff("", old, now, 0, &out)
	return out
}

func diff(path string, old, now map[string]any, depth int, out *[]Change) {
	keys := slices.Collect(maps.Keys(old))
	for k := range now {
		if _, both := old[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		a, b := old[k], now[k]
		if reflect.DeepEqual(a, b) {
			continue
		}
		at := k
		if path != "" {
			at = path + "." + k
		}
		am, aMap := a.(map[string]any)
		bm, bMap := b.(map[string]any)
		if aMap && bMap && depth < maxDepth {
			diff(at, am, bm, depth+1, out)
			continue
		}
		*out = append(*out, Change{Path: at, Old: a, New: b})
	}
}
