// Command labproxy is the data plane of the lab: it stands in for the images
// ztunnel and proxyv2, in the Pods that Istio's own charts and templates make.
//
//	labproxy proxy ztunnel     the node's ztunnel (package ztunnel)
//	labproxy proxy router ...  an east-west gateway (package gateway)
//	labproxy proxy waypoint    a waypoint (package gateway)
//
// In go the environment of those templates, the projected istio-token and the
// root bundle of ConfigMap istio-ca-root-cert. Out come HBONE on 15008 under
// identities that the cluster's real istiod signs, on east-west gateways TLS
// passthrough of 15012 to istiod, readiness on 15021 and metrics on 15020.
// It is no Envoy and no ztunnel, and never part of the product.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ambitmesh.dev/ambit/lab/istio/internal/gateway"
	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
	"ambitmesh.dev/ambit/lab/istio/internal/stats"
	"ambitmesh.dev/ambit/lab/istio/internal/svid"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
	"ambitmesh.dev/ambit/lab/istio/internal/ztunnel"
)

// config is what the Pod template says.
type config struct {
	istiod      string // host:port, CA and xDS
	clusterID   string
	network     string
	trustDomain string
	namespace   string
	pod, ip     string
	node        string
	account     string
	tokenFile   string
	rootFile    string
	ttl         time.Duration
	socket      string
	eastWest    bool
}

// configFrom reads the environment of the ztunnel chart and of istiod's
// waypoint and kube-gateway templates.
func configFrom(getenv func(string) string) (config, error) {
	c := config{
		istiod:      cmp.Or(getenv("CA_ADDR"), getenv("CA_ADDRESS"), "istiod.istio-system.svc:15012"),
		clusterID:   cmp.Or(getenv("ISTIO_META_CLUSTER_ID"), "Kubernetes"),
		network:     cmp.Or(getenv("NETWORK"), getenv("ISTIO_META_NETWORK")),
		trustDomain: cmp.Or(getenv("TRUST_DOMAIN"), "cluster.local"),
		namespace:   getenv("POD_NAMESPACE"),
		pod:         getenv("POD_NAME"),
		ip:          getenv("INSTANCE_IP"),
		node:        cmp.Or(getenv("NODE_NAME"), getenv("ISTIO_META_NODE_NAME")),
		account:     cmp.Or(getenv("SERVICE_ACCOUNT"), getenv("ISTIO_META_SERVICE_ACCOUNT")),
		tokenFile:   cmp.Or(getenv("LABPROXY_TOKEN"), "/var/run/secrets/tokens/istio-token"),
		rootFile:    cmp.Or(getenv("LABPROXY_ROOTS"), "/var/run/secrets/istio/root-cert.pem"),
		socket:      cmp.Or(getenv("LABPROXY_SOCKET"), "/var/run/ztunnel/ztunnel.sock"),
		// istiod's template sets this for controller istio.io/eastwest-controller only.
		eastWest: getenv("ISTIO_META_REQUESTED_NETWORK_VIEW") != "",
	}
	if c.namespace == "" || c.account == "" {
		return c, errors.New("POD_NAMESPACE and SERVICE_ACCOUNT must be set: labproxy runs in Pods that Istio's charts and templates make")
	}
	var err error
	if c.ttl, err = time.ParseDuration(cmp.Or(getenv("SECRET_TTL"), "24h")); err != nil || c.ttl <= 0 {
		return c, fmt.Errorf("SECRET_TTL %q: want a duration such as 24h", getenv("SECRET_TTL"))
	}
	return c, nil
}

func (c config) svid(id string) svid.Config {
	return svid.Config{CAAddress: c.istiod, ClusterID: c.clusterID, TokenFile: c.tokenFile, RootFile: c.rootFile, TTL: c.ttl, ID: id}
}

func (c config) wds() wds.Config {
	return wds.Config{
		Address: c.istiod, ClusterID: c.clusterID, Network: c.network, TokenFile: c.tokenFile, RootFile: c.rootFile,
		PodIP: c.ip, PodName: c.pod, Namespace: c.namespace, ServiceAccount: c.account, Node: c.node,
	}
}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg, err := configFrom(os.Getenv)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if slices.Contains(os.Args[1:], "ztunnel") {
			err = runZtunnel(ctx, cfg, log)
		} else {
			err = runGateway(ctx, cfg, log)
		}
	}
	if err != nil {
		log.Error("labproxy failed", "error", err)
		os.Exit(1)
	}
}

func runZtunnel(ctx context.Context, cfg config, log *slog.Logger) error {
	counters := stats.New()
	z := ztunnel.New(ztunnel.Config{
		Stats: counters, ClusterID: cfg.clusterID, Network: cfg.network, TrustDomain: cfg.trustDomain, Socket: cfg.socket, Identity: cfg.svid(""), Log: log,
	})
	g, ctx := errgroup.WithContext(ctx)
	notReady := func() string {
		if !z.Store().Synced() {
			return "istiod has not told of the mesh yet"
		}
		return ""
	}
	for _, port := range []string{":15021", ":15020"} {
		g.Go(func() error { return serveHTTP(ctx, port, statusHandler(notReady, nil, counters)) })
	}
	g.Go(func() error { return wds.Run(ctx, cfg.wds(), z.Store(), log) })
	g.Go(func() error {
		// As ztunnel: it takes no Pod before istiod has told of the mesh; until then the one before it serves.
		for notReady() != "" {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(20 * time.Millisecond):
			}
		}
		return z.Run(ctx)
	})
	return g.Wait()
}

// How a gateway ends: it is taken out of its Service first, then it finishes.
const (
	noticeTime = 2 * time.Second
	drainTime  = 20 * time.Second
)

func runGateway(ctx context.Context, cfg config, log *slog.Logger) error {
	id := svid.New(cfg.svid("spiffe://"+cfg.trustDomain+"/ns/"+cfg.namespace+"/sa/"+cfg.account), log)
	store := wds.NewStore(func() {})
	gw := &gateway.Gateway{Network: cfg.network, Store: store, Identity: id, EastWest: cfg.eastWest}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { id.Run(ctx); return nil })
	g.Go(func() error { return wds.Run(ctx, cfg.wds(), store, log) })
	notReady := func() string {
		if why := id.NotReady(); why != "" || store.Synced() {
			return why
		}
		return "istiod has not told of the mesh yet"
	}
	for _, port := range []string{":15021", ":15020"} {
		g.Go(func() error { return serveHTTP(ctx, port, statusHandler(notReady, id, nil)) })
	}
	g.Go(func() error {
		// Without an SVID nobody could complete a handshake: listen when there is one.
		select {
		case <-id.Ready():
		case <-ctx.Done():
			return nil
		}
		l, err := net.Listen("tcp", ":15008") //nolint:gosec // all addresses of the Pod, as Envoy does
		if err != nil {
			return err
		}
		log.Info("serving HBONE", "address", l.Addr().String(), "eastWest", cfg.eastWest)
		var open hbone.Open
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		defer end()
		go func() { // as Envoy drains: clients learn of the end first, what is open may finish
			<-ctx.Done()
			time.Sleep(noticeTime)
			_ = l.Close()
			open.Drain(life, drainTime)
			end()
		}()
		srv := &hbone.Server{TLS: id.ServerTLS(func(err error) { log.Warn("peer refused", "error", err) }), Open: gw.Open, Log: log}
		err = srv.Serve(life, open.Listen(l))
		<-life.Done()
		return err
	})
	if cfg.eastWest {
		g.Go(func() error { return passthrough(ctx, ":15012", cfg.istiod, log) })
	}
	return g.Wait()
}

// statusHandler answers the templates' probes and Prometheus.
func statusHandler(notReady func() string, id *svid.Identity, counters *stats.Counters) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if why := notReady(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ready\n")
	})
	mux.HandleFunc("/stats/prometheus", func(w http.ResponseWriter, _ *http.Request) {
		if id != nil {
			fmt.Fprintf(w, "# TYPE labproxy_certificate_expiry_timestamp_seconds gauge\nlabproxy_certificate_expiry_timestamp_seconds %d\n", id.Expiry().Unix())
		}
		_, _ = counters.WriteTo(w)
	})
	return mux
}

// serveHTTP serves plain HTTP until ctx ends.
func serveHTTP(ctx context.Context, addr string, h http.Handler) error {
	srv := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", addr, err)
	}
	return nil
}
