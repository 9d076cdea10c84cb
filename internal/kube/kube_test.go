package kube_test

import (
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/kube"
)

// Every kind of our CRDs is known, by the name of its resource, without asking an API server.
func TestMapperKnowsOurCRDs(t *testing.T) {
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	mapper := kube.Mapper()
	files, err := filepath.Glob("../../charts/gloo-platform-crds/crds-generated/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind, Plural, ListKind string }
				Versions []struct{ Name string }
			}
		}
		if err := yaml.Unmarshal(raw, &crd); err != nil {
			t.Fatal(err)
		}
		s := crd.Spec
		for _, kind := range []string{s.Names.Kind, s.Names.ListKind} {
			if !scheme.Recognizes(schema.GroupVersionKind{Group: s.Group, Version: s.Versions[0].Name, Kind: kind}) {
				t.Errorf("the scheme does not know %s %s", s.Group, kind)
			}
		}
		m, err := mapper.RESTMapping(schema.GroupKind{Group: s.Group, Kind: s.Names.Kind}, s.Versions[0].Name)
		if err != nil {
			t.Error(err)
			continue
		}
		if m.Resource.Resource != s.Names.Plural {
			t.Errorf("%s is %q, not %q", s.Names.Kind, s.Names.Plural, m.Resource.Resource)
		}
	}
}
