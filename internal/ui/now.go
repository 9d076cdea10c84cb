package ui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/topology"
)

// Severity orders problems.
type Severity string

// Severities: traffic fails or trust ends; something is not as it is wanted; worth knowing.
const (
	Critical Severity = "critical"
	Warning  Severity = "warning"
	Note     Severity = "note"
)

// Problem is one thing that is wrong, in a sentence.
type Problem struct {
	Severity Severity `json:"severity"`
	// What it is about, for people: "billing @ cluster-2".
	What string `json:"what"`
	Text string `json:"text"`
	// Since is when it began; absent: not known.
	Since *time.Time `json:"since,omitempty"`
	// Page of the UI that tells more.
	Page string `json:"page"`
	// Suspect is the last change before Since of what could have caused it.
	Suspect *Change `json:"suspect,omitempty"`
}

// Change is an act that may explain what happened after it.
type Change struct {
	N      int64     `json:"n"` // its place in the audit log
	At     time.Time `json:"at"`
	Kind   string    `json:"kind"` // policy, rotation, join, leave, drift
	Text   string    `json:"text"`
	By     string    `json:"by,omitempty"`
	Object string    `json:"object,omitempty"`
}

// Now is the first page.
type Now struct {
	At time.Time `json:"at"`
	// Verdict is one sentence.
	Verdict  string    `json:"verdict"`
	Healthy  bool      `json:"healthy"`
	Problems []Problem `json:"problems"` // the worst first, at most maxProblems
	More     int       `json:"more,omitempty"`
	Clusters []Strip   `json:"clusters"`
	Changes  []Change  `json:"changes"`
	// Expiry is the certificate that ends first.
	Expiry *Expiry         `json:"expiry,omitempty"`
	Links  []topology.Link `json:"links,omitempty"`
	// Rotation is the phase of a rotation under way.
	Rotation string `json:"rotation,omitempty"`
	// Telemetry says whether anything is known of traffic.
	Telemetry bool `json:"telemetry"`
	// Unknown says what could not be read.
	Unknown []string `json:"unknown,omitempty"`
}

// Strip is a cluster in one line.
type Strip struct {
	Name       string     `json:"name"`
	Connection string     `json:"connection"`
	Heartbeat  *time.Time `json:"heartbeat,omitempty"`
	Stale      bool       `json:"stale"`
}

// Expiry is a certificate and its end.
type Expiry struct {
	What  string    `json:"what"`
	Until time.Time `json:"until"`
}

const (
	maxProblems = 7
	maxChanges  = 20
	// staleAfter is without a heartbeat: three of the reports that are made once a minute while nothing happens.
	staleAfter = 3 * time.Minute
	// suspicious is how long before a problem a change may have been to be suspected of it.
	suspicious = 30 * time.Minute
	// failing is the share of requests from which a service is said to fail, quiet the rate below which nothing is said.
	failing, quiet = 0.05, 0.1
)

// soon is when an end of trust is a problem.
const soonRoot, soonIntermediate = 30 * 24 * time.Hour, 7 * 24 * time.Hour

// nowOf says what is wrong. view may be nil.
func nowOf(w *World, view *topology.View, changes []Change, at time.Time) Now {
	n := Now{At: at, Clusters: []Strip{}, Changes: changes, Telemetry: view != nil && len(view.Clusters) > 0}
	var problems []Problem
	for i := range w.Clusters {
		k := &w.Clusters[i]
		strip := stripOf(k, at)
		n.Clusters = append(n.Clusters, strip)
		problems = append(problems, clusterProblems(k, strip, at)...)
		if c := k.Status.CaStatus; c != nil && c.Intermediate != nil {
			n.expires("intermediate of "+k.Name, c.Intermediate.NotAfter)
		}
	}
	for i := range w.Trust {
		p := &w.Trust[i]
		if p.Status.Phase != "" && p.Status.Phase != adminv2.PhaseSteady {
			n.Rotation = fmt.Sprintf("%s: %s", p.Name, p.Status.Phase)
		}
		for _, r := range p.Status.Roots {
			n.expires("root "+r.Subject, r.NotAfter)
		}
		problems = append(problems, trustProblems(p, at)...)
	}
	for i := range w.Policies {
		problems = append(problems, policyProblems(&w.Policies[i])...)
	}
	for i := range w.Segments {
		problems = append(problems, segmentProblems(&w.Segments[i])...)
	}
	if view != nil {
		problems = append(problems, trafficProblems(view)...)
		n.Links = view.Links
	}
	for i := range problems {
		if problems[i].Severity == Critical && problems[i].Since == nil { // traffic
			problems[i].Suspect = suspect(changes, at)
		}
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return cmp.Compare(rank(a.Severity), rank(b.Severity)) })
	n.Problems, n.More = problems, max(0, len(problems)-maxProblems)
	n.Problems = append([]Problem{}, problems[:len(problems)-n.More]...)
	n.Verdict, n.Healthy = verdict(&n, problems)
	return n
}

func rank(s Severity) int { return slices.Index([]Severity{Critical, Warning, Note}, s) }

func (n *Now) expires(what string, until *metav1.Time) {
	if until != nil && (n.Expiry == nil || until.Time.Before(n.Expiry.Until)) {
		n.Expiry = &Expiry{what, until.UTC()}
	}
}

// verdict is what somebody who was woken up reads first.
func verdict(n *Now, problems []Problem) (text string, healthy bool) {
	fresh := 0
	for _, c := range n.Clusters {
		if !c.Stale {
			fresh++
		}
	}
	of := fmt.Sprintf("%d of %d clusters fresh", fresh, len(n.Clusters))
	switch {
	case len(n.Clusters) == 0:
		return "no cluster is registered yet: meshctl cluster register", true
	case len(problems) == 0:
		return "nothing is wrong that this server can see; " + of, true
	case rank(problems[0].Severity) > 0:
		return fmt.Sprintf("%s, none of which is said to fail traffic; %s", count(len(problems), "thing to look at", "things to look at"), of), true
	}
	first := problems[0].What + ": " + problems[0].Text
	if len(problems) > 1 {
		first += fmt.Sprintf("; and %d more", len(problems)-1)
	}
	return first + "; " + of, false
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func stripOf(k *adminv2.KubernetesCluster, at time.Time) Strip {
	s := Strip{Name: k.Name, Connection: cmp.Or(string(k.Status.Connection), "Pending"), Stale: k.Status.Connection != adminv2.ConnectionConnected}
	if h := k.Status.LastHeartbeat; h != nil {
		t := h.UTC()
		s.Heartbeat, s.Stale = &t, s.Stale || at.Sub(t) > staleAfter
	}
	return s
}

func clusterProblems(k *adminv2.KubernetesCluster, s Strip, at time.Time) []Problem {
	var out []Problem
	page := "/clusters/" + k.Name
	if s.Stale {
		p := Problem{Severity: Warning, What: k.Name, Page: page, Since: s.Heartbeat, Text: "its agent has not connected yet"}
		if s.Heartbeat != nil {
			p.Text = "its agent is away since " + s.Heartbeat.Format("15:04 MST") + ": what is shown of it is from then, and its data plane goes on with what it had"
		}
		out = append(out, p)
	}
	for _, c := range k.Status.Conditions {
		if c.Status == metav1.ConditionFalse && c.Type != "Connected" {
			since := c.LastTransitionTime.UTC()
			out = append(out, Problem{Severity: Warning, What: k.Name, Page: page, Since: &since, Text: sentence(c.Type, c.Message)})
		}
	}
	if k.Status.ClockSkew != "" {
		out = append(out, Problem{Severity: Warning, What: k.Name, Page: page, Text: "its clock is " + k.Status.ClockSkew + ": certificates and tokens may be refused"})
	}
	for _, p := range k.Status.Peers {
		if p.Reachable == "False" {
			out = append(out, Problem{Severity: Warning, What: k.Name + " to " + p.Cluster, Page: page, Text: "the gateway " + p.Address + " does not answer: " + p.Message})
		}
	}
	if c := k.Status.CaStatus; c != nil && c.Intermediate != nil && c.Intermediate.NotAfter != nil {
		if left := c.Intermediate.NotAfter.Sub(at); left < soonIntermediate {
			out = append(out, Problem{Severity: ending(left), What: k.Name, Page: "/trust", Text: "its intermediate " + ends(left)})
		}
	}
	return out
}

func sentence(kind, message string) string {
	if message == "" {
		return kind + " is false"
	}
	return message
}

func ending(left time.Duration) Severity {
	if left < 24*time.Hour {
		return Critical
	}
	return Warning
}

func ends(left time.Duration) string {
	switch {
	case left <= 0:
		return "has ended"
	case left < 48*time.Hour:
		return fmt.Sprintf("ends in %d h", int(left.Hours()))
	default:
		return fmt.Sprintf("ends in %d days", int(left.Hours()/24))
	}
}

func trustProblems(p *adminv2.RootTrustPolicy, at time.Time) []Problem {
	var out []Problem
	switch p.Status.State {
	case adminv2.ApprovalFailed:
		out = append(out, Problem{Severity: Critical, What: "trust " + p.Name, Page: "/trust", Text: p.Status.Message})
	case adminv2.ApprovalWarning:
		out = append(out, Problem{Severity: Warning, What: "trust " + p.Name, Page: "/trust", Text: p.Status.Message})
	case adminv2.ApprovalPending:
		out = append(out, Problem{Severity: Note, What: "trust " + p.Name, Page: "/trust", Text: p.Status.Message})
	default:
	}
	for _, r := range p.Status.Roots {
		if r.NotAfter != nil && r.NotAfter.Sub(at) < soonRoot {
			out = append(out, Problem{Severity: ending(r.NotAfter.Sub(at)), What: "root " + r.Subject, Page: "/trust", Text: ends(r.NotAfter.Sub(at)) + ": meshctl trust rotate"})
		}
	}
	return out
}

func policyProblems(p *securityv2.AccessPolicy) []Problem {
	states := map[securityv2.PolicyState][]string{}
	var why string
	var since *time.Time
	for _, c := range p.Status.Clusters {
		if c.State == securityv2.PolicyInForce {
			continue
		}
		states[c.State] = append(states[c.State], c.Cluster)
		why = cmp.Or(why, c.Message)
		if c.LastDrift != nil && c.LastDrift.At != nil && since == nil {
			t := c.LastDrift.At.UTC()
			since = &t
		}
	}
	if len(states) == 0 {
		return nil
	}
	var parts []string
	worst := Note
	for s, clusters := range states {
		parts = append(parts, fmt.Sprintf("%s in %s", s, few(clusters)))
		if s != securityv2.PolicyPending {
			worst = Warning
		}
	}
	slices.Sort(parts)
	text := strings.Join(parts, ", ")
	if why != "" {
		text += ": " + why
	}
	return []Problem{{Severity: worst, What: "policy " + p.Namespace + "/" + p.Name, Page: "/policies/" + p.Namespace + "/" + p.Name, Text: text, Since: since}}
}

func segmentProblems(g *networkingv2alpha1.Segment) []Problem {
	for _, c := range g.Status.Conditions {
		if c.Status == metav1.ConditionFalse {
			since := c.LastTransitionTime.UTC()
			return []Problem{{Severity: Warning, What: "segment " + g.Namespace + "/" + g.Name, Page: "/segments?q=" + g.Name, Text: sentence(c.Type, c.Message), Since: &since}}
		}
	}
	return nil
}

func few(names []string) string {
	const shown = 3
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

// trafficProblems are services that fail, and callers that are refused.
func trafficProblems(v *topology.View) []Problem {
	var out []Problem
	type sum struct {
		rates   topology.Rates
		callers map[topology.Party]bool
		p99     float64
		first   *topology.Edge
	}
	services := map[topology.Party]*sum{}
	for i := range v.Edges {
		e := &v.Edges[i]
		page := "/map?level=service&edge=" + e.ID()
		if e.Denied > 0 {
			text := fmt.Sprintf("%.2g connections a second are refused", e.Denied)
			if e.Decision != nil && e.Decision.Text != "" {
				text += ": " + e.Decision.Text
			}
			out = append(out, Problem{Severity: Warning, What: e.From.Service + " @ " + string(e.From.Cluster) + " to " + e.To.Service + " @ " + string(e.To.Cluster), Page: page, Text: text})
		}
		if e.Stale {
			continue
		}
		s := services[e.To]
		if s == nil {
			s = &sum{callers: map[topology.Party]bool{}, first: e}
			services[e.To] = s
		}
		s.rates = topology.Rates{
			Success: s.rates.Success + e.Rates.Success, ClientError: s.rates.ClientError + e.Rates.ClientError,
			ServerError: s.rates.ServerError + e.Rates.ServerError, NoResponse: s.rates.NoResponse + e.Rates.NoResponse,
		}
		if e.Server != nil {
			s.p99 = max(s.p99, e.Server.P99.Value)
		}
		s.callers[e.From] = true
	}
	for to, s := range services {
		if s.rates.Total() < quiet || s.rates.ErrorRatio() < failing {
			continue
		}
		text := fmt.Sprintf("%.1f%% of %.3g requests a second fail, %s", 100*s.rates.ErrorRatio(), s.rates.Total(), count(len(s.callers), "caller", "callers"))
		if s.p99 > 0 {
			text += fmt.Sprintf(", p99 ~%.3g ms", s.p99)
		}
		out = append(out, Problem{Severity: Critical, What: to.Service + " @ " + string(to.Cluster), Page: "/map?level=neighbourhood&focus=" + to.ID(), Text: text})
	}
	slices.SortFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(rank(a.Severity), rank(b.Severity)), strings.Compare(a.What, b.What))
	})
	return out
}

// suspect is the last change before traffic was seen to fail, not long before.
func suspect(changes []Change, at time.Time) *Change {
	for i := range changes { // the latest first
		if c := &changes[i]; at.Sub(c.At) < suspicious && c.Kind != "drift" {
			return c
		}
	}
	return nil
}

// changeOf makes a change of a record; ok is false for what explains nothing.
func changeOf(r *audit.Record) (c Change, ok bool) {
	c = Change{N: r.N, At: r.At, By: r.User, Object: r.Object}
	switch r.Act {
	case audit.Admitted:
		if r.DryRun {
			return c, false
		}
		c.Kind, c.Text = "policy", strings.ToLower(r.Operation)+" "+r.Object
		if kind, _, _ := strings.Cut(r.Object, " "); kind == "RotationRequest" || kind == "RootTrustPolicy" {
			c.Kind = "rotation"
		}
	case audit.ClusterRegistered:
		c.Kind, c.Text = "join", "cluster "+r.Cluster+" registered"
	case audit.TrustChanged:
		c.Kind, c.Text = "rotation", cmp.Or(r.Detail, r.Object)
	case audit.DriftCorrected:
		c.Kind, c.Text = "drift", cmp.Or(r.Detail, r.Object)
	default:
		return c, false
	}
	return c, true
}
