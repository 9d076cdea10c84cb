// Package admission is the webhook: what the API server asks before it stores one of our objects.
//
// In: AdmissionReviews (admission.k8s.io/v1) for the kinds listed in resource.go. Out: yes, or no with the mistake and the fix; and the requesting user recorded in annotations
// that nobody can change afterwards, and in the audit log before the answer is given (no record, no act). It also keeps its own TLS (certificate Secret, caBundle of the webhook configurations).
// It must not hold the rules themselves (internal/validate), and it must answer without asking anybody: the API server waits.
package admission

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/validate"
)

// maxReview bounds a request body: an object is at most 1.5 MiB in etcd, and a review holds two.
const maxReview = 8 << 20

// Deletion is an object of ours whose deletion somebody asked for.
type Deletion struct {
	Kind   string // "AccessPolicy"
	Object client.Object
	User   string
}

// Handler answers the API server at /mutate and /validate.
type Handler struct {
	options  validate.Options
	kinds    []resource
	now      func() time.Time
	log      *slog.Logger
	onDelete func(Deletion)
	record   Recorder
}

// NewHandler returns a Handler. onDelete is called, without waiting for it, for each deletion that is let through; it must not block. record is called for every write before it is
// answered; what it refuses is refused (nil: nothing is recorded).
func NewHandler(o validate.Options, now func() time.Time, log *slog.Logger, onDelete func(Deletion), record Recorder) *Handler {
	return &Handler{options: o, kinds: resources(), now: now, log: log, onDelete: onDelete, record: record}
}

// ServeHTTP answers one review.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse
	switch r.URL.Path {
	case "/mutate":
		answer = h.mutate
	case "/validate":
		answer = h.validate
	default:
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodPost {
		http.Error(w, "want POST with an admission.k8s.io/v1 AdmissionReview", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	if err != nil {
		http.Error(w, "read the AdmissionReview: "+err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil || review.APIVersion != "admission.k8s.io/v1" {
		http.Error(w, "want an admission.k8s.io/v1 AdmissionReview with a request", http.StatusBadRequest)
		return
	}
	resp := h.audited(r.Context(), r.URL.Path, review.Request, answer(review.Request))
	resp.UID = review.Request.UID
	if !resp.Allowed {
		h.log.Info("write refused", "kind", review.Request.Kind.Kind, "name", review.Request.Name, "operation", review.Request.Operation,
			"user", review.Request.UserInfo.Username, "why", resp.Result.Message)
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp}); err != nil {
		h.log.Debug("answer not delivered", "error", err)
	}
}

func allow(warnings ...string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: warnings}
}

func refuse(message string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: message,
	}}
}

// resource finds the entry of what a request is about; nil for what is none of ours, and for subresources: who writes status changes nothing that is recorded.
func (h *Handler) resource(r *admissionv1.AdmissionRequest) *resource {
	for i := range h.kinds {
		if k := &h.kinds[i]; k.group == r.Kind.Group && k.kind == r.Kind.Kind && r.SubResource == "" {
			return k
		}
	}
	return nil
}

// change is a request to create or update one object.
type change struct {
	now, before metav1.PartialObjectMetadata
	created     bool
	// changed: what people write in it is not what is stored.
	changed bool
}

// going: it has been deleted, and only finalizers keep it. Nobody can set this by an update, whatever its body says.
func (c *change) going() bool { return c.before.DeletionTimestamp != nil }

// write reads a request to create or update; refused says why it can't be.
func write(r *admissionv1.AdmissionRequest) (c change, refused *admissionv1.AdmissionResponse) {
	c.created = r.Operation == admissionv1.Create
	now, err := read(r.Object.Raw, &c.now)
	if err != nil {
		return c, refuse(fmt.Sprintf("the object: %v", err))
	}
	if c.created {
		c.changed = true
		return c, nil
	}
	before, err := read(r.OldObject.Raw, &c.before)
	if err != nil {
		return c, refuse(fmt.Sprintf("the stored object: %v", err))
	}
	c.changed = !reflect.DeepEqual(now, before)
	return c, nil
}

// read takes an object apart: its metadata, and what people write beside it.
func read(raw []byte, meta *metav1.PartialObjectMetadata) (map[string]any, error) {
	if err := json.Unmarshal(raw, meta); err != nil {
		return nil, err
	}
	var content map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&content); err != nil {
		return nil, err
	}
	for _, key := range []string{"apiVersion", "kind", "metadata", "status"} {
		delete(content, key)
	}
	return content, nil
}

// mutate records who and when, and puts the record back when an update leaves it out (a manifest in git does not have it) or forges it.
// It refuses what validate would refuse: the API server asks here first, then compares the object with the CRD, whose messages say less.
func (h *Handler) mutate(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	k := h.resource(r)
	if k == nil || r.Operation != admissionv1.Create && r.Operation != admissionv1.Update {
		return allow()
	}
	c, refused := write(r)
	if refused != nil {
		return refused
	}
	old := r.OldObject.Raw
	if !k.record.onChange {
		old = nil // an annotation that was left out is put back first: validate compares it
	}
	if _, refused := h.check(k, r, &c, old); refused != nil {
		return refused
	}
	patches, warnings := k.record.patches(&c, r.UserInfo.Username, h.now())
	if len(patches) == 0 {
		return allow(warnings...)
	}
	raw, err := json.Marshal(patches)
	if err != nil {
		return refuse(fmt.Sprintf("encode the patch: %v", err))
	}
	resp, kind := allow(warnings...), admissionv1.PatchTypeJSONPatch
	resp.Patch, resp.PatchType = raw, &kind
	return resp
}

func (h *Handler) validate(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	k := h.resource(r)
	if k == nil {
		return allow()
	}
	switch r.Operation {
	case admissionv1.Delete:
		return h.delete(k, r)
	case admissionv1.Create, admissionv1.Update:
	default:
		return allow()
	}
	c, refused := write(r)
	if refused != nil {
		return refused
	}
	warnings, refused := h.check(k, r, &c, r.OldObject.Raw)
	if refused != nil {
		return refused
	}
	if why := k.record.forged(&c, r.UserInfo.Username); why != "" && !c.going() {
		return refuse(fmt.Sprintf("%s %q: %s", k.kind, r.Name, why))
	}
	return allow(warnings...)
}

// delete lets an object go, unless its kind has a reason not to. What is going already, held by finalizers, is not kept a second time, nor what can't be read.
func (h *Handler) delete(k *resource, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	var meta metav1.PartialObjectMetadata
	var warnings []string
	if k.remove != nil && json.Unmarshal(r.OldObject.Raw, &meta) == nil && meta.DeletionTimestamp == nil {
		refused, doubts, err := k.remove(r.OldObject.Raw)
		if err != nil {
			h.log.Warn("deletion not judged: the stored object can't be read", "error", err, "kind", k.kind, "name", r.Name)
		}
		if refused != "" {
			return refuse(fmt.Sprintf("%s %q: %s", k.kind, r.Name, refused))
		}
		warnings = doubts
	}
	h.noteDeletion(k, r)
	return allow(warnings...)
}

func (h *Handler) noteDeletion(k *resource, r *admissionv1.AdmissionRequest) {
	d := Deletion{Kind: k.kind, Object: k.empty(), User: r.UserInfo.Username}
	if dryRun := r.DryRun != nil && *r.DryRun; dryRun {
		return
	}
	if err := json.Unmarshal(r.OldObject.Raw, d.Object); err != nil {
		h.log.Warn("deletion not recorded: the stored object can't be read", "error", err, "kind", k.kind, "name", r.Name, "user", d.User)
		return
	}
	h.onDelete(d)
}

// check holds an object to the rules. What is going, or changes nothing that the rules are about, is let through: a rule must not keep an object from going, nor a
// rule that came with an upgrade everybody from putting a label on what is there.
func (h *Handler) check(k *resource, r *admissionv1.AdmissionRequest, c *change, old []byte) (warnings []string, refused *admissionv1.AdmissionResponse) {
	if c.going() || !c.changed && k.record.onChange {
		return nil, nil
	}
	if c.created {
		old = nil
	}
	errs, warnings, err := k.check(r.Object.Raw, old, r.Name, r.Namespace, h.options)
	if err != nil {
		return nil, refuse(fmt.Sprintf("%s %q: %v", k.kind, r.Name, err))
	}
	if len(errs) == 0 {
		return warnings, nil
	}
	lines := make([]string, len(errs))
	for i, e := range errs {
		lines[i] = e.Error()
	}
	return nil, refuse(fmt.Sprintf("%s %q: %s", k.kind, r.Name, strings.Join(lines, "; ")))
}
