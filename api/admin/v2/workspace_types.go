package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WorkspaceSpec says which namespaces of which clusters belong to a team.
//
// +kubebuilder:pruning:PreserveUnknownFields
type WorkspaceSpec struct {
	// WorkloadClusters select clusters and their namespaces. None: an empty workspace.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	WorkloadClusters []ClusterSelector `json:"workloadClusters,omitempty"`
}

// ClusterSelector selects namespaces of the clusters that match name and selector.
//
// +kubebuilder:validation:XValidation:rule="has(self.namespaces) && size(self.namespaces) > 0",message="an entry without namespaces selects nothing: write namespaces: [{name: ...}], or [{name: '*'}] for every one"
// +kubebuilder:pruning:PreserveUnknownFields
type ClusterSelector struct {
	// Name of the cluster; may hold * and ?. Absent: any.
	// +optional
	Name string `json:"name,omitempty"`
	// Selector is matched with the labels of the KubernetesCluster.
	// +optional
	Selector map[string]string `json:"selector,omitempty"`
	// Namespaces of these clusters. At least one.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	Namespaces []NamespaceSelector `json:"namespaces,omitempty"`
	// ConfigEnabled: resources of the mesh are read there. Absent: true.
	// +optional
	ConfigEnabled *bool `json:"configEnabled,omitempty"`
}

// NamespaceSelector selects namespaces that match name and labels.
//
// +kubebuilder:pruning:PreserveUnknownFields
type NamespaceSelector struct {
	// Name of the namespace; may hold * and ?. Absent: any.
	// +optional
	Name string `json:"name,omitempty"`
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// +optional
	ConfigEnabled *bool `json:"configEnabled,omitempty"`
}

// ObjectReference names an object of a cluster.
type ObjectReference struct {
	Name string `json:"name"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +optional
	Cluster string `json:"cluster,omitempty"`
}

// ResourceCount counts the resources of one kind in a workspace.
type ResourceCount struct {
	// +optional
	Imported uint32 `json:"imported,omitempty"`
	// +optional
	Exported uint32 `json:"exported,omitempty"`
	// +optional
	Private uint32 `json:"private,omitempty"`
}

// WorkspaceStatus is what a workspace came to. Written by internal/report only, and only on change.
type WorkspaceStatus struct {
	// +optional
	Common CommonStatus `json:"common,omitzero"`
	// WorkspaceSettings that apply.
	// +optional
	WorkspaceSettings *ObjectReference `json:"workspaceSettings,omitempty"`
	// +optional
	NumSelectedClusters uint32 `json:"numSelectedClusters,omitempty"`
	// +optional
	NumSelectedNamespaces uint32 `json:"numSelectedNamespaces,omitempty"`
	// NumResources by kind.
	// +optional
	NumResources map[string]ResourceCount `json:"numResources,omitempty"`
	// PolicyCounts by kind.
	// +optional
	PolicyCounts map[string]uint32 `json:"policyCounts,omitempty"`
	// DestinationCounts by kind.
	// +optional
	DestinationCounts map[string]uint32 `json:"destinationCounts,omitempty"`
	// +optional
	NumImportedWorkspaces uint32 `json:"numImportedWorkspaces,omitempty"`
}

// Workspace is a team's part of the mesh. Only those of the admin namespace count.
//
// +kubebuilder:object:root=true
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=ws,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.common.State.approval`
// +kubebuilder:printcolumn:name="Clusters",type=integer,JSONPath=`.status.numSelectedClusters`
// +kubebuilder:printcolumn:name="Namespaces",type=integer,JSONPath=`.status.numSelectedNamespaces`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.common.State.message`,priority=1
type Workspace struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// +optional
	Spec WorkspaceSpec `json:"spec,omitempty"`
	// +optional
	Status WorkspaceStatus `json:"status,omitzero"`
}

// WorkspaceList is a list of workspaces.
//
// +kubebuilder:object:root=true
type WorkspaceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Workspace `json:"items"`
}
