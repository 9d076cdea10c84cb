package segments_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/probe"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/segments"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

type fixture struct {
	t        *testing.T
	client   dynamic.Interface
	own, app string // namespaces
	source   *synclog.Source
	keeper   *segments.Keeper
}

func start(t *testing.T) *fixture {
	t.Helper()
	cfg := kubetest.Start(t)
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	kube := kubetest.Client(t, cfg)
	f := &fixture{t: t, client: client, own: kubetest.Namespace(t, kube), app: kubetest.Namespace(t, kube)}
	f.restart()
	return f
}

// restart is another life of the agent.
func (f *fixture) restart() {
	f.source = synclog.NewSource("test")
	f.keeper = segments.New(segments.Config{
		Client: f.client, Namespace: f.own, Source: f.source, Log: slog.New(slog.DiscardHandler),
		Served: func(context.Context, map[string]bool) (map[string]probe.ServedService, error) { return nil, nil },
		Lookup: func(context.Context, string) ([]string, error) { return nil, errors.New("no such host") },
	})
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- f.keeper.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (f *fixture) order(o mesh.SegmentOrder) {
	raw, err := json.Marshal(o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.keeper.Desired(synclog.Changes{Set: map[synclog.Key][]byte{{Type: mesh.ItemSegments, Name: mesh.ItemSegments}: raw}, Complete: true})
}

func (f *fixture) services() dynamic.ResourceInterface {
	return f.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).Namespace(f.app)
}

func (f *fixture) dns() dynamic.ResourceInterface {
	return f.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("kube-system")
}

func (f *fixture) service(name string, labels map[string]any) {
	f.t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": name, "labels": labels},
		"spec": map[string]any{"selector": map[string]any{"app": "web"}, "ports": []any{map[string]any{"port": int64(80)}}},
	}}
	if _, err := f.services().Create(f.t.Context(), u, metav1.CreateOptions{FieldManager: "somebody"}); err != nil {
		f.t.Fatal(err)
	}
}

// said waits for a report.
func (f *fixture) said(ok func(mesh.SegmentState) bool) {
	f.t.Helper()
	var last mesh.SegmentState
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		sink := synclog.NewSink(synclog.Limits{}, false)
		cursor := f.source.Cursor(sink.Resume())
		for ch, more := cursor.Next(); more; ch, more = cursor.Next() {
			if err := sink.Apply(ch); err != nil {
				f.t.Fatal(err)
			}
		}
		last = mesh.SegmentState{}
		raw, found := sink.Snapshot().Items[synclog.Key{Type: mesh.ItemSegments, Name: mesh.ItemSegments}]
		if found && json.Unmarshal(raw, &last) == nil && ok(last) {
			return
		}
	}
	f.t.Fatalf("%+v", last)
}

// labels waits until a Service has these labels; nil: until it is gone.
func (f *fixture) labels(name string, want map[string]string) {
	f.t.Helper()
	var got map[string]string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		u, err := f.services().Get(f.t.Context(), name, metav1.GetOptions{})
		if got = nil; err == nil {
			got = u.GetLabels()
		}
		if len(got) == len(want) && (len(got) == 0 || cmp.Equal(got, want)) && (err != nil) == (want == nil) {
			return
		}
	}
	f.t.Fatal(cmp.Diff(want, got))
}

func (f *fixture) wanted(name string, ports ...mesh.ServicePort) mesh.SegmentService {
	return mesh.SegmentService{Namespace: f.app, Name: name, Labels: map[string]string{mesh.LabelGlobal: "true"}, Ports: ports}
}

// TestTakesBackOnlyItsOwn: labels, stubs and lines of DNS come and go, and what people set stays, through a restart of the agent between.
func TestTakesBackOnlyItsOwn(t *testing.T) {
	f := start(t)
	f.service("plain", map[string]any{"app": "web"})
	f.service("global", map[string]any{mesh.LabelGlobal: "true"})
	f.service("refused", map[string]any{mesh.LabelGlobal: "false"})
	foreign := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "coredns-custom", "namespace": "kube-system"}, "data": map[string]any{"theirs.override": "log"}}}
	if _, err := f.dns().Create(t.Context(), foreign, metav1.CreateOptions{FieldManager: "somebody"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = f.dns().Delete(context.WithoutCancel(t.Context()), "coredns-custom", metav1.DeleteOptions{})
	})
	data := func(want map[string]string) {
		t.Helper()
		var got map[string]string
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			u, err := f.dns().Get(t.Context(), "coredns-custom", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got, _, _ = unstructured.NestedStringMap(u.Object, "data"); cmp.Equal(got, want) {
				return
			}
		}
		t.Fatal(cmp.Diff(want, got))
	}
	order := mesh.SegmentOrder{
		Complete: true, Services: []mesh.SegmentService{f.wanted("global"), f.wanted("plain"), f.wanted("refused"), f.wanted("stub", mesh.ServicePort{Name: "http", Number: 80}), f.wanted("taken", mesh.ServicePort{Number: 80})},
		Hosts: []mesh.SegmentHost{{Host: "web.mesh.internal", Service: f.app + "/plain", Target: "plain." + f.app + ".svc.cluster.local"}},
	}
	f.order(order)
	f.labels("plain", map[string]string{"app": "web", mesh.LabelGlobal: "true"})
	stub := map[string]string{mesh.LabelStub: "true", mesh.LabelGlobal: "true"}
	f.labels("stub", stub)
	f.labels("taken", stub)
	data(map[string]string{"theirs.override": "log", mesh.SegmentFragment: "rewrite name exact web.mesh.internal plain." + f.app + ".svc.cluster.local\n"})
	f.labels("refused", map[string]string{mesh.LabelGlobal: "false"})
	f.said(func(s mesh.SegmentState) bool {
		return strings.Contains(s.Services[f.app+"/refused"].Error, "somebody else has set its label otherwise") && s.Services[f.app+"/global"].Labelled && strings.Contains(s.Hosts["web.mesh.internal"].Error, "does not resolve")
	})

	// Somebody makes a stub theirs.
	if _, err := f.services().Patch(t.Context(), "taken", "application/merge-patch+json", []byte(`{"spec":{"selector":{"app":"web"}}}`), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
		t.Fatal(err)
	}
	order.Services[4].Ports = nil
	f.order(order)
	f.labels("taken", map[string]string{mesh.LabelGlobal: "true"})

	f.restart()
	f.order(mesh.SegmentOrder{}) // not complete: nothing may be concluded from it
	f.said(func(s mesh.SegmentState) bool { return len(s.Services) == 0 })
	f.labels("plain", map[string]string{"app": "web", mesh.LabelGlobal: "true"})
	f.labels("stub", stub)

	f.order(mesh.SegmentOrder{Complete: true})
	f.labels("plain", map[string]string{"app": "web"})
	f.labels("global", map[string]string{mesh.LabelGlobal: "true"})
	f.labels("refused", map[string]string{mesh.LabelGlobal: "false"})
	f.labels("stub", nil)
	f.labels("taken", map[string]string{})
	data(map[string]string{"theirs.override": "log"})
}
