package cli

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/test/kubetest"
)

// policyWorld is a management cluster with policies of every fate, in two namespaces of its own.
type policyWorld struct {
	*world
	api   *cluster
	other string // the other namespace
	// mgmtContext is whom policies acts as.
	mgmtContext string
}

func newPolicyWorld(t *testing.T) *policyWorld {
	t.Helper()
	w := &policyWorld{world: newWorld(t), mgmtContext: "mgmt"}
	api, err := newCluster("mgmt", w.mgmtCfg)
	w.must(err)
	w.api, w.other = api, kubetest.Namespace(t, w.mgmt)
	t.Cleanup(func() {
		for _, ns := range []string{w.ns, w.other} {
			_ = api.DeleteAllOf(context.Background(), &securityv2.AccessPolicy{}, client.InNamespace(ns))
			_ = api.DeleteAllOf(context.Background(), &securityv2.PolicyOverride{}, client.InNamespace(ns))
		}
	})
	for _, name := range []string{"cluster-1", "cluster-2", "cluster-3"} {
		w.must(w.mgmt.Create(t.Context(), &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.ns}}))
	}
	return w
}

// policy makes a policy whose status says that it is in force in these clusters.
func (w *policyWorld) policy(ns, name string, clusters ...string) *securityv2.AccessPolicy {
	w.t.Helper()
	p := &securityv2.AccessPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: testSnapshot().Policies[0].Spec}
	w.must(w.api.Create(w.t.Context(), p))
	p.Status.Common.State = adminv2.State{ObservedGeneration: p.Generation, Approval: adminv2.ApprovalAccepted}
	for _, c := range clusters {
		p.Status.Clusters = append(p.Status.Clusters, securityv2.ClusterPolicyStatus{Cluster: c, State: securityv2.PolicyInForce})
	}
	w.must(w.api.Status().Update(w.t.Context(), p))
	return p
}

// policies runs a verb of `policy` on the management cluster, in all namespaces unless told otherwise.
func (w *policyWorld) policies(args ...string) result {
	w.t.Helper()
	args = append([]string{"policy"}, args...)
	var out, errs strings.Builder
	code := Run(w.t.Context(), append(args, "--kubeconfig", w.kubeconfig, "--mgmt-context", w.mgmtContext, "--mgmt-namespace", w.ns), Streams{Out: &out, Err: &errs})
	w.t.Logf("meshctl %s: exit %d\n%s%s", strings.Join(args, " "), code, &out, &errs)
	return result{code, out.String(), errs.String()}
}

func TestPolicyListAndExplain(t *testing.T) {
	w := newPolicyWorld(t)
	w.policy(w.ns, "billing-allow-payments", "cluster-1", "cluster-2")
	w.policy(w.other, "billing-allow-payments", "cluster-1")
	bad := w.policy(w.other, "orders", "cluster-2")
	bad.Status.Clusters[0] = securityv2.ClusterPolicyStatus{Cluster: "cluster-2", State: securityv2.PolicyRejected, Message: "refused"}
	w.must(w.api.Status().Update(t.Context(), bad))

	names := func(r result) (out []string) {
		t.Helper()
		var rows []policyRow
		if err := json.Unmarshal([]byte(r.out), &rows); err != nil || r.code != ExitOK {
			t.Fatalf("exit %d, %v", r.code, err)
		}
		for _, row := range rows {
			if row.Namespace == w.ns || row.Namespace == w.other {
				out = append(out, strings.Replace(strings.Replace(row.Namespace, w.ns, "A", 1), w.other, "B", 1)+"/"+row.Name)
			}
		}
		return out
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "A/billing-allow-payments B/billing-allow-payments B/orders"},
		{[]string{"-A"}, "A/billing-allow-payments B/billing-allow-payments B/orders"},
		{[]string{"-n", w.other}, "B/billing-allow-payments B/orders"},
		{[]string{"--cluster", "cluster-2"}, "A/billing-allow-payments B/orders"},
		{[]string{"--not-in-force"}, "B/orders"},
		{[]string{"--not-in-force", "--cluster", "cluster-1"}, ""},
	} {
		got := strings.Join(names(w.policies(append([]string{"list", "-o", "json"}, tc.args...)...)), " ")
		if sorted := tc.want; got != sorted && got != swapped(tc.want) {
			t.Errorf("%q: %s, want %s", tc.args, got, tc.want)
		}
	}
	w.refused(w.policies("list", "--cluster", "cluster-4"), ExitUsage, `did you mean "cluster-`)
	w.refused(w.policies("list", "-A", "-n", "x"), ExitUsage, "want one of them")
	if r := w.policies("list", "-n", w.ns, "--not-in-force"); r.code != ExitOK || !strings.Contains(r.err, "All of the 1 AccessPolicies asked about are in force") {
		t.Errorf("exit %d", r.code)
	}

	if r := w.policies("explain", "orders", "-n", w.other); r.code != ExitOK || !strings.Contains(r.out, "Rejected") || !strings.Contains(r.out, "the cluster refused an object") {
		t.Errorf("exit %d", r.code)
	}
	if r := w.policies("explain", w.ns+"/billing-allow-payments", "-o", "json"); r.code != ExitOK || !strings.Contains(r.out, `"selects": [`) {
		t.Errorf("exit %d", r.code)
	}
	w.refused(w.policies("explain", "billing-allow-payments"), ExitUsage, "in the namespaces", "which one?")
	w.refused(w.policies("explain", "billing-allow-paymets", "-n", w.ns), ExitFailed, "did you mean "+w.ns+"/billing-allow-payments?")
	w.refused(w.policies("explain", "x", "-n", "no-such-namespace"), ExitFailed, "there is none at all")
}

// swapped is the order of two namespaces whose random names sort the other way round.
func swapped(want string) string {
	var a, b []string
	for n := range strings.FieldsSeq(want) {
		if strings.HasPrefix(n, "A/") {
			a = append(a, n)
		} else {
			b = append(b, n)
		}
	}
	return strings.Join(append(b, a...), " ")
}

func TestPolicyCompletion(t *testing.T) {
	w := newPolicyWorld(t)
	w.policy(w.ns, "billing-allow-payments", "cluster-1")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"policy", "explain", "-n", w.ns, "billing"}, "billing-allow-payments"},
		{[]string{"policy", "explain", "-n", w.ns, w.ns + "/b"}, w.ns + "/billing-allow-payments"},
		{[]string{"policy", "override", "-n", w.ns, ""}, "billing-allow-payments"},
		{[]string{"policy", "list", "--mgmt-namespace", w.ns, "--cluster", "cluster-"}, "cluster-3"},
		{[]string{"policy", "list", "-n", w.ns[:3]}, w.ns},
		{[]string{"policy", "list", "--mgmt-context", "mg"}, "mgmt"},
	} {
		r := w.meshctl(append([]string{"__complete", "--kubecontext", "mgmt"}, tc.args...)...)
		if r.code != ExitOK || !strings.Contains("\n"+r.out, "\n"+tc.want+"\n") {
			t.Errorf("%q does not complete to %q", tc.args, tc.want)
		}
	}
}

// confirm plays the server: whatever lease there is, the policy's status says so.
func (w *policyWorld) confirm(policy *securityv2.AccessPolicy, clusters ...string) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			var leases securityv2.PolicyOverrideList
			if w.api.List(ctx, &leases, client.InNamespace(policy.Namespace)) != nil || len(leases.Items) == 0 {
				continue
			}
			var p securityv2.AccessPolicy
			if w.api.Get(ctx, client.ObjectKeyFromObject(policy), &p) != nil {
				continue
			}
			for i := range p.Status.Clusters {
				for _, c := range clusters {
					if p.Status.Clusters[i].Cluster == c {
						p.Status.Clusters[i].State = securityv2.PolicyOverridden
					}
				}
			}
			_ = w.api.Status().Update(ctx, &p)
		}
	})
	return func() { cancel(); done.Wait() }
}

func (w *policyWorld) leases() []securityv2.PolicyOverride {
	w.t.Helper()
	all, err := w.api.overrides(w.t.Context(), w.ns)
	w.must(err)
	return all
}

func TestOverride(t *testing.T) {
	w := newPolicyWorld(t)
	p := w.policy(w.ns, "billing-allow-payments", "cluster-1", "cluster-2")
	stop := w.confirm(p, "cluster-2")
	r := w.policies("override", "billing-allow-payments", "-n", w.ns, "--cluster", "cluster-2", "--cluster", "cluster-3", "--reason", "INC-4711", "--for", "2h")
	stop()
	if r.code != ExitOK {
		t.Fatalf("exit %d", r.code)
	}
	leases := w.leases()
	if len(leases) != 1 {
		t.Fatalf("%d leases", len(leases))
	}
	l := leases[0]
	spec := l.Spec
	if spec.PolicyRef != (securityv2.PolicyRef{Name: p.Name, Namespace: w.ns}) || strings.Join(spec.Clusters, " ") != "cluster-2 cluster-3" || spec.Reason != "INC-4711" || spec.For.Duration != 2*time.Hour {
		t.Errorf("%+v", spec)
	}
	until := l.CreationTimestamp.Add(2 * time.Hour)
	for _, want := range []string{
		"PolicyOverride " + w.ns + "/" + l.Name + " created", "is suspended in cluster-2, cluster-3", until.UTC().Format(time.RFC3339), until.Local().Format("15:04:05 MST"), "Recorded as you, ",
		"nothing in cluster-3 at present", "Overridden in every cluster concerned", "meshctl policy override end " + l.Name,
	} {
		if !strings.Contains(r.out, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if r = w.policies("override", "list", "-n", w.ns); r.code != ExitOK || !strings.Contains(r.out, "cluster-2, cluster-3") || !strings.Contains(r.out, "INC-4711") {
		t.Errorf("list: exit %d", r.code)
	}
	w.refused(w.policies("override", "end", "billing-allow-paymnts", "-n", w.ns), ExitFailed, "did you mean")
	if r = w.policies("override", "end", "billing-allow-payments", "-n", w.ns); r.code != ExitOK || len(w.leases()) != 0 {
		t.Errorf("end: exit %d, %d leases", r.code, len(w.leases()))
	}
	w.refused(w.policies("override", "end", "billing-allow-payments", "-n", w.ns), ExitFailed, "nothing to end")
}

func TestOverrideNotConfirmed(t *testing.T) {
	w := newPolicyWorld(t)
	p := w.policy(w.ns, "billing-allow-payments", "cluster-1", "cluster-2")
	stop := w.confirm(p, "cluster-2")
	defer stop()
	r := w.policies("override", "billing-allow-payments", "-n", w.ns, "--all-clusters", "--reason", "INC-4711", "--for", "30m", "--timeout", "500ms", "-o", "json")
	w.refused(r, ExitNotReached, "cluster-1", "meshctl cluster list")
	var got overrideReport
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || strings.Join(got.Waiting, " ") != "cluster-1" || !got.All || got.By == "" {
		t.Errorf("%v %+v", err, got)
	}
	if len(w.leases()) != 1 {
		t.Error("the lease is gone")
	}
}

func TestOverrideRefuses(t *testing.T) {
	w := newPolicyWorld(t)
	w.policy(w.ns, "billing-allow-payments", "cluster-1")
	good := func(more ...string) []string {
		return append([]string{"override", "billing-allow-payments", "-n", w.ns, "--cluster", "cluster-1", "--reason", "r", "--for", "1h"}, more...)
	}
	w.as("guest", "mgmt", "guest")
	for name, tc := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"no policy":      {[]string{"override"}, ExitUsage, []string{"which policy?"}},
		"unknown policy": {append([]string{"override", "billing-allow-paymnts"}, good()[2:]...), ExitFailed, []string{"did you mean " + w.ns + "/billing-allow-payments?"}},
		"no cluster":     {[]string{"override", "x", "--reason", "r", "--for", "1h"}, ExitUsage, []string{"--all-clusters"}},
		"both":           {good("--all-clusters"), ExitUsage, []string{"want one of them"}},
		"no such one":    {good("--cluster", "cluster-9"), ExitUsage, []string{"did you mean"}},
		"no reason":      {good("--reason", "  "), ExitUsage, []string{"--reason is required"}},
		"long reason":    {good("--reason", strings.Repeat("x", 1025)), ExitUsage, []string{"at most 1024"}},
		"no time":        {[]string{"override", "x", "--all-clusters", "--reason", "r"}, ExitUsage, []string{"--for 2h"}},
		"too short":      {good("--for", "59s"), ExitUsage, []string{"at least 1m"}},
		"too long":       {good("--for", "24h1s"), ExitUsage, []string{"at most 24h"}},
		"not a time":     {good("--for", "tomorrow"), ExitUsage, []string{"invalid argument"}},
	} {
		t.Run(name, func(t *testing.T) {
			w.refused(w.policies(tc.args...), tc.code, tc.want...)
		})
	}
	// A person who may read, but not create.
	grant(w, "guest")
	w.mgmtContext = "guest"
	w.refused(w.policies(good()...), ExitFailed, "you may not", "create policyoverrides.security.policy.gloo.solo.io")
	if n := len(w.leases()); n != 0 {
		t.Errorf("%d leases were created", n)
	}
}

func TestLeasesNamed(t *testing.T) {
	lease := func(ns, name, policyNs, policy string) securityv2.PolicyOverride {
		return securityv2.PolicyOverride{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(ns + name)},
			Spec:       securityv2.PolicyOverrideSpec{PolicyRef: securityv2.PolicyRef{Namespace: policyNs, Name: policy}},
		}
	}
	all := []securityv2.PolicyOverride{lease("a", "one", "", "p"), lease("a", "two", "", "p"), lease("b", "one", "a", "q"), lease("b", "three", "", "p"), lease("b", "r", "a", "s")}
	for arg, want := range map[string]string{
		"two": "a/two", "a/one": "a/one", "b/one": "b/one", "a/p": "a/one a/two", "a/q": "b/one", "q": "b/one", "s": "b/r", "r": "b/r",
		"one": "in several namespaces", "p": "several policies", "thre": `did you mean "three"?`, "nothing-like-it": "is called",
	} {
		got, err := leasesNamed(all, arg)
		var names []string
		for _, o := range got {
			names = append(names, o.Namespace+"/"+o.Name)
		}
		if s := strings.Join(names, " "); err == nil && s != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v, want %s", arg, s, err, want)
		}
	}
}

func TestOverrideName(t *testing.T) {
	one, two := overrideName("x"), overrideName("x")
	long := overrideName(strings.Repeat("a", 199) + ".-" + strings.Repeat("b", 52))
	if len(long) > 253 || strings.Contains(long, ".-") || one == two {
		t.Errorf("%s (%d)", long, len(long))
	}
}

// TestSnapshotRights asks a real API server, which decides who may forward; there is no kubelet behind it.
func TestSnapshotRights(t *testing.T) {
	w := newPolicyWorld(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "server", Labels: map[string]string{"app": serverName}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	w.must(w.mgmt.Create(t.Context(), pod))
	w.refused(w.policies("snapshot"), ExitFailed, "is ready", "server is Pending")
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	w.must(w.mgmt.Status().Update(t.Context(), pod))
	w.refused(w.policies("snapshot"), ExitFailed, "read the snapshot from Pod "+w.ns+"/server", "host")
	w.as("guest", "mgmt", "guest")
	w.mgmtContext = "guest"
	w.refused(w.policies("snapshot"), ExitFailed, "you may not", "list pods")
	w.refused(w.policies("diff", "-f", "testdata/policy/page.yaml"), 2, "you may not", "list pods")
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "lists"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}}}
	w.must(w.mgmt.Create(t.Context(), role))
	w.must(w.mgmt.Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "lists"}, RoleRef: rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: "lists"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "guest"}},
	}))
	w.eventually(func() bool {
		return strings.Contains(w.policies("snapshot").err, "create pods/portforward in namespace")
	})
}
