package trust

import (
	"crypto/x509"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// TestPreflight: what keeps a rotation from starting, by code.
func TestPreflight(t *testing.T) {
	type world = struct {
		s *sim
		o *mesh.TrustObservation // of c0000
	}
	for name, c := range map[string]struct {
		change func(w world)
		root   func(*x509.Certificate) // of the new root
		want   string
	}{
		"nothing is wrong": {},
		"T13 MAX_WORKLOAD_CERT_TTL was lowered": {
			change: func(w world) { w.o.Istiods[0].MaxLeafTTL = 3600 }, want: "MaxLeafTTL",
		},
		"T13 with somebody's word for it": {
			change: func(w world) { w.o.Istiods[0].MaxLeafTTL, w.s.want.LongestLeaf = 3600, time.Hour },
		},
		"T14 tls layout":            {change: func(w world) { w.o.Secret.TLSLayout = true }, want: "Layout"},
		"T15 a clock is off":        {change: func(w world) { w.s.fleet[0].Offset = -3 * time.Minute }, want: "Clock"},
		"T15 the root is too young": {root: func(c *x509.Certificate) { c.NotBefore = epoch.Add(-time.Minute) }, want: "NotBackDated"},
		"T16 istio-csr":             {change: func(w world) { w.o.Secret = nil }, want: "NoSecret"},
		"T18 somebody writes":       {change: func(w world) { w.o.Secret.Foreign = "Argo CD" }, want: "Owner"},
		"T8 one name":               {root: func(c *x509.Certificate) { c.Subject.CommonName = "root 1" }, want: "SameName"},
		"T10 a webhook differs":     {change: func(w world) { w.o.Webhooks[0].Roots = nil }, want: "Bundle"},
		"a ConfigMap differs":       {change: func(w world) { w.o.ConfigMaps[0].Roots = nil }, want: "Bundle"},
		"T4 an istiod lags":         {change: func(w world) { w.o.Istiods[0].Roots = nil }, want: "Istiod"},
		"an istiod is silent":       {change: func(w world) { w.o.Istiods[0].Error = "no answer" }, want: "Istiod"},
		"istiod of old":             {change: func(w world) { w.o.Istiods[0].Version = "1.18.7" }, want: "Version"},
		"ztunnel of old":            {change: func(w world) { w.o.Verifiers[0].Version = "1.29.1" }, want: "Ztunnel"},
		"ztunnel of old, restarted": {change: func(w world) { w.o.Verifiers[0].Version, w.s.want.Restart = "1.29.1", true }},
		"multi-root off":            {change: func(w world) { w.o.Istiods[0].MultiRoot = false }},
		"two trust domains":         {change: func(w world) { w.s.fleet[1].TrustDomain = "other" }, want: "TrustDomains"},
		"a cluster is away":         {change: func(w world) { w.s.fleet[1].Connected = false }, want: "Unknown"},
		"a CRL without the new root's": {
			change: func(w world) { w.s.want.CRLs = map[mesh.Fingerprint][]byte{w.s.r.Current.Fingerprint: []byte("x")} },
		},
		"a CRL of somebody else": {change: func(w world) { w.o.Secret.CRL = mesh.Fingerprint{1} }, want: "CRL"},
		"name constraints": {
			root: func(c *x509.Certificate) { c.PermittedURIDomains = []string{"cluster.local"} }, want: "NameConstraints",
		},
		"path length 0": {root: func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }, want: "PathLength"},
		"not cross-signed": {
			change: func(w world) { w.s.want.CrossSign = true }, want: "NotCrossSigned",
		},
		"an outsider on the same root": {
			change: func(w world) {
				o := *w.o
				o.Secret = &mesh.CACerts{Owner: "cert-manager"}
				w.s.fleet = append(w.s.fleet, Cluster{Name: "z", Connected: true, Observation: &o})
			}, want: "Outsider",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := settled(t, 2)
			change := c.root
			if change == nil {
				change = func(*x509.Certificate) {}
			}
			second := newAuthority("root 2", 2, change)
			s.want.Root = &second.root
			if c.change != nil {
				c.change(world{s, s.fleet[0].Observation})
			}
			found := Preflight(s.r, s.want, s.fleet, s.now)
			if got := codes(found); got != c.want {
				t.Fatalf("refused for %q, want %q: %+v", got, c.want, found)
			}
			s.decide()
			if started := s.r.Phase != Steady; started != (c.want == "") {
				t.Fatalf("started %t", started)
			}
		})
	}
}

func TestPreflightOfCrossSignedRoot(t *testing.T) {
	first := newAuthority("root 1", 1, func(c *x509.Certificate) { c.MaxPathLen = 1 })
	s := newSim(1, first)
	s.until(t, Steady, s.allAdmitted)
	s.obey()
	second := newAuthority("root 2", 2)
	second.root.CrossSigned = first.cross(second)
	s.want.Root, s.want.CrossSign = &second.root, true
	if got := codes(Preflight(s.r, s.want, s.fleet, s.now)); got != "PathLength" {
		t.Fatalf("a root of path length 1 can't carry a cross-signed one: %q", got)
	}
	second.root.CrossSigned = newAuthority("somebody", 1).cross(second)
	if got := codes(Preflight(s.r, s.want, s.fleet, s.now)); got != "CrossSigned PathLength" {
		t.Fatal(got)
	}
}
