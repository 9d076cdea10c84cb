package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/agent"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/test/kubetest"
)

const (
	name  = mesh.ClusterName("prod-eu-west-3")
	token = "one-time-token-of-the-test"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// hub is a real relay hub on loopback; the test is its Gate and its certificate family.
type hub struct {
	t       testing.TB
	family  *family.Family
	address string
	hub     *relay.Hub
	stop    func()

	mu         sync.Mutex
	registered bool
	uid        mesh.ClusterUID
	used       mesh.Fingerprint
	admitted   []relay.Identity
}

func newHub(t testing.TB) *hub {
	t.Helper()
	f, err := family.Generate(time.Now(), family.Options{ServerNames: []string{"gloo-mesh-mgmt-server.gloo-mesh"}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{t: t, family: f, address: l.Addr().String()}
	h.serve(l)
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *hub) serve(l net.Listener) {
	h.hub = relay.NewHub(relay.HubConfig{Family: h, Gate: h, Version: "2.12.0", Heartbeat: time.Second})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	serving := h.hub
	go func() { done <- serving.Serve(ctx, l) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("hub: %v", err)
		}
	})
}

// returns starts a hub that knows nothing at the address of the one that was stopped.
func (h *hub) returns() {
	h.t.Helper()
	l, err := net.Listen("tcp", h.address)
	if err != nil {
		h.t.Fatal(err)
	}
	h.serve(l)
}

// Current and Changed make it a relay.FamilySource.
func (h *hub) Current() *family.Family  { return h.family }
func (h *hub) Changed() <-chan struct{} { return nil }

// Enrol, Issued and Admit make it a relay.Gate.
func (h *hub) Enrol(_ context.Context, a relay.EnrolAttempt) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.registered:
		return relay.Refuse(relayv1.Goodbye_NOT_REGISTERED, "cluster %q is not registered: run meshctl cluster register", a.Cluster)
	case a.Token != token || (!h.used.IsZero() && h.used != a.Key):
		return relay.Refuse(relayv1.Goodbye_BAD_TOKEN, "the token is unknown or used")
	}
	h.used = a.Key
	return nil
}

func (h *hub) Issued(context.Context, relay.Identity) error { return nil }

func (h *hub) Admit(_ context.Context, id relay.Identity, hello relay.Hello) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.registered {
		return relay.Refuse(relayv1.Goodbye_NOT_REGISTERED, "cluster %q is not registered: run meshctl cluster register", id.Cluster)
	}
	if h.uid != "" && h.uid != hello.UID {
		return relay.Refuse(relayv1.Goodbye_WRONG_CLUSTER, "cluster %q is another one", id.Cluster)
	}
	h.uid = hello.UID
	h.admitted = append(h.admitted, id)
	return nil
}

func (h *hub) register() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.registered = true
}

// sessions are the identities that were let in so far.
func (h *hub) sessions() []relay.Identity {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]relay.Identity(nil), h.admitted...)
}

func (h *hub) connected() bool {
	for _, s := range h.hub.Sessions() {
		if s.Cluster == name && s.Connected {
			return true
		}
	}
	return false
}

func (h *hub) publish(complete bool, manifests ...map[string]any) {
	h.t.Helper()
	items := map[synclog.Key][]byte{}
	for _, m := range manifests {
		raw, err := json.Marshal(m)
		if err != nil {
			h.t.Fatal(err)
		}
		meta := m["metadata"].(map[string]any)
		group, version, named := strings.Cut(m["apiVersion"].(string), "/")
		if !named {
			group, version = "", group
		}
		r := mesh.Ref{Group: group, Version: version, Kind: m["kind"].(string), Namespace: meta["namespace"].(string), Name: meta["name"].(string)}
		items[synclog.Key{Type: mesh.ItemObject, Name: r.String()}] = raw
	}
	if err := h.hub.Publish(name, items, complete); err != nil {
		h.t.Fatal(err)
	}
}

// item reads an inventory item; false: not there.
func (h *hub) item(kind, name_ string, into any) bool {
	items, _ := h.hub.Inventory(name)
	raw, ok := items[synclog.Key{Type: kind, Name: name_}]
	return ok && json.Unmarshal(raw, into) == nil
}

func (h *hub) roots() []byte { return family.CertPEM(h.family.TrustBundle()...) }

// gateway stands before the API server and can be shut.
type gateway struct {
	t      testing.TB
	target string
	l      net.Listener

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]struct{}
}

func newGateway(t testing.TB, target string) *gateway {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, target: target, l: l, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() { l.Close(); g.setShut(true) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.carry(c)
		}
	}()
	return g
}

func (g *gateway) carry(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", g.target)
	if err != nil {
		return
	}
	defer up.Close()
	g.mu.Lock()
	if g.shut {
		g.mu.Unlock()
		return
	}
	g.conns[c], g.conns[up] = struct{}{}, struct{}{}
	g.mu.Unlock()
	go func() { _, _ = io.Copy(up, c); up.Close() }()
	_, _ = io.Copy(c, up)
	g.mu.Lock()
	delete(g.conns, c)
	delete(g.conns, up)
	g.mu.Unlock()
}

// setShut cuts every connection and refuses new ones, or lets them pass again.
func (g *gateway) setShut(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	if shut {
		for c := range g.conns {
			c.Close()
		}
	}
}

// site is an agent with its cluster.
type site struct {
	t         *testing.T
	kube      client.WithWatch
	namespace string
	gateway   *gateway
	cfg       agent.Config
	log       *syncBuffer
	stop      func()
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newSite prepares a namespace as meshctl does: the root, and a token if it is not empty. Nothing runs yet.
func newSite(t *testing.T, h *hub, token string) *site {
	t.Helper()
	admin := kubetest.Start(t)
	s := &site{t: t, kube: kubetest.Client(t, admin)}
	s.namespace = kubetest.Namespace(t, s.kube)
	s.gateway = newGateway(t, hostOf(t, admin))
	through := rest.CopyConfig(admin)
	through.Host = "https://" + s.gateway.l.Addr().String()
	s.cfg = agent.DefaultConfig()
	s.cfg.Cluster, s.cfg.Namespace, s.cfg.Server = name, s.namespace, h.address
	s.cfg.Kubeconfig = kubetest.Kubeconfig(t, through)
	s.cfg.HealthAddress, s.cfg.MetricsAddress = free(t), free(t)
	s.secret("relay-root-tls-secret", map[string][]byte{"ca.crt": h.roots()})
	if token != "" {
		s.secret("relay-registration-token", map[string][]byte{"token": []byte(token)})
	}
	t.Cleanup(func() {
		if s.stop != nil {
			s.stop()
		}
		if t.Failed() && s.log != nil {
			t.Log(s.log.String())
		}
	})
	return s
}

// actAs gives the agent a ServiceAccount of its own, with these rights in its namespace and those in all.
func (s *site) actAs(role, cluster []rbacv1.PolicyRule) {
	s.t.Helper()
	meta := metav1.ObjectMeta{Name: "gloo-mesh-agent", Namespace: s.namespace}
	everywhere := metav1.ObjectMeta{Name: "gloo-mesh-agent-of-" + s.namespace}
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Name: meta.Name, Namespace: s.namespace}}
	for _, o := range []client.Object{
		&corev1.ServiceAccount{ObjectMeta: meta},
		&rbacv1.Role{ObjectMeta: meta, Rules: role},
		&rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name}},
		&rbacv1.ClusterRole{ObjectMeta: everywhere, Rules: cluster},
		&rbacv1.ClusterRoleBinding{ObjectMeta: everywhere, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: everywhere.Name}},
	} {
		if err := s.kube.Create(s.t.Context(), o); err != nil {
			s.t.Fatal(err)
		}
	}
	request := &authenticationv1.TokenRequest{}
	if err := s.kube.SubResource("token").Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: meta}, request); err != nil {
		s.t.Fatal(err)
	}
	admin := kubetest.Start(s.t)
	through := &rest.Config{Host: "https://" + s.gateway.l.Addr().String(), BearerToken: request.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: admin.CAData}}
	s.cfg.Kubeconfig = kubetest.Kubeconfig(s.t, through)
}

func hostOf(t testing.TB, cfg *rest.Config) string {
	t.Helper()
	u, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *site) run() {
	s.t.Helper()
	s.log = &syncBuffer{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, s.cfg, slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("the agent ended: %v", err)
		}
	})
}

// secret writes a Secret, new or not; nil data deletes it.
func (s *site) secret(name string, data map[string][]byte) {
	s.t.Helper()
	o := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace}, Data: data}
	err := s.kube.Create(context.Background(), o)
	if apierrors.IsAlreadyExists(err) {
		err = s.kube.Update(context.Background(), o)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// data is what a Secret holds; nil: it does not exist.
func (s *site) data(name string) map[string][]byte {
	s.t.Helper()
	var o corev1.Secret
	switch err := s.kube.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: name}, &o); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		s.t.Fatal(err)
	}
	return o.Data
}

func (s *site) get(url string) (int, string) {
	resp, err := http.Get("http://" + url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw)
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (s *site) ready() bool {
	code, _ := s.get(s.cfg.HealthAddress + "/readyz")
	return code == http.StatusOK
}

func (s *site) within(d time.Duration, what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			_, status := s.get(s.cfg.MetricsAddress + "/status")
			s.t.Fatalf("not within %s: %s\nstatus: %s", d, what, status)
		}
	}
}

// istio installs Istio's own definitions of its policies.
func (s *site) istio() {
	s.t.Helper()
	raw, err := os.ReadFile("../apply/testdata/security.istio.io.yaml")
	if err != nil {
		s.t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(raw), "\n---\n") {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict([]byte(doc), &crd); err != nil {
			s.t.Fatal(err)
		}
		if err := s.kube.Create(s.t.Context(), &crd); err != nil && !apierrors.IsAlreadyExists(err) {
			s.t.Fatal(err)
		}
	}
}

// configMap is a desired object in the agent's namespace.
func (s *site) configMap(name, value string) map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": name, "namespace": s.namespace, "labels": map[string]any{"owner.gloo.solo.io/name": "gloo-mesh"}},
		"data":     map[string]any{"key": value},
	}
}

// policy is a desired AuthorizationPolicy of usual size.
func (s *site) policy(name string) map[string]any {
	principals := make([]any, 5)
	for i := range principals {
		principals[i] = fmt.Sprintf("cluster-%d.example.com/ns/payments/sa/payments", i)
	}
	return map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"name": name, "namespace": s.namespace, "labels": map[string]any{"owner.gloo.solo.io/name": "gloo-mesh", "context.mesh.gloo.solo.io/workspace": "payments"}},
		"spec": map[string]any{
			"action": "ALLOW", "selector": map[string]any{"matchLabels": map[string]any{"app": name}},
			"rules": []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{"principals": principals}}}}},
		},
	}
}

// value is what a ConfigMap holds, with its UID.
func (s *site) value(name string) string {
	s.t.Helper()
	var o corev1.ConfigMap
	if err := s.kube.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: name}, &o); err != nil {
		return err.Error()
	}
	return fmt.Sprint(o.Data["key"], " ", o.UID)
}
