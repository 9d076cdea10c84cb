package validate

import (
	"reflect"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// The bounds of a lease.
const (
	ShortestOverride = time.Minute
	LongestOverride  = 24 * time.Hour
	longestReason    = 1024 // bytes
)

// PolicyOverride checks a new or changed lease; old is nil for a new one.
func PolicyOverride(now, old *securityv2.PolicyOverride, o Options) field.ErrorList {
	r, spec := &rules{}, field.NewPath("spec")
	if old != nil {
		if !reflect.DeepEqual(now.Spec, old.Spec) {
			r.forbidden(spec, "a lease can't be changed, so that the record stays true: delete it and create another")
		}
		return r.errs // what was right when it was created stays so
	}
	ref := now.Spec.PolicyRef
	if ref.Name == "" {
		r.required(spec.Child("policyRef", "name"), "which AccessPolicy? write policyRef: {name: ...}")
	}
	r.name(spec.Child("policyRef", "name"), ref.Name, noun{"AccessPolicy", "make a lease for each", validation.IsDNS1123Subdomain})
	r.name(spec.Child("policyRef", "namespace"), ref.Namespace, noun{"namespace", "leave it out for the lease's own", validation.IsDNS1123Label})
	if ref.Namespace != "" && ref.Namespace != now.Namespace && now.Namespace != o.AdminNamespace {
		r.invalid(spec.Child("policyRef", "namespace"), ref.Namespace, "create the lease in namespace %q, where the policy is (or in %q): who may create leases in %q decides over its policies only",
			ref.Namespace, o.AdminNamespace, now.Namespace)
	}
	seen := map[string]bool{}
	for i, c := range now.Spec.Clusters {
		path := spec.Child("clusters").Index(i)
		if c == "" {
			r.required(path, "write the name of a cluster, or leave clusters out for every one")
		}
		r.name(path, c, noun{"cluster", "leave clusters out for every one", clusterNoun().bad})
		if seen[c] {
			r.errs = append(r.errs, field.Duplicate(path, c))
		}
		seen[c] = true
	}
	switch {
	case strings.TrimSpace(now.Spec.Reason) == "":
		r.required(spec.Child("reason"), "why? It is what others read at night, such as %q", "INC-4711: 503s after the release")
	case len(now.Spec.Reason) > longestReason:
		r.errs = append(r.errs, field.TooLong(spec.Child("reason"), now.Spec.Reason, longestReason))
	}
	r.lease(spec.Child("for"), now.Spec.For.Duration)
	return r.errs
}

func (r *rules) lease(path *field.Path, d time.Duration) {
	switch {
	case d == 0:
		r.required(path, "for how long? write for: 2h (1m to 24h)")
	case d < ShortestOverride:
		r.invalid(path, d.String(), "too short: at least 1m")
	case d > LongestOverride:
		r.invalid(path, d.String(), "too long: at most 24h. What has to last longer is a change of the policy")
	}
}

// WarningsOfPolicyOverride says what is allowed but probably more than is needed.
func WarningsOfPolicyOverride(now *securityv2.PolicyOverride, _ Options) []string {
	w := &warnings{}
	if len(now.Spec.Clusters) == 0 {
		w.say("spec.clusters", "not given: policy %q is suspended in every cluster", now.Spec.PolicyRef.Name)
	}
	return *w
}
