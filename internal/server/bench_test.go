package server

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/test/kubetest"
)

// BenchmarkFiftyAgents runs the real program with 50 agents that enrol at once, and says how long from the start of an agent to its session, also of 20 more one after the other, and what memory the server has.
//
//	go test ./internal/server -run '^$' -bench FiftyAgents -benchtime 1x
func BenchmarkFiftyAgents(b *testing.B) {
	const agents = 50
	rc := kubetest.Start(b)
	c := kubetest.Client(b, rc)
	bin := filepath.Join(b.TempDir(), "server")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "ambitmesh.dev/ambit/cmd/gloo-mesh-mgmt-server").CombinedOutput(); err != nil {
		b.Fatalf("%s: %v", out, err)
	}
	for b.Loop() {
		ns := kubetest.Namespace(b, c)
		address, health := freeAddress(b), freeAddress(b)
		cmd := exec.Command(bin, "--kubeconfig", kubetest.Kubeconfig(b, rc), "--namespace", ns, "--relay-address", address, "--health-address", health,
			"--metrics-address=off", "--webhook-address=off", "--snapshot-address=off", "--ui-address=off", "--log-level=error")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		for {
			if resp, err := http.Get("http://" + health + "/readyz"); err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
			if time.Since(begin) > 30*time.Second {
				b.Fatal("the server does not become ready")
			}
			time.Sleep(5 * time.Millisecond)
		}
		b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms-to-ready")
		took := enrolAll(b, c, ns, address, 0, agents)
		slices.Sort(took)
		var single []time.Duration
		for i := range 20 {
			single = append(single, enrolAll(b, c, ns, address, agents+i, 1)...)
		}
		slices.Sort(single)
		b.ReportMetric(float64(single[len(single)/2].Milliseconds()), "ms-enrol-alone-p50")
		b.ReportMetric(float64(single[len(single)-1].Milliseconds()), "ms-enrol-alone-max")
		b.ReportMetric(float64(took[agents/2].Milliseconds()), "ms-enrol-p50")
		b.ReportMetric(float64(took[agents-1].Milliseconds()), "ms-enrol-max")
		time.Sleep(10 * time.Second)
		b.ReportMetric(rss(b, cmd.Process.Pid), "MB-resident")
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
}

func enrolAll(b *testing.B, c client.Client, ns, address string, first, n int) []time.Duration {
	b.Helper()
	var root corev1.Secret
	if err := c.Get(b.Context(), client.ObjectKey{Namespace: ns, Name: "relay-root-tls-secret"}, &root); err != nil {
		b.Fatal(err)
	}
	tokens := make([]string, n)
	for i := range n {
		name := fmt.Sprintf("c%d", first+i)
		register(b, c, ns, name)
		tokens[i] = announce(b, c, ns, name, mesh.ClusterUID("uid-of-"+name))
	}
	cfg := Config{RelayAddress: address, Namespace: ns}
	took := make([]time.Duration, n)
	done := make(chan int, n)
	begin := time.Now()
	for i := range n {
		name := fmt.Sprintf("c%d", first+i)
		a := startWith(b, cfg, name, mesh.ClusterUID("uid-of-"+name), &memory{id: relay.StoredIdentity{Roots: root.Data["ca.crt"], Token: tokens[i]}})
		go func() {
			for !a.spoke.Status().Connected && b.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			took[i] = time.Since(begin)
			done <- i
		}()
	}
	for range n {
		select {
		case <-done:
		case <-time.After(time.Minute):
			b.Fatal("not all agents are connected after a minute")
		}
	}
	return took
}

// rss is a process's resident memory in MB.
func rss(b *testing.B, pid int) float64 {
	b.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
