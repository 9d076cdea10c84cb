package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/test/kubetest"
)

// TestExpiries: each step is said once on the object that it is about, also by the server that follows; and every certificate has its metric.
func TestExpiries(t *testing.T) {
	c := kubetest.Client(t, kubetest.Start(t))
	ns := kubetest.Namespace(t, c)
	for _, o := range []client.Object{
		&adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "prod"}}, &adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "p"}},
	} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	const day = 24 * time.Hour
	list := []report.Expiry{
		{Kind: report.KindIntermediate, Cluster: "prod", Policy: "p", Subject: "CN=prod", Fingerprint: "aaaaaaaaaaaaaaaa", NotBefore: now.Add(-345 * day), NotAfter: now.Add(20 * day)},
		{Kind: report.KindRoot, Policy: "p", Subject: "CN=root", Fingerprint: "bbbbbbbbbbbbbbbb", NotBefore: now.Add(-3600 * day), NotAfter: now.Add(50 * day)},
		{Kind: report.KindIntermediate, Cluster: "gone", Policy: "p", Subject: "CN=gone", Fingerprint: "cccccccccccccccc", NotBefore: now.Add(-345 * day), NotAfter: now.Add(5 * day)},
	}
	start := func() *expiries {
		s := &server{api: c, events: report.NewEvents(c, Name), log: discard(), cfg: &Config{Namespace: ns}, metrics: newMetrics()}
		return &expiries{server: s, list: func() []report.Expiry { return list }, said: map[string]bool{}}
	}
	said := func() []string {
		t.Helper()
		var events corev1.EventList
		if err := c.List(t.Context(), &events, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range events.Items {
			if e.Reason == report.ReasonExpiring && e.Type == corev1.EventTypeWarning && e.Count == 1 {
				out = append(out, e.InvolvedObject.Kind+" "+e.InvolvedObject.Name+" "+e.Message[:strings.Index(e.Message, " ends at")])
			}
		}
		slices.Sort(out)
		return out
	}
	e := start()
	for range 3 {
		e.look(t.Context(), now)
	}
	start().look(t.Context(), now.Add(time.Hour)) // the server that follows
	want := []string{"KubernetesCluster prod intermediate CN=prod of cluster prod", "RootTrustPolicy p root CN=root"}
	if got := said(); !slices.Equal(got, want) {
		t.Errorf("Events: %q, want %q", got, want)
	}
	e.look(t.Context(), now.Add(14*day)) // the next step of one
	if got := said(); len(got) != 3 {
		t.Errorf("Events after two weeks: %q", got)
	}
	reg := prometheus.NewRegistry()
	if err := reg.Register(&expiryCollector{e.list}); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "gloo_mesh_certificate_expiry_timestamp_seconds" || len(families[0].GetMetric()) != 3 {
		t.Fatalf("%v, %v", families, err)
	}
	if v := families[0].GetMetric()[0].GetGauge().GetValue(); v < float64(now.Unix()) {
		t.Errorf("%v", v)
	}
}
