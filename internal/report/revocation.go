package report

import (
	"fmt"
	"slices"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// revocation is what a cluster makes of revocation lists, as it was found; nil: there are none.
func revocation(in *Trust, c *trust.Cluster) *adminv2.RevocationStatus {
	o := c.Observation
	if len(in.Input.Want.CRLs) == 0 || o == nil {
		return nil
	}
	st := &adminv2.RevocationStatus{State: adminv2.RevocationPending}
	for i := range o.Verifiers {
		g := &o.Verifiers[i]
		n := int32(min(g.Count, 1<<30)) //nolint:gosec // bounded
		st.Verifiers += n
		honours, why := honoursLists(g)
		if honours {
			st.Honouring += n
		}
		if why != "" && !slices.Contains(st.NotHonoured, why) {
			st.NotHonoured = append(st.NotHonoured, why)
		}
	}
	for i := range o.Istiods {
		if p := &o.Istiods[i]; !mesh.IstiodCan(p.Version, mesh.CRLFile) {
			st.Honouring = 0
			st.NotHonoured = append(st.NotHonoured, fmt.Sprintf("istiod %s is %s and hands out no lists: from 1.27", p.Pod, versionText(p.Version)))
		}
	}
	slices.Sort(st.NotHonoured)
	st.NotHonoured = st.NotHonoured[:min(len(st.NotHonoured), maxParties)]
	st.State, st.Message = listsAt(in, c)
	if st.State != adminv2.RevocationInForce {
		st.Honouring = 0
	}
	return st
}

// listsAt is how far lists are in a cluster.
func listsAt(in *Trust, c *trust.Cluster) (adminv2.RevocationState, string) {
	o, d := c.Observation, in.Step.Directives[c.Name]
	if d == nil || d.Signer == "" {
		return adminv2.RevocationPending, "its cacerts is not ours yet"
	}
	if len(d.CRL) == 0 {
		var all []byte
		for _, l := range in.Input.Want.CRLs {
			all = append(all, l...)
		}
		if why := trust.Withheld(c, trust.SigningChain(d), all); why != "" {
			return adminv2.RevocationWithheld, why
		}
		return adminv2.RevocationPending, "there is no list by the root it trusts yet"
	}
	if o.Applied != in.Step.Rotation.Members[c.Name].Directed || o.Secret == nil || o.Secret.CRL.IsZero() {
		return adminv2.RevocationPending, "its agent has not been seen to have the lists of now in cacerts"
	}
	if len(o.CRLs) == 0 {
		return adminv2.RevocationPending, "no ConfigMap istio-ca-crl with lists is seen: istiod makes them within 90 s, unless PILOT_ENABLE_CA_CRL is false, or the agent may not look (install its chart again)"
	}
	for _, g := range o.CRLs {
		if g.SHA256 != o.Secret.CRL {
			return adminv2.RevocationPending, fmt.Sprintf("%d ConfigMaps istio-ca-crl hold other lists than cacerts, as in %v: istiod reloads within 90 s, unless it refuses (look for \"CRL\" in its log; istio#61075)", g.Count, g.Examples)
		}
	}
	return adminv2.RevocationInForce, ""
}

// honoursLists reports whether verifiers refuse what is revoked, and why they don't, or not always.
func honoursLists(g *mesh.VerifierGroup) (bool, string) {
	switch {
	case g.Kind != "ztunnel":
		return false, g.Kind + ": Istio mounts no list into what istiod makes for Gateways; a revoked intermediate is accepted there until the root is rotated"
	case !mesh.ZtunnelCan(g.Version, mesh.CRLInbound):
		return false, fmt.Sprintf("ztunnel is %s and reads no lists: from 1.29", versionText(g.Version))
	case !g.CRL:
		return false, "ztunnel " + g.Version + " is not told to read lists: set its chart's value peerCaCrl.enabled"
	case !mesh.ZtunnelCan(g.Version, mesh.CRLOutbound):
		return true, "ztunnel " + g.Version + " looks at new inbound connections only: outbound ones, and closing those that are open, from 1.31"
	}
	return true, ""
}

func versionText(v string) string {
	if v == "" {
		return "of an unknown version"
	}
	return v
}
