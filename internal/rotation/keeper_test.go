package rotation

import (
	"context"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/test/kubetest"
)

func (m *testMesh) answered(q *adminv2.RotationRequest) adminv2.RotationRequestStatus {
	m.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := m.client.Get(m.t.Context(), client.ObjectKeyFromObject(q), q); err != nil {
			m.t.Fatal(err)
		}
		if q.Status.State == adminv2.RequestDone || q.Status.State == adminv2.RequestRefused {
			return q.Status
		}
	}
	m.t.Fatalf("%s: not answered: %+v", q.Spec.Action, q.Status)
	return q.Status
}

// TestLifeOfAMesh: a first root, a rotation by request, a cluster that joins in the middle of one, a pause, a rollback; each on the record.
func TestLifeOfAMesh(t *testing.T) {
	m := newMesh(t, "a-1", "a-2")
	m.apply("a", generated(adminv2.KeyECDSAP256, 0))
	first := m.steady("a", "generated ECDSA", "")
	if s := m.answered(m.ask("a", adminv2.ActionRotate)); s.State != adminv2.RequestDone || s.By != "jane" || s.Generation != 2 {
		t.Errorf("%+v", s)
	}
	m.join("a-3")
	second := m.steady("a", "generated ECDSA", first.Fingerprint)
	for _, c := range []mesh.ClusterName{"a-1", "a-2", "a-3"} {
		if i := m.issued(c); i == nil || i.Root.String() != second.Fingerprint {
			t.Errorf("%s does not sign under the second root", c)
		}
	}

	if s := m.answered(m.ask("a", adminv2.ActionPause)); s.State != adminv2.RequestDone {
		t.Errorf("%+v", s)
	}
	m.answered(m.ask("a", adminv2.ActionRotate))
	paused := m.until("a", "paused", func(s adminv2.RootTrustPolicyStatus) bool {
		return s.Phase != adminv2.PhaseSteady || strings.Contains(s.Message, "paused")
	})
	if paused.Phase != adminv2.PhaseSteady || paused.State != adminv2.ApprovalPending || !strings.Contains(paused.Message, "meshctl trust resume") {
		t.Errorf("paused, and in phase %s: %s %s", paused.Phase, paused.State, paused.Message)
	}
	m.answered(m.ask("a", adminv2.ActionResume))
	third := m.steady("a", "generated ECDSA", second.Fingerprint)
	if s := m.answered(m.ask("a", adminv2.ActionRollback)); s.State != adminv2.RequestRefused || !strings.Contains(s.Message, "no rotation is under way") {
		t.Errorf("rollback of nothing: %+v", s)
	}

	var phases []string
	issued := 0
	m.mu.Lock()
	for _, r := range m.records {
		switch r.Act {
		case audit.TrustChanged:
			phases = append(phases, strings.Split(r.Detail, ":")[0])
		case audit.CertificateIssued:
			issued++
		default:
		}
	}
	m.mu.Unlock()
	once := []string{"Steady to Preparing", "Preparing to AddingRoot", "AddingRoot to Switching", "Switching to DroppingRoot", "DroppingRoot to Finished", "Finished to Steady"}
	for _, want := range once {
		if n := len(slices.DeleteFunc(slices.Clone(phases), func(p string) bool { return p != want })); n != 2 {
			t.Errorf("%q is on the record %d times, want 2: %v", want, n, phases)
		}
	}
	if issued < 3+3+2 {
		t.Errorf("%d certificates are on the record", issued)
	}
	if st := m.status("a"); third.Fingerprint == "" || st.Roots[0].Generation != 3 {
		t.Errorf("%+v", st.Roots)
	}
	m.noKeys()
}

// noKeys: nothing that looks like a private key is anywhere but in Secrets.
func (m *testMesh) noKeys() {
	m.t.Helper()
	var maps corev1.ConfigMapList
	var policies adminv2.RootTrustPolicyList
	var requests adminv2.RotationRequestList
	text := m.log.String()
	for _, list := range []client.ObjectList{&maps, &policies, &requests} {
		if err := m.client.List(m.t.Context(), list, client.InNamespace(m.namespace)); err != nil {
			m.t.Fatal(err)
		}
		raw, err := json.Marshal(list)
		if err != nil {
			m.t.Fatal(err)
		}
		text += string(raw)
	}
	m.mu.Lock()
	raw, err := json.Marshal(m.records)
	m.mu.Unlock()
	if err != nil {
		m.t.Fatal(err)
	}
	text += string(raw)
	if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("PRIVATE KEY"))[:12]) {
		m.t.Error("something that says PRIVATE KEY is in a ConfigMap, a status, a record or the log")
	}
	var secrets corev1.SecretList
	if err := m.client.List(m.t.Context(), &secrets, client.InNamespace(m.namespace)); err != nil {
		m.t.Fatal(err)
	}
	planted := 0
	for _, s := range secrets.Items {
		for name, value := range s.Data {
			if lines := strings.Split(string(value), "\n"); strings.Contains(name, "key") && len(lines) > 2 {
				planted++
				if strings.Contains(text, lines[1]) {
					m.t.Errorf("key %s of Secret %s is in a ConfigMap, a status, a record or the log", name, s.Name)
				}
			}
		}
	}
	if planted == 0 {
		m.t.Error("no key was found in any Secret: the check has nothing to look for")
	}
}

var errDied = errors.New("the server has died")

// mortal is a client that dies at its n-th write: before it is made, or after.
func mortal(t *testing.T, n int32, before bool) (c client.Client, dies func(die func())) {
	t.Helper()
	var writes atomic.Int32
	var dying atomic.Pointer[func()]
	die := func() {
		if f := dying.Load(); f != nil {
			(*f)()
		}
	}
	write := func(do func() error) error {
		at := writes.Add(1)
		switch {
		case at > n, at == n && before:
			die()
			return errDied
		case at == n:
			err := do()
			die()
			return errors.Join(err, errDied)
		}
		return do()
	}
	c = interceptor.NewClient(kubetest.Client(t, kubetest.Start(t)), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			return write(func() error { return c.Create(ctx, obj, opts...) })
		},
		Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			return write(func() error { return c.Update(ctx, obj, opts...) })
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, obj client.Object, opts ...client.SubResourceUpdateOption) error {
			return write(func() error { return c.SubResource(sub).Update(ctx, obj, opts...) })
		},
	})
	return c, func(f func()) { dying.Store(&f) }
}

// TestKilledAtEveryWrite: a server that dies at each of its first writes, before or after it, is followed by one that knows only what is stored; the rotation comes to the
// same end, with one root made for it, not one for each death.
func TestKilledAtEveryWrite(t *testing.T) {
	m := newMesh(t, "a-1", "a-2")
	m.apply("a", generated(adminv2.KeyECDSAP256, 0))
	first := m.steady("a", "generated ECDSA", "")
	m.ask("a", adminv2.ActionRotate)
	lives := 0
	for ; lives < 200; lives++ {
		c, dies := mortal(t, int32(1+lives%3), lives%2 == 0 && lives%3 != 0)
		life, die := m.serve(c)
		dies(die)
		over := false
		for end := time.Now().Add(limit); life.Err() == nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if s := m.status("a"); s.Phase == adminv2.PhaseSteady && len(s.Roots) == 1 && s.Roots[0].Fingerprint != first.Fingerprint {
				over = true
				break
			}
		}
		if over {
			break
		}
	}
	m.serve(m.client)
	last := m.steady("a", "generated ECDSA", first.Fingerprint)
	if last.Generation != 2 {
		t.Errorf("%d deaths have made roots up to generation %d", lives, last.Generation)
	}
	if lives < 5 {
		t.Errorf("it died %d times: too seldom to tell", lives)
	}
	t.Logf("died %d times", lives)
	for _, c := range []mesh.ClusterName{"a-1", "a-2"} {
		under := func() bool { i := m.issued(c); return i != nil && i.Root.String() == last.Fingerprint }
		for end := time.Now().Add(limit); !under() && time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // the last server reads what is stored first
		}
		if !under() {
			t.Errorf("%s does not sign under the new root", c)
		}
	}
	m.noKeys()
}

// TestPassiveRoots: they are trusted and sign nothing; a Secret that is gone for a moment takes no trust away, a policy that does not name it does.
func TestPassiveRoots(t *testing.T) {
	m := newMesh(t, "a-1")
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := pki.NewRoot(key, pki.RootOptions{Subject: pkix.Name{CommonName: "theirs"}, TTL: time.Hour, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	older, err := pki.NewRoot(key, pki.RootOptions{Subject: pkix.Name{CommonName: "older"}, TTL: time.Hour, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	m.secret("theirs", map[string][]byte{"root-cert.pem": pki.EncodeCertificates(theirs, older)}) // no key: none is needed
	config := generated(adminv2.KeyECDSAP256, 0)
	config.PassiveCertificateAuthorities = []adminv2.PassiveCertificateAuthority{{SecretRef: &adminv2.ObjectRef{Name: "theirs"}}}
	m.apply("a", config)
	bundle := func() []string {
		board, _ := m.server()
		raw, _ := board.Directive("a-1")
		var d mesh.TrustDirective
		if len(raw) == 0 || json.Unmarshal(raw, &d) != nil {
			return nil
		}
		certs, err := pki.ParseCertificates(d.Bundle)
		if err != nil {
			return nil
		}
		var out []string
		for _, c := range certs {
			out = append(out, c.Subject.CommonName)
		}
		return out
	}
	trusts := func(want bool) {
		t.Helper()
		for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
			names := bundle()
			if len(names) > 0 && slices.Contains(names, "theirs") == want && slices.Contains(names, "older") == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the bundle holds %v, want theirs: %t\n%s", names, want, m.log.String())
			}
		}
	}
	trusts(true)
	s := m.until("a", "with a passive root", func(s adminv2.RootTrustPolicyStatus) bool {
		return slices.ContainsFunc(s.Roots, func(r adminv2.RootStatus) bool { return r.Role == adminv2.RootPassive })
	})
	if i := m.issued("a-1"); i != nil && i.Root.String() == mesh.FingerprintOf(theirs.Raw).String() {
		t.Errorf("a passive root signs: %+v", s.Roots)
	}
	if err := m.client.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: "theirs"}}); err != nil {
		t.Fatal(err)
	}
	m.serve(m.client) // a server that has never read it
	for end := time.Now().Add(limit); !strings.Contains(m.log.String(), "a passive root is not known") && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	_, k := m.server()
	for range 3 { // rounds that know of its failure
		k.Ring()
		time.Sleep(2 * settleFor)
	}
	passive := len(slices.DeleteFunc(m.status("a").Roots, func(r adminv2.RootStatus) bool { return r.Role != adminv2.RootPassive }))
	if names := bundle(); !slices.Contains(names, "theirs") || passive != 2 {
		t.Errorf("while its Secret is away: %v, %d passive roots", names, passive)
	}
	m.apply("a", generated(adminv2.KeyECDSAP256, 0))
	trusts(false)
}
