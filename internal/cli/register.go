package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	ambitversion "ambitmesh.dev/ambit/internal/version"
)

// registerOptions is the command line of `cluster register`.
type registerOptions struct {
	name                              mesh.ClusterName
	mgmtContext, remoteContext        string
	mgmtKubeconfig, remoteKubeconfig  string
	mgmtNamespace, remoteNamespace    string
	version, address, clusterDomain   string
	labels                            map[string]string
	valuesFiles, sets, ignoredProfile []string
	timeout                           time.Duration
	dryRun                            bool
	output                            string
}

func (a *app) registerCommand() *cobra.Command {
	o := &registerOptions{}
	cmd := &cobra.Command{
		Use:   "register NAME",
		Short: "Register a cluster: one command, existing clusters untouched",
		Long: `Registers the cluster of --remote-context under NAME with the management plane of --mgmt-context:
creates the KubernetesCluster, hands the new cluster a single-use token and the relay's public root, installs the agent, and waits until it is Connected.
The agent makes its key in its own cluster. Other clusters are not touched. Running it again is safe.

` + exitHelp,
		Example: `  meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3 --version 2.12.0

  # the management server is behind a load balancer of your own; labels are what Workspaces select clusters by
  meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3 \
    --relay-server-address relay.example.com:9900 --labels region=eu-west-3,env=prod

  # what would be done
  meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3 --dry-run`,
		Args: exactName("cluster name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = mesh.ClusterName(args[0])
			return a.register(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeContextNames,
	}
	a.mgmtContextFlag(cmd, &o.mgmtContext)
	f := cmd.Flags()
	f.StringVar(&o.remoteContext, "remote-context", "", "context of the cluster to register (required)")
	f.StringVar(&o.mgmtKubeconfig, "mgmt-kubeconfig", "", "kubeconfig file of the management cluster (default: --kubeconfig)")
	f.StringVar(&o.remoteKubeconfig, "remote-kubeconfig", "", "kubeconfig file of the cluster to register (default: --kubeconfig)")
	f.StringVar(&o.mgmtNamespace, "mgmt-namespace", "", "namespace of the management plane (default: --namespace)")
	f.StringVar(&o.remoteNamespace, "remote-namespace", "", "namespace of the agent (default: --namespace)")
	f.StringVar(&o.version, "version", "", "version of the agent's image (default: that of this meshctl)")
	f.StringVar(&o.address, "relay-server-address", "", "HOST:PORT of the management server as the new cluster reaches it (default: from its Service)")
	f.StringVar(&o.clusterDomain, "cluster-domain", "", "DNS domain of the new cluster's Services (default cluster.local)")
	f.StringToStringVar(&o.labels, "labels", nil, "labels of the KubernetesCluster: k=v,...")
	f.StringArrayVar(&o.valuesFiles, "gloo-mesh-agent-chart-values", nil, "values file for the agent's chart (repeatable)")
	f.StringArrayVar(&o.sets, "set", nil, "value for the agent's chart: path=value (repeatable)")
	f.StringSliceVar(&o.ignoredProfile, "profiles", nil, "accepted; the agent has one profile")
	f.DurationVar(&o.timeout, "timeout", 90*time.Second, "how long to wait for Connected, in all")
	f.BoolVar(&o.dryRun, "dry-run", false, "check everything, change nothing, and say what would be done")
	_ = f.MarkHidden("profiles")
	_ = cmd.RegisterFlagCompletionFunc("remote-context", a.completeContexts)
	formatFlag(cmd, &o.output, formatTable, formatJSON, formatYAML)
	return cmd
}

// registerReport is the final document of `cluster register -o json`.
type registerReport struct {
	Cluster       string   `json:"cluster"`
	MgmtContext   string   `json:"mgmtContext"`
	RemoteContext string   `json:"remoteContext"`
	Namespace     string   `json:"namespace"`
	Release       string   `json:"release"`
	RelayAddress  string   `json:"relayAddress"`
	ClusterUID    string   `json:"clusterUID"`
	DryRun        bool     `json:"dryRun,omitempty"`
	NewToken      bool     `json:"newToken"`
	Status        string   `json:"status"`
	AgentVersion  string   `json:"agentVersion,omitempty"`
	Seconds       float64  `json:"seconds"`
	Steps         []step   `json:"steps"`
	Error         string   `json:"error,omitempty"`
	Hints         []string `json:"hints,omitempty"`
}

// registering is one run of `cluster register`.
type registering struct {
	*registerOptions
	app          *app
	out          *progress
	mgmt, remote *cluster
	values       map[string]any // of the person
	imageTag     string
	labels       map[string]string

	facts   *registerFacts
	plan    *registerPlan
	address string
	report  registerReport
}

func (a *app) register(ctx context.Context, o *registerOptions) error {
	r, format, err := a.newRegistering(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	err = r.run(ctx)
	r.report.Seconds, r.report.Steps = r.out.elapsed().Round(time.Millisecond).Seconds(), r.out.all()
	if err != nil {
		r.report.Error = err.Error()
	}
	if format != formatTable {
		if perr := printDocument(a.streams.Out, format, r.report); perr != nil {
			return errors.Join(err, perr)
		}
		return err
	}
	if err == nil {
		r.printResult(a.streams.Out)
	}
	return err
}

// newRegistering checks the command line; nothing is sent yet.
func (a *app) newRegistering(o *registerOptions) (*registering, format, error) {
	format, err := parseFormat(o.output, formatTable, formatJSON, formatYAML)
	if err != nil {
		return nil, "", err
	}
	if err := o.name.Validate(); err != nil {
		return nil, "", usageError("%w", err)
	}
	if o.remoteContext == "" {
		return nil, "", usageError("--remote-context is missing: the context of the cluster to register")
	}
	r := &registering{registerOptions: o, app: a, labels: o.labels}
	if err := checkLabels(o.labels); err != nil {
		return nil, "", err
	}
	version, differs, err := checkVersion(o.version, ambitversion.Version)
	if err != nil {
		return nil, "", err
	}
	r.imageTag = version
	if o.address != "" {
		if o.address, err = parseRelayAddress(o.address); err != nil {
			return nil, "", usageError("%w", err)
		}
	}
	if r.values, err = readValues(o.valuesFiles, o.sets); err != nil {
		return nil, "", err
	}
	if named := valueAt(r.values, "common", "cluster"); named != nil && named != string(o.name) {
		return nil, "", usageError("the chart values say common.cluster: %v, the command says %s: they must be the same", named, o.name)
	}
	o.mgmtNamespace, o.remoteNamespace = firstOf(o.mgmtNamespace, a.Namespace), firstOf(o.remoteNamespace, a.Namespace)
	if r.mgmt, err = a.connect(o.mgmtKubeconfig, firstOf(o.mgmtContext, a.Context), "--mgmt-context"); err != nil {
		return nil, "", err
	}
	if r.remote, err = a.connect(o.remoteKubeconfig, o.remoteContext, "--remote-context"); err != nil {
		return nil, "", err
	}
	w := a.streams.Out
	if format != formatTable {
		w = a.streams.Err
	}
	r.out = a.newProgress(w)
	if differs {
		r.out.note("version %s asked for: the agent's image is %s, the chart is the %s built into this meshctl", version, version, ambitversion.Version)
	}
	r.report = registerReport{Cluster: string(o.name), MgmtContext: r.mgmt.Context, RemoteContext: r.remote.Context, Namespace: o.remoteNamespace, DryRun: o.dryRun, Status: "Unregistered"}
	return r, format, nil
}

func (r *registering) run(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if r.dryRun {
		r.sayPlan()
		return nil
	}
	if err := r.act(ctx); err != nil {
		return r.halfWay(err)
	}
	return r.awaitConnected(ctx)
}

// prepare gathers and decides.
func (r *registering) prepare(ctx context.Context) error {
	var lackMgmt, lackRemote []need
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { lackMgmt, err = r.mgmt.lacking(gctx, mgmtNeeds(r.mgmtNamespace)); return err })
	g.Go(func() (err error) {
		lackRemote, err = r.remote.lacking(gctx, remoteNeeds(r.remoteNamespace))
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := errors.Join(forbidden(r.mgmt.Context, lackMgmt), forbidden(r.remote.Context, lackRemote)); err != nil {
		return err
	}
	var err error
	if r.facts, err = gatherRegister(ctx, r.name, r.mgmt, r.remote, r.mgmtNamespace, r.remoteNamespace); err != nil {
		return err
	}
	if r.plan, err = planRegister(r.facts, r.mgmt.Context, r.remote.Context, r.mgmtNamespace); err != nil {
		return err
	}
	r.report.Release, r.report.NewToken, r.report.ClusterUID = r.plan.Release, r.plan.NewToken, string(r.facts.RemoteUID)
	if r.plan.Existing == nil {
		r.out.fine("checked: you may do this on both clusters, and the name is free")
	} else {
		r.out.fine("checked: you may do this on both clusters; %s is registered already, %s", r.name, registered(r.plan.Existing, r.facts.Now))
	}
	for _, note := range r.plan.Notes {
		r.out.note("%s", note)
	}
	how := ""
	if r.address, how, err = r.findAddress(ctx); err != nil {
		return err
	}
	r.report.RelayAddress = r.address
	r.out.fine("relay address %s (%s)", r.address, how)
	return nil
}

// findAddress waits for a LoadBalancer that is being made.
func (r *registering) findAddress(ctx context.Context) (address, how string, err error) {
	told := false
	for {
		address, how, err = addressOf(r.registerOptions.address, r.values, r.facts.Service, r.facts.Nodes, r.plan.SameCluster)
		if !errors.Is(err, errAddressPending) {
			return address, how, err
		}
		if !told {
			r.out.note("Service %s/%s is a LoadBalancer without an address yet: waiting for one", r.mgmtNamespace, serverName)
			told = true
		}
		select {
		case <-ctx.Done():
			return "", "", notReached(fmt.Errorf("service %s/%s of context %q is a LoadBalancer that got no address: is there a load balancer controller in the cluster? Give an address with --relay-server-address HOST:PORT; nothing was changed",
				r.mgmtNamespace, serverName, r.mgmt.Context))
		case <-time.After(250 * time.Millisecond):
		}
		if err := r.facts.readService(ctx, r.mgmt, r.mgmtNamespace); err != nil && ctx.Err() == nil {
			return "", "", err
		}
	}
}

func (r *registering) sayPlan() {
	verb := "create"
	if r.plan.Existing != nil {
		verb = "keep"
	}
	r.out.note("would %s KubernetesCluster %s/%s on %s", verb, r.mgmtNamespace, r.name, r.mgmt.Context)
	r.out.note("%s", r.plan.Why)
	if !r.plan.SameCluster {
		r.out.note("would write the relay's public root to Secret %s/%s on %s", r.remoteNamespace, secretRoot, r.remote.Context)
	}
	r.out.note("would install Helm releases gloo-platform-crds and %s in namespace %s on %s, and wait for Connected", r.plan.Release, r.remoteNamespace, r.remote.Context)
	r.out.note("dry run: nothing was changed")
	r.report.Status = "DryRun"
}

// halfWay says what exists after a failure, and how to go on.
func (r *registering) halfWay(err error) error {
	var b strings.Builder
	fmt.Fprintf(&b, "registering %s stopped half-way: %v\n", r.name, err)
	if made := r.out.made(); len(made) > 0 {
		b.WriteString("Done so far:\n")
		for _, m := range made {
			fmt.Fprintf(&b, "    %s\n", m)
		}
	}
	fmt.Fprintf(&b, "To go on, mend the cause and run the same command again: it continues where it stopped.\nTo undo it: %s", r.undo())
	code := ExitFailed
	if errors.Is(err, context.DeadlineExceeded) {
		code = ExitNotReached
	}
	return &exitError{code, errors.New(b.String())}
}

func (r *registering) undo() string {
	return fmt.Sprintf("meshctl cluster deregister %s --mgmt-context %s --remote-context %s", r.name, r.mgmt.Context, r.remote.Context)
}

func (r *registering) printResult(w io.Writer) {
	if r.dryRun {
		return
	}
	fmt.Fprintf(w, "\n%s is %s: agent %s, %s.\n", r.name, adminv2.ConnectionConnected, firstOf(r.report.AgentVersion, "of unknown version"), short(r.out.elapsed()))
	fmt.Fprintf(w, "  see it:   kubectl --context %s -n %s get kubernetescluster %s\n", r.mgmt.Context, r.mgmtNamespace, r.name)
	fmt.Fprintf(w, "  undo it:  %s\n", r.undo())
}

// completeContextNames proposes contexts as names, since clusters are often called as their contexts.
func (a *app) completeContextNames(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeContexts(cmd, args, prefix)
}
