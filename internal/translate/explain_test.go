package translate_test

import (
	"cmp"
	"os"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
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
			translate.Answer{Decided: []string{"not allowed by " + policy + ": no rule there fits cluster.local/ns/billing/sa/billing"}},
		},
		"no such port, no such account": {
			translate.Question{FromCluster: "cluster-1", FromNamespace: "payments", FromServiceAccount: "other", ToCluster: "cluster-1", ToNamespace: "billing", ToService: "billing", Port: 9},
			translate.Answer{
				Decided: []string{"not allowed by " + policy + ": no rule there fits cluster.local/ns/payments/sa/other on port 9"},
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
			if diff := gocmp.Diff(tc.want, translate.Explain(s, r, tc.q)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestExplainCases asks about other golden cases; calls are from payments/payments of east to billing/billing of east, unless said otherwise.
func TestExplainCases(t *testing.T) {
	type question struct {
		dir, method, path, from string
		port                    int32
		foreign                 string // of billing
	}
	const l4 = "AccessPolicy gloo-mesh/allow-payments (AuthorizationPolicy billing/accesspolicy-allow-payments-5e189a4e)"
	for name, tc := range map[string]struct {
		q    question
		want translate.Answer
	}{
		"waypoint, GET": {question{dir: "waypoint", method: "GET", path: "/invoices/1"}, translate.Answer{Allowed: true, Decided: []string{
			"at the waypoint billing/waypoint: allowed by AccessPolicy gloo-mesh/allow-get (AuthorizationPolicy billing/accesspolicy-allow-get-311e73d9)",
			"allowed by AccessPolicy gloo-mesh/allow-get (AuthorizationPolicy billing/accesspolicy-allow-get-778a4a13)",
		}}},
		"waypoint, POST": {question{dir: "waypoint", method: "POST", path: "/invoices/1"}, translate.Answer{Decided: []string{
			"at the waypoint billing/waypoint: not allowed by AccessPolicy gloo-mesh/allow-get (AuthorizationPolicy billing/accesspolicy-allow-get-311e73d9): no rule there fits cluster.local/ns/payments/sa/payments with POST /invoices/1",
			"allowed by AccessPolicy gloo-mesh/allow-get (AuthorizationPolicy billing/accesspolicy-allow-get-778a4a13)",
		}}},
		"L7 and no waypoint": {question{dir: "l7-without-waypoint", method: "GET", path: "/invoices/1"}, translate.Answer{
			Decided: []string{"not allowed by AccessPolicy gloo-mesh/allow-get (AuthorizationPolicy billing/accesspolicy-allow-get-eace5848): no rule there fits cluster.local/ns/payments/sa/payments"},
			Caveats: []string{"AccessPolicy gloo-mesh/allow-get: allowedPaths, allowedMethods of entry 0 can only be checked by a waypoint, and Service billing/billing has none (no waypoint is bound to it): nothing is allowed by that entry"},
		}},
		"a port that nobody guards": {question{dir: "port", from: "billing", port: 7}, translate.Answer{Allowed: true, Decided: []string{"allowed by AccessPolicy gloo-mesh/http (AuthorizationPolicy billing/accesspolicy-http-603f5475)"}, Caveats: []string{"Service billing/billing has no port 7"}}},
		"a port of another policy": {question{dir: "port", port: 9090}, translate.Answer{Decided: []string{
			"not allowed by AccessPolicy gloo-mesh/http (AuthorizationPolicy billing/accesspolicy-http-603f5475), nor by AccessPolicy gloo-mesh/metrics (AuthorizationPolicy billing/accesspolicy-metrics-d4ea2cd3): no rule there fits cluster.local/ns/payments/sa/payments on port 9090",
		}}},
		"somebody else's ALLOW": {question{dir: "foreign-allow", from: "billing"}, translate.Answer{Allowed: true, Decided: []string{"allowed by AuthorizationPolicy billing/open-all (not made by the mesh)"}}},
		"somebody else's DENY without what ztunnel can't see": {
			question{dir: "no-inventory", method: "GET", foreign: `{"action":"DENY","rules":[{"from":[{"source":{"namespaces":["payments"]}}],"to":[{"operation":{"ports":["8080"],"methods":["POST"]}}]}]}`, port: 80},
			translate.Answer{Decided: []string{"denied by AuthorizationPolicy billing/foreign (not made by the mesh)"}},
		},
		"somebody else's DENY of which nothing is left": {
			question{dir: "no-inventory", method: "GET", foreign: `{"action":"DENY","rules":[{"to":[{"operation":{"methods":["GET"]}}]}]}`},
			translate.Answer{Allowed: true, Decided: []string{"allowed by " + l4}},
		},
		"somebody else's ALLOW with a condition that ztunnel knows": {
			question{dir: "no-inventory", from: "billing", foreign: `{"rules":[{"when":[{"key":"source.namespace","values":["billing"]}]}]}`},
			translate.Answer{Allowed: true, Decided: []string{"allowed by AuthorizationPolicy billing/foreign (not made by the mesh)"}, Caveats: []string{"AuthorizationPolicy billing/foreign (not made by the mesh): only when source.namespace fits"}},
		},
		"suspended":        {question{dir: "override"}, translate.Answer{Allowed: true, Decided: []string{"allowed by " + l4}, Caveats: []string{"AccessPolicy gloo-mesh/allow-payments is suspended there by PolicyOverride incident-42 until 2026-11-23T12:00:00Z: its objects may have been changed"}}},
		"nobody guards it": {question{dir: "authn-only", from: "billing"}, translate.Answer{Allowed: true, Decided: []string{"no policy guards it: everybody may"}}},
		"nobody is let in": {question{dir: "empty-selection", from: "billing"}, translate.Answer{Decided: []string{"not allowed by AccessPolicy gloo-mesh/nobody (AuthorizationPolicy billing/accesspolicy-nobody-b06b4c41): no rule there fits cluster.local/ns/billing/sa/billing"}}},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := os.ReadFile("testdata/" + tc.q.dir + "/in.yaml")
			if err != nil {
				t.Fatal(err)
			}
			s := new(mesh.Snapshot)
			if err := yaml.UnmarshalStrict(in, s); err != nil {
				t.Fatal(err)
			}
			if tc.q.foreign != "" {
				n := s.Cluster("east").Inventory.Namespaces["billing"]
				n.Foreign = append(n.Foreign, mesh.ForeignPolicy{Namespace: "billing", Kind: "AuthorizationPolicy", Name: "foreign", Spec: []byte(tc.q.foreign)})
			}
			r, err := translate.All(s)
			if err != nil {
				t.Fatal(err)
			}
			from := cmp.Or(tc.q.from, "payments")
			got := translate.Explain(s, r, translate.Question{
				FromCluster: "east", FromNamespace: from, FromServiceAccount: from, ToCluster: "east", ToNamespace: "billing", ToService: "billing",
				Port: tc.q.port, Method: tc.q.method, Path: tc.q.path,
			})
			if diff := gocmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
