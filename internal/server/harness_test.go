package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	klog.SetSlogLogger(discard())
	os.Exit(kubetest.Main(m))
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// running is a management server in this process.
type running struct {
	t    *testing.T
	cfg  Config
	stop func() error // ends it as SIGTERM does, and says how it ended
}

// config is a server for one test: free ports, its own namespace, no webhook (internal/admission tests it).
func config(t *testing.T, rc *rest.Config, ns string) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.UIAddress = "127.0.0.1:0"
	cfg.Namespace, cfg.Kubeconfig, cfg.Context = ns, kubetest.Kubeconfig(t, rc), "test"
	cfg.BindAddress, cfg.WebhookAddress = "127.0.0.1", off
	for _, a := range []*string{&cfg.RelayAddress, &cfg.HealthAddress, &cfg.MetricsAddress, &cfg.SnapshotAddress} {
		*a = freeAddress(t)
	}
	cfg.WarmGrace, cfg.Audit = 2*time.Second, io.Discard
	return cfg
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func run(t *testing.T, cfg Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(logTo{t}, nil))
	go func() { done <- Run(ctx, cfg, log) }()
	r := &running{t: t, cfg: cfg}
	r.stop = sync.OnceValue(func() error {
		begin := time.Now()
		cancel()
		err := <-done
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("stopping took %s", took)
		}
		return err
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// logTo writes to a test's log for as long as it may.
type logTo struct{ t *testing.T }

func (l logTo) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func (r *running) http(address, path string) (int, string) {
	resp, err := http.Get("http://" + address + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func (r *running) awaitReady() *running {
	r.t.Helper()
	eventually(r.t, 30*time.Second, func() error {
		if code, body := r.http(r.cfg.HealthAddress, "/readyz"); code != http.StatusOK {
			return fmt.Errorf("readyz: %d %s", code, body)
		}
		return nil
	})
	return r
}

func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func setup(t *testing.T) (*rest.Config, client.WithWatch, string) {
	t.Helper()
	rc := kubetest.Start(t)
	c := kubetest.Client(t, rc)
	return rc, c, kubetest.Namespace(t, c)
}

// agent is a spoke that speaks the real protocol with real TLS, and applies what it is told to a map.
type agent struct {
	t         testing.TB
	name      mesh.ClusterName
	uid       mesh.ClusterUID
	inventory *synclog.Source
	spoke     *relay.Spoke
	store     *memory
	stop      func()

	mu      sync.Mutex
	applied map[string]string
	at      map[string]time.Time // when each came first
	latest  time.Time            // when the last new one came
	deletes int
}

// memory is a relay.IdentityStore.
type memory struct {
	sync.Mutex
	id relay.StoredIdentity
}

func (m *memory) Load(context.Context) (relay.StoredIdentity, error) {
	m.Lock()
	defer m.Unlock()
	return m.id, nil
}

func (m *memory) Save(_ context.Context, id relay.StoredIdentity) error {
	m.Lock()
	defer m.Unlock()
	m.id = id
	return nil
}

func register(t testing.TB, c client.Client, ns, name string) *adminv2.KubernetesCluster {
	t.Helper()
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Annotations: map[string]string{
		adminv2.AnnotationRegisteredBy: "jane.doe@bank.example.com", adminv2.AnnotationRegisteredAt: "2026-02-12T10:14:00Z",
	}}}
	if err := c.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	return kc
}

// announce leaves a registration token's hash, as meshctl does, and returns the token.
func announce(t testing.TB, c client.Client, ns, name string, uid mesh.ClusterUID) string {
	t.Helper()
	token := rand.Text()
	h := sha256.Sum256([]byte(token))
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "relay-registration-" + name, Namespace: ns, Labels: map[string]string{"admin.gloo.solo.io/cluster": name}},
		Type:       "ambitmesh.dev/relay-registration",
		Data: map[string][]byte{
			"tokenHash": []byte(hex.EncodeToString(h[:])), "uid": []byte(uid),
			"expires": []byte(time.Now().Add(15 * time.Minute).UTC().Format(time.RFC3339)),
		},
	}
	if err := client.IgnoreNotFound(c.Delete(t.Context(), s.DeepCopy())); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return token
}

// start runs an agent; its roots are read from the management cluster, as meshctl does.
func start(t *testing.T, c client.Client, cfg Config, name, token string) *agent {
	t.Helper()
	var root corev1.Secret
	eventually(t, 20*time.Second, func() error {
		return c.Get(t.Context(), client.ObjectKey{Namespace: cfg.Namespace, Name: "relay-root-tls-secret"}, &root)
	})
	return startWith(t, cfg, name, mesh.ClusterUID("uid-of-"+name), &memory{id: relay.StoredIdentity{Roots: root.Data["ca.crt"], Token: token}})
}

func startWith(t testing.TB, cfg Config, name string, uid mesh.ClusterUID, store *memory) *agent {
	t.Helper()
	a := &agent{t: t, name: mesh.ClusterName(name), uid: uid, store: store, applied: map[string]string{}, at: map[string]time.Time{}, inventory: synclog.NewSource(rand.Text())}
	info, err := json.Marshal(mesh.ClusterInfo{TrustDomain: "cluster.local", IstioVersion: "1.28.0", Network: "net-" + name})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.inventory.Set(synclog.Key{Type: mesh.ItemCluster, Name: "cluster"}, info); err != nil {
		t.Fatal(err)
	}
	a.inventory.SetComplete(true)
	a.spoke, err = relay.NewSpoke(relay.SpokeConfig{
		ServerAddress: cfg.RelayAddress, Authority: "gloo-mesh-mgmt-server." + cfg.Namespace, Cluster: a.name, UID: uid, Version: "2.12.0",
		Identity: a.store, Inventory: a.inventory, OnDesired: a.apply, Log: discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.spoke.Run(ctx) }()
	go func() {
		for ctx.Err() == nil {
			a.prune()
			time.Sleep(50 * time.Millisecond)
		}
	}()
	a.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(a.stop)
	return a
}

// apply does as the agent does: it applies what is set, reports outcomes, and prunes only by a complete state.
func (a *agent) apply(_ context.Context, ch synclog.Changes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for k, v := range ch.Set {
		if k.Type == mesh.ItemTokens || k.Type == mesh.ItemTokenEnvelope {
			continue
		}
		if a.at[k.Name].IsZero() {
			a.at[k.Name], a.latest = now, now
		}
		a.applied[k.Name] = string(v)
		raw, err := json.Marshal(mesh.Outcome{Hash: mesh.FingerprintOf(v), OK: true})
		if err == nil {
			err = a.inventory.Set(synclog.Key{Type: mesh.ItemOutcome, Name: k.Name}, raw)
		}
		if err != nil {
			a.t.Error(err)
		}
	}
}

// prune removes what is not in a complete desired state.
func (a *agent) prune() {
	a.mu.Lock()
	defer a.mu.Unlock()
	desired := a.spoke.Desired()
	if !desired.Complete {
		return
	}
	for name := range a.applied {
		if _, ok := desired.Items[synclog.Key{Type: mesh.ItemObject, Name: name}]; !ok {
			delete(a.applied, name)
			a.inventory.Delete(synclog.Key{Type: mesh.ItemOutcome, Name: name})
			a.deletes++
		}
	}
}

// report tells the server what runs in the agent's cluster.
func (a *agent) report(items ...any) {
	a.t.Helper()
	for _, it := range items {
		if err := a.inventory.Set(itemOf(it)); err != nil {
			a.t.Fatal(err)
		}
	}
}

func itemOf(it any) (synclog.Key, []byte) {
	var key synclog.Key
	switch it := it.(type) {
	case mesh.Namespace:
		key = synclog.Key{Type: mesh.ItemNamespace, Name: it.Name}
	case mesh.Service:
		key = synclog.Key{Type: mesh.ItemService, Name: it.Namespace + "/" + it.Name}
	case mesh.ServiceAccount:
		key = synclog.Key{Type: mesh.ItemServiceAccount, Name: it.Namespace + "/" + it.Name}
	}
	raw, err := json.Marshal(it)
	if err != nil {
		panic(err)
	}
	return key, raw
}

// outcome changes what the agent says of an object it has.
func (a *agent) outcome(name string, change func(*mesh.Outcome)) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	manifest, ok := a.applied[name]
	if !ok {
		a.t.Fatalf("%s does not have %s", a.name, name)
	}
	o := mesh.Outcome{Hash: mesh.FingerprintOf([]byte(manifest)), OK: true}
	change(&o)
	raw, err := json.Marshal(o)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.inventory.Set(synclog.Key{Type: mesh.ItemOutcome, Name: name}, raw); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) state() (map[string]string, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.applied), a.deletes
}

// brief is what a person reads first.
func brief(kc *adminv2.KubernetesCluster) string {
	return fmt.Sprintf("%s %s %s", kc.Status.Common.State.Approval, kc.Status.Connection, kc.Status.AgentVersion)
}

func await(t *testing.T, c client.Client, ns, name, want string) *adminv2.KubernetesCluster {
	t.Helper()
	kc := &adminv2.KubernetesCluster{}
	eventually(t, 40*time.Second, func() error {
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, kc); err != nil {
			return err
		}
		if got := brief(kc); got != want {
			return fmt.Errorf("cluster %s: %q, want %q; conditions %v", name, got, want, kc.Status.Conditions)
		}
		return nil
	})
	return kc
}

func awaitCondition(t *testing.T, c client.Client, ns, name, kind, status string) metav1.Condition {
	t.Helper()
	var found metav1.Condition
	eventually(t, 20*time.Second, func() error {
		kc := &adminv2.KubernetesCluster{}
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, kc); err != nil {
			return err
		}
		for _, cond := range kc.Status.Conditions {
			if cond.Type == kind && string(cond.Status) == status {
				found = cond
				return nil
			}
		}
		return fmt.Errorf("cluster %s: no condition %s=%s in %v", name, kind, status, kc.Status.Conditions)
	})
	return found
}

func events(t *testing.T, c client.Client, ns, name string) []string {
	t.Helper()
	var list corev1.EventList
	if err := c.List(t.Context(), &list, client.InNamespace(ns), client.MatchingFields{"involvedObject.name": name}); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, e.Type+" "+e.Reason+": "+e.Message)
	}
	slices.Sort(out)
	return out
}
