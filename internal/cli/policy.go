package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// policyVerbs are the flags that the verbs of `policy` share. One command line runs one verb.
type policyVerbs struct {
	*app
	mgmtContext   string
	mgmtNamespace string
	namespace     string // of policies; empty: all
	output        string
}

func (a *app) policyCommand() *cobra.Command {
	p := &policyVerbs{app: a}
	cmd := &cobra.Command{
		Use: "policy", Short: "List, explain, preview and override access policies",
		Long: `Says how AccessPolicies stand in every cluster, who may call whom and why, and what a file would change before it is applied.
Here -n is the namespace of policies; the management plane's own is --mgmt-namespace.

` + exitHelp,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVarP(&p.namespace, "namespace", "n", "", "namespace of policies (default: all)")
	flags.StringVar(&p.mgmtNamespace, "mgmt-namespace", "gloo-mesh", "namespace of the management plane")
	_ = cmd.RegisterFlagCompletionFunc("namespace", p.completeNamespaces)
	cmd.AddCommand(p.listCommand(), p.explainCommand(), p.translateCommand(), p.diffCommand(), p.snapshotCommand(), p.overrideCommand())
	return cmd
}

// flagsOf adds the flags of a verb that reads the management cluster.
func (p *policyVerbs) flagsOf(cmd *cobra.Command, formats ...format) {
	p.mgmtContextFlag(cmd, &p.mgmtContext)
	if len(formats) > 0 {
		formatFlag(cmd, &p.output, formats...)
	}
}

// mgmt prepares the client of the management cluster.
func (p *policyVerbs) mgmt() (*cluster, error) {
	return p.connect("", firstOf(p.mgmtContext, p.Context), "--mgmt-context")
}

// accessPolicies reads the AccessPolicies of a namespace, of all if it is empty, sorted by namespace and name.
func (c *cluster) accessPolicies(ctx context.Context, namespace string) ([]securityv2.AccessPolicy, error) {
	var list securityv2.AccessPolicyList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, c.saysPolicy("list AccessPolicies"+in(namespace), err)
	}
	slices.SortFunc(list.Items, func(a, b securityv2.AccessPolicy) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return list.Items, nil
}

// saysPolicy is says, for kinds that an older management plane does not have.
func (c *cluster) saysPolicy(what string, err error) error {
	if meta.IsNoMatchError(err) {
		return fmt.Errorf("context %q: %s: the kind is not known there: it is not the management cluster, or its CRDs are older than this meshctl. Look: meshctl check --kubecontext %s", c.Context, what, c.Context)
	}
	return c.says(what, err)
}

func in(namespace string) string {
	if namespace == "" {
		return " in all namespaces"
	}
	return fmt.Sprintf(" in namespace %q", namespace)
}

// accessPolicy finds a policy by NAME or NAMESPACE/NAME. A name that several namespaces have has to be told apart; one that none has gets the near ones.
func (p *policyVerbs) accessPolicy(ctx context.Context, c *cluster, arg string) (*securityv2.AccessPolicy, error) {
	namespace, name := p.namespace, arg
	if ns, n, ok := strings.Cut(arg, "/"); ok {
		if p.namespace != "" && p.namespace != ns {
			return nil, usageError("policy %q is of namespace %q, and -n says %q: leave one out", arg, ns, p.namespace)
		}
		namespace, name = ns, n
	}
	if name == "" {
		return nil, usageError("which policy? want NAME or NAMESPACE/NAME, got %q", arg)
	}
	all, err := c.accessPolicies(ctx, namespace)
	if err != nil {
		return nil, err
	}
	return choosePolicy(all, namespace, name)
}

func choosePolicy(all []securityv2.AccessPolicy, namespace, name string) (*securityv2.AccessPolicy, error) {
	var found []*securityv2.AccessPolicy
	var names, places []string
	for i := range all {
		if all[i].Name == name {
			found = append(found, &all[i])
			places = append(places, all[i].Namespace)
		}
		names = append(names, all[i].Name)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, usageError("there are AccessPolicies %q in the namespaces %s: which one? Write %s/%s, or give -n", name, strings.Join(places, ", "), places[0], name)
	case len(all) == 0:
		return nil, fmt.Errorf("no AccessPolicy %q: there is none at all%s", name, in(namespace))
	}
	if near := nearest(name, names); near != "" {
		i := slices.Index(names, near)
		return nil, fmt.Errorf("no AccessPolicy %q%s; did you mean %s/%s?", name, in(namespace), all[i].Namespace, near)
	}
	return nil, fmt.Errorf("no AccessPolicy %q%s; there are: %s", name, in(namespace), some(names, 8))
}

// some lists the first few of many.
func some(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// complete runs a completion against the management cluster.
func (p *policyVerbs) complete(cmd *cobra.Command, prefix string, names func(context.Context, *cluster) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	c, err := p.mgmt()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	found, err := names(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	slices.Sort(found)
	return withPrefix(slices.Compact(found), prefix), cobra.ShellCompDirectiveNoFileComp
}

// completePolicies completes the names of policies, for one argument.
func (p *policyVerbs) completePolicies(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.complete(cmd, prefix, func(ctx context.Context, c *cluster) ([]string, error) {
		all, err := c.accessPolicies(ctx, p.namespace)
		var names []string
		for i := range all {
			names = append(names, all[i].Name)
			if strings.Contains(prefix, "/") {
				names = append(names, all[i].Namespace+"/"+all[i].Name)
			}
		}
		return names, err
	})
}

// completeNamespaces completes the namespaces that have policies.
func (p *policyVerbs) completeNamespaces(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return p.complete(cmd, prefix, func(ctx context.Context, c *cluster) ([]string, error) {
		all, err := c.accessPolicies(ctx, "")
		var names []string
		for i := range all {
			names = append(names, all[i].Namespace)
		}
		return names, err
	})
}

// completeClusterFlag completes the names of registered clusters.
func (p *policyVerbs) completeClusterFlag(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return p.complete(cmd, prefix, p.clusterNames)
}

func (p *policyVerbs) clusterNames(ctx context.Context, c *cluster) ([]string, error) {
	all, err := c.clusters(ctx, p.mgmtNamespace)
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names, err
}

// knownCluster refuses a name that is not registered, with the near ones.
func (p *policyVerbs) knownCluster(ctx context.Context, c *cluster, wanted ...string) error {
	if len(wanted) == 0 {
		return nil
	}
	names, err := p.clusterNames(ctx, c)
	if err != nil {
		return err
	}
	return known("--cluster", wanted, names)
}

func known(flag string, wanted, names []string) error {
	for _, n := range wanted {
		if slices.Contains(names, n) {
			continue
		}
		if near := nearest(n, names); near != "" {
			return usageError("%s %q: no such cluster is registered; did you mean %q?", flag, n, near)
		}
		return usageError("%s %q: no such cluster is registered (there are: %s)", flag, n, none(some(names, 8)))
	}
	return nil
}

// policyTimeout bounds a verb that only reads.
const policyTimeout = 30 * time.Second

// badness orders the states, the worst highest.
func badness(s securityv2.PolicyState) int {
	return slices.Index([]securityv2.PolicyState{
		securityv2.PolicyInForce, securityv2.PolicyPending, securityv2.PolicyOverridden, securityv2.PolicyDrifted, securityv2.PolicyRejected, securityv2.PolicyUnenforceable,
	}, s)
}

// worstFirst sorts what a policy is in its clusters.
func worstFirst(in []securityv2.ClusterPolicyStatus) []securityv2.ClusterPolicyStatus {
	out := slices.Clone(in)
	rank := func(s securityv2.ClusterPolicyStatus) int {
		r := 2 * badness(s.State)
		if len(s.Widened) > 0 {
			r++
		}
		return r
	}
	slices.SortStableFunc(out, func(a, b securityv2.ClusterPolicyStatus) int {
		if d := rank(b) - rank(a); d != 0 {
			return d
		}
		return strings.Compare(a.Cluster, b.Cluster)
	})
	return out
}

// seen reports whether the server's status speaks of the present spec.
func seen(p *securityv2.AccessPolicy) bool {
	return p.Status.Common.State.Approval != "" && p.Status.Common.State.ObservedGeneration >= p.Generation
}

// approval is the policy's state in one word, which is PENDING until the server has seen the present spec.
func approval(p *securityv2.AccessPolicy) adminv2.ApprovalState {
	if !seen(p) {
		return adminv2.ApprovalPending
	}
	return p.Status.Common.State.Approval
}

func condition(p *securityv2.AccessPolicy, kind string) (status, reason, message string) {
	if c := meta.FindStatusCondition(p.Status.Conditions, kind); c != nil {
		return string(c.Status), c.Reason, c.Message
	}
	return "", "", ""
}
