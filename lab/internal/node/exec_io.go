package node

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	"golang.org/x/sys/unix"

	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
)

// execIO joins the streams of kubectl with the files of a process.
type execIO struct {
	files  sandbox.ExecFiles
	child  []*os.File // ends that the child has inherited
	ours   []*os.File
	copies []func() // from the process to kubectl; they end when it closes its files
	feeds  []func() // from kubectl to the process
	wg     sync.WaitGroup
}

func (e *execIO) pipes(s api.AttachIO) error {
	if in := s.Stdin(); in != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		e.files.Stdin, e.child, e.ours = r, append(e.child, r), append(e.ours, w)
		e.feeds = append(e.feeds, func() { _, _ = io.Copy(w, in); w.Close() })
	}
	for _, o := range []struct {
		to   io.Writer
		file **os.File
	}{{s.Stdout(), &e.files.Stdout}, {s.Stderr(), &e.files.Stderr}} {
		if o.to == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		*o.file, e.child, e.ours = w, append(e.child, w), append(e.ours, r)
		e.copies = append(e.copies, func() { _, _ = io.Copy(o.to, r) })
	}
	return nil
}

// terminal gives the process a pseudo terminal.
func (e *execIO) terminal(s api.AttachIO) error {
	master, slave, err := openPTY()
	if err != nil {
		return err
	}
	e.files = sandbox.ExecFiles{Stdin: slave, Stdout: slave, Stderr: slave}
	e.child, e.ours = append(e.child, slave), append(e.ours, master)
	if in := s.Stdin(); in != nil {
		e.feeds = append(e.feeds, func() { _, _ = io.Copy(master, in) })
	}
	if out := s.Stdout(); out != nil {
		e.copies = append(e.copies, func() { _, _ = io.Copy(out, master) }) // EIO when the last process has left
	}
	if resize := s.Resize(); resize != nil {
		e.feeds = append(e.feeds, func() {
			for size := range resize {
				if size.Width == 0 && size.Height == 0 {
					return // kubectl is gone
				}
				_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
			}
		})
	}
	return nil
}

func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	return master, slave, nil
}

// start begins copying, once the process runs.
func (e *execIO) start() {
	for _, f := range e.copies {
		e.wg.Go(f)
	}
	for _, f := range e.feeds {
		go f()
	}
}

// finish waits until all output has been passed on.
func (e *execIO) finish() { e.wg.Wait() }

func (e *execIO) closeChildEnds() {
	for _, f := range e.child {
		f.Close()
	}
	e.child = nil
}

func (e *execIO) close() {
	e.closeChildEnds()
	for _, f := range e.ours {
		f.Close()
	}
}
