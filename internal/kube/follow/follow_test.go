package follow_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// book is a Sink: what it was told, by name.
type book struct {
	mu     sync.Mutex
	is     map[string]string
	lists  int
	failed []string
}

func (b *book) Set(u *unstructured.Unstructured) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, _, _ := unstructured.NestedString(u.Object, "data", "key")
	b.is[follow.Name(u)] = v
}

func (b *book) Gone(u *unstructured.Unstructured) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.is, follow.Name(u))
}

func (b *book) Listed(present map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.is, func(n, _ string) bool { return !present[n] })
	b.lists++
}

func (b *book) Failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = append(b.failed, fmt.Sprint(err))
}

func (b *book) state() (map[string]string, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.is), b.lists
}

func (b *book) troubles() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.failed...)
}

// flaky is a client whose lists and watches a test can spoil.
type flaky struct {
	dynamic.ResourceInterface
	mu      sync.Mutex
	list    error
	watched []watch.Interface
	pages   int
}

func (f *flaky) List(ctx context.Context, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	f.mu.Lock()
	err := f.list
	f.pages++
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.ResourceInterface.List(ctx, o)
}

// spoiled passes a watch on, with events of a test in between.
type spoiled struct {
	watch.Interface
	out chan watch.Event
	end chan struct{} // closed: the server ends it, as it does every few minutes
}

func (s *spoiled) ResultChan() <-chan watch.Event { return s.out }

func (f *flaky) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list != nil {
		return nil, f.list
	}
	w, err := f.ResourceInterface.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &spoiled{w, make(chan watch.Event), make(chan struct{})}
	go func() {
		defer close(s.out)
		for {
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					return
				}
				s.out <- e
			case <-s.end:
				return
			}
		}
	}()
	f.watched = append(f.watched, s)
	return s, nil
}

func (f *flaky) last() *spoiled {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.watched[len(f.watched)-1].(*spoiled)
}

func (f *flaky) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = err
}

func TestFollows(t *testing.T) {
	cfg := kubetest.Start(t)
	kube := kubetest.Client(t, cfg)
	ns := kubetest.Namespace(t, kube)
	client := &flaky{ResourceInterface: dynamic.NewForConfigOrDie(cfg).Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(ns)}
	want := map[string]string{}
	put := func(name, value string) {
		t.Helper()
		o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: map[string]string{"of": "interest"}}, Data: map[string]string{"key": value}}
		var err error
		if _, there := want[ns+"/"+name]; there {
			err = kube.Update(t.Context(), o)
		} else {
			err = kube.Create(t.Context(), o)
		}
		if err != nil {
			t.Fatal(err)
		}
		want[ns+"/"+name] = value
	}
	remove := func(name string) {
		t.Helper()
		if err := kube.Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}}); err != nil {
			t.Fatal(err)
		}
		delete(want, ns+"/"+name)
	}
	for i := range 250 { // three pages
		put(fmt.Sprintf("c%03d", i), "1")
	}
	b := &book{is: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		follow.Run(ctx, follow.Config{Client: client, Name: "configmaps", Labels: "of=interest", Failed: b.Failed, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, b)
	}()
	defer func() { cancel(); <-done }()
	same := func(what string) {
		t.Helper()
		var got map[string]string
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if got, _ = b.state(); maps.Equal(got, want) {
				return
			}
		}
		t.Fatalf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
	}
	same("listed")
	if client.pages != 3 {
		t.Errorf("%d pages, want 3", client.pages)
	}
	put("new", "1")
	put("c000", "2")
	remove("c001")
	same("watched")
	if _, n := b.state(); n != 1 {
		t.Errorf("%d lists, want 1", n)
	}

	// The watch ends, as it does every few minutes: no new list.
	time.Sleep(1100 * time.Millisecond)
	close(client.last().end)
	put("after-the-end", "1")
	same("another watch")
	if _, n := b.state(); n != 1 {
		t.Errorf("%d lists after a watch ended, want 1", n)
	}

	// The API server has forgotten where we were: a new list, which shows what went meanwhile.
	gone := apierrors.NewResourceExpired("too old resource version")
	client.last().out <- watch.Event{Type: watch.Error, Object: &gone.ErrStatus}
	remove("c002")
	put("after-410", "1")
	same("a new list")

	// It does not answer for a while.
	client.set(errors.New("connection refused"))
	close(client.last().end)
	for end := time.Now().Add(10 * time.Second); !strings.Contains(strings.Join(b.troubles(), ";"), "refused"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("trouble is not told: %q", b.troubles())
		}
	}
	remove("c003")
	put("while-away", "1")
	client.set(nil)
	same("it answers again")
	if all := b.troubles(); all[len(all)-1] != "<nil>" {
		t.Errorf("the end of the trouble is not told: %q", all)
	}
}

// A kind that the cluster does not know is none of anything, without noise.
func TestMissingKind(t *testing.T) {
	cfg := kubetest.Start(t)
	b := &book{is: map[string]string{}}
	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		gvr := schema.GroupVersionResource{Group: "nobody.example.com", Version: "v1", Resource: "things"}
		follow.Run(ctx, follow.Config{Client: dynamic.NewForConfigOrDie(cfg).Resource(gvr), Name: "things", Optional: true, Log: slog.New(slog.NewTextHandler(&log, nil))}, b)
	}()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, n := b.state(); n > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("never listed: an inventory would never be complete")
		}
	}
	cancel()
	<-done
	if log.Len() > 0 {
		t.Errorf("noise: %s", log.String())
	}
}
