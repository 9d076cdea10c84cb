package authority_test

import (
	"math/big"
	"slices"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// TestRevocationList: a generated root signs a list that names what it is told, and ends with the root.
func TestRevocationList(t *testing.T) {
	g := authority.Generated{Secrets: secrets{}, Secret: "root", Generation: 1, Algorithm: pki.ECDSAP256, Organization: "o", TTL: 48 * time.Hour, Now: time.Now}
	au := g.New()
	roots, err := au.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := au.(authority.Revoker).RevocationList(t.Context(), []pki.Revoked{{Serial: big.NewInt(4711), Reason: 2}})
	if err != nil {
		t.Fatal(err)
	}
	lists, err := pki.ParseCRLs(text)
	if err != nil || len(lists) != 1 {
		t.Fatalf("%d lists, %v", len(lists), err)
	}
	l := lists[0]
	if err := l.CheckSignatureFrom(roots[0]); err != nil {
		t.Error(err)
	}
	if e := l.RevokedCertificateEntries; len(e) != 1 || e[0].SerialNumber.Int64() != 4711 || e[0].ReasonCode != 2 {
		t.Errorf("%+v", e)
	}
	if !l.NextUpdate.Equal(roots[0].NotAfter) {
		t.Errorf("it ends %s, its issuer %s: a server that is away would make it end", l.NextUpdate, roots[0].NotAfter)
	}
}

// TestWhyNoList: whoever can't revoke says why.
func TestWhyNoList(t *testing.T) {
	can := []mesh.Authority{{Generated: &mesh.CertOptions{}}, {Secret: "s"}}
	cannot := []mesh.Authority{{Vault: &mesh.Vault{}}, {AWS: &mesh.AWSPrivateCA{}}, {CertManager: &mesh.CertManager{}}, {}}
	for _, a := range slices.Concat(can, cannot) {
		if why := authority.WhyNoList(a); (why == "") != slices.ContainsFunc(can, func(c mesh.Authority) bool { return c == a }) {
			t.Errorf("%+v: %q", a, why)
		}
	}
}
