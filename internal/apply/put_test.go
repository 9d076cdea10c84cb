package apply

import (
	"context"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// meddled is an API server that adds to what it is sent, and whose objects others write at the same time.
type meddled struct {
	dynamic.ResourceInterface
	kept      func(sent *unstructured.Unstructured) // what becomes of an object on its way in
	conflicts int                                   // updates that fail before one succeeds
	updates   int
}

func (m *meddled) take(u *unstructured.Unstructured) *unstructured.Unstructured {
	u = u.DeepCopy()
	m.kept(u)
	return u
}

func (m *meddled) Apply(_ context.Context, _ string, u *unstructured.Unstructured, _ metav1.ApplyOptions, _ ...string) (*unstructured.Unstructured, error) {
	return m.take(u), nil
}

func (m *meddled) Update(_ context.Context, u *unstructured.Unstructured, _ metav1.UpdateOptions, _ ...string) (*unstructured.Unstructured, error) {
	if m.updates++; m.updates <= m.conflicts {
		return nil, apierrors.NewConflict(schema.GroupResource{Group: policyGroup, Resource: "authorizationpolicies"}, u.GetName(), nil)
	}
	return m.take(u), nil
}

// A policy that can't be had exactly as desired is not called applied.
func TestWriteExactly(t *testing.T) {
	rules := func(u *unstructured.Unstructured) {
		u.Object["spec"].(map[string]any)["rules"] = []any{map[string]any{}}
	}
	applied := 0
	for name, tc := range map[string]struct {
		server  *meddled
		updates int
		err     string // a word of it; empty: none
	}{
		"taken as it is":     {&meddled{kept: func(*unstructured.Unstructured) {}}, 0, ""},
		"a webhook opens it": {&meddled{kept: rules}, 1, "mutating webhook"},
		"others' field, removed": {&meddled{kept: func(u *unstructured.Unstructured) {
			if applied++; applied == 1 {
				rules(u)
			}
		}}, 1, ""},
		"a conflict":         {&meddled{kept: rules, conflicts: 1}, 2, "mutating webhook"},
		"conflicts for ever": {&meddled{kept: rules, conflicts: 9}, 3, "others keep writing it"},
	} {
		t.Run(name, func(t *testing.T) {
			desired := &unstructured.Unstructured{Object: object(t, "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: billing}, spec: {action: ALLOW}}")}
			got, err := write(t.Context(), tc.server, ref("v1", "a"), desired)
			switch {
			case tc.err == "" && err != nil, tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want %q", err, tc.err)
			case err == nil && len(differences(got.Object, desired.Object, true)) > 0:
				t.Errorf("applied: %v", got.Object)
			}
			if tc.server.updates != tc.updates {
				t.Errorf("%d updates, want %d", tc.server.updates, tc.updates)
			}
		})
	}
}
