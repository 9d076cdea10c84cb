package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	istio "istio.io/istio/pkg/hbone"

	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
	"ambitmesh.dev/ambit/lab/istio/internal/svid"
)

// counted is a listener that knows how many of its connections are open.
type counted struct {
	net.Listener
	open, all atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	l.all.Add(1)
	return &countedConn{Conn: c, l: l}, nil
}

type countedConn struct {
	net.Conn
	once sync.Once
	l    *counted
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.l.open.Add(-1) })
	return c.Conn.Close()
}

// opener is the Open of a server: it dials the authority, and remembers.
type opener struct {
	mu       sync.Mutex
	requests []hbone.Request
	done     atomic.Int64
	stream   func(*hbone.Stream) // changes what is opened
	err      error
}

func (o *opener) Open(ctx context.Context, r hbone.Request) (*hbone.Stream, error) {
	o.mu.Lock()
	o.requests = append(o.requests, r)
	o.mu.Unlock()
	if o.err != nil {
		return nil, o.err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.Authority)
	if err != nil {
		return nil, err
	}
	st := &hbone.Stream{Conn: c, Done: func() { o.done.Add(1) }}
	if o.stream != nil {
		o.stream(st)
	}
	return st, nil
}

func (o *opener) seen() []hbone.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]hbone.Request(nil), o.requests...)
}

// serve runs an HBONE server of the lab until the test ends.
func serve(t *testing.T, id *svid.Identity, open func(context.Context, hbone.Request) (*hbone.Stream, error), address string) *counted {
	t.Helper()
	l := &counted{Listener: listen(t, address)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := &hbone.Server{TLS: id.ServerTLS(nil), Open: open, Log: discard}
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

// serveIstio runs the HBONE server of istio.io/istio.
func serveIstio(t *testing.T, s *http.Server, id *svid.Identity) *counted {
	t.Helper()
	l := &counted{Listener: listen(t, "127.0.0.1:0")}
	s.Protocols.SetHTTP2(true)
	s.TLSConfig = id.ServerTLS(nil)
	go func() { _ = s.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = s.Close() })
	return l
}

func dialTCP(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) }
}

func clientTLS(t *testing.T, id *svid.Identity) *tls.Config {
	t.Helper()
	config, err := id.ClientTLS(func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// connect opens a tunnel with the lab's client.
func connect(t *testing.T, id *svid.Identity, proxy, target string) (*hbone.Tunnel, error) {
	t.Helper()
	tunnel, err := hbone.Connect(t.Context(), dialTCP(proxy), clientTLS(t, id), target)
	if err == nil {
		t.Cleanup(func() { _ = tunnel.Close() })
	}
	return tunnel, err
}

// echo answers every connection with what it gets, then with a word when the
// client has closed its side.
func echo(t *testing.T) *counted {
	t.Helper()
	return app(t, "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_, _ = io.WriteString(c, "bye")
	})
}

// app handles every connection to an address.
func app(t *testing.T, address string, handle func(net.Conn)) *counted {
	t.Helper()
	return serveApp(t, listen(t, address), handle)
}

func serveApp(t *testing.T, inner net.Listener, handle func(net.Conn)) *counted {
	t.Helper()
	l := &counted{Listener: inner}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l
}

// exchange writes data in pieces and expects it back.
func exchange(c io.ReadWriter, data []byte) error {
	sent := make(chan error, 1)
	go func() {
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 40_000)
			if _, err := c.Write(rest[:n]); err != nil {
				sent <- err
				return
			}
			rest = rest[n:]
		}
		sent <- nil
	}()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return errors.New("other bytes came back")
	}
	return <-sent
}

func random(n int) []byte {
	out := make([]byte, n)
	_, _ = rand.Read(out)
	return out
}

// TestHBONE: the lab's client and server with each other and with those of
// istio.io/istio.
func TestHBONE(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	web, app := i.identity(webID), i.identity(appID)
	target := echo(t)
	o := &opener{}
	own := serve(t, app, o.Open, "127.0.0.1:0").Addr().String()
	istios := serveIstio(t, istio.NewServer(), app).Addr().String()
	ownDial := func(proxy string) func(t *testing.T) io.ReadWriteCloser {
		return func(t *testing.T) io.ReadWriteCloser {
			tunnel, err := connect(t, web, proxy, target.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			return tunnel
		}
	}
	for name, dial := range map[string]func(*testing.T) io.ReadWriteCloser{
		"own client, own server":   ownDial(own),
		"own client, istio server": ownDial(istios),
		"istio client, own server": func(t *testing.T) io.ReadWriteCloser {
			c, err := istio.NewDialer(istio.Config{ProxyAddress: own, TLS: clientTLS(t, web)}).Dial("tcp", target.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t)
			for _, size := range []int{1, 100, 10 << 20} {
				if err := exchange(c, random(size)); err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
			}
			h, ok := c.(interface{ CloseWrite() error })
			if !ok { // istio's client is a net.Pipe: it closes both ways at once
				return
			}
			if err := h.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(c); err != nil || string(rest) != "bye" {
				t.Errorf("after the end of writing: %q, %v", rest, err)
			}
		})
	}
	for _, r := range o.seen() {
		if ip, ok := r.Remote.(*net.TCPAddr); !ok || !ip.IP.IsLoopback() || ip.Port == 0 {
			t.Errorf("remote %v", r.Remote)
		}
		r.Remote = nil
		if d := cmp.Diff(hbone.Request{Peer: webID, Authority: target.Addr().String()}, r); d != "" {
			t.Error(d)
		}
	}
	eventually(t, "every stream done", func() bool { return o.done.Load() == 2 && target.open.Load() == 0 })
}

// TestRefusal: what the caller hears when there is no tunnel.
func TestRefusal(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	web := i.identity(webID)
	o := &opener{}
	proxy := serve(t, i.identity(appID), o.Open, "127.0.0.1:0")
	address := proxy.Addr().String()
	for _, c := range []struct {
		err  error
		want hbone.RefusedError
	}{
		{&hbone.Refusal{Status: http.StatusUnauthorized, Reason: "policy p says no"}, hbone.RefusedError{Status: 401, Reason: "policy p says no"}},
		{fmt.Errorf("wrapped: %w", &hbone.Refusal{Status: http.StatusNotFound, Reason: "no service"}), hbone.RefusedError{Status: 404, Reason: "wrapped: no service"}},
		{errors.New("connection refused"), hbone.RefusedError{Status: 503, Reason: "connection refused"}},
	} {
		o.err = c.err
		_, err := connect(t, web, address, "127.0.0.1:1")
		refused, ok := errors.AsType[*hbone.RefusedError](err)
		if !ok {
			t.Fatalf("%v: got %v", c.err, err)
		}
		if d := cmp.Diff(c.want, *refused); d != "" {
			t.Error(d)
		}
		if refused.Error() == "" {
			t.Error("no text")
		}
		if _, err := istio.NewDialer(istio.Config{ProxyAddress: address, TLS: clientTLS(t, web)}).Dial("tcp", "127.0.0.1:1"); err == nil {
			t.Errorf("%v: istio's client got a tunnel", c.err)
		}
	}
	if n := o.done.Load(); n != 0 {
		t.Errorf("%d streams ended that never began", n)
	}
	o.err = nil
	tr := &http.Transport{TLSClientConfig: clientTLS(t, web), ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + address + "/")
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed || resp.ProtoMajor != 2 {
		t.Errorf("GET: %v, %v", resp, err)
	}
	eventually(t, "all connections but three of istio's dialer and that of GET close", func() bool { return proxy.open.Load() <= 4 })
}

// TestVerdictHeader: an accepted tunnel says why.
func TestVerdictHeader(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	o := &opener{stream: func(s *hbone.Stream) { s.Verdict = "policy p allows web" }}
	proxy := serve(t, i.identity(appID), o.Open, "127.0.0.1:0")
	tunnel, err := connect(t, i.identity(webID), proxy.Addr().String(), echo(t).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if tunnel.Verdict != "policy p allows web" {
		t.Errorf("verdict %q", tunnel.Verdict)
	}
}

// TestRefusedPeers: without a certificate of the roots and of the trust domain
// there is no CONNECT at all.
func TestRefusedPeers(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	i := newIstiod(t, a)
	o := &opener{}
	proxy := serve(t, i.identity(appID), o.Open, "127.0.0.1:0")
	foreign := newIstiod(t, b)
	foreign.bundle = append(foreign.bundle, a.root) // the client trusts the server, not the reverse
	none := clientTLS(t, i.identity(webID))
	none.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	for name, config := range map[string]*tls.Config{
		"no certificate":       none,
		"wrong root":           clientTLS(t, foreign.identity(webID)),
		"another trust domain": clientTLS(t, i.identity("spiffe://td2/ns/shop/sa/web")),
	} {
		tunnel, err := hbone.Connect(t.Context(), dialTCP(proxy.Addr().String()), config, echo(t).Addr().String())
		if err == nil {
			_ = tunnel.Close()
			t.Errorf("%s: got a tunnel", name)
		}
		if _, ok := errors.AsType[*hbone.RefusedError](err); ok {
			t.Errorf("%s: got as far as CONNECT: %v", name, err)
		}
	}
	if got := o.seen(); len(got) != 0 {
		t.Errorf("asked for %v", got)
	}
	if _, err := connect(t, i.identity(webID), proxy.Addr().String(), echo(t).Addr().String()); err != nil {
		t.Errorf("the right peer: %v", err)
	}
	plain := func(c *http.Client, url string) error {
		resp, err := c.Get(url)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := plain(&http.Client{Timeout: 2 * time.Second}, "http://"+proxy.Addr().String()); err == nil {
		if got := len(o.seen()); got != 1 {
			t.Error("plain text was heard")
		}
	}
}

// TestDoubleHBONE: through a gateway that sees the outer tunnel only, with the
// own client and with istio's, to the own server and to istio's.
func TestDoubleHBONE(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	web, gw, app := i.identity(webID), i.identity("spiffe://cluster.local/ns/gw/sa/eastwest"), i.identity(appID)
	target := echo(t).Addr().String()
	const authority = "app.app.svc.cluster.local:8080"
	dest := &opener{}
	destination := serve(t, app, func(ctx context.Context, r hbone.Request) (*hbone.Stream, error) {
		if r.Authority == authority {
			r.Authority = target
		}
		return dest.Open(ctx, r)
	}, "127.0.0.1:0").Addr().String()
	outer := &opener{}
	gateway := serve(t, gw, func(ctx context.Context, r hbone.Request) (*hbone.Stream, error) {
		r.Authority = destination
		return outer.Open(ctx, r)
	}, "127.0.0.1:0")

	t.Run("own client", func(t *testing.T) {
		isApp, err := web.ClientTLS(func(peer string) error {
			if peer != appID {
				return errors.New("not the destination")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		through := func(ctx context.Context) (net.Conn, error) {
			return hbone.Connect(ctx, dialTCP(gateway.Addr().String()), clientTLS(t, web), authority)
		}
		tunnel, err := hbone.Connect(t.Context(), through, isApp, authority)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(tunnel, random(1<<20)); err != nil {
			t.Error(err)
		}
		_ = tunnel.CloseWrite()
		if rest, err := io.ReadAll(tunnel); err != nil || string(rest) != "bye" {
			t.Errorf("after the end of writing: %q, %v", rest, err)
		}
		_ = tunnel.Close()
		eventually(t, "both tunnels and their connections end", func() bool {
			return outer.done.Load() == 1 && dest.done.Load() == 1 && gateway.open.Load() == 0
		})
		if d := cmp.Diff([]string{webID, webID}, []string{outer.seen()[0].Peer, dest.seen()[0].Peer}); d != "" {
			t.Error(d)
		}
	})
	t.Run("istio client", func(t *testing.T) {
		d := istio.NewDoubleDialer(istio.Config{ProxyAddress: gateway.Addr().String(), TLS: clientTLS(t, web)},
			istio.Config{ProxyAddress: gateway.Addr().String(), TLS: clientTLS(t, web)}, clientTLS(t, web))
		c, err := d.Dial("tcp", authority)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := exchange(c, random(1<<20)); err != nil {
			t.Error(err)
		}
		if got := dest.seen(); len(got) != 2 || got[1].Peer != webID {
			t.Errorf("destination saw %v", got)
		}
	})
	t.Run("istio server", func(t *testing.T) {
		both := serveIstio(t, istio.NewDoubleHBONEServer(app.ServerTLS(nil)), gw).Addr().String()
		_, port, _ := net.SplitHostPort(target)
		name := net.JoinHostPort("localhost", port) // it wants a name
		through := func(ctx context.Context) (net.Conn, error) {
			return hbone.Connect(ctx, dialTCP(both), clientTLS(t, web), name)
		}
		tunnel, err := hbone.Connect(t.Context(), through, clientTLS(t, web), name)
		if err != nil {
			t.Fatal(err)
		}
		defer tunnel.Close()
		if err := exchange(tunnel, random(1<<20)); err != nil {
			t.Error(err)
		}
	})
}
