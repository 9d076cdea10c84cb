package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"ambitmesh.dev/ambit/lab/internal/node/downward"
	"ambitmesh.dev/ambit/lab/internal/node/probe"
	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
)

// probed reports whether the container has a probe of this kind. Guarded by pod.mu.
func (c *container) probed(kind probe.Kind) bool {
	return c.probe(c.pod.api, kind) != nil
}

func (c *container) probe(p *corev1.Pod, kind probe.Kind) *corev1.Probe {
	spec := c.spec(p)
	if spec == nil || c.role == roleInit {
		return nil
	}
	switch kind {
	case probe.Startup:
		return spec.StartupProbe
	case probe.Readiness:
		return spec.ReadinessProbe
	case probe.Liveness:
		return spec.LivenessProbe
	}
	return nil
}

// startProbes runs the hooks and probes of the running instance until ctx ends. fail ends the instance.
func (c *container) startProbes(ctx context.Context, fail context.CancelCauseFunc) *sync.WaitGroup {
	var wg sync.WaitGroup
	wg.Go(func() {
		p := c.pod.current()
		if hook := c.spec(p).Lifecycle; hook != nil && hook.PostStart != nil {
			if out, err := c.hook(ctx, hook.PostStart); err != nil && ctx.Err() == nil {
				c.pod.event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v: %s", err, out)
				fail(fmt.Errorf("FailedPostStartHook"))
				return
			}
		}
		if spec := c.probe(p, probe.Startup); spec != nil && !c.awaitStartup(ctx, spec, fail) {
			return
		}
		for _, kind := range []probe.Kind{probe.Readiness, probe.Liveness} {
			if spec := c.probe(p, kind); spec != nil {
				wg.Go(func() {
					probe.Run(ctx, kind, spec, c.check(spec), func(healthy, changed bool, output string) {
						c.report(kind, healthy, changed, output, fail)
					})
				})
			}
		}
	})
	return &wg
}

// awaitStartup returns true once the startup probe has passed.
func (c *container) awaitStartup(ctx context.Context, spec *corev1.Probe, fail context.CancelCauseFunc) bool {
	starting, passed := context.WithCancel(ctx)
	defer passed()
	ok := false
	probe.Run(starting, probe.Startup, spec, c.check(spec), func(healthy, changed bool, output string) {
		c.report(probe.Startup, healthy, changed, output, fail)
		if healthy {
			ok = true
			passed()
		}
	})
	return ok && ctx.Err() == nil
}

// report turns the opinion of a probe into status, events and restarts.
func (c *container) report(kind probe.Kind, healthy, changed bool, output string, fail context.CancelCauseFunc) {
	if output != "" {
		c.pod.event(corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %s", kind, output)
	}
	if !changed {
		return
	}
	switch kind {
	case probe.Startup:
		if healthy {
			c.pod.update(func() {
				c.status.Started = &healthy
				c.status.Ready = !c.probed(probe.Readiness)
			})
			return
		}
		fail(fmt.Errorf("container %s failed startup probe", c.name))
	case probe.Readiness:
		c.pod.update(func() { c.status.Ready = healthy && c.proc != nil })
	case probe.Liveness:
		if !healthy {
			fail(fmt.Errorf("container %s failed liveness probe", c.name))
		}
	}
}

func (c *container) check(spec *corev1.Probe) probe.Check {
	return probe.New(spec, c.target())
}

func (c *container) target() probe.Target {
	p := c.pod.current()
	return probe.Target{IP: c.pod.ip.String(), Ports: c.spec(p).Ports, Exec: func(ctx context.Context, command []string) (bool, string) {
		out, code, err := c.output(ctx, command)
		if err != nil {
			return false, err.Error()
		}
		return code == 0, out
	}}
}

// hook runs a lifecycle handler.
func (c *container) hook(ctx context.Context, h *corev1.LifecycleHandler) (string, error) {
	switch {
	case h.Exec != nil:
		out, code, err := c.output(ctx, h.Exec.Command)
		if err == nil && code != 0 {
			err = fmt.Errorf("command exited with %d", code)
		}
		return out, err
	case h.HTTPGet != nil:
		if ok, out := probe.HTTPGet(ctx, h.HTTPGet, c.target()); !ok {
			return out, fmt.Errorf("HTTP request failed")
		}
	case h.Sleep != nil:
		wait(ctx, secondsOf(h.Sleep.Seconds), nil)
	}
	return "", nil
}

// execSpec prepares a command for the running instance: a program of the images folder by its base name, or a path inside.
func (c *container) execSpec(command []string, tty bool) (*sandbox.Process, sandbox.ExecSpec, error) {
	var proc *sandbox.Process
	var env map[string]string
	c.pod.read(func() { proc, env = c.proc, c.env })
	if proc == nil {
		return nil, sandbox.ExecSpec{}, fmt.Errorf("container %s is not running", c.name)
	}
	spec := sandbox.ExecSpec{Args: command, Env: environ(env), Dir: c.spec(c.pod.current()).WorkingDir, TTY: tty}
	if tty {
		spec.Env = append(spec.Env, "TERM=xterm")
	}
	base := command[0][strings.LastIndexByte(command[0], '/')+1:]
	if file, err := c.pod.node.images.resolve(base); err == nil {
		spec.Binary = file
	}
	return proc, spec, nil
}

// output runs a command in the container and returns its combined output.
func (c *container) output(ctx context.Context, command []string) (string, int, error) {
	proc, spec, err := c.execSpec(command, false)
	if err != nil {
		return "", 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", 0, err
	}
	defer r.Close()
	run, err := sandbox.Exec(proc, spec, sandbox.ExecFiles{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		return "", 0, err
	}
	go func() {
		select {
		case <-run.Done():
		case <-ctx.Done():
			run.Signal(syscall.SIGKILL)
		}
	}()
	const maxOutput = 10 << 10
	var out bytes.Buffer
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if out.Len() < maxOutput {
			out.Write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	<-run.Done()
	return strings.TrimSpace(out.String()), run.Exit().Code, ctx.Err()
}

// mounts lists the bind mounts of the container: the Pod's own files, then its volumeMounts, parents first.
func (c *container) mounts(p *corev1.Pod, spec *corev1.Container, env map[string]string) ([]sandbox.Mount, error) {
	if err := os.MkdirAll(c.dir(""), 0o755); err != nil {
		return nil, err
	}
	term := c.dir("termination-log")
	if err := os.WriteFile(term, nil, 0o666); err != nil {
		return nil, err
	}
	path := spec.TerminationMessagePath
	if path == "" {
		path = corev1.TerminationMessagePathDefault
	}
	out := []sandbox.Mount{
		{Source: c.pod.file("hosts"), Target: "/etc/hosts"},
		{Source: c.pod.file("resolv.conf"), Target: "/etc/resolv.conf"},
		{Source: term, Target: path},
	}
	vols, err := c.pod.volumeMounts(p, spec, func(s string) string { return downward.Expand(s, env) })
	return append(out, vols...), err
}
