package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ConnectionState is what the STATUS column shows.
// +kubebuilder:validation:Enum=Pending;Connected;Disconnected
type ConnectionState string

// The states of a cluster's agent as the management server sees them.
const (
	ConnectionPending      ConnectionState = "Pending"      // registered, its agent has never connected
	ConnectionConnected    ConnectionState = "Connected"    // a session is open
	ConnectionDisconnected ConnectionState = "Disconnected" // it was connected once and is not now
)

// Condition types of a KubernetesCluster.
const (
	ConditionAccepted          = "Accepted"          // the resource is valid
	ConditionConnected         = "Connected"         // its agent has a session
	ConditionWarm              = "Warm"              // its inventory has been received in full since the server started
	ConditionClockSynchronised = "ClockSynchronised" // agent and server clocks agree within bounds
	ConditionVersionSupported  = "VersionSupported"  // agent and server versions may work together
	ConditionIdentityVerified  = "IdentityVerified"  // certificate, name and kube-system UID belong together
	ConditionProgrammed        = "Programmed"        // its agent has applied everything the server wants there
	ConditionPeered            = "Peered"            // every cluster that is peered with it is reached from it
)

// Reasons of the conditions above. Scripts and alerts may branch on them.
const (
	ReasonValid             = "Valid"             // Accepted=True
	ReasonInvalid           = "Invalid"           // Accepted=False: the message says the mistake and the fix
	ReasonConnected         = "Connected"         // Connected=True
	ReasonNeverConnected    = "NeverConnected"    // Connected=False: no agent of this name has come yet
	ReasonDisconnected      = "Disconnected"      // Connected=False: it was here and is gone
	ReasonRefused           = "Refused"           // Connected or IdentityVerified=False: an agent came and was sent away
	ReasonInventoryComplete = "InventoryComplete" // Warm=True
	ReasonInventoryPending  = "InventoryPending"  // Warm=False
	ReasonWarmingSkipped    = "WarmingSkipped"    // Warm=True by spec.skipWarming
	ReasonClocksAgree       = "ClocksAgree"       // ClockSynchronised=True
	ReasonClockSkew         = "ClockSkew"         // ClockSynchronised=False
	ReasonVersionsMatch     = "VersionsMatch"     // VersionSupported=True
	ReasonAgentTooOld       = "AgentTooOld"       // VersionSupported=False
	ReasonAgentTooNew       = "AgentTooNew"       // VersionSupported=False
	ReasonVersionUnknown    = "VersionUnknown"    // VersionSupported=Unknown: not of the form X.Y.Z
	ReasonVerified          = "Verified"          // IdentityVerified=True
	ReasonApplied           = "Applied"           // Programmed=True
	ReasonApplying          = "Applying"          // Programmed=False: on its way
	ReasonApplyFailed       = "ApplyFailed"       // Programmed=False: the cluster's API server refused an object
	ReasonPeersReachable    = "PeersReachable"    // Peered=True
	ReasonNoPeers           = "NoPeers"           // Peered=True: there is nobody to be peered with
	ReasonPeeringOff        = "SwitchedOff"       // Peered=True: the cluster takes no part, as somebody wished
	ReasonPeersUnreachable  = "PeersUnreachable"  // Peered=False: the east-west gateways of some can't be reached from it
	ReasonPeersMissing      = "PeersMissing"      // Peered=False: some can't be peered with it; the message says why
	ReasonPeersPending      = "PeersPending"      // Peered=Unknown: not applied or not probed yet
)

// Reasons of Events on a KubernetesCluster.
const (
	EventRegistered   = "Registered"
	EventDeregistered = "Deregistered"
	EventConnected    = "Connected"
	EventDisconnected = "Disconnected"
	EventRefused      = "Refused"
)

// AnnotationRegisteredBy and AnnotationRegisteredAt are written by admission from the request's user and can't be changed afterwards.
const (
	AnnotationRegisteredBy = "admin.gloo.solo.io/registered-by"
	AnnotationRegisteredAt = "admin.gloo.solo.io/registered-at"
)

// KubernetesClusterSpec is what a person says of a cluster.
//
// Unknown fields reach the webhook, which refuses them with the name of the field that was probably meant; pruned, they would vanish silently.
//
// +kubebuilder:pruning:PreserveUnknownFields
type KubernetesClusterSpec struct {
	// ClusterDomain is the DNS domain of the cluster's Services.
	// +optional
	// +kubebuilder:default=cluster.local
	ClusterDomain string `json:"clusterDomain,omitempty"`
	// SkipWarming lets the server translate before this cluster has reported its inventory (see safe mode).
	// +optional
	SkipWarming bool `json:"skipWarming,omitempty"`
}

// KubernetesClusterStatus is what the management server knows of a cluster. Written by internal/report only, and only on change.
type KubernetesClusterStatus struct {
	// Common is the published part of the status.
	// +optional
	Common CommonStatus `json:"common,omitzero"`
	// Conditions say what is right and wrong, with reasons.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Connection is the state of the agent's session.
	// +optional
	Connection ConnectionState `json:"connection,omitempty"`
	// AgentVersion is the version the agent reported last.
	// +optional
	AgentVersion string `json:"agentVersion,omitempty"`
	// LastHeartbeat is the time of a recent heartbeat, written at most once a minute while nothing else changes.
	// +optional
	LastHeartbeat *metav1.Time `json:"lastHeartbeat,omitempty"`
	// TrustDomain is the SPIFFE trust domain of the cluster's mesh, as its istiod has it.
	// +optional
	TrustDomain string `json:"trustDomain,omitempty"`
	// RegisteredBy is the user who created this resource, as the API server authenticated them.
	// +optional
	RegisteredBy string `json:"registeredBy,omitempty"`
	// RegisteredAt is when.
	// +optional
	RegisteredAt *metav1.Time `json:"registeredAt,omitempty"`
	// ClusterUID is the UID of the cluster's kube-system namespace, taken from its first session. Another UID under this name is refused.
	// +optional
	ClusterUID string `json:"clusterUID,omitempty"`
	// IstioVersion is the version of the cluster's istiod.
	// +optional
	IstioVersion string `json:"istioVersion,omitempty"`
	// Network is the Istio network of the cluster.
	// +optional
	Network string `json:"network,omitempty"`
	// ClockSkew is how far the agent's clock is from the server's, when more than a few seconds ("10m0s behind").
	// +optional
	ClockSkew string `json:"clockSkew,omitempty"`
	// Peering is where other clusters reach this one.
	// +optional
	Peering *ClusterPeering `json:"peering,omitempty"`
	// Peers are the other clusters as they are reached from this one: those in trouble first, then by name, at most 20; status.peering counts them all.
	// +optional
	// +listType=map
	// +listMapKey=cluster
	// +kubebuilder:validation:MaxItems=20
	Peers []ClusterPeer `json:"peers,omitempty"`
	// CaStatus tells the cluster's certificate authority and the phase of a rotation.
	// +optional
	CaStatus *ClusterCAStatus `json:"caStatus,omitempty"`
}

// KubernetesCluster is a member of the mesh. Its name is the identity of the cluster: the name in its agent's certificate.
//
// +kubebuilder:object:root=true
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=kc,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Agent-Version",type=string,JSONPath=`.status.agentVersion`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.connection`
// +kubebuilder:printcolumn:name="Last Heartbeat",type=string,JSONPath=`.status.lastHeartbeat`,priority=1
// +kubebuilder:printcolumn:name="Trust Domain",type=string,JSONPath=`.status.trustDomain`,priority=1
// +kubebuilder:printcolumn:name="Created",type=string,JSONPath=`.metadata.creationTimestamp`,priority=1
// +kubebuilder:printcolumn:name="Registered By",type=string,JSONPath=`.status.registeredBy`,priority=1
// +kubebuilder:printcolumn:name="Approval",type=string,JSONPath=`.status.common.State.approval`,priority=1
type KubernetesCluster struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// +optional
	Spec KubernetesClusterSpec `json:"spec,omitempty"`
	// +optional
	Status KubernetesClusterStatus `json:"status,omitzero"`
}

// KubernetesClusterList is a list of clusters.
//
// +kubebuilder:object:root=true
type KubernetesClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []KubernetesCluster `json:"items"`
}
