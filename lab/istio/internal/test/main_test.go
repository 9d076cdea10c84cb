// Package test tries the packages of the data plane together with what they talk
// to: a CA and a delta ADS server that speak istiod's messages over real gRPC,
// the HBONE of istio.io/istio, and the node's socket.
//
// In: the exported API of svid, wds, hbone, ztunnel and gateway. Out: verdicts of
// go test. Where user namespaces are permitted all of it runs in namespaces of its
// own (TestMain), so that fixed ports are free and a Pod's network can be entered;
// elsewhere tests that must enter a network namespace are skipped. It must not use
// any address but loopback ones.
package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inside = "AMBIT_LAB_ISTIO_TEST_INSIDE"

func TestMain(m *testing.M) { os.Exit(inNamespaces(m)) }

// inNamespaces runs the tests in a copy of this process that is root of a user
// and a network namespace, or in this one when that is not permitted.
func inNamespaces(m *testing.M) int {
	if os.Getenv(inside) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "loopback:", err)
			return 1
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		Pdeathsig:   syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	err := cmd.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "no user namespaces, testing without:", err)
		return m.Run()
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// loopbackUp brings up lo in the network namespace of this thread.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
