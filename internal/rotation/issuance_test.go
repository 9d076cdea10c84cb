package rotation

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/test/vaulttest"
)

// sheetsNow are the objects that people see: "kind name state error".
func (m *testMesh) sheetsNow() []string {
	m.t.Helper()
	var out []string
	var certificates issuancev2.IssuedCertificateList
	var requests issuancev2.CertificateRequestList
	var bounces issuancev2.PodBounceDirectiveList
	for _, l := range []client.ObjectList{&certificates, &requests, &bounces} {
		if err := m.client.List(m.t.Context(), l, client.InNamespace(m.namespace)); err != nil {
			m.t.Fatal(err)
		}
	}
	for _, o := range certificates.Items {
		out = append(out, strings.TrimSpace("certificate "+o.Name+" "+string(o.Status.State)+" "+o.Status.Error))
	}
	for _, o := range requests.Items {
		if len(o.Spec.CertificateSigningRequest) == 0 {
			m.t.Errorf("%s has lost its request", o.Name)
		}
		if o.Status.State == issuancev2.RequestFinished {
			if _, err := pki.ParseCertificates(append(o.Status.SignedCertificate, o.Status.SigningRootCa...)); err != nil {
				m.t.Errorf("%s: %v", o.Name, err)
			}
		}
		out = append(out, strings.TrimSpace("request "+o.Name+" "+string(o.Status.State)+" "+o.Status.Error))
	}
	for _, o := range bounces.Items {
		out = append(out, strings.TrimSpace("bounce "+o.Name+" "+string(o.Status.State)))
	}
	return out
}

func (m *testMesh) shows(want ...string) {
	m.t.Helper()
	var diff string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if diff = cmp.Diff(want, m.sheetsNow()); diff == "" {
			return
		}
	}
	m.t.Fatal(diff)
}

// A person watches how clusters get their intermediates; what is done with is taken away.
func TestIssuanceIsShown(t *testing.T) {
	v := vaulttest.Start(t)
	v.Root("pki", "R1")
	m := newMesh(t, "a-1", "a-2")
	m.secret("vault-token", map[string][]byte{"token": []byte(v.Token("pki/issuer/+/sign-intermediate"))})
	m.apply("a", generated(adminv2.KeyECDSAP256, 0))
	first := m.steady("a", "generated", "")
	m.shows(
		"certificate istiod-istio-system-a-1 FINISHED", "certificate istiod-istio-system-a-2 FINISHED",
		"request istiod-istio-system-a-1-g1-1 FINISHED", "request istiod-istio-system-a-2-g1-1 FINISHED",
	)
	m.apply("a", inVault(v.Address, "pki/sign/absent", ""))
	m.until("a", "refused", func(s adminv2.RootTrustPolicyStatus) bool { return s.State == adminv2.ApprovalFailed })
	const no = "FAILED the certificate authority is set up wrongly: Vault "
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		all := strings.Join(m.sheetsNow(), "\n")
		if strings.Contains(all, "certificate istiod-istio-system-a-1 "+no) && strings.Contains(all, "request istiod-istio-system-a-1-g2-2 "+no) && strings.Contains(all, "request istiod-istio-system-a-1-g1-1 FINISHED") {
			break
		}
		if time.Now().After(end) {
			t.Fatal(all)
		}
	}
	m.serve(m.client) // another server leads: what is there is kept, and taken away
	m.leave("a-2")
	m.apply("a", inVault(v.Address, "pki/root/sign-intermediate", ""))
	m.steady("a", "Vault", first.Fingerprint)
	m.shows("certificate istiod-istio-system-a-1 FINISHED", "request istiod-istio-system-a-1-g2-2 FINISHED")
}
