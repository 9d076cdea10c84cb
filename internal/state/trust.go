package state

import (
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// RootTrustPolicyOf is what a RootTrustPolicy says; invalid, what is wrong with it.
func RootTrustPolicyOf(o *adminv2.RootTrustPolicy, invalid string) *mesh.RootTrustPolicy {
	ref, _ := refOf(o)
	return rootPolicy(ref, o, invalid)
}

func rootPolicy(ref mesh.Ref, o *adminv2.RootTrustPolicy, invalid string) *mesh.RootTrustPolicy {
	p := &mesh.RootTrustPolicy{
		Source: ref, UID: string(o.UID), Generation: o.Generation, Created: o.CreationTimestamp.UTC(),
		ChangedBy: o.Annotations[securityv2.AnnotationChangedBy], Invalid: invalid,
	}
	if invalid == "" {
		p.Trust = mesh.TrustOf(&o.Spec)
	}
	return p
}

func rotationRequest(ref mesh.Ref, o *adminv2.RotationRequest, invalid string) *mesh.RotationRequest {
	r := &mesh.RotationRequest{
		Source: ref, UID: string(o.UID), Created: o.CreationTimestamp.UTC(), Action: o.Spec.Action, Reason: o.Spec.Reason, Emergency: o.Spec.Emergency,
		Policy: mesh.Ref{Group: ref.Group, Version: ref.Version, Kind: "RootTrustPolicy", Namespace: ref.Namespace, Name: o.Spec.Policy},
		By:     o.Annotations[securityv2.AnnotationChangedBy], Invalid: invalid, State: o.Status.State, Root: mesh.Generation(o.Status.Generation),
	}
	if o.Status.At != nil {
		r.Answered = o.Status.At.UTC()
	}
	for _, c := range o.Spec.Clusters {
		r.Clusters = append(r.Clusters, mesh.ClusterName(c))
	}
	return r
}

// sameMemory compares the part of status by which things are decided.
func sameMemory(a, b client.Object) bool {
	was, ok1 := a.(*adminv2.RotationRequest)
	is, ok2 := b.(*adminv2.RotationRequest)
	return !ok1 || !ok2 || was.Status.State == is.Status.State && was.Status.Generation == is.Status.Generation
}
