// Command lab brings real clusters up on this machine, and takes them down.
//
// In go flags; out come a running lab in a state directory (default .lab at the
// root of the repository), a kubeconfig with one context per cluster, and lines
// for people. Everything long-lived is the daemon's (package daemon); here is
// only what a person sees. It must not touch the host's network beyond
// listening on 127.0.0.1.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/lab/internal/daemon"
	"ambitmesh.dev/ambit/lab/internal/node"
	"ambitmesh.dev/ambit/lab/internal/state"
)

func main() {
	node.Init() // in a process that becomes a container, this does not return
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case errors.Is(err, errDenied):
		if errors.As(err, new(notPossible)) {
			os.Exit(2)
		}
		os.Exit(1)
	case errors.As(err, new(notPossible)):
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(2)
	case interrupted:
		fmt.Fprintln(os.Stderr, "lab: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// command is the tree of commands.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "Real Kubernetes clusters with Istio, on this machine, without containers",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	dir := root.PersistentFlags().String("state", "", "state directory (default: .lab at the root of the repository)")
	open := func() (state.Dir, error) {
		if *dir != "" {
			return state.Open(*dir)
		}
		repo, err := repository()
		if err != nil {
			return "", fmt.Errorf("no --state and %w", err)
		}
		return state.Open(filepath.Join(repo, ".lab"))
	}
	root.AddCommand(upCommand(open), downCommand(open), statusCommand(open), logsCommand(open), buildCommand(),
		componentCommand(open, "stop", "Stop one component and keep it down, e.g. `lab stop kube/mgmt`"),
		componentCommand(open, "start", "Start a stopped component again"),
		partitionCommand(open), callCommand(open), daemonCommand(open))
	return root
}

// repository finds the root of this repository, from the working directory
// upwards, then from where this program is.
func repository() (string, error) {
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(data), "module ambitmesh.dev/ambit\n") {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", errors.New("not inside a checkout of ambitmesh.dev/ambit")
}

// running returns the lab of a state directory and a client of its daemon, or
// an error that says there is none.
func running(dir state.Dir) (*state.Lab, *daemon.Client, error) {
	lab, err := dir.Load()
	if errors.Is(err, state.ErrNoLab) {
		return nil, nil, fmt.Errorf("no lab in %s; `lab up` starts one", dir)
	}
	if err != nil {
		return nil, nil, err
	}
	if !lab.Daemon.Alive() {
		return nil, nil, fmt.Errorf("the lab in %s is gone (its daemon, process %d, has ended); `lab up` starts it afresh, `lab down` clears it", dir, lab.Daemon.PID)
	}
	return lab, daemon.Dial(dir.Socket()), nil
}

func daemonCommand(open func() (state.Dir, error)) *cobra.Command {
	return &cobra.Command{
		Use: "daemon", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := open()
			if err != nil {
				return err
			}
			return daemon.Run(dir)
		},
	}
}

func componentCommand(open func() (state.Dir, error), verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " COMPONENT", Short: short, Args: cobra.ExactArgs(1),
		Long: short + ".\n\nComponents are etcd, kube/CLUSTER and node/CLUSTER; `lab status` lists them.",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := open()
			if err != nil {
				return err
			}
			_, client, err := running(dir)
			if err != nil {
				return err
			}
			return client.Post(cmd.Context(), "/components/"+verb+"?name="+args[0])
		},
	}
}

func partitionCommand(open func() (state.Dir, error)) *cobra.Command {
	return &cobra.Command{
		Use: "partition CLUSTER on|off", Short: "Cut a cluster off from all others, or join it again", Args: cobra.ExactArgs(2),
		ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "on" && args[1] != "off" {
				return fmt.Errorf("partition %s %q: want on or off", args[0], args[1])
			}
			dir, err := open()
			if err != nil {
				return err
			}
			lab, client, err := running(dir)
			if err != nil {
				return err
			}
			if _, err := lab.Cluster(args[0]); err != nil {
				return err
			}
			return client.Post(cmd.Context(), fmt.Sprintf("/partition?cluster=%s&on=%t", args[0], args[1] == "on"))
		},
	}
}
