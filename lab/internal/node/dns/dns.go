// Package dns is the cluster DNS of one lab cluster.
//
// What goes in: Services and EndpointSlices. What comes out: answers to A, SRV and PTR questions below the cluster domain,
// over UDP and TCP. What it must not do: ask any other server. A name outside the cluster does not exist.
package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
)

// Config is what a Server needs.
type Config struct {
	Addr     netip.AddrPort
	Domain   string // cluster.local
	Services corelisters.ServiceLister
	Slices   discoverylisters.EndpointSliceLister
	// ConfigMaps, if set, has kube-system/coredns-custom: lines `rewrite name exact FROM TO` of its keys *.override hold, as where CoreDNS imports them.
	ConfigMaps corelisters.ConfigMapLister
	Log        *slog.Logger
}

// Server answers for one cluster.
type Server struct{ cfg Config }

// New makes a server; Run opens its sockets.
func New(cfg Config) *Server {
	cfg.Domain = strings.ToLower(strings.Trim(cfg.Domain, "."))
	return &Server{cfg: cfg}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	packet, err := net.ListenPacket("udp4", s.cfg.Addr.String())
	if err != nil {
		return err
	}
	defer func() { _ = packet.Close() }()
	stream, err := net.Listen("tcp4", s.cfg.Addr.String())
	if err != nil {
		return err
	}
	defer stream.Close()
	udp := &dns.Server{PacketConn: packet, Handler: s}
	tcp := &dns.Server{Listener: stream, Handler: s}
	failed := make(chan error, 2)
	go func() { failed <- udp.ActivateAndServe() }()
	go func() { failed <- tcp.ActivateAndServe() }()
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = udp.ShutdownContext(stop)
	_ = tcp.ShutdownContext(stop)
	return err
}

// ttl is short: addresses of Pods come and go.
const ttl = 5

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(req)
	m.Authoritative, m.RecursionAvailable = true, true
	if len(req.Question) == 1 {
		q := req.Question[0]
		asked := q.Name
		q.Name = s.rewritten(q.Name)
		answer, extra, exists := s.answer(q)
		for _, rr := range answer {
			if strings.EqualFold(rr.Header().Name, q.Name) {
				rr.Header().Name = asked
			}
		}
		m.Answer, m.Extra = answer, extra
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		if len(answer) == 0 {
			m.Ns = []dns.RR{s.soa()}
		}
	} else {
		m.Rcode = dns.RcodeFormatError
	}
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size := dns.MinMsgSize
		if o := req.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		m.Truncate(size)
	}
	if err := w.WriteMsg(m); err != nil {
		s.cfg.Log.Debug("cluster DNS: answer", "err", err)
	}
}

// rewritten is the name that is looked for instead of name.
func (s *Server) rewritten(name string) string {
	if s.cfg.ConfigMaps == nil {
		return name
	}
	custom, err := s.cfg.ConfigMaps.ConfigMaps("kube-system").Get("coredns-custom")
	if err != nil {
		return name
	}
	for key, text := range custom.Data {
		if !strings.HasSuffix(key, ".override") {
			continue
		}
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) == 5 && f[0] == "rewrite" && f[1] == "name" && f[2] == "exact" && strings.EqualFold(dns.Fqdn(f[3]), name) {
				return dns.Fqdn(f[4])
			}
		}
	}
	return name
}

func (s *Server) soa() dns.RR {
	zone := s.cfg.Domain + "."
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "ns.dns." + zone, Mbox: "hostmaster." + zone, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

// answer resolves one question; exists is false for names that do not exist (NXDOMAIN).
func (s *Server) answer(q dns.Question) (answer, extra []dns.RR, exists bool) {
	name := strings.ToLower(q.Name)
	if q.Qtype == dns.TypePTR {
		return s.reverse(q, name)
	}
	rest, ok := strings.CutSuffix(strings.TrimSuffix(name, "."), ".svc."+s.cfg.Domain)
	if !ok {
		return nil, nil, s.inZone(name)
	}
	parts := strings.Split(rest, ".")
	slices.Reverse(parts) // namespace, service, then an endpoint or _protocol and _port
	if len(parts) < 2 {
		return nil, nil, len(parts) == 1 && s.hasNamespace(parts[0])
	}
	svc, err := s.cfg.Services.Services(parts[0]).Get(parts[1])
	if err != nil {
		return nil, nil, false
	}
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName && len(parts) == 2:
		return s.external(q, svc)
	case len(parts) == 2:
		return s.addresses(q, svc, ""), nil, true
	case len(parts) == 3 && !strings.HasPrefix(parts[2], "_"):
		answer = s.addresses(dns.Question{Name: q.Name, Qtype: dns.TypeA}, svc, parts[2])
		if q.Qtype != dns.TypeA {
			return nil, nil, len(answer) > 0
		}
		return answer, nil, len(answer) > 0
	case len(parts) == 4:
		return s.srv(q, svc, strings.TrimPrefix(parts[3], "_"), strings.TrimPrefix(parts[2], "_"))
	}
	return nil, nil, false
}

// inZone reports whether name is the zone itself or svc below it, which exist without addresses.
func (s *Server) inZone(name string) bool {
	return name == s.cfg.Domain+"." || name == "svc."+s.cfg.Domain+"."
}

func (s *Server) hasNamespace(ns string) bool {
	list, err := s.cfg.Services.Services(ns).List(labels.Everything())
	return err == nil && len(list) > 0
}

func (s *Server) external(q dns.Question, svc *corev1.Service) (answer, extra []dns.RR, exists bool) {
	target := dns.Fqdn(svc.Spec.ExternalName)
	answer = []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}
	if !strings.EqualFold(target, q.Name) && strings.HasSuffix(strings.ToLower(target), ".svc."+s.cfg.Domain+".") {
		more, _, _ := s.answerOnce(dns.Question{Name: target, Qtype: q.Qtype})
		answer = append(answer, more...)
	}
	return answer, nil, true
}

// answerOnce follows no further ExternalName, so a cycle ends.
func (s *Server) answerOnce(q dns.Question) (answer, extra []dns.RR, exists bool) {
	rest, _ := strings.CutSuffix(strings.ToLower(q.Name), ".svc."+s.cfg.Domain+".")
	name, ns, ok := strings.Cut(rest, ".")
	if !ok {
		return nil, nil, false
	}
	svc, err := s.cfg.Services.Services(ns).Get(name)
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, nil, false
	}
	return s.addresses(q, svc, ""), nil, true
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

// addresses is the A records of a Service: its cluster address, or for a headless one those of its endpoints (all, or the
// one with this host name).
func (s *Server) addresses(q dns.Question, svc *corev1.Service, host string) []dns.RR {
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeANY {
		return nil
	}
	var ips []netip.Addr
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		for _, e := range s.endpoints(svc) {
			if host == "" || host == endpointHost(e) {
				ips = append(ips, endpointAddrs(e)...)
			}
		}
		slices.SortFunc(ips, netip.Addr.Compare)
		ips = slices.Compact(ips)
	} else if a, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil && host == "" {
		ips = []netip.Addr{a}
	}
	var out []dns.RR
	for _, ip := range ips {
		if ip.Is4() {
			out = append(out, &dns.A{Hdr: header(q.Name, dns.TypeA), A: ip.AsSlice()})
		}
	}
	return out
}

// endpoints of a Service that DNS publishes: the ready ones, or all when the Service says so.
func (s *Server) endpoints(svc *corev1.Service) []discoveryv1.Endpoint {
	list, err := s.cfg.Slices.EndpointSlices(svc.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: svc.Name}))
	if err != nil {
		return nil
	}
	var out []discoveryv1.Endpoint
	for _, sl := range list {
		for _, e := range sl.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready || svc.Spec.PublishNotReadyAddresses {
				out = append(out, e)
			}
		}
	}
	return out
}

func endpointAddrs(e discoveryv1.Endpoint) []netip.Addr {
	var out []netip.Addr
	for _, s := range e.Addresses {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// endpointHost is the name of an endpoint below its headless Service: its host name, else its address with dashes.
func endpointHost(e discoveryv1.Endpoint) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return *e.Hostname
	}
	if len(e.Addresses) > 0 {
		return strings.NewReplacer(".", "-", ":", "-").Replace(e.Addresses[0])
	}
	return ""
}

// srv answers _port._protocol.service.
func (s *Server) srv(q dns.Question, svc *corev1.Service, port, protocol string) (answer, extra []dns.RR, exists bool) {
	base := svc.Name + "." + svc.Namespace + ".svc." + s.cfg.Domain + "."
	for _, p := range svc.Spec.Ports {
		if p.Name != port || !strings.EqualFold(string(p.Protocol), protocol) {
			continue
		}
		exists = true
		if q.Qtype != dns.TypeSRV && q.Qtype != dns.TypeANY {
			continue
		}
		targets := []string{base}
		if svc.Spec.ClusterIP == corev1.ClusterIPNone {
			targets = nil
			for _, e := range s.endpoints(svc) {
				targets = append(targets, endpointHost(e)+"."+base)
			}
		}
		for _, t := range targets {
			answer = append(answer, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Priority: 0, Weight: 100, Port: uint16(p.Port), Target: t}) //nolint:gosec // validated by the API server
		}
	}
	return answer, extra, exists
}

// reverse answers for the addresses of Services.
func (s *Server) reverse(q dns.Question, name string) (answer, extra []dns.RR, exists bool) {
	list, err := s.cfg.Services.List(labels.Everything())
	if err != nil {
		return nil, nil, false
	}
	for _, svc := range list {
		if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		if arpa, err := dns.ReverseAddr(svc.Spec.ClusterIP); err == nil && arpa == name {
			return []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: svc.Name + "." + svc.Namespace + ".svc." + s.cfg.Domain + "."}}, nil, true
		}
	}
	return nil, nil, false
}
