package rotation

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/internal/trust"
)

// directed is what a cluster is told of revocation lists; nil: nothing.
func (m *testMesh) directed(c mesh.ClusterName) []byte {
	m.t.Helper()
	board, _ := m.server()
	raw, _ := board.Directive(c)
	var d mesh.TrustDirective
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &d); err != nil {
			m.t.Fatal(err)
		}
	}
	return d.CRL
}

// names are the serial numbers that lists name, by hex.
func (m *testMesh) names(text []byte) []string {
	m.t.Helper()
	if len(text) == 0 {
		return nil
	}
	lists, err := pki.ParseCRLs(text)
	if err != nil {
		m.t.Fatal(err)
	}
	var out []string
	for _, l := range lists {
		for _, e := range l.RevokedCertificateEntries {
			out = append(out, e.SerialNumber.Text(16))
		}
	}
	slices.Sort(out)
	return out
}

func serialOf(t *testing.T, i *trust.Issued) string {
	t.Helper()
	certs, err := pki.ParseCertificates(i.Chain)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0].SerialNumber.Text(16)
}

// elliptic is a root and intermediates of the kind of key that the agents of these tests make: others would be renewed at once.
func elliptic() adminv2.RootTrustConfig {
	c := generated("ECDSA-P256", 0)
	c.IntermediateCertOptions = &adminv2.CommonCertOptions{KeyAlgorithm: "ECDSA-P256"}
	return c
}

// TestDeregisteredIsRevoked: what a deregistered cluster had is on the list that the others get, also after a restart of the server, byte for byte.
func TestDeregisteredIsRevoked(t *testing.T) {
	m := newMesh(t, "a-1", "a-2")
	m.apply("a", elliptic())
	m.steady("a", "generated", "")
	gone := serialOf(t, m.issued("a-2"))
	if l := m.directed("a-1"); len(l) > 0 {
		t.Errorf("a list though nothing is revoked: %v", m.names(l))
	}
	m.mu.Lock()
	m.clusters = slices.DeleteFunc(m.clusters, func(c mesh.Cluster) bool { return c.Name == "a-2" })
	m.mu.Unlock()
	s := m.until("a", "revoked", func(s adminv2.RootTrustPolicyStatus) bool {
		return len(s.Revoked) == 1 && s.Revoked[0].Problem == "" && s.State == adminv2.ApprovalAccepted
	})
	if r := s.Revoked[0]; r.Cluster != "a-2" || r.Serial != gone || r.By != "" || !strings.Contains(r.Reason, "deregistered") {
		t.Errorf("%+v", r)
	}
	told := m.directed("a-1")
	if got := m.names(told); !slices.Equal(got, []string{gone}) {
		t.Errorf("the list names %v, want %s", got, gone)
	}
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		_, k := m.server()
		st := k.Status("a-1")
		if st != nil && st.Revocation != nil && st.Revocation.State == adminv2.RevocationInForce {
			if r := st.Revocation; r.Verifiers != 3 || r.Honouring != 3 || len(r.NotHonoured) != 1 || !strings.Contains(r.NotHonoured[0], "inbound") {
				t.Errorf("%+v", r)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("never in force: %+v", st)
		}
	}
	m.serve(m.client) // it knows from its records only
	for end := time.Now().Add(limit); len(m.directed("a-1")) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("after a restart there is no list")
		}
	}
	if !bytes.Equal(m.directed("a-1"), told) {
		t.Error("after a restart the list is another one")
	}
}

// TestRevokeAMember: a member's intermediate is revoked when a person says so; it gets another one, which is not revoked.
func TestRevokeAMember(t *testing.T) {
	m := newMesh(t, "a-1", "a-2")
	m.apply("a", elliptic())
	m.steady("a", "generated", "")
	old := serialOf(t, m.issued("a-2"))
	if st := m.answered(m.ask("a", adminv2.ActionRevoke, "a-2")); st.State != adminv2.RequestDone || !strings.Contains(st.Message, old) {
		t.Fatalf("%+v", st)
	}
	for end := time.Now().Add(limit); serialOf(t, m.issued("a-2")) == old; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it signs with the revoked one")
		}
	}
	s := m.until("a", "accepted", func(s adminv2.RootTrustPolicyStatus) bool {
		return len(s.Revoked) == 1 && s.State == adminv2.ApprovalAccepted
	})
	if r := s.Revoked[0]; r.By != "jane" || r.Reason != "drill" {
		t.Errorf("%+v", r)
	}
	for _, c := range []mesh.ClusterName{"a-1", "a-2"} {
		if got := m.names(m.directed(c)); !slices.Equal(got, []string{old}) {
			t.Errorf("%s: the list names %v, want %s alone", c, got, old)
		}
	}
}

// TestNeverRevokes: a policy that wants no lists has none, and says so.
func TestNeverRevokes(t *testing.T) {
	m := newMesh(t, "a-1", "a-2")
	m.apply("a", elliptic())
	m.steady("a", "generated", "")
	m.mu.Lock()
	p := *m.policies["a"]
	p.CRL = adminv2.CRLNever
	m.policies["a"] = &p
	m.mu.Unlock()
	if st := m.answered(m.ask("a", adminv2.ActionRevoke, "a-2")); st.State != adminv2.RequestRefused || !strings.Contains(st.Message, "Never") {
		t.Errorf("%+v", st)
	}
	if l := m.directed("a-1"); len(l) > 0 {
		t.Errorf("%v", m.names(l))
	}
}

func TestRevocations(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	r1, r2 := mesh.Fingerprint{1}, mesh.Fingerprint{2}
	all := []revocation{
		{Cluster: "a", Serial: "1", Root: r1, Signer: mesh.Fingerprint{11}, From: now, NotAfter: now.Add(time.Hour)},
		{Cluster: "b", Serial: "2", Root: r1, Signer: mesh.Fingerprint{12}, From: now.Add(time.Minute), NotAfter: now.Add(time.Hour)},
		{Cluster: "c", Serial: "3", Root: r2, Signer: mesh.Fingerprint{13}, From: now, NotAfter: now.Add(time.Minute)},
	}
	serials := func(rs []revocation) string {
		var out []string
		for _, r := range rs {
			out = append(out, r.Serial)
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		after                time.Duration
		held, byFirst, other string
	}{
		{0, "1 2 3", "1", "3"},
		{time.Minute, "1 2", "1 2", ""},
		{time.Hour, "", "", ""},
	} {
		at := now.Add(c.after)
		h := held(all, at)
		if got := []string{serials(h), serials(named(h, r1, at)), serials(named(h, r2, at))}; !slices.Equal(got, []string{c.held, c.byFirst, c.other}) {
			t.Errorf("after %s: %q", c.after, got)
		}
	}
	if nextRevocation(all, now) != time.Minute || nextRevocation(nil, now) != 0 {
		t.Error(nextRevocation(all, now))
	}
	again := added(all, []revocation{{Cluster: "x", Signer: mesh.Fingerprint{11}}, {Cluster: "d", Serial: "4", Signer: mesh.Fingerprint{14}}})
	if serials(again) != "1 2 3 4" {
		t.Errorf("%q: one is revoked once", serials(again))
	}
	roots := inPlay(&trust.Root{Fingerprint: r1}, nil, &trust.Root{}, &trust.Root{Fingerprint: r1}, &trust.Root{Fingerprint: r2})
	if len(roots) != 2 {
		t.Errorf("%d roots in play", len(roots))
	}
	for _, c := range []struct {
		mode  adminv2.CRLMode
		all   []revocation
		roots []*trust.Root
		want  bool
	}{
		{adminv2.CRLWhenNeeded, nil, roots, false},
		{adminv2.CRLWhenNeeded, all, roots, true},
		{adminv2.CRLWhenNeeded, all[1:2], roots, false},
		{adminv2.CRLWhenNeeded, all[:1], roots[1:], false}, // its root is trusted no longer
		{adminv2.CRLAlways, nil, nil, true},
		{adminv2.CRLNever, all, roots, false},
	} {
		if listed(c.mode, c.all, c.roots, now) != c.want {
			t.Errorf("%s with %d", c.mode, len(c.all))
		}
	}
}
