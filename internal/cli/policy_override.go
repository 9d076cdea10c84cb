package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// The bounds of a lease, as the webhook has them.
const (
	shortestLease = time.Minute
	longestLease  = 24 * time.Hour
)

// overrideOptions are the arguments of `policy override`.
type overrideOptions struct {
	clusters []string
	all      bool
	reason   string
	lease    time.Duration
	timeout  time.Duration
}

func (p *policyVerbs) overrideCommand() *cobra.Command {
	o := &overrideOptions{}
	cmd := &cobra.Command{
		Use:   "override POLICY (--cluster CLUSTER... | --all-clusters) --reason TEXT --for DURATION",
		Short: "Suspend a policy for a while, on the record",
		Long: `Break glass: until the lease ends, the agents of these clusters leave the policy's objects as people make them. Nothing is opened by it; you edit the
AuthorizationPolicy in the cluster afterwards, and at the end of the lease the agents put everything back by themselves, also when the management server is away.
It is recorded with your name, as the API server knows you, and everybody sees it: meshctl policy override list.

` + exitHelp + ` 3: the lease exists, but a cluster has not confirmed it in time.`,
		Example: `  meshctl policy override billing-allow-payments --cluster cluster-2 --reason "INC-4711: 503s" --for 2h --mgmt-context mgmt
  meshctl policy override list
  meshctl policy override end billing-allow-payments`,
		Args: exactName("policy"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(p.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return err
			}
			mgmt, err := p.mgmt()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout+o.timeout)
			defer cancel()
			return p.override(ctx, mgmt, args[0], o, f)
		},
		ValidArgsFunction: p.completePolicies,
	}
	p.flagsOf(cmd, formatTable, formatJSON, formatYAML)
	flags := cmd.Flags()
	flags.StringSliceVar(&o.clusters, "cluster", nil, "a cluster where it is suspended; may be given several times")
	flags.BoolVar(&o.all, "all-clusters", false, "in every cluster")
	flags.StringVar(&o.reason, "reason", "", "why, for the record")
	flags.DurationVar(&o.lease, "for", 0, "how long, from now: 1m to 24h, such as 30m or 2h")
	flags.DurationVar(&o.timeout, "timeout", 15*time.Second, "how long to wait for the clusters")
	_ = cmd.RegisterFlagCompletionFunc("cluster", p.completeClusterFlag)
	cmd.AddCommand(p.overrideListCommand(), p.overrideEndCommand())
	return cmd
}

// check refuses what the webhook would refuse, before anything is asked.
func (o *overrideOptions) check() error {
	switch {
	case len(o.clusters) > 0 && o.all:
		return usageError("--cluster and --all-clusters: want one of them")
	case len(o.clusters) == 0 && !o.all:
		return usageError("where? give --cluster CLUSTER (as often as needed), or --all-clusters")
	case strings.TrimSpace(o.reason) == "":
		return usageError("why? --reason is required: it is what others read at night, such as --reason \"INC-4711: 503s after the release\"")
	case len(o.reason) > 1024:
		return usageError("--reason has %d bytes: at most 1024", len(o.reason))
	case o.lease == 0:
		return usageError("for how long? give --for, such as --for 2h (1m to 24h)")
	case o.lease < shortestLease:
		return usageError("--for %s is too short: at least %s", o.lease, "1m")
	case o.lease > longestLease:
		return usageError("--for %s is too long: at most 24h. What has to last longer is a change of the policy", o.lease)
	}
	return nil
}

// overrideReport is the document of `policy override`.
type overrideReport struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Policy    string   `json:"policy"` // namespace/name
	Clusters  []string `json:"clusters,omitempty"`
	All       bool     `json:"allClusters,omitempty"`
	Reason    string   `json:"reason"`
	By        string   `json:"by"`
	Until     string   `json:"until"`
	// Waiting are the clusters that have not confirmed it.
	Waiting []string `json:"waiting,omitempty"`
}

func (p *policyVerbs) override(ctx context.Context, mgmt *cluster, arg string, o *overrideOptions, f format) error {
	policy, err := p.accessPolicy(ctx, mgmt, arg)
	if err != nil {
		return err
	}
	if err := p.knownCluster(ctx, mgmt, o.clusters...); err != nil {
		return err
	}
	by, err := mgmt.whoAmI(ctx)
	if err != nil {
		return err
	}
	lease := &securityv2.PolicyOverride{
		ObjectMeta: metav1.ObjectMeta{Namespace: policy.Namespace, Name: overrideName(policy.Name)},
		Spec: securityv2.PolicyOverrideSpec{
			PolicyRef: securityv2.PolicyRef{Name: policy.Name, Namespace: policy.Namespace}, Clusters: slices.Compact(slices.Sorted(slices.Values(o.clusters))),
			Reason: o.reason, For: metav1.Duration{Duration: o.lease},
		},
	}
	if err := mgmt.Create(ctx, lease); err != nil {
		if apierrors.IsForbidden(err) {
			return forbidden(mgmt.Context, []need{{[]string{"create"}, securityv2.GroupName, "policyoverrides", policy.Namespace}})
		}
		return mgmt.saysPolicy("create PolicyOverride "+lease.Name, err)
	}
	until := lease.CreationTimestamp.Add(o.lease)
	r := overrideReport{
		Namespace: lease.Namespace, Name: lease.Name, Policy: policy.Namespace + "/" + policy.Name, Clusters: lease.Spec.Clusters, All: o.all, Reason: o.reason, By: by,
		Until: until.UTC().Format(time.RFC3339),
	}
	w := p.streams.Out
	if f != formatTable {
		w = p.streams.Err
	}
	r.print(w, until)
	if none := without(policy, lease); len(none) > 0 {
		fmt.Fprintf(w, "The policy has nothing in %s at present: there is nothing to suspend there.\n", strings.Join(none, ", "))
	}
	r.Waiting = p.awaitOverridden(ctx, mgmt, policy, lease, o.timeout)
	switch {
	case len(r.Waiting) > 0:
		err = notReached(fmt.Errorf("the lease exists, but these clusters have not confirmed it in %s: %s. Until they do, their agents put changes back. A cluster that is away takes it when it is back (meshctl cluster list)",
			short(o.timeout), strings.Join(r.Waiting, ", ")))
	default:
		fmt.Fprintln(w, "Its status says Overridden in every cluster concerned.")
	}
	if f != formatTable {
		if err := printDocument(p.streams.Out, f, r); err != nil {
			return err
		}
	}
	return err
}

// print says what the lease means.
func (r *overrideReport) print(w io.Writer, until time.Time) {
	where := strings.Join(r.Clusters, ", ")
	if r.All {
		where = "every cluster"
	}
	fmt.Fprintf(w, "PolicyOverride %s/%s created: %s is suspended in %s.\n", r.Namespace, r.Name, r.Policy, where)
	fmt.Fprintf(w, "Until %s (%s) the agents leave its objects as people make them; then they put everything back.\n", until.Local().Format("2006-01-02 15:04:05 MST"), r.Until)
	fmt.Fprintf(w, "Recorded as you, %s: %s\n", r.By, r.Reason)
	fmt.Fprintf(w, "Nothing is open yet: edit the AuthorizationPolicy in the cluster. End it earlier: meshctl policy override end %s -n %s\n", r.Name, r.Namespace)
}

// overrideName is new each time, and says what it is of. An object's name has at most 253 characters.
func overrideName(policy string) string {
	return "override-" + strings.TrimRight(policy[:min(len(policy), 200)], "-.") + "-" + strings.ToLower(rand.Text()[:5])
}

// whoAmI is the person as the API server knows them.
func (c *cluster) whoAmI(ctx context.Context) (string, error) {
	review := &authenticationv1.SelfSubjectReview{}
	if err := c.Create(ctx, review); err != nil {
		return "", c.says("ask who you are (SelfSubjectReview)", err)
	}
	return review.Status.UserInfo.Username, nil
}

// awaitOverridden waits until the policy's status names the lease in every cluster it is for, and returns the clusters that are missing.
func (p *policyVerbs) awaitOverridden(ctx context.Context, mgmt *cluster, policy *securityv2.AccessPolicy, lease *securityv2.PolicyOverride, timeout time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	missing := unconfirmed(policy, lease)
	if len(missing) == 0 {
		return nil
	}
	_, err := awaitObject(ctx, mgmt, &securityv2.AccessPolicyList{}, policy.Namespace, policy.Name, func(p *securityv2.AccessPolicy) (bool, error) {
		missing = unconfirmed(p, lease)
		return len(missing) == 0, nil
	})
	if errors.Is(err, errGone) {
		return nil
	}
	return missing
}

// unconfirmed are the clusters of a lease whose status does not say that the policy is overridden there.
func unconfirmed(p *securityv2.AccessPolicy, lease *securityv2.PolicyOverride) []string {
	var out []string
	for _, c := range p.Status.Clusters {
		if len(lease.Spec.Clusters) > 0 && !slices.Contains(lease.Spec.Clusters, c.Cluster) {
			continue
		}
		if c.State != securityv2.PolicyOverridden {
			out = append(out, c.Cluster)
		}
	}
	slices.Sort(out)
	return out
}

// without are the clusters of a lease in which the policy has nothing to suspend.
func without(p *securityv2.AccessPolicy, lease *securityv2.PolicyOverride) []string {
	return slices.DeleteFunc(slices.Clone(lease.Spec.Clusters), func(name string) bool {
		return slices.ContainsFunc(p.Status.Clusters, func(c securityv2.ClusterPolicyStatus) bool { return c.Cluster == name })
	})
}

// overrides reads the PolicyOverrides, sorted.
func (c *cluster) overrides(ctx context.Context, namespace string) ([]securityv2.PolicyOverride, error) {
	var list securityv2.PolicyOverrideList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, c.saysPolicy("list PolicyOverrides"+in(namespace), err)
	}
	slices.SortFunc(list.Items, func(a, b securityv2.PolicyOverride) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return list.Items, nil
}
