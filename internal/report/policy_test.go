package report_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

var (
	billing = mesh.Ref{Group: "security.policy.gloo.solo.io", Version: "v2", Kind: "AccessPolicy", Namespace: "gloo-mesh", Name: "billing"}
	authz   = mesh.Ref{Group: "security.istio.io", Version: "v1", Kind: "AuthorizationPolicy", Namespace: "billing", Name: "accesspolicy-billing-1"}
)

// world is a policy in three clusters, all well.
type world struct {
	policy *mesh.AccessPolicy
	report mesh.PolicyReport
	facts  map[mesh.ClusterName]*report.ClusterFacts
}

func well() *world {
	w := &world{
		policy: &mesh.AccessPolicy{Source: billing, UID: "u", Generation: 7, ChangedBy: "jane"},
		report: mesh.PolicyReport{
			Approval: adminv2.ApprovalAccepted, DestinationPorts: 2, Namespaces: 3, ServiceAccounts: []mesh.Principal{"td/ns/payments/sa/p"},
			Conditions: []mesh.Condition{
				{Type: securityv2.ConditionAccepted, Status: mesh.True, Reason: securityv2.ReasonValid, Message: "valid"},
				{Type: securityv2.ConditionResolved, Status: mesh.True, Reason: securityv2.ReasonResolved, Message: "1 client, 1 Service"},
			},
		},
		facts: map[mesh.ClusterName]*report.ClusterFacts{},
	}
	for _, c := range []mesh.ClusterName{"c1", "c2", "c3"} {
		w.report.Clusters = append(w.report.Clusters, mesh.PolicyClusterReport{Cluster: c, Objects: []mesh.Ref{authz}})
		w.facts[c] = &report.ClusterFacts{
			Connected: true, Published: true, Desired: mesh.ObjectsOf(mesh.Object{Ref: authz, Hash: wanted}),
			Outcomes: map[mesh.Ref]mesh.Outcome{authz: {Hash: wanted, OK: true}},
		}
	}
	return w
}

func (w *world) next(old securityv2.AccessPolicyStatus, now time.Time) (securityv2.AccessPolicyStatus, []report.Event) {
	return report.NextPolicy(old, report.PolicyInput{Policy: w.policy, Report: &w.report, Facts: func(c mesh.ClusterName) report.ClusterFacts { return *w.facts[c] }}, now)
}

func (w *world) outcome(c mesh.ClusterName, f func(*mesh.Outcome)) {
	o := w.facts[c].Outcomes[authz]
	f(&o)
	w.facts[c].Outcomes[authz] = o
}

func TestPolicyWhole(t *testing.T) {
	cond := func(t, reason, message string) metav1.Condition {
		return metav1.Condition{Type: t, Status: metav1.ConditionTrue, ObservedGeneration: 7, LastTransitionTime: metav1.NewTime(noon), Reason: reason, Message: message}
	}
	cluster := func(n string) securityv2.ClusterPolicyStatus {
		return securityv2.ClusterPolicyStatus{Cluster: n, State: securityv2.PolicyInForce, Objects: []string{"AuthorizationPolicy billing/accesspolicy-billing-1"}}
	}
	want := securityv2.AccessPolicyStatus{
		Common:                      adminv2.CommonStatus{State: adminv2.State{ObservedGeneration: 7, Approval: adminv2.ApprovalAccepted}},
		NumSelectedDestinationPorts: 2, NumSelectedNamespaces: 3, NumAllowedServiceAccounts: 1, InForce: "3/3", ChangedBy: "jane",
		Conditions: []metav1.Condition{
			cond("Accepted", "Valid", "valid"),
			cond("Enforced", "Enforced", "nothing that is known allows more"),
			cond("Programmed", "InForce", "every cluster that should have it has it"),
			cond("Resolved", "Resolved", "1 client, 1 Service"),
		},
		Clusters:               []securityv2.ClusterPolicyStatus{cluster("c1"), cluster("c2"), cluster("c3")},
		AllowedServiceAccounts: []string{"td/ns/payments/sa/p"},
	}
	got, events := well().next(securityv2.AccessPolicyStatus{}, noon)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	written := report.Event{Type: "Normal", Reason: "PolicyChanged", Message: "Changed by jane (generation 7)"}
	if diff := cmp.Diff([]report.Event{written, {Type: "Normal", Reason: "PolicyInForce", Message: "in force in 3 clusters"}}, brisk(events)); diff != "" {
		t.Error(diff)
	}
	again, events := well().next(got, noon.Add(time.Hour))
	if diff := cmp.Diff(got, again); diff != "" || len(events) > 0 {
		t.Errorf("nothing changed, yet: %v %s", events, diff)
	}
}

// brisk is what people read of Events.
func brisk(events []report.Event) []report.Event {
	var out []report.Event
	for _, e := range events {
		out = append(out, report.Event{Type: e.Type, Reason: e.Reason, Message: e.Message})
	}
	return out
}

// at is what differs from one cluster to another.
type at struct {
	State   securityv2.PolicyState
	Message string
}

type came struct {
	Approval adminv2.ApprovalState
	Message  string
	InForce  string
	C2       at
	Not      map[string]string // conditions that are not True, with reason and message
	Events   []string
}

func TestPolicyStates(t *testing.T) {
	const object = "AuthorizationPolicy billing/accesspolicy-billing-1"
	lease := &mesh.Override{Source: mesh.Ref{Namespace: "gloo-mesh", Name: "incident-1"}, Until: noon.Add(time.Hour), Reason: "incident 1", By: "jane"}
	for name, tc := range map[string]struct {
		change func(*world)
		want   came
	}{
		"a cluster has not applied it": {
			func(w *world) { w.outcome("c2", func(o *mesh.Outcome) { o.Hash = mesh.FingerprintOf(nil) }) },
			came{
				adminv2.ApprovalAccepted, "pending in 1 of 3 clusters: c2", "2/3",
				at{securityv2.PolicyPending, "being applied: " + object},
				map[string]string{"Programmed": "ClustersPending generation 7 is not applied in 1 of 3 clusters: c2"},
				nil,
			},
		},
		"a cluster is away and has it": {
			func(w *world) { w.facts["c2"].Connected = false },
			came{adminv2.ApprovalAccepted, "", "3/3", at{securityv2.PolicyInForce, ""}, nil, nil},
		},
		"a cluster is away and has not": {
			func(w *world) { w.facts["c2"].Connected = false; delete(w.facts["c2"].Outcomes, authz) },
			came{
				adminv2.ApprovalAccepted, "pending in 1 of 3 clusters: c2", "2/3",
				at{securityv2.PolicyPending, "cluster c2 is disconnected; it converges when it returns"},
				map[string]string{"Programmed": "ClustersPending generation 7 is not applied in 1 of 3 clusters: c2"},
				nil,
			},
		},
		"a cluster's inventory is awaited": {
			func(w *world) { w.report.Clusters[1].Waiting = "cluster c2 has not reported its trust domain" },
			came{
				adminv2.ApprovalAccepted, "pending in 1 of 3 clusters: c2", "2/3",
				at{securityv2.PolicyPending, "cluster c2 has not reported its trust domain"},
				map[string]string{"Programmed": "ClustersPending generation 7 is not applied in 1 of 3 clusters: c2"},
				nil,
			},
		},
		"the API server refuses": {
			func(w *world) { w.outcome("c2", func(o *mesh.Outcome) { o.OK, o.Error = false, "no such kind" }) },
			came{
				adminv2.ApprovalFailed, "refused in 1 of 3 clusters: c2 (c2: " + object + ": no such kind)", "2/3",
				at{securityv2.PolicyRejected, object + ": no such kind"},
				map[string]string{"Programmed": "ClustersRejected refused in 1 of 3 clusters: c2"},
				[]string{"Warning PolicyNotTaken c2: " + object + ": no such kind"},
			},
		},
		"istiod refuses": {
			func(w *world) { w.outcome("c2", func(o *mesh.Outcome) { o.Refused = "ZtunnelAccepted is False" }) },
			came{
				adminv2.ApprovalFailed, "refused in 1 of 3 clusters: c2 (c2: " + object + ": ZtunnelAccepted is False)", "2/3",
				at{securityv2.PolicyRejected, object + ": ZtunnelAccepted is False"},
				map[string]string{"Programmed": "ClustersRejected refused in 1 of 3 clusters: c2"},
				[]string{"Warning PolicyNotTaken c2: " + object + ": ZtunnelAccepted is False"},
			},
		},
		"changed, being put back": {
			func(w *world) {
				w.outcome("c2", func(o *mesh.Outcome) { o.Drifted, o.Drift = true, &mesh.Drift{Manager: "kubectl-edit", At: noon} })
			},
			came{
				adminv2.ApprovalAccepted, "", "2/3",
				at{securityv2.PolicyDrifted, object + ": changed by somebody else, being put back"},
				map[string]string{"Programmed": "ClustersDrifted changed by somebody in 1 of 3 clusters: c2"},
				nil,
			},
		},
		"changed and put back": {
			func(w *world) {
				w.outcome("c2", func(o *mesh.Outcome) {
					o.Drift = &mesh.Drift{Manager: "kubectl-edit", At: noon, What: "spec.rules: a rule was added", Corrected: true}
				})
			},
			came{
				adminv2.ApprovalAccepted, "", "3/3",
				at{securityv2.PolicyInForce, ""},
				nil,
				[]string{"Warning DriftCorrected c2: " + object + " was changed by kubectl-edit (spec.rules: a rule was added); put back"},
			},
		},
		"taken over": {
			func(w *world) {
				w.outcome("c2", func(o *mesh.Outcome) { o.TakenOver, o.Drifted, o.OK = true, true, false })
			}, // as the agent says it
			came{
				adminv2.ApprovalWarning, "not enforced in c2: somebody took our owner label off", "2/3",
				at{securityv2.PolicyDrifted, object + ": somebody took our owner label off, so it is theirs and left alone; put the label back, or delete it, to have the policy enforced"},
				map[string]string{"Programmed": "ClustersDrifted changed by somebody in 1 of 3 clusters: c2", "Enforced": "Widened somebody took our owner label off in c2"},
				[]string{"Warning TakenOver c2: " + object + ": somebody took our owner label off, so it is theirs and left alone; put the label back, or delete it, to have the policy enforced"},
			},
		},
		"not enforceable": {
			func(w *world) {
				w.report.Clusters[1].Unenforceable = "namespace billing of cluster c2 is not in the mesh"
			},
			came{
				adminv2.ApprovalWarning, "not enforceable in 1 of 3 clusters: c2 (c2: namespace billing of cluster c2 is not in the mesh)", "2/3",
				at{securityv2.PolicyUnenforceable, "namespace billing of cluster c2 is not in the mesh"},
				map[string]string{"Enforced": "Unenforceable not enforceable in 1 of 3 clusters: c2"},
				[]string{"Warning Unenforceable c2: namespace billing of cluster c2 is not in the mesh"},
			},
		},
		"widened": {
			func(w *world) {
				w.report.Clusters[1].Widened = []string{"AuthorizationPolicy billing/open-all allows any identity"}
			},
			came{
				adminv2.ApprovalWarning, "something else allows more: c2: AuthorizationPolicy billing/open-all allows any identity", "3/3",
				at{securityv2.PolicyInForce, ""},
				map[string]string{"Enforced": "Widened c2: AuthorizationPolicy billing/open-all allows any identity"},
				[]string{"Warning Widened c2: AuthorizationPolicy billing/open-all allows any identity"},
			},
		},
		"overridden, and edited meanwhile": {
			func(w *world) {
				w.report.Clusters[1].Override = lease
				w.outcome("c2", func(o *mesh.Outcome) { o.Held, o.Drifted = true, true })
			},
			came{
				adminv2.ApprovalAccepted, "suspended in 1 of 3 clusters: c2 (c2: suspended until 2026-05-15T13:00:00Z by PolicyOverride gloo-mesh/incident-1)", "2/3",
				at{securityv2.PolicyOverridden, "suspended until 2026-05-15T13:00:00Z by PolicyOverride gloo-mesh/incident-1"},
				map[string]string{"Programmed": "ClustersOverridden suspended in 1 of 3 clusters: c2"},
				[]string{"Warning Overridden c2: suspended by jane until 2026-05-15T13:00:00Z: incident 1 (PolicyOverride incident-1)"},
			},
		},
		"overridden, and the agent does not know yet": {
			func(w *world) {
				w.report.Clusters[1].Override = lease
				w.outcome("c2", func(o *mesh.Outcome) { o.Hash = mesh.FingerprintOf([]byte("before")) })
			},
			came{
				adminv2.ApprovalAccepted, "pending in 1 of 3 clusters: c2", "2/3",
				at{securityv2.PolicyPending, "PolicyOverride incident-1 is not known there yet: " + object},
				map[string]string{"Programmed": "ClustersPending generation 7 is not applied in 1 of 3 clusters: c2"},
				[]string{"Warning Overridden c2: suspended by jane until 2026-05-15T13:00:00Z: incident 1 (PolicyOverride incident-1)"},
			},
		},
		"the worst wins": {
			func(w *world) {
				w.report.Approval, w.report.Message = adminv2.ApprovalWarning, "no client is selected"
				w.outcome("c1", func(o *mesh.Outcome) { o.OK, o.Error = false, "no" })
				w.report.Clusters[1].Unenforceable = "no waypoint"
			},
			came{
				adminv2.ApprovalFailed, "refused in 1 of 3 clusters: c1 (c1: " + object + ": no)", "1/3",
				at{securityv2.PolicyUnenforceable, "no waypoint"},
				map[string]string{"Programmed": "ClustersRejected refused in 1 of 3 clusters: c1", "Enforced": "Unenforceable not enforceable in 1 of 3 clusters: c2"},
				[]string{"Warning PolicyNotTaken c1: " + object + ": no", "Warning Unenforceable c2: no waypoint"},
			},
		},
		"invalid": {
			func(w *world) {
				w.report = mesh.PolicyReport{Approval: adminv2.ApprovalInvalid, Message: "two workspaces claim gloo-mesh", Conditions: []mesh.Condition{
					{Type: "Accepted", Status: mesh.False, Reason: securityv2.ReasonNamespaceConflict, Message: "two workspaces claim gloo-mesh"},
				}}
			},
			came{
				adminv2.ApprovalInvalid, "two workspaces claim gloo-mesh", "",
				at{},
				map[string]string{
					"Accepted": "NamespaceConflict two workspaces claim gloo-mesh", "Programmed": "Invalid an invalid policy is not sent to any cluster",
					"Enforced": "Invalid an invalid policy is enforced nowhere",
				},
				[]string{"Warning NamespaceClaims two workspaces claim gloo-mesh"},
			},
		},
		"dry run": {
			func(w *world) {
				w.policy.Spec.Config = &securityv2.AccessPolicyConfig{AuthzList: []securityv2.Authorization{{DryRun: true}}}
				w.report.Clusters = nil
			},
			came{adminv2.ApprovalAccepted, "", "", at{}, map[string]string{"Enforced": "DryRun every rule is dryRun: nothing is enforced"}, nil},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := well().next(securityv2.AccessPolicyStatus{}, noon)
			w := well()
			tc.change(w)
			st, events := w.next(before, noon)
			got := came{Approval: st.Common.State.Approval, Message: st.Common.State.Message, InForce: st.InForce}
			for _, c := range st.Clusters {
				if c.Cluster == "c2" {
					got.C2 = at{c.State, c.Message}
				}
			}
			for _, c := range st.Conditions {
				if c.Status != metav1.ConditionTrue {
					if got.Not == nil {
						got.Not = map[string]string{}
					}
					got.Not[c.Type] = c.Reason + " " + c.Message
				}
			}
			for _, e := range events {
				got.Events = append(got.Events, fmt.Sprintf("%s %s %s", e.Type, e.Reason, e.Message))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			after, events := w.next(st, noon.Add(time.Hour))
			if diff := cmp.Diff(st, after); diff != "" || len(events) > 0 {
				t.Errorf("nothing changed since, yet: %v %s", events, diff)
			}
		})
	}
}

func TestPolicyBeforeTranslation(t *testing.T) {
	in := report.PolicyInput{Policy: &mesh.AccessPolicy{Source: billing, Generation: 1}}
	st, _ := report.NextPolicy(securityv2.AccessPolicyStatus{}, in, noon)
	if st.Common.State.Approval != adminv2.ApprovalPending {
		t.Errorf("%+v", st)
	}
	known, _ := well().next(securityv2.AccessPolicyStatus{}, noon)
	if st, _ = report.NextPolicy(known, in, noon); cmp.Diff(known, st) != "" {
		t.Error("a new server that has not translated yet must not take back what the old one said")
	}
}

// The agent forgets a drift when it starts again, the status does not; and an override that ends is told once.
func TestPolicyRemembers(t *testing.T) {
	w := well()
	w.outcome("c2", func(o *mesh.Outcome) { o.Drift = &mesh.Drift{Manager: "kubectl", At: noon, Corrected: true} })
	w.report.Clusters[0].Override = &mesh.Override{Source: mesh.Ref{Name: "o"}, Until: noon}
	before, _ := w.next(securityv2.AccessPolicyStatus{}, noon)
	after, events := well().next(before, noon)
	if d := after.Clusters[1].LastDrift; d == nil || d.Manager != "kubectl" {
		t.Errorf("last drift: %v", d)
	}
	older := well()
	older.outcome("c2", func(o *mesh.Outcome) {
		o.Drift = &mesh.Drift{Manager: "older", At: noon.Add(-time.Hour), Corrected: true}
	})
	if after, _ := older.next(before, noon); after.Clusters[1].LastDrift.Manager != "kubectl" {
		t.Errorf("an older drift took the place of the last: %+v", after.Clusters[1].LastDrift)
	}
	want := []report.Event{{Type: "Normal", Reason: "OverrideEnded", Message: "c1: PolicyOverride o has ended"}, {Type: "Normal", Reason: "PolicyInForce", Message: "in force in 3 clusters"}}
	if diff := cmp.Diff(want, brisk(events)); diff != "" {
		t.Error(diff)
	}
}

// A new server has not heard of c2 and c3: c2 is away. What status said of them must not vanish as if the policy had left them.
func TestPolicyInClustersUnheardOf(t *testing.T) {
	before, _ := well().next(securityv2.AccessPolicyStatus{}, noon)
	w := well()
	w.report.Clusters = w.report.Clusters[:1]
	w.facts["c2"], w.facts["c3"] = &report.ClusterFacts{Unknown: true}, &report.ClusterFacts{Unknown: true, Connected: true}
	st, events := w.next(before, noon)
	var got []at
	for _, c := range st.Clusters {
		got = append(got, at{c.State, c.Message})
	}
	want := []at{
		{securityv2.PolicyInForce, ""},
		{securityv2.PolicyPending, "cluster c2 is disconnected; it converges when it returns"},
		{securityv2.PolicyPending, "cluster c3 has not reported since the management server started; it keeps what it has"},
	}
	if diff := cmp.Diff(want, got); diff != "" || st.InForce != "1/3" || len(events) != 0 {
		t.Errorf("%s %s %v", st.InForce, diff, events)
	}
	w.facts["c2"].Unknown = false // it has reported: the policy has no destination there any more
	if st, _ = w.next(st, noon); st.InForce != "1/2" {
		t.Errorf("%s", st.InForce)
	}
}

func TestPolicyListsAreBounded(t *testing.T) {
	w := well()
	w.report.Clusters = nil
	for i := range 1000 {
		c := mesh.ClusterName(fmt.Sprintf("c%04d", i))
		w.report.Clusters = append(w.report.Clusters, mesh.PolicyClusterReport{Cluster: c, Objects: make([]mesh.Ref, 50), Widened: make([]string, 50)})
		w.report.ServiceAccounts = append(w.report.ServiceAccounts, mesh.Principal(c))
		w.facts[c] = &report.ClusterFacts{Connected: true}
	}
	w.report.Clusters[900].Unenforceable = "no"
	st, _ := w.next(securityv2.AccessPolicyStatus{}, noon)
	last := st.Clusters[len(st.Clusters)-1]
	if len(st.Clusters) != 200 || last.State != securityv2.PolicyUnenforceable || len(last.Objects) != 10 || len(last.Widened) != 10 || len(st.AllowedServiceAccounts) != 100 {
		t.Errorf("%d clusters, last %v, %d accounts", len(st.Clusters), last, len(st.AllowedServiceAccounts))
	}
}
