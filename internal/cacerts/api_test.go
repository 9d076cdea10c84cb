package cacerts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

func TestRotation(t *testing.T) {
	s := newSite(t)
	r1, r2 := newRoot(t, "root g1"), newRoot(t, "root g2")
	d := mesh.TrustDirective{Policy: "gloo-mesh/root-trust-policy", Bundle: pemOf(r1.cert)}

	s.issued(&d, order("g1", 1), r1)
	if s.secret(CACertsName) != nil {
		t.Fatal("cacerts was written without being asked for")
	}
	d.Signer = "g1"
	s.direct(d)
	s.within("cacerts", func() bool { return s.secret(CACertsName) != nil })
	first := s.secret(CACertsName)
	if d := cmp.Diff(map[string]string{
		"owner.gloo.solo.io/name": "gloo-mesh", "reconciler.mesh.gloo.solo.io/name": "cert-agent", "context.mesh.gloo.solo.io/cluster": "c1", "context.mesh.gloo.solo.io/namespace": s.namespace,
		"gloo.solo.io/parent_group": "admin.gloo.solo.io", "gloo.solo.io/parent_version": "v2", "gloo.solo.io/parent_kind": "RootTrustPolicy", "gloo.solo.io/parent_namespace": "gloo-mesh", "gloo.solo.io/parent_name": "root-trust-policy",
	}, first.Labels); d != "" || first.Type != corev1.SecretTypeOpaque {
		t.Error(d, first.Type)
	}
	if !bytes.Equal(first.Data["root-cert.pem"], d.Bundle) || !bytes.Equal(first.Data["cert-chain.pem"], d.Intermediates[0].Chain) || len(first.Data) != 4 {
		t.Errorf("content: %v", first.Data)
	}
	key, err := pki.ParseKey(first.Data["ca-key.pem"])
	cert, err2 := parse(first.Data["ca-cert.pem"])
	if err != nil || err2 != nil || publicOf(key.Public()) != publicOf(cert[0].PublicKey) {
		t.Fatal("key and certificate don't fit", err, err2)
	}

	// The other root's intermediate is prepared while cacerts stays as it is.
	s.issued(&d, order("g2", 2), r2)
	s.within("both slots are good", func() bool {
		slots := s.keeper.State().Slots
		return len(slots) == 2 && slots[1].ID == "g2" && !slots[1].Signer.IsZero() && slots[1].Checked == ""
	})
	if got := s.secret(CACertsName).ResourceVersion; got != first.ResourceVersion {
		t.Error("cacerts was written though nothing had changed")
	}

	// S2: all but the bundle stays byte-identical. S3: the signer. S4: the bundle. S5: the key goes.
	write := func(what string) *corev1.Secret {
		s.direct(d)
		s.within(what, func() bool {
			c := s.secret(CACertsName)
			return bytes.Equal(c.Data["root-cert.pem"], d.Bundle) && bytes.Equal(c.Data["cert-chain.pem"], d.Intermediates[len(d.Intermediates)-1].Chain) == (d.Signer == "g2")
		})
		return s.secret(CACertsName)
	}
	d.Bundle = pemOf(r1.cert, r2.cert)
	second := write("S2")
	for _, f := range []string{"ca-cert.pem", "ca-key.pem", "cert-chain.pem"} {
		if !bytes.Equal(first.Data[f], second.Data[f]) {
			t.Errorf("S2 changed %s", f)
		}
	}
	d.Signer = "g2"
	third := write("S3")
	if !bytes.Equal(second.Data["root-cert.pem"], third.Data["root-cert.pem"]) {
		t.Error("S3 changed the bundle")
	}
	d.Bundle = pemOf(r2.cert)
	write("S4")
	if s.secret(KeysName).Data["g1.key"] == nil {
		t.Error("the old key must stay sealed until S5")
	}
	d.Intermediates = d.Intermediates[1:]
	s.direct(d)
	s.within("S5: the old key is destroyed", func() bool { return s.secret(KeysName).Data["g1.key"] == nil })
	if k := s.secret(KeysName).Data; k["g2.key"] == nil || k["g1.csr"] != nil {
		t.Error("keys after S5")
	}
	s.within("the state says so", func() bool {
		st := s.keeper.State()
		return st.Secret.Owner == mesh.OwnerValue && st.Secret.Foreign == "" && cmp.Equal(st.Secret.Roots, fingerprints([]*x509.Certificate{r2.cert})) && st.Secret.Signer == st.Signer && len(st.Problems) == 0 && len(st.Slots) == 1
	})
}

// Without a directive nothing is touched, whatever is there.
func TestNoDirective(t *testing.T) {
	s := newSite(t)
	r1 := newRoot(t, "root g1")
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: CACertsName}, Data: map[string][]byte{"root-cert.pem": pemOf(r1.cert)}}
	if err := s.kube.Create(t.Context(), theirs, client.FieldOwner("kubectl-create")); err != nil {
		t.Fatal(err)
	}
	s.within("it is described", func() bool {
		c := s.keeper.State().Secret
		return c != nil && c.Owner == "field manager kubectl-create" && bytes.Equal(c.Bundle, pemOf(r1.cert))
	})
	s.keeper.Direct([]byte(`{"policy":"a/b","signer":"g9"}`))
	s.within("nonsense is named", func() bool { return s.problems("g9") })
	s.keeper.Direct([]byte(`nonsense`))
	s.within("nonsense is named", func() bool { return s.problems("no JSON") })
	s.stays("untouched", func() bool {
		return s.secret(CACertsName).ResourceVersion == theirs.ResourceVersion && s.secret(KeysName) == nil && s.keeper.State().Applied.IsZero()
	})
}

// A directive that makes no sense leaves the one before in force; one that is taken back leaves all as it is.
func TestStrangeDirective(t *testing.T) {
	s := newSite(t)
	r1 := newRoot(t, "root g1")
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert)}
	s.issued(&d, order("g1", 1), r1)
	d.Signer = "g1"
	s.direct(d)
	s.within("cacerts", func() bool { return s.secret(CACertsName) != nil })
	before := s.secret(CACertsName).ResourceVersion
	s.within("in force", func() bool { return !s.keeper.State().Signer.IsZero() })
	applied := s.keeper.State().Applied
	for _, strange := range []string{`{}x`, `{"signer":"g1"}`, `{"intermediates":[{"id":"../x"}]}`, `{"intermediates":[{"id":"g1"},{"id":"g1"}]}`, `{"bundle":"bm9uc2Vuc2U="}`, `{"intermediates":[{"id":"g1","take":"elsewhere"}]}`} {
		s.keeper.Direct([]byte(strange))
		s.within(strange, func() bool { return s.problems("makes no sense") })
	}
	s.stays("the one before is in force", func() bool {
		return s.keeper.State().Applied == applied && s.secret(CACertsName).ResourceVersion == before
	})
	s.keeper.Direct(nil)
	s.within("none is in force", func() bool { return s.keeper.State().Applied.IsZero() })
	s.stays("cacerts and keys stay", func() bool {
		return s.secret(CACertsName).ResourceVersion == before && s.secret(KeysName).Data["g1.key"] != nil
	})
}

// Somebody else's cacerts is named and left alone, until the policy adopts it.
func TestForeignOwner(t *testing.T) {
	s := newSite(t)
	r1, r2 := newRoot(t, "root g1"), newRoot(t, "theirs")
	theirs := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: CACertsName, Annotations: map[string]string{"cert-manager.io/certificate-name": "istio-ca", "note": "stays"}},
		Type:       corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": pemOf(r2.cert), "tls.key": []byte("theirs"), "ca.crt": pemOf(r2.cert)},
	}
	if err := s.kube.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert)}
	s.issued(&d, order("g1", 1), r1)
	d.Signer = "g1"
	s.direct(d)
	s.within("the owner is named", func() bool {
		st := s.keeper.State()
		return s.problems("cert-manager") && st.Secret.Owner == "cert-manager" && st.Secret.TLSLayout && cmp.Equal(st.Secret.Roots, fingerprints([]*x509.Certificate{r2.cert}))
	})
	s.stays("left alone", func() bool { return s.secret(CACertsName).ResourceVersion == theirs.ResourceVersion })
	d.Adopt = true
	s.direct(d)
	s.within("adopted", func() bool {
		c := s.secret(CACertsName)
		return c != nil && c.Type == corev1.SecretTypeOpaque && c.Data["tls.crt"] == nil && bytes.Equal(c.Data["root-cert.pem"], d.Bundle)
	})
	s.within("ours", func() bool {
		st := s.keeper.State()
		return st.Secret.Owner == mesh.OwnerValue && len(st.Problems) == 0
	})

	// It comes back: that is not fought.
	c := s.secret(CACertsName)
	c.Data["root-cert.pem"] = pemOf(r2.cert)
	if err := s.kube.Update(t.Context(), c, client.FieldOwner("cert-manager-again")); err != nil {
		t.Fatal(err)
	}
	s.within("named", func() bool { return s.problems("again after it was adopted") })
	s.stays("not fought", func() bool { return s.secret(CACertsName).ResourceVersion == c.ResourceVersion })
}

// T18: a change mid-phase is held and named; content that is put back is as if nothing had been.
func TestForeignChange(t *testing.T) {
	s := newSite(t)
	r1, r2 := newRoot(t, "root g1"), newRoot(t, "root g2")
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert)}
	s.issued(&d, order("g1", 1), r1)
	d.Signer = "g1"
	s.direct(d)
	s.within("cacerts", func() bool { return s.secret(CACertsName) != nil })
	c := s.secret(CACertsName)
	c.Data["root-cert.pem"] = pemOf(r2.cert)
	if err := s.kube.Update(t.Context(), c, client.FieldOwner("gitops")); err != nil {
		t.Fatal(err)
	}
	s.within("who did it", func() bool {
		st := s.keeper.State()
		return st.Secret.Owner == mesh.OwnerValue && st.Secret.Foreign == "field manager gitops" && s.problems("gitops") && st.Signer.IsZero()
	})
	d.Bundle = pemOf(r1.cert, r2.cert)
	s.direct(d) // the rotation does not go on over it
	s.stays("held", func() bool { return s.secret(CACertsName).ResourceVersion == c.ResourceVersion })
	c.Data["root-cert.pem"] = pemOf(r1.cert)
	if err := s.kube.Update(t.Context(), c, client.FieldOwner("gitops")); err != nil {
		t.Fatal(err)
	}
	s.within("goes on", func() bool { return bytes.Equal(s.secret(CACertsName).Data["root-cert.pem"], d.Bundle) })
	s.within("nobody is named", func() bool { st := s.keeper.State(); return st.Secret.Foreign == "" && len(st.Problems) == 0 })

	if err := s.kube.Delete(t.Context(), s.secret(CACertsName)); err != nil {
		t.Fatal(err)
	}
	s.within("a deleted one is made anew", func() bool { return s.secret(CACertsName) != nil })
	if err := s.kube.Delete(t.Context(), s.secret(CACertsName)); err != nil {
		t.Fatal(err)
	}
	s.within("said", func() bool { return s.problems("somebody deleted") })
	s.stays("not in a loop", func() bool { return s.secret(CACertsName) == nil })
}

// What must not reach istiod does not, and the reason is said.
func TestRefusedChains(t *testing.T) {
	s := newSite(t)
	r1, r2 := newRoot(t, "root g1"), newRoot(t, "root g2")
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert), Intermediates: []mesh.IntermediateOrder{order("g1", 1)}}
	s.direct(d)
	s.within("a request", func() bool { return len(s.requests()) == 1 })
	csr := s.requests()["g1"].CSR
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	q, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	leaf := func() []byte {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(5), NotAfter: time.Now().Add(time.Hour), Subject: q.Subject}, r1.cert, q.PublicKey, r1.key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	for name, chain := range map[string][]byte{
		"another key":  pemOf(sign(t, &x509.Certificate{Subject: q.Subject, NotAfter: time.Now().Add(time.Hour)}, other.Public(), r1)),
		"no CA":        leaf(),
		"another root": r2.issue(t, csr),
		"garbage":      []byte("garbage"),
	} {
		d.Intermediates[0].Chain, d.Signer = chain, "g1"
		s.direct(d)
		raw, _ := json.Marshal(d)
		s.within(name, func() bool {
			st := s.keeper.State()
			return st.Applied == mesh.FingerprintOf(raw) && len(st.Slots) == 1 && st.Slots[0].Checked != "" && s.problems("not written")
		})
		if s.secret(CACertsName) != nil {
			t.Fatalf("%s: cacerts was written", name)
		}
		if len(s.requests()) != 1 {
			t.Errorf("%s: it is not asked for any more", name)
		}
		t.Logf("%s: %s", name, s.keeper.State().Slots[0].Checked)
	}
	d.Intermediates[0].Chain = r1.issue(t, csr)
	s.direct(d)
	s.within("a good one is taken", func() bool { return s.secret(CACertsName) != nil })
}

// Keys and requests survive the agent; nothing is made twice.
func TestSurvivesARestart(t *testing.T) {
	s := newSite(t)
	r1 := newRoot(t, "root g1")
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert), Intermediates: []mesh.IntermediateOrder{order("g1", 1)}}
	s.direct(d)
	s.within("a request", func() bool { return len(s.requests()) == 1 })
	csr, keys := s.requests()["g1"].CSR, s.secret(KeysName).ResourceVersion
	s.restart()
	s.direct(d)
	s.within("in force", func() bool { return !s.keeper.State().Applied.IsZero() })
	if got := s.requests()["g1"].CSR; !bytes.Equal(got, csr) || s.secret(KeysName).ResourceVersion != keys {
		t.Error("another request after the restart")
	}
	d.Intermediates[0].Chain, d.Signer = r1.issue(t, csr), "g1"
	s.direct(d)
	s.within("cacerts", func() bool { return s.secret(CACertsName) != nil })
	written := s.secret(CACertsName).ResourceVersion
	s.restart()
	s.direct(d)
	s.within("in force", func() bool { return !s.keeper.State().Signer.IsZero() })
	if got := s.secret(CACertsName).ResourceVersion; got != written {
		t.Error("cacerts was written again")
	}
}

// A cluster keeps signing by the root that istiod made for itself until everybody trusts the new one.
func TestTakesOver(t *testing.T) {
	s := newSite(t)
	own, r2 := newRoot(t, "cluster.local"), newRoot(t, "root g2")
	der, err := x509.MarshalPKCS8PrivateKey(own.key)
	if err != nil {
		t.Fatal(err)
	}
	self := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: SelfSignedName}, Data: map[string][]byte{"ca-cert.pem": pemOf(own.cert), "ca-key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}}
	if err := s.kube.Create(t.Context(), self); err != nil {
		t.Fatal(err)
	}
	o := mesh.IntermediateOrder{ID: "g0", Take: mesh.TakeSelfSigned, Chain: pemOf(own.cert)}
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(own.cert, r2.cert), Intermediates: []mesh.IntermediateOrder{o}, Signer: "g0"}
	s.direct(d)
	s.within("cacerts with istiod's own key", func() bool {
		c := s.secret(CACertsName)
		return c != nil && bytes.Equal(c.Data["ca-key.pem"], self.Data["ca-key.pem"]) && bytes.Equal(c.Data["root-cert.pem"], d.Bundle)
	})
	if len(s.requests()) > 0 {
		t.Error("a slot that is taken over sends no request")
	}
}

// The CRL is completed by the signer's own, once.
func TestCRL(t *testing.T) {
	s := newSite(t)
	r1 := newRoot(t, "root g1")
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert)}
	s.issued(&d, order("g1", 1), r1)
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, r1.cert, r1.key)
	if err != nil {
		t.Fatal(err)
	}
	d.Signer, d.CRL = "g1", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	s.direct(d)
	s.within("cacerts with CRLs", func() bool { c := s.secret(CACertsName); return c != nil && c.Data["ca-crl.pem"] != nil })
	c := s.secret(CACertsName)
	own, ok := bytes.CutPrefix(c.Data["ca-crl.pem"], d.CRL)
	b, _ := pem.Decode(own)
	if !ok || b == nil {
		t.Fatalf("got %s", c.Data["ca-crl.pem"])
	}
	l, err := x509.ParseRevocationList(b.Bytes)
	cert, err2 := parse(c.Data["ca-cert.pem"])
	if err != nil || err2 != nil || l.CheckSignatureFrom(cert[0]) != nil || len(l.RevokedCertificateEntries) != 0 {
		t.Error("the signer's own list", err, err2)
	}
	s.restart()
	s.direct(d)
	s.within("in force", func() bool { return !s.keeper.State().Signer.IsZero() })
	if got := s.secret(CACertsName).ResourceVersion; got != c.ResourceVersion {
		t.Error("written again for another list of the signer")
	}
}
