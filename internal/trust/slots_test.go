package trust

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestRenewal(t *testing.T) {
	s, _ := settled(t, 20)
	i := s.fleet[0].Issued[s.r.Members["c0000"].Old]
	half := i.NotBefore.Add(i.NotAfter.Sub(i.NotBefore) / 2)
	times := map[time.Time]bool{}
	for _, c := range s.fleet {
		w := newWork(s.r, s.want, s.fleet, s.now, 0)
		at := w.renewAt(c.Name, s.r.Members[c.Name].Old, c.Issued[s.r.Members[c.Name].Old])
		if at.After(half) || at.Before(half.Add(-19*24*time.Hour)) {
			t.Fatalf("renewal at %v, half of life is %v", at, half)
		}
		times[at] = true
	}
	if len(times) < 15 {
		t.Fatalf("20 clusters renew at %d times", len(times))
	}
	before := s.r.Members["c0000"].Old
	bundle := s.step.Directives["c0000"].Bundle
	s.now = half
	for range 6 {
		s.decide()
		s.obey()
	}
	m, d := s.r.Members["c0000"], s.step.Directives["c0000"]
	if m.Old == before || m.Fresh != "" || m.Retired != "" || d.Signer != m.Old || len(d.Intermediates) != 1 || !bytes.Equal(d.Bundle, bundle) {
		t.Fatalf("%+v signs with %s of %d slots", m, d.Signer, len(d.Intermediates))
	}
	at := s.step.Directives["c0000"].Turn
	for range 5 { // it does not thrash
		s.now = s.now.Add(time.Minute)
		s.decide()
		s.obey()
	}
	if s.step.Directives["c0000"].Turn != at {
		t.Fatal("it renews again")
	}
}

// TestShortLives: ttlDays 1 with a ratio of 0.1 is seen in the wild.
func TestShortLives(t *testing.T) {
	w := newWork(Rotation{}, Want{RenewRatio: 0.1}, nil, epoch, 0)
	i := Issued{NotBefore: epoch, NotAfter: epoch.Add(24 * time.Hour)}
	at := w.renewAt("c", "g1-1", i)
	if d := at.Sub(epoch); d < 6*time.Hour || d > 22*time.Hour {
		t.Fatalf("renewed after %v of 24 h", d)
	}
}

// TestRenewalDuringRotation: a rotation that waits for long does not let intermediates run out.
func TestRenewalDuringRotation(t *testing.T) {
	s, second := settled(t, 2)
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	s.fleet[1].Connected = false
	before := s.r.Members["c0000"]
	s.now = s.now.Add(200 * 24 * time.Hour)
	for range 10 {
		s.decide()
		s.obey("c0001")
	}
	after := s.r.Members["c0000"]
	if s.r.Phase != AddingRoot || after.Old == before.Old || after.New == before.New || s.step.Directives["c0000"].Signer != after.Old {
		t.Fatalf("%s: %+v", s.r.Phase, after)
	}
	s.fleet[1].Connected = true
	s.until(t, Steady, func() bool { return s.r.Current.Generation == 2 })
}

// TestRefusedCertificateIsAskedForAgain: whoever signs may have been set right; but it is not asked all the time.
func TestRefusedCertificateIsAskedForAgain(t *testing.T) {
	s, second := settled(t, 1)
	s.want.Root = &second.root
	s.decide()
	s.obey() // the request
	if s.decide(); len(s.step.Sign) != 1 {
		t.Fatalf("%+v", s.step.Sign)
	}
	s.decide() // the directive with the chain
	s.obey()
	new2 := s.r.Members["c0000"].New
	for i := range s.fleet[0].Observation.Slots {
		if slot := &s.fleet[0].Observation.Slots[i]; slot.ID == new2 {
			slot.Checked = "CA:false"
		}
	}
	s.fleet[0].Requests[new2] = true
	if s.decide(); len(s.step.Sign) != 0 || s.r.Phase != Preparing || !strings.Contains(summary(s.step.Blockers), "CA:false") || s.step.Wait != 50*time.Minute {
		t.Fatalf("%+v %s: %s, wait %v", s.step.Sign, s.r.Phase, summary(s.step.Blockers), s.step.Wait)
	}
	s.now = s.now.Add(50 * time.Minute)
	if s.decide(); len(s.step.Sign) != 1 {
		t.Fatal("it is never asked for again")
	}
}
