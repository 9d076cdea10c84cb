package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// trustVerbs are the flags that the verbs of `trust` share. One command line runs one verb.
type trustVerbs struct {
	*app
	mgmtContext string
	policy      string
	output      string
}

const trustExitHelp = `Exit codes: 0 all good, 1 something is wrong or blocked, 2 it could not be found out (or wrong usage), 3 not reached in time.`

func (a *app) trustCommand() *cobra.Command {
	t := &trustVerbs{app: a}
	cmd := &cobra.Command{
		Use: "trust", Short: "See every certificate of the fleet, and rotate its root",
		Long: `Says who signs in every cluster, under which root and until when; plans a rotation of the root as real X.509, and asks the management server to begin, pause,
resume or roll back one. The server decides and does; meshctl creates a RotationRequest, which the API server records with your name. The runbook: docs/ops/root-rotation.md.

` + trustExitHelp,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(t.statusCommand(), t.planCommand())
	for _, v := range trustRequests() {
		cmd.AddCommand(t.requestCommand(v))
	}
	return cmd
}

func (t *trustVerbs) flagsOf(cmd *cobra.Command, formats ...format) {
	t.mgmtContextFlag(cmd, &t.mgmtContext)
	cmd.Flags().StringVar(&t.policy, "policy", "", "name of the RootTrustPolicy (default: the only one)")
	_ = cmd.RegisterFlagCompletionFunc("policy", t.completePolicyFlag)
	if len(formats) > 0 {
		formatFlag(cmd, &t.output, formats...)
	}
}

func (t *trustVerbs) mgmt() (*cluster, error) {
	return t.connect("", firstOf(t.mgmtContext, t.Context), "--mgmt-context")
}

// cannotTell gives what keeps a question from being answered the exit code 2, as 1 is an answer.
func cannotTell(err error) error {
	if exit := (*exitError)(nil); err == nil || errors.As(err, &exit) {
		return err
	}
	return &exitError{ExitUsage, err}
}

// rootPolicies reads the RootTrustPolicies of the management plane's namespace, sorted by name.
func (c *cluster) rootPolicies(ctx context.Context, namespace string) ([]adminv2.RootTrustPolicy, error) {
	var list adminv2.RootTrustPolicyList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, c.saysTrust("list RootTrustPolicies"+in(namespace), err)
	}
	slices.SortFunc(list.Items, func(a, b adminv2.RootTrustPolicy) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// saysTrust is says, for kinds that an older management plane does not have.
func (c *cluster) saysTrust(what string, err error) error {
	if meta.IsNoMatchError(err) {
		return c.saysPolicy(what, err)
	}
	return c.says(what, err)
}

// choose finds the policy that is meant; empty: the only one.
func (t *trustVerbs) choose(names []string) (string, error) {
	switch {
	case t.policy != "" && slices.Contains(names, t.policy):
		return t.policy, nil
	case len(names) == 0:
		return "", fmt.Errorf("there is no RootTrustPolicy in namespace %q: nothing issues certificates there. Apply one (docs/ops/root-rotation.md), or name the management plane's namespace with -n", t.Namespace)
	case t.policy != "":
		if near := nearest(t.policy, names); near != "" {
			return "", usageError("--policy %q: there is no such RootTrustPolicy in namespace %q; did you mean %q?", t.policy, t.Namespace, near)
		}
		return "", usageError("--policy %q: there is no such RootTrustPolicy in namespace %q (there are: %s)", t.policy, t.Namespace, some(names, 8))
	case len(names) > 1:
		return "", usageError("which policy? There are %s: give --policy", some(names, 8))
	}
	return names[0], nil
}

func policyNames(all []adminv2.RootTrustPolicy) []string {
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names
}

// complete runs a completion against the management cluster. given are left out.
func (t *trustVerbs) complete(cmd *cobra.Command, given []string, prefix string, names func(context.Context, *cluster) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	c, err := t.mgmt()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	found, err := names(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	found = slices.DeleteFunc(found, func(n string) bool { return slices.Contains(given, n) })
	return withPrefix(found, prefix), cobra.ShellCompDirectiveNoFileComp
}

func (t *trustVerbs) completePolicyFlag(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return t.complete(cmd, nil, prefix, func(ctx context.Context, c *cluster) ([]string, error) {
		all, err := c.rootPolicies(ctx, t.Namespace)
		return policyNames(all), err
	})
}

// completeClusterArgs completes as many clusters as are wanted.
func (t *trustVerbs) completeClusterArgs(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return t.complete(cmd, args, prefix, t.clusterNames)
}

func (t *trustVerbs) clusterNames(ctx context.Context, c *cluster) ([]string, error) {
	all, err := c.clusters(ctx, t.Namespace)
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names, err
}

// timeLeft is the time to an end as people read it.
func timeLeft(d time.Duration) string {
	if d <= 0 {
		return "EXPIRED " + short(-d) + " ago"
	}
	return short(d)
}
