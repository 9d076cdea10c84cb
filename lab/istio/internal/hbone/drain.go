package hbone

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Open counts open connections, so that a server that ends can let them finish.
type Open struct{ n atomic.Int64 }

// Listen counts what l accepts.
func (o *Open) Listen(l net.Listener) net.Listener { return &counting{l, o} }

// Drain returns when nothing is open any more, or after limit.
func (o *Open) Drain(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for o.n.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

type counting struct {
	net.Listener
	open *Open
}

// Accept implements net.Listener.
func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.n.Add(1)
	return &counted{Conn: c, done: sync.OnceFunc(func() { l.open.n.Add(-1) })}, nil
}

type counted struct {
	net.Conn
	done func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.done()
	return c.Conn.Close()
}

// CloseWrite tells the peer that no more bytes come.
func (c *counted) CloseWrite() error {
	closeWrite(c.Conn)
	return nil
}
