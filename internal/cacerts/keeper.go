package cacerts

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// Secrets of istiod's namespace.
const (
	// CACertsName is istiod's plugged-in CA.
	CACertsName = "cacerts"
	// KeysName is ours: the keys of all slots. It lies beside cacerts, since whoever may read Secrets there has a key of the same worth already, and since it survives the agent's namespace.
	KeysName = "gloo-mesh-cacerts-keys"
	// SelfSignedName is where istiod keeps a CA that it made for itself.
	SelfSignedName = "istio-ca-secret"
)

// Config is what New needs.
type Config struct {
	Client         dynamic.Interface
	IstioNamespace string
	Cluster        mesh.ClusterName
	Source         *synclog.Source // gets the certificate requests
	// Changed is called when State has changed.
	Changed func()
	Log     *slog.Logger
}

// State is how far things are. It is a copy.
type State struct {
	// Applied is the fingerprint of the directive in force, zero: none; Since is when it came into force.
	Applied mesh.Fingerprint
	Since   time.Time
	// Signer and Roots are what istiod should sign with and hand out once cacerts is as directed; Signer is zero before.
	Signer mesh.Fingerprint
	Roots  []*x509.Certificate
	// Known are the certificates in cacerts and in the directive.
	Known []*x509.Certificate
	// Secret, Slots, Restarted and Problems are parts of the observation.
	Secret    *mesh.CACerts
	Slots     []mesh.Slot
	Restarted mesh.RestartState
	Problems  []string
	// Mentioned are the certificates that Secret and Slots speak of.
	Mentioned []*x509.Certificate
}

// Keeper keeps cacerts. New allocates, Run works.
type Keeper struct {
	cfg     Config
	secrets dynamic.ResourceInterface
	wake    chan struct{}

	mu       sync.Mutex
	d        *directive
	refused  string // why the last directive is not in force; empty: it is
	observed mesh.TrustObservation
	began    time.Time // of the round that observed belongs to
	state    State

	// Of Run alone:
	asked       map[string]bool  // requests that the Source holds, by slot
	overwritten mesh.Fingerprint // the directive for which somebody else's content was overwritten
	wrote       bool             // cacerts was written or found ours in this life
	remade      time.Time        // when a deleted cacerts was last made anew
	memory      memory
}

const (
	pollRestart = 2 * time.Second // while a restart is under way
	retry       = 10 * time.Second
	idle        = 10 * time.Minute // in case that a watch missed something
	remakeEvery = 30 * time.Second // a cacerts that somebody keeps deleting
	callTime    = 30 * time.Second
)

// New allocates a Keeper.
func New(cfg Config) *Keeper {
	return &Keeper{
		cfg: cfg, secrets: cfg.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(cfg.IstioNamespace),
		wake: make(chan struct{}, 1), asked: map[string]bool{}, memory: memory{rolled: map[string]time.Time{}, restarted: map[string]string{}},
	}
}

// Direct takes a directive (its JSON), or with nil takes it back; it returns at once. One that makes no sense is reported, and the one before stays in force.
func (k *Keeper) Direct(raw []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refused = ""
	if raw == nil {
		k.d = nil
		k.poke()
		return
	}
	if k.d != nil && k.d.applied == mesh.FingerprintOf(raw) {
		return
	}
	d, err := readDirective(raw, time.Now())
	if err != nil {
		k.refused = "the management server's trust directive makes no sense, so it is not followed: " + err.Error()
		k.poke()
		return
	}
	k.d = d
	k.poke()
}

// Observed takes what a round of probes found, and when it began.
func (k *Keeper) Observed(o mesh.TrustObservation, began time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.observed, k.began = o, began
	k.poke()
}

// State is how far things are.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.state
	s.Problems = slices.Clone(s.Problems)
	if k.refused != "" {
		s.Problems = append(s.Problems, k.refused)
	}
	return s
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends; it returns nil then.
func (k *Keeper) Run(ctx context.Context) error {
	follow.AwaitNamespace(ctx, k.cfg.Client, k.cfg.IstioNamespace)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, name := range []string{CACertsName, KeysName} { // by name: the agent's Role needs no right to any other
		wg.Go(func() {
			follow.Run(ctx, follow.Config{Client: k.secrets, Name: "secret " + name, Fields: "metadata.name=" + name, Log: k.cfg.Log}, watcher{k})
		})
	}
	for {
		wait := k.reconcile(ctx)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-k.wake:
			t.Stop()
		case <-t.C:
		}
	}
}

// watcher wakes the Keeper.
type watcher struct{ k *Keeper }

// Set tells of a Secret that is there.
func (w watcher) Set(*unstructured.Unstructured) { w.k.poke() }

// Gone tells of one that is not there any more.
func (w watcher) Gone(*unstructured.Unstructured) { w.k.poke() }

// Listed tells that all were listed: one may have gone meanwhile.
func (w watcher) Listed(map[string]bool) { w.k.poke() }

// reconcile gathers, decides and acts once; it returns when to come back though nothing happens.
func (k *Keeper) reconcile(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, callTime+callTime)
	defer cancel()
	k.mu.Lock()
	p := &pass{k: k, ctx: ctx, now: time.Now(), d: k.d, observed: k.observed, began: k.began, wait: idle}
	k.mu.Unlock()
	p.run()
	if ctx.Err() != nil && p.wait > retry {
		p.wait = retry
	}
	k.publish(p.state)
	return p.wait
}

// publish makes a state known if it differs.
func (k *Keeper) publish(s State) {
	k.mu.Lock()
	same := equalStates(k.state, s)
	k.state = s
	k.mu.Unlock()
	if !same {
		k.cfg.Changed()
	}
}

// equalStates compares what a State says.
func equalStates(a, b State) bool {
	type comparable struct {
		Applied, Signer         mesh.Fingerprint
		Roots, Known, Mentioned []mesh.Fingerprint
		Secret                  *mesh.CACerts
		Slots                   []mesh.Slot
		Restarted               mesh.RestartState
		Problems                []string
	}
	flat := func(s State) string {
		raw, err := json.Marshal(comparable{s.Applied, s.Signer, fingerprints(s.Roots), fingerprints(s.Known), fingerprints(s.Mentioned), s.Secret, s.Slots, s.Restarted, s.Problems})
		if err != nil {
			return err.Error()
		}
		return string(raw)
	}
	return flat(a) == flat(b)
}

// request publishes what is to be certified, and takes back what no longer is.
func (k *Keeper) request(orders []mesh.IntermediateOrder, have map[string]slot) {
	want := map[string]bool{}
	for _, o := range orders {
		s, ok := have[o.ID]
		if !ok || len(s.csr) == 0 {
			continue
		}
		raw, err := json.Marshal(mesh.IntermediateRequest{ID: o.ID, CSR: s.csr})
		if err == nil {
			err = k.cfg.Source.Set(synclog.Key{Type: mesh.ItemTrustRequest, Name: o.ID}, raw)
		}
		if err != nil {
			k.cfg.Log.Error("a certificate request can't be sent", "intermediate", o.ID, "error", err)
			continue
		}
		want[o.ID] = true
	}
	for name := range k.asked {
		if !want[name] {
			k.cfg.Source.Delete(synclog.Key{Type: mesh.ItemTrustRequest, Name: name})
		}
	}
	k.asked = want
}
