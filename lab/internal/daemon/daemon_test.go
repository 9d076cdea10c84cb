package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/lab/internal/state"
)

// TestSupervisor: a unit that fails is started again with back-off; stop keeps
// it down, start lets it run.
func TestSupervisor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var runs atomic.Int64
		u := newUnit("kube/x", "x", func(ctx context.Context, started func(int)) error {
			run := int(runs.Add(1))
			started(100 + run)
			if run <= 3 {
				return errors.New("port taken")
			}
			<-ctx.Done()
			return nil
		})
		var s supervisor
		s.add(ctx, u)
		time.Sleep(minBackoff + 2*minBackoff + time.Millisecond) // two back-offs
		synctest.Wait()
		if c := u.component(); runs.Load() != 3 || c.Restarts != 3 || c.LastErr != "port taken" || c.State != StateBackoff {
			t.Errorf("after two back-offs: %d runs, %+v", runs.Load(), c)
		}
		time.Sleep(maxBackoff)
		synctest.Wait()
		if c := u.component(); c.State != StateRunning || c.PID != 104 {
			t.Errorf("want it running as 104: %+v", c)
		}
		if err := u.stop(ctx); err != nil {
			t.Error(err)
		}
		if c := u.component(); c.State != StateStopped || c.PID != 0 {
			t.Errorf("stopped: %+v", c)
		}
		time.Sleep(time.Minute)
		if runs.Load() != 4 {
			t.Errorf("a stopped unit ran again")
		}
		u.start()
		synctest.Wait()
		if c := u.component(); c.State != StateRunning || c.Restarts != 3 {
			t.Errorf("start: %+v; a start by request is no restart", c)
		}
		if _, err := s.find("nope"); err == nil {
			t.Error("found a unit that is not there")
		}
		cancel()
		s.wg.Wait()
	})
}

// TestStopInBackoff: a stop request does not wait for the back-off to end.
func TestStopInBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		u := newUnit("x", "", func(context.Context, func(int)) error { return errors.New("no") })
		var s supervisor
		s.add(ctx, u)
		synctest.Wait()
		begin := time.Now()
		if err := u.stop(ctx); err != nil || time.Since(begin) != 0 {
			t.Errorf("stop: %v after %s", err, time.Since(begin))
		}
		cancel()
		s.wg.Wait()
	})
}

// TestProcess: output goes to the log, an end is an error that names the log,
// SIGTERM ends it.
func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	run := func(ctx context.Context, script string) (int, error) {
		pid := 0
		err := process(func() (*exec.Cmd, error) { return exec.Command("sh", "-c", script), nil }, log)(ctx, func(p int) { pid = p })
		return pid, err
	}
	if pid, err := run(t.Context(), "echo hello; exit 3"); err == nil || pid == 0 || !strings.Contains(err.Error(), log) {
		t.Errorf("pid %d, %v", pid, err)
	}
	if got, err := os.ReadFile(log); err != nil || string(got) != "hello\n" {
		t.Errorf("log %q, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	pid, err := run(ctx, "exec sleep 60")
	if err != nil || time.Since(begin) > grace {
		t.Errorf("stopped with %v after %s", err, time.Since(begin))
	}
	if (state.Process{PID: pid}).Alive() {
		t.Error("still there")
	}
}

// TestProgress: who comes late sees everything, and the last event ends it.
func TestProgress(t *testing.T) {
	p := newProgress()
	p.step("", "one")
	got := make(chan []string)
	go func() {
		var texts []string
		_ = p.follow(context.Background(), func(e Event) error {
			texts = append(texts, e.Kind+" "+e.Cluster+e.Text)
			return nil
		})
		got <- texts
	}()
	p.step("a:", "two")
	if phase, _ := p.phase(); phase != "starting" {
		t.Errorf("phase %s", phase)
	}
	p.add(KindFailed, "", "broken")
	if d := cmp.Diff([]string{"step one", "step a:two", "failed broken"}, <-got); d != "" {
		t.Error(d)
	}
	if phase, why := p.phase(); phase != KindFailed || why != "broken" {
		t.Errorf("phase %s %s", phase, why)
	}
}

// TestControl talks to a daemon's handler through a socket whose path is
// longer than an address may be.
func TestControl(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(deep, "lab.sock")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	d := &daemon{progress: newProgress(), super: &supervisor{}, stop: func() { close(stopped) }, lab: &state.Lab{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d.super.add(ctx, newUnit("etcd", "", func(ctx context.Context, _ func(int)) error { <-ctx.Done(); return nil }))
	srv := &http.Server{Handler: d.handler(), ReadHeaderTimeout: time.Second}
	defer srv.Close()
	go func() { _ = srv.Serve(l) }()
	c := Dial(path)

	d.progress.step("mgmt", "API server ready")
	d.progress.add(KindReady, "", "all healthy")
	var texts []string
	if err := c.Progress(ctx, func(e Event) { texts = append(texts, e.Text) }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"API server ready", "all healthy"}, texts); d != "" {
		t.Error(d)
	}
	for path, ok := range map[string]bool{
		"/components/stop?name=etcd": true, "/components/stop?name=nope": false, "/partition?cluster=nope&on=true": false,
	} {
		if err := c.Post(ctx, path); (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
	if c := d.super.all()[0].component(); c.State != StateStopped {
		t.Errorf("etcd is %s", c.State)
	}
	if err := c.Post(ctx, "/stop"); err != nil {
		t.Error(err)
	}
	<-stopped
}

// TestForward carries bytes both ways and half-closes; a target that is away
// costs the connection.
func TestForward(t *testing.T) {
	echo := listen(t)
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	front, away := listen(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	go forward(ctx, front, func(context.Context) (string, error) { return echo.Addr().String(), nil }, log)
	go forward(ctx, away, func(context.Context) (string, error) { return "", errors.New("no Service") }, log)

	c, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "there and back")
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "there and back" {
		t.Errorf("%q, %v", got, err)
	}
	c, err = net.Dial("tcp", away.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("read from a target that is away")
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// TestZombies finds an ended child that no one has waited for, and memory of a
// living one.
func TestZombies(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if rss, pss := memory(pid); rss <= 0 || pss > rss {
		t.Errorf("rss %d, pss %d", rss, pss)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if slices.Contains(zombies(os.Getpid()), pid) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !slices.Contains(zombies(os.Getpid()), pid) {
		t.Error("zombie not found")
	}
	_ = cmd.Wait()
}
