// Package ztunnel stands in for Istio's ztunnel on the lab's node: it gives
// every captured Pod an identity, mutual TLS and L4 authorization.
//
// In: captured Pods with their sockets from the lab's node (feed.go), workloads,
// services and policies from the cluster's real istiod (package wds), SVIDs
// signed by it (package svid). Out: HBONE servers on each Pod's 15008 that
// decide by ztunnel's rules (inbound.go), and on each Pod's 127.0.0.1:15001 a
// CONNECT proxy that takes its connections into the mesh (outbound.go): inside
// the cluster, through a waypoint, or through an east-west gateway with HBONE in
// HBONE.
//
// It is not ztunnel. Nothing redirects traffic: who does not use 127.0.0.1:15001
// is outside the mesh, and what arrives on a Pod's other ports is not seen. It
// must not decide anything that istiod has not said.
package ztunnel

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
	"ambitmesh.dev/ambit/lab/istio/internal/stats"
	"ambitmesh.dev/ambit/lab/istio/internal/svid"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

// Config says whose data plane it is.
type Config struct {
	ClusterID, Network, TrustDomain string
	Socket                          string // of the node
	Identity                        svid.Config
	Stats                           *stats.Counters // of connections; nil: not counted
	Log                             *slog.Logger
}

// Ztunnel is the data plane of one node.
type Ztunnel struct {
	cfg   Config
	store *wds.Store
	open  hbone.Open

	mu         sync.Mutex
	pods       map[string]*pod      // by UID
	identities map[string]*identity // by SPIFFE ID
	wg         sync.WaitGroup
}

// pod is one captured Pod.
type pod struct {
	message
	netns     *os.File
	id        *identity
	end       context.CancelFunc
	listeners []net.Listener
	streams   streams
}

// identity is shared by the Pods of one service account.
type identity struct {
	*svid.Identity
	users int
	end   context.CancelFunc
}

// New returns a data plane without Pods. Its Changed must be called whenever
// the store has changed.
func New(cfg Config) *Ztunnel {
	z := &Ztunnel{cfg: cfg, pods: map[string]*pod{}, identities: map[string]*identity{}}
	z.store = wds.NewStore(z.recheck)
	return z
}

// Store is what istiod says; the caller keeps it up to date.
func (z *Ztunnel) Store() *wds.Store { return z.store }

// drainTime is how long open connections may go on after the end; shorter than
// the Pod's grace period. New ones wait in the sockets, which are the node's, for
// the next ztunnel.
const drainTime = 20 * time.Second

// Run serves the node's Pods until ctx ends and their connections have.
func (z *Ztunnel) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	feed(ctx, z.cfg.Socket, z.cfg.Log, z.removeAll, func(m message, files []*os.File) {
		switch {
		case m.Op == "add" && len(files) == fdCount:
			z.remove(m.UID) // what the node says last counts
			z.add(life, m, files)
		case m.Op == "remove":
			z.remove(m.UID)
		default:
			z.cfg.Log.Warn("the node said something strange", "op", m.Op, "files", len(files))
		}
		for _, f := range files {
			if m.Op != "add" || f != files[fdNetns] {
				_ = f.Close()
			}
		}
	})
	for _, p := range z.list() {
		for _, l := range p.listeners {
			_ = l.Close()
		}
	}
	z.open.Drain(life, drainTime)
	z.removeAll()
	end()
	z.wg.Wait()
	return nil
}

func (z *Ztunnel) add(ctx context.Context, m message, files []*os.File) {
	log := z.cfg.Log.With("pod", m.Namespace+"/"+m.Name)
	var ls []net.Listener
	for _, f := range files[fdInbound:] {
		l, err := net.FileListener(f)
		if err != nil {
			log.Error("socket of a Pod", "error", err)
			for _, l := range ls {
				_ = l.Close()
			}
			_ = files[fdNetns].Close()
			return
		}
		ls = append(ls, z.open.Listen(l))
	}
	ctx, end := context.WithCancel(ctx)
	p := &pod{message: m, netns: files[fdNetns], end: end, listeners: ls}
	z.mu.Lock()
	defer z.mu.Unlock()
	p.id = z.identity(ctx, fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", z.cfg.TrustDomain, m.Namespace, m.ServiceAccount))
	z.pods[m.UID] = p
	log.Info("pod captured", "ip", m.IP)
	z.wg.Go(func() { z.serveInbound(ctx, p, ls[0], log) })
	z.wg.Go(func() { z.serveOutbound(ctx, p, ls[1], log) })
}

// identity finds or makes the identity of a service account. z.mu is held.
func (z *Ztunnel) identity(ctx context.Context, spiffeID string) *identity {
	if id := z.identities[spiffeID]; id != nil {
		id.users++
		return id
	}
	// The identity outlives the Pod it was made for.
	ctx, end := context.WithCancel(context.WithoutCancel(ctx))
	cfg := z.cfg.Identity
	cfg.ID, cfg.Impersonate = spiffeID, true
	id := &identity{Identity: svid.New(cfg, z.cfg.Log), users: 1, end: end}
	z.identities[spiffeID] = id
	z.wg.Go(func() { id.Run(ctx) })
	return id
}

func (z *Ztunnel) remove(uid string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	p := z.pods[uid]
	if p == nil {
		return
	}
	delete(z.pods, uid)
	p.end()
	for _, l := range p.listeners {
		_ = l.Close()
	}
	p.streams.closeAll("the Pod has left the mesh")
	_ = p.netns.Close()
	// The last Pod of an identity forgets its certificate, as in ztunnel.
	if p.id.users--; p.id.users == 0 {
		p.id.end()
		for name, id := range z.identities {
			if id == p.id {
				delete(z.identities, name)
			}
		}
	}
}

func (z *Ztunnel) removeAll() {
	z.mu.Lock()
	var all []string
	for uid := range z.pods {
		all = append(all, uid)
	}
	z.mu.Unlock()
	for _, uid := range all {
		z.remove(uid)
	}
}

// list is every Pod of the moment.
func (z *Ztunnel) list() []*pod {
	z.mu.Lock()
	defer z.mu.Unlock()
	out := make([]*pod, 0, len(z.pods))
	for _, p := range z.pods {
		out = append(out, p)
	}
	return out
}
