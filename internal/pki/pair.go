package pki

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"strings"
	"time"
)

// VerifyPair says whether the workloads of two clusters accept each other, given the cacerts of each: what one presents has to lead to a root of the other, in both directions.
// What is wrong with one of them alone is VerifyCACerts's. nameA and nameB are for the messages.
func VerifyPair(a, b map[string][]byte, nameA, nameB string, now time.Time) []Problem {
	chainA, rootsA, err := Presented(a)
	if err != nil {
		return []Problem{{Fatal: true, Message: nameA + ": " + err.Error()}}
	}
	chainB, rootsB, err := Presented(b)
	if err != nil {
		return []Problem{{Fatal: true, Message: nameB + ": " + err.Error()}}
	}
	var out []Problem
	for _, d := range []struct {
		from, to     string
		chain, roots []*x509.Certificate
	}{{nameA, nameB, chainA, rootsB}, {nameB, nameA, chainB, rootsA}} {
		if err := VerifyPeer(d.chain, d.roots, now); err != nil {
			out = append(out, Problem{
				Fatal: true, Message: fmt.Sprintf("%s refuses the workloads of %s: %v; it trusts %s", d.to, d.from, err, subjects(d.roots)),
				Fix: fmt.Sprintf("put the root of %s into the root bundle of %s first, and let every proxy there have it, before anything is signed by it", d.from, d.to),
			})
		}
	}
	if x, y := trustDomain(chainA[0]), trustDomain(chainB[0]); x != "" && y != "" && x != y {
		out = append(out, Problem{
			Message: fmt.Sprintf("%s is of the trust domain %s, %s of %s: ztunnel accepts callers of its own only", nameA, x, nameB, y),
			Fix:     "give the clusters of one mesh one trust domain",
		})
	}
	if chainA[0].IsCA && chainB[0].IsCA && sameKey(chainA[0].PublicKey, chainB[0].PublicKey) {
		out = append(out, Problem{
			Message: fmt.Sprintf("%s and %s sign with the same key: neither can be revoked without the other", nameA, nameB),
			Fix:     "give each cluster an intermediate of its own",
		})
	}
	return append(out, clash(rootsA, rootsB, nameA, nameB)...)
}

// clash finds a root of one cluster that has the name, but not the key, of a root of the other.
func clash(a, b []*x509.Certificate, nameA, nameB string) []Problem {
	for _, x := range a {
		for _, y := range b {
			if bytes.Equal(x.RawSubject, y.RawSubject) && !sameKey(x.PublicKey, y.PublicKey) {
				return []Problem{{
					Message: fmt.Sprintf("%s and %s have different roots of the name %s: in one bundle, OpenSSL and Envoy may take the wrong one", nameA, nameB, x.Subject),
					Fix:     "give each generation of a root a name of its own (meshctl pki gen-root does)",
				}}
			}
		}
	}
	return nil
}

// trustDomain is what a certificate's SPIFFE ID says, empty: nothing.
func trustDomain(c *x509.Certificate) string {
	for _, u := range c.URIs {
		if u.Scheme == "spiffe" {
			return u.Host
		}
	}
	return ""
}

func subjects(certs []*x509.Certificate) string {
	out := make([]string, len(certs))
	for i, c := range certs {
		out[i] = c.Subject.String()
	}
	return strings.Join(out, " and ")
}
