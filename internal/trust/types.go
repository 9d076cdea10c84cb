package trust

import (
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Phase is a state of a rotation (facts: S0 to S5). Outside a rotation it is Steady.
type Phase string

// The phases, in order. A rollback walks them backwards: see Rotation.Back.
const (
	Steady       Phase = "Steady"       // S0: one root, all sign under it
	Preparing    Phase = "Preparing"    // S1: intermediates under the new root are made and certified; no cacerts changes
	AddingRoot   Phase = "AddingRoot"   // S2: bundles hold both roots; all sign under the old one
	Switching    Phase = "Switching"    // S3: bundles stay as they are, byte for byte; all sign under the new root, the canary first
	DroppingRoot Phase = "DroppingRoot" // S4: bundles hold the new root only
	Finished     Phase = "Finished"     // S5: keys under the old root are destroyed
)

// Rotation is what has to survive a restart: kept in RootTrustPolicy.status. It holds decisions only, nothing that can be observed again. Store it, with optimistic concurrency, before
// anything of the Step that it came in is done.
type Rotation struct {
	Phase Phase `json:"phase"`
	// Back: a rollback. The phases are walked backwards, each barrier mirrored; what a phase directs is the same in both directions.
	Back bool `json:"back,omitempty"`
	// Far is the farthest phase that any cluster may have been told of and that has not been proven undone since. A rollback from S4 proves anew what one from S3 can rely on (facts: T17).
	Far Phase `json:"far,omitempty"`
	// Current is the root that all sign under outside a rotation, and the old one during it. Zero: none yet.
	Current Root `json:"current,omitzero"`
	// Incoming is the new root; nil outside a rotation.
	Incoming *Root `json:"incoming,omitempty"`
	// Passive are trusted besides, in every bundle, and sign nothing. They stay as they are during a rotation.
	Passive []Root `json:"passive,omitempty"`
	// Generation is the highest ever given to a root.
	Generation mesh.Generation `json:"generation,omitempty"`
	// Turn counts the phases entered, of all rotations; what is restarted once per phase is told by it.
	Turn int64 `json:"turn,omitempty"`
	// Began is when each phase of this rotation began, last time.
	Began map[Phase]time.Time `json:"began,omitempty"`
	// CanaryProven is when the canary cluster was seen to sign under the new root.
	CanaryProven time.Time `json:"canaryProven,omitzero"`
	// CrossSigned: chains under the new root carry it as certified by the old one, until S4.
	CrossSigned bool `json:"crossSigned,omitempty"`
	// Members are the clusters, by name.
	Members map[mesh.ClusterName]Member `json:"members,omitempty"`
}

// Root is a root certificate.
type Root struct {
	Generation  mesh.Generation  `json:"generation"`
	Certificate []byte           `json:"certificate"` // DER
	Fingerprint mesh.Fingerprint `json:"fingerprint"`
	// Subject is its distinguished name (RFC 4514), as in mesh.VerifierGroup.Accepts.
	Subject string `json:"subject"`
	// CrossSigned is the same subject and key certified by the root before it (DER); empty: there is none.
	CrossSigned []byte `json:"crossSigned,omitempty"`
	// Authority says where it came from, as Want.Authority did.
	Authority string `json:"authority,omitempty"`
}

// Member is what is decided about one cluster.
type Member struct {
	// Admitted: it has been proven to be in the phase's exact state, so it may be peered with the others, and the others wait for it. Until then it is on its way (Joining).
	Admitted bool `json:"admitted,omitempty"`
	// Joining is how far a cluster is on its own way from the root it came with: Preparing, AddingRoot, Switching, DroppingRoot. Empty: Admitted, or left alone.
	Joining Phase `json:"joining,omitempty"`
	// Toward is the state that Joining leads to; the way begins anew when it changes.
	Toward string `json:"toward,omitempty"`
	// Kept is the Number of the last Kept: an older one, stored before a crash, does not count.
	Kept int64 `json:"kept,omitempty"`
	// Signing is the slot that a cluster on its way was last told to sign with.
	Signing string `json:"signing,omitempty"`
	// Old and New are the slots under Current and Incoming, by ID; empty: none yet.
	Old string `json:"old,omitempty"`
	New string `json:"new,omitempty"`
	// Fresh is a slot in the making that is to replace Replaces (renewal); Retired is one whose key istiod may still use.
	Fresh    string `json:"fresh,omitempty"`
	Replaces string `json:"replaces,omitempty"`
	Retired  string `json:"retired,omitempty"`
	// Serial numbers the slots that the cluster ever had.
	Serial int `json:"serial,omitempty"`
	// Turn and Directed are the number and the fingerprint of the last directive.
	Turn     int64            `json:"turn,omitempty"`
	Directed mesh.Fingerprint `json:"directed,omitzero"`
	// Ready is since when all of its istiods, root ConfigMaps and webhooks have been seen as directed; ReadyFor is the bundle and the signer's root that this is about. The bound counts
	// from it.
	Ready    time.Time `json:"ready,omitzero"`
	ReadyFor string    `json:"readyFor,omitempty"`
	// Fence is set while the cluster is cut off from the others by decision: nobody waits for it.
	Fence *Request `json:"fence,omitempty"`
}

// Request is an act of a person.
type Request struct {
	By  string    `json:"by"`
	Why string    `json:"why,omitempty"`
	At  time.Time `json:"at,omitzero"`
}

// Want is what the policy and people ask for at present. All of it is level-triggered: a request holds for as long as it is in here.
type Want struct {
	Policy string // "namespace/name"
	// Authority identifies what is to issue: driver, place and root algorithm ("generated RSA-4096", "vault https://vault:8200 pki issuer 3f2a"). A change of it asks for the root anew.
	Authority string
	// Generation asks for a root of at least this generation: `meshctl trust rotate`. 0: whatever there is.
	Generation mesh.Generation
	// Root is the answer to the last Step.Root; nil: none yet. One that differs from Rotation.Current starts a rotation.
	Root *Root

	// Passive are roots to be trusted besides (passiveCertificateAuthorities). A change takes effect outside a rotation.
	Passive []Root

	Organization string        // of intermediates' subjects; default "gloo-mesh"
	Algorithm    string        // of intermediates' keys: "RSA-4096"
	TTL          time.Duration // of intermediates; default 365 days
	RenewRatio   float64       // renewal begins when this part of the lifetime is left; default 0.5
	Restart      bool          // autoRestartPods
	Adopt        bool          // take over a cacerts that somebody else owns
	CrossSign    bool          // issue Root.CrossSigned with the chains of S3

	Canary mesh.ClusterName // switches first; empty: none
	Soak   time.Duration    // between the canary's proof and the others' switch

	// Emergency: the old root is compromised. Everything is restarted, nothing waits for what can't be observed, no canary, no cross-signature.
	Emergency *Request
	Paused    *Request // no further phase begins
	// Rollback to Rotation.Current, if the generation of the incoming root is Rollback.Generation. While it stands that root is not tried again.
	Rollback *Rollback
	Fences   map[mesh.ClusterName]Fence

	// CRLs are PEM lists by the root that signed them.
	CRLs map[mesh.Fingerprint][]byte
	// Revoked are intermediates, by SHA-256 of the certificate, that the lists name or are about to: a member that signs with one gets another at once.
	Revoked map[mesh.Fingerprint]bool

	// LongestLeaf is the longest certificate that anything in the mesh asks istiod for, if somebody vouches for it (24 h by default for ztunnel and proxies: SECRET_TTL). 0: nobody
	// does, so that MAX_WORKLOAD_CERT_TTL of each istiod counts (90 days by default).
	LongestLeaf time.Duration
	// ForeignClients: something that can't be probed has certificates from istiod (VMs, CSR clients of one's own). Then every barrier also waits for the bound.
	ForeignClients bool
	// FileLag is how long a root ConfigMap takes to become a file in a Pod (the kubelet's sync period and cache); default 90 s, negative: none.
	FileLag time.Duration
}

// Rollback asks for one.
type Rollback struct {
	Request
	Generation mesh.Generation `json:"generation"`
}

// Fence asks to go on without a cluster.
type Fence struct {
	Request
	// Effective: the other clusters have acknowledged that its remote secrets and gateway addresses are gone. Before that nothing goes on without it.
	Effective bool
}

// Cluster is one cluster as the hub knows it. The fleet has to be complete: a cluster that is not in it has been deregistered.
type Cluster struct {
	Name        mesh.ClusterName
	TrustDomain mesh.TrustDomain // empty: unknown
	Connected   bool
	Since       time.Time // of Connected or not Connected
	// Offset is the server's clock minus the agent's.
	Offset      time.Duration
	Observation *mesh.TrustObservation // nil: none since the hub began
	// Requests are the slots for which a certificate request is at hand.
	Requests map[string]bool
	// Issued is by slot: every certificate signed for a slot of this cluster that may still be in use.
	Issued map[string]Issued
	// Kept is what Step.Keep said last; nil: nothing.
	Kept *Kept
}

// Issued is an intermediate certificate as it was signed and checked.
type Issued struct {
	Root      mesh.Fingerprint `json:"root"`   // the root that Chain verifies to
	Signer    mesh.Fingerprint `json:"signer"` // of the first certificate of Chain
	Chain     []byte           `json:"chain"`  // PEM: the intermediate, then its issuers up to but not including the root
	NotBefore time.Time        `json:"notBefore"`
	NotAfter  time.Time        `json:"notAfter"`
	Algorithm string           `json:"algorithm,omitempty"` // of its key
}

// Kept is what a cluster trusted and signed with when its own way to the mesh's root began. It is too big for Rotation: keep it with the cluster's certificates, before acting.
type Kept struct {
	Number int64  `json:"number"`
	Bundle []byte `json:"bundle,omitempty"` // root-cert.pem, byte for byte; what is directed on the way begins with it
	Roots  []Root `json:"roots,omitempty"`  // Bundle, read; the mesh's have a generation
	// Slot is the one it signs with until everybody trusts the mesh's root; empty: nothing signs yet.
	Slot string `json:"slot,omitempty"`
	// Taken is the slot for the key that was there, if it was none of ours; Take says where the key is, and Issued is its certificate.
	Taken  string `json:"taken,omitempty"`
	Take   string `json:"take,omitempty"`
	Issued Issued `json:"issued,omitzero"`
}

// Step is what to do: store Rotation and Keep, then the rest, in any order, any number of times.
type Step struct {
	Rotation Rotation
	// Directives are what is in force for each cluster. One without an entry keeps what it has: nothing is withdrawn.
	Directives map[mesh.ClusterName]*mesh.TrustDirective
	Keep       map[mesh.ClusterName]Kept
	// Root asks the authority for a root, to be given as Want.Root; nil: no need.
	Root *RootOrder
	// Sign are slots to be certified; the result goes into Cluster.Issued.
	Sign []SignOrder
	// Reason says why the phase is what it is: "every verifier of 3 clusters trusts both roots".
	Reason string
	// Blockers are what the next phase waits for, by cluster. Findings are what keeps a rotation from starting.
	Blockers   []Blocker
	Findings   []Finding
	Conditions []mesh.Condition
	// Wait is when time alone may change the answer; 0: only news can.
	Wait time.Duration
}

// RootOrder asks for a root.
type RootOrder struct {
	Generation mesh.Generation
	Authority  string
	Reason     string
}

// SignOrder asks for an intermediate: path length 0, key usage certificate and CRL signing, back-dated by at least 10 minutes (facts: T15).
type SignOrder struct {
	Cluster mesh.ClusterName
	Slot    string
	Root    mesh.Fingerprint
	TTL     time.Duration
}

// Blocker is one thing that is waited for.
type Blocker struct {
	Cluster mesh.ClusterName `json:"cluster,omitempty"`
	What    string           `json:"what"` // which party: "istiod istiod-7d9-abc", "2 waypoints (prod/wp-1, prod/wp-2)"
	Why     string           `json:"why"`  // one sentence, with what to do
	// Until is when the bound lets it pass, for what can't be observed; zero: only news can.
	Until time.Time `json:"until,omitzero"`
}

// Finding is what Preflight has to say.
type Finding struct {
	Cluster mesh.ClusterName `json:"cluster,omitempty"`
	Code    string           `json:"code"`
	Refuses bool             `json:"refuses"` // the rotation does not start
	Message string           `json:"message"` // with what to do
	Source  string           `json:"source,omitempty"`
}
