package agent_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// direct publishes a directive and nothing else.
func (h *hub) direct(d mesh.TrustDirective) mesh.Fingerprint {
	h.t.Helper()
	raw, err := json.Marshal(d)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.hub.Publish(name, map[synclog.Key][]byte{{Type: mesh.ItemTrust, Name: mesh.ItemTrust}: raw}, true); err != nil {
		h.t.Fatal(err)
	}
	return mesh.FingerprintOf(raw)
}

// authority is a root of the hub.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.cert = a.certify(t, &x509.Certificate{Subject: pkix.Name{Organization: []string{"Ambit"}, CommonName: "root g1"}, MaxPathLen: -1}, &key.PublicKey)
	return a
}

func (a *authority) certify(t testing.TB, template *x509.Certificate, key any) *x509.Certificate {
	t.Helper()
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// trusts makes the whole way of an intermediate, with all the rights that it takes: directive down, request up, chain down, cacerts written, istiod restarted, observation up.
func trusts(t *testing.T, s *site, h *hub) {
	t.Helper()
	labels := map[string]string{"app": "istiod"}
	istiod := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "istiod", Namespace: s.namespace},
		Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "discovery", Image: "pilot:1.30.1"}}},
		}},
	}
	if err := s.kube.Create(t.Context(), istiod); err != nil {
		t.Fatal(err)
	}
	root := newAuthority(t)
	d := mesh.TrustDirective{Policy: "gloo-mesh/root-trust-policy", Bundle: certPEM(root.cert), Intermediates: []mesh.IntermediateOrder{{
		ID: "g1", Generation: 1, Organization: "Ambit", CommonName: "prod-eu-west-3 g1", Algorithm: "ECDSA-P256", URIs: []string{"spiffe://cluster.local/ns/istio-system/sa/istiod"},
	}}}
	h.direct(d)
	var request mesh.IntermediateRequest
	s.within(10*time.Second, "a certificate request", func() bool { return h.item(mesh.ItemTrustRequest, "g1", &request) })
	csr, err := x509.ParseCertificateRequest(request.CSR)
	if err != nil {
		t.Fatal(err)
	}
	d.Intermediates[0].Chain = certPEM(root.certify(t, &x509.Certificate{Subject: csr.Subject, URIs: csr.URIs, MaxPathLenZero: true}, csr.PublicKey))
	d.Signer, d.Restart.Istiod = "g1", "once"
	applied := h.direct(d)
	s.within(10*time.Second, "cacerts", func() bool {
		return bytes.Equal(s.data("cacerts")["root-cert.pem"], d.Bundle) && bytes.Equal(s.data("cacerts")["cert-chain.pem"], d.Intermediates[0].Chain)
	})
	s.within(10*time.Second, "istiod restarts", func() bool {
		return s.kube.Get(t.Context(), client.ObjectKeyFromObject(istiod), istiod) == nil && istiod.Spec.Template.Annotations["admin.gloo.solo.io/restarted-for"] == "once"
	})
	var o mesh.TrustObservation
	s.within(15*time.Second, "an observation of it", func() bool {
		return h.item(mesh.ItemTrust, mesh.ItemTrust, &o) && o.Applied == applied && o.Secret != nil && o.Secret.Owner == mesh.OwnerValue && o.Restarted.Doing != ""
	})
	if shown(t, s).Applied != applied {
		t.Error("/trust shows something else")
	}
	if len(o.Problems) > 0 || o.Certificates[mesh.FingerprintOf(root.cert.Raw)] == nil || o.Certificates[o.Secret.Signer] == nil || len(o.Slots) != 1 {
		t.Errorf("observation: %+v", o)
	}
}

// shown is what the agent shows a person of trust.
func shown(t *testing.T, s *site) (o mesh.TrustObservation) {
	t.Helper()
	r, err := http.Get("http://" + s.cfg.MetricsAddress + "/trust")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		t.Fatal(err)
	}
	return o
}

func tokenFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
