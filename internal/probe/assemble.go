package probe

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// verifier is what came of probing a target.
type verifier struct {
	target target
	pod    string // who was asked
	shown  Handshake
	err    error
}

// istiod is what came of asking a replica.
type istiod struct {
	pod    pod
	answer answer
	err    error
}

// findings are all that one round found.
type findings struct {
	applied   mesh.Fingerprint
	at        time.Time
	ordered   bool                // see TrustObservation.Ordered
	known     []*x509.Certificate // CA certificates known from elsewhere
	istiods   []istiod
	verifiers []verifier
	view      view
}

// maxExamples bounds the examples of a group.
const maxExamples = 5

// assemble makes the observation of a round: what looks the same becomes one entry, everything is sorted, so that the same findings give the same bytes.
func assemble(f findings) mesh.TrustObservation {
	b := builder{certs: map[mesh.Fingerprint]*x509.Certificate{}, mentioned: map[mesh.Fingerprint][]byte{}}
	for _, c := range f.known {
		b.certs[fingerprint(c)] = c
	}
	o := mesh.TrustObservation{Applied: f.applied, At: f.at.UTC().Truncate(time.Minute), Ordered: f.ordered, Problems: f.view.problems}
	bundle := func(raw string) []mesh.Fingerprint {
		certs, err := certificates([]byte(raw))
		if err != nil {
			return nil
		}
		return b.mention(certs)
	}
	o.ConfigMaps = bundles(f.view.maps, bundle)
	o.Webhooks = bundles(f.view.webhooks, bundle)
	o.CRLs = lists(f.view.crls)
	for _, i := range f.istiods { // all of them first: their chains explain the leaves of others
		b.know(i.answer.serving)
		b.know(i.answer.chain)
		b.know(i.answer.roots)
	}
	for _, i := range f.istiods {
		o.Istiods = append(o.Istiods, b.istiod(i))
	}
	o.Verifiers = b.verifiers(f.verifiers)
	if len(b.mentioned) > 0 {
		o.Certificates = b.mentioned
	}
	return o
}

// builder collects the certificates that an observation mentions.
type builder struct {
	certs     map[mesh.Fingerprint]*x509.Certificate
	mentioned map[mesh.Fingerprint][]byte
}

func fingerprint(c *x509.Certificate) mesh.Fingerprint { return mesh.FingerprintOf(c.Raw) }

// know remembers CA certificates, by which leaves may be explained.
func (b *builder) know(certs []*x509.Certificate) {
	for _, c := range certs {
		if c.IsCA {
			b.certs[fingerprint(c)] = c
		}
	}
}

// mention puts certificates into the observation and returns their fingerprints, in order. Leaves are left out.
func (b *builder) mention(certs []*x509.Certificate) []mesh.Fingerprint {
	var out []mesh.Fingerprint
	for _, c := range certs {
		if !c.IsCA {
			continue
		}
		f := fingerprint(c)
		b.certs[f], b.mentioned[f] = c, c.Raw
		out = append(out, f)
	}
	return out
}

// issuer finds who signed a leaf; zero: nobody that we know.
func (b *builder) issuer(leaf *x509.Certificate) mesh.Fingerprint {
	var candidates []mesh.Fingerprint
	for f, c := range b.certs {
		if string(c.RawSubject) == string(leaf.RawIssuer) && leaf.CheckSignatureFrom(c) == nil {
			candidates = append(candidates, f)
		}
	}
	if len(candidates) == 0 {
		return mesh.Fingerprint{}
	}
	// Several certificates of one key (a cross-signed one): always name the same.
	f := slices.MinFunc(candidates, func(a, b mesh.Fingerprint) int { return slices.Compare(a[:], b[:]) })
	b.mentioned[f] = b.certs[f].Raw
	return f
}

func (b *builder) istiod(i istiod) mesh.IstiodProbe {
	out := mesh.IstiodProbe{
		Pod: i.pod.name, Revision: i.pod.revision, Version: i.pod.version, MultiRoot: i.pod.multiRoot, MaxLeafTTL: int64(i.pod.maxLeaf / time.Second),
		Chain: b.mention(i.answer.chain), Roots: b.mention(i.answer.roots),
	}
	if len(i.answer.serving) > 0 {
		out.Serving = b.mention(i.answer.serving[1:])
	}
	if i.err != nil {
		out.Error = i.err.Error()
	}
	if i.answer.leaf == nil {
		return out
	}
	out.Signer = b.issuerIn(i.answer.leaf, slices.Concat(i.answer.chain, i.answer.roots))
	switch {
	case out.Error != "":
	case out.Signer.IsZero():
		if out.Signer = b.issuer(i.answer.leaf); !out.Signer.IsZero() {
			out.Error = "the chain that it hands out lacks the certificate that signed the leaf: cert-chain.pem of cacerts must begin with ca-cert.pem"
		} else {
			out.Error = fmt.Sprintf("the leaf that it made is signed by %q, which is not in the chain that it hands out", i.answer.leaf.Issuer)
		}
	default:
		if err := verifyLeaf(i.answer); err != nil {
			out.Error = "what it hands out does not verify by its own roots: " + err.Error()
		}
	}
	return out
}

// issuerIn finds who of certs signed a leaf; the first one that did.
func (b *builder) issuerIn(leaf *x509.Certificate, certs []*x509.Certificate) mesh.Fingerprint {
	for _, c := range certs {
		if string(c.RawSubject) == string(leaf.RawIssuer) && leaf.CheckSignatureFrom(c) == nil {
			return fingerprint(c)
		}
	}
	return mesh.Fingerprint{}
}

// verifyLeaf checks an answer as a workload would: the leaf through the chain to the roots.
func verifyLeaf(a answer) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range a.roots {
		roots.AddCert(c)
	}
	for _, c := range a.chain {
		between.AddCert(c)
	}
	_, err := a.leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: a.leaf.NotBefore.Add(a.leaf.NotAfter.Sub(a.leaf.NotBefore) / 2)})
	return err
}

// verifiers groups what looks the same.
func (b *builder) verifiers(all []verifier) []mesh.VerifierGroup {
	groups := map[string]*mesh.VerifierGroup{}
	for _, v := range all {
		g := mesh.VerifierGroup{Kind: v.target.kind, Version: v.target.version, CRL: v.target.crl, Known: v.shown.Known, Accepts: v.shown.Accepts}
		if v.err != nil {
			g.Error = v.err.Error()
		}
		if len(v.shown.Chain) > 0 {
			g.Chain = b.mention(v.shown.Chain[1:])
			if g.Issuer = b.issuerIn(v.shown.Chain[0], v.shown.Chain[1:]); g.Issuer.IsZero() {
				g.Issuer = b.issuer(v.shown.Chain[0])
			}
			g.LeafUntil = v.shown.Chain[0].NotAfter.UTC()
		}
		key := fmt.Sprintf("%s\x00%s\x00%t\x00%s\x00%s\x00%q\x00%t\x00%s", g.Kind, g.Version, g.CRL, g.Issuer, g.Chain, g.Accepts, g.Known, g.Error)
		if groups[key] == nil {
			groups[key] = &g
		}
		at := groups[key]
		at.Count++
		at.Examples = append(at.Examples, v.pod)
		if g.LeafUntil.After(at.LeafUntil) {
			at.LeafUntil = g.LeafUntil
		}
	}
	var out []mesh.VerifierGroup
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := *groups[key]
		g.Examples = examples(g.Examples)
		out = append(out, g)
	}
	return out
}

// bundles groups objects by the bundle they hold.
func bundles(all map[string]string, read func(string) []mesh.Fingerprint) []mesh.BundleGroup {
	names := map[string][]string{}
	for name, raw := range all {
		names[raw] = append(names[raw], name)
	}
	var out []mesh.BundleGroup
	at := map[string]int{}
	for _, raw := range slices.Sorted(maps.Keys(names)) {
		roots := read(raw)
		key := fmt.Sprint(roots)
		i, seen := at[key]
		if !seen {
			i = len(out)
			at[key], out = i, append(out, mesh.BundleGroup{Roots: roots})
		}
		out[i].Count += len(names[raw])
		out[i].Examples = append(out[i].Examples, names[raw]...)
	}
	for i := range out {
		out[i].Examples = examples(out[i].Examples)
	}
	slices.SortFunc(out, func(a, b mesh.BundleGroup) int {
		return cmp.Compare(strings.Join(a.Examples, " "), strings.Join(b.Examples, " "))
	})
	return out
}

// lists groups objects by the revocation lists they hold.
func lists(all map[string]mesh.Fingerprint) []mesh.CRLGroup {
	names := map[mesh.Fingerprint][]string{}
	for name, f := range all {
		names[f] = append(names[f], name)
	}
	var out []mesh.CRLGroup
	for f, of := range names {
		out = append(out, mesh.CRLGroup{SHA256: f, Count: len(of), Examples: examples(of)})
	}
	slices.SortFunc(out, func(a, b mesh.CRLGroup) int { return strings.Compare(a.Examples[0], b.Examples[0]) })
	return out
}

func examples(names []string) []string {
	slices.Sort(names)
	return slices.Clone(names[:min(len(names), maxExamples)])
}
