package mesh

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
	IstioRevision     string      `json:"istioRevision,omitempty"`     // label istio.io/rev of that istiod
	IstioClusterID    string      `json:"istioClusterID,omitempty"`    // what that istiod calls this cluster; telemetry and remote secrets use it
	Warnings          []string    `json:"warnings,omitempty"`          // what the agent could not find out, and why
}

// Outcome is what became of one desired object in its cluster.
type Outcome struct {
	// Hash is the fingerprint of the manifest this outcome speaks of.
	Hash Fingerprint `json:"hash"`
	OK   bool        `json:"ok"`
	// Error is the cluster's answer when not OK.
	Error string `json:"error,omitempty"`
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
