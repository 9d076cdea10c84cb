package report_test

import (
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Ten minutes of four clusters with a heartbeat every 5 s (480 beats), counted at the transport of a real API server.
func TestHeartbeatsCostOneWritePerClusterAndMinute(t *testing.T) {
	cfg := kubetest.Start(t)
	var writes atomic.Int32
	cfg.WrapTransport = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodPatch || r.Method == http.MethodPut {
				writes.Add(1)
			}
			return next.RoundTrip(r)
		})
	}
	c := kubetest.Client(t, cfg)
	ns := kubetest.Namespace(t, c)
	w := report.NewWriter(c, report.Differ)
	clusters := make([]*adminv2.KubernetesCluster, 4)
	for i := range clusters {
		clusters[i] = &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", i), Namespace: ns}}
		if err := c.Create(t.Context(), clusters[i]); err != nil {
			t.Fatal(err)
		}
	}
	const minutes = 10
	for second := 0; second < minutes*60; second += 5 {
		now := noon.Add(time.Duration(second) * time.Second)
		for i, kc := range clusters {
			in := healthy()
			in.Session.LastHeartbeat = now
			in.Session.Offset = time.Duration(second%7) * time.Millisecond
			if second >= 300 && i == 3 {
				in.Session.Connected, in.Session.LastHeartbeat = false, noon.Add(295*time.Second)
			}
			if _, err := w.Write(t.Context(), kc, kc.Status, report.Next(kc.Status, in, now)); err != nil {
				t.Fatal(err)
			}
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(kc), kc); err != nil {
				t.Fatal(err)
			}
		}
	}
	// 4 first writes, then one a minute; one disconnect, after which that cluster costs nothing
	want := int32(3*minutes + 5 + 1)
	if got := writes.Load(); got != want {
		t.Errorf("%d status writes in %d minutes of 4 clusters, want %d", got, minutes, want)
	}
	t.Logf("%d status writes in %d minutes, 4 clusters", writes.Load(), minutes)
	if clusters[3].Status.Connection != adminv2.ConnectionDisconnected || clusters[0].Status.Connection != adminv2.ConnectionConnected {
		t.Errorf("connections: %s, %s", clusters[0].Status.Connection, clusters[3].Status.Connection)
	}
}

func TestWriteRemovesFieldsAndSparesOthers(t *testing.T) {
	c := kubetest.Client(t, kubetest.Start(t))
	ns := kubetest.Namespace(t, c)
	w := report.NewWriter(c, report.Differ)
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "c1", Namespace: ns}}
	if err := c.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	in := healthy()
	in.Session.Offset = time.Minute
	for _, step := range []struct {
		offset time.Duration
		want   string
	}{{time.Minute, "1m0s behind"}, {0, ""}} {
		in.Session.Offset = step.offset
		next := report.Next(kc.Status, in, noon)
		if wrote, err := w.Write(t.Context(), kc, kc.Status, next); err != nil || !wrote {
			t.Fatalf("wrote %v, error %v", wrote, err)
		}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(kc), kc); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(next, kc.Status); diff != "" {
			t.Errorf("offset %s: the API server holds another status:\n%s", step.offset, diff)
		}
		if kc.Status.ClockSkew != step.want {
			t.Errorf("clockSkew %q, want %q", kc.Status.ClockSkew, step.want)
		}
	}
	if err := c.Delete(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	in.Session.Connected = false
	if wrote, err := w.Write(t.Context(), kc, kc.Status, report.Next(kc.Status, in, noon)); err != nil || wrote {
		t.Errorf("a deleted cluster: wrote %v, error %v", wrote, err)
	}
	var list adminv2.KubernetesClusterList
	if err := c.List(t.Context(), &list, client.InNamespace(ns)); err != nil || len(list.Items) != 0 {
		t.Errorf("writing the status of a deleted cluster made it again: %v %v", list.Items, err)
	}
}

func TestEvents(t *testing.T) {
	c := kubetest.Client(t, kubetest.Start(t))
	ns := kubetest.Namespace(t, c)
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "prod-eu-west-3", Namespace: ns}}
	if err := c.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second server does not know what the first one said
		e := report.NewEvents(c, "gloo-mesh-mgmt-server")
		if err := e.Once(t.Context(), kc, "Registered", "Registered by jane.doe@bank.example.com", noon); err != nil {
			t.Fatal(err)
		}
	}
	e := report.NewEvents(c, "gloo-mesh-mgmt-server")
	for second := range 130 { // an agent that is refused every second
		if err := e.Say(t.Context(), kc, corev1.EventTypeWarning, "Refused", "wrong UID", noon.Add(time.Duration(second)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	type said struct {
		Type, Reason, Message string
		Count                 int32
	}
	var list corev1.EventList
	if err := c.List(t.Context(), &list, client.InNamespace(ns), client.MatchingFields{"involvedObject.name": "prod-eu-west-3"}); err != nil {
		t.Fatal(err)
	}
	got := map[said]bool{}
	for _, ev := range list.Items {
		got[said{ev.Type, ev.Reason, ev.Message, ev.Count}] = true
	}
	want := map[said]bool{
		{"Normal", "Registered", "Registered by jane.doe@bank.example.com", 1}: true,
		{"Warning", "Refused", "wrong UID", 3}:                                 true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestEventsAreKept: an Event that is to last is there again after its life has ended, says the time that it always said, and costs a write every 20 minutes.
func TestEventsAreKept(t *testing.T) {
	c := kubetest.Client(t, kubetest.Start(t))
	ns := kubetest.Namespace(t, c)
	kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "prod-eu-west-3", Namespace: ns}}
	if err := c.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	registered := noon.Add(-240 * 24 * time.Hour)
	e := report.NewEvents(c, "gloo-mesh-mgmt-server")
	there := func() []corev1.Event {
		t.Helper()
		var list corev1.EventList
		if err := c.List(t.Context(), &list, client.InNamespace(ns), client.MatchingFields{"involvedObject.name": "prod-eu-west-3"}); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	versions := map[string]bool{}
	for minute := range 120 {
		if minute == 60 { // its life has ended
			for _, ev := range there() {
				if err := c.Delete(t.Context(), &ev); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := e.Keep(t.Context(), kc, "Registered", "Registered by jane.doe@bank.example.com", registered, noon.Add(time.Duration(minute)*time.Minute)); err != nil {
			t.Fatal(err)
		}
		for _, ev := range there() {
			versions[ev.ResourceVersion] = true
		}
	}
	all := there()
	if len(all) != 1 || all[0].Message != "Registered by jane.doe@bank.example.com" || !all[0].FirstTimestamp.Time.Equal(registered) || !all[0].LastTimestamp.Time.Equal(registered) || all[0].Count != 1 {
		t.Errorf("%+v", all)
	}
	if len(versions) < 5 || len(versions) > 7 {
		t.Errorf("%d writes in two hours", len(versions))
	}
}
