// Command labproxy stands in for the proxyv2 image of gateways and waypoints
// that istiod deploys.
//
// In go the Pod that istiod's own templates make: the projected istio-token,
// the root bundle of ConfigMap istio-ca-root-cert, CA_ADDR and the ISTIO_META_*
// variables. Out comes a workload with a real identity: an SVID signed by
// istiod, HBONE (HTTP/2 CONNECT over mutual TLS) on 15008, on east-west
// gateways TLS passthrough of 15012 to istiod, readiness on 15021, metrics on
// 15020. A changed root bundle is trusted at once, without a restart.
//
// It is no Envoy: it takes no xDS, routes nothing, and enforces no policy; it
// forwards what an authenticated peer of the mesh asks for.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// config is what the Pod template says.
type config struct {
	caAddress   string // host:port of istiod's CA
	clusterID   string
	trustDomain string
	namespace   string
	account     string
	tokenFile   string
	rootFile    string
	eastWest    bool // an east-west gateway: passes 15012 through to istiod
}

// configFrom reads the environment of istiod's waypoint and kube-gateway
// templates.
func configFrom(getenv func(string) string) (config, error) {
	or := func(key, def string) string {
		if v := getenv(key); v != "" {
			return v
		}
		return def
	}
	c := config{
		caAddress:   or("CA_ADDR", "istiod.istio-system.svc:15012"),
		clusterID:   or("ISTIO_META_CLUSTER_ID", "Kubernetes"),
		trustDomain: or("TRUST_DOMAIN", "cluster.local"),
		namespace:   getenv("POD_NAMESPACE"),
		account:     or("SERVICE_ACCOUNT", getenv("ISTIO_META_SERVICE_ACCOUNT")),
		tokenFile:   or("LABPROXY_TOKEN", "/var/run/secrets/tokens/istio-token"),
		rootFile:    or("LABPROXY_ROOTS", "/var/run/secrets/istio/root-cert.pem"),
		// istiod's template sets this for controller istio.io/eastwest-controller only.
		eastWest: getenv("ISTIO_META_REQUESTED_NETWORK_VIEW") != "",
	}
	if c.namespace == "" || c.account == "" {
		return c, errors.New("POD_NAMESPACE and SERVICE_ACCOUNT must be set: labproxy runs in Pods that istiod's gateway templates make")
	}
	return c, nil
}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg, err := configFrom(os.Getenv)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if len(os.Args) > 1 && os.Args[1] == "connect" {
			err = try(ctx, cfg, os.Args[2:], os.Stdout)
		} else { // the arguments of pilot-agent, which say nothing that the environment does not
			err = run(ctx, cfg, log)
		}
	}
	if err != nil {
		log.Error("labproxy failed", "error", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or one server fails.
func run(ctx context.Context, cfg config, log *slog.Logger) error {
	id := newIdentity(cfg, log)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return id.run(ctx) })
	hbone := newHBONE(id, log)
	for _, port := range []string{":15021", ":15020"} {
		g.Go(func() error { return serveHTTP(ctx, port, statusHandler(id, hbone)) })
	}
	g.Go(func() error {
		// Without an SVID nobody could complete a handshake: listen when there is one.
		select {
		case <-id.ready:
		case <-ctx.Done():
			return nil
		}
		l, err := net.Listen("tcp", ":15008") //nolint:gosec // all addresses of the Pod, as Envoy does
		if err != nil {
			return err
		}
		log.Info("serving HBONE", "address", l.Addr().String())
		return hbone.serve(ctx, l)
	})
	if cfg.eastWest {
		g.Go(func() error { return passthrough(ctx, ":15012", cfg.caAddress, log) })
	}
	return g.Wait()
}

// statusHandler answers the template's probes and Prometheus.
func statusHandler(id *identity, h *hbone) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if why := id.notReady(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ready\n")
	})
	mux.HandleFunc("/stats/prometheus", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE labproxy_hbone_connections_total counter\nlabproxy_hbone_connections_total %d\n", h.accepted.Load())
		fmt.Fprintf(w, "# TYPE labproxy_hbone_refused_total counter\nlabproxy_hbone_refused_total %d\n", h.refused.Load())
		fmt.Fprintf(w, "# TYPE labproxy_certificate_expiry_timestamp_seconds gauge\nlabproxy_certificate_expiry_timestamp_seconds %d\n", id.expiry().Unix())
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

// passthrough copies bytes between clients of addr and target; TLS is theirs.
func passthrough(ctx context.Context, addr, target string, log *slog.Logger) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		in, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", addr, err)
		}
		go func() {
			defer in.Close()
			out, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", target)
			if err != nil {
				log.Warn("passthrough: cannot reach target", "target", target, "error", err)
				return
			}
			defer out.Close()
			splice(in, out)
		}()
	}
}

// splice copies both ways and returns when both are done.
func splice(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(a, b)
		closeWrite(a)
		close(done)
	}()
	_, _ = io.Copy(b, a)
	closeWrite(b)
	<-done
}

// closeWrite tells the peer that no more bytes come.
func closeWrite(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
		return
	}
	_ = c.Close()
}

// serverName is the DNS name istiod's certificate has for a CA address.
func serverName(caAddress string) string {
	host, _, err := net.SplitHostPort(caAddress)
	if err != nil {
		return caAddress
	}
	return strings.TrimSuffix(host, ".")
}
