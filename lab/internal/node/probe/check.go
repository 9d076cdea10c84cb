package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Target is the container that is asked.
type Target struct {
	IP    string // of the Pod
	Ports []corev1.ContainerPort
	// Exec runs a command in the container; ok is exit code 0.
	Exec func(ctx context.Context, command []string) (ok bool, output string)
}

// New makes the check that p asks for.
func New(p *corev1.Probe, t Target) Check {
	switch {
	case p.HTTPGet != nil:
		return func(ctx context.Context) (bool, string) { return HTTPGet(ctx, p.HTTPGet, t) }
	case p.TCPSocket != nil:
		return func(ctx context.Context) (bool, string) { return tcp(ctx, p.TCPSocket, t) }
	case p.GRPC != nil:
		return func(ctx context.Context) (bool, string) { return grpcHealth(ctx, p.GRPC, t) }
	case p.Exec != nil:
		return func(ctx context.Context) (bool, string) { return t.Exec(ctx, p.Exec.Command) }
	}
	return func(context.Context) (bool, string) { return false, "the probe has no handler" }
}

func (t Target) port(p intstr.IntOrString) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, c := range t.Ports {
		if c.Name == p.StrVal {
			return int(c.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("the container has no port named %q", p.StrVal)
}

// client asks without keeping connections, as the kubelet does: a probe must not be answered over an old connection.
var client = &http.Client{ //nolint:gochecknoglobals // immutable
	Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as the kubelet: probes do not authenticate
		DialContext:        (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	},
	CheckRedirect: func(req *http.Request, via []*http.Request) error {
		// A redirect to another host counts as success; the answer to the first request is judged.
		if req.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	},
}

// HTTPGet asks once over HTTP; lifecycle hooks use it too.
func HTTPGet(ctx context.Context, a *corev1.HTTPGetAction, t Target) (bool, string) {
	port, err := t.port(a.Port)
	if err != nil {
		return false, err.Error()
	}
	host := a.Host
	if host == "" {
		host = t.IP
	}
	u := &url.URL{Scheme: "http", Host: net.JoinHostPort(host, strconv.Itoa(port))}
	if a.Scheme == corev1.URISchemeHTTPS {
		u.Scheme = "https"
	}
	ref, err := url.Parse(a.Path)
	if err != nil {
		return false, err.Error()
	}
	u = u.ResolveReference(&url.URL{Path: "/" + strings.TrimPrefix(ref.Path, "/"), RawQuery: ref.RawQuery})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false, err.Error()
	}
	req.Header.Set("User-Agent", "kube-probe/1.36")
	req.Header.Set("Accept", "*/*")
	for _, h := range a.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return true, ""
	}
	return false, fmt.Sprintf("HTTP probe failed with statuscode: %d: %s", resp.StatusCode, strings.TrimSpace(string(body)))
}

func tcp(ctx context.Context, a *corev1.TCPSocketAction, t Target) (bool, string) {
	port, err := t.port(a.Port)
	if err != nil {
		return false, err.Error()
	}
	host := a.Host
	if host == "" {
		host = t.IP
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false, err.Error()
	}
	conn.Close()
	return true, ""
}

func grpcHealth(ctx context.Context, a *corev1.GRPCAction, t Target) (bool, string) {
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(t.IP, strconv.Itoa(int(a.Port))),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("kube-probe/1.36"))
	if err != nil {
		return false, err.Error()
	}
	defer conn.Close()
	req := &grpc_health_v1.HealthCheckRequest{}
	if a.Service != nil {
		req.Service = *a.Service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, req)
	if err != nil {
		return false, err.Error()
	}
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return false, "service unhealthy (responded with " + resp.Status.String() + ")"
	}
	return true, ""
}
