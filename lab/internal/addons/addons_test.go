package addons

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// sources finds charts and CRDs in the modules that lab/istio pins; the first
// time this downloads them.
func sources(t *testing.T) Sources {
	t.Helper()
	dir := func(module string) string {
		cmd := exec.Command("go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", module)
		cmd.Dir = "../../istio"
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
		download := exec.Command("go", "mod", "download", module)
		download.Dir = cmd.Dir
		if out, err := download.CombinedOutput(); err != nil {
			t.Fatalf("go mod download %s: %v\n%s", module, err, out)
		}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list %s: %v", module, err)
		}
		return strings.TrimSpace(string(out))
	}
	return Sources{IstioDir: dir("istio.io/istio"), GatewayAPIDir: dir("sigs.k8s.io/gateway-api")}
}

// golden compares with a file under testdata; UPDATE=1 rewrites it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (UPDATE=1 rewrites it): %s", path, d)
	}
}

func marshal(t *testing.T, objs ...*unstructured.Unstructured) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, o := range objs {
		data, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "---\n%s", data)
	}
	return b.Bytes()
}

// TestIstiod: names and labels of all objects, and the whole of those that the
// page's commands and stock clients depend on.
func TestIstiod(t *testing.T) {
	objs, err := Istiod(sources(t), "cluster-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	var list bytes.Buffer
	var whole []*unstructured.Unstructured
	for _, o := range objs {
		fmt.Fprintln(&list, ref(o))
		labels := o.GetLabels()
		for _, k := range []string{"app", "istio", "istio.io/rev"} {
			if v, ok := labels[k]; ok {
				fmt.Fprintf(&list, "  %s: %s\n", k, v)
			}
		}
		if slices.Contains([]string{"Deployment", "Service"}, o.GetKind()) || ref(o) == "ConfigMap istio-system/istio" {
			whole = append(whole, o)
		}
	}
	golden(t, "istiod-objects.txt", list.Bytes())
	golden(t, "istiod.yaml", marshal(t, whole...))
}

func TestZtunnel(t *testing.T) {
	objs, err := Ztunnel(sources(t), "cluster-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "ztunnel.yaml", marshal(t, objs...))
}

// TestRoot: two clusters' cacerts are of one root, and differ.
func TestRoot(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	root, err := NewRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	var keys []any
	for _, cluster := range []string{"a", "b"} {
		s, err := root.CACerts(cluster, now)
		if err != nil {
			t.Fatal(err)
		}
		file := func(name string) []byte {
			text, _, _ := unstructured.NestedString(s.Object, "data", name)
			data, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		if !roots.AppendCertsFromPEM(file("root-cert.pem")) {
			t.Error("no root")
		}
		pair, err := tls.X509KeyPair(file("cert-chain.pem"), file("ca-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now}); err != nil || !pair.Leaf.IsCA {
			t.Errorf("%s: CA %v, %v", cluster, pair.Leaf.IsCA, err)
		}
		keys = append(keys, pair.Leaf.PublicKey)
	}
	if len(roots.Subjects()) != 1 || cmp.Equal(keys[0], keys[1]) { //nolint:staticcheck // not a system pool
		t.Error("not one root and two intermediates")
	}
}

func TestManifests(t *testing.T) {
	for name, render := range map[string]func(string) ([]*unstructured.Unstructured, error){
		"eastwest.yaml": EastWest, "demo.yaml": Demo, "shop.yaml": Shop,
	} {
		objs, err := render("cluster-1")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, marshal(t, objs...))
	}
}

// TestDemoLabels holds what the operators' page selects by: payments' account
// has `app`, bookinfo's accounts have only `account`.
func TestDemoLabels(t *testing.T) {
	objs, err := Demo("cluster-1")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]map[string]string{}
	for _, o := range objs {
		if o.GetKind() == "ServiceAccount" {
			got[o.GetNamespace()+"/"+o.GetName()] = o.GetLabels()
		}
	}
	want := map[string]map[string]string{
		"bookinfo/bookinfo-productpage": {"account": "productpage"},
		"bookinfo/bookinfo-details":     {"account": "details"},
		"bookinfo/bookinfo-reviews":     {"account": "reviews"},
		"bookinfo/bookinfo-ratings":     {"account": "ratings"},
		"payments/payments":             {"app": "payments"},
		"billing/billing":               {"app": "billing"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestCRDs: both sets are found and no admission policies are among them.
func TestCRDs(t *testing.T) {
	objs, err := CRDs(sources(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range objs {
		if o.GetKind() != "CustomResourceDefinition" {
			t.Errorf("%s is no CRD", ref(o))
		}
		names = append(names, o.GetName())
	}
	for _, want := range []string{"gateways.gateway.networking.k8s.io", "authorizationpolicies.security.istio.io"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing in %v", want, names)
		}
	}
}

// TestConditions: what is waited for, and what is said meanwhile.
func TestConditions(t *testing.T) {
	object := func(text string) *unstructured.Unstructured {
		objs, err := decode([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return objs[0]
	}
	for text, want := range map[string]string{
		`{status: {}}`: "has no condition Programmed yet",
		`{status: {conditions: [{type: Programmed, status: "False", reason: Pending, message: no address}]}}`:                       "Programmed=False: Pending no address",
		`{status: {conditions: [{type: Programmed, status: "True"}]}}`:                                                              "is programmed, but has no address",
		`{status: {conditions: [{type: Accepted, status: "True"}, {type: Programmed, status: "True"}], addresses: [{value: "x"}]}}`: "",
	} {
		ok, why := programmed(object(text))
		if why != want || ok != (want == "") {
			t.Errorf("%s: %v %q, want %q", text, ok, why, want)
		}
	}
}

// TestMeshctl runs the commands of the management plane against a recorder.
func TestMeshctl(t *testing.T) {
	dir := t.TempDir()
	p := ManagementPlane{Bin: dir, Kubeconfig: "KC", Mgmt: "mgmt", LogDir: dir}
	if p.Built() {
		t.Error("built without meshctl")
	}
	script := "#!/bin/sh\n[ \"$KUBECONFIG\" = KC ] && echo \"$@\" >> " + dir + "/calls\n[ \"$3\" = b ] && echo no route && exit 3\nexit 0\n"
	if err := os.WriteFile(filepath.Join(dir, "meshctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if !p.Built() {
		t.Error("not built with meshctl")
	}
	if err := errors.Join(p.Install(t.Context()), p.Register(t.Context(), "a")); err != nil {
		t.Error(err)
	}
	err := p.Register(t.Context(), "b")
	if err == nil || !strings.Contains(err.Error(), "no route") { // the tool's own words must reach the person
		t.Errorf("error: %v", err)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	want := `install --kubecontext mgmt --set glooMgmtServer.serviceType=LoadBalancer --set featureGates.ConfigDistribution=true
cluster register a --mgmt-context mgmt --remote-context a --set glooAgent.remoteSecrets.readSecrets=true
cluster register b --mgmt-context mgmt --remote-context b --set glooAgent.remoteSecrets.readSecrets=true
`
	if d := cmp.Diff(want, string(calls)); d != "" {
		t.Error(d)
	}
}
