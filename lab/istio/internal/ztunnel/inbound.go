package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"istio.io/istio/pkg/workloadapi"

	"ambitmesh.dev/ambit/lab/istio/internal/authz"
	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
	"ambitmesh.dev/ambit/lab/istio/internal/stats"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

// serveInbound is the Pod's side of HBONE. Until there is a certificate,
// connections wait.
func (z *Ztunnel) serveInbound(ctx context.Context, p *pod, l net.Listener, log *slog.Logger) {
	select {
	case <-ctx.Done():
		return
	case <-p.id.Ready():
	}
	srv := &hbone.Server{
		TLS:  p.id.ServerTLS(func(err error) { log.Warn("connection failed", "direction", "inbound", "error", err) }),
		Open: func(ctx context.Context, r hbone.Request) (*hbone.Stream, error) { return z.accept(ctx, p, r) },
		Log:  log,
	}
	if err := srv.Serve(ctx, l); err != nil && ctx.Err() == nil {
		log.Error("inbound ended", "error", err)
	}
}

// tellTime is how long a CONNECT waits for istiod to tell of the Pod it is for, as in ztunnel (wait_for_workload).
const tellTime = 5 * time.Second

// awaitWorkload is the Pod as istiod knows it; nil: not in time.
func (z *Ztunnel) awaitWorkload(ctx context.Context, p *pod) *workloadapi.Workload {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	for {
		if w := z.workload(p); w != nil {
			return w
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// accept decides about one CONNECT and leads it to the Pod.
func (z *Ztunnel) accept(ctx context.Context, p *pod, r hbone.Request) (*hbone.Stream, error) {
	w := z.awaitWorkload(ctx, p)
	if w == nil {
		return nil, &hbone.Refusal{Status: http.StatusServiceUnavailable, Reason: "istiod has not told of Pod " + p.Namespace + "/" + p.Name + " yet"}
	}
	dest, err := z.destination(p, w, r.Authority)
	if err != nil {
		return nil, err
	}
	edge := z.inboundEdge(w, r)
	conn := authz.Conn{Principal: strings.TrimPrefix(r.Peer, "spiffe://"), Dest: dest}
	if a, ok := r.Remote.(*net.TCPAddr); ok {
		conn.Source = a.AddrPort().Addr().Unmap()
	}
	// Entered before the decision: a policy that comes between the two finds the stream.
	s := p.streams.enter(conn)
	verdict := authz.Decide(z.store.Policies(), policiesOf(w), conn)
	if !verdict.Allowed {
		p.streams.leave(s)
		z.cfg.Stats.Add(stats.Failed, edge, stats.Deny, 1)
		return nil, &hbone.Refusal{Status: http.StatusUnauthorized, Reason: verdict.Text}
	}
	out, err := dialIn(ctx, p.netns, dest.String())
	if err != nil {
		p.streams.leave(s)
		z.cfg.Stats.Add(stats.Failed, edge, stats.Connect, 1)
		return nil, &hbone.Refusal{Status: http.StatusServiceUnavailable, Reason: err.Error()}
	}
	out, closed := z.cfg.Stats.Open(edge, out)
	return &hbone.Stream{Conn: out, Verdict: verdict.Text, Revoked: s.revoked, Done: func() { closed(); p.streams.leave(s) }}, nil
}

// inboundEdge is the connection as this side's metrics tell it. Who calls from another network is known by its identity only: the address is the gateway's.
func (z *Ztunnel) inboundEdge(w *workloadapi.Workload, r hbone.Request) stats.Edge {
	e := stats.Edge{Reporter: "destination", From: stats.End{Principal: r.Peer}, To: stats.EndOf(w, wds.Identity(w))}
	e.To.Cluster = z.cfg.ClusterID
	if a, ok := r.Remote.(*net.TCPAddr); ok {
		if from := z.store.ByAddress(z.cfg.Network, a.AddrPort().Addr().Unmap()); from != nil && wds.Identity(from) == r.Peer {
			e.From = stats.EndOf(from, r.Peer)
		}
	}
	host, _, _ := net.SplitHostPort(r.Authority)
	svc := z.store.ByHost(host)
	if svc == nil { // the workload's address: the service whose endpoint it is, if that is one
		for _, s := range z.store.Services(func(s *workloadapi.Service) bool { return w.GetServices()[wds.ServiceKey(s)] != nil }) {
			svc = s
			break
		}
	}
	return e.OfService(svc)
}

// destination reads the authority: the Pod's own address, or a service that the
// Pod is an endpoint of (the inner tunnel through an east-west gateway).
func (z *Ztunnel) destination(p *pod, w *workloadapi.Workload, authority string) (netip.AddrPort, error) {
	bad := func(format string, args ...any) (netip.AddrPort, error) {
		return netip.AddrPort{}, &hbone.Refusal{Status: http.StatusBadRequest, Reason: fmt.Sprintf(format, args...)}
	}
	host, portText, err := net.SplitHostPort(authority)
	if err != nil {
		return bad("authority %q: want host:port", authority)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return bad("authority %q: bad port", authority)
	}
	own, err := netip.ParseAddr(p.IP)
	if err != nil {
		return bad("the Pod has no address")
	}
	ip, err := netip.ParseAddr(host)
	if err == nil {
		if ip != own {
			return bad("%s is not here: this is Pod %s/%s, %s", ip, p.Namespace, p.Name, own)
		}
		return netip.AddrPortFrom(own, uint16(port)), nil
	}
	svc := z.store.ByHost(host)
	if svc == nil {
		return bad("no service %s", host)
	}
	if w.GetServices()[wds.ServiceKey(svc)] == nil {
		return bad("Pod %s/%s is no endpoint of service %s", p.Namespace, p.Name, host)
	}
	target := wds.TargetPort(svc, w, uint32(port))
	if target == 0 {
		return bad("service %s has no port %d", host, port)
	}
	return netip.AddrPortFrom(own, uint16(target)), nil //nolint:gosec // a port
}

// workload is what istiod says of a Pod, or nil.
func (z *Ztunnel) workload(p *pod) *workloadapi.Workload {
	if !z.store.Synced() {
		return nil
	}
	return z.store.ByUID(z.cfg.ClusterID + "//Pod/" + p.Namespace + "/" + p.Name)
}

func policiesOf(w *workloadapi.Workload) authz.Workload {
	return authz.Workload{Namespace: w.GetNamespace(), Policies: w.GetAuthorizationPolicies()}
}

// recheck closes the open streams that the policies of now deny.
func (z *Ztunnel) recheck() {
	policies := z.store.Policies()
	for _, p := range z.list() {
		w := z.workload(p)
		if w == nil {
			continue
		}
		p.streams.each(func(s *stream) {
			if v := authz.Decide(policies, policiesOf(w), s.conn); !v.Allowed {
				s.revoke(v.Text)
			}
		})
	}
}

// stream is an open connection into a Pod.
type stream struct {
	conn    authz.Conn
	revoked chan string // capacity 1
}

func (s *stream) revoke(why string) {
	select {
	case s.revoked <- why:
	default:
	}
}

// streams are the open connections of a Pod.
type streams struct {
	mu  sync.Mutex
	all map[*stream]bool
}

func (s *streams) enter(c authz.Conn) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &stream{conn: c, revoked: make(chan string, 1)}
	if s.all == nil {
		s.all = map[*stream]bool{}
	}
	s.all[st] = true
	return st
}

func (s *streams) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, st)
}

func (s *streams) each(f func(*stream)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.all {
		f(st)
	}
}

func (s *streams) closeAll(why string) { s.each(func(st *stream) { st.revoke(why) }) }

var errNoEndpoint = errors.New("no endpoint")
