package ztunnel

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// dialIn dials a TCP address from inside a network namespace. address is a
// literal IP and port: a name would be resolved on another thread.
func dialIn(ctx context.Context, ns *os.File, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer home.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil { // the thread is where it was
			runtime.UnlockOSThread()
			done <- result{nil, fmt.Errorf("enter the Pod's network: %w", err)}
			return
		}
		conn, err := (&net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}).DialContext(ctx, "tcp", address)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
