package admission

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/validate"
)

// resource is how one kind is admitted.
type resource struct {
	group, kind string
	// record says which annotations hold who and when, and when they are written.
	record record
	// check decodes an object as it would be stored, and the one it replaces (nil for a new one), and says what is wrong and what is doubtful.
	check func(raw, old []byte, name, namespace string, o validate.Options) (errs field.ErrorList, warnings []string, err error)
	// remove says of a stored object why it can't be deleted, empty for nothing, and else what is doubtful about that. nil: any object of the kind may go.
	remove func(raw []byte) (refused string, warnings []string, err error)
	// empty returns an object of the kind.
	empty func() client.Object
}

// resources is the list of kinds. Those that people change while the mesh runs say who changed them last; a KubernetesCluster says who registered it.
func resources() []resource {
	registered := record{by: adminv2.AnnotationRegisteredBy, at: adminv2.AnnotationRegisteredAt, verb: "registers the cluster"}
	changed := record{by: securityv2.AnnotationChangedBy, at: securityv2.AnnotationChangedAt, verb: "changes it", onChange: true}
	return []resource{
		of(adminv2.GroupName, "KubernetesCluster", registered, validate.KubernetesCluster, func(*adminv2.KubernetesCluster, validate.Options) []string { return nil }),
		of(adminv2.GroupName, "Workspace", changed, validate.Workspace, validate.WarningsOfWorkspace),
		of(adminv2.GroupName, "WorkspaceSettings", changed, validate.WorkspaceSettings, validate.WarningsOfWorkspaceSettings),
		of(adminv2.GroupName, "RootTrustPolicy", changed, validate.RootTrustPolicy, validate.WarningsOfRootTrustPolicy).unless(deletion(validate.DeletionOfRootTrustPolicy)),
		of(adminv2.GroupName, "RotationRequest", changed, validate.RotationRequest, validate.WarningsOfRotationRequest).unless(deletion(validate.DeletionOfRotationRequest)),
		of(securityv2.GroupName, "AccessPolicy", changed, validate.AccessPolicy, validate.WarningsOfAccessPolicy),
		of(networkingv2alpha1.GroupName, "Segment", changed, validate.Segment, validate.WarningsOfSegment),
		of(securityv2.GroupName, "PolicyOverride", changed, validate.PolicyOverride, validate.WarningsOfPolicyOverride),
	}
}

// of makes the entry of a kind from its rules.
func of[T any, P interface {
	*T
	client.Object
}](group, kind string, rec record, rules func(now, old P, o validate.Options) field.ErrorList, doubts func(now P, o validate.Options) []string) resource {
	return resource{
		group: group, kind: kind, record: rec,
		empty: func() client.Object { return P(new(T)) },
		check: func(raw, old []byte, name, namespace string, o validate.Options) (field.ErrorList, []string, error) {
			now := P(new(T))
			if errs := validate.Decode(raw, now); len(errs) > 0 {
				return errs, nil, nil
			}
			if now.GetName() == "" { // generateName: the name comes after admission
				now.SetName(name)
			}
			if now.GetNamespace() == "" {
				now.SetNamespace(namespace)
			}
			var before P
			if old != nil {
				before = P(new(T))
				if err := json.Unmarshal(old, before); err != nil {
					return nil, nil, fmt.Errorf("the stored object: %w", err)
				}
			}
			errs := rules(now, before, o)
			if len(errs) > 0 {
				return errs, nil, nil
			}
			return nil, doubts(now, o), nil
		},
	}
}

// unless has deletions judged.
func (r resource) unless(remove func([]byte) (string, []string, error)) resource {
	r.remove = remove
	return r
}

// deletion reads the object that is to go.
func deletion[T any](judge func(*T) (refused string, doubts []string)) func([]byte) (string, []string, error) {
	return func(raw []byte) (string, []string, error) {
		o := new(T)
		if err := json.Unmarshal(raw, o); err != nil {
			return "", nil, err
		}
		refused, doubts := judge(o)
		return refused, doubts, nil
	}
}
