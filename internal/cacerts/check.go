package cacerts

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// newKey makes a key and its PEM.
func newKey(algorithm string) (crypto.Signer, []byte, error) {
	key, err := pki.GenerateKey(pki.KeyAlgorithm(algorithm))
	if err != nil {
		return nil, nil, err
	}
	raw, err := pki.EncodeKey(key)
	return key, raw, err
}

func subjectOf(o mesh.IntermediateOrder) pkix.Name {
	n := pkix.Name{CommonName: o.CommonName}
	if o.Organization != "" {
		n.Organization = []string{o.Organization}
	}
	return n
}

// newRequest makes the certificate request of a slot.
func newRequest(key crypto.Signer, o mesh.IntermediateOrder) ([]byte, error) {
	var uris []*url.URL
	for _, text := range o.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		uris = append(uris, u)
	}
	return pki.NewCSR(key, subjectOf(o), uris)
}

// checkChain says what is wrong with the chain that came for a slot. roots are those of the directed bundle: what signs has to lead there. What does not sign yet has to lead to
// the root that the order names, or as far as its chain goes.
func checkChain(o mesh.IntermediateOrder, s slot, roots []*x509.Certificate, signs bool, now time.Time) error {
	chain, err := pki.ParseCertificates(o.Chain)
	if err != nil {
		return err
	}
	switch {
	case signs:
	case len(o.Root) > 0:
		if roots, err = pki.ParseCertificates(o.Root); err != nil {
			return fmt.Errorf("its root: %w", err)
		}
	default:
		roots = chain[len(chain)-1:]
	}
	if o.Take == "" {
		return pki.CheckIntermediate(chain, roots, pki.Expect{PublicKey: s.key.Public(), Subject: subjectOf(o), Now: now})
	}
	// What signs already may go on though we would have made it otherwise.
	switch {
	case publicOf(chain[0].PublicKey) != s.public():
		return fmt.Errorf("%s certifies another key than the one that was taken over", chain[0].Subject)
	case !chain[0].IsCA:
		return fmt.Errorf("%s is no CA certificate", chain[0].Subject)
	}
	return pki.VerifyPeer(chain, roots, now)
}

// checkFiles looks at a cacerts as istiod does when it loads it, and at what istiod does not look at: that the chain begins with the signer, so that clients get it (facts/lab 2a).
func checkFiles(files map[string][]byte, now time.Time) error {
	signer, err := pki.ParseCertificates(files[caCertFile])
	if err != nil {
		return fmt.Errorf("%s: %w", caCertFile, err)
	}
	chain, err := pki.ParseCertificates(files[chainFile])
	if err != nil {
		return fmt.Errorf("%s: %w", chainFile, err)
	}
	roots, err := pki.ParseCertificates(files[rootFile])
	if err != nil {
		return fmt.Errorf("%s: %w", rootFile, err)
	}
	key, err := pki.ParseKey(files[caKeyFile])
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", caKeyFile, err)
	case publicOf(key.Public()) != publicOf(signer[0].PublicKey):
		return fmt.Errorf("%s does not fit %s", caKeyFile, caCertFile)
	case len(signer) != 1 || !signer[0].Equal(chain[0]):
		return fmt.Errorf("%s does not begin with the certificate in %s", chainFile, caCertFile)
	}
	if err := pki.VerifyPeer(chain, roots, now); err != nil {
		return fmt.Errorf("%s does not verify by %s: %w", caCertFile, rootFile, err)
	}
	if crl, ok := files[crlFile]; ok {
		if err := checkCRLs(crl, chain); err != nil {
			return err
		}
	}
	for _, p := range pki.VerifyCACerts(files, now) {
		if p.Fatal {
			return fmt.Errorf("%s: %s; %s", p.File, p.Message, p.Fix)
		}
	}
	return nil
}

// checkCRLs: every certificate of the chain has to have signed one of the lists, else istiod refuses all of the files, silently (istio#61075).
func checkCRLs(raw []byte, chain []*x509.Certificate) error {
	var lists []*x509.RevocationList
	for rest := bytes.TrimSpace(raw); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "X509 CRL" {
			return fmt.Errorf("%s: after %d lists comes what is none", crlFile, len(lists))
		}
		l, err := x509.ParseRevocationList(b.Bytes)
		if err != nil {
			return fmt.Errorf("%s: list %d: %w", crlFile, len(lists)+1, err)
		}
		lists = append(lists, l)
	}
	for _, c := range chain {
		if !slices.ContainsFunc(lists, func(l *x509.RevocationList) bool { return l.CheckSignatureFrom(c) == nil }) {
			return fmt.Errorf("%s has no list that %s has signed: istiod would refuse all of it (istio#61075)", crlFile, c.Subject)
		}
	}
	return nil
}

// withOwnCRL is the CRLs of a directive and an empty one signed by the signer itself: istiod takes a set only if every certificate of cert-chain.pem has signed one of it
// (istio#61075). The one that is stored is kept while it holds, so that the Secret does not change for nothing.
func withOwnCRL(crls, stored []byte, signer *x509.Certificate, key crypto.Signer, now time.Time) ([]byte, error) {
	if len(crls) > 0 && crls[len(crls)-1] != '\n' {
		crls = append(bytes.Clone(crls), '\n')
	}
	if own, ok := bytes.CutPrefix(stored, crls); ok {
		if b, rest := pem.Decode(own); b != nil && len(bytes.TrimSpace(rest)) == 0 {
			if l, err := x509.ParseRevocationList(b.Bytes); err == nil && l.CheckSignatureFrom(signer) == nil && l.NextUpdate.After(now) && len(l.RevokedCertificateEntries) == 0 {
				return stored, nil
			}
		}
	}
	// It lives as long as its signer: nobody is there to renew it, and it says nothing that could become wrong.
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(now.Unix()), ThisUpdate: now.Add(-time.Hour), NextUpdate: signer.NotAfter}, signer, key)
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(crls), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...), nil
}
