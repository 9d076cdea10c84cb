package hbone

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// handshakeTimeout bounds the TLS handshake.
const handshakeTimeout = 5 * time.Second

// Tunnel is the client's end of an accepted CONNECT. As a net.Conn it can carry
// another tunnel (double HBONE). Deadlines are not supported.
type Tunnel struct {
	Verdict string // what the server said about why, lab only
	body    io.ReadCloser
	trailer http.Header
	pw      *io.PipeWriter
	close   func()
}

// RefusedError is the answer of a server that did not open the tunnel.
type RefusedError struct {
	Status int
	Reason string // lab only
}

func (e *RefusedError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("CONNECT refused with status %d", e.Status)
	}
	return fmt.Sprintf("CONNECT refused with status %d: %s", e.Status, e.Reason)
}

// Connect opens a tunnel to authority over a connection that dial makes and tls
// protects. ctx bounds only the opening.
func Connect(ctx context.Context, dial func(context.Context) (net.Conn, error), config *tls.Config, authority string) (*Tunnel, error) {
	tr := &http.Transport{
		Protocols:           new(http.Protocols),
		TLSHandshakeTimeout: handshakeTimeout,
		TLSClientConfig:     config,
		IdleConnTimeout:     time.Second, // a connection that was given up while it was opening has no tunnel to close it
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	tr.Protocols.SetHTTP2(true)
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	opening := context.AfterFunc(ctx, end)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(life, http.MethodConnect, "https://hbone", pr)
	if err != nil {
		end()
		return nil, err
	}
	req.Host, req.URL = authority, &url.URL{Scheme: "https", Host: "hbone"}
	resp, err := tr.RoundTrip(req) //nolint:bodyclose // the tunnel closes it
	if !opening() && err == nil {
		err = context.Cause(ctx)
		_ = resp.Body.Close()
	}
	if err != nil {
		end()
		tr.CloseIdleConnections()
		return nil, err
	}
	t := &Tunnel{Verdict: resp.Header.Get(HeaderVerdict), body: resp.Body, pw: pw, close: func() {
		_ = pw.Close()
		_ = resp.Body.Close()
		end()
		tr.CloseIdleConnections()
	}}
	if resp.StatusCode != http.StatusOK {
		t.close()
		return nil, &RefusedError{Status: resp.StatusCode, Reason: t.Verdict}
	}
	t.trailer = resp.Trailer
	t.trailerOf(resp)
	return t, nil
}

// trailerOf keeps the response: its trailer is filled in at the end of the body.
func (t *Tunnel) trailerOf(resp *http.Response) {
	t.body = &trailing{ReadCloser: resp.Body, resp: resp, t: t}
}

type trailing struct {
	io.ReadCloser
	resp *http.Response
	t    *Tunnel
}

func (b *trailing) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.t.trailer = b.resp.Trailer
	}
	return n, err
}

// ClosedBy is, after the end of reading, the policy for which the server closed
// the tunnel, or "".
func (t *Tunnel) ClosedBy() string { return t.trailer.Get(TrailerClosed) }

// Read implements net.Conn.
func (t *Tunnel) Read(p []byte) (int, error) { return t.body.Read(p) }

// Write implements net.Conn.
func (t *Tunnel) Write(p []byte) (int, error) { return t.pw.Write(p) }

// CloseWrite tells the server that no more bytes come.
func (t *Tunnel) CloseWrite() error { return t.pw.Close() }

// Close ends the tunnel and its connection.
func (t *Tunnel) Close() error {
	t.close()
	return nil
}

// LocalAddr implements net.Conn.
func (t *Tunnel) LocalAddr() net.Addr { return tunnelAddr{} }

// RemoteAddr implements net.Conn.
func (t *Tunnel) RemoteAddr() net.Addr { return tunnelAddr{} }

// SetDeadline implements net.Conn and does nothing.
func (t *Tunnel) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn and does nothing.
func (t *Tunnel) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn and does nothing.
func (t *Tunnel) SetWriteDeadline(time.Time) error { return nil }

type tunnelAddr struct{}

func (tunnelAddr) Network() string { return "hbone" }
func (tunnelAddr) String() string  { return "hbone" }
