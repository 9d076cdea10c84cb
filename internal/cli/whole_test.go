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
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestWholeWay installs the charts with meshctl on two real API servers and runs the real programs with the arguments of their Deployments, acting as their
// ServiceAccounts: what the charts' Roles leave out, the programs can't do. Only the kubelet and the network are played.
func TestWholeWay(t *testing.T) {
	w := newWorld(t)
	const hub, prod = "prod-eu-west-3", "mgmt" // the second API server is the hub here: its webhooks disturb no other test
	server := w.program(hub, w.remote, serverName)
	w.must(client.IgnoreAlreadyExists(w.mgmt.Create(t.Context(), &corev1.Namespace{ObjectMeta: metaNamed(w.ns)})))
	t.Cleanup(func() {
		_ = w.remote.Delete(context.Background(), &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metaNamed(serverName)})
		_ = w.remote.Delete(context.Background(), &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metaNamed(serverName)})
		_ = w.mgmt.Delete(context.Background(), deployment(w.ns, agentName))
	})
	relay, hook := freeAddress(), freeAddress()
	server.start("--relay-address="+relay, "--webhook-address="+hook, "--health-address="+server.health, "--metrics-address=off", "--ui-address=127.0.0.1:0", "--audit-file="+filepath.Join(t.TempDir(), "audit.db"))
	_, port, _ := net.SplitHostPort(hook)
	server.each(func() { w.route("https://localhost:" + port) })
	r := w.meshctl("install", "--kubecontext", hub, "--set", "glooMgmtServer.serviceType=LoadBalancer", "--timeout", "40s")
	if r.code != ExitOK {
		t.Fatalf("install: exit %d", r.code)
	}
	var service corev1.Service
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: serverName}, &service))
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.10"}}
	w.must(w.remote.Status().Update(t.Context(), &service))

	agent := w.program(prod, w.mgmt, agentName)
	agent.start("--relay-server-address="+relay, "--health-address="+agent.health, "--metrics-address=off")
	register := func() result {
		return w.meshctl("cluster", "register", "prod", "--mgmt-context", hub, "--remote-context", prod, "--timeout", "40s")
	}
	start := time.Now()
	if r = register(); r.code != ExitOK {
		t.Fatalf("register: exit %d", r.code)
	}
	t.Logf("registered, with real server and agent, in %s", time.Since(start).Round(time.Millisecond))
	identity := func() string {
		var s corev1.Secret
		w.must(w.mgmt.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: secretClient}, &s))
		return string(s.Data["tls.crt"])
	}
	first := identity()
	w.eventually(func() bool {
		return apierrors.IsNotFound(w.mgmt.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: secretRegistration}, &corev1.Secret{}))
	})
	if r = register(); r.code != ExitOK || identity() != first {
		t.Errorf("registering again: exit %d, another identity: %v", r.code, identity() != first)
	}
	if r = w.meshctl("check", "--kubecontext", hub, "--plain"); r.code != ExitOK || strings.Contains(r.out, "[warning]") {
		t.Errorf("check: exit %d", r.code)
	}
	for _, verb := range []string{"rotate", "check", "repair"} {
		if r := w.meshctl("relay", verb, "--kubecontext", hub); r.code != ExitOK {
			t.Errorf("relay %s with a running server: exit %d", verb, r.code)
		}
	}
	if r = w.meshctl("cluster", "deregister", "prod", "--mgmt-context", hub); r.code != ExitOK || !strings.Contains(r.out, "revoked every key") {
		t.Errorf("deregister: exit %d", r.code)
	}
	// Registered again while the agent, refused, still runs: it gets a new identity.
	if r = register(); r.code != ExitOK || identity() == first {
		t.Errorf("registering a revoked cluster: exit %d, the old identity: %v", r.code, identity() == first)
	}
	for _, p := range []*program{server, agent} {
		for line := range strings.Lines(p.logs.String()) {
			if strings.Contains(line, "forbidden") {
				t.Errorf("the Roles of %s leave something out: %s", p.name, line)
			}
		}
	}
}

// program is one of ours, run as the kubelet would run it: whenever its Deployment's template changes it is started anew.
type program struct {
	w       *world
	name    string
	context string // in which it acts as its ServiceAccount
	cluster client.WithWatch
	binary  string
	health  string
	logs    lockedBuffer
	work    []func()
}

func (w *world) program(contextName string, c client.WithWatch, name string) *program {
	w.t.Helper()
	p := &program{w: w, name: name, context: name, cluster: c, binary: filepath.Join(w.t.TempDir(), name), health: freeAddress()}
	if out, err := exec.Command("go", "build", "-o", p.binary, "../../cmd/"+name).CombinedOutput(); err != nil {
		w.t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	w.as(name, contextName, "system:serviceaccount:"+w.ns+":"+name)
	config, err := clientcmd.LoadFromFile(w.kubeconfig)
	w.must(err)
	config.AuthInfos[name].ImpersonateGroups = []string{"system:serviceaccounts", "system:serviceaccounts:" + w.ns, "system:authenticated"}
	w.save(config)
	return p
}

// each has fn called often while the program runs.
func (p *program) each(fn func()) { p.work = append(p.work, fn) }

// start waits for the Deployment and runs its container until the test ends; later arguments override the Deployment's.
func (p *program) start(override ...string) {
	ctx, cancel := context.WithCancel(p.w.t.Context())
	done := make(chan struct{})
	p.w.t.Cleanup(func() {
		cancel()
		<-done
		if p.w.t.Failed() {
			p.w.t.Logf("log of %s:\n%s", p.name, p.logs.String())
		}
	})
	go func() {
		defer close(done)
		var running *exec.Cmd
		var template corev1.PodTemplateSpec
		stop := func() {
			if running != nil {
				_ = running.Process.Signal(os.Interrupt)
				_ = running.Wait()
				running = nil
			}
		}
		defer stop()
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			var d appsv1.Deployment
			if p.cluster.Get(ctx, client.ObjectKey{Namespace: p.w.ns, Name: p.name}, &d) != nil {
				continue
			}
			for _, fn := range p.work {
				fn()
			}
			if running == nil || !equality.Semantic.DeepEqual(template, d.Spec.Template) {
				stop()
				template = d.Spec.Template
				args := append(slices.Clone(template.Spec.Containers[0].Args), "--kubeconfig="+p.w.kubeconfig, "--context="+p.context)
				running = exec.Command(p.binary, append(args, override...)...)
				running.Stdout, running.Stderr = &p.logs, &p.logs
				if err := running.Start(); err != nil {
					return
				}
			}
			if response, err := http.Get("http://" + p.health + "/readyz"); err == nil {
				response.Body.Close()
				if response.StatusCode == http.StatusOK && d.Status.ObservedGeneration != d.Generation {
					d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1, ReadyReplicas: 1}
					_ = p.cluster.Status().Update(ctx, &d)
				}
			}
		}
	}()
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
	if w.remote.Get(ctx, client.ObjectKey{Name: serverName}, &m) == nil {
		changed := false
		for i := range m.Webhooks {
			changed = point(&m.Webhooks[i].ClientConfig) || changed
		}
		if changed {
			_ = w.remote.Update(ctx, &m)
		}
	}
	var v admissionv1.ValidatingWebhookConfiguration
	if w.remote.Get(ctx, client.ObjectKey{Name: serverName}, &v) == nil {
		changed := false
		for i := range v.Webhooks {
			changed = point(&v.Webhooks[i].ClientConfig) || changed
		}
		if changed {
			_ = w.remote.Update(ctx, &v)
		}
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
