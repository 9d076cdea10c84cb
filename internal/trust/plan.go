package trust

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// What is the what-if of a rotation: for each step to come, whether every cluster accepts what every cluster presents, whichever of them are already past the step.
type What struct {
	Steps []PlannedStep `json:"steps"`
	// Findings are those of Preflight.
	Findings []Finding `json:"findings,omitempty"`
	// Verified counts distinct chains that were verified against distinct bundles, Pairs the pairs of clusters they stand for.
	Verified int `json:"verified"`
	Pairs    int `json:"pairs"`
}

// PlannedStep is one change of what clusters are told.
type PlannedStep struct {
	Phase Phase  `json:"phase"`
	Text  string `json:"text"`
	// Failures are pairs in which a handshake may fail at some moment of this step.
	Failures []PairFailure `json:"failures,omitempty"`
	// Assumed are clusters whose intermediate under the new root is not issued yet: it is taken to be good.
	Assumed []mesh.ClusterName `json:"assumed,omitempty"`
}

// PairFailure is a presenter that a verifier rejects.
type PairFailure struct {
	Presenter mesh.ClusterName `json:"presenter"`
	Presents  string           `json:"presents"` // subject of the intermediate, and its root
	Verifier  mesh.ClusterName `json:"verifier"`
	Trusts    []string         `json:"trusts"` // subjects
	Why       string           `json:"why"`
}

// stance is what a cluster presents and trusts.
type stance struct {
	chain  []*x509.Certificate // nil: not known
	root   *Root               // what chain is to lead to, where chain is not issued yet
	bundle []*x509.Certificate
}

// Plan verifies all steps from where the rotation is to its end, as X.509 at the time now. A rotation that has not begun is planned from its start to want.Root.
func Plan(r Rotation, want Want, fleet []Cluster, now time.Time) What {
	w := newWork(r, want, fleet, now, 0)
	w.members()
	p := &planner{w: w, parsed: map[string][]*x509.Certificate{}, known: map[string]string{}}
	if w.r.Incoming == nil {
		if want.Root == nil || want.Root.Fingerprint == w.r.Current.Fingerprint || w.r.Current.Fingerprint.IsZero() {
			return What{Steps: []PlannedStep{{Phase: w.r.Phase, Text: "no rotation is asked for"}}}
		}
		w.slots()
		p.out.Findings = preflight(w)
		in := *want.Root
		w.r.Incoming, w.r.Phase = &in, Preparing
		w.r.CrossSigned = want.CrossSign && want.Emergency == nil && len(in.CrossSigned) > 0
	}
	w.slots()
	p.walk()
	return p.out
}

type planner struct {
	w      *work
	out    What
	parsed map[string][]*x509.Certificate // by PEM
	known  map[string]string              // verdicts by chain and bundle
}

// walk goes through the phases to come; in each, a cluster may be as before it or as after it.
func (p *planner) walk() {
	w := p.w
	names := w.admitted()
	if len(names) == 0 {
		names = w.names
	}
	order := []Phase{Preparing, AddingRoot, Switching, DroppingRoot, Finished}
	if w.r.Back {
		order = []Phase{DroppingRoot, Switching, AddingRoot, Preparing, Steady}
	}
	from := slices.Index(order, w.r.Phase)
	before := p.stances(names, order[max(0, from)])
	for _, phase := range order[max(0, from):] {
		after := p.stances(names, phase)
		step := PlannedStep{Phase: phase, Text: phaseText[phase]}
		moments := []map[mesh.ClusterName]stance{before, after}
		if len(p.out.Steps) == 0 {
			moments = append(moments, p.observed(names, before))
		}
		step.Failures = p.pairs(names, moments)
		for _, name := range names {
			if after[name].chain == nil && after[name].root != nil {
				step.Assumed = append(step.Assumed, name)
			}
		}
		p.out.Steps = append(p.out.Steps, step)
		before = after
	}
}

// stances is what every cluster presents and trusts in a phase.
func (p *planner) stances(names []mesh.ClusterName, phase Phase) map[mesh.ClusterName]stance {
	w := p.w
	was := w.r.Phase
	w.r.Phase = phase
	defer func() { w.r.Phase = was }()
	out := make(map[mesh.ClusterName]stance, len(names))
	roots := w.r.Trusts()
	trusted := p.certs(bundle(roots))
	signs := w.r.Signs()
	for _, name := range names {
		m, c := w.r.Members[name], w.fleet[name]
		id := m.Old
		if signs == w.r.Incoming {
			id = m.New
		}
		s := stance{bundle: trusted, root: signs}
		if i, ok := c.Issued[id]; ok {
			s.chain = p.certs(w.order(name, &m, id).Chain)
			if len(s.chain) == 0 {
				s.chain = p.certs(i.Chain)
			}
		}
		out[name] = s
	}
	return out
}

// observed is what cacerts of every cluster holds at present; where that is not known, what was directed.
func (p *planner) observed(names []mesh.ClusterName, directed map[mesh.ClusterName]stance) map[mesh.ClusterName]stance {
	out := make(map[mesh.ClusterName]stance, len(names))
	for _, name := range names {
		s, o := directed[name], p.w.fleet[name].Observation
		if o != nil && o.Secret != nil {
			if chain := p.found(o, o.Secret.Chain); len(chain) > 0 {
				s.chain = chain
			}
			if roots := p.found(o, o.Secret.Roots); len(roots) > 0 {
				s.bundle = roots
			}
		}
		out[name] = s
	}
	return out
}

// found are certificates that an observation mentions; nil if it lacks one.
func (p *planner) found(o *mesh.TrustObservation, all []mesh.Fingerprint) []*x509.Certificate {
	var file []byte
	for _, f := range all {
		der, ok := o.Certificates[f]
		if !ok {
			return nil
		}
		file = append(file, pemOf(der)...)
	}
	return p.certs(file)
}

func (p *planner) certs(file []byte) []*x509.Certificate {
	if got, ok := p.parsed[string(file)]; ok {
		return got
	}
	got, err := parseAll(file)
	if err != nil {
		got = nil
	}
	p.parsed[string(file)] = got
	return got
}

// pairs verifies what anybody presents at any of the moments against what anybody trusts at any of them.
func (p *planner) pairs(names []mesh.ClusterName, moments []map[mesh.ClusterName]stance) []PairFailure {
	type trust struct {
		bundle []*x509.Certificate
		key    string
		who    []mesh.ClusterName
		seen   map[mesh.ClusterName]bool
	}
	var trusts []*trust
	for _, m := range moments {
		for _, name := range names {
			key := keyOf(m[name].bundle)
			i := slices.IndexFunc(trusts, func(t *trust) bool { return t.key == key })
			if i < 0 {
				i, trusts = len(trusts), append(trusts, &trust{bundle: m[name].bundle, key: key, seen: map[mesh.ClusterName]bool{}})
			}
			if t := trusts[i]; !t.seen[name] {
				t.seen[name], t.who = true, append(t.who, name)
			}
		}
	}
	var out []PairFailure
	for _, presenter := range names {
		var done []string
		for _, m := range moments {
			s := m[presenter]
			key := keyOf(s.chain)
			if s.chain == nil && s.root != nil {
				key = s.root.Fingerprint.String()
			}
			if slices.Contains(done, key) {
				continue
			}
			done = append(done, key)
			for _, t := range trusts {
				p.out.Pairs += len(t.who)
				why := p.verdict(s, key, t.bundle, t.key)
				if why == "" {
					continue
				}
				for _, verifier := range t.who {
					out = append(out, PairFailure{Presenter: presenter, Presents: s.text(), Verifier: verifier, Trusts: subjects(t.bundle), Why: why})
				}
			}
		}
	}
	return out
}

// verdict says why a chain is rejected by a bundle; empty: it is accepted.
func (p *planner) verdict(s stance, key string, roots []*x509.Certificate, rootsKey string) string {
	at := key + "|" + rootsKey
	if why, ok := p.known[at]; ok {
		return why
	}
	p.out.Verified++
	why := ""
	switch {
	case s.chain != nil:
		if err := verify(s.chain, roots, p.w.now); err != nil {
			why = err.Error()
		}
	case s.root == nil:
		why = "what it presents is not known"
	case !slices.ContainsFunc(roots, func(c *x509.Certificate) bool { return mesh.FingerprintOf(c.Raw) == s.root.Fingerprint }):
		why = "root " + s.root.Subject + " is not trusted"
	}
	p.known[at] = why
	return why
}

func (s stance) text() string {
	if s.chain == nil {
		return "an intermediate under " + s.root.Subject + " that is not issued yet"
	}
	return fmt.Sprintf("%s, issued by %s", s.chain[0].Subject, s.chain[len(s.chain)-1].Issuer)
}

func keyOf(certs []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		f := mesh.FingerprintOf(c.Raw)
		b.Write(f[:])
	}
	return b.String()
}

func subjects(certs []*x509.Certificate) []string {
	var out []string
	for _, c := range certs {
		out = append(out, name(c.RawSubject))
	}
	return out
}
