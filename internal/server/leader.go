package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// renewEvery is how often the leader renews, and how often the others look.
const renewEvery = 5 * time.Second

// lead runs f once this process holds the Lease, and gives the Lease back when f has ended. The Lease lasts long (2 minutes by default), so that an API server that is away for
// a minute costs no leader; a leader that ends gives it back, one that is restarted in its Pod takes it back at once, and the Lease of a Pod that is gone is taken from it.
func lead(ctx context.Context, cfg *Config, rc *rest.Config, api client.Client, log *slog.Logger, f func(context.Context) error) error {
	if !cfg.LeaderElect {
		return f(ctx)
	}
	leases, err := coordinationclient.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	// The election must outlive f: the Lease is released when nothing is served any more.
	election, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	inner, stop := context.WithCancel(ctx)
	defer stop()
	elected := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: cfg.Namespace, Name: cfg.Lease}, Client: leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: cfg.Identity},
		},
		LeaseDuration: cfg.LeaseDuration, RenewDeadline: cfg.LeaseDuration * 5 / 6, RetryPeriod: min(renewEvery, cfg.LeaseDuration/8),
		ReleaseOnCancel: true, Name: cfg.Lease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(elected) },
			OnStoppedLeading: func() {},
			OnNewLeader:      func(id string) { log.Info("leader", "identity", id, "self", id == cfg.Identity) },
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); elector.Run(election) }()
	go evict(inner, cfg, api, log, elected)

	result := make(chan error, 1)
	go func() {
		select {
		case <-elected:
			result <- f(inner)
		case <-inner.Done():
			result <- nil
		}
	}()
	select {
	case err = <-result:
		release()
		<-ended
	case <-ended: // the API server was away for longer than the Lease allows, or somebody took it
		stop()
		err = errors.Join(fmt.Errorf("lost the Lease %s/%s: another replica may lead now; starting again as a standby", cfg.Namespace, cfg.Lease), <-result)
	}
	return err
}

// evict frees the Lease of a Pod that no longer exists, so that after the loss of a node nobody waits for it to run out.
func evict(ctx context.Context, cfg *Config, api client.Client, log *slog.Logger, elected <-chan struct{}) {
	if !cfg.InPod {
		return
	}
	for {
		if err := evictOnce(ctx, cfg, api, log); err != nil && ctx.Err() == nil {
			log.Debug("could not look after the Lease", "error", err)
		}
		select {
		case <-elected:
			return
		case <-ctx.Done():
			return
		case <-time.After(renewEvery):
		}
	}
}

func evictOnce(ctx context.Context, cfg *Config, api client.Client, log *slog.Logger) error {
	var lease coordinationv1.Lease
	if err := api.Get(ctx, client.ObjectKey{Namespace: cfg.Namespace, Name: cfg.Lease}, &lease); err != nil {
		return client.IgnoreNotFound(err)
	}
	holder := lease.Spec.HolderIdentity
	if holder == nil || *holder == "" || *holder == cfg.Identity {
		return nil
	}
	pod := metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Pod"}}
	err := api.Get(ctx, client.ObjectKey{Namespace: cfg.Namespace, Name: *holder}, &pod)
	if !apierrors.IsNotFound(err) {
		return err
	}
	log.Info("the leader's Pod is gone: freeing its Lease", "pod", *holder)
	lease.Spec.HolderIdentity = nil
	return api.Update(ctx, &lease) // carries the resourceVersion: a Lease taken meanwhile is left alone
}
