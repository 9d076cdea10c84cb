package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// States of a unit.
const (
	StateRunning = "running"
	StateBackoff = "backoff" // ended by itself; will be started again
	StateStopped = "stopped" // by request
)

const (
	minBackoff = 500 * time.Millisecond
	maxBackoff = 10 * time.Second
	goodRun    = 30 * time.Second // a run this long resets the back-off
	// grace is between SIGTERM and SIGKILL. API servers take longer than anyone
	// wants to wait when clients watch; what they know is in etcd.
	grace = 3 * time.Second
)

// runFunc does the work of a unit until ctx ends. It calls started once, with
// the process number or 0 for work inside the daemon.
type runFunc func(ctx context.Context, started func(pid int)) error

// unit is one supervised part: a process or a function. It is started again,
// with back-off, whenever it ends by itself.
type unit struct {
	name    string
	cluster string // "" when it serves all
	run     runFunc

	mu       sync.Mutex
	want     bool
	state    string
	pid      int
	restarts int
	lastErr  string
	since    time.Time
	cancel   context.CancelFunc // ends the current run
	changed  chan struct{}      // closed and replaced on every change
}

func newUnit(name, cluster string, run runFunc) *unit {
	return &unit{name: name, cluster: cluster, run: run, want: true, state: StateStopped, changed: make(chan struct{})}
}

// update changes fields under the lock and wakes who waits.
func (u *unit) update(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
	close(u.changed)
	u.changed = make(chan struct{})
}

// await returns when ok holds, or with ctx's error.
func (u *unit) await(ctx context.Context, ok func() bool) error {
	for {
		u.mu.Lock()
		done, changed := ok(), u.changed
		u.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// supervise runs the unit until ctx ends.
func (u *unit) supervise(ctx context.Context) {
	backoff := minBackoff
	for {
		if u.await(ctx, func() bool { return u.want }) != nil {
			return
		}
		runCtx, cancel := context.WithCancel(ctx)
		wanted := false
		u.update(func() {
			if wanted = u.want; wanted { // a stop may have come in between
				u.state, u.cancel, u.since = StateRunning, cancel, time.Now()
			}
		})
		if !wanted {
			cancel()
			continue
		}
		begin := time.Now()
		err := u.run(runCtx, func(pid int) { u.update(func() { u.pid = pid }) })
		cancel()
		if ctx.Err() != nil {
			u.update(func() { u.state, u.pid = StateStopped, 0 })
			return
		}
		if time.Since(begin) > goodRun {
			backoff = minBackoff
		}
		var again bool
		u.update(func() {
			u.pid, u.since = 0, time.Now()
			again = u.want
			if !again {
				u.state = StateStopped
				return
			}
			u.state = StateBackoff
			u.restarts++
			u.lastErr = "ended without an error"
			if err != nil {
				u.lastErr = err.Error()
			}
		})
		if !again {
			backoff = minBackoff
			continue
		}
		wait, cancelWait := context.WithTimeout(ctx, backoff)
		_ = u.await(wait, func() bool { return !u.want }) // a stop request ends the back-off
		cancelWait()
		u.update(func() {
			if !u.want {
				u.state = StateStopped
			}
		})
		backoff = min(2*backoff, maxBackoff)
	}
}

// stop ends the unit and returns when it has ended.
func (u *unit) stop(ctx context.Context) error {
	u.update(func() {
		u.want = false
		if u.cancel != nil {
			u.cancel()
		}
	})
	if err := u.await(ctx, func() bool { return u.state == StateStopped }); err != nil {
		return fmt.Errorf("stop %s: %w", u.name, err)
	}
	return nil
}

// start lets a stopped unit run again.
func (u *unit) start() { u.update(func() { u.want = true }) }

// process is a runFunc for a command; its output is appended to the file log.
func process(command func() (*exec.Cmd, error), log string) runFunc {
	return func(ctx context.Context, started func(int)) error {
		cmd, err := command()
		if err != nil {
			return err
		}
		out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer out.Close()
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		started(cmd.Process.Pid)
		done := make(chan struct{})
		go func() {
			err = cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
			if err == nil {
				err = errors.New("exit status 0")
			}
			return fmt.Errorf("%w; its log: %s", err, log)
		case <-ctx.Done():
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(grace):
			_ = cmd.Process.Kill()
			<-done
		}
		return nil
	}
}

// supervisor has all units, in the order in which they were added, which is
// the reverse of the order in which they are stopped.
type supervisor struct {
	mu    sync.Mutex
	units []*unit
	wg    sync.WaitGroup
}

// add starts to supervise a unit.
func (s *supervisor) add(ctx context.Context, u *unit) {
	s.mu.Lock()
	s.units = append(s.units, u)
	s.mu.Unlock()
	s.wg.Go(func() { u.supervise(ctx) })
}

// all returns the units so far.
func (s *supervisor) all() []*unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*unit(nil), s.units...)
}

// find returns the unit with a name; the error lists what there is.
func (s *supervisor) find(name string) (*unit, error) {
	var names []string
	for _, u := range s.all() {
		if u.name == name {
			return u, nil
		}
		names = append(names, u.name)
	}
	return nil, fmt.Errorf("no component %q; there are %v", name, names)
}

// stopAll stops the units whose name has one of the prefixes, group by group.
func (s *supervisor) stopAll(ctx context.Context, groups ...func(*unit) bool) {
	for _, in := range groups {
		var wg sync.WaitGroup
		for _, u := range s.all() {
			if in(u) {
				wg.Go(func() { _ = u.stop(ctx) })
			}
		}
		wg.Wait()
	}
}
