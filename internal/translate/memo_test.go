package translate_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// TestNextOfGolden takes each policy out of every golden case and puts it back: Next says what All says, of the policies that stay too.
func TestNextOfGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := new(mesh.Snapshot)
			if err := yaml.UnmarshalStrict(in, s); err != nil {
				t.Fatal(err)
			}
			translator := translate.New()
			next := func(s *mesh.Snapshot) {
				t.Helper()
				want, err := translate.All(s)
				if err != nil {
					t.Fatal(err)
				}
				got, err := translator.Next(s)
				if err != nil {
					t.Fatal(err)
				}
				got.Changed, want.Changed = nil, nil
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			}
			next(s)
			for i := range s.Policies {
				less := *s
				less.Policies = slices.Delete(slices.Clone(s.Policies), i, i+1)
				next(&less)
				next(s)
			}
		})
	}
}
