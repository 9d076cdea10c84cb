package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/lab/istio/internal/svid"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

// TestConfig: the environment of Istio's templates.
func TestConfig(t *testing.T) {
	base := config{
		istiod: "istiod.istio-system.svc:15012", clusterID: "Kubernetes", trustDomain: "cluster.local", namespace: "istio-system", account: "ztunnel",
		tokenFile: "/var/run/secrets/tokens/istio-token", rootFile: "/var/run/secrets/istio/root-cert.pem", ttl: 24 * time.Hour,
		socket: "/var/run/ztunnel/ztunnel.sock",
	}
	for _, c := range []struct {
		name string
		env  map[string]string
		want func(*config) // nil: an error
	}{
		{"ztunnel's chart", map[string]string{
			"CA_ADDRESS": "istiod.istio-system.svc:15012", "XDS_ADDRESS": "istiod.istio-system.svc:15012", "ISTIO_META_CLUSTER_ID": "cluster-1",
			"NETWORK": "net1", "POD_NAME": "ztunnel-x", "POD_NAMESPACE": "istio-system", "NODE_NAME": "node-1", "INSTANCE_IP": "10.0.0.1",
			"SERVICE_ACCOUNT": "ztunnel", "SECRET_TTL": "1h",
		}, func(c *config) {
			c.clusterID, c.network, c.pod, c.node, c.ip, c.ttl = "cluster-1", "net1", "ztunnel-x", "node-1", "10.0.0.1", time.Hour
		}},
		{"a waypoint", map[string]string{
			"CA_ADDR": "istiod-1.istio-system.svc:15012", "ISTIO_META_CLUSTER_ID": "cluster-1", "ISTIO_META_NETWORK": "net1", "TRUST_DOMAIN": "td1",
			"POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "ISTIO_META_NODE_NAME": "node-1",
		}, func(c *config) {
			c.istiod, c.clusterID, c.network, c.trustDomain, c.node = "istiod-1.istio-system.svc:15012", "cluster-1", "net1", "td1", "node-1"
		}},
		{"an east-west gateway", map[string]string{
			"POD_NAMESPACE": "istio-system", "ISTIO_META_SERVICE_ACCOUNT": "ztunnel", "ISTIO_META_REQUESTED_NETWORK_VIEW": "net1",
		}, func(c *config) { c.eastWest = true }},
		{"for tests of it", map[string]string{
			"POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "LABPROXY_TOKEN": "/t", "LABPROXY_ROOTS": "/r", "LABPROXY_SOCKET": "/s",
		}, func(c *config) { c.tokenFile, c.rootFile, c.socket = "/t", "/r", "/s" }},
		{"nothing", nil, nil},
		{"no account", map[string]string{"POD_NAMESPACE": "istio-system"}, nil},
		{"no namespace", map[string]string{"SERVICE_ACCOUNT": "ztunnel"}, nil},
		{"bad TTL", map[string]string{"POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "SECRET_TTL": "a day"}, nil},
		{"TTL 0", map[string]string{"POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "SECRET_TTL": "0s"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := configFrom(func(k string) string { return c.env[k] })
			if (err != nil) != (c.want == nil) {
				t.Fatalf("error %v", err)
			}
			if c.want == nil {
				return
			}
			want := base
			c.want(&want)
			if d := cmp.Diff(want, got, cmp.AllowUnexported(config{})); d != "" {
				t.Error(d)
			}
		})
	}
	c := config{
		istiod: "i", clusterID: "c", network: "n", namespace: "ns", pod: "p", ip: "1", node: "no", account: "sa", tokenFile: "t", rootFile: "r", ttl: time.Hour,
	}
	if d := cmp.Diff(svid.Config{CAAddress: "i", ClusterID: "c", TokenFile: "t", RootFile: "r", ID: "me", TTL: time.Hour}, c.svid("me")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(wds.Config{
		Address: "i", ClusterID: "c", Network: "n", TokenFile: "t", RootFile: "r",
		PodIP: "1", PodName: "p", Namespace: "ns", ServiceAccount: "sa", Node: "no",
	}, c.wds()); d != "" {
		t.Error(d)
	}
}

// TestStatus: probes and metrics.
func TestStatus(t *testing.T) {
	why := "no certificate yet"
	h := statusHandler(func() string { return why }, svid.New(svid.Config{}, slog.New(slog.DiscardHandler)), nil)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("/healthz/ready"); code != http.StatusServiceUnavailable || strings.TrimSpace(body) != why {
		t.Errorf("not ready: %d %q", code, body)
	}
	why = ""
	if code, body := get("/healthz/ready"); code != http.StatusOK || body != "ready\n" {
		t.Errorf("ready: %d %q", code, body)
	}
	if code, body := get("/stats/prometheus"); code != http.StatusOK || !strings.HasSuffix(body, "\nlabproxy_certificate_expiry_timestamp_seconds 0\n") {
		t.Errorf("metrics: %d %q", code, body)
	}
	h = statusHandler(func() string { return "" }, nil, nil)
	if code, body := get("/stats/prometheus"); code != http.StatusOK || body != "" {
		t.Errorf("metrics of a ztunnel: %d %q", code, body)
	}
}

// free is an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestServeHTTP(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address, ended := free(t), make(chan error, 1)
	go func() { ended <- serveHTTP(ctx, address, http.NotFoundHandler()) }()
	_ = dial(t, address).Close()
	if err := serveHTTP(t.Context(), address, nil); err == nil {
		t.Error("served where somebody else does")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestPassthrough copies both ways, passes on the end of each side, and outlives
// a target that is away.
func TestPassthrough(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the client has closed its side
				_, _ = io.WriteString(c, "bye")
			}()
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	address, ended := free(t), make(chan error, 1)
	go func() { ended <- passthrough(ctx, address, target.Addr().String(), slog.New(slog.DiscardHandler)) }()
	for range 3 {
		c := dial(t, address)
		if _, err := io.WriteString(c, "through"); err != nil {
			t.Fatal(err)
		}
		closeWrite(c)
		if got, err := io.ReadAll(c); err != nil || string(got) != "throughbye" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	_ = target.Close()
	if got, err := io.ReadAll(dial(t, address)); err != nil || len(got) > 0 {
		t.Errorf("target away: %q, %v", got, err)
	}
	if err := passthrough(t.Context(), address, "", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("listens where somebody else does")
	}
	_ = dial(t, address).Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
