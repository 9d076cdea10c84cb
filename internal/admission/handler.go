// Package admission is the webhook: what the API server asks before it stores one of our objects.
//
// In: AdmissionReviews (admission.k8s.io/v1) for admin.gloo.solo.io objects. Out: yes, or no with the mistake and the fix; and the requesting user recorded in annotations
// that nobody can change afterwards. It also keeps its own TLS (certificate Secret, caBundle of the webhook configurations).
// It must not hold the rules themselves (internal/validate), and it must answer without asking anybody: the API server waits.
package admission

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/validate"
)

// maxReview bounds a request body: an object is at most 1.5 MiB in etcd, and a review holds two.
const maxReview = 8 << 20

// Deletion is a KubernetesCluster whose deletion somebody asked for.
type Deletion struct {
	Cluster adminv2.KubernetesCluster
	User    string
}

// Handler answers the API server at /mutate and /validate.
type Handler struct {
	options  validate.Options
	now      func() time.Time
	log      *slog.Logger
	onDelete func(Deletion)
}

// NewHandler returns a Handler. onDelete is called, without waiting for it, for each deletion that is let through; it must not block.
func NewHandler(o validate.Options, now func() time.Time, log *slog.Logger, onDelete func(Deletion)) *Handler {
	return &Handler{options: o, now: now, log: log, onDelete: onDelete}
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
	resp := answer(review.Request)
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

func ours(r *admissionv1.AdmissionRequest) bool {
	return r.Kind.Group == adminv2.GroupName && r.Kind.Kind == "KubernetesCluster" && r.SubResource == ""
}

type patch struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// mutate records who and when on creation, and puts the record back when an update leaves it out (a manifest in git does not have it).
func (h *Handler) mutate(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	if !ours(r) || r.Operation != admissionv1.Create && r.Operation != admissionv1.Update {
		return allow()
	}
	var now, before metav1.PartialObjectMetadata
	if err := json.Unmarshal(r.Object.Raw, &now); err != nil {
		return refuse(fmt.Sprintf("metadata: %v", err))
	}
	record := map[string]string{adminv2.AnnotationRegisteredBy: r.UserInfo.Username, adminv2.AnnotationRegisteredAt: h.now().UTC().Format(time.RFC3339)}
	var warnings []string
	if r.Operation == admissionv1.Update {
		if err := json.Unmarshal(r.OldObject.Raw, &before); err != nil {
			return refuse(fmt.Sprintf("metadata of the stored object: %v", err))
		}
		record = map[string]string{}
		for _, key := range []string{adminv2.AnnotationRegisteredBy, adminv2.AnnotationRegisteredAt} {
			_, is := now.Annotations[key]
			if was, had := before.Annotations[key]; had && !is {
				record[key] = was
			}
		}
	} else if given := now.Annotations[adminv2.AnnotationRegisteredBy]; given != "" && given != r.UserInfo.Username {
		warnings = append(warnings, fmt.Sprintf("annotation %s says %q; it records who registers the cluster, which is you: %q", adminv2.AnnotationRegisteredBy, given, r.UserInfo.Username))
	}
	if len(record) == 0 {
		return allow(warnings...)
	}
	var patches []patch
	if now.Annotations == nil {
		patches = append(patches, patch{"add", "/metadata/annotations", map[string]string{}})
	}
	for _, key := range []string{adminv2.AnnotationRegisteredAt, adminv2.AnnotationRegisteredBy} {
		if v, ok := record[key]; ok {
			patches = append(patches, patch{"add", "/metadata/annotations/" + strings.ReplaceAll(key, "/", "~1"), v})
		}
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
	if !ours(r) {
		return allow()
	}
	dryRun := r.DryRun != nil && *r.DryRun
	switch r.Operation {
	case admissionv1.Delete:
		d := Deletion{User: r.UserInfo.Username}
		if err := json.Unmarshal(r.OldObject.Raw, &d.Cluster); err == nil && !dryRun {
			h.onDelete(d)
		}
		return allow()
	case admissionv1.Create, admissionv1.Update:
	default:
		return allow()
	}
	var now adminv2.KubernetesCluster
	var old *adminv2.KubernetesCluster
	errs := validate.Decode(r.Object.Raw, &now)
	if r.Operation == admissionv1.Update {
		old = new(adminv2.KubernetesCluster)
		if err := json.Unmarshal(r.OldObject.Raw, old); err != nil {
			return refuse(fmt.Sprintf("the stored object: %v", err))
		}
		if now.DeletionTimestamp != nil { // only finalizers change now; a rule must not keep an object from going
			return allow()
		}
	}
	if len(errs) == 0 {
		if now.Name == "" { // generateName: the name comes after admission
			now.Name = r.Name
		}
		if now.Namespace == "" {
			now.Namespace = r.Namespace
		}
		errs = validate.KubernetesCluster(&now, old, h.options)
	}
	if len(errs) == 0 {
		return allow()
	}
	lines := make([]string, len(errs))
	for i, e := range errs {
		lines[i] = e.Error()
	}
	return refuse(fmt.Sprintf("KubernetesCluster %q: %s", r.Name, strings.Join(lines, "; ")))
}
