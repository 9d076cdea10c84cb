package report

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Events writes core/v1 Events. The same Event on the same object is one object with a count, written at most once per Every and object-reason-message.
type Events struct {
	client    client.Client
	component string
	every     time.Duration

	mu   sync.Mutex
	last map[string]time.Time // by Event name
	kept map[string]time.Time // when an Event is to be kept again, by name
}

// KeepEvery is how often an Event that is to last is written to: well within the shortest life that API servers give Events in practice.
const KeepEvery = 20 * time.Minute

// annotationKept says when an Event was kept; what it tells is older.
const annotationKept = "admin.gloo.solo.io/kept-at"

// EventsEvery is how often one Event may be repeated.
const EventsEvery = time.Minute

// NewEvents returns Events written in the name of component.
func NewEvents(c client.Client, component string) *Events {
	return &Events{client: c, component: component, every: EventsEvery, last: map[string]time.Time{}, kept: map[string]time.Time{}}
}

// Once writes an Event that exists at most once for this object's life; calling it again changes nothing.
func (e *Events) Once(ctx context.Context, about client.Object, reason, message string, now time.Time) error {
	ev, err := e.event(about, corev1.EventTypeNormal, reason, reason, message, now)
	if err != nil {
		return err
	}
	if err := e.client.Create(ctx, ev); err != nil && !errors.IsAlreadyExists(err) {
		return fmt.Errorf("event %s on %s: %w", reason, about.GetName(), err)
	}
	return nil
}

// Keep sees to it that an Event of Once does not vanish with its time to live (an hour, unless --event-ttl says otherwise): it is made again as it was, or written to, which starts its life
// anew. Call it as often as you like: it asks once in KeepEvery and Event, and when it is first called for one, some time within the half of that, so that a server that starts does not write a
// thousand at once.
func (e *Events) Keep(ctx context.Context, about client.Object, reason, message string, at, now time.Time) error {
	ev, err := e.event(about, corev1.EventTypeNormal, reason, reason, message, at)
	if err != nil {
		return err
	}
	e.mu.Lock()
	due, known := e.kept[ev.Name]
	if !known {
		sum := sha256.Sum256([]byte(ev.Name))
		due = now.Add(KeepEvery / 2 * time.Duration(sum[0]) / 256)
		e.kept[ev.Name] = due
	}
	if now.Before(due) {
		e.mu.Unlock()
		return nil
	}
	e.kept[ev.Name] = now.Add(KeepEvery)
	e.mu.Unlock()
	ev.Annotations = map[string]string{annotationKept: now.UTC().Format(time.RFC3339)}
	err = e.client.Create(ctx, ev)
	if errors.IsAlreadyExists(err) {
		was := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: ev.Namespace, Name: ev.Name}}
		err = client.IgnoreNotFound(e.client.Patch(ctx, was, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+annotationKept+`":"`+ev.Annotations[annotationKept]+`"}}}`))))
	}
	if err != nil {
		return fmt.Errorf("event %s on %s: %w", reason, about.GetName(), err)
	}
	return nil
}

// OnceAbout writes a Warning that exists at most once for this object and key; calling it again changes nothing.
func (e *Events) OnceAbout(ctx context.Context, about client.Object, reason, key, message string, now time.Time) error {
	ev, err := e.event(about, corev1.EventTypeWarning, reason, reason+"\x00"+key, message, now)
	if err != nil {
		return err
	}
	if err := e.client.Create(ctx, ev); err != nil && !errors.IsAlreadyExists(err) {
		return fmt.Errorf("event %s on %s: %w", reason, about.GetName(), err)
	}
	return nil
}

// Say writes an Event; kind is Normal or Warning. A repetition within a minute is dropped, a later one counts up.
func (e *Events) Say(ctx context.Context, about client.Object, kind, reason, message string, now time.Time) error {
	ev, err := e.event(about, kind, reason, reason+"\x00"+message, message, now)
	if err != nil {
		return err
	}
	e.mu.Lock()
	if now.Sub(e.last[ev.Name]) < e.every {
		e.mu.Unlock()
		return nil
	}
	for n, t := range e.last { // what is older is free to be said again, so it need not be remembered
		if now.Sub(t) >= e.every {
			delete(e.last, n)
		}
	}
	e.last[ev.Name] = now
	e.mu.Unlock()
	err = e.client.Create(ctx, ev)
	if errors.IsAlreadyExists(err) {
		var was corev1.Event
		if err = e.client.Get(ctx, client.ObjectKeyFromObject(ev), &was); err == nil {
			change := client.MergeFrom(was.DeepCopy())
			was.Count++
			was.LastTimestamp = ev.LastTimestamp
			err = e.client.Patch(ctx, &was, change)
		}
	}
	if err != nil {
		return fmt.Errorf("event %s on %s: %w", reason, about.GetName(), err)
	}
	return nil
}

func (e *Events) event(about client.Object, kind, reason, key, message string, now time.Time) (*corev1.Event, error) {
	gvk, err := apiutil.GVKForObject(about.(runtime.Object), e.client.Scheme())
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", reason, err)
	}
	if len(message) > 1024 { // the API's limit
		message = message[:1021] + "..."
	}
	sum := sha256.Sum256([]byte(string(about.GetUID()) + "\x00" + kind + "\x00" + key))
	at := metav1.NewTime(now)
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: about.GetName() + "." + hex.EncodeToString(sum[:8]), Namespace: about.GetNamespace()},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Namespace: about.GetNamespace(), Name: about.GetName(), UID: about.GetUID(), ResourceVersion: about.GetResourceVersion(),
		},
		Type: kind, Reason: reason, Message: message, Count: 1, FirstTimestamp: at, LastTimestamp: at,
		Source: corev1.EventSource{Component: e.component}, ReportingController: "gloo-mesh/" + e.component,
	}, nil
}
