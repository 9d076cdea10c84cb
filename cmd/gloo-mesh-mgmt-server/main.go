// Command gloo-mesh-mgmt-server is the management server. It turns flags into a server.Config and runs it; nothing else is decided here.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"ambitmesh.dev/ambit/internal/server"
	"ambitmesh.dev/ambit/internal/version"
)

const examples = `  # in a Pod of namespace gloo-mesh, as the chart runs it
  gloo-mesh-mgmt-server --cluster=mgmt --register-cluster=mgmt

  # on a workstation, against another cluster, without webhook and leader election
  gloo-mesh-mgmt-server --kubeconfig ~/.kube/config --context mgmt --webhook-address off --leader-elect=false

  # look at the UI with a made-up mesh: http://localhost:8090
  gloo-mesh-mgmt-server --demo small --ui-address 127.0.0.1:8090

  # every port on one address only
  gloo-mesh-mgmt-server --bind-address 10.0.0.7`

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // most of the heap lives long: half as much garbage costs little time and saves a quarter of the memory
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(os.Stderr, os.Getenv).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gloo-mesh-mgmt-server:", err)
		os.Exit(1)
	}
}

func command(logs io.Writer, env func(string) string) *cobra.Command {
	cfg := server.DefaultConfig()
	cfg.Namespace = cmp.Or(env("POD_NAMESPACE"), cfg.Namespace)
	cfg.Identity = cmp.Or(env("POD_NAME"), cfg.Identity)
	cfg.InPod = env("POD_NAME") != ""
	var level slog.Level
	var format, demo string
	c := &cobra.Command{
		Use:           "gloo-mesh-mgmt-server",
		Short:         "The management server: registers clusters, keeps their trust, and says what is so",
		Example:       examples,
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := logger(logs, level, format)
			if err != nil {
				return err
			}
			klog.SetSlogLogger(log)
			ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
			if demo != "" {
				return serveDemo(c.Context(), demo, cfg.UIAddress, log)
			}
			return server.Run(c.Context(), cfg, log)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Namespace, "namespace", cfg.Namespace, "admin namespace: where KubernetesClusters and the relay's Secrets are")
	f.StringVar(&cfg.Cluster, "cluster", cfg.Cluster, "name of the cluster this server runs in (common.cluster)")
	f.StringVar(&cfg.ClusterDomain, "cluster-domain", cfg.ClusterDomain, "DNS domain of this cluster's Services")
	f.StringVar(&cfg.Service, "service", cfg.Service, "Service of the relay, for the names in its certificate")
	f.StringVar(&cfg.RegisterCluster, "register-cluster", cfg.RegisterCluster, "make the KubernetesCluster of this name, for the cluster this server runs in")
	f.StringVar(&cfg.Kubeconfig, "kubeconfig", cfg.Kubeconfig, "kubeconfig file; empty: the cluster this Pod runs in")
	f.StringVar(&cfg.Context, "context", cfg.Context, "context of the kubeconfig")

	f.StringVar(&cfg.BindAddress, "bind-address", cfg.BindAddress, "host or IP address for every listener that names none; empty: all")
	f.StringVar(&cfg.RelayAddress, "relay-address", cfg.RelayAddress, "HOST:PORT agents connect to (gRPC, TLS)")
	f.StringVar(&cfg.WebhookAddress, "webhook-address", cfg.WebhookAddress, "HOST:PORT of the admission webhook, or \"off\"")
	f.StringVar(&cfg.HealthAddress, "health-address", cfg.HealthAddress, "HOST:PORT of /healthz and /readyz, or \"off\"")
	f.StringVar(&cfg.MetricsAddress, "metrics-address", cfg.MetricsAddress, "HOST:PORT of /metrics, or \"off\"")
	f.StringVar(&cfg.SnapshotAddress, "snapshot-address", cfg.SnapshotAddress, "HOST:PORT on loopback where the leader serves /snapshot (what it knows, for meshctl policy), or \"off\"")
	f.StringVar(&cfg.UIAddress, "ui-address", cfg.UIAddress, "HOST:PORT of the web UI, or \"off\"")
	f.StringSliceVar(&cfg.UIHosts, "ui-host", nil, "further name that browsers may call the UI by; may be repeated")
	f.StringVar(&demo, "demo", "", "serve the UI alone, with a made-up mesh: \"small\" (3 clusters, 40 services) or \"large\" (8 clusters, 2,000 services)")
	f.StringVar(&cfg.WebhookService, "webhook-service", cfg.WebhookService, "Service of the webhook, for the names in its certificate")
	f.StringVar(&cfg.WebhookConfiguration, "webhook-configuration", cfg.WebhookConfiguration, "name of the Mutating- and of the ValidatingWebhookConfiguration whose caBundle to keep")

	names := &cfg.Secrets
	f.StringVar(&names.Root, "relay-root-tls-secret", "relay-root-tls-secret", "Secret of the relay's root")
	f.StringVar(&names.Signing, "relay-signing-tls-secret", "relay-tls-signing-secret", "Secret of the CA that signs client certificates")
	f.StringVar(&names.Server, "relay-server-tls-secret", "relay-server-tls-secret", "Secret of the relay's serving certificate")
	f.StringVar(&names.Client, "relay-client-tls-secret", "relay-client-tls-secret", "Secret of this cluster's own client certificate")
	f.StringVar(&names.Token, "relay-identity-token-secret", "relay-identity-token-secret", "Secret of the shared token")
	f.StringVar(&names.TokenKey, "relay-identity-token-key", "token", "key in the Secret of the shared token")
	f.StringSliceVar(&cfg.RelayServerNames, "relay-server-name", nil, "further DNS name or IP address in the relay's serving certificate; may be repeated")
	f.BoolVar(&cfg.DisableSharedTokenEnrolment, "relay-disable-token-enrolment", false, "the shared token enrols nobody: only registration tokens and certificates minted by hand do")

	f.BoolVar(&cfg.LeaderElect, "leader-elect", cfg.LeaderElect, "serve only while holding the Lease; needed with more than one replica")
	f.StringVar(&cfg.Lease, "lease", cfg.Lease, "name of the Lease")
	f.DurationVar(&cfg.LeaseDuration, "lease-duration", cfg.LeaseDuration, "how long the API server may be away before the leader gives up is 5/6 of this; so long a standby waits for a leader that vanished with its node")
	f.StringVar(&cfg.Identity, "identity", cfg.Identity, "name in the Lease; the Pod's")
	f.DurationVar(&cfg.WarmGrace, "warm-grace", cfg.WarmGrace, "after a start, how long additions wait for the inventories of all clusters; removals wait for ever")
	f.BoolVar(&cfg.RemoteSecrets.Off, "remote-secrets-off", false, "clusters are told nothing about tokens for each other's API servers; what they have stays")
	f.DurationVar(&cfg.RemoteSecrets.Lifetime, "remote-secret-token-ttl", 0, "lifetime of the tokens in remote secrets (default 24h, at least 10m)")
	f.DurationVar(&cfg.RemoteSecrets.RotateEvery, "remote-secret-rotate-every", 0, "when the next token is made, less up to a tenth; at most half of the lifetime (default 0.4 of it)")
	f.BoolVar(&cfg.ConfigDistribution, "config-distribution", false, "keep an istio-remote Gateway for each cluster's east-west gateway in every other cluster (featureGates.ConfigDistribution)")
	f.StringVar(&cfg.AuditFile, "audit-file", cfg.AuditFile, "file of the audit log (SQLite), in a folder that lasts; empty: the log goes to standard output and is not kept")
	f.StringVar(&cfg.AuditPostgres, "audit-postgres", cfg.AuditPostgres, "file with the connection string of a PostgreSQL database of its own for the audit log, instead of --audit-file; any number of replicas")
	f.BoolVar(&cfg.AuditMirror, "audit-mirror", cfg.AuditMirror, "write audit records to standard output besides --audit-file or --audit-postgres")
	f.StringVar(&cfg.TelemetryDir, "telemetry-dir", cfg.TelemetryDir, "folder of the history of edges and of spans; empty: only the map of now is kept, in memory")
	f.DurationVar(&cfg.MetricsAge, "telemetry-metrics-age", 0, "how long the history of edges is kept (default 360h)")
	f.Int64Var(&cfg.MetricsBytes, "telemetry-metrics-bytes", 0, "how much of it is kept: the oldest goes first (default 10 GiB)")
	f.DurationVar(&cfg.TracesAge, "telemetry-traces-age", 0, "how long spans are kept (default 168h)")
	f.Int64Var(&cfg.TracesBytes, "telemetry-traces-bytes", 0, "how much of them is kept: the oldest go first (default 4 GiB)")
	f.TextVar(&level, "log-level", level, "debug, info, warn or error")
	f.StringVar(&format, "log-format", "json", "json or text")
	return c
}

func logger(w io.Writer, level slog.Level, format string) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want json or text", format)
}
