package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"
)

// provider runs the Pods of one node. It is what virtual-kubelet's Pod controller calls (node.PodLifecycleHandler and
// node.PodNotifier).
type provider struct {
	cfg    Config
	log    *slog.Logger
	client kubernetes.Interface
	events record.EventRecorder
	images images
	pool   *addressPool
	source source
	caches caches
	mesh   *ambient // set once, before any Pod

	ctx context.Context //nolint:containedctx // the node's own life, which bounds that of every Pod

	mu     sync.Mutex
	pods   map[types.UID]*pod
	notify func(*corev1.Pod)
	wg     sync.WaitGroup
}

// caches are the listers of the node's informers.
type caches struct {
	pods       corev1listers.PodLister
	secrets    corev1listers.SecretLister
	configMaps corev1listers.ConfigMapLister
	services   corev1listers.ServiceLister
}

func newProvider(ctx context.Context, cfg Config, client kubernetes.Interface, c caches, events record.EventRecorder) *provider {
	return &provider{
		cfg: cfg, log: cfg.Log, client: client, events: events, caches: c, ctx: ctx,
		images: images{dir: cfg.ImagesDir}, pool: newAddressPool(cfg.PodCIDR),
		source: source{client: client, caches: c}, pods: map[types.UID]*pod{}, notify: func(*corev1.Pod) {},
	}
}

// CreatePod starts the Pod; all that takes time happens later.
//
//nolint:contextcheck // a Pod outlives the call that starts it
func (n *provider) CreatePod(_ context.Context, api *corev1.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.pods[api.UID]; p != nil {
		go p.replace(api)
		return nil
	}
	// A Pod of the same name that has been replaced behind our back has lost its object, and ends.
	for _, p := range n.pods {
		if a := p.current(); a.Namespace == api.Namespace && a.Name == api.Name {
			go p.delete(time.Second)
		}
	}
	p := newPod(n, api)
	ctx, cancel := context.WithCancel(n.ctx)
	p.end = cancel
	n.pods[api.UID] = p
	n.wg.Go(func() {
		p.run(ctx)
		n.finish(p) //nolint:contextcheck // the Pod's context has ended; the node's bounds this
		cancel()
	})
	p.update(func() {})
	return nil
}

// finish forgets an ended Pod. One that is being deleted gets its last status and leaves the API at once.
func (n *provider) finish(p *pod) {
	deleting := false
	p.read(func() { deleting = p.deleting })
	if deleting {
		if err := n.finalise(p); err != nil {
			n.log.Warn("finalise deleted Pod", "pod", p.key(), "err", err)
		}
		if err := os.RemoveAll(p.dir); err != nil {
			n.log.Warn("remove files of deleted Pod", "pod", p.key(), "err", err)
		}
	}
	n.mu.Lock()
	delete(n.pods, p.uid)
	n.mu.Unlock()
}

// finalise writes the last status and removes the object, if it is still that of p and being deleted.
func (n *provider) finalise(p *pod) error {
	api := p.withStatus()
	ctx, cancel := context.WithTimeout(n.ctx, time.Minute)
	defer cancel()
	pods := n.client.CoreV1().Pods(api.Namespace)
	if err := retry(ctx, func() error { return patchStatus(ctx, pods, api) }); err != nil {
		return err
	}
	if api.DeletionTimestamp == nil {
		return nil
	}
	return retry(ctx, func() error {
		opts := metav1.NewDeleteOptions(0)
		opts.Preconditions = metav1.NewUIDPreconditions(string(p.uid))
		return pods.Delete(ctx, api.Name, *opts)
	})
}

// retry tries f until it succeeds, finds that the object is gone or another one, or ctx ends.
func retry(ctx context.Context, f func() error) error {
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		err := f()
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		if !wait(ctx, delay, nil) {
			return err
		}
	}
}

// UpdatePod takes over changed labels, annotations and images.
func (n *provider) UpdatePod(ctx context.Context, api *corev1.Pod) error {
	n.mu.Lock()
	p := n.pods[api.UID]
	n.mu.Unlock()
	if p == nil {
		return n.CreatePod(ctx, api)
	}
	p.replace(api)
	return nil
}

// DeletePod starts the end of a Pod and returns at once; the object leaves the API when the last process has ended.
func (n *provider) DeletePod(_ context.Context, api *corev1.Pod) error {
	n.mu.Lock()
	p := n.pods[api.UID]
	n.mu.Unlock()
	if p == nil {
		return errdefs.NotFoundf("Pod %s/%s is not on this node", api.Namespace, api.Name)
	}
	grace := time.Second // the object is gone already
	if api.DeletionTimestamp != nil {
		p.replace(api)
		if s := api.DeletionGracePeriodSeconds; s != nil {
			grace = secondsOf(*s)
		}
	}
	p.delete(grace)
	return nil
}

// find is the Pod of this name: the one the API has, if we know which that is.
func (n *provider) find(namespace, name string) *pod {
	var uid types.UID
	if api, err := n.caches.pods.Pods(namespace).Get(name); err == nil {
		uid = api.UID
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if uid != "" {
		return n.pods[uid]
	}
	for _, p := range n.pods {
		if a := p.current(); a.Namespace == namespace && a.Name == name {
			return p
		}
	}
	return nil
}

// GetPod implements node.PodLifecycleHandler.
func (n *provider) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	p := n.find(namespace, name)
	if p == nil {
		return nil, errdefs.NotFoundf("Pod %s/%s is not on this node", namespace, name)
	}
	return p.withStatus(), nil
}

// GetPodStatus implements node.PodLifecycleHandler.
func (n *provider) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	p, err := n.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &p.Status, nil
}

// GetPods implements node.PodLifecycleHandler.
func (n *provider) GetPods(context.Context) ([]*corev1.Pod, error) {
	var out []*corev1.Pod
	for _, p := range n.list() {
		out = append(out, p.withStatus())
	}
	return out, nil
}

// NotifyPods implements node.PodNotifier.
func (n *provider) NotifyPods(_ context.Context, f func(*corev1.Pod)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notify = f
}

func (n *provider) report(api *corev1.Pod) {
	n.mu.Lock()
	notify := n.notify
	n.mu.Unlock()
	notify(api)
}

func (n *provider) list() []*pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*pod, 0, len(n.pods))
	for _, p := range n.pods {
		out = append(out, p)
	}
	return out
}

// configChanged wakes the Pods that use the named object.
func (n *provider) configChanged(kind, namespace, name string) {
	for _, p := range n.list() {
		hit := false
		p.read(func() { hit = p.api.Namespace == namespace && p.refs[kind+"/"+name] })
		if hit {
			p.configChanged.fire()
		}
	}
}

// close waits for all Pods to end; the node's context has ended before.
func (n *provider) close() { n.wg.Wait() }

func (n *provider) services(namespace string) []*corev1.Service {
	list, err := n.caches.services.Services(namespace).List(labels.Everything())
	if err != nil {
		return nil
	}
	return list
}

func (n *provider) kubernetesAddr() netip.AddrPort {
	return netip.AddrPortFrom(n.cfg.ServiceCIDR.Masked().Addr().Next(), 443)
}

// address sets the addresses of a Pod's status.
func (n *provider) address(st *corev1.PodStatus, ip netip.Addr) {
	st.PodIP, st.PodIPs = ip.String(), []corev1.PodIP{{IP: ip.String()}}
	host := n.cfg.NodeIP.String()
	st.HostIP, st.HostIPs = host, []corev1.HostIP{{IP: host}}
}

// takeAddress gives a Pod the address it had before the node was restarted, when that is free.
func (n *provider) takeAddress(api *corev1.Pod) (netip.Addr, error) {
	if a, err := netip.ParseAddr(api.Status.PodIP); err == nil && n.pool.reserve(a) {
		return a, nil
	}
	return n.pool.take()
}

// source reads configuration for Pods.
type source struct {
	client kubernetes.Interface
	caches caches
}

const apiTimeout = 10 * time.Second

// Secret is the Secret from the cache, or, when the cache has not seen it yet, from the API.
func (s source) Secret(namespace, name string) (*corev1.Secret, error) {
	obj, err := s.caches.secrets.Secrets(namespace).Get(name)
	if !apierrors.IsNotFound(err) {
		return obj, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	return s.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

// ConfigMap is the ConfigMap from the cache or the API.
func (s source) ConfigMap(namespace, name string) (*corev1.ConfigMap, error) {
	obj, err := s.caches.configMaps.ConfigMaps(namespace).Get(name)
	if !apierrors.IsNotFound(err) {
		return obj, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	return s.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
}

// Token asks for a token of the Pod's service account, bound to the Pod.
func (s source) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	resp, err := s.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, req, metav1.CreateOptions{})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("service account %s/%s: %w", pod.Namespace, account, err)
	}
	return resp.Status.Token, resp.Status.ExpirationTimestamp.Time, nil
}
