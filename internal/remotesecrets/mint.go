package remotesecrets

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/tokens"
)

// Annotations of our Secrets.
const (
	notePeer       = mesh.TokenPeerAnnotation
	noteGeneration = "admin.gloo.solo.io/token-generation"
	noteIssued     = "admin.gloo.solo.io/token-issued"
	noteExpires    = "admin.gloo.solo.io/token-expires"
	noteAccount    = "admin.gloo.solo.io/token-account"
	noteWritten    = "admin.gloo.solo.io/token-written"
)

const (
	envelopeKey = "envelope"
	reread      = 30 * time.Second // what we made, from the API server
	reaccount   = 5 * time.Minute  // the API server's address
)

// minter makes tokens. A token is bound to a Secret of m.cfg.Namespace, one for each peer and generation, which also keeps its envelope: when the Secret goes the token dies.
type minter struct {
	cfg            Config
	own            dynamic.ResourceInterface
	server, source string    // address of the API server for others
	addressed      time.Time // when it was looked up
	bound          map[string]bound
	read           time.Time
}

// bound is a Secret that a token is bound to.
type bound struct {
	mesh.MintedToken
	name     string
	account  string // whose token it is
	envelope []byte // JSON; empty: minting was interrupted, nobody has this token
}

// give makes tokens for others, and lets those die that are to.
func (p *pass) give() {
	m := p.k.minter
	if m.bound == nil || p.now.Sub(m.read) > reread {
		if err := m.load(p.ctx, p.now); err != nil {
			p.fail(err)
			return
		}
	}
	var all []mesh.MintedToken
	for name, b := range m.bound {
		if len(b.envelope) > 0 {
			all = append(all, b.MintedToken)
		} else if err := m.drop(p.ctx, name); err != nil {
			p.fail(err)
		}
	}
	for _, t := range tokens.Dead(p.d, all, p.now) {
		if err := m.drop(p.ctx, boundName(t.Peer, t.Generation)); err != nil {
			p.fail(err)
			continue
		}
		p.k.cfg.Log.Info("token revoked", "peer", t.Peer, "generation", t.Generation)
	}
	if p.d != nil {
		for _, peer := range p.d.Peers {
			if peer.Mint {
				p.mint(peer)
			}
		}
	}
	p.post()
	for _, b := range m.bound {
		p.minted = append(p.minted, b.MintedToken)
	}
}

// mint makes the next token for a peer if it is time.
func (p *pass) mint(peer mesh.TokenPeer) {
	m, newest := p.k.minter, p.k.minter.newest(peer.Cluster)
	sign, err := p.k.memory.pinned(p.ctx, peer)
	due := tokens.DueAt(p.k.cfg.Cluster, p.d, peer, newest.MintedToken)
	switch {
	case err != nil:
		p.refuse(peer.Cluster, err.Error())
		return
	case sign == nil || peer.Key == nil || peer.ReadsSecrets == nil:
		return // its agent has not said its key yet, or has not seen its istiods
	case due.After(p.now) && newest.account == accountFor(peer):
		p.within(due.Sub(p.now))
		return
	}
	if err := m.address(p.ctx, p.now); err != nil {
		p.refuse(peer.Cluster, err.Error())
		return
	}
	b, err := m.make(p.ctx, p.k.memory.keys, p.d, peer, tokens.NextGeneration(newest.Generation, p.now), p.now)
	if err != nil {
		p.refuse(peer.Cluster, explainMint(err, p.k.cfg.Cluster, peer))
		return
	}
	p.k.cfg.Log.Info("token made", "peer", peer.Cluster, "generation", b.Generation, "expires", b.Expires)
}

// refuse notes why a peer gets no token.
func (p *pass) refuse(c mesh.ClusterName, why string) {
	if p.unminted == nil {
		p.unminted = map[mesh.ClusterName]string{}
	}
	p.unminted[c] = why
	p.within(retryIn)
}

// explainMint says what to do.
func explainMint(err error, self mesh.ClusterName, peer mesh.TokenPeer) string {
	if accountFor(peer) == SecretsReader && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err)) {
		return fmt.Sprintf("istiods of %s sync only with a token that may list every Secret of %s, the key of its CA among them, and this is not allowed. "+
			"Either set PILOT_ENABLE_REMOTE_CREDENTIALS_CONTROLLER=false on the istiods of %s (1.31 and later; istio#59845), or allow it with glooAgent.remoteSecrets.readSecrets=true on %s",
			peer.Cluster, self, peer.Cluster, self)
	}
	return explain(err)
}

// post says the newest envelope of each peer upward.
func (p *pass) post() {
	m, source := p.k.minter, p.k.cfg.Source
	newest := map[mesh.ClusterName]bound{}
	for _, b := range m.bound {
		if len(b.envelope) > 0 && b.Generation > newest[b.Peer].Generation {
			newest[b.Peer] = b
		}
	}
	for c, b := range newest {
		if p.k.sent[c] == b.Generation {
			continue
		}
		if err := source.Set(synclog.Key{Type: mesh.ItemTokenEnvelope, Name: string(c)}, b.envelope); err != nil {
			p.fail(fmt.Errorf("envelope for %s: %w", c, err))
			continue
		}
		p.k.sent[c] = b.Generation
	}
	maps.DeleteFunc(p.k.sent, func(c mesh.ClusterName, _ mesh.TokenGeneration) bool {
		if _, there := newest[c]; there {
			return false
		}
		source.Delete(synclog.Key{Type: mesh.ItemTokenEnvelope, Name: string(c)})
		return true
	})
}

func boundName(c mesh.ClusterName, g mesh.TokenGeneration) string {
	return "for-" + string(c) + "-" + strconv.FormatInt(int64(g), 10)
}

// load reads what there is. Everything in Namespace that says so of itself is ours: nobody else has business there.
func (m *minter) load(ctx context.Context, now time.Time) error {
	list, err := m.own.List(ctx, metav1.ListOptions{LabelSelector: mesh.OwnerLabel + "=" + mesh.OwnerValue})
	if err != nil {
		return fmt.Errorf("list Secrets of namespace %s: %w", m.cfg.Namespace, err)
	}
	out := map[string]bound{}
	for i := range list.Items {
		u := &list.Items[i]
		a := u.GetAnnotations()
		if a[notePeer] == "" {
			continue
		}
		data, err := dataOf(u)
		if err != nil {
			return err
		}
		out[u.GetName()] = bound{name: u.GetName(), account: a[noteAccount], envelope: data[envelopeKey], MintedToken: mesh.MintedToken{
			Peer: mesh.ClusterName(a[notePeer]), Generation: generation(a), Issued: when(a[noteIssued]), Expires: when(a[noteExpires]),
		}}
	}
	m.bound, m.read = out, now
	return nil
}

// accountFor is whose token a peer gets.
func accountFor(peer mesh.TokenPeer) string {
	if peer.ReadsSecrets != nil && *peer.ReadsSecrets {
		return SecretsReader
	}
	return Reader
}

func generation(annotations map[string]string) mesh.TokenGeneration {
	n, _ := strconv.ParseInt(annotations[noteGeneration], 10, 64)
	return mesh.TokenGeneration(n)
}

func when(s string) time.Time {
	t, _ := time.Parse(time.RFC3339, s)
	return t
}

func (m *minter) newest(c mesh.ClusterName) bound {
	var out bound
	for _, b := range m.bound {
		if b.Peer == c && b.Generation > out.Generation {
			out = b
		}
	}
	return out
}

// drop kills a token: the API server refuses it from then on, save that it remembers for up to 10 s that it has accepted one.
func (m *minter) drop(ctx context.Context, name string) error {
	if err := remove(ctx, m.own, name); err != nil {
		return err
	}
	delete(m.bound, name)
	return nil
}

// make makes a token and seals it. First comes the Secret that it is bound to, then the token, then the envelope: an interruption leaves nothing that anybody could use.
func (m *minter) make(ctx context.Context, keys *tokens.Keys, d *mesh.TokenDirective, peer mesh.TokenPeer, g mesh.TokenGeneration, now time.Time) (b bound, err error) {
	b = bound{name: boundName(peer.Cluster, g), account: accountFor(peer), MintedToken: mesh.MintedToken{Peer: peer.Cluster, Generation: g, Issued: now.UTC().Truncate(time.Second)}}
	u := newSecret(m.cfg.Namespace, b.name, map[string]string{notePeer: string(peer.Cluster), noteGeneration: strconv.FormatInt(int64(g), 10), noteIssued: b.Issued.Format(time.RFC3339), noteAccount: b.account})
	if u, err = m.own.Create(ctx, u, metav1.CreateOptions{FieldManager: mesh.FieldManager}); err != nil {
		return b, fmt.Errorf("make Secret %s/%s: %w", m.cfg.Namespace, b.name, err)
	}
	defer func() {
		if err != nil {
			b.envelope = nil
			m.bound[b.name] = b // the next round removes it
		}
	}()
	token, expires, err := m.request(ctx, b.account, u, d.Lifetime)
	if err != nil {
		return b, err
	}
	b.Expires = expires
	e, err := keys.Seal(mesh.TokenEnvelope{From: m.cfg.Cluster, To: peer.Cluster, Generation: g, Issued: b.Issued, Expires: expires}, *peer.Key,
		mesh.TokenCredential{Server: m.server, CA: m.cfg.CA, Token: token})
	if err != nil {
		return b, err
	}
	if b.envelope, err = json.Marshal(e); err != nil {
		return b, err
	}
	a := u.GetAnnotations()
	a[noteExpires] = e.Expires.Format(time.RFC3339)
	u.SetAnnotations(a)
	fill(u, map[string][]byte{envelopeKey: b.envelope})
	if _, err = m.own.Update(ctx, u, metav1.UpdateOptions{FieldManager: mesh.FieldManager}); err != nil {
		return b, fmt.Errorf("store the envelope in Secret %s/%s: %w", m.cfg.Namespace, b.name, err)
	}
	m.bound[b.name] = b
	return b, nil
}

// request asks the API server for a token of one of our readers, bound to a Secret.
func (m *minter) request(ctx context.Context, account string, to *unstructured.Unstructured, seconds int64) (string, time.Time, error) {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": map[string]any{"name": account},
		"spec": map[string]any{
			"expirationSeconds": seconds,
			"boundObjectRef":    map[string]any{"apiVersion": "v1", "kind": "Secret", "name": to.GetName(), "uid": string(to.GetUID())},
		},
	}}
	accounts := m.cfg.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).Namespace(m.cfg.Namespace)
	u, err := accounts.Create(ctx, u, metav1.CreateOptions{}, "token")
	if err != nil {
		return "", time.Time{}, fmt.Errorf("token for ServiceAccount %s/%s: %w", m.cfg.Namespace, account, err)
	}
	token, _, _ := unstructured.NestedString(u.Object, "status", "token")
	until, _, _ := unstructured.NestedString(u.Object, "status", "expirationTimestamp")
	if expires := when(until); token != "" && !expires.IsZero() {
		return token, expires, nil
	}
	return "", time.Time{}, fmt.Errorf("token for ServiceAccount %s/%s: the API server gave none", m.cfg.Namespace, account)
}

// address finds out how others reach this API server.
func (m *minter) address(ctx context.Context, now time.Time) error {
	if m.server != "" && now.Sub(m.addressed) < reaccount {
		return nil
	}
	if m.cfg.Server != "" {
		m.server, m.source, m.addressed = m.cfg.Server, "glooAgent.remoteSecrets.apiServer", now
		return nil
	}
	slice, err := m.cfg.Client.Resource(schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}).Namespace("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("the address of this cluster's API server is not known (set glooAgent.remoteSecrets.apiServer to its URL as other clusters reach it): %w", err)
	}
	server, err := advertised(slice)
	if err != nil {
		return err
	}
	m.server, m.source, m.addressed = server, "EndpointSlice default/kubernetes", now
	return nil
}

// advertised is the URL of the first address that API servers advertise.
func advertised(slice *unstructured.Unstructured) (string, error) {
	endpoints, _, _ := unstructured.NestedSlice(slice.Object, "endpoints")
	ports, _, _ := unstructured.NestedSlice(slice.Object, "ports")
	var hosts []string
	for _, e := range endpoints {
		e, _ := e.(map[string]any)
		all, _, _ := unstructured.NestedStringSlice(e, "addresses")
		hosts = append(hosts, all...)
	}
	slices.SortFunc(hosts, func(a, b string) int { return bytes.Compare(net.ParseIP(a), net.ParseIP(b)) })
	for _, port := range ports {
		port, _ := port.(map[string]any)
		if n, ok := port["port"].(int64); ok && port["name"] == "https" && len(hosts) > 0 {
			u := url.URL{Scheme: "https", Host: net.JoinHostPort(hosts[0], strconv.FormatInt(n, 10))}
			return u.String(), nil
		}
	}
	return "", errors.New("this cluster's API servers advertise no address (EndpointSlice default/kubernetes): set glooAgent.remoteSecrets.apiServer to its URL as other clusters reach it")
}
