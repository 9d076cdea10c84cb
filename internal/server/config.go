// Package server is the management server's composition root: it joins the stages, top to bottom, and runs them as one list of named tasks.
//
// In: a Config. Out: a running server until its context ends or a task fails. It must not hold rules: each stage does its own work, and this package only hands values on.
package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relaysecrets"
	"ambitmesh.dev/ambit/internal/tokens"
)

// Config is everything that can be said about a server. DefaultConfig gives the defaults; Validate says what is wrong.
type Config struct {
	Namespace     string // admin namespace
	Cluster       string // name of the cluster the server runs in; may be empty
	ClusterDomain string
	Service       string // Service of the relay, for the names in its certificate
	Kubeconfig    string
	Context       string

	BindAddress    string // host for every listener that names none
	RelayAddress   string
	WebhookAddress string // "off": none
	HealthAddress  string // "off": none
	MetricsAddress string // "off": none
	// SnapshotAddress is where the leader's Snapshot can be read: on this machine only, so that who may forward to the Pod's port may read it. "off": nowhere.
	SnapshotAddress string

	WebhookService       string
	WebhookConfiguration string

	Secrets                     relaysecrets.Names
	RelayServerNames            []string // more names and IP addresses in the relay's certificate
	DisableSharedTokenEnrolment bool
	RegisterCluster             string // make the KubernetesCluster of this name

	LeaderElect   bool
	Lease         string
	LeaseDuration time.Duration
	Identity      string // in the Lease; the Pod's name
	InPod         bool   // Identity names a Pod of Namespace

	WarmGrace time.Duration

	RemoteSecrets RemoteSecrets
	// ConfigDistribution keeps a peer of each cluster in every other one (featureGates.ConfigDistribution).
	ConfigDistribution bool

	// UIAddress is where the web UI is; "off": nowhere. UIHosts are the names it may be called by, besides localhost, addresses and its Service.
	UIAddress string
	UIHosts   []string
	// AuditPostgres is a file with the connection string of the PostgreSQL database that keeps the audit log; empty: AuditFile does.
	AuditPostgres string
	// AuditFile keeps the audit log (SQLite); empty: it is written to Audit and not kept.
	AuditFile string
	// AuditMirror writes records to Audit, besides the file.
	AuditMirror bool
	// TelemetryDir keeps the history of edges and spans; empty: only the map is kept, in memory. The others are 0 for the defaults: 15 days, 10 GiB, 7 days, 4 GiB.
	TelemetryDir string
	MetricsAge   time.Duration
	MetricsBytes int64
	TracesAge    time.Duration
	TracesBytes  int64
	// Audit is where audit records go, a line each; nil: standard output.
	Audit io.Writer
}

// RemoteSecrets says how clusters get tokens for each other's API servers.
type RemoteSecrets struct {
	tokens.Settings
	// Off: no cluster is told anything about tokens; what agents have stays as it is.
	Off bool
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	host, err := os.Hostname()
	if err != nil {
		host = "gloo-mesh-mgmt-server"
	}
	return Config{
		Namespace: "gloo-mesh", ClusterDomain: "cluster.local", Service: "gloo-mesh-mgmt-server",
		RelayAddress: ":9900", WebhookAddress: ":9443", HealthAddress: ":8081", MetricsAddress: ":9091", SnapshotAddress: "127.0.0.1:9093", UIAddress: ":8090",
		WebhookService: "gloo-mesh-mgmt-server-webhook", WebhookConfiguration: "gloo-mesh-mgmt-server",
		LeaderElect: true, Lease: "gloo-mesh-mgmt-server", LeaseDuration: 2 * time.Minute, Identity: host, WarmGrace: 30 * time.Second, AuditMirror: true,
	}
}

const off = "off"

// Validate says everything that is wrong, each with the flag to mend.
func (c *Config) Validate() error {
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	c.RemoteSecrets.Settings = c.RemoteSecrets.WithDefaults()
	if err := c.RemoteSecrets.Validate(); err != nil {
		bad("remote-secret-token-ttl", "and --remote-secret-rotate-every: %v", err)
	}
	for flag, v := range map[string]string{"namespace": c.Namespace, "service": c.Service, "lease": c.Lease, "identity": c.Identity, "cluster-domain": c.ClusterDomain} {
		if v == "" {
			bad(flag, "must not be empty")
		}
	}
	for flag, v := range map[string]string{"cluster": c.Cluster, "register-cluster": c.RegisterCluster} {
		if v != "" {
			if err := mesh.ClusterName(v).Validate(); err != nil {
				bad(flag, "%v", err)
			}
		}
	}
	if c.BindAddress != "" && strings.Contains(c.BindAddress, ":") && net.ParseIP(c.BindAddress) == nil {
		bad("bind-address", "%q: want a host or IP address without a port", c.BindAddress)
	}
	for flag, v := range map[string]string{"relay-address": c.RelayAddress, "webhook-address": c.WebhookAddress, "health-address": c.HealthAddress, "metrics-address": c.MetricsAddress} {
		if v == off && flag != "relay-address" {
			continue
		}
		if _, port, err := net.SplitHostPort(v); err != nil || port == "" {
			bad(flag, "%q: want HOST:PORT or :PORT", v)
		}
	}
	if host, port, err := net.SplitHostPort(c.SnapshotAddress); c.SnapshotAddress != off && (err != nil || port == "" || !loopback(host)) {
		bad("snapshot-address", "%q: want 127.0.0.1:PORT, [::1]:PORT or \"off\": whoever can reach it can read it", c.SnapshotAddress)
	}
	if c.WebhookAddress != off && (c.WebhookService == "" || c.WebhookConfiguration == "") {
		bad("webhook-service", "and --webhook-configuration must not be empty while --webhook-address is %q", c.WebhookAddress)
	}
	if c.LeaseDuration < 15*time.Second {
		bad("lease-duration", "%s: want at least 15s", c.LeaseDuration)
	}
	for flag, v := range map[string]int64{
		"telemetry-metrics-age": int64(c.MetricsAge), "telemetry-metrics-bytes": c.MetricsBytes, "telemetry-traces-age": int64(c.TracesAge), "telemetry-traces-bytes": c.TracesBytes,
	} {
		if v < 0 {
			bad(flag, "must not be negative")
		}
	}
	if c.WarmGrace < 0 {
		bad("warm-grace", "%s: must not be negative", c.WarmGrace)
	}
	return errors.Join(errs...)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// bind puts the common host into an address that names none.
func (c *Config) bind(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host != "" {
		return address
	}
	return net.JoinHostPort(c.BindAddress, port)
}

// clientName is the cluster in the management cluster's own client certificate.
func (c *Config) clientName() mesh.ClusterName {
	for _, n := range []string{c.Cluster, c.RegisterCluster} {
		if n != "" {
			return mesh.ClusterName(n)
		}
	}
	return "mgmt"
}

// relayNames are the names in the relay's certificate.
func (c *Config) relayNames() []string {
	q := c.Service + "." + c.Namespace
	return append([]string{"*." + c.Namespace, q, q + ".svc", q + ".svc." + c.ClusterDomain, "localhost"}, c.RelayServerNames...)
}
