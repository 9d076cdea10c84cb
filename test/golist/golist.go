// Package golist checks what a package imports, directly and indirectly, with the go command.
//
// In: the package under test (the directory the test runs in). Out: a failed test that names the import. It must not be used outside tests.
package golist

import (
	"os/exec"
	"strings"
	"testing"
)

// Pure fails when the package in the working directory reaches a Kubernetes client, gRPC, a database or another stage, even indirectly.
// net/http can't be on the list: apimachinery's types reach it; depguard forbids importing it directly.
func Pure(t *testing.T, alsoForbidden ...string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", ".").Output() //nolint:noctx // bounded by the test
	if err != nil {
		t.Fatalf("go list -deps .: %v", err)
	}
	forbidden := append([]string{
		"k8s.io/client-go", "sigs.k8s.io/controller-runtime", "google.golang.org/grpc", "k8s.io/apiserver",
		"ambitmesh.dev/ambit/internal/relay", "ambitmesh.dev/ambit/internal/kube", "ambitmesh.dev/ambit/internal/server", "ambitmesh.dev/ambit/internal/agent",
		"ambitmesh.dev/ambit/internal/state", "ambitmesh.dev/ambit/internal/report", "ambitmesh.dev/ambit/internal/registry",
	}, alsoForbidden...)
	for dep := range strings.FieldsSeq(string(out)) {
		for _, f := range forbidden {
			if dep == f || strings.HasPrefix(dep, f+"/") {
				t.Errorf("a pure package must not reach %s (see docs/architecture.md, import law)", dep)
			}
		}
	}
}
