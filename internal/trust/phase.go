package trust

import (
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// rule is a bit per decision that keeps handshakes whole. Next obeys all of them; the tests take one away at a time and expect an outage.
type rule uint32

const (
	ruleVerifiers  rule = 1 << iota // B1 asks verifiers, not only istiods and ConfigMaps (T1)
	ruleAllKinds                    // waypoints and gateways are verifiers too (T2)
	ruleConfigMaps                  // clients of istiod trust the new root before istiod serves under it (T3)
	ruleIstiods                     // what istiod hands out counts, not what the Secret says (T4)
	ruleReplicas                    // each replica counts (T5)
	ruleOrdered                     // istiods are asked before verifiers (T5)
	ruleApplied                     // an observation counts for the directive it was made under
	ruleTurn                        // no two directives have one fingerprint
	rulePhases                      // adding the root and switching the signer are two steps (T6)
	ruleIssuers                     // B2: nobody presents the old root any more (T7)
	ruleBound                       // what can't be observed waits (T7)
	ruleLongest                     // it waits for the longest certificate that anybody may hold, not for the usual one (T7)
	ruleNames                       // roots have different names (T8)
	ruleWebhooks                    // the API server trusts the new root before istiod serves under it (T10)
	ruleReproof                     // a rollback after S4 proves B1 anew (T17)
	ruleSecret                      // a cacerts that somebody else changed holds everything (T18)
	ruleReachable                   // clusters that are away are waited for
	ruleSameBytes                   // the bundle stays as it is, byte for byte, while the signer changes
	ruleAdmission                   // a cluster is admitted when it is proven to be in the phase's state
	ruleOwnRoot                     // a cluster that comes with a root of its own keeps it until nobody needs it
	ruleFamily                      // clusters that came with the same root go together
	ruleFiles                       // a ConfigMap takes time to become a file (T3)
)

var phases = [...]Phase{Steady, Preparing, AddingRoot, Switching, DroppingRoot, Finished} //nolint:gochecknoglobals // the order of a type's values

func (p Phase) rank() int { return slices.Index(phases[:], p) }

// before reports whether p comes before q; the zero Phase comes before all.
func (p Phase) before(q Phase) bool { return p.rank() < q.rank() }

// State says the phase in the words of the older API (facts/api.md 1.3).
func (r *Rotation) State() string {
	if r.Back {
		return "ROLLING_BACK"
	}
	switch r.Phase {
	case Preparing:
		return "PREVIOUS_CA"
	case AddingRoot:
		return "ADDING_NEW_ROOT"
	case Switching:
		return "PROPAGATING_NEW_INTERMEDIATE"
	case DroppingRoot:
		return "DELETING_OLD_ROOT"
	case Finished:
		return "FINISHED"
	default:
		return "NOT_ROTATING"
	}
}

// Signs is the root that a cluster in the exact state of the present phase signs under.
func (r *Rotation) Signs() *Root {
	if r.Incoming != nil && !r.Phase.before(Switching) {
		return r.Incoming
	}
	return &r.Current
}

// Trusts are the roots of root-cert.pem in the present phase, in order.
func (r *Rotation) Trusts() []*Root {
	var out []*Root
	if r.Incoming == nil || r.Phase.before(DroppingRoot) {
		out = append(out, &r.Current)
	}
	if r.Incoming != nil && !r.Phase.before(AddingRoot) {
		out = append(out, r.Incoming)
	}
	for i := range r.Passive {
		out = append(out, &r.Passive[i])
	}
	return out
}

// enter begins a phase.
func (w *work) enter(p Phase, reason string) {
	w.r.Phase, w.step.Reason = p, reason
	w.r.Began[p] = w.now
	w.r.Turn++
	if !w.r.Back && w.r.Far.before(p) {
		w.r.Far = p
	}
	w.dirty = true
}

// advance moves the mesh by one phase if its barrier is passed, and reports whether it did. What is in the way goes into Blockers.
func (w *work) advance() bool {
	r := &w.r
	if r.Incoming == nil {
		return false
	}
	if r.Back {
		return w.backward()
	}
	if w.want.Paused != nil {
		w.block("", "the rotation", "it is paused by "+w.want.Paused.By+": `meshctl trust resume` when it may go on")
		return false
	}
	switch r.Phase {
	case Preparing:
		if w.all(need{newSlot: true}) {
			w.enter(AddingRoot, w.every("holds a checked intermediate under the new root"))
			if w.off(rulePhases) {
				w.enter(Switching, "both at once")
			}
			return true
		}
	case AddingRoot:
		if w.all(need{newSlot: true, ready: true, trust: r.Trusts(), files: true}) {
			w.enter(Switching, w.every("trusts both roots, as every verifier shows"))
			return true
		}
	case Switching:
		if w.canary() && w.all(need{ready: true, issuer: r.Incoming}) {
			w.enter(DroppingRoot, w.every("presents the new root alone, as every istiod and every verifier shows"))
			return true
		}
	case DroppingRoot:
		if w.all(need{ready: true, trust: r.Trusts(), gone: []*Root{&r.Current}}) {
			w.enter(Finished, w.every("trusts the new root alone"))
			return true
		}
	case Finished:
		if w.all(need{destroyed: true}) {
			w.settle(*r.Incoming, "keys under the old root are destroyed in "+w.clusters())
			return true
		}
	default:
	}
	return false
}

// backward is advance in the other direction. What no cluster was told of, as Far says, needs no proof of being undone.
func (w *work) backward() bool {
	r := &w.r
	switch r.Phase {
	case DroppingRoot:
		w.enter(Switching, "rolling back: bundles hold both roots again")
		return true
	case Switching:
		if r.Far.before(DroppingRoot) || w.off(ruleReproof) || w.all(need{oldSlot: true, ready: true, trust: r.Trusts(), files: true}) {
			r.Far = Switching
			w.enter(AddingRoot, "rolling back: every verifier trusts both roots")
			return true
		}
	case AddingRoot:
		if r.Far.before(Switching) || w.all(need{ready: true, issuer: &r.Current}) {
			r.Far = AddingRoot
			w.enter(Preparing, "rolling back: nobody presents the new root")
			return true
		}
	case Preparing:
		if r.Far.before(AddingRoot) || w.all(need{ready: true, trust: r.Trusts(), gone: []*Root{r.Incoming}}) {
			w.settle(r.Current, "rolled back to root "+r.Current.Subject)
			return true
		}
	default:
	}
	return false
}

// settle ends a rotation with root.
func (w *work) settle(root Root, reason string) {
	r := &w.r
	incoming := r.Incoming.Fingerprint == root.Fingerprint
	for name, m := range r.Members {
		if incoming {
			m.Old = m.New
		}
		m.New = ""
		if m.Replaces != m.Old {
			m.Fresh, m.Replaces = "", ""
		}
		r.Members[name] = m
	}
	root.CrossSigned = nil
	r.Current, r.Incoming, r.Back, r.CrossSigned = root, nil, false, false
	w.enter(Steady, reason)
	r.Far = ""
}

// canary reports whether clusters other than the canary may switch.
func (w *work) canary() bool {
	r := &w.r
	name := w.canaryName()
	if name == "" || !r.CanaryProven.IsZero() {
		if until := r.CanaryProven.Add(w.want.Soak); name != "" && w.now.Before(until) {
			w.blockUntil(name, "the canary", "it signs under the new root; the others follow after the soak", until)
			return false
		}
		return true
	}
	c := w.fleet[name]
	if !w.proven(c, need{ready: true, someIssuer: r.Incoming}) {
		return false
	}
	r.CanaryProven, w.dirty = w.now, true
	w.step.Reason = "canary " + string(name) + " signs under the new root"
	return w.want.Soak <= 0
}

// canaryName is the member that switches first; empty: none does.
func (w *work) canaryName() mesh.ClusterName {
	c := w.want.Canary
	if !w.r.Members[c].Admitted || w.want.Emergency != nil || w.r.Back {
		return ""
	}
	return c
}

// switched reports whether a member is to sign under the new root, in phase Switching.
func (w *work) switched(c mesh.ClusterName) bool {
	name := w.canaryName()
	return name == "" || name == c || !w.r.CanaryProven.IsZero() && !w.now.Before(w.r.CanaryProven.Add(w.want.Soak))
}
