// Package nstest runs the tests of a package inside namespaces of their own, as the lab does.
//
// What goes in: a testing.M. What comes out: its exit code, from a copy of the test binary that is root of a new user,
// network, mount, pid, uts and ipc namespace. What it must not do: run a test in the host's network namespace.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inside = "AMBIT_LAB_TEST_INSIDE"

// Main is for TestMain. Inside the namespaces it runs the tests; outside it starts the copy and passes on its exit code.
func Main(m *testing.M) int {
	if Inside() {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "nstest:", err)
			return 1
		}
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "nstest")
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	app := filepath.Join(dir, "testapp")
	if err := build(app); err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+app)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:   syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "nstest: these tests need user namespaces:", err)
	return 1
}

// build compiles testapp, statically, since a Pod has no C library.
func build(to string) error {
	cmd := exec.Command("go", "build", "-o", to, "ambitmesh.dev/ambit/lab/internal/node/test/testapp")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build testapp: %w: %s", err, out)
	}
	return nil
}

// Inside reports whether this process is the copy that runs the tests.
func Inside() bool { return os.Getenv(inside) != "" }

// TestApp is the program that tests run in Pods.
func TestApp() string { return os.Getenv(inside) }

// prepare gives the pid namespace its proc, and this process, which is number 1 there, nothing of the outside to change.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return nil
}
