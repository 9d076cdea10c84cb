package trust

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// list is an authority's empty revocation list.
func (a *authority) list(t *testing.T) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: epoch, NextUpdate: epoch.Add(time.Hour)}, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// TestRevokedMember: a member whose intermediate is revoked gets another one, at once and only once, under the same root; the others keep theirs.
func TestRevokedMember(t *testing.T) {
	s, _ := settled(t, 2)
	old, other := s.r.Members["c0000"].Old, s.r.Members["c0001"].Old
	s.want.Revoked = map[mesh.Fingerprint]bool{s.fleet[0].Issued[old].Signer: true}
	for range 8 {
		s.decide()
		s.obey()
	}
	m := s.r.Members["c0000"]
	if m.Old == old || m.Fresh != "" || m.Retired != "" || m.Serial != 2 {
		t.Errorf("%+v", m)
	}
	if d := s.step.Directives["c0000"]; d.Signer != m.Old || len(d.Intermediates) != 1 {
		t.Errorf("signs with %s of %d", d.Signer, len(d.Intermediates))
	}
	if s.r.Members["c0001"].Old != other || s.r.Phase != Steady {
		t.Error("the other member was changed too")
	}
}

func TestWithheld(t *testing.T) {
	root, between, stranger := newAuthority("root", 1), newAuthority("between", 1), newAuthority("stranger", 1)
	one := between.sign("cluster", time.Hour).Chain
	deep := join(one, pemOf(between.cert.Raw))
	for name, c := range map[string]struct {
		kind         string
		chain, lists []byte
		want         string
	}{
		"under the root":                {chain: one, lists: root.list(t)},
		"with all lists":                {chain: deep, lists: join(root.list(t), between.list(t))},
		"an intermediate without one":   {chain: deep, lists: root.list(t), want: "between"},
		"a list of somebody else":       {chain: deep, lists: join(root.list(t), stranger.list(t)), want: "between"},
		"sidecars":                      {kind: "sidecar", chain: one, lists: root.list(t), want: "envoy#18268"},
		"gateways, which mount no list": {kind: "gateway", chain: one, lists: root.list(t)},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := &Cluster{Observation: &mesh.TrustObservation{Verifiers: []mesh.VerifierGroup{{Kind: c.kind, Count: 1}}}}
			if got := Withheld(cluster, c.chain, c.lists); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestWithheldFromOne: a cluster with sidecars gets no lists, and the others do.
func TestWithheldFromOne(t *testing.T) {
	s, _ := settled(t, 2)
	s.want.CRLs = map[mesh.Fingerprint][]byte{s.r.Current.Fingerprint: []byte("list\n")}
	s.fleet[1].Observation.Verifiers = append(s.fleet[1].Observation.Verifiers, mesh.VerifierGroup{Kind: "sidecar", Count: 3, Error: "unseen"})
	s.decide()
	if a, b := s.step.Directives["c0000"].CRL, s.step.Directives["c0001"].CRL; string(a) != "list\n" || len(b) > 0 {
		t.Errorf("%q and %q", a, b)
	}
}
