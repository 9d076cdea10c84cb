package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CertificateRequestState is how far a request is.
// +kubebuilder:validation:Enum=PENDING;FINISHED;FAILED
type CertificateRequestState string

// The states of a CertificateRequest.
const (
	RequestPending  CertificateRequestState = "PENDING"
	RequestFinished CertificateRequestState = "FINISHED"
	RequestFailed   CertificateRequestState = "FAILED" // error says why
)

// CertificateRequestSpec is what a cluster asks for.
type CertificateRequestSpec struct {
	// CertificateSigningRequest is PKCS#10, PEM. The key it is of stays in the cluster.
	// +optional
	CertificateSigningRequest []byte `json:"certificateSigningRequest,omitempty"`
}

// CertificateRequestStatus is the answer, all PEM.
type CertificateRequestStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	Error string `json:"error,omitempty"`
	// +optional
	State CertificateRequestState `json:"state,omitempty"`
	// +optional
	SignedCertificate []byte `json:"signedCertificate,omitempty"`
	// +optional
	SigningRootCa []byte `json:"signingRootCa,omitempty"`
	// CertChain from the certificate's issuer up, without the root.
	// +optional
	CertChain []byte `json:"certChain,omitempty"`
}

// CertificateRequest is what a cluster asked for and was answered. Written by the management server for people to watch; changing it changes nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=cr,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Error",type=string,JSONPath=`.status.error`,priority=1
type CertificateRequest struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// +optional
	Spec CertificateRequestSpec `json:"spec,omitempty"`
	// +optional
	Status CertificateRequestStatus `json:"status,omitzero"`
}

// CertificateRequestList is a list of CertificateRequests.
//
// +kubebuilder:object:root=true
type CertificateRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CertificateRequest `json:"items"`
}
