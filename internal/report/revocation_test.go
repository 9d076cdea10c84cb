package report

import (
	"strings"
	"testing"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// TestRevocation: in force only where it was seen to be, and who does not honour it is named.
func TestRevocation(t *testing.T) {
	list, applied := mesh.Fingerprint{7}, mesh.Fingerprint{8}
	for name, c := range map[string]struct {
		change    func(in *Trust, o *mesh.TrustObservation)
		state     adminv2.RevocationState
		honouring int32
		says      string
	}{
		"in force":                {state: adminv2.RevocationInForce, honouring: 3},
		"the directive is new":    {func(_ *Trust, o *mesh.TrustObservation) { o.Applied = mesh.Fingerprint{} }, adminv2.RevocationPending, 0, "agent"},
		"cacerts without lists":   {func(_ *Trust, o *mesh.TrustObservation) { o.Secret.CRL = mesh.Fingerprint{} }, adminv2.RevocationPending, 0, "cacerts"},
		"not handed out":          {func(_ *Trust, o *mesh.TrustObservation) { o.CRLs = nil }, adminv2.RevocationPending, 0, "istio-ca-crl"},
		"one namespace is behind": {func(_ *Trust, o *mesh.TrustObservation) { o.CRLs = append(o.CRLs, mesh.CRLGroup{Count: 1}) }, adminv2.RevocationPending, 0, "other lists"},
		"ztunnel of old":          {func(_ *Trust, o *mesh.TrustObservation) { o.Verifiers[0].Version = "1.28.6" }, adminv2.RevocationInForce, 0, "from 1.29"},
		"ztunnel is not told":     {func(_ *Trust, o *mesh.TrustObservation) { o.Verifiers[0].CRL = false }, adminv2.RevocationInForce, 0, "peerCaCrl"},
		"ztunnel inbound only":    {func(_ *Trust, o *mesh.TrustObservation) { o.Verifiers[0].Version = "1.30.1" }, adminv2.RevocationInForce, 3, "from 1.31"},
		"istiod of old":           {func(_ *Trust, o *mesh.TrustObservation) { o.Istiods[0].Version = "1.26.4" }, adminv2.RevocationInForce, 0, "from 1.27"},
		"a waypoint": {func(_ *Trust, o *mesh.TrustObservation) {
			o.Verifiers = append(o.Verifiers, mesh.VerifierGroup{Kind: "waypoint", Version: "1.31.0", Count: 1})
		}, adminv2.RevocationInForce, 3, "waypoint"},
		"withheld": {func(in *Trust, o *mesh.TrustObservation) {
			in.Step.Directives["c"].CRL = nil
			o.Verifiers = append(o.Verifiers, mesh.VerifierGroup{Kind: "sidecar", Count: 2})
		}, adminv2.RevocationWithheld, 0, "envoy#18268"},
	} {
		t.Run(name, func(t *testing.T) {
			o := &mesh.TrustObservation{
				Applied: applied, Secret: &mesh.CACerts{CRL: list}, CRLs: []mesh.CRLGroup{{SHA256: list, Count: 4}}, Istiods: []mesh.IstiodProbe{{Pod: "istiod", Version: "1.31.0"}},
				Verifiers: []mesh.VerifierGroup{{Kind: "ztunnel", Version: "1.31.0", CRL: true, Count: 3}},
			}
			in := &Trust{Input: trust.Input{Want: trust.Want{CRLs: map[mesh.Fingerprint][]byte{{1}: []byte("x")}}}}
			in.Step.Rotation.Members = map[mesh.ClusterName]trust.Member{"c": {Directed: applied}}
			in.Step.Directives = map[mesh.ClusterName]*mesh.TrustDirective{"c": {Signer: "g1", CRL: []byte("x")}}
			if c.change != nil {
				c.change(in, o)
			}
			st := revocation(in, &trust.Cluster{Name: "c", Observation: o})
			if st.State != c.state || st.Honouring != c.honouring || !strings.Contains(st.Message+strings.Join(st.NotHonoured, " "), c.says) {
				t.Errorf("%+v", st)
			}
		})
	}
	if revocation(&Trust{}, &trust.Cluster{Observation: &mesh.TrustObservation{}}) != nil {
		t.Error("nothing is revoked, and something is said")
	}
}
