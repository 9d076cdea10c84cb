package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// golden compares what a person sees with testdata/policy/NAME.txt; UPDATE=1 rewrites it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "policy", name+".txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s:\n%s", file, diff)
	}
}

var now = time.Date(2026, 5, 15, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(d)) }

// testPolicies are one of each fate.
func testPolicies() []securityv2.AccessPolicy {
	policy := func(ns, name string, approval adminv2.ApprovalState, count string, clusters ...securityv2.ClusterPolicyStatus) securityv2.AccessPolicy {
		p := securityv2.AccessPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Generation: 2, CreationTimestamp: at(-50 * time.Hour)},
			Status:     securityv2.AccessPolicyStatus{InForce: count, Clusters: clusters, ChangedBy: "jane.doe@bank.example.com", NumAllowedServiceAccounts: 2, NumSelectedDestinationPorts: 3, NumSelectedNamespaces: 2},
		}
		p.Status.Common.State = adminv2.State{ObservedGeneration: 2, Approval: approval}
		p.Spec = testSnapshot().Policies[0].Spec
		return p
	}
	in := func(cluster string, s securityv2.PolicyState, message string) securityv2.ClusterPolicyStatus {
		return securityv2.ClusterPolicyStatus{Cluster: cluster, State: s, Message: message, Objects: []string{"AuthorizationPolicy billing/accesspolicy-x-12345678"}}
	}
	fine := policy("billing", "fine", adminv2.ApprovalAccepted, "2/2", in("cluster-1", securityv2.PolicyInForce, ""), in("cluster-2", securityv2.PolicyInForce, ""))
	fine.Status.Workspace = "billing-team"
	mixed := policy("gloo-mesh", "billing-allow-payments", adminv2.ApprovalFailed, "1/6",
		in("ap-1", securityv2.PolicyPending, "the cluster is disconnected"),
		in("cluster-1", securityv2.PolicyInForce, ""),
		in("cluster-2", securityv2.PolicyDrifted, "kubectl-edit changed AuthorizationPolicy billing/accesspolicy-x-12345678"),
		in("cluster-3", securityv2.PolicyOverridden, "suspended by jane.doe@bank.example.com"),
		in("eu-1", securityv2.PolicyRejected, "admission webhook \"validation.istio.io\" denied the request"),
		in("eu-2", securityv2.PolicyUnenforceable, "namespace billing is not in the mesh"),
	)
	mixed.Status.Common.State.Message = "5 of 6 clusters do not enforce it"
	mixed.Status.AllowedServiceAccounts = []string{"cluster-1.example.com/ns/payments/sa/payments", "cluster-2.example.com/ns/payments/sa/payments"}
	mixed.Status.Conditions = []metav1.Condition{
		{Type: securityv2.ConditionAccepted, Status: "True", Reason: securityv2.ReasonValid, Message: "valid"},
		{Type: securityv2.ConditionResolved, Status: "True", Reason: securityv2.ReasonServiceAccountsByPods, Message: "no ServiceAccount has the labels app=payments, but workloads do: their ServiceAccounts are taken"},
		{Type: securityv2.ConditionProgrammed, Status: "False", Reason: securityv2.ReasonClustersDrifted, Message: "cluster-2"},
	}
	mixed.Status.Clusters[1].Widened = []string{"AuthorizationPolicy billing/open-all allows any identity"}
	edited, until := at(-time.Minute), at(80*time.Minute)
	mixed.Status.Clusters[2].LastDrift = &securityv2.DriftStatus{Object: "AuthorizationPolicy billing/accesspolicy-x-12345678", Manager: "kubectl-edit", At: &edited, What: "spec.rules[0].from[0].source.principals: \"*\" added"}
	mixed.Status.Clusters[3].Override = &securityv2.OverrideStatus{Name: "override-billing-allow-payments-abcde", By: "jane.doe@bank.example.com", Reason: "INC-4711", Until: until}
	invalid := policy("orders", "nowhere", adminv2.ApprovalInvalid, "")
	invalid.Status.Common.State.Message = "namespace orders belongs to no workspace"
	unseen := policy("orders", "unseen", adminv2.ApprovalAccepted, "1/1", in("cluster-1", securityv2.PolicyInForce, ""))
	unseen.Generation = 3
	widened := policy("orders", "widened", adminv2.ApprovalAccepted, "1/1", in("cluster-1", securityv2.PolicyInForce, ""))
	widened.Status.Clusters[0].Widened = []string{"AuthorizationPolicy orders/open-all allows any identity"}
	dry := policy("orders", "dry", adminv2.ApprovalAccepted, "1/1", in("cluster-1", securityv2.PolicyInForce, ""))
	dry.Status.Conditions = []metav1.Condition{{Type: securityv2.ConditionEnforced, Status: "False", Reason: securityv2.ReasonDryRun}}
	nothing := policy("orders", "nothing", adminv2.ApprovalWarning, "0/0")
	return []securityv2.AccessPolicy{fine, mixed, dry, nothing, invalid, unseen, widened}
}

func TestPolicyListTables(t *testing.T) {
	for name, tc := range map[string]struct {
		q listQuery
		f format
	}{
		"list":              {},
		"list-wide":         {f: formatWide},
		"list-not-in-force": {q: listQuery{NotInForce: true}},
		"list-cluster":      {q: listQuery{Cluster: "cluster-1"}},
		"list-cluster-bad":  {q: listQuery{Cluster: "cluster-1", NotInForce: true}},
	} {
		t.Run(name, func(t *testing.T) {
			var rows []policyRow
			for _, p := range testPolicies() {
				if row, ok := policyRowOf(&p, tc.q, now); ok {
					rows = append(rows, row)
				}
			}
			var out bytes.Buffer
			p := &policyVerbs{app: &app{streams: Streams{Out: &out}}}
			p.printPolicies(rows, tc.f)
			golden(t, name, out.String())
		})
	}
}

func TestPolicyExplainTables(t *testing.T) {
	for _, p := range testPolicies() {
		t.Run(p.Name, func(t *testing.T) {
			var out bytes.Buffer
			e := explanationOf(&p, now)
			e.print(&out, now)
			golden(t, "explain-"+p.Name, out.String())
		})
	}
}

func TestPolicyWords(t *testing.T) {
	labels := &securityv2.ObjectSelector{Labels: map[string]string{"b": "2", "a": "1"}, Namespace: "ns", Cluster: "c"}
	for name, tc := range map[string]struct {
		spec securityv2.AccessPolicySpec
		want []string // what it guards, how clients authenticate, whom it lets in
	}{
		"empty": {want: []string{"every Service in scope", "", "everybody (it has no authz)"}},
		"workloads win": {
			spec: securityv2.AccessPolicySpec{ApplyToWorkloads: []securityv2.WorkloadSelector{{Selector: labels}}, ApplyToDestinations: []securityv2.DestinationSelector{{}}},
			want: []string{"Pods with labels a=1,b=2 in namespace ns in cluster c", "(applyToDestinations is ignored, because applyToWorkloads is set)", "", "everybody (it has no authz)"},
		},
		"ports": {
			spec: securityv2.AccessPolicySpec{ApplyToDestinations: []securityv2.DestinationSelector{
				{Selector: &securityv2.ObjectSelector{Name: "x"}, Port: &securityv2.PortSelector{Number: 80}}, {Port: &securityv2.PortSelector{Name: "http"}},
			}},
			want: []string{"Services named x, only their port 80", "Services in scope, only their port named http", "", "everybody (it has no authz)"},
		},
		"nobody": {spec: securityv2.AccessPolicySpec{Config: &securityv2.AccessPolicyConfig{Authz: &securityv2.Authorization{}}}, want: []string{"every Service in scope", "", "nobody (it has no allowedClients)"}},
		"any identity": {
			spec: securityv2.AccessPolicySpec{Config: &securityv2.AccessPolicyConfig{Authz: &securityv2.Authorization{AllowedClients: []securityv2.IdentitySelector{{}}}}},
			want: []string{"every Service in scope", "", "any authenticated identity"},
		},
		"a list wins": {
			spec: securityv2.AccessPolicySpec{Config: &securityv2.AccessPolicyConfig{
				Authn: &securityv2.Authentication{TLSMode: securityv2.TLSPermissive}, Authz: &securityv2.Authorization{},
				AuthzList: []securityv2.Authorization{
					{AllowedClients: []securityv2.IdentitySelector{{ServiceAccountSelector: labels}, {ExternalWorkloadSelector: labels}}, AllowedMethods: []string{"GET"}, AllowedPaths: []string{"/a*"}},
					{
						AllowedClients: []securityv2.IdentitySelector{{RequestIdentityMatcher: &securityv2.RequestIdentityMatcher{RequestPrincipals: []string{"i/s"}, NotRequestPrincipals: []string{"i/x"}}}}, DryRun: true,
						AllowedIPBlocks: []string{"10.0.0.0/8"}, Match: &securityv2.RequestMatch{Request: &securityv2.RequestConditions{Headers: map[string]securityv2.HeaderValues{"x-a": {}}}},
					},
				},
			}},
			want: []string{
				"every Service in scope", "mutual TLS or plain text (PERMISSIVE)",
				"ServiceAccounts with labels a=1,b=2 in namespace ns in cluster c, or external workloads (not supported: nobody); only methods GET, paths /a*",
				"with a JWT of i/s without a JWT of i/x; only from 10.0.0.0/8, header x-a (dryRun: not enforced)",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := append(selectsWords(&tc.spec), tlsWords(tc.spec.Config))
			got = append(got, allowsWords(tc.spec.Config)...)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOverrideTable(t *testing.T) {
	lease := func(ns, name, policy, policyNs string, clusters ...string) securityv2.PolicyOverride {
		return securityv2.PolicyOverride{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: at(-30 * time.Minute)},
			Spec: securityv2.PolicyOverrideSpec{
				PolicyRef: securityv2.PolicyRef{Name: policy, Namespace: policyNs}, Clusters: clusters, Reason: "INC-4711: 503s\nafter the release of last night, until the rollback is through", For: metav1.Duration{Duration: 2 * time.Hour},
			},
			Status: securityv2.PolicyOverrideStatus{By: "jane.doe@bank.example.com"},
		}
	}
	ended := at(-time.Second)
	over := lease("gloo-mesh", "override-b-22222", "b", "billing")
	over.Status.Until = &ended
	all := []securityv2.PolicyOverride{lease("billing", "override-a-11111", "a", "", "cluster-2", "cluster-3"), over}
	var out bytes.Buffer
	p := &policyVerbs{app: &app{streams: Streams{Out: &out}}}
	if err := p.printOverrides(all, formatTable, now); err != nil {
		t.Fatal(err)
	}
	golden(t, "overrides", out.String())
}
