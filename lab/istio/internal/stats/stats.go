// Package stats counts connections and requests, and tells them as Prometheus text in the shape of ztunnel's and a waypoint's metrics (istio: ztunnel
// src/proxy/metrics.rs; "Istio Standard Metrics").
//
// In: ends of a connection, events. Out: text. It must not keep anything but the totals. A nil *Counters counts nothing.
package stats

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"istio.io/istio/pkg/workloadapi"
)

// Names of the metrics.
const (
	Opened   = "istio_tcp_connections_opened_total"
	Closed   = "istio_tcp_connections_closed_total"
	Failed   = "istio_tcp_connections_failed_total"
	Sent     = "istio_tcp_sent_bytes_total"     // of the answer
	Received = "istio_tcp_received_bytes_total" // of the request
)

// Flags of connections that failed.
const (
	None    = "-"
	Deny    = "DENY"
	Connect = "CONNECT"
)

// End is one end of a connection; what is empty is told as "unknown".
type End struct {
	Workload, Canonical, Namespace, Principal, Cluster string
}

// EndOf is a workload as istiod tells of it; principal is its SPIFFE ID.
func EndOf(w *workloadapi.Workload, principal string) End {
	if w == nil {
		return End{Principal: principal}
	}
	return End{
		Workload: cmp.Or(w.GetWorkloadName(), w.GetName()), Canonical: w.GetCanonicalName(), Namespace: w.GetNamespace(), Principal: principal, Cluster: w.GetClusterId(),
	}
}

// Edge is who calls what.
type Edge struct {
	Reporter  string // "source" or "destination"
	From, To  End
	Host      string // of the service; "" where a workload was called
	Service   string
	Namespace string // of the service
	Plain     bool   // not in the mesh
}

// OfService names the service that was called.
func (e Edge) OfService(svc *workloadapi.Service) Edge {
	if svc != nil {
		e.Host, e.Service, e.Namespace = svc.GetHostname(), svc.GetName(), svc.GetNamespace()
	}
	return e
}

// Counters are totals by series.
type Counters struct {
	mu     sync.Mutex
	totals map[string]float64
}

// New returns Counters at zero.
func New() *Counters { return &Counters{totals: map[string]float64{}} }

// Add counts n of a metric.
func (c *Counters) Add(metric string, e Edge, flags string, n float64) {
	if c == nil {
		return
	}
	series := metric + "{" + e.labels(flags) + "}"
	c.mu.Lock()
	defer c.mu.Unlock()
	c.totals[series] += n
}

func (e Edge) labels(flags string) string {
	security := "mutual_tls"
	if e.Plain {
		security = "none"
	}
	var b strings.Builder
	for _, l := range [][2]string{
		{"reporter", e.Reporter},
		{"source_workload", e.From.Workload},
		{"source_canonical_service", e.From.Canonical},
		{"source_workload_namespace", e.From.Namespace},
		{"source_principal", e.From.Principal},
		{"source_cluster", e.From.Cluster},
		{"destination_service", e.Host},
		{"destination_service_namespace", e.Namespace},
		{"destination_service_name", e.Service},
		{"destination_workload", e.To.Workload},
		{"destination_canonical_service", e.To.Canonical},
		{"destination_workload_namespace", e.To.Namespace},
		{"destination_principal", e.To.Principal},
		{"destination_cluster", e.To.Cluster},
		{"request_protocol", "tcp"},
		{"response_flags", flags},
		{"connection_security_policy", security},
	} {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s=%q", l[0], cmp.Or(l[1], "unknown"))
	}
	return b.String()
}

// WriteTo writes everything as Prometheus text.
func (c *Counters) WriteTo(w io.Writer) (int64, error) {
	if c == nil {
		return 0, nil
	}
	c.mu.Lock()
	totals := maps.Clone(c.totals)
	c.mu.Unlock()
	var b strings.Builder
	last := ""
	for _, series := range slices.Sorted(maps.Keys(totals)) {
		if name, _, _ := strings.Cut(series, "{"); name != last {
			fmt.Fprintf(&b, "# TYPE %s counter\n", name)
			last = name
		}
		fmt.Fprintf(&b, "%s %v\n", series, totals[series])
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// Open counts a connection as opened, and returns one whose bytes are counted as they pass, and that is counted as closed when closed is called. What is
// written to conn is the request.
func (c *Counters) Open(e Edge, conn net.Conn) (counted net.Conn, closed func()) {
	if c == nil {
		return conn, func() {}
	}
	c.Add(Opened, e, None, 1)
	return &tally{Conn: conn, counters: c, edge: e}, sync.OnceFunc(func() { c.Add(Closed, e, None, 1) })
}

// tally counts bytes.
type tally struct {
	net.Conn
	counters *Counters
	edge     Edge
}

func (t *tally) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.counters.Add(Sent, t.edge, None, float64(n))
	return n, err
}

func (t *tally) Write(p []byte) (int, error) {
	n, err := t.Conn.Write(p)
	t.counters.Add(Received, t.edge, None, float64(n))
	return n, err
}

// CloseWrite tells the peer that no more bytes come.
func (t *tally) CloseWrite() error {
	if h, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}
