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
)

func (a *app) listCommand() *cobra.Command {
	var mgmtContext, output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the registered clusters",
		Long:  "Lists the registered clusters, as the management cluster's API server has them.\n\n" + exitHelp,
		Example: `  meshctl cluster list --mgmt-context mgmt
  meshctl cluster list -o wide
  meshctl cluster list -o json | jq -r '.[] | select(.status != "Connected") | .cluster'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := parseFormat(output, formatTable, formatWide, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			mgmt, err := a.connect("", firstOf(mgmtContext, a.Context), "--mgmt-context")
			if err != nil {
				return err
			}
			return a.list(cmd.Context(), mgmt, format)
		},
	}
	a.mgmtContextFlag(cmd, &mgmtContext)
	formatFlag(cmd, &output, formatTable, formatWide, formatJSON, formatYAML)
	return cmd
}

// clusterRow is a cluster as `cluster list` and `check` print it.
type clusterRow struct {
	Cluster       string            `json:"cluster"`
	Namespace     string            `json:"namespace"`
	Status        string            `json:"status"`
	AgentVersion  string            `json:"agentVersion,omitempty"`
	LastHeartbeat string            `json:"lastHeartbeat,omitempty"`
	TrustDomain   string            `json:"trustDomain,omitempty"`
	RegisteredBy  string            `json:"registeredBy,omitempty"`
	Created       string            `json:"created"`
	ClusterUID    string            `json:"clusterUID,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
}

// clusters reads the KubernetesClusters, sorted by name.
func (c *cluster) clusters(ctx context.Context, namespace string) ([]adminv2.KubernetesCluster, error) {
	var list adminv2.KubernetesClusterList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		if meta.IsNoMatchError(err) {
			return nil, fmt.Errorf("context %q has no management plane: the kind KubernetesCluster is not known there. Install it: meshctl install --kubecontext %s", c.Context, c.Context)
		}
		return nil, c.says("list KubernetesClusters", err)
	}
	slices.SortFunc(list.Items, func(a, b adminv2.KubernetesCluster) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, nil
}

func rowOf(k *adminv2.KubernetesCluster) clusterRow {
	row := clusterRow{
		Cluster: k.Name, Namespace: k.Namespace, Status: firstOf(string(k.Status.Connection), string(adminv2.ConnectionPending)), AgentVersion: k.Status.AgentVersion,
		TrustDomain: k.Status.TrustDomain, RegisteredBy: firstOf(k.Status.RegisteredBy, k.Annotations[adminv2.AnnotationRegisteredBy]),
		Created: k.CreationTimestamp.UTC().Format(time.RFC3339), ClusterUID: k.Status.ClusterUID, Labels: k.Labels,
	}
	if k.Status.LastHeartbeat != nil {
		row.LastHeartbeat = k.Status.LastHeartbeat.UTC().Format(time.RFC3339)
	}
	return row
}

func (a *app) list(ctx context.Context, mgmt *cluster, f format) error {
	clusters, err := mgmt.clusters(ctx, a.Namespace)
	if err != nil {
		return err
	}
	rows := make([]clusterRow, len(clusters))
	for i := range clusters {
		rows[i] = rowOf(&clusters[i])
	}
	if f == formatJSON || f == formatYAML {
		return printDocument(a.streams.Out, f, rows)
	}
	if len(rows) == 0 {
		fmt.Fprintf(a.streams.Err, "No clusters are registered. Register one: meshctl cluster register NAME --mgmt-context %s --remote-context CONTEXT\n", mgmt.Context)
		return nil
	}
	head := []string{"CLUSTER", "NAMESPACE", "STATUS", "AGENT-VERSION"}
	if f == formatWide {
		head = append(head, "LAST HEARTBEAT", "TRUST DOMAIN", "CREATED", "REGISTERED BY", "CLUSTER UID")
	}
	var cells [][]string
	for _, r := range rows {
		line := []string{r.Cluster, r.Namespace, r.Status, none(r.AgentVersion)}
		if f == formatWide {
			line = append(line, none(r.LastHeartbeat), none(r.TrustDomain), r.Created, none(r.RegisteredBy), none(r.ClusterUID))
		}
		cells = append(cells, line)
	}
	printTable(a.streams.Out, "", head, cells)
	return nil
}
