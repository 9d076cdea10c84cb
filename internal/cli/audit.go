package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/audit"
)

// auditVerbs are the flags that the verbs of `audit` share. One command line runs one verb.
type auditVerbs struct {
	*app
	mgmtContext    string
	output         string
	in, from, to   string
	since          time.Duration
	act            string
	user, cluster  string
	object, policy string
	limit          int
}

const auditTimeout = time.Minute

func (a *app) auditCommand() *cobra.Command {
	v := &auditVerbs{app: a}
	cmd := &cobra.Command{
		Use: "audit", Short: "Ask who did what, and prove that nobody rewrote the answer",
		Long: `Asks the management server's audit log: every write to the management plane's kinds, enrolment, certificate, step of a rotation and drift correction. Exports carry proofs
and are verified offline. The log is read through a port-forward to the leading server's Pod, which takes the right to list pods and to create pods/portforward there; each question is on record itself.

` + exitHelp,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(v.listCommand(), v.showCommand(), v.whoCommand(), v.exportCommand(), v.verifyCommand(), v.reportCommand())
	return cmd
}

func (v *auditVerbs) filters(cmd *cobra.Command) {
	v.mgmtContextFlag(cmd, &v.mgmtContext)
	f := cmd.Flags()
	f.StringVar(&v.in, "in", "", "in this year, month or day: 2026, 2026-02, 2026-02-12 (UTC)")
	f.StringVar(&v.from, "from", "", "from this time on: a day, or 2026-02-12T10:14:00Z")
	f.StringVar(&v.to, "to", "", "before the end of this day, or this time")
	f.DurationVar(&v.since, "since", 0, "in the last, for example, 24h")
	f.StringVar(&v.act, "act", "", "of this act, for example write.admitted")
	f.StringVar(&v.user, "user", "", "by this user")
	f.StringVar(&v.cluster, "cluster", "", "about this cluster")
	f.StringVar(&v.object, "object", "", `on this object: "AccessPolicy gloo-mesh/billing"`)
	f.StringVar(&v.policy, "policy", "", "about this policy: gloo-mesh/billing")
}

func (v *auditVerbs) query(now time.Time) (audit.Query, error) {
	q := audit.Query{Act: audit.Act(v.act), User: v.user, Cluster: v.cluster, Object: v.object, Policy: v.policy, Limit: v.limit}
	if v.in != "" && (v.from != "" || v.to != "") || v.since != 0 && (v.in != "" || v.from != "") {
		return q, usageError("give one of --in, --since, or --from with --to")
	}
	var err error
	if v.in != "" {
		if q.From, q.To, err = audit.Period(v.in); err != nil {
			return q, usageError("--in: %w", err)
		}
		if q.From.Equal(q.To) {
			return q, usageError("--in %s: want a year, a month or a day", v.in)
		}
	}
	if v.from != "" {
		if q.From, _, err = audit.Period(v.from); err != nil {
			return q, usageError("--from: %w", err)
		}
	}
	if v.to != "" {
		if _, q.To, err = audit.Period(v.to); err != nil {
			return q, usageError("--to: %w", err)
		}
	}
	if v.since < 0 {
		return q, usageError("--since %s: want a time that is over, as 24h", v.since)
	}
	if v.since > 0 {
		q.From = now.Add(-v.since)
	}
	return q, nil
}

func (v *auditVerbs) mgmt() (*cluster, error) {
	return v.connect("", firstOf(v.mgmtContext, v.Context), "--mgmt-context")
}

// ask gets records of the leading server.
func (v *auditVerbs) ask(ctx context.Context, q audit.Query) ([]audit.Record, [][]byte, error) {
	mgmt, err := v.mgmt()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	raw, pod, err := mgmt.askLeader(ctx, v.Namespace, "/audit?"+q.Values().Encode(), "audit log")
	if err != nil {
		return nil, nil, err
	}
	var records []audit.Record
	var lines [][]byte
	for line := range bytes.Lines(raw) {
		line = bytes.TrimSpace(line)
		r, err := audit.Decode(line)
		if err != nil {
			return nil, nil, fmt.Errorf("context %q: what the management server (Pod %s/%s) answered: %w. Look: meshctl audit verify --mgmt-context %s", mgmt.Context, v.Namespace, pod, err, mgmt.Context)
		}
		records, lines = append(records, r), append(lines, line)
	}
	return records, lines, nil
}

func (v *auditVerbs) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List records, the latest first",
		Long: "Lists records of the audit log, the latest first.\n\n" + exitHelp,
		Example: `  meshctl audit list --cluster prod-eu-west-3 --in 2026-02 --mgmt-context mgmt
  meshctl audit list --user jane.doe@bank.example.com --since 24h -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(v.output, formatTable, formatJSON)
			if err != nil {
				return err
			}
			q, err := v.query(time.Now())
			if err != nil {
				return err
			}
			q.Last = true
			records, lines, err := v.ask(cmd.Context(), q)
			if err != nil {
				return err
			}
			return v.print(f, records, lines)
		},
	}
	v.filters(cmd)
	cmd.Flags().IntVar(&v.limit, "limit", 100, "at most so many records (the server gives at most 10000; for more, export)")
	formatFlag(cmd, &v.output, formatTable, formatJSON)
	return cmd
}

func (v *auditVerbs) print(f format, records []audit.Record, lines [][]byte) error {
	if f == formatJSON {
		all := make([]json.RawMessage, len(lines))
		for i := range lines {
			all[i] = lines[i]
		}
		return printDocument(v.streams.Out, f, all)
	}
	if len(records) == 0 {
		fmt.Fprintln(v.streams.Err, "No records.")
		return nil
	}
	var rows [][]string
	for _, r := range records {
		rows = append(rows, []string{
			strconv.FormatInt(r.N, 10), r.At.Format("2006-01-02T15:04:05Z"), string(r.Act), none(printable(firstOf(r.User, r.Manager))), none(printable(r.Cluster)), none(printable(r.Object)), printable(whatOf(r)),
		})
	}
	printTable(v.streams.Out, "", []string{"N", "TIME", "ACT", "USER", "CLUSTER", "OBJECT", "WHAT"}, rows)
	return nil
}

// printable takes control characters out of what others wrote: a record must not move the cursor of who reads it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}

// whatOf says in one line what a record is about.
func whatOf(r audit.Record) string {
	var parts []string
	if r.DryRun {
		parts = append(parts, "dry run:")
	}
	if r.Operation != "" {
		parts = append(parts, r.Operation)
	}
	if r.Operation == "UPDATE" {
		var paths []string
		for _, c := range r.Diff {
			if !strings.HasPrefix(c.Path, "metadata.annotations") {
				paths = append(paths, c.Path)
			}
		}
		parts = append(parts, some(paths, 4))
	}
	if r.Detail != "" {
		parts = append(parts, oneLine(r.Detail, 100))
	}
	return strings.Join(parts, " ")
}

func (v *auditVerbs) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show N", Short: "Show one record, with everything in it",
		Long: "Shows record N of the audit log.\n\n" + exitHelp, Example: "  meshctl audit show 4711 --mgmt-context mgmt -o yaml",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(firstOf(v.output, string(formatYAML)), formatYAML, formatJSON)
			if err != nil {
				return err
			}
			n, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || n < 0 {
				return usageError("%q: want the number of a record, as meshctl audit list gives it", args[0])
			}
			_, lines, err := v.ask(cmd.Context(), audit.Query{After: n, Before: n + 1, Limit: 1})
			if err != nil {
				return err
			}
			if len(lines) == 0 {
				return fmt.Errorf("there is no record %d", n)
			}
			return printDocument(v.streams.Out, f, json.RawMessage(lines[0]))
		},
	}
	v.mgmtContextFlag(cmd, &v.mgmtContext)
	formatFlag(cmd, &v.output, formatYAML, formatJSON)
	return cmd
}

func (v *auditVerbs) whoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "who NAME", Short: "Say who did what to a cluster, a policy or another object",
		Long: "Lists the acts on every object of that name, and on the cluster of that name, the latest first.\n\n" + exitHelp, Example: "  meshctl audit who prod-eu-west-3 --mgmt-context mgmt",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(v.output, formatTable, formatJSON)
			if err != nil {
				return err
			}
			q, err := v.query(time.Now())
			if err != nil {
				return err
			}
			q.Name, q.Last = args[0], true
			records, lines, err := v.ask(cmd.Context(), q)
			if err != nil {
				return err
			}
			return v.print(f, records, lines)
		},
	}
	v.filters(cmd)
	cmd.Flags().IntVar(&v.limit, "limit", 100, "at most so many records")
	formatFlag(cmd, &v.output, formatTable, formatJSON)
	return cmd
}
