package apply

import (
	"context"
	"encoding/json"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// holdManager is the field manager of the annotations that show a hold: under FieldManager they could not be set without setting all else too.
const holdManager = FieldManager + "-hold"

// hold is how long an override suspends an object; the zero value: not at all.
type hold struct {
	until  time.Time
	reason string
}

// at reports whether the object is held at a moment.
func (h hold) at(now time.Time) bool { return h.until.After(now) }

// holdOf reads the annotations of a manifest. What can't be read as a time holds nothing: the policy stays in force.
func holdOf(manifest []byte) hold {
	var m struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if json.Unmarshal(manifest, &m) != nil {
		return hold{}
	}
	until, err := time.Parse(time.RFC3339, m.Metadata.Annotations[securityv2.AnnotationHoldUntil])
	if err != nil {
		return hold{}
	}
	return hold{until: until.UTC(), reason: m.Metadata.Annotations[securityv2.AnnotationHoldReason]}
}

// withoutHold takes the annotations of a hold out of a manifest: they are written by holdManager, and are no part of what is compared.
func withoutHold(u *unstructured.Unstructured) {
	annotations := u.GetAnnotations()
	delete(annotations, securityv2.AnnotationHoldUntil)
	delete(annotations, securityv2.AnnotationHoldReason)
	u.SetAnnotations(annotations)
}

// showHold writes the annotations of a hold to the object, or removes ours when h is zero.
func showHold(ctx context.Context, client dynamic.ResourceInterface, live *unstructured.Unstructured, h hold) (*unstructured.Unstructured, error) {
	var want map[string]string
	if !h.until.IsZero() {
		want = map[string]string{securityv2.AnnotationHoldUntil: h.until.UTC().Format(time.RFC3339)}
		if h.reason != "" {
			want[securityv2.AnnotationHoldReason] = h.reason
		}
	}
	same := true
	for _, k := range []string{securityv2.AnnotationHoldUntil, securityv2.AnnotationHoldReason} {
		same = same && live.GetAnnotations()[k] == want[k]
	}
	if same {
		return live, nil
	}
	u := &unstructured.Unstructured{}
	u.SetAPIVersion(live.GetAPIVersion())
	u.SetKind(live.GetKind())
	u.SetNamespace(live.GetNamespace())
	u.SetName(live.GetName())
	u.SetUID(live.GetUID()) // never makes a new object
	u.SetAnnotations(want)
	return client.Apply(ctx, live.GetName(), u, metav1.ApplyOptions{FieldManager: holdManager, Force: true})
}

// leave is what happens to an object that is held: it stays as it was found, and says so. A deleted one stays deleted. wasThere: it was there when we looked last.
func (a *Applier) leave(ctx context.Context, ref mesh.Ref, w wish, wasThere bool) attempt {
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
	live, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		out := attempt{held: true, differs: true}
		if wasThere {
			out.drift = gone()
		}
		return out
	case err != nil:
		return attempt{err: explain(ref, "get", res, err)}
	case live.GetLabels()[OwnerLabel] != OwnerValue:
		return a.foreign(ref, live)
	}
	out := attempt{held: true}
	if diffs := differences(live.Object, desired.Object, exact(ref)); len(diffs) > 0 {
		out.differs = true
		out.drift = driftOf(live, diffs, exact(ref), false, time.Now())
	}
	if out.live, err = showHold(ctx, client, live, w.hold); err != nil {
		return attempt{err: explain(ref, "patch", res, err)}
	}
	return out
}
