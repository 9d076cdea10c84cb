package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/meshcheck"
)

func (a *app) multiclusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "multicluster",
		Short: "Look at the mesh of several clusters",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.multiclusterCheckCommand())
	return cmd
}

type multiclusterCheck struct {
	contexts  []string
	directory string
	verbose   bool
	precheck  bool
	output    string
}

func (a *app) multiclusterCheckCommand() *cobra.Command {
	o := &multiclusterCheck{}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check whether clusters make one ambient mesh",
		Long: `Looks at istiod's settings, gateways, network labels, trust domains, certificates, remote secrets, global services, clocks and MTUs of each cluster, and
whether they fit together. It needs no management plane, reads only, and changes nothing. Each failure prints the command that mends it.

Several clusters are compared with each other; of one alone, what concerns its peers is left out. --precheck leaves out what is there only once clusters are linked.
--directory reads files instead: a folder for each cluster with the YAML or JSON of "kubectl get ... -o yaml", as in a bug report.

` + exitHelp,
		Example: `  meshctl multicluster check
  meshctl multicluster check --contexts cluster-1,cluster-2 --verbose
  meshctl multicluster check --context cluster-1 | grep "Shared Services"
  meshctl multicluster check --contexts cluster-1,cluster-2 --precheck
  meshctl multicluster check --directory ./bug-report -o json | jq '.[] | select(.status=="error")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(o.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			if o.directory != "" && len(o.contexts) > 0 {
				return usageError("--contexts and --directory exclude each other: files are read, or clusters")
			}
			return a.multiclusterCheck(cmd.Context(), o, f)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&o.contexts, "contexts", nil, "contexts of the clusters, separated by commas (default: --context, then the current one)")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "show what was looked at, not only what is wrong")
	flags.BoolVarP(&o.precheck, "precheck", "p", false, "only what has to be right before clusters are linked")
	flags.StringVar(&o.directory, "directory", "", "read files of this folder, one folder in it for each cluster")
	_ = cmd.RegisterFlagCompletionFunc("contexts", a.completeContexts)
	_ = cmd.MarkFlagDirname("directory")
	formatFlag(cmd, &o.output, formatTable, formatJSON, formatYAML)
	return cmd
}

func (a *app) multiclusterCheck(ctx context.Context, o *multiclusterCheck, f format) error {
	var seen []seenCluster
	var err error
	if o.directory != "" {
		seen, err = readBugReport(o.directory)
	} else {
		seen, err = a.seeClusters(ctx, o.contexts)
	}
	if err != nil {
		return err
	}
	var known []*meshcheck.Cluster
	for _, s := range seen {
		if s.err == nil {
			known = append(known, s.facts)
		}
	}
	reports := meshcheck.Check(known, meshcheck.Options{Precheck: o.precheck, Now: time.Now()})
	for i, s := range seen {
		if s.err != nil {
			reports = slices.Insert(reports, min(i, len(reports)), meshcheck.Report{Cluster: s.name, Status: meshcheck.Error, Findings: []meshcheck.Finding{{
				Check: "Connection Check", Status: meshcheck.Error, Summary: s.err.Error(),
			}}})
		}
	}
	if f != formatTable {
		err = printDocument(a.streams.Out, f, reports)
	} else {
		for i, r := range reports {
			if i > 0 {
				fmt.Fprintln(a.streams.Out)
			}
			a.printReport(r, o.verbose)
		}
	}
	if err == nil && slices.ContainsFunc(reports, func(r meshcheck.Report) bool { return r.Status == meshcheck.Error }) {
		return &exitError{ExitFailed, errSilent}
	}
	return err
}

func (a *app) printReport(r meshcheck.Report, verbose bool) {
	w := a.streams.Out
	fmt.Fprintf(w, "=== Cluster: %s ===\n", r.Cluster)
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s %s: %s\n", a.mark(f.Status), f.Check, f.Summary)
		bad := f.Status == meshcheck.Warning || f.Status == meshcheck.Error
		if !verbose && !bad {
			continue
		}
		for _, d := range f.Details {
			fmt.Fprintf(w, "     %s\n", d)
		}
		for _, fix := range f.Fix {
			fmt.Fprintf(w, "     mend it: %s\n", strings.ReplaceAll(fix, "\n", "\n     "))
		}
	}
}

func (a *app) mark(s meshcheck.Status) string {
	if a.Plain {
		return fmt.Sprintf("[%s]", s)
	}
	switch s {
	case meshcheck.Warning:
		return "⚠️ "
	case meshcheck.Error:
		return "❌"
	case meshcheck.Skipped:
		return "➖"
	default:
		return "✅"
	}
}
