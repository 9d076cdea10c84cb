package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"ambitmesh.dev/ambit/lab/internal/node/logs"
	"ambitmesh.dev/ambit/lab/internal/node/test/nstest"
)

// world is a provider with an API that lives in memory; the processes and the network are real.
type world struct {
	t      *testing.T
	node   *provider
	client *fake.Clientset
	ctx    context.Context

	mu     sync.Mutex
	status map[types.UID]corev1.PodStatus
	seen   map[types.UID][]corev1.PodStatus
}

var labNetwork = sync.OnceValue(func() error { return SetupNetwork(NetworkOf(0), NetworkOf(1), NetworkOf(2)) })

func newWorld(t *testing.T, index int) *world {
	t.Helper()
	if err := labNetwork(); err != nil {
		t.Fatal(err)
	}
	net := NetworkOf(index)
	cfg := Config{
		Name: "node", ClusterName: "test", ClusterIndex: index, Kubeconfig: "-", ImagesDir: testImages(t), StateDir: t.TempDir(),
		NodeIP: net.NodeIP, PodCIDR: net.PodCIDR, LBCIDR: net.LBCIDR, ServiceCIDR: net.ServiceCIDR, DNSIP: net.DNSIP(),
		Log: slog.New(slog.DiscardHandler),
	}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{t: t, client: fake.NewClientset(), ctx: ctx, status: map[types.UID]corev1.PodStatus{}, seen: map[types.UID][]corev1.PodStatus{}}
	f := informers.NewSharedInformerFactory(w.client, 0)
	c := caches{pods: f.Core().V1().Pods().Lister(), secrets: f.Core().V1().Secrets().Lister(), configMaps: f.Core().V1().ConfigMaps().Lister(), services: f.Core().V1().Services().Lister()}
	w.node = newProvider(ctx, cfg, w.client, c, record.NewFakeRecorder(1000))
	w.node.mesh = newAmbient(w.node, f.Core().V1().Namespaces().Lister())
	if err := errors.Join(watchConfig(f, w.node), watchNamespaces(f, w.node.mesh)); err != nil {
		t.Fatal(err)
	}
	w.node.NotifyPods(ctx, func(p *corev1.Pod) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.status[p.UID] = p.Status
		w.seen[p.UID] = append(w.seen[p.UID], p.Status)
	})
	f.Start(ctx.Done())
	f.WaitForCacheSync(ctx.Done())
	t.Cleanup(func() { cancel(); w.node.close() })
	return w
}

// testImages is a folder of images with this test binary as "testapp".
func testImages(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(nstest.TestApp(), filepath.Join(dir, "testapp")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func testPod(name string, args ...string) *corev1.Pod {
	grace := int64(5)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name + "-uid"), Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: "node", TerminationGracePeriodSeconds: &grace, RestartPolicy: corev1.RestartPolicyAlways,
			Containers: []corev1.Container{{Name: "main", Image: "example.com/x/testapp:1.0", Args: args}},
		},
	}
}

// testServer is a Pod that serves at port 8080 and is ready once it does.
func testServer(name string) *corev1.Pod {
	p := testPod(name, "serve")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	p.Spec.Containers[0].ReadinessProbe = probeOf("/ready")
	return p
}

func (w *world) create(p *corev1.Pod) *pod {
	w.t.Helper()
	if _, err := w.client.CoreV1().Pods(p.Namespace).Create(w.ctx, p, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	if err := w.node.CreatePod(w.ctx, p); err != nil {
		w.t.Fatal(err)
	}
	w.node.mu.Lock()
	defer w.node.mu.Unlock()
	return w.node.pods[p.UID]
}

// until waits for the Pod's reported status to satisfy ok.
func (w *world) until(p *corev1.Pod, what string, ok func(corev1.PodStatus) bool) corev1.PodStatus {
	w.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		w.mu.Lock()
		st := w.status[p.UID]
		w.mu.Unlock()
		if ok(st) {
			return st
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("Pod %s: not %s; status: %+v", p.Name, what, st)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func isReady(s corev1.PodStatus) bool { return hasTrue(s.Conditions, corev1.PodReady) }

func get(t *testing.T, url string) string {
	t.Helper()
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func probeOf(path string) *corev1.Probe {
	return &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http")}}}
}

func TestPodServesAndEnds(t *testing.T) {
	w := newWorld(t, 0)
	p := testServer("web")
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
	began := time.Now()
	run := w.create(p)
	st := w.until(p, "ready", isReady)
	t.Logf("ready after %v at %s", time.Since(began), st.PodIP)
	base := "http://" + st.PodIP + ":8080"
	if got := get(t, base+"/"); got != "hello from web" {
		t.Errorf("got %q", got)
	}
	if got := get(t, base+"/env/IP"); got != st.PodIP {
		t.Errorf("status.podIP in env: %q, want %q", got, st.PodIP)
	}
	if got := get(t, base+"/env/KUBERNETES_SERVICE_HOST"); got != "10.10.128.1" {
		t.Errorf("KUBERNETES_SERVICE_HOST: %q", got)
	}
	_ = get(t, base+"/touch/unready")
	w.until(p, "unready", func(s corev1.PodStatus) bool { return !isReady(s) })

	// Two Pods reach each other.
	q := testServer("client")
	w.create(q)
	sq := w.until(q, "running", isReady)
	if got := get(t, "http://"+sq.PodIP+":8080/get/"+st.PodIP+":8080/"); !strings.Contains(got, "hello from web") {
		t.Errorf("Pod to Pod: %q", got)
	}

	rec := httptest.NewRecorder()
	w.node.handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/containerLogs/default/web/main?tailLines=1", nil))
	if got := rec.Body.String(); got != "request /\n" {
		t.Errorf("log: %q", got)
	}
	rec = httptest.NewRecorder()
	w.node.handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/containerLogs/default/web/main?tailLines=0", nil))
	if got := rec.Body.String(); got != "" {
		t.Errorf("tail 0: %q", got)
	}

	del := p.DeepCopy()
	del.DeletionTimestamp, del.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Now()}, p.Spec.TerminationGracePeriodSeconds
	began = time.Now()
	if err := w.node.DeletePod(w.ctx, del); err != nil {
		t.Fatal(err)
	}
	<-run.ended
	t.Logf("ended after %v", time.Since(began))
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := w.client.CoreV1().Pods("default").Get(w.ctx, "web", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the deleted Pod is still in the API")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestCrashLoop(t *testing.T) {
	w := newWorld(t, 0)
	p := testPod("crash", "exit", "3", "the reason")
	w.create(p)
	st := w.until(p, "in back-off twice", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) == 1 && s.ContainerStatuses[0].RestartCount == 2
	})
	c := st.ContainerStatuses[0]
	term := c.LastTerminationState.Terminated
	if term == nil || term.ExitCode != 3 || term.Reason != "Error" || term.Message != "the reason" {
		t.Errorf("last state: %+v", c.LastTerminationState)
	}
	w.until(p, "CrashLoopBackOff", func(s corev1.PodStatus) bool {
		w := s.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff" && s.Phase == corev1.PodRunning
	})
	run := w.node.find("default", "crash")
	var previous bytes.Buffer
	var log *logs.Log
	run.read(func() { log = run.main[0].pick(true) })
	if log == nil {
		t.Fatal("no previous log")
	}
	if err := log.Read(t.Context(), logs.Options{Tail: -1}, &previous); err != nil || previous.String() != "exiting with 3\n" {
		t.Errorf("previous log: %q, %v", previous.String(), err)
	}
}

func TestRunToCompletion(t *testing.T) {
	w := newWorld(t, 0)
	p := testPod("job", "exit", "0")
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: "testapp", Args: []string{"exit", "0"}}}
	w.create(p)
	st := w.until(p, "succeeded", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded })
	if s := st.InitContainerStatuses[0].State.Terminated; s == nil || s.Reason != "Completed" {
		t.Errorf("init container: %+v", st.InitContainerStatuses[0])
	}
	f := testPod("failing", "exit", "1")
	f.Spec.RestartPolicy = corev1.RestartPolicyNever
	w.create(f)
	w.until(f, "failed", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
}

func TestMissingImage(t *testing.T) {
	w := newWorld(t, 0)
	p := testPod("nothing")
	p.Spec.Containers[0].Image = "example.com/nothing:2"
	w.create(p)
	st := w.until(p, "ErrImagePull", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) == 1 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == "ErrImagePull"
	})
	if m := st.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, filepath.Join(w.node.cfg.ImagesDir, "nothing")) || !strings.Contains(m, "testapp") {
		t.Errorf("message: %q", m)
	}
	w.until(p, "ImagePullBackOff", func(s corev1.PodStatus) bool {
		return s.ContainerStatuses[0].State.Waiting.Reason == "ImagePullBackOff" && s.Phase == corev1.PodPending
	})
}

func TestLivenessRestartsAndStartupHolds(t *testing.T) {
	w := newWorld(t, 0)
	p := testPod("sick", "serve")
	c := &p.Spec.Containers[0]
	c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	c.StartupProbe = probeOf("/")
	c.LivenessProbe = probeOf("/ready")
	c.LivenessProbe.FailureThreshold = 1
	w.create(p)
	st := w.until(p, "ready", isReady)
	_ = get(t, "http://"+st.PodIP+":8080/touch/unready")
	st = w.until(p, "restarted", func(s corev1.PodStatus) bool { return s.ContainerStatuses[0].RestartCount == 1 && isReady(s) })
	if term := st.ContainerStatuses[0].LastTerminationState.Terminated; term == nil || term.ExitCode != 0 {
		t.Errorf("last state: %+v", term)
	}
}

func TestSecretAppearsAndChangesInPlace(t *testing.T) {
	w := newWorld(t, 0)
	yes := true
	p := testServer("reader")
	p.Spec.Volumes = []corev1.Volume{
		{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "later", Optional: &yes}}},
		{Name: "d", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
		{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "s", MountPath: "/etc/cacerts", ReadOnly: true}, {Name: "d", MountPath: "/etc/podinfo"}, {Name: "e", MountPath: "/scratch", SubPath: "a/b"},
	}
	w.create(p)
	st := w.until(p, "ready", isReady)
	base := "http://" + st.PodIP + ":8080/file"
	if got := get(t, base+"/etc/podinfo/labels"); got != `app="reader"` {
		t.Errorf("labels: %q", got)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "later", Namespace: "default"}, Data: map[string][]byte{"ca.crt": []byte("one")}}
	if _, err := w.client.CoreV1().Secrets("default").Create(w.ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantSoon(t, "one", func() string { return get(t, base+"/etc/cacerts/ca.crt") })
	secret.Data["ca.crt"] = []byte("two")
	if _, err := w.client.CoreV1().Secrets("default").Update(w.ctx, secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	wantSoon(t, "two", func() string { return get(t, base+"/etc/cacerts/ca.crt") })
	t.Logf("changed in the Pod after %v", time.Since(began))
	up := p.DeepCopy()
	up.Annotations = map[string]string{volumeLagAnnotation: "500ms"}
	if err := w.node.UpdatePod(w.ctx, up); err != nil {
		t.Fatal(err)
	}
	secret.Data["ca.crt"] = []byte("three")
	if _, err := w.client.CoreV1().Secrets("default").Update(w.ctx, secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if got := get(t, base+"/etc/cacerts/ca.crt"); got != "two" {
		t.Errorf("a late Pod has %q at once", got)
	}
	wantSoon(t, "three", func() string { return get(t, base+"/etc/cacerts/ca.crt") })
	up.Labels["new"] = "label"
	if err := w.node.UpdatePod(w.ctx, up); err != nil {
		t.Fatal(err)
	}
	wantSoon(t, "app=\"reader\"\nnew=\"label\"", func() string { return get(t, base+"/etc/podinfo/labels") })
}

func wantSoon(t *testing.T, want string, got func() string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		g := got()
		if g == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %q, want %q", g, want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestPartition(t *testing.T) {
	a, b := newWorld(t, 1), newWorld(t, 2)
	pa, pb := testServer("a"), testServer("b")
	a.create(pa)
	b.create(pb)
	ia := a.until(pa, "ready", isReady).PodIP
	ib := b.until(pb, "ready", isReady).PodIP
	across := fmt.Sprintf("http://%s:8080/get/%s:8080/", ia, ib)
	if got := get(t, across); !strings.Contains(got, "hello from b") {
		t.Fatalf("before: %q", got)
	}
	open, err := a.node.find("default", "a").dialHost(t.Context(), ib+":8080") // from inside Pod a
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	answers := bufio.NewReader(open)
	askOpen := func(wait time.Duration) error {
		_ = open.SetDeadline(time.Now().Add(wait))
		if _, err := io.WriteString(open, "GET /env/HOSTNAME HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := askOpen(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := Partition(1, true); err != nil {
		t.Fatal(err)
	}
	if err := askOpen(time.Second); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("open connection, cut off: %v, want it to stall", err)
	}
	// This test's own process asks Pod a from the node address of cluster 1, so it is on a's side.
	if got := get(t, across); !strings.Contains(got, "deadline exceeded") {
		t.Errorf("cut off: %q", got)
	}
	if got := get(t, "http://"+ia+":8080/"); got != "hello from a" {
		t.Errorf("within cluster 1: %q", got)
	}
	if got := get(t, "http://"+ib+":8080/"); got != "hello from b" {
		t.Errorf("within cluster 2: %q", got)
	}
	if err := Partition(1, false); err != nil {
		t.Fatal(err)
	}
	if got := get(t, across); !strings.Contains(got, "hello from b") {
		t.Errorf("joined again: %q", got)
	}
	if err := askOpen(10 * time.Second); err != nil {
		t.Errorf("open connection, joined again: %v", err)
	}
	if err := Partition(1, false); err != nil {
		t.Errorf("joining twice: %v", err)
	}
}
