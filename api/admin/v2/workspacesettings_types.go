package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GlobalSettings is the name of the WorkspaceSettings in the admin namespace that overrides every workspace's.
const GlobalSettings = "global"

// WorkspaceSettingsSpec says what a workspace shares and how its services are guarded.
//
// +kubebuilder:pruning:PreserveUnknownFields
type WorkspaceSettingsSpec struct {
	// ImportFrom other workspaces. They must export as well.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	ImportFrom []Sharing `json:"importFrom,omitempty"`
	// ExportTo other workspaces. They must import as well.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	ExportTo []Sharing `json:"exportTo,omitempty"`
	// +optional
	Options *WorkspaceOptions `json:"options,omitempty"`
}

// Sharing is a list of workspaces and what is shared with them.
//
// +kubebuilder:validation:XValidation:rule="has(self.workspaces) && size(self.workspaces) > 0",message="which workspaces? write workspaces: [{name: ...}], or [{name: '*'}] for every one"
// +kubebuilder:pruning:PreserveUnknownFields
type Sharing struct {
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	Workspaces []WorkspaceSelector `json:"workspaces,omitempty"`
	// Resources that are shared. None: every kind that can be shared.
	// +optional
	Resources []ResourceSelector `json:"resources,omitempty"`
}

// WorkspaceSelector selects workspaces that match name and labels.
//
// +kubebuilder:validation:XValidation:rule="has(self.name) || has(self.selector)",message="which workspace? write name or selector; name: '*' is every one"
// +kubebuilder:pruning:PreserveUnknownFields
type WorkspaceSelector struct {
	// Name of the workspace; may hold * and ?.
	// +optional
	Name string `json:"name,omitempty"`
	// Selector is matched with the labels of the Workspace.
	// +optional
	Selector map[string]string `json:"selector,omitempty"`
}

// ResourceKind is a kind that can be shared.
// +kubebuilder:validation:Enum=ALL;ROUTE_TABLE;SERVICE;VIRTUAL_DESTINATION;EXTERNAL_SERVICE;API_DOC;GRAPHQL_RESOLVER_MAP;GRAPHQL_SCHEMA;GRAPHQL_STITCHED_SCHEMA;EXTERNAL_WORKLOAD;CLOUD_PROVIDER
type ResourceKind string

// The kinds that Ambit knows; the others are accepted, and select nothing.
const (
	ResourceAll     ResourceKind = "ALL"
	ResourceService ResourceKind = "SERVICE"
)

// ResourceSelector selects resources that satisfy every field that is set.
//
// +kubebuilder:pruning:PreserveUnknownFields
type ResourceSelector struct {
	// Kind; absent: ALL.
	// +optional
	Kind ResourceKind `json:"kind,omitempty"`
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// +optional
	Name string `json:"name,omitempty"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +optional
	Cluster string `json:"cluster,omitempty"`
}

// WorkspaceOptions are options of a workspace.
//
// +kubebuilder:pruning:PreserveUnknownFields
type WorkspaceOptions struct {
	// +optional
	ServiceIsolation *ServiceIsolation `json:"serviceIsolation,omitempty"`
	// Federation makes Services global. Accepted; see Segment and solo.io/service-scope for ambient.
	// +optional
	Federation *Federation `json:"federation,omitempty"`
	// +kubebuilder:validation:MaxItems=100
	// +optional
	EastWestGateways []EastWestGatewaySelector `json:"eastWestGateways,omitempty"`
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	VirtualDestClientMode *ClientMode `json:"virtualDestClientMode,omitempty"`
	// TrimAllProxyConfig is of sidecars. Accepted; without effect in ambient, and status says so.
	// +optional
	TrimAllProxyConfig *bool `json:"trimAllProxyConfig,omitempty"`
}

// ServiceIsolation guards the services of a workspace.
//
// +kubebuilder:pruning:PreserveUnknownFields
type ServiceIsolation struct {
	// Enabled: a Service takes only clients of its own workspace and of those that import it. An AccessPolicy on it replaces this.
	// +optional
	Enabled bool `json:"enabled,omitempty"`
	// TrimProxyConfig is of sidecars. Accepted; without effect in ambient, and status says so.
	// +optional
	TrimProxyConfig *bool `json:"trimProxyConfig,omitempty"`
	// +optional
	EnforcementLayers *WorkspaceEnforcementLayers `json:"enforcementLayers,omitempty"`
}

// WorkspaceEnforcementLayers says where isolation is enforced.
//
// +kubebuilder:pruning:PreserveUnknownFields
type WorkspaceEnforcementLayers struct {
	// CNI: by network policies. Not supported: accepted, and reported in status.
	// +optional
	CNI *bool `json:"cni,omitempty"`
	// Mesh: by the data plane of the mesh. Absent: true.
	// +optional
	Mesh *bool `json:"mesh,omitempty"`
}

// Federation makes Services reachable from other clusters.
//
// +kubebuilder:pruning:PreserveUnknownFields
type Federation struct {
	// +optional
	Enabled bool `json:"enabled,omitempty"`
	// +optional
	HostSuffix string `json:"hostSuffix,omitempty"`
	// +optional
	ServiceSelector []ServiceSelector `json:"serviceSelector,omitempty"`
	// +kubebuilder:validation:MaxItems=100
	// +optional
	Ports []SettingsPort `json:"ports,omitempty"`
}

// ServiceSelector selects objects that satisfy every field that is set.
//
// +kubebuilder:pruning:PreserveUnknownFields
type ServiceSelector struct {
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// +optional
	Name string `json:"name,omitempty"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +optional
	Cluster string `json:"cluster,omitempty"`
	// +optional
	Workspace string `json:"workspace,omitempty"`
}

// SettingsPort names a port, by number or by name.
//
// +kubebuilder:validation:XValidation:rule="has(self.number) != has(self.name)",message="write number or name of the port, one of them"
// +kubebuilder:pruning:PreserveUnknownFields
type SettingsPort struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	Number uint32 `json:"number,omitempty"`
	// +optional
	Name string `json:"name,omitempty"`
}

// EastWestGatewaySelector selects east-west gateways.
//
// +kubebuilder:pruning:PreserveUnknownFields
type EastWestGatewaySelector struct {
	// +optional
	Selector *ServiceSelector `json:"selector,omitempty"`
	// +optional
	Port *SettingsPort `json:"port,omitempty"`
	// +optional
	TLSTerminationPort *SettingsPort `json:"tlsTerminationPort,omitempty"`
	// +optional
	HostInfoOverrides []HostInfo `json:"hostInfoOverrides,omitempty"`
}

// HostInfo is an address of a gateway.
//
// +kubebuilder:pruning:PreserveUnknownFields
type HostInfo struct {
	// +optional
	Addr string `json:"addr,omitempty"`
	// +optional
	Port uint32 `json:"port,omitempty"`
	// +optional
	PortType string `json:"portType,omitempty"`
}

// ClientMode says how clients reach a virtual destination. Sidecar-era: accepted, without effect.
//
// +kubebuilder:validation:XValidation:rule="[has(self.auto), has(self.sniRouting), has(self.tlsTermination)].filter(x, x).size() <= 1",message="write one of auto, sniRouting, tlsTermination"
// +kubebuilder:pruning:PreserveUnknownFields
type ClientMode struct {
	// +optional
	Auto *EmptyMode `json:"auto,omitempty"`
	// +optional
	SniRouting *EmptyMode `json:"sniRouting,omitempty"`
	// +optional
	TLSTermination *EmptyMode `json:"tlsTermination,omitempty"`
}

// EmptyMode has no fields.
//
// +kubebuilder:pruning:PreserveUnknownFields
type EmptyMode struct{}

// WorkspaceSettingsStatus is what the settings came to. Written by internal/report only, and only on change.
type WorkspaceSettingsStatus struct {
	// +optional
	Common CommonStatus `json:"common,omitzero"`
	// Workspace that the settings are of.
	// +optional
	Workspace *ObjectReference `json:"workspace,omitempty"`
	// +optional
	NumSelectedEastWestGateways uint32 `json:"numSelectedEastWestGateways,omitempty"`
	// +optional
	NumFederatedServices uint32 `json:"numFederatedServices,omitempty"`
}

// WorkspaceSettings are a workspace's: one in any of its namespaces on the management cluster where configuration is enabled.
// The one named global in the admin namespace overrides all.
//
// +kubebuilder:object:root=true
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=workspacesettings,shortName=wss,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.common.State.approval`
// +kubebuilder:printcolumn:name="Workspace",type=string,JSONPath=`.status.workspace.name`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.common.State.message`,priority=1
type WorkspaceSettings struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// +optional
	Spec WorkspaceSettingsSpec `json:"spec,omitempty"`
	// +optional
	Status WorkspaceSettingsStatus `json:"status,omitzero"`
}

// WorkspaceSettingsList is a list of settings.
//
// +kubebuilder:object:root=true
type WorkspaceSettingsList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []WorkspaceSettings `json:"items"`
}
