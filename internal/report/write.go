package report

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// FieldManager owns the status fields.
const FieldManager = "gloo-mesh-mgmt-server"

func equal(a, b *adminv2.KubernetesClusterStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// Unequal says whether anything differs: the rule for every status that holds no heartbeat.
func Unequal[S any](old, next S) bool { return !equality.Semantic.DeepEqual(old, next) }

// Writer writes the status S of one kind. Safe for concurrent use.
type Writer[S any] struct {
	client client.Client
	differ func(old, next S) bool

	mu    sync.Mutex
	wrote map[types.NamespacedName]written[S]
}

// written is what was written over a version of an object, for as long as the caller's cache still shows that version.
type written[S any] struct {
	uid    types.UID
	over   string // resourceVersion
	status S
}

// NewWriter returns a Writer that writes with c when differ says so.
func NewWriter[S any](c client.Client, differ func(old, next S) bool) *Writer[S] {
	return &Writer[S]{client: c, differ: differ, wrote: map[types.NamespacedName]written[S]{}}
}

// Last returns the status that o has: its own (has), or, when o comes from a cache that lags behind, what was written over it.
func (w *Writer[S]) Last(o client.Object, has S) S {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := client.ObjectKeyFromObject(o)
	if l, ok := w.wrote[key]; ok {
		if l.uid == o.GetUID() && l.over == o.GetResourceVersion() {
			return l.status
		}
		delete(w.wrote, key)
	}
	return has
}

// Forget drops what is remembered of an object that is gone.
func (w *Writer[S]) Forget(namespace, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.wrote, types.NamespacedName{Namespace: namespace, Name: name})
}

// Write applies next to o when it differs from the status o has, and says whether it did. An object deleted meanwhile is no error.
func (w *Writer[S]) Write(ctx context.Context, o client.Object, has, next S) (bool, error) {
	if !w.differ(w.Last(o, has), next) {
		return false, nil
	}
	gvk, err := apiutil.GVKForObject(o, w.client.Scheme())
	if err != nil {
		return false, fmt.Errorf("write status of %q: %w", o.GetName(), err)
	}
	fail := func(what string, err error) (bool, error) {
		return false, fmt.Errorf("%s %s/%s: %s status: %w", gvk.Kind, o.GetNamespace(), o.GetName(), what, err)
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return fail("encode", err)
	}
	var status map[string]any
	if err := json.Unmarshal(raw, &status); err != nil {
		return fail("encode", err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gvk.GroupVersion().String(), "kind": gvk.Kind,
		// the UID makes the apply fail, not create, when the object was deleted (and perhaps made again) meanwhile
		"metadata": map[string]any{"name": o.GetName(), "namespace": o.GetNamespace(), "uid": string(o.GetUID())},
		"status":   status,
	}}
	err = w.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(FieldManager), client.ForceOwnership)
	if errors.IsNotFound(err) || errors.IsConflict(err) {
		return false, nil // gone, or another object of that name: the next look tells
	}
	if err != nil {
		return fail("write", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote[client.ObjectKeyFromObject(o)] = written[S]{o.GetUID(), o.GetResourceVersion(), next}
	return true, nil
}
