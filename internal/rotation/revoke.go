package rotation

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/internal/trust"
)

// defaultGoneGrace is how long after its deregistration a cluster's intermediates are revoked: what the others hold of it (remote secrets, policies) goes first, so that nobody is sent there
// to be refused.
const defaultGoneGrace = 30 * time.Second

// revocation is an intermediate that its issuer no longer stands for. It is kept with the policy, which outlives the cluster, until the certificate has ended.
type revocation struct {
	Cluster  mesh.ClusterName `json:"cluster"`
	Slot     string           `json:"slot"`
	Root     mesh.Fingerprint `json:"root"`   // whose list names it
	Signer   mesh.Fingerprint `json:"signer"` // SHA-256 of the certificate
	Subject  string           `json:"subject"`
	Serial   string           `json:"serial"` // hex
	NotAfter time.Time        `json:"notAfter"`
	At       time.Time        `json:"at"`   // when it was decided
	From     time.Time        `json:"from"` // when it goes on the list
	By       string           `json:"by,omitempty"`
	Why      string           `json:"why,omitempty"`
	Request  string           `json:"request,omitempty"` // UID of the RotationRequest; empty: the cluster was deregistered
}

// list is a revocation list as it was signed. It is kept, since signing it again would give other bytes, and every cluster would have to take them.
type list struct {
	Of  string `json:"of"`  // what it names: see contents
	PEM []byte `json:"pem"` // one list
}

// contents tells what a list has to name: serial numbers, in order.
func contents(named []revocation) string {
	h := sha256.New()
	for _, r := range named {
		fmt.Fprintln(h, r.Serial)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// revocations are the certificates of a cluster that still hold, as revoked by like. Those under roots of which nobody knows who issues are left out: there is nobody to sign a list.
func revocations(certs map[string]trust.Issued, roots []rootRecord, like revocation) []revocation {
	var out []revocation
	for slot, i := range certs {
		block, _ := pem.Decode(i.Chain)
		if block == nil || !i.NotAfter.After(like.At) || !slices.ContainsFunc(roots, func(r rootRecord) bool { return r.Fingerprint == i.Root }) {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue
		}
		r := like
		r.Slot, r.Root, r.Signer, r.Subject, r.Serial, r.NotAfter = slot, i.Root, i.Signer, c.Subject.String(), c.SerialNumber.Text(16), i.NotAfter
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b revocation) int { return strings.Compare(a.Slot, b.Slot) })
	return out
}

// added are the revocations of before and those that are new, by certificate; what was revoked stays as it was.
func added(before, more []revocation) []revocation {
	out := slices.Clone(before)
	for _, r := range more {
		if !slices.ContainsFunc(out, func(o revocation) bool { return o.Signer == r.Signer }) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b revocation) int {
		return cmp.Or(strings.Compare(string(a.Cluster), string(b.Cluster)), strings.Compare(a.Serial, b.Serial))
	})
	return out
}

// held are the revocations of certificates that have not ended: an ended one is refused as it is.
func held(all []revocation, now time.Time) []revocation {
	return slices.DeleteFunc(slices.Clone(all), func(r revocation) bool { return !r.NotAfter.After(now) })
}

// named are the revocations that the list of a root has to name now.
func named(all []revocation, root mesh.Fingerprint, now time.Time) []revocation {
	return slices.DeleteFunc(slices.Clone(all), func(r revocation) bool { return r.Root != root || r.From.After(now) })
}

// listed reports whether clusters are to have revocation lists. What was issued under a root that is no longer trusted needs none: it is refused as it is.
func listed(mode adminv2.CRLMode, all []revocation, roots []*trust.Root, now time.Time) bool {
	switch mode {
	case adminv2.CRLNever:
		return false
	case adminv2.CRLAlways:
		return true
	default:
		return slices.ContainsFunc(roots, func(root *trust.Root) bool { return len(named(all, root.Fingerprint, now)) > 0 })
	}
}

// inPlay are the roots that clusters trust or are to trust, each once.
func inPlay(all ...*trust.Root) []*trust.Root {
	var out []*trust.Root
	for _, root := range all {
		if root == nil || root.Fingerprint.IsZero() || slices.ContainsFunc(out, func(o *trust.Root) bool { return o.Fingerprint == root.Fingerprint }) {
			continue
		}
		out = append(out, root)
	}
	return out
}

// lists sees to it that there is a list by every root that is trusted or to be, where any is needed, and puts them into what is wanted. One that can't be signed is said, and the one
// before stays.
func (k *Keeper) lists(ctx context.Context, t *turn, r *trust.Rotation) error {
	name, w := t.policy.Source.Name, &t.input.Want
	record := k.store.policy(name)
	all := held(record.Revoked, t.now)
	changed := len(all) != len(record.Revoked)
	t.revoked = all
	w.Revoked = map[mesh.Fingerprint]bool{}
	for _, q := range all {
		w.Revoked[q.Signer] = true
	}
	lists := map[mesh.Fingerprint]list{}
	if roots := inPlay(&r.Current, r.Incoming, w.Root); listed(t.policy.CRL, all, roots, t.now) {
		w.CRLs = map[mesh.Fingerprint][]byte{}
		for _, root := range roots {
			l, err := k.listOf(ctx, t, &record, root.Fingerprint, named(all, root.Fingerprint, t.now))
			if err != nil {
				t.unlisted = append(t.unlisted, fmt.Sprintf("root %s: %v", root.Subject, err))
			}
			if len(l.PEM) > 0 {
				lists[root.Fingerprint], w.CRLs[root.Fingerprint] = l, l.PEM
			}
			changed = changed || l.Of != record.Lists[root.Fingerprint].Of
		}
	}
	if !changed && len(lists) == len(record.Lists) {
		return nil
	}
	return k.store.changePolicy(ctx, name, func(p *policyRecord) { p.Revoked, p.Lists = all, lists })
}

// listOf is the list of a root that names these: the one at hand, if it does. Beside an error it is the one at hand, whatever it names.
func (k *Keeper) listOf(ctx context.Context, t *turn, record *policyRecord, root mesh.Fingerprint, names []revocation) (list, error) {
	have, of := record.Lists[root], contents(names)
	if have.Of == of {
		return have, nil
	}
	i := slices.IndexFunc(record.Roots, func(r rootRecord) bool { return r.Fingerprint == root })
	if i < 0 {
		return have, fmt.Errorf("it is not on record who issues under it")
	}
	if why := authority.WhyNoList(record.Roots[i].By); why != "" {
		return have, fmt.Errorf("can't revoke: %s; rotate the root instead (meshctl trust rotate --emergency)", why)
	}
	ctx, cancel := context.WithTimeout(ctx, authorityTimeout)
	defer cancel()
	au, err := k.cfg.Issuers.open(ctx, t.policy, record.Roots[i].By, record.Roots[i].Generation)
	if err != nil {
		return have, err
	}
	signer, ok := au.(authority.Revoker)
	if !ok {
		return have, fmt.Errorf("%s signs no lists", identify(record.Roots[i].By))
	}
	entries := make([]pki.Revoked, 0, len(names))
	for _, n := range names {
		serial, ok := new(big.Int).SetString(n.Serial, 16)
		if !ok {
			return have, fmt.Errorf("serial number %q on record is none", n.Serial)
		}
		entries = append(entries, pki.Revoked{Serial: serial, At: n.At, Reason: reasonOf(n)})
	}
	text, err := signer.RevocationList(ctx, entries)
	if err != nil {
		return have, err
	}
	return list{Of: of, PEM: text}, nil
}

// reasonOf is RFC 5280 5.3.1: a person revokes because a key is in wrong hands (CA compromise), a deregistered cluster has ceased.
func reasonOf(r revocation) int {
	if r.Request == "" {
		return 5
	}
	return 2
}

// revokeAsked puts the intermediates of a request's clusters on record, before the request is answered, so that a crash between does it again and not twice. What it can't do it
// refuses.
func (k *Keeper) revokeAsked(ctx context.Context, t *turn, v *verdict) error {
	if v.request.Action != adminv2.ActionRevoke || v.state != adminv2.RequestDone {
		return nil
	}
	refuse := func(format string, args ...any) {
		v.state, v.message = adminv2.RequestRefused, fmt.Sprintf(format, args...)
	}
	if t.policy.CRL == adminv2.CRLNever {
		refuse("the policy has crl: Never; allow lists, or rotate the root: meshctl trust rotate --emergency")
		return nil
	}
	record := k.store.policy(t.policy.Source.Name)
	q := v.request
	if slices.ContainsFunc(record.Revoked, func(r revocation) bool { return r.Request == q.UID }) {
		v.message = "the intermediates are revoked"
		return nil
	}
	var more []revocation
	for _, c := range q.Clusters {
		more = append(more, revocations(k.store.cluster(c).Issued, record.Roots, revocation{Cluster: c, At: t.now, From: t.now, By: q.By, Why: q.Reason, Request: q.UID})...)
	}
	var serials []string
	for _, r := range more {
		if why := whyNot(record.Roots, r.Root); why != "" {
			refuse("can't revoke: %s; rotate the root instead: meshctl trust rotate --emergency", why)
			return nil
		}
		serials = append(serials, fmt.Sprintf("%s %s", r.Cluster, r.Serial))
	}
	if len(more) == 0 {
		refuse("no intermediate that this server has had issued there is in force")
		return nil
	}
	v.message = fmt.Sprintf("revoked by serial number: %s; members among them get new intermediates at once, their workloads by renewal or restart", strings.Join(serials, ", "))
	return k.remember(ctx, t.policy, more, t.now)
}

// whyNot says why what was issued under a root can't be revoked; empty: it can.
func whyNot(roots []rootRecord, root mesh.Fingerprint) string {
	for i := range roots {
		if roots[i].Fingerprint == root {
			return authority.WhyNoList(roots[i].By)
		}
	}
	return "it is not on record who issues under root " + root.String()
}

// revokeGone revokes what a deregistered cluster has, in every policy that issued it.
func (k *Keeper) revokeGone(ctx context.Context, policies []*mesh.RootTrustPolicy, c mesh.ClusterName, now time.Time) error {
	certs := k.store.cluster(c).Issued
	for _, p := range policies {
		if p.CRL == adminv2.CRLNever {
			continue
		}
		like := revocation{Cluster: c, At: now, From: now.Add(cmp.Or(k.cfg.GoneGrace, defaultGoneGrace)), Why: "the cluster was deregistered"}
		if more := revocations(certs, k.store.policy(p.Source.Name).Roots, like); len(more) > 0 {
			if err := k.remember(ctx, p, more, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// remember puts revocations on record, and into the audit.
func (k *Keeper) remember(ctx context.Context, p *mesh.RootTrustPolicy, more []revocation, now time.Time) error {
	if err := k.store.changePolicy(ctx, p.Source.Name, func(r *policyRecord) { r.Revoked = added(r.Revoked, more) }); err != nil {
		return err
	}
	for _, r := range more {
		k.cfg.Record(audit.Record{
			At: now, Act: audit.CertificateRevoked, Source: "rotation", User: r.By, Cluster: string(r.Cluster), Policy: p.Source.Namespace + "/" + p.Source.Name, Object: "intermediate " + r.Slot + " of cluster " + string(r.Cluster),
			Certificate: &audit.Certificate{Serial: r.Serial, Subject: r.Subject, Fingerprint: r.Signer.String(), NotAfter: r.NotAfter.UTC().Format(time.RFC3339), Requester: r.By},
			Detail:      fmt.Sprintf("revoked under root %s, because %q", r.Root, r.Why),
		})
	}
	k.Ring()
	return nil
}

// nextRevocation is how long it takes until a list has to name another one, or none any more; 0: nothing will change by itself.
func nextRevocation(all []revocation, now time.Time) time.Duration {
	var wait time.Duration
	for _, r := range all {
		for _, at := range []time.Time{r.From, r.NotAfter} {
			if d := at.Sub(now); d > 0 {
				wait = soonest(wait, d)
			}
		}
	}
	return wait
}

// revokedStatus is what people are told of revocations.
func revokedStatus(t *turn) []adminv2.RevokedCertificate {
	var out []adminv2.RevokedCertificate
	for _, r := range t.revoked {
		notAfter, from := metav1.NewTime(r.NotAfter), metav1.NewTime(r.From.Truncate(time.Second))
		s := adminv2.RevokedCertificate{
			Cluster: string(r.Cluster), Fingerprint: r.Signer.String(), Subject: r.Subject, Serial: r.Serial, Root: r.Root.String(), NotAfter: &notAfter, RevokedAt: &from, By: r.By, Reason: r.Why,
		}
		switch lists := t.input.Want.CRLs; {
		case r.From.After(t.now):
			s.Problem = "it goes on the list as soon as the other clusters have had time to let go of it"
		case len(lists[r.Root]) == 0 && !trusts(&t.input.Rotation, r.Root):
		case len(lists[r.Root]) == 0:
			s.Problem = cmp.Or(strings.Join(t.unlisted, "; "), "it is not on a list yet")
		}
		out = append(out, s)
	}
	return out
}

func trusts(r *trust.Rotation, root mesh.Fingerprint) bool {
	return r.Current.Fingerprint == root || r.Incoming != nil && r.Incoming.Fingerprint == root
}
