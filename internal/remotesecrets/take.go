package remotesecrets

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
)

const (
	probeEvery = 5 * time.Minute // a token in use; more often would keep an old one in the API server's cache
	hurry      = 5               // with the last fifth of a token's life, a new one is written though it can't be proven from here
)

// taken is what is remembered of a peer between rounds.
type taken struct {
	synced  mesh.TokenGeneration
	since   time.Time // when the present wait for istiods began
	proven  mesh.TokenGeneration
	probed  time.Time
	problem string
	again   time.Time // not before
}

// order is a remote secret that is to be written.
type order struct {
	peer     mesh.TokenPeer
	envelope mesh.TokenEnvelope
	secret   *unstructured.Unstructured
	before   *remote
}

// take keeps the remote secrets of peers, and sees what istiods make of them.
func (p *pass) take() {
	if !p.listed {
		return
	}
	p.prune()
	var orders []order
	for _, peer := range p.peers() {
		if !peer.Take {
			continue
		}
		if o := p.order(peer); o != nil {
			orders = append(orders, *o)
		}
	}
	w := p.k.watcher
	if unsettled := len(orders) > 0 || p.unsettled(); unsettled || p.now.Sub(w.looked) >= quiet {
		if err := w.look(p.ctx, p.now); err != nil {
			p.problems = append(p.problems, explain(err))
		}
	}
	p.secretful = w.secretful
	for _, o := range p.oneByOne(w.release(orders, p.now)) {
		p.write(o)
	}
	for _, peer := range p.peers() {
		if peer.Take {
			p.hold(peer)
		}
	}
	if err := w.restart(p.ctx, p.ours(), p.now); err != nil {
		p.problems = append(p.problems, explain(err))
	}
}

// peers are those of the directive; none without one.
func (p *pass) peers() []mesh.TokenPeer {
	if p.d == nil {
		return nil
	}
	return p.d.Peers
}

// oneByOne lets only one token be replaced at a time, so that an istiod has one cluster to swap at a time.
// An istiod that does not take one up holds the others up for settleFor at most. What is new waits for nobody, and on istiods that are to be restarted all are written together.
func (p *pass) oneByOne(orders []order) []order {
	if p.k.watcher.stale() {
		return orders
	}
	busy := false
	for _, peer := range p.peers() {
		t, r := p.state(peer.Cluster), p.found[prefixSecret+string(peer.Cluster)]
		busy = busy || r != nil && r.ours && r.generation != r.added && t.synced < r.generation && p.now.Sub(t.since) < settleFor
	}
	return slices.DeleteFunc(slices.Clone(orders), func(o order) bool {
		if o.before == nil {
			return false
		}
		if busy {
			p.within(soon)
			return true
		}
		busy = true
		return false
	})
}

func (p *pass) ours() []*remote {
	var out []*remote
	for _, r := range p.found {
		if r.ours {
			out = append(out, r)
		}
	}
	return out
}

func (p *pass) state(c mesh.ClusterName) *taken {
	t := p.k.taken[c]
	if t == nil {
		t = &taken{since: p.now}
		p.k.taken[c] = t
	}
	return t
}

// prune deletes remote secrets of ours whose cluster is no peer any more. Only what is noted as ours goes, and without a directive nothing.
func (p *pass) prune() {
	if p.d == nil {
		return
	}
	for name, c := range p.k.memory.noted.Written {
		if slices.ContainsFunc(p.d.Peers, func(o mesh.TokenPeer) bool { return o.Take && o.Cluster == c }) {
			continue
		}
		if r := p.found[name]; r != nil && r.ours {
			if err := remove(p.ctx, p.k.secrets, name); err != nil {
				p.fail(err)
				continue
			}
			p.k.cfg.Log.Info("remote secret deleted: its cluster is no peer any more", "peer", c)
		}
		delete(p.k.taken, c)
		p.k.mu.Lock()
		delete(p.k.envelopes, c)
		p.k.mu.Unlock()
		if err := p.k.memory.change(p.ctx, func(n *noted) { delete(n.Written, name) }); err != nil {
			p.fail(err)
		}
	}
	gone := false
	for c := range p.k.memory.noted.Pins {
		gone = gone || !isPeer(p.d, c)
	}
	if !gone {
		return
	}
	if err := p.k.memory.change(p.ctx, func(n *noted) {
		for c := range n.Pins {
			if !isPeer(p.d, c) {
				delete(n.Pins, c)
			}
		}
	}); err != nil {
		p.fail(err)
	}
}

func isPeer(d *mesh.TokenDirective, c mesh.ClusterName) bool {
	return slices.ContainsFunc(d.Peers, func(o mesh.TokenPeer) bool { return o.Cluster == c })
}

// foreign finds a remote secret that somebody else made for a cluster.
func (p *pass) foreign(peer mesh.TokenPeer) *remote {
	var found *remote
	for _, r := range p.found {
		if !r.ours && (slices.Contains(r.ids, peer.IstioID) || r.name == prefixSecret+string(peer.Cluster)) && (found == nil || r.name < found.name) {
			found = r
		}
	}
	return found
}

// order is what is to be written for a peer; nil: nothing at present.
func (p *pass) order(peer mesh.TokenPeer) *order {
	t, own := p.state(peer.Cluster), p.found[prefixSecret+string(peer.Cluster)]
	if own != nil && !own.ours || own == nil && p.foreign(peer) != nil || p.now.Before(t.again) {
		return nil
	}
	e, ok := p.envelopes[peer.Cluster]
	if !ok || own != nil && e.Generation < own.generation {
		return nil
	}
	if own != nil && e.Generation == own.generation && slices.Equal(own.ids, []string{peer.IstioID}) && t.proven == e.Generation && p.now.Sub(t.probed) < probeEvery {
		if own.sums[peer.IstioID] == p.k.sums[peer.Cluster] {
			return nil
		}
	}
	sign, err := p.k.memory.pinned(p.ctx, peer)
	if err == nil && sign == nil {
		return nil // its agent has not said its key yet
	}
	var c mesh.TokenCredential
	if err == nil {
		c, err = p.k.memory.keys.Open(e, p.k.cfg.Cluster, sign, p.now)
	}
	proven := t.proven == e.Generation && p.now.Sub(t.probed) < probeEvery
	if err == nil && !proven {
		err = p.k.cfg.Probe(p.ctx, c)
	}
	t.problem = ""
	if err != nil && !p.desperate(own, err) {
		t.problem, t.again = fmt.Sprintf("the token of %s is not used: %s", peer.Cluster, err), p.now.Add(retryIn)
		p.within(retryIn)
		return nil
	}
	if !proven {
		t.proven, t.probed = e.Generation, p.now
	}
	o := &order{peer: peer, envelope: e, before: own, secret: p.remoteSecret(peer, &e, c, own)}
	sum := sha256.Sum256(kubeconfig(peer.IstioID, c))
	p.k.sums[peer.Cluster] = sum
	if own != nil && own.generation == e.Generation && slices.Equal(own.ids, []string{peer.IstioID}) && own.sums[peer.IstioID] == sum {
		return nil // it is there; the probe was due
	}
	return o
}

// desperate: what istiods have ends soon, and the new token may work for them though not for us.
func (p *pass) desperate(own *remote, err error) bool {
	return own != nil && !errors.Is(err, errRefused) && own.expires.Sub(p.now) < own.expires.Sub(own.issued)/hurry
}

// write makes or changes a remote secret, in one update.
func (p *pass) write(o order) {
	name, t := o.secret.GetName(), p.state(o.peer.Cluster)
	err := p.k.memory.change(p.ctx, func(n *noted) { n.Written[name] = o.peer.Cluster })
	if err == nil {
		var u *unstructured.Unstructured
		if o.before == nil {
			u, err = p.k.secrets.Create(p.ctx, o.secret, metav1.CreateOptions{FieldManager: mesh.FieldManager})
		} else {
			o.secret.SetResourceVersion(o.before.version)
			u, err = p.k.secrets.Update(p.ctx, o.secret, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
		}
		if err == nil {
			r := readRemote(u)
			p.found[name] = r
			p.k.mu.Lock()
			p.k.found[name] = r
			p.k.mu.Unlock()
		}
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		p.within(soon) // the watch brings what it is now
		return
	case err != nil:
		t.problem = fmt.Sprintf("remote secret of %s: %s", o.peer.Cluster, explain(err))
		p.within(retryIn)
		return
	}
	t.since, t.problem = p.now, ""
	p.k.watcher.wrote(name)
	p.k.cfg.Log.Info("remote secret written", "peer", o.peer.Cluster, "generation", o.envelope.Generation, "expires", o.envelope.Expires)
	p.within(soon)
}

// unsettled: some istiod has not been seen synced with what was written.
func (p *pass) unsettled() bool {
	for _, peer := range p.peers() {
		if r := p.found[prefixSecret+string(peer.Cluster)]; peer.Take && r != nil && r.ours && p.state(peer.Cluster).synced < r.generation {
			return true
		}
	}
	return false
}

// hold reports a peer's remote secret and how far istiods are with it.
func (p *pass) hold(peer mesh.TokenPeer) {
	t, own, other := p.state(peer.Cluster), p.found[prefixSecret+string(peer.Cluster)], p.foreign(peer)
	h := mesh.HeldToken{Peer: peer.Cluster, Problem: t.problem}
	if other != nil && (own == nil || !own.ours) {
		h.Problem = ""
		h.Foreign = fmt.Sprintf("Secret %s/%s of %s is for cluster %q and was made by %s: it is left alone, and its token is not rotated. Delete it to have it replaced",
			p.k.cfg.IstioNamespace, other.name, p.k.cfg.Cluster, peer.IstioID, orSomebody(other.manager))
		p.held = append(p.held, h)
		return
	}
	if own == nil {
		p.held = append(p.held, h)
		return
	}
	h.Generation, h.Issued, h.Expires = own.generation, own.issued, own.expires
	why, note := p.k.watcher.synced(own, peer.IstioID, p.now)
	if why == "" {
		t.synced, t.since = own.generation, p.now
	} else {
		waited := p.now.Sub(t.since)
		p.within(min(max(soon, waited/10), seldom))
		if waited > settleFor {
			h.Problem = strings.TrimPrefix(h.Problem+"; "+why, "; ")
		}
	}
	h.Synced, h.Note = t.synced, note
	if other != nil && h.Problem == "" {
		h.Problem = fmt.Sprintf("Secret %s/%s, made by %s, is for cluster %q too: istiod goes by the one it saw first; delete one of the two",
			p.k.cfg.IstioNamespace, other.name, orSomebody(other.manager), peer.IstioID)
	}
	p.held = append(p.held, h)
}

func orSomebody(manager string) string {
	if manager == "" {
		return "somebody"
	}
	return manager
}
