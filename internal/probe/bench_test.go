package probe

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"
)

// BenchmarkThousandEndpoints is a round over 1,000 endpoints on loopback, each presenting a leaf and an intermediate (ECDSA P-256) and listing two roots; 50 servers share the work,
// in the same process. Goal: less than 10 s.
func BenchmarkThousandEndpoints(b *testing.B) {
	const servers, endpoints = 50, 1000
	r1, r2 := newAuthority(b, "root g1", nil), newAuthority(b, "root g2", nil)
	i1 := newAuthority(b, "c1 g1", r1)
	addresses := map[string]string{}
	var v view
	for n := range servers {
		leaf := i1.leaf(b)
		at := listen(b, &tls.Config{Certificates: []tls.Certificate{leaf.tls(i1.cert)}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(r1.cert, r2.cert), MinVersion: tls.VersionTLS13})
		for e := n; e < endpoints; e += servers {
			ip := fmt.Sprintf("10.%d.%d.1", e/250, e%250)
			addresses[ip+":"+hbonePort] = at
			v.pods = append(v.pods, pod{name: fmt.Sprintf("app/web-%d", e), ip: ip, node: "n1", account: fmt.Sprintf("app/web-%d", e), role: roleCaptured, ready: true})
		}
	}
	p := New(Config{
		IstioNamespace: "istio-system", Log: slog.New(slog.DiscardHandler), Token: func() (string, error) { return "", nil },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) { // nothing leaves loopback
			return (&net.Dialer{}).DialContext(ctx, network, addresses[address])
		},
	})
	p.look = func() view { return v }
	b.ReportAllocs()
	for b.Loop() {
		began := time.Now()
		o := p.round(b.Context(), Directed{}, v, began)
		if len(o.Verifiers) != 1 || o.Verifiers[0].Count != endpoints || len(o.Verifiers[0].Accepts) != 2 {
			b.Fatalf("%+v", o.Verifiers)
		}
	}
}
