package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// RotationPhase is how far a rotation of the root is: of a whole mesh in a RootTrustPolicy, of one cluster in caStatus.
type RotationPhase string

// The phases, in order. After Finished it is Steady again.
const (
	PhaseSteady       RotationPhase = "Steady"       // one root signs; it is trusted, and the passive ones
	PhasePreparing    RotationPhase = "Preparing"    // intermediates under the new root are made and verified; nothing uses them
	PhaseAddingRoot   RotationPhase = "AddingRoot"   // both roots are trusted, the old one signs
	PhaseSwitching    RotationPhase = "Switching"    // both roots are trusted, the new one signs, on the canary first
	PhaseDroppingRoot RotationPhase = "DroppingRoot" // the new root signs, the old one is being dropped
	PhaseFinished     RotationPhase = "Finished"     // the keys under the old root are destroyed
	PhaseRollingBack  RotationPhase = "RollingBack"  // on the way back to the old root
)

// RootRole is what a root is for.
// +kubebuilder:validation:Enum=Active;Passive;Next;Retiring
type RootRole string

// The roles of roots.
const (
	RootActive   RootRole = "Active"   // intermediates are issued under it
	RootPassive  RootRole = "Passive"  // trusted, because the policy lists it
	RootNext     RootRole = "Next"     // to be active at the end of this rotation
	RootRetiring RootRole = "Retiring" // trusted as long as a leaf needs it
)

// Condition types of a RootTrustPolicy, beside Accepted.
const (
	ConditionRotating = "Rotating" // a rotation is under way; the message says what it waits for
	ConditionIssuing  = "Issuing"  // the certificate authority answers, and what it issues is good
	ConditionTrusted  = "Trusted"  // every verifier that was probed trusts what every cluster presents
)

// Reasons of the conditions above.
const (
	ReasonConflict   = "Conflict"   // Accepted=False: an older RootTrustPolicy selects the same mesh
	ReasonNoRotation = "NoRotation" // Rotating=False
	ReasonInProgress = "InProgress" // Rotating=True
	ReasonPaused     = "Paused"     // Rotating=True: somebody paused it
	ReasonBlocked    = "Blocked"    // Rotating=True: it waits for what does not come by itself
	ReasonIssued     = "Issued"     // Issuing=True
	ReasonIssueError = "IssueError" // Issuing=False
	ReasonProven     = "Proven"     // Trusted=True
	ReasonUnproven   = "Unproven"   // Trusted=False or Unknown
)

// RootTrustPolicyStatus is what became of a policy. Its state is flat, as published, not in common. Written by the management server only, and only on change.
type RootTrustPolicyStatus struct {
	// ObservedGeneration is the metadata.generation this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// State in one word.
	// +optional
	State ApprovalState `json:"state,omitempty"`
	// Message says why, in one sentence.
	// +optional
	Message string `json:"message,omitempty"`
	// Phase of the rotation; Steady: none.
	// +optional
	Phase RotationPhase `json:"phase,omitempty"`
	// Conditions say what is right and wrong, with reasons.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Roots that are trusted, by generation.
	// +optional
	// +listType=map
	// +listMapKey=fingerprint
	Roots []RootStatus `json:"roots,omitempty"`
	// Clusters it issues to, by name.
	// +optional
	// +listType=map
	// +listMapKey=name
	Clusters []ClusterTrustStatus `json:"clusters,omitempty"`
	// Revoked are intermediates that were revoked and have not ended, by cluster.
	// +optional
	// +listType=map
	// +listMapKey=fingerprint
	Revoked []RevokedCertificate `json:"revoked,omitempty"`
	// Rotation is the rotation engine's own record. It is no API: don't read or write it.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	Rotation *runtime.RawExtension `json:"rotation,omitempty"`
}

// RootStatus is a root.
type RootStatus struct {
	// Generation: 1 for the first root of the mesh, one more for each rotation; 0 for a passive one.
	// +optional
	Generation int64 `json:"generation,omitempty"`
	// Role says what it is for.
	Role RootRole `json:"role"`
	// Fingerprint is the SHA-256 of the certificate, lower-case hex.
	Fingerprint string `json:"fingerprint"`
	// Subject (RFC 4514).
	// +optional
	Subject string `json:"subject,omitempty"`
	// Issuer says who issued it or holds its key: "generated", "Secret gloo-mesh/my-root", "Vault https://vault:8200 pki".
	// +optional
	Issuer string `json:"issuer,omitempty"`
	// +optional
	NotAfter *metav1.Time `json:"notAfter,omitempty"`
}

// RevokedCertificate is an intermediate that its issuer no longer stands for.
type RevokedCertificate struct {
	Cluster string `json:"cluster"`
	// Fingerprint is the SHA-256 of the certificate, lower-case hex.
	Fingerprint string `json:"fingerprint"`
	// +optional
	Subject string `json:"subject,omitempty"`
	// Serial number, lower-case hex; with Root, whose list names it, it is what verifiers go by.
	Serial string `json:"serial"`
	// Root is the fingerprint of the root it was issued under.
	Root string `json:"root"`
	// +optional
	NotAfter *metav1.Time `json:"notAfter,omitempty"`
	// RevokedAt is when it goes, or went, on the list.
	// +optional
	RevokedAt *metav1.Time `json:"revokedAt,omitempty"`
	// By and Reason say who asked for it and why.
	// +optional
	By string `json:"by,omitempty"`
	// +optional
	Reason string `json:"reason,omitempty"`
	// Problem says why it is on no list; empty: it is on one.
	// +optional
	Problem string `json:"problem,omitempty"`
}

// RevocationState is how far revocation lists are in a cluster.
// +kubebuilder:validation:Enum=InForce;Pending;Withheld
type RevocationState string

// The states of revocation lists in a cluster.
const (
	RevocationInForce  RevocationState = "InForce"  // istiod hands them out in every namespace; notHonoured says who does not care
	RevocationPending  RevocationState = "Pending"  // on the way
	RevocationWithheld RevocationState = "Withheld" // they would do harm there
)

// RevocationStatus is what a cluster makes of revocation lists.
type RevocationStatus struct {
	State RevocationState `json:"state"`
	// Message says what it waits for or why they are withheld.
	// +optional
	Message string `json:"message,omitempty"`
	// Verifiers that accept HBONE, and those of them that refuse what is revoked.
	Verifiers int32 `json:"verifiers"`
	Honouring int32 `json:"honouring"`
	// NotHonoured says, in sentences, which verifiers accept what is revoked, or do in some cases, and why.
	// +optional
	NotHonoured []string `json:"notHonoured,omitempty"`
}

// ClusterTrustStatus is how a policy stands in one cluster.
type ClusterTrustStatus struct {
	Name string `json:"name"`
	// +optional
	Phase RotationPhase `json:"phase,omitempty"`
	// State: ACCEPTED when it is as the phase wants it and proven, PENDING on the way, WARNING or FAILED with a message.
	// +optional
	State ApprovalState `json:"state,omitempty"`
	// Message says what it waits for or what is wrong, in one sentence.
	// +optional
	Message string `json:"message,omitempty"`
	// Signer is the fingerprint of the intermediate that signs there.
	// +optional
	Signer string `json:"signer,omitempty"`
	// Roots are the fingerprints of the roots that are trusted there, sorted.
	// +optional
	Roots []string `json:"roots,omitempty"`
	// Until is when Signer ends.
	// +optional
	Until *metav1.Time `json:"until,omitempty"`
}

// RotationResult answers the auditor's question: was the rotation successful on this cluster?
// +kubebuilder:validation:Enum=None;InProgress;Blocked;Succeeded;RolledBack;Fenced
type RotationResult string

// The results of the last rotation on a cluster.
const (
	RotationNone       RotationResult = "None"       // there has been none
	RotationInProgress RotationResult = "InProgress" //
	RotationBlocked    RotationResult = "Blocked"    // it waits for this cluster; problems say for what
	RotationSucceeded  RotationResult = "Succeeded"  // proven by probes, at rotatedAt
	RotationRolledBack RotationResult = "RolledBack" //
	RotationFenced     RotationResult = "Fenced"     // somebody had it leave this cluster out
)

// ClusterCAStatus is a cluster's certificate authority, as it was found and not as it was written: `kubectl get kubernetescluster NAME -o jsonpath='{.status.caStatus}'`.
type ClusterCAStatus struct {
	// Rotation says how the last rotation ended on this cluster, RotatedAt when that was proven.
	// +optional
	Rotation RotationResult `json:"rotation,omitempty"`
	// +optional
	RotatedAt *metav1.Time `json:"rotatedAt,omitempty"`
	// Phase of the present one.
	// +optional
	Phase RotationPhase `json:"phase,omitempty"`
	// Message says how it stands, in one sentence.
	// +optional
	Message string `json:"message,omitempty"`
	// Policy is the RootTrustPolicy that holds here, "namespace/name"; empty: none does.
	// +optional
	Policy string `json:"policy,omitempty"`
	// Generation of the root that Intermediate is issued under.
	// +optional
	Generation int64 `json:"generation,omitempty"`
	// Owner of the Secret cacerts: "gloo-mesh", or somebody else's name ("cert-manager"); empty: there is none, istiod signs with a root of its own.
	// +optional
	Owner string `json:"owner,omitempty"`
	// Intermediate that the cluster's istiods sign with.
	// +optional
	Intermediate *CACertificate `json:"intermediate,omitempty"`
	// Roots that the cluster trusts.
	// +optional
	// +listType=map
	// +listMapKey=fingerprint
	Roots []CACertificate `json:"roots,omitempty"`
	// LastProbe is when the oldest probe was made that this rests on, written at most once an hour while nothing else changes.
	// +optional
	LastProbe *metav1.Time `json:"lastProbe,omitempty"`
	// Istiods are the replicas, each asked for itself.
	// +optional
	// +listType=map
	// +listMapKey=pod
	Istiods []IstiodCAStatus `json:"istiods,omitempty"`
	// Verifiers are what accepts HBONE, by kind.
	// +optional
	// +listType=map
	// +listMapKey=kind
	Verifiers []VerifierCAStatus `json:"verifiers,omitempty"`
	// Revocation is what it makes of revocation lists; absent: there are none.
	// +optional
	Revocation *RevocationStatus `json:"revocation,omitempty"`
	// Problems say what is wrong or could not be seen, each in one sentence with a fix.
	// +optional
	Problems []string `json:"problems,omitempty"`
}

// CACertificate is a certificate of a CA, in the words of `openssl x509`.
type CACertificate struct {
	// Fingerprint is the SHA-256 of the certificate, lower-case hex.
	Fingerprint string `json:"fingerprint"`
	// Generation of the root: of this one, or of the one it is issued under; 0: not ours.
	// +optional
	Generation int64 `json:"generation,omitempty"`
	// Subject and Issuer (RFC 4514).
	// +optional
	Subject string `json:"subject,omitempty"`
	// +optional
	Issuer string `json:"issuer,omitempty"`
	// Serial number, lower-case hex.
	// +optional
	Serial string `json:"serial,omitempty"`
	// Key algorithm, such as RSA-4096 or ECDSA-P256.
	// +optional
	Key string `json:"key,omitempty"`
	// +optional
	NotBefore *metav1.Time `json:"notBefore,omitempty"`
	// +optional
	NotAfter *metav1.Time `json:"notAfter,omitempty"`
}

// IstiodCAStatus is one replica of istiod.
type IstiodCAStatus struct {
	Pod string `json:"pod"`
	// +optional
	Revision string `json:"revision,omitempty"`
	// +optional
	Version string `json:"version,omitempty"`
	// MultiRoot: it takes a changed root without a restart (ISTIO_MULTIROOT_MESH).
	// +optional
	MultiRoot bool `json:"multiRoot,omitempty"`
	// Signer and Roots are fingerprints: what it signs with, and the bundle it hands out.
	// +optional
	Signer string `json:"signer,omitempty"`
	// +optional
	Roots []string `json:"roots,omitempty"`
	// Current: both are as the phase wants them.
	Current bool `json:"current"`
	// Problem says why it could not be asked, or what it does otherwise.
	// +optional
	Problem string `json:"problem,omitempty"`
}

// VerifierCAStatus counts the verifiers of one kind.
type VerifierCAStatus struct {
	// Kind is ztunnel, waypoint, eastwest or gateway.
	Kind string `json:"kind"`
	// Total that there are.
	Total int32 `json:"total"`
	// Trusting of them that accept every root of the phase, by a handshake.
	Trusting int32 `json:"trusting"`
	// Presenting of them whose certificate is issued under the root of the phase.
	Presenting int32 `json:"presenting"`
	// Unknown of them that could not be probed.
	// +optional
	Unknown int32 `json:"unknown,omitempty"`
	// LeafUntil is the latest end of their certificates.
	// +optional
	LeafUntil *metav1.Time `json:"leafUntil,omitempty"`
	// Behind are examples of those that don't trust, don't present or can't be probed, at most 5, "namespace/pod".
	// +optional
	Behind []string `json:"behind,omitempty"`
}
