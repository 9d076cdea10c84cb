package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// PodBounceState is how far restarts are.
// +kubebuilder:validation:Enum=PENDING;BOUNCING_PODS;FAILED;FINISHED
type PodBounceState string

// The states of a PodBounceDirective.
const (
	BouncePending  PodBounceState = "PENDING"
	BounceBouncing PodBounceState = "BOUNCING_PODS"
	BounceFailed   PodBounceState = "FAILED" // error says why
	BounceFinished PodBounceState = "FINISHED"
)

// PodBounceDirectiveSpec lists what is restarted, in this order: each entry when the one before is done.
type PodBounceDirectiveSpec struct {
	// +optional
	PodsToBounce []PodSelector `json:"podsToBounce,omitempty"`
	// +optional
	MeshRef *ObjectReference `json:"meshRef,omitempty"`
}

// PodSelector selects Pods, and says what to wait for.
type PodSelector struct {
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// WaitForReplicas that are ready after the restart.
	// +optional
	WaitForReplicas uint32 `json:"waitForReplicas,omitempty"`
	// RootCertSync: first wait until the ConfigMap holds what the Secret does.
	// +optional
	RootCertSync *RootCertSync `json:"rootCertSync,omitempty"`
}

// RootCertSync is a key of a Secret and the key of a ConfigMap that is to become the same.
type RootCertSync struct {
	// +optional
	SecretRef *adminv2.ObjectRef `json:"secretRef,omitempty"`
	// +optional
	SecretKey string `json:"secretKey,omitempty"`
	// +optional
	ConfigMapRef *adminv2.ObjectRef `json:"configMapRef,omitempty"`
	// +optional
	ConfigMapKey string `json:"configMapKey,omitempty"`
}

// PodBounceDirectiveStatus is how far restarts are.
type PodBounceDirectiveStatus struct {
	// +optional
	State PodBounceState `json:"state,omitempty"`
	// +optional
	Error string `json:"error,omitempty"`
	// PodsBounced by entry of podsToBounce.
	// +optional
	PodsBounced []BouncedPodSet `json:"podsBounced,omitempty"`
}

// BouncedPodSet names Pods that were restarted.
type BouncedPodSet struct {
	// +optional
	BouncedPods []string `json:"bouncedPods,omitempty"`
}

// PodBounceDirective is what is restarted in one cluster, as far as it is. Written by the management server for people to watch; changing it changes nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=pbd,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Cluster",type=string,JSONPath=`.spec.meshRef.cluster`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Error",type=string,JSONPath=`.status.error`,priority=1
type PodBounceDirective struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// +optional
	Spec PodBounceDirectiveSpec `json:"spec,omitempty"`
	// +optional
	Status PodBounceDirectiveStatus `json:"status,omitzero"`
}

// PodBounceDirectiveList is a list of PodBounceDirectives.
//
// +kubebuilder:object:root=true
type PodBounceDirectiveList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PodBounceDirective `json:"items"`
}
