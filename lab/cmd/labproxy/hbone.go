package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// hbone is the server side of HBONE: an HTTP/2 CONNECT proxy over mutual TLS.
type hbone struct {
	id                *identity
	log               *slog.Logger
	accepted, refused atomic.Int64
}

func newHBONE(id *identity, log *slog.Logger) *hbone { return &hbone{id: id, log: log} }

// tlsConfig asks every peer for a certificate and judges it by the roots of
// the moment. Session tickets are off: a resumed session would carry a trust
// decision made under older roots.
func (h *hbone) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2"},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return h.id.svid.Load(), nil },
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := verifyPeer(cs.PeerCertificates, h.id.roots.Load(), x509.ExtKeyUsageClientAuth)
			if err != nil {
				h.refused.Add(1)
				h.log.Warn("peer refused", "error", err)
			}
			return err
		},
	}
}

// verifyPeer checks a peer's chain against the roots and returns its SPIFFE ID
// (X.509-SVID: exactly one URI, SPIFFE X.509-SVID 4.1 and 5).
func verifyPeer(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("peer sent no certificate")
	}
	leaf, inter := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" {
		return "", fmt.Errorf("peer certificate %q is not an SVID: it has %d URIs", leaf.Subject, len(leaf.URIs))
	}
	spiffeID := leaf.URIs[0].String()
	if leaf.IsCA {
		return "", fmt.Errorf("peer %s presents a CA certificate", spiffeID)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return "", fmt.Errorf("peer %s: %w", spiffeID, err)
	}
	return spiffeID, nil
}

// serve handles connections on l until ctx ends.
func (h *hbone) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           h,
		TLSConfig:         h.tlsConfig(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	srv.Protocols.SetHTTP2(true)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HBONE: %w", err)
	}
	return nil
}

// ServeHTTP tunnels one CONNECT request to the authority it names.
func (h *hbone) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "HBONE wants CONNECT", http.StatusMethodNotAllowed)
		return
	}
	peer := r.TLS.PeerCertificates[0].URIs[0].String() // verified by VerifyConnection
	out, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		h.log.Warn("cannot reach target", "peer", peer, "target", r.Host, "error", err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer out.Close()
	h.accepted.Add(1)
	h.log.Info("tunnel", "peer", peer, "target", r.Host)
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, r.Body)
		closeWrite(out)
	}()
	_, _ = io.Copy(&flushing{w, rc}, out)
	_ = out.Close()
	_ = r.Body.Close()
	<-done
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
