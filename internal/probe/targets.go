package probe

import (
	"cmp"
	"slices"
)

// target is an endpoint for the handshake probe: all Pods that share one certificate, the best of them first.
type target struct {
	kind    string // VerifierGroup.Kind
	version string
	crl     bool // VerifierGroup.CRL
	pods    []pod
	silent  string // why it can't be probed at all; empty: it can
}

// maxStandIns bounds how many Pods are tried for one certificate.
const maxStandIns = 3

// unseen is what is said of Envoys that don't accept HBONE.
const unseen = "does not accept HBONE on port 15008, so what it trusts can't be seen from outside: count on its renewal (half of the life of its certificate, 12 h by default), or restart it"

// targetsOf picks whom to probe. ztunnel keeps one certificate, and one set of roots, per (node, service account) (facts 0.1), so one Pod speaks for all of such a pair; each
// Envoy is asked for itself.
func targetsOf(pods []pod) []target {
	type pair struct{ node, account string }
	ztunnels := map[string]pod{} // by node
	for _, p := range pods {
		if p.role == roleZtunnel {
			ztunnels[p.node] = p
		}
	}
	captured := map[pair]*target{}
	var order []pair
	var out []target
	for _, p := range pods {
		switch p.role {
		case roleCaptured:
			k := pair{p.node, p.account}
			if captured[k] == nil {
				captured[k] = &target{kind: "ztunnel", version: ztunnels[p.node].version, crl: ztunnels[p.node].crl}
				order = append(order, k)
			}
			captured[k].pods = append(captured[k].pods, p)
		case roleWaypoint, roleEastWest:
			out = append(out, target{kind: string(p.role), version: p.version, pods: []pod{p}})
		case roleGateway, roleSidecar:
			out = append(out, target{kind: string(p.role), version: p.version, pods: []pod{p}, silent: unseen})
		case roleNone, roleIstiod, roleZtunnel:
		}
	}
	for _, k := range order {
		t := captured[k]
		slices.SortStableFunc(t.pods, func(a, b pod) int {
			return cmp.Or(boolean(a.going)-boolean(b.going), boolean(b.ready)-boolean(a.ready), cmp.Compare(a.name, b.name))
		})
		t.pods = t.pods[:min(len(t.pods), maxStandIns)]
		out = append(out, *t)
	}
	return out
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}
