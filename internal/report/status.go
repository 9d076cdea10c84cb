// Package report says in the API what became of things: status and Events. It is the only writer of .status.
//
// In: what translation concluded, what the hub knows of each cluster's agent, what the agents answered. Out: server-side applies of status, only when something
// a reader would care about changed, and Events. It must not decide anything else, and no message of it holds a time or a counter that moves by itself.
package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// HeartbeatEvery is how often a heartbeat alone may cost a write of status.
const HeartbeatEvery = time.Minute

// Input is everything that is known of one cluster.
type Input struct {
	Cluster mesh.Cluster
	Session mesh.Session
	// Conditions are translation's for this cluster's KubernetesCluster.
	Conditions []mesh.Condition
	// Desired are the objects the server wants in the cluster; Published: they have been sent.
	Desired   mesh.Objects
	Published bool
	// Patient: what has not been applied was sent a moment ago; everything being applied before, that is still said.
	Patient bool
	// CA is the cluster's certificate authority; nil: nothing new is known.
	CA *adminv2.ClusterCAStatus
	// Peering is how it stands with other clusters; nil: nothing is known.
	Peering *PeeringStatus
	// ServerVersion is the management server's.
	ServerVersion string
}

// Next is the status that says Input, given the one before. It never goes back on what was learnt once: UID, versions, trust domain.
func Next(old adminv2.KubernetesClusterStatus, in Input, now time.Time) adminv2.KubernetesClusterStatus {
	c, s := in.Cluster, in.Session
	st := *old.DeepCopy()
	if c.RegisteredBy != "" {
		st.RegisteredBy = c.RegisteredBy
	}
	if !c.RegisteredAt.IsZero() {
		st.RegisteredAt = stamp(c.RegisteredAt)
	}
	if s.Connected && s.UID != "" && st.ClusterUID == "" {
		st.ClusterUID = string(s.UID)
	}
	if s.Connected && s.AgentVersion != "" {
		st.AgentVersion = s.AgentVersion
	}
	if s.LastHeartbeat.After(beat(old)) {
		st.LastHeartbeat = stamp(s.LastHeartbeat)
	}
	if c.Inventory != nil {
		info := c.Inventory.Info
		st.TrustDomain = either(string(info.TrustDomain), st.TrustDomain)
		st.IstioVersion = either(info.IstioVersion, st.IstioVersion)
		st.Network = either(info.Network, st.Network)
	}
	if in.CA != nil {
		st.CaStatus = in.CA
	}
	if p := in.Peering; p != nil {
		st.Peers = p.Peers
		if p.Summary == nil || p.Summary.Address != "" || c.Inventory != nil && c.Inventory.Complete { // what was learnt once counts until more is known
			st.Peering = p.Summary
		}
	}
	switch {
	case s.Connected:
		st.Connection = adminv2.ConnectionConnected
	case st.ClusterUID != "":
		st.Connection = adminv2.ConnectionDisconnected
	default:
		st.Connection = adminv2.ConnectionPending
	}
	if s.Connected && s.Measured {
		st.ClockSkew = skew(old.ClockSkew, s.Offset)
	}
	st.Conditions = conditions(old.Conditions, in, st, now)
	st.Common.State = state(in, st)
	return st
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func stamp(t time.Time) *metav1.Time { v := metav1.NewTime(t.UTC().Truncate(time.Second)); return &v }

func beat(s adminv2.KubernetesClusterStatus) time.Time {
	if s.LastHeartbeat == nil {
		return time.Time{}
	}
	return s.LastHeartbeat.Time
}

// state is the published word and sentence: INVALID, FAILED, PENDING before the first connect, else ACCEPTED (also while disconnected: the resource is in force).
func state(in Input, st adminv2.KubernetesClusterStatus) adminv2.State {
	out := adminv2.State{ObservedGeneration: in.Cluster.Generation}
	get := func(t string) *metav1.Condition {
		i := slices.IndexFunc(st.Conditions, func(c metav1.Condition) bool { return c.Type == t })
		if i < 0 {
			return &metav1.Condition{}
		}
		return &st.Conditions[i]
	}
	switch accepted, programmed := get(adminv2.ConditionAccepted), get(adminv2.ConditionProgrammed); {
	case accepted.Status == metav1.ConditionFalse:
		out.Approval, out.Message = adminv2.ApprovalInvalid, accepted.Message
	case st.ClusterUID == "":
		out.Approval, out.Message = adminv2.ApprovalPending, get(adminv2.ConditionConnected).Message
	case programmed.Reason == adminv2.ReasonApplyFailed:
		out.Approval, out.Message = adminv2.ApprovalFailed, programmed.Message
	default:
		out.Approval = adminv2.ApprovalAccepted
	}
	return out
}

func conditions(old []metav1.Condition, in Input, st adminv2.KubernetesClusterStatus, now time.Time) []metav1.Condition {
	all := slices.Clone(in.Conditions)
	all = append(all, connected(in, st), identity(in), warm(in), programmed(in, st, condition(old, adminv2.ConditionProgrammed)))
	if in.Peering != nil && in.Peering.Condition != nil {
		all = append(all, *in.Peering.Condition)
	}
	if st.AgentVersion != "" {
		all = append(all, VersionSupported(st.AgentVersion, in.ServerVersion))
	}
	if in.Session.Measured || st.ClockSkew != "" {
		all = append(all, clock(st.ClockSkew))
	}
	return stamped(old, all, in.Cluster.Generation, now)
}

func connected(in Input, st adminv2.KubernetesClusterStatus) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionConnected, Status: mesh.False}
	switch s := in.Session; {
	case s.Connected:
		c.Status, c.Reason, c.Message = mesh.True, adminv2.ReasonConnected, "the agent has a session"
	case s.Refusal != "":
		c.Reason, c.Message = adminv2.ReasonRefused, s.Refusal
	case st.ClusterUID == "":
		c.Reason, c.Message = adminv2.ReasonNeverConnected, fmt.Sprintf("no agent has connected as %q yet: install it with `meshctl cluster register %s`", in.Cluster.Name, in.Cluster.Name)
	default:
		c.Reason, c.Message = adminv2.ReasonDisconnected, "the agent has no session; the cluster keeps what it has: see the log of deployment gloo-mesh-agent there"
		if s.Ended != "" {
			c.Message = "the session ended (" + s.Ended + "); the cluster keeps what it has: see the log of deployment gloo-mesh-agent there"
		}
	}
	return c
}

func identity(in Input) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionIdentityVerified, Status: mesh.Unknown, Reason: adminv2.ReasonNeverConnected, Message: "no agent has connected yet"}
	switch {
	case in.Session.RefusedIdentity: // also while the right agent is connected: somebody else tries
		c.Status, c.Reason, c.Message = mesh.False, adminv2.ReasonRefused, in.Session.Refusal
	case in.Session.Connected || in.Cluster.UID != "":
		c.Status, c.Reason, c.Message = mesh.True, adminv2.ReasonVerified, "certificate, name and kube-system UID belong together"
	}
	return c
}

func warm(in Input) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionWarm}
	switch inv := in.Cluster.Inventory; {
	case inv != nil && inv.Complete:
		c.Status, c.Reason, c.Message = mesh.True, adminv2.ReasonInventoryComplete, "the whole inventory has been received"
	case in.Cluster.SkipWarming:
		c.Status, c.Reason, c.Message = mesh.True, adminv2.ReasonWarmingSkipped, "spec.skipWarming: nothing waits for this cluster's inventory"
	default:
		c.Status, c.Reason, c.Message = mesh.False, adminv2.ReasonInventoryPending, "the inventory has not been received since the server started; until then nothing is removed from any cluster"
		if in.Cluster.UID == "" {
			c.Message = "the inventory comes when the agent connects"
		}
	}
	return c
}

func programmed(in Input, st adminv2.KubernetesClusterStatus, old *metav1.Condition) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionProgrammed, Status: mesh.False, Reason: adminv2.ReasonApplying}
	if st.ClusterUID == "" {
		c.Message = "waits for the agent"
		return c
	}
	if in.Cluster.Inventory == nil || !in.Published {
		c.Status, c.Reason, c.Message = mesh.Unknown, adminv2.ReasonInventoryPending, "not known until the agent has reported what it applied"
		return c
	}
	var failed, waiting []string
	for ref, want := range in.Desired.All() {
		switch o, ok := in.Cluster.Inventory.Outcomes[ref]; {
		case !ok || o.Hash != want.Hash:
			waiting = append(waiting, name(ref))
		case !o.OK:
			failed = append(failed, name(ref)+": "+o.Error)
		}
	}
	slices.Sort(failed)
	slices.Sort(waiting)
	switch {
	case len(failed) > 0:
		c.Reason, c.Message = adminv2.ReasonApplyFailed, "not applied: "+few(failed)
	case len(waiting) > 0 && in.Patient && old != nil && old.Status == metav1.ConditionTrue:
		c.Status, c.Reason, c.Message = mesh.True, old.Reason, old.Message
	case len(waiting) > 0:
		c.Message = "being applied: " + few(waiting)
	default:
		c.Status, c.Reason, c.Message = mesh.True, adminv2.ReasonApplied, "everything is applied"
	}
	return c
}

func name(r mesh.Ref) string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// few lists at most three, so that a message stays a sentence.
func few(l []string) string {
	if len(l) <= 3 {
		return strings.Join(l, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(l[:3], "; "), len(l)-3)
}

// skewBound is what clocks may differ; certificates are valid an hour before they are made, so this is for logs, not for trust.
const skewBound = 5 * time.Second

// skew words an offset (server minus agent), and keeps the old words while they are about right, so that jitter writes nothing.
func skew(old string, offset time.Duration) string {
	was, worded := parseSkew(old)
	if worded {
		if math.Abs(float64(offset-was)) < math.Max(float64(2*time.Second), 0.1*math.Abs(float64(was))) {
			return old
		}
	}
	abs := time.Duration(math.Abs(float64(offset))).Round(time.Second)
	switch {
	case abs <= skewBound:
		return ""
	case offset > 0:
		return abs.String() + " behind"
	default:
		return abs.String() + " ahead"
	}
}

func parseSkew(s string) (time.Duration, bool) {
	amount, way, ok := strings.Cut(s, " ")
	d, err := time.ParseDuration(amount)
	if !ok || err != nil {
		return 0, false
	}
	if way == "ahead" {
		d = -d
	}
	return d, true
}

func clock(skew string) mesh.Condition {
	if skew == "" {
		return mesh.Condition{Type: adminv2.ConditionClockSynchronised, Status: mesh.True, Reason: adminv2.ReasonClocksAgree, Message: "the agent's clock agrees with the server's"}
	}
	return mesh.Condition{
		Type: adminv2.ConditionClockSynchronised, Status: mesh.False, Reason: adminv2.ReasonClockSkew,
		Message: fmt.Sprintf("the agent's clock is %s the server's: synchronise the nodes of both clusters (NTP); the session is not affected", strings.Replace(skew, "ahead", "ahead of", 1)),
	}
}

// Differ says whether new must be written over old: at once when anything but the heartbeat differs, else when the heartbeat written is old enough.
func Differ(old, next adminv2.KubernetesClusterStatus) bool {
	a, b := old.DeepCopy(), next.DeepCopy()
	a.LastHeartbeat, b.LastHeartbeat = nil, nil
	if !equal(a, b) {
		return true
	}
	return beat(next).Sub(beat(old)) >= HeartbeatEvery
}
