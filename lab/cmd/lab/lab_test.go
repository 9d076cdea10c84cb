package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambitmesh.dev/ambit/lab/internal/daemon"
	"ambitmesh.dev/ambit/lab/internal/state"
)

// lab is a built program and a state directory.
type lab struct {
	t    *testing.T
	prog string
	dir  state.Dir
}

// program builds the command once; the first time ever, `lab up` then builds
// the control planes, which takes minutes.
func program(t *testing.T) string {
	t.Helper()
	prog := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", prog, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return prog
}

func newLab(t *testing.T, prog string) *lab {
	t.Helper()
	l := &lab{t: t, prog: prog, dir: state.Dir(filepath.Join(t.TempDir(), "state"))}
	t.Cleanup(func() { _, _ = l.run("down") })
	return l
}

// run runs one command of the CLI and returns all it printed.
func (l *lab) run(args ...string) (string, error) {
	out, err := exec.Command(l.prog, append(args, "--state", string(l.dir))...).CombinedOutput()
	return string(out), err
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.run(args...)
	if err != nil {
		l.t.Fatalf("lab %v: %v\n%s", args, err, out)
	}
	return out
}

// refuses runs a command that must fail and say all of words.
func (l *lab) refuses(words []string, args ...string) {
	l.t.Helper()
	out, err := l.run(args...)
	if err == nil {
		l.t.Errorf("lab %v did not fail:\n%s", args, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			l.t.Errorf("lab %v does not say %q:\n%s", args, w, out)
		}
	}
}

// kubectl runs the kubectl that the lab brings.
func (l *lab) kubectl(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(l.dir.Bin(), "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.dir.Kubeconfig())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (l *lab) status() daemon.Status {
	l.t.Helper()
	var s daemon.Status
	if err := json.Unmarshal([]byte(l.must("status", "-o", "json")), &s); err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if ok() {
			return
		}
	}
	l.t.Errorf("not within 30 s: %s", what)
}

// TestLab is a lab's life: up, used, hurt, found again, down.
func TestLab(t *testing.T) {
	l := newLab(t, program(t))
	l.refuses([]string{"no lab", "lab up"}, "status")
	out := l.must("up", "--clusters", "1", "--no-mgmt")
	if want := "export KUBECONFIG=" + l.dir.Kubeconfig(); !strings.Contains(out, want) {
		t.Errorf("up does not print %q:\n%s", want, out)
	}
	s := l.status()
	if s.Phase != daemon.KindReady || len(s.Clusters) != 2 {
		t.Fatalf("status: %+v", s)
	}
	c := s.Clusters[1]
	if c.API != "ok" || c.Node != "ok" || c.Istiod != "ok" || c.Gateway != "ok" {
		t.Errorf("cluster-1: %+v", c)
	}
	run := func(name string, f func(t *testing.T, l *lab)) {
		t.Run(name, func(t *testing.T) { f(t, &lab{t: t, prog: l.prog, dir: l.dir}) })
	}
	run("again", func(t *testing.T, l *lab) {
		if out := l.must("up"); !strings.Contains(out, "running here already") {
			t.Errorf("second up:\n%s", out)
		}
		l.refuses([]string{"cluster-1", "lab down"}, "up", "--clusters", "3")
	})
	run("demo", testDemo)
	run("call", testCall)
	run("ui", testUI)
	run("rollout", func(t *testing.T, l *lab) {
		for _, verb := range []string{"restart", "status"} { // as the operators' page has it
			if out, err := l.kubectl("--context", "cluster-1", "-n", "istio-system", "rollout", verb, "deploy/istiod-gloo"); err != nil {
				t.Errorf("rollout %s: %v\n%s", verb, err, out)
			}
		}
	})
	run("stop and start", testStopStart)
	run("bad names", func(_ *testing.T, l *lab) {
		l.refuses([]string{"nope", "kube/cluster-1"}, "stop", "nope")
		l.refuses([]string{"nope", "cluster-1"}, "partition", "nope", "on")
		l.refuses([]string{"on or off"}, "partition", "cluster-1", "maybe")
		l.refuses([]string{"nope", "etcd"}, "logs", "nope")
	})
	run("crash", testCrash)
	l.must("down")
	if _, err := os.Stat(string(l.dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("down left %s: %v", l.dir, err)
	}
	if out := l.must("down"); !strings.Contains(out, "No lab") {
		t.Errorf("second down: %s", out)
	}
}

// testDemo calls productpage, which calls details and reviews, which calls
// ratings: cluster DNS, Services and Pods work.
func testDemo(t *testing.T, l *lab) {
	out, err := l.kubectl("--context", "cluster-1", "get", "--raw", "/api/v1/namespaces/bookinfo/services/productpage:9080/proxy/")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, service := range []string{"productpage", "details", "reviews", "ratings"} {
		if !strings.Contains(out, fmt.Sprintf("%q: %q", "service", service)) {
			t.Errorf("no answer of %s in %s", service, out)
		}
	}
}

// testCall calls through the data plane: identities of the real istiod, and the
// policies that it sends.
func testCall(t *testing.T, l *lab) {
	call := func(from, to string, code int, words ...string) {
		t.Helper()
		var out string
		l.eventually(fmt.Sprintf("lab call %s %s exits with %d and says %q", from, to, code, words), func() bool {
			var err error
			out, err = l.run("call", from, to)
			got := 0
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				got = exit.ExitCode()
			}
			return got == code && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(out, w) })
		})
		if t.Failed() {
			t.Log(out)
		}
	}
	call("payments/cluster-1", "billing/cluster-1", 0, "allowed", "no ALLOW policy", "200 OK")
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	err := os.WriteFile(policy, []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-payments, namespace: billing}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/payments/sa/payments]}}]}]}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := l.kubectl("--context", "cluster-1", "apply", "-f", policy); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	call("bookinfo/reviews/cluster-1", "billing/cluster-1", 1, "denied", "billing/only-payments", "cluster.local/ns/bookinfo/sa/bookinfo-reviews")
	call("payments/cluster-1", "billing/cluster-1", 0, "billing/only-payments allows")
	call("nobody/cluster-1", "billing/cluster-1", 2, "nobody")
	call("payments", "billing/cluster-1", 2, "name/cluster")
	call("payments/cluster-1", "billing/cluster-7", 2, "cluster-7")
	if out, err := l.run("call", "payments/cluster-1", "billing/cluster-1", "--rate", "50", "--for", "2s"); err != nil || !strings.Contains(out, "0 denied, 0 failed") {
		t.Errorf("load: %v\n%s", err, out)
	}
}

// testUI puts a server where the product's UI will be; the lab's port of the
// host leads to it.
func testUI(t *testing.T, l *lab) {
	manifest := filepath.Join(t.TempDir(), "ui.yaml")
	err := os.WriteFile(manifest, []byte(`
{apiVersion: v1, kind: Namespace, metadata: {name: gloo-mesh}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ui, namespace: gloo-mesh, labels: {app: ui}},
 spec: {containers: [{name: ui, image: labapp, env: [{name: PORT, value: "8090"}], readinessProbe: {httpGet: {path: /health, port: 8090}}}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: gloo-mesh-ui, namespace: gloo-mesh},
 spec: {selector: {app: ui}, ports: [{port: 8090}]}}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := l.kubectl("--context", "mgmt", "apply", "-f", manifest); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lab, err := l.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/", lab.UIPort)
	l.eventually("UI answers on the host", func() bool {
		resp, err := http.Get(url) //nolint:noctx // bounded by the lab's own time-outs
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	if out := l.must("up"); !strings.Contains(out, strings.TrimSuffix(url, "/")) {
		t.Errorf("up does not print the address of the UI:\n%s", out)
	}
}

// testStopStart: one API server can be taken away and comes back; the other
// cluster does not notice.
func testStopStart(t *testing.T, l *lab) {
	l.must("stop", "kube/cluster-1")
	if _, err := l.kubectl("--context", "cluster-1", "get", "ns", "--request-timeout=2s"); err == nil {
		t.Error("a stopped API server answers")
	}
	if out, err := l.kubectl("--context", "mgmt", "get", "ns"); err != nil {
		t.Errorf("mgmt: %v\n%s", err, out)
	}
	l.must("start", "kube/cluster-1")
	l.eventually("API server back", func() bool {
		_, err := l.kubectl("--context", "cluster-1", "get", "ns", "--request-timeout=2s")
		return err == nil
	})
}

// testCrash kills the daemon: every process of the lab goes with it, the next
// up has the same ports.
func testCrash(t *testing.T, l *lab) {
	before, err := l.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.eventually("all processes gone", func() bool { return processesOf(l.dir) == 0 && !before.Daemon.Alive() })
	l.refuses([]string{"is gone", "lab up"}, "status")
	l.must("up", "--clusters", "1", "--no-mgmt")
	after, err := l.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	if before.Clusters[1].Port != after.Clusters[1].Port {
		t.Errorf("port %d became %d", before.Clusters[1].Port, after.Clusters[1].Port)
	}
}

// TestInterrupt: Ctrl-C during up leaves neither processes nor files.
func TestInterrupt(t *testing.T) {
	l := newLab(t, program(t))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute) // a cold build may come first
	defer cancel()
	cmd := exec.CommandContext(ctx, l.prog, "up", "--clusters", "1", "--no-mgmt", "--state", string(l.dir))
	var out bytes.Buffer
	w := &interrupter{w: &out, at: "API server ready", cmd: cmd}
	cmd.Stdout, cmd.Stderr = w, w // one writer for both: package exec then writes from one goroutine
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, %v:\n%s", code, err, out.String())
	}
	if _, err := os.Stat(string(l.dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left %s: %v", l.dir, err)
	}
	if n := processesOf(l.dir); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

// interrupter sends SIGINT, as a terminal does, when a text appears.
type interrupter struct {
	w    *bytes.Buffer
	at   string
	cmd  *exec.Cmd
	done bool
}

func (i *interrupter) Write(p []byte) (int, error) {
	n, err := i.w.Write(p)
	if !i.done && strings.Contains(i.w.String(), i.at) {
		i.done = true
		_ = i.cmd.Process.Signal(os.Interrupt)
	}
	return n, err
}

// processesOf counts processes whose command line names the state directory.
func processesOf(dir state.Dir) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	n := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(data), string(dir)) {
			n++
		}
	}
	return n
}
