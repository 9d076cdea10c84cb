package cli

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// TestServerWithTheChartsRights installs the chart with meshctl and runs the real management server with the arguments of its Deployment, acting as its
// ServiceAccount: what the chart's Roles leave out, the server can't do. Only the network is played: the webhooks are told the server's address.
func TestServerWithTheChartsRights(t *testing.T) {
	w := newWorld(t)
	const ctxName = "prod-eu-west-3" // the second API server: its webhooks disturb no other test
	binary := filepath.Join(t.TempDir(), serverName)
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/"+serverName).CombinedOutput(); err != nil {
		t.Fatalf("build the server: %v\n%s", err, out)
	}
	w.as("server", ctxName, "system:serviceaccount:"+w.ns+":"+serverName)
	config, err := clientcmd.LoadFromFile(w.kubeconfig)
	w.must(err)
	config.AuthInfos["server"].ImpersonateGroups = []string{"system:serviceaccounts", "system:serviceaccounts:" + w.ns, "system:authenticated"}
	w.save(config)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var logs lockedBuffer
	go func() {
		defer close(done)
		w.runServer(ctx, binary, &logs)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Log(logs.String())
		}
		_ = w.remote.Delete(context.Background(), &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metaNamed(serverName)})
		_ = w.remote.Delete(context.Background(), &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metaNamed(serverName)})
	})
	r := w.meshctl("install", "--kubecontext", ctxName, "--register", "--set", "common.cluster=hub", "--timeout", "40s")
	if r.code != ExitOK {
		t.Fatalf("exit %d; the server's log:\n%s", r.code, logs.String())
	}
	var kc adminv2.KubernetesCluster
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%+v", kc.Status)
		}
	})
	w.eventually(func() bool {
		return w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "hub"}, &kc) == nil &&
			kc.Status.Common.State.Approval != "" && strings.HasSuffix(kc.Status.RegisteredBy, serverName)
	})
	if r := w.meshctl("relay", "check", "--kubecontext", ctxName); r.code != ExitOK {
		t.Errorf("relay check: exit %d", r.code)
	}
	for _, verb := range []string{"rotate", "repair", "check"} {
		if r := w.meshctl("relay", verb, "--kubecontext", ctxName); r.code != ExitOK {
			t.Errorf("relay %s with a running server: exit %d", verb, r.code)
		}
	}
	r = w.meshctl("check", "--kubecontext", ctxName, "--plain")
	if r.code != ExitOK {
		t.Errorf("check: exit %d", r.code)
	}
	if r := w.meshctl("cluster", "deregister", "hub", "--mgmt-context", ctxName); r.code != ExitOK {
		t.Errorf("deregister: exit %d", r.code)
	}
	for line := range strings.Lines(logs.String()) {
		if strings.Contains(line, "forbidden") {
			t.Errorf("the chart's Roles leave something out: %s", line)
		}
	}
}

// runServer waits for the Deployment, runs its container, and reports its readiness, as a kubelet does.
func (w *world) runServer(ctx context.Context, binary string, logs *lockedBuffer) {
	var d appsv1.Deployment
	for w.remote.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: serverName}, &d) != nil {
		if ctx.Err() != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	relay, hook, health, metrics := freeAddress(), freeAddress(), freeAddress(), freeAddress()
	args := append(slices.Clone(d.Spec.Template.Spec.Containers[0].Args), "--kubeconfig="+w.kubeconfig, "--context=server",
		"--relay-address="+relay, "--webhook-address="+hook, "--health-address="+health, "--metrics-address="+metrics)
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return
	}
	defer func() { _ = cmd.Wait() }()
	_, port, _ := net.SplitHostPort(hook)
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		w.route("https://localhost:" + port)
		response, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			continue
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK || w.remote.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: serverName}, &d) != nil {
			continue
		}
		if d.Status.AvailableReplicas == 0 {
			d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1, ReadyReplicas: 1}
			_ = w.remote.Status().Update(ctx, &d)
		}
	}
}

// route plays the cluster's network for the webhooks: Service to address. The caBundle is the server's to set.
func (w *world) route(to string) {
	ctx := context.Background()
	point := func(c *admissionv1.WebhookClientConfig) bool {
		if c.Service == nil {
			return false
		}
		url := to + *c.Service.Path
		c.URL, c.Service = &url, nil
		return true
	}
	var m admissionv1.MutatingWebhookConfiguration
	if w.remote.Get(ctx, client.ObjectKey{Name: serverName}, &m) == nil && point(&m.Webhooks[0].ClientConfig) {
		_ = w.remote.Update(ctx, &m)
	}
	var v admissionv1.ValidatingWebhookConfiguration
	if w.remote.Get(ctx, client.ObjectKey{Name: serverName}, &v) == nil && point(&v.Webhooks[0].ClientConfig) {
		_ = w.remote.Update(ctx, &v)
	}
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// lockedBuffer is a buffer that a process writes while a test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
