package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ambitmesh.dev/ambit/lab/internal/node/downward"
	"ambitmesh.dev/ambit/lab/internal/node/logs"
	"ambitmesh.dev/ambit/lab/internal/node/probe"
	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
)

// role is what part a container plays in its Pod.
type role int

const (
	roleInit    role = iota // runs to completion before the others
	roleSidecar             // an init container with restartPolicy Always
	roleMain
)

// container is one container of a Pod over all its restarts. The fields below mu of the pod are guarded by it.
type container struct {
	pod  *pod
	name string
	role role

	// Guarded by pod.mu.
	status   corev1.ContainerStatus
	proc     *sandbox.Process
	log      *logs.Log
	previous *logs.Log
	env      map[string]string // of the running instance, for exec and hooks

	stop    context.CancelCauseFunc // ends the running instance, which is then restarted by policy
	backoff crashBackoff
}

// spec is the container's current specification.
func (c *container) spec(p *corev1.Pod) *corev1.Container {
	list := p.Spec.Containers
	if c.role != roleMain {
		list = p.Spec.InitContainers
	}
	for i := range list {
		if list[i].Name == c.name {
			return &list[i]
		}
	}
	return nil
}

func (c *container) policy(p *corev1.Pod) string {
	switch {
	case c.role == roleSidecar:
		return string(corev1.RestartPolicyAlways)
	case c.role == roleInit && p.Spec.RestartPolicy == corev1.RestartPolicyAlways:
		return string(corev1.RestartPolicyOnFailure)
	}
	return string(p.Spec.RestartPolicy)
}

// run starts the container again and again, as its restart policy asks, until it is done for good or ctx ends. It returns
// the exit code of the last instance.
func (c *container) run(ctx context.Context) int {
	for {
		started, exit := c.runOnce(ctx)
		if ctx.Err() != nil {
			return exit
		}
		spec := c.pod.current()
		if !restarts(c.policy(spec), exit) {
			return exit
		}
		delay := c.backoff.next(time.Since(started))
		if delay > 0 {
			c.pod.update(func() {
				c.moveToLast()
				c.status.State = waiting("CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
					delay, c.name, spec.Name, spec.Namespace, spec.UID))
			})
			c.pod.event(corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s", c.name, spec.Name)
			if !wait(ctx, delay, nil) {
				return exit
			}
		}
		c.pod.update(func() {
			c.moveToLast()
			c.status.RestartCount++
		})
	}
}

// moveToLast turns a terminated state into the last one. Guarded by pod.mu.
func (c *container) moveToLast() {
	if c.status.State.Terminated != nil {
		c.status.LastTerminationState = c.status.State
		c.status.State = waiting("ContainerCreating", "")
	}
}

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// runOnce runs one instance to its end. It waits, with the reason in the status, while the container can't be started.
func (c *container) runOnce(ctx context.Context) (started time.Time, exit int) {
	instance, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	proc, err := c.startWhenPossible(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return time.Now(), 137
		}
		// The program exists but can't be executed: that is a crash with the code shells use.
		now := metav1.Now()
		c.pod.update(func() {
			c.status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: 128, Reason: "StartError", Message: err.Error(), StartedAt: now, FinishedAt: now, ContainerID: c.status.ContainerID,
			}}
		})
		c.pod.event(corev1.EventTypeWarning, "Failed", "Error: %v", err)
		return time.Now(), 128
	}
	probes := c.startProbes(instance, cancel)
	c.pod.read(func() { c.stop = cancel })
	select {
	case <-proc.Done():
	case <-instance.Done():
		c.terminate(ctx, proc, context.Cause(instance))
	}
	cancel(nil)
	probes.Wait()
	return proc.StartedAt, c.ended(proc) //nolint:contextcheck // reads a file; there is nothing to cancel
}

// startWhenPossible retries until the program, its configuration and its volumes are there. Only a failure to execute is
// an error.
func (c *container) startWhenPossible(ctx context.Context) (*sandbox.Process, error) {
	for try := 0; ; try++ {
		changed := c.pod.configChanged.wait()
		proc, reason, err := c.start()
		if err == nil {
			return proc, nil
		}
		if reason == "" {
			return nil, err
		}
		if reason == "ErrImagePull" && try > 0 {
			reason = "ImagePullBackOff"
		}
		fresh := false
		c.pod.update(func() {
			w := c.status.State.Waiting
			fresh = w == nil || w.Reason != reason || w.Message != err.Error()
			c.status.State = waiting(reason, err.Error())
		})
		if fresh {
			c.pod.event(corev1.EventTypeWarning, "Failed", "Error: %s: %v", reason, err)
		}
		if !wait(ctx, min(time.Second<<min(try, 3), 5*time.Second), changed) {
			return nil, ctx.Err()
		}
	}
}

// start makes one attempt. reason is set when it may succeed later.
func (c *container) start() (proc *sandbox.Process, reason string, err error) {
	p := c.pod.current()
	spec := c.spec(p)
	env, err := environment(p, spec, c.pod.node.services(p.Namespace), c.pod.node.kubernetesAddr(), c.pod.node.source)
	if err != nil {
		return nil, "CreateContainerConfigError", err
	}
	expand := func(list []string) []string {
		out := make([]string, len(list))
		for i, s := range list {
			out[i] = downward.Expand(s, env)
		}
		return out
	}
	prog, err := c.pod.node.images.program(spec.Image, expand(spec.Command), expand(spec.Args))
	if err != nil {
		return nil, "ErrImagePull", err
	}
	mounts, err := c.mounts(p, spec, env)
	if err != nil {
		return nil, "CreateContainerConfigError", err
	}
	box := sandbox.Spec{
		Root:   c.dir("rootfs"),
		Mounts: mounts,
		Binary: prog.file, BinaryPath: prog.path, Args: prog.args,
		Env:      environ(env),
		Dir:      spec.WorkingDir,
		Hostname: hostname(p),
		Users:    users,
		Groups:   groups,
	}
	if box.Dir == "" {
		box.Dir = "/"
	}
	return c.launch(box, prog, env)
}

const (
	users  = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nistio-proxy:x:1337:1337::/root:/bin/sh\n"
	groups = "root:x:0:\nnogroup:x:65534:\nistio-proxy:x:1337:\n"
)

// launch starts the process and its log.
func (c *container) launch(box sandbox.Spec, prog program, env map[string]string) (*sandbox.Process, string, error) {
	if err := os.MkdirAll(box.Root, 0o755); err != nil {
		return nil, "CreateContainerError", err
	}
	var instance int32
	c.pod.read(func() { instance = c.status.RestartCount })
	log, err := logs.Create(c.dir(strconv.Itoa(int(instance))+".log"), 2)
	if err != nil {
		return nil, "CreateContainerError", err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, "CreateContainerError", err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		outR.Close()
		outW.Close()
		return nil, "CreateContainerError", err
	}
	go log.Copy("stdout", outR)
	go log.Copy("stderr", errR)
	proc, err := sandbox.Start(box, c.pod.netns, nil, outW, errW)
	outW.Close()
	errW.Close()
	if err != nil {
		return nil, "", err
	}
	id := fmt.Sprintf("lab://%s-%s-%d", c.pod.uid, c.name, instance)
	if instance > 1 {
		_ = os.Remove(c.dir(strconv.Itoa(int(instance)-2) + ".log"))
	}
	c.pod.update(func() {
		c.proc, c.env = proc, env
		c.previous, c.log = c.log, log
		started := !c.probed(probe.Startup)
		c.status.Started = &started
		c.status.Ready = started && !c.probed(probe.Readiness)
		c.status.ContainerID, c.status.ImageID = id, prog.imageID
		c.status.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(proc.StartedAt)}}
	})
	c.pod.event(corev1.EventTypeNormal, "Started", "Started container %s", c.name)
	return proc, "", nil
}

// terminate ends a running instance: preStop hook, SIGTERM, grace, SIGKILL.
func (c *container) terminate(ctx context.Context, proc *sandbox.Process, cause error) {
	p := c.pod.current()
	grace := c.pod.grace()
	if ctx.Err() == nil { // the container alone, not the Pod
		c.pod.event(corev1.EventTypeNormal, "Killing", "Container %s will be restarted: %v", c.name, cause)
	} else {
		c.pod.event(corev1.EventTypeNormal, "Killing", "Stopping container %s", c.name)
	}
	deadline := time.Now().Add(grace)
	if hook := c.spec(p).Lifecycle; hook != nil && hook.PreStop != nil && grace > 0 {
		hooking, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
		go func() {
			select {
			case <-proc.Done():
				cancel()
			case <-hooking.Done():
			}
		}()
		if out, err := c.hook(hooking, hook.PreStop); err != nil {
			c.pod.event(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v: %s", err, out)
		}
		cancel()
	}
	if grace > 0 {
		proc.Signal(syscall.SIGTERM)
		for time.Now().Before(deadline) {
			select {
			case <-proc.Done():
				return
			case <-time.After(min(time.Until(deadline), time.Second)):
			}
			// A second delete may have shortened the grace period.
			if left := c.pod.grace(); time.Now().Add(left).Before(deadline) {
				deadline = time.Now().Add(left)
			}
		}
	}
	proc.Signal(syscall.SIGKILL)
	<-proc.Done()
}

// ended records the end of an instance.
func (c *container) ended(proc *sandbox.Process) int {
	exit := proc.Exit()
	message := c.terminationMessage(exit.Code)
	reason := "Completed"
	if exit.Code != 0 {
		reason = "Error"
	}
	c.pod.update(func() {
		no := false
		c.status.Ready, c.status.Started = false, &no
		c.status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: int32(exit.Code), Signal: int32(exit.Signal), Reason: reason, Message: message, //nolint:gosec // 0..255
			StartedAt: metav1.NewTime(proc.StartedAt), FinishedAt: metav1.Now(), ContainerID: c.status.ContainerID,
		}}
		c.proc, c.stop = nil, nil
	})
	c.pod.node.log.Debug("container ended", "pod", c.pod.key(), "container", c.name, "code", exit.Code, "signal", exit.Signal)
	return exit.Code
}

const maxTerminationMessage = 4096

func (c *container) terminationMessage(code int) string {
	spec := c.spec(c.pod.current())
	b, err := os.ReadFile(c.dir("termination-log"))
	if err == nil && len(b) > 0 {
		return string(b[:min(len(b), maxTerminationMessage)])
	}
	if code == 0 || spec == nil || spec.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
		return ""
	}
	var log *logs.Log
	c.pod.read(func() { log = c.log })
	return log.LastBytes(80, 2048)
}

// dir is a path in the container's private directory outside.
func (c *container) dir(name string) string {
	return filepath.Join(c.pod.dir, "containers", c.name, name)
}

// restart ends the running instance, if any, with a reason.
func (c *container) restart(cause error) {
	var stop context.CancelCauseFunc
	c.pod.read(func() { stop = c.stop })
	if stop != nil {
		stop(cause)
	}
}

// wait sleeps; it returns early with true when changed is closed, and false when ctx ends.
func wait(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-changed:
	}
	return true
}
