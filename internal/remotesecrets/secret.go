package remotesecrets

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
)

// What makes a Secret of istiod's namespace a remote secret (istio: pkg/kube/multicluster; istioctl create-remote-secret).
const (
	labelMulti     = "istio/multiCluster"
	noteCluster    = "networking.istio.io/cluster"
	prefixSecret   = "istio-remote-secret-" //nolint:gosec // a name
	noteAdded      = "admin.gloo.solo.io/token-added"
	maxProbeAnswer = 1 << 20
)

// remote is what is kept of a remote secret: no credential.
type remote struct {
	name       string
	ours       bool
	ids        []string // the clusters in it, sorted
	sums       map[string][sha256.Size]byte
	generation mesh.TokenGeneration
	added      mesh.TokenGeneration // the one it was created with
	issued     time.Time
	expires    time.Time
	written    time.Time
	manager    string
	version    string
}

func readRemote(u *unstructured.Unstructured) *remote {
	a := u.GetAnnotations()
	r := &remote{
		name: u.GetName(), ours: u.GetLabels()[mesh.OwnerLabel] == mesh.OwnerValue, generation: generation(a), sums: map[string][sha256.Size]byte{},
		issued: when(a[noteIssued]), expires: when(a[noteExpires]), written: when(a[noteWritten]), version: u.GetResourceVersion(),
	}
	n, _ := strconv.ParseInt(a[noteAdded], 10, 64)
	r.added = mesh.TokenGeneration(n)
	data, err := dataOf(u)
	if err != nil {
		data = nil
	}
	for id, v := range data {
		r.sums[id] = sha256.Sum256(v)
	}
	r.ids = slices.Sorted(maps.Keys(data))
	for _, m := range u.GetManagedFields() {
		if r.manager = m.Manager; m.Manager != mesh.FieldManager {
			break
		}
	}
	return r
}

// remoteSecret is what istiod reads a cluster by.
func (p *pass) remoteSecret(peer mesh.TokenPeer, e *mesh.TokenEnvelope, c mesh.TokenCredential, before *remote) *unstructured.Unstructured {
	added := e.Generation
	if before != nil && before.added != 0 {
		added = before.added
	}
	number := func(g mesh.TokenGeneration) string { return strconv.FormatInt(int64(g), 10) }
	u := newSecret(p.k.cfg.IstioNamespace, prefixSecret+string(peer.Cluster), map[string]string{
		noteCluster: peer.IstioID, notePeer: string(peer.Cluster), noteGeneration: number(e.Generation), noteAdded: number(added),
		noteIssued: e.Issued.UTC().Format(time.RFC3339), noteExpires: e.Expires.UTC().Format(time.RFC3339), noteWritten: time.Now().UTC().Format(time.RFC3339),
	})
	u.SetLabels(map[string]string{mesh.OwnerLabel: mesh.OwnerValue, labelMulti: "true"})
	fill(u, map[string][]byte{peer.IstioID: kubeconfig(peer.IstioID, c)})
	return u
}

// kubeconfig is as istioctl writes it: istiod takes a token, and refuses programs and files.
func kubeconfig(id string, c mesh.TokenCredential) []byte {
	q := strconv.Quote
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
users:
- name: %[1]s
  user:
    token: %[4]s
contexts:
- name: %[1]s
  context:
    cluster: %[1]s
    user: %[1]s
current-context: %[1]s
`, q(id), q(c.Server), base64.StdEncoding.EncodeToString(c.CA), q(c.Token))
}

// errRefused: the API server does not take the token.
var errRefused = errors.New("the API server does not accept the token")

// probeCredential asks an API server who the token's owner is (SelfSubjectReview): by the API server that istiods will use, at the address that they will use.
func probeCredential(ctx context.Context, c mesh.TokenCredential) error {
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("the address of its API server %q: want https://HOST:PORT", c.Server)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.CA) {
		return errors.New("the CA of its API server is no PEM")
	}
	client := &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       5 * time.Second,
	}
	body := []byte(`{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.Server, "/")+"/apis/authentication.k8s.io/v1/selfsubjectreviews", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.Token)
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("its API server at %s can't be reached from this cluster (look at glooAgent.remoteSecrets.apiServer there, and at firewalls between): %w", c.Server, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxProbeAnswer))
	switch resp.StatusCode {
	case http.StatusCreated, http.StatusOK, http.StatusForbidden, http.StatusNotFound: // 403, 404: it knows the caller, and has no such review for it
		return nil
	case http.StatusUnauthorized:
		return errRefused
	}
	return fmt.Errorf("its API server at %s answers %s", c.Server, resp.Status)
}
