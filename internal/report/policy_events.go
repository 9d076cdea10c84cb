package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// Event is an Event to write. Type is Normal or Warning. The rest is for the audit record, where it is known.
type Event struct {
	Type, Reason, Message string

	User    string
	Cluster string
	Object  string // "Kind namespace/name"
	Manager string
	At      time.Time
	Detail  string
}

// policyEvents are what a change of status is worth telling: each fact once, when it becomes so. Status remembers what was told, so a new server tells nothing again.
func policyEvents(old, next *securityv2.AccessPolicyStatus, all []standing) []Event {
	var out []Event
	say := func(warning bool, reason, format string, args ...any) *Event {
		e := Event{Type: corev1.EventTypeNormal, Reason: reason, Message: fmt.Sprintf(format, args...)}
		if warning {
			e.Type = corev1.EventTypeWarning
		}
		out = append(out, e)
		return &out[len(out)-1]
	}
	if g := next.Common.State.ObservedGeneration; next.ChangedBy != "" && g != old.Common.State.ObservedGeneration {
		reason, did := securityv2.EventPolicyChanged, "Changed"
		if g == 1 {
			reason, did = securityv2.EventPolicyCreated, "Created"
		}
		e := say(false, reason, "%s by %s (generation %d)", did, next.ChangedBy, g)
		e.User, e.Detail = next.ChangedBy, fmt.Sprintf("%s generation %d", strings.ToLower(did), g)
	}
	for i := range all {
		clusterEvents(clusterOf(old, mesh.ClusterName(all[i].Cluster)), &all[i], say)
	}
	for i := range old.Clusters { // a cluster that has nothing of the policy any more has no override of it either
		o := &old.Clusters[i]
		if o.Override != nil && !slices.ContainsFunc(all, func(s standing) bool { return s.Cluster == o.Cluster }) {
			say(false, securityv2.EventOverrideEnded, "%s: PolicyOverride %s has ended", o.Cluster, o.Override.Name)
		}
	}
	if n := len(all); n > 0 && next.InForce == fmt.Sprintf("%d/%d", n, n) && old.InForce != next.InForce {
		say(false, securityv2.EventPolicyProgramed, "in force in %s", plural(n, "cluster"))
	}
	for _, c := range next.Conditions {
		was := condition(old.Conditions, c.Type)
		if c.Status == metav1.ConditionTrue || was != nil && was.Reason == c.Reason {
			continue
		}
		switch c.Reason {
		case securityv2.ReasonNoDestinations:
			say(true, securityv2.EventNoDestination, "%s", c.Message)
		case securityv2.ReasonNoClients:
			say(true, securityv2.EventNoClients, "%s", c.Message)
		case securityv2.ReasonNamespaceConflict:
			say(true, securityv2.EventNamespaceClaims, "%s", c.Message)
		}
	}
	return out
}

func condition(l []metav1.Condition, kind string) *metav1.Condition {
	for i := range l {
		if l[i].Type == kind {
			return &l[i]
		}
	}
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// sayer adds an Event and returns it, for what else is known.
type sayer func(warning bool, reason, format string, args ...any) *Event

func clusterEvents(old *securityv2.ClusterPolicyStatus, s *standing, say sayer) {
	if old == nil {
		old = &securityv2.ClusterPolicyStatus{}
	}
	if d := s.LastDrift; d != nil && d.Corrected && (old.LastDrift == nil || !sameDrift(old.LastDrift, d)) {
		e := say(true, securityv2.EventDriftCorrected, "%s: %s was changed by %s%s; put back", s.Cluster, d.Object, either(d.Manager, "somebody"), aside(d.What))
		e.Cluster, e.Object, e.Manager, e.Detail = s.Cluster, d.Object, d.Manager, d.What
		if d.At != nil {
			e.At = d.At.Time
		}
	}
	if old.State != s.State || old.Message != s.Message {
		switch {
		case s.taken != "":
			e := say(true, securityv2.EventTakenOver, "%s: %s", s.Cluster, s.Message)
			e.Cluster, e.Object, e.Detail = s.Cluster, s.taken, s.Message
			if d := s.LastDrift; d != nil && d.Object == s.taken {
				e.Manager = d.Manager
			}
		case s.State == securityv2.PolicyRejected:
			say(true, securityv2.EventPolicyNotTaken, "%s: %s", s.Cluster, s.Message)
		case s.State == securityv2.PolicyUnenforceable:
			e := say(true, securityv2.EventUnenforceable, "%s: %s", s.Cluster, s.Message)
			e.Cluster, e.Detail = s.Cluster, s.Message
		}
	}
	for _, w := range s.Widened {
		if !slices.Contains(old.Widened, w) {
			e := say(true, securityv2.EventWidened, "%s: %s", s.Cluster, w)
			e.Cluster, e.Detail = s.Cluster, w
		}
	}
	switch was, is := old.Override, s.Override; {
	case is != nil && (was == nil || was.Name != is.Name):
		say(true, securityv2.EventOverridden, "%s: suspended by %s until %s: %s (PolicyOverride %s)", s.Cluster, either(is.By, "somebody"), is.Until.UTC().Format("2006-01-02T15:04:05Z"), is.Reason, is.Name)
	case was != nil && is == nil:
		say(false, securityv2.EventOverrideEnded, "%s: PolicyOverride %s has ended", s.Cluster, was.Name)
	}
}

func aside(s string) string {
	if s == "" {
		return ""
	}
	return " (" + strings.TrimSuffix(s, ".") + ")"
}

func sameDrift(a, b *securityv2.DriftStatus) bool {
	return a.Object == b.Object && a.Corrected == b.Corrected && a.What == b.What && a.Manager == b.Manager && a.At.Equal(b.At)
}
