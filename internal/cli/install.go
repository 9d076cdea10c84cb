package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/internal/mesh"
	ambitversion "ambitmesh.dev/ambit/internal/version"
)

type installOptions struct {
	mgmtContext           string
	profiles, sets, files []string
	version, licence      string
	register, dryRun      bool
	timeout               time.Duration
	output                string
}

func (a *app) installCommand() *cobra.Command {
	o := &installOptions{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install or upgrade the management plane",
		Long: `Installs the CRDs and the management server from the charts built into meshctl, and waits until the server is ready, has made the
relay's five Secrets and its webhook answers. Running it again upgrades; values given earlier are kept.

Profiles: gloo-mesh-mgmt (the default), gloo-mesh-single (management server and agent in one cluster, registered), gloo-mesh-agent (an agent only;
meshctl cluster register is the easier way).

` + exitHelp,
		Example: `  meshctl install --kubecontext mgmt --set glooMgmtServer.serviceType=LoadBalancer
  meshctl install --kubecontext mgmt --chart-values-file mgmt-values.yaml
  meshctl install --kubecontext demo --profiles gloo-mesh-single
  meshctl install --kubecontext mgmt --dry-run`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.install(cmd.Context(), o) },
	}
	a.mgmtContextFlag(cmd, &o.mgmtContext)
	f := cmd.Flags()
	f.StringSliceVar(&o.profiles, "profiles", nil, "gloo-mesh-mgmt, gloo-mesh-single or gloo-mesh-agent")
	f.StringSliceVar(&o.profiles, "profile", nil, "the same as --profiles")
	f.StringArrayVar(&o.sets, "set", nil, "chart value: path=value (repeatable)")
	f.StringArrayVar(&o.files, "chart-values-file", nil, "chart values file (repeatable)")
	f.StringVar(&o.version, "version", "", "version of the images (default: that of this meshctl)")
	f.StringVar(&o.licence, "license", "", "accepted; no licence is needed")
	f.BoolVar(&o.register, "register", false, "register this cluster too")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what would be applied, and change nothing")
	f.DurationVar(&o.timeout, "timeout", 90*time.Second, "how long to wait, in all")
	_ = f.MarkHidden("license")
	_ = cmd.RegisterFlagCompletionFunc("profiles", cobra.FixedCompletions(slices.Sorted(maps.Keys(profiles())), cobra.ShellCompDirectiveNoFileComp))
	formatFlag(cmd, &o.output, formatTable, formatJSON, formatYAML)
	return cmd
}

// profiles are named sets of values.
func profiles() map[string]map[string]any {
	on := func() map[string]any { return map[string]any{"enabled": true} }
	agent := map[string]any{"glooAgent": on()}
	return map[string]map[string]any{
		"gloo-mesh-mgmt":   {"glooMgmtServer": on()},
		"gloo-mesh-single": {"glooMgmtServer": map[string]any{"enabled": true, "registerCluster": true}, "glooAgent": on()},
		"gloo-mesh-agent":  agent,
		"agent":            agent,
	}
}

// installPlan is what install does, decided from the command line and the release that is there.
type installPlan struct {
	Values        map[string]any
	Server, Agent bool
	Cluster       string // common.cluster
	Register      bool
}

func planInstall(o *installOptions, given, previous map[string]any, contextName string) (*installPlan, error) {
	names := o.profiles
	if len(names) == 0 && previous == nil {
		names = []string{"gloo-mesh-mgmt"}
	}
	values := map[string]any{}
	for _, name := range names {
		profile, ok := profiles()[name]
		if !ok {
			return nil, usageError("--profiles %s: no such profile; there are %s", name, strings.Join(slices.Sorted(maps.Keys(profiles())), ", "))
		}
		values = merge(values, profile)
	}
	if o.register {
		values = merge(values, map[string]any{"glooMgmtServer": map[string]any{"registerCluster": true}})
	}
	version, _, err := checkVersion(o.version, ambitversion.Version)
	if err != nil {
		return nil, err
	}
	if version != "" {
		values = merge(values, map[string]any{"common": map[string]any{"imageTag": version}})
	}
	values = merge(merge(previous, values), given)
	p := &installPlan{
		Server:   valueAt(values, "glooMgmtServer", "enabled") == true,
		Agent:    valueAt(values, "glooAgent", "enabled") == true,
		Register: valueAt(values, "glooMgmtServer", "registerCluster") == true,
	}
	p.Cluster, _ = valueAt(values, "common", "cluster").(string)
	if p.Cluster == "" && p.Server {
		// The context's name, where it can be a cluster's name.
		p.Cluster = contextName
		if mesh.ClusterName(contextName).Validate() != nil {
			p.Cluster = "mgmt"
		}
		values = merge(values, map[string]any{"common": map[string]any{"cluster": p.Cluster}})
	}
	if p.Agent || p.Register {
		if err := mesh.ClusterName(p.Cluster).Validate(); err != nil {
			return nil, usageError("common.cluster: %w; give it with --set common.cluster=NAME", err)
		}
	}
	if address, _ := valueAt(values, "glooAgent", "relay", "serverAddress").(string); p.Agent && (address != "" || !p.Server) {
		address, err := parseRelayAddress(address)
		if err != nil {
			return nil, usageError("glooAgent.relay.serverAddress: %w", err)
		}
		values = merge(values, map[string]any{"glooAgent": map[string]any{"relay": map[string]any{"serverAddress": address}}})
	}
	p.Values = values
	return p, nil
}

// installReport is the final document of `install -o json`.
type installReport struct {
	Context   string  `json:"context"`
	Namespace string  `json:"namespace"`
	Release   string  `json:"release"`
	Version   string  `json:"version"`
	Ready     bool    `json:"ready"`
	Seconds   float64 `json:"seconds"`
	Steps     []step  `json:"steps"`
	Error     string  `json:"error,omitempty"`
}

func (a *app) install(ctx context.Context, o *installOptions) error {
	format, err := parseFormat(o.output, formatTable, formatJSON, formatYAML)
	if err != nil {
		return err
	}
	given, err := readValues(o.files, o.sets)
	if err != nil {
		return err
	}
	c, err := a.connect("", firstOf(o.mgmtContext, a.Context), "--kubecontext")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if _, err := c.uid(ctx); err != nil { // reachable, and the credentials are good
		return err
	}
	h := &helm{cluster: c, namespace: a.Namespace, app: a}
	previous, err := h.values(charts.Platform)
	if err != nil {
		return err
	}
	plan, err := planInstall(o, given, previous, c.Context)
	if err != nil {
		return err
	}
	if o.dryRun {
		return a.printManifests(ctx, h, plan)
	}
	w := a.streams.Out
	if format != formatTable {
		w = a.streams.Err
	}
	out := a.newProgress(w)
	report := installReport{Context: c.Context, Namespace: a.Namespace, Release: charts.Platform, Version: firstOf(o.version, ambitversion.Version)}
	err = a.doInstall(ctx, h, plan, previous != nil, out)
	report.Ready, report.Seconds, report.Steps = err == nil, out.elapsed().Round(time.Millisecond).Seconds(), out.all()
	if err != nil {
		report.Error = err.Error()
	}
	if format != formatTable {
		return errors.Join(printDocument(a.streams.Out, format, report), err)
	}
	if err == nil && plan.Server {
		fmt.Fprintf(a.streams.Out, "\nThe management plane is ready, %s. Register a cluster:\n  meshctl cluster register NAME --mgmt-context %s --remote-context CONTEXT\n", short(out.elapsed()), c.Context)
	}
	return err
}

func (a *app) printManifests(ctx context.Context, h *helm, plan *installPlan) error {
	for chart, values := range map[string]map[string]any{charts.CRDs: {}, charts.Platform: plan.Values} {
		manifest, err := h.render(ctx, chart, chart, values)
		if err != nil {
			return err
		}
		fmt.Fprint(a.streams.Out, manifest)
	}
	return nil
}

func (a *app) doInstall(ctx context.Context, h *helm, plan *installPlan, upgrade bool, out *progress) error {
	if err := h.cluster.ensureNamespace(ctx, h.namespace, out); err != nil {
		return err
	}
	if _, err := h.apply(ctx, charts.CRDs, charts.CRDs, map[string]any{}); err != nil {
		return err
	}
	out.done("installed the CRDs on %s (Helm release %s/%s)", h.cluster.Context, h.namespace, charts.CRDs)
	if _, err := h.apply(ctx, charts.Platform, charts.Platform, plan.Values); err != nil {
		return err
	}
	verb := "installed"
	if upgrade {
		verb = "upgraded"
	}
	out.done("%s Helm release %s/%s on %s", verb, h.namespace, charts.Platform, h.cluster.Context)
	g, gctx := errgroup.WithContext(ctx)
	if plan.Agent {
		g.Go(func() error { return h.cluster.awaitProgram(gctx, h.namespace, agentName, out) })
	}
	if plan.Server {
		g.Go(func() error {
			if err := h.cluster.awaitProgram(gctx, h.namespace, serverName, out); err != nil {
				return err
			}
			if err := h.cluster.awaitSecrets(gctx, h.namespace); err != nil {
				return err
			}
			out.fine("the relay's five Secrets are there")
			if err := h.cluster.awaitWebhook(gctx, h.namespace); err != nil {
				return err
			}
			out.fine("the webhook answers: who registers a cluster is recorded")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if plan.Server && plan.Register && plan.Agent {
		if _, err := awaitObject(ctx, h.cluster, &adminv2.KubernetesClusterList{}, h.namespace, plan.Cluster, func(kc *adminv2.KubernetesCluster) (bool, error) {
			return kc.Status.Connection == adminv2.ConnectionConnected, nil
		}); err != nil {
			return notReached(fmt.Errorf("cluster %s did not connect to its own management server: %w; see meshctl check", plan.Cluster, err))
		}
		out.fine("%s is Connected", plan.Cluster)
	}
	return nil
}

// awaitProgram waits for a Deployment; when it does not come up it says why.
func (c *cluster) awaitProgram(ctx context.Context, namespace, name string, out *progress) error {
	err := c.awaitRollout(ctx, namespace, name)
	if err == nil {
		out.fine("%s is ready", name)
		return nil
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	f := c.programFacts(look, namespace, name)
	f.Cluster = &adminv2.KubernetesCluster{}
	why, hints := diagnose(f)
	if len(f.Pods) > 0 && f.Pods[0].Status.Phase == corev1.PodRunning {
		why = "its Pod runs but is not Ready"
	}
	return notReached(fmt.Errorf("%s on context %q is not ready after %s: %s\n    %s\nIt is installed; run the same command again to go on waiting", name, c.Context, short(out.elapsed()), why, strings.Join(hints, "\n    ")))
}

func relaySecrets() []string {
	return []string{secretRoot, secretServer, secretClient, secretSigning, secretToken}
}

// awaitSecrets waits for the five Secrets that published scripts wait for.
func (c *cluster) awaitSecrets(ctx context.Context, namespace string) error {
	for {
		var missing []string
		for _, name := range relaySecrets() {
			var s corev1.Secret
			ok, err := c.found(ctx, namespace, name, &s)
			if err != nil && ctx.Err() == nil {
				return c.says("read Secret "+name, err)
			}
			if !ok {
				missing = append(missing, name)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return notReached(fmt.Errorf("context %q: the management server is ready but has not made %s; see its log: kubectl --context %s -n %s logs deployment/%s", c.Context, strings.Join(missing, ", "), c.Context, namespace, serverName))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// probeWebhook asks for a KubernetesCluster to be created, as a dry run: with failurePolicy Fail that passes only if the webhook answers.
func (c *cluster) probeWebhook(ctx context.Context, namespace string) error {
	ctx, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	probe := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "meshctl-probe", Namespace: namespace}}
	return c.Create(ctx, probe, client.DryRunAll)
}

// awaitWebhook waits until the webhook answers.
func (c *cluster) awaitWebhook(ctx context.Context, namespace string) error {
	var last error
	for {
		err := c.probeWebhook(ctx, namespace)
		if err == nil || apierrors.IsAlreadyExists(err) {
			return nil
		}
		if apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "webhook") {
			return nil // this person may not create clusters: nothing can be said
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return notReached(fmt.Errorf("context %q: the management server is ready but its webhook does not answer: %w", c.Context, last))
		case <-time.After(100 * time.Millisecond):
		}
	}
}
