package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// File descriptors that launch passes to the init process.
const (
	fdSpec    = 3
	fdVerdict = 4
	fdExtra   = 5
)

// Init must be the first statement of main: in a process that Start or Exec re-executed it becomes the container's program
// and never returns; in any other process it does nothing.
func Init() {
	if len(os.Args) == 0 {
		return
	}
	var become func() error
	switch os.Args[0] {
	case argContainer:
		become = becomeContainer
	case argExec:
		become = becomeExec
	default:
		return
	}
	runtime.LockOSThread()
	unix.CloseOnExec(fdVerdict)
	err := become()
	fmt.Fprintf(os.NewFile(fdVerdict, "verdict"), "%v", err)
	os.Exit(127)
}

func readSpec(into any) error {
	f := os.NewFile(fdSpec, "spec")
	defer f.Close()
	if err := json.NewDecoder(f).Decode(into); err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	return nil
}

func becomeContainer() error {
	var s Spec
	if err := readSpec(&s); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := buildRoot(s); err != nil {
		return err
	}
	if err := pivot(s.Root); err != nil {
		return err
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if err := os.Chdir(s.Dir); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	err := unix.Exec(s.BinaryPath, s.Args, s.Env)
	if errors.Is(err, unix.ENOENT) { // the file is there: what is missing is its loader
		return fmt.Errorf("exec %s: %w (is the program linked statically?)", s.BinaryPath, err)
	}
	return fmt.Errorf("exec %s: %w", s.BinaryPath, err)
}

func becomeExec() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent-death signal: %w", err)
	}
	var s ExecSpec
	if err := readSpec(&s); err != nil {
		return err
	}
	for fd := fdExtra; fd < fdExtra+3; fd++ {
		unix.CloseOnExec(fd)
	}
	// A thread may enter a mount namespace only when it shares its root and working directory with no other thread.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	if err := unix.Setns(fdExtra+1, unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("enter uts namespace: %w", err)
	}
	if err := unix.Setns(fdExtra, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	if s.Dir != "" {
		if err := unix.Chdir(s.Dir); err != nil {
			return fmt.Errorf("working directory: %w", err)
		}
	}
	if s.Binary != "" {
		return execFD(fdExtra+2, s.Args, s.Env)
	}
	path, err := lookPath(s.Args[0], s.Env)
	if err != nil {
		return err
	}
	if err := unix.Exec(path, s.Args, s.Env); err != nil {
		return fmt.Errorf("exec %s: %w", path, err)
	}
	return nil
}

// lookPath searches PATH of env (not of this process) for name, in the root this thread is in now.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, e := range env {
		list, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			p := filepath.Join(dir, name)
			// The thread's own root counts, so ask by system call on this thread and not through package os's caches.
			if unix.Access(p, unix.X_OK) == nil {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("exec: %q: %w", name, exec.ErrNotFound)
}

func execFD(fd int, argv, env []string) error {
	argvp, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	if errno := execveat(fd, argvp, envp); errno != 0 {
		return fmt.Errorf("exec %s: %w", argv[0], errno)
	}
	return errors.New("exec returned")
}
