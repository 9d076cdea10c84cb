package mesh

import "time"

// Types of items an agent reports upward. The value is the JSON of the type named.
const (
	ItemCluster = "cluster" // ClusterInfo; one item, named "cluster"
	ItemOutcome = "outcome" // Outcome; named by Ref.String()
	// ItemObject is the type of downward items: an object to apply, named by Ref.String(), value = its JSON manifest.
	ItemObject = "object"
)

// ClusterInfo is what a cluster's agent says of its cluster as a whole.
type ClusterInfo struct {
	TrustDomain       TrustDomain `json:"trustDomain,omitempty"`       // as its istiod has it
	IstioVersion      string      `json:"istioVersion,omitempty"`      // of its newest istiod
	Network           string      `json:"network,omitempty"`           // topology.istio.io/network of istio-system
	KubernetesVersion string      `json:"kubernetesVersion,omitempty"` // of its API server
	IstioNamespace    string      `json:"istioNamespace,omitempty"`    // where istiod runs
	RootNamespace     string      `json:"rootNamespace,omitempty"`     // whose policies hold in every namespace (MeshConfig rootNamespace); empty: IstioNamespace
	IstioRevision     string      `json:"istioRevision,omitempty"`     // label istio.io/rev of that istiod
	IstioClusterID    string      `json:"istioClusterID,omitempty"`    // what that istiod calls this cluster; telemetry and remote secrets use it
	// AutomaticPeering is PEERING_AUTOMATIC_LOCAL_GATEWAY of that istiod: "true", "false" or empty.
	AutomaticPeering string `json:"automaticPeering,omitempty"`
	// IgnoresGlobal: its MeshConfig is known and makes no Service global by label istio.io/global.
	IgnoresGlobal bool `json:"ignoresGlobal,omitempty"`
	// NodeAddresses are a few addresses of nodes, sorted; only where an east-west gateway is reached by node ports.
	NodeAddresses []string `json:"nodeAddresses,omitempty"`
	Warnings      []string `json:"warnings,omitempty"` // what the agent could not find out, and why
}

// How an agent marks what it applies.
const (
	// OwnerLabel with value OwnerValue marks what is ours. Where a person has removed it, the object is theirs.
	OwnerLabel = "owner.gloo.solo.io/name"
	// OwnerValue is the value of OwnerLabel.
	OwnerValue = "gloo-mesh"
	// FieldManager is the field manager of all that agents apply.
	FieldManager = "gloo-mesh-agent"
)

// Outcome is what became of one desired object in its cluster.
type Outcome struct {
	// Hash is the fingerprint of the manifest this outcome speaks of.
	Hash Fingerprint `json:"hash"`
	OK   bool        `json:"ok"`
	// Error is the cluster's answer when not OK.
	Error string `json:"error,omitempty"`
	// Drift is the last time somebody else changed or deleted the object, as far as the agent remembers.
	Drift *Drift `json:"drift,omitempty"`
	// Drifted: it is not as desired at present: being put back, or TakenOver.
	Drifted bool `json:"drifted,omitempty"`
	// TakenOver: somebody took our owner label off; it is theirs, and left alone.
	TakenOver bool `json:"takenOver,omitempty"`
	// Held: an override suspends it (annotation override-until): it is left as people make it.
	Held bool `json:"held,omitempty"`
	// Refused is what istiod says against it in status (a condition that is False), empty: nothing.
	Refused string `json:"refused,omitempty"`
}

// Drift is a change of one of our objects by somebody else.
type Drift struct {
	// Manager is the field manager that made the change ("kubectl-edit"); empty: the API server did not say.
	Manager string `json:"manager,omitempty"`
	// Operation is "Apply" or "Update" (managedFields), "Delete", or empty.
	Operation string `json:"operation,omitempty"`
	// At is when, by the API server's clock where managedFields say it, else by the agent's.
	At time.Time `json:"at,omitzero"`
	// What changed, in one sentence: paths and values, at most 300 bytes.
	What string `json:"what,omitempty"`
	// Corrected: it was put back since.
	Corrected bool `json:"corrected,omitempty"`
}

// MarshalText is lower-case hex.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Fingerprint) UnmarshalText(b []byte) error {
	v, err := ParseFingerprint(string(b))
	if err != nil {
		return err
	}
	*f = v
	return nil
}

// ItemKey names an item that an agent reported.
type ItemKey struct{ Type, Name string }
