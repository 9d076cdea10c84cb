package authority

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

// maxVaultAnswer bounds what is read of an answer, in bytes.
const maxVaultAnswer = 1 << 20

// connection returns the client, a new one when the bundle has changed.
func (v *vault) connection(ctx context.Context) (*vaultapi.Client, error) {
	bundle, err := v.trust(ctx)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.client != nil && bytes.Equal(v.bundle, bundle) {
		return v.client, nil
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxConnsPerHost: vaultAtOnce, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: v.Timeout, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if len(bundle) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(bundle) {
			return nil, &Misconfigured{Detail: fmt.Sprintf("Vault %s: the bundle that verifies it has no certificate", v.Server), Fix: "want PEM"}
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	client, err := vaultapi.NewClient(&vaultapi.Config{Address: v.Server, HttpClient: &http.Client{Transport: transport}, DisableRedirects: false})
	if err != nil {
		return nil, &Misconfigured{Detail: "Vault " + v.Server, Err: err}
	}
	client.ClearToken() // the library reads VAULT_TOKEN and VAULT_NAMESPACE
	client.ClearNamespace()
	if v.Namespace != "" {
		client.SetNamespace(v.Namespace)
	}
	client.SetMaxRetries(0) // callers back off
	v.client, v.bundle = client, bundle
	return client, nil
}

// trust is the PEM by which Vault's TLS certificate is verified; empty: the system's roots.
func (v *vault) trust(ctx context.Context) ([]byte, error) {
	switch {
	case v.BundleSecret != "":
		return v.secret(ctx, v.BundleSecret, keyRoot)
	case v.BundleFile != "":
		b, err := os.ReadFile(v.BundleFile)
		if err != nil {
			return nil, &Misconfigured{Detail: "Vault " + v.Server, Fix: "mount the file that caLocalPath names", Err: err}
		}
		return b, nil
	}
	return v.Bundle, nil
}

// secret reads a key of a Secret.
func (v *vault) secret(ctx context.Context, name, key string) ([]byte, error) {
	data, err := v.Secrets.Get(ctx, name)
	if err != nil {
		return nil, &Unavailable{Detail: "Secret " + name, Err: err}
	}
	if len(data[key]) == 0 {
		return nil, &Misconfigured{Detail: fmt.Sprintf("Vault %s: there is no Secret %s with key %s", v.Server, name, key), Fix: "make it in the policy's namespace"}
	}
	return bytes.TrimSpace(data[key]), nil
}

// login gives the client a token. Where people supply the token, it is read anew: they replace it.
func (v *vault) login(ctx context.Context, c *vaultapi.Client) error {
	mount, body := "", map[string]any{}
	switch {
	case v.TokenSecret != "":
		token, err := v.secret(ctx, v.TokenSecret, "token")
		if err == nil {
			c.SetToken(string(token))
		}
		return err
	case v.Kubernetes != nil:
		jwt, err := v.serviceAccountToken(ctx)
		if err != nil {
			return err
		}
		mount, body["role"], body["jwt"] = v.Kubernetes.Mount, v.Kubernetes.Role, jwt
	case v.AppRole != nil:
		secret, err := v.secret(ctx, v.AppRole.Secret, "secret-id")
		if err != nil {
			return err
		}
		mount, body["role_id"], body["secret_id"] = v.AppRole.Mount, v.AppRole.RoleID, string(secret)
	default:
		return &Misconfigured{Detail: fmt.Sprintf("Vault %s: there is no way to log in", v.Server), Fix: "write kubernetesAuth, appRole or tokenSecretRef"}
	}
	raw, err := v.send(ctx, c, mount+"/login", body)
	if err != nil {
		if r, ok := errors.AsType[*Refused](err); ok {
			r.Detail += ": the login is refused; does the role exist there, and does it admit this identity?"
		}
		return err
	}
	var s struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	if err := json.Unmarshal(raw, &s); err != nil || s.Auth.Token == "" {
		return &Misconfigured{Detail: fmt.Sprintf("Vault %s: %s/login gives no token", v.Server, mount), Fix: "mountPath is that of an auth method, such as /v1/auth/kubernetes"}
	}
	c.SetToken(s.Auth.Token)
	return nil
}

func (v *vault) serviceAccountToken(ctx context.Context) (string, error) {
	k := v.Kubernetes
	if k.ServiceAccount == "" {
		b, err := os.ReadFile(filepath.Join(k.Folder, "token")) // anew each time: the kubelet replaces it
		if err != nil {
			return "", &Misconfigured{Detail: "Vault " + v.Server, Fix: "mountedSaPath is a folder with a file named token", Err: err}
		}
		return string(bytes.TrimSpace(b)), nil
	}
	if v.Token == nil {
		return "", &Misconfigured{Detail: fmt.Sprintf("Vault %s: there is nobody to ask for a token of service account %s", v.Server, k.ServiceAccount)}
	}
	token, err := v.Token(ctx, k.ServiceAccount)
	if bad, ok := errors.AsType[*Misconfigured](err); ok {
		return "", bad
	}
	if err != nil {
		return "", &Unavailable{Detail: "a token of service account " + k.ServiceAccount, Err: err}
	}
	return token, nil
}

// write sends body as somebody who is logged in: once more after a new login, when the token has ended.
func (v *vault) write(ctx context.Context, path string, body map[string]any) ([]byte, error) {
	c, err := v.connection(ctx)
	if err != nil {
		return nil, err
	}
	used := c.Token()
	if used != "" {
		raw, err := v.send(ctx, c, path, body)
		if !refused(err) {
			return raw, err
		}
	}
	if now := c.Token(); now == used { // nobody else has logged in meanwhile
		if err := v.login(ctx, c); err != nil {
			return nil, err
		}
	}
	raw, err := v.send(ctx, c, path, body)
	if r, ok := errors.AsType[*Refused](err); ok && refused(err) {
		r.Detail += fmt.Sprintf(`: want a Vault policy with path %q { capabilities = ["update"] }, and a token that lives`, path)
	}
	return raw, err
}

func (v *vault) send(ctx context.Context, c *vaultapi.Client, path string, body map[string]any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	resp, err := c.Logical().WriteRawWithContext(ctx, path, text)
	return v.take(path, resp, err)
}

func (v *vault) read(ctx context.Context, path string) ([]byte, error) {
	c, err := v.connection(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := c.Logical().ReadRawWithContext(ctx, path)
	return v.take(path, resp, err)
}

func (v *vault) list(ctx context.Context, path string) ([]string, error) {
	c, err := v.connection(ctx)
	if err != nil {
		return nil, err
	}
	s, err := c.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, v.failure(path, nil, err)
	}
	var keys []string
	if s != nil {
		list, _ := s.Data["keys"].([]any)
		for _, k := range list {
			keys = append(keys, fmt.Sprint(k))
		}
	}
	return keys, nil
}

// take reads an answer whole.
func (v *vault) take(path string, resp *vaultapi.Response, err error) ([]byte, error) {
	if resp != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return nil, v.failure(path, resp, err)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxVaultAnswer))
	if err != nil {
		return nil, v.failure(path, resp, err)
	}
	return raw, nil
}

// failure sorts what went wrong. Vault's own words hold no secrets: it never repeats tokens.
func (v *vault) failure(path string, resp *vaultapi.Response, err error) error {
	what := fmt.Sprintf("Vault %s: %s", v.Server, path)
	e, ok := errors.AsType[*vaultapi.ResponseError](err)
	if !ok {
		if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return &Misconfigured{Detail: what, Fix: "write caBundle, caSecretRef or caLocalPath with the CA of Vault's own certificate", Err: bad.Err}
		}
		return &Unavailable{Detail: what, Err: err}
	}
	said := strings.Join(e.Errors, "; ")
	err = &vaultSaid{e, said}
	switch code := e.StatusCode; {
	case code == http.StatusForbidden:
		return &Refused{Detail: what, Err: err}
	case code == http.StatusNotFound || code == http.StatusMethodNotAllowed || strings.Contains(said, "no handler for route") || strings.Contains(said, "unsupported path"):
		return &Misconfigured{Detail: what + ": there is no such endpoint", Fix: "is the mount right? `vault secrets list` and `vault auth list` tell them", Err: err}
	case code == http.StatusServiceUnavailable && strings.Contains(said, "sealed"):
		return &Unavailable{Detail: what + ": Vault is sealed", Err: err, RetryAfter: retryAfter(resp)}
	case code == http.StatusTooManyRequests, code == http.StatusPreconditionFailed, code >= 500, code == 472, code == 473:
		return &Unavailable{Detail: what, Err: err, RetryAfter: retryAfter(resp)}
	default:
		return &Refused{Detail: what, Err: err}
	}
}

// vaultSaid is an answer of Vault on one line, without the URL.
type vaultSaid struct {
	*vaultapi.ResponseError
	text string
}

func (e *vaultSaid) Error() string { return fmt.Sprintf("%d: %.300s", e.StatusCode, e.text) }
func (e *vaultSaid) Unwrap() error { return e.ResponseError }

// retryAfter reads the header of that name, in seconds, at most ten minutes.
func retryAfter(resp *vaultapi.Response) time.Duration {
	if resp == nil {
		return 0
	}
	n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, 10*time.Minute)
}
