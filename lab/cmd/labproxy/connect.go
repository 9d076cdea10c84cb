package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// tunnel is the client side of HBONE: a stream to a target through a gateway.
type tunnel struct {
	io.Reader
	io.Writer
	peer  string // SPIFFE ID of the gateway
	close func()
}

// Close ends the tunnel and its connection.
func (t *tunnel) Close() error {
	t.close()
	return nil
}

// connect opens a tunnel to target through the HBONE server at gateway, as the
// workload with cert, trusting peers under roots.
func connect(ctx context.Context, gateway, target string, cert *tls.Certificate, roots *x509.CertPool) (*tunnel, error) {
	t := &tunnel{}
	tr := &http.Transport{Protocols: new(http.Protocols), TLSHandshakeTimeout: 5 * time.Second, TLSClientConfig: &tls.Config{
		Certificates:       []tls.Certificate{*cert},
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // an SVID has no DNS name to verify: VerifyConnection judges it
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			t.peer, err = verifyPeer(cs.PeerCertificates, roots, x509.ExtKeyUsageServerAuth)
			return err
		},
	}}
	tr.Protocols.SetHTTP2(true)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, "https://"+gateway, pr)
	if err != nil {
		return nil, err
	}
	req.Host, req.URL = target, &url.URL{Scheme: "https", Host: gateway}
	resp, err := tr.RoundTrip(req) //nolint:bodyclose // the tunnel closes it
	if err != nil {
		return nil, fmt.Errorf("HBONE to %s: %w", gateway, err)
	}
	t.Reader, t.Writer = resp.Body, pw
	t.close = func() {
		_ = pw.Close()
		_ = resp.Body.Close()
		tr.CloseIdleConnections()
	}
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		t.close()
		return nil, fmt.Errorf("HBONE to %s, peer %s: CONNECT %s: %s %s", gateway, t.peer, target, resp.Status, why)
	}
	return t, nil
}

// try is `labproxy connect GATEWAY TARGET`: with an SVID of this Pod it asks
// TARGET for / through GATEWAY and prints who the peers were. It shows from
// inside a Pod whether two clusters trust each other:
//
//	kubectl exec deploy/istio-eastwest -- labproxy connect 10.12.64.1:15008 productpage.bookinfo:9080
func try(ctx context.Context, cfg config, args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: labproxy connect GATEWAY:15008 TARGET:PORT")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	id := newIdentity(cfg, slog.New(slog.DiscardHandler))
	if _, _, err := id.loadRoots(nil); err != nil {
		return err
	}
	cert, err := id.request(ctx)
	if err != nil {
		return err
	}
	t, err := connect(ctx, args[0], args[1], cert, id.roots.Load())
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }()
	if _, err := fmt.Fprintf(t, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", args[1]); err != nil {
		return fmt.Errorf("request through %s: %w", args[0], err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(t), nil)
	if err != nil {
		return fmt.Errorf("answer through %s: %w", args[0], err)
	}
	defer resp.Body.Close()
	fmt.Fprintf(out, "%s -> %s -> %s: %s\n", cert.Leaf.URIs[0], t.peer, args[1], resp.Status)
	_, err = io.Copy(out, resp.Body)
	return err
}
