package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// readyPaths answer 200 when a cluster can be used: the API server is ready, and the
// controller manager has given the default namespace its service account and
// certificate authority, without which no Pod can be created.
var readyPaths = []string{ //nolint:gochecknoglobals // a constant in all but name
	"/readyz",
	"/api/v1/namespaces/default/serviceaccounts/default",
	"/api/v1/namespaces/default/configmaps/kube-root-ca.crt",
}

// WaitReady returns nil when the cluster can be used. It asks at the in-lab address,
// so it works inside the lab's network namespace only. When ctx ends first the error
// says what was missing at last.
func WaitReady(ctx context.Context, c Cluster) error {
	client, err := c.adminClient()
	if err != nil {
		return fmt.Errorf("cluster %q: %w", c.Name, err)
	}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var missing error
	for {
		now := ready(ctx, client, "https://"+c.APIAddress())
		if now == nil {
			return nil
		}
		if ctx.Err() == nil {
			missing = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("cluster %q is not ready: %w", c.Name, errors.Join(context.Cause(ctx), missing))
		}
	}
}

func ready(ctx context.Context, client *http.Client, base string) error {
	for _, p := range readyPaths {
		if err := get(ctx, client, base+p); err != nil {
			return err
		}
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

func (c Cluster) adminClient() (*http.Client, error) {
	ca, err := os.ReadFile(c.CAFile())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(c.pki("admin.crt"), c.pki("admin.key"))
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair},
		}},
	}, nil
}
