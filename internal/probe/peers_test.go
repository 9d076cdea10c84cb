package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// peerGateway is a Gateway in the shape of the operators' page.
func peerGateway(name, address string, port int64) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": name, "namespace": "istio-eastwest"},
		"spec": map[string]any{
			"gatewayClassName": mesh.ClassRemote, "addresses": []any{map[string]any{"type": "IPAddress", "value": address}},
			"listeners": []any{map[string]any{"name": "xds-tls", "port": int64(15012), "protocol": "TLS"}, map[string]any{"name": "cross-network", "port": port, "protocol": "HBONE"}},
		},
	}}
}

func newTestPeers(t *testing.T, dial Dialer) (*Peers, func(name string) *mesh.PeerProbe) {
	source := synclog.NewSource("test")
	source.SetComplete(true)
	p := NewPeers(PeersConfig{Source: source, Dial: dial, Log: slog.New(slog.DiscardHandler)})
	reader, sink := source.Cursor(synclog.Position{}), synclog.NewSink(synclog.Limits{}, false)
	return p, func(name string) *mesh.PeerProbe {
		t.Helper()
		for {
			c, more := reader.Next()
			if !more {
				break
			}
			if err := sink.Apply(c); err != nil {
				t.Fatal(err)
			}
		}
		raw, ok := sink.Snapshot().Items[synclog.Key{Type: mesh.ItemPeerProbe, Name: "istio-eastwest/" + name}]
		if !ok {
			return nil
		}
		out := new(mesh.PeerProbe)
		if err := json.Unmarshal(raw, out); err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// eastWestServer answers as an east-west gateway does: TLS that asks for a client certificate, and refuses who has none.
func eastWestServer(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = c.(*tls.Conn).HandshakeContext(context.Background())
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// TestPeerAsk: what becomes of a dial is told apart by real sockets where loopback can, by the errors of the kernel where it can't.
func TestPeerAsk(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go func() {
		for {
			c, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = c.Close()
		}
	}()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	real := (&net.Dialer{}).DialContext
	fails := func(e error) Dialer {
		return func(context.Context, string, string) (net.Conn, error) { return nil, &net.OpError{Op: "dial", Err: e} }
	}
	resolves := func(a []netip.Addr, e error) func(context.Context, string) ([]netip.Addr, error) {
		return func(context.Context, string) ([]netip.Addr, error) { return a, e }
	}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for name, tc := range map[string]struct {
		host    string // empty: that of address
		address string
		dial    Dialer
		resolve func(context.Context, string) ([]netip.Addr, error)
		want    mesh.PeerFailure
	}{
		"an east-west gateway":         {address: eastWestServer(t), dial: real},
		"by name":                      {host: "gw.example.com", address: eastWestServer(t), dial: real, resolve: resolves(loopback, nil)},
		"something else":               {address: plain.Addr().String(), dial: real, want: mesh.PeerNoHandshake},
		"nobody listens":               {address: closed.Addr().String(), dial: real, want: mesh.PeerRefused},
		"no route":                     {address: "192.0.2.1:15008", dial: fails(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), want: mesh.PeerNoRoute},
		"no network":                   {address: "192.0.2.1:15008", dial: fails(os.NewSyscallError("connect", syscall.ENETUNREACH)), want: mesh.PeerNoRoute},
		"silence":                      {address: "192.0.2.1:15008", dial: fails(os.ErrDeadlineExceeded), want: mesh.PeerTimeout},
		"a name that is not there yet": {host: "gw.example.com", address: "192.0.2.1:15008", dial: real, resolve: resolves(nil, &net.DNSError{IsNotFound: true}), want: mesh.PeerNoSuchHost},
		"a name without an address":    {host: "gw.example.com", address: "192.0.2.1:15008", dial: real, resolve: resolves(nil, nil), want: mesh.PeerNoSuchHost},
		"a resolver that fails":        {host: "gw.example.com", address: "192.0.2.1:15008", dial: real, resolve: resolves(nil, &net.DNSError{IsTimeout: true}), want: mesh.PeerDNS},
	} {
		t.Run(name, func(t *testing.T) {
			at := netip.MustParseAddrPort(tc.address)
			p := NewPeers(PeersConfig{Dial: tc.dial, Resolve: tc.resolve})
			host := tc.host
			if host == "" {
				host = at.Addr().String()
			}
			rtt, got := p.ask(t.Context(), host, int32(at.Port()))
			if got != tc.want || (rtt > 0) != (tc.want == mesh.PeerAnswers) {
				t.Errorf("failure %q, round trip %s; want %q", got, rtt, tc.want)
			}
		})
	}
}

// TestPeersFollow: Gateways come, change and go; what is found of each is said once, a single miss is not, a second is, and what is gone is taken back.
func TestPeersFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		dials := map[string]int{}
		p, said := newTestPeers(t, func(_ context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			dials[address]++
			mu.Unlock()
			if address != "192.0.2.1:15008" {
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
			}
			a, b := net.Pipe() // connected, and then it does not speak TLS
			_ = b.Close()
			return a, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.loop(ctx); close(done) }()
		p.Set(peerGateway("west", "192.0.2.1", 15008))
		other := peerGateway("not-a-peer", "192.0.2.1", 15008)
		other.Object["spec"].(map[string]any)["gatewayClassName"] = mesh.ClassEastWest
		p.Set(other)
		time.Sleep(10 * time.Second)
		if got := said("west"); got == nil || *got != (mesh.PeerProbe{Address: "192.0.2.1", Port: 15008, Failure: mesh.PeerNoHandshake}) {
			t.Errorf("west: %+v", got)
		}
		if got := said("not-a-peer"); got != nil {
			t.Errorf("an east-west gateway is no peer: %+v", got)
		}
		p.Set(peerGateway("west", "192.0.2.2", 31508)) // another address, in place
		time.Sleep(10 * time.Second)
		if got := said("west"); got == nil || got.Address != "192.0.2.2" || got.Port != 31508 || got.Failure != mesh.PeerRefused {
			t.Errorf("west, moved: %+v", got)
		}
		time.Sleep(time.Hour)
		mu.Lock()
		if n := dials["192.0.2.2:31508"]; n < 30 || n > 75 {
			t.Errorf("%d dials in an hour of failures: want about one a minute", n)
		}
		clear(dials)
		mu.Unlock()
		p.Gone(peerGateway("west", "", 0))
		if got := said("west"); got != nil {
			t.Errorf("west is gone, and said to be %+v", got)
		}
		for i := range 1000 {
			p.Set(peerGateway(fmt.Sprint("many-", i), fmt.Sprintf("192.0.3.%d", i%250), 15008))
		}
		time.Sleep(30 * time.Minute)
		mu.Lock()
		total := 0
		for _, n := range dials {
			total += n
		}
		mu.Unlock()
		if rate := float64(total) / (30 * 60); rate > 5 {
			t.Errorf("%.1f dials a second for 1,000 peers", rate)
		}
		cancel()
		<-done
	})
}

func TestWorthSaying(t *testing.T) {
	ok := func(rtt time.Duration) mesh.PeerProbe { return mesh.PeerProbe{Address: "a", Port: 1, RoundTrip: rtt} }
	bad := mesh.PeerProbe{Address: "a", Port: 1, Failure: mesh.PeerTimeout}
	was := ok(10 * time.Millisecond)
	for name, tc := range map[string]struct {
		said   *mesh.PeerProbe
		found  mesh.PeerProbe
		misses int
		want   bool
	}{
		"the first word":              {nil, bad, 1, true},
		"much the same":               {&was, ok(15 * time.Millisecond), 0, false},
		"three times as long":         {&was, ok(30 * time.Millisecond), 0, true},
		"a third":                     {&was, ok(3 * time.Millisecond), 0, true},
		"one miss":                    {&was, bad, 1, false},
		"two":                         {&was, bad, 2, true},
		"it answers again":            {&bad, was, 0, true},
		"it fails as before":          {&bad, bad, 9, false},
		"it fails in another way":     {&bad, mesh.PeerProbe{Address: "a", Port: 1, Failure: mesh.PeerRefused}, 9, true},
		"another address":             {&was, mesh.PeerProbe{Address: "b", Port: 1, RoundTrip: was.RoundTrip}, 0, true},
		"microseconds, twice as many": {&mesh.PeerProbe{Address: "a", Port: 1, RoundTrip: 100 * time.Microsecond}, ok(300 * time.Microsecond), 0, false},
	} {
		if got := worthSaying(tc.said, tc.found, tc.misses); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
