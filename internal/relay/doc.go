// Package relay joins the management server (the hub) with one agent per workload cluster (the spokes). It carries bytes, in both
// directions, and knows no policy.
//
// In: on the hub a certificate family (internal/relay/family), a Gate that is asked before every act of trust, and the desired
// state of each cluster (Hub.Publish); on a spoke an IdentityStore and the inventory (a synclog.Source).
// Out: on the hub the inventory of each cluster and how its session is doing (Hub.Inventory, Hub.Sessions, Hub.Changed); on a
// spoke the desired state (SpokeConfig.OnDesired).
// It must not talk to Kubernetes, interpret an item, decide who may join, or keep anything that grows with how slow a peer is.
//
// A connection's life, from the spoke's side (spoke.go):
//
//  1. No usable certificate: make a key, store it, dial with server-authenticated TLS, Enrol(token, CSR), store the certificate.
//     The key is stored first, so that a crash between the hub's answer and our writing it down can be repaired with the same token.
//  2. Dial with mTLS, open a Session: Hello up, Welcome down. The cluster is the name in the certificate; what Hello says is only
//     compared with it. Both sides tell how far they hold the other's log, so nothing is sent twice.
//  3. Two logs run against each other (pump.go): inventory up, desired state down, in chunks of at most 64 KiB with at most
//     1 MiB not acknowledged. A slow peer costs no memory: its log holds each key once, however often the key changes.
//  4. Heartbeats every 5 s carry four time stamps (clock.go). Nothing heard for 12 s ends the session.
//  5. At a ratio of the certificate's life: a new key, Renew on the same connection; the running session is bound to the new key.
//  6. Goodbye tells why a session ends and when to come back; otherwise the spoke comes back with full jitter, 0.2 s to 30 s.
//
// TestSessionCarriesStateBothWays shows all of it in fifty lines.
package relay

import (
	"context"
	"fmt"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
)

// Identity is what a client certificate proves.
type Identity struct {
	Cluster   mesh.ClusterName
	Key       mesh.Fingerprint // of the public key (SubjectPublicKeyInfo)
	Serial    string           // lower-case hex
	NotBefore time.Time
	NotAfter  time.Time
}

// Hello is what an agent says about itself when a session begins; checked for shape, not for truth.
type Hello struct {
	Cluster      mesh.ClusterName // already equal to the certificate's
	UID          mesh.ClusterUID
	AgentVersion string
	Remote       string // address the connection comes from
}

// EnrolAttempt asks for a certificate for Cluster with a token.
type EnrolAttempt struct {
	Cluster      mesh.ClusterName
	UID          mesh.ClusterUID
	Token        string
	Key          mesh.Fingerprint // of the CSR's public key; the CSR proves that the caller holds it
	AgentVersion string
	Remote       string
}

// Gate is asked before every act of trust. Its methods may be called concurrently. An error that is a *Refusal is final for this
// attempt and is told to the agent word for word; any other error means "not now": the agent is told to come back.
type Gate interface {
	// Enrol redeems the token, or refuses.
	Enrol(ctx context.Context, a EnrolAttempt) error
	// Issued records a certificate before it is handed out: after enrolment and at each renewal.
	Issued(ctx context.Context, id Identity) error
	// Admit says whether a session may begin (registered, key not revoked, UID as before).
	Admit(ctx context.Context, id Identity, h Hello) error
}

// Refusal says why somebody was turned away, in one sentence that names what to do.
type Refusal struct {
	Reason     relayv1.Goodbye_Reason
	Message    string
	RetryAfter time.Duration // 0: as the back-off says
}

// Error gives the sentence.
func (r *Refusal) Error() string { return r.Message }

// Refuse makes a Refusal.
func Refuse(reason relayv1.Goodbye_Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// SessionInfo is how one cluster's connection is doing.
type SessionInfo struct {
	Cluster          mesh.ClusterName
	Connected        bool
	Since            time.Time // of the last change of Connected
	LastHeartbeat    time.Time // hub's clock; zero before the first
	AgentVersion     string
	UID              mesh.ClusterUID
	Identity         Identity // of the running or last session
	Remote           string
	Offset           time.Duration // agent's clock plus Offset is the hub's
	RTT              time.Duration
	InventoryVersion uint64
	Warm             bool   // the whole inventory has been received at least once since the hub started
	DesiredVersion   uint64 // of the hub's log for this cluster
	DesiredAcked     uint64 // as far as the agent has confirmed
	Lag              int    // desired items not confirmed yet
	LastRefusal      *Refusal
	LastRefusalAt    time.Time
}

// StoredIdentity is what an agent keeps between two runs. All but Token is PEM.
type StoredIdentity struct {
	KeyPEM     []byte // key of ChainPEM
	ChainPEM   []byte // leaf first
	PendingKey []byte // a key for which a certificate has been asked for but not been received
	Roots      []byte // verify the server; current root and successor
	Token      string // registration token (or shared identity token)
	TokenUsed  bool   // set by the spoke: Token has served, so a registration token is to be removed
}

// IdentityStore keeps a StoredIdentity. The agent implements it on Secrets.
type IdentityStore interface {
	// Load reads what is there; a missing part is empty, not an error.
	Load(ctx context.Context) (StoredIdentity, error)
	// Save writes all parts but Token, all or nothing. With TokenUsed it then removes the registration token, if it is still Token.
	Save(ctx context.Context, id StoredIdentity) error
}
