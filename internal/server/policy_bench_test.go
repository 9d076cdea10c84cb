package server

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/test/kubetest"
)

// fleet is the real program, a real API server, and simulated agents that speak the real protocol over real TLS.
type fleet struct {
	b      *testing.B
	rest   *rest.Config
	client client.WithWatch
	ns     string
	cfg    Config
	root   []byte
	pid    int
	agents []*agent
}

func newFleet(b *testing.B, agents, services int) *fleet {
	b.Helper()
	f := &fleet{b: b, rest: kubetest.Start(b)}
	f.client = kubetest.Client(b, f.rest)
	f.ns = kubetest.Namespace(b, f.client)
	f.cfg = DefaultConfig()
	f.cfg.Namespace, f.cfg.RelayAddress, f.cfg.HealthAddress = f.ns, freeAddress(b), freeAddress(b)
	f.serve()
	f.root = nil
	var root corev1.Secret
	if err := f.client.Get(b.Context(), client.ObjectKey{Namespace: f.ns, Name: "relay-root-tls-secret"}, &root); err != nil {
		b.Fatal(err)
	}
	f.root = root.Data["ca.crt"]
	for i := range agents {
		f.agents = append(f.agents, f.join(fmt.Sprintf("c%d", i), services))
	}
	for _, a := range f.agents {
		f.wait("membership", func() bool { n, _ := a.size(); return n > 0 })
	}
	return f
}

// serve runs the program; in this process, for a profile, with AMBIT_INPROCESS=1.
func (f *fleet) serve() {
	b := f.b
	if os.Getenv("AMBIT_INPROCESS") != "" {
		cfg := f.cfg
		cfg.Kubeconfig, cfg.Context = kubetest.Kubeconfig(b, f.rest), "test"
		cfg.MetricsAddress, cfg.WebhookAddress, cfg.SnapshotAddress, cfg.Audit = off, off, off, discardWriter{}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = Run(ctx, cfg, discard()) }()
		b.Cleanup(func() { cancel(); <-done })
		f.pid = os.Getpid()
	} else {
		bin := filepath.Join(b.TempDir(), "server")
		if out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "ambitmesh.dev/ambit/cmd/gloo-mesh-mgmt-server").CombinedOutput(); err != nil {
			b.Fatalf("%s: %v", out, err)
		}
		cmd := exec.Command(bin, "--kubeconfig", kubetest.Kubeconfig(b, f.rest), "--namespace", f.ns, "--relay-address", f.cfg.RelayAddress, "--health-address", f.cfg.HealthAddress,
			"--metrics-address=off", "--webhook-address=off", "--snapshot-address=off", "--ui-address=off", "--log-level=error")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
		f.pid = cmd.Process.Pid
	}
	f.wait("ready", func() bool {
		resp, err := http.Get("http://" + f.cfg.HealthAddress + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

type discardWriter struct{}

func (discardWriter) Write(p []byte) (int, error) { return len(p), nil }

func (f *fleet) wait(what string, ok func() bool) {
	f.b.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.b.Fatalf("%s: not after three minutes", what)
		}
	}
}

// namespaces are what the Services are spread over.
const namespaces = 50

// join registers a cluster that runs so many Services, and starts its agent.
func (f *fleet) join(name string, services int) *agent {
	f.b.Helper()
	register(f.b, f.client, f.ns, name)
	token := announce(f.b, f.client, f.ns, name, mesh.ClusterUID("uid-of-"+name))
	a := startWith(f.b, f.cfg, name, mesh.ClusterUID("uid-of-"+name), &memory{id: relay.StoredIdentity{Roots: f.root, Token: token}})
	a.report(shop()...)
	for i := range min(services, namespaces) {
		a.report(mesh.Namespace{Name: fmt.Sprintf("team-%d", i), Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}})
	}
	for i := range services {
		app := map[string]string{"app": fmt.Sprintf("svc-%d", i)}
		a.report(mesh.Service{Namespace: fmt.Sprintf("team-%d", i%namespaces), Name: app["app"], Labels: app, Selector: app, Ports: []mesh.ServicePort{{Number: 8080}}})
	}
	return a
}

// write makes policy i, which selects Service i in every cluster.
func (f *fleet) write(i int) *securityv2.AccessPolicy {
	p := &securityv2.AccessPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p-%d", i), Namespace: f.ns}, Spec: securityv2.AccessPolicySpec{
		ApplyToDestinations: []securityv2.DestinationSelector{{Selector: &securityv2.ObjectSelector{Labels: map[string]string{"app": fmt.Sprintf("svc-%d", i)}}}},
		Config: &securityv2.AccessPolicyConfig{Authz: &securityv2.Authorization{AllowedClients: []securityv2.IdentitySelector{
			{ServiceAccountSelector: &securityv2.ObjectSelector{Labels: map[string]string{"app": "payments"}}},
		}}},
	}}
	if err := f.client.Create(f.b.Context(), p); err != nil {
		f.b.Error(err)
	}
	return p
}

// writeAll makes policies first to last-1, several at once.
func (f *fleet) writeAll(first, last int) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				f.write(i)
			}
		})
	}
	for i := first; i < last; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
}

// clear removes all policies, so that the next benchmark begins with none. The API server gives up on 40,000 at once after a minute, but those it has done are done.
func (f *fleet) clear() {
	for range 20 {
		if f.client.DeleteAllOf(context.WithoutCancel(f.b.Context()), &securityv2.AccessPolicy{}, client.InNamespace(f.ns)) == nil {
			return
		}
	}
	f.b.Error("the policies could not be removed")
}

func (a *agent) size() (objects int, last time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.applied), a.latest
}

// arrivals are when the agent got the objects of each policy p-N, by N's text.
func (a *agent) arrivals() map[string]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]time.Time{}
	for name, at := range a.at {
		if _, rest, ok := strings.Cut(name, "/accesspolicy-p-"); ok {
			n, _, _ := strings.Cut(rest, "-")
			out[n] = at
		}
	}
	return out
}

func quantiles(b *testing.B, what string, d []time.Duration) {
	b.Helper()
	if len(d) == 0 {
		b.Fatalf("%s: nothing measured", what)
	}
	slices.Sort(d)
	ms := func(i int) float64 { return float64(d[i].Microseconds()) / 1000 }
	b.ReportMetric(ms(len(d)/2), "ms-"+what+"-p50")
	b.ReportMetric(ms(len(d)*99/100), "ms-"+what+"-p99")
}

// BenchmarkPolicyLatency: 50 clusters; 200 AccessPolicies written one after the other. From before the write to the object in the agents' hands, and to "in force" in status, as a watch shows it.
//
//	go test ./internal/server -run '^$' -bench PolicyLatency -benchtime 1x
func BenchmarkPolicyLatency(b *testing.B) {
	const clusters, policies = 50, 200
	for b.Loop() {
		f := newFleet(b, clusters, policies)
		var list securityv2.AccessPolicyList
		w, err := f.client.Watch(b.Context(), &list, client.InNamespace(f.ns))
		if err != nil {
			b.Fatal(err)
		}
		inForce := map[string]time.Time{}
		var mu sync.Mutex
		go func() {
			for e := range w.ResultChan() {
				if p, ok := e.Object.(*securityv2.AccessPolicy); ok && p.Status.InForce == fmt.Sprintf("%d/%d", clusters, clusters) {
					mu.Lock()
					if inForce[p.Name].IsZero() {
						inForce[p.Name] = time.Now()
					}
					mu.Unlock()
				}
			}
		}()
		begun := map[string]time.Time{}
		for i := range policies {
			begun[fmt.Sprint(i)] = time.Now()
			name := f.write(i).Name
			f.wait(name+" in force", func() bool { mu.Lock(); defer mu.Unlock(); return !inForce[name].IsZero() })
		}
		w.Stop()
		var arrived, told []time.Duration
		for _, a := range f.agents {
			for n, at := range a.arrivals() {
				arrived = append(arrived, at.Sub(begun[n]))
			}
		}
		for n, at := range inForce {
			told = append(told, at.Sub(begun[strings.TrimPrefix(n, "p-")]))
		}
		if len(arrived) != clusters*policies {
			b.Errorf("%d arrivals, want %d", len(arrived), clusters*policies)
		}
		quantiles(b, "arrived", arrived)
		quantiles(b, "in-force", told)
		f.clear()
	}
}

// BenchmarkPolicyBurst: 1,000 AccessPolicies written by 16 writers, to 30 clusters: from the first write to the last object in the last agent's hands, and from the end of the last write.
//
//	go test ./internal/server -run '^$' -bench PolicyBurst -benchtime 1x
func BenchmarkPolicyBurst(b *testing.B) {
	const clusters, policies = 30, 1000
	for b.Loop() {
		f := newFleet(b, clusters, policies)
		begin := time.Now()
		f.writeAll(0, policies)
		written := time.Now()
		var last time.Time
		for _, a := range f.agents {
			f.wait("the last object", func() bool { n, _ := a.size(); return n >= policies+1 })
			if _, at := a.size(); at.After(last) {
				last = at
			}
		}
		b.ReportMetric(float64(last.Sub(begin).Milliseconds()), "ms-from-first-write")
		b.ReportMetric(float64(written.Sub(begin).Milliseconds()), "ms-writing")
		b.ReportMetric(float64(last.Sub(written).Milliseconds()), "ms-after-last-write")
		f.clear()
	}
}

// BenchmarkPolicyLateJoiner: 5,000 and 40,000 AccessPolicies are there; then a cluster with a Service for each joins: from the start of its agent, enrolment and inventory included, to the last object.
//
//	go test ./internal/server -run '^$' -bench PolicyLateJoiner -benchtime 1x -timeout 30m
func BenchmarkPolicyLateJoiner(b *testing.B) {
	for _, policies := range []int{5000, 40000} {
		b.Run(fmt.Sprint(policies), func(b *testing.B) {
			for b.Loop() {
				f := newFleet(b, 1, 0)
				f.writeAll(0, policies)
				time.Sleep(5 * time.Second) // the statuses are written
				begin := time.Now()
				a := f.join("late", policies)
				f.wait("the last object", func() bool { n, _ := a.size(); return n >= policies+1 })
				_, last := a.size()
				b.ReportMetric(float64(last.Sub(begin).Milliseconds()), "ms-to-last")
				b.ReportMetric(rss(b, f.pid), "MB-resident")
				f.clear()
			}
		})
	}
}

// BenchmarkPolicyMemory: the server's memory with 50 clusters and 1,000 AccessPolicies in force in each, a minute after.
//
//	go test ./internal/server -run '^$' -bench PolicyMemory -benchtime 1x
func BenchmarkPolicyMemory(b *testing.B) {
	const clusters, policies = 50, 1000
	for b.Loop() {
		f := newFleet(b, clusters, policies)
		b.ReportMetric(rss(b, f.pid), "MB-before")
		f.writeAll(0, policies)
		begin := time.Now()
		for _, a := range f.agents {
			f.wait("the last object", func() bool { n, _ := a.size(); return n >= policies+1 })
		}
		f.wait("in force", func() bool {
			var list securityv2.AccessPolicyList
			if err := f.client.List(b.Context(), &list, client.InNamespace(f.ns)); err != nil {
				b.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
			return !slices.ContainsFunc(list.Items, func(p securityv2.AccessPolicy) bool {
				return p.Status.InForce != fmt.Sprintf("%d/%d", clusters, clusters)
			})
		})
		b.ReportMetric(time.Since(begin).Seconds(), "s-to-all-in-force")
		b.ReportMetric(rss(b, f.pid), "MB-at-once")
		time.Sleep(time.Minute)
		b.ReportMetric(rss(b, f.pid), "MB-a-minute-later")
		f.clear()
	}
}
