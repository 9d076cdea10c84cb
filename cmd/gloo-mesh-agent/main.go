// Command gloo-mesh-agent is the management plane's agent in a workload cluster. It turns flags into an agent.Config and runs it; nothing else is decided here.
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

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"ambitmesh.dev/ambit/internal/agent"
	"ambitmesh.dev/ambit/internal/version"
)

const examples = `  # in a Pod of namespace gloo-mesh, as the chart runs it
  gloo-mesh-agent --cluster=prod-eu-west-3 --relay-server-address=gloo-mesh-mgmt-server.example.com:9900

  # on a workstation, for another cluster
  gloo-mesh-agent --kubeconfig ~/.kube/config --context prod-eu-west-3 --cluster prod-eu-west-3 --relay-server-address 127.0.0.1:9900`

func main() {
	// An agent is idle nearly always and shares its node with the work: collect early, and give memory back. GOGC and GOMEMLIMIT still have the last word.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(30)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(os.Stderr, os.Getenv).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gloo-mesh-agent:", err)
		os.Exit(1)
	}
}

// readable writes a duration as "1.5s": a person reads this, and JSON alone would make it a number of nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

func command(logs io.Writer, env func(string) string) *cobra.Command {
	cfg := agent.DefaultConfig()
	cfg.Namespace = cmp.Or(env("POD_NAMESPACE"), cfg.Namespace)
	var level slog.Level
	c := &cobra.Command{
		Use:           "gloo-mesh-agent",
		Short:         "The agent: reports what its cluster runs, applies what the management server decides",
		Example:       examples,
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			log := slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: level, ReplaceAttr: readable}))
			klog.SetSlogLogger(log)
			return agent.Run(c.Context(), cfg, log)
		},
	}
	f := c.Flags()
	f.StringVar((*string)(&cfg.Cluster), "cluster", "", "name of this cluster's KubernetesCluster (required)")
	f.StringVar(&cfg.Namespace, "namespace", cfg.Namespace, "namespace of the agent's Secrets and inventory")
	f.StringVar(&cfg.Server, "relay-server-address", "", "HOST:PORT of the management server as this cluster reaches it (required)")
	f.StringVar(&cfg.Authority, "relay-authority", cfg.Authority, "name in the management server's certificate")
	f.StringVar(&cfg.Secrets.Root, "relay-root-tls-secret", cfg.Secrets.Root, "Secret with ca.crt, by which the management server is verified")
	f.StringVar(&cfg.Secrets.Client, "relay-client-tls-secret", cfg.Secrets.Client, "Secret of this cluster's certificate; made by the agent unless it is there")
	f.StringVar(&cfg.Secrets.Registration, "relay-registration-token-secret", cfg.Secrets.Registration, "Secret of the single-use registration token")
	f.StringVar(&cfg.Secrets.Identity, "relay-identity-token-secret", cfg.Secrets.Identity, "Secret of the shared token, if that is how clusters enrol")
	f.StringVar(&cfg.Secrets.IdentityKey, "relay-identity-token-key", cfg.Secrets.IdentityKey, "key in the Secret of the shared token")
	f.StringVar(&cfg.IstioNamespace, "istio-namespace", cfg.IstioNamespace, "namespace that istiod runs in")
	f.StringVar(&cfg.IstioTokenFile, "istio-token-file", "", "file with a token of the agent's service account for audience istio-ca, by which it asks istiod for a certificate to see what it signs with; empty: nothing is probed")
	f.BoolVar(&cfg.RemoteSecrets, "remote-secrets", false, "make tokens for other clusters' istiods and remote secrets for this one's, as the management server says (needs the chart's rights)")
	f.StringVar(&cfg.APIServer, "api-server", "", "https://HOST:PORT of this cluster's API server as other clusters reach it; empty: what EndpointSlice default/kubernetes says")
	f.Float64Var(&cfg.RenewRatio, "client-certificate-renewal-ratio", 0, "part of a certificate's life after which it is renewed (default 0.5)")
	f.StringVar(&cfg.BindAddress, "bind-address", "", "host or IP address for every listener that names none; empty: all")
	f.StringVar(&cfg.HealthAddress, "health-address", cfg.HealthAddress, "HOST:PORT of /healthz and /readyz, or \"off\"")
	f.StringVar(&cfg.MetricsAddress, "metrics-address", cfg.MetricsAddress, "HOST:PORT of /metrics and /status, or \"off\"")
	f.BoolVar(&cfg.Telemetry, "telemetry", cfg.Telemetry, "read the metrics of Istio's proxies and send what they say of edges")
	f.StringVar(&cfg.OTLPAddress, "otlp-address", cfg.OTLPAddress, "HOST:PORT where applications and proxies send spans (OTLP over gRPC, usually :4317), or \"off\"")
	f.StringVar(&cfg.Kubeconfig, "kubeconfig", "", "kubeconfig file; empty: the cluster this Pod runs in")
	f.StringVar(&cfg.Context, "context", "", "context of the kubeconfig")
	f.TextVar(&level, "log-level", level, "debug, info, warn or error")
	return c
}
