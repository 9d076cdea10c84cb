package report

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// maxParties bounds the lists in caStatus.
const maxParties = 100

// CAStatuses are the certificate authorities of a policy's clusters, as they were found.
func CAStatuses(in Trust) map[mesh.ClusterName]*adminv2.ClusterCAStatus {
	out := make(map[mesh.ClusterName]*adminv2.ClusterCAStatus, len(in.Input.Fleet))
	for _, s := range clusterTrust(&in) {
		name := mesh.ClusterName(s.Name)
		i := slices.IndexFunc(in.Input.Fleet, func(c trust.Cluster) bool { return c.Name == name })
		out[name] = caStatus(&in, &in.Input.Fleet[i], &s)
	}
	return out
}

func caStatus(in *Trust, c *trust.Cluster, s *adminv2.ClusterTrustStatus) *adminv2.ClusterCAStatus {
	r := &in.Step.Rotation
	st := &adminv2.ClusterCAStatus{Phase: s.Phase, Message: s.Message, Policy: in.Policy.Source.Namespace + "/" + in.Policy.Source.Name, Rotation: result(r, c, s)}
	if st.Rotation == adminv2.RotationSucceeded {
		st.RotatedAt = stamp(r.Began[trust.Steady])
	}
	o := c.Observation
	if o == nil {
		return st
	}
	if !o.At.IsZero() {
		st.LastProbe = stamp(o.At.Truncate(time.Hour))
	}
	if o.Secret != nil {
		st.Owner = o.Secret.Owner
	}
	st.Intermediate = intermediate(r, c)
	if st.Intermediate != nil {
		st.Generation = st.Intermediate.Generation
	}
	for _, f := range rootsOf(o) {
		if cert := certificateOf(o, f); cert != nil {
			st.Roots = append(st.Roots, *caCertificate(cert, generationOf(r, f)))
		}
	}
	slices.SortFunc(st.Roots, func(a, b adminv2.CACertificate) int { return cmp.Compare(a.Fingerprint, b.Fingerprint) })
	wanted := r.Trusts()
	st.Istiods = istiods(o, r, wanted)
	st.Verifiers = verifiers(o, r, wanted)
	st.Revocation = revocation(in, c)
	st.Problems = slices.Clone(o.Problems)
	if no := in.Refusals[c.Name]; no != "" {
		st.Problems = append([]string{no}, st.Problems...)
	}
	return st
}

func result(r *trust.Rotation, c *trust.Cluster, s *adminv2.ClusterTrustStatus) adminv2.RotationResult {
	switch {
	case r.Members[c.Name].Fence != nil:
		return adminv2.RotationFenced
	case r.Incoming != nil && (s.State == adminv2.ApprovalPending || s.State == adminv2.ApprovalWarning) && !c.Connected:
		return adminv2.RotationBlocked
	case r.Incoming != nil:
		return adminv2.RotationInProgress
	case r.Current.Generation > 1 && r.Current.Generation == r.Generation && s.State == adminv2.ApprovalAccepted:
		return adminv2.RotationSucceeded
	case r.Current.Generation < r.Generation:
		return adminv2.RotationRolledBack
	default:
		return adminv2.RotationNone
	}
}

// rootsOf are the roots that istiods hand out; where none could be asked, those of the Secret.
func rootsOf(o *mesh.TrustObservation) []mesh.Fingerprint {
	var all []mesh.Fingerprint
	for i := range o.Istiods {
		all = append(all, o.Istiods[i].Roots...)
	}
	if len(all) == 0 && o.Secret != nil {
		all = slices.Clone(o.Secret.Roots)
	}
	slices.SortFunc(all, func(a, b mesh.Fingerprint) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(all)
}

// intermediate is what istiods sign with; where none could be asked, the Secret's.
func intermediate(r *trust.Rotation, c *trust.Cluster) *adminv2.CACertificate {
	o := c.Observation
	var signer mesh.Fingerprint
	for i := range o.Istiods {
		if !o.Istiods[i].Signer.IsZero() {
			signer = o.Istiods[i].Signer
			break
		}
	}
	if signer.IsZero() && o.Secret != nil {
		signer = o.Secret.Signer
	}
	cert := certificateOf(o, signer)
	if cert == nil {
		return nil
	}
	var root mesh.Fingerprint
	for _, i := range c.Issued {
		if i.Signer == signer {
			root = i.Root
		}
	}
	return caCertificate(cert, generationOf(r, root))
}

func generationOf(r *trust.Rotation, root mesh.Fingerprint) int64 {
	switch {
	case root.IsZero():
		return 0
	case root == r.Current.Fingerprint:
		return int64(r.Current.Generation)
	case r.Incoming != nil && root == r.Incoming.Fingerprint:
		return int64(r.Incoming.Generation)
	default:
		return 0
	}
}

func caCertificate(c *x509.Certificate, generation int64) *adminv2.CACertificate {
	return &adminv2.CACertificate{
		Fingerprint: mesh.FingerprintOf(c.Raw).String(), Generation: generation, Subject: c.Subject.String(), Issuer: c.Issuer.String(),
		Serial: fmt.Sprintf("%x", c.SerialNumber), Key: keyOf(c), NotBefore: stamp(c.NotBefore), NotAfter: stamp(c.NotAfter),
	}
}

func keyOf(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA-" + k.Curve.Params().Name
	default:
		return c.PublicKeyAlgorithm.String()
	}
}

func istiods(o *mesh.TrustObservation, r *trust.Rotation, wanted []*trust.Root) []adminv2.IstiodCAStatus {
	var out []adminv2.IstiodCAStatus
	for i := range o.Istiods {
		p := &o.Istiods[i]
		s := adminv2.IstiodCAStatus{Pod: p.Pod, Revision: p.Revision, Version: p.Version, MultiRoot: p.MultiRoot, Roots: fingerprints(p.Roots), Problem: p.Error}
		if !p.Signer.IsZero() {
			s.Signer = p.Signer.String()
		}
		s.Current = p.Error == "" && holdsAll(p.Roots, wanted) && len(p.Roots) == len(wanted)
		if p.Error == "" && !s.Current {
			s.Problem = "hands out other roots than this phase wants"
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b adminv2.IstiodCAStatus) int { return cmp.Compare(a.Pod, b.Pod) })
	return out[:min(len(out), maxParties)]
}

func holdsAll(have []mesh.Fingerprint, wanted []*trust.Root) bool {
	for _, w := range wanted {
		if !slices.Contains(have, w.Fingerprint) {
			return false
		}
	}
	return true
}

func verifiers(o *mesh.TrustObservation, r *trust.Rotation, wanted []*trust.Root) []adminv2.VerifierCAStatus {
	byKind := map[string]*adminv2.VerifierCAStatus{}
	for i := range o.Verifiers {
		g := &o.Verifiers[i]
		s := byKind[g.Kind]
		if s == nil {
			s = &adminv2.VerifierCAStatus{Kind: g.Kind}
			byKind[g.Kind] = s
		}
		n := int32(min(g.Count, 1<<30)) //nolint:gosec // bounded
		s.Total += n
		if g.Error != "" || !g.Known {
			s.Unknown += n
			s.Behind = append(s.Behind, g.Examples...)
			continue
		}
		trusts := !slices.ContainsFunc(wanted, func(w *trust.Root) bool { return !slices.Contains(g.Accepts, w.Subject) })
		presents := underRoot(o, g.Issuer, r.Signs())
		if trusts {
			s.Trusting += n
		}
		if presents {
			s.Presenting += n
		}
		if !trusts || !presents {
			s.Behind = append(s.Behind, g.Examples...)
		}
		if until := stamp(g.LeafUntil); !g.LeafUntil.IsZero() && (s.LeafUntil == nil || s.LeafUntil.Before(until)) {
			s.LeafUntil = until
		}
	}
	var out []adminv2.VerifierCAStatus
	for _, s := range byKind {
		slices.Sort(s.Behind)
		s.Behind = s.Behind[:min(len(s.Behind), 5)]
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b adminv2.VerifierCAStatus) int { return cmp.Compare(a.Kind, b.Kind) })
	return out
}

// underRoot reports whether an intermediate is signed by a root's key.
func underRoot(o *mesh.TrustObservation, issuer mesh.Fingerprint, root *trust.Root) bool {
	c, err := x509.ParseCertificate(root.Certificate)
	i := certificateOf(o, issuer)
	return err == nil && i != nil && i.CheckSignatureFrom(c) == nil
}
