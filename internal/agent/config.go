// Package agent is the agent's composition root: it joins the relay's spoke with the cluster's eyes (observe) and hands (apply).
//
// In: a Config. Out: a running agent until its context ends or a task fails. It must not hold rules: each package does its own work, and this one only hands
// values on and keeps the agent's identity in Secrets of its own namespace.
package agent

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Secrets names the agent's own Secrets.
type Secrets struct {
	Root         string // ca.crt: verifies the management server; current root and successor
	Client       string // tls.crt, tls.key: who this cluster is; pending.key while a certificate is being asked for
	Registration string // token: single use, written by meshctl, deleted after use
	Identity     string // the shared token, if that is how clusters enrol
	IdentityKey  string // the key in it
}

// Config is everything that can be said about an agent.
type Config struct {
	Cluster   mesh.ClusterName
	Namespace string
	Server    string // host:port
	Authority string // name in the server's certificate
	Secrets   Secrets

	IstioNamespace string // where istiod runs
	IstioTokenFile string // the service account's token for audience istio-ca; empty: nothing is probed
	// RemoteSecrets: the agent makes tokens for other clusters, and remote secrets of theirs, as the management server says.
	RemoteSecrets bool
	// APIServer is the URL of this cluster's API server as other clusters reach it; empty: what it advertises.
	APIServer      string
	RenewRatio     float64 // of a certificate's life after which it is renewed; 0: the default
	Kubeconfig     string  // empty: the cluster this Pod runs in
	Context        string
	BindAddress    string // host for every listener that names none
	HealthAddress  string // "off": none
	MetricsAddress string // "off": none
	// Telemetry: read the metrics of Istio's proxies and send what they say of edges.
	Telemetry bool
	// OTLPAddress is where applications and proxies send spans (OTLP, gRPC). "off": nowhere.
	OTLPAddress string
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Namespace: "gloo-mesh", IstioNamespace: "istio-system", Authority: "gloo-mesh-mgmt-server.gloo-mesh",
		Secrets: Secrets{
			Root: "relay-root-tls-secret", Client: "relay-client-tls-secret", Registration: "relay-registration-token",
			Identity: "relay-identity-token-secret", IdentityKey: "token",
		},
		HealthAddress: ":8090", MetricsAddress: ":9091", Telemetry: true, OTLPAddress: off,
	}
}

// off is the address of a listener that is not wanted.
const off = "off"

// Validate says everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if err := c.Cluster.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("--cluster: %w", err))
	}
	if host, port, err := net.SplitHostPort(c.Server); err != nil || host == "" || port == "" {
		errs = append(errs, fmt.Errorf("--relay-server-address %q: want HOST:PORT under which this cluster reaches the management server, e.g. gloo-mesh-mgmt-server.example.com:9900", c.Server))
	}
	if c.Namespace == "" {
		errs = append(errs, errors.New("--namespace is empty: want the namespace of the agent's Secrets"))
	}
	if c.IstioNamespace == "" {
		errs = append(errs, errors.New("--istio-namespace is empty: want the namespace that istiod runs in"))
	}
	if u, err := url.Parse(c.APIServer); c.APIServer != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil) {
		errs = append(errs, fmt.Errorf("--api-server %q: want https://HOST:PORT under which other clusters reach this cluster's API server", c.APIServer))
	}
	if c.RenewRatio < 0 || c.RenewRatio >= 1 {
		errs = append(errs, fmt.Errorf("--client-certificate-renewal-ratio %v: want a number between 0 and 1, e.g. 0.5 for half of the certificate's life", c.RenewRatio))
	}
	for flag, name := range map[string]string{
		"--relay-root-tls-secret": c.Secrets.Root, "--relay-client-tls-secret": c.Secrets.Client,
		"--relay-registration-token-secret": c.Secrets.Registration, "--relay-identity-token-secret": c.Secrets.Identity,
	} {
		if name == "" {
			errs = append(errs, fmt.Errorf("%s is empty: want the name of a Secret in namespace %s", flag, c.Namespace))
		}
	}
	for flag, address := range map[string]string{"--health-address": c.HealthAddress, "--metrics-address": c.MetricsAddress, "--otlp-address": c.OTLPAddress} {
		if address != off && !strings.Contains(address, ":") {
			errs = append(errs, fmt.Errorf("%s %q: want HOST:PORT, :PORT or %q", flag, address, off))
		}
	}
	return errors.Join(errs...)
}

// listenOn fills in the bind address.
func (c Config) listenOn(address string) string {
	if host, port, err := net.SplitHostPort(address); err == nil && host == "" {
		return net.JoinHostPort(c.BindAddress, port)
	}
	return address
}
