package test

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// ownNetns is this process's network namespace. The test is skipped where a
// process may not even enter its own.
func ownNetns(t *testing.T) *os.File {
	t.Helper()
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread() // it entered where it was
		failed <- unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
	}()
	if err := <-failed; err != nil {
		t.Skipf("setns into the own network namespace, as ztunnel does for each Pod: %v", err)
	}
	return ns
}

// newNetns makes a network namespace with loopback.
func newNetns(t *testing.T) *os.File {
	t.Helper()
	ownNetns(t)
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopbackUp()
		}
		if err != nil {
			made <- result{nil, err}
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		t.Skipf("make a network namespace: %v", r.err)
	}
	t.Cleanup(func() { _ = r.ns.Close() })
	return r.ns
}

// inNetns runs f inside a network namespace.
func inNetns(t *testing.T, ns *os.File, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is not given back
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
