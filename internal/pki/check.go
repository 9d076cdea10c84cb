package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// CheckError is why a certificate is refused.
type CheckError struct {
	// Check is "key", "ca", "pathlen", "usage", "eku", "aki", "validity", "subject", "chain", "constraints", "signature"; of lists "crl" and "revoked".
	Check  string
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
	// Subject: what is not empty of it has to be there: common name (cluster and generation), organization, unit, country, province, locality, serial number.
	Subject pkix.Name
	MinTTL  time.Duration
	Now     time.Time
}

// CheckIntermediate says whether chain (an intermediate, then its issuers in order; the root may be left out) is what istiod and every proxy can work with, and what was asked
// for. The error is a *CheckError.
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
	for i, c := range chain {
		if err := checkEncoding(c); err != nil {
			return err
		}
		if i == 0 {
			continue
		}
		for _, err := range []*CheckError{checkCA(c, want), checkEKU(c)} {
			if err != nil {
				return err
			}
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
	return checkEKU(c)
}

// checkEKU: a CA's extended key usages bound those of all that is below it (Go, webpki and BoringSSL alike), and istiod itself asks for serverAuth.
func checkEKU(c *x509.Certificate) *CheckError {
	if n := len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage); n > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) &&
		(!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)) {
		return &CheckError{"eku", fmt.Sprintf("%s has extended key usages without serverAuth and clientAuth: what it signs would be refused", c.Subject), "leave extended key usages out, or set both"}
	}
	return nil
}

func checkValidity(c *x509.Certificate, want Expect) *CheckError {
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
	for _, p := range []struct {
		what      string
		have, ask []string
	}{
		{"organization", c.Subject.Organization, want.Subject.Organization},
		{"organizational unit", c.Subject.OrganizationalUnit, want.Subject.OrganizationalUnit},
		{"country", c.Subject.Country, want.Subject.Country},
		{"province", c.Subject.Province, want.Subject.Province},
		{"locality", c.Subject.Locality, want.Subject.Locality},
		{"serial number of the name", []string{c.Subject.SerialNumber}, nonEmpty(want.Subject.SerialNumber)},
	} {
		for _, o := range p.ask {
			if !slices.Contains(p.have, o) {
				return &CheckError{"subject", fmt.Sprintf("the %s is %q, and %q was asked for", p.what, strings.Join(p.have, ", "), o), "let the authority take the name of the request"}
			}
		}
	}
	return nil
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// checkEncoding refuses what one of the verifiers of a mesh does.
func checkEncoding(c *x509.Certificate) *CheckError {
	switch {
	case len(c.SubjectKeyId) == 0:
		return &CheckError{"aki", fmt.Sprintf("%s has no subject key identifier: chains can't be built by it", c.Subject), "sign it with subjectKeyIdentifier (openssl: subjectKeyIdentifier=hash)"}
	case len(c.AuthorityKeyId) == 0 && !bytes.Equal(c.RawIssuer, c.RawSubject):
		return &CheckError{"aki", fmt.Sprintf("%s has no authority key identifier: between roots of one name the wrong one is chosen", c.Subject), "sign it with authorityKeyIdentifier (openssl: authorityKeyIdentifier=keyid:always)"}
	case constrainsURIs(c):
		return &CheckError{"constraints", fmt.Sprintf("%s constrains URIs: ztunnel's verifier refuses such chains (webpki since 0.103.12)", c.Subject), "leave name constraints of URIs out"}
	}
	if err := checkPublicKey(c); err != nil {
		return err
	}
	switch c.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return nil
	default:
		return &CheckError{"signature", fmt.Sprintf("%s is signed with %s, which not every proxy accepts", c.Subject, c.SignatureAlgorithm), "use SHA-256 or better, with RSA or ECDSA"}
	}
}

// checkPublicKey: webpki takes RSA of 2048 bits and more, and of the curves all of ztunnel, Envoy and istiod take P-256 and P-384.
func checkPublicKey(c *x509.Certificate) *CheckError {
	fix := "use RSA of at least 2048 bits, ECDSA-P256 or ECDSA-P384"
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return &CheckError{"signature", fmt.Sprintf("%s has an RSA key of %d bits, and ztunnel takes none below 2048", c.Subject, k.N.BitLen()), fix}
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return &CheckError{"signature", fmt.Sprintf("%s has a key on the curve %s, which not every proxy accepts", c.Subject, k.Curve.Params().Name), fix}
		}
	default:
		return &CheckError{"signature", fmt.Sprintf("%s has a key (%s) that not every proxy accepts", c.Subject, AlgorithmOf(c.PublicKey)), fix}
	}
	return nil
}

// checkChain: every certificate is signed by the next, the last by one of the roots, and path lengths leave room for a leaf.
func checkChain(chain, roots []*x509.Certificate, now time.Time) error {
	for i, c := range chain[1:] {
		below := chain[i]
		if bad := checkKeyIDs(below, c); bad != nil {
			return bad
		}
		if err := below.CheckSignatureFrom(c); err != nil {
			return &CheckError{"chain", fmt.Sprintf("%s, the next of the chain, has not signed %s: %v", c.Subject, below.Subject, err), "order the chain from the intermediate to the root"}
		}
	}
	paths, err := verified(chain, roots, now)
	if err != nil {
		return &CheckError{"chain", err.Error(), "the chain has to lead to the root, with every certificate between"}
	}
	var bad error
	for _, path := range paths { // one good way is enough
		if bad = checkPath(path); bad == nil {
			return nil
		}
	}
	return bad
}

// checkPath looks at a verified way from an intermediate to a root.
func checkPath(path []*x509.Certificate) error {
	if bad := room(path); bad != nil {
		return bad
	}
	for i, c := range path[1:] {
		if bad := checkKeyIDs(path[i], c); bad != nil {
			return bad
		}
	}
	if root := path[len(path)-1]; constrainsURIs(root) {
		return &CheckError{"constraints", fmt.Sprintf("%s constrains URIs: ztunnel's verifier refuses such chains (webpki since 0.103.12)", root.Subject), "use a root without name constraints of URIs"}
	}
	return nil
}

// checkKeyIDs: what a certificate says of its issuer's key is what the issuer says of it.
func checkKeyIDs(c, issuer *x509.Certificate) *CheckError {
	if len(issuer.SubjectKeyId) == 0 || len(c.AuthorityKeyId) == 0 || bytes.Equal(issuer.SubjectKeyId, c.AuthorityKeyId) {
		return nil
	}
	return &CheckError{
		"aki", fmt.Sprintf("%s names the issuer's key %x, and %s has %x: OpenSSL and Envoy would not find the issuer", c.Subject, c.AuthorityKeyId, issuer.Subject, issuer.SubjectKeyId),
		"the authority has to set the authority key identifier to its own subject key identifier",
	}
}

// room: a leaf below path[0] keeps to every path length above it (RFC 5280 4.2.1.9), the root's too, which Go checks.
func room(path []*x509.Certificate) error {
	for i, c := range path {
		if c.BasicConstraintsValid && (c.MaxPathLen > 0 || c.MaxPathLenZero) && c.MaxPathLen < i {
			return &CheckError{"pathlen", fmt.Sprintf("%s has path length %d, and CAs below it: %d", c.Subject, c.MaxPathLen, i), "leaves would be refused (\"too many intermediates\"): use an issuer with a greater path length, or none"}
		}
	}
	return nil
}

func constrainsURIs(c *x509.Certificate) bool {
	return len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) > 0
}

// VerifyPeer says whether who trusts exactly roots accepts a party that presents chain: a leaf or an intermediate, then its issuers. An intermediate is judged by what it signs:
// it has to be a CA, with room for a leaf below it.
func VerifyPeer(chain, roots []*x509.Certificate, now time.Time) error {
	paths, err := verified(chain, roots, now)
	if err != nil || !chain[0].IsCA {
		return err
	}
	for _, path := range paths { // one good way is enough
		if err = room(path); err == nil {
			return nil
		}
	}
	return err
}

// verified returns the ways from chain[0] to one of roots.
func verified(chain, roots []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("no certificate is presented")
	}
	rs, is := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		rs.AddCert(r)
	}
	for _, c := range chain[1:] {
		is.AddCert(c)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{Roots: rs, Intermediates: is, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", chain[0].Subject, err)
	}
	return paths, nil
}
