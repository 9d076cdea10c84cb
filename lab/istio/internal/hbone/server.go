// Package hbone is both sides of HBONE, Istio's tunnel: HTTP/2 CONNECT over
// mutual TLS.
//
// In: listeners or streams, TLS settings, and a function that decides about each
// CONNECT. Out: byte streams with the identities at both ends. It must not know
// policy, services or Kubernetes: who may connect where is the caller's word.
// It is checked against istio.io/istio/pkg/hbone as the peer, both ways.
package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Lab-only headers: a real ztunnel says only 200, 401 or 503.
const (
	// HeaderVerdict tells the caller by which policy it was allowed or denied.
	HeaderVerdict = "X-Lab-Verdict"
	// TrailerClosed tells the caller by which policy its open stream was closed.
	TrailerClosed = "X-Lab-Closed-By"
)

// Request is one CONNECT of a verified peer.
type Request struct {
	Peer      string // SPIFFE ID
	Remote    net.Addr
	Authority string // host:port
}

// Stream is what an accepted CONNECT leads to.
type Stream struct {
	Conn    net.Conn
	Verdict string // for HeaderVerdict, may be empty
	// Revoked, when not nil, yields the reason for which the stream must end.
	Revoked <-chan string
	// Done, when not nil, is called when the stream has ended.
	Done func()
}

// Refusal is an error with the HTTP status it is to be answered with.
type Refusal struct {
	Status int
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

// Server answers CONNECT requests.
type Server struct {
	TLS  *tls.Config
	Open func(context.Context, Request) (*Stream, error)
	Log  *slog.Logger
}

// Serve handles connections on l until ctx ends or l is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		TLSConfig:         s.TLS,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	srv.Protocols.SetHTTP2(true)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.ServeTLS(l, "", "")
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve HBONE: %w", err)
}

// ServeHTTP tunnels one CONNECT request to where Open leads.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "HBONE wants CONNECT", http.StatusMethodNotAllowed)
		return
	}
	remote, err := net.ResolveTCPAddr("tcp", r.RemoteAddr)
	if err != nil {
		remote = &net.TCPAddr{}
	}
	req := Request{
		Peer:   r.TLS.PeerCertificates[0].URIs[0].String(), // verified by the TLS settings
		Remote: remote, Authority: r.Host,
	}
	st, err := s.Open(r.Context(), req)
	if err != nil {
		status := http.StatusServiceUnavailable
		if refusal, ok := errors.AsType[*Refusal](err); ok {
			status = refusal.Status
		}
		s.Log.Info("refused", "peer", req.Peer, "target", req.Authority, "status", status, "reason", err)
		w.Header().Set(HeaderVerdict, err.Error())
		w.WriteHeader(status)
		return
	}
	s.Log.Info("tunnel", "peer", req.Peer, "target", req.Authority)
	if st.Done != nil {
		defer st.Done()
	}
	defer st.Conn.Close()
	if st.Verdict != "" {
		w.Header().Set(HeaderVerdict, st.Verdict)
	}
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil {
		return
	}
	if reason := relay(r.Context(), r.Body, &flushing{w, rc}, st); reason != "" {
		s.Log.Info("closed by policy", "peer", req.Peer, "target", req.Authority, "reason", reason)
		w.Header().Set(http.TrailerPrefix+TrailerClosed, reason)
	} else if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // resets the stream: a client must not take this for the end of what the target had to say
	}
}

// revokeTimeout is how long a revoked stream waits for a client that does not
// read; after that it is reset, without a trailer.
const revokeTimeout = time.Second

// relay copies both ways until the target has nothing more to say, the client has
// gone (ctx), or the stream is revoked, in which case it returns why.
func relay(ctx context.Context, in io.ReadCloser, out *flushing, st *Stream) string {
	up, down := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(up)
		_, _ = io.Copy(st.Conn, in)
		closeWrite(st.Conn)
	}()
	go func() {
		defer close(down)
		_, _ = io.Copy(out, st.Conn)
	}()
	var reason string
	select {
	case reason = <-st.Revoked:
		_ = out.rc.SetWriteDeadline(time.Now().Add(revokeTimeout))
	case <-ctx.Done():
	case <-down:
	}
	_ = st.Conn.Close()
	_ = in.Close()
	<-down // the response writer must not be used after the handler
	<-up
	return reason
}

// closeWrite tells the peer that no more bytes come.
func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
}

// flushing sends every write at once: a tunnel must not hold bytes back.
type flushing struct {
	w  io.Writer
	rc *http.ResponseController
}

func (f *flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}
