package validate

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// rules collects what is wrong.
type rules struct{ errs field.ErrorList }

func (r *rules) invalid(path *field.Path, value any, format string, args ...any) {
	r.errs = append(r.errs, field.Invalid(path, value, fmt.Sprintf(format, args...)))
}

func (r *rules) required(path *field.Path, format string, args ...any) {
	r.errs = append(r.errs, field.Required(path, fmt.Sprintf(format, args...)))
}

func (r *rules) forbidden(path *field.Path, format string, args ...any) {
	r.errs = append(r.errs, field.Forbidden(path, fmt.Sprintf(format, args...)))
}

// label checks a label that an object has to have. any says how to select without it.
func (r *rules) label(path *field.Path, key, value, any string) {
	switch problems := validation.IsQualifiedName(key); {
	case key == "*" || value == "*":
		r.invalid(path.Key(key), value, "labels are compared whole, '*' is no wildcard: %s", any)
	case strings.Contains(key, "="):
		k, v, _ := strings.Cut(key, "=")
		r.invalid(path, key, "no label has this key: write %s: %s", k, v)
	case len(problems) > 0:
		r.invalid(path, key, "no label has this key: want letters, digits, '-', '_' and '.', at most 63, and optionally a DNS name and '/' before them, such as %q", "app.kubernetes.io/name")
	case strings.ContainsAny(value, "*?"):
		r.invalid(path.Key(key), value, "labels are compared whole, without wildcards: %s", any)
	case len(validation.IsValidLabelValue(value)) > 0:
		r.invalid(path.Key(key), value, "no label has this value: want letters, digits, '-', '_' and '.', at most 63, beginning and ending with a letter or digit")
	}
}

func (r *rules) labels(path *field.Path, labels map[string]string, any string) {
	for _, key := range sorted(labels) {
		r.label(path, key, labels[key], any)
	}
}

// noun is how a name is checked and explained.
type noun struct {
	what string                // "Service"
	any  string                // how to select without it
	bad  func(string) []string // the API server's rule
}

func namespaceNoun() noun {
	return noun{"namespace", "leave it out for every namespace", validation.IsDNS1123Label}
}

func clusterNoun() noun {
	return noun{"cluster", "leave it out for every cluster", func(s string) []string {
		if err := mesh.ClusterName(s).Validate(); err != nil {
			return []string{err.Error()}
		}
		return nil
	}}
}

// name checks a name that is compared whole; empty is any.
func (r *rules) name(path *field.Path, s string, n noun) {
	switch {
	case s == "":
	case strings.ContainsAny(s, "*?"):
		r.invalid(path, s, "no wildcards here, the name of one %s is wanted: %s", n.what, n.any)
	case len(n.bad(s)) == 0:
	case len(n.bad(strings.ToLower(s))) == 0:
		r.invalid(path, s, "no %s has this name: write it in lower case, %q", n.what, strings.ToLower(s))
	case len(n.bad(strings.TrimSpace(s))) == 0:
		r.invalid(path, s, "no %s has this name: leave the space around it out", n.what)
	default:
		r.invalid(path, s, "no %s has this name: want lower-case letters, digits and '-', beginning and ending with a letter or digit", n.what)
	}
}

var globPattern = regexp.MustCompile(`^[-a-z0-9*?]*$`)

// glob checks a name that may hold * and ?; empty is any.
func (r *rules) glob(path *field.Path, s, what string) {
	switch {
	case globPattern.MatchString(s) && len(s) <= 63:
	case strings.Contains(s, ".*") || strings.ContainsAny(s, "^$|()+\\"):
		r.invalid(path, s, "want the name of a %s, in which * stands for any characters and ? for one; it is no regular expression, write %q", what, "prod-*")
	case strings.Contains(s, ","):
		r.invalid(path, s, "want the name of one %s: make an entry for each", what)
	case globPattern.MatchString(strings.ToLower(s)):
		r.invalid(path, s, "no %s has this name: write it in lower case, %q", what, strings.ToLower(s))
	default:
		r.invalid(path, s, "no %s has this name: want lower-case letters, digits and '-', and * or ? as wildcards", what)
	}
}

// objectSelector checks a selector of objects that are called what; by selects them without a name.
func (r *rules) objectSelector(path *field.Path, s *securityv2.ObjectSelector, named noun) {
	if s == nil {
		return
	}
	r.labels(path.Child("labels"), s.Labels, named.any)
	if account, namespace, ok := serviceAccount(s.Name); ok && named.what == "ServiceAccount" {
		r.invalid(path.Child("name"), s.Name, "want the name of a ServiceAccount, not a principal: write serviceAccountSelector: {name: %s, namespace: %s}", account, namespace)
	} else {
		r.name(path.Child("name"), s.Name, named)
	}
	r.name(path.Child("namespace"), s.Namespace, namespaceNoun())
	r.name(path.Child("cluster"), s.Cluster, clusterNoun())
	r.name(path.Child("workspace"), s.Workspace, noun{"workspace", "leave it out for the policy's own", validation.IsDNS1123Subdomain})
}

var (
	principal   = regexp.MustCompile(`^(?:spiffe://)?[^/]+/ns/([^/]+)/sa/([^/]+)$`)
	userName    = regexp.MustCompile(`^system:serviceaccount:([^:/]+):([^:/]+)$`)
	namespaced  = regexp.MustCompile(`^([^/:]+)/([^/:]+)$`)
	allPatterns = []*regexp.Regexp{principal, userName, namespaced} //nolint:gochecknoglobals // constants, as regexps are
)

// serviceAccount takes apart the ways people write an identity: a principal, a user name, namespace/name.
func serviceAccount(s string) (name, namespace string, ok bool) {
	for _, p := range allPatterns {
		if m := p.FindStringSubmatch(s); m != nil {
			return m[2], m[1], true
		}
	}
	return "", "", false
}

// port checks a port by number or name. A port selector without either selects nothing anybody could mean.
func (r *rules) port(path *field.Path, number uint32, name string) {
	switch {
	case number != 0 && name != "":
		r.invalid(path, fmt.Sprintf("number: %d, name: %s", number, name), "write number or name, not both: they could be of two ports")
	case number == 0 && name == "":
		r.required(path, "which port? write {number: 8080} (1 to 65535) or {name: http}; leave port out for all")
	case number > 65535:
		r.invalid(path.Child("number"), number, "ports are 1 to 65535")
	case number != 0:
	case digits(name):
		r.invalid(path.Child("name"), name, "that is a number: write {number: %s}", name)
	case len(validation.IsDNS1123Label(name)) > 0:
		r.invalid(path.Child("name"), name, "no port of a Service has this name: want lower-case letters, digits and '-', at most 63")
	}
}

func digits(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// ipBlock checks an IP address or CIDR.
func (r *rules) ipBlock(path *field.Path, s string) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		if p.Masked() != p {
			r.invalid(path, s, "the address has bits beyond the first %d: write %q for the network, or %q for the address", p.Bits(), p.Masked(), p.Addr())
		}
		return
	}
	addr, bits, cidr := strings.Cut(s, "/")
	switch _, err := netip.ParseAddr(addr); {
	case strings.TrimSpace(s) != s:
		r.invalid(path, s, "leave the space around it out: %q", strings.TrimSpace(s))
	case strings.Contains(s, "*"):
		r.invalid(path, s, "no wildcards here: write a CIDR such as %q", "10.1.0.0/16")
	case cidr && err == nil:
		r.invalid(path, s, "%q is no prefix length: want a CIDR such as %q, with 0 to 32 bits for IPv4 and 0 to 128 for IPv6", "/"+bits, "10.1.0.0/16")
	case strings.Contains(addr, "-"):
		r.invalid(path, s, "want an IP address or a CIDR such as %q, not a range or a host name", "10.1.0.0/16")
	default:
		r.invalid(path, s, "want an IP address such as %q or a CIDR such as %q", "10.1.2.3", "10.1.0.0/16")
	}
}
