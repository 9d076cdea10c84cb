package cacerts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

func secretOf(t testing.TB, text string) *secret {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	s, err := read(&unstructured.Unstructured{Object: o})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ours is a cacerts as we write it.
func ours(t testing.TB, files map[string][]byte) *secret {
	t.Helper()
	u := newSecret("istio-system", CACertsName)
	dress(u, files, "c1", "gloo-mesh/p")
	s, err := read(u)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOwner(t *testing.T) {
	managed := func(manager string) string {
		return fmt.Sprintf(`managedFields: [{manager: %s, operation: Update, time: '2026-01-01T00:00:00Z', fieldsV1: {'f:data': {'f:root-cert.pem': {}}}},
			{manager: labeller, operation: Update, time: '2026-02-01T00:00:00Z', fieldsV1: {'f:metadata': {}}}]`, manager)
	}
	for text, want := range map[string]string{
		`{metadata: {annotations: {cert-manager.io/certificate-name: istio-ca}}}`:                                                                          "cert-manager",
		`{metadata: {labels: {controller.cert-manager.io/fao: 'true'}}}`:                                                                                   "cert-manager",
		`{metadata: {annotations: {argocd.argoproj.io/tracking-id: x}}}`:                                                                                   "Argo CD",
		`{metadata: {labels: {kustomize.toolkit.fluxcd.io/name: x}}}`:                                                                                      "Flux",
		`{metadata: {labels: {app.kubernetes.io/managed-by: Helm}}}`:                                                                                       "Helm",
		`{metadata: {annotations: {meta.helm.sh/release-name: istio}}}`:                                                                                    "Helm",
		`{metadata: {ownerReferences: [{apiVersion: bitnami.com/v1alpha1, kind: SealedSecret, name: cacerts, uid: u}]}}`:                                   "SealedSecret cacerts",
		`{metadata: {name: cacerts}, data: {istio-generated: ''}}`:                                                                                         "istiod",
		`{metadata: {` + managed("kubectl-create") + `}}`:                                                                                                  "field manager kubectl-create",
		`{metadata: {` + managed("argocd-controller") + `}}`:                                                                                               "Argo CD",
		`{metadata: {name: cacerts}}`:                                                                                                                      "somebody",
		`{metadata: {labels: {owner.gloo.solo.io/name: gloo-mesh}}}`:                                                                                       "somebody",                    // nobody has our label by chance, but our hash is missing
		`{metadata: {annotations: {admin.gloo.solo.io/cacerts-hash: x}, ` + managed("kubectl-label") + `}}`:                                                "field manager kubectl-label", // our label was taken off
		`{metadata: {labels: {owner.gloo.solo.io/name: gloo-mesh}, annotations: {admin.gloo.solo.io/cacerts-hash: x}}}`:                                    mesh.OwnerValue,
		`{metadata: {labels: {owner.gloo.solo.io/name: gloo-mesh}, annotations: {admin.gloo.solo.io/cacerts-hash: x, argocd.argoproj.io/tracking-id: x}}}`: "Argo CD",
	} {
		if got := secretOf(t, text).owner(); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestDecide(t *testing.T) {
	old, files := map[string][]byte{"root-cert.pem": []byte("old")}, map[string][]byte{"root-cert.pem": []byte("new")}
	edited := ours(t, old)
	edited.data = map[string][]byte{"root-cert.pem": []byte("theirs")}
	back := ours(t, old)
	back.data = files
	theirs := secretOf(t, `{type: Opaque, metadata: {annotations: {cert-manager.io/certificate-name: istio-ca}}}`)
	tlsTyped := secretOf(t, `{type: kubernetes.io/tls, metadata: {annotations: {cert-manager.io/certificate-name: istio-ca}}}`)
	fixed := ours(t, old)
	fixed.immutable = true
	for _, tt := range []struct {
		name               string
		stored             *secret
		adopt, overwritten bool
		want               action
		held               string
	}{
		{"there is none", nil, false, false, create, ""},
		{"as directed", ours(t, files), false, false, nothing, ""},
		{"the directive has changed", ours(t, old), false, false, update, ""},
		{"the same, after an adoption", ours(t, old), true, true, update, ""},
		{"edited", edited, false, false, nothing, "somebody has changed"},
		{"edited, to be adopted", edited, true, false, update, ""},
		{"edited again", edited, true, true, nothing, "again"},
		{"edited to what is directed", back, false, false, update, ""},
		{"somebody else's", theirs, false, false, nothing, "belongs to cert-manager"},
		{"somebody else's, to be adopted", theirs, true, false, update, ""},
		{"somebody else's, back again", theirs, true, true, nothing, "cert-manager has changed"},
		{"of a type that can't be changed", tlsTyped, true, false, replace, ""},
		{"immutable", fixed, false, false, nothing, "immutable"},
	} {
		act, held := decide(tt.stored, files, tt.adopt, tt.overwritten)
		if act != tt.want || (held == "") != (tt.held == "") || !strings.Contains(held, tt.held) {
			t.Errorf("%s: %q %q, want %q %q", tt.name, act, held, tt.want, tt.held)
		}
	}
}

// An adopted Secret is nobody else's any more, and keeps what nobody claims.
func TestUnmark(t *testing.T) {
	s := secretOf(t, `{metadata: {labels: {app.kubernetes.io/managed-by: Helm, team: pki}, annotations: {meta.helm.sh/release-name: x, note: stays}, ownerReferences: [{apiVersion: v1, kind: X, name: x, uid: u}]}}`)
	unmark(s.object)
	dress(s.object, map[string][]byte{}, "c1", "bad policy")
	again, err := read(s.object)
	if err != nil {
		t.Fatal(err)
	}
	if again.owner() != mesh.OwnerValue || again.labels["team"] != "pki" || again.annotations["note"] != "stays" || again.labels["gloo.solo.io/parent_name"] != "" {
		t.Errorf("owner %q, %v %v", again.owner(), again.labels, again.annotations)
	}
}

func TestPlanSlots(t *testing.T) {
	slotWith := func() slot {
		key, raw, err := newKey("ECDSA-P256")
		if err != nil {
			t.Fatal(err)
		}
		return slot{key: key, keyPEM: raw}
	}
	have := map[string]slot{"g1": slotWith(), "g2": slotWith(), "old": slotWith(), "used": slotWith()}
	chain := []byte("chain")
	d := &directive{TrustDirective: mesh.TrustDirective{Intermediates: []mesh.IntermediateOrder{
		{ID: "g1", Chain: chain}, {ID: "g2", Chain: chain}, {ID: "g3"}, {ID: "g3-r1"}, {ID: "taken", Take: mesh.TakeCACerts},
	}}}
	ids := func(p slotPlan) (out []string) {
		for _, o := range p.make {
			out = append(out, "make "+o.ID)
		}
		for _, o := range p.ask {
			out = append(out, "ask "+o.ID)
		}
		for _, id := range p.destroy {
			out = append(out, "destroy "+id)
		}
		return out
	}
	p := planSlots(d, have, false, map[string]string{"g2": "refused"}, have["used"].public())
	if d := cmp.Diff([]string{"make g3", "make g3-r1", "make taken", "ask g2", "ask g3", "ask g3-r1", "destroy old"}, ids(p)); d != "" {
		t.Error(d)
	}
	p = planSlots(d, have, true, nil, mesh.Fingerprint{}) // one of the keys there can't be read: none is made over it
	if len(p.make) > 0 {
		t.Errorf("makes %v", ids(p))
	}
}

func TestCheckFiles(t *testing.T) {
	now := time.Now()
	r1, r2 := newRoot(t, "root g1"), newRoot(t, "root g2")
	made := func() (map[string][]byte, *x509.Certificate) {
		key, raw, err := newKey("ECDSA-P256")
		if err != nil {
			t.Fatal(err)
		}
		c := sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "c1"}, MaxPathLenZero: true, NotAfter: now.Add(time.Hour)}, key.Public(), r1)
		crls, err := withOwnCRL(list(t, r1), nil, c, key, now)
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{caCertFile: pemOf(c), caKeyFile: raw, chainFile: pemOf(c), rootFile: pemOf(r1.cert, r2.cert), crlFile: crls}, c
	}
	if files, _ := made(); checkFiles(files, now) != nil {
		t.Fatal(checkFiles(files, now))
	}
	narrowKey, narrowPEM, err := newKey("ECDSA-P256")
	if err != nil {
		t.Fatal(err)
	}
	narrow := sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "c1"}, MaxPathLenZero: true, NotAfter: now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, narrowKey.Public(), r1)
	_, otherKey, err := newKey("ECDSA-P256")
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(map[string][]byte){
		"no chain":                         func(f map[string][]byte) { f[chainFile] = nil },
		"the chain lacks the signer":       func(f map[string][]byte) { f[chainFile] = pemOf(r1.cert) },
		"another root":                     func(f map[string][]byte) { f[rootFile] = pemOf(r2.cert) },
		"no root":                          func(f map[string][]byte) { f[rootFile] = nil },
		"rubbish after the roots":          func(f map[string][]byte) { f[rootFile] = append(bytes.Clone(f[rootFile]), "x"...) },
		"another key":                      func(f map[string][]byte) { f[caKeyFile] = otherKey },
		"no key":                           func(f map[string][]byte) { f[caKeyFile] = nil },
		"two signers":                      func(f map[string][]byte) { f[caCertFile] = append(bytes.Clone(f[caCertFile]), pemOf(r1.cert)...) },
		"the signer's own list is missing": func(f map[string][]byte) { f[crlFile] = list(t, r1) },
		"a list that is none":              func(f map[string][]byte) { f[crlFile] = append(bytes.Clone(f[crlFile]), "x"...) },
		"extended key usages that istiod refuses": func(f map[string][]byte) {
			f[caCertFile], f[chainFile], f[caKeyFile] = pemOf(narrow), pemOf(narrow), narrowPEM
			delete(f, crlFile)
		},
		"it has ended": nil,
	} {
		files, _ := made()
		at := now
		if edit == nil {
			at = now.Add(2 * time.Hour)
		} else {
			edit(files)
		}
		err := checkFiles(files, at)
		if err == nil {
			t.Errorf("%s: taken", name)
		}
		t.Logf("%s: %v", name, err)
	}
}

// A directive whose lists leave a CA of the chain out never reaches istiod, which would refuse key and certificate with it.
func TestWantedWithAnIncompleteCRL(t *testing.T) {
	now := time.Now()
	r1 := newRoot(t, "root g1")
	mid := &root{}
	var err error
	if mid.key, _, err = newKey("ECDSA-P256"); err != nil {
		t.Fatal(err)
	}
	mid.cert = sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "issuing CA"}, NotAfter: now.Add(time.Hour)}, mid.key.Public(), r1)
	key, raw, err := newKey("ECDSA-P256")
	if err != nil {
		t.Fatal(err)
	}
	o := order("g1", 1)
	c := sign(t, &x509.Certificate{Subject: subjectOf(o), MaxPathLenZero: true, NotAfter: now.Add(time.Hour)}, key.Public(), mid)
	o.Chain = pemOf(c, mid.cert)
	d := &directive{TrustDirective: mesh.TrustDirective{Signer: "g1", Bundle: pemOf(r1.cert), Intermediates: []mesh.IntermediateOrder{o}}, roots: []*x509.Certificate{r1.cert}}
	have := map[string]slot{"g1": {key: key, keyPEM: raw}}
	for _, tt := range []struct {
		name string
		crl  []byte
		ok   bool
	}{{"none", nil, true}, {"the root's", list(t, r1), false}, {"both", append(list(t, r1), list(t, mid)...), true}} {
		d.CRL = tt.crl
		if files, err := wanted(d, have, nil, now); (err == nil) != tt.ok || (files != nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func list(t testing.TB, by *root) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, by.cert, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func TestOwnCRLIsKept(t *testing.T) {
	now := time.Now()
	r1, r2 := newRoot(t, "root g1"), newRoot(t, "root g2")
	first, err := withOwnCRL(list(t, r1), nil, r1.cert, r1.key, now)
	if err != nil {
		t.Fatal(err)
	}
	hubs := first[:len(first)-len(first[bytes.LastIndex(first, []byte("-----BEGIN")):])]
	for name, tt := range map[string]struct {
		hubs []byte
		by   *root
		at   time.Time
		kept bool
	}{
		"the same":             {hubs, r1, now.Add(time.Hour), true},
		"a new list":           {list(t, r1), r1, now, false},
		"another signer":       {hubs, r2, now, false},
		"the signer has ended": {hubs, r1, now.Add(25 * time.Hour), false},
	} {
		got, err := withOwnCRL(tt.hubs, first, tt.by.cert, tt.by.key, tt.at)
		if err != nil && tt.kept {
			t.Fatal(err)
		}
		if bytes.Equal(got, first) != tt.kept {
			t.Errorf("%s: kept %t", name, !tt.kept)
		}
	}
}

func FuzzDirective(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	r := newRoot(f, "root g1")
	raw, err := json.Marshal(mesh.TrustDirective{Policy: "a/b", Bundle: pemOf(r.cert), Signer: "g1", CRL: []byte("x"), Intermediates: []mesh.IntermediateOrder{{ID: "g1", Generation: 1, Chain: pemOf(r.cert), URIs: []string{"%"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"signer":"g1","intermediates":[{"id":"g1","take":"cacerts","chain":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		now := time.Unix(1_800_000_000, 0)
		d, err := readDirective(raw, now)
		if err != nil {
			return
		}
		have := map[string]slot{}
		for _, o := range d.Intermediates {
			have[o.ID] = slot{key: key}
			_ = checkChain(o, have[o.ID], d.roots, o.ID == d.Signer, now)
		}
		_ = planSlots(d, have, false, nil, mesh.Fingerprint{})
		if d.Signer != "" {
			if _, err := wanted(d, have, nil, now); err == nil {
				t.Error("files without a key were taken")
			}
		}
	})
}

func FuzzStored(f *testing.F) {
	r := newRoot(f, "root g1")
	f.Add(pemOf(r.cert), []byte("k"), "cert-manager.io/certificate-name")
	f.Add([]byte("-----BEGIN X-----\n"), []byte{}, "x")
	f.Fuzz(func(t *testing.T, pem, key []byte, mark string) {
		data := map[string]any{}
		for _, name := range []string{caCertFile, chainFile, rootFile, tlsCert, tlsAuthority, "g1.key"} {
			data[name] = base64.StdEncoding.EncodeToString(pem)
		}
		data[caKeyFile] = base64.StdEncoding.EncodeToString(key)
		s, err := read(&unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"annotations": map[string]any{mark: mark}}, "data": data}})
		if err != nil {
			t.Fatal(err)
		}
		out, _, _ := describe(s)
		if raw, err := json.Marshal(out); err != nil || len(key) > 16 && !bytes.Contains(pem, key) && bytes.Contains(raw, []byte(base64.StdEncoding.EncodeToString(key))) {
			t.Errorf("the key is in what is reported, or: %v", err)
		}
		_, _ = readSlots(s)
		_, _ = pki.ParseKey(key)
	})
}
