package report

import (
	"context"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// FieldManager owns the status fields.
const FieldManager = "gloo-mesh-mgmt-server"

func equal(a, b *adminv2.KubernetesClusterStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// Writer writes status. For one caller.
type Writer struct {
	client client.Client
	wrote  map[types.UID]written
}

// written is what was written over a version of an object, for as long as the caller's cache still shows that version.
type written struct {
	over   string // resourceVersion
	status adminv2.KubernetesClusterStatus
}

// NewWriter returns a Writer that writes with c.
func NewWriter(c client.Client) *Writer { return &Writer{client: c, wrote: map[types.UID]written{}} }

// Last returns the status that kc has: its own, or, when kc comes from a cache that lags behind, what was written over it.
func (w *Writer) Last(kc *adminv2.KubernetesCluster) adminv2.KubernetesClusterStatus {
	if l, ok := w.wrote[kc.UID]; ok {
		if l.over == kc.ResourceVersion {
			return l.status
		}
		delete(w.wrote, kc.UID)
	}
	return kc.Status
}

// Write applies next to the KubernetesCluster when it differs from the status kc has, and says whether it did. A cluster deleted meanwhile is no error.
func (w *Writer) Write(ctx context.Context, kc *adminv2.KubernetesCluster, next adminv2.KubernetesClusterStatus) (bool, error) {
	if !Differ(w.Last(kc), next) {
		return false, nil
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return false, fmt.Errorf("cluster %q: encode status: %w", kc.Name, err)
	}
	var status map[string]any
	if err := json.Unmarshal(raw, &status); err != nil {
		return false, fmt.Errorf("cluster %q: encode status: %w", kc.Name, err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": adminv2.GroupVersion().String(), "kind": "KubernetesCluster",
		// the UID makes the apply fail, not create, when the cluster was deleted (and perhaps made again) meanwhile
		"metadata": map[string]any{"name": kc.Name, "namespace": kc.Namespace, "uid": string(kc.UID)},
		"status":   status,
	}}
	err = w.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(FieldManager), client.ForceOwnership)
	if errors.IsNotFound(err) || errors.IsConflict(err) {
		return false, nil // gone, or another object of that name: the next look tells
	}
	if err != nil {
		return false, fmt.Errorf("cluster %q: write status: %w", kc.Name, err)
	}
	w.wrote[kc.UID] = written{kc.ResourceVersion, next}
	return true, nil
}
