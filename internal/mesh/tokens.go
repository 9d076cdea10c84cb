package mesh

import "time"

// Items of remote-secret tokens on the relay.
const (
	// ItemTokens named "tokens" is, downward, a TokenDirective: whom a cluster lets in and whose tokens it takes. Upward it is a TokenReport.
	ItemTokens = "tokens"
	// ItemTokenEnvelope is a TokenEnvelope: upward named by the cluster it is for, downward by the cluster it is from. The hub copies its bytes.
	ItemTokenEnvelope = "tokenenvelope"
)

// TokensNamespace is where an agent of namespace agent keeps its keys and what its tokens are bound to. Nothing else is in it, and when it goes every token of the cluster dies.
func TokensNamespace(agent string) string { return agent + "-tokens" }

// TokenPeerAnnotation on a Secret of ours names the other cluster that it is about.
const TokenPeerAnnotation = "admin.gloo.solo.io/token-peer" //nolint:gosec // a name

// TokenGeneration orders the tokens that one cluster made for another: it only grows, and is never used twice for the same pair.
type TokenGeneration int64

// TokenKey is the public half of the keys by which agents exchange tokens. It proves itself: Proof is Sign's signature over cluster and Seal.
type TokenKey struct {
	Seal  []byte `json:"seal"`  // X25519, for HPKE (RFC 9180)
	Sign  []byte `json:"sign"`  // Ed25519; what peers pin
	Proof []byte `json:"proof"` // by Sign
}

// TokenDirective says the whole of what a cluster is to do about tokens. Without one everything stays as it is; a peer that is not listed is no peer.
type TokenDirective struct {
	// Lifetime of a token and RotateEvery, in seconds. The API server may grant less.
	Lifetime    int64 `json:"lifetime"`
	RotateEvery int64 `json:"rotateEvery"`
	// Peers are sorted by Cluster.
	Peers []TokenPeer `json:"peers"`
}

// TokenPeer is one other cluster, as its partner is to treat it.
type TokenPeer struct {
	Cluster ClusterName `json:"cluster"`
	// Registration is the UID of its KubernetesCluster: with a new one a new key is accepted.
	Registration string `json:"registration"`
	// IstioID is what istiods call it: the key in its remote secret.
	IstioID string `json:"istioID"`
	// Key is its public key; nil: not known yet.
	Key *TokenKey `json:"key,omitempty"`
	// ReadsSecrets: its istiods sync only with a token that may list every Secret (istio#59845); nil: not known yet, so that it gets none.
	ReadsSecrets *bool `json:"readsSecrets,omitempty"`
	// Mint: it gets tokens. False: what it got dies at once.
	Mint bool `json:"mint"`
	// Take: its tokens become a remote secret. False: the secret goes.
	Take bool `json:"take"`
	// Retire: the tokens made for it of older generations than this die.
	Retire TokenGeneration `json:"retire,omitempty"`
	// Synced: its istiods are on this generation (or a newer one).
	Synced TokenGeneration `json:"synced,omitempty"`
}

// TokenEnvelope carries a credential from one agent to another. All but Sealed is in the clear, and bound to it; Signature is the sender's over everything.
type TokenEnvelope struct {
	From       ClusterName     `json:"from"`
	To         ClusterName     `json:"to"`
	Generation TokenGeneration `json:"generation"`
	Issued     time.Time       `json:"issued"`
	Expires    time.Time       `json:"expires"`
	// Encapsulated and Sealed are HPKE's; the plaintext is a TokenCredential.
	Encapsulated []byte `json:"encapsulated"`
	Sealed       []byte `json:"sealed"`
	Signature    []byte `json:"signature"`
}

// TokenCredential is what opens an API server. It exists in the clear only inside the two agents and in the remote secret.
type TokenCredential struct {
	Server string `json:"server"` // URL of the API server as other clusters reach it
	CA     []byte `json:"ca"`     // PEM
	Token  string `json:"token"`
}

// TokenReport is what an agent did and saw. It holds no credential.
type TokenReport struct {
	Key TokenKey `json:"key"`
	// Server is the address of this cluster's API server that peers are given, and where it is from.
	Server       string `json:"server,omitempty"`
	ServerSource string `json:"serverSource,omitempty"`
	// Minted are the tokens that this cluster accepts, by peer and generation.
	Minted []MintedToken `json:"minted,omitempty"`
	// Unminted says why peers get no new token, by peer.
	Unminted map[ClusterName]string `json:"unminted,omitempty"`
	// ReadsSecrets: this cluster's istiods sync only with a token that may list every Secret; nil: none was seen yet.
	ReadsSecrets *bool `json:"readsSecrets,omitempty"`
	// Held is what this cluster's istiods have of each peer, by peer.
	Held []HeldToken `json:"held,omitempty"`
	// Problems are sentences with what to do, sorted.
	Problems []string `json:"problems,omitempty"`
}

// MintedToken is a token that lives as long as the object it is bound to.
type MintedToken struct {
	Peer       ClusterName     `json:"peer"`
	Generation TokenGeneration `json:"generation"`
	Issued     time.Time       `json:"issued"`
	Expires    time.Time       `json:"expires"`
}

// HeldToken is a remote secret and how far istiods are with it.
type HeldToken struct {
	Peer       ClusterName     `json:"peer"`
	Generation TokenGeneration `json:"generation,omitempty"` // in the secret
	Issued     time.Time       `json:"issued,omitzero"`
	Expires    time.Time       `json:"expires,omitzero"`
	// Synced is the newest generation that every istiod was seen to be synced with; zero: none since the agent began.
	Synced TokenGeneration `json:"synced,omitempty"`
	// Foreign names a remote secret of this cluster that somebody else made, which is left alone; ours is then not written.
	Foreign string `json:"foreign,omitempty"`
	// Problem says what keeps it from going on.
	Problem string `json:"problem,omitempty"`
	// Note says what is not quite right and needs nobody at present.
	Note string `json:"note,omitempty"`
}
