package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambitmesh.dev/ambit/lab/internal/build"
)

const (
	kubeEnv  = "AMBIT_CONTROL_TEST_KUBE"
	stateEnv = "AMBIT_CONTROL_TEST_STATE"
)

const statefulSet = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: "example.com/db:1"}]}
`

// TestControlPlanes runs real control planes: two clusters with a process each, the
// same two in one process, and one that can't start.
func TestControlPlanes(t *testing.T) {
	if testing.Short() {
		t.Skip("runs two Kubernetes control planes, about a minute")
	}
	b, err := build.Ensure(t.Context(), build.Options{Root: "../../..", Targets: []build.Target{build.Kube}, Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"TestInsideProcessPerCluster", "TestInsideOneProcess", "TestInsideFailure"} {
		t.Run(name, func(t *testing.T) {
			runInside(t, name, kubeEnv+"="+b.Kube, stateEnv+"="+t.TempDir())
		})
	}
}

func TestInsideProcessPerCluster(t *testing.T) {
	l := newLab(t)
	began := time.Now()
	for _, c := range l.clusters {
		l.start(c)
	}
	l.waitReady()
	t.Logf("etcd and 2 clusters in 2 processes: ready after %.1fs", time.Since(began).Seconds())
	l.exercise()
	l.logMemory()
	l.stopAll()
}

func TestInsideOneProcess(t *testing.T) {
	l := newLab(t)
	began := time.Now()
	l.start(l.clusters...)
	l.waitReady()
	t.Logf("etcd and 2 clusters in 1 process: ready after %.1fs", time.Since(began).Seconds())
	l.exercise()
	l.separate()
	l.person()
	for _, c := range l.clusters {
		l.kubelet(c)
	}
	l.logMemory()
	l.stopAll()

	// Started again, the clusters are what they were.
	began = time.Now()
	l.startEtcd()
	l.start(l.clusters...)
	l.waitReady()
	t.Logf("restart: ready after %.1fs", time.Since(began).Seconds())
	for _, c := range l.clusters {
		if got := l.kubectl(c, "get", "namespace", "kept", "-o", "name"); got != "namespace/kept" {
			t.Errorf("cluster %q after a restart: got %q, want namespace/kept", c.Name, got)
		}
	}
	l.stopAll()
}

func TestInsideFailure(t *testing.T) {
	l := newLab(t)
	lost := Cluster{Name: "lost", Index: 7, Dir: filepath.Join(os.Getenv(stateEnv), "clusters", "lost")}
	if err := Prepare(lost); err != nil {
		t.Fatal(err)
	}
	cmd, err := ClusterCommand(os.Getenv(kubeEnv), l.clusters[0], lost)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("a cluster without its address: got %v, want exit code 1", err)
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, `cluster "lost": kube-apiserver: `) {
		t.Errorf("the last line does not name the component: %s", last)
	}
}

// lab is etcd and two clusters.
type lab struct {
	t        *testing.T
	state    string
	clusters []Cluster
	running  []*exec.Cmd // etcd first
}

func newLab(t *testing.T) *lab {
	if os.Getenv(insideEnv) == "" {
		t.Skip("run by TestControlPlanes, in namespaces of its own")
	}
	l := &lab{t: t, state: os.Getenv(stateEnv)}
	for i, name := range []string{"mgmt", "cluster-1"} {
		c := Cluster{Name: name, Index: i, Dir: filepath.Join(l.state, "clusters", name), HostAddr: fmt.Sprintf("127.0.0.1:%d", 7000+i)}
		if err := Prepare(c); err != nil {
			t.Fatal(err)
		}
		l.clusters = append(l.clusters, c)
	}
	l.startEtcd()
	return l
}

func (l *lab) startEtcd() {
	l.t.Helper()
	dir := filepath.Join(l.state, "etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	l.run(EtcdCommand(os.Getenv(kubeEnv), dir), "etcd")
}

func (l *lab) start(clusters ...Cluster) {
	l.t.Helper()
	cmd, err := ClusterCommand(os.Getenv(kubeEnv), clusters...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.run(cmd, clusters[0].Name)
}

func (l *lab) run(cmd *exec.Cmd, name string) {
	l.t.Helper()
	log, err := os.Create(filepath.Join(l.state, name+".log"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.running = append(l.running, cmd)
	l.t.Cleanup(func() {
		if cmd.ProcessState == nil { // the test failed before stopAll
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if l.t.Failed() {
			raw, _ := os.ReadFile(log.Name())
			l.t.Logf("end of %s:\n%s", log.Name(), raw[max(0, len(raw)-6000):])
		}
	})
}

func (l *lab) waitReady() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 90*time.Second)
	defer cancel()
	for _, c := range l.clusters {
		if err := WaitReady(ctx, c); err != nil {
			l.t.Fatal(err)
		}
	}
}

// exercise checks that the clusters do what their users rely on.
func (l *lab) exercise() {
	l.t.Helper()
	for _, c := range l.clusters {
		began := time.Now()
		if got := l.kubectl(c, "version"); !strings.Contains(got, "Server Version: v1.36.3") {
			l.t.Errorf("cluster %q: got version %q", c.Name, got)
		}
		if got := l.kubectl(c, "get", "nodes"); got != "" {
			l.t.Errorf("cluster %q: nodes %q, want none", c.Name, got)
		}
		l.kubectl(c, "create", "namespace", "kept")
		l.kubectl(c, "create", "namespace", "shop")
		l.kubectl(c, "-n", "shop", "create", "deployment", "web", "--image=example.com/web:1", "--replicas=2")
		l.kubectl(c, "-n", "shop", "create", "job", "once", "--image=example.com/once:1")
		l.apply(c, statefulSet)
		// Two Pods of the Deployment, one each of the Job and the StatefulSet; no node to run them.
		l.eventually(c, "Pending Pending Pending Pending", "-n", "shop", "get", "pods", "-o", "jsonpath={.items[*].status.phase}")
		l.eventually(c, "Unschedulable Unschedulable Unschedulable Unschedulable", "-n", "shop", "get", "pods", "-o", "jsonpath={.items[*].status.conditions[?(@.type=='PodScheduled')].reason}")
		l.eventually(c, "Job ReplicaSet ReplicaSet StatefulSet", "-n", "shop", "get", "pods", "--sort-by={.metadata.ownerReferences[0].kind}", "-o", "jsonpath={.items[*].metadata.ownerReferences[0].kind}")
		if got := l.kubectl(c, "-n", "shop", "create", "token", "default", "--audience=istio-ca"); strings.Count(got, ".") != 2 {
			l.t.Errorf("cluster %q: no token for istio-ca: %q", c.Name, got)
		}
		endpoint := l.kubectl(c, "-n", "default", "get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}")
		if endpoint != c.NodeIP().String() {
			l.t.Errorf("cluster %q: kubernetes.default is at %q, want %s", c.Name, endpoint, c.NodeIP())
		}
		deleting := time.Now()
		l.kubectl(c, "delete", "namespace", "shop", "--timeout=60s")
		l.t.Logf("cluster %q: exercised in %.1fs, of that the deletion of a namespace %.1fs", c.Name, time.Since(began).Seconds(), time.Since(deleting).Seconds())
	}
}

// separate checks that clusters of one process share nothing.
func (l *lab) separate() {
	l.t.Helper()
	l.kubectl(l.clusters[0], "create", "namespace", "only-here")
	if got := l.kubectl(l.clusters[1], "get", "namespace", "only-here", "--ignore-not-found", "-o", "name"); got != "" {
		l.t.Errorf("cluster %q has %s of cluster %q", l.clusters[1].Name, got, l.clusters[0].Name)
	}
	token := l.kubectl(l.clusters[0], "create", "token", "default")
	review := "apiVersion: authentication.k8s.io/v1\nkind: TokenReview\nspec: {token: " + token + "}\n"
	for c, want := range map[Cluster]string{l.clusters[0]: "true", l.clusters[1]: ""} {
		if got := l.kubectlIn(c, review, "create", "-f", "-", "-o", "jsonpath={.status.authenticated}"); got != want {
			l.t.Errorf("cluster %q, token of cluster %q: authenticated %q, want %q", c.Name, l.clusters[0].Name, got, want)
		}
	}
}

// person checks the kubeconfig for people, through forwarders as the lab has them.
func (l *lab) person() {
	l.t.Helper()
	path := filepath.Join(l.state, "kubeconfig")
	if err := WriteKubeconfig(path, l.clusters); err != nil {
		l.t.Fatal(err)
	}
	for _, c := range l.clusters {
		forward(l.t, c.HostAddr, c.APIAddress())
		out, err := exec.Command(l.kubectlPath(), "--kubeconfig="+path, "--context="+c.Name, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}").CombinedOutput()
		if err != nil || string(out) != Person {
			l.t.Errorf("cluster %q: whoami: got %s, %v, want %s", c.Name, out, err, Person)
		}
	}
}

func forward(t *testing.T, from, to string) {
	t.Helper()
	listener, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				go io.Copy(out, in)
				io.Copy(in, out)
			}()
		}
	}()
}

// stopAll stops everything by SIGTERM, etcd last, and checks that all agree.
func (l *lab) stopAll() {
	l.t.Helper()
	for _, cmd := range slices.Backward(l.running) {
		began := time.Now()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			l.t.Fatal(err)
		}
		err := cmd.Wait()
		l.t.Logf("%s stopped after %.1fs: %v", cmd.Args[0], time.Since(began).Seconds(), cmd.ProcessState)
		if err != nil && cmd.Args[0] != "etcd" { // etcd ends by the signal it got
			l.t.Errorf("%s: %v", cmd.Args[0], err)
		}
	}
	l.running = nil
}

func (l *lab) logMemory() {
	for _, cmd := range l.running {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		for line := range strings.SplitSeq(string(raw), "\n") {
			if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") || strings.HasPrefix(line, "VmHWM") {
				l.t.Logf("%s %v: %s", cmd.Args[0], cmd.Args[1], line)
			}
		}
	}
}

func (l *lab) kubectlPath() string {
	return filepath.Join(filepath.Dir(os.Getenv(kubeEnv)), "assets", "kubectl")
}

func (l *lab) tryKubectl(c Cluster, stdin string, args ...string) (string, error) {
	cmd := exec.Command(l.kubectlPath(), append([]string{"--kubeconfig=" + c.AdminKubeconfig()}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("cluster %q: kubectl %s: %w: %s", c.Name, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (l *lab) kubectl(c Cluster, args ...string) string {
	l.t.Helper()
	return l.kubectlIn(c, "", args...)
}

func (l *lab) apply(c Cluster, manifest string) {
	l.t.Helper()
	l.kubectlIn(c, manifest, "apply", "-f", "-")
}

func (l *lab) kubectlIn(c Cluster, stdin string, args ...string) string {
	l.t.Helper()
	out, err := l.tryKubectl(c, stdin, args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

func (l *lab) eventually(c Cluster, want string, args ...string) {
	l.t.Helper()
	var got string
	var err error
	for range 100 {
		if got, err = l.tryKubectl(c, "", args...); err == nil && got == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.t.Fatalf("cluster %q: kubectl %s: got %q, %v, want %q", c.Name, strings.Join(args, " "), got, err, want)
}
