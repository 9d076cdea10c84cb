// Package cli is meshctl: one file per verb.
//
// In: arguments, a kubeconfig, streams. Out: objects on the clusters it was told to change, a report to the person, and an exit code.
// It must not print or write to a file any private key or token (the verbs of pki, whose result is keys, excepted), dial the relay, or touch a cluster that was not named.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/kube"
	"k8s.io/klog/v2"
)

// The exit codes of meshctl.
const (
	ExitOK         = 0
	ExitFailed     = 1 // it was tried and did not work, or a check found an error
	ExitUsage      = 2 // the command line is wrong; nothing was tried
	ExitNotReached = 3 // everything was done, but the wanted state was not reached in time
)

const exitHelp = `Exit codes: 0 done, 1 failed or a check found an error, 2 wrong usage, 3 not reached in time.`

// Streams are what meshctl reads and writes.
type Streams struct {
	Out, Err io.Writer
	Terminal bool // Out is a terminal that shows colours
}

// exitError carries an exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{ExitUsage, fmt.Errorf(format, args...)}
}

func notReached(err error) error { return &exitError{ExitNotReached, err} }

// Globals are the flags every verb has.
type Globals struct {
	Kubeconfig string
	Context    string // --kubecontext, --context: the management cluster's, unless a verb names another
	Namespace  string // of the management plane
	Plain      bool
	Verbose    bool
}

// app is what the verbs share. It is made once per command line.
type app struct {
	Globals
	streams Streams
	log     *slog.Logger
}

// Run runs one command line and returns its exit code.
func Run(ctx context.Context, args []string, streams Streams) int {
	root := newRoot(streams) //nolint:contextcheck // the verbs take the context of their command, which ExecuteContext sets
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if !errors.Is(err, errSilent) {
		fmt.Fprintln(streams.Err, "Error:", err)
	}
	code := ExitFailed
	if exit := (*exitError)(nil); errors.As(err, &exit) {
		code = exit.code
	}
	return code
}

// errSilent ends a verb whose report says what is wrong already.
var errSilent = errors.New("see the report")

func newRoot(streams Streams) *cobra.Command {
	a := &app{streams: streams, log: slog.New(slog.DiscardHandler)}
	// Objects are shared with people who run `helm upgrade`: the same field manager, or each would find the other's fields in conflict.
	kube.ManagedFieldsManager = "helm"
	klog.SetOutput(io.Discard)
	klog.LogToStderr(false)
	root := &cobra.Command{
		Use:   "meshctl",
		Short: "Manage a mesh of clusters",
		Long: `meshctl installs the management plane and registers clusters with it. It works through the Kubernetes API servers of your
kubeconfig only. No private key and no token passes through your terminal or your files, unless you ask for keys with meshctl pki.

` + exitHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if a.Verbose {
				a.log = slog.New(slog.NewTextHandler(streams.Err, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			return nil
		},
	}
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w\nSee '%s --help'", err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.Kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, then ~/.kube/config)")
	flags.StringVar(&a.Context, "kubecontext", "", "context of the management cluster (default: the current context)")
	flags.StringVar(&a.Context, "context", "", "the same as --kubecontext")
	flags.StringVarP(&a.Namespace, "namespace", "n", "gloo-mesh", "namespace of the management plane")
	flags.BoolVar(&a.Plain, "plain", false, "no colours and no symbols")
	flags.BoolVarP(&a.Verbose, "verbose", "v", false, "log what is done, to standard error")
	_ = root.RegisterFlagCompletionFunc("kubecontext", a.completeContexts)
	_ = root.RegisterFlagCompletionFunc("context", a.completeContexts)

	cluster := &cobra.Command{
		Use: "cluster", Short: "Register, deregister and list clusters",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cluster.AddCommand(a.registerCommand(), a.deregisterCommand(), a.listCommand())
	root.AddCommand(cluster, a.policyCommand(), a.trustCommand(), a.auditCommand(), a.tokensCommand(), a.pkiCommand(), a.relayCommand(), a.checkCommand(), a.multiclusterCommand(), a.peeringCommand(), a.versionCommand(), a.installCommand(), a.uninstallCommand())
	return root
}

// exactName is cobra.ExactArgs(1) with an answer that helps.
func exactName(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return usageError("which %s? usage: %s", what, cmd.UseLine())
		case len(args) > 1:
			return usageError("want one %s, got %d: %s", what, len(args), strings.Join(args, " "))
		}
		return nil
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("unexpected argument %q; usage: %s", args[0], cmd.UseLine())
	}
	return nil
}

// mgmtContextFlag adds --mgmt-context, which people who name two contexts use in place of --kubecontext.
func (a *app) mgmtContextFlag(cmd *cobra.Command, context *string) {
	cmd.Flags().StringVar(context, "mgmt-context", "", "context of the management cluster (default: --kubecontext, then the current context)")
	_ = cmd.RegisterFlagCompletionFunc("mgmt-context", a.completeContexts)
}

// short is a duration as people read it.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 2*time.Minute:
		return d.Round(time.Second).String()
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	default:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
}
