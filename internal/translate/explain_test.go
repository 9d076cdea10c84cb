package translate_test

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

func TestExplain(t *testing.T) {
	in, err := os.ReadFile("testdata/page-policy/in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := new(mesh.Snapshot)
	if err := yaml.UnmarshalStrict(in, s); err != nil {
		t.Fatal(err)
	}
	r, err := translate.All(s)
	if err != nil {
		t.Fatal(err)
	}
	const policy = "AccessPolicy gloo-mesh/billing-allow-payments (AuthorizationPolicy billing/accesspolicy-billing-allow-payments-631f7d61)"
	for name, tc := range map[string]struct {
		q    translate.Question
		want translate.Answer
	}{
		"page: yes": {
			translate.Question{FromCluster: "cluster-1", FromNamespace: "payments", FromServiceAccount: "payments", ToCluster: "cluster-2", ToNamespace: "billing", ToService: "billing"},
			translate.Answer{Allowed: true, Decided: []string{"allowed by " + policy}},
		},
		"page: yes, from another trust domain": {
			translate.Question{FromCluster: "cluster-3", FromNamespace: "payments", FromServiceAccount: "payments", ToCluster: "cluster-2", ToNamespace: "billing", ToService: "billing", Port: 8080},
			translate.Answer{Allowed: true, Decided: []string{"allowed by " + policy}},
		},
		"page: no": {
			translate.Question{FromCluster: "cluster-1", FromNamespace: "billing", FromServiceAccount: "billing", ToCluster: "cluster-1", ToNamespace: "billing", ToService: "billing"},
			translate.Answer{Decided: []string{"not allowed by " + policy + ": cluster.local/ns/billing/sa/billing is none of those named there"}},
		},
		"no such port, no such account": {
			translate.Question{FromCluster: "cluster-1", FromNamespace: "payments", FromServiceAccount: "other", ToCluster: "cluster-1", ToNamespace: "billing", ToService: "billing", Port: 9},
			translate.Answer{
				Decided: []string{"not allowed by " + policy + ": cluster.local/ns/payments/sa/other is none of those named there"},
				Caveats: []string{"Service billing/billing has no port 9", "cluster cluster-1 has no ServiceAccount payments/other at present"},
			},
		},
		"no such cluster": {
			translate.Question{FromCluster: "cluster-9", ToCluster: "cluster-1"}, translate.Answer{Decided: []string{`cluster "cluster-9" is not registered`}},
		},
		"no such service": {
			translate.Question{FromCluster: "cluster-1", FromNamespace: "payments", FromServiceAccount: "payments", ToCluster: "cluster-1", ToNamespace: "payments", ToService: "payments"},
			translate.Answer{Decided: []string{`cluster "cluster-1" has no Service payments/payments`}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, translate.Explain(s, r, tc.q)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
