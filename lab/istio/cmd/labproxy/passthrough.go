package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"
)

// passthrough copies bytes between clients of addr and target; TLS is theirs.
func passthrough(ctx context.Context, addr, target string, log *slog.Logger) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		in, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", addr, err)
		}
		go func() {
			defer in.Close()
			out, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", target)
			if err != nil {
				log.Warn("passthrough: cannot reach target", "target", target, "error", err)
				return
			}
			defer out.Close()
			splice(in, out)
		}()
	}
}

// splice copies both ways and returns when both are done.
func splice(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(a, b)
		closeWrite(a)
		close(done)
	}()
	_, _ = io.Copy(b, a)
	closeWrite(b)
	<-done
}

// closeWrite tells the peer that no more bytes come.
func closeWrite(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
		return
	}
	_ = c.Close()
}
