// Package validate holds the rules for what people write, with messages that say the mistake and the fix.
//
// In: an object as raw JSON (Decode) or typed, the object it replaces, and what the rules need to know of the server (Options).
// Out: a field.ErrorList, sorted as the fields are. Shared by the webhook, meshctl and the UI.
// It must not do I/O, read a clock or know a client: the same object always gives the same answer.
package validate

import (
	"fmt"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// Options is what the rules need to know beside the object.
type Options struct {
	// AdminNamespace is the only namespace whose admin.gloo.solo.io objects the server reads.
	AdminNamespace string
	// Snapshot is what the server knows of everything else, or nil; it must answer at once. Rules between objects hold as far as it tells: none, where there is nobody to ask.
	Snapshot func() *mesh.Snapshot
}

func (o Options) snapshot() *mesh.Snapshot {
	if o.Snapshot == nil {
		return nil
	}
	return o.Snapshot()
}

// KubernetesCluster checks a new or changed cluster; old is nil for a new one.
func KubernetesCluster(c, old *adminv2.KubernetesCluster, o Options) field.ErrorList {
	var errs field.ErrorList
	meta := field.NewPath("metadata")
	if err := mesh.ClusterName(c.Name).Validate(); err != nil {
		errs = append(errs, field.Invalid(meta.Child("name"), c.Name, err.Error()))
	}
	if c.Namespace != o.AdminNamespace {
		errs = append(errs, field.Invalid(meta.Child("namespace"), c.Namespace,
			fmt.Sprintf("create it in namespace %q: the management server reads KubernetesClusters of its admin namespace only", o.AdminNamespace)))
	}
	if old != nil {
		for _, key := range []string{adminv2.AnnotationRegisteredAt, adminv2.AnnotationRegisteredBy} {
			if was, is := old.Annotations[key], c.Annotations[key]; was != is {
				errs = append(errs, field.Forbidden(meta.Child("annotations").Key(key),
					fmt.Sprintf("it records who registered the cluster and can't be changed (was %q, would be %q): leave it as it is, or leave it out", was, is)))
			}
		}
	}
	return append(errs, clusterDomain(field.NewPath("spec", "clusterDomain"), c.Spec.ClusterDomain)...)
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// clusterDomain checks a DNS domain (RFC 1123 labels, RFC 1035 2.3.4 lengths). Empty means the default.
func clusterDomain(path *field.Path, d string) field.ErrorList {
	bad := func(format string, args ...any) field.ErrorList {
		return field.ErrorList{field.Invalid(path, d, fmt.Sprintf(format, args...))}
	}
	switch {
	case d == "":
		return nil
	case strings.Contains(d, "://"):
		return bad("want a DNS domain such as %q, not a URL", "cluster.local")
	case strings.HasSuffix(d, "."):
		return bad("leave the final '.' out: %q", strings.TrimRight(d, "."))
	case strings.HasPrefix(d, "."):
		return bad("leave the '.' at the beginning out: %q", strings.TrimLeft(d, "."))
	case strings.HasPrefix(d, "svc."):
		return bad("leave %q out: want the domain itself, %q", "svc.", strings.TrimPrefix(d, "svc."))
	case len(d) > 253:
		return bad("it has %d characters: a DNS domain has at most 253", len(d))
	}
	for label := range strings.SplitSeq(d, ".") {
		switch {
		case label == "":
			return bad("it has two '.' in a row: remove one")
		case len(label) > 63:
			return bad("the part %q has %d characters: at most 63 between dots", label, len(label))
		case !dnsLabel.MatchString(label) && dnsLabel.MatchString(strings.ToLower(label)):
			return bad("write it in lower case: %q", strings.ToLower(d))
		case !dnsLabel.MatchString(label):
			return bad("the part %q may have only lower-case letters, digits and '-', beginning and ending with a letter or digit, as in %q", label, "cluster.local")
		}
	}
	return nil
}
