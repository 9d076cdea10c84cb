package rotation

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
	"ambitmesh.dev/ambit/test/kubetest"
)

// TestStore: what one server writes, the next one reads; a change by somebody else is noticed, and nothing is lost to it.
func TestStore(t *testing.T) {
	c := kubetest.Client(t, kubetest.Start(t))
	ns := kubetest.Namespace(t, c)
	load := func() *store {
		t.Helper()
		s := newStore(c, ns)
		if err := s.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	cert := trust.Issued{Signer: mesh.FingerprintOf([]byte("i")), Root: mesh.FingerprintOf([]byte("r")), NotAfter: time.Now().Add(time.Hour).Truncate(time.Second)}
	s := load()
	if err := s.issue(t.Context(), "a", "g1", cert); err != nil {
		t.Fatal(err)
	}
	if err := s.issue(t.Context(), "a", "g2", cert); err != nil {
		t.Fatal(err)
	}
	if err := s.keep(t.Context(), "a", trust.Kept{}); err != nil {
		t.Fatal(err)
	}
	if err := s.setPolicy(t.Context(), "p", policyRecord{Roots: []rootRecord{{Root: rootNamed("R1", 1), By: mesh.Authority{Secret: "ca"}}}}); err != nil {
		t.Fatal(err)
	}
	next := load()
	got := next.cluster("a")
	if len(got.Issued) != 2 || got.Issued["g1"].Signer != cert.Signer || !got.Issued["g2"].NotAfter.Equal(cert.NotAfter) || got.Kept == nil {
		t.Errorf("%+v", got)
	}
	if p := next.policy("p"); len(p.Roots) != 1 || p.Roots[0].Fingerprint != rootNamed("R1", 1).Fingerprint || p.Roots[0].By.Secret != "ca" {
		t.Errorf("%+v", p)
	}

	// Two servers believe to lead: the one that has not seen the other's certificate does not overwrite it, and holds nothing that is not stored.
	if err := next.issue(t.Context(), "a", "g3", cert); err != nil {
		t.Fatal(err)
	}
	if err := s.issue(t.Context(), "a", "g4", cert); !errors.Is(err, errStale) || !strings.Contains(err.Error(), `cluster "a"`) {
		t.Errorf("a lost update: %v", err)
	}
	if _, has := s.cluster("a").Issued["g4"]; has {
		t.Error("a certificate that was not stored is held")
	}
	if err := newStore(c, ns).issue(t.Context(), "a", "g9", cert); !errors.Is(err, errStale) {
		t.Errorf("a store that was never read: %v", err)
	}
	if got := load().cluster("a").Issued; len(got) != 3 {
		t.Errorf("%d certificates, want g1, g2, g3", len(got))
	}

	if err := next.forget(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := next.forget(t.Context(), "a"); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if n := load().names(); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

// TestStoreRefusesJunk: to go on without a record would be to forget certificates that are in use.
func TestStoreRefusesJunk(t *testing.T) {
	c := kubetest.Client(t, kubetest.Start(t))
	ns := kubetest.Namespace(t, c)
	cm := func(name, text string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{storeLabel: "cluster"}}, Data: map[string]string{storeKey: text}}
	}
	for _, junk := range []string{"", "{", `{"issued":3}`, "-----BEGIN"} {
		for _, name := range []string{clusterPrefix + "a", policyPrefix + "p"} {
			bad := cm(name, junk)
			if strings.HasPrefix(name, policyPrefix) && junk == `{"issued":3}` {
				bad.Data[storeKey] = `{"roots":3}`
			}
			if err := c.Create(t.Context(), bad); err != nil {
				t.Fatal(err)
			}
			if err := newStore(c, ns).load(t.Context()); err == nil || !strings.Contains(err.Error(), "ConfigMap "+ns+"/"+name) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("%s with %q: %v", name, junk, err)
			}
			if err := c.Delete(t.Context(), bad); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Somebody else's ConfigMaps are none of ours.
	other := cm("notes", "{")
	other.Labels = nil
	if err := c.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := newStore(c, ns).load(t.Context()); err != nil {
		t.Error(err)
	}
	_ = client.IgnoreNotFound(c.Delete(t.Context(), other))
}
