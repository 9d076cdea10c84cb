package v2

// ApprovalState says how far a resource got. Public users' scripts compare these strings.
// +kubebuilder:validation:Enum=PENDING;ACCEPTED;INVALID;WARNING;FAILED;UNLICENSED
type ApprovalState string

// The approval states, in the words of the product we are compatible with.
const (
	ApprovalPending  ApprovalState = "PENDING"  // valid, not yet in effect: a cluster whose agent has never connected
	ApprovalAccepted ApprovalState = "ACCEPTED" // valid and translated
	ApprovalInvalid  ApprovalState = "INVALID"  // user error, not translated
	ApprovalWarning  ApprovalState = "WARNING"  // valid, but something it refers to is missing
	ApprovalFailed   ApprovalState = "FAILED"   // translated, but not applied somewhere
)

// State is the processing state of one generation of a resource.
type State struct {
	// ObservedGeneration is the metadata.generation this state speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Approval is the state in one word.
	// +optional
	Approval ApprovalState `json:"approval,omitempty"`
	// Message says why, in one sentence.
	// +optional
	Message string `json:"message,omitempty"`
}

// CommonStatus is the part of a status that every kind shares. Its JSON key State is capitalised: published scripts read .status.common.State.approval.
type CommonStatus struct {
	// State is the processing state.
	// +optional
	State State `json:"State,omitzero"`
	// WorkspaceConditions counts conditions by workspace.
	// +optional
	WorkspaceConditions map[string]uint32 `json:"workspaceConditions,omitempty"`
}
