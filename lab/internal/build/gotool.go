package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// reportEvery is how often a running build says that it is alive.
	reportEvery = 10 * time.Second
	// stopGrace is how long the compiler gets to clean up before it is killed.
	stopGrace = 5 * time.Second
	// shownLines is how much of the compiler's output an error carries.
	shownLines = 20
)

// goTool is the Go command.
type goTool struct {
	path    string
	version string // output of "go version"
}

// findGo finds the go command. Which version it is may depend on the module it works
// in, through the go.mod's toolchain.
func findGo(ctx context.Context, module string) (goTool, error) {
	path, err := exec.LookPath("go")
	if err != nil {
		return goTool{}, fmt.Errorf("the lab builds its binaries from Go modules and needs the go command: %w", err)
	}
	cmd := exec.CommandContext(ctx, path, "version")
	cmd.Dir, cmd.Env = module, env()
	out, err := cmd.Output()
	if err != nil {
		return goTool{}, fmt.Errorf("go version in %s: %w", module, err)
	}
	return goTool{path: path, version: strings.TrimSpace(string(out))}, nil
}

// env makes static binaries for this machine's kernel, whatever the caller's
// settings: the lab's containers have no C library. A workspace must not change
// what the modules pin.
func env() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH, "GOWORK=off", "GOFLAGS=")
}

// moduleDir is where the sources of a required module are.
func (g goTool) moduleDir(ctx context.Context, in, module string) (string, error) {
	cmd := exec.CommandContext(ctx, g.path, "list", "-m", "-f={{.Dir}}", module)
	cmd.Dir, cmd.Env = in, env()
	out, err := cmd.Output()
	dir := strings.TrimSpace(string(out))
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("find the sources of %s: %w", module, err)
	}
	if dir == "" {
		return "", fmt.Errorf("find the sources of %s: not downloaded", module)
	}
	return dir, nil
}

// build compiles a recipe's package to the file out and reports on the way.
func (g goTool) build(ctx context.Context, r recipe, out string, progress func(string, ...any)) error {
	cmd := exec.CommandContext(ctx, g.path, append(r.buildArgs(), "-o", out, r.pkg)...)
	cmd.Dir, cmd.Env = r.module, env()
	// A process group of its own: the compilers that go starts are stopped with it.
	// Pdeathsig stops go when this process is killed and cannot do it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	pr, pw := io.Pipe()
	cmd.Stdout, cmd.Stderr = pw, pw

	var watched sync.WaitGroup
	var seen output
	watched.Go(func() { seen.read(pr) })
	head := fmt.Sprintf("building %s (first time only, %s)", r.name, estimate(r.cpuSeconds))
	progress("%s ...", head)
	done := make(chan struct{})
	watched.Go(func() { report(done, head, &seen, progress) })

	// Pdeathsig is about the thread that starts the process, which must stay.
	err := onOneThread(cmd.Run)
	if ctx.Err() != nil && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what did not stop within stopGrace
	}
	pw.Close()
	close(done)
	watched.Wait()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	return fmt.Errorf("go build in %s: %w\n%s", r.module, err, strings.Join(tail(seen.messages(), shownLines), "\n"))
}

// report says every now and then how long a build has been going on.
func report(done <-chan struct{}, head string, seen *output, progress func(string, ...any)) {
	began := time.Now()
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			progress("%s ... %s, %d packages compiled", head, elapsed(time.Since(began)), seen.packages())
		}
	}
}

func onOneThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, after f
		result <- f()
	}()
	return <-result
}

// output collects what "go build -v" prints: a line for each package, which is only
// counted, and messages.
type output struct {
	mu    sync.Mutex
	count int
	lines []string
}

// packageLine is an import path and nothing else.
var packageLine = regexp.MustCompile(`^[A-Za-z0-9_.~/-]+$`)

func (o *output) read(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimRight(line, "\n"); line != "" {
			o.add(line)
		}
		if err != nil {
			return
		}
	}
}

func (o *output) add(line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case packageLine.MatchString(line):
		o.count++
	case strings.HasPrefix(line, "go: downloading "):
	default:
		o.lines = append(o.lines, line)
	}
}

func (o *output) packages() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

func (o *output) messages() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lines
}
