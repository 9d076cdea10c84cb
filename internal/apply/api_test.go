package apply_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/apply"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// agent is an Applier that a test drives in the relay's place.
type agent struct {
	t         *testing.T
	cfg       *rest.Config
	kube      client.WithWatch
	namespace string // its own

	applier  *apply.Applier
	outcomes *synclog.Source
	log      *syncBuffer
	stop     func()
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs an Applier in a namespace of its own, with the rights of cfg.
func start(t *testing.T, cfg *rest.Config) *agent {
	t.Helper()
	kube := kubetest.Client(t, kubetest.Start(t))
	a := &agent{t: t, cfg: cfg, kube: kube, namespace: kubetest.Namespace(t, kube)}
	a.run()
	t.Cleanup(func() {
		a.stop()
		if t.Failed() {
			t.Log(a.log.String())
		}
	})
	return a
}

func (a *agent) run() {
	a.t.Helper()
	dyn, err := dynamic.NewForConfig(a.cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	typed, err := kubernetes.NewForConfig(a.cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	a.log, a.outcomes = &syncBuffer{}, synclog.NewSource("test")
	a.applier = apply.New(apply.Config{
		Client: dyn, Namespace: a.namespace, Outcomes: a.outcomes, Log: slog.New(slog.NewTextHandler(a.log, nil)),
		Get: func(ctx context.Context, path string) ([]byte, error) {
			return typed.RESTClient().Get().AbsPath(path).DoRaw(ctx)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.applier.Run(ctx); err != nil {
			a.t.Errorf("Run: %v", err)
		}
	}()
	a.stop = func() { cancel(); <-done }
}

// restart is a new life of the agent: it knows nothing but what is in the cluster.
func (a *agent) restart() {
	a.t.Helper()
	a.stop()
	a.run()
}

// want sends desired objects.
func (a *agent) want(complete bool, manifests ...map[string]any) {
	a.t.Helper()
	c := synclog.Changes{Set: map[synclog.Key][]byte{}, Complete: complete}
	for _, m := range manifests {
		raw, err := json.Marshal(m)
		if err != nil {
			a.t.Fatal(err)
		}
		c.Set[synclog.Key{Type: mesh.ItemObject, Name: refOf(m).String()}] = raw
	}
	a.applier.Desired(a.t.Context(), c)
}

// drop sends a complete state in which refs are gone.
func (a *agent) drop(refs ...mesh.Ref) {
	c := synclog.Changes{Complete: true}
	for _, r := range refs {
		c.Deleted = append(c.Deleted, synclog.Key{Type: mesh.ItemObject, Name: r.String()})
	}
	a.applier.Desired(a.t.Context(), c)
}

func refOf(m map[string]any) mesh.Ref {
	u := unstructured.Unstructured{Object: m}
	gvk := u.GroupVersionKind()
	return mesh.Ref{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Namespace: u.GetNamespace(), Name: u.GetName()}
}

// outcome is what has been reported of an object; found is false when nothing has.
func (a *agent) outcome(ref mesh.Ref) (o mesh.Outcome, found bool) {
	a.t.Helper()
	sink := synclog.NewSink(synclog.Limits{}, false)
	cursor := a.outcomes.Cursor(sink.Resume())
	for ch, ok := cursor.Next(); ok; ch, ok = cursor.Next() {
		if err := sink.Apply(ch); err != nil {
			a.t.Fatal(err)
		}
	}
	raw, found := sink.Snapshot().Items[synclog.Key{Type: mesh.ItemOutcome, Name: ref.String()}]
	if !found {
		return mesh.Outcome{}, false
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		a.t.Fatal(err)
	}
	return o, true
}

// acked waits until the manifest is in force.
func (a *agent) acked(m map[string]any) {
	a.t.Helper()
	raw, _ := json.Marshal(m)
	want := mesh.Outcome{Hash: mesh.FingerprintOf(raw), OK: true}
	var got mesh.Outcome
	within(a.t, 15*time.Second, func() bool { got, _ = a.outcome(refOf(m)); return got == want }, func() string { return cmp.Diff(want, got) })
}

// nacked waits for an error that has every one of the words.
func (a *agent) nacked(m map[string]any, words ...string) {
	a.t.Helper()
	var got mesh.Outcome
	within(a.t, 15*time.Second, func() bool {
		got, _ = a.outcome(refOf(m))
		return !got.OK && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(got.Error, w) })
	}, func() string { return fmt.Sprintf("want a nack naming %q, got %+v", words, got) })
}

func within(t *testing.T, d time.Duration, ok func() bool, why func() string) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", d, why())
		}
	}
}

// get reads an object; nil: it does not exist.
func (a *agent) get(ref mesh.Ref) *unstructured.Unstructured {
	a.t.Helper()
	u := &unstructured.Unstructured{}
	u.SetAPIVersion(strings.TrimPrefix(ref.Group+"/"+ref.Version, "/"))
	u.SetKind(ref.Kind)
	switch err := a.kube.Get(context.Background(), client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, u); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		a.t.Fatal(err)
	}
	return u
}

// listed is what the inventory says.
func (a *agent) listed() []string {
	a.t.Helper()
	var cm corev1.ConfigMap
	if err := a.kube.Get(context.Background(), client.ObjectKey{Namespace: a.namespace, Name: apply.InventoryName}, &cm); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		a.t.Fatal(err)
	}
	return strings.Fields(cm.Data["objects"])
}

func configMap(namespace, name, value string) map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": name, "namespace": namespace, "labels": map[string]any{apply.OwnerLabel: apply.OwnerValue}},
		"data":     map[string]any{"key": value},
	}
}

func data(u *unstructured.Unstructured) string {
	if u == nil {
		return "<gone>"
	}
	v, _, _ := unstructured.NestedString(u.Object, "data", "key")
	return v
}

func TestAppliesKeepsAndPrunes(t *testing.T) {
	a := start(t, kubetest.Start(t))
	one, two := configMap(a.namespace, "one", "1"), configMap(a.namespace, "two", "2")
	a.want(true, one, two)
	a.acked(one)
	a.acked(two)
	if diff := cmp.Diff([]string{refOf(one).String(), refOf(two).String()}, a.listed()); diff != "" {
		t.Errorf("inventory:\n%s", diff)
	}
	live := a.get(refOf(one))
	if m := live.GetManagedFields(); len(m) != 1 || m[0].Manager != apply.FieldManager || m[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("field managers: %+v", m)
	}

	// The hub changes it.
	one2 := configMap(a.namespace, "one", "1.1")
	a.want(true, one2)
	a.acked(one2)

	// Somebody changes it, somebody deletes it: both are put back.
	live = a.get(refOf(one))
	_ = unstructured.SetNestedField(live.Object, "by hand", "data", "key")
	if err := a.kube.Update(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	within(t, 15*time.Second, func() bool { return data(a.get(refOf(one))) == "1.1" }, func() string { return "the change was not put back" })
	t.Logf("a change was put back within %s", time.Since(start).Round(time.Millisecond))
	if err := a.kube.Delete(t.Context(), a.get(refOf(one))); err != nil {
		t.Fatal(err)
	}
	within(t, 15*time.Second, func() bool { return data(a.get(refOf(one))) == "1.1" }, func() string { return "the deletion was not put back" })

	// What others add elsewhere in the object is theirs: no quarrel about it.
	live = a.get(refOf(one))
	live.SetAnnotations(map[string]string{"note": "mine"})
	if err := a.kube.Update(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	version := a.get(refOf(one)).GetResourceVersion()
	time.Sleep(500 * time.Millisecond)
	if now := a.get(refOf(one)); now.GetResourceVersion() != version {
		t.Errorf("an annotation of somebody else's made us write: %v", now.GetAnnotations())
	}

	a.drop(refOf(two))
	within(t, 15*time.Second, func() bool { return a.get(refOf(two)) == nil && len(a.listed()) == 1 }, func() string { return fmt.Sprint(a.listed()) })
	if _, found := a.outcome(refOf(two)); found {
		t.Error("an outcome of what nobody wants any more")
	}
	if a.get(refOf(one)) == nil {
		t.Error("pruned what is still desired")
	}
}

// An absent or incomplete desired state is no order to delete, in no life of the agent.
func TestNothingIsDeletedBeforeTheStateIsComplete(t *testing.T) {
	a := start(t, kubetest.Start(t))
	keep, gone := configMap(a.namespace, "keep", "1"), configMap(a.namespace, "gone", "1")
	a.want(true, keep, gone)
	a.acked(keep)
	a.acked(gone)
	before := a.get(refOf(gone)).GetUID()

	a.restart() // no hub in sight
	time.Sleep(500 * time.Millisecond)
	a.want(false, keep) // a part of it arrives
	a.acked(keep)
	a.want(false)
	time.Sleep(500 * time.Millisecond)
	if u := a.get(refOf(gone)); u == nil || u.GetUID() != before {
		t.Fatal("deleted by an incomplete desired state")
	}
	a.want(true) // the rest: nothing more
	within(t, 15*time.Second, func() bool { return a.get(refOf(gone)) == nil }, func() string { return "what a former life applied was not pruned" })
	if diff := cmp.Diff([]string{refOf(keep).String()}, a.listed()); diff != "" {
		t.Errorf("inventory:\n%s", diff)
	}
}

func TestForeignObjectsAreLeftAlone(t *testing.T) {
	a := start(t, kubetest.Start(t))
	foreign := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "taken", Namespace: a.namespace}, Data: map[string]string{"key": "theirs"}}
	if err := a.kube.Create(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	ours := configMap(a.namespace, "taken", "ours")
	a.want(true, ours)
	a.nacked(ours, "taken", apply.OwnerLabel, "not ours")
	if got := data(a.get(refOf(ours))); got != "theirs" {
		t.Errorf("a foreign object was changed to %q", got)
	}
	a.drop(refOf(ours))
	within(t, 15*time.Second, func() bool { return len(a.listed()) == 0 }, func() string { return fmt.Sprint(a.listed()) })
	if a.get(refOf(ours)) == nil {
		t.Error("a foreign object was deleted")
	}

	// Once its owner gives it away, it is ours.
	a.want(true, ours)
	a.nacked(ours, "not ours")
	foreign.Labels = map[string]string{apply.OwnerLabel: apply.OwnerValue}
	if err := a.kube.Update(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	a.acked(ours)
}

func TestManifestsThatAreNotWhatTheySay(t *testing.T) {
	a := start(t, kubetest.Start(t))
	unlabelled := configMap(a.namespace, "unlabelled", "1")
	delete(unlabelled["metadata"].(map[string]any), "labels")
	a.want(true, unlabelled)
	a.nacked(unlabelled, apply.OwnerLabel)

	disguised := configMap(a.namespace, "disguised", "1")
	raw, _ := json.Marshal(configMap("kube-system", "other", "1"))
	a.applier.Desired(t.Context(), synclog.Changes{Set: map[synclog.Key][]byte{{Type: mesh.ItemObject, Name: refOf(disguised).String()}: raw}, Complete: true})
	a.nacked(disguised, "disguised", "kube-system/other")
	if a.get(mesh.Ref{Version: "v1", Kind: "ConfigMap", Namespace: "kube-system", Name: "other"}) != nil {
		t.Error("an object was applied under another's name")
	}
}

func definition(t *testing.T, versions ...string) *apiextensionsv1.CustomResourceDefinition {
	group := strings.ToLower(strings.ReplaceAll(t.Name(), "_", "-")) + ".example.com"
	d := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "rules." + group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensionsv1.NamespaceScoped, Names: apiextensionsv1.CustomResourceDefinitionNames{Kind: "Rule", ListKind: "RuleList", Plural: "rules", Singular: "rule"},
		},
	}
	for i, v := range versions {
		d.Spec.Versions = append(d.Spec.Versions, apiextensionsv1.CustomResourceDefinitionVersion{
			Name: v, Served: true, Storage: i == 0,
			Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{
				"spec": {Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"action": {Type: "string", Enum: []apiextensionsv1.JSON{{Raw: []byte(`"ALLOW"`)}}}}},
			}}},
		})
	}
	return d
}

func rule(d *apiextensionsv1.CustomResourceDefinition, version, namespace string, spec map[string]any) map[string]any {
	return map[string]any{
		"apiVersion": d.Spec.Group + "/" + version, "kind": "Rule",
		"metadata": map[string]any{"name": "r", "namespace": namespace, "labels": map[string]any{apply.OwnerLabel: apply.OwnerValue}},
		"spec":     spec,
	}
}

func TestKindsComeAndGo(t *testing.T) {
	a := start(t, kubetest.Start(t))
	d := definition(t, "v1beta1", "v1")
	elsewhere := kubetest.Namespace(t, a.kube)
	r := rule(d, "v1beta1", elsewhere, map[string]any{"action": "ALLOW"})
	a.want(true, r)
	a.nacked(r, "Rule", d.Spec.Group, "CRD")
	if err := a.kube.Create(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	a.acked(r) // by itself

	// What the cluster's version of the CRD does not know must not be dropped in silence: it may be what a policy is about.
	bad := rule(d, "v1beta1", elsewhere, map[string]any{"action": "ALLOW", "onlyFrom": "payments"})
	a.want(true, bad)
	a.nacked(bad, "onlyFrom")
	bad = rule(d, "v1beta1", elsewhere, map[string]any{"action": "AUDIT"})
	a.want(true, bad)
	a.nacked(bad, "AUDIT")
	a.want(true, r)
	a.acked(r)

	// The hub moves to the kind's next version: the same object, which must not be gone for a moment.
	uid := a.get(refOf(r)).GetUID()
	next := rule(d, "v1", elsewhere, map[string]any{"action": "ALLOW"})
	raw, _ := json.Marshal(next)
	a.applier.Desired(t.Context(), synclog.Changes{
		Set:     map[synclog.Key][]byte{{Type: mesh.ItemObject, Name: refOf(next).String()}: raw},
		Deleted: []synclog.Key{{Type: mesh.ItemObject, Name: refOf(r).String()}}, Complete: true,
	})
	a.acked(next)
	within(t, 15*time.Second, func() bool { return cmp.Equal([]string{refOf(next).String()}, a.listed()) }, func() string { return fmt.Sprint(a.listed()) })
	if u := a.get(refOf(next)); u == nil || u.GetUID() != uid {
		t.Error("moving to another version of its kind deleted the object")
	}

	// The CRD goes, and with it the object: the next attempt says so.
	if err := a.kube.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	a.nacked(next, "Rule", "CRD")
}

// Many objects at once: how long it takes, and that a second life does not write what is there already.
func TestManyObjects(t *testing.T) {
	const n = 300
	a := start(t, kubetest.Start(t))
	var all []map[string]any
	for i := range n {
		all = append(all, configMap(a.namespace, fmt.Sprintf("m%03d", i), "1"))
	}
	began := time.Now()
	a.want(true, all...)
	for _, m := range all {
		a.acked(m)
	}
	t.Logf("%d objects applied in %s", n, time.Since(began).Round(time.Millisecond))
	versions := func() map[string]string {
		var list corev1.ConfigMapList
		if err := a.kube.List(t.Context(), &list, client.InNamespace(a.namespace), client.MatchingLabels{apply.OwnerLabel: apply.OwnerValue}); err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, m := range list.Items {
			out[m.Name] = m.ResourceVersion
		}
		return out
	}
	before := versions()
	a.restart()
	a.want(true, all...)
	for _, m := range all {
		a.acked(m)
	}
	if diff := cmp.Diff(before, versions()); diff != "" || len(before) != n {
		t.Errorf("a new life of the agent wrote though nothing had changed (%d objects):\n%s", len(before), diff)
	}
	began = time.Now()
	a.drop(slices.Collect(func(yield func(mesh.Ref) bool) {
		for _, m := range all {
			if !yield(refOf(m)) {
				return
			}
		}
	})...)
	within(t, 30*time.Second, func() bool { return len(a.listed()) == 0 }, func() string { return fmt.Sprint(len(a.listed()), " left") })
	if left := versions(); len(left) > 0 {
		t.Errorf("left: %v", slices.Sorted(maps.Keys(left)))
	}
	t.Logf("%d objects pruned in %s", n, time.Since(began).Round(time.Millisecond))
}
