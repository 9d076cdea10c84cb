package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// IssuedCertificateState is how far an intermediate is.
// +kubebuilder:validation:Enum=PENDING;REQUESTED;ISSUED;FINISHED;FAILED
type IssuedCertificateState string

// The states of an IssuedCertificate.
const (
	IssuedPending   IssuedCertificateState = "PENDING"   // the cluster has not asked yet
	IssuedRequested IssuedCertificateState = "REQUESTED" // the cluster has made a key and sent a CSR
	IssuedIssued    IssuedCertificateState = "ISSUED"    // signed, on its way
	IssuedFinished  IssuedCertificateState = "FINISHED"  // every istiod of the cluster signs with it
	IssuedFailed    IssuedCertificateState = "FAILED"    // error says why
)

// ObjectReference names an object of a cluster.
type ObjectReference struct {
	// +optional
	Name string `json:"name,omitempty"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +optional
	Cluster string `json:"cluster,omitempty"`
}

// SigningCA is the management server's.
type SigningCA struct {
	// +optional
	SigningCertificateSecret *adminv2.ObjectRef `json:"signingCertificateSecret,omitempty"`
}

// AgentCA is the external CA of the policy.
type AgentCA struct{}

// IssuedCertificateSpec is an intermediate that a cluster is to have.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.mgmtServerCa) && has(self.agentCa))",message="write mgmtServerCa or agentCa, not both"
type IssuedCertificateSpec struct {
	// Hosts are the SPIFFE IDs of istiod's service account.
	// +optional
	Hosts []string `json:"hosts,omitempty"`
	// IssuedCertificateSecret is where it goes: cacerts.
	// +optional
	IssuedCertificateSecret *adminv2.ObjectRef `json:"issuedCertificateSecret,omitempty"`
	// +optional
	CertOptions *adminv2.CommonCertOptions `json:"certOptions,omitempty"`
	// +optional
	MgmtServerCa *SigningCA `json:"mgmtServerCa,omitempty"`
	// +optional
	AgentCa *AgentCA `json:"agentCa,omitempty"`
	// MeshRef is the istiod it is for.
	// +optional
	MeshRef *ObjectReference `json:"meshRef,omitempty"`
	// +optional
	AutoRestartPods bool `json:"autoRestartPods,omitempty"`
	// +kubebuilder:validation:MaxItems=8
	// +optional
	PassiveCertificateAuthorities []adminv2.PassiveCertificateAuthority `json:"passiveCertificateAuthorities,omitempty"`
}

// IssuedCertificateStatus is what became of it.
type IssuedCertificateStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	Error string `json:"error,omitempty"`
	// +optional
	State IssuedCertificateState `json:"state,omitempty"`
	// Fingerprint is the SHA-256 of the certificate, lower-case hex (our addition).
	// +optional
	Fingerprint string `json:"fingerprint,omitempty"`
	// NotAfter is its end (our addition).
	// +optional
	NotAfter *metav1.Time `json:"notAfter,omitempty"`
}

// IssuedCertificate is the intermediate of one cluster, as far as it is. Written by the management server for people to watch; changing it changes nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=ic,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Cluster",type=string,JSONPath=`.spec.meshRef.cluster`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Until",type=string,JSONPath=`.status.notAfter`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Error",type=string,JSONPath=`.status.error`,priority=1
type IssuedCertificate struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// +optional
	Spec IssuedCertificateSpec `json:"spec,omitempty"`
	// +optional
	Status IssuedCertificateStatus `json:"status,omitzero"`
}

// IssuedCertificateList is a list of IssuedCertificates.
//
// +kubebuilder:object:root=true
type IssuedCertificateList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IssuedCertificate `json:"items"`
}
