package state

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Listeners are the sockets through which the host reaches into the lab. They
// are opened here, in the host's network namespace, and handed to the daemon,
// which lives in another one: a socket stays where it was made.
type Listeners struct {
	UI  *net.TCPListener
	API []*net.TCPListener // in the order of Lab.Clusters
}

// Listen opens a port of 127.0.0.1 for each cluster and the UI and records it
// in l. A port that is recorded already is taken again, or the error says who
// lost it; the others are chosen free by the kernel.
func (d Dir) Listen(l *Lab) (*Listeners, error) {
	ls := &Listeners{}
	for i := range l.Clusters {
		c := &l.Clusters[i]
		tcp, err := d.listen(&c.Port, fmt.Sprintf("the API server of %s", c.Name))
		if err != nil {
			ls.Close()
			return nil, err
		}
		ls.API = append(ls.API, tcp)
	}
	ui, err := d.listen(&l.UIPort, "the UI")
	if err != nil {
		ls.Close()
		return nil, err
	}
	ls.UI = ui
	return ls, nil
}

func (d Dir) listen(port *int, who string) (*net.TCPListener, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: *port})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port 127.0.0.1:%d, recorded in %s for %s, is in use by another program: "+
			"stop that program (`ss -ltnp sport = :%d` shows it), or run `lab down --state %s` and `lab up` again to get new ports",
			*port, d.file(), who, *port, d)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", who, err)
	}
	*port = l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener has a TCP address
	return l, nil
}

// Close closes what is open.
func (ls *Listeners) Close() {
	if ls.UI != nil {
		_ = ls.UI.Close()
	}
	for _, l := range ls.API {
		_ = l.Close()
	}
}

// Files are duplicates of the sockets to hand to the daemon: UI, then the API
// servers. The caller closes them.
func (ls *Listeners) Files() ([]*os.File, error) {
	var files []*os.File
	for _, l := range append([]*net.TCPListener{ls.UI}, ls.API...) {
		f, err := l.File()
		if err != nil {
			return nil, fmt.Errorf("pass listener %s on: %w", l.Addr(), err)
		}
		files = append(files, f)
	}
	return files, nil
}

// Lock keeps a second `lab up` or `lab down` out of the directory while one is
// at work; the returned function releases it. The kernel does so too when the
// process dies.
func (d Dir) Lock() (func(), error) {
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another `lab up` or `lab down` is at work in %s; wait for it", d)
		}
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
