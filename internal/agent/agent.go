package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"ambitmesh.dev/ambit/internal/apply"
	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/observe"
	"ambitmesh.dev/ambit/internal/probe"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/remotesecrets"
	"ambitmesh.dev/ambit/internal/segments"
	"ambitmesh.dev/ambit/internal/version"
)

// task is one of the things an agent does side by side; the first that fails stops all.
type task struct {
	name string
	run  func(context.Context) error
}

// Run runs the agent until ctx ends (nil) or a task fails (an error with its name).
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	kube, err := connect(cfg)
	if err != nil {
		return err
	}
	status := newStatus(cfg.Cluster)
	g, ctx := errgroup.WithContext(ctx)
	start := func(t task) {
		g.Go(func() error {
			if err := t.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		})
	}
	start(task{"health", func(ctx context.Context) error { return serve(ctx, cfg.listenOn(cfg.HealthAddress), status.health()) }})
	start(task{"metrics", func(ctx context.Context) error { return serve(ctx, cfg.listenOn(cfg.MetricsAddress), status.metrics()) }})
	start(task{"agent", func(ctx context.Context) error { return work(ctx, cfg, kube, status, log, start) }})
	return g.Wait()
}

// work waits for the API server to tell which cluster this is, then starts the rest.
func work(ctx context.Context, cfg Config, kube *cluster, status *status, log *slog.Logger, start func(task)) error {
	uid, kubernetes, err := kube.identify(ctx, log)
	if err != nil {
		return nil //nolint:nilerr // ctx ended while waiting
	}
	inventory := synclog.NewSource(rand.Text())
	store := newIdentityStore(kube.client, cfg.Namespace, cfg.Secrets)
	applier := apply.New(apply.Config{Client: kube.client, Get: kube.get, Namespace: cfg.Namespace, Outcomes: inventory, Log: log.With("stage", "apply")})
	trust := newTrust(cfg, kube, inventory, log)
	ears := newTelemetry(cfg, kube, log)
	shared := segments.New(segments.Config{
		Client: kube.client, Namespace: cfg.Namespace, Source: inventory, Served: remotesecrets.Served(kube.client, cfg.IstioNamespace), Log: log.With("stage", "segments"),
	})
	remotes := newRemotes(cfg, kube, inventory, shared, log)
	spoke, err := relay.NewSpoke(relay.SpokeConfig{
		ServerAddress: cfg.Server, Authority: cfg.Authority, Cluster: cfg.Cluster, UID: uid, Version: version.Version,
		Identity: store, Inventory: inventory, RenewRatio: cfg.RenewRatio, Log: log.With("stage", "relay"),
		Dial: dial, Telemetry: ears.ring,
		OnDesired: func(ctx context.Context, c synclog.Changes) {
			applier.Desired(ctx, c)
			trust.desired(c)
			remotes.desired(c)
			shared.Desired(c)
		},
		OnRefused: remotes.refused,
	})
	if err != nil {
		return err
	}
	status.started(spoke, applier, trust, remotes)
	log.Info("agent started", "cluster", cfg.Cluster, "version", version.Version, "server", cfg.Server, "kubeSystemUID", uid, "kubernetes", kubernetes)
	start(task{"relay", spoke.Run})
	start(task{"apply", applier.Run})
	start(task{"cacerts", trust.keeper.Run})
	start(task{"probe", trust.run})
	start(task{"remote secrets", remotes.run})
	start(task{"segments", shared.Run})
	start(task{"peers", probe.NewPeers(probe.PeersConfig{Client: kube.client, Source: inventory, Heard: ears.probed, Log: log.With("stage", "peers")}).Run})
	start(task{"telemetry", ears.scrape})
	start(task{"otlp", ears.receive})
	start(task{"observe", func(ctx context.Context) error {
		return observe.Run(ctx, observe.Config{Client: kube.client, Source: inventory, Log: log.With("stage", "observe"), KubernetesVersion: kubernetes})
	}})
	start(task{"secrets", func(ctx context.Context) error {
		watchSecrets(ctx, kube.client, cfg.Namespace, store, spoke, log)
		return nil
	}})
	return nil
}

// dial reaches the management server, or says what to look at.
func dial(ctx context.Context, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("the management server can't be reached at %s from this cluster (look at glooAgent.relay.serverAddress, the name's DNS, Service gloo-mesh-mgmt-server and the firewalls between): %w", address, err)
	}
	return c, nil
}

// cluster is the API server of the cluster the agent is in.
type cluster struct {
	client dynamic.Interface
	raw    *rest.RESTClient
	ca     []byte // PEM, by which the API server is verified
}

func connect(cfg Config) (*cluster, error) {
	config, err := kubeConfig(cfg)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "gloo-mesh-agent/" + version.Version
	config.QPS, config.Burst = 200, 400
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	raw := dynamic.ConfigFor(config)
	raw.GroupVersion = &schema.GroupVersion{}
	raw.APIPath = "/"
	rc, err := rest.RESTClientFor(raw)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("CA of %s: %w", config.Host, err)
	}
	return &cluster{client: client, raw: rc, ca: config.CAData}, nil
}

func kubeConfig(cfg Config) (*rest.Config, error) {
	if cfg.Kubeconfig == "" && cfg.Context == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("not in a Pod with a service account token (outside one, give --kubeconfig): %w", err)
		}
		return c, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = cfg.Kubeconfig
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %q, context %q: %w", cfg.Kubeconfig, cfg.Context, err)
	}
	return rest.CopyConfig(c), nil
}

func (c *cluster) get(ctx context.Context, path string) ([]byte, error) {
	return c.raw.Get().AbsPath(path).DoRaw(ctx)
}

// identify asks which cluster this is: the UID of kube-system. It keeps asking while the API server does not answer; the error is ctx's.
func (c *cluster) identify(ctx context.Context, log *slog.Logger) (mesh.ClusterUID, string, error) {
	for {
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		ns, err := c.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Get(ask, "kube-system", metav1.GetOptions{})
		var v struct {
			GitVersion string `json:"gitVersion"`
		}
		if err == nil {
			var raw []byte
			if raw, err = c.get(ask, "/version"); err == nil {
				err = json.Unmarshal(raw, &v)
			}
		}
		cancel()
		if err == nil {
			return mesh.ClusterUID(ns.GetUID()), v.GitVersion, nil
		}
		log.Warn("the API server does not tell which cluster this is; asking again", "error", err)
		select {
		case <-ctx.Done():
			return "", "", ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// watchSecrets makes the agent connect anew as soon as somebody replaces one of its Secrets.
func watchSecrets(ctx context.Context, client dynamic.Interface, namespace string, store *identityStore, spoke *relay.Spoke, log *slog.Logger) {
	secrets := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(namespace)
	var wg sync.WaitGroup
	for _, name := range []string{store.names.Client, store.names.Root, store.names.Registration, store.names.Identity} {
		changed := func(u *unstructured.Unstructured) {
			if store.foreign(name, u) {
				spoke.Reconnect("Secret " + name + " was replaced")
			}
		}
		wg.Go(func() {
			// By name: the agent's Role needs no right to read any other Secret.
			follow.Run(ctx, follow.Config{Client: secrets, Name: "secret " + name, Fields: "metadata.name=" + name, Log: log}, secretSink{changed})
		})
	}
	wg.Wait()
}

// secretSink keeps nothing.
type secretSink struct {
	changed func(*unstructured.Unstructured)
}

// Set tells of a Secret that is there.
func (s secretSink) Set(u *unstructured.Unstructured) { s.changed(u) }

// Gone does nothing: what is gone can't be shown to anybody, and the running session goes on.
func (s secretSink) Gone(*unstructured.Unstructured) {}

// Listed does nothing, as Gone.
func (s secretSink) Listed(map[string]bool) {}

// serve answers HTTP until ctx ends.
func serve(ctx context.Context, address string, h http.Handler) error {
	if address == off {
		<-ctx.Done()
		return nil
	}
	srv := &http.Server{Addr: address, Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = srv.Shutdown(end)
	}()
	if err := srv.ListenAndServe(); ctx.Err() == nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	return nil
}
