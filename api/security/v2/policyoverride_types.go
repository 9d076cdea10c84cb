package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// PolicyOverrideSpec suspends one policy for a while: a break-glass lease. It can't be changed, only deleted.
//
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a lease can't be changed, so that the record stays true: delete it and create another"
type PolicyOverrideSpec struct {
	// PolicyRef is the AccessPolicy.
	PolicyRef PolicyRef `json:"policyRef"`
	// Clusters where it is suspended. Empty: in every one.
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +optional
	Clusters []string `json:"clusters,omitempty"`
	// Reason says why, for the record.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`\S`
	Reason string `json:"reason"`
	// For is how long, from creation ("2h"): at least 1m, at most 24h.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('24h')",message="want 1m to 24h, such as 30m or 2h"
	For metav1.Duration `json:"for"`
}

// PolicyRef names an AccessPolicy.
//
// +kubebuilder:pruning:PreserveUnknownFields
type PolicyRef struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Namespace; absent: the override's. Another than the override's only in the admin namespace.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// PolicyOverrideStatus is what became of a lease.
type PolicyOverrideStatus struct {
	// +optional
	Common adminv2.CommonStatus `json:"common,omitzero"`
	// Until is when it ends; the server deletes the object then.
	// +optional
	Until *metav1.Time `json:"until,omitempty"`
	// By is the user who created it, as the API server authenticated them.
	// +optional
	By string `json:"by,omitempty"`
}

// PolicyOverride is a break-glass lease: until it ends, agents leave the policy's objects in these clusters as people make them. Then all is put back.
// Anybody who may create one may open what the policy protects: grant it as you grant production access.
//
// +kubebuilder:object:root=true
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=pov,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Policy",type=string,JSONPath=`.spec.policyRef.name`
// +kubebuilder:printcolumn:name="Until",type=string,JSONPath=`.status.until`
// +kubebuilder:printcolumn:name="By",type=string,JSONPath=`.status.by`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`
type PolicyOverride struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              PolicyOverrideSpec `json:"spec"`
	// +optional
	Status PolicyOverrideStatus `json:"status,omitzero"`
}

// PolicyOverrideList is a list of leases.
//
// +kubebuilder:object:root=true
type PolicyOverrideList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PolicyOverride `json:"items"`
}
