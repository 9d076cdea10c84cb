package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// The lists in an AccessPolicy's status are bounded: an object has to fit into etcd.
const (
	maxClusters        = 200
	maxServiceAccounts = 100
	maxObjects         = 10
)

// ClusterFacts is what is known of one cluster beside what translation concluded.
type ClusterFacts struct {
	Connected bool
	// Published: Desired has been sent.
	Published bool
	// Unknown: it is registered and has been connected, but has not reported to this server yet.
	Unknown  bool
	Desired  mesh.Objects
	Outcomes map[mesh.Ref]mesh.Outcome
}

// PolicyInput is everything that is known of one AccessPolicy.
type PolicyInput struct {
	Policy *mesh.AccessPolicy
	// Report is nil before the first translation.
	Report *mesh.PolicyReport
	// Facts of a cluster.
	Facts func(mesh.ClusterName) ClusterFacts
}

// standing is how a policy stands in one cluster, and what else the Events want to know.
type standing struct {
	securityv2.ClusterPolicyStatus
	taken string // the first object that was taken over
}

// NextPolicy is the status that says PolicyInput, given the one before, and the Events that go with the change.
func NextPolicy(old securityv2.AccessPolicyStatus, in PolicyInput, now time.Time) (securityv2.AccessPolicyStatus, []Event) {
	p := in.Policy
	st := securityv2.AccessPolicyStatus{ChangedBy: p.ChangedBy}
	st.Common.WorkspaceConditions = old.Common.WorkspaceConditions
	if in.Report == nil {
		st = *old.DeepCopy()
		if st.Common.State.Approval == "" {
			st.Common.State = adminv2.State{ObservedGeneration: p.Generation, Approval: adminv2.ApprovalPending, Message: "not translated yet: the management server waits for the clusters' inventories"}
		}
		return st, nil
	}
	r := in.Report
	st.Workspace = r.Workspace
	st.NumSelectedDestinationPorts, st.NumSelectedNamespaces, st.NumAllowedServiceAccounts = count(r.DestinationPorts), count(r.Namespaces), count(len(r.ServiceAccounts))
	for _, a := range r.ServiceAccounts[:min(len(r.ServiceAccounts), maxServiceAccounts)] {
		st.AllowedServiceAccounts = append(st.AllowedServiceAccounts, string(a))
	}
	all := make([]standing, len(r.Clusters))
	for i := range r.Clusters {
		all[i] = stand(&r.Clusters[i], in.Facts(r.Clusters[i].Cluster), clusterOf(&old, r.Clusters[i].Cluster))
	}
	all = append(all, unheard(&old, r, in.Facts)...)
	sums := sum(all)
	if len(all) > 0 {
		st.InForce = fmt.Sprintf("%d/%d", sums.n[securityv2.PolicyInForce], len(all))
	}
	st.Conditions = stamped(old.Conditions, policyConditions(p, r, sums), p.Generation, now)
	st.Common.State = policyState(p, r, sums)
	st.Clusters = listed(all)
	return st, policyEvents(&old, &st, all)
}

// unheard are the clusters that had the policy, and of which a new server does not know yet whether it concerns them still: they keep what they have.
func unheard(old *securityv2.AccessPolicyStatus, r *mesh.PolicyReport, facts func(mesh.ClusterName) ClusterFacts) []standing {
	if r.Approval == adminv2.ApprovalInvalid {
		return nil
	}
	var out []standing
	for i := range old.Clusters {
		s := standing{ClusterPolicyStatus: *old.Clusters[i].DeepCopy()}
		c := mesh.ClusterName(s.Cluster)
		f := facts(c)
		if !f.Unknown || slices.ContainsFunc(r.Clusters, func(x mesh.PolicyClusterReport) bool { return x.Cluster == c }) {
			continue
		}
		s.State, s.Message, s.Override = securityv2.PolicyPending, fmt.Sprintf("cluster %s has not reported since the management server started; it keeps what it has", c), nil
		if !f.Connected {
			s.Message = disconnected(c)
		}
		out = append(out, s)
	}
	return out
}

func disconnected(c mesh.ClusterName) string {
	return fmt.Sprintf("cluster %s is disconnected; it converges when it returns", c)
}

func count(n int) uint32 { return uint32(max(n, 0)) } //nolint:gosec // counts of things in memory

func clusterOf(s *securityv2.AccessPolicyStatus, c mesh.ClusterName) *securityv2.ClusterPolicyStatus {
	i, ok := slices.BinarySearchFunc(s.Clusters, string(c), func(e securityv2.ClusterPolicyStatus, n string) int { return strings.Compare(e.Cluster, n) })
	if !ok {
		return nil
	}
	return &s.Clusters[i]
}

// stand says how a policy stands in one cluster.
func stand(r *mesh.PolicyClusterReport, f ClusterFacts, old *securityv2.ClusterPolicyStatus) standing {
	s := standing{ClusterPolicyStatus: securityv2.ClusterPolicyStatus{Cluster: string(r.Cluster), Widened: bounded(r.Widened, maxObjects)}}
	if old != nil {
		s.LastDrift = old.LastDrift
	}
	for _, ref := range r.Objects[:min(len(r.Objects), maxObjects)] {
		s.Objects = append(s.Objects, name(ref))
	}
	var pending, refused, drifted, taken []string
	held := false
	for _, ref := range r.Objects {
		want, wanted := f.Desired.Get(ref)
		o, known := f.Outcomes[ref]
		if d := o.Drift; d != nil {
			s.LastDrift = laterDrift(s.LastDrift, ref, d)
		}
		held = held || o.Held
		switch {
		case !wanted || !f.Published || !known || o.Hash != want.Hash:
			pending = append(pending, name(ref))
		case o.TakenOver: // not OK either
			taken = append(taken, name(ref))
		case !o.OK:
			refused = append(refused, name(ref)+": "+o.Error)
		case o.Refused != "":
			refused = append(refused, name(ref)+": "+o.Refused)
		case o.Drifted:
			drifted = append(drifted, name(ref))
		}
	}
	if r.Override != nil {
		s.Override = &securityv2.OverrideStatus{Name: r.Override.Source.Name, By: r.Override.By, Reason: r.Override.Reason, Until: metav1.NewTime(r.Override.Until.UTC())}
	}
	switch {
	case r.Override != nil && len(pending) > 0: // until the agent knows, it puts edits back
		s.State, s.Message = securityv2.PolicyPending, "PolicyOverride "+r.Override.Source.Name+" is not known there yet: "+few(pending)
		if !f.Connected {
			s.Message = disconnected(r.Cluster)
		}
	case r.Override != nil:
		s.State = securityv2.PolicyOverridden
		s.Message = fmt.Sprintf("suspended until %s by PolicyOverride %s/%s", r.Override.Until.UTC().Format(time.RFC3339), r.Override.Source.Namespace, r.Override.Source.Name)
	case r.Unenforceable != "":
		s.State, s.Message = securityv2.PolicyUnenforceable, r.Unenforceable
	case len(refused) > 0:
		s.State, s.Message = securityv2.PolicyRejected, few(refused)
	case len(taken) > 0:
		s.State, s.taken = securityv2.PolicyDrifted, taken[0]
		s.Message = few(taken) + ": somebody took our owner label off, so it is theirs and left alone; put the label back, or delete it, to have the policy enforced"
	case len(drifted) > 0:
		s.State, s.Message = securityv2.PolicyDrifted, few(drifted)+": changed by somebody else, being put back"
	case (r.Waiting != "" || len(pending) > 0) && !f.Connected:
		s.State, s.Message = securityv2.PolicyPending, disconnected(r.Cluster)
	case r.Waiting != "":
		s.State, s.Message = securityv2.PolicyPending, r.Waiting
	case len(pending) > 0:
		s.State, s.Message = securityv2.PolicyPending, "being applied: "+few(pending)
	case held:
		s.State, s.Message = securityv2.PolicyPending, "an override has ended; being put back"
	default:
		s.State = securityv2.PolicyInForce
	}
	return s
}

func bounded(l []string, n int) []string {
	if len(l) == 0 {
		return nil
	}
	return slices.Clone(l[:min(len(l), n)])
}

// laterDrift is the later of what status says and what the agent remembers; an agent that started again remembers nothing, status does.
func laterDrift(old *securityv2.DriftStatus, ref mesh.Ref, d *mesh.Drift) *securityv2.DriftStatus {
	next := &securityv2.DriftStatus{Object: name(ref), Manager: d.Manager, What: d.What, Corrected: d.Corrected}
	if !d.At.IsZero() {
		next.At = stamp(d.At)
	}
	if old != nil && old.At != nil && (next.At == nil || next.At.Before(old.At)) {
		return old
	}
	return next
}

// badness orders the states as their constants are: what somebody who relies on the policy must know first comes last.
func badness(s securityv2.PolicyState) int {
	return slices.Index([]securityv2.PolicyState{
		securityv2.PolicyInForce, securityv2.PolicyPending, securityv2.PolicyOverridden, securityv2.PolicyDrifted, securityv2.PolicyRejected, securityv2.PolicyUnenforceable,
	}, s)
}

// listed are the clusters by name; when there are too many, the worst.
func listed(all []standing) []securityv2.ClusterPolicyStatus {
	if len(all) > maxClusters {
		all = slices.Clone(all)
		slices.SortFunc(all, func(a, b standing) int {
			return cmp.Or(badness(b.State)-badness(a.State), len(b.Widened)-len(a.Widened), strings.Compare(a.Cluster, b.Cluster))
		})
		all = all[:maxClusters]
	}
	var out []securityv2.ClusterPolicyStatus
	for _, s := range all {
		out = append(out, s.ClusterPolicyStatus)
	}
	slices.SortFunc(out, func(a, b securityv2.ClusterPolicyStatus) int { return strings.Compare(a.Cluster, b.Cluster) })
	return out
}

// sums are the clusters by state.
type sums struct {
	all     int
	n       map[securityv2.PolicyState]int
	names   map[securityv2.PolicyState][]string // names, with the message where it says more
	widened []string
	taken   []string
	first   map[securityv2.PolicyState]string // "cluster: message" of the first
}

func sum(all []standing) sums {
	s := sums{all: len(all), n: map[securityv2.PolicyState]int{}, names: map[securityv2.PolicyState][]string{}, first: map[securityv2.PolicyState]string{}}
	for _, c := range all {
		s.n[c.State]++
		s.names[c.State] = append(s.names[c.State], c.Cluster)
		if s.first[c.State] == "" {
			s.first[c.State] = c.Cluster + ": " + c.Message
		}
		for _, w := range c.Widened {
			s.widened = append(s.widened, c.Cluster+": "+w)
		}
		if c.taken != "" {
			s.taken = append(s.taken, c.Cluster)
		}
	}
	return s
}

// of says "2 of 14 clusters: a, b".
func (s sums) of(state securityv2.PolicyState) string {
	return fmt.Sprintf("%d of %d clusters: %s", s.n[state], s.all, fewNames(s.names[state]))
}

func fewNames(l []string) string {
	if len(l) <= 5 {
		return strings.Join(l, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(l[:5], ", "), len(l)-5)
}

// policyState is INVALID, FAILED (a cluster refused), WARNING, or ACCEPTED, also while clusters have not applied it yet.
func policyState(p *mesh.AccessPolicy, r *mesh.PolicyReport, s sums) adminv2.State {
	out := adminv2.State{ObservedGeneration: p.Generation, Approval: r.Approval, Message: r.Message}
	var more []string
	if out.Message != "" {
		more = append(more, out.Message)
	}
	say := func(state securityv2.PolicyState, what string) bool {
		if s.n[state] == 0 {
			return false
		}
		msg := what + " in " + s.of(state)
		if m := s.first[state]; state != securityv2.PolicyPending {
			msg += " (" + m + ")"
		}
		more = append(more, msg)
		return true
	}
	switch {
	case r.Approval == adminv2.ApprovalInvalid:
		return out
	case say(securityv2.PolicyRejected, "refused"):
		out.Approval = adminv2.ApprovalFailed
		more = more[len(more)-1:]
	case len(s.taken) > 0:
		out.Approval = adminv2.ApprovalWarning
		more = append(more, "not enforced in "+fewNames(s.taken)+": somebody took our owner label off")
	case say(securityv2.PolicyUnenforceable, "not enforceable"):
		out.Approval = adminv2.ApprovalWarning
	case len(s.widened) > 0:
		out.Approval = adminv2.ApprovalWarning
		more = append(more, "something else allows more: "+few(s.widened))
	}
	if out.Approval != adminv2.ApprovalFailed {
		say(securityv2.PolicyOverridden, "suspended")
		say(securityv2.PolicyPending, "pending")
	}
	out.Message = strings.Join(more, "; ")
	return out
}

// policyConditions are translation's, and Programmed and Enforced.
func policyConditions(p *mesh.AccessPolicy, r *mesh.PolicyReport, s sums) []mesh.Condition {
	out := slices.Clone(r.Conditions)
	has := func(t string) bool {
		return slices.ContainsFunc(r.Conditions, func(c mesh.Condition) bool { return c.Type == t })
	}
	if !has(securityv2.ConditionProgrammed) {
		out = append(out, policyProgrammed(p, r, s))
	}
	if !has(securityv2.ConditionEnforced) {
		out = append(out, policyEnforced(p, r, s))
	}
	return out
}

func policyProgrammed(p *mesh.AccessPolicy, r *mesh.PolicyReport, s sums) mesh.Condition {
	c := mesh.Condition{Type: securityv2.ConditionProgrammed, Status: mesh.False}
	switch {
	case r.Approval == adminv2.ApprovalInvalid:
		c.Reason, c.Message = securityv2.ReasonInvalid, "an invalid policy is not sent to any cluster"
	case s.n[securityv2.PolicyRejected] > 0:
		c.Reason, c.Message = securityv2.ReasonClustersRejected, "refused in "+s.of(securityv2.PolicyRejected)
	case s.n[securityv2.PolicyDrifted] > 0:
		c.Reason, c.Message = securityv2.ReasonClustersDrifted, "changed by somebody in "+s.of(securityv2.PolicyDrifted)
	case s.n[securityv2.PolicyPending] > 0:
		c.Reason, c.Message = securityv2.ReasonClustersPending, fmt.Sprintf("generation %d is not applied in %s", p.Generation, s.of(securityv2.PolicyPending))
	case s.n[securityv2.PolicyOverridden] > 0:
		c.Reason, c.Message = securityv2.ReasonClustersOverridden, "suspended in "+s.of(securityv2.PolicyOverridden)
	case s.all == 0:
		c.Status, c.Reason, c.Message = mesh.True, securityv2.ReasonNothingToApply, "no cluster has anything to apply"
	default:
		c.Status, c.Reason, c.Message = mesh.True, securityv2.ReasonInForce, "every cluster that should have it has it"
	}
	return c
}

func policyEnforced(p *mesh.AccessPolicy, r *mesh.PolicyReport, s sums) mesh.Condition {
	c := mesh.Condition{Type: securityv2.ConditionEnforced, Status: mesh.False}
	config := p.Spec.Config
	switch {
	case r.Approval == adminv2.ApprovalInvalid:
		c.Reason, c.Message = securityv2.ReasonInvalid, "an invalid policy is enforced nowhere"
	case config != nil && config.EnforcementLayers != nil && config.EnforcementLayers.Mesh != nil && !*config.EnforcementLayers.Mesh:
		c.Reason, c.Message = securityv2.ReasonEnforcementLayerAbsent, "config.enforcementLayers.mesh is false: nothing enforces it"
	case allDryRun(config):
		c.Reason, c.Message = securityv2.ReasonDryRun, "every rule is dryRun: nothing is enforced"
	case s.n[securityv2.PolicyUnenforceable] > 0:
		c.Reason, c.Message = securityv2.ReasonUnenforceable, "not enforceable in "+s.of(securityv2.PolicyUnenforceable)
	case len(s.widened) > 0:
		c.Reason, c.Message = securityv2.ReasonWidened, few(s.widened)
	case len(s.taken) > 0:
		c.Reason, c.Message = securityv2.ReasonWidened, "somebody took our owner label off in "+fewNames(s.taken)
	default:
		c.Status, c.Reason, c.Message = mesh.True, securityv2.ReasonEnforced, "nothing that is known allows more"
	}
	return c
}

// allDryRun: there are rules, all are dry run, and nothing else is asked for.
func allDryRun(c *securityv2.AccessPolicyConfig) bool {
	if c == nil || c.Authn != nil {
		return false
	}
	rules := c.AuthzList
	if len(rules) == 0 && c.Authz != nil {
		rules = []securityv2.Authorization{*c.Authz}
	}
	return len(rules) > 0 && !slices.ContainsFunc(rules, func(a securityv2.Authorization) bool { return !a.DryRun })
}

// stamped puts conditions into the API's shape; the time is that of the last change of status.
func stamped(old []metav1.Condition, all []mesh.Condition, generation int64, now time.Time) []metav1.Condition {
	out := make([]metav1.Condition, 0, len(all))
	for _, c := range all {
		n := metav1.Condition{
			Type: c.Type, Status: metav1.ConditionStatus(c.Status), Reason: c.Reason, Message: c.Message,
			ObservedGeneration: generation, LastTransitionTime: *stamp(now),
		}
		if i := slices.IndexFunc(old, func(o metav1.Condition) bool { return o.Type == c.Type }); i >= 0 && old[i].Status == n.Status {
			n.LastTransitionTime = old[i].LastTransitionTime
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) })
	return out
}
