package validate

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// AccessPolicy checks a new or changed policy; old is nil for a new one.
func AccessPolicy(now, _ *securityv2.AccessPolicy, _ Options) field.ErrorList {
	r, spec := &rules{}, field.NewPath("spec")
	r.shortName(now.Name, "AccessPolicy")
	for i := range now.Spec.ApplyToDestinations {
		r.destination(spec.Child("applyToDestinations").Index(i), &now.Spec.ApplyToDestinations[i])
	}
	for i := range now.Spec.ApplyToWorkloads {
		r.workload(spec.Child("applyToWorkloads").Index(i).Child("selector"), now.Spec.ApplyToWorkloads[i].Selector)
	}
	if now.Spec.Config != nil {
		r.config(spec.Child("config"), now.Spec.Config)
	}
	return r.errs
}

// shortName bounds the names that become values of labels and parts of the names of translated objects.
func (r *rules) shortName(name, kind string) {
	if len(name) > 63 {
		r.invalid(field.NewPath("metadata", "name"), name, "the name has %d characters: at most 63, because the objects made from the %s carry it in a label", len(name), kind)
	}
}

func serviceNoun() noun {
	return noun{"Service", "leave it out for every Service", validation.IsDNS1123Label}
}

func (r *rules) destination(path *field.Path, d *securityv2.DestinationSelector) {
	r.objectSelector(path.Child("selector"), d.Selector, serviceNoun())
	switch d.Kind {
	case "", securityv2.DestinationService:
	case securityv2.DestinationVirtualDestination, securityv2.DestinationExternalService:
		r.invalid(path.Child("kind"), d.Kind, "an AccessPolicy guards Services only: write kind: SERVICE, or leave it out")
	default:
		r.enum(path.Child("kind"), string(d.Kind), string(securityv2.DestinationService))
	}
	if d.Port != nil {
		r.port(path.Child("port"), d.Port.Number, d.Port.Name)
	}
}

// enum refuses a value that is none of the allowed ones.
func (r *rules) enum(path *field.Path, given string, allowed ...string) {
	if slices.Contains(allowed, given) {
		return
	}
	if best, ok := Nearest(strings.NewReplacer("-", "_", " ", "_").Replace(given), allowed); ok {
		r.invalid(path, given, "did you mean %s?", best)
		return
	}
	r.invalid(path, given, "want %s", strings.Join(allowed, ", "))
}

func (r *rules) workload(path *field.Path, s *securityv2.ObjectSelector) {
	if s == nil {
		return
	}
	if s.Name != "" {
		r.forbidden(path.Child("name"), "workloads are selected by the labels of their Pods, not by name: write labels, or select the Service in applyToDestinations")
	}
	other := *s
	other.Name = ""
	r.objectSelector(path, &other, noun{"workload", "leave labels out for every workload", validation.IsDNS1123Subdomain})
}

func (r *rules) config(path *field.Path, c *securityv2.AccessPolicyConfig) {
	if a := c.Authn; a != nil {
		if a.TLSMode != "" {
			r.enum(path.Child("authn", "tlsMode"), string(a.TLSMode), string(securityv2.TLSStrict), string(securityv2.TLSPermissive), string(securityv2.TLSDisable))
		}
		if a.MTLS != nil && a.MTLS.Required && a.TLSMode != "" && a.TLSMode != securityv2.TLSStrict {
			r.invalid(path.Child("authn"), fmt.Sprintf("tlsMode: %s, mtls: {required: true}", a.TLSMode), "the two contradict each other: required: true is tlsMode: STRICT, keep one of them")
		}
	}
	plain := c.Authn != nil && c.Authn.TLSMode == securityv2.TLSDisable
	if c.Authz != nil {
		r.authorization(path.Child("authz"), c.Authz, plain)
	}
	for i := range c.AuthzList {
		r.authorization(path.Child("authzList").Index(i), &c.AuthzList[i], plain)
	}
}

func (r *rules) authorization(path *field.Path, a *securityv2.Authorization, plain bool) {
	if plain && len(a.AllowedClients) > 0 {
		r.forbidden(path.Child("allowedClients"), "clients are known by their certificates, and tlsMode: DISABLE asks for none: write tlsMode: STRICT, or allow addresses with allowedIpBlocks instead")
	}
	for i := range a.AllowedClients {
		r.client(path.Child("allowedClients").Index(i), &a.AllowedClients[i])
	}
	for i, p := range a.AllowedPaths {
		r.path(path.Child("allowedPaths").Index(i), p)
	}
	for i, m := range a.AllowedMethods {
		r.method(path.Child("allowedMethods").Index(i), m)
	}
	if a.Match != nil && a.Match.Request != nil {
		headers := path.Child("match", "request", "headers")
		for _, name := range sorted(a.Match.Request.Headers) {
			r.header(headers, name, a.Match.Request.Headers[name])
		}
	}
	for i, b := range a.AllowedIPBlocks {
		r.ipBlock(path.Child("allowedIpBlocks").Index(i), b)
	}
	for i, b := range a.AllowedRemoteIPBlocks {
		r.ipBlock(path.Child("allowedRemoteIpBlocks").Index(i), b)
	}
}

const anyIdentity = "for any authenticated identity write allowedClients: [{}]"

func (r *rules) client(path *field.Path, c *securityv2.IdentitySelector) {
	r.objectSelector(path.Child("serviceAccountSelector"), c.ServiceAccountSelector, noun{"ServiceAccount", anyIdentity, validation.IsDNS1123Subdomain})
	r.objectSelector(path.Child("externalWorkloadSelector"), c.ExternalWorkloadSelector, noun{"ExternalWorkload", "leave it out for every one", validation.IsDNS1123Subdomain})
	m := c.RequestIdentityMatcher
	if m == nil {
		return
	}
	matcher := path.Child("requestIdentityMatcher")
	if len(m.RequestPrincipals)+len(m.NotRequestPrincipals) == 0 {
		r.required(matcher, "whom? write requestPrincipals or notRequestPrincipals: with neither it would match everybody")
	}
	for i, p := range m.RequestPrincipals {
		r.requestPrincipal(matcher.Child("requestPrincipals").Index(i), p)
	}
	for i, p := range m.NotRequestPrincipals {
		r.requestPrincipal(matcher.Child("notRequestPrincipals").Index(i), p)
	}
}

// WarningsOfAccessPolicy says what is allowed but probably not meant, or not supported.
func WarningsOfAccessPolicy(now *securityv2.AccessPolicy, _ Options) []string {
	w, c := &warnings{}, now.Spec.Config
	if len(now.Spec.ApplyToWorkloads) > 0 && len(now.Spec.ApplyToDestinations) > 0 {
		w.say("spec.applyToDestinations", "ignored, because applyToWorkloads is set")
	}
	if c == nil || c.Authn == nil && c.Authz == nil && len(c.AuthzList) == 0 {
		w.say("spec.config", "the policy changes nothing: it has neither authn nor authz")
		return *w
	}
	if c.Authn != nil && c.Authn.TLSMode == securityv2.TLSDisable {
		w.say("spec.config.authn.tlsMode", "the ambient data plane takes mutual TLS as well: DISABLE is the same as PERMISSIVE there")
	}
	if l := c.EnforcementLayers; l != nil {
		if l.CNI != nil && *l.CNI {
			w.say("spec.config.enforcementLayers.cni", "not supported: no NetworkPolicy is made")
		}
		if l.Mesh != nil && !*l.Mesh {
			w.say("spec.config.enforcementLayers.mesh", "the mesh is left out: the policy is not enforced anywhere")
		}
	}
	if c.Authz != nil && len(c.AuthzList) > 0 {
		w.say("spec.config.authz", "ignored, because authzList is set: move it there, as another entry")
	} else if c.Authz != nil {
		w.authorization("spec.config.authz", c.Authz)
	}
	for i := range c.AuthzList {
		w.authorization(fmt.Sprintf("spec.config.authzList[%d]", i), &c.AuthzList[i])
	}
	return *w
}

// warnings are sentences that kubectl prints.
type warnings []string

func (w *warnings) say(path, format string, args ...any) {
	*w = append(*w, path+": "+fmt.Sprintf(format, args...))
}

func (w *warnings) authorization(path string, a *securityv2.Authorization) {
	conditions := len(a.AllowedPaths) + len(a.AllowedMethods) + len(a.AllowedIPBlocks) + len(a.AllowedRemoteIPBlocks)
	if a.Match != nil && a.Match.Request != nil {
		conditions += len(a.Match.Request.Headers)
	}
	if len(a.AllowedClients) == 0 && conditions > 0 { // without conditions it is the usual way to write "deny all"
		w.say(path, "it allows nobody, because it has no allowedClients: %s", anyIdentity)
	}
	for i := range a.AllowedClients {
		if a.AllowedClients[i].ExternalWorkloadSelector != nil {
			w.say(fmt.Sprintf("%s.allowedClients[%d].externalWorkloadSelector", path, i), "not supported: it selects nobody")
		}
	}
	for i, m := range a.AllowedMethods {
		if !knownMethod(m) {
			w.say(fmt.Sprintf("%s.allowedMethods[%d]", path, i), "%q is no method that is commonly used", m)
		}
	}
	for i, p := range a.AllowedPaths {
		if v := bareShellVariable.FindString(p); v != "" {
			w.say(fmt.Sprintf("%s.allowedPaths[%d]", path, i), "%q looks like a placeholder that was left in; it is taken as written", v)
		}
	}
}
