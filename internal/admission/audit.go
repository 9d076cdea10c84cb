package admission

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ambitmesh.dev/ambit/internal/audit"
)

// recordTimeout is how long a write waits for its record: less than the API server waits for us (timeoutSeconds of the webhook configurations, 5).
const recordTimeout = 3 * time.Second

// Recorder puts an act on record. It returns once the record is stored, or why it is not.
type Recorder func(context.Context, ...audit.Record) error

// audited puts an answer on record, and turns a yes that can't be recorded into a no. A yes is recorded when it is the last word, at /validate; a no wherever it is said.
func (h *Handler) audited(ctx context.Context, path string, r *admissionv1.AdmissionRequest, resp *admissionv1.AdmissionResponse) *admissionv1.AdmissionResponse {
	k := h.resource(r)
	if h.record == nil || k == nil || resp.Allowed && path != "/validate" {
		return resp
	}
	rec, changed := h.recordOf(k, r)
	if !changed && resp.Allowed {
		return resp
	}
	rec.Act = audit.Admitted
	if !resp.Allowed {
		rec.Act, rec.Detail = audit.Refused, resp.Result.Message
	}
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	err := h.record(ctx, rec)
	switch {
	case err == nil:
		return resp
	case !resp.Allowed:
		h.log.Warn("refusal not on record", "kind", k.kind, "name", r.Name, "user", r.UserInfo.Username, "error", err)
		return resp
	}
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable,
		Message: k.kind + " \"" + r.Name + "\": nothing was changed, as the change can't be put on record: " + err.Error() + ". What to do: docs/ops/audit.md",
	}}
}

// recordOf is the record of a request; changed: it would change something.
func (h *Handler) recordOf(k *resource, r *admissionv1.AdmissionRequest) (rec audit.Record, changed bool) {
	old, oldMeta := content(r.OldObject.Raw)
	now, meta := content(r.Object.Raw)
	name, uid := cmp.Or(r.Name, meta.Name, meta.GenerateName, oldMeta.Name), cmp.Or(string(oldMeta.UID), string(meta.UID))
	rec = audit.Record{
		At: h.now(), User: r.UserInfo.Username, Groups: r.UserInfo.Groups, Source: "admission", Operation: string(r.Operation),
		Object: k.kind + " " + r.Namespace + "/" + name, UID: uid, DryRun: r.DryRun != nil && *r.DryRun, Diff: audit.Diff(old, now),
	}
	if len(r.UserInfo.Extra) > 0 {
		rec.Extra = make(map[string][]string, len(r.UserInfo.Extra))
		for key, v := range r.UserInfo.Extra {
			rec.Extra[key] = v
		}
	}
	switch k.kind {
	case "KubernetesCluster":
		rec.Cluster = name
	case "AccessPolicy":
		rec.Policy = r.Namespace + "/" + name
	}
	return rec, len(rec.Diff) > 0 || r.Operation == admissionv1.Delete
}

// content is what of an object a person changes: neither its status, nor what the API server keeps about it.
func content(raw []byte) (map[string]any, metav1.ObjectMeta) {
	var o struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
	}
	if len(raw) == 0 || json.Unmarshal(raw, &o) != nil {
		return nil, o.Metadata
	}
	var c map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&c) != nil {
		return nil, o.Metadata
	}
	for _, key := range []string{"apiVersion", "kind", "status"} {
		delete(c, key)
	}
	if m, ok := c["metadata"].(map[string]any); ok {
		for _, key := range []string{"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "name", "namespace", "selfLink"} {
			delete(m, key)
		}
		if a, ok := m["annotations"].(map[string]any); ok {
			delete(a, "kubectl.kubernetes.io/last-applied-configuration")
		}
	}
	return c, o.Metadata
}
