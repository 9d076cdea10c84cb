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
	"github.com/google/go-cmp/cmp"
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
	cfg.Namespace, cfg.Kubeconfig, cfg.Context = ns, kubetest.Kubeconfig(t, rc), "test"
	cfg.BindAddress, cfg.WebhookAddress = "127.0.0.1", off
	for _, a := range []*string{&cfg.RelayAddress, &cfg.HealthAddress, &cfg.MetricsAddress} {
		*a = freeAddress(t)
	}
	cfg.WarmGrace = 2 * time.Second
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
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
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
	a := &agent{t: t, name: mesh.ClusterName(name), uid: uid, store: store, applied: map[string]string{}, inventory: synclog.NewSource(rand.Text())}
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
	for k, v := range ch.Set {
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
			a.deletes++
		}
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

func TestFirstStart(t *testing.T) {
	t.Parallel()
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	cfg.Cluster, cfg.RegisterCluster = "mgmt", "mgmt"
	begin := time.Now()
	r := run(t, cfg).awaitReady()
	t.Logf("ready after %s", time.Since(begin).Round(time.Millisecond))
	for _, name := range []string{"relay-root-tls-secret", "relay-server-tls-secret", "relay-client-tls-secret", "relay-tls-signing-secret", "relay-identity-token-secret"} {
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &corev1.Secret{}); err != nil {
			t.Errorf("after the first start: %v", err)
		}
	}
	await(t, c, ns, "mgmt", "PENDING Pending ")
	if code, _ := r.http(cfg.HealthAddress, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d", code)
	}
	eventually(t, 10*time.Second, func() error {
		code, body := r.http(cfg.MetricsAddress, "/metrics")
		if code != http.StatusOK || !strings.Contains(body, "gloo_mesh_leader 1") || !strings.Contains(body, `gloo_mesh_clusters{connection="Pending"} 1`) {
			return fmt.Errorf("metrics: %d\n%s", code, body)
		}
		return nil
	})
	// a port in use is said at once, with its flag
	second := cfg
	second.RelayAddress, second.HealthAddress = freeAddress(t), freeAddress(t)
	if err := Run(t.Context(), second, discard()); err == nil || !strings.Contains(err.Error(), "--metrics-address") {
		t.Errorf("port in use: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func TestOnlyOneLeadsAndTheOtherTakesOver(t *testing.T) {
	t.Parallel()
	rc, _, ns := setup(t)
	first, second := config(t, rc, ns), config(t, rc, ns)
	first.Identity, second.Identity = "pod-a", "pod-b"
	first.LeaseDuration, second.LeaseDuration = 15*time.Second, 15*time.Second
	a := run(t, first).awaitReady()
	b := run(t, second)
	time.Sleep(3 * time.Second)
	if code, body := b.http(second.HealthAddress, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "lead") {
		t.Errorf("the standby says it is ready: %d %s", code, body)
	}
	if conn, err := net.Dial("tcp", second.RelayAddress); err == nil {
		conn.Close()
		t.Error("the standby listens for agents")
	}
	begin := time.Now()
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	b.awaitReady()
	t.Logf("taken over after %s", time.Since(begin).Round(time.Millisecond))
}

// Register, connect, deregister; what meshctl and an agent do, without Kubernetes in the workload clusters.
func TestScenarioRegisterConnectDelete(t *testing.T) {
	t.Parallel()
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	run(t, cfg).awaitReady()

	early := start(t, c, cfg, "early", announce(t, c, ns, "early", "uid-of-early")) // before its KubernetesCluster: it waits
	eventually(t, 10*time.Second, func() error {
		if s := early.spoke.Status(); !strings.Contains(s.LastError, "not registered") {
			return fmt.Errorf("the early agent says %q", s.LastError)
		}
		return nil
	})
	begin := time.Now()
	register(t, c, ns, "prod-eu-west-3")
	agents := []*agent{early, start(t, c, cfg, "prod-eu-west-3", announce(t, c, ns, "prod-eu-west-3", "uid-of-prod-eu-west-3"))}
	kc := await(t, c, ns, "prod-eu-west-3", "ACCEPTED Connected 2.12.0")
	t.Logf("registered to Connected in %s", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	register(t, c, ns, "early")
	await(t, c, ns, "early", "ACCEPTED Connected 2.12.0")
	t.Logf("the early agent connected %s after its registration", time.Since(begin).Round(time.Millisecond))
	for _, a := range agents {
		eventually(t, 10*time.Second, func() error {
			applied, _ := a.state()
			if len(applied) != 1 || !strings.Contains(applied["/v1/ConfigMap/"+ns+"/ambit-membership"], `"cluster":"`+string(a.name)+`"`) {
				return fmt.Errorf("%s applied %v", a.name, applied)
			}
			return nil
		})
		awaitCondition(t, c, ns, string(a.name), adminv2.ConditionProgrammed, "True")
		awaitCondition(t, c, ns, string(a.name), adminv2.ConditionWarm, "True")
	}
	if kc.Status.ClusterUID != "uid-of-prod-eu-west-3" || kc.Status.RegisteredBy != "jane.doe@bank.example.com" {
		t.Errorf("status: %+v", kc.Status)
	}
	eventually(t, 10*time.Second, func() error { // trust domain etc. come with the inventory
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(kc), kc); err != nil || kc.Status.TrustDomain != "cluster.local" || kc.Status.Network != "net-prod-eu-west-3" || kc.Status.IstioVersion != "1.28.0" {
			return fmt.Errorf("%w %+v", err, kc.Status)
		}
		return nil
	})
	if diff := cmp.Diff([]string{"Normal Connected: the agent (version 2.12.0) has connected", "Normal Registered: Registered by jane.doe@bank.example.com"}, events(t, c, ns, "prod-eu-west-3")); diff != "" {
		t.Error(diff)
	}

	// another cluster comes with a copy of the certificate: the page's "long afternoon"
	thief := startWith(t, cfg, "prod-eu-west-3", "uid-of-another", &memory{id: func() relay.StoredIdentity { id, _ := agents[1].store.Load(t.Context()); return id }()})
	eventually(t, 10*time.Second, func() error {
		if s := thief.spoke.Status(); !strings.Contains(s.LastError, "uid-of-another") || !strings.Contains(s.LastError, "uid-of-prod-eu-west-3") {
			return fmt.Errorf("the copy's agent says %q", s.LastError)
		}
		return nil
	})
	if cond := awaitCondition(t, c, ns, "prod-eu-west-3", adminv2.ConditionIdentityVerified, "False"); !strings.Contains(cond.Message, "uid-of-another") {
		t.Errorf("condition: %+v", cond)
	}
	thief.stop()
	if !agents[1].spoke.Status().Connected {
		t.Error("the right agent lost its session to the copy")
	}

	// deregistered: refused at once, nothing removed from the cluster; the other one is not touched
	begin = time.Now()
	if err := c.Delete(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if s := agents[1].spoke.Status(); s.Connected || !strings.Contains(s.LastError, "deregistered") && !strings.Contains(s.LastError, "revoked") {
			return fmt.Errorf("still %+v", s)
		}
		return nil
	})
	t.Logf("refused %s after deletion", time.Since(begin).Round(time.Millisecond))
	if _, deletes := agents[1].state(); deletes != 0 || !early.spoke.Status().Connected {
		t.Errorf("%d deletions; the other cluster connected: %v", deletes, early.spoke.Status().Connected)
	}

	// registered again: the old key stays dead, a new token makes a new key
	register(t, c, ns, "prod-eu-west-3")
	time.Sleep(time.Second)
	if got := agents[1].spoke.Status(); got.Connected {
		t.Error("a revoked key was let in after registering again")
	}
	agents[1].stop()
	start(t, c, cfg, "prod-eu-west-3", announce(t, c, ns, "prod-eu-west-3", "uid-of-prod-eu-west-3"))
	await(t, c, ns, "prod-eu-west-3", "ACCEPTED Connected 2.12.0")
}

// Kill the server, delete one cluster while it is down, start it again: nothing is deleted anywhere, the deregistered one is refused.
func TestScenarioRestartDeletesNothing(t *testing.T) {
	t.Parallel()
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	r := run(t, cfg).awaitReady()
	names := []string{"c1", "c2", "c3"}
	agents := map[string]*agent{}
	for _, n := range names {
		register(t, c, ns, n)
		agents[n] = start(t, c, cfg, n, announce(t, c, ns, n, mesh.ClusterUID("uid-of-"+n)))
	}
	before := map[string]map[string]string{}
	for _, n := range names {
		await(t, c, ns, n, "ACCEPTED Connected 2.12.0")
		awaitCondition(t, c, ns, n, adminv2.ConditionProgrammed, "True")
		before[n], _ = agents[n].state()
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	gone := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "c3", Namespace: ns}}
	if err := c.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	agents["c2"].stop() // stays away for good: the others must not wait for it for ever, and must lose nothing
	// c1 has something that is not in the new server's desired state: it stays while c2's inventory is not known
	// (its agent is restarted too, so that it knows only what this server tells it)
	const orphan = "/v1/ConfigMap/somewhere/orphan"
	before["c1"][orphan] = "kept"
	agents["c1"].stop()
	agents["c1"] = startWith(t, cfg, "c1", "uid-of-c1", agents["c1"].store)
	agents["c1"].mu.Lock()
	agents["c1"].applied = maps.Clone(before["c1"])
	agents["c1"].mu.Unlock()
	run(t, cfg).awaitReady()
	await(t, c, ns, "c1", "ACCEPTED Connected 2.12.0")
	await(t, c, ns, "c2", "ACCEPTED Disconnected 2.12.0")
	if cond := awaitCondition(t, c, ns, "c2", adminv2.ConditionWarm, "False"); cond.Reason != adminv2.ReasonInventoryPending {
		t.Errorf("c2: %+v", cond)
	}
	eventually(t, 10*time.Second, func() error {
		if s := agents["c3"].spoke.Status(); s.Connected || !strings.Contains(s.LastError, "revoked") {
			return fmt.Errorf("c3, deregistered while the server was down: %+v", s)
		}
		return nil
	})
	time.Sleep(2 * cfg.WarmGrace)
	after := map[string]map[string]string{}
	for _, n := range names {
		var deletes int
		after[n], deletes = agents[n].state()
		if deletes != 0 {
			t.Errorf("%s deleted %d objects", n, deletes)
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("a restart changed what is applied:\n%s", diff)
	}
	// c2 is given up: the snapshot is warm, and now what is not wanted goes
	if err := c.Delete(t.Context(), &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "c2", Namespace: ns}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, func() error {
		if got, deletes := agents["c1"].state(); deletes != 1 || got[orphan] != "" || len(got) != 1 {
			return fmt.Errorf("warm, but c1 has %v, %d deleted", got, deletes)
		}
		return nil
	})
}

// The API server is away for a while: the management server does not exit, agents keep their sessions, nothing is deleted; later all is reported.
// AMBIT_LONG=1 runs it at full length: a minute, with the default Lease of two.
func TestSurvivesItsAPIServer(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]bool{"connections are refused": false, "nothing answers": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rc, c, ns := setup(t)
			line := newLine(t, strings.Trim(strings.TrimPrefix(rc.Host, "https://"), "/"))
			behind := rest.CopyConfig(rc)
			behind.Host = "https://" + line.address
			cfg := config(t, behind, ns)
			away := 8 * time.Second
			cfg.LeaseDuration = 2 * away
			if os.Getenv("AMBIT_LONG") != "" {
				away, cfg.LeaseDuration = time.Minute, DefaultConfig().LeaseDuration
			}
			r := run(t, cfg).awaitReady()
			register(t, c, ns, "c1")
			a := start(t, c, cfg, "c1", announce(t, c, ns, "c1", "uid-of-c1"))
			await(t, c, ns, "c1", "ACCEPTED Connected 2.12.0")
			awaitCondition(t, c, ns, "c1", adminv2.ConditionProgrammed, "True")
			before, _ := a.state()
			since := a.spoke.Status().Since

			line.cut(hang)
			register(t, c, ns, "c2") // while the server can't see it
			time.Sleep(away)
			if s := a.spoke.Status(); !s.Connected || s.Since != since {
				t.Errorf("the session did not survive: %+v", s)
			}
			if code, body := r.http(cfg.HealthAddress, "/readyz"); code != http.StatusOK {
				t.Errorf("readyz: %d %s", code, body)
			}
			line.mend()
			begin := time.Now()
			await(t, c, ns, "c2", "PENDING Pending ")
			t.Logf("caught up %s after the API server was back", time.Since(begin).Round(time.Millisecond))
			await(t, c, ns, "c1", "ACCEPTED Connected 2.12.0")
			after, deletes := a.state()
			if diff := cmp.Diff(before, after); diff != "" || deletes != 0 || a.spoke.Status().Since != since {
				t.Errorf("%d deletions, %s", deletes, diff)
			}
		})
	}
}
