package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

func (p *policyVerbs) listCommand() *cobra.Command {
	var inCluster string
	var all, notInForce bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the access policies and how each stands in its clusters",
		Long: `Lists the AccessPolicies with the state of each in every cluster that should have it, the worst first. IN-FORCE counts the clusters.
"+widened" after a state: something else in that cluster allows more than the policy. What a state means and what to do: meshctl policy explain NAME.

` + exitHelp,
		Example: `  meshctl policy list --mgmt-context mgmt
  meshctl policy list -n billing --not-in-force
  meshctl policy list --cluster cluster-2 --not-in-force
  meshctl policy list -o json | jq -r '.[] | select(.inForce == false) | .name'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(p.output, formatTable, formatWide, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			if all && p.namespace != "" {
				return usageError("-A and -n %s: want one of them", p.namespace)
			}
			mgmt, err := p.mgmt()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			return p.list(ctx, mgmt, listQuery{Cluster: inCluster, NotInForce: notInForce}, f)
		},
	}
	p.flagsOf(cmd, formatTable, formatWide, formatJSON, formatYAML)
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces (the default)")
	cmd.Flags().StringVar(&inCluster, "cluster", "", "only policies that this cluster should have, and only their state there")
	cmd.Flags().BoolVar(&notInForce, "not-in-force", false, "only policies that are not in force everywhere, or that something widens")
	_ = cmd.RegisterFlagCompletionFunc("cluster", p.completeClusterFlag)
	return cmd
}

// listQuery says which policies are wanted.
type listQuery struct {
	Cluster    string
	NotInForce bool
}

// policyRow is a policy as `policy list` prints it.
type policyRow struct {
	Namespace    string                           `json:"namespace"`
	Name         string                           `json:"name"`
	Status       adminv2.ApprovalState            `json:"status"`
	Message      string                           `json:"message,omitempty"`
	InForce      bool                             `json:"inForce"`        // in every cluster asked for, and nothing widens it
	Idle         string                           `json:"idle,omitempty"` // why it is not to be enforced anywhere
	Count        string                           `json:"clustersInForce"`
	Clusters     []securityv2.ClusterPolicyStatus `json:"clusters,omitempty"` // the worst first
	Workspace    string                           `json:"workspace,omitempty"`
	ChangedBy    string                           `json:"changedBy,omitempty"`
	Created      string                           `json:"created"`
	Clients      uint32                           `json:"clients"`
	Destinations uint32                           `json:"destinations"`
	age          time.Duration
}

// policyRowOf describes a policy. ok is false when it is none of those asked for.
func policyRowOf(p *securityv2.AccessPolicy, q listQuery, now time.Time) (row policyRow, ok bool) {
	s := &p.Status
	row = policyRow{
		Namespace: p.Namespace, Name: p.Name, Status: approval(p), Message: s.Common.State.Message, Workspace: s.Workspace,
		ChangedBy: firstOf(s.ChangedBy, p.Annotations[securityv2.AnnotationChangedBy]), Created: p.CreationTimestamp.UTC().Format(time.RFC3339),
		Clients: s.NumAllowedServiceAccounts, Destinations: s.NumSelectedDestinationPorts, age: now.Sub(p.CreationTimestamp.Time),
		Clusters: worstFirst(s.Clusters), Count: s.InForce,
	}
	if !seen(p) {
		row.Message = "the management server has not seen the present spec yet"
	}
	if q.Cluster != "" {
		row.Clusters = slices.DeleteFunc(row.Clusters, func(c securityv2.ClusterPolicyStatus) bool { return c.Cluster != q.Cluster })
		if len(row.Clusters) == 0 {
			return row, false
		}
	}
	row.Idle = idle(p)
	row.InForce = row.Idle == "" && inForce(p, row.Clusters)
	return row, !q.NotInForce || !row.InForce
}

// idle is the reason for which a policy is not to be enforced anywhere, empty: it is.
func idle(p *securityv2.AccessPolicy) string {
	status, reason, _ := condition(p, securityv2.ConditionEnforced)
	if status == "False" && (reason == securityv2.ReasonDryRun || reason == securityv2.ReasonEnforcementLayerAbsent) {
		return reason
	}
	return ""
}

// inForce reports whether a policy does in these clusters what it says. One that nothing has to enforce is not in force: it protects nothing.
func inForce(p *securityv2.AccessPolicy, clusters []securityv2.ClusterPolicyStatus) bool {
	switch approval(p) {
	case adminv2.ApprovalAccepted, adminv2.ApprovalWarning, adminv2.ApprovalFailed: // of the clusters, each for itself
	case adminv2.ApprovalPending, adminv2.ApprovalInvalid:
		return false
	default:
		return false
	}
	for _, c := range clusters {
		if c.State != securityv2.PolicyInForce || len(c.Widened) > 0 {
			return false
		}
	}
	return len(clusters) > 0
}

// clustersCell is the worst of a policy's clusters, in one cell.
func clustersCell(r policyRow, most int) string {
	var bad []string
	for _, c := range r.Clusters {
		widened := ""
		if len(c.Widened) > 0 {
			widened = "+widened"
		}
		if c.State != securityv2.PolicyInForce || widened != "" {
			bad = append(bad, fmt.Sprintf("%s: %s%s", c.Cluster, c.State, widened))
		}
	}
	switch {
	case len(r.Clusters) == 0:
		return "<none>"
	case r.Idle != "" && len(bad) == 0:
		return "enforced nowhere: " + r.Idle
	case len(bad) == 0 && len(r.Clusters) == 1:
		return r.Clusters[0].Cluster + ": InForce"
	case len(bad) == 0:
		return fmt.Sprintf("all %d: InForce", len(r.Clusters))
	case len(bad) > most:
		return fmt.Sprintf("%s, %d more", strings.Join(bad[:most], ", "), len(bad)-most)
	}
	return strings.Join(bad, ", ")
}

func (p *policyVerbs) list(ctx context.Context, mgmt *cluster, q listQuery, f format) error {
	policies, err := mgmt.accessPolicies(ctx, p.namespace)
	if err != nil {
		return err
	}
	if q.Cluster != "" {
		if err := p.knownCluster(ctx, mgmt, q.Cluster); err != nil {
			return err
		}
	}
	rows := []policyRow{}
	for i := range policies {
		if row, ok := policyRowOf(&policies[i], q, time.Now()); ok {
			rows = append(rows, row)
		}
	}
	if f == formatJSON || f == formatYAML {
		return printDocument(p.streams.Out, f, rows)
	}
	p.printPolicies(rows, f)
	switch {
	case len(policies) == 0:
		fmt.Fprintf(p.streams.Err, "No AccessPolicies%s.\n", in(p.namespace))
	case len(rows) == 0 && q.NotInForce:
		fmt.Fprintf(p.streams.Err, "All of the %d AccessPolicies asked about are in force.\n", len(policies))
	case len(rows) == 0:
		fmt.Fprintf(p.streams.Err, "No AccessPolicy has anything for cluster %s.\n", q.Cluster)
	}
	return nil
}

func (p *policyVerbs) printPolicies(rows []policyRow, f format) {
	if len(rows) == 0 {
		return
	}
	head := []string{"NAMESPACE", "NAME", "STATUS", "IN-FORCE", "CLUSTERS", "CHANGED-BY", "AGE"}
	if f == formatWide {
		head = append(head, "CLIENTS", "DESTINATIONS", "WORKSPACE", "MESSAGE")
	}
	var cells [][]string
	for _, r := range rows {
		most := 3
		if f == formatWide {
			most = 10
		}
		line := []string{r.Namespace, r.Name, string(r.Status), none(r.Count), clustersCell(r, most), none(r.ChangedBy), duration.HumanDuration(r.age)}
		if f == formatWide {
			line = append(line, strconv.FormatUint(uint64(r.Clients), 10), strconv.FormatUint(uint64(r.Destinations), 10), none(r.Workspace), none(r.Message))
		}
		cells = append(cells, line)
	}
	printTable(p.streams.Out, "", head, cells)
}
