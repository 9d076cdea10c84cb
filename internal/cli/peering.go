package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

// peeringVerbs are the flags of `peering status`.
type peeringVerbs struct {
	*app
	mgmtContext, cluster, snapshot, output string
	problems                               bool
}

func (a *app) peeringCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "peering", Short: "See how clusters reach each other's east-west gateways",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.peeringStatusCommand())
	return cmd
}

func (a *app) peeringStatusCommand() *cobra.Command {
	p := &peeringVerbs{app: a}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Every pair of clusters: the peer, its address, whether it answers and how fast, or why there is none",
		Long: `Says for every pair of clusters whether FROM has a peer (a Gateway of class istio-remote) for TO, kept automatically (featureGates.ConfigDistribution) or made by hand, which
address it leads to, whether that answers the agent of FROM, and the measured round trip; where it does not, why not and what to do.
It reads what the management server knows, through a port-forward to its Pod; --snapshot reads a file of "meshctl policy snapshot" in its place.

A cluster stays out for good with
  kubectl -n gloo-mesh annotate kubernetescluster NAME ` + mesh.AnnotationAutomaticPeering + `=false
and is reached under another address with
  kubectl -n gloo-mesh annotate kubernetescluster NAME ` + mesh.AnnotationPeeringAddress + `=192.168.1.18

Exit codes: 0 all good, 1 some pair needs somebody, 2 it could not be found out (or wrong usage).`,
		Example: `  meshctl peering status --mgmt-context mgmt
  meshctl peering status --cluster prod-eu-west-3
  meshctl peering status --problems
  meshctl peering status -o json | jq -r '.links[] | select(.reachable == "False") | .why'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(p.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			return cannotTell(p.status(ctx, f))
		},
	}
	p.mgmtContextFlag(cmd, &p.mgmtContext)
	cmd.Flags().StringVar(&p.cluster, "cluster", "", "only pairs of this cluster, on either side")
	cmd.Flags().BoolVar(&p.problems, "problems", false, "only pairs that need somebody")
	snapshotFlag(cmd, &p.snapshot)
	formatFlag(cmd, &p.output, formatTable, formatJSON, formatYAML)
	return cmd
}

// peeringReport is the document of `peering status`.
type peeringReport struct {
	// Automatic: featureGates.ConfigDistribution is on.
	Automatic bool            `json:"automatic"`
	Clusters  int             `json:"clusters"`
	Links     []mesh.PeerLink `json:"links"`
	troubled  bool
}

func (p *peeringVerbs) status(ctx context.Context, f format) error {
	verbs := &policyVerbs{app: p.app, mgmtContext: p.mgmtContext, mgmtNamespace: p.Namespace}
	s, err := verbs.snapshot(ctx, p.snapshot)
	if err != nil {
		return err
	}
	if p.cluster != "" && s.Snapshot.Cluster(mesh.ClusterName(p.cluster)) == nil {
		return usageError("--cluster %q: there is no such cluster (meshctl cluster list)", p.cluster)
	}
	r := p.report(s.Snapshot)
	if f != formatTable {
		err = printDocument(p.streams.Out, f, r)
	} else {
		p.print(r)
	}
	if err == nil && r.troubled {
		return &exitError{ExitFailed, errSilent}
	}
	return err
}

// report lists the pairs that are asked for, by FROM and TO.
func (p *peeringVerbs) report(s *mesh.Snapshot) peeringReport {
	peering := mesh.PeeringOf(s)
	names := peering.Names()
	r := peeringReport{Automatic: peering.On, Clusters: len(names), Links: []mesh.PeerLink{}}
	only := mesh.ClusterName(p.cluster)
	for i := range s.Clusters {
		from := &s.Clusters[i]
		for _, to := range names {
			if from.Name == to || only != "" && from.Name != only && to != only {
				continue
			}
			standing, _ := peering.Standing(from, to)
			bad := standing == mesh.PeerUnreachable || standing == mesh.PeerMissing
			r.troubled = r.troubled || bad
			if bad || !p.problems {
				r.Links = append(r.Links, peering.Link(from, to))
			}
		}
	}
	return r
}

func (p *peeringVerbs) print(r peeringReport) {
	out := p.streams.Out
	if !r.Automatic {
		fmt.Fprintln(out, "Automatic peering is off (featureGates.ConfigDistribution): peers are as people make them.")
	}
	switch {
	case r.Clusters < 2:
		fmt.Fprintln(out, "There are no pairs of clusters: register a second one.")
		return
	case len(r.Links) == 0:
		fmt.Fprintln(out, "No pair needs anybody.")
		return
	}
	rows := make([][]string, 0, len(r.Links))
	for i := range r.Links {
		l := &r.Links[i]
		trip := ""
		if l.RoundTrip > 0 {
			trip = report.RoundTrip(l.RoundTrip)
		}
		rows = append(rows, []string{string(l.From), string(l.To), string(l.Reason), none(l.Address), none(string(l.Reachable)), none(trip), l.Why})
	}
	printTable(out, "", []string{"FROM", "TO", "PEER", "ADDRESS", "REACHABLE", "RTT", "WHY"}, rows)
}
