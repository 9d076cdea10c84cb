// Package authority has certificate authorities sign the intermediates of clusters: one driver for each kind there is.
//
// In: a Config, plain data, and requests (a CSR made in a cluster). Out: chains that have been checked by us (package pki), or an error that says whether the
// authority refused, is set up wrongly, or is away. It must not make a cluster's key, must not let one slow authority hold up another, and puts no secret into errors.
package authority

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// Request asks for an intermediate.
type Request struct {
	Cluster    mesh.ClusterName
	Generation string // of the slot, for the record: "g2-r1"
	CSR        []byte // DER
	Subject    pkix.Name
	URIs       []*url.URL
	TTL        time.Duration
	// Root to sign under, where an authority has several (a Vault mount whose default issuer was switched). Zero: the one that Roots says.
	Root mesh.Fingerprint
}

// Answer is an intermediate that was signed and checked.
type Answer struct {
	// Chain is the intermediate, then its issuers up to but not including the root.
	Chain []*x509.Certificate
	Root  *x509.Certificate
	// Issuer says who signed, for people.
	Issuer string
	// Note is what people should know all the same, such as a lifetime that was cut short. Mostly empty.
	Note string
}

// Authority signs intermediates. Safe for concurrent use.
type Authority interface {
	// Roots are those that a peer must trust for what would be signed now, the active one first.
	Roots(ctx context.Context) ([]*x509.Certificate, error)
	SignIntermediate(ctx context.Context, r Request) (Answer, error)
}

// CrossSigner is an Authority that can certify another root by its own.
type CrossSigner interface {
	CrossSign(ctx context.Context, root *x509.Certificate) (*x509.Certificate, error)
}

// Refused is an authority's no. Asking again does not help before somebody changes something.
type Refused struct {
	Detail string
	Err    error
}

func (e *Refused) Error() string {
	return describe("the certificate authority refuses", e.Detail, "", e.Err)
}
func (e *Refused) Unwrap() error { return e.Err }

// Misconfigured says that what the policy says of the authority can't work.
type Misconfigured struct {
	Detail string
	Fix    string
	Err    error
}

func (e *Misconfigured) Error() string {
	return describe("the certificate authority is set up wrongly", e.Detail, e.Fix, e.Err)
}
func (e *Misconfigured) Unwrap() error { return e.Err }

// Unavailable says that the authority does not answer, or asks for patience.
type Unavailable struct {
	Detail     string
	RetryAfter time.Duration // 0: it did not say
	Err        error
}

func (e *Unavailable) Error() string {
	return describe("the certificate authority does not answer", e.Detail, "", e.Err)
}
func (e *Unavailable) Unwrap() error { return e.Err }

// AsUnavailable finds an Unavailable in err.
func AsUnavailable(err error) (*Unavailable, bool) { return errors.AsType[*Unavailable](err) }

func describe(what, detail, fix string, err error) string {
	s := what
	if detail != "" {
		s += ": " + detail
	}
	if err != nil {
		s += fmt.Sprintf(": %v", err)
	}
	if fix != "" {
		s += "; " + fix
	}
	return s
}

// check says whether an answer is what was asked for.
func check(a Answer, r Request, csr *x509.CertificateRequest, now time.Time) error {
	err := pki.CheckIntermediate(a.Chain, []*x509.Certificate{a.Root}, pki.Expect{PublicKey: csr.PublicKey, Subject: r.Subject, Now: now})
	if bad, ok := errors.AsType[*pki.CheckError](err); ok {
		return &Misconfigured{Detail: fmt.Sprintf("what %s signed for cluster %q is of no use: %s", a.Issuer, r.Cluster, bad.Detail), Fix: bad.Fix}
	}
	return err
}
