// Package state gathers everything the server knows into one immutable mesh.Snapshot. It is the only reader of registered clusters in the server.
//
// In: the cache of KubernetesClusters of the admin namespace, and what agents reported (Observe). Out: Take: a Snapshot, with the objects it was made of.
// It must not write, decide, or hand out anything that it changes afterwards.
package state

import (
	"context"
	"encoding/json"
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
	// Invalid says what is wrong with a cluster, empty for nothing. The webhook refuses such objects; this is for those that came past it.
	Invalid func(*adminv2.KubernetesCluster) string
	Log     *slog.Logger
}

// State keeps the inventories, decoded.
type State struct {
	cfg Config

	mu          sync.Mutex
	inventories map[mesh.ClusterName]*mesh.Inventory
}

// New returns a State.
func New(cfg Config) *State {
	return &State{cfg: cfg, inventories: map[mesh.ClusterName]*mesh.Inventory{}}
}

// Observe replaces what is known of a cluster. Items that can't be decoded are logged and left out: one bad item must not hide the others.
func (s *State) Observe(c mesh.ClusterName, items iter.Seq2[mesh.ItemKey, []byte], complete bool) {
	inv := &mesh.Inventory{Complete: complete, Outcomes: map[mesh.Ref]mesh.Outcome{}}
	for key, value := range items {
		if err := decode(inv, key, value); err != nil {
			s.cfg.Log.Warn("item of an inventory left out", "cluster", c, "type", key.Type, "name", key.Name, "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inventories[c] = inv
}

// Forget drops what a deregistered cluster reported.
func (s *State) Forget(c mesh.ClusterName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inventories, c)
}

func decode(inv *mesh.Inventory, key mesh.ItemKey, value []byte) error {
	switch key.Type {
	case mesh.ItemCluster:
		return json.Unmarshal(value, &inv.Info)
	case mesh.ItemOutcome:
		ref, ok := mesh.ParseRef(key.Name)
		if !ok {
			return fmt.Errorf("outcome %q: want group/version/kind/namespace/name", key.Name)
		}
		var o mesh.Outcome
		if err := json.Unmarshal(value, &o); err != nil {
			return err
		}
		inv.Outcomes[ref] = o
	}
	return nil // types of a newer agent, or not needed yet
}

// Take returns the Snapshot of this moment, and the KubernetesClusters it was made of, which must not be changed.
func (s *State) Take(ctx context.Context) (*mesh.Snapshot, map[mesh.ClusterName]*adminv2.KubernetesCluster, error) {
	var list adminv2.KubernetesClusterList
	if err := s.cfg.Cache.List(ctx, &list, client.InNamespace(s.cfg.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, nil, fmt.Errorf("list KubernetesClusters: %w", err)
	}
	snap := &mesh.Snapshot{ServerVersion: s.cfg.ServerVersion, ManagementCluster: s.cfg.ManagementCluster, AdminNamespace: s.cfg.Namespace}
	sources := make(map[mesh.ClusterName]*adminv2.KubernetesCluster, len(list.Items))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range list.Items {
		kc := &list.Items[i]
		if kc.DeletionTimestamp != nil {
			continue
		}
		c := s.cluster(kc)
		snap.Clusters = append(snap.Clusters, c)
		sources[c.Name] = kc
	}
	slices.SortFunc(snap.Clusters, func(a, b mesh.Cluster) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return snap, sources, nil
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
		Source:        mesh.Ref{Group: gv.Group, Version: gv.Version, Kind: "KubernetesCluster", Namespace: kc.Namespace, Name: kc.Name},
		ClusterDomain: kc.Spec.ClusterDomain, SkipWarming: kc.Spec.SkipWarming,
		RegisteredBy: kc.Annotations[adminv2.AnnotationRegisteredBy], RegisteredAt: at.UTC(),
		UID: mesh.ClusterUID(kc.Status.ClusterUID), Invalid: s.cfg.Invalid(kc), Inventory: s.inventories[name],
	}
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
