package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

const (
	crlType = "X509 CRL"
	maxCRLs = 1024
)

// Revoked is one certificate that its issuer no longer stands for.
type Revoked struct {
	Serial *big.Int
	At     time.Time
	Reason int // RFC 5280 5.3.1: 1 key compromise, 2 CA compromise, 5 cessation of operation; 0 unspecified
}

// CRLIssuer is an authority that signs a list, which may be empty.
type CRLIssuer struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
	Revoked     []Revoked
}

// CRLOptions are of the lists of one bundle.
type CRLOptions struct {
	// Number has to grow with every edition of a list (RFC 5280 5.2.3); the Unix time does.
	Number *big.Int
	// TTL of an edition; 0: as long as its issuer. Envoy refuses every certificate of an issuer whose list has ended, ztunnel ignores such a list: publish anew before.
	TTL time.Duration
	Now time.Time
}

// NewCRL makes an issuer's list, PEM.
func NewCRL(i CRLIssuer, o CRLOptions) ([]byte, error) {
	switch {
	case i.Certificate == nil || i.Key == nil:
		return nil, errors.New("revocation list: an issuer and its key are needed")
	case !sameKey(i.Certificate.PublicKey, i.Key.Public()):
		return nil, fmt.Errorf("revocation list of %s: the key is another's", i.Certificate.Subject)
	case o.Number == nil || o.Number.Sign() <= 0:
		return nil, fmt.Errorf("revocation list of %s: it needs a number above 0", i.Certificate.Subject)
	}
	t := &x509.RevocationList{Number: o.Number, ThisUpdate: o.Now.Add(-Backdate), NextUpdate: i.Certificate.NotAfter}
	if end := o.Now.Add(o.TTL); o.TTL > 0 && end.Before(t.NextUpdate) {
		t.NextUpdate = end
	}
	for _, r := range i.Revoked {
		if r.Serial == nil {
			return nil, fmt.Errorf("revocation list of %s: an entry has no serial number", i.Certificate.Subject)
		}
		at := r.At
		if at.IsZero() {
			at = o.Now
		}
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.Serial, RevocationTime: at, ReasonCode: r.Reason})
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, i.Certificate, i.Key)
	if err != nil {
		return nil, fmt.Errorf("revocation list of %s: %w", i.Certificate.Subject, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: crlType, Bytes: der}), nil
}

// RevokedBundle makes a ca-crl.pem: one list of each issuer whose key is at hand, then the lists that other issuers have made (PEM). It is complete for a chain when every CA of
// it, the root too, is among them: CheckCRL says so. Envoy asks that of the chains of all peers, so the intermediate of every cluster has to have a list in it (envoy#18268).
func RevokedBundle(issuers []CRLIssuer, others [][]byte, o CRLOptions) ([]byte, error) {
	var out bytes.Buffer
	for _, i := range issuers {
		text, err := NewCRL(i, o)
		if err != nil {
			return nil, err
		}
		out.Write(text)
	}
	for _, text := range others {
		lists, err := ParseCRLs(text)
		if err != nil {
			return nil, err
		}
		for _, l := range lists {
			_ = pem.Encode(&out, &pem.Block{Type: crlType, Bytes: l.Raw}) // a buffer takes everything
		}
	}
	if out.Len() == 0 {
		return nil, errors.New("revocation lists: there is no issuer")
	}
	return out.Bytes(), nil
}

// ParseCRLs reads the lists of a ca-crl.pem, at least one. Their signatures are not checked: see CheckCRL.
func ParseCRLs(text []byte) ([]*x509.RevocationList, error) {
	var out []*x509.RevocationList
	err := eachBlock("revocation list", text, func(n int, b *pem.Block) error {
		switch {
		case b.Type != crlType:
			return fmt.Errorf("PEM block %d is a %s", n, b.Type)
		case n > maxCRLs:
			return fmt.Errorf("more than %d", maxCRLs)
		}
		l, err := x509.ParseRevocationList(b.Bytes)
		if err != nil {
			return fmt.Errorf("PEM block %d: %w", n, err)
		}
		out = append(out, l)
		return nil
	})
	return out, err
}

// CheckCRL says whether a ca-crl.pem serves parties that present chain: every certificate of it has signed a list, as istiod demands, or it refuses keys and certificates too,
// silently (istio#61075); and, what istiod does not ask but Envoy does, so has the root that the chain leads to (when roots are given), each list is in force, and none names a
// certificate of the chain. The error is a *CheckError.
func CheckCRL(text []byte, chain, roots []*x509.Certificate, now time.Time) error {
	lists, err := ParseCRLs(text)
	if err != nil {
		return &CheckError{"crl", err.Error(), "write the lists as PEM, one after the other"}
	}
	if without := unlisted(chain, lists); len(without) > 0 {
		return &CheckError{
			"crl", fmt.Sprintf("no list is signed by %s", strings.Join(without, ", ")),
			"add an empty list of each: istiod refuses the whole of cacerts otherwise, new keys and certificates too (istio#61075)",
		}
	}
	all := append(slices.Clone(chain), issuersAmong(chain, roots)...)
	if without := unlisted(all, lists); len(without) > 0 {
		return &CheckError{"crl", fmt.Sprintf("no list is signed by the root %s", strings.Join(without, ", ")), "add the root's list: Envoy wants one of every CA of a chain (envoy#18268)"}
	}
	for _, l := range lists {
		if err := checkList(l, all, now); err != nil {
			return err
		}
	}
	return nil
}

// checkList looks at one list of a bundle.
func checkList(l *x509.RevocationList, chain []*x509.Certificate, now time.Time) error {
	switch {
	case now.Before(l.ThisUpdate):
		return &CheckError{"crl", fmt.Sprintf("the list of %s begins %s", l.Issuer, at(l.ThisUpdate)), "clocks differ: sign it back-dated"}
	case !l.NextUpdate.IsZero() && !now.Before(l.NextUpdate):
		return &CheckError{"crl", fmt.Sprintf("the list of %s ended %s", l.Issuer, at(l.NextUpdate)), "sign it anew: Envoy refuses every certificate of that issuer, and ztunnel ignores the list"}
	}
	for _, c := range chain {
		revoked := slices.ContainsFunc(l.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(c.SerialNumber) == 0 })
		if revoked && bytes.Equal(l.RawIssuer, c.RawIssuer) && slices.ContainsFunc(chain, func(i *x509.Certificate) bool { return l.CheckSignatureFrom(i) == nil }) {
			return &CheckError{"revoked", fmt.Sprintf("%s is revoked by the list of %s", c.Subject, l.Issuer), "issue a new intermediate with a new key"}
		}
	}
	return nil
}

// unlisted names the certificates that have signed none of the lists.
func unlisted(chain []*x509.Certificate, lists []*x509.RevocationList) []string {
	var out []string
	for _, c := range chain {
		if !slices.ContainsFunc(lists, func(l *x509.RevocationList) bool { return l.CheckSignatureFrom(c) == nil }) {
			out = append(out, c.Subject.String())
		}
	}
	return out
}

// issuersAmong returns the roots that have signed one of the chain and are not in it.
func issuersAmong(chain, roots []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, r := range roots {
		known := slices.ContainsFunc(chain, r.Equal)
		if !known && slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return c.CheckSignatureFrom(r) == nil }) {
			out = append(out, r)
		}
	}
	return out
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }
