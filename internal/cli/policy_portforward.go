package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	// portForwardProtocol is the subprotocol of pods/portforward.
	portForwardProtocol = "portforward.k8s.io"
	// snapshotPort is where a management server serves its snapshot, on the Pod's own loopback only.
	snapshotPort = 9093
)

// errMayNotForward: the person lacks the right to connect to Pods.
var errMayNotForward = errors.New("pods/portforward is forbidden")

// roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// errNoListener: nothing in the Pod listens on the port.
var errNoListener = errors.New("nothing listens there")

// podConn is one connection to a port of a Pod through the API server. Unlike `kubectl port-forward` it opens no port here that other people of this machine could use.
type podConn struct {
	httpstream.Stream // data
	conn              httpstream.Connection
	failed            chan string // what the kubelet says, once
}

func (c *podConn) Close() error {
	_ = c.Reset()
	return c.conn.Close()
}

func (c *podConn) LocalAddr() net.Addr              { return podAddr{} }
func (c *podConn) RemoteAddr() net.Addr             { return podAddr{} }
func (c *podConn) SetDeadline(time.Time) error      { return nil } // the request's context closes the connection
func (c *podConn) SetReadDeadline(time.Time) error  { return nil }
func (c *podConn) SetWriteDeadline(time.Time) error { return nil }

type podAddr struct{}

func (podAddr) Network() string { return "pods/portforward" }
func (podAddr) String() string  { return "pod" }

// dialPod connects to a port of a Pod, on the Pod's loopback.
func (c *cluster) dialPod(ctx context.Context, namespace, pod string, port int) (*podConn, error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	url := c.Typed.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url.String(), nil)
	if err != nil {
		return nil, err
	}
	code := 0
	watched := roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := transport.RoundTrip(r)
		if err == nil {
			code = resp.StatusCode
		}
		return resp, err
	})
	conn, _, err := spdy.NegotiateStreaming(upgrader, &http.Client{Transport: watched}, req, portForwardProtocol)
	if code == http.StatusForbidden {
		return nil, fmt.Errorf("%w: %w", errMayNotForward, err)
	}
	if err != nil {
		return nil, err
	}
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	errs, err := conn.CreateStream(headers)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = errs.Close() // we write nothing to it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	out := &podConn{Stream: data, conn: conn, failed: make(chan string, 1)}
	go func() {
		said, _ := io.ReadAll(errs)
		out.failed <- string(said)
		if len(said) > 0 { // whoever waits for an answer waits in vain
			_ = out.Close()
		}
	}()
	return out, nil
}

// copyFromPod asks an HTTP server on a Pod's loopback, for an answer of any length.
func (c *cluster) copyFromPod(ctx context.Context, namespace, pod string, port int, path string, w io.Writer) (status int, err error) {
	conn, err := c.dialPod(ctx, namespace, pod, port)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	used := false
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		if used {
			return nil, errors.New("the connection is used up")
		}
		used = true
		return conn, nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return 0, err
	}
	resp, err := transport.RoundTrip(req)
	if err == nil {
		defer resp.Body.Close()
		if _, err = io.Copy(w, resp.Body); err == nil {
			return resp.StatusCode, nil
		}
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	select { // the kubelet's own words say more than "unexpected EOF"
	case said := <-conn.failed:
		if strings.Contains(said, "refused") {
			return 0, fmt.Errorf("%w: %s", errNoListener, strings.TrimSpace(said))
		}
		if said != "" {
			return 0, errors.New(strings.TrimSpace(said))
		}
	case <-time.After(time.Second):
	}
	return 0, err
}

// leader finds the Pod of the leading management server: only the leader is Ready.
func (c *cluster) leader(ctx context.Context, namespace string) (string, error) {
	pods, err := c.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + serverName})
	if err != nil {
		if apierrors.IsForbidden(err) {
			return "", forbidden(c.Context, []need{{[]string{"list"}, "", "pods", namespace}})
		}
		return "", c.says("list the management server's Pods", err)
	}
	var seen []string
	for i := range pods.Items {
		p := &pods.Items[i]
		ready := slices.ContainsFunc(p.Status.Conditions, func(k corev1.PodCondition) bool {
			return k.Type == corev1.PodReady && k.Status == corev1.ConditionTrue
		})
		if ready && p.DeletionTimestamp == nil {
			return p.Name, nil
		}
		seen = append(seen, fmt.Sprintf("%s is %s", p.Name, firstOf(string(p.Status.Phase), "new")))
	}
	if len(seen) == 0 {
		return "", fmt.Errorf("context %q has no management server in namespace %q (no Pod with label app=%s): name its context with --mgmt-context and its namespace with --mgmt-namespace, or give --snapshot FILE",
			c.Context, namespace, serverName)
	}
	return "", fmt.Errorf("context %q: no management server in namespace %q is ready: %s. Look: meshctl check --kubecontext %s", c.Context, namespace, strings.Join(seen, ", "), c.Context)
}

// fetchSnapshot asks the leading management server for its snapshot.
func (c *cluster) fetchSnapshot(ctx context.Context, namespace string) (*savedSnapshot, []byte, error) {
	raw, pod, err := c.askLeader(ctx, namespace, "/snapshot", "snapshot")
	if err != nil {
		return nil, nil, err
	}
	s, err := parseSnapshot(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("context %q: what the management server (Pod %s/%s) answered: %w", c.Context, namespace, pod, err)
	}
	s.from = "the management server of context " + c.Context
	return s, raw, nil
}

// askLeader gets a path of the leading management server's snapshot port; what is its name for people.
func (c *cluster) askLeader(ctx context.Context, namespace, path, what string) (raw []byte, pod string, err error) {
	var out bytes.Buffer
	pod, err = c.copyFromLeader(ctx, namespace, path, what, &out)
	return out.Bytes(), pod, err
}

// copyFromLeader is askLeader for an answer of any length. What was written before an error is part of an answer, or the server's reason.
func (c *cluster) copyFromLeader(ctx context.Context, namespace, path, what string, w io.Writer) (pod string, err error) {
	if pod, err = c.leader(ctx, namespace); err != nil {
		return "", err
	}
	said := &head{}
	status, err := c.copyFromPod(ctx, namespace, pod, snapshotPort, path, io.MultiWriter(w, said))
	switch {
	case errors.Is(err, errMayNotForward):
		return pod, forbidden(c.Context, []need{{[]string{"create"}, "", "pods/portforward", namespace}})
	case errors.Is(err, errNoListener), status == http.StatusNotFound:
		return pod, fmt.Errorf("context %q: the management server (Pod %s/%s) serves no %s on port %d: it is older than this meshctl. Upgrade it: meshctl install --kubecontext %s", c.Context, namespace, pod, what, snapshotPort, c.Context)
	case err != nil:
		return pod, c.says(fmt.Sprintf("read the %s from Pod %s/%s", what, namespace, pod), err)
	case status != http.StatusOK:
		return pod, fmt.Errorf("context %q: the management server (Pod %s/%s) has no %s to give: %s: %s", c.Context, namespace, pod, what, http.StatusText(status), oneLine(string(*said), 200))
	}
	return pod, nil
}

// head keeps the beginning of what is written.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), max(0, 1024-len(*h)))]...)
	return len(p), nil
}
