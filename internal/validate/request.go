package validate

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// path checks an exact path, a prefix ("/x*") or a suffix ("*x"), as Istio matches them.
func (r *rules) path(path *field.Path, p string) {
	switch star := strings.Count(p, "*"); {
	case p == "":
		r.required(path, "an empty path matches nothing: write it, or leave allowedPaths out for every path")
	case strings.ContainsAny(p, " \t\r\n"):
		r.invalid(path, p, "paths have no spaces: in a request a space is %q", "%20")
	case strings.Contains(p, "://"):
		want := "/"
		if u, err := url.Parse(p); err == nil && u.Path != "" {
			want = u.Path
		}
		r.invalid(path, p, "want the path of the URL only: %q", want)
	case strings.ContainsAny(p, "?#"):
		before, _, _ := strings.Cut(p, "?")
		before, _, _ = strings.Cut(before, "#")
		r.invalid(path, p, "paths are compared without the query: write %q", before)
	case p == "*":
	case star > 1:
		r.invalid(path, p, "only one '*', at the end (%q) or at the beginning (%q)", "/api/*", "*/status")
	case star == 1 && !strings.HasPrefix(p, "*") && !strings.HasSuffix(p, "*"):
		r.invalid(path, p, "'*' may stand at the end (%q) or at the beginning (%q), not in the middle", p[:strings.IndexByte(p, '*')+1], p[strings.IndexByte(p, '*'):])
	case !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "*"):
		r.invalid(path, p, "a path begins with '/': write %q", "/"+p)
	}
}

func knownMethods() []string {
	return []string{
		"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE",
		"COPY", "LOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "PURGE", "QUERY", "REPORT", "SEARCH", "UNLOCK",
	}
}

func knownMethod(m string) bool { return slices.Contains(knownMethods(), m) }

// token is RFC 9110 5.6.2.
var token = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")

// method checks an HTTP method, which is case-sensitive (RFC 9110 9.1).
func (r *rules) method(path *field.Path, m string) {
	switch upper := strings.ToUpper(strings.TrimSpace(m)); {
	case knownMethod(m):
	case knownMethod(upper):
		r.invalid(path, m, "did you mean %s? Methods are compared with their case", upper)
	case strings.Contains(m, "*"):
		r.invalid(path, m, "no wildcards here: leave allowedMethods out for every method")
	case !token.MatchString(m):
		r.invalid(path, m, "want an HTTP method, such as GET")
	default:
		if best, ok := Nearest(m, knownMethods()); ok && len(m) > 2 {
			r.invalid(path, m, "did you mean %s?", best)
		} else if upper != m {
			r.invalid(path, m, "want an HTTP method, such as GET")
		}
	}
}

// header checks one header's conditions.
func (r *rules) header(path *field.Path, name string, v securityv2.HeaderValues) {
	switch plain := strings.TrimSuffix(strings.TrimSpace(name), ":"); {
	case name == ":method":
		r.invalid(path, name, "methods have a field of their own: allowedMethods")
	case name == ":path":
		r.invalid(path, name, "paths have a field of their own: allowedPaths")
	case name == ":authority":
	case strings.HasPrefix(name, ":"):
		r.invalid(path, name, "this is no header that can be matched")
	case plain != name && token.MatchString(plain):
		r.invalid(path, name, "no header has this name: write %q", plain)
	case strings.Contains(name, "*") || !token.MatchString(name):
		r.invalid(path, name, "no header has this name: want letters, digits and '-', such as %q", "x-tenant")
	}
	at := path.Key(name)
	if len(v.Values)+len(v.NotValues) == 0 {
		r.required(at, "which values? write values: [...] or notValues: [...]; values: ['*'] is any value")
	}
	for i, s := range v.Values {
		r.pattern(at.Child("values").Index(i), s)
	}
	for i, s := range v.NotValues {
		r.pattern(at.Child("notValues").Index(i), s)
	}
}

// pattern checks an exact value, a prefix ("x*"), a suffix ("*x") or any ("*"), as Istio matches them.
func (r *rules) pattern(path *field.Path, s string) {
	switch star := strings.Count(s, "*"); {
	case s == "":
		r.required(path, "an empty value matches nothing")
	case s == "*":
	case star > 1 || star == 1 && !strings.HasPrefix(s, "*") && !strings.HasSuffix(s, "*"):
		r.invalid(path, s, "only one '*', at the end (%q) or at the beginning (%q); alone it is any value", "x*", "*x")
	}
}

// requestPrincipal checks "issuer/subject" of a JWT.
func (r *rules) requestPrincipal(path *field.Path, p string) {
	if account, namespace, ok := serviceAccount(p); ok && (strings.Contains(p, "/sa/") || strings.HasPrefix(p, "system:")) {
		r.invalid(path, p, "want the issuer and subject of a JWT, \"issuer/subject\"; a ServiceAccount is selected: serviceAccountSelector: {name: %s, namespace: %s}", account, namespace)
		return
	}
	before := len(r.errs)
	r.pattern(path, p)
	if len(r.errs) == before && !strings.Contains(p, "/") && !strings.Contains(p, "*") {
		r.invalid(path, p, "want the issuer and subject of a JWT, %q, such as %q; '*' is any", "issuer/subject", "https://idp.example.com/alice")
	}
}
