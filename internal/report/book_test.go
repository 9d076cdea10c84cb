package report_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

func TestBookNamesOnlyWhatMayHaveChanged(t *testing.T) {
	ref := func(n string) mesh.Ref { return mesh.Ref{Version: "v1", Kind: "K", Name: n} }
	objectOf := func(n string) mesh.Ref { return ref("object-of-" + n) }
	make := func() report.News {
		n := report.News{Reports: map[mesh.Ref]mesh.PolicyReport{}, Facts: map[mesh.ClusterName]report.ClusterFacts{"c1": {Connected: true}, "c2": {Connected: true}}}
		for _, p := range []struct {
			name     string
			clusters []mesh.ClusterName
		}{{"a", []mesh.ClusterName{"c1"}}, {"b", []mesh.ClusterName{"c1", "c2"}}, {"c", nil}} {
			n.Policies = append(n.Policies, &mesh.AccessPolicy{Source: ref(p.name)})
			r := mesh.PolicyReport{}
			for _, c := range p.clusters {
				r.Clusters = append(r.Clusters, mesh.PolicyClusterReport{Cluster: c, Objects: []mesh.Ref{objectOf(p.name), ref("shared")}})
			}
			n.Reports[ref(p.name)] = r
		}
		return n
	}
	for name, tc := range map[string]struct {
		change func(*report.News)
		want   []string
	}{
		"nothing":                       {func(*report.News) {}, nil},
		"an equal report, made anew":    {func(n *report.News) { n.Reports = make().Reports }, nil},
		"an object of one":              {func(n *report.News) { n.Touched = map[mesh.Ref]bool{objectOf("b"): true} }, []string{"b"}},
		"an object of two":              {func(n *report.News) { n.Touched = map[mesh.Ref]bool{ref("shared"): true} }, []string{"a", "b"}},
		"an object of none":             {func(n *report.News) { n.Touched = map[mesh.Ref]bool{ref("x"): true} }, nil},
		"a cluster goes away":           {func(n *report.News) { n.Facts["c2"] = report.ClusterFacts{} }, []string{"b"}},
		"a cluster is published to":     {func(n *report.News) { n.Facts["c1"] = report.ClusterFacts{Connected: true, Published: true} }, []string{"a", "b"}},
		"a cluster is heard of no more": {func(n *report.News) { n.Facts["c2"] = report.ClusterFacts{Connected: true, Unknown: true} }, []string{"a", "b", "c"}},
		"a cluster is deregistered":     {func(n *report.News) { delete(n.Facts, "c1") }, []string{"a", "b"}},
		"a policy's spec":               {func(n *report.News) { n.Policies[2] = &mesh.AccessPolicy{Source: ref("c"), Generation: 2} }, []string{"c"}},
		"a policy's report":             {func(n *report.News) { n.Reports[ref("c")] = mesh.PolicyReport{Message: "m"} }, []string{"c"}},
		"a policy's report is gone":     {func(n *report.News) { delete(n.Reports, ref("a")) }, []string{"a"}},
		"a policy is gone":              {func(n *report.News) { n.Policies = n.Policies[1:]; delete(n.Reports, ref("a")) }, nil},
		"a policy's object is gone": {func(n *report.News) {
			n.Policies = n.Policies[1:]
			n.Touched = map[mesh.Ref]bool{objectOf("a"): true}
		}, nil},
		"its cluster's widening, same list length": {func(n *report.News) {
			r := make().Reports[ref("a")]
			r.Clusters[0].Widened = []string{"w"}
			n.Reports[ref("a")] = r
		}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := report.NewBook()
			n := make()
			if got := len(b.Due(n)); got != 3 {
				t.Fatalf("at first all are due, not %d", got)
			}
			n.Reports, n.Facts, n.Policies = maps.Clone(n.Reports), maps.Clone(n.Facts), slices.Clone(n.Policies)
			tc.change(&n)
			var got []string
			for p := range b.Due(n) {
				got = append(got, p.Name)
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			n.Touched = nil
			if again := b.Due(n); len(again) != 0 {
				t.Errorf("due again: %v", again)
			}
		})
	}
}
