package server

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relay/family"
)

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
	second.RelayAddress, second.HealthAddress, second.SnapshotAddress = freeAddress(t), freeAddress(t), freeAddress(t)
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

// Nobody waits two minutes for the Lease of a leader that was killed: the restarted container takes its own back, and that of a Pod that is gone is freed.
func TestLeaseOfAKilledLeader(t *testing.T) {
	t.Parallel()
	for name, holder := range map[string]string{"killed and restarted in its Pod": "pod-a", "its Pod is gone": "pod-that-was"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rc, c, ns := setup(t)
			cfg := config(t, rc, ns)
			cfg.Identity, cfg.InPod = "pod-a", true
			now, seconds := metav1.NewMicroTime(time.Now()), int32(120)
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: cfg.Lease, Namespace: ns}, Spec: coordinationv1.LeaseSpec{
				HolderIdentity: &holder, AcquireTime: &now, RenewTime: &now, LeaseDurationSeconds: &seconds,
			}}
			if err := c.Create(t.Context(), lease); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			run(t, cfg).awaitReady()
			t.Logf("leads after %s", time.Since(begin).Round(time.Millisecond))
		})
	}
}

// The hub's certificate family is rotated under way: the Secrets are replaced one after the other, as `meshctl relay rotate` does. Agents hold the successor already and carry on.
func TestHubCertificateChange(t *testing.T) {
	t.Parallel()
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	run(t, cfg).awaitReady()
	register(t, c, ns, "c1")
	a := start(t, c, cfg, "c1", announce(t, c, ns, "c1", "uid-of-c1"))
	await(t, c, ns, "c1", "ACCEPTED Connected 2.12.0")

	secret := func(name string) *corev1.Secret {
		s := &corev1.Secret{}
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	root, signing, server := secret("relay-root-tls-secret"), secret("relay-tls-signing-secret"), secret("relay-server-tls-secret")
	f, problems := family.Parse(family.Secrets{Root: root.Data, Signing: signing.Data, Server: server.Data}, time.Now())
	if f == nil {
		t.Fatal(problems)
	}
	rotated, err := f.Rotate(time.Now(), family.Options{ServerNames: cfg.relayNames()})
	if err != nil {
		t.Fatal(err)
	}
	d, err := rotated.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	root.Data, signing.Data, server.Data = d.Root, d.Signing, d.Server
	for _, s := range []*corev1.Secret{root, signing, server} {
		if err := c.Update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	eventually(t, 10*time.Second, func() error { // new connections meet the new certificate, live
		conn, err := tls.Dial("tcp", cfg.RelayAddress, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			return err
		}
		defer conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0]; !got.Equal(rotated.Server.Chain[0]) {
			return fmt.Errorf("still serves certificate %s of %s", got.SerialNumber, got.Issuer)
		}
		return nil
	})
	a.stop()
	again := startWith(t, cfg, "c1", "uid-of-c1", a.store) // with the old client certificate and the bundle it held
	eventually(t, 10*time.Second, func() error {
		if st := again.spoke.Status(); !st.Connected {
			return fmt.Errorf("after the change: %+v", st)
		}
		return nil
	})
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
	for _, name := range []string{"prod-eu-west-3", "early"} { // that the early one was sent away before it was registered is past
		if diff := cmp.Diff([]string{"Normal Connected: the agent (version 2.12.0) has connected", "Normal Registered: Registered by jane.doe@bank.example.com"}, events(t, c, ns, name)); diff != "" {
			t.Errorf("events of %s: %s", name, diff)
		}
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
