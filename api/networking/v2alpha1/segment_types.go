package v2alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// Condition types of a Segment.
const (
	// ConditionAccepted says whether it is valid and owns its hosts.
	ConditionAccepted = "Accepted"
	// ConditionResolved says whether any Service is selected.
	ConditionResolved = "Resolved"
	// ConditionProgrammed says whether the istiod of every cluster concerned serves it.
	ConditionProgrammed = "Programmed"
)

// Reasons of the conditions of a Segment.
const (
	ReasonValid               = "Valid"
	ReasonInvalid             = "Invalid"
	ReasonHostConflict        = "HostConflict"        // an older Segment has one of its hosts
	ReasonResolved            = "Resolved"            // Services are found
	ReasonNoServices          = "NoServices"          // nothing in any cluster is selected
	ReasonClustersPending     = "ClustersPending"     // not in force everywhere yet
	ReasonClustersUnsupported = "ClustersUnsupported" // the istiod of a cluster would not honour it
	ReasonProgrammed          = "Programmed"
)

// SegmentSpec makes Services global: those that match in any registered cluster answer together, for callers in every cluster.
//
// +kubebuilder:pruning:PreserveUnknownFields
type SegmentSpec struct {
	// Hosts that callers dial, as DNS names. Empty: the Services' own names only (SERVICE.NAMESPACE.svc.CLUSTER-DOMAIN).
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	// +optional
	Hosts []string `json:"hosts,omitempty"`
	// Selector says which Services, by their own labels (not those of their Pods).
	Selector SegmentSelector `json:"selector"`
	// Ports of the hosts. Empty: those of the Services.
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="self.all(p, self.exists_one(q, q.number == p.number))",message="each port number once"
	// +listType=atomic
	// +optional
	Ports []SegmentPort `json:"ports,omitempty"`
}

// SegmentSelector selects Services.
//
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="has(self.__namespace__) || (has(self.labels) && size(self.labels) > 0)",message="give a namespace, labels or both: an empty selector would make every Service of the mesh global"
type SegmentSelector struct {
	// Namespace of the Services, the same in every cluster. Empty: any.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Labels that a Service must have, all of them. Empty: any.
	// +kubebuilder:validation:MaxProperties=16
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
}

// SegmentPort is a port of the hosts. It is also the port of the Service: the number does not change on the way.
//
// +kubebuilder:pruning:PreserveUnknownFields
type SegmentPort struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Number uint32 `json:"number"`
	// Protocol, as Istio names it; case does not matter. Empty: TCP.
	// +kubebuilder:validation:Pattern=`(?i)^(HTTP|HTTP2|HTTPS|GRPC|GRPC-WEB|TCP|TLS|MONGO)$`
	// +optional
	Protocol string `json:"protocol,omitempty"`
}

// SegmentStatus is what became of a Segment.
type SegmentStatus struct {
	// +optional
	Common adminv2.CommonStatus `json:"common,omitzero"`
	// Conditions: Accepted, Resolved, Programmed.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Clusters where a Service is selected or the hosts should answer, by name.
	// +listType=map
	// +listMapKey=name
	// +optional
	Clusters []SegmentClusterStatus `json:"clusters,omitempty"`
}

// SegmentClusterStatus is what became of a Segment in one cluster.
type SegmentClusterStatus struct {
	Name string `json:"name"`
	// Services selected there, as "namespace/name", sorted; at most 20.
	// +optional
	Services []string `json:"services,omitempty"`
	// Labelled: every one of Services carries the label that its istiod understands.
	Labelled bool `json:"labelled"`
	// Programmed: the istiod there was seen to serve the Segment to workloads.
	Programmed bool `json:"programmed"`
	// Endpoints that its istiod serves for the Segment, those of other clusters included; a whole other network counts as one.
	// +optional
	Endpoints int32 `json:"endpoints,omitempty"`
	// VIP that the first host resolves to there.
	// +optional
	VIP string `json:"vip,omitempty"`
	// Message says why not, in one sentence; empty: all is well.
	// +optional
	Message string `json:"message,omitempty"`
}

// Segment makes Services global: one name, answered by the endpoints of every cluster. Two API groups have this kind: write segments.networking.solo.io to kubectl to mean this one.
//
// +kubebuilder:object:root=true
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Hosts",type=string,JSONPath=`.spec.hosts`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.common.State.approval`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Clusters",type=string,JSONPath=`.status.clusters[*].name`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Programmed")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Segment struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              SegmentSpec `json:"spec"`
	// +optional
	Status SegmentStatus `json:"status,omitzero"`
}

// SegmentList is a list of Segments.
//
// +kubebuilder:object:root=true
type SegmentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Segment `json:"items"`
}
