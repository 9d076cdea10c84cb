package relay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// Benchmarks of the whole relay: real protocol, real TLS 1.3 with ECDSA P-256, over loopback. Run with
// go test -run '^$' -bench . -benchtime 5x ./internal/relay

// percentiles reports the median and the 99th percentile in ms.
func percentiles(b *testing.B, name string, all []time.Duration) {
	b.Helper()
	slices.Sort(all)
	at := func(p float64) float64 {
		return float64(all[min(int(p*float64(len(all))), len(all)-1)].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.50), name+"-p50-ms")
	b.ReportMetric(at(0.99), name+"-p99-ms")
}

// crowd starts n agents at once. Each tells done how long it took from holding a token to being in session.
func (s *site) crowd(n int, onDesired func(agent int, c synclog.Changes)) (agents []*agent, took []time.Duration) {
	s.t.Helper()
	var group sync.WaitGroup
	agents, took = make([]*agent, n), make([]time.Duration, n)
	start := make(chan struct{})
	for i := range n {
		name := mesh.ClusterName(fmt.Sprintf("c%d", i))
		s.office.register(name, "token")
		a := &agent{t: s.t, store: &memory{st: StoredIdentity{Roots: s.rootPEM(), Token: "token"}}, inventory: newTestSource()}
		cfg := s.config(name, a)
		cfg.OnDesired = func(_ context.Context, c synclog.Changes) { onDesired(i, c) }
		spoke, err := NewSpoke(cfg)
		if err != nil {
			s.t.Fatal(err)
		}
		a.spoke, agents[i] = spoke, a
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		a.stop = func() { cancel(); <-done }
		group.Go(func() {
			<-start
			began := time.Now()
			go func() { defer close(done); _ = spoke.Run(ctx) }()
			for !spoke.Status().Connected {
				time.Sleep(200 * time.Microsecond)
			}
			took[i] = time.Since(began)
		})
	}
	close(start)
	group.Wait()
	return agents, took
}

func stopAll(agents []*agent) {
	var group sync.WaitGroup
	for _, a := range agents {
		group.Go(a.stop)
	}
	group.Wait()
}

// BenchmarkEnrolment: 50 agents, from credential (a token) to session: a new key, two TLS handshakes, a certificate.
// "together": all at the same moment; "oneByOne": each when the one before is through.
func BenchmarkEnrolment(b *testing.B) {
	b.Run("together", func(b *testing.B) {
		var all []time.Duration
		for b.Loop() {
			s := newSite(b)
			agents, took := s.crowd(50, func(int, synclog.Changes) {})
			all = append(all, took...)
			stopAll(agents)
			s.stop()
		}
		percentiles(b, "enrolment", all)
	})
	b.Run("oneByOne", func(b *testing.B) {
		var all []time.Duration
		for b.Loop() {
			s := newSite(b)
			var agents []*agent
			for i := range 50 {
				began := time.Now()
				a := s.newAgent(mesh.ClusterName(fmt.Sprintf("c%d", i)))
				for !a.spoke.Status().Connected {
					time.Sleep(100 * time.Microsecond)
				}
				all = append(all, time.Since(began))
				agents = append(agents, a)
			}
			stopAll(agents)
			s.stop()
		}
		percentiles(b, "enrolment", all)
	})
}

// BenchmarkPublish: one change published to 50 agents of 1,000 objects each, until each agent has it.
func BenchmarkPublish(b *testing.B) {
	const agents, objects = 50, 1000
	s := newSite(b)
	var mu sync.Mutex
	var published time.Time
	var all []time.Duration
	var arrived chan struct{}
	mark := object("mark")
	crowd, _ := s.crowd(agents, func(_ int, c synclog.Changes) {
		if _, ok := c.Set[mark]; !ok {
			return
		}
		mu.Lock()
		all = append(all, time.Since(published))
		mu.Unlock()
		arrived <- struct{}{}
	})
	defer stopAll(crowd)
	state := map[synclog.Key][]byte{}
	for i := range objects {
		state[object(fmt.Sprint(i))] = bytes.Repeat([]byte("x"), 1500)
	}
	round := 0
	publish := func() {
		round++
		mu.Lock()
		published, arrived = time.Now(), make(chan struct{}, agents)
		mu.Unlock()
		state[mark] = fmt.Appendf(nil, "%d", round)
		for i := range agents {
			_ = s.hub.Publish(mesh.ClusterName(fmt.Sprintf("c%d", i)), state, true)
		}
		for range agents {
			<-arrived
		}
	}
	publish()
	all = nil
	for b.Loop() {
		publish()
	}
	percentiles(b, "publish", all)
}

// BenchmarkLateJoiner: an agent that joins when its desired state has 40,000 objects of 1.5 KiB (60 MB).
func BenchmarkLateJoiner(b *testing.B) {
	const objects = 40_000
	s := newSite(b)
	state := map[synclog.Key][]byte{}
	for i := range objects {
		state[object(fmt.Sprintf("security.istio.io/v1/AuthorizationPolicy/ns/%d", i))] = bytes.Repeat([]byte("x"), 1500)
	}
	if err := s.hub.Publish("late", state, true); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		a := s.newAgent("late")
		for !a.spoke.desired.Warm() {
			time.Sleep(time.Millisecond)
		}
		a.stop()
	}
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "join-ms")
}

// BenchmarkSessionMemory: what a session costs the hub, at 1,000 of them. The agents run in another process.
func BenchmarkSessionMemory(b *testing.B) {
	const sessions = 1000
	for b.Loop() {
		s := newSite(b)
		for i := range sessions {
			s.office.register(mesh.ClusterName(fmt.Sprintf("c%d", i)), "token")
		}
		roots := filepath.Join(b.TempDir(), "roots.pem")
		if err := os.WriteFile(roots, s.rootPEM(), 0o600); err != nil {
			b.Fatal(err)
		}
		empty, goroutines := memoryInUse(), runtime.NumGoroutine()
		began := time.Now()
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), fmt.Sprintf("RELAY_TEST_AGENTS=%s %d %s", s.address, sessions, roots))
		in, err := child.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := child.Start(); err != nil {
			b.Fatal(err)
		}
		for {
			n := 0
			for _, i := range s.hub.Sessions() {
				if i.Connected && i.RTT > 0 {
					n++
				}
			}
			if n == sessions {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		b.ReportMetric(time.Since(began).Seconds(), "s-to-enrol-all")
		time.Sleep(2 * time.Second)
		b.ReportMetric(float64(memoryInUse()-empty)/sessions/1024, "KiB/session")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/sessions, "goroutines/session")
		in.Close()
		_ = child.Wait()
		s.stop()
	}
}

// agentsOnly is the other process: "address number rootfile"; it ends when its input does.
func agentsOnly(run string) int {
	var address, rootFile string
	var n int
	if _, err := fmt.Sscan(run, &address, &n, &rootFile); err != nil {
		return 2
	}
	roots, err := os.ReadFile(rootFile)
	if err != nil {
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for i := range n {
		name := mesh.ClusterName(fmt.Sprintf("c%d", i))
		spoke, err := NewSpoke(SpokeConfig{
			ServerAddress: address, Cluster: name, UID: mesh.ClusterUID("uid-of-" + name), Version: "2.12.0", Inventory: newTestSource(),
			Identity: &memory{st: StoredIdentity{Roots: roots, Token: "token"}}, OnDesired: func(context.Context, synclog.Changes) {},
		})
		if err != nil {
			cancel()
			return 2
		}
		group.Go(func() { _ = spoke.Run(ctx) })
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	group.Wait()
	return 0
}

func memoryInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
