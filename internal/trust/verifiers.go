package trust

import (
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// verifiers asks everybody who accepts HBONE: what they trust and what they present. What a probe can't tell is told by time: a certificate fetched before all istiods had reloaded is
// dead when the longest that anybody may hold is over.
func (w *work) verifiers(c *Cluster, n need, ready bool) {
	bound, passed := w.bound(c, ready)
	for _, g := range c.Observation.Verifiers {
		if w.off(ruleAllKinds) && g.Kind != "ztunnel" {
			continue
		}
		why, unknown := w.whyVerifier(c, n, g)
		switch {
		case why == "", unknown && (passed || w.off(ruleBound)):
		case unknown && !bound.IsZero():
			w.blockUntil(c.Name, counted(g.Count, g.Kind, g.Examples), why, bound)
		default:
			w.block(c.Name, counted(g.Count, g.Kind, g.Examples), why)
		}
	}
	if n.someIssuer != nil && len(c.Observation.Verifiers) > 0 && !slices.ContainsFunc(c.Observation.Verifiers, func(g mesh.VerifierGroup) bool {
		return w.rootByIssuer(c, g.Issuer) == n.someIssuer.Fingerprint
	}) {
		w.block(c.Name, "verifiers", "none presents a certificate under "+n.someIssuer.Subject+" yet")
	}
	asked := len(n.trust) > 0 || n.issuer != nil
	if w.want.ForeignClients && asked && !passed && w.want.Emergency == nil {
		w.blockUntil(c.Name, "clients that can't be probed", "they may hold certificates from before the change for as long as istiod grants them", bound)
	}
}

// whyVerifier says what is missing; unknown: the probe could not tell.
func (w *work) whyVerifier(c *Cluster, n need, g mesh.VerifierGroup) (why string, unknown bool) {
	if g.Error != "" {
		return "could not be probed, so that its certificate may be from before the change until it runs out: " + g.Error, true
	}
	if !w.off(ruleVerifiers) {
		for _, root := range n.trust {
			if !g.Known {
				return "does not list the roots that it accepts, so that its certificate may be from before the change until it runs out", true
			}
			if !slices.Contains(g.Accepts, root.Subject) {
				return "does not accept root " + root.Subject + " yet: it learns of it when its certificate is renewed, at half of its life, or by a restart (istio#48120)", false
			}
		}
	}
	for _, root := range n.gone {
		if !g.Known {
			return "does not list the roots that it accepts", true
		}
		if slices.Contains(g.Accepts, root.Subject) {
			return "still accepts root " + root.Subject, false
		}
	}
	if n.issuer == nil || w.off(ruleIssuers) {
		return "", false
	}
	switch w.rootByIssuer(c, g.Issuer) {
	case n.issuer.Fingerprint:
		return "", false
	case mesh.Fingerprint{}:
		return "presents a certificate of an unknown issuer", true
	default:
		return "presents a certificate that does not lead to root " + n.issuer.Subject + " yet", false
	}
}

// bound is when everything is dead that was fetched before all istiods were ready; passed: that is over. Zero: istiods are not ready.
func (w *work) bound(c *Cluster, ready bool) (until time.Time, passed bool) {
	m := w.r.Members[c.Name]
	if w.want.Emergency != nil {
		return time.Time{}, true
	}
	if !ready || m.Ready.IsZero() {
		return time.Time{}, false
	}
	slack := clockSlack + c.Offset.Abs()
	until = m.Ready.Add(w.longestLeaf(c) + slack)
	return until, !w.now.Before(until)
}

// longestLeaf is the longest certificate that anybody may have been granted.
func (w *work) longestLeaf(c *Cluster) time.Duration {
	var longest time.Duration
	for _, p := range c.Observation.Istiods {
		ttl := time.Duration(p.MaxLeafTTL) * time.Second
		if ttl <= 0 {
			ttl = defaultMax
		}
		longest = max(longest, ttl)
	}
	if longest == 0 {
		longest = defaultMax
	}
	if w.off(ruleLongest) {
		return min(longest, defaultLeaf)
	}
	if w.want.LongestLeaf > 0 {
		longest = min(longest, w.want.LongestLeaf)
	}
	return longest
}
