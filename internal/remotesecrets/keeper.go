package remotesecrets

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/tokens"
)

// Names of what the chart installs. The readers are in the namespace mesh.TokensNamespace, with the keys and what tokens are bound to, and nothing else.
const (
	Reader        = "istio-reader"         // reads what istiod needs, and no Secret
	SecretsReader = "istio-reader-secrets" //nolint:gosec // a name; there only where readSecrets is on: reads every Secret as well, as istiods do that can't do without
	Observer      = "gloo-mesh-observer"   // in istiod's namespace, without rights: istiod tells its clusters only to those
	keysName      = "gloo-mesh-agent-token"
)

// Config is what New needs.
type Config struct {
	Client         dynamic.Interface
	Cluster        mesh.ClusterName
	Namespace      string // mesh.TokensNamespace of the agent's
	IstioNamespace string
	// Server is the URL of this cluster's API server as other clusters reach it; empty: found out.
	Server string
	// CA verifies it, PEM.
	CA     []byte
	Source *synclog.Source
	// Probe asks an API server whether it takes a credential; nil: over the network.
	Probe func(ctx context.Context, c mesh.TokenCredential) error
	// Istiods looks at the istiods; nil: the real ones.
	Istiods Istiods
	Log     *slog.Logger
}

const (
	soon      = 250 * time.Millisecond // between looks while something is under way
	seldom    = 5 * time.Second        // the same when it has been for long
	quiet     = 30 * time.Second       // between looks while all is well
	callTime  = 20 * time.Second
	retryIn   = 2 * time.Second
	settleFor = 10 * time.Second // what an istiod gets that does not tell whether it has seen the change
)

// Keeper keeps both sides. New allocates, Run works.
type Keeper struct {
	cfg     Config
	wake    chan struct{}
	secrets dynamic.ResourceInterface // of istiod's namespace
	own     dynamic.ResourceInterface // of Namespace

	mu        sync.Mutex
	directive *mesh.TokenDirective
	envelopes map[mesh.ClusterName]mesh.TokenEnvelope
	found     map[string]*remote // remote secrets that there are, by name
	listed    bool
	said      []byte
	stats     Stats

	// Of Run alone:
	memory  *memory
	minter  *minter
	watcher *observer
	taken   map[mesh.ClusterName]*taken
	sent    map[mesh.ClusterName]mesh.TokenGeneration
	sums    map[mesh.ClusterName][sha256.Size]byte // of the kubeconfig that should be in its secret
}

// Stats are for metrics: what this cluster's istiods have.
type Stats struct {
	Held, Unsynced int
	OldestIssued   time.Time // zero: none is held
	SoonestExpiry  time.Time
}

// New allocates a Keeper.
func New(cfg Config) *Keeper {
	if cfg.Probe == nil {
		cfg.Probe = probeCredential
	}
	k := &Keeper{
		cfg: cfg, wake: make(chan struct{}, 1),
		secrets:   cfg.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(cfg.IstioNamespace),
		own:       cfg.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(cfg.Namespace),
		envelopes: map[mesh.ClusterName]mesh.TokenEnvelope{}, found: map[string]*remote{}, taken: map[mesh.ClusterName]*taken{}, sent: map[mesh.ClusterName]mesh.TokenGeneration{},
		sums: map[mesh.ClusterName][sha256.Size]byte{},
	}
	if cfg.Istiods == nil {
		cfg.Istiods = newIstiods(cfg)
	}
	k.cfg = cfg
	k.minter = &minter{cfg: cfg, own: k.own}
	k.watcher = newObserver(cfg.Istiods)
	return k
}

// Desired takes what the management server wants: a directive and envelopes. It returns at once. What can't be read is of no consequence: what was in force stays.
func (k *Keeper) Desired(c synclog.Changes) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, raw := range c.Set {
		switch key.Type {
		case mesh.ItemTokens:
			d := &mesh.TokenDirective{}
			if err := json.Unmarshal(raw, d); err != nil || d.Lifetime <= 0 || d.RotateEvery <= 0 {
				k.cfg.Log.Error("the management server's directive about tokens makes no sense, so it is not followed", "error", err)
				continue
			}
			k.directive = d
			k.poke()
		case mesh.ItemTokenEnvelope:
			e, err := tokens.ParseEnvelope(raw)
			if err != nil || string(e.From) != key.Name {
				k.cfg.Log.Error("an envelope can't be read", "from", key.Name, "error", err)
				continue
			}
			k.envelopes[e.From] = e
			k.poke()
		}
	}
}

// Farewell is told that this cluster is deregistered: it has no peers any more.
func (k *Keeper) Farewell() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.directive != nil && len(k.directive.Peers) == 0 {
		return
	}
	k.cfg.Log.Info("this cluster was deregistered: its tokens and remote secrets go")
	k.directive = &mesh.TokenDirective{Lifetime: 1, RotateEvery: 1}
	k.poke()
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Stats tells how things are.
func (k *Keeper) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stats
}

// Run works until ctx ends; it returns nil then.
func (k *Keeper) Run(ctx context.Context) error {
	follow.AwaitNamespace(ctx, k.cfg.Client, k.cfg.IstioNamespace) // without it there is no istiod
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		follow.Run(ctx, follow.Config{Client: k.secrets, Name: "remote secrets", Labels: labelMulti + "=true", Log: k.cfg.Log}, sink{k})
	})
	for ctx.Err() == nil {
		t := time.NewTimer(k.round(ctx))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-k.wake:
			t.Stop()
		case <-t.C:
		}
	}
	return nil
}

// round gathers, acts and reports once; it returns when to come back.
func (k *Keeper) round(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	k.mu.Lock()
	p := &pass{k: k, ctx: ctx, now: time.Now(), d: k.directive, listed: k.listed, wait: quiet}
	p.found, p.envelopes = maps.Clone(k.found), maps.Clone(k.envelopes)
	k.mu.Unlock()
	if k.memory == nil {
		m, err := loadMemory(ctx, k.own, k.cfg.Namespace, k.cfg.Cluster)
		if err != nil {
			p.fail(err)
			k.report(p)
			return retryIn
		}
		k.memory = m
	}
	p.give()
	p.take()
	k.report(p)
	return p.wait
}

// pass is one round.
type pass struct {
	k         *Keeper
	ctx       context.Context
	now       time.Time
	d         *mesh.TokenDirective
	listed    bool
	found     map[string]*remote
	envelopes map[mesh.ClusterName]mesh.TokenEnvelope
	wait      time.Duration
	minted    []mesh.MintedToken
	held      []mesh.HeldToken
	problems  []string
	unminted  map[mesh.ClusterName]string
	secretful *bool // istiods sync only with a token that may list Secrets; nil: not known
}

func (p *pass) within(d time.Duration) { p.wait = min(p.wait, max(d, soon)) }

// fail notes what went wrong, and comes back.
func (p *pass) fail(err error) {
	if p.ctx.Err() == nil || len(p.problems) == 0 {
		p.problems = append(p.problems, explain(err))
	}
	p.within(retryIn)
}

// explain says what to do about what an API server answered.
func explain(err error) string {
	switch {
	case apierrors.IsForbidden(err):
		return err.Error() + " (the chart's rights for remote secrets are missing: install it again after Istio, with glooAgent.remoteSecrets.enabled=true)"
	case apierrors.IsNotFound(err):
		return err.Error() + " (the agent's namespace for tokens and what is in it come with the chart: glooAgent.remoteSecrets.enabled=true)"
	}
	return err.Error()
}

// report tells the management server; the Source drops what is unchanged.
func (k *Keeper) report(p *pass) {
	r := mesh.TokenReport{Minted: p.minted, Unminted: p.unminted, Held: p.held, ReadsSecrets: p.secretful, Problems: p.problems}
	if k.memory != nil {
		r.Key = k.memory.keys.Public(k.cfg.Cluster)
	}
	r.Server, r.ServerSource = k.minter.server, k.minter.source
	slices.SortFunc(r.Minted, func(a, b mesh.MintedToken) int {
		if c := strings.Compare(string(a.Peer), string(b.Peer)); c != 0 {
			return c
		}
		return int(a.Generation - b.Generation)
	})
	slices.SortFunc(r.Held, func(a, b mesh.HeldToken) int { return strings.Compare(string(a.Peer), string(b.Peer)) })
	slices.Sort(r.Problems)
	r.Problems = slices.Compact(r.Problems)
	raw, err := json.Marshal(r)
	if err == nil {
		err = k.cfg.Source.Set(synclog.Key{Type: mesh.ItemTokens, Name: mesh.ItemTokens}, raw)
	}
	if err != nil {
		k.cfg.Log.Error("the state of tokens can't be reported", "error", err)
	}
	s := Stats{}
	for _, h := range r.Held {
		if h.Generation == 0 {
			continue
		}
		s.Held++
		if h.Synced < h.Generation {
			s.Unsynced++
		}
		if s.OldestIssued.IsZero() || h.Issued.Before(s.OldestIssued) {
			s.OldestIssued = h.Issued
		}
		if s.SoonestExpiry.IsZero() || h.Expires.Before(s.SoonestExpiry) {
			s.SoonestExpiry = h.Expires
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.said, k.stats = raw, s
}

// Last is the last report, JSON; it holds no credential.
func (k *Keeper) Last() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.said
}

// sink takes up the remote secrets that there are.
type sink struct{ k *Keeper }

// Set tells of a remote secret.
func (s sink) Set(u *unstructured.Unstructured) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.k.found[u.GetName()] = readRemote(u)
	s.k.poke()
}

// Gone tells of one that is not there any more.
func (s sink) Gone(u *unstructured.Unstructured) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	delete(s.k.found, u.GetName())
	s.k.poke()
}

// Listed tells that all were listed.
func (s sink) Listed(present map[string]bool) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	for name := range s.k.found {
		if !present[s.k.cfg.IstioNamespace+"/"+name] {
			delete(s.k.found, name)
		}
	}
	s.k.listed = true
	s.k.poke()
}

// remove deletes what may be gone already.
func remove(ctx context.Context, client dynamic.ResourceInterface, name string) error {
	if err := client.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Secret %s: %w", name, err)
	}
	return nil
}
