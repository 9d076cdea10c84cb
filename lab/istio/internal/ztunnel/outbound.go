package ztunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"istio.io/istio/pkg/workloadapi"

	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
	"ambitmesh.dev/ambit/lab/istio/internal/stats"
	"ambitmesh.dev/ambit/lab/istio/internal/svid"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

// Headers of the CONNECT proxy at a Pod's 127.0.0.1:15001, for `lab call`.
const (
	headerGateway = "X-Lab-Gateway" // request: go through this east-west gateway, host:port
	headerPath    = "X-Lab-Path"    // response: the hops
)

const (
	hbonePort   = "15008"
	openTimeout = 10 * time.Second
)

// serveOutbound takes the Pod's connections into the mesh.
func (z *Ztunnel) serveOutbound(ctx context.Context, p *pod, l net.Listener, log *slog.Logger) {
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { z.connect(w, r, p, log) }),
		ReadHeaderTimeout: 5 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		log.Error("outbound ended", "error", err)
	}
}

// connect answers one CONNECT of the Pod's application: 200; 403 when the
// destination denies; 503 when it can't be reached.
func (z *Ztunnel) connect(w http.ResponseWriter, r *http.Request, p *pod, log *slog.Logger) {
	if r.Method != http.MethodConnect {
		http.Error(w, "this is the mesh's outbound: CONNECT host:port", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), openTimeout)
	defer cancel()
	o := &opening{z: z, pod: p}
	out, err := o.open(ctx, r.Host, r.Header.Get(headerGateway))
	w.Header().Set(headerPath, strings.Join(o.path, " -> "))
	if err != nil {
		status, reason := http.StatusServiceUnavailable, err.Error()
		if refused, ok := errors.AsType[*hbone.RefusedError](err); ok && refused.Status == http.StatusUnauthorized {
			status, reason = http.StatusForbidden, refused.Reason
		}
		z.cfg.Stats.Add(stats.Failed, o.edge(r.Host), stats.Connect, 1) // also where the destination denied: only there is known why
		log.Info("connection failed", "direction", "outbound", "target", r.Host, "status", status, "error", err)
		w.Header().Set(hbone.HeaderVerdict, reason)
		w.WriteHeader(status)
		return
	}
	defer out.Close()
	edge := o.edge(r.Host)
	if t, ok := out.(*hbone.Tunnel); ok {
		w.Header().Set(hbone.HeaderVerdict, t.Verdict)
	} else {
		edge.Plain = true
		w.Header().Set(hbone.HeaderVerdict, "the destination is not in the mesh: plain TCP, nothing is checked")
	}
	out, closed := z.cfg.Stats.Open(edge, out)
	defer closed()
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		log.Error("hijack", "error", err)
		return
	}
	defer in.Close()
	// By hand: net/http would say that the bytes are chunked, which they are not (RFC 9110 9.3.6).
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 200 OK\r\n")
	_ = w.Header().Write(&head)
	head.WriteString("\r\n")
	if _, err := in.Write(head.Bytes()); err != nil {
		return
	}
	// A hijacked connection is no longer the server's to close when the Pod leaves.
	stop := context.AfterFunc(r.Context(), func() { _, _ = in.Close(), out.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, buffered)
		if h, ok := out.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}()
	_, _ = io.Copy(in, out)
	_ = in.Close()
	<-done
}

// opening is one attempt to reach a target.
type opening struct {
	z    *Ztunnel
	pod  *pod
	path []string // for people
	// service and workload are where it goes, as far as this side knows: a remote workload is behind its gateway.
	service  *workloadapi.Service
	workload *workloadapi.Workload
}

// edge is the connection as this side's metrics tell it.
func (o *opening) edge(target string) stats.Edge {
	principal := fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", o.z.cfg.TrustDomain, o.pod.Namespace, o.pod.ServiceAccount)
	e := stats.Edge{Reporter: "source", From: stats.EndOf(o.z.workload(o.pod), principal)}
	if e.From.Workload == "" {
		e.From.Workload, e.From.Namespace = o.pod.Name, o.pod.Namespace
	}
	e.From.Cluster = o.z.cfg.ClusterID
	if o.workload != nil {
		e.To = stats.EndOf(o.workload, wds.Identity(o.workload))
	}
	if e = e.OfService(o.service); e.Host == "" && o.workload == nil {
		e.Host, _, _ = net.SplitHostPort(target)
		// A name that istiod of this cluster need not know: its namespace is in it, as in a service's of another.
		if labels := strings.Split(e.Host, "."); len(labels) > 2 && labels[2] == "svc" {
			e.Service, e.Namespace = labels[0], labels[1]
		}
	}
	return e
}

func (o *opening) hop(format string, args ...any) {
	o.path = append(o.path, fmt.Sprintf(format, args...))
}

// open finds the way to target (host:port; a service's name or address, or a
// workload's) and goes it.
func (o *opening) open(ctx context.Context, target, gateway string) (net.Conn, error) {
	o.hop("%s/%s", o.pod.Namespace, o.pod.Name)
	host, portText, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("target %q: want host:port", target)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("target %q: bad port", target)
	}
	if gateway != "" {
		// A service of another cluster that istiod need not know: its namespace is all there is to check the peer by.
		labels := strings.Split(host, ".")
		if len(labels) < 2 {
			return nil, fmt.Errorf("target %q: want name.namespace[.svc...]", target)
		}
		return o.throughGateway(ctx, gateway, anyOf(o.z.cfg.TrustDomain, ""), target, anyOf(o.z.cfg.TrustDomain, labels[1]))
	}
	if !o.z.store.Synced() {
		return nil, errors.New("istiod has not told of the mesh yet")
	}
	ip, notAddress := netip.ParseAddr(host)
	svc := o.z.store.ByHost(host)
	if notAddress == nil {
		svc = o.z.store.ByVIP(o.z.cfg.Network, ip)
	}
	switch {
	case svc != nil:
		return o.toService(ctx, svc, uint32(port))
	case notAddress == nil:
		if w := o.z.store.ByAddress(o.z.cfg.Network, ip); w != nil {
			return o.toWorkload(ctx, w, net.JoinHostPort(host, portText))
		}
	}
	return o.passthrough(ctx, host, portText)
}

// passthrough leaves the mesh.
func (o *opening) passthrough(ctx context.Context, host, port string) (net.Conn, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return nil, err
	}
	o.hop("plain TCP to %s:%s", ips[0].Unmap(), port)
	return dialIn(ctx, o.pod.netns, net.JoinHostPort(ips[0].Unmap().String(), port))
}

func (o *opening) toService(ctx context.Context, svc *workloadapi.Service, port uint32) (net.Conn, error) {
	o.service = svc
	authority := net.JoinHostPort(svc.GetHostname(), fmt.Sprint(port))
	if gw := svc.GetWaypoint(); gw != nil {
		return o.throughWaypoint(ctx, gw, authority)
	}
	all := o.z.store.Endpoints(svc)
	all = slices.DeleteFunc(all, func(w *workloadapi.Workload) bool { return w.GetStatus() != workloadapi.WorkloadStatus_HEALTHY })
	if len(all) == 0 {
		return nil, fmt.Errorf("service %s: %w that is healthy", svc.GetHostname(), errNoEndpoint)
	}
	w := all[rand.IntN(len(all))] //nolint:gosec // a choice of endpoint
	if gw := w.GetNetworkGateway(); gw != nil && w.GetNetwork() != o.z.cfg.Network {
		address, identity, err := o.gatewayAddress(gw)
		if err != nil {
			return nil, err
		}
		return o.throughGateway(ctx, address, identity, authority, oneOf(append(slices.Clone(svc.GetSubjectAltNames()), wds.Identity(w))))
	}
	target := wds.TargetPort(svc, w, port)
	if target == 0 {
		return nil, fmt.Errorf("service %s has no port %d", svc.GetHostname(), port)
	}
	return o.toWorkload(ctx, w, net.JoinHostPort(wds.Address(w).String(), fmt.Sprint(target)))
}

// toWorkload goes to a workload of the own network.
func (o *opening) toWorkload(ctx context.Context, w *workloadapi.Workload, target string) (net.Conn, error) {
	o.workload = w
	if w.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE {
		o.hop("plain TCP to %s/%s", w.GetNamespace(), w.GetName())
		return dialIn(ctx, o.pod.netns, target)
	}
	o.hop("HBONE to %s/%s", w.GetNamespace(), w.GetName())
	return o.tunnel(ctx, o.dial(net.JoinHostPort(wds.Address(w).String(), hbonePort)), oneOf([]string{wds.Identity(w)}), target)
}

func (o *opening) throughWaypoint(ctx context.Context, gw *workloadapi.GatewayAddress, authority string) (net.Conn, error) {
	address, identity, err := o.gatewayAddress(gw)
	if err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	o.hop("waypoint %s", address)
	return o.tunnel(ctx, o.dial(address), identity, authority)
}

// throughGateway puts a tunnel to the destination into one to the gateway.
func (o *opening) throughGateway(ctx context.Context, gateway string, outer func(string) error, authority string, inner func(string) error) (net.Conn, error) {
	o.hop("east-west gateway %s", gateway)
	through := func(ctx context.Context) (net.Conn, error) {
		return o.tunnel(ctx, o.dial(gateway), outer, authority)
	}
	o.hop("HBONE in HBONE to %s", authority)
	t, err := o.tunnel(ctx, through, inner, authority)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (o *opening) dial(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return dialIn(ctx, o.pod.netns, address) }
}

// tunnel opens one tunnel as the Pod.
func (o *opening) tunnel(ctx context.Context, dial func(context.Context) (net.Conn, error), accept func(string) error, authority string) (net.Conn, error) {
	select {
	case <-o.pod.id.Ready():
	case <-ctx.Done():
		return nil, fmt.Errorf("no certificate for %s/%s: %s", o.pod.Namespace, o.pod.ServiceAccount, o.pod.id.NotReady())
	}
	tls, err := o.pod.id.ClientTLS(accept)
	if err != nil {
		return nil, err
	}
	t, err := hbone.Connect(ctx, dial, tls, authority)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// gatewayAddress is where a gateway listens and who it must be.
func (o *opening) gatewayAddress(gw *workloadapi.GatewayAddress) (string, func(string) error, error) {
	port := fmt.Sprint(gw.GetHboneMtlsPort())
	if gw.GetHboneMtlsPort() == 0 {
		port = hbonePort
	}
	if h := gw.GetHostname(); h != nil {
		svc := o.z.store.ByHost(h.GetHostname())
		if svc == nil {
			return "", nil, fmt.Errorf("gateway %s is unknown", h.GetHostname())
		}
		for _, w := range o.z.store.Endpoints(svc) {
			return net.JoinHostPort(wds.Address(w).String(), port), oneOf([]string{wds.Identity(w)}), nil
		}
		return "", nil, fmt.Errorf("gateway %s: %w", h.GetHostname(), errNoEndpoint)
	}
	ip, ok := netip.AddrFromSlice(gw.GetAddress().GetAddress())
	if !ok {
		return "", nil, errors.New("gateway has no address")
	}
	accept := anyOf(o.z.cfg.TrustDomain, "")
	if w := o.z.store.ByAddress(gw.GetAddress().GetNetwork(), ip); w != nil {
		accept = oneOf([]string{wds.Identity(w)})
	}
	if svc := o.z.store.ByVIP(o.z.cfg.Network, ip); svc != nil {
		for _, w := range o.z.store.Endpoints(svc) {
			return net.JoinHostPort(wds.Address(w).String(), port), oneOf([]string{wds.Identity(w)}), nil
		}
	}
	return net.JoinHostPort(ip.String(), port), accept, nil
}

// oneOf accepts the identities listed.
func oneOf(ids []string) func(string) error {
	return func(peer string) error {
		if slices.Contains(ids, peer) {
			return nil
		}
		return fmt.Errorf("peer is %s, want %s", peer, strings.Join(ids, " or "))
	}
}

// anyOf accepts every identity of a trust domain, in a namespace unless that is empty.
func anyOf(trustDomain, namespace string) func(string) error {
	return func(peer string) error {
		if svid.Domain(peer) == trustDomain && (namespace == "" || strings.Contains(peer, "/ns/"+namespace+"/sa/")) {
			return nil
		}
		return fmt.Errorf("peer is %s, want one of trust domain %s, namespace %q", peer, trustDomain, namespace)
	}
}
