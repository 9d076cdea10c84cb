package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func loopback(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func TestShake(t *testing.T) {
	r1, r2 := newAuthority(t, "root g1", nil), newAuthority(t, "root g2", nil)
	i1 := newAuthority(t, "c1 g1", r1)
	own := i1.leaf(t)
	for _, tt := range []struct {
		name    string
		cfg     *tls.Config
		accepts []string
		known   bool
	}{
		{"TLS 1.3, two roots", &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(r1.cert, r2.cert), MinVersion: tls.VersionTLS13}, []string{"CN=root g1,O=Ambit test", "CN=root g2,O=Ambit test"}, true},
		{"TLS 1.2 refuses within the handshake", &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(r2.cert), MaxVersion: tls.VersionTLS12}, []string{"CN=root g2,O=Ambit test"}, true},
		{"a certificate is asked for, of nobody in particular", &tls.Config{ClientAuth: tls.RequireAnyClientCert}, nil, false},
		{"none is asked for", &tls.Config{}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.cfg.Clone()
			cfg.Certificates, cfg.NextProtos = []tls.Certificate{own.tls(i1.cert)}, []string{"h2"}
			got, err := Shake(t.Context(), loopback, listen(t, cfg))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(Handshake{Chain: []*x509.Certificate{own.cert, i1.cert}, Accepts: tt.accepts, Known: tt.known}, got, cmp.Comparer((*x509.Certificate).Equal)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestShakeFails(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts by the backlog, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := closed.Addr().String()
	closed.Close()
	for name, address := range map[string]string{"silent": silent.Addr().String(), "gone": gone} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			began := time.Now()
			if got, err := Shake(ctx, loopback, address); err == nil || time.Since(began) > 2*time.Second {
				t.Errorf("after %s: %+v, %v", time.Since(began), got, err)
			}
		})
	}
}

func TestReasonIsTheSameForAllAddresses(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	_, err = Shake(t.Context(), loopback, closed.Addr().String())
	if got := reason(err).Error(); got != "connect: connection refused" {
		t.Errorf("got %q", got)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Shake(ctx, loopback, silent.Addr().String())
	if got := reason(err).Error(); got != reason(context.DeadlineExceeded).Error() {
		t.Errorf("got %q", got)
	}
}
