package admission_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/admission"
	"ambitmesh.dev/ambit/internal/validate"
)

// ask sends one review to path.
func ask(t *testing.T, path string, op admissionv1.Operation, user string, now, before any) *admissionv1.AdmissionResponse {
	t.Helper()
	encode := func(v any) (out runtime.RawExtension) {
		if v != nil {
			raw, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			out.Raw = raw
		}
		return out
	}
	body, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: &admissionv1.AdmissionRequest{
		UID: "1", Kind: metav1.GroupVersionKind{Group: securityv2.GroupName, Version: "v2", Kind: "AccessPolicy"}, Name: "p", Namespace: "gloo-mesh", Operation: op,
		UserInfo: authenticationv1.UserInfo{Username: user}, Object: encode(now), OldObject: encode(before),
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := admission.NewHandler(validate.Options{AdminNamespace: "gloo-mesh"}, func() time.Time { return registered }, slog.New(slog.DiscardHandler), func(admission.Deletion) {}, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", path, bytes.NewReader(body)))
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || review.Response == nil {
		t.Fatalf("answer %q: %v", w.Body.String(), err)
	}
	return review.Response
}

// Another mutating webhook may come after ours: the validating one is asked last, and refuses a record that is not what it should be.
func TestRecordChangedAfterwardsIsRefused(t *testing.T) {
	policy := func(by, at, namespace string) any {
		meta := map[string]any{"name": "p", "namespace": "gloo-mesh"}
		if by != "" {
			meta["annotations"] = map[string]any{securityv2.AnnotationChangedBy: by, securityv2.AnnotationChangedAt: at}
		}
		return map[string]any{"metadata": meta, "spec": map[string]any{"config": map[string]any{"authz": map[string]any{"allowedClients": []any{map[string]any{"serviceAccountSelector": map[string]any{"namespace": namespace}}}}}}}
	}
	const at = "2026-02-12T10:14:00Z"
	for name, tc := range map[string]struct {
		op          admissionv1.Operation
		now, before any
		allowed     bool
	}{
		"created":               {admissionv1.Create, policy("jane", at, "a"), nil, true},
		"created, forged":       {admissionv1.Create, policy("joe", at, "a"), nil, false},
		"created, no record":    {admissionv1.Create, policy("", "", "a"), nil, false},
		"created, when?":        {admissionv1.Create, policy("jane", "yesterday", "a"), nil, false},
		"changed":               {admissionv1.Update, policy("jane", at, "b"), policy("joe", at, "a"), true},
		"changed, not recorded": {admissionv1.Update, policy("joe", at, "b"), policy("joe", at, "a"), false},
		"not changed":           {admissionv1.Update, policy("joe", at, "a"), policy("joe", at, "a"), true},
		"not changed, by":       {admissionv1.Update, policy("jane", at, "a"), policy("joe", at, "a"), false},
		"not changed, at":       {admissionv1.Update, policy("joe", "2026-02-13T10:14:00Z", "a"), policy("joe", at, "a"), false},
		"not changed, set":      {admissionv1.Update, policy("jane", at, "a"), policy("", "", "a"), false},
		"never recorded":        {admissionv1.Update, policy("", "", "a"), policy("", "", "a"), true},
	} {
		resp := ask(t, "/validate", tc.op, "jane", tc.now, tc.before)
		if resp.Allowed != tc.allowed {
			t.Errorf("%s: allowed %v: %+v", name, resp.Allowed, resp.Result)
		}
		if !resp.Allowed && !strings.Contains(resp.Result.Message, securityv2.AnnotationChangedBy) {
			t.Errorf("%s: the refusal names no annotation: %s", name, resp.Result.Message)
		}
	}
}

// A rule that came with an upgrade does not keep anybody from labelling, or letting go of, what was stored before it.
func TestOldObjectsCanBeLabelledAndGo(t *testing.T) {
	policy := func(more map[string]any, clients any) any {
		meta := map[string]any{"name": "p", "namespace": "gloo-mesh"}
		maps.Copy(meta, more)
		return map[string]any{"metadata": meta, "spec": map[string]any{"config": map[string]any{"authz": map[string]any{"allowedMethods": clients}}}}
	}
	wrong, worse, going := []any{"get"}, []any{"get", "put"}, map[string]any{"deletionTimestamp": "2026-02-12T10:14:00Z"}
	for name, tc := range map[string]struct {
		now, before any
		allowed     bool
	}{
		"label":            {policy(map[string]any{"labels": map[string]any{"a": "b"}}, wrong), policy(nil, wrong), true},
		"going":            {policy(going, worse), policy(going, wrong), true},
		"said to be going": {policy(going, worse), policy(nil, wrong), false},
		"changed":          {policy(nil, worse), policy(nil, wrong), false},
	} {
		for _, path := range []string{"/mutate", "/validate"} {
			if resp := ask(t, path, admissionv1.Update, "jane", tc.now, tc.before); resp.Allowed != tc.allowed {
				t.Errorf("%s %s: allowed %v: %+v", path, name, resp.Allowed, resp.Result)
			}
		}
	}
}
