package report_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/trust"
)

// issuance is one cluster in the middle of a rotation: slot g1 signs, g2 is to.
func issuance(change func(*trust.Cluster, *report.Trust)) report.Trust {
	signed := trust.Issued{Signer: mesh.Fingerprint{1}, Root: mesh.Fingerprint{9}, NotAfter: noon.Add(time.Hour), Chain: []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\nabove")}
	in := report.Trust{
		Policy: &mesh.RootTrustPolicy{Source: mesh.Ref{Namespace: "gloo-mesh", Name: "p"}, Trust: mesh.Trust{
			Authority: mesh.Authority{Vault: &mesh.Vault{}}, Intermediate: mesh.CertOptions{TTL: 48 * time.Hour, Organization: "o", Algorithm: "RSA-4096", RenewRatio: 0.5},
		}},
		Input: trust.Input{Fleet: []trust.Cluster{{Name: "c1", Issued: map[string]trust.Issued{"g1": signed}, Requests: map[string]bool{}, Observation: &mesh.TrustObservation{}}}},
		Step: trust.Step{
			Rotation:   trust.Rotation{Current: trust.Root{Fingerprint: mesh.Fingerprint{9}, Certificate: []byte("root")}, Members: map[mesh.ClusterName]trust.Member{"c1": {Old: "g1", New: "g2"}}},
			Directives: map[mesh.ClusterName]*mesh.TrustDirective{"c1": {Intermediates: []mesh.IntermediateOrder{{ID: "g1"}, {ID: "g2", URIs: []string{"spiffe://x"}}, {ID: "taken", Take: "cacerts"}}}},
		},
		Refusals: map[mesh.ClusterName]string{},
	}
	change(&in.Input.Fleet[0], &in)
	return in
}

func TestIssuanceStates(t *testing.T) {
	second := trust.Issued{Signer: mesh.Fingerprint{2}, NotAfter: noon}
	for name, c := range map[string]struct {
		change               func(*trust.Cluster, *report.Trust)
		certificate, request string
	}{
		"not asked for": {func(*trust.Cluster, *report.Trust) {}, "PENDING ", "PENDING "},
		"asked for":     {func(c *trust.Cluster, _ *report.Trust) { c.Requests["g2"] = true }, "REQUESTED ", "PENDING "},
		"refused":       {func(_ *trust.Cluster, in *report.Trust) { in.Refusals["c1"] = "no" }, "FAILED no", "FAILED no"},
		"signed":        {func(c *trust.Cluster, _ *report.Trust) { c.Issued["g2"] = second }, "ISSUED ", "FINISHED "},
		"refused by cluster": {func(c *trust.Cluster, _ *report.Trust) {
			c.Issued["g2"], c.Observation.Slots = second, []mesh.Slot{{ID: "g2", Checked: "bad"}}
		}, "FAILED the cluster refuses it: bad", "FAILED the cluster refuses it: bad"},
		"one istiod signs": {func(c *trust.Cluster, _ *report.Trust) {
			c.Issued["g2"], c.Observation.Istiods = second, []mesh.IstiodProbe{{Signer: mesh.Fingerprint{2}}, {Signer: mesh.Fingerprint{1}}}
		}, "ISSUED ", "FINISHED "},
		"every istiod signs": {func(c *trust.Cluster, _ *report.Trust) {
			c.Issued["g2"], c.Observation.Istiods = second, []mesh.IstiodProbe{{Signer: mesh.Fingerprint{2}}}
		}, "FINISHED ", "FINISHED "},
		"refusals are of g2's": {func(c *trust.Cluster, in *report.Trust) { c.Issued["g2"] = second; in.Refusals["c1"] = "no" }, "ISSUED ", "FINISHED "},
	} {
		t.Run(name, func(t *testing.T) {
			got := report.Issuances(issuance(c.change), func(mesh.ClusterName, string) []byte { return nil })
			if len(got.Certificates) != 1 || len(got.Requests) != 2 || len(got.Bounces) != 0 {
				t.Fatalf("%+v", got)
			}
			i, r := got.Certificates[0].Status, got.Requests[1].Status
			if s := string(i.State) + " " + i.Error; s != c.certificate {
				t.Errorf("certificate: %s, want %s", s, c.certificate)
			}
			if s := string(r.State) + " " + r.Error; s != c.request {
				t.Errorf("request: %s, want %s", s, c.request)
			}
		})
	}
}

func TestIssuanceWhole(t *testing.T) {
	in := issuance(func(c *trust.Cluster, in *report.Trust) {
		in.Step.Directives["c1"].Restart = mesh.RestartOrder{Istiod: "t", DataPlane: "t"}
		c.Observation.Restarted.Doing = "istiod 1/2 ready"
	})
	got := report.Issuances(in, func(_ mesh.ClusterName, slot string) []byte { return map[string][]byte{"g2": []byte("csr")}[slot] })
	ref := &issuancev2.ObjectReference{Name: "istiod", Namespace: "istio-system", Cluster: "c1"}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: "istiod-istio-system-c1" + name, Namespace: "gloo-mesh"}
	}
	pods := func(namespace, label, value string) issuancev2.PodSelector {
		return issuancev2.PodSelector{Namespace: namespace, Labels: map[string]string{label: value}}
	}
	ztunnel := pods("istio-system", "app", "ztunnel")
	ztunnel.RootCertSync = &issuancev2.RootCertSync{
		SecretRef: &adminv2.ObjectRef{Name: "cacerts", Namespace: "istio-system"}, SecretKey: "root-cert.pem",
		ConfigMapRef: &adminv2.ObjectRef{Name: "istio-ca-root-cert", Namespace: "istio-system"}, ConfigMapKey: "root-cert.pem",
	}
	want := report.Issuance{
		Certificates: []issuancev2.IssuedCertificate{{
			ObjectMeta: meta(""),
			Spec: issuancev2.IssuedCertificateSpec{
				Hosts: []string{"spiffe://x"}, IssuedCertificateSecret: &adminv2.ObjectRef{Name: "cacerts", Namespace: "istio-system"}, AgentCa: &issuancev2.AgentCA{}, MeshRef: ref,
				CertOptions: &adminv2.CommonCertOptions{TTLDays: 2, RSAKeySizeBytes: 4096, OrgName: "o", SecretRotationGracePeriodRatio: 0.5},
			},
			Status: issuancev2.IssuedCertificateStatus{State: "PENDING"},
		}},
		Requests: []issuancev2.CertificateRequest{
			{ObjectMeta: meta("-g1"), Status: issuancev2.CertificateRequestStatus{
				State: "FINISHED", SignedCertificate: []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), CertChain: []byte("above"),
				SigningRootCa: []byte("-----BEGIN CERTIFICATE-----\ncm9vdA==\n-----END CERTIFICATE-----\n"),
			}},
			{
				ObjectMeta: meta("-g2"), Status: issuancev2.CertificateRequestStatus{State: "PENDING"},
				Spec: issuancev2.CertificateRequestSpec{CertificateSigningRequest: []byte("-----BEGIN CERTIFICATE REQUEST-----\nY3Ny\n-----END CERTIFICATE REQUEST-----\n")},
			},
		},
		Bounces: []issuancev2.PodBounceDirective{{
			ObjectMeta: meta(""), Status: issuancev2.PodBounceDirectiveStatus{State: "BOUNCING_PODS"},
			Spec: issuancev2.PodBounceDirectiveSpec{MeshRef: ref, PodsToBounce: []issuancev2.PodSelector{
				pods("istio-system", "app", "istiod"), ztunnel,
				pods("", "gateway.istio.io/managed", "istio.io-eastwest-controller"), pods("", "gateway.istio.io/managed", "istio.io-gateway-controller"), pods("", "gateway.istio.io/managed", "istio.io-mesh-controller"),
			}},
		}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
