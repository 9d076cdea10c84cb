package trust

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// sim is a fleet that does what it is told at once, for tests of what Next says rather than of what may happen.
type sim struct {
	r     Rotation
	want  Want
	fleet []Cluster
	cas   map[mesh.Fingerprint]*authority
	now   time.Time
	step  Step
	edit  func(*mesh.TrustObservation) // of every observation
	certs map[string]*x509.Certificate
}

// newSim has n clusters under root 1, settled.
func newSim(n int, first *authority) *sim {
	s := &sim{now: epoch, cas: map[mesh.Fingerprint]*authority{}, certs: map[string]*x509.Certificate{}}
	s.want = Want{Policy: "gloo-mesh/root", Authority: "test", FileLag: -1}
	s.knows(first)
	s.want.Root = &first.root
	for i := range n {
		s.fleet = append(s.fleet, Cluster{
			Name: mesh.ClusterName(fmt.Sprintf("c%04d", i)), TrustDomain: "cluster.local", Connected: true,
			Issued: map[string]Issued{}, Requests: map[string]bool{}, Observation: &mesh.TrustObservation{Ordered: true},
		})
	}
	return s
}

func (s *sim) knows(a *authority) { s.cas[a.root.Fingerprint] = a }

// decide calls Next and stores what it says.
func (s *sim) decide() Step {
	s.step = Next(s.r, s.want, s.fleet, s.now)
	raw, err := json.Marshal(s.step.Rotation)
	if err != nil {
		panic(err)
	}
	s.r = Rotation{}
	if err := json.Unmarshal(raw, &s.r); err != nil {
		panic(err)
	}
	for i := range s.fleet {
		c := &s.fleet[i]
		if k, ok := s.step.Keep[c.Name]; ok {
			c.Kept = &k
		}
	}
	for _, o := range s.step.Sign {
		i := slices.IndexFunc(s.fleet, func(c Cluster) bool { return c.Name == o.Cluster })
		s.fleet[i].Issued[o.Slot] = s.cas[o.Root].signAt(string(o.Cluster)+" "+o.Slot, s.now.Add(-10*time.Minute), s.now.Add(o.TTL))
	}
	return s.step
}

func (a *authority) signAt(cn string, from, to time.Time) Issued {
	i := a.sign(cn, to.Sub(epoch))
	i.NotBefore, i.NotAfter = from, to
	return i
}

// obey lets every cluster do as it was told, but those named.
func (s *sim) obey(but ...mesh.ClusterName) {
	for i := range s.fleet {
		c := &s.fleet[i]
		if d := s.step.Directives[c.Name]; d != nil && !slices.Contains(but, c.Name) {
			c.Observation = s.observe(c, d)
		}
	}
}

func (s *sim) observe(c *Cluster, d *mesh.TrustDirective) *mesh.TrustObservation {
	_, f := Encode(d)
	o := &mesh.TrustObservation{Applied: f, Ordered: true, Certificates: map[mesh.Fingerprint][]byte{}}
	c.Requests = map[string]bool{}
	var signer mesh.Fingerprint
	var chain []mesh.Fingerprint
	for _, i := range d.Intermediates {
		slot := mesh.Slot{ID: i.ID}
		if len(i.Chain) == 0 {
			c.Requests[i.ID] = true
		} else {
			for n, cert := range s.parse(i.Chain) {
				o.Certificates[mesh.FingerprintOf(cert.Raw)] = cert.Raw
				if n == 0 {
					slot.Signer = mesh.FingerprintOf(cert.Raw)
				}
				if i.ID == d.Signer {
					chain = append(chain, mesh.FingerprintOf(cert.Raw))
				}
			}
			if i.ID == d.Signer {
				signer = slot.Signer
			}
		}
		o.Slots = append(o.Slots, slot)
	}
	if signer.IsZero() {
		return o
	}
	var roots []mesh.Fingerprint
	var accepts []string
	for _, cert := range s.parse(d.Bundle) {
		roots, accepts = append(roots, mesh.FingerprintOf(cert.Raw)), append(accepts, name(cert.RawSubject))
		o.Certificates[mesh.FingerprintOf(cert.Raw)] = cert.Raw
	}
	slices.Sort(accepts)
	o.Secret = &mesh.CACerts{Owner: mesh.OwnerValue, Signer: signer, Chain: chain, Roots: roots}
	o.Istiods = []mesh.IstiodProbe{{Pod: "istiod-0", Version: "1.30.1", MultiRoot: true, Signer: signer, Chain: chain, Roots: roots, Serving: chain}}
	o.ConfigMaps = []mesh.BundleGroup{{Roots: roots, Count: 20}}
	o.Webhooks = []mesh.BundleGroup{{Roots: roots, Count: 2}}
	o.Verifiers = []mesh.VerifierGroup{
		{Kind: "ztunnel", Version: "1.30.1", Issuer: signer, Chain: chain, Accepts: accepts, Known: true, Count: 30},
		{Kind: "eastwest", Version: "1.30.1", Issuer: signer, Chain: chain, Accepts: accepts, Known: true, Count: 2},
	}
	o.Restarted.Done = d.Restart
	if s.edit != nil {
		s.edit(o)
	}
	return o
}

func (s *sim) parse(file []byte) []*x509.Certificate {
	certs, err := parseAll(file)
	if err != nil {
		panic(err)
	}
	return certs
}

// until runs rounds until a phase is reached.
func (s *sim) until(t testing.TB, p Phase, done func() bool) {
	t.Helper()
	for range 60 {
		s.decide()
		if s.r.Phase == p && (done == nil || done()) {
			return
		}
		s.obey()
	}
	t.Fatalf("phase %s is not reached; it is %s, waiting for %s", p, s.r.Phase, summary(s.step.Blockers))
}

// settled is a sim whose n clusters are admitted under root 1, and a second root that is not asked for yet.
func settled(t testing.TB, n int) (*sim, *authority) {
	t.Helper()
	first, second := newAuthority("root 1", 1), newAuthority("root 2", 2)
	s := newSim(n, first)
	s.knows(second)
	s.until(t, Steady, func() bool { return s.allAdmitted() })
	s.obey()
	s.decide()
	return s, second
}

func (s *sim) allAdmitted() bool {
	for _, c := range s.fleet {
		if !s.r.Members[c.Name].Admitted {
			return false
		}
	}
	return true
}

func codes(all []Finding) string {
	var out []string
	for _, f := range all {
		if f.Refuses {
			out = append(out, f.Code)
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}
