package test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
)

// TestRevocation: a revoked stream ends at both ends, with the reason in the
// trailer, whatever the client is doing.
func TestRevocation(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	web := i.identity(webID)
	revoke := make(chan string, 1)
	o := &opener{stream: func(s *hbone.Stream) { s.Revoked = revoke }}
	proxy := serve(t, i.identity(appID), o.Open, "127.0.0.1:0").Addr().String()
	flood := app(t, "127.0.0.1:0", func(c net.Conn) {
		for buf := make([]byte, 64<<10); ; {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	quiet := echo(t)
	const why = "AuthorizationPolicy app/p denies web"
	t.Run("idle", func(t *testing.T) {
		tunnel, err := connect(t, web, proxy, quiet.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(tunnel, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		revoke <- why
		if rest, err := io.ReadAll(tunnel); err != nil || len(rest) > 0 {
			t.Errorf("got %q, %v", rest, err)
		}
		if got := tunnel.ClosedBy(); got != why {
			t.Errorf("closed by %q", got)
		}
		eventually(t, "writes fail", func() bool { _, err := tunnel.Write([]byte("more")); return err != nil })
		eventually(t, "the application's end closes", func() bool { return quiet.open.Load() == 0 && o.done.Load() == 1 })
	})
	t.Run("under way", func(t *testing.T) {
		tunnel, err := connect(t, web, proxy, flood.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, tunnel, 1<<20); err != nil {
			t.Fatal(err)
		}
		revoke <- why
		if _, err := io.Copy(io.Discard, tunnel); err != nil {
			t.Errorf("read to the end: %v", err)
		}
		if got := tunnel.ClosedBy(); got != why {
			t.Errorf("closed by %q", got)
		}
		eventually(t, "the application's end closes", func() bool { return flood.open.Load() == 0 && o.done.Load() == 2 })
	})
	t.Run("client does not read", func(t *testing.T) {
		tunnel, err := connect(t, web, proxy, flood.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // until the stream's window is full
		revoke <- why
		eventually(t, "the application's end closes", func() bool { return flood.open.Load() == 0 && o.done.Load() == 3 })
		_ = tunnel.Close()
	})
	t.Run("ends by itself", func(t *testing.T) {
		tunnel, err := connect(t, web, proxy, quiet.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = tunnel.CloseWrite()
		if _, err := io.ReadAll(tunnel); err != nil || tunnel.ClosedBy() != "" {
			t.Errorf("closed by %q, %v", tunnel.ClosedBy(), err)
		}
	})
}

// TestManyTunnels: 200 at once, and nothing left of them.
func TestManyTunnels(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	web := i.identity(webID)
	o, target := &opener{}, echo(t)
	proxy := serve(t, i.identity(appID), o.Open, "127.0.0.1:0")
	const n = 200
	var open, all sync.WaitGroup
	open.Add(n)
	for range n {
		all.Go(func() {
			tunnel, err := hbone.Connect(t.Context(), dialTCP(proxy.Addr().String()), clientTLS(t, web), target.Addr().String())
			open.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer tunnel.Close()
			open.Wait() // all are open at once
			if err := exchange(tunnel, random(10_000)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := target.all.Load(); got != n {
		t.Errorf("%d connections to the application, want %d", got, n)
	}
	eventually(t, "all ended", func() bool { return o.done.Load() == n && target.open.Load() == 0 })
	eventually(t, "all connections closed", func() bool { return proxy.open.Load() == 0 })
}

// TestOpening: the context bounds the opening of a tunnel, not its life.
func TestOpening(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	web := i.identity(webID)
	slow := make(chan struct{})
	proxy := serve(t, i.identity(appID), func(ctx context.Context, _ hbone.Request) (*hbone.Stream, error) {
		select {
		case <-slow:
		case <-ctx.Done():
		}
		return nil, errors.New("late")
	}, "127.0.0.1:0")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := hbone.Connect(ctx, dialTCP(proxy.Addr().String()), clientTLS(t, web), "127.0.0.1:1"); err == nil {
		t.Error("got a tunnel")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	eventually(t, "the connection closes", func() bool { return proxy.open.Load() == 0 })
	close(slow)

	o := &opener{}
	ctx, cancel = context.WithCancel(t.Context())
	tunnel, err := hbone.Connect(ctx, dialTCP(serve(t, i.identity(appID), o.Open, "127.0.0.1:0").Addr().String()), clientTLS(t, web), echo(t).Addr().String())
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	if err := exchange(tunnel, []byte("still there")); err != nil {
		t.Error(err)
	}
	if _, err := hbone.Connect(t.Context(), dialTCP("127.0.0.1:1"), clientTLS(t, web), "127.0.0.1:1"); err == nil {
		t.Error("got a tunnel from nobody")
	}
	// What goes through a tunnel sees a net.Conn.
	_ = tunnel.SetDeadline(time.Now())
	if tunnel.LocalAddr().Network() != "hbone" || tunnel.RemoteAddr().String() != "hbone" {
		t.Error("addresses")
	}
	if err := exchange(tunnel, []byte("deadlines do nothing")); err != nil {
		t.Error(err)
	}
}

// TestClientGone: an application that neither reads nor speaks is left when the
// client has gone.
func TestClientGone(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	web := i.identity(webID)
	forever := make(chan struct{})
	defer close(forever)
	target := app(t, "127.0.0.1:0", func(net.Conn) { <-forever })
	o := &opener{}
	proxy := serve(t, i.identity(appID), o.Open, "127.0.0.1:0")
	closed, err := connect(t, web, proxy.Addr().String(), target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var raw net.Conn
	cut, err := hbone.Connect(t.Context(), func(ctx context.Context) (_ net.Conn, err error) {
		raw, err = dialTCP(proxy.Addr().String())(ctx)
		return raw, err
	}, clientTLS(t, web), target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	_ = closed.Close()
	_ = raw.Close()
	eventually(t, "both streams end", func() bool { return o.done.Load() == 2 })
}

// TestServeEnds: the end of the context ends open tunnels.
func TestServeEnds(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	o, target := &opener{}, echo(t)
	ctx, cancel := context.WithCancel(t.Context())
	l := listen(t, "127.0.0.1:0")
	ended := make(chan error, 1)
	go func() {
		ended <- (&hbone.Server{TLS: i.identity(appID).ServerTLS(nil), Open: o.Open, Log: discard}).Serve(ctx, l)
	}()
	tunnel, err := connect(t, i.identity(webID), l.Addr().String(), target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(tunnel); err == nil {
		t.Error("the tunnel ended as if all had been said")
	}
	eventually(t, "the application's end closes", func() bool { return target.open.Load() == 0 })
	if err := (&hbone.Server{TLS: i.identity(appID).ServerTLS(nil), Log: discard}).Serve(t.Context(), l); err != nil {
		t.Errorf("a closed listener: %v", err)
	}
}

// TestDrain: a server whose listener is closed waits for what is open, up to a
// limit.
func TestDrain(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	o, target := &opener{}, echo(t)
	var open hbone.Open
	l := listen(t, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- (&hbone.Server{TLS: i.identity(appID).ServerTLS(nil), Open: o.Open, Log: discard}).Serve(ctx, open.Listen(l))
	}()
	tunnel, err := connect(t, i.identity(webID), l.Addr().String(), target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	drain := func(limit time.Duration) time.Duration {
		began := time.Now()
		open.Drain(ctx, limit)
		return time.Since(began)
	}
	if took := drain(200 * time.Millisecond); took < 200*time.Millisecond || took > 2*time.Second {
		t.Errorf("with an open tunnel: %s, want 200 ms", took)
	}
	if err := exchange(tunnel, random(1<<20)); err != nil {
		t.Errorf("an open tunnel: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = tunnel.Close() })
	if took := drain(10 * time.Second); took < 100*time.Millisecond || took > 5*time.Second {
		t.Errorf("until the tunnel closes: %s, want 100 ms", took)
	}
	if took := drain(10 * time.Second); took > time.Second {
		t.Errorf("with nothing open: %s", took)
	}
}
