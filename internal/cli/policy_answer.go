package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/translate"
)

// exitDenied is the exit code of a question whose answer is no; the report says why.
const exitDenied = 1

func (o *questionOptions) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.from, "from", "", "the ServiceAccount that calls, NAMESPACE/NAME@CLUSTER, in place of the first argument")
	flags.StringVar(&o.to, "to", "", "the Service that is called, NAMESPACE/NAME@CLUSTER, in place of the second argument")
	flags.Int32Var(&o.port, "port", 0, "port of the Service")
	flags.StringVar(&o.method, "method", "", "HTTP method, for policies with HTTP conditions")
	flags.StringVar(&o.path, "path", "", "HTTP path, for policies with HTTP conditions")
	snapshotFlag(cmd, &o.snapshot)
}

// take tells a question from the name of a policy.
func (o *questionOptions) take(cmd *cobra.Command, args []string) (question bool, err error) {
	flagged := o.from != "" || o.to != ""
	switch {
	case flagged && len(args) > 0:
		return false, usageError("give --from and --to, or two arguments, not both; usage: %s", cmd.UseLine())
	case flagged && (o.from == "" || o.to == ""):
		return false, usageError("--from and --to: a question takes both; usage: %s", cmd.UseLine())
	case flagged:
		return true, nil
	case len(args) == 2:
		o.from, o.to = args[0], args[1]
		return true, nil
	case len(args) != 1:
		return false, usageError("want a policy, or a ServiceAccount and a Service; usage: %s", cmd.UseLine())
	}
	for _, name := range []string{"port", "method", "path", "snapshot"} {
		if cmd.Flags().Changed(name) {
			return false, usageError("--%s goes with a question: give a ServiceAccount and a Service, NAMESPACE/NAME@CLUSTER each", name)
		}
	}
	return false, nil
}

// answer answers a question out of the snapshot.
func (p *policyVerbs) answer(ctx context.Context, o *questionOptions, f format) (allowed bool, err error) {
	saved, err := p.snapshot(ctx, o.snapshot)
	if err != nil {
		return false, err
	}
	s := saved.Snapshot
	from, to, err := o.ask(s)
	if err != nil {
		return false, err
	}
	result, err := translate.All(s)
	if err != nil {
		return false, fmt.Errorf("translate the snapshot of %s: %w", saved.from, err)
	}
	a := translate.Explain(s, result, translate.Question{
		FromCluster: from.Cluster, FromNamespace: from.Namespace, FromServiceAccount: from.Name,
		ToCluster: to.Cluster, ToNamespace: to.Namespace, ToService: to.Name, Port: o.port, Method: o.method, Path: o.path,
	})
	r := answerReport{
		From: from.String(), To: to.String(), Port: o.port, Method: o.method, Path: o.path, Allowed: a.Allowed, Decided: a.Decided, Caveats: a.Caveats,
		TakenAt: saved.TakenAt.UTC().Format(time.RFC3339),
	}
	if old := age(saved.TakenAt, time.Now()); old != "" {
		r.Caveats = append(r.Caveats, old)
	}
	if f != formatTable {
		return a.Allowed, printDocument(p.streams.Out, f, r)
	}
	r.print(p.streams.Out)
	return a.Allowed, nil
}
