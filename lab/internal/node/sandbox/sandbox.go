// Package sandbox starts container processes in namespaces of their own.
//
// What goes in: a Spec (root directory, bind mounts, argv, environment) and the network namespace of the Pod.
// What comes out: a running Process whose exit status can be waited for.
// What it must not do: know Kubernetes objects, or touch the mount table or the addresses of the host. It works as root
// and as uid 0 of an unprivileged user namespace, so it uses only bind mounts, tmpfs and (where allowed) a fresh proc.
package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// The first argument by which a re-executed process knows its task; see Init.
const (
	argContainer = "ambit-lab-container-init"
	argExec      = "ambit-lab-exec-init"
)

// Mount is a bind mount of Source (a path outside) at Target (an absolute path inside the container).
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// Spec is all that the init process needs to become the container. It travels as JSON over a pipe.
type Spec struct {
	// Root is an empty directory outside, over which the container's own tmpfs root is mounted.
	Root string
	// Mounts are applied in the order given; parents before children.
	Mounts []Mount
	// Binary is the program outside; it is bind-mounted at BinaryPath inside.
	Binary     string
	BinaryPath string
	Args       []string // argv, including argv[0]
	Env        []string
	Dir        string // working directory, created when missing
	Hostname   string
	// Users and Groups are the contents of /etc/passwd and /etc/group.
	Users, Groups string
}

// Process is a started container or exec process.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	// StartedAt is when the program itself (not its init) began.
	StartedAt time.Time
}

// Pid is the process id as this program's pid namespace sees it.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit describes how a process ended: Code is 128+signal for a killed one.
type Exit struct {
	Code   int
	Signal int
}

// Exit is valid once Done is closed.
func (p *Process) Exit() Exit {
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return Exit{Code: -1}
	}
	if ws.Signaled() {
		return Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return Exit{Code: ws.ExitStatus()}
}

// Signal sends sig to the process; a process that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
}

// Start runs spec in the network namespace netns (an open namespace file), with new mount, uts and pid namespaces.
// It returns once the program has been executed, or with the reason why it was not.
func Start(spec Spec, netns *os.File, stdin *os.File, stdout, stderr *os.File) (*Process, error) {
	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   []string{argContainer},
		Env:    []string{},
		Stdin:  stdinOrNil(stdin),
		Stdout: stdout,
		Stderr: stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
			Setsid:     true,
			Pdeathsig:  syscall.SIGKILL,
		},
	}
	return launch(cmd, spec, nil, func(start func() error) error {
		return spawner().run(netns, nil, start)
	})
}

func stdinOrNil(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

// launch starts cmd through runIn, hands spec over on fd 3 and waits on fd 4 for the verdict of the init process.
func launch(cmd *exec.Cmd, spec any, extra []*os.File, runIn func(func() error) error) (*Process, error) {
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specW.Close()
	verdictR, verdictW, err := os.Pipe()
	if err != nil {
		specR.Close()
		return nil, err
	}
	defer verdictR.Close()
	cmd.ExtraFiles = append([]*os.File{specR, verdictW}, extra...)
	err = runIn(cmd.Start)
	specR.Close()
	verdictW.Close()
	if err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := json.NewEncoder(specW).Encode(spec); err != nil {
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("send sandbox spec: %w", err)
	}
	specW.Close()
	verdict, err := io.ReadAll(verdictR)
	if err != nil {
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("read sandbox verdict: %w", err)
	}
	if len(verdict) > 0 {
		<-p.done
		return nil, fmt.Errorf("%s", strings.TrimSpace(string(verdict)))
	}
	p.StartedAt = time.Now()
	return p, nil
}
