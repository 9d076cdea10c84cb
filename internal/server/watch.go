package server

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/admission"
	"ambitmesh.dev/ambit/internal/kube"
	"ambitmesh.dev/ambit/internal/relaysecrets"
)

// watcher keeps the objects the server needs in memory, and rings when one changes: what people write for the mesh whole, of Secrets, Namespaces and webhook
// configurations only the metadata.
type watcher struct {
	cache  cache.Cache
	log    *slog.Logger
	synced chan struct{}

	written                  bell                                          // a KubernetesCluster, or what sources take
	sources                  sources                                       // set before run
	told                     []toolscache.ResourceEventHandlerRegistration // of sources: they have been told of everything there is
	secretsLoad, secretsKeep bell
	webhookLoad, webhookKeep bell
	webhook                  bool
	relay                    []string // names of the relay's Secrets
}

// sources are told of every AccessPolicy, Workspace, WorkspaceSettings, PolicyOverride, RootTrustPolicy, RotationRequest, Segment and Namespace. They answer whether it matters.
type sources interface {
	Put(client.Object) bool
	Remove(client.Object) bool
}

func namespaceMeta() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Namespace"}}
}

func secretMeta() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Secret"}}
}

func webhookMetas() []*metav1.PartialObjectMetadata {
	v := admissionregistrationv1.SchemeGroupVersion.String()
	return []*metav1.PartialObjectMetadata{
		{TypeMeta: metav1.TypeMeta{APIVersion: v, Kind: "MutatingWebhookConfiguration"}},
		{TypeMeta: metav1.TypeMeta{APIVersion: v, Kind: "ValidatingWebhookConfiguration"}},
	}
}

func newWatcher(rc *rest.Config, scheme *runtime.Scheme, cfg *Config, log *slog.Logger) (*watcher, error) {
	own := map[string]cache.Config{cfg.Namespace: {}}
	by := map[client.Object]cache.ByObject{
		&adminv2.KubernetesCluster{}: {Namespaces: own},
		&adminv2.RootTrustPolicy{}:   {Namespaces: own},
		&adminv2.RotationRequest{}:   {Namespaces: own},
		// Helm's release Secrets are large and change with every upgrade
		secretMeta(): {Namespaces: own, Field: fields.OneTermNotEqualSelector("type", "helm.sh/release.v1")},
	}
	for _, m := range webhookMetas() {
		by[m] = cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", cfg.WebhookConfiguration)}
	}
	c, err := cache.New(rc, cache.Options{
		Scheme: scheme, Mapper: kube.Mapper(), ByObject: by, DefaultTransform: cache.TransformStripManagedFields(), ReaderFailOnMissingInformer: true,
	})
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return &watcher{
		cache: c, log: log, synced: make(chan struct{}), written: newBell(), secretsLoad: newBell(), secretsKeep: newBell(), webhookLoad: newBell(), webhookKeep: newBell(),
		webhook: cfg.WebhookAddress != off, relay: append(cfg.Secrets.All(), relaysecrets.Journal),
	}, nil
}

// run watches until ctx ends. An API server that is away delays it, at the start as later.
func (w *watcher) run(ctx context.Context) error {
	started := make(chan error, 1)
	go func() { started <- w.cache.Start(ctx) }()
	if err := persist(ctx, w.log, "watch the API server (are the CRDs of chart gloo-platform-crds installed?)", w.subscribe); err != nil {
		return <-started
	}
	if !w.cache.WaitForCacheSync(ctx) {
		if ctx.Err() == nil {
			return errNoSync
		}
		return <-started
	}
	for _, r := range w.told {
		if !toolscache.WaitForCacheSync(ctx.Done(), r.HasSynced) {
			return <-started
		}
	}
	close(w.synced)
	return <-started
}

func (w *watcher) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.synced:
		return nil
	}
}

func (w *watcher) subscribe(ctx context.Context) error {
	if err := w.subscribeSources(ctx); err != nil {
		return err
	}
	type subscription struct {
		object client.Object
		wants  func(name string) bool
		ring   []bell
	}
	webhookSecret := func(n string) bool { return n == admission.Secret }
	subs := []subscription{
		{&adminv2.KubernetesCluster{}, func(string) bool { return true }, []bell{w.written}},
		{secretMeta(), func(n string) bool { return slices.Contains(w.relay, n) }, []bell{w.secretsLoad, w.secretsKeep}},
	}
	if w.webhook {
		subs = append(subs, subscription{secretMeta(), webhookSecret, []bell{w.webhookLoad, w.webhookKeep}})
		for _, m := range webhookMetas() {
			subs = append(subs, subscription{m, func(string) bool { return true }, []bell{w.webhookKeep}})
		}
	}
	for _, s := range subs {
		informer, err := w.cache.GetInformer(ctx, s.object, cache.BlockUntilSynced(false))
		if err != nil {
			return err
		}
		event := func(o any) {
			if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if m, ok := o.(metav1.Object); !ok || s.wants(m.GetName()) {
				for _, b := range s.ring {
					b.ring()
				}
			}
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: event, DeleteFunc: event,
			UpdateFunc: func(before, now any) {
				if a, ok := before.(*adminv2.KubernetesCluster); ok && onlyStatus(a, now.(*adminv2.KubernetesCluster)) {
					return // our own writing: nothing new
				}
				event(now)
			},
		}); err != nil {
			return err
		}
	}
	return nil
}

// subscribeSources tells the sources of everything, and rings for what matters to them. It may be called again after an error.
func (w *watcher) subscribeSources(ctx context.Context) error {
	gone := func(o any) {
		if last, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = last.Obj
		}
		if o, ok := o.(client.Object); ok && w.sources.Remove(o) {
			w.written.ring()
		}
	}
	put := func(o any) {
		if o, ok := o.(client.Object); ok && w.sources.Put(o) {
			w.written.ring()
		}
	}
	kinds := []client.Object{
		&securityv2.AccessPolicy{}, &securityv2.PolicyOverride{}, &adminv2.Workspace{}, &adminv2.WorkspaceSettings{}, namespaceMeta(),
		&adminv2.RootTrustPolicy{}, &adminv2.RotationRequest{}, &networkingv2alpha1.Segment{},
	}
	for _, kind := range kinds[len(w.told):] {
		informer, err := w.cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err != nil {
			return err
		}
		told, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: put, UpdateFunc: func(_, now any) { put(now) }, DeleteFunc: gone})
		if err != nil {
			return err
		}
		w.told = append(w.told, told)
	}
	return nil
}

// onlyStatus says whether nothing differs but what this server writes itself. Somebody else's change of status is put right at the next look.
func onlyStatus(a, b *adminv2.KubernetesCluster) bool {
	return a.UID == b.UID && a.Generation == b.Generation && a.DeletionTimestamp.Equal(b.DeletionTimestamp) && a.Status.ClusterUID == b.Status.ClusterUID &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}
