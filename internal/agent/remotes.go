package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/remotesecrets"
	"ambitmesh.dev/ambit/internal/segments"
)

// deregisteredAfter is for how long the management server must have said that this cluster is not registered before its tokens and remote secrets go.
const deregisteredAfter = 2 * time.Second

// remotes joins the keepers of remote secrets and of Segments with the relay: what a cluster has of its mesh ends when it is deregistered.
type remotes struct {
	keeper   *remotesecrets.Keeper // nil: off
	segments *segments.Keeper

	mu   sync.Mutex
	gone time.Time // when the management server first said so; zero: it did not, since the last session
}

func newRemotes(cfg Config, kube *cluster, source *synclog.Source, shared *segments.Keeper, log *slog.Logger) *remotes {
	if !cfg.RemoteSecrets {
		return &remotes{segments: shared}
	}
	return &remotes{segments: shared, keeper: remotesecrets.New(remotesecrets.Config{
		Client: kube.client, Cluster: cfg.Cluster, Namespace: mesh.TokensNamespace(cfg.Namespace), IstioNamespace: cfg.IstioNamespace, Server: cfg.APIServer, CA: kube.ca, Source: source, Log: log.With("stage", "remote secrets"),
	})}
}

// desired takes what the management server wants.
func (r *remotes) desired(c synclog.Changes) {
	r.mu.Lock()
	r.gone = time.Time{}
	r.mu.Unlock()
	if r.keeper != nil {
		r.keeper.Desired(c)
	}
}

// refused is told that the management server sent us away. Twice, with time between, that this cluster is not registered, or that what it shows was revoked with its registration: then it
// is no peer of anybody.
func (r *remotes) refused(why *relay.Refusal) {
	if why.Reason != relayv1.Goodbye_NOT_REGISTERED && why.Reason != relayv1.Goodbye_REVOKED {
		return
	}
	now := time.Now()
	r.mu.Lock()
	if r.gone.IsZero() {
		r.gone = now
	}
	sure := now.Sub(r.gone) >= deregisteredAfter
	r.mu.Unlock()
	if sure {
		r.segments.Farewell()
		if r.keeper != nil {
			r.keeper.Farewell()
		}
	}
}

func (r *remotes) run(ctx context.Context) error {
	if r.keeper == nil {
		return nil
	}
	return r.keeper.Run(ctx)
}

// last is the last report, JSON.
func (r *remotes) last() []byte {
	if r == nil || r.keeper == nil {
		return []byte("{}")
	}
	return r.keeper.Last()
}

func (r *remotes) stats() remotesecrets.Stats {
	if r == nil || r.keeper == nil {
		return remotesecrets.Stats{}
	}
	return r.keeper.Stats()
}
