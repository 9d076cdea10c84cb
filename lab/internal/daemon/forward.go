package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"time"
)

// forward copies bytes between clients of l, a socket of the host, and the
// address that target names, which is in the lab, until ctx ends. A target
// that is away costs the client its connection, as with a dead server.
func forward(ctx context.Context, l net.Listener, target func(context.Context) (string, error), log *slog.Logger) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		in, err := l.Accept()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Warn("accept failed", "address", l.Addr().String(), "error", err)
			time.Sleep(100 * time.Millisecond) // out of file descriptors, most likely
			continue
		}
		go func() {
			defer in.Close()
			dial, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			addr, err := target(dial)
			if err != nil {
				log.Debug("no target", "address", l.Addr().String(), "error", err)
				return
			}
			out, err := (&net.Dialer{}).DialContext(dial, "tcp", addr)
			if err != nil {
				log.Debug("target away", "target", addr, "error", err)
				return
			}
			defer out.Close()
			end := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
			defer end()
			splice(in, out)
		}()
	}
}

// splice copies both ways, passing half-closes on, and returns when both ways
// are done.
func splice(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe(a, b)
	}()
	pipe(b, a)
	<-done
}

func pipe(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if err != nil { // a broken side: the other must not wait for it
		_, _ = dst.Close(), src.Close()
		return
	}
	if t, ok := dst.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}
