package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"strings"
	"time"
)

// CheckError is why a certificate is refused.
type CheckError struct {
	Check  string // "key", "ca", "pathlen", "usage", "eku", "aki", "validity", "subject", "chain", "constraints", "signature"
	Detail string // what is wrong
	Fix    string // what to do, may be empty
}

func (e *CheckError) Error() string {
	if e.Fix == "" {
		return e.Detail
	}
	return e.Detail + "; " + e.Fix
}

// Expect is what an intermediate has to be.
type Expect struct {
	PublicKey crypto.PublicKey
	// Subject: what is not empty of it has to be there.
	Subject pkix.Name
	MinTTL  time.Duration
	Now     time.Time
}

// CheckIntermediate says whether chain (an intermediate, then its issuers) is what istiod and every proxy can work with, and what was asked for. The error is a *CheckError.
func CheckIntermediate(chain, roots []*x509.Certificate, want Expect) error {
	if len(chain) == 0 {
		return &CheckError{"chain", "there is no certificate", ""}
	}
	c := chain[0]
	for _, check := range []func(*x509.Certificate, Expect) *CheckError{checkKey, checkCA, checkUsage, checkValidity, checkSubject} {
		if err := check(c, want); err != nil {
			return err
		}
	}
	for _, c := range chain {
		if err := checkEncoding(c); err != nil {
			return err
		}
	}
	return checkChain(chain, roots, want.Now)
}

func checkKey(c *x509.Certificate, want Expect) *CheckError {
	if want.PublicKey != nil && !sameKey(c.PublicKey, want.PublicKey) {
		return &CheckError{"key", fmt.Sprintf("%s certifies another key than the one that was asked for", c.Subject), "the authority must sign the request's key and make none of its own"}
	}
	return nil
}

func checkCA(c *x509.Certificate, _ Expect) *CheckError {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return &CheckError{"ca", fmt.Sprintf("%s is no CA certificate (CA:false)", c.Subject), "the authority signs it as a leaf: use its endpoint or template for intermediates"}
	case c.MaxPathLen < 0 && c.MaxPathLenZero:
		return &CheckError{"pathlen", fmt.Sprintf("%s has a path length that can't be read", c.Subject), ""}
	}
	return nil
}

func checkUsage(c *x509.Certificate, _ Expect) *CheckError {
	if c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return &CheckError{"usage", fmt.Sprintf("%s may not sign certificates (key usage)", c.Subject), "the authority has to set keyCertSign"}
	}
	if c.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return &CheckError{"usage", fmt.Sprintf("%s may not sign revocation lists (key usage)", c.Subject), "the authority has to set cRLSign"}
	}
	if n := len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage); n > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) &&
		(!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)) {
		return &CheckError{"eku", fmt.Sprintf("%s has extended key usages without serverAuth and clientAuth: what it signs would be refused", c.Subject), "leave extended key usages out, or set both"}
	}
	return nil
}

func checkValidity(c *x509.Certificate, want Expect) *CheckError {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case want.Now.Before(c.NotBefore):
		return &CheckError{"validity", fmt.Sprintf("%s begins %s, and it is %s", c.Subject, at(c.NotBefore), at(want.Now)), "the clocks of the authority and of this server differ"}
	case !want.Now.Before(c.NotAfter):
		return &CheckError{"validity", fmt.Sprintf("%s ended %s", c.Subject, at(c.NotAfter)), ""}
	case c.NotAfter.Sub(want.Now) < want.MinTTL:
		return &CheckError{"validity", fmt.Sprintf("%s lasts %s, and at least %s is needed", c.Subject, c.NotAfter.Sub(want.Now).Round(time.Second), want.MinTTL), "the authority caps lifetimes: raise its limit, or ask for less (ttlDays)"}
	}
	return nil
}

func checkSubject(c *x509.Certificate, want Expect) *CheckError {
	if cn := want.Subject.CommonName; cn != "" && c.Subject.CommonName != cn {
		return &CheckError{"subject", fmt.Sprintf("the common name is %q, and %q was asked for", c.Subject.CommonName, cn), "no two CAs of a mesh may have one name: let the authority take the name of the request"}
	}
	for _, o := range want.Subject.Organization {
		if !slices.Contains(c.Subject.Organization, o) {
			return &CheckError{"subject", fmt.Sprintf("the organization is %s, and %q was asked for", strings.Join(c.Subject.Organization, ", "), o), ""}
		}
	}
	return nil
}

// checkEncoding refuses what one of the verifiers of a mesh does.
func checkEncoding(c *x509.Certificate) *CheckError {
	switch {
	case len(c.SubjectKeyId) == 0:
		return &CheckError{"aki", fmt.Sprintf("%s has no subject key identifier: chains can't be built by it", c.Subject), ""}
	case len(c.AuthorityKeyId) == 0 && !bytes.Equal(c.RawIssuer, c.RawSubject):
		return &CheckError{"aki", fmt.Sprintf("%s has no authority key identifier: between roots of one name the wrong one is chosen", c.Subject), ""}
	case len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) > 0:
		return &CheckError{"constraints", fmt.Sprintf("%s constrains URIs: ztunnel's verifier refuses such chains (webpki since 0.103.12)", c.Subject), "leave name constraints of URIs out"}
	}
	switch c.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return nil
	default:
		return &CheckError{"signature", fmt.Sprintf("%s is signed with %s, which not every proxy accepts", c.Subject, c.SignatureAlgorithm), "use SHA-256 or better, with RSA or ECDSA"}
	}
}

// checkChain: every certificate is signed by the next, the last by one of the roots, and path lengths leave room for a leaf.
func checkChain(chain, roots []*x509.Certificate, now time.Time) error {
	for i, c := range chain {
		if i > 0 && len(c.SubjectKeyId) > 0 && len(chain[i-1].AuthorityKeyId) > 0 && !bytes.Equal(c.SubjectKeyId, chain[i-1].AuthorityKeyId) {
			return &CheckError{"aki", fmt.Sprintf("%s names another issuer key than %s has", chain[i-1].Subject, c.Subject), ""}
		}
		if c.IsCA && (c.MaxPathLen > 0 || c.MaxPathLenZero) && c.MaxPathLen < i {
			return &CheckError{"pathlen", fmt.Sprintf("%s has path length %d, and %d CAs are below it", c.Subject, c.MaxPathLen, i), ""}
		}
	}
	if err := VerifyPeer(chain, roots, now); err != nil {
		return &CheckError{"chain", err.Error(), "the chain has to lead to the root, with every certificate between"}
	}
	return nil
}

// VerifyPeer says whether who trusts exactly roots accepts a party that presents chain: a leaf or an intermediate, then its issuers.
func VerifyPeer(chain, roots []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return fmt.Errorf("no certificate is presented")
	}
	rs, is := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		rs.AddCert(r)
	}
	for _, c := range chain[1:] {
		is.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: rs, Intermediates: is, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("%s: %w", chain[0].Subject, err)
	}
	return nil
}
