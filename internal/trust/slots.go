package trust

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

const (
	defaultTTL   = 365 * 24 * time.Hour
	defaultLeaf  = mesh.DefaultLeafTTL
	defaultMax   = 90 * 24 * time.Hour // MAX_WORKLOAD_CERT_TTL of istiod
	defaultRatio = 0.5
)

// slots gives every admitted member the slots that the phase asks for.
func (w *work) slots() {
	for _, name := range w.admitted() {
		w.slotsOf(name)
	}
}

// slotsOf makes a slot under each root that the cluster has to be able to sign under, and looks after renewals.
func (w *work) slotsOf(name mesh.ClusterName) {
	r, m := &w.r, w.r.Members[name]
	needOld := r.Incoming == nil || r.Phase.before(Switching) || r.Phase == Switching && r.Back
	if needOld && m.Old == "" {
		m.Old = newSlot(&m, &r.Current)
	}
	if r.Incoming != nil && m.New == "" && (!r.Back || r.Phase == Switching) {
		m.New = newSlot(&m, r.Incoming)
	}
	w.renew(name, &m)
	w.r.Members[name] = m
}

func newSlot(m *Member, root *Root) string {
	m.Serial++
	return fmt.Sprintf("g%d-%d", root.Generation, m.Serial)
}

// renew replaces an intermediate by another one under the same root, in any phase: the bundle stays as it is, so that istiod takes it at once and nobody has to learn anything.
func (w *work) renew(name mesh.ClusterName, m *Member) {
	c := w.fleet[name]
	if m.Fresh != "" && m.Replaces != m.Old && m.Replaces != m.New {
		m.Fresh, m.Replaces = "", ""
	}
	switch {
	case m.Fresh != "" && w.holds(c, m.Fresh):
		if m.Replaces == m.Old {
			m.Old = m.Fresh
		} else {
			m.New = m.Fresh
		}
		m.Retired, m.Fresh, m.Replaces = m.Replaces, "", ""
	case m.Retired != "" && w.unused(c, m.Retired):
		m.Retired = ""
	case m.Fresh == "" && m.Retired == "":
		for _, id := range []string{m.Old, m.New} {
			if i, ok := c.Issued[id]; ok && w.due(name, id, i) {
				m.Replaces = id
				m.Fresh = newSlot(m, w.rootOf(m, id))
				return
			}
		}
	}
}

// rootOf is the root that a slot is certified under; nil: it is none of the member's.
func (w *work) rootOf(m *Member, id string) *Root {
	if id == m.Fresh && m.Fresh != "" {
		id = m.Replaces
	}
	switch id {
	case "":
		return nil
	case m.New:
		return w.r.Incoming
	case m.Old:
		return &w.r.Current
	default:
		return nil
	}
}

func (w *work) due(name mesh.ClusterName, id string, i Issued) bool {
	if w.want.Revoked[i.Signer] {
		return true
	}
	if w.r.Phase == Steady && w.want.Algorithm != "" && i.Algorithm != "" && i.Algorithm != w.want.Algorithm {
		return true
	}
	return !w.now.Before(w.renewAt(name, id, i))
}

// renewAt is when renewal begins: at mesh.RenewAt, or up to a tenth of the time before that earlier, by a hash of the names, so that a fleet made at once is not renewed at once.
func (w *work) renewAt(name mesh.ClusterName, id string, i Issued) time.Time {
	ratio := w.want.RenewRatio
	if ratio <= 0 || ratio >= 1 {
		ratio = defaultRatio
	}
	ratio = min(max(ratio, 0.02), 0.9)
	h := fnv.New32a()
	_, _ = h.Write([]byte(string(name) + "/" + id))
	early := float64(h.Sum32()%1000) / 1000 / 10
	at := mesh.RenewAt(i.NotBefore, i.NotAfter, ratio, mesh.DefaultLeafTTL)
	return at.Add(-time.Duration(early * float64(at.Sub(i.NotBefore))))
}

// unused reports whether every istiod was seen to sign with something else than slot id, under the last directive.
func (w *work) unused(c *Cluster, id string) bool {
	o := c.Observation
	if !c.Connected || o == nil || o.Applied != w.r.Members[c.Name].Directed {
		return false
	}
	return !slices.ContainsFunc(o.Istiods, func(p mesh.IstiodProbe) bool { return p.Error != "" || p.Signer == c.Issued[id].Signer })
}

// holds reports whether the cluster has the key of a slot, and the certificate that was issued for it, checked.
func (w *work) holds(c *Cluster, id string) bool {
	i, ok := w.issued(c, id)
	if id == "" || !ok || c.Observation == nil {
		return false
	}
	return slices.ContainsFunc(c.Observation.Slots, func(s mesh.Slot) bool { return s.ID == id && s.Checked == "" && s.Signer == i.Signer })
}

// issued is the certificate of a slot, of ours or taken over.
func (w *work) issued(c *Cluster, id string) (Issued, bool) {
	if k := w.kept[c.Name]; k != nil && id != "" && k.Taken == id {
		return k.Issued, true
	}
	i, ok := c.Issued[id]
	return i, ok
}

// whyNotHeld says what a slot lacks; empty: nothing.
func (w *work) whyNotHeld(c *Cluster, id string, root *Root) string {
	i, ok := w.issued(c, id)
	if !ok {
		if c.Requests[id] {
			return "its certificate request for slot " + id + " is being signed: look at the authority if this lasts"
		}
		return "it has not made the key of slot " + id + " and sent a certificate request yet: look at its agent's log if this lasts"
	}
	if root != nil && i.Root != root.Fingerprint {
		return "the certificate for slot " + id + " leads to another root than " + root.Subject + ": the authority has changed its root on the way"
	}
	if w.holds(c, id) {
		return ""
	}
	for _, s := range c.Observation.Slots {
		if s.ID == id && s.Checked != "" {
			return "it refuses the certificate for slot " + id + ": " + s.Checked
		}
	}
	return "it has not confirmed the certificate for slot " + id + " yet"
}

// againAfter is how long after its NotBefore a certificate that the agent refuses is asked for anew: whoever signs may have been set right, and is not to be asked all the time.
const againAfter = time.Hour

// refusedUntil is when a certificate that the agent refuses is asked for anew; zero: it is not refused.
func refusedUntil(c *Cluster, id string, i Issued) time.Time {
	if c.Observation != nil && slices.ContainsFunc(c.Observation.Slots, func(s mesh.Slot) bool { return s.ID == id && s.Checked != "" }) {
		return i.NotBefore.Add(againAfter)
	}
	return time.Time{}
}

// sign orders certificates for all slots that lack a good one and sent a request.
func (w *work) sign() {
	ttl := w.want.TTL
	if ttl <= 0 {
		ttl = defaultTTL
	}
	for _, name := range w.names {
		m, c := w.r.Members[name], w.fleet[name]
		for _, id := range []string{m.Old, m.New, m.Fresh} {
			root := w.rootOf(&m, id)
			if root == nil || !c.Requests[id] {
				continue
			}
			if i, ok := c.Issued[id]; ok && i.Root == root.Fingerprint {
				if again := refusedUntil(c, id, i); again.IsZero() || w.now.Before(again) {
					continue
				}
			}
			w.step.Sign = append(w.step.Sign, SignOrder{Cluster: name, Slot: id, Root: root.Fingerprint, TTL: ttl})
		}
	}
}
