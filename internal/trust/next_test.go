package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// TestRotation walks through all phases with a canary and a cross-signed root, and looks at what clusters are told in each.
func TestRotation(t *testing.T) {
	s, second := settled(t, 3)
	first := s.cas[s.r.Current.Fingerprint]
	second.root.CrossSigned = first.cross(second)
	s.want.Root, s.want.CrossSign, s.want.Canary, s.want.Soak = &second.root, true, "c0001", time.Hour
	old, both, new2 := pemOf(first.root.Certificate), join(pemOf(first.root.Certificate), pemOf(second.root.Certificate)), pemOf(second.root.Certificate)

	var seen []string
	for range 40 {
		s.decide()
		if len(seen) == 0 || seen[len(seen)-1] != string(s.r.Phase) {
			seen = append(seen, string(s.r.Phase))
		}
		want := map[Phase][]byte{Steady: old, Preparing: old, AddingRoot: both, Switching: both, DroppingRoot: new2, Finished: new2}[s.r.Phase]
		if s.r.Current.Generation == 2 {
			want = new2
		}
		for c, d := range s.step.Directives {
			if !bytes.Equal(d.Bundle, want) {
				t.Fatalf("%s in %s: the bundle is not what it should be", c, s.r.Phase)
			}
			for _, i := range d.Intermediates {
				crossed := bytes.Contains(i.Chain, pemOf(second.root.CrossSigned))
				if shouldBe := i.Generation == 2 && len(i.Chain) > 0 && s.r.Phase.before(DroppingRoot) && s.r.Incoming != nil; crossed != shouldBe {
					t.Fatalf("%s in %s: slot %s cross-signed %t, want %t", c, s.r.Phase, i.ID, crossed, shouldBe)
				}
			}
		}
		if s.r.Phase == Switching && s.r.CanaryProven.IsZero() {
			if a, b := s.step.Directives["c0000"].Signer, s.step.Directives["c0001"].Signer; a != s.r.Members["c0000"].Old || b != s.r.Members["c0001"].New {
				t.Fatalf("the canary does not go first: %s, %s", a, b)
			}
		}
		if s.r.Phase == Steady && s.r.Current.Generation == 2 {
			break
		}
		s.obey()
		if s.step.Wait == time.Hour {
			s.now = s.now.Add(time.Hour)
		}
	}
	if got := strings.Join(seen, " "); got != "Preparing AddingRoot Switching DroppingRoot Finished Steady" {
		t.Fatalf("phases: %s", got)
	}
}

func TestBundleKeepsBytesItBeginsWith(t *testing.T) {
	s, second := settled(t, 1)
	before := s.step.Directives["c0000"].Bundle
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	if !bytes.HasPrefix(s.step.Directives["c0000"].Bundle, before) {
		t.Fatal("istiod before 1.30 wants the old bundle to be part of the new one, byte for byte")
	}
}

// TestFirstInstallation: a cluster whose istiod signs by itself goes from its own root to the mesh's by the same steps.
func TestFirstInstallation(t *testing.T) {
	first, own := newAuthority("root 1", 1), newAuthority("O=cluster.local", 0)
	s := newSim(1, first)
	self := own.root.Fingerprint
	s.fleet[0].Observation = &mesh.TrustObservation{
		Ordered: true, Certificates: map[mesh.Fingerprint][]byte{self: own.root.Certificate},
		Istiods:   []mesh.IstiodProbe{{Pod: "istiod-0", Version: "1.30.1", Signer: self, Roots: []mesh.Fingerprint{self}, Serving: []mesh.Fingerprint{self}}},
		Verifiers: []mesh.VerifierGroup{{Kind: "ztunnel", Version: "1.30.1", Issuer: self, Accepts: []string{own.root.Subject}, Known: true, Count: 1}},
	}
	both := join(pemOf(own.root.Certificate), pemOf(first.root.Certificate))
	var stages []string
	for range 20 {
		s.decide()
		m, d := s.r.Members["c0000"], s.step.Directives["c0000"]
		stage := string(m.Joining)
		if m.Admitted {
			stage = "admitted"
		}
		if len(stages) == 0 || stages[len(stages)-1] != stage {
			stages = append(stages, stage)
		}
		switch {
		case m.Admitted && !bytes.Equal(d.Bundle, pemOf(first.root.Certificate)),
			m.Joining == AddingRoot && (d.Signer != "taken-1" || !bytes.Equal(d.Bundle, both)),
			m.Joining == Switching && (!strings.HasPrefix(d.Signer, "g1-") || !bytes.Equal(d.Bundle, both)),
			m.Joining == Preparing && d.Signer != "":
			t.Fatalf("%s: signer %q, bundle of %d bytes", stage, d.Signer, len(d.Bundle))
		}
		s.obey()
	}
	if got := strings.Join(stages, " "); got != "Preparing AddingRoot Switching DroppingRoot admitted" {
		t.Fatal(got)
	}
}

func TestExternallyOwnedIsLeftAlone(t *testing.T) {
	s, _ := settled(t, 2)
	s.fleet = append(s.fleet, Cluster{Name: "other", Connected: true, TrustDomain: "cluster.local", Observation: &mesh.TrustObservation{Ordered: true, Secret: &mesh.CACerts{Owner: "cert-manager"}}})
	s.decide()
	if s.step.Directives["other"] != nil || s.r.Members["other"].Joining != "" {
		t.Fatal("a cacerts of somebody else is touched")
	}
	if !strings.Contains(summary(s.step.Blockers), "belongs to cert-manager") {
		t.Fatalf("nobody is told: %s", summary(s.step.Blockers))
	}
}

// TestBound: what can't be seen is waited for, as long as the longest certificate may live from when the last istiod had reloaded, clocks included, with a countdown.
func TestBound(t *testing.T) {
	s, second := settled(t, 2)
	s.edit = func(o *mesh.TrustObservation) {
		o.Istiods[0].MaxLeafTTL = int64(48 * time.Hour / time.Second)
		o.Verifiers = append(o.Verifiers, mesh.VerifierGroup{Kind: "gateway", Count: 1, Error: "it does not listen on 15008"})
	}
	s.fleet[0].Offset = -30 * time.Second
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	s.obey()
	s.decide()
	s.decide()
	var until time.Time
	for _, b := range s.step.Blockers {
		if b.Cluster == "c0000" && strings.Contains(b.What, "gateway") {
			until = b.Until
		}
	}
	if want := s.now.Add(48*time.Hour + clockSlack + 30*time.Second); !until.Equal(want) {
		t.Fatalf("the bound ends %v, want %v", until, want)
	}
	if s.step.Wait <= 0 || s.step.Wait > 49*time.Hour {
		t.Fatalf("Wait is %v", s.step.Wait)
	}
	s.now = until.Add(-time.Second)
	if s.decide(); s.r.Phase != AddingRoot {
		t.Fatal("it did not wait")
	}
	s.now = until
	if s.decide(); s.r.Phase != Switching {
		t.Fatalf("it waits on: %s", summary(s.step.Blockers))
	}
	s.want.LongestLeaf = 24 * time.Hour
	s.obey()
	s.decide()
	s.decide()
	if s.step.Wait > 24*time.Hour+2*clockSlack {
		t.Fatalf("vouched for 24 h, waits %v", s.step.Wait)
	}
}

func TestForeignClientsAreWaitedFor(t *testing.T) {
	s, second := settled(t, 1)
	s.want.Root, s.want.ForeignClients = &second.root, true
	s.until(t, AddingRoot, nil)
	s.obey()
	s.decide()
	if s.decide(); s.r.Phase != AddingRoot || !strings.Contains(summary(s.step.Blockers), "can't be probed") {
		t.Fatalf("%s: %s", s.r.Phase, summary(s.step.Blockers))
	}
	s.now = s.now.Add(91 * 24 * time.Hour)
	if s.decide(); s.r.Phase != Switching {
		t.Fatalf("it waits on: %s", summary(s.step.Blockers))
	}
}

// TestReplicaRegresses: the bound counts anew when a replica is seen with something else.
func TestReplicaRegresses(t *testing.T) {
	s, second := settled(t, 1)
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	s.obey()
	s.fleet[0].Observation.Verifiers[0].Known = false
	s.decide()
	if s.r.Members["c0000"].Ready.IsZero() {
		t.Fatal("it is ready, and not noted")
	}
	o := *s.fleet[0].Observation
	o.Istiods = append(o.Istiods, o.Istiods[0])
	o.Istiods[1].Roots = o.Istiods[1].Roots[:1]
	s.fleet[0].Observation = &o
	if s.decide(); !s.r.Members["c0000"].Ready.IsZero() {
		t.Fatal("a replica with the old bundle did not end it")
	}
}

func TestPauseFenceAndReadmission(t *testing.T) {
	s, second := settled(t, 3)
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	s.want.Paused = &Request{By: "jane"}
	s.obey()
	if s.decide(); s.r.Phase != AddingRoot || !strings.Contains(summary(s.step.Blockers), "paused by jane") {
		t.Fatal("it is not paused")
	}
	s.want.Paused = nil
	s.fleet[2].Connected = false
	if s.decide(); s.r.Phase != AddingRoot || !strings.Contains(summary(s.step.Blockers), "meshctl trust fence c0002") {
		t.Fatalf("it does not wait for a cluster that is away: %s", summary(s.step.Blockers))
	}
	s.want.Fences = map[mesh.ClusterName]Fence{"c0002": {Request: Request{By: "jane"}}}
	if s.decide(); s.r.Phase != AddingRoot {
		t.Fatal("a fence counts before the others know")
	}
	s.want.Fences = map[mesh.ClusterName]Fence{"c0002": {Request: Request{By: "jane"}, Effective: true}}
	for range 20 {
		s.decide()
		s.obey("c0002")
	}
	if s.r.Phase != Steady || s.r.Current.Generation != 2 || s.r.Members["c0002"].Admitted {
		t.Fatalf("%s, generation %d", s.r.Phase, s.r.Current.Generation)
	}
	s.fleet[2].Connected, s.want.Fences = true, nil
	s.until(t, Steady, s.allAdmitted)
}

func TestRollbackIsNotTriedAgain(t *testing.T) {
	s, second := settled(t, 2)
	s.want.Root = &second.root
	s.until(t, DroppingRoot, nil)
	s.want.Rollback = &Rollback{Request: Request{By: "jane"}, Generation: 2}
	s.obey("c0001")
	s.until(t, Steady, nil)
	s.obey()
	if s.decide(); s.r.Phase != Steady || s.r.Current.Generation != 1 || s.r.State() != "NOT_ROTATING" {
		t.Fatalf("%s, generation %d", s.r.Phase, s.r.Current.Generation)
	}
	third := newAuthority("root 3", 3)
	s.knows(third)
	s.want.Root = &third.root
	s.until(t, Steady, func() bool { return s.r.Current.Generation == 3 })
}

// TestEmergency (T11): everything is restarted in every phase, which also ends connections that the old root vouched for, and nothing waits for the bound.
func TestEmergency(t *testing.T) {
	s, second := settled(t, 2)
	s.edit = func(o *mesh.TrustObservation) {
		o.Verifiers = append(o.Verifiers, mesh.VerifierGroup{Kind: "sidecar", Count: 1, Error: "it does not listen on 15008"})
	}
	s.want.Root, s.want.Emergency = &second.root, &Request{By: "jane"}
	tokens := map[string]bool{}
	for range 20 {
		s.decide()
		if d := s.step.Directives["c0000"]; d != nil && d.Restart.DataPlane != "" {
			tokens[d.Restart.DataPlane] = true
		}
		s.obey()
	}
	if s.r.Current.Generation != 2 || len(tokens) != 3 {
		t.Fatalf("generation %d, restarts %v; waits for %s", s.r.Current.Generation, tokens, summary(s.step.Blockers))
	}
}

func TestRestartsWithoutMultiRoot(t *testing.T) {
	s, second := settled(t, 1)
	s.edit = func(o *mesh.TrustObservation) { o.Istiods[0].MultiRoot = false }
	s.obey()
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	if s.step.Directives["c0000"].Restart.Istiod != "" {
		t.Fatal("a restart without autoRestartPods")
	}
	s.want.Restart = true
	s.decide()
	if s.step.Directives["c0000"].Restart.Istiod != fmt.Sprintf("AddingRoot-%d", s.r.Turn) {
		t.Fatalf("%+v", s.step.Directives["c0000"].Restart)
	}
	done := s.observe(&s.fleet[0], s.step.Directives["c0000"])
	done.Restarted = mesh.RestartState{Doing: "istiod 0/1 ready"}
	s.fleet[0].Observation = done
	if s.decide(); s.r.Phase != AddingRoot || !strings.Contains(summary(s.step.Blockers), "istiod 0/1 ready") {
		t.Fatalf("it does not wait for restarts: %s", summary(s.step.Blockers))
	}
}

func TestOldZtunnelNeedsARestart(t *testing.T) {
	s, second := settled(t, 1)
	s.edit = func(o *mesh.TrustObservation) { o.Verifiers[0].Version = "1.28.5" }
	s.want.Restart = true
	s.obey()
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	s.want.Restart = false // taken back on the way
	s.decide()
	s.obey()
	if s.decide(); s.r.Phase != AddingRoot || !strings.Contains(summary(s.step.Blockers), "ztunnel#1679") {
		t.Fatalf("%s: %s", s.r.Phase, summary(s.step.Blockers))
	}
}

func TestCRLs(t *testing.T) {
	s, second := settled(t, 1)
	s.want.CRLs = map[mesh.Fingerprint][]byte{s.r.Current.Fingerprint: []byte("old list\n"), second.root.Fingerprint: []byte("new list\n")}
	if s.decide(); string(s.step.Directives["c0000"].CRL) != "old list\n" {
		t.Fatalf("%q", s.step.Directives["c0000"].CRL)
	}
	s.obey()
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	if string(s.step.Directives["c0000"].CRL) != "old list\nnew list\n" {
		t.Fatalf("%q", s.step.Directives["c0000"].CRL)
	}
}

// TestChangedPolicy: another authority, or another algorithm, is asked for its root, and that starts a rotation.
func TestChangedPolicy(t *testing.T) {
	s, second := settled(t, 1)
	s.want.Authority = "vault https://vault pki issuer 3f2a"
	s.decide()
	if o := s.step.Root; o == nil || o.Generation != 2 || o.Authority != s.want.Authority {
		t.Fatalf("%+v", o)
	}
	second.root.Authority = s.want.Authority
	s.want.Root = &second.root
	s.until(t, Steady, func() bool { return s.r.Current.Generation == 2 })
	if s.decide(); s.step.Root != nil {
		t.Fatal("it is asked for again")
	}
	s.want.Generation = 3
	if s.decide(); s.step.Root == nil || s.step.Root.Generation != 3 {
		t.Fatalf("%+v", s.step.Root)
	}
}

// TestKeptBeforeACrash: what was kept for an earlier way is not taken for what is kept now.
func TestKeptBeforeACrash(t *testing.T) {
	first, own := newAuthority("root 1", 1), newAuthority("own", 0)
	s := newSim(1, first)
	self := own.root.Fingerprint
	s.fleet[0].Observation = &mesh.TrustObservation{
		Ordered: true, Certificates: map[mesh.Fingerprint][]byte{self: own.root.Certificate},
		Istiods: []mesh.IstiodProbe{{Pod: "istiod-0", Version: "1.30.1", Signer: self, Roots: []mesh.Fingerprint{self}, Serving: []mesh.Fingerprint{self}}},
	}
	s.decide()
	s.fleet[0].Kept = &Kept{Number: 0, Slot: "g0-9"}
	s.decide()
	if k := s.fleet[0].Kept; !strings.HasPrefix(k.Slot, "taken-") || k.Slot != k.Taken || s.r.Members["c0000"].Kept != k.Number {
		t.Fatalf("%+v", k)
	}
}

func TestSecondRootOfOneName(t *testing.T) {
	s, _ := settled(t, 1)
	same := newAuthority("root 1", 2)
	s.want.Root = &same.root
	if s.decide(); s.r.Phase != Steady || codes(s.step.Findings) != "SameName" {
		t.Fatalf("%s: %s", s.r.Phase, codes(s.step.Findings))
	}
}

func TestVerifyCountsTheLeaf(t *testing.T) {
	tight := newAuthority("tight", 1, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 1, false })
	second := newAuthority("root 2", 2)
	x, err := x509.ParseCertificate(tight.cross(second))
	if err != nil {
		t.Fatal(err)
	}
	i := second.sign("i", time.Hour)
	chain, err := parseAll(i.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(append(chain, x), []*x509.Certificate{tight.cert}, epoch); err == nil {
		t.Fatal("a leaf would have two CAs below a path length of 1 (facts: too many intermediates)")
	}
}

// TestBoundOfACanaryThatWasTakenBack: a cluster that was told to sign under the new root, then under the old one, then again under the new one, counts from the last time.
func TestBoundOfACanaryThatWasTakenBack(t *testing.T) {
	s, second := settled(t, 2)
	s.want.Root, s.want.Canary, s.want.Soak = &second.root, "c0001", 24*time.Hour
	s.until(t, Switching, func() bool { return !s.r.CanaryProven.IsZero() && !s.r.Members["c0001"].Ready.IsZero() })
	s.want.Canary = "c0000"
	s.r.CanaryProven = time.Time{}
	s.decide() // nobody obeys
	s.now = s.now.Add(time.Hour)
	s.want.Canary = "c0001"
	if s.decide(); !s.r.Members["c0001"].Ready.IsZero() {
		t.Fatal("it may have signed under the old root meanwhile")
	}
}

func TestSizeOfTheRecord(t *testing.T) {
	s, second := settled(t, 1000)
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	raw, err := json.Marshal(s.r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a rotation of 1,000 clusters is %d KiB of status", len(raw)>>10)
	if len(raw) > 1<<20 {
		t.Fatal("etcd takes 1.5 MiB")
	}
}

func TestPassiveRootsAreInEveryBundle(t *testing.T) {
	s, second := settled(t, 2)
	passive := newAuthority("partner", 0)
	s.want.Passive = []Root{passive.root}
	s.decide()
	s.obey()
	s.want.Root = &second.root
	for range 30 {
		s.decide()
		for c, d := range s.step.Directives {
			if !bytes.HasSuffix(d.Bundle, pemOf(passive.root.Certificate)) {
				t.Fatalf("%s in %s lacks it", c, s.r.Phase)
			}
		}
		if s.r.Phase == AddingRoot {
			s.want.Passive = nil // not before the rotation is over
		}
		s.obey()
		if s.r.Current.Generation == 2 {
			break
		}
	}
	s.decide()
	if s.r.Current.Generation != 2 || !bytes.Equal(s.step.Directives["c0000"].Bundle, pemOf(second.root.Certificate)) {
		t.Fatalf("generation %d, passive %d", s.r.Current.Generation, len(s.r.Passive))
	}
}

// TestNextTouchesNothing: the same arguments give the same answer, and stay as they are.
func TestNextTouchesNothing(t *testing.T) {
	s, second := settled(t, 5)
	s.want.Root = &second.root
	for range 15 {
		before := mustJSON(Input{s.r, s.want, s.fleet, s.now})
		a, b := Next(s.r, s.want, s.fleet, s.now), Next(s.r, s.want, s.fleet, s.now)
		Plan(s.r, s.want, s.fleet, s.now)
		Preflight(s.r, s.want, s.fleet, s.now)
		if mustJSON(a) != mustJSON(b) {
			t.Fatalf("%s: two answers", s.r.Phase)
		}
		if mustJSON(Input{s.r, s.want, s.fleet, s.now}) != before {
			t.Fatalf("%s: an argument was changed", s.r.Phase)
		}
		s.decide()
		s.obey()
	}
}

// TestIstiodOutrunsCACerts: nothing ran when the cluster joined; then an istiod starts before cacerts is there, and signs by itself. Its key is taken over, as if it had been there before.
func TestIstiodOutrunsCACerts(t *testing.T) {
	first, own := newAuthority("root 1", 1), newAuthority("own", 0)
	s := newSim(1, first)
	self := own.root.Fingerprint
	for range 4 {
		s.decide()
		if s.r.Members["c0000"].Joining == AddingRoot {
			break
		}
		s.obey()
	}
	late := s.observe(&s.fleet[0], s.step.Directives["c0000"])
	late.Certificates[self] = own.root.Certificate
	late.Istiods[0].Signer, late.Istiods[0].Roots, late.Istiods[0].Serving = self, []mesh.Fingerprint{self}, []mesh.Fingerprint{self}
	s.fleet[0].Observation = late
	s.decide()
	if k := s.fleet[0].Kept; k.Take != mesh.TakeSelfSigned || !bytes.Contains(k.Bundle, pemOf(own.root.Certificate)) {
		t.Fatalf("%+v", k)
	}
	for range 3 {
		s.obey()
		if s.decide(); s.r.Members["c0000"].Joining == AddingRoot {
			break
		}
	}
	d := s.step.Directives["c0000"]
	if d.Signer != s.fleet[0].Kept.Taken || !bytes.Contains(d.Bundle, pemOf(own.root.Certificate)) || !bytes.Contains(d.Bundle, pemOf(first.root.Certificate)) {
		t.Fatalf("%s: signer %s", s.r.Members["c0000"].Joining, d.Signer)
	}
	s.until(t, Steady, s.allAdmitted)
}
