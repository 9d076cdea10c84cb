package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/lab/internal/daemon"
	"ambitmesh.dev/ambit/lab/internal/state"
)

func statusCommand(open func() (state.Dir, error)) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show health and memory of every part of the lab", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("-o %s: want json", output)
			}
			dir, err := open()
			if err != nil {
				return err
			}
			_, client, err := running(dir)
			if err != nil {
				return err
			}
			s, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}

func mib(bytes int64) string { return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20)) }

// printStatus writes one table of clusters, one of memory.
func printStatus(w io.Writer, s daemon.Status) error {
	fmt.Fprintf(w, "%s, up %s, %s resident (%s with shared pages counted once)\n",
		s.Phase, (time.Duration(s.Uptime) * time.Second), mib(s.RSS), mib(s.PSS))
	if s.Detail != "" && s.Phase == daemon.KindFailed {
		fmt.Fprintln(w, s.Detail)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	fmt.Fprintln(t, "CLUSTER\tAPI\tNODE\tISTIOD\tEAST-WEST\tMGMT SERVER\tAGENT\tADDRESS")
	for _, c := range s.Clusters {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, short(c.API), short(c.Node), short(c.Istiod), short(c.Gateway), short(c.Mgmt), short(c.Agent), c.Address)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(t, "COMPONENT\tCLUSTER\tSTATE\tRESTARTS\tRSS\tPSS")
	printed := map[string]bool{}
	for _, c := range s.Components {
		rss, pss := "in daemon", ""
		for _, p := range s.Processes {
			if p.Component == c.Name {
				rss, pss = mib(p.RSS), mib(p.PSS)
			}
		}
		if c.State != daemon.StateRunning {
			rss, pss = "-", ""
		}
		printed[c.Name] = true
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", c.Name, c.Cluster, c.State, c.Restarts, rss, pss)
	}
	for _, p := range s.Processes {
		if !printed[p.Component] {
			fmt.Fprintf(t, "%s\t%s\trunning\t\t%s\t%s\n", p.Component, p.Cluster, mib(p.RSS), mib(p.PSS))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, c := range s.Components {
		if c.LastErr != "" {
			fmt.Fprintf(w, "\n%s last ended: %s\n", c.Name, c.LastErr)
		}
	}
	return nil
}

// short keeps a table a table; -o json has the whole text.
func short(h daemon.Health) string {
	s, _, _ := strings.Cut(string(h), "\n")
	if len(s) > 48 {
		s = s[:45] + "..."
	}
	return s
}

func logsCommand(open func() (state.Dir, error)) *cobra.Command {
	return &cobra.Command{
		Use: "logs [NAME]", Short: "Print the log of a component, or list the logs", Args: cobra.MaximumNArgs(1),
		Long: "Print the log of a component (daemon, etcd, kube/CLUSTER, node/CLUSTER, meshctl-...), or list the logs.\nLogs of Pods come from `kubectl logs`.",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := open()
			if err != nil {
				return err
			}
			files, err := filepath.Glob(filepath.Join(dir.Logs(), "*.log"))
			if err != nil || len(files) == 0 {
				return fmt.Errorf("no logs in %s", dir.Logs())
			}
			names := make([]string, len(files))
			for i, f := range files {
				names[i] = strings.TrimSuffix(filepath.Base(f), ".log")
			}
			sort.Strings(names)
			if len(args) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(names, "\n"))
				return nil
			}
			if !slices.Contains(names, strings.ReplaceAll(args[0], "/", "-")) {
				return fmt.Errorf("no log of %q; there are: %s", args[0], strings.Join(names, ", "))
			}
			f, err := os.Open(dir.LogOf(args[0]))
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(cmd.OutOrStdout(), f)
			return err
		},
	}
}
