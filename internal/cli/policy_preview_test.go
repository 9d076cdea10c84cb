package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
)

// beforeThePage is the mesh before the page's policy.
func beforeThePage() *mesh.Snapshot {
	s := testSnapshot()
	s.Policies = nil
	return s
}

func TestTranslate(t *testing.T) {
	r := offline(t, beforeThePage(), "translate", "-f", "testdata/policy/page.yaml")
	if r.code != ExitOK {
		t.Fatalf("exit %d", r.code)
	}
	clusters, principals := strings.Count(r.out, "---\n# cluster: cluster-"), strings.Count(r.out, "- cluster-1.example.com/ns/payments/sa/payments\n")
	if clusters != 4 || principals != 2 || strings.Count(r.out, "mode: STRICT") != 2 {
		t.Errorf("%d documents, %d with the principal", clusters, principals)
	}
	if one := offline(t, beforeThePage(), "translate", "-f", "testdata/policy/page.yaml", "--cluster", "cluster-2"); strings.Contains(one.out, "cluster: cluster-1") || !strings.Contains(one.out, "cluster: cluster-2") {
		t.Error("--cluster does not choose")
	}
	if same := offline(t, testSnapshot(), "translate", "-f", "testdata/policy/page.yaml"); same.out != r.out {
		t.Error("a policy that is there already is translated in another way")
	}
	if all := offline(t, testSnapshot(), "translate"); !strings.Contains(all.out, "kind: ConfigMap") || !strings.Contains(all.out, "kind: AuthorizationPolicy") {
		t.Error("without a file it does not show everything")
	}
	if j := offline(t, testSnapshot(), "translate", "-f", "testdata/policy/page.yaml", "-o", "json"); !strings.HasPrefix(j.out, "[\n  {\n    \"cluster\": \"cluster-1\"") {
		t.Error("not JSON")
	}
}

func TestDiff(t *testing.T) {
	r := offline(t, beforeThePage(), "diff", "-f", "testdata/policy/page.yaml")
	if r.code != 1 {
		t.Errorf("exit %d, want 1", r.code)
	}
	if !strings.Contains(r.out, "    +        - cluster-1.example.com/ns/payments/sa/payments\n") {
		t.Error("it does not show the lines")
	}
	r = offline(t, beforeThePage(), "diff", "-f", "testdata/policy/page.yaml", "--brief")
	golden(t, "diff", regexp.MustCompile(`-[0-9a-f]{8}\b`).ReplaceAllString(r.out, "-HASH"))
	orders := filepath.Join(t.TempDir(), "orders.yaml")
	if err := os.WriteFile(orders, []byte(strings.Replace(pagePolicy, "app: payments", "app: orders", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	r = offline(t, testSnapshot(), "diff", "-f", orders, "--cluster", "cluster-2")
	golden(t, "diff-clients", regexp.MustCompile(`-[0-9a-f]{8}\b`).ReplaceAllString(r.out, "-HASH"))
	if r = offline(t, testSnapshot(), "diff", "-f", "testdata/policy/page.yaml"); r.code != 0 || r.out != "" || !strings.Contains(r.err, "Nothing would change") {
		t.Errorf("exit %d, want 0", r.code)
	}
	if r = offline(t, testSnapshot(), "diff"); r.code != 2 {
		t.Errorf("without a file: exit %d, want 2", r.code)
	}
	if r = offline(t, testSnapshot(), "diff", "-f", "none.yaml"); r.code != 2 {
		t.Errorf("without such a file: exit %d, want 2", r.code)
	}
	if r = offline(t, testSnapshot(), "diff", "-f", "testdata/policy/page.yaml", "--cluster", "cluster-9"); r.code != 2 {
		t.Errorf("without such a cluster: exit %d, want 2", r.code)
	}
}
