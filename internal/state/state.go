// Package state gathers everything the server knows into one immutable mesh.Snapshot. It is the only reader of registered clusters in the server.
//
// In: the cache of KubernetesClusters of the admin namespace, what agents reported (Observe), and the other objects of the management cluster as they are written
// (Put, Remove). Out: Take: a Snapshot, with the objects it was made of. What has not changed is the same pointer from Snapshot to Snapshot, and costs nothing.
// It must not write, decide, or hand out anything that it changes afterwards.
package state

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// Config is what a State needs.
type Config struct {
	Cache             client.Reader // of KubernetesClusters in Namespace
	API               client.Reader // asks the API server
	Namespace         string
	ServerVersion     string
	ManagementCluster string
	Peering           bool // keep peers (featureGates.ConfigDistribution)
	// Invalid says what is wrong with a KubernetesCluster or an object that Put takes, empty for nothing. The webhook refuses
	// such objects; this is for those that came past it.
	Invalid func(client.Object) string
	Log     *slog.Logger
}

// State keeps the inventories, decoded, and what people wrote in the management cluster.
type State struct {
	cfg Config

	mu          sync.Mutex
	inventories map[mesh.ClusterName]*inventory
	models      models
	sources     *sources
}

// New returns a State.
func New(cfg Config) *State {
	return &State{cfg: cfg, inventories: map[mesh.ClusterName]*inventory{}, models: models{}, sources: newSources()}
}

// Change is what has become different in what an agent reports.
type Change struct {
	Set      iter.Seq2[mesh.ItemKey, []byte]
	Gone     iter.Seq[mesh.ItemKey]
	Complete bool // the whole has been received at least once
}

// Observe takes up a change, and says which outcomes of applies are concerned. Items that can't be decoded are logged and left out: one bad item must not hide
// the others. What is in the Snapshots handed out before stays as it is.
func (s *State) Observe(c mesh.ClusterName, ch Change) (outcomes []mesh.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inv := s.inventories[c]
	if inv == nil {
		inv = newInventory()
		s.inventories[c] = inv
	}
	return inv.observe(ch, s.models, func(key mesh.ItemKey, err error) {
		s.cfg.Log.Warn("item of an inventory left out", "cluster", c, "type", key.Type, "name", key.Name, "error", err)
	})
}

// Forget drops what a deregistered cluster reported.
func (s *State) Forget(c mesh.ClusterName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inventories, c)
}

// Sources are the objects a Snapshot was made of. They must not be changed.
type Sources struct {
	Clusters map[mesh.ClusterName]*adminv2.KubernetesCluster
	// Changed are the others that were written, be it only their status, since the Take before; Gone those that were deleted.
	Changed []mesh.Ref
	Gone    []mesh.Ref
	// Ended are the overrides that are over and still there; NextEnd is when the next one ends; zero: none.
	Ended   []mesh.Ref
	NextEnd time.Time
}

// Take returns the Snapshot of this moment, and what it was made of. For one caller at a time.
func (s *State) Take(ctx context.Context, now time.Time) (*mesh.Snapshot, Sources, error) {
	var list adminv2.KubernetesClusterList
	if err := s.cfg.Cache.List(ctx, &list, client.InNamespace(s.cfg.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, Sources{}, fmt.Errorf("list KubernetesClusters: %w", err)
	}
	snap := &mesh.Snapshot{ServerVersion: s.cfg.ServerVersion, ManagementCluster: s.cfg.ManagementCluster, AdminNamespace: s.cfg.Namespace, Peering: s.cfg.Peering}
	src := Sources{Clusters: make(map[mesh.ClusterName]*adminv2.KubernetesCluster, len(list.Items))}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range list.Items {
		kc := &list.Items[i]
		if kc.DeletionTimestamp != nil {
			continue
		}
		c := s.cluster(kc)
		snap.Clusters = append(snap.Clusters, c)
		src.Clusters[c.Name] = kc
	}
	slices.SortFunc(snap.Clusters, func(a, b mesh.Cluster) int { return strings.Compare(string(a.Name), string(b.Name)) })
	s.sources.take(snap, &src, now)
	return snap, src, nil
}

func (s *State) cluster(kc *adminv2.KubernetesCluster) mesh.Cluster {
	name := mesh.ClusterName(kc.Name)
	gv := adminv2.GroupVersion()
	at, err := time.Parse(time.RFC3339, kc.Annotations[adminv2.AnnotationRegisteredAt])
	if err != nil {
		at = kc.CreationTimestamp.Time
	}
	return mesh.Cluster{
		Name: name, SourceUID: string(kc.UID), Generation: kc.Generation, Labels: kc.Labels,
		Source:  mesh.Ref{Group: gv.Group, Version: gv.Version, Kind: "KubernetesCluster", Namespace: kc.Namespace, Name: kc.Name},
		Peering: peerSettings(kc, s.inventories[name]), ClusterDomain: kc.Spec.ClusterDomain, SkipWarming: kc.Spec.SkipWarming,
		RegisteredBy: kc.Annotations[adminv2.AnnotationRegisteredBy], RegisteredAt: at.UTC(),
		UID: mesh.ClusterUID(kc.Status.ClusterUID), Invalid: s.cfg.Invalid(kc), Inventory: s.inventories[name].snapshot(),
	}
}

// peerSettings are those of the annotations, with what status remembers of the gateway while the inventory does not tell.
func peerSettings(kc *adminv2.KubernetesCluster, inv *inventory) mesh.PeerSettings {
	s := mesh.PeerSettingsOf(kc.Annotations)
	if p := kc.Status.Peering; p != nil && (inv == nil || !inv.complete) {
		ns, name, _ := strings.Cut(p.Gateway, "/")
		s.Last = mesh.PeerEndpoint{
			Cluster: p.Cluster, Network: p.Network, Namespace: ns, Gateway: name, ServiceAccount: p.ServiceAccount, TrustDomain: mesh.TrustDomain(p.TrustDomain),
			Address: p.Address, HBONE: p.HBONEPort, XDS: p.XDSPort, Source: p.AddressSource,
		}
	}
	return s
}

// Find returns a registered cluster as the cache has it, or, with fresh, as the API server has it now (if it can be asked). nil: not registered.
func (s *State) Find(ctx context.Context, c mesh.ClusterName, fresh bool) (*adminv2.KubernetesCluster, error) {
	var kc adminv2.KubernetesCluster
	key := client.ObjectKey{Namespace: s.cfg.Namespace, Name: string(c)}
	var err error
	if fresh {
		err = s.cfg.API.Get(ctx, key, &kc)
	}
	if !fresh || err != nil && !errors.IsNotFound(err) {
		if cached := s.cfg.Cache.Get(ctx, key, &kc); cached == nil || !fresh {
			err = cached
		}
	}
	if errors.IsNotFound(err) || err == nil && kc.DeletionTimestamp != nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read KubernetesCluster %q: %w", c, err)
	}
	return &kc, nil
}

// NameOf finds the registered cluster with this kube-system UID.
func (s *State) NameOf(ctx context.Context, uid mesh.ClusterUID) (mesh.ClusterName, bool) {
	var list adminv2.KubernetesClusterList
	if err := s.cfg.Cache.List(ctx, &list, client.InNamespace(s.cfg.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return "", false
	}
	for i := range list.Items {
		if list.Items[i].Status.ClusterUID == string(uid) && list.Items[i].DeletionTimestamp == nil {
			return mesh.ClusterName(list.Items[i].Name), true
		}
	}
	return "", false
}
