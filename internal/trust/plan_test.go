package trust

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

func failures(w What) (n int) {
	for _, s := range w.Steps {
		n += len(s.Failures)
	}
	return n
}

// TestPlan: the protocol never has a pair that fails, planned before it begins, and from every phase, both ways.
func TestPlan(t *testing.T) {
	s, second := settled(t, 4)
	s.want.Root = &second.root
	p := Plan(s.r, s.want, s.fleet, s.now)
	if failures(p) > 0 || len(p.Steps) != 5 || len(p.Steps[0].Assumed) != 0 || len(p.Steps[2].Assumed) != 4 || codes(p.Findings) != "" {
		t.Fatalf("%+v", p)
	}
	for _, phase := range []Phase{Preparing, AddingRoot, Switching, DroppingRoot, Finished} {
		s.until(t, phase, nil)
		if p := Plan(s.r, s.want, s.fleet, s.now); failures(p) > 0 || p.Verified == 0 || p.Steps[0].Phase != phase {
			t.Fatalf("%s: %+v", phase, p)
		}
		back := s.r
		if back.Back = true; phase != Finished {
			if p := Plan(back, s.want, s.fleet, s.now); failures(p) > 0 || p.Steps[len(p.Steps)-1].Phase != Steady {
				t.Fatalf("back from %s: %+v", phase, p)
			}
		}
	}
}

// TestPlanNamesPairs: an intermediate that has run out, a root that is missing in one cluster.
func TestPlanNamesPairs(t *testing.T) {
	s, second := settled(t, 3)
	s.want.Root = &second.root
	s.until(t, AddingRoot, nil)
	s.obey()
	m := s.r.Members["c0001"]
	bad := second.signAt("late", epoch, epoch)
	bad.Chain = second.sign("late", -time.Minute).Chain
	s.fleet[1].Issued[m.New] = bad
	p := Plan(s.r, s.want, s.fleet, s.now)
	var pairs []string
	for _, step := range p.Steps {
		for _, f := range step.Failures {
			if step.Phase == Switching {
				pairs = append(pairs, string(f.Presenter+">"+f.Verifier))
			}
		}
	}
	slices.Sort(pairs)
	if want := []string{"c0001>c0000", "c0001>c0001", "c0001>c0002"}; !slices.Equal(slices.Compact(pairs), want) {
		t.Fatalf("%v", pairs)
	}
	s, second = settled(t, 2)
	s.want.Root = &second.root
	s.until(t, Switching, nil)
	s.fleet[1].Observation.Secret.Roots = s.fleet[1].Observation.Secret.Roots[:1] // somebody has put the old bundle back
	if p := Plan(s.r, s.want, s.fleet, s.now); failures(p) == 0 || p.Steps[0].Failures[0].Verifier != "c0001" {
		t.Fatalf("%+v", p)
	}
}

// TestPlanAgreesWithTheModel: on random small fleets, whether X.509 accepts a chain is what the model thinks of labels: its root is trusted, or it carries the root cross-signed by one that is.
func TestPlanAgreesWithTheModel(t *testing.T) {
	roots := []*authority{newAuthority("root a", 1), newAuthority("root b", 2), newAuthority("root c", 3)}
	crossed := map[[2]int]*x509.Certificate{} // by subject and issuer
	type entry struct {
		chain  []*x509.Certificate
		root   int
		cross  int // issuer of the cross-signed root, -1: none
		bundle []int
	}
	pool := make([]Issued, 9)
	for i := range pool {
		pool[i] = roots[i%3].sign(fmt.Sprint("i", i), time.Hour)
	}
	for i := range 3 {
		for j := range 3 {
			if i != j {
				c, err := x509.ParseCertificate(roots[j].cross(roots[i]))
				if err != nil {
					t.Fatal(err)
				}
				crossed[[2]int{i, j}] = c
			}
		}
	}
	compared, rejected := 0, 0
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		p := &planner{w: newWork(Rotation{}, Want{}, nil, epoch, 0), parsed: map[string][]*x509.Certificate{}, known: map[string]string{}}
		var names []mesh.ClusterName
		moments := []map[mesh.ClusterName]stance{{}, {}}
		entries := map[mesh.ClusterName][]entry{}
		for i := range 2 + rnd.IntN(3) {
			name := mesh.ClusterName(fmt.Sprint("c", i))
			names = append(names, name)
			for m := range moments {
				n := rnd.IntN(len(pool))
				e := entry{chain: p.certs(pool[n].Chain), root: n % 3, cross: -1}
				if rnd.IntN(3) == 0 {
					e.cross = (e.root + 1 + rnd.IntN(2)) % 3
					e.chain = append(slices.Clone(e.chain), crossed[[2]int{e.root, e.cross}])
				}
				s := stance{chain: e.chain, root: &roots[e.root].root}
				for r := range 3 {
					if rnd.IntN(2) == 0 {
						e.bundle, s.bundle = append(e.bundle, r), append(s.bundle, roots[r].cert)
					}
				}
				moments[m][name] = s
				entries[name] = append(entries[name], e)
			}
		}
		got := map[string]bool{}
		for _, f := range p.pairs(names, moments) {
			got[string(f.Presenter+">"+f.Verifier)] = true
		}
		for _, a := range names {
			for _, b := range names {
				bad := false
				for _, e := range entries[a] {
					for _, v := range entries[b] {
						bad = bad || !slices.Contains(v.bundle, e.root) && (e.cross < 0 || !slices.Contains(v.bundle, e.cross))
					}
				}
				if compared++; bad {
					rejected++
				}
				if bad != got[string(a+">"+b)] {
					t.Fatalf("seed %d: %s to %s: the model says rejected=%t, X.509 says %t", seed, a, b, bad, !bad)
				}
			}
		}
	}
	t.Logf("%d pairs compared, %d of them rejected", compared, rejected)
}
