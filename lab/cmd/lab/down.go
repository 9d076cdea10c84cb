package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/lab/internal/daemon"
	"ambitmesh.dev/ambit/lab/internal/state"
)

// How long `lab down` waits for the daemon to end by request, then by SIGKILL,
// which takes every process of the lab with it.
const (
	downPatience = 30 * time.Second
	killPatience = 10 * time.Second
)

func downCommand(open func() (state.Dir, error)) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop the lab and remove its state; the cache of built binaries stays", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := open()
			if err != nil {
				return err
			}
			what, err := down(cmd.Context(), dir)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), what)
			return nil
		},
	}
}

// down ends the lab of a state directory and removes its state.
func down(ctx context.Context, dir state.Dir) (string, error) {
	if !exists(string(dir)) {
		return fmt.Sprintf("No lab in %s.", dir), nil
	}
	unlock, err := dir.Lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	lab, err := dir.Load()
	if errors.Is(err, state.ErrNoLab) {
		return fmt.Sprintf("No lab in %s.", dir), dir.Remove()
	}
	if err == nil && lab.Daemon.Alive() {
		if err := end(ctx, dir, lab.Daemon); err != nil {
			return "", err
		}
	}
	// A damaged lab.json is no reason to keep it.
	return fmt.Sprintf("The lab in %s is down; nothing of it is left.", dir), dir.Remove()
}

// end stops the daemon and returns when its process is gone.
func end(ctx context.Context, dir state.Dir, p state.Process) error {
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := daemon.Dial(dir.Socket()).Post(ask, "/stop"); err != nil {
		_ = p.Signal(syscall.SIGTERM) // the socket is gone or the daemon is stuck
	}
	if gone(ctx, p, downPatience) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_ = p.Signal(syscall.SIGKILL)
	if !gone(ctx, p, killPatience) {
		return fmt.Errorf("the lab's daemon, process %d, does not end", p.PID)
	}
	return nil
}

func gone(ctx context.Context, p state.Process, within time.Duration) bool {
	for deadline := time.Now().Add(within); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if !p.Alive() {
			return true
		}
	}
	return !p.Alive()
}
