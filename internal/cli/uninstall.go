package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/charts"
)

func (a *app) uninstallCommand() *cobra.Command {
	var mgmtContext string
	var force, purge bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Uninstall the management plane",
		Long: `Uninstalls the management server. The relay's Secrets, the CRDs and the KubernetesClusters stay, so that installing again takes up where it
left: agents keep what they applied and reconnect. --purge removes those too.

` + exitHelp,
		Example: "  meshctl uninstall --kubecontext mgmt\n  meshctl uninstall --kubecontext mgmt --purge --force",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect("", firstOf(mgmtContext, a.Context), "--kubecontext")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return a.uninstall(ctx, c, force, purge)
		},
	}
	a.mgmtContextFlag(cmd, &mgmtContext)
	cmd.Flags().BoolVar(&force, "force", false, "even when clusters are registered")
	cmd.Flags().BoolVar(&purge, "purge", false, "also the relay's Secrets, the CRDs and every KubernetesCluster")
	cmd.Flags().DurationVar(&timeout, "timeout", 60*time.Second, "how long it may take, in all")
	return cmd
}

func (a *app) uninstall(ctx context.Context, c *cluster, force, purge bool) error {
	var clusters adminv2.KubernetesClusterList
	if err := c.List(ctx, &clusters, client.InNamespace(a.Namespace)); err != nil && !meta.IsNoMatchError(err) {
		return c.says("list KubernetesClusters", err)
	}
	if n := len(clusters.Items); n > 0 && !force {
		names := make([]string, n)
		for i, k := range clusters.Items {
			names[i] = k.Name
		}
		return fmt.Errorf("context %q: %d clusters are registered (%s): deregister them first, or use --force", c.Context, n, strings.Join(names, ", "))
	}
	out := a.newProgress(a.streams.Out)
	h := &helm{cluster: c, namespace: a.Namespace, app: a}
	was, err := h.uninstall(charts.Platform)
	if err != nil {
		return err
	}
	if was {
		out.done("uninstalled Helm release %s/%s on %s", a.Namespace, charts.Platform, c.Context)
	} else {
		out.note("there is no Helm release %s/%s on %s", a.Namespace, charts.Platform, c.Context)
	}
	if !purge {
		out.note("kept: the relay's Secrets, the CRDs and %d KubernetesClusters (--purge removes them)", len(clusters.Items))
		return nil
	}
	return a.purge(ctx, c, h, clusters.Items, out)
}

func (a *app) purge(ctx context.Context, c *cluster, h *helm, clusters []adminv2.KubernetesCluster, out *progress) error {
	for i := range clusters {
		if err := c.Delete(ctx, &clusters[i]); err != nil && !apierrors.IsNotFound(err) {
			return c.says("delete KubernetesCluster "+clusters[i].Name, err)
		}
	}
	if _, err := h.uninstall(charts.CRDs); err != nil {
		return err
	}
	var crds apiextensionsv1.CustomResourceDefinitionList
	if err := c.List(ctx, &crds, client.MatchingLabels{"app": "gloo-mesh-apis"}); err != nil {
		return c.says("list CRDs", err)
	}
	for i := range crds.Items {
		if crds.Items[i].Annotations["meta.helm.sh/release-name"] == charts.CRDs {
			if err := c.Delete(ctx, &crds.Items[i]); err != nil && !apierrors.IsNotFound(err) {
				return c.says("delete CRD "+crds.Items[i].Name, err)
			}
		}
	}
	var secrets corev1.SecretList
	if err := c.List(ctx, &secrets, client.InNamespace(a.Namespace)); err != nil {
		return c.says("list Secrets", err)
	}
	for i := range secrets.Items {
		if s := &secrets.Items[i]; strings.HasPrefix(s.Name, "relay-") {
			if err := c.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: s.Name, Namespace: s.Namespace}}); err != nil && !apierrors.IsNotFound(err) {
				return c.says("delete Secret "+s.Name, err)
			}
		}
	}
	out.done("deleted %d KubernetesClusters, the CRDs and the relay's Secrets: no agent can connect with its old identity", len(clusters))
	c.removeNamespace(ctx, a.Namespace, out)
	return nil
}
