package apply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
)

// HeldName is the ConfigMap that keeps the manifests of what an override suspends: an override has to end on time though the agent restarted and the management server is
// away. One key per object, its value the manifest.
const HeldName = "gloo-mesh-agent-held"

const maxHeld = 900 << 10 // bytes of manifests; a ConfigMap holds 1 MiB

// heldStore is that ConfigMap. Only policies are kept, and read back, in it: whoever may write ConfigMaps here must not gain the rest of the agent's rights.
type heldStore struct {
	maps    dynamic.ResourceInterface
	written map[string]string // as last read or written
}

func newHeldStore(client dynamic.Interface, namespace string) *heldStore {
	return &heldStore{maps: client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(namespace)}
}

// load reads what was held. What can't be read is named in skipped.
func (s *heldStore) load(ctx context.Context) (held map[mesh.Ref]wish, skipped []string, err error) {
	u, err := s.maps.Get(ctx, HeldName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s.written = nil
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read what overrides suspend: %w", err)
	}
	s.written, _, _ = unstructured.NestedStringMap(u.Object, "data")
	held = map[mesh.Ref]wish{}
	for key, manifest := range s.written {
		ref, w, ok := stored([]byte(manifest))
		if !ok {
			skipped = append(skipped, key)
			continue
		}
		held[ref] = w
	}
	return held, skipped, nil
}

// stored reads a manifest that was kept: a policy with a hold.
func stored(manifest []byte) (mesh.Ref, wish, bool) {
	var u unstructured.Unstructured
	if u.UnmarshalJSON(manifest) != nil {
		return mesh.Ref{}, wish{}, false
	}
	ref := refOf(&u)
	w := newWish(manifest)
	if _, err := parse(ref, manifest); err != nil || !exact(ref) || w.hold.until.IsZero() {
		return mesh.Ref{}, wish{}, false
	}
	return ref, w, true
}

// save makes the ConfigMap hold these, and does nothing if it does.
func (s *heldStore) save(ctx context.Context, held map[mesh.Ref]wish) error {
	data, size := map[string]string{}, 0
	for ref, w := range held {
		sum := sha256.Sum256([]byte(ref.String()))
		data[hex.EncodeToString(sum[:16])] = string(w.manifest)
		size += len(w.manifest)
	}
	if maps.Equal(data, s.written) {
		return nil
	}
	if size > maxHeld {
		return fmt.Errorf("ConfigMap %s: %d bytes of suspended policies are more than it holds; after a restart they wait for the management server", HeldName, size)
	}
	if len(data) == 0 {
		if err := s.maps.Delete(ctx, HeldName, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete ConfigMap %s: %w", HeldName, err)
		}
		s.written = nil
		return nil
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": HeldName, "labels": map[string]any{"app": "gloo-mesh-agent"}},
	}}
	if err := unstructured.SetNestedStringMap(u.Object, data, "data"); err != nil {
		return fmt.Errorf("ConfigMap %s: %w", HeldName, err)
	}
	if _, err := s.maps.Apply(ctx, HeldName, u, metav1.ApplyOptions{FieldManager: FieldManager, Force: true}); err != nil {
		return fmt.Errorf("write ConfigMap %s: %w", HeldName, err)
	}
	s.written = data
	return nil
}

// recall makes what was held in an earlier life desired, until the management server says more.
func (a *Applier) recall(ctx context.Context) error {
	held, skipped, err := a.heldStore.load(ctx)
	if err != nil {
		return err
	}
	for _, key := range skipped {
		a.cfg.Log.Error("an entry of what overrides suspend can't be used", "configMap", HeldName, "key", key)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for ref, w := range held {
		if _, told := a.desired[ref]; !told && !a.complete && a.inventory.refs[ref] {
			a.desired[ref], a.recalled[ref] = w, true
		}
	}
	return nil
}

// remember keeps what is held, and what was and has not been put back yet.
func (a *Applier) remember(ctx context.Context) {
	held, now := map[mesh.Ref]wish{}, time.Now()
	a.mu.Lock()
	for ref, w := range a.desired {
		k := a.state[ref]
		put := k.hash == w.hash && k.ok && !k.held
		if exact(ref) && !w.hold.until.IsZero() && (w.hold.at(now) || !put) {
			held[ref] = w
		}
	}
	a.mu.Unlock()
	if err := a.heldStore.save(ctx, held); err != nil && ctx.Err() == nil {
		a.cfg.Log.Error("what overrides suspend can't be kept; after a restart it waits for the management server", "error", err)
	}
}
