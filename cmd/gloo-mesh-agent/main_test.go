package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// Every argument that the chart's golden renderings pass is a flag of the program.
func TestTakesTheChartsArguments(t *testing.T) {
	files, err := filepath.Glob("../../charts/testdata/*/out.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range bytes.SplitSeq(raw, []byte("\n---\n")) {
			var d appsv1.Deployment
			if !bytes.Contains(doc, []byte("kind: Deployment")) || !bytes.Contains(doc, []byte("name: gloo-mesh-agent")) {
				continue
			}
			if err := yaml.Unmarshal(doc, &d); err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			seen++
			if err := command(os.Stderr, os.Getenv).ParseFlags(d.Spec.Template.Spec.Containers[0].Args); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
	if seen == 0 {
		t.Fatal("no rendering with an agent")
	}
}

func TestNamespaceOfThePod(t *testing.T) {
	for pod, want := range map[string]string{"": "gloo-mesh", "elsewhere": "elsewhere"} {
		c := command(os.Stderr, func(key string) string { return map[string]string{"POD_NAMESPACE": pod}[key] })
		if got := c.Flag("namespace").DefValue; got != want {
			t.Errorf("POD_NAMESPACE %q: namespace %q, want %q", pod, got, want)
		}
	}
}

func TestSaysAllThatIsWrong(t *testing.T) {
	c := command(os.Stderr, os.Getenv)
	c.SetArgs([]string{"--cluster=prod_eu", "--relay-server-address=:9900"})
	err := c.ExecuteContext(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--cluster") || !strings.Contains(err.Error(), "--relay-server-address") {
		t.Errorf("got: %v", err)
	}
}
