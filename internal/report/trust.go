package report

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// Trust is everything that is known of one RootTrustPolicy in one round.
type Trust struct {
	Policy *mesh.RootTrustPolicy
	Input  trust.Input
	// Step is what was decided; the zero value where the policy has a fault.
	Step trust.Step
	// Conflicts are the names of older policies that select the same clusters.
	Conflicts []string
	// Issuing says what the certificate authority refuses, empty: nothing; Refusals what it refuses a cluster.
	Issuing  string
	Refusals map[mesh.ClusterName]string
	// Revoked are intermediates that are revoked; Unlisted says why roots have no revocation list, or an old one.
	Revoked  []adminv2.RevokedCertificate
	Unlisted []string
}

// phase is the phase in the API's words.
func (in *Trust) phase() adminv2.RotationPhase {
	r := &in.Step.Rotation
	if r.Back {
		return adminv2.PhaseRollingBack
	}
	return phaseOf(r.Phase)
}

// phaseOf: the words are the same.
func phaseOf(p trust.Phase) adminv2.RotationPhase {
	return adminv2.RotationPhase(cmp.Or(p, trust.Steady))
}

// RootTrustPolicy is the status that says Trust, given the one before. It leaves the engine's record as it is.
func RootTrustPolicy(old adminv2.RootTrustPolicyStatus, in Trust, now time.Time) adminv2.RootTrustPolicyStatus {
	p := in.Policy
	st := *old.DeepCopy()
	st.ObservedGeneration = p.Generation
	accepted := mesh.Condition{Type: adminv2.ConditionAccepted, Status: mesh.True, Reason: adminv2.ReasonValid, Message: "the policy is valid"}
	if p.Invalid != "" {
		accepted.Status, accepted.Reason, accepted.Message = mesh.False, adminv2.ReasonInvalid, p.Invalid
		st.State, st.Message = adminv2.ApprovalInvalid, p.Invalid+"; whatever was in force stays in force"
		st.Conditions = stamped(old.Conditions, []mesh.Condition{accepted}, p.Generation, now)
		return st
	}
	if len(in.Conflicts) > 0 {
		accepted.Status, accepted.Reason = mesh.False, adminv2.ReasonConflict
		accepted.Message = fmt.Sprintf("RootTrustPolicy %s is older and selects some of the same clusters: it holds there", strings.Join(in.Conflicts, ", "))
	}
	st.Phase = in.phase()
	st.Roots = rootStatuses(&in)
	st.Clusters = clusterTrust(&in)
	st.Revoked = slices.Clip(in.Revoked[:min(len(in.Revoked), maxParties)])
	rotating, issuing, trusted := rotatingCondition(&in), issuingCondition(&in), trustedCondition(st.Clusters)
	st.Conditions = stamped(old.Conditions, []mesh.Condition{accepted, rotating, issuing, trusted}, p.Generation, now)
	switch {
	case accepted.Status != mesh.True:
		st.State, st.Message = adminv2.ApprovalWarning, accepted.Message
	case issuing.Status == mesh.False:
		st.State, st.Message = adminv2.ApprovalFailed, issuing.Message
	case len(in.Unlisted) > 0:
		st.State, st.Message = adminv2.ApprovalWarning, "revocation: "+few(in.Unlisted)
	case len(refusing(in.Step.Findings)) > 0 || rotating.Reason == adminv2.ReasonBlocked:
		st.State, st.Message = adminv2.ApprovalWarning, rotating.Message
	case trusted.Status == mesh.True && heldBack(&in):
		st.State, st.Message = adminv2.ApprovalPending, rotating.Message
	case trusted.Status != mesh.True || in.Step.Rotation.Incoming != nil:
		st.State, st.Message = adminv2.ApprovalPending, rotating.Message
		if in.Step.Rotation.Incoming == nil {
			st.Message = trusted.Message
		}
	default:
		st.State, st.Message = adminv2.ApprovalAccepted, trusted.Message
	}
	return st
}

func refusing(all []trust.Finding) []trust.Finding {
	return slices.DeleteFunc(slices.Clone(all), func(f trust.Finding) bool { return !f.Refuses })
}

// rotatingCondition says how far the rotation is and what it waits for.
func rotatingCondition(in *Trust) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionRotating, Status: mesh.False, Reason: adminv2.ReasonNoRotation, Message: in.Step.Reason}
	r := &in.Step.Rotation
	if no := refusing(in.Step.Findings); len(no) > 0 {
		c.Reason = adminv2.ReasonBlocked
		c.Message = "the rotation does not start: " + sayFinding(no[0])
		if len(no) > 1 {
			c.Message += fmt.Sprintf(" (and %d more: meshctl trust plan)", len(no)-1)
		}
		return c
	}
	if r.Incoming == nil {
		if c.Message == "" {
			c.Message = "no rotation is under way"
		}
		if w := in.Input.Want.Paused; w != nil {
			c.Reason, c.Message = adminv2.ReasonPaused, "no rotation is under way, and none begins: paused by "+w.By
			if heldBack(in) {
				c.Message = fmt.Sprintf("a rotation is asked for and does not begin: paused by %s; `meshctl trust resume` lets it", w.By)
			}
		}
		return c
	}
	c.Status, c.Reason = mesh.True, adminv2.ReasonInProgress
	c.Message = fmt.Sprintf("to %s", r.Incoming.Subject)
	if r.Back {
		c.Message = fmt.Sprintf("back to %s", r.Current.Subject)
	}
	if w := in.Input.Want.Paused; w != nil && !r.Back {
		c.Reason, c.Message = adminv2.ReasonPaused, c.Message+", paused by "+w.By
	}
	if n := len(in.Step.Blockers); n > 0 {
		c.Message += ", waits for " + sayBlocker(in.Step.Blockers[0])
		if n > 1 {
			c.Message += fmt.Sprintf(" (and %d more)", n-1)
		}
		if blockedByAbsence(in) && c.Reason == adminv2.ReasonInProgress {
			c.Reason = adminv2.ReasonBlocked
		}
	}
	return c
}

// heldBack: a rotation would begin if nobody had paused it.
func heldBack(in *Trust) bool {
	return in.Input.Want.Paused != nil && in.Step.Rotation.Incoming == nil && slices.ContainsFunc(in.Step.Blockers, func(b trust.Blocker) bool { return b.Cluster == "" })
}

// blockedByAbsence: what is waited for is a cluster that is away; it does not come by itself.
func blockedByAbsence(in *Trust) bool {
	away := map[mesh.ClusterName]bool{}
	for i := range in.Input.Fleet {
		away[in.Input.Fleet[i].Name] = !in.Input.Fleet[i].Connected
	}
	return slices.ContainsFunc(in.Step.Blockers, func(b trust.Blocker) bool { return away[b.Cluster] })
}

func sayFinding(f trust.Finding) string {
	if f.Cluster == "" {
		return f.Message
	}
	return fmt.Sprintf("cluster %s: %s", f.Cluster, f.Message)
}

func sayBlocker(b trust.Blocker) string {
	s := b.What + ": " + b.Why
	if b.Cluster != "" {
		s = fmt.Sprintf("cluster %s, %s", b.Cluster, s)
	}
	if !b.Until.IsZero() {
		s += "; until " + b.Until.UTC().Format(time.RFC3339) + " at the latest"
	}
	return s
}

func issuingCondition(in *Trust) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionIssuing, Status: mesh.True, Reason: adminv2.ReasonIssued, Message: "the certificate authority answers"}
	if in.Issuing != "" {
		c.Status, c.Reason, c.Message = mesh.False, adminv2.ReasonIssueError, in.Issuing
	} else if in.Step.Rotation.Current.Fingerprint.IsZero() {
		c.Status, c.Reason, c.Message = mesh.Unknown, adminv2.ReasonIssueError, "there is no root yet"
	}
	return c
}

func trustedCondition(clusters []adminv2.ClusterTrustStatus) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionTrusted, Status: mesh.True, Reason: adminv2.ReasonProven, Message: "every verifier trusts what every cluster presents"}
	var behind []string
	for _, s := range clusters {
		if s.State != adminv2.ApprovalAccepted {
			behind = append(behind, s.Name+": "+s.Message)
		}
	}
	if len(behind) > 0 {
		c.Status, c.Reason, c.Message = mesh.False, adminv2.ReasonUnproven, few(behind)
	}
	if len(clusters) == 0 {
		c.Status, c.Reason, c.Message = mesh.Unknown, adminv2.ReasonUnproven, "no cluster is selected"
	}
	return c
}

func rootStatuses(in *Trust) []adminv2.RootStatus {
	r := &in.Step.Rotation
	var out []adminv2.RootStatus
	add := func(root *trust.Root, role adminv2.RootRole) {
		if root == nil || root.Fingerprint.IsZero() {
			return
		}
		s := adminv2.RootStatus{Generation: int64(root.Generation), Role: role, Fingerprint: root.Fingerprint.String(), Subject: root.Subject, Issuer: root.Authority}
		if c, err := x509.ParseCertificate(root.Certificate); err == nil {
			s.NotAfter = stamp(c.NotAfter)
		}
		out = append(out, s)
	}
	switch {
	case r.Incoming != nil && r.Signs() == r.Incoming:
		add(&r.Current, adminv2.RootRetiring)
		add(r.Incoming, adminv2.RootActive)
	default:
		add(&r.Current, adminv2.RootActive)
		add(r.Incoming, adminv2.RootNext)
	}
	for i := range r.Passive {
		add(&r.Passive[i], adminv2.RootPassive)
	}
	slices.SortStableFunc(out, func(a, b adminv2.RootStatus) int { return int(a.Generation - b.Generation) })
	return out
}

// clusterTrust is how the policy stands in each cluster.
func clusterTrust(in *Trust) []adminv2.ClusterTrustStatus {
	waits := map[mesh.ClusterName]string{}
	for _, b := range slices.Concat(in.Step.Blockers) {
		if b.Cluster != "" && waits[b.Cluster] == "" {
			waits[b.Cluster] = b.What + ": " + b.Why
		}
	}
	var out []adminv2.ClusterTrustStatus
	for i := range in.Input.Fleet {
		out = append(out, oneClusterTrust(in, &in.Input.Fleet[i], waits))
	}
	slices.SortFunc(out, func(a, b adminv2.ClusterTrustStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func oneClusterTrust(in *Trust, c *trust.Cluster, waits map[mesh.ClusterName]string) adminv2.ClusterTrustStatus {
	m := in.Step.Rotation.Members[c.Name]
	s := adminv2.ClusterTrustStatus{Name: string(c.Name), Phase: in.phase(), State: adminv2.ApprovalPending}
	if !m.Admitted && m.Joining != "" {
		s.Phase = phaseOf(m.Joining)
	}
	if o := c.Observation; o != nil && o.Secret != nil {
		if !o.Secret.Signer.IsZero() {
			s.Signer = o.Secret.Signer.String()
			if cert := certificateOf(o, o.Secret.Signer); cert != nil {
				s.Until = stamp(cert.NotAfter)
			}
		}
		s.Roots = fingerprints(o.Secret.Roots)
	}
	switch {
	case m.Fence != nil:
		s.State, s.Message = adminv2.ApprovalWarning, "fenced by "+m.Fence.By+": "+m.Fence.Why
	case c.Observation == nil && !c.Connected:
		s.Message = "the agent is not connected: what this cluster trusts is not known"
	case c.Observation == nil:
		s.Message = "the agent has not reported what this cluster trusts yet"
	case in.Refusals[c.Name] != "":
		s.State, s.Message = adminv2.ApprovalFailed, in.Refusals[c.Name]
	case in.Issuing != "" && in.Step.Rotation.Current.Fingerprint.IsZero():
		s.State, s.Message = adminv2.ApprovalFailed, in.Issuing
	case waits[c.Name] != "":
		s.Message = "waits for " + waits[c.Name]
		if len(c.Observation.Problems) > 0 {
			s.Message += "; " + c.Observation.Problems[0]
		}
	case len(c.Observation.Problems) > 0:
		s.State, s.Message = adminv2.ApprovalWarning, c.Observation.Problems[0]
	case !m.Admitted && m.Joining != "":
		s.Message = "on its way from the root it came with"
	case !m.Admitted:
		s.State, s.Message = adminv2.ApprovalWarning, "left alone"
		if o := c.Observation.Secret; o != nil && o.Owner != "" && o.Owner != mesh.OwnerValue {
			s.Message = "left alone: its Secret cacerts belongs to " + o.Owner + "; set spec.existingCacerts: Adopt to take it over"
		}
	default:
		s.State, s.Message = adminv2.ApprovalAccepted, "as the phase wants it"
	}
	return s
}

func fingerprints(all []mesh.Fingerprint) []string {
	out := make([]string, 0, len(all))
	for _, f := range all {
		out = append(out, f.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func certificateOf(o *mesh.TrustObservation, f mesh.Fingerprint) *x509.Certificate {
	c, err := x509.ParseCertificate(o.Certificates[f])
	if err != nil {
		return nil
	}
	return c
}
