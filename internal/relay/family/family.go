// Package family is the relay's certificate family as one value: root and successor, signing CA, server leaf.
//
// In: the data of the relay-* Secrets, and the time. Out: a Family, its problems (which Secret is out of step and what to do),
// certificates, and the Secrets' data again. It must not do I/O or read a clock; keys come from crypto/rand.
//
//	root ──signs──► signing CA (clientAuth only) ──signs──► client leaves, one per cluster: CN = DNS SAN = cluster
//	  │
//	  └────signs──► server leaf
//	next: the root's successor. Every agent already trusts it; it signs nothing until Rotate makes it the root.
//
// So the root can be changed without any agent falling out: what the server shows after Rotate is signed by a root that agents have
// held all along, and the bundle they then get holds the successor's successor.
package family

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"time"
)

// Names of the Secrets, as published.
const (
	RootSecret    = "relay-root-tls-secret"    //nolint:gosec // a name, not a credential
	SigningSecret = "relay-tls-signing-secret" //nolint:gosec // a name, not a credential
	ServerSecret  = "relay-server-tls-secret"  //nolint:gosec // a name, not a credential
	ClientSecret  = "relay-client-tls-secret"  //nolint:gosec // a name, not a credential
	TokenSecret   = "relay-identity-token-secret"
)

// Lifetimes and margins.
const (
	// Backdate is how far before now every certificate begins, so that a clock that is behind does no harm.
	Backdate = time.Hour
	// Skew is how far in the future a client certificate may begin (minted by hand on a machine whose clock is ahead).
	Skew = 15 * time.Minute
	// KeepOldRoot is how long after Rotate the former root stays in the bundle, for whoever goes back to a backup.
	KeepOldRoot = 7 * 24 * time.Hour
)

// Authority is a CA: a certificate, and its key where we have it.
type Authority struct {
	Cert *x509.Certificate
	Key  crypto.Signer // nil: supplied by somebody who keeps the key elsewhere
}

// Family is one consistent set. Treat it as immutable.
type Family struct {
	Root     Authority           // in use
	Next     Authority           // successor; Cert is nil if there is none (a supplied root)
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

// Options for making certificates; zero values mean the defaults.
type Options struct {
	ServerNames     []string      // DNS names and IP addresses of the server leaf
	RootLifetime    time.Duration // default 10 years
	SigningLifetime time.Duration // default 2 years
	ServerLifetime  time.Duration // default 90 days
}

const day = 24 * time.Hour

func (o Options) withDefaults() Options {
	if o.RootLifetime == 0 {
		o.RootLifetime = 3650 * day
	}
	if o.SigningLifetime == 0 {
		o.SigningLifetime = 730 * day
	}
	if o.ServerLifetime == 0 {
		o.ServerLifetime = 90 * day
	}
	return o
}

// Generate makes a whole new family.
func Generate(now time.Time, o Options) (*Family, error) {
	o = o.withDefaults()
	root, err := newRoot(now, o)
	if err != nil {
		return nil, err
	}
	return under(root, now, o)
}

// under makes everything below root, and a successor.
func under(root Authority, now time.Time, o Options) (*Family, error) {
	next, err := newRoot(now, o)
	if err != nil {
		return nil, err
	}
	signing, err := newSigning(root, now, o)
	if err != nil {
		return nil, err
	}
	server, err := newServer(root, now, o)
	if err != nil {
		return nil, err
	}
	return &Family{
		Root: root, Next: next, Bundle: []*x509.Certificate{root.Cert, next.Cert}, Signing: signing, Server: server,
	}, nil
}

// Rotate makes the successor the root: new signing CA and server leaf under it, a new successor, and the old root and signing CA
// still accepted. No agent that held the bundle before falls out; one that has been away since before the last Rotate does.
func (f *Family) Rotate(now time.Time, o Options) (*Family, error) {
	if f.Next.Cert == nil || f.Next.Key == nil {
		return nil, fmt.Errorf("%s holds no successor with its key (next.crt, next.key): the root was supplied, so supply the next one too and let agents learn it (ca.crt) before it signs anything", RootSecret)
	}
	o = o.withDefaults()
	if len(o.ServerNames) == 0 {
		o.ServerNames = f.ServerNames()
	}
	n, err := under(f.Next, now, o)
	if err != nil {
		return nil, err
	}
	n.Bundle = appendNew(n.Bundle, f.Bundle, now)
	n.Previous = appendNew(appendNew(nil, []*x509.Certificate{f.Signing.Cert}, now), f.Previous, now)
	return n, nil
}

// appendNew adds to certs those of more that are valid and not there yet.
func appendNew(certs, more []*x509.Certificate, now time.Time) []*x509.Certificate {
	out := append([]*x509.Certificate(nil), certs...)
	for _, c := range more {
		if c != nil && now.Before(c.NotAfter) && !contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func contains(certs []*x509.Certificate, c *x509.Certificate) bool {
	for _, d := range certs {
		if d.Equal(c) {
			return true
		}
	}
	return false
}

// Maintain renews what is past two thirds of its life (server leaf, signing CA), adds a successor if there is none, and drops what
// is out of date; nil means that there is nothing to do. It never changes the root.
func (f *Family) Maintain(now time.Time, o Options) (*Family, error) {
	o = o.withDefaults()
	if len(o.ServerNames) == 0 {
		o.ServerNames = f.ServerNames()
	}
	n, changed := *f, false
	if f.Root.Key != nil && f.Next.Cert == nil {
		next, err := newRoot(now, o)
		if err != nil {
			return nil, err
		}
		n.Next, changed = next, true
		n.Bundle = appendNew(n.Bundle, []*x509.Certificate{next.Cert}, now)
	}
	if f.Root.Key != nil && aged(f.Server.Chain[0], now) {
		server, err := newServer(f.Root, now, o)
		if err != nil {
			return nil, err
		}
		n.Server, changed = server, true
	}
	if f.Root.Key != nil && f.Signing.Key != nil && aged(f.Signing.Cert, now) {
		signing, err := newSigning(f.Root, now, o)
		if err != nil {
			return nil, err
		}
		n.Signing, changed = signing, true
		n.Previous = append([]*x509.Certificate{f.Signing.Cert}, n.Previous...)
	}
	if kept := f.stillWanted(n.Bundle, now); len(kept) != len(n.Bundle) {
		n.Bundle, changed = kept, true
	}
	if kept := appendNew(nil, n.Previous, now); len(kept) != len(n.Previous) {
		n.Previous, changed = kept, true
	}
	if !changed {
		return nil, nil
	}
	return &n, nil
}

// aged reports whether two thirds of c's life are over.
func aged(c *x509.Certificate, now time.Time) bool {
	return now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2))
}

// stillWanted drops expired roots, and our own former roots some time after they were replaced. Roots of others stay.
func (f *Family) stillWanted(bundle []*x509.Certificate, now time.Time) []*x509.Certificate {
	replaced := f.Signing.Cert.NotBefore.Add(Backdate)
	var out []*x509.Certificate
	for _, c := range bundle {
		inUse := c.Equal(f.Root.Cert) || f.Next.Cert == nil || c.Equal(f.Next.Cert)
		former := !inUse && isOurs(c) && now.After(replaced.Add(KeepOldRoot))
		if inUse || (now.Before(c.NotAfter) && !former) {
			out = append(out, c)
		}
	}
	return out
}

// TrustBundle is Bundle as DER.
func (f *Family) TrustBundle() [][]byte {
	out := make([][]byte, len(f.Bundle))
	for i, c := range f.Bundle {
		out[i] = c.Raw
	}
	return out
}

// ServerNames lists what the server leaf is valid for.
func (f *Family) ServerNames() []string {
	if len(f.Server.Chain) == 0 {
		return nil
	}
	leaf := f.Server.Chain[0]
	names := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
