package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/tokens"
)

// tokenVerbs are the flags of `tokens status`.
type tokenVerbs struct {
	*app
	mgmtContext, cluster, output string
}

func (a *app) tokensCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tokens", Short: "See the tokens by which istiods read other clusters",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	t := &tokenVerbs{app: a}
	status := &cobra.Command{
		Use:   "status",
		Short: "Every pair of clusters: age and expiry of the token, and whether istiods were seen on it",
		Long: `Says for every pair of clusters how old the token is by which istiods of READER read the API server of TARGET, when it ends, whether every istiod was seen synced with the
newest one, how many tokens of the pair TARGET accepts (two for a moment during a rotation), and what is wrong. It asks the management server, which never sees a token.

Exit codes: 0 all good, 1 some pair needs somebody, 2 it could not be found out (or wrong usage). What to do: docs/ops/tokens.md.`,
		Example: `  meshctl tokens status --mgmt-context mgmt
  meshctl tokens status --cluster prod-eu-west-3
  meshctl tokens status -o json | jq '.pairs[] | select(.state != "Synced")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(t.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			return cannotTell(t.status(ctx, f))
		},
	}
	t.mgmtContextFlag(status, &t.mgmtContext)
	status.Flags().StringVar(&t.cluster, "cluster", "", "only pairs of this cluster, as reader or target")
	formatFlag(status, &t.output, formatTable, formatJSON, formatYAML)
	cmd.AddCommand(status)
	return cmd
}

// tokenReport is the document of `tokens status`, as GET /tokens answers.
type tokenReport struct {
	Pairs []tokens.Status `json:"pairs"`
	At    time.Time       `json:"at"`
	Off   bool            `json:"off,omitempty"`
}

func (t *tokenVerbs) status(ctx context.Context, f format) error {
	mgmt, err := t.connect("", firstOf(t.mgmtContext, t.Context), "--mgmt-context")
	if err != nil {
		return err
	}
	raw, pod, err := mgmt.askLeader(ctx, t.Namespace, "/tokens", "record of tokens")
	if err != nil {
		return err
	}
	var r tokenReport
	if err := json.Unmarshal(raw, &r); err != nil || r.At.IsZero() {
		return fmt.Errorf("context %q: what the management server (Pod %s/%s) answered is no report of tokens (is it older than this meshctl?): %w", mgmt.Context, t.Namespace, pod, err)
	}
	if t.cluster != "" {
		r.Pairs = slices.DeleteFunc(r.Pairs, func(p tokens.Status) bool { return string(p.Reader) != t.cluster && string(p.Target) != t.cluster })
	}
	if f != formatTable {
		err = printDocument(t.streams.Out, f, r)
	} else {
		t.print(r)
	}
	if err == nil && slices.ContainsFunc(r.Pairs, func(p tokens.Status) bool { return p.Problem }) {
		return &exitError{ExitFailed, errSilent}
	}
	return err
}

func (t *tokenVerbs) print(r tokenReport) {
	out := t.streams.Out
	switch {
	case r.Off:
		fmt.Fprintln(out, "Tokens are not managed (glooMgmtServer.remoteSecrets.enabled is false).")
		return
	case len(r.Pairs) == 0 && t.cluster != "":
		fmt.Fprintf(out, "There is no pair with cluster %q.\n", t.cluster)
		return
	case len(r.Pairs) == 0:
		fmt.Fprintln(out, "There are no pairs of clusters: register a second cluster that runs istiod.")
		return
	}
	rows := make([][]string, len(r.Pairs))
	for i, p := range r.Pairs {
		rows[i] = []string{string(p.Reader), string(p.Target), string(p.State), since(p.Issued, r.At), until(p.Expires, r.At), strconv.Itoa(p.Live), p.Message}
	}
	printTable(out, "", []string{"READER", "TARGET", "STATE", "AGE", "EXPIRES IN", "LIVE", "MESSAGE"}, rows)
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return short(max(now.Sub(t), 0))
}

func until(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case !t.After(now):
		return "ended"
	}
	return short(t.Sub(now))
}

// apiServerValues tell the agent how other clusters reach its API server, where this kubeconfig's address may serve them too; nil: they are given what the API server advertises.
func apiServerValues(host string) map[string]any {
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Hostname() == "localhost" {
		return nil
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && (a.IsLoopback() || a.IsUnspecified()) {
		return nil
	}
	return map[string]any{"glooAgent": map[string]any{"remoteSecrets": map[string]any{"apiServer": u.Scheme + "://" + u.Host + strings.TrimSuffix(u.Path, "/")}}}
}
