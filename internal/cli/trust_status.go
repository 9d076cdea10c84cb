package cli

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

func (t *trustVerbs) statusCommand() *cobra.Command {
	var only string
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Every certificate of the fleet, sorted by what ends first, and how far a rotation is",
		Long: `Says for every RootTrustPolicy in which phase it is and what it waits for, then lists every certificate: roots, what istiods sign with, the latest certificate of
each kind of workload, and the relay's own, with the time left and who issued it; then what is revoked, in which clusters that is in force, and which verifiers are
too old for it. It says what was found in the clusters, not what was written there.
With --watch it follows a rotation that is under way until its end, one line per change.

` + trustExitHelp,
		Example: `  meshctl trust status --mgmt-context mgmt
  meshctl trust status --cluster cluster-2 -o wide
  meshctl trust status --watch
  meshctl trust status -o json | jq -r '.certificates[] | select(.daysLeft < 30) | .subject'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(t.output, formatTable, formatWide, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			if watch && f != formatTable {
				return usageError("--watch prints lines: leave -o out")
			}
			mgmt, err := t.mgmt()
			if err != nil {
				return cannotTell(err)
			}
			if watch {
				return cannotTell(t.watch(cmd.Context(), mgmt))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			return cannotTell(t.status(ctx, mgmt, only, f))
		},
	}
	t.flagsOf(cmd, formatTable, formatWide, formatJSON, formatYAML)
	cmd.Flags().StringVar(&only, "cluster", "", "only what is of this cluster, and the roots it trusts")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "follow a rotation until its end")
	_ = cmd.RegisterFlagCompletionFunc("cluster", t.completeClusterArgs)
	return cmd
}

// trustFacts are what status is told from.
type trustFacts struct {
	Policies []adminv2.RootTrustPolicy
	Clusters []adminv2.KubernetesCluster
	Relay    map[string]*corev1.Secret
	Unseen   []string // what could not be read, in sentences
	Now      time.Time
}

func (t *trustVerbs) trustFacts(ctx context.Context, c *cluster) (*trustFacts, error) {
	f := &trustFacts{Now: time.Now(), Relay: map[string]*corev1.Secret{}}
	var err error
	if f.Policies, err = c.rootPolicies(ctx, t.Namespace); err != nil {
		return nil, err
	}
	if t.policy != "" {
		name, err := t.choose(policyNames(f.Policies))
		if err != nil {
			return nil, err
		}
		f.Policies = slices.DeleteFunc(f.Policies, func(p adminv2.RootTrustPolicy) bool { return p.Name != name })
	}
	if f.Clusters, err = c.clusters(ctx, t.Namespace); err != nil {
		return nil, err
	}
	for _, name := range relaySecrets() {
		s := &corev1.Secret{}
		ok, err := c.found(ctx, t.Namespace, name, s)
		switch {
		case apierrors.IsForbidden(err):
			f.Unseen = []string{fmt.Sprintf("the relay's certificates: you may not read Secrets in namespace %q", t.Namespace)}
			return f, nil
		case err != nil:
			return nil, c.says("read Secret "+name, err)
		case ok:
			f.Relay[name] = s
		}
	}
	return f, nil
}

// trustReport is the document of `trust status`.
type trustReport struct {
	Policies     []policyTrust    `json:"policies"`
	Certificates []certificateRow `json:"certificates"`
	Revoked      *revokedReport   `json:"revoked,omitempty"`
	// Problems are what is wrong; Unknown is what could not be found out.
	Problems []string `json:"problems,omitempty"`
	Unknown  []string `json:"unknown,omitempty"`
	Notes    []string `json:"notes,omitempty"`
}

// policyTrust is how a RootTrustPolicy stands.
type policyTrust struct {
	Name     string                       `json:"name"`
	Phase    adminv2.RotationPhase        `json:"phase"`
	State    adminv2.ApprovalState        `json:"state"`
	Rotating string                       `json:"rotating,omitempty"` // reason of the condition
	Message  string                       `json:"message,omitempty"`
	Clusters []adminv2.ClusterTrustStatus `json:"clusters,omitempty"`
	stale    bool
}

func policyTrustOf(p *adminv2.RootTrustPolicy) policyTrust {
	s := &p.Status
	out := policyTrust{Name: p.Name, Phase: s.Phase, State: s.State, Message: s.Message, Clusters: s.Clusters, stale: s.ObservedGeneration < p.Generation}
	if s.ObservedGeneration == 0 && s.State == "" {
		out.Phase, out.State = "Unknown", adminv2.ApprovalPending
	}
	if c := meta.FindStatusCondition(s.Conditions, adminv2.ConditionRotating); c != nil {
		out.Rotating = c.Reason
		if out.rotating() && c.Message != "" {
			out.Message = c.Message
		}
	}
	return out
}

func (p *policyTrust) rotating() bool {
	return p.Phase != "" && p.Phase != adminv2.PhaseSteady && p.Phase != "Unknown"
}

// wrong reports whether the state is one that somebody has to look at.
func wrong(s adminv2.ApprovalState) bool {
	return s == adminv2.ApprovalFailed || s == adminv2.ApprovalInvalid || s == adminv2.ApprovalWarning
}

// trustReportOf is what status says; only is the one cluster that is asked for, empty: all.
func trustReportOf(f *trustFacts, only string) trustReport {
	r := trustReport{Policies: []policyTrust{}, Unknown: slices.Clone(f.Unseen)}
	if len(f.Policies) == 0 {
		r.Notes = append(r.Notes, "there is no RootTrustPolicy: every istiod signs with what it was given, and nobody rotates it")
	}
	for i := range f.Policies {
		r.policy(&f.Policies[i], only)
	}
	for i := range f.Clusters {
		if k := &f.Clusters[i]; only == "" || k.Name == only {
			r.cluster(k)
		}
	}
	if r.Revoked = revokedOf(f, only); r.Revoked != nil {
		r.Problems = append(r.Problems, r.Revoked.problems()...)
	}
	r.Certificates = fleetCertificates(f, only)
	for i := range r.Certificates {
		r.Certificates[i].finish(f.Now)
		if why := r.Certificates[i].trouble(f.Now); why != "" {
			r.Problems = append(r.Problems, why)
		}
	}
	sortCertificates(r.Certificates)
	return r
}

func (r *trustReport) policy(in *adminv2.RootTrustPolicy, only string) {
	p := policyTrustOf(in)
	p.Clusters = slices.DeleteFunc(slices.Clone(p.Clusters), func(c adminv2.ClusterTrustStatus) bool { return only != "" && c.Name != only })
	r.Policies = append(r.Policies, p)
	switch {
	case p.Phase == "Unknown":
		r.Unknown = append(r.Unknown, fmt.Sprintf("policy %s: the management server has not looked at it yet (meshctl check)", p.Name))
	case p.stale:
		r.Notes = append(r.Notes, fmt.Sprintf("policy %s: the management server has not seen the present spec yet", p.Name))
	}
	if wrong(p.State) || p.Rotating == adminv2.ReasonBlocked {
		r.Problems = append(r.Problems, fmt.Sprintf("policy %s: %s", p.Name, firstOf(p.Message, string(p.State))))
	}
	if c := meta.FindStatusCondition(in.Status.Conditions, adminv2.ConditionIssuing); c != nil && c.Status == "False" && c.Message != p.Message {
		r.Problems = append(r.Problems, fmt.Sprintf("policy %s: %s", p.Name, c.Message))
	}
	for _, c := range p.Clusters {
		if wrong(c.State) {
			r.Problems = append(r.Problems, fmt.Sprintf("cluster %s: %s", c.Name, firstOf(c.Message, string(c.State))))
		}
	}
}

func (r *trustReport) cluster(k *adminv2.KubernetesCluster) {
	s := k.Status.CaStatus
	if s == nil {
		r.Unknown = append(r.Unknown, fmt.Sprintf("cluster %s: nothing is known of its certificate authority (its agent is %s)", k.Name, strings.ToLower(firstOf(string(k.Status.Connection), string(adminv2.ConnectionPending)))))
		return
	}
	add := func(why string) {
		why = "cluster " + k.Name + ": " + why
		if !slices.Contains(r.Problems, why) {
			r.Problems = append(r.Problems, why)
		}
	}
	for _, p := range s.Problems {
		add(p)
	}
	if s.Rotation == adminv2.RotationBlocked {
		add(firstOf(s.Message, "a rotation waits for it"))
	}
	for _, i := range s.Istiods {
		if i.Problem != "" && (s.Phase == adminv2.PhaseSteady || s.Phase == "") {
			add(fmt.Sprintf("istiod %s: %s", i.Pod, i.Problem))
		}
	}
	for _, v := range s.Verifiers {
		if n := max(v.Total-v.Trusting, v.Total-v.Presenting) - v.Unknown; n > 0 && s.Phase == adminv2.PhaseSteady {
			add(fmt.Sprintf("%d of %d %s do not trust or present the root: %s", n, v.Total, v.Kind, none(strings.Join(v.Behind, ", "))))
		}
	}
}

func (t *trustVerbs) status(ctx context.Context, mgmt *cluster, only string, f format) error {
	facts, err := t.trustFacts(ctx, mgmt)
	if err != nil {
		return err
	}
	if only != "" {
		names := make([]string, len(facts.Clusters))
		for i := range facts.Clusters {
			names[i] = facts.Clusters[i].Name
		}
		if err := known("--cluster", []string{only}, names); err != nil {
			return err
		}
	}
	r := trustReportOf(facts, only)
	if f == formatJSON || f == formatYAML {
		err = printDocument(t.streams.Out, f, r)
	} else {
		r.print(t.streams.Out, facts.Now, f == formatWide)
	}
	switch {
	case err != nil:
		return err
	case len(r.Problems) > 0:
		return &exitError{ExitFailed, errSilent}
	case slices.ContainsFunc(r.Unknown, func(s string) bool { return !slices.Contains(facts.Unseen, s) }):
		return &exitError{ExitUsage, errSilent}
	}
	return nil
}

func (r *trustReport) print(w io.Writer, now time.Time, wide bool) {
	for _, p := range r.Policies {
		p.print(w, now)
	}
	printCertificates(w, r.Certificates, now, wide)
	if r.Revoked != nil {
		r.Revoked.print(w, now)
	}
	for _, s := range []struct {
		head  string
		lines []string
	}{{"Wrong", r.Problems}, {"Not found out", r.Unknown}, {"Note", r.Notes}} {
		if len(s.lines) > 0 {
			fmt.Fprintf(w, "\n%s:\n", s.head)
		}
		for _, line := range s.lines {
			fmt.Fprintf(w, "  %s\n", countdown(line, now))
		}
	}
}

func (p *policyTrust) print(w io.Writer, now time.Time) {
	phase := firstOf(string(p.Phase), string(adminv2.PhaseSteady)) + stepOf(p.Phase)
	if p.Rotating == adminv2.ReasonPaused || p.Rotating == adminv2.ReasonBlocked {
		phase += ", " + strings.ToLower(p.Rotating)
	}
	good := 0
	for _, c := range p.Clusters {
		if c.State == adminv2.ApprovalAccepted {
			good++
		}
	}
	fmt.Fprintf(w, "Policy %s: %s; %d of %s as it wants them\n", p.Name, phase, good, count(len(p.Clusters), "cluster"))
	if p.Message != "" {
		fmt.Fprintf(w, "  %s\n", countdown(p.Message, now))
	}
	for _, c := range p.Clusters {
		if c.State != adminv2.ApprovalAccepted {
			fmt.Fprintf(w, "  %s: %s\n", c.Name, countdown(firstOf(c.Message, string(c.State)), now))
		}
	}
	fmt.Fprintln(w)
}

// stepOf numbers the phases of a rotation.
func stepOf(p adminv2.RotationPhase) string {
	order := []adminv2.RotationPhase{adminv2.PhasePreparing, adminv2.PhaseAddingRoot, adminv2.PhaseSwitching, adminv2.PhaseDroppingRoot, adminv2.PhaseFinished}
	if i := slices.Index(order, p); i >= 0 {
		return fmt.Sprintf(" (%d of %d)", i+1, len(order))
	}
	return ""
}

var bound = regexp.MustCompile(`until (\S+Z) at the latest`)

// countdown adds the time left to the bounds that a message of the server names.
func countdown(message string, now time.Time) string {
	return bound.ReplaceAllStringFunc(message, func(s string) string {
		at, err := time.Parse(time.RFC3339, bound.FindStringSubmatch(s)[1])
		if err != nil || !at.After(now) {
			return s
		}
		return s + " (in " + short(at.Sub(now)) + ")"
	})
}
