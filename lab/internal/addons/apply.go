package addons

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// fieldManager owns what the lab applies.
const fieldManager = "ambit-lab"

// parallelApplies bounds the requests in flight to one API server.
const parallelApplies = 8

// client sends objects to one cluster.
type client struct {
	dyn dynamic.Interface
}

func newClient(kubeconfig string) (*client, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	cfg.QPS = -1 // the API server's own fairness is enough
	cfg.UserAgent = fieldManager
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return &client{dyn: dyn}, nil
}

// resource finds the endpoint of an object. The plural is guessed from the
// kind, which is right for every kind applied here and saves a discovery.
func (c *client) resource(o *unstructured.Unstructured) dynamic.ResourceInterface {
	gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	if o.GetKind() == "Gateway" { // the guess is "gatewaies"
		gvr = gateways
	}
	if ns := o.GetNamespace(); ns != "" {
		return c.dyn.Resource(gvr).Namespace(ns)
	}
	return c.dyn.Resource(gvr)
}

// apply sends objects, several at a time, by server-side apply. It tries again
// while the API server still lacks what the object refers to (a namespace or a
// kind that is just being made).
func (c *client) apply(ctx context.Context, objs []*unstructured.Unstructured) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelApplies)
	for _, o := range objs {
		g.Go(func() error {
			data, err := json.Marshal(o.Object)
			if err != nil {
				return fmt.Errorf("encode %s: %w", ref(o), err)
			}
			return retry(ctx, ref(o), func() error {
				_, err := c.resource(o).Patch(ctx, o.GetName(), types.ApplyPatchType, data,
					metav1.PatchOptions{FieldManager: fieldManager, Force: new(true)})
				return err
			})
		})
	}
	return g.Wait()
}

// create makes objects that no one else owns and that are too big for a
// server-side apply to be quick (CRDs); what exists is applied instead.
func (c *client) create(ctx context.Context, objs []*unstructured.Unstructured) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelApplies)
	for _, o := range objs {
		g.Go(func() error {
			var exists bool
			err := retry(ctx, ref(o), func() error {
				_, err := c.resource(o).Create(ctx, o, metav1.CreateOptions{FieldManager: fieldManager})
				if exists = apierrors.IsAlreadyExists(err); exists {
					return nil
				}
				return err
			})
			if err == nil && exists {
				err = c.apply(ctx, []*unstructured.Unstructured{o})
			}
			return err
		})
	}
	return g.Wait()
}

// retry repeats a request that failed for a reason that passes by itself, for
// at most half a minute.
func retry(ctx context.Context, what string, do func() error) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := do()
		if err == nil {
			return nil
		}
		if final(err) || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("apply %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// final reports whether repeating the request can't help.
func final(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false // no answer: the API server is still coming up
	}
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsUnauthorized(err) ||
		apierrors.IsMethodNotSupported(err) || apierrors.IsRequestEntityTooLargeError(err)
}

// ref names an object in messages.
func ref(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// await watches one object until done says so. The error carries done's last
// reason, so that a time-out says what was missing.
func (c *client) await(ctx context.Context, gvr schema.GroupVersionResource, ns, name string,
	done func(*unstructured.Unstructured) (bool, string),
) error {
	ri := c.dyn.Resource(gvr).Namespace(ns)
	opts := metav1.ListOptions{FieldSelector: "metadata.name=" + name}
	reason := "does not exist"
	for ctx.Err() == nil {
		ok, err := awaitOnce(ctx, ri, opts, &reason, done)
		if ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			reason = err.Error()
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s %s/%s: %s (%w)", gvr.Resource, ns, name, reason, context.Cause(ctx))
}

// awaitOnce lists, then watches until the watch ends.
func awaitOnce(ctx context.Context, ri dynamic.ResourceInterface, opts metav1.ListOptions, reason *string,
	done func(*unstructured.Unstructured) (bool, string),
) (bool, error) {
	list, err := ri.List(ctx, opts)
	if err != nil {
		return false, err
	}
	for i := range list.Items {
		ok, why := done(&list.Items[i])
		if ok {
			return true, nil
		}
		*reason = why
	}
	opts.ResourceVersion = list.GetResourceVersion()
	w, err := ri.Watch(ctx, opts)
	if err != nil {
		return false, err
	}
	defer w.Stop()
	for ev := range w.ResultChan() {
		o, isObject := ev.Object.(*unstructured.Unstructured)
		if !isObject {
			continue
		}
		ok, why := done(o)
		if ok {
			return true, nil
		}
		*reason = why
	}
	return false, nil
}

// condition reports whether a status condition is True for the current
// generation, or what it says instead.
func condition(o *unstructured.Unstructured, kind string) (bool, string) {
	conds, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conds {
		m, _ := c.(map[string]any)
		if m["type"] != kind {
			continue
		}
		if m["status"] == "True" {
			return true, ""
		}
		return false, fmt.Sprintf("%s=%v: %v %v", kind, m["status"], m["reason"], m["message"])
	}
	return false, "has no condition " + kind + " yet"
}

// available tells whether a Deployment is rolled out.
func available(o *unstructured.Unstructured) (bool, string) { return condition(o, "Available") }

// rolledOut tells whether a DaemonSet runs on every node.
func rolledOut(o *unstructured.Unstructured) (bool, string) {
	want, _, _ := unstructured.NestedInt64(o.Object, "status", "desiredNumberScheduled")
	ready, _, _ := unstructured.NestedInt64(o.Object, "status", "numberReady")
	return want > 0 && ready >= want, fmt.Sprintf("%d of %d Pods are ready", ready, want)
}

// programmed tells whether a Gateway is programmed and has an address.
func programmed(o *unstructured.Unstructured) (bool, string) {
	if ok, why := condition(o, "Programmed"); !ok {
		return false, why
	}
	addrs, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
	if len(addrs) == 0 {
		return false, "is programmed, but has no address"
	}
	return true, ""
}
