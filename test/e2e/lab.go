// Package e2e runs people's commands against a whole lab.
//
// In: a repository with built programs (make build). Out: a Lab with real clusters, and what shell scripts print when run against it.
// It must not reach into the product's packages: what is tested here is what a person types.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Lab is a running lab.
type Lab struct {
	Root  string // the repository
	State string // the lab's state directory
	owned bool
}

// Up brings a lab of its own up, or joins the running one whose state directory AMBIT_E2E_STATE names (for working on scenarios).
// args are further arguments of lab up.
func Up(ctx context.Context, args ...string) (*Lab, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	l := &Lab{Root: root, State: os.Getenv("AMBIT_E2E_STATE")}
	if l.State == "" {
		if l.State, err = os.MkdirTemp("", "ambit-e2e-"); err != nil {
			return nil, err
		}
		l.owned = true
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "bin", "lab"), append([]string{"up", "--state", l.State}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		l.Down()
		return nil, fmt.Errorf("lab up (is bin/lab built? run make build): %w", err)
	}
	return l, nil
}

// Main runs a package's scenarios on one lab, which it puts into *lab; args are further arguments of lab up.
func Main(m *testing.M, lab **Lab, args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	l, err := Up(ctx, args...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	*lab = l
	code := m.Run()
	l.Down()
	os.Exit(code)
}

// Down takes the lab down if Up brought it up.
func (l *Lab) Down() {
	if !l.owned {
		return
	}
	cmd := exec.Command(filepath.Join(l.Root, "bin", "lab"), "down", "--state", l.State)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "lab down:", err)
	}
	os.RemoveAll(l.State)
}

// Result is what a script left.
type Result struct {
	Out  string // standard output
	Err  string // standard error
	Code int
}

// Try runs a bash script as a person would who typed the export line that `make lab` prints; a script that takes longer than two minutes is killed.
func (l *Lab) Try(t testing.TB, script string) Result {
	t.Helper()
	return l.TryFor(t, 2*time.Minute, script)
}

// TryFor is Try with another limit.
func (l *Lab) TryFor(t testing.TB, limit time.Duration, script string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit) // not the test's: clean-ups run scripts too
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Stdout, cmd.Stderr = l.State, &out, &errs
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+filepath.Join(l.State, "kubeconfig"),
		"PATH="+filepath.Join(l.State, "bin")+":"+filepath.Join(l.Root, "bin")+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("run %q: %v", script, err)
	}
	return Result{Out: out.String(), Err: errs.String(), Code: code}
}

// Run is Try for a script that must succeed; it returns its trimmed standard output.
func (l *Lab) Run(t testing.TB, script string) string {
	t.Helper()
	r := l.Try(t, script)
	if r.Code != 0 {
		t.Fatalf("exit %d of:\n%s\nstdout:\n%s\nstderr:\n%s", r.Code, script, r.Out, r.Err)
	}
	return strings.TrimSpace(r.Out)
}

// Eventually runs the script until ok likes its output. It fails with the last output after the time limit.
func (l *Lab) Eventually(t testing.TB, limit time.Duration, script string, ok func(out string) bool) string {
	t.Helper()
	deadline := time.Now().Add(limit)
	var last Result
	for {
		last = l.Try(t, script)
		if last.Code == 0 && ok(strings.TrimSpace(last.Out)) {
			return strings.TrimSpace(last.Out)
		}
		if time.Now().After(deadline) {
			t.Fatalf("not reached in %s:\n%s\nlast exit %d\nstdout:\n%s\nstderr:\n%s", limit, script, last.Code, last.Out, last.Err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = parent
	}
}
