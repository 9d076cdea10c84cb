package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// TLSMode says which connections a destination takes.
// +kubebuilder:validation:Enum=DISABLE;PERMISSIVE;STRICT
type TLSMode string

// The TLS modes.
const (
	TLSDisable    TLSMode = "DISABLE"    // plain text
	TLSPermissive TLSMode = "PERMISSIVE" // plain text and mutual TLS
	TLSStrict     TLSMode = "STRICT"     // mutual TLS only
)

// PolicyState says how a policy stands in one cluster.
// +kubebuilder:validation:Enum=InForce;Pending;Drifted;Rejected;Unenforceable;Overridden
type PolicyState string

// The states of a policy in a cluster, from good to bad for who relies on it.
const (
	PolicyInForce       PolicyState = "InForce"       // the cluster has every object of the policy, as it should be
	PolicyPending       PolicyState = "Pending"       // not applied yet: on its way, or the cluster is away
	PolicyOverridden    PolicyState = "Overridden"    // a PolicyOverride suspends it there
	PolicyDrifted       PolicyState = "Drifted"       // somebody changed or took over an object, and it is not back yet
	PolicyRejected      PolicyState = "Rejected"      // the cluster's API server or istiod refused an object
	PolicyUnenforceable PolicyState = "Unenforceable" // the cluster can't enforce it (outside the mesh, a waypoint is missing)
)

// Condition types of an AccessPolicy.
const (
	ConditionAccepted   = "Accepted"   // valid, in scope of a workspace or mesh-wide
	ConditionResolved   = "Resolved"   // its selectors select something; the message says what, and why not
	ConditionProgrammed = "Programmed" // every cluster that should have it has it
	ConditionEnforced   = "Enforced"   // nothing in any cluster allows more than it says
)

// Reasons of the conditions above. Scripts and alerts may branch on them.
const (
	ReasonValid                  = "Valid"                  // Accepted=True
	ReasonInvalid                = "Invalid"                // Accepted=False: a rule of internal/validate
	ReasonNoWorkspace            = "NoWorkspace"            // Accepted=False: its namespace belongs to no workspace
	ReasonNamespaceConflict      = "NamespaceConflict"      // Accepted=False: two workspaces claim its namespace
	ReasonResolved               = "Resolved"               // Resolved=True
	ReasonNoDestinations         = "NoDestinations"         // Resolved=False: no Service or workload is selected
	ReasonNoClients              = "NoClients"              // Resolved=False: no client is selected, so nobody is allowed
	ReasonServiceAccountsByPods  = "ServiceAccountsByPods"  // Resolved=True: the labels are of workloads, not of ServiceAccounts
	ReasonStaleClients           = "StaleClients"           // Resolved=Unknown: a client's cluster has not reported; what was known of it is kept
	ReasonInForce                = "InForce"                // Programmed=True
	ReasonNothingToApply         = "NothingToApply"         // Programmed=True: no cluster has the destination, or all of it is dry run
	ReasonClustersPending        = "ClustersPending"        // Programmed=False
	ReasonClustersRejected       = "ClustersRejected"       // Programmed=False
	ReasonClustersDrifted        = "ClustersDrifted"        // Programmed=False
	ReasonClustersOverridden     = "ClustersOverridden"     // Programmed=False
	ReasonEnforced               = "Enforced"               // Enforced=True
	ReasonUnenforceable          = "Unenforceable"          // Enforced=False: outside the mesh, or L7 without a waypoint
	ReasonWidened                = "Widened"                // Enforced=False: something that is not ours allows more
	ReasonDryRun                 = "DryRun"                 // Enforced=False: every rule is dryRun
	ReasonEnforcementLayerAbsent = "EnforcementLayerAbsent" // Enforced=False: enforcementLayers leaves out the mesh
)

// Reasons of Events on an AccessPolicy.
const (
	EventDriftCorrected  = "DriftCorrected"  // somebody changed an object in a cluster; it was put back
	EventTakenOver       = "TakenOver"       // somebody took the owner label off an object: it is reported, not fought
	EventWidened         = "Widened"         // something in a cluster allows more than the policy
	EventOverridden      = "Overridden"      // a PolicyOverride began
	EventOverrideEnded   = "OverrideEnded"   // it expired or was deleted
	EventPolicyCreated   = "PolicyCreated"   // by whom
	EventPolicyChanged   = "PolicyChanged"   // by whom
	EventPolicyDeleted   = "PolicyDeleted"   // by whom
	EventPolicyNotTaken  = "PolicyNotTaken"  // a cluster refused an object
	EventPolicyProgramed = "PolicyInForce"   // in force in every cluster that should have it
	EventUnenforceable   = "Unenforceable"   // a cluster can't enforce it
	EventNoDestination   = "NoDestinations"  // nothing is selected any more
	EventNoClients       = "NoClients"       // nobody is selected any more
	EventNamespaceClaims = "NamespaceClaims" // two workspaces claim the namespace
)

// AnnotationChangedBy and AnnotationChangedAt are written by admission from the request's user whenever spec changes, and can't be set by hand.
const (
	AnnotationChangedBy = "security.policy.gloo.solo.io/changed-by"
	AnnotationChangedAt = "security.policy.gloo.solo.io/changed-at"
)

// AnnotationHoldUntil on a translated object (RFC 3339) tells the agent that a PolicyOverride suspends it: until then the agent leaves the object as it finds it.
// AnnotationHoldReason says why and by whom. The agent compares with its own clock, so a lease ends although the server is away.
const (
	AnnotationHoldUntil  = "gloo.solo.io/override-until"
	AnnotationHoldReason = "gloo.solo.io/override-reason"
)

// AccessPolicySpec says who may call the destinations.
//
// Unknown fields reach the webhook, which refuses them with the name of the field that was probably meant; pruned, they would vanish silently.
//
// +kubebuilder:pruning:PreserveUnknownFields
type AccessPolicySpec struct {
	// ApplyToDestinations selects Services. Ignored when applyToWorkloads is set. Both empty: every Service of the workspace.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	ApplyToDestinations []DestinationSelector `json:"applyToDestinations,omitempty"`
	// ApplyToWorkloads selects workloads by the labels of their Pods; new Pods are covered at once.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	ApplyToWorkloads []WorkloadSelector `json:"applyToWorkloads,omitempty"`
	// Config is what applies to them.
	// +optional
	Config *AccessPolicyConfig `json:"config,omitempty"`
}

// AccessPolicyConfig is what applies to the destinations.
//
// +kubebuilder:validation:XValidation:rule="!has(self.authn) || !has(self.authn.tlsMode) || self.authn.tlsMode != 'DISABLE' || !has(self.authz) || !has(self.authz.allowedClients) || size(self.authz.allowedClients) == 0",message="clients are known by their certificates, and tlsMode: DISABLE asks for none: authz.allowedClients needs STRICT or PERMISSIVE"
// +kubebuilder:validation:XValidation:rule="!has(self.authn) || !has(self.authn.tlsMode) || self.authn.tlsMode != 'DISABLE' || !has(self.authzList) || self.authzList.all(a, !has(a.allowedClients) || size(a.allowedClients) == 0)",message="clients are known by their certificates, and tlsMode: DISABLE asks for none: allowedClients in authzList needs STRICT or PERMISSIVE"
// +kubebuilder:pruning:PreserveUnknownFields
type AccessPolicyConfig struct {
	// Authn says how clients must authenticate.
	// +optional
	Authn *Authentication `json:"authn,omitempty"`
	// Authz says who may call. Ignored when authzList is set. Absent (and no authzList): everybody may.
	// +optional
	Authz *Authorization `json:"authz,omitempty"`
	// AuthzList are alternatives: a request that any entry allows is allowed.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	AuthzList []Authorization `json:"authzList,omitempty"`
	// EnforcementLayers says where the policy is enforced; absent: in the mesh.
	// +optional
	EnforcementLayers *EnforcementLayers `json:"enforcementLayers,omitempty"`
}

// Authentication says how clients must authenticate.
//
// +kubebuilder:validation:XValidation:rule="!has(self.tlsMode) || !has(self.mtls) || !has(self.mtls.required) || self.mtls.required == (self.tlsMode == 'STRICT')",message="tlsMode and mtls contradict each other: required: true is tlsMode: STRICT, keep one of them"
// +kubebuilder:pruning:PreserveUnknownFields
type Authentication struct {
	// TLSMode of the destinations.
	// +optional
	TLSMode TLSMode `json:"tlsMode,omitempty"`
	// MTLS is another way to write tlsMode: required: true is STRICT.
	// +optional
	MTLS *MutualTLS `json:"mtls,omitempty"`
}

// MutualTLS asks for mutual TLS.
//
// +kubebuilder:pruning:PreserveUnknownFields
type MutualTLS struct {
	// Required: plain text is refused.
	// +optional
	Required bool `json:"required,omitempty"`
}

// EnforcementLayers says where a policy is enforced.
//
// +kubebuilder:pruning:PreserveUnknownFields
type EnforcementLayers struct {
	// CNI: by network policies. Not supported: accepted, and reported in status.
	// +optional
	CNI *bool `json:"cni,omitempty"`
	// Mesh: by the data plane of the mesh. Absent: true.
	// +optional
	Mesh *bool `json:"mesh,omitempty"`
}

// Authorization allows requests that satisfy every field that is set. Without allowedClients it allows nobody.
//
// +kubebuilder:pruning:PreserveUnknownFields
type Authorization struct {
	// AllowedClients are alternatives. An empty entry ({}) is any authenticated identity. No entry: nobody.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	AllowedClients []IdentitySelector `json:"allowedClients,omitempty"`
	// AllowedPaths of HTTP requests: exact, prefix ("/x*") or suffix ("*x"). Needs a waypoint.
	// +optional
	AllowedPaths []string `json:"allowedPaths,omitempty"`
	// AllowedMethods of HTTP requests. Needs a waypoint.
	// +optional
	AllowedMethods []string `json:"allowedMethods,omitempty"`
	// Match holds more conditions on HTTP requests. Needs a waypoint.
	// +optional
	Match *RequestMatch `json:"match,omitempty"`
	// AllowedIPBlocks are the source addresses (IP or CIDR) of the connection.
	// +optional
	AllowedIPBlocks []string `json:"allowedIpBlocks,omitempty"`
	// AllowedRemoteIPBlocks are the original client's addresses (X-Forwarded-For, PROXY protocol). Needs a waypoint.
	// +optional
	AllowedRemoteIPBlocks []string `json:"allowedRemoteIpBlocks,omitempty"`
	// DryRun: not enforced; status says what it would do.
	// +optional
	DryRun bool `json:"dryRun,omitempty"`
}

// RequestMatch holds conditions on HTTP requests.
//
// +kubebuilder:pruning:PreserveUnknownFields
type RequestMatch struct {
	// Request holds conditions on the request.
	// +optional
	Request *RequestConditions `json:"request,omitempty"`
}

// RequestConditions are conditions on an HTTP request.
//
// +kubebuilder:pruning:PreserveUnknownFields
type RequestConditions struct {
	// Headers by name.
	// +optional
	Headers map[string]HeaderValues `json:"headers,omitempty"`
}

// HeaderValues says which values a header may have.
//
// +kubebuilder:pruning:PreserveUnknownFields
type HeaderValues struct {
	// +optional
	Values []string `json:"values,omitempty"`
	// +optional
	NotValues []string `json:"notValues,omitempty"`
}

// IdentitySelector selects clients. All fields unset: any authenticated identity.
//
// +kubebuilder:pruning:PreserveUnknownFields
type IdentitySelector struct {
	// ServiceAccountSelector selects ServiceAccounts by their own labels. When none has them but workloads do, the workloads' ServiceAccounts are
	// taken, and status says so.
	// +optional
	ServiceAccountSelector *ObjectSelector `json:"serviceAccountSelector,omitempty"`
	// ExternalWorkloadSelector selects workloads outside Kubernetes. Not supported: it selects nobody, and status says so.
	// +optional
	ExternalWorkloadSelector *ObjectSelector `json:"externalWorkloadSelector,omitempty"`
	// RequestIdentityMatcher matches the identity of a JWT. Needs a waypoint.
	// +optional
	RequestIdentityMatcher *RequestIdentityMatcher `json:"requestIdentityMatcher,omitempty"`
}

// RequestIdentityMatcher matches request principals ("issuer/subject").
//
// +kubebuilder:pruning:PreserveUnknownFields
type RequestIdentityMatcher struct {
	// +optional
	RequestPrincipals []string `json:"requestPrincipals,omitempty"`
	// +optional
	NotRequestPrincipals []string `json:"notRequestPrincipals,omitempty"`
}

// ObjectSelector selects objects that satisfy every field that is set; unset is any (within the policy's scope).
//
// +kubebuilder:pruning:PreserveUnknownFields
type ObjectSelector struct {
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

// DestinationKind is what a DestinationSelector selects.
// +kubebuilder:validation:Enum=SERVICE;VIRTUAL_DESTINATION;EXTERNAL_SERVICE
type DestinationKind string

// The kinds of destinations. Only Services are supported by an AccessPolicy.
const (
	DestinationService            DestinationKind = "SERVICE"
	DestinationVirtualDestination DestinationKind = "VIRTUAL_DESTINATION"
	DestinationExternalService    DestinationKind = "EXTERNAL_SERVICE"
)

// DestinationSelector selects Services by their own labels.
//
// +kubebuilder:pruning:PreserveUnknownFields
type DestinationSelector struct {
	// +optional
	Selector *ObjectSelector `json:"selector,omitempty"`
	// Kind of destination; absent: SERVICE.
	// +optional
	Kind DestinationKind `json:"kind,omitempty"`
	// Port of the Service; absent: all.
	// +optional
	Port *PortSelector `json:"port,omitempty"`
}

// PortSelector names a port of a Service, by number or by name.
//
// +kubebuilder:validation:XValidation:rule="has(self.number) != has(self.name)",message="write number or name of the port, one of them"
// +kubebuilder:pruning:PreserveUnknownFields
type PortSelector struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	Number uint32 `json:"number,omitempty"`
	// +optional
	Name string `json:"name,omitempty"`
}

// WorkloadSelector selects workloads by the labels of their Pods.
//
// +kubebuilder:pruning:PreserveUnknownFields
type WorkloadSelector struct {
	// +optional
	Selector *ObjectSelector `json:"selector,omitempty"`
}

// AccessPolicyStatus is what became of a policy. Written by internal/report only, and only on change.
type AccessPolicyStatus struct {
	// Common is the published part of the status.
	// +optional
	Common adminv2.CommonStatus `json:"common,omitzero"`
	// +optional
	NumSelectedDestinationPorts uint32 `json:"numSelectedDestinationPorts,omitempty"`
	// +optional
	NumSelectedNamespaces uint32 `json:"numSelectedNamespaces,omitempty"`
	// +optional
	NumAllowedServiceAccounts uint32 `json:"numAllowedServiceAccounts,omitempty"`
	// Conditions say what is right and wrong, with reasons.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// InForce counts the clusters, as "2/3".
	// +optional
	InForce string `json:"inForce,omitempty"`
	// Clusters says how the policy stands in each cluster that should have it, by name. At most 200 are listed, the worst first.
	// +optional
	// +listType=map
	// +listMapKey=cluster
	Clusters []ClusterPolicyStatus `json:"clusters,omitempty"`
	// AllowedServiceAccounts are the identities that are allowed, sorted; at most 100 are listed.
	// +optional
	AllowedServiceAccounts []string `json:"allowedServiceAccounts,omitempty"`
	// Workspace that the policy belongs to; empty: the whole mesh.
	// +optional
	Workspace string `json:"workspace,omitempty"`
	// ChangedBy is the user who wrote the present spec, as the API server authenticated them.
	// +optional
	ChangedBy string `json:"changedBy,omitempty"`
}

// ClusterPolicyStatus is how a policy stands in one cluster.
type ClusterPolicyStatus struct {
	Cluster string      `json:"cluster"`
	State   PolicyState `json:"state"`
	// Message says why, in one sentence.
	// +optional
	Message string `json:"message,omitempty"`
	// Objects that enforce it there, as "Kind namespace/name"; at most 10 are listed.
	// +optional
	Objects []string `json:"objects,omitempty"`
	// Widened says what else in the cluster allows more than the policy; at most 10 are listed.
	// +optional
	Widened []string `json:"widened,omitempty"`
	// LastDrift is the last time somebody changed an object of the policy there.
	// +optional
	LastDrift *DriftStatus `json:"lastDrift,omitempty"`
	// Override suspends the policy there.
	// +optional
	Override *OverrideStatus `json:"override,omitempty"`
}

// DriftStatus is a change of one of our objects by somebody else.
type DriftStatus struct {
	// Object as "Kind namespace/name".
	Object string `json:"object"`
	// Manager is the field manager that made the change ("kubectl-edit"); empty: the API server did not say.
	// +optional
	Manager string `json:"manager,omitempty"`
	// At is when the API server recorded the change.
	// +optional
	At *metav1.Time `json:"at,omitempty"`
	// What changed, in one sentence.
	// +optional
	What string `json:"what,omitempty"`
	// Corrected: it was put back.
	// +optional
	Corrected bool `json:"corrected,omitempty"`
}

// OverrideStatus is a lease in force.
type OverrideStatus struct {
	Name   string      `json:"name"`
	By     string      `json:"by,omitempty"`
	Reason string      `json:"reason,omitempty"`
	Until  metav1.Time `json:"until"`
}

// AccessPolicy says who may call a destination, in every cluster where it lives.
//
// +kubebuilder:object:root=true
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=ap,categories=solo-io
// +kubebuilder:metadata:labels={"app=gloo-mesh-apis","app.kubernetes.io/name=gloo-mesh-apis"}
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.common.State.approval`
// +kubebuilder:printcolumn:name="In-Force",type=string,JSONPath=`.status.inForce`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Clients",type=integer,JSONPath=`.status.numAllowedServiceAccounts`,priority=1
// +kubebuilder:printcolumn:name="Destinations",type=integer,JSONPath=`.status.numSelectedDestinationPorts`,priority=1
// +kubebuilder:printcolumn:name="Changed By",type=string,JSONPath=`.status.changedBy`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.common.State.message`,priority=1
type AccessPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// +optional
	Spec AccessPolicySpec `json:"spec,omitempty"`
	// +optional
	Status AccessPolicyStatus `json:"status,omitzero"`
}

// AccessPolicyList is a list of policies.
//
// +kubebuilder:object:root=true
type AccessPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AccessPolicy `json:"items"`
}
