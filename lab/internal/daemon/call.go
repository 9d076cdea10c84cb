package daemon

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"ambitmesh.dev/ambit/lab/internal/addons"
	"ambitmesh.dev/ambit/lab/internal/node"
)

// The outcomes of a Call.
const (
	Allowed = "allowed"
	Denied  = "denied" // by a policy at the destination
	Failed  = "failed" // for any other reason: it says nothing about policies
)

// Call is what became of one connection.
type Call struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Verdict string `json:"verdict"` // Allowed, Denied or Failed
	Reason  string `json:"reason"`  // the policy that decided, or what went wrong
	Path    string `json:"path,omitempty"`
	Answer  string `json:"answer,omitempty"` // status line of the destination
	Micros  int64  `json:"micros"`
}

// Load is what became of many connections, each a new one.
type Load struct {
	From    string    `json:"from"`
	To      string    `json:"to"`
	Seconds float64   `json:"seconds"`
	Sent    int       `json:"sent"`
	Allowed int       `json:"allowed"`
	Denied  int       `json:"denied"`
	Failed  int       `json:"failed"`
	Skipped int       `json:"skipped"` // not sent, because too many were open
	P50     int64     `json:"p50Micros"`
	P99     int64     `json:"p99Micros"`
	Slips   []Slip    `json:"slips,omitempty"` // the first 20 that were not allowed
	Began   time.Time `json:"began"`
}

// Slip is a connection that was not allowed.
type Slip struct {
	After   float64 `json:"after"` // seconds since the beginning
	Verdict string  `json:"verdict"`
	Reason  string  `json:"reason"`
}

// Party is one end of a call.
type Party struct{ Namespace, Name, Cluster string }

// ParseParty reads [namespace/]name/cluster; without a namespace it is the
// name's ("payments/cluster-1" is payments/payments/cluster-1).
func ParseParty(s string) (Party, error) {
	parts := strings.Split(s, "/")
	if slices.Contains(parts, "") || len(parts) < 2 || len(parts) > 3 {
		return Party{}, fmt.Errorf("%q: want name/cluster or namespace/name/cluster, e.g. payments/cluster-1 or bookinfo/productpage/cluster-1", s)
	}
	if len(parts) == 2 {
		parts = append([]string{parts[0]}, parts...)
	}
	return Party{parts[0], parts[1], parts[2]}, nil
}

func (p Party) String() string { return p.Namespace + "/" + p.Name + "/" + p.Cluster }

// caller opens connections from one workload to one service.
type caller struct {
	from, to Party
	pods     *node.Access
	pod      string // a Pod of from
	target   string // host:port of to
	gateway  string // the east-west gateway of to's cluster, where that is another one
}

// callTimeout bounds one connection and its answer.
const callTimeout = 15 * time.Second

// caller finds both ends.
func (d *daemon) caller(r *http.Request) (*caller, error) {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	from, err := ParseParty(r.URL.Query().Get("from"))
	if err != nil {
		return nil, fmt.Errorf("from %w", err)
	}
	to, err := ParseParty(r.URL.Query().Get("to"))
	if err != nil {
		return nil, fmt.Errorf("to %w", err)
	}
	for _, p := range []Party{from, to} {
		if _, err := d.lab.Cluster(p.Cluster); err != nil {
			return nil, err
		}
	}
	c := &caller{from: from, to: to, pods: d.pods[from.Cluster]}
	if c.pod, err = d.podOf(ctx, from); err != nil {
		return nil, err
	}
	if c.target, err = d.serviceOf(ctx, to); err != nil {
		return nil, err
	}
	if from.Cluster != to.Cluster {
		c.gateway, err = d.wayTo(ctx, from.Cluster, to.Cluster)
	}
	return c, err
}

// podOf finds a running Pod of a workload: by label app, or by the name of its
// service account.
func (d *daemon) podOf(ctx context.Context, p Party) (string, error) {
	dyn, err := d.client(p.Cluster)
	if err != nil {
		return "", err
	}
	list, err := dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace(p.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	var there []string
	for _, pod := range list.Items {
		account, _, _ := unstructured.NestedString(pod.Object, "spec", "serviceAccountName")
		phase, _, _ := unstructured.NestedString(pod.Object, "status", "phase")
		app := pod.GetLabels()["app"]
		there = append(there, cmp.Or(app, account))
		if phase == "Running" && pod.GetDeletionTimestamp() == nil && (app == p.Name || account == p.Name) {
			return pod.GetName(), nil
		}
	}
	slices.Sort(there)
	return "", fmt.Errorf("no running Pod with label app=%s, or of ServiceAccount %s, in namespace %s of %s; there are: %s",
		p.Name, p.Name, p.Namespace, p.Cluster, cmp.Or(strings.Join(slices.Compact(there), ", "), "none"))
}

// serviceOf is the name and first port of a Service.
func (d *daemon) serviceOf(ctx context.Context, p Party) (string, error) {
	dyn, err := d.client(p.Cluster)
	if err != nil {
		return "", err
	}
	svc, err := dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).Namespace(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("%s: %w", p, err)
	}
	ports, _, _ := unstructured.NestedSlice(svc.Object, "spec", "ports")
	if len(ports) == 0 {
		return "", fmt.Errorf("service %s has no port", p)
	}
	port, _ := ports[0].(map[string]any)
	return fmt.Sprintf("%s.%s.svc.cluster.local:%v", p.Name, p.Namespace, port["port"]), nil
}

// wayTo is where a call from one cluster to another leaves for: what the peer
// (Gateway of class istio-remote) for that cluster's network says, or, where
// there is none, the address of its east-west gateway.
func (d *daemon) wayTo(ctx context.Context, from, to string) (string, error) {
	dyn, err := d.client(from)
	if err != nil {
		return "", err
	}
	peers, err := dyn.Resource(schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}).
		List(ctx, metav1.ListOptions{LabelSelector: "topology.istio.io/network=" + to})
	if err != nil {
		return "", fmt.Errorf("peers of %s: %w", from, err)
	}
	for i := range peers.Items {
		if address := peerAddress(&peers.Items[i]); address != "" {
			return address, nil
		}
	}
	return d.gatewayOf(ctx, to)
}

// peerAddress is where a peer leads to; empty: it is no peer.
func peerAddress(gw *unstructured.Unstructured) string {
	if class, _, _ := unstructured.NestedString(gw.Object, "spec", "gatewayClassName"); class != "istio-remote" {
		return ""
	}
	addresses, _, _ := unstructured.NestedSlice(gw.Object, "spec", "addresses")
	listeners, _, _ := unstructured.NestedSlice(gw.Object, "spec", "listeners")
	for _, l := range listeners {
		l, _ := l.(map[string]any)
		if l["protocol"] != "HBONE" || len(addresses) == 0 {
			continue
		}
		first, _ := addresses[0].(map[string]any)
		return net.JoinHostPort(fmt.Sprint(first["value"]), fmt.Sprint(l["port"]))
	}
	return ""
}

// gatewayOf is the address of a cluster's east-west gateway.
func (d *daemon) gatewayOf(ctx context.Context, cluster string) (string, error) {
	dyn, err := d.client(cluster)
	if err != nil {
		return "", err
	}
	gw, err := dyn.Resource(schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}).
		Namespace(addons.EastWestNamespace).Get(ctx, addons.EastWestGateway, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("east-west gateway of %s: %w", cluster, err)
	}
	addrs, _, _ := unstructured.NestedSlice(gw.Object, "status", "addresses")
	if len(addrs) == 0 {
		return "", fmt.Errorf("the east-west gateway of %s has no address", cluster)
	}
	first, _ := addrs[0].(map[string]any)
	return net.JoinHostPort(fmt.Sprint(first["value"]), "15008"), nil
}

// outbound is where the data plane listens in every Pod of the mesh.
const outbound = "127.0.0.1:15001"

// call makes one connection, sends one request and reads the answer.
func (c *caller) call(ctx context.Context) Call {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out := Call{From: c.from.String(), To: c.to.String(), Verdict: Failed}
	began := time.Now()
	out.Verdict, out.Reason = c.try(ctx, &out)
	out.Micros = time.Since(began).Microseconds()
	return out
}

func (c *caller) try(ctx context.Context, out *Call) (verdict, reason string) {
	conn, err := c.pods.Dial(ctx, c.from.Namespace, c.pod, outbound)
	if err != nil {
		return Failed, fmt.Sprintf("Pod %s is not in the mesh, or ztunnel has not taken it yet: %v", c.pod, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: c.target}, Host: c.target, Header: http.Header{}}
	if c.gateway != "" {
		req.Header.Set("X-Lab-Gateway", c.gateway)
	}
	if err := req.Write(conn); err != nil {
		return Failed, err.Error()
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req) //nolint:bodyclose // the body is the tunnel
	if err != nil {
		return Failed, "ztunnel does not answer: " + err.Error()
	}
	out.Path, reason = resp.Header.Get("X-Lab-Path"), resp.Header.Get("X-Lab-Verdict")
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return Denied, reason
	default:
		return Failed, reason
	}
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.target+"/health", nil)
	if err != nil {
		return Failed, err.Error()
	}
	get.Close = true
	if err := get.Write(conn); err != nil {
		return Failed, err.Error()
	}
	answer, err := http.ReadResponse(in, get)
	if err != nil {
		return Failed, "the tunnel was opened, but there was no answer: " + err.Error()
	}
	_ = answer.Body.Close()
	out.Answer = answer.Status
	return Allowed, reason
}

// Bounds of a load.
const (
	maxRate  = 2000
	maxOpen  = 500
	maxSlips = 20
)

// load makes rate connections a second for a while.
func (c *caller) load(ctx context.Context, rateText, whileText string) (*Load, error) {
	rate, err := strconv.Atoi(rateText)
	if err != nil || rate < 1 || rate > maxRate {
		return nil, fmt.Errorf("rate %q: want 1 to %d a second", rateText, maxRate)
	}
	while, err := time.ParseDuration(whileText)
	if err != nil || while <= 0 || while > time.Hour {
		return nil, fmt.Errorf("for %q: want a duration of at most 1h", whileText)
	}
	ctx, cancel := context.WithTimeout(ctx, while)
	defer cancel()
	l := &Load{From: c.from.String(), To: c.to.String(), Began: time.Now()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var took []int64
	open := make(chan struct{}, maxOpen)
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-tick.C:
		}
		select {
		case open <- struct{}{}:
		default:
			l.Skipped++
			continue
		}
		l.Sent++
		at := time.Since(l.Began)
		wg.Go(func() {
			defer func() { <-open }()
			r := c.call(context.WithoutCancel(ctx)) // one that has begun is not cut off by the end
			mu.Lock()
			defer mu.Unlock()
			took = append(took, r.Micros)
			l.count(r, at)
		})
	}
	wg.Wait()
	l.Seconds = time.Since(l.Began).Seconds()
	if len(took) == 0 {
		return nil, errors.New("nothing was sent")
	}
	slices.Sort(took)
	l.P50, l.P99 = took[len(took)/2], took[len(took)*99/100]
	return l, nil
}

func (l *Load) count(r Call, at time.Duration) {
	switch r.Verdict {
	case Allowed:
		l.Allowed++
		return
	case Denied:
		l.Denied++
	default:
		l.Failed++
	}
	if len(l.Slips) < maxSlips {
		l.Slips = append(l.Slips, Slip{After: at.Seconds(), Verdict: r.Verdict, Reason: r.Reason})
	}
}
