package trust_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// The scenarios of this file take half an hour together: `make e2e-long` runs them, each from whatever root is in force.

const active = `kubectl --context mgmt -n gloo-mesh get roottrustpolicy root-trust-policy -o jsonpath='{.status.roots[?(@.role=="Active")].fingerprint}'`

// long skips all but a long run, and returns the root in force, which it makes if there is none.
func long(t *testing.T) (root string) {
	t.Helper()
	if os.Getenv("AMBIT_E2E_LONG") == "" {
		t.Skip("takes minutes: make e2e-long")
	}
	lab.Run(t, policy)
	steady(t, 4*time.Minute)
	return lab.Run(t, active)
}

func steady(t *testing.T, limit time.Duration) {
	t.Helper()
	lab.Eventually(t, limit, stands, func(out string) bool { return strings.HasPrefix(out, "Steady ACCEPTED ") })
}

func phase(t *testing.T, limit time.Duration, want string) {
	t.Helper()
	lab.Eventually(t, limit, stands, func(out string) bool { return strings.HasPrefix(out, want+" ") })
}

// replaced waits for another root to be in force everywhere, and nothing else under way.
func replaced(t *testing.T, root string, limit time.Duration) {
	t.Helper()
	lab.Eventually(t, limit, `[ "$(`+active+`)" = `+root+` ] || `+stands, func(out string) bool { return strings.HasPrefix(out, "Steady ACCEPTED ") })
}

// merge changes the policy.
func merge(t *testing.T, patch string) {
	t.Helper()
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh patch roottrustpolicy root-trust-policy --type merge -p '`+patch+`'`)
}

// TestLongRollbackAtEachState goes back from wherever a rotation may be.
func TestLongRollbackAtEachState(t *testing.T) {
	root := long(t)
	for _, from := range []string{"Preparing", "AddingRoot", "Switching", "DroppingRoot"} {
		t.Run(from, func(t *testing.T) {
			a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 100*time.Second)
			b := load(t, "payments/cluster-3", "billing/cluster-1", 100, 100*time.Second)
			ask(t, "Rotate", "")
			phase(t, 2*time.Minute, from)
			ask(t, "Rollback", "")
			time.Sleep(time.Second)
			steady(t, 3*time.Minute)
			a().whole(t)
			b().whole(t)
			if after := lab.Run(t, active); after != root {
				t.Errorf("root after the rollback: %s, want %s", after, root)
			}
		})
	}
}

// TestLongDropsOutWhileSwitching is the cluster that is away when it should sign anew.
func TestLongDropsOutWhileSwitching(t *testing.T) {
	root := long(t)
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 150*time.Second)
	ask(t, "Rotate", "")
	phase(t, 2*time.Minute, "Switching")
	lab.Run(t, `lab partition cluster-3 on --state "$PWD"`)
	t.Cleanup(func() { lab.Run(t, `lab partition cluster-3 off --state "$PWD"`) })
	time.Sleep(75 * time.Second) // longer than any certificate lives
	if out := lab.Run(t, stands); !strings.HasPrefix(out, "Switching ") {
		t.Errorf("with a cluster away: %s", out)
	}
	lab.Run(t, `lab partition cluster-3 off --state "$PWD"`)
	replaced(t, root, 4*time.Minute)
	a().whole(t)
	lab.Run(t, `lab call payments/cluster-3 billing/cluster-1 --state "$PWD"`)
}

// TestLongReplicasThatLag: of two istiods of one cluster the second gets the changed Secret a minute later.
func TestLongReplicasThatLag(t *testing.T) {
	root := long(t)
	lab.Run(t, `kubectl --context cluster-2 -n istio-system scale deploy/istiod-gloo --replicas=2 && kubectl --context cluster-2 -n istio-system rollout status deploy/istiod-gloo --timeout=100s
kubectl --context cluster-2 -n istio-system annotate "$(kubectl --context cluster-2 -n istio-system get pods -l app=istiod -o name | tail -1)" lab.ambitmesh.dev/volume-lag=60s`)
	t.Cleanup(func() {
		lab.Run(t, `kubectl --context cluster-2 -n istio-system scale deploy/istiod-gloo --replicas=1`)
	})
	time.Sleep(10 * time.Second)
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 240*time.Second)
	b := load(t, "payments/cluster-2", "billing/cluster-3", 100, 240*time.Second)
	began := time.Now()
	ask(t, "Rotate", "")
	replaced(t, root, 6*time.Minute)
	t.Logf("rotated in %s", time.Since(began).Round(time.Second))
	a().whole(t)
	b().whole(t)
}

// TestLongRestartsWithoutMultiRoot: an istiod that takes a root only when it starts.
func TestLongRestartsWithoutMultiRoot(t *testing.T) {
	root := long(t)
	const set = `kubectl --context cluster-2 -n istio-system set env deploy/istiod-gloo ISTIO_MULTIROOT_MESH=%s >/dev/null && kubectl --context cluster-2 -n istio-system rollout status deploy/istiod-gloo --timeout=100s`
	lab.Run(t, fmt.Sprintf(set, "false"))
	t.Cleanup(func() { lab.Run(t, fmt.Sprintf(set, "true")) })
	steady(t, 2*time.Minute)
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 240*time.Second)
	b := load(t, "payments/cluster-2", "billing/cluster-3", 100, 240*time.Second)
	began := time.Now()
	ask(t, "Rotate", "")
	replaced(t, root, 6*time.Minute)
	t.Logf("rotated in %s", time.Since(began).Round(time.Second))
	a().whole(t)
	b().whole(t)
}

// TestLongCanaryAndCrossSignature: both seat belts at once.
func TestLongCanaryAndCrossSignature(t *testing.T) {
	root := long(t)
	merge(t, `{"spec":{"rotation":{"canary":"cluster-2","soak":"20s","crossSign":true}}}`)
	t.Cleanup(func() { merge(t, `{"spec":{"rotation":{"canary":null,"soak":null,"crossSign":null}}}`) })
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 150*time.Second)
	b := load(t, "payments/cluster-2", "billing/cluster-3", 100, 150*time.Second)
	ask(t, "Rotate", "")
	phase(t, 2*time.Minute, "Switching")
	const issuers = `for c in cluster-1 cluster-2 cluster-3; do kubectl --context mgmt -n gloo-mesh get kubernetescluster $c -o jsonpath='{.status.caStatus.generation} '; done`
	early := lab.Eventually(t, 2*time.Minute, issuers, func(out string) bool { f := strings.Fields(out); return len(f) == 3 && f[1] > f[0] })
	if f := strings.Fields(early); f[0] != f[2] {
		t.Errorf("the canary did not go alone: generations %s", early)
	}
	replaced(t, root, 4*time.Minute)
	a().whole(t)
	b().whole(t)
}

// TestLongNewKindOfKey: a policy that asks for another key starts a rotation by itself.
func TestLongNewKindOfKey(t *testing.T) {
	root := long(t)
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 120*time.Second)
	merge(t, `{"spec":{"config":{"mgmtServerCa":{"generated":{"keyAlgorithm":"ECDSA-P256","rsaKeySizeBytes":null}}}}}`)
	t.Cleanup(func() {
		merge(t, `{"spec":{"config":{"mgmtServerCa":{"generated":{"keyAlgorithm":null,"rsaKeySizeBytes":2048}}}}}`)
		time.Sleep(2 * time.Second)
		steady(t, 4*time.Minute)
	})
	replaced(t, root, 4*time.Minute)
	a().whole(t)
	if out := lab.Run(t, `kubectl --context cluster-3 -n bookinfo get configmap istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}' | openssl x509 -noout -text`); !strings.Contains(out, "id-ecPublicKey") {
		t.Error(out)
	}
}

// TestLongEmergency: the root's key is known to somebody. It is over at once; what breaks for a moment is counted, not forbidden.
func TestLongEmergency(t *testing.T) {
	root := long(t)
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 100*time.Second)
	began := time.Now()
	ask(t, "Rotate", `, emergency: true`)
	replaced(t, root, 3*time.Minute)
	t.Logf("the old root is trusted nowhere after %s", time.Since(began).Round(time.Second))
	a()
	for _, pair := range []string{"payments/cluster-1 billing/cluster-2", "payments/cluster-2 billing/cluster-3", "payments/cluster-3 billing/cluster-1"} {
		lab.Run(t, `lab call `+pair+` --state "$PWD"`)
	}
}
