package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// TestTrustPlanOfAChange: only another authority starts a rotation; the rest of the change is taken over all the same.
func TestTrustPlanOfAChange(t *testing.T) {
	w := newWorld(t)
	live := adminv2.RootTrustPolicy{ObjectMeta: metaNamed("root")}
	live.Namespace = w.ns
	w.must(w.mgmt.Create(t.Context(), &live))
	t.Cleanup(func() { _ = w.mgmt.Delete(t.Context(), &live) })
	v := &trustVerbs{app: &app{Globals: Globals{Namespace: w.ns, Kubeconfig: w.kubeconfig}}, mgmtContext: "mgmt"}
	mgmt, err := v.mgmt()
	w.must(err)
	file := filepath.Join(t.TempDir(), "policy.yaml")
	const head = "apiVersion: admin.gloo.solo.io/v2\nkind: RootTrustPolicy\nmetadata: {name: root}\nspec:\n"
	for name, tc := range map[string]struct {
		spec   string
		starts bool
		err    string
	}{
		"same authority": {"  rotation: {canary: c1}\n", false, ""},
		"algorithm":      {"  rotation: {canary: c1}\n  config: {mgmtServerCa: {generated: {keyAlgorithm: ECDSA-P256}}}\n", true, ""},
		"typo":           {"  rotatoin: {}\n", false, "rotation"},
	} {
		w.must(os.WriteFile(file, []byte(head+tc.spec), 0o600))
		in := trustInput(t)
		_, starts, err := v.changed(t.Context(), mgmt, file, "root", &in)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || starts != tc.starts || in.Want.Canary != "c1" {
			t.Errorf("%s: starts %t, canary %q, %v", name, starts, in.Want.Canary, err)
		}
		if r, err := planOf("root", in, starts); err != nil || r.StandIn != tc.starts || len(r.Steps) > 0 != tc.starts {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
}

func TestPlanNamesFailures(t *testing.T) {
	r := planReport{Policy: "root", Phase: trust.Steady, What: trust.What{Steps: []trust.PlannedStep{{Phase: trust.Switching}}}}
	for range mostPairs + 2 {
		r.Steps[0].Failures = append(r.Steps[0].Failures, trust.PairFailure{Presenter: "c1", Presents: "CN=c1 g2, issued by CN=r2", Verifier: mesh.ClusterName("c2"), Trusts: []string{"CN=r1"}, Why: "unknown authority"})
	}
	var out bytes.Buffer
	r.print(&out)
	if !r.wrong() || strings.Count(out.String(), "c1 presents CN=c1 g2, issued by CN=r2; c2 trusts CN=r1: unknown authority") != mostPairs ||
		!strings.Contains(out.String(), "and 2 more") || !strings.Contains(out.String(), "22 pairs would fail") {
		t.Fatal(out.String())
	}
}
