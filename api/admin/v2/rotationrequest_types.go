package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RotationAction is what somebody asks of a rotation.
// +kubebuilder:validation:Enum=Rotate;Pause;Resume;Rollback;Fence;Unfence;Revoke
type RotationAction string

// The actions.
const (
	ActionRotate   RotationAction = "Rotate"   // begin a rotation to a new root, though the policy has not changed
	ActionPause    RotationAction = "Pause"    // take no further step
	ActionResume   RotationAction = "Resume"   // go on
	ActionRollback RotationAction = "Rollback" // go back to the old root, as far as that is safe
	ActionFence    RotationAction = "Fence"    // go on without these clusters: they and the others may come to refuse each other
	ActionUnfence  RotationAction = "Unfence"  // let these clusters back in: they are waited for again
	ActionRevoke   RotationAction = "Revoke"   // put the intermediates of these clusters on the revocation list, everywhere
)

// RotationRequestState is what became of a request.
// +kubebuilder:validation:Enum=Pending;Done;Refused
type RotationRequestState string

// The states of a request.
const (
	RequestPending RotationRequestState = "Pending" // not taken up yet
	RequestDone    RotationRequestState = "Done"    // taken up, and remembered: the policy's status says how it goes on
	RequestRefused RotationRequestState = "Refused" // it does not apply; the message says why
)

// RotationRequestSpec is one request, once. It can't be changed; another needs another name.
//
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a request can't be changed, so that the record stays true: create another"
// +kubebuilder:validation:XValidation:rule="!(self.action in ['Fence', 'Unfence', 'Revoke']) || has(self.clusters) && size(self.clusters) > 0",message="which clusters? Fence, Unfence and Revoke need them"
// +kubebuilder:validation:XValidation:rule="self.action in ['Fence', 'Unfence', 'Revoke'] || !has(self.clusters) || size(self.clusters) == 0",message="only Fence, Unfence and Revoke are of single clusters"
// +kubebuilder:validation:XValidation:rule="self.action == 'Rotate' || !has(self.emergency) || !self.emergency",message="only Rotate can be an emergency"
type RotationRequestSpec struct {
	// Policy is the name of a RootTrustPolicy of the same namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Policy string `json:"policy"`
	// Action that is asked for.
	Action RotationAction `json:"action"`
	// Clusters that Fence, Unfence or Revoke is about.
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
	// Emergency, with Rotate: the old root's key is in wrong hands. Renewals are forced and connections closed to get rid of it soon. Absent: false.
	// +optional
	Emergency bool `json:"emergency,omitempty"`
}

// RotationRequestStatus is what became of a request. Written once.
type RotationRequestStatus struct {
	// +optional
	State RotationRequestState `json:"state,omitempty"`
	// Message says what was done, or why it was refused and what to do instead.
	// +optional
	Message string `json:"message,omitempty"`
	// Generation of the root that it is about: Rotate wants one of at least this generation, Rollback does not want that of this generation.
	// +optional
	Generation int64 `json:"generation,omitempty"`
	// By is the user who created it, as the API server authenticated them.
	// +optional
	By string `json:"by,omitempty"`
	// At is when it was taken up or refused. Requests made in the same second count in this order.
	// +optional
	At *metav1.MicroTime `json:"at,omitempty"`
}

// RotationRequest asks something of a rotation: what `meshctl trust rotate|pause|resume|rollback|fence|revoke` creates. Taken up once, and
// then the memory of what was asked: a Pause holds until a later Resume, a Fence until Unfence, a Rollback as long as it is there. Don't keep it in git: made again after it was
// deleted, it is another request.
//
// +kubebuilder:object:root=true
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=rreq,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Policy",type=string,JSONPath=`.spec.policy`
// +kubebuilder:printcolumn:name="Action",type=string,JSONPath=`.spec.action`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="By",type=string,JSONPath=`.status.by`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`,priority=1
type RotationRequest struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              RotationRequestSpec `json:"spec"`
	// +optional
	Status RotationRequestStatus `json:"status,omitzero"`
}

// RotationRequestList is a list of requests.
//
// +kubebuilder:object:root=true
type RotationRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RotationRequest `json:"items"`
}
