package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/lab/internal/daemon"
	"ambitmesh.dev/ambit/lab/internal/state"
)

// errDenied makes the exit code 1 without a message: the answer was printed.
var errDenied = errors.New("denied")

// notPossible is an error for which the exit code is 2: nothing was found out.
type notPossible struct{ error }

// Unwrap lets errors.Is see through.
func (e notPossible) Unwrap() error { return e.error }

func callCommand(open func() (state.Dir, error)) *cobra.Command {
	var output string
	var rate int
	var while time.Duration
	cmd := &cobra.Command{
		Use:   "call FROM TO",
		Short: "Call a service from a workload through the mesh, and tell who decided",
		Long: `Call a service from a workload through the lab's data plane, and tell whether
it was allowed, and by which policy.

FROM is a workload, TO a service: name/cluster, or namespace/name/cluster. In
another cluster TO is reached through that cluster's east-west gateway.

Exit code: 0 allowed, 1 denied, 2 not possible (no such workload, no identity,
no trust, no way).`,
		Example: `  lab call payments/cluster-1 billing/cluster-2
  lab call bookinfo/productpage/cluster-1 billing/cluster-1 -o json
  lab call payments/cluster-1 billing/cluster-2 --rate 200 --for 60s`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return notPossible{fmt.Errorf("-o %s: want json", output)}
			}
			dir, err := open()
			if err != nil {
				return notPossible{err}
			}
			_, client, err := running(dir)
			if err != nil {
				return notPossible{err}
			}
			if rate > 0 {
				l, err := client.Load(cmd.Context(), args[0], args[1], rate, while)
				if err != nil {
					return notPossible{err}
				}
				return answer(cmd.OutOrStdout(), output, l, l.Failed, l.Denied, printLoad)
			}
			c, err := client.Call(cmd.Context(), args[0], args[1])
			if err != nil {
				return notPossible{err}
			}
			failed, denied := 0, 0
			switch c.Verdict {
			case daemon.Failed:
				failed = 1
			case daemon.Denied:
				denied = 1
			}
			return answer(cmd.OutOrStdout(), output, c, failed, denied, printCall)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	cmd.Flags().IntVar(&rate, "rate", 0, "make this many new connections a second, and count")
	cmd.Flags().DurationVar(&while, "for", 10*time.Second, "how long, with --rate")
	return cmd
}

// answer prints a result and turns it into the exit code.
func answer[T any](w io.Writer, output string, v T, failed, denied int, text func(io.Writer, T)) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(v); err != nil {
			return notPossible{err}
		}
	} else {
		text(w, v)
	}
	switch {
	case failed > 0:
		return notPossible{errDenied}
	case denied > 0:
		return errDenied
	}
	return nil
}

func printCall(w io.Writer, c daemon.Call) {
	fmt.Fprintf(w, "%s -> %s: %s\n", c.From, c.To, c.Verdict)
	fmt.Fprintf(w, "  %-8s %s\n", "because", c.Reason)
	if c.Path != "" {
		fmt.Fprintf(w, "  %-8s %s\n", "path", c.Path)
	}
	if c.Answer != "" {
		fmt.Fprintf(w, "  %-8s %s, after %s\n", "answer", c.Answer, (time.Duration(c.Micros) * time.Microsecond).Round(100*time.Microsecond))
	}
}

func printLoad(w io.Writer, l daemon.Load) {
	fmt.Fprintf(w, "%s -> %s: %d new connections in %.1f s (%.0f/s): %d allowed, %d denied, %d failed", l.From, l.To,
		l.Sent, l.Seconds, float64(l.Sent)/l.Seconds, l.Allowed, l.Denied, l.Failed)
	if l.Skipped > 0 {
		fmt.Fprintf(w, ", %d not sent (too many were open)", l.Skipped)
	}
	fmt.Fprintf(w, "; p50 %.1f ms, p99 %.1f ms\n", float64(l.P50)/1000, float64(l.P99)/1000)
	for _, s := range l.Slips {
		fmt.Fprintf(w, "  after %6.2f s %s: %s\n", s.After, s.Verdict, s.Reason)
	}
}
