package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/segments"
)

type deregisterOptions struct {
	name                             mesh.ClusterName
	mgmtContext, remoteContext       string
	mgmtKubeconfig, remoteKubeconfig string
	mgmtNamespace, remoteNamespace   string
	timeout                          time.Duration
	output                           string
}

func (a *app) deregisterCommand() *cobra.Command {
	o := &deregisterOptions{}
	cmd := &cobra.Command{
		Use:   "deregister NAME",
		Short: "Deregister a cluster: its identity is revoked at once",
		Long: `Deletes the KubernetesCluster, which revokes every key the cluster ever used: the next message of its agent is refused.
Intermediates that a RootTrustPolicy issued to it go on the revocation list of the other clusters half a minute later (meshctl trust status).
Then, with --remote-context, removes the agent and what belongs to it. When that cluster can't be reached, what is left there is listed.
Running it again is safe.

` + exitHelp,
		Example: `  meshctl cluster deregister prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3

  # the cluster is gone for good
  meshctl cluster deregister prod-eu-west-3 --mgmt-context mgmt`,
		Args: exactName("cluster name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = mesh.ClusterName(args[0])
			return a.deregister(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeClusters(&o.mgmtContext),
	}
	a.mgmtContextFlag(cmd, &o.mgmtContext)
	f := cmd.Flags()
	f.StringVar(&o.remoteContext, "remote-context", "", "context of the cluster, to remove the agent from it")
	f.StringVar(&o.mgmtKubeconfig, "mgmt-kubeconfig", "", "kubeconfig file of the management cluster (default: --kubeconfig)")
	f.StringVar(&o.remoteKubeconfig, "remote-kubeconfig", "", "kubeconfig file of the cluster (default: --kubeconfig)")
	f.StringVar(&o.mgmtNamespace, "mgmt-namespace", "", "namespace of the management plane (default: --namespace)")
	f.StringVar(&o.remoteNamespace, "remote-namespace", "", "namespace of the agent (default: --namespace)")
	f.DurationVar(&o.timeout, "timeout", 60*time.Second, "how long it may take, in all")
	_ = cmd.RegisterFlagCompletionFunc("remote-context", a.completeContexts)
	formatFlag(cmd, &o.output, formatTable, formatJSON, formatYAML)
	return cmd
}

// deregisterReport is the final document of `cluster deregister -o json`.
type deregisterReport struct {
	Cluster string   `json:"cluster"`
	Revoked bool     `json:"revoked"` // the management server has marked every key of the cluster
	Left    []string `json:"left,omitempty"`
	Seconds float64  `json:"seconds"`
	Steps   []step   `json:"steps"`
	Error   string   `json:"error,omitempty"`
}

func (a *app) deregister(ctx context.Context, o *deregisterOptions) error {
	format, err := parseFormat(o.output, formatTable, formatJSON, formatYAML)
	if err != nil {
		return err
	}
	if err := o.name.Validate(); err != nil {
		return usageError("%w", err)
	}
	o.mgmtNamespace, o.remoteNamespace = firstOf(o.mgmtNamespace, a.Namespace), firstOf(o.remoteNamespace, a.Namespace)
	mgmt, err := a.connect(o.mgmtKubeconfig, firstOf(o.mgmtContext, a.Context), "--mgmt-context")
	if err != nil {
		return err
	}
	var remote *cluster
	if o.remoteContext != "" {
		if remote, err = a.connect(o.remoteKubeconfig, o.remoteContext, "--remote-context"); err != nil {
			return err
		}
	}
	w := a.streams.Out
	if format != formatTable {
		w = a.streams.Err
	}
	out := a.newProgress(w)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	report := deregisterReport{Cluster: string(o.name)}
	err = a.doDeregister(ctx, o, mgmt, remote, out, &report)
	report.Seconds, report.Steps = out.elapsed().Round(time.Millisecond).Seconds(), out.all()
	if err != nil {
		report.Error = err.Error()
	}
	if format != formatTable {
		return errors.Join(printDocument(a.streams.Out, format, report), err)
	}
	return err
}

func (a *app) doDeregister(ctx context.Context, o *deregisterOptions, mgmt, remote *cluster, out *progress, report *deregisterReport) error {
	lacking, err := mgmt.lacking(ctx, []need{
		{[]string{"get", "delete", "watch"}, "admin.gloo.solo.io", "kubernetesclusters", o.mgmtNamespace},
		{[]string{"get", "delete"}, "", "secrets", o.mgmtNamespace},
	})
	if err != nil {
		return err
	}
	if err := forbidden(mgmt.Context, lacking); err != nil {
		return err
	}
	known, err := mgmt.revoke(ctx, o.mgmtNamespace, o.name, out, report)
	if err != nil {
		return err
	}
	if remote == nil {
		report.Left = []string{
			"the agent (Helm releases " + charts.Platform + " and " + charts.CRDs + ", and relay Secrets) in the cluster itself; it can't connect any more",
			fmt.Sprintf("remove it with: meshctl cluster deregister %s --mgmt-context %s --remote-context CONTEXT", o.name, mgmt.Context),
		}
		out.note("no --remote-context: %s", strings.Join(report.Left, ". "))
		return unknown(known, o.name, mgmt)
	}
	left, err := a.removeAgent(ctx, o, mgmt, remote, out)
	if unreachable(err) || errors.Is(err, context.DeadlineExceeded) {
		report.Left = []string{
			fmt.Sprintf("in namespace %s of context %s: Helm releases %s and %s, Secrets %s, %s", o.remoteNamespace, remote.Context, charts.Platform, charts.CRDs, secretRoot, secretClient),
			fmt.Sprintf("when it can be reached again: meshctl cluster deregister %s --mgmt-context %s --remote-context %s", o.name, mgmt.Context, remote.Context),
		}
		out.warn("%v", err)
		out.warn("%s is deregistered, its identity is revoked; left over %s", o.name, strings.Join(report.Left, "; "))
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s is deregistered, but its agent could not be removed: %w\nAfter mending the cause, run the same command again", o.name, err)
	}
	report.Left = left
	if !known && len(out.made()) == 0 {
		return unknown(false, o.name, mgmt)
	}
	return nil
}

// unknown is the answer when there was nothing to do.
func unknown(known bool, name mesh.ClusterName, mgmt *cluster) error {
	if known {
		return nil
	}
	return fmt.Errorf("no cluster %q is registered on context %q; meshctl cluster list --kubecontext %s", name, mgmt.Context, mgmt.Context)
}

// revoke deletes the KubernetesCluster and waits until the management server has marked its keys.
func (c *cluster) revoke(ctx context.Context, namespace string, name mesh.ClusterName, out *progress, report *deregisterReport) (known bool, err error) {
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: string(name), Namespace: namespace}}
	err = c.Delete(ctx, kc)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return false, c.says("delete KubernetesCluster "+string(name), err)
	default:
		known = true
		out.done("deleted KubernetesCluster %s/%s on %s", namespace, name, c.Context)
	}
	token := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: prefixRegistration + string(name), Namespace: namespace}}
	if err := c.Delete(ctx, token); err != nil && !apierrors.IsNotFound(err) {
		return known, c.says("delete Secret "+token.Name, err)
	}
	if !known {
		return false, nil
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		var record corev1.Secret
		ok, err := c.found(ctx, namespace, prefixIdentity+string(name), &record)
		if err == nil && !ok {
			out.note("the cluster never had a certificate of this management plane: nothing to revoke")
			report.Revoked = true
			return true, nil
		}
		if err == nil && allRevoked(record.Data["record"]) {
			out.done("the management server revoked every key of %s", name)
			report.Revoked = true
			return true, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	out.warn("the management server has not marked the keys of %s as revoked yet: it does so when it runs (meshctl check); without its KubernetesCluster the cluster can't connect anyway", name)
	return true, nil
}

// removeAgent removes what registering put into the cluster, and nothing else. It returns what it left and why.
func (a *app) removeAgent(ctx context.Context, o *deregisterOptions, mgmt, remote *cluster, out *progress) (left []string, err error) {
	reach, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	uid, err := remote.uid(reach)
	if err != nil {
		return nil, err
	}
	mgmtUID, err := mgmt.uid(ctx)
	if err != nil {
		return nil, err
	}
	f := &registerFacts{}
	if err := f.readRemote(ctx, remote, o.remoteNamespace); err != nil {
		return nil, err
	}
	if f.Agent != nil && f.Agent.Cluster != "" && f.Agent.Cluster != o.name {
		return nil, fmt.Errorf("the agent of context %q is that of cluster %q: it was left alone", remote.Context, f.Agent.Cluster)
	}
	release := charts.Platform
	if f.Agent != nil && f.Agent.Release != "" {
		release = f.Agent.Release
	}
	h := &helm{cluster: remote, namespace: o.remoteNamespace, app: a}
	if uid == mgmtUID || f.RemoteHub {
		// The management server lives in the same release: only the agent goes.
		values, err := h.values(release)
		if err != nil || values == nil {
			return nil, err
		}
		if _, err := h.apply(ctx, release, charts.Platform, merge(values, map[string]any{"glooAgent": map[string]any{"enabled": false}})); err != nil {
			return nil, err
		}
		out.done("removed the agent from Helm release %s/%s on %s; the management server stays", o.remoteNamespace, release, remote.Context)
		return nil, nil
	}
	was, err := h.uninstall(release)
	if err != nil {
		return nil, err
	}
	if was {
		out.done("uninstalled Helm release %s/%s on %s", o.remoteNamespace, release, remote.Context)
	}
	if err := remote.deleteOurs(ctx, o.remoteNamespace, out); err != nil {
		return nil, err
	}
	if left, err = a.removeCRDs(ctx, h, out); err != nil {
		return left, err
	}
	return append(left, remote.removeNamespace(ctx, o.remoteNamespace, out)...), nil
}

// deleteOurs deletes what the agent and registering left in its namespace, by name.
func (c *cluster) deleteOurs(ctx context.Context, namespace string, out *progress) error {
	var objects []client.Object
	for _, name := range []string{secretClient, secretRoot, secretToken, secretRegistration} {
		objects = append(objects, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}})
	}
	var configMaps corev1.ConfigMapList
	if err := c.List(ctx, &configMaps, client.InNamespace(namespace)); err != nil {
		return c.says("list ConfigMaps", err)
	}
	var inventories []client.Object
	for i := range configMaps.Items {
		if m := &configMaps.Items[i]; strings.HasPrefix(m.Name, inventoryName) {
			objects = append(objects, listed(m.Data["objects"])...)
			inventories = append(inventories, m)
		}
	}
	var remotes corev1.SecretList // what the agent made istiod read other clusters by; their tokens are dead
	if err := c.List(ctx, &remotes, client.MatchingLabels{mesh.OwnerLabel: mesh.OwnerValue, "istio/multiCluster": "true"}); err != nil {
		return c.says("list remote secrets", err)
	}
	for i := range remotes.Items {
		if s := &remotes.Items[i]; s.Annotations[mesh.TokenPeerAnnotation] != "" {
			objects = append(objects, s)
		}
	}
	direct, err := dynamic.NewForConfig(c.config)
	if err != nil {
		return c.says("connect", err)
	}
	shared, err := segments.Remove(ctx, direct, namespace)
	if err != nil {
		return c.says("take back what Segments made global", err)
	}
	if shared {
		out.done("took back what Segments had made global on %s", c.Context)
	}
	objects = append(objects, inventories...) // last: what they list must not be forgotten by a failure
	var deleted []string
	for _, o := range objects {
		err := c.Delete(ctx, o)
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			continue
		}
		if err != nil {
			return c.says("delete "+o.GetName(), err)
		}
		deleted = append(deleted, o.GetName())
	}
	if len(deleted) > 0 {
		out.done("deleted %s in namespace %s on %s", strings.Join(deleted, ", "), namespace, c.Context)
	}
	return nil
}

// inventoryName begins the names of the ConfigMaps in which the agent lists what it applied.
const inventoryName = "gloo-mesh-agent-inventory"

// listed reads an agent's inventory: one object per line, group/version/kind/namespace/name; what can't be read is left alone.
func listed(inventory string) []client.Object {
	var out []client.Object
	for line := range strings.Lines(inventory) {
		parts := strings.Split(strings.TrimSpace(line), "/")
		if len(parts) != 5 {
			continue
		}
		o := &unstructured.Unstructured{}
		o.SetGroupVersionKind(schema.GroupVersionKind{Group: parts[0], Version: parts[1], Kind: parts[2]})
		o.SetNamespace(parts[3])
		o.SetName(parts[4])
		out = append(out, o)
	}
	return out
}

// removeCRDs uninstalls the CRDs' release, and the CRDs themselves when nobody has objects of them there.
func (a *app) removeCRDs(ctx context.Context, h *helm, out *progress) (left []string, err error) {
	was, err := h.uninstall(charts.CRDs)
	if err != nil || !was {
		return nil, err
	}
	out.done("uninstalled Helm release %s/%s on %s", h.namespace, charts.CRDs, h.cluster.Context)
	var list adminv2.KubernetesClusterList
	if err := h.cluster.List(ctx, &list); err == nil && len(list.Items) > 0 {
		return []string{fmt.Sprintf("the CRDs, since there are %d KubernetesClusters in this cluster", len(list.Items))}, nil
	}
	var crds apiextensionsv1.CustomResourceDefinitionList
	if err := h.cluster.List(ctx, &crds, client.MatchingLabels{"app": "gloo-mesh-apis"}); err != nil {
		return []string{"the CRDs: " + err.Error()}, nil
	}
	for i := range crds.Items {
		crd := &crds.Items[i]
		if crd.Annotations["meta.helm.sh/release-name"] != charts.CRDs || crd.Annotations["meta.helm.sh/release-namespace"] != h.namespace {
			continue // somebody else's
		}
		if err := h.cluster.Delete(ctx, crd); err != nil && !apierrors.IsNotFound(err) {
			return []string{"CRD " + crd.Name + ": " + err.Error()}, nil
		}
	}
	return nil, nil
}

// removeNamespace deletes the namespace when meshctl made it and nothing of anybody else is in it.
func (c *cluster) removeNamespace(ctx context.Context, name string, out *progress) (left []string) {
	var ns corev1.Namespace
	if ok, err := c.found(ctx, "", name, &ns); err != nil || !ok {
		return nil
	}
	if ns.Annotations[annotationMadeBy] != "meshctl" {
		out.note("namespace %s on %s was not made by meshctl: it stays", name, c.Context)
		return []string{"namespace " + name}
	}
	strangers, err := c.strangers(ctx, name)
	if err != nil || len(strangers) > 0 {
		out.note("namespace %s on %s stays: it holds %s", name, c.Context, firstOf(strings.Join(strangers, ", "), "what you may not list"))
		return []string{"namespace " + name}
	}
	if err := c.Delete(ctx, &ns); err != nil && !apierrors.IsNotFound(err) {
		out.note("namespace %s on %s stays: %v", name, c.Context, err)
		return []string{"namespace " + name}
	}
	if err := c.awaitNamespaceGone(ctx, name); err != nil {
		out.warn("%v", err)
		return []string{"namespace " + name + ", which is being deleted"}
	}
	out.done("deleted namespace %s on %s", name, c.Context)
	return nil
}

// strangers lists what is in the namespace that neither Kubernetes, Istio nor we put into every namespace.
func (c *cluster) strangers(ctx context.Context, namespace string) ([]string, error) {
	always := []string{"kube-root-ca.crt", "istio-ca-root-cert", "istio-ca-crl", "default"}
	var out []string
	for _, list := range []client.ObjectList{
		&corev1.SecretList{}, &corev1.ConfigMapList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &corev1.PersistentVolumeClaimList{}, &corev1.PodList{},
	} {
		if err := c.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return nil, err
		}
		_ = eachItem(list, func(o client.Object) {
			if _, ours := o.(*corev1.Pod); ours && o.GetLabels()["app"] == agentName {
				return // on its way out
			}
			if slices.Contains(always, o.GetName()) {
				return
			}
			if s, ok := o.(*corev1.Secret); ok && s.Type == corev1.SecretTypeServiceAccountToken {
				return
			}
			out = append(out, fmt.Sprintf("%s %s", kindOf(o), o.GetName()))
		})
	}
	return out, nil
}
