package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// policyExplanation is the document of `policy explain POLICY`.
type policyExplanation struct {
	policyRow
	Selects []string `json:"selects"`
	TLS     string   `json:"tls,omitempty"`
	Allows  []string `json:"allows"`
	// Allowed are the identities that the words of Allows came to, at most 100; AllowedCount counts them all.
	Allowed      []string          `json:"allowed,omitempty"`
	AllowedCount uint32            `json:"allowedCount"`
	Namespaces   uint32            `json:"namespaces"`
	Problems     []string          `json:"problems,omitempty"` // conditions that are not as they should be
	Todo         map[string]string `json:"todo,omitempty"`     // by state
	ChangedAt    string            `json:"changedAt,omitempty"`
}

func explanationOf(p *securityv2.AccessPolicy, now time.Time) policyExplanation {
	row, _ := policyRowOf(p, listQuery{}, now)
	e := policyExplanation{
		policyRow: row, Selects: selectsWords(&p.Spec), TLS: tlsWords(p.Spec.Config), Allows: allowsWords(p.Spec.Config),
		Allowed: p.Status.AllowedServiceAccounts, AllowedCount: p.Status.NumAllowedServiceAccounts, Namespaces: p.Status.NumSelectedNamespaces,
		ChangedAt: p.Annotations[securityv2.AnnotationChangedAt],
	}
	if seen(p) { // conditions of an older spec would mislead
		for _, kind := range []string{securityv2.ConditionAccepted, securityv2.ConditionResolved, securityv2.ConditionProgrammed, securityv2.ConditionEnforced} {
			status, reason, message := condition(p, kind)
			if status != "" && status != "True" || reason == securityv2.ReasonServiceAccountsByPods {
				e.Problems = append(e.Problems, fmt.Sprintf("%s=%s, %s: %s", kind, status, reason, message))
			}
		}
	}
	for _, c := range row.Clusters {
		if t := todo(c.State); t != "" {
			if e.Todo == nil {
				e.Todo = map[string]string{}
			}
			e.Todo[string(c.State)] = t
		}
		if len(c.Widened) > 0 {
			if e.Todo == nil {
				e.Todo = map[string]string{}
			}
			e.Todo[todoWidened] = "something that is not ours allows more there: delete or narrow the object that is named, or allow in the policy what is meant to be allowed"
		}
	}
	return e
}

func (p *policyVerbs) explainPolicy(ctx context.Context, mgmt *cluster, arg string, f format) error {
	policy, err := p.accessPolicy(ctx, mgmt, arg)
	if err != nil {
		return err
	}
	e := explanationOf(policy, time.Now())
	if f != formatTable {
		return printDocument(p.streams.Out, f, e)
	}
	e.print(p.streams.Out, time.Now())
	return nil
}

// todoWidened is the key of Todo for what widens a policy.
const todoWidened = "Widened"

// printField prints "name  value" with more values below it.
func printField(w io.Writer, name string, values ...string) {
	for i, v := range values {
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(w, "  %-12s%s\n", name, v)
	}
}

func (e *policyExplanation) print(w io.Writer, now time.Time) {
	head := fmt.Sprintf("AccessPolicy %s/%s: %s", e.Namespace, e.Name, e.Status)
	if e.Count != "" {
		head += ", in force in " + e.Count + " clusters"
	}
	if e.Status == adminv2.ApprovalPending {
		head += " (so it was with the spec before)"
	}
	fmt.Fprintln(w, head)
	if e.Message != "" {
		printField(w, "message", e.Message)
	}
	scope := "the whole mesh"
	if e.Workspace != "" {
		scope = "workspace " + e.Workspace
	}
	if e.Status != adminv2.ApprovalInvalid {
		printField(w, "scope", scope)
	}
	changed := none(e.ChangedBy)
	if e.ChangedAt != "" {
		changed += ", " + e.ChangedAt
	}
	printField(w, "changed by", changed)
	printField(w, "guards", append(e.Selects, fmt.Sprintf("= %s in %s", count(int(e.Destinations), "destination port"), count(int(e.Namespaces), "namespace")))...)
	if e.TLS != "" {
		printField(w, "authn", e.TLS)
	}
	allowed := append([]string{}, e.Allows...)
	allowed = append(allowed, "= "+count(int(e.AllowedCount), "ServiceAccount"))
	for _, a := range e.Allowed {
		allowed = append(allowed, "  "+a)
	}
	if more := int(e.AllowedCount) - len(e.Allowed); more > 0 && len(e.Allowed) > 0 {
		allowed = append(allowed, fmt.Sprintf("  and %d more", more))
	}
	printField(w, "allows", allowed...)
	printField(w, "problems", e.Problems...)
	e.printClusters(w, now)
}

func (e *policyExplanation) printClusters(w io.Writer, now time.Time) {
	if len(e.Clusters) == 0 {
		fmt.Fprintln(w, "\nNo cluster should have anything of it.")
		return
	}
	var cells [][]string
	for _, c := range e.Clusters {
		cells = append(cells, []string{c.Cluster, string(c.State), none(c.Message), none(strings.Join(c.Objects, ", "))})
	}
	fmt.Fprintln(w)
	printTable(w, "", []string{"CLUSTER", "STATE", "WHY", "OBJECTS"}, cells)
	for _, c := range e.Clusters {
		for _, widened := range c.Widened {
			fmt.Fprintf(w, "\nWidened in %s: %s\n", c.Cluster, widened)
		}
		if c.LastDrift != nil {
			fmt.Fprintf(w, "\nLast drift in %s: %s\n", c.Cluster, driftWords(c.LastDrift))
		}
		if c.Override != nil {
			fmt.Fprintf(w, "\nOverridden in %s: %s by %s, until %s (%s): %s\n", c.Cluster, c.Override.Name, none(c.Override.By),
				c.Override.Until.UTC().Format(time.RFC3339), left(c.Override.Until.Time, now), c.Override.Reason)
		}
	}
	if len(e.Todo) > 0 {
		fmt.Fprintln(w, "\nWhat to do:")
	}
	said := map[string]bool{}
	for _, c := range e.Clusters {
		for _, key := range []string{string(c.State), todoWidened} {
			if t := e.Todo[key]; t != "" && !said[key] && (key != todoWidened || len(c.Widened) > 0) {
				said[key] = true
				fmt.Fprintf(w, "  %s: %s\n", key, t)
			}
		}
	}
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func driftWords(d *securityv2.DriftStatus) string {
	line := fmt.Sprintf("%s, by field manager %s", d.Object, none(d.Manager))
	if d.At != nil {
		line += " at " + d.At.UTC().Format(time.RFC3339)
	}
	if d.What != "" {
		line += ": " + d.What
	}
	if d.Corrected {
		return line + "; put back since"
	}
	return line + "; NOT put back"
}

// left is how long a lease has still to run.
func left(until, now time.Time) string {
	if d := until.Sub(now); d > 0 {
		return short(d) + " left"
	}
	return "over"
}

func (p *policyVerbs) explainCommand() *cobra.Command {
	q := &questionOptions{}
	cmd := &cobra.Command{
		Use:   "explain POLICY | explain SERVICEACCOUNT SERVICE",
		Short: "Explain a policy; or say whether a ServiceAccount may call a Service, and which rule decides",
		Long: `With one argument, a policy (NAME or NAMESPACE/NAME): what it guards, whom it lets in, how it stands in each cluster and why, what widens it, the last drift, the
override in force, and what to do.

With two, NAMESPACE/NAME@CLUSTER each: may that ServiceAccount call that Service, and which rule decides? The cluster may be left out where only one has the name.
The answer is the server's own translation of what the server knows; "but" says where clusters do not do so at present. Without --port: any port.

Exit codes of a question: 0 allowed, 1 denied, 2 no answer: wrong usage, no such Service or ServiceAccount, or no snapshot.
Exit codes of explaining a policy: 0 done, 1 failed, 2 wrong usage.`,
		Example: `  meshctl policy explain billing-allow-payments --mgmt-context mgmt
  meshctl policy explain payments/payments@cluster-1 billing/billing@cluster-2 --port 8080
  meshctl policy explain --from payments/payments@cluster-1 --to billing/billing@cluster-2 --method GET --path /invoices
  meshctl policy explain orders/orders billing/billing@cluster-2 --snapshot snapshot.json && echo may`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(p.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			question, err := q.take(cmd, args)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			if question {
				allowed, err := p.answer(ctx, q, f)
				if err == nil && !allowed {
					return &exitError{exitDenied, errSilent}
				}
				return noAnswer(err)
			}
			mgmt, err := p.mgmt()
			if err != nil {
				return err
			}
			return p.explainPolicy(ctx, mgmt, args[0], f)
		},
		ValidArgsFunction: p.completePolicies,
	}
	p.flagsOf(cmd, formatTable, formatJSON, formatYAML)
	q.flags(cmd)
	return cmd
}
