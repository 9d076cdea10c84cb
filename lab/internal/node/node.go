// Package node is the lab's node: a small kubelet that runs the Pods of one cluster as local processes with addresses,
// root directories and volumes of their own, and the node's share of the network: Service addresses, LoadBalancer
// addresses and cluster DNS.
//
// What goes in: a kubeconfig, a folder of programs that stand for images, and the address plan of the cluster.
// What comes out: a Ready node in the API, and running Pods whose status, logs and volumes are as a kubelet makes them.
// What it must not do: run outside the lab's own network, mount and pid namespaces, which the caller has entered; send
// traffic to anything but the lab; keep state that a restart would need.
//
// A reader follows a Pod through the files so: node.go wires, provider.go is told about Pods, pod.go lives one, container.go
// runs its programs in a sandbox, status.go says what became of them, kubelet.go serves kubectl.
package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"ambitmesh.dev/ambit/lab/internal/node/dns"
	"ambitmesh.dev/ambit/lab/internal/node/proxy"
	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
)

// Config is everything a node needs to know.
type Config struct {
	Name         string // of the node
	ClusterName  string
	ClusterIndex int
	Kubeconfig   string // administrator of the cluster, at its address inside the lab
	ImagesDir    string // programs, named as the last component of an image reference
	StateDir     string // private to this node

	NodeIP      netip.Addr
	PodCIDR     netip.Prefix
	LBCIDR      netip.Prefix
	ServiceCIDR netip.Prefix
	DNSIP       netip.Addr
	// ClusterDomain is cluster.local when empty.
	ClusterDomain string
	// APIServer is where kubernetes.default leads; NodeIP:6443 when zero.
	APIServer netip.AddrPort

	KubeletCert, KubeletKey string // serving certificate and key, PEM files
	ClientCA                string // who may call the kubelet: certificates of this authority

	// Access, when not nil, reaches into the node's Pods while it runs.
	Access *Access

	Log *slog.Logger
}

func (c *Config) complete() error {
	if c.Name == "" || c.Kubeconfig == "" || c.ImagesDir == "" || c.StateDir == "" {
		return errors.New("node: Name, Kubeconfig, ImagesDir and StateDir are required")
	}
	if !c.NodeIP.IsValid() || !c.PodCIDR.IsValid() || !c.LBCIDR.IsValid() || !c.ServiceCIDR.IsValid() || !c.DNSIP.IsValid() {
		return fmt.Errorf("node %s: the address plan is incomplete", c.Name)
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if !c.APIServer.IsValid() {
		c.APIServer = netip.AddrPortFrom(c.NodeIP, 6443)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Log = c.Log.With("cluster", c.ClusterName, "node", c.Name)
	return nil
}

// Init must be called first in main: in a process that this package re-executed it becomes the container and never returns.
func Init() { sandbox.Init() }

// Run is the node until ctx ends or something fails. All its Pods end before it returns.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o755); err != nil {
		return fmt.Errorf("node %s: %w", cfg.Name, err)
	}
	client, err := newClient(cfg.Kubeconfig)
	if err != nil {
		return fmt.Errorf("node %s: %w", cfg.Name, err)
	}
	tasks, ctx := errgroup.WithContext(ctx)

	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	defer broadcaster.Shutdown()
	events := kubeletEvents{broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: cfg.Name})}

	all := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim))
	own := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "spec.nodeName=" + cfg.Name }))
	c := caches{
		pods: own.Core().V1().Pods().Lister(), secrets: all.Core().V1().Secrets().Lister(),
		configMaps: all.Core().V1().ConfigMaps().Lister(), services: all.Core().V1().Services().Lister(),
	}
	pods := newProvider(ctx, cfg, client, c, events)
	defer pods.close()
	pods.mesh = newAmbient(pods, all.Core().V1().Namespaces().Lister())
	cfg.Access.set(pods)
	defer cfg.Access.set(nil)
	if err := watchNamespaces(all, pods.mesh); err != nil {
		return fmt.Errorf("node %s: %w", cfg.Name, err)
	}
	if err := watchConfig(all, pods); err != nil {
		return fmt.Errorf("node %s: %w", cfg.Name, err)
	}
	podController, err := newPodController(client, events, pods, all, own)
	if err != nil {
		return fmt.Errorf("node %s: %w", cfg.Name, err)
	}
	nodeController, err := newNodeController(cfg, client)
	if err != nil {
		return fmt.Errorf("node %s: %w", cfg.Name, err)
	}
	services, err := proxy.New(proxy.Config{
		NodeIP: cfg.NodeIP, LBCIDR: cfg.LBCIDR, APIServer: cfg.APIServer, Log: cfg.Log, Client: client,
		Services: all.Core().V1().Services(), Slices: all.Discovery().V1().EndpointSlices(),
	})
	if err != nil {
		return fmt.Errorf("node %s: %w", cfg.Name, err)
	}
	names := dns.New(dns.Config{
		Addr: netip.AddrPortFrom(cfg.DNSIP, 53), Domain: cfg.ClusterDomain, Log: cfg.Log,
		Services: c.services, Slices: all.Discovery().V1().EndpointSlices().Lister(), ConfigMaps: all.Core().V1().ConfigMaps().Lister(),
	})

	all.Start(ctx.Done())
	own.Start(ctx.Done())
	all.WaitForCacheSync(ctx.Done())

	task := func(name string, f func(context.Context) error) {
		tasks.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("node %s: %s: %w", cfg.Name, name, err)
			}
			return nil
		})
	}
	task("kubelet API", func(ctx context.Context) error { return serveKubelet(ctx, cfg, pods) })
	task("service proxy", services.Run)
	task("cluster DNS", names.Run)
	task("ambient sockets", pods.mesh.serve)
	task("ambient marks", pods.mesh.annotate)
	task("pod controller", func(ctx context.Context) error { return podController.Run(ctx, podWorkers) })
	task("node controller", nodeController.Run)
	return tasks.Wait()
}

const podWorkers = 8

// watchConfig wakes Pods when a Secret or ConfigMap they use changes.
func watchConfig(f informers.SharedInformerFactory, pods *provider) error {
	for kind, informer := range map[string]cache.SharedIndexInformer{
		"Secret": f.Core().V1().Secrets().Informer(), "ConfigMap": f.Core().V1().ConfigMaps().Informer(),
	} {
		changed := func(obj any) {
			key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
			if err != nil {
				return
			}
			namespace, name, err := cache.SplitMetaNamespaceKey(key)
			if err == nil {
				pods.configChanged(kind, namespace, name)
			}
		}
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: changed, DeleteFunc: changed, UpdateFunc: func(_, obj any) { changed(obj) },
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// watchNamespaces looks at the Pods of a namespace whose labels have changed.
func watchNamespaces(f informers.SharedInformerFactory, mesh *ambient) error {
	look := func(obj any) {
		if ns, ok := obj.(*corev1.Namespace); ok {
			mesh.lookAll(ns.Name)
		}
	}
	_, err := f.Core().V1().Namespaces().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) },
	})
	return err
}

func newPodController(client kubernetes.Interface, events record.EventRecorder, pods *provider, all, own informers.SharedInformerFactory) (*node.PodController, error) {
	limiter := func() workqueue.TypedRateLimiter[any] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[any](time.Millisecond, 5*time.Second)
	}
	return node.NewPodController(node.PodControllerConfig{
		PodClient:         podClient{client.CoreV1()},
		EventRecorder:     events,
		Provider:          pods,
		PodInformer:       own.Core().V1().Pods(),
		SecretInformer:    all.Core().V1().Secrets(),
		ConfigMapInformer: all.Core().V1().ConfigMaps(),
		ServiceInformer:   all.Core().V1().Services(),

		SyncPodsFromKubernetesRateLimiter:        limiter(),
		DeletePodsFromKubernetesRateLimiter:      limiter(),
		SyncPodStatusFromProviderRateLimiter:     limiter(),
		SyncPodsFromKubernetesShouldRetryFunc:    keepTrying,
		DeletePodsFromKubernetesShouldRetryFunc:  keepTrying,
		SyncPodStatusFromProviderShouldRetryFunc: keepTrying,
		SkipDownwardAPIResolution:                true,
	})
}

// serveKubelet serves the kubelet's API at NodeIP:10250 until ctx ends.
func serveKubelet(ctx context.Context, cfg Config, pods *provider) error {
	pem, err := os.ReadFile(cfg.ClientCA)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", cfg.ClientCA)
	}
	cert, err := tls.LoadX509KeyPair(cfg.KubeletCert, cfg.KubeletKey)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(cfg.NodeIP, kubeletPort).String())
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           pods.handler(),
		ReadHeaderTimeout: 30 * time.Second,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
			MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, // streams are upgraded connections
		},
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
