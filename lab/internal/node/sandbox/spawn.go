package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// spawnThread owns one operating-system thread for ever. Every sandbox process is forked from it, for two reasons: a child's
// parent-death signal fires when the forking *thread* ends (go.dev/issue/27505), and the thread enters the Pod's network
// namespace for the fork without ever leaking it to other goroutines.
type spawnThread struct {
	jobs chan func()
	home *os.File // network namespace of the lab
	pids *os.File // pid namespace for children by default
}

var spawner = sync.OnceValue(func() *spawnThread { //nolint:gochecknoglobals // one thread per process is the point
	s := &spawnThread{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for job := range s.jobs {
			job()
		}
	}()
	s.do(func() {
		var err error
		if s.home, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			panic(fmt.Sprintf("sandbox: open own network namespace: %v", err))
		}
		if s.pids, err = os.Open("/proc/thread-self/ns/pid"); err != nil {
			panic(fmt.Sprintf("sandbox: open own pid namespace: %v", err))
		}
	})
	return s
})

func (s *spawnThread) do(job func()) {
	done := make(chan struct{})
	s.jobs <- func() { defer close(done); job() }
	<-done
}

// run calls start on the spawn thread while it is in netns (nil: stay) and, for children, in pidns (nil: stay).
func (s *spawnThread) run(netns, pidns *os.File, start func() error) (err error) {
	s.do(func() {
		if netns != nil {
			if err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
				err = fmt.Errorf("enter network namespace: %w", err)
				return
			}
			defer s.back(s.home, unix.CLONE_NEWNET)
		}
		if pidns != nil {
			if err = unix.Setns(int(pidns.Fd()), unix.CLONE_NEWPID); err != nil {
				err = fmt.Errorf("enter pid namespace: %w", err)
				return
			}
			defer s.back(s.pids, unix.CLONE_NEWPID)
		}
		err = start()
	})
	return err
}

// back returns to a namespace of our own. Failing would run everything later in a Pod's namespace, so it ends the program.
func (s *spawnThread) back(ns *os.File, kind int) {
	if err := unix.Setns(int(ns.Fd()), kind); err != nil {
		panic(fmt.Sprintf("sandbox: return from a Pod's namespace: %v", err))
	}
}

// InNetNS calls f on a thread that is in netns. Sockets that f opens stay in that namespace; goroutines that f starts do not
// run in it.
func InNetNS(netns *os.File, f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			errc <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			errc <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		// Only a thread known to be back home is given back to the runtime; else it ends with this goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		errc <- err
	}()
	return <-errc
}

// NewNetNS makes an empty network namespace; it lives as long as the file is open or a process is in it.
func NewNetNS() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result, 1)
	go func() {
		// Never unlocked: the thread, which is in the new namespace, ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- result{err: fmt.Errorf("new network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- result{f, err}
	}()
	r := <-c
	return r.f, r.err
}
