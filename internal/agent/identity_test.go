package agent

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// A watch may tell of our own writes late and in order; that is no reason to drop a session.
func TestOwnWritesAreNotForeign(t *testing.T) {
	s := &identityStore{mine: map[string][]string{}}
	secret := func(key string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"data": map[string]any{"tls.key": key}}}
	}
	if s.foreign("x", secret("first")) {
		t.Error("foreign before anything was read: there is no session to drop")
	}
	s.mine["x"] = []string{content(nil)} // Load found none
	s.wrote("x", secret("pending"))
	s.wrote("x", secret("issued"))
	for _, late := range []*unstructured.Unstructured{secret("pending"), secret("issued")} {
		if s.foreign("x", late) {
			t.Errorf("our own write is foreign: %v", late.Object)
		}
	}
	if !s.foreign("x", secret("by hand")) {
		t.Error("a replaced Secret is not noticed")
	}
	s.mine["x"] = []string{content(secret("by hand"))} // Load read it
	if !s.foreign("x", secret("issued")) {
		t.Error("putting the former one back is not noticed")
	}
}
