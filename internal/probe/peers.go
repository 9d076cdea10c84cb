package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// PeersConfig is what NewPeers needs.
type PeersConfig struct {
	Client dynamic.Interface
	Source *synclog.Source // gets a mesh.PeerProbe for each peer
	// Dial and Resolve reach the peers' gateways; nil: as this machine does.
	Dial    Dialer
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Heard, if set, is told of every probe: the peer's name, the round trip or the failure.
	Heard func(peer mesh.ClusterName, roundTrip time.Duration, failure mesh.PeerFailure)
	Log   *slog.Logger
}

const (
	peerEvery    = 10 * time.Second       // each peer, while it answers: six a minute make a loss worth showing
	peerBad      = time.Minute            // each peer at least, while it does not
	peerApart    = 300 * time.Millisecond // probes in a large fleet, on average
	peerSoon     = 3 * time.Second        // after a failure; longer each time, and in a large fleet
	peerParallel = 16
	peerTime     = 4 * time.Second // for one
	peerLook     = 500 * time.Millisecond
)

// Peers dials the gateways that the cluster's peers lead to, those of people too: Gateways of class istio-remote. New allocates, Run works.
type Peers struct {
	cfg PeersConfig

	mu      sync.Mutex
	targets map[string]*peerTarget // by "namespace/name" of the Gateway
}

// peerTarget is one peer.
type peerTarget struct {
	cluster mesh.ClusterName
	address string
	port    int32
	due     time.Time
	busy    bool
	misses  int // failures in a row
	said    *mesh.PeerProbe
}

// NewPeers allocates Peers.
func NewPeers(cfg PeersConfig) *Peers {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return &Peers{cfg: cfg, targets: map[string]*peerTarget{}}
}

// Run probes until ctx ends; it returns nil then.
func (p *Peers) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		gateways := p.cfg.Client.Resource(schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"})
		follow.Run(ctx, follow.Config{Client: gateways, Name: "gateways", Optional: true, Log: p.cfg.Log}, p)
	})
	p.loop(ctx)
	return nil
}

func (p *Peers) loop(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, peerParallel)
	tick := time.NewTicker(peerLook)
	defer tick.Stop()
	for {
		for _, name := range p.due(time.Now()) {
			select {
			case <-ctx.Done():
				return
			case slots <- struct{}{}:
			}
			wg.Go(func() {
				defer func() { <-slots }()
				p.probe(ctx, name)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// due takes what has to be probed now.
func (p *Peers) due(now time.Time) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for name, t := range p.targets {
		if !t.busy && !t.due.After(now) {
			t.busy = true
			out = append(out, name)
		}
	}
	return out
}

func (p *Peers) probe(ctx context.Context, name string) {
	p.mu.Lock()
	t := p.targets[name]
	if t == nil {
		p.mu.Unlock()
		return
	}
	found, peer := mesh.PeerProbe{Address: t.address, Port: t.port}, t.cluster
	p.mu.Unlock()
	found.RoundTrip, found.Failure = p.ask(ctx, found.Address, found.Port)
	if ctx.Err() != nil {
		return
	}
	if p.cfg.Heard != nil {
		p.cfg.Heard(peer, found.RoundTrip, found.Failure)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.targets[name]; now != t || t.address != found.Address || t.port != found.Port {
		if now != nil {
			now.busy = false
		}
		return
	}
	t.busy = false
	if found.Failure == mesh.PeerAnswers {
		t.misses = 0
	} else {
		t.misses++
	}
	wait := p.pause(t.misses)
	t.due = time.Now().Add(wait + rand.N(wait/2)) //nolint:gosec // spreads load, guards nothing
	if worthSaying(t.said, found, t.misses) {
		p.say(name, t, found)
	}
}

// pause is how long to wait before a peer is asked again. The lock is held.
func (p *Peers) pause(misses int) time.Duration {
	usual := max(peerEvery, time.Duration(len(p.targets))*peerApart)
	if misses == 0 {
		return usual
	}
	return min(max(peerSoon, time.Duration(len(p.targets))*peerApart/8)<<min(misses-1, 6), max(usual, peerBad))
}

// worthSaying: it is the first word of it, or another one. One miss of a gateway that answered is no news, nor is a round trip that is not half or twice what it was.
func worthSaying(said *mesh.PeerProbe, found mesh.PeerProbe, misses int) bool {
	switch {
	case said == nil || said.Address != found.Address || said.Port != found.Port:
		return true
	case found.Failure != said.Failure:
		return said.Failure != mesh.PeerAnswers || misses > 1
	case found.Failure != mesh.PeerAnswers:
		return false
	}
	a, b := found.RoundTrip, said.RoundTrip
	return max(a, b) > 2*min(a, b) && max(a, b)-min(a, b) > time.Millisecond
}

func (p *Peers) say(name string, t *peerTarget, found mesh.PeerProbe) {
	found.RoundTrip = found.RoundTrip.Round(10 * time.Microsecond)
	raw, err := json.Marshal(found)
	if err == nil {
		err = p.cfg.Source.Set(synclog.Key{Type: mesh.ItemPeerProbe, Name: name}, raw)
	}
	if err != nil {
		p.cfg.Log.Error("a probe can't be reported", "peer", name, "error", err)
		return
	}
	t.said = &found
}

// ask dials one gateway and makes a TLS handshake. The round trip is that of the TCP handshake.
func (p *Peers) ask(ctx context.Context, host string, port int32) (time.Duration, mesh.PeerFailure) {
	ctx, cancel := context.WithTimeout(ctx, peerTime)
	defer cancel()
	addresses := []netip.Addr{}
	if ip, err := netip.ParseAddr(host); err == nil {
		addresses = append(addresses, ip)
	} else if addresses, err = p.cfg.Resolve(ctx, host); err != nil || len(addresses) == 0 {
		var dns *net.DNSError
		if err == nil || errors.As(err, &dns) && dns.IsNotFound {
			return 0, mesh.PeerNoSuchHost
		}
		return 0, mesh.PeerDNS
	}
	var took time.Duration
	connected := false
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		began := time.Now()
		conn, err := p.cfg.Dial(ctx, network, address)
		took, connected = time.Since(began), err == nil
		return conn, err
	}
	_, err := Shake(ctx, dial, netip.AddrPortFrom(addresses[0].Unmap(), uint16(port)).String()) //nolint:gosec // checked when it was taken
	switch {
	case err == nil:
		return max(took, 1), mesh.PeerAnswers
	case connected:
		if _, refused := errors.AsType[tls.AlertError](err); refused { // it speaks TLS, and refuses who has no certificate
			return max(took, 1), mesh.PeerAnswers
		}
		return 0, mesh.PeerNoHandshake
	case errors.Is(err, syscall.ECONNREFUSED):
		return 0, mesh.PeerRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EINVAL):
		return 0, mesh.PeerNoRoute
	}
	return 0, mesh.PeerTimeout
}

// Set takes a Gateway up.
func (p *Peers) Set(u *unstructured.Unstructured) {
	address, port, ok := peerAddress(u)
	p.mu.Lock()
	defer p.mu.Unlock()
	name := follow.Name(u)
	t := p.targets[name]
	switch {
	case !ok:
		p.forget(name)
	case t == nil || t.address != address || t.port != port:
		if t == nil {
			t = &peerTarget{}
			p.targets[name] = t
		}
		t.cluster, t.address, t.port, t.misses = peerCluster(u), address, port, 0
		t.due = time.Now().Add(rand.N(time.Second + time.Duration(len(p.targets))*peerApart/peerParallel)) //nolint:gosec // spreads load, guards nothing
	}
}

// Gone forgets a Gateway.
func (p *Peers) Gone(u *unstructured.Unstructured) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(follow.Name(u))
}

// Listed forgets those that are not there.
func (p *Peers) Listed(present map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.targets {
		if !present[name] {
			p.forget(name)
		}
	}
}

func (p *Peers) forget(name string) {
	if p.targets[name] == nil {
		return
	}
	delete(p.targets, name)
	p.cfg.Source.Delete(synclog.Key{Type: mesh.ItemPeerProbe, Name: name})
}

// peerCluster is the cluster that a Gateway leads to: the one that our own names are made of, or what a person's label says.
func peerCluster(u *unstructured.Unstructured) mesh.ClusterName {
	if name, ours := strings.CutPrefix(u.GetName(), mesh.PeerPrefix); ours {
		return mesh.ClusterName(name)
	}
	return mesh.ClusterName(cmp.Or(u.GetLabels()[mesh.LabelCluster], u.GetName()))
}

// peerAddress is what a Gateway of class istio-remote leads to: its first address, and the port of HBONE, or, where a peer has none, of what it has.
func peerAddress(u *unstructured.Unstructured) (address string, port int32, ok bool) {
	if class, _, _ := unstructured.NestedString(u.Object, "spec", "gatewayClassName"); class != mesh.ClassRemote {
		return "", 0, false
	}
	annotations := u.GetAnnotations()
	addresses, _, _ := unstructured.NestedSlice(u.Object, "spec", "addresses")
	if len(addresses) > 0 {
		first, _ := addresses[0].(map[string]any)
		address, _ = first["value"].(string)
	} else {
		address = annotations["networking.istio.io/peer-address"]
	}
	listeners, _, _ := unstructured.NestedSlice(u.Object, "spec", "listeners")
	for _, l := range listeners {
		l, _ := l.(map[string]any)
		n, _ := l["port"].(int64)
		if n <= 0 || n > 1<<16-1 {
			continue
		}
		if l["protocol"] == "HBONE" || l["name"] == "cross-network" {
			return address, int32(n), address != ""
		}
	}
	return address, mesh.PortHBONE, address != ""
}
