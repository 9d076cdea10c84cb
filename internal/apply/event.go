package apply

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"ambitmesh.dev/ambit/internal/mesh"
)

// EventDriftCorrected is the reason of the Event beside an object that was put back: whoever is on call in that cluster must see why an edit vanished.
const EventDriftCorrected = "DriftCorrected"

// tellEvery is the least time between two of them beside an object: controllers that disagree with us do so all the time.
const tellEvery = 10 * time.Second

// tell writes that Event.
func (a *Applier) tell(ctx context.Context, ref mesh.Ref, live *unstructured.Unstructured, d *mesh.Drift) {
	if live == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	now := time.Now().UTC().Format(time.RFC3339)
	event := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"generateName": ref.Name + ".", "namespace": ref.Namespace},
		"involvedObject": map[string]any{
			"apiVersion": apiVersion(ref), "kind": ref.Kind, "namespace": ref.Namespace, "name": ref.Name, "uid": string(live.GetUID()), "resourceVersion": live.GetResourceVersion(),
		},
		"type": "Warning", "reason": EventDriftCorrected, "message": correction(d), "source": map[string]any{"component": FieldManager},
		"reportingComponent": FieldManager, "reportingInstance": "", "firstTimestamp": now, "lastTimestamp": now, "count": int64(1),
	}}
	events := a.cfg.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "events"}).Namespace(ref.Namespace)
	if _, err := events.Create(ctx, event, metav1.CreateOptions{FieldManager: FieldManager}); err != nil && ctx.Err() == nil {
		a.cfg.Log.Warn("an Event can't be written", "object", ref.String(), "error", err)
	}
}

// correction is the Event's text.
func correction(d *mesh.Drift) string {
	who := "somebody (the API server does not say who)"
	if d.Manager != "" {
		who = d.Manager
	}
	act := "changed it"
	if d.Operation == operationDelete {
		act, who = "deleted it", "somebody"
	}
	return fmt.Sprintf("%s %s at %s; it was put back as the management cluster's policy has it. %s. To change it, change the AccessPolicy, or suspend it with a PolicyOverride.",
		who, act, d.At.UTC().Format(time.RFC3339), d.What)
}

// operationDelete is mesh.Drift.Operation of what was deleted.
const operationDelete = "Delete"
