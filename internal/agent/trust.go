package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ambitmesh.dev/ambit/internal/cacerts"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/probe"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// trust joins the keeper of istiod's CA with the probes: the directive goes to the keeper, what it has in force to the probes, what these find back to the keeper, and both together to
// the management server as one item.
type trust struct {
	source *synclog.Source
	keeper *cacerts.Keeper
	prober *probe.Prober // nil: probes are off
	log    *slog.Logger

	mu   sync.Mutex
	seen mesh.TrustObservation // the last round of probes
	said []byte                // the last observation sent, JSON
}

func newTrust(cfg Config, kube *cluster, source *synclog.Source, log *slog.Logger) *trust {
	t := &trust{source: source, log: log}
	t.keeper = cacerts.New(cacerts.Config{
		Client: kube.client, IstioNamespace: cfg.IstioNamespace, Cluster: cfg.Cluster, Source: source, Changed: t.changed, Log: log.With("stage", "cacerts"),
	})
	if cfg.IstioTokenFile != "" {
		t.prober = probe.New(probe.Config{
			Client: kube.client, IstioNamespace: cfg.IstioNamespace, Token: func() (string, error) { return readToken(cfg.IstioTokenFile) },
			Directed: t.directed, Publish: t.observed, Log: log.With("stage", "probe"),
		})
	}
	return t
}

// desired takes the directive out of what the management server wants.
func (t *trust) desired(c synclog.Changes) {
	key := synclog.Key{Type: mesh.ItemTrust, Name: mesh.ItemTrust}
	if raw, ok := c.Set[key]; ok {
		t.keeper.Direct(raw)
	} else if slices.Contains(c.Deleted, key) {
		t.keeper.Direct(nil)
	}
}

// directed is what probes are measured by.
func (t *trust) directed() probe.Directed {
	s := t.keeper.State()
	return probe.Directed{Applied: s.Applied, Since: s.Since, Signer: s.Signer, Roots: s.Roots, Known: s.Known}
}

// changed is told by the keeper that things are otherwise now.
func (t *trust) changed() {
	t.report()
	if t.prober != nil {
		t.prober.Kick()
	}
}

// observed is told by the probes what they found.
func (t *trust) observed(o mesh.TrustObservation, began time.Time) {
	t.mu.Lock()
	t.seen = o
	t.mu.Unlock()
	t.keeper.Observed(o, began)
	t.report()
}

// report sends the observation; the Source drops an unchanged one.
func (t *trust) report() {
	t.mu.Lock()
	defer t.mu.Unlock()
	o, s := t.seen, t.keeper.State()
	o.Secret, o.Slots, o.Restarted = s.Secret, s.Slots, s.Restarted
	o.Problems = slices.Concat(o.Problems, s.Problems)
	if t.prober == nil {
		o.Problems = append(o.Problems, "nothing is probed: the agent runs without --istio-token-file, which the chart sets; what istiod and ztunnel trust is not known")
	}
	slices.Sort(o.Problems)
	o.Certificates = maps.Clone(o.Certificates)
	for _, c := range s.Mentioned {
		if o.Certificates == nil {
			o.Certificates = map[mesh.Fingerprint][]byte{}
		}
		o.Certificates[mesh.FingerprintOf(c.Raw)] = c.Raw
	}
	raw, err := json.Marshal(o)
	if err == nil {
		t.said = raw
		err = t.source.Set(synclog.Key{Type: mesh.ItemTrust, Name: mesh.ItemTrust}, raw)
	}
	if err != nil {
		t.log.Error("the state of trust can't be reported", "error", err)
	}
}

// last is the last observation sent, JSON.
func (t *trust) last() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.said
}

// run runs the probes, if there are any.
func (t *trust) run(ctx context.Context) error {
	if t.prober == nil {
		return nil
	}
	return t.prober.Run(ctx)
}

// readToken reads the projected token of our service account, by which istiod knows us.
func readToken(file string) (string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("no token to ask istiod with (the chart projects it): %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", errors.New("the token to ask istiod with is empty: " + file)
	}
	return token, nil
}
