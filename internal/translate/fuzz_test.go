package translate_test

import (
	"encoding/json"
	"testing"

	v2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// FuzzAll draws snapshots from bytes: translation neither panics nor fails, is deterministic, and emits nothing that Istio would refuse.
func FuzzAll(f *testing.F) {
	for seed := range uint64(8) {
		d := fromSeed(seed)
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(d.n(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &draw{data: b}
		s := d.snapshot()
		twice(t, s)
		twice(t, d.edit(s))
	})
}

func twice(t *testing.T, s *mesh.Snapshot) {
	t.Helper()
	other := clone(s)
	a, err := translate.All(s)
	if err != nil {
		t.Fatalf("%v\n%s", err, show(s))
	}
	b, err := translate.All(other)
	if err != nil {
		t.Fatal(err)
	}
	if diff := differ(a, b); diff != "" {
		t.Fatalf("not deterministic:\n%s\n%s", diff, show(s))
	}
	if _, err := planes(s, a, false); err != nil {
		t.Fatalf("%v\n%s", err, show(s))
	}
}

// FuzzSpec takes any AccessPolicy and Workspace that JSON can say, and puts strange names into selectors: translation must not panic, whatever got past the
// webhook, and must stay exact for globs.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"applyToDestinations":[{"selector":{"labels":{"app":"x"}},"port":{"number":80}}],"config":{"authn":{"mtls":{"required":true}},"authz":{"allowedClients":[{}]}}}`), "a*", "?b")
	f.Add([]byte(`{"applyToWorkloads":[{}],"config":{"authzList":[{},{"allowedClients":[{"serviceAccountSelector":{}}],"match":{"request":{"headers":{"":{}}}}}]}}`), "", "**")
	f.Add([]byte(`{"config":{"authz":{"allowedClients":[{"requestIdentityMatcher":{}}],"allowedIpBlocks":["x",""],"allowedPaths":["","{*}"],"allowedMethods":["*"]}}}`), "[", "\\")
	f.Fuzz(func(t *testing.T, spec []byte, cluster, ns string) {
		var sp v2.AccessPolicySpec
		if err := json.Unmarshal(spec, &sp); err != nil {
			return
		}
		s := fromSeed(uint64(len(spec))).snapshot()
		p := &mesh.AccessPolicy{Source: mesh.Ref{Group: "security.policy.gloo.solo.io", Version: "v2", Kind: "AccessPolicy", Namespace: adminNamespace, Name: "fuzz"}, Spec: sp}
		s.Policies = []*mesh.AccessPolicy{p}
		for _, w := range s.Workspaces {
			for i := range w.Spec.WorkloadClusters {
				w.Spec.WorkloadClusters[i].Name = cluster
				w.Spec.WorkloadClusters[i].Namespaces[0].Name = ns
			}
		}
		a, err := translate.All(s)
		if err != nil {
			t.Fatalf("%v\n%s", err, show(s))
		}
		b, err := translate.New().Next(s)
		if err != nil {
			t.Fatal(err)
		}
		if diff := differ(a, b); diff != "" {
			t.Fatalf("Next is not All:\n%s", diff)
		}
	})
}
