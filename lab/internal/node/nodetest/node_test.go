package nodetest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/lab/internal/control"
)

// web is a Deployment with a Service.
func web(name, extra string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 2
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: main
        image: registry.example.com/testapp:1.2.3
        args: [serve]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
%[2]s
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{name: http, port: 80, targetPort: http}]
`, name, extra)
}

func get(url string) string {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func rollout(t *testing.T, c control.Cluster, name string) {
	t.Helper()
	kubectl(t, c, "rollout", "status", "deployment/"+name, "--timeout=60s")
}

func podOf(t *testing.T, c control.Cluster, app string) (name, ip string) {
	t.Helper()
	out := kubectl(t, c, "get", "pods", "-l", "app="+app, "--field-selector=status.phase=Running", "-o", `jsonpath={.items[0].metadata.name} {.items[0].status.podIP}`)
	name, ip, _ = strings.Cut(out, " ")
	return name, ip
}

func TestDeploymentServiceAndRollout(t *testing.T) {
	c, _ := clusters(t)
	began := time.Now()
	apply(t, c, web("web", ""))
	rollout(t, c, "web")
	t.Logf("Deployment of 2 rolled out %v after apply began", time.Since(began))
	if got := kubectl(t, c, "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`); got != "True" {
		t.Errorf("node Ready: %q", got)
	}
	vip := kubectl(t, c, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	eventually(t, 5*time.Second, "hello", func() string { return first(get("http://" + vip)) })
	// Round robin reaches both.
	seen := map[string]bool{}
	for range 10 {
		seen[get("http://"+vip)] = true
	}
	if len(seen) != 2 {
		t.Errorf("answers of the Service: %v", seen)
	}
	began = time.Now()
	kubectl(t, c, "rollout", "restart", "deployment/web")
	rollout(t, c, "web")
	t.Logf("rollout restart and status: %v", time.Since(began))
	eventually(t, 5*time.Second, "2", func() string {
		return fmt.Sprint(len(strings.Fields(kubectl(t, c, "get", "pods", "-l", "app=web", "-o", "name"))))
	})
	t.Logf("old Pods gone %v after the restart began", time.Since(began))
	kubectl(t, c, "scale", "deployment/web", "--replicas=0")
	eventually(t, 5*time.Second, "refused", func() string {
		if got := get("http://" + vip); !strings.Contains(got, "connection refused") {
			return got
		}
		return "refused"
	})
	kubectl(t, c, "delete", "deployment/web", "service/web")
}

func first(s string) string {
	w, _, _ := strings.Cut(s, " ")
	return w
}

func TestVolumesInPlaceAndTokenRotation(t *testing.T) {
	c, _ := clusters(t)
	kubectl(t, c, "create", "secret", "generic", "cacerts", "--from-literal=ca-cert.pem=one")
	apply(t, c, web("vol", `
        volumeMounts:
        - {name: cacerts, mountPath: /etc/cacerts, readOnly: true}
        - {name: later, mountPath: /etc/later, readOnly: true}
        - {name: token, mountPath: /var/run/secrets/tokens}
      volumes:
      - {name: cacerts, secret: {secretName: cacerts, optional: true}}
      - {name: later, configMap: {name: later, optional: true}}
      - name: token
        projected: {sources: [{serviceAccountToken: {path: istio-token, audience: istio-ca, expirationSeconds: 600}}]}
`))
	rollout(t, c, "vol")
	_, ip := podOf(t, c, "vol")
	file := func(path string) func() string {
		return func() string { return get("http://" + ip + ":8080/file" + path) }
	}
	if got := file("/etc/cacerts/ca-cert.pem")(); got != "one" {
		t.Errorf("Secret: %q", got)
	}
	kubectl(t, c, "patch", "secret", "cacerts", "-p", `{"stringData":{"ca-cert.pem":"two"}}`)
	began := time.Now()
	eventually(t, 2*time.Second, "two", file("/etc/cacerts/ca-cert.pem"))
	t.Logf("Secret changed in the Pod %v after kubectl returned", time.Since(began))
	kubectl(t, c, "create", "configmap", "later", "--from-literal=k=v")
	eventually(t, 2*time.Second, "v", file("/etc/later/k"))
	for _, f := range []string{"token", "ca.crt", "namespace"} {
		if got := file("/var/run/secrets/kubernetes.io/serviceaccount/" + f)(); got == "" || strings.Contains(got, "404") {
			t.Errorf("service account file %s: %q", f, got)
		}
	}
	token := file("/var/run/secrets/tokens/istio-token")()
	review := kubectl(t, c, "create", "-o", "jsonpath={.status.authenticated} {.status.user.username}", "-f", reviewFile(t, token, "istio-ca"))
	if review != "true system:serviceaccount:default:default" {
		t.Errorf("token review: %q", review)
	}
	kubectl(t, c, "delete", "deployment/vol", "service/vol", "secret/cacerts", "configmap/later")
}

func reviewFile(t *testing.T, token, audience string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "review.yaml")
	y := fmt.Sprintf("apiVersion: authentication.k8s.io/v1\nkind: TokenReview\nspec: {token: %s, audiences: [%s]}\n", token, audience)
	if err := os.WriteFile(f, []byte(y), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLogsExecPortForward(t *testing.T) {
	c, _ := clusters(t)
	apply(t, c, web("tools", ""))
	rollout(t, c, "tools")
	pod, ip := podOf(t, c, "tools")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := kubectlCmd(ctx, c, "logs", "-f", pod)
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = follow.Wait() }()
	lines := bufio.NewScanner(out)
	lines.Scan()
	if lines.Text() != "serving at :8080" {
		t.Errorf("first line: %q", lines.Text())
	}
	get("http://" + ip + ":8080/followed")
	lines.Scan()
	if lines.Text() != "request /followed" {
		t.Errorf("followed line: %q", lines.Text())
	}
	if got := kubectl(t, c, "logs", pod, "--tail=1"); got != "request /followed" {
		t.Errorf("tail: %q", got)
	}
	if got := kubectl(t, c, "logs", pod, "--timestamps", "--tail=1"); !strings.HasPrefix(got, time.Now().UTC().Format("2006-01-02T")) {
		t.Errorf("timestamps: %q", got)
	}

	if got := kubectl(t, c, "exec", pod, "--", "testapp", "print", "from", "exec"); got != "from exec" {
		t.Errorf("exec: %q", got)
	}
	if got, err := tryKubectl(t, c, "input", "exec", "-i", pod, "--", "testapp", "echo"); err != nil || got != `got "input"` {
		t.Errorf("exec with input: %q, %v", got, err)
	}
	if got, err := tryKubectl(t, c, "typed\n", "exec", "-it", pod, "--", "testapp", "echo"); err != nil || !strings.Contains(got, `got "typed\n"`) {
		t.Errorf("exec on a terminal: %q, %v", got, err)
	}
	if got, err := tryKubectl(t, c, "", "exec", pod, "--", "testapp", "exit", "5"); err == nil || !strings.Contains(got, "exit code 5") {
		t.Errorf("exec exit code: %q, %v", got, err)
	}
	if got, err := tryKubectl(t, c, "", "exec", pod, "--", "no-such-program"); err == nil || !strings.Contains(got, "not found") {
		t.Errorf("exec of nothing: %q, %v", got, err)
	}

	forward := kubectlCmd(ctx, c, "port-forward", "deployment/tools", ":8080")
	fout, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	forward.Stderr = os.Stderr
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = forward.Wait() }()
	line, err := bufio.NewReader(fout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.Fields(strings.TrimPrefix(line, "Forwarding from "))[0]
	for range 5 {
		if got := get("http://" + addr + "/"); !strings.HasPrefix(got, "hello from tools-") {
			t.Errorf("port-forward: %q", got)
		}
		// A client that breaks its connection off does not end the forward.
		rude, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(rude, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_, _ = rude.Read(make([]byte, 1))
		_ = rude.(*net.TCPConn).SetLinger(0)
		rude.Close()
	}
	kubectl(t, c, "delete", "deployment/tools", "service/tools")
}

func TestCrashLoopAndProbes(t *testing.T) {
	c, _ := clusters(t)
	apply(t, c, `
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: main, image: testapp, args: [exit, "3", why]}]
`)
	eventually(t, 10*time.Second, "CrashLoopBackOff 3 why", func() string {
		return kubectl(t, c, "get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.message}")
	})
	eventually(t, 5*time.Second, "exiting with 3", func() string { out, _ := tryKubectl(t, c, "", "logs", "crash", "--previous"); return out })
	if got := kubectl(t, c, "get", "events", "--field-selector=involvedObject.name=crash", "-o", "jsonpath={.items[*].reason}"); !strings.Contains(got, "BackOff") || strings.Contains(got, "Provider") {
		t.Errorf("events: %s", got)
	}
	began := time.Now()
	kubectl(t, c, "delete", "pod", "crash")
	t.Logf("crashing Pod deleted in %v", time.Since(began))

	apply(t, c, web("flaky", "        livenessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 2}"))
	rollout(t, c, "flaky")
	pod, ip := podOf(t, c, "flaky")
	began = time.Now()
	get("http://" + ip + ":8080/touch/unready")
	restarts := func() string {
		return kubectl(t, c, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
	}
	eventually(t, 15*time.Second, "1", restarts)
	t.Logf("liveness failure restarted the container after %v", time.Since(began))
	eventually(t, 15*time.Second, "True", func() string {
		return kubectl(t, c, "get", "pod", pod, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	})
	kubectl(t, c, "delete", "deployment/flaky", "service/flaky")
}

func TestServicesAcrossClustersAndDNS(t *testing.T) {
	a, b := clusters(t)
	apply(t, a, web("client", ""))
	apply(t, b, web("server", ""))
	apply(t, b, `
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 8080}]}
`)
	rollout(t, a, "client")
	rollout(t, b, "server")
	_, client := podOf(t, a, "client")
	_, server := podOf(t, b, "server")
	from := func(url string) string { return get("http://" + client + ":8080/get/" + url) }
	// Patched to LoadBalancer later.
	kubectl(t, b, "patch", "service", "server", "-p", `{"spec":{"type":"LoadBalancer"}}`)
	lb := ""
	eventually(t, 5*time.Second, "10.11.64.", func() string {
		lb = kubectl(t, b, "get", "service", "server", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		return lb[:min(len(lb), 9)]
	})
	vip := kubectl(t, b, "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	for _, addr := range []string{lb, vip, server + ":8080"} {
		eventually(t, 5*time.Second, "true", func() string { return fmt.Sprint(strings.Contains(from(addr+"/"), "hello from server-")) })
	}
	inB := func(name string) string { return get("http://" + server + ":8080/lookup/" + name) }
	for name, want := range map[string]string{
		"server": vip + " <nil>", "server.default": vip + " <nil>", "server.default.svc.cluster.local": vip + " <nil>",
		"kubernetes.default": b.APIServiceIP().String() + " <nil>",
	} {
		if got := inB(name); got != want {
			t.Errorf("lookup %s: %q, want %q", name, got, want)
		}
	}
	if got := inB("headless"); len(strings.Split(got, ",")) != 2 || !strings.Contains(got, server) {
		t.Errorf("headless: %q", got)
	}
	if got := inB("nothing.default"); !strings.Contains(got, "no such host") {
		t.Errorf("missing name: %q", got)
	}
	// A Pod reaches its API server at the kubernetes Service (403 or 401: it answered).
	if got := get("http://" + server + ":8080/get/" + b.APIServiceIP().String() + ":443/"); !strings.Contains(got, "HTTPS server") {
		t.Errorf("kubernetes Service: %q", got)
	}
	kubectl(t, a, "delete", "deployment/client", "service/client")
	kubectl(t, b, "delete", "deployment/server", "service/server", "service/headless")
}

// Controllers that make Pods in their own ways.
func TestJobDaemonSetStatefulSet(t *testing.T) {
	c, _ := clusters(t)
	apply(t, c, `
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  template:
    spec: {restartPolicy: Never, containers: [{name: main, image: testapp, args: [print, done]}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds}
spec:
  selector: {matchLabels: {app: ds}}
  template:
    metadata: {labels: {app: ds}}
    spec: {containers: [{name: main, image: testapp, args: [serve]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {terminationGracePeriodSeconds: 5, containers: [{name: main, image: testapp, args: [serve]}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
`)
	kubectl(t, c, "wait", "--for=condition=Complete", "job/job", "--timeout=20s")
	if got := kubectl(t, c, "logs", "job/job"); got != "done" {
		t.Errorf("log of the Job: %q", got)
	}
	kubectl(t, c, "rollout", "status", "daemonset/ds", "--timeout=20s")
	kubectl(t, c, "rollout", "status", "statefulset/db", "--timeout=20s")

	// The same name again: after an orderly end, and when the object went without waiting for the process.
	uid := func() string {
		out, _ := tryKubectl(t, c, "", "get", "pod", "db-0", "--ignore-not-found", "-o", `jsonpath={.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}`)
		return out
	}
	for _, how := range [][]string{nil, {"--force", "--grace-period=0"}} {
		old := first(uid())
		kubectl(t, c, append([]string{"delete", "pod", "db-0"}, how...)...)
		eventually(t, 10*time.Second, "true", func() string {
			now := uid()
			return fmt.Sprint(strings.HasSuffix(now, " True") && first(now) != old)
		})
		ip := kubectl(t, c, "get", "pod", "db-0", "-o", "jsonpath={.status.podIP}")
		eventually(t, 5*time.Second, "hello", func() string { return first(get("http://" + ip + ":8080/")) })
	}
	kubectl(t, c, "delete", "job/job", "daemonset/ds", "statefulset/db", "service/db")
	eventually(t, 15*time.Second, "", func() string { return kubectl(t, c, "get", "pods", "-o", "name") })
}

// The API server is away for a while: Pods go on, and what happened meanwhile is reported afterwards.
func TestYControlPlaneOutage(t *testing.T) {
	c, _ := clusters(t)
	apply(t, c, web("lasting", ""))
	rollout(t, c, "lasting")
	pod, ip := podOf(t, c, "lasting")
	if err := lab.controlPlaneOutage(func() {
		get("http://" + ip + ":8080/touch/unready")
		for range 20 {
			if got := first(get("http://" + ip + ":8080/")); got != "hello" {
				t.Errorf("Pod during the outage: %q", got)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "False", func() string {
		out, _ := tryKubectl(t, c, "", "get", "pod", pod, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		return out
	})
	kubectl(t, c, "rollout", "restart", "deployment/lasting")
	rollout(t, c, "lasting")
	kubectl(t, c, "delete", "deployment/lasting", "service/lasting")
}

func TestManyPods(t *testing.T) {
	c, _ := clusters(t)
	const n = 40
	apply(t, c, strings.Replace(web("many", ""), "replicas: 2", fmt.Sprintf("replicas: %d", n), 1))
	began := time.Now()
	rollout(t, c, "many")
	t.Logf("%d Pods ready after %v", n, time.Since(began))
	began = time.Now()
	kubectl(t, c, "delete", "deployment/many", "service/many")
	eventually(t, 20*time.Second, "", func() string { return kubectl(t, c, "get", "pods", "-l", "app=many", "-o", "name") })
	t.Logf("gone after %v", time.Since(began))
}

// TestNodeRestart must be the last: it replaces the nodes.
func TestZNodeRestart(t *testing.T) {
	c, _ := clusters(t)
	apply(t, c, web("stays", ""))
	rollout(t, c, "stays")
	pod, ip := podOf(t, c, "stays")
	lab.stopNodes()
	began := time.Now()
	lab.startNodes()
	eventually(t, 20*time.Second, "hello", func() string { return first(get("http://" + ip + ":8080/")) })
	eventually(t, 10*time.Second, "1 True "+ip, func() string {
		return kubectl(t, c, "get", "pod", pod, "-o", `jsonpath={.status.containerStatuses[0].restartCount} {.status.conditions[?(@.type=="Ready")].status} {.status.podIP}`)
	})
	t.Logf("Pod runs again %v after the node was started", time.Since(began))
	began = time.Now()
	kubectl(t, c, "delete", "deployment/stays", "service/stays")
	eventually(t, 10*time.Second, "", func() string { return kubectl(t, c, "get", "pods", "-l", "app=stays", "-o", "name") })
	t.Logf("deleted in %v", time.Since(began))
	runtime.GC()
	debug.FreeOSMemory()
	b, _ := os.ReadFile("/proc/self/status")
	for l := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "RssAnon") {
			t.Logf("memory of this process with two nodes: %s", l)
		}
	}
}
