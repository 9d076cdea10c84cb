package mesh

import "time"

// Items of trust on the relay. Values are the JSON of the type named; each cluster has at most one of each.
const (
	// ItemTrust named "trust" is, downward, a TrustDirective: what a cluster's certificate authority should be.
	// Upward it is a TrustObservation: what it is.
	ItemTrust = "trust"
	// ItemTrustRequest is, upward, an IntermediateRequest, named by the ID of its slot.
	ItemTrustRequest = "trustrequest"
)

// Generation numbers the roots of a mesh: 1 for the first, one more for each rotation. A cluster has at most one intermediate per generation and renewal.
type Generation int64

// TrustDirective is what the hub wants of a cluster's plugged-in CA (Secret istio-system/cacerts). It says the whole of it: an agent that holds the
// last one needs nothing else, and applying it twice is applying it once. No directive means: leave everything as it is.
type TrustDirective struct {
	// Policy is the RootTrustPolicy it follows from, "namespace/name".
	Policy string `json:"policy"`
	// Turn grows with every change of the directive. Without it one that says the same as an earlier one would have its fingerprint, and an observation made then would pass for one made
	// now.
	Turn int64 `json:"turn,omitempty"`
	// Intermediates are the slots to hold, by ID. For one without Chain the agent makes a key, if it has none, and sends an IntermediateRequest.
	// The key of a slot that is not listed is destroyed, unless it is in use.
	Intermediates []IntermediateOrder `json:"intermediates,omitempty"`
	// Signer is the ID of the slot that istiod is to sign with. Empty: cacerts is not written yet.
	Signer string `json:"signer,omitempty"`
	// Bundle is root-cert.pem, byte for byte (istiod before 1.30 compares bytes, istio#59909).
	Bundle []byte `json:"bundle,omitempty"`
	// CRL is ca-crl.pem up to the signer's own: the lists of the roots in Bundle. The agent appends an empty list signed by the signer's key, in the same update, since istiod
	// refuses a set that lacks one of any certificate of cert-chain.pem (istio#61075). Empty: none; istiod does not unload one it has.
	CRL []byte `json:"crl,omitempty"`
	// Adopt lets the agent overwrite a cacerts that somebody else owns.
	Adopt bool `json:"adopt,omitempty"`
	// Restart asks for restarts, each once per token, after cacerts is as directed.
	Restart RestartOrder `json:"restart,omitzero"`
}

// IntermediateOrder is one slot: a key of the cluster and what is to be certified for it.
type IntermediateOrder struct {
	// ID is unique in the cluster for ever, e.g. "g2" or "g2-r1" (its first renewal).
	ID         string     `json:"id"`
	Generation Generation `json:"generation"`
	// Organization and CommonName are the subject; they carry cluster and ID, so that no two CAs share a DN (facts: T8).
	Organization string `json:"organization"`
	CommonName   string `json:"commonName"`
	// URIs go into the SAN: SPIFFE IDs of istiod's service account.
	URIs []string `json:"uris,omitempty"`
	// Algorithm of the key: "RSA-4096", "ECDSA-P256", ...
	Algorithm string `json:"algorithm"`
	// Take is where the key is copied from, once, instead of being made: TakeCACerts or TakeSelfSigned; empty: it is made. A slot that is taken over sends no request: its Chain is
	// given, and its first certificate fits the key. It lets a cluster keep signing by its old root until everybody trusts the new one (istio#44932, istio#53961).
	Take string `json:"take,omitempty"`
	// Chain is PEM: the intermediate, then its issuers up to but not including the root, then a cross-signed root where one is used. Empty: not issued yet.
	Chain []byte `json:"chain,omitempty"`
	// Root is PEM, the root that Chain ends in. With it the agent can check a chain whose root is not in Bundle yet (S1); without it such a chain is checked as far as it goes, and in
	// full before istiod gets it.
	Root []byte `json:"root,omitempty"`
}

// The values of IntermediateOrder.Take.
const (
	TakeCACerts    = "cacerts"         // the key of istio-system/cacerts as the agent finds it
	TakeSelfSigned = "istio-ca-secret" // istiod's own self-signed root: Secret istio-ca-secret, keys ca-cert.pem and ca-key.pem
)

// RestartOrder holds tokens; a part is restarted once when its token differs from the last one done. Order: istiod, ready, root ConfigMap everywhere,
// ztunnel, gateways, waypoints.
type RestartOrder struct {
	Istiod    string `json:"istiod,omitempty"`
	DataPlane string `json:"dataPlane,omitempty"`
}

// IntermediateRequest asks the hub to have a slot certified. The private key stays in the cluster.
type IntermediateRequest struct {
	ID  string `json:"id"`
	CSR []byte `json:"csr"` // DER, PKCS#10
}

// TrustObservation is what an agent found its cluster presents and trusts, not what was written. Sent on change.
type TrustObservation struct {
	// Applied is the fingerprint of the directive (its JSON) that was in force before the first probe of this observation began. An observation
	// that speaks of another directive proves nothing about the present one.
	Applied Fingerprint `json:"applied,omitzero"`
	// At is when the oldest probe in it was made, by the agent's clock, to the minute.
	At time.Time `json:"at,omitzero"`
	// Ordered: every istiod had answered before the first of ConfigMaps, Webhooks and Verifiers was looked at. Otherwise a verifier may have been seen as it should be, and then
	// have fetched the old bundle from a replica that was seen only after it had reloaded: such an observation passes no barrier (facts: T5).
	Ordered bool `json:"ordered,omitempty"`
	// Certificates are the DER of every CA certificate mentioned, by SHA-256 of it. Leaves are not in it.
	Certificates map[Fingerprint][]byte `json:"certificates,omitempty"`
	// Secret is istio-system/cacerts as stored; nil: there is none.
	Secret *CACerts `json:"secret,omitempty"`
	// Slots are the keys at hand, by ID.
	Slots []Slot `json:"slots,omitempty"`
	// Istiods are all replicas of all revisions, each asked for itself (CSR probe).
	Istiods []IstiodProbe `json:"istiods,omitempty"`
	// Verifiers are all that accept HBONE on 15008 (handshake probe), those that look the same as one entry.
	Verifiers []VerifierGroup `json:"verifiers,omitempty"`
	// ConfigMaps are the root ConfigMaps istio-ca-root-cert, those with the same bundle as one entry. Clients of istiod trust by them.
	ConfigMaps []BundleGroup `json:"configMaps,omitempty"`
	// CRLs are the ConfigMaps istio-ca-crl, in which istiod hands out revocation lists, those that hold the same as one entry. Absent where they may not be watched.
	CRLs []CRLGroup `json:"crls,omitempty"`
	// Webhooks are the caBundles of istiod's webhooks, as ConfigMaps.
	Webhooks []BundleGroup `json:"webhooks,omitempty"`
	// Restarted are the tokens of the last restarts done, and what is under way.
	Restarted RestartState `json:"restarted,omitzero"`
	// Problems say what could not be done or observed, each in one sentence with a fix.
	Problems []string `json:"problems,omitempty"`
}

// CACerts is what the Secret cacerts holds; never its key.
type CACerts struct {
	// Owner is whose it is: OwnerValue for us, else a name for people ("cert-manager", "Argo CD", "field manager kubectl-create").
	Owner string `json:"owner"`
	// TLSLayout: keys tls.crt, tls.key, ca.crt, as cert-manager writes them.
	TLSLayout bool `json:"tlsLayout,omitempty"`
	// Signer is the intermediate, Chain all of cert-chain.pem in order, Roots root-cert.pem in order.
	Signer Fingerprint   `json:"signer"`
	Chain  []Fingerprint `json:"chain,omitempty"`
	Roots  []Fingerprint `json:"roots,omitempty"`
	// Bundle is root-cert.pem as stored, byte for byte: a bundle that adds to it must contain these bytes (istiod before 1.30). Given where Owner is not ours.
	Bundle []byte `json:"bundle,omitempty"`
	// CRL: there is a ca-crl.pem; this is its SHA-256.
	CRL Fingerprint `json:"crl,omitzero"`
	// Foreign says who changed it since we wrote it (field manager), empty: nobody.
	Foreign string `json:"foreign,omitempty"`
}

// Slot is a key at hand.
type Slot struct {
	ID        string      `json:"id"`
	PublicKey Fingerprint `json:"publicKey"`         // SHA-256 of the SubjectPublicKeyInfo
	Signer    Fingerprint `json:"signer,omitzero"`   // certificate issued for it
	Checked   string      `json:"checked,omitempty"` // why the chain that came for it was refused; empty: it is good
}

// IstiodProbe is one istiod replica, asked for a certificate at its own address.
type IstiodProbe struct {
	Pod      string `json:"pod"`
	Revision string `json:"revision,omitempty"`
	Version  string `json:"version,omitempty"`
	// MultiRoot: ISTIO_MULTIROOT_MESH is on: it takes a changed root without a restart.
	MultiRoot bool `json:"multiRoot,omitempty"`
	// MaxLeafTTL in seconds is the longest certificate it grants (MAX_WORKLOAD_CERT_TTL; default 90 days).
	MaxLeafTTL int64 `json:"maxLeafTTL,omitempty"`
	// Signer signed the probe's leaf; Chain is what came between leaf and roots; Roots is the bundle in its answer.
	Signer Fingerprint   `json:"signer,omitzero"`
	Chain  []Fingerprint `json:"chain,omitempty"`
	Roots  []Fingerprint `json:"roots,omitempty"`
	// Serving is the chain of its own certificate on 15012, without the leaf.
	Serving []Fingerprint `json:"serving,omitempty"`
	// Error says why it could not be asked; the other fields then hold the last good answer, or nothing.
	Error string `json:"error,omitempty"`
}

// VerifierGroup is a number of workloads on 15008 that present certificates of the same issuer and accept the same roots.
type VerifierGroup struct {
	// Kind is "ztunnel", "waypoint", "eastwest", "gateway" or "sidecar". The last two don't accept HBONE: they have an Error always.
	Kind string `json:"kind"`
	// Version is the proxy's, where known.
	Version string `json:"version,omitempty"`
	// Chain is what they present after the leaf.
	Chain []Fingerprint `json:"chain,omitempty"`
	// Issuer is the issuer of the leaf, found in Chain or in Secret and Istiods; zero: unknown.
	Issuer Fingerprint `json:"issuer,omitzero"`
	// Accepts are the distinguished names (RFC 4514) of the roots they accept, sorted. Known is false where the peer does not list them.
	Accepts []string `json:"accepts,omitempty"`
	Known   bool     `json:"known"`
	// CRL: of ztunnel, the one of the node is told to read revocation lists (CRL_PATH; chart value peerCaCrl.enabled).
	CRL bool `json:"crl,omitempty"`
	// LeafUntil is the latest NotAfter of their leaves.
	LeafUntil time.Time `json:"leafUntil,omitzero"`
	Count     int       `json:"count"`
	// Examples are at most 5 of them, "namespace/pod".
	Examples []string `json:"examples,omitempty"`
	// Error says why they could not be probed.
	Error string `json:"error,omitempty"`
}

// BundleGroup is a number of objects that hold the same bundle.
type BundleGroup struct {
	Roots    []Fingerprint `json:"roots,omitempty"`
	Count    int           `json:"count"`
	Examples []string      `json:"examples,omitempty"`
}

// CRLGroup is a number of objects that hold the same revocation lists.
type CRLGroup struct {
	SHA256   Fingerprint `json:"sha256,omitzero"` // of ca-crl.pem, as CACerts.CRL; zero: the key is not there
	Count    int         `json:"count"`
	Examples []string    `json:"examples,omitempty"`
}

// RestartState is how far restarts are.
type RestartState struct {
	Done RestartOrder `json:"done,omitzero"`
	// Doing says what is under way, for people: "istiod 1/2 ready".
	Doing string `json:"doing,omitempty"`
}
