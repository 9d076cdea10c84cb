package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

func (p *policyVerbs) overrideListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the leases in force",
		Long:    "Lists the PolicyOverrides: which policy is suspended where, by whom, why, and until when. The server deletes them when they end.\n\n" + exitHelp,
		Example: "  meshctl policy override list --mgmt-context mgmt",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(p.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			mgmt, err := p.mgmt()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			all, err := mgmt.overrides(ctx, p.namespace)
			if err != nil {
				return err
			}
			return p.printOverrides(all, f, time.Now())
		},
	}
	p.flagsOf(cmd, formatTable, formatJSON, formatYAML)
	return cmd
}

// overrideRow is a lease as `policy override list` prints it.
type overrideRow struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Policy    string   `json:"policy"` // namespace/name
	Clusters  []string `json:"clusters,omitempty"`
	All       bool     `json:"allClusters,omitempty"`
	By        string   `json:"by,omitempty"`
	Until     string   `json:"until"`
	Left      string   `json:"left"`
	Status    string   `json:"status,omitempty"`
	Reason    string   `json:"reason"`
}

func overrideRowOf(o *securityv2.PolicyOverride, now time.Time) overrideRow {
	until := o.CreationTimestamp.Add(o.Spec.For.Duration)
	if o.Status.Until != nil {
		until = o.Status.Until.Time
	}
	return overrideRow{
		Namespace: o.Namespace, Name: o.Name, Policy: policyOf(o), Clusters: o.Spec.Clusters, All: len(o.Spec.Clusters) == 0, By: o.Status.By,
		Until: until.UTC().Format(time.RFC3339), Left: left(until, now), Status: string(o.Status.Common.State.Approval), Reason: o.Spec.Reason,
	}
}

// policyOf is the policy of a lease, as namespace/name.
func policyOf(o *securityv2.PolicyOverride) string {
	return firstOf(o.Spec.PolicyRef.Namespace, o.Namespace) + "/" + o.Spec.PolicyRef.Name
}

func (p *policyVerbs) printOverrides(all []securityv2.PolicyOverride, f format, now time.Time) error {
	rows := make([]overrideRow, len(all))
	var cells [][]string
	for i := range all {
		r := overrideRowOf(&all[i], now)
		rows[i] = r
		where := some(r.Clusters, 4)
		if r.All {
			where = "all"
		}
		cells = append(cells, []string{r.Namespace, r.Name, r.Policy, where, none(r.By), r.Until, r.Left, oneLine(r.Reason, 60)})
	}
	if f != formatTable {
		return printDocument(p.streams.Out, f, rows)
	}
	if len(rows) == 0 {
		fmt.Fprintf(p.streams.Err, "No policy is overridden%s.\n", in(p.namespace))
		return nil
	}
	printTable(p.streams.Out, "", []string{"NAMESPACE", "NAME", "POLICY", "CLUSTERS", "BY", "UNTIL", "LEFT", "REASON"}, cells)
	return nil
}

// oneLine shortens a text for a table.
func oneLine(s string, most int) string {
	runes := []rune(strings.Join(strings.Fields(s), " "))
	if len(runes) > most {
		return string(runes[:most-3]) + "..."
	}
	return string(runes)
}

func (p *policyVerbs) overrideEndCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "end NAME|POLICY",
		Short: "End a lease now",
		Long: `Deletes the lease of this name, or every lease of the policy of this name. The agents then put back what was changed, within seconds; a cluster that is away
ends the lease when it is back or when its time is over, whichever is first.

` + exitHelp,
		Example: "  meshctl policy override end billing-allow-payments --mgmt-context mgmt",
		Args:    exactName("lease or policy"),
		RunE: func(cmd *cobra.Command, args []string) error {
			mgmt, err := p.mgmt()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			return p.endOverride(ctx, mgmt, args[0])
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return p.complete(cmd, prefix, func(ctx context.Context, c *cluster) ([]string, error) {
				all, err := c.overrides(ctx, p.namespace)
				var names []string
				for i := range all {
					names = append(names, all[i].Name, all[i].Spec.PolicyRef.Name)
				}
				return names, err
			})
		},
	}
	p.flagsOf(cmd)
	return cmd
}

// leasesNamed finds the leases that a person means by a name: a lease's own, else a policy's. Either may be NAMESPACE/NAME.
func leasesNamed(all []securityv2.PolicyOverride, arg string) ([]securityv2.PolicyOverride, error) {
	var own, ofPolicy []securityv2.PolicyOverride
	var names, policies []string
	for _, o := range all {
		switch arg {
		case o.Name, o.Namespace + "/" + o.Name:
			own = append(own, o)
		case o.Spec.PolicyRef.Name, policyOf(&o):
			ofPolicy = append(ofPolicy, o)
			policies = append(policies, policyOf(&o))
		}
		names = append(names, o.Name, o.Spec.PolicyRef.Name)
	}
	slices.Sort(policies)
	policies = slices.Compact(policies)
	switch {
	case len(own) == 1:
		return own, nil
	case len(own) > 1:
		return nil, usageError("there are leases %q in several namespaces: give -n, or NAMESPACE/NAME", arg)
	case len(policies) > 1:
		return nil, usageError("there are leases of several policies %q: %s. Which one? Give -n, or NAMESPACE/NAME", arg, strings.Join(policies, ", "))
	case len(ofPolicy) > 0:
		return ofPolicy, nil
	case len(all) == 0:
		return nil, fmt.Errorf("no policy is overridden: nothing to end")
	}
	if near := nearest(arg, names); near != "" {
		return nil, fmt.Errorf("no lease and no overridden policy is called %q; did you mean %q?", arg, near)
	}
	return nil, fmt.Errorf("no lease and no overridden policy is called %q; see: meshctl policy override list", arg)
}

func (p *policyVerbs) endOverride(ctx context.Context, mgmt *cluster, arg string) error {
	all, err := mgmt.overrides(ctx, p.namespace)
	if err != nil {
		return err
	}
	leases, err := leasesNamed(all, arg)
	if err != nil {
		return err
	}
	for i := range leases {
		o := &leases[i]
		if err := mgmt.Delete(ctx, o); err != nil && !apierrors.IsNotFound(err) {
			if apierrors.IsForbidden(err) {
				return forbidden(mgmt.Context, []need{{[]string{"delete"}, securityv2.GroupName, "policyoverrides", o.Namespace}})
			}
			return mgmt.saysPolicy("delete PolicyOverride "+o.Name, err)
		}
		where := strings.Join(o.Spec.Clusters, ", ")
		fmt.Fprintf(p.streams.Out, "PolicyOverride %s/%s of %s ended: the agents of %s put back what was changed.\n", o.Namespace, o.Name, policyOf(o), firstOf(where, "every cluster"))
	}
	policy := policyOf(&leases[0])
	fmt.Fprintf(p.streams.Out, "Look: meshctl policy explain %s\n", policy)
	return nil
}
