package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// ExecSpec is a further program to run inside the namespaces of a started container.
type ExecSpec struct {
	Args []string
	Env  []string
	Dir  string
	// Binary, when set, is a program outside that need not exist inside.
	Binary string
	TTY    bool
}

// ExecFiles are the standard streams of an exec; nil means /dev/null. With a TTY all three are the terminal's slave side.
type ExecFiles struct {
	Stdin, Stdout, Stderr *os.File
}

// Exec runs spec in all namespaces of the container p.
func Exec(p *Process, spec ExecSpec, files ExecFiles) (*Process, error) {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	ns := func(kind string) (*os.File, error) {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", p.Pid(), kind))
		if err != nil {
			return nil, fmt.Errorf("container is not running: %w", err)
		}
		open = append(open, f)
		return f, nil
	}
	netns, err := ns("net")
	if err != nil {
		return nil, err
	}
	pidns, err := ns("pid")
	if err != nil {
		return nil, err
	}
	mntns, err := ns("mnt")
	if err != nil {
		return nil, err
	}
	utsns, err := ns("uts")
	if err != nil {
		return nil, err
	}
	extra := []*os.File{mntns, utsns}
	if spec.Binary != "" {
		bin, err := os.Open(spec.Binary)
		if err != nil {
			return nil, err
		}
		open = append(open, bin)
		extra = append(extra, bin)
	}
	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   []string{argExec},
		Env:    []string{},
		Stdin:  stdinOrNil(files.Stdin),
		Stdout: files.Stdout,
		Stderr: files.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			// No Pdeathsig here: the Go runtime would take the parent, which the child's pid namespace does not show, for
			// dead already. The init process asks for it itself.
			Setsid:  true,
			Setctty: spec.TTY,
			Ctty:    0,
		},
	}
	return launch(cmd, spec, extra, func(start func() error) error {
		return spawner().run(netns, pidns, start)
	})
}
