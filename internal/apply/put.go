package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// put applies one object. It looks at it first, unless the watch has shown that it is ours. wasRight: it has been as desired, so that anything else is somebody's doing.
func (a *Applier) put(ctx context.Context, ref mesh.Ref, w wish, ours, wasRight bool) attempt {
	desired, err := parse(ref, w.manifest)
	if err != nil {
		return attempt{err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, res, err := a.client(ctx, ref)
	if err != nil {
		return attempt{err: err}
	}
	a.ensureWatch(res, ref)
	out := attempt{}
	if !ours {
		live, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
		switch {
		case err == nil && live.GetLabels()[OwnerLabel] != OwnerValue:
			return a.foreign(ref, live)
		case err != nil && !apierrors.IsNotFound(err):
			return attempt{err: explain(ref, "get", res, err)}
		case err != nil && wasRight:
			out.drift = gone()
		case err == nil && (wasRight || wasOurs(live)):
			if diffs := differences(live.Object, desired.Object, exact(ref)); len(diffs) > 0 {
				out.drift = driftOf(live, diffs, exact(ref), wasRight, time.Now())
			}
		}
	}
	result, err := write(ctx, client, ref, desired)
	if err == nil && result.GetAnnotations()[securityv2.AnnotationHoldUntil] != "" {
		result, err = showHold(ctx, client, result, hold{})
	}
	if apierrors.IsNotFound(err) {
		// Its namespace is missing, or its CRD has gone since the kind was looked up.
		a.resources.forget(ref)
		if _, missing := a.resources.find(ctx, ref); missing != nil {
			out.err = missing
			return out
		}
	}
	if err != nil {
		out.err = explain(ref, "patch", res, err)
		return out
	}
	out.live = result
	return out
}

// write makes the object as desired: by server-side apply and, for kinds that must be exactly so, by an update that removes what others have set: an apply leaves their fields.
func write(ctx context.Context, client dynamic.ResourceInterface, ref mesh.Ref, desired *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	options := metav1.ApplyOptions{FieldManager: FieldManager, Force: true}
	if !exact(ref) {
		return client.Apply(ctx, ref.Name, desired, options)
	}
	var lastErr error
	for range 3 { // again when somebody writes at the same time
		live, refused := client.Apply(ctx, ref.Name, desired, options)
		if apierrors.IsInvalid(refused) {
			// Perhaps only in company of what others have set: targetRefs and selector exclude each other.
			var err error
			if live, err = client.Get(ctx, ref.Name, metav1.GetOptions{}); err != nil {
				return nil, refused
			}
		} else if refused != nil {
			return nil, refused
		}
		if refused == nil && len(differences(live.Object, desired.Object, true)) == 0 {
			return live, nil
		}
		live, err := client.Update(ctx, exactly(live, desired.Object), metav1.UpdateOptions{FieldManager: FieldManager, FieldValidation: metav1.FieldValidationStrict})
		switch {
		case apierrors.IsConflict(err):
			lastErr = err
			continue
		case err != nil:
			return nil, err
		case refused != nil: // once more, so that our applies own the fields
			lastErr = refused
			continue
		}
		if diffs := differences(live.Object, desired.Object, true); len(diffs) > 0 {
			return nil, fmt.Errorf("it is changed on its way in, by a mutating webhook or a default of its CRD: %s", sentence(diffs, true))
		}
		return live, nil
	}
	return nil, fmt.Errorf("others keep writing it: %w", lastErr)
}

// foreign says of an object without our owner label whose it is. It is not touched.
func (a *Applier) foreign(ref mesh.Ref, live *unstructured.Unstructured) attempt {
	a.mu.Lock()
	k := a.state[ref]
	a.mu.Unlock()
	if !k.ok && !k.taken && !wasOurs(live) {
		return attempt{err: fmt.Errorf("%s %s exists and is not ours (no label %s=%s): delete it or give it the label, or rename what wants it", ref.Kind, nameOf(ref), OwnerLabel, OwnerValue)}
	}
	if k.taken {
		return attempt{taken: true, err: errors.New(k.err)} // said already
	}
	label := difference{path: []string{"metadata", "labels", OwnerLabel}, desired: OwnerValue}
	if v, set := live.GetLabels()[OwnerLabel]; set {
		label.live = v
	}
	drift := driftOf(live, []difference{label}, true, true, time.Now())
	who := "somebody"
	if drift.Manager != "" {
		who = fmt.Sprintf("%s (%s, %s)", drift.Manager, drift.Operation, drift.At.Format(time.RFC3339))
	}
	return attempt{taken: true, drift: drift, err: fmt.Errorf("%s %s was taken over by %s, who took the label %s=%s off: it is left as it is; give it the label back to have it as desired",
		ref.Kind, nameOf(ref), who, OwnerLabel, OwnerValue)}
}

// parse reads a manifest and holds it against its name: an object under another's name would never be pruned.
func parse(ref mesh.Ref, manifest []byte) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(manifest); err != nil {
		return nil, fmt.Errorf("%s %s: the manifest can't be read: %w", ref.Kind, nameOf(ref), err)
	}
	got := refOf(u)
	if got != ref {
		return nil, fmt.Errorf("the manifest sent as %s is one of %s", ref, got)
	}
	if u.GetLabels()[OwnerLabel] != OwnerValue {
		return nil, fmt.Errorf("%s %s: the manifest lacks the label %s=%s", ref.Kind, nameOf(ref), OwnerLabel, OwnerValue)
	}
	withoutHold(u)
	return u, nil
}

func nameOf(r mesh.Ref) string {
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

// explain puts what, where and which before the API server's words.
func explain(ref mesh.Ref, verb string, res resource, err error) error {
	if missing := missingRight(err); missing != "" {
		return fmt.Errorf("the agent may not %s %s in namespace %q: its ClusterRole lacks that: %w", missing, res.GroupResource(), ref.Namespace, err)
	}
	return fmt.Errorf("%s %s %s: %w", verb, ref.Kind, nameOf(ref), err)
}

// missingRight is the verb that authorization refused, or "". "Forbidden" is also what admission, quotas and namespaces that are being deleted answer;
// only authorization says who "cannot VERB resource" (k8s.io/apiserver, responsewriters.ForbiddenMessage). The verb need not be the one
// asked for: an apply that would create needs create as well as patch.
func missingRight(err error) string {
	if !apierrors.IsForbidden(err) {
		return ""
	}
	_, rest, _ := strings.Cut(err.Error(), " cannot ")
	verb, _, ok := strings.Cut(rest, " resource ")
	if !ok || strings.Contains(verb, " ") {
		return ""
	}
	return verb
}

func (a *Applier) client(ctx context.Context, ref mesh.Ref) (dynamic.ResourceInterface, resource, error) {
	res, err := a.resources.find(ctx, ref)
	if err != nil {
		return nil, resource{}, err
	}
	r := a.cfg.Client.Resource(res.GroupVersionResource)
	if res.namespaced {
		return r.Namespace(ref.Namespace), res, nil
	}
	return r, res, nil
}
