package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
)

// pagePolicy is the operators' page, word for word but for the namespace.
const pagePolicy = `
apiVersion: security.policy.gloo.solo.io/v2
kind: AccessPolicy
metadata:
  name: billing-allow-payments
  namespace: NAMESPACE
spec:
  applyToDestinations:
  - selector:
      labels: { app: billing }
  config:
    authn:
      mtls: { required: true }
    authz:
      allowedClients:
      - serviceAccountSelector:
          labels: { app: payments }
`

func accessPolicy(t testing.TB, ns string) *securityv2.AccessPolicy {
	t.Helper()
	p := &securityv2.AccessPolicy{}
	if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(pagePolicy, "NAMESPACE", ns)), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// shop is what runs in a cluster with billing and payments.
func shop() []any {
	ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}
	app := func(n string) map[string]string { return map[string]string{"app": n} }
	return []any{
		mesh.Namespace{Name: "billing", Labels: ambient},
		mesh.Namespace{Name: "payments", Labels: ambient},
		mesh.Service{Namespace: "billing", Name: "billing", Labels: app("billing"), Selector: app("billing"), Ports: []mesh.ServicePort{{Name: "http", Number: 8080}}},
		mesh.ServiceAccount{Namespace: "payments", Name: "payments", Labels: app("payments")},
	}
}

// buffer is a bytes.Buffer for two.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) acts(t *testing.T) []string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for line := range bytes.Lines(b.b.Bytes()) {
		var l struct{ Audit json.RawMessage }
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		r, err := audit.Decode(l.Audit)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Act, r.Cluster, r.Policy, r.Manager)))
	}
	return out
}

// authorization finds the AuthorizationPolicy that an agent has applied, or "".
func (a *agent) authorization() (name, manifest string) {
	applied, _ := a.state()
	for n, m := range applied {
		if strings.HasPrefix(n, "security.istio.io/v1/AuthorizationPolicy/billing/accesspolicy-billing-allow-payments") {
			return n, m
		}
	}
	return "", ""
}

// awaitPolicy waits for "APPROVAL inForce" and, of each cluster, "name State message".
func awaitPolicy(t *testing.T, c client.Client, p *securityv2.AccessPolicy, want ...string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		got := []string{strings.TrimSpace(fmt.Sprintf("%s %s", p.Status.Common.State.Approval, p.Status.InForce))}
		for _, s := range p.Status.Clusters {
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", s.Cluster, s.State, s.Message)))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("status: %s%s %+v", diff, p.Status.Common.State.Message, p.Status.Conditions)
		}
		return nil
	})
}

// The page's policy, from the write to every cluster, through drift, an override, a cluster that is away, to its deletion.
func TestPolicyFromWriteToDeletion(t *testing.T) { // not parallel: servers read policies of all namespaces, and would argue about their status
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	acts := &buffer{}
	cfg.Audit = acts
	run(t, cfg).awaitReady()
	agents := map[string]*agent{}
	for _, n := range []string{"c1", "c2"} {
		register(t, c, ns, n)
		agents[n] = start(t, c, cfg, n, announce(t, c, ns, n, mesh.ClusterUID("uid-of-"+n)))
		agents[n].report(shop()...)
		await(t, c, ns, n, "ACCEPTED Connected 2.12.0")
		awaitCondition(t, c, ns, n, "Warm", "True")
	}
	p := accessPolicy(t, ns)
	begin := time.Now()
	if err := c.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(t.Context()), p) })
	var object string
	for n, a := range agents {
		eventually(t, 10*time.Second, func() error {
			name, manifest := a.authorization()
			if object = name; !strings.Contains(manifest, `"cluster.local/ns/payments/sa/payments"`) {
				applied, _ := a.state()
				return fmt.Errorf("%s has %v", n, applied)
			}
			return nil
		})
	}
	t.Logf("applied everywhere %s after the write", time.Since(begin).Round(time.Millisecond))
	awaitPolicy(t, c, p, "ACCEPTED 2/2", "c1 InForce", "c2 InForce")
	t.Logf("in force %s after the write", time.Since(begin).Round(time.Millisecond))
	if s := p.Status; s.NumAllowedServiceAccounts != 1 || s.NumSelectedDestinationPorts == 0 || s.Common.State.ObservedGeneration != 1 || len(s.Clusters[0].Objects) == 0 {
		t.Errorf("status: %+v", s)
	}

	// drift: named once in status, Event and audit record
	short := object[strings.LastIndex(object, "/")+1:]
	at := time.Now().UTC().Truncate(time.Second)
	agents["c2"].outcome(object, func(o *mesh.Outcome) {
		o.Drift = &mesh.Drift{Manager: "kubectl-edit", Operation: "Update", At: at, What: `spec.rules: a rule was added`, Corrected: true}
	})
	drifted := "Warning DriftCorrected: c2: AuthorizationPolicy billing/" + short + " was changed by kubectl-edit (spec.rules: a rule was added); put back"
	eventually(t, 10*time.Second, func() error {
		if got := events(t, c, ns, p.Name); !slices.Contains(got, drifted) {
			return fmt.Errorf("events: %q", got)
		}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil || p.Status.Clusters[1].LastDrift == nil {
			return fmt.Errorf("%w: %+v", err, p.Status.Clusters)
		}
		return nil
	})
	stamp := metav1.NewTime(at)
	want := &securityv2.DriftStatus{Object: "AuthorizationPolicy billing/" + short, Manager: "kubectl-edit", At: &stamp, What: "spec.rules: a rule was added", Corrected: true}
	if diff := cmp.Diff(want, p.Status.Clusters[1].LastDrift); diff != "" {
		t.Error(diff)
	}
	recorded := func(want string) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if got := acts.acts(t); !slices.Contains(got, want) {
				return fmt.Errorf("audit records: %q", got)
			}
			return nil
		})
	}
	recorded("drift.corrected c2 " + ns + "/billing-allow-payments kubectl-edit")

	// an override, ended by its deletion
	o := &securityv2.PolicyOverride{ObjectMeta: metav1.ObjectMeta{Name: "incident", Namespace: ns}, Spec: securityv2.PolicyOverrideSpec{
		PolicyRef: securityv2.PolicyRef{Name: p.Name}, Clusters: []string{"c1"}, Reason: "incident 7", For: metav1.Duration{Duration: time.Hour},
	}}
	if err := c.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	until := o.CreationTimestamp.Add(time.Hour).UTC().Format(time.RFC3339)
	awaitPolicy(t, c, p, "ACCEPTED 1/2", "c1 Overridden suspended until "+until+" by PolicyOverride "+ns+"/incident", "c2 InForce")
	eventually(t, 10*time.Second, func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil || o.Status.Until == nil || o.Status.Common.State.Approval != "ACCEPTED" {
			return fmt.Errorf("%w: %+v", err, o.Status)
		}
		return nil
	})
	recorded("override.created  " + ns + "/billing-allow-payments")
	if _, manifest := agents["c1"].authorization(); !strings.Contains(manifest, securityv2.AnnotationHoldUntil+`":"`+until) {
		t.Errorf("the agent is not told to hold: %s", manifest)
	}
	if err := c.Delete(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	awaitPolicy(t, c, p, "ACCEPTED 2/2", "c1 InForce", "c2 InForce")

	// a cluster goes away; what it has not heard of is pending, and it converges when it returns
	agents["c2"].stop()
	await(t, c, ns, "c2", "ACCEPTED Disconnected 2.12.0")
	agents["c1"].report(mesh.ServiceAccount{Namespace: "payments", Name: "payments-2", Labels: map[string]string{"app": "payments"}})
	awaitPolicy(t, c, p, "ACCEPTED 1/2", "c1 InForce", "c2 Pending cluster c2 is disconnected; it converges when it returns")
	again := startWith(t, cfg, "c2", "uid-of-c2", agents["c2"].store)
	again.report(shop()...)
	awaitPolicy(t, c, p, "ACCEPTED 2/2", "c1 InForce", "c2 InForce")

	// deleted: open again everywhere
	if err := c.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, a := range []*agent{agents["c1"], again} {
		eventually(t, 10*time.Second, func() error {
			if name, _ := a.authorization(); name != "" {
				return fmt.Errorf("%s still has %s", a.name, name)
			}
			return nil
		})
	}
}

// A policy is deleted while no server runs. The new server takes it away nowhere until it has heard of every cluster: what it does not know might still want it.
func TestPolicyDeletedWhileTheServerWasDown(t *testing.T) { // not parallel: as above
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	r := run(t, cfg).awaitReady()
	agents := map[string]*agent{}
	for _, n := range []string{"c1", "c2"} {
		register(t, c, ns, n)
		agents[n] = start(t, c, cfg, n, announce(t, c, ns, n, mesh.ClusterUID("uid-of-"+n)))
		agents[n].report(shop()...)
		awaitCondition(t, c, ns, n, "Warm", "True")
	}
	gone, kept := accessPolicy(t, ns), accessPolicy(t, ns)
	kept.Name = "kept"
	for _, p := range []*securityv2.AccessPolicy{gone, kept} {
		if err := c.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(t.Context()), p) })
		awaitPolicy(t, c, p, "ACCEPTED 2/2", "c1 InForce", "c2 InForce")
	}
	agents["c2"].stop()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	run(t, cfg).awaitReady()
	await(t, c, ns, "c1", "ACCEPTED Connected 2.12.0")
	awaitPolicy(t, c, kept, "WARNING 1/2", "c1 InForce", "c2 Pending cluster c2 is disconnected; it converges when it returns")
	time.Sleep(2 * cfg.WarmGrace)
	if name, _ := agents["c1"].authorization(); name == "" {
		t.Error("c1 lost the policy's object while c2 was not heard of")
	}
	agents["c2"] = startWith(t, cfg, "c2", "uid-of-c2", agents["c2"].store)
	agents["c2"].report(shop()...)
	awaitPolicy(t, c, kept, "ACCEPTED 2/2", "c1 InForce", "c2 InForce")
	eventually(t, 10*time.Second, func() error {
		if name, _ := agents["c1"].authorization(); name != "" {
			return fmt.Errorf("c1 still has %s", name)
		}
		return nil
	})
}

func TestOverrideThatHasEndedIsRemoved(t *testing.T) {
	t.Parallel()
	rc, c, ns := setup(t)
	run(t, config(t, rc, ns)).awaitReady()
	o := &securityv2.PolicyOverride{ObjectMeta: metav1.ObjectMeta{Name: "incident", Namespace: ns}, Spec: securityv2.PolicyOverrideSpec{
		PolicyRef: securityv2.PolicyRef{Name: "none"}, Reason: "incident 7", For: metav1.Duration{Duration: time.Minute},
	}}
	if err := c.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil || o.Status.Common.State.Approval != "WARNING" {
			return fmt.Errorf("%w: %+v", err, o.Status)
		}
		return nil
	})
	eventually(t, 70*time.Second, func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %w", err)
		}
		return nil
	})
	if late := time.Since(o.CreationTimestamp.Add(time.Minute)); late < 0 || late > 3*time.Second {
		t.Errorf("removed %s after its end", late)
	}
}

func TestSnapshotEndpoint(t *testing.T) { // not parallel: servers read policies of all namespaces, and would argue about their status
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	r := run(t, cfg).awaitReady()
	p := accessPolicy(t, ns)
	if err := c.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(t.Context()), p) })
	var saved savedSnapshot
	eventually(t, 10*time.Second, func() error {
		code, body := r.http(cfg.SnapshotAddress, "/snapshot") // this client asks for gzip
		if code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		if err := json.Unmarshal([]byte(body), &saved); err != nil {
			return err
		}
		if len(saved.Snapshot.Policies) == 0 {
			return fmt.Errorf("no policy in %s", body)
		}
		return nil
	})
	if saved.Snapshot.AdminNamespace != ns || time.Since(saved.TakenAt) > time.Minute || saved.Snapshot.Namespaces["default"] == nil {
		t.Errorf("%+v", saved)
	}
	if code, _ := r.http(cfg.SnapshotAddress, "/"); code != http.StatusNotFound {
		t.Errorf("/: %d", code)
	}
	standby := cfg
	standby.Identity, standby.RelayAddress, standby.HealthAddress, standby.MetricsAddress, standby.SnapshotAddress = "b", freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	b := run(t, standby)
	eventually(t, 10*time.Second, func() error {
		if code, body := b.http(standby.SnapshotAddress, "/snapshot"); code != http.StatusServiceUnavailable || !strings.Contains(body, "does not lead") {
			return fmt.Errorf("standby: %d %s", code, body)
		}
		return nil
	})
}
