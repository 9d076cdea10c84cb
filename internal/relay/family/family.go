// Package family is the relay's certificate family as one value: root and successor, signing CA, server leaf.
//
// In: the data of the relay-* Secrets, and the time. Out: a Family, its problems (which Secret is out of step and what to do),
// certificates, and the Secrets' data again. It must not do I/O or read a clock; keys come from crypto/rand.
package family

import (
	"crypto"
	"crypto/x509"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Authority is a CA: a certificate, and its key where we have it.
type Authority struct {
	Cert *x509.Certificate
	Key  crypto.Signer // nil: supplied by somebody who keeps the key elsewhere
}

// Family is one consistent set. Treat it as immutable.
type Family struct {
	Root     Authority           // in use
	Next     Authority           // successor: already in every agent's bundle, signs nothing yet
	Bundle   []*x509.Certificate // what agents verify the server with: Root, Next, and roots still in some use
	Signing  Authority           // signs client certificates; issued by Root
	Previous []*x509.Certificate // earlier signing CAs whose leaves are still accepted
	Server   Server
}

// Server is the hub's own leaf.
type Server struct {
	Chain []*x509.Certificate // leaf first, no root
	Key   crypto.Signer
}

// Secrets is the data of the Secrets that make up a Family, as in the management cluster.
type Secrets struct {
	Root    map[string][]byte // relay-root-tls-secret: ca.crt (bundle), tls.crt, tls.key, next.crt, next.key
	Signing map[string][]byte // relay-tls-signing-secret: tls.crt, tls.key, ca.crt, previous.crt
	Server  map[string][]byte // relay-server-tls-secret: tls.crt, tls.key, ca.crt
}

// Problem is one way in which the Secrets don't fit together.
type Problem struct {
	Secret  string // its published name, e.g. "relay-server-tls-secret"
	Fatal   bool   // the hub can't serve with it
	Message string // what is wrong
	Fix     string // what to do
}

// String is one line for people.
func (p Problem) String() string { return p.Secret + ": " + p.Message + ": " + p.Fix }

// Options for making certificates; zero values mean the defaults.
type Options struct {
	ServerNames     []string      // DNS names and IP addresses of the server leaf
	RootLifetime    time.Duration // default 10 years
	SigningLifetime time.Duration // default 2 years
	ServerLifetime  time.Duration // default 90 days
}

// Generate makes a whole new family.
func Generate(now time.Time, o Options) (*Family, error) { panic("stub") }

// Parse reads the Secrets. The Family is nil if a problem is Fatal. Problems are those of Check as well.
func Parse(s Secrets, now time.Time) (*Family, []Problem) { panic("stub") }

// Secrets is the reverse of Parse.
func (f *Family) Secrets() (Secrets, error) { panic("stub") }

// Check looks at the family as one chain.
func (f *Family) Check(now time.Time) []Problem { panic("stub") }

// CheckServerNames says which of the names the server leaf lacks.
func (f *Family) CheckServerNames(names []string) []Problem { panic("stub") }

// CheckClient says what is wrong with a client certificate for cluster (PEM chain), e.g. the content of relay-client-tls-secret.
func (f *Family) CheckClient(chainPEM, keyPEM []byte, cluster mesh.ClusterName, now time.Time) []Problem {
	panic("stub")
}

// CheckToken says what is wrong with the shared token.
func CheckToken(token []byte) []Problem { panic("stub") }

// Rotate makes the successor the root: new signing CA and server leaf under it, a new successor, and the old root and signing CA
// still accepted. No agent that held the bundle before falls out.
func (f *Family) Rotate(now time.Time, o Options) (*Family, error) { panic("stub") }

// Maintain renews what is past two thirds of its life (server leaf, signing CA) and drops what has expired; nil means nothing to do.
// It never changes the root.
func (f *Family) Maintain(now time.Time, o Options) (*Family, error) { panic("stub") }

// IssueClient signs a client certificate for cluster (CN and DNS SAN; EKU clientAuth) and returns its chain in DER, leaf first,
// then the signing CA.
func (f *Family) IssueClient(pub crypto.PublicKey, cluster mesh.ClusterName, now time.Time, lifetime time.Duration) ([][]byte, error) {
	panic("stub")
}

// VerifyClient checks a presented chain (leaf first) and returns the leaf and the cluster it names.
func (f *Family) VerifyClient(chain []*x509.Certificate, now time.Time) (*x509.Certificate, mesh.ClusterName, error) {
	panic("stub")
}

// NewClient makes a key and a certificate for it, as PEM: the management cluster's own agent, and tests.
func (f *Family) NewClient(cluster mesh.ClusterName, now time.Time, lifetime time.Duration) (chainPEM, keyPEM []byte, err error) {
	panic("stub")
}
