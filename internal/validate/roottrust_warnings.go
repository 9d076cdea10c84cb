package validate

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// WarningsOfRootTrustPolicy says what is allowed but probably not meant.
func WarningsOfRootTrustPolicy(now *adminv2.RootTrustPolicy, o Options) []string {
	w := &warnings{}
	for i := range now.Spec.ApplyToMeshes {
		if m := now.Spec.ApplyToMeshes[i].Istio; m != nil && m.ClusterSelector["name"] != "" {
			w.say(fmt.Sprintf("spec.applyToMeshes[%d].istio.clusterSelector", i), "name is a label here, compared with the labels of KubernetesClusters: it selects clusters labelled name=%s", m.ClusterSelector["name"])
		}
	}
	t := mesh.TrustOf(&now.Spec)
	if c := now.Spec.Config; c != nil {
		w.both(c)
		if c.AgentCa != nil && c.AgentCa.Vault != nil {
			w.vault("spec.config.agentCa.vault", c.AgentCa.Vault)
		}
		w.renewal("spec.config.intermediateCertOptions", c.IntermediateCertOptions, t.Intermediate)
	}
	if g := t.Authority.Generated; g != nil && g.RenewRatio != 0 {
		w.say("spec.config.mgmtServerCa.generated.secretRotationGracePeriodRatio", "no effect on a root, which is replaced when somebody asks for it (meshctl trust rotate), not by itself; that of intermediates is in intermediateCertOptions")
	}
	if g := t.Authority.Generated; g != nil && g.TTL <= t.Intermediate.TTL {
		w.say("spec.config.mgmtServerCa.generated.ttlDays", "the root lives %s, no longer than the intermediates (%s), which end with it: a rotation of the root is due as soon as they are renewed. Roots usually live 10 to 25 years",
			inDays(g.TTL), inDays(t.Intermediate.TTL))
	}
	if t.CRL == adminv2.CRLNever {
		w.say("spec.crl", "Never: the intermediate of a cluster that is deregistered or revoked is trusted until it ends, or the root is replaced")
	}
	if r := now.Spec.Rotation; r != nil && r.Soak != nil && r.Soak.Duration > 0 && r.Canary == "" {
		w.say("spec.rotation.soak", "no effect without canary: no cluster goes first")
	}
	if p := now.Status.Phase; p != "" && p != adminv2.PhaseSteady && p != adminv2.PhaseFinished {
		w.say("spec", "a rotation is under way (%s): a change of the root takes effect when it has ended", p)
	}
	w.selection(&t, now, o)
	return *w
}

// both: agentCa wins over mgmtServerCa, which nobody has to hear who wrote it as the operators' page does.
func (w *warnings) both(c *adminv2.RootTrustConfig) {
	if c.AgentCa == nil || c.MgmtServerCa == nil {
		return
	}
	if g := c.MgmtServerCa.Generated; g != nil && *g != (adminv2.CommonCertOptions{}) {
		w.say("spec.config.mgmtServerCa.generated", "not used: agentCa is the source of truth, and no root is generated. What is meant for intermediates goes into intermediateCertOptions")
	}
	if s := c.MgmtServerCa.SecretRef; s != nil {
		w.say("spec.config.mgmtServerCa.secretRef", "not used: agentCa is the source of truth. To have the root of Secret %q trusted as well, list it in passiveCertificateAuthorities", s.Name)
	}
}

// renewal says when options are not honoured to the letter, and why.
func (w *warnings) renewal(path string, given *adminv2.CommonCertOptions, o mesh.CertOptions) {
	if given == nil || given.SecretRotationGracePeriodRatio == 0 {
		return
	}
	begin := time.Time{}
	asked := time.Duration((1 - o.RenewRatio) * float64(o.TTL))
	at := mesh.RenewAt(begin, begin.Add(o.TTL), o.RenewRatio, mesh.DefaultLeafTTL).Sub(begin)
	switch apart := (at - asked).Abs(); {
	case apart < time.Minute:
	case at < asked:
		w.say(path+".secretRotationGracePeriodRatio", "%v of %s leaves %s, and leaves live %s: renewed at the age of %s, so that they don't outlive their issuer",
			o.RenewRatio, inDays(o.TTL), inHours(o.TTL-asked), inHours(mesh.DefaultLeafTTL), inHours(at))
	default:
		w.say(path+".secretRotationGracePeriodRatio", "%v of %s is left after %s: renewed at the age of %s, so that clusters are not changed all the time", o.RenewRatio, inDays(o.TTL), inHours(asked), inHours(at))
	}
}

func inDays(d time.Duration) string {
	if n := int(d / (24 * time.Hour)); n != 1 {
		return fmt.Sprintf("%d days", n)
	}
	return "1 day"
}

func inHours(d time.Duration) string {
	d = d.Round(time.Minute)
	h, m := int(d/time.Hour), int(d%time.Hour/time.Minute)
	if m == 0 {
		return fmt.Sprintf("%dh", h)
	}
	return fmt.Sprintf("%dh%dm", h, m)
}

// selection says what selects nothing that is registered.
func (w *warnings) selection(t *mesh.Trust, now *adminv2.RootTrustPolicy, o Options) {
	snap := o.snapshot()
	if snap == nil || len(snap.Clusters) == 0 {
		return
	}
	var selected []string
	unknown := false
	for i := range snap.Clusters {
		yes, known := t.Selects(&snap.Clusters[i])
		unknown = unknown || !known
		if yes {
			selected = append(selected, string(snap.Clusters[i].Name))
		}
	}
	if len(selected) == 0 && !unknown {
		w.say("spec.applyToMeshes", "it selects none of the %d registered clusters", len(snap.Clusters))
	}
	if r := now.Spec.Rotation; r != nil && r.Canary != "" && !unknown && !slices.Contains(selected, r.Canary) {
		w.say("spec.rotation.canary", "cluster %q is not among those it selects: no cluster goes first", r.Canary)
	}
}

// DeletionOfRootTrustPolicy says why a policy can't be deleted, empty for nothing, and else what becomes of its clusters. Nothing is taken from them: no directive means leave as it is.
func DeletionOfRootTrustPolicy(p *adminv2.RootTrustPolicy) (refused string, doubts []string) {
	if phase := p.Status.Phase; phase != "" && phase != adminv2.PhaseSteady && phase != adminv2.PhaseFinished && p.Annotations[adminv2.AnnotationAbandonRotation] != "true" {
		return fmt.Sprintf("a rotation of its root is under way (%s): clusters sign or trust under two roots. Let it end (meshctl trust status), or roll it back (meshctl trust rollback), then delete; "+
			"to abandon it as it stands, annotate the policy with %s=true and delete it again", phase, adminv2.AnnotationAbandonRotation), nil
	}
	w := &warnings{}
	first := -1
	for i := range p.Status.Clusters {
		if c := &p.Status.Clusters[i]; c.Until != nil && (first < 0 || c.Until.Before(p.Status.Clusters[first].Until)) {
			first = i
		}
	}
	switch n := len(p.Status.Clusters); {
	case n == 0:
	case first < 0:
		w.say("RootTrustPolicy "+p.Name, "%d clusters keep the intermediates that it issued, and nobody renews them any more", n)
	default:
		c := p.Status.Clusters[first]
		w.say("RootTrustPolicy "+p.Name, "%d clusters keep the intermediates that it issued, and nobody renews them any more: the first, of cluster %s, ends on %s. "+
			"Before that, create a policy with the same certificate authority, or give the clusters a cacerts of your own", n, c.Name, c.Until.UTC().Format(time.DateOnly))
	}
	return "", *w
}

func equalJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}
