// Package proxy is the lab's kube-proxy: it makes Services reachable at their addresses, in user space.
//
// What goes in: Services and EndpointSlices of one cluster. What comes out: TCP listeners on every ClusterIP, LoadBalancer
// address and node port that has a ready endpoint, each connection spliced to an endpoint in turn; and an address in the
// status of every Service of type LoadBalancer.
// What it must not do: touch Services with a loadBalancerClass, listen outside the cluster's own ranges, or speak for
// endpoints that are not ready. A port without endpoints has no listener, so the kernel refuses connections at once.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Config is what a Proxy needs.
type Config struct {
	NodeIP    netip.Addr
	LBCIDR    netip.Prefix
	APIServer netip.AddrPort // endpoint of default/kubernetes when it has none in the API
	Client    kubernetes.Interface
	Services  coreinformers.ServiceInformer
	Slices    discoveryinformers.EndpointSliceInformer
	Log       *slog.Logger
}

// Proxy is the Service proxy of one cluster.
type Proxy struct {
	cfg    Config
	dirty  chan struct{}
	synced []cache.InformerSynced

	listeners map[netip.AddrPort]*listener // of one goroutine
	wg        sync.WaitGroup
}

// New makes a proxy and registers it with the informers; nothing is opened before Run.
func New(cfg Config) (*Proxy, error) {
	p := &Proxy{cfg: cfg, dirty: make(chan struct{}, 1), listeners: map[netip.AddrPort]*listener{}}
	changed := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { p.changed() },
		UpdateFunc: func(_, _ any) { p.changed() },
		DeleteFunc: func(any) { p.changed() },
	}
	for _, i := range []cache.SharedIndexInformer{cfg.Services.Informer(), cfg.Slices.Informer()} {
		reg, err := i.AddEventHandler(changed)
		if err != nil {
			return nil, fmt.Errorf("service proxy: %w", err)
		}
		p.synced = append(p.synced, reg.HasSynced)
	}
	return p, nil
}

func (p *Proxy) changed() {
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

// Run keeps the listeners as the Services want them until ctx ends.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.wg.Wait()
	defer func() {
		for _, l := range p.listeners {
			l.close()
		}
	}()
	if !cache.WaitForCacheSync(ctx.Done(), p.synced...) {
		return nil
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.dirty:
		case <-retry.C:
		}
		if err := p.sync(ctx); err != nil && ctx.Err() == nil {
			p.cfg.Log.Warn("service proxy", "err", err)
			retry.Reset(time.Second)
		}
	}
}

func (p *Proxy) sync(ctx context.Context) error {
	services, err := p.cfg.Services.Lister().List(labels.Everything())
	if err != nil {
		return err
	}
	endpoints, err := p.cfg.Slices.Lister().List(labels.Everything())
	if err != nil {
		return err
	}
	assigned, err := p.assign(ctx, services)
	want := routes(services, endpoints, assigned, p.cfg)
	for at, l := range p.listeners {
		if len(want[at]) == 0 {
			l.close()
			delete(p.listeners, at)
		}
	}
	errs := []error{err}
	for at, to := range want {
		if l := p.listeners[at]; l != nil {
			l.set(to)
			continue
		}
		l, err := listen(at, to, p.cfg.NodeIP)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.listeners[at] = l
		p.wg.Go(l.serve)
	}
	return errors.Join(errs...)
}

// routes lists the addresses to listen on, with their ready endpoints. It is pure.
func routes(services []*corev1.Service, endpoints []*discoveryv1.EndpointSlice, lb map[string]netip.Addr, cfg Config) map[netip.AddrPort][]netip.AddrPort {
	byService := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range endpoints {
		key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		byService[key] = append(byService[key], s)
	}
	out := map[netip.AddrPort][]netip.AddrPort{}
	for _, s := range services {
		key := s.Namespace + "/" + s.Name
		for _, port := range s.Spec.Ports {
			if port.Protocol != corev1.ProtocolTCP {
				continue
			}
			to := ready(byService[key], port.Name, s.Spec.PublishNotReadyAddresses)
			if len(to) == 0 && key == "default/kubernetes" {
				to = []netip.AddrPort{cfg.APIServer}
			}
			if len(to) == 0 {
				continue
			}
			for _, at := range addresses(s, port, lb[key], cfg.NodeIP) {
				out[at] = to
			}
		}
	}
	return out
}

// addresses are the places where one port of a Service is reached.
func addresses(s *corev1.Service, port corev1.ServicePort, lb, node netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	add := func(a netip.Addr, p int32) {
		if a.IsValid() && p > 0 {
			out = append(out, netip.AddrPortFrom(a, uint16(p))) //nolint:gosec // validated by the API server
		}
	}
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			add(a, port.Port)
		}
	}
	add(lb, port.Port)
	add(node, port.NodePort)
	return out
}

// ready lists the endpoints of a port, sorted: the ready ones, or when there are none those that end but still serve.
func ready(list []*discoveryv1.EndpointSlice, port string, unready bool) []netip.AddrPort {
	var out, ending []netip.AddrPort
	for _, s := range list {
		for _, p := range s.Ports {
			if p.Port == nil || deref(p.Name) != port {
				continue
			}
			for _, e := range s.Endpoints {
				to := &out
				if e.Conditions.Ready != nil && !*e.Conditions.Ready && !unready {
					if !is(e.Conditions.Serving) || !is(e.Conditions.Terminating) {
						continue
					}
					to = &ending
				}
				for _, a := range e.Addresses {
					if ip, err := netip.ParseAddr(a); err == nil {
						*to = append(*to, netip.AddrPortFrom(ip, uint16(*p.Port))) //nolint:gosec // validated by the API server
					}
				}
			}
		}
	}
	if len(out) == 0 {
		out = ending
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

func is(b *bool) bool { return b != nil && *b }

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// listener serves one address.
type listener struct {
	l    net.Listener
	from *net.TCPAddr
	own  netip.Prefix // addresses of the cluster itself

	mu   sync.Mutex
	to   []netip.AddrPort
	next int
}

func listen(at netip.AddrPort, to []netip.AddrPort, node netip.Addr) (*listener, error) {
	l, err := net.Listen("tcp4", at.String())
	if err != nil {
		return nil, err
	}
	return &listener{l: l, to: to, from: &net.TCPAddr{IP: node.AsSlice()}, own: netip.PrefixFrom(node, 16).Masked()}, nil
}

func (l *listener) set(to []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = to
}

func (l *listener) close() { l.l.Close() }

func (l *listener) serve() {
	for {
		conn, err := l.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files, or a connection that ended while it waited
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go l.handle(conn.(*net.TCPConn))
	}
}

// turn is the endpoints in the order in which to try them.
func (l *listener) turn() []netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.to)
	out := make([]netip.AddrPort, 0, n)
	for i := range n {
		out = append(out, l.to[(l.next+i)%n])
	}
	l.next = (l.next + 1) % max(n, 1)
	return out
}

const dialTimeout = 5 * time.Second

func (l *listener) handle(client *net.TCPConn) {
	defer func() { _ = client.Close() }()
	for _, to := range l.turn() {
		d := net.Dialer{Timeout: dialTimeout}
		if !l.own.Contains(to.Addr()) {
			// The kernel would take the address that is dialled for our own, since the whole lab is local to it; only a
			// source that says which cluster speaks can be cut off from the others.
			d.LocalAddr = l.from
		}
		conn, err := d.Dial("tcp4", to.String())
		if err != nil {
			// An endpoint that is just ending refuses; the next one may not.
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) {
				continue
			}
			break
		}
		Splice(client, conn.(*net.TCPConn))
		return
	}
	_ = client.SetLinger(0) // a reset, as near to "refused" as an accepted connection can get
}

// Splice copies both ways until both sides have ended; the end of one direction is passed on as such, and a broken
// connection on one side breaks the other.
func Splice(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	one := func(dst, src *net.TCPConn) {
		if _, err := io.Copy(dst, src); err != nil {
			_ = dst.SetLinger(0)
			_ = src.SetLinger(0)
			_ = dst.Close()
			_ = src.Close()
			return
		}
		_ = dst.CloseWrite()
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
	_ = a.Close()
	_ = b.Close()
}
