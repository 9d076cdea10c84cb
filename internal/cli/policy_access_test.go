package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

func TestParseParty(t *testing.T) {
	for arg, want := range map[string]party{
		"payments/payments@cluster-1": {"payments", "payments", "cluster-1"},
		"billing/billing":             {"billing", "billing", ""},
	} {
		if got, err := parseParty(arg, "Service"); err != nil || got != want {
			t.Errorf("%s: %v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", "billing", "/billing", "billing/", "a/b/c", "a/b@", "billing@cluster-1"} {
		if _, err := parseParty(arg, "Service"); err == nil || !strings.Contains(err.Error(), "NAMESPACE/NAME@CLUSTER") {
			t.Errorf("%q was taken: %v", arg, err)
		}
	}
}

func TestQuestionArguments(t *testing.T) {
	s := testSnapshot()
	delete(s.Clusters[1].Inventory.Namespaces, "orders")
	s.Clusters = append(s.Clusters, mesh.Cluster{Name: "cluster-3"})
	for name, tc := range map[string]struct {
		o        questionOptions
		from, to string
		err      string
	}{
		"full":                {o: questionOptions{from: "payments/payments@cluster-1", to: "billing/billing@cluster-2", port: 8080}, from: "payments/payments@cluster-1", to: "billing/billing@cluster-2"},
		"only one has it":     {o: questionOptions{from: "orders/orders", to: "orders/orders"}, from: "orders/orders@cluster-1", to: "orders/orders@cluster-1"},
		"several have it":     {o: questionOptions{from: "payments/payments", to: "billing/billing@cluster-2"}, err: "is in the clusters cluster-1, cluster-2: which one? Write payments/payments@cluster-1"},
		"misspelt Service":    {o: questionOptions{from: "payments/payments@cluster-1", to: "billing/biling@cluster-2"}, err: "cluster cluster-2 reports no Service billing/biling; did you mean billing/billing?"},
		"misspelt account":    {o: questionOptions{from: "paiments/payments", to: "billing/billing@cluster-2"}, err: "no cluster reports a ServiceAccount paiments/payments; did you mean payments/payments? (not reported yet: cluster-3)"},
		"misspelt cluster":    {o: questionOptions{from: "payments/payments@cluster-1", to: "billing/billing@cluster2"}, err: `no such cluster is registered; did you mean "cluster-2"?`},
		"a port it lacks":     {o: questionOptions{from: "payments/payments@cluster-1", to: "billing/billing@cluster-2", port: 80}, err: "it has: 8080 http"},
		"not reported at all": {o: questionOptions{from: "payments/payments@cluster-3", to: "billing/billing@cluster-2"}, err: "not reported yet: cluster-3"},
	} {
		t.Run(name, func(t *testing.T) {
			from, to, err := tc.o.ask(s)
			if tc.err != "" {
				if exit := (*exitError)(nil); !errors.As(err, &exit) || exit.code != ExitUsage || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || from.String() != tc.from || to.String() != tc.to {
				t.Errorf("%v -> %v, %v", from, to, err)
			}
		})
	}
}

func TestAccessChanges(t *testing.T) {
	s := testSnapshot()
	s.Clusters[1].Inventory.Namespaces["billing"].Services[0].Ports = []mesh.ServicePort{{Number: 80}, {Number: 90}}
	where := map[mesh.ClusterName][]string{"cluster-1": {"billing", "gone"}, "cluster-2": {"billing", "orders"}, "cluster-9": {"x"}}
	everyone := func(translate.Question) bool { return true }
	payments := func(q translate.Question) bool {
		return q.FromNamespace == "payments" && q.FromCluster == "cluster-1" || q.ToNamespace == "orders" || q.ToCluster == "cluster-2" && q.Port == 80
	}
	texts := func(before, after asker) (out []string) {
		for _, a := range accessChanges(s, where, before, after) {
			out = append(out, a.Text)
		}
		return out
	}
	closing := []string{
		"billing/billing@cluster-1: lose: billing/billing@cluster-1, orders/orders@cluster-1, billing/billing@cluster-2, orders/orders@cluster-2, payments/payments@cluster-2; then 1 of 6 ServiceAccounts may call it",
		"billing/billing@cluster-2 port 90: lose: billing/billing@cluster-1, orders/orders@cluster-1, billing/billing@cluster-2, orders/orders@cluster-2, payments/payments@cluster-2; then 1 of 6 ServiceAccounts may call it",
	}
	if diff := cmp.Diff(closing, texts(everyone, payments)); diff != "" {
		t.Error(diff)
	}
	opening := texts(payments, everyone)
	if len(opening) != 2 || !strings.HasPrefix(opening[0], "billing/billing@cluster-1: gain: billing/billing@cluster-1, ") || !strings.HasSuffix(opening[0], "; then every ServiceAccount may call it") {
		t.Errorf("%q", opening)
	}
	if got := texts(payments, payments); len(got) != 0 {
		t.Errorf("%q", got)
	}
	nobody := texts(payments, func(translate.Question) bool { return false })
	if len(nobody) != 4 || !strings.HasSuffix(nobody[0], "lose: payments/payments@cluster-1; then nobody may call it") {
		t.Errorf("%q", nobody)
	}
	if n := questions(s, where); n != 6*(1+2+1) {
		t.Errorf("%d questions", n)
	}
}

func TestCompare(t *testing.T) {
	object := func(name, value string) mesh.Object {
		raw, err := json.Marshal(map[string]any{"kind": "K", "metadata": map[string]string{"name": name}, "value": value})
		if err != nil {
			t.Fatal(err)
		}
		return mesh.Object{Ref: mesh.Ref{Version: "v1", Kind: "K", Namespace: "ns", Name: name}, Manifest: raw, Hash: mesh.FingerprintOf(raw)}
	}
	set := mesh.ObjectsOf
	before := translate.Result{Objects: map[mesh.ClusterName]translate.Objects{"a": set(object("same", "1"), object("other", "1"), object("gone", "1")), "b": set(object("gone", "1")), "c": set(object("same", "1"))}}
	after := translate.Result{Objects: map[mesh.ClusterName]translate.Objects{"a": set(object("same", "1"), object("other", "2"), object("new", "1")), "c": set(object("same", "1")), "d": set(object("new", "1"))}}
	made, gone := "@@ -0,0 +1,4 @@\n+kind: K\n+metadata:\n+  name: new\n+value: \"1\"\n", "@@ -1,4 +0,0 @@\n-kind: K\n-metadata:\n-  name: gone\n-value: \"1\"\n"
	want := []clusterChange{
		{"a", []objectChange{{"-", "K ns/gone", gone}, {"+", "K ns/new", made}, {"~", "K ns/other", "@@ -1,4 +1,4 @@\n kind: K\n metadata:\n   name: other\n-value: \"1\"\n+value: \"2\"\n"}}},
		{"b", []objectChange{{"-", "K ns/gone", gone}}},
		{"d", []objectChange{{"+", "K ns/new", made}}},
	}
	got, err := compare(before, after, wantedClusters(nil))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	got, err = compare(before, after, wantedClusters([]string{"c", "d"}))
	if diff := cmp.Diff(want[2:], got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if diff := cmp.Diff(map[mesh.ClusterName][]string{"a": {"ns"}, "b": {"ns"}, "d": {"ns"}}, places(want)); diff != "" {
		t.Error(diff)
	}
}

func TestGroupAlike(t *testing.T) {
	change := func(c mesh.ClusterName, value string) clusterChange {
		return clusterChange{c, []objectChange{{"+", "K ns/new", "+    relay.solo.io/cluster: " + string(c) + "\n+value: " + value + "\n"}}}
	}
	r := diffReport{Changed: true, Clusters: []clusterChange{change("a", "1"), change("b", "2"), change("c", "1")}}
	var full, brief bytes.Buffer
	r.print(&full, false)
	r.print(&brief, true)
	golden(t, "diff-groups", full.String())
	golden(t, "diff-groups-brief", brief.String())
}
