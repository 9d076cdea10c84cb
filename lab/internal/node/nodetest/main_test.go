package nodetest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ambitmesh.dev/ambit/lab/internal/build"
	"ambitmesh.dev/ambit/lab/internal/control"
	"ambitmesh.dev/ambit/lab/internal/node"
	"ambitmesh.dev/ambit/lab/internal/node/test/nstest"
)

const (
	kubeEnv    = "AMBIT_NODETEST_KUBE"
	kubectlEnv = "AMBIT_NODETEST_KUBECTL"
)

func TestMain(m *testing.M) {
	node.Init()
	os.Exit(run(m))
}

// run builds the control plane outside and then runs the tests inside namespaces.
func run(m *testing.M) int {
	if !nstest.Inside() {
		b, err := build.Ensure(context.Background(), build.Options{
			Root: "../../../..", Targets: []build.Target{build.Kube},
			Progress: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, "nodetest:", err)
			return 1
		}
		os.Setenv(kubeEnv, b.Kube)
		os.Setenv(kubectlEnv, b.Kubectl)
		return nstest.Main(m)
	}
	defer lab.stop()
	return nstest.Main(m)
}

// testLab is two clusters with a node each; it starts with the first test that needs it.
type testLab struct {
	once     sync.Once
	err      error
	dir      string
	clusters []control.Cluster
	stops    []func()
	cancel   context.CancelFunc
	nodes    sync.WaitGroup
	nodeErr  []error
}

var lab testLab

// clusters brings up the lab.
func clusters(t *testing.T) (a, b control.Cluster) {
	t.Helper()
	lab.once.Do(func() { lab.err = lab.start(t) })
	if lab.err != nil {
		t.Fatal(lab.err)
	}
	return lab.clusters[0], lab.clusters[1]
}

func (l *testLab) start(t *testing.T) error {
	var err error
	if l.dir, err = os.MkdirTemp("", "nodetest"); err != nil {
		return err
	}
	l.clusters = []control.Cluster{
		{Name: "mgmt", Index: 0, Dir: filepath.Join(l.dir, "clusters/mgmt"), HostAddr: "127.0.0.1:1"},
		{Name: "cluster-1", Index: 1, Dir: filepath.Join(l.dir, "clusters/cluster-1"), HostAddr: "127.0.0.1:2"},
	}
	if err := node.SetupNetwork(node.NetworkOf(0), node.NetworkOf(1)); err != nil {
		return err
	}
	for _, c := range l.clusters {
		if err := control.Prepare(c); err != nil {
			return err
		}
	}
	began := time.Now()
	etcd := filepath.Join(l.dir, "etcd")
	if err := os.MkdirAll(etcd, 0o755); err != nil {
		return err
	}
	if err := l.run(control.EtcdCommand(os.Getenv(kubeEnv), etcd), "etcd"); err != nil {
		return err
	}
	if err := l.startControlPlanes(); err != nil {
		return err
	}
	t.Logf("control planes ready after %v", time.Since(began))
	l.startNodes()
	return nil
}

func (l *testLab) startControlPlanes() error {
	cmd, err := control.ClusterCommand(os.Getenv(kubeEnv), l.clusters...)
	if err != nil {
		return err
	}
	if err := l.run(cmd, "control planes"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, c := range l.clusters {
		if err := control.WaitReady(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	return nil
}

// controlPlaneOutage kills the control planes, calls during, and starts them again.
func (l *testLab) controlPlaneOutage(during func()) error {
	last := len(l.stops) - 1
	l.stops[last]()
	l.stops = l.stops[:last]
	during()
	return l.startControlPlanes()
}

// startNodes runs a node per cluster in this process, as the lab's daemon does.
func (l *testLab) startNodes() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.nodeErr = make([]error, len(l.clusters))
	for i, c := range l.clusters {
		log, err := os.Create(filepath.Join(c.Dir, "node.log"))
		if err != nil {
			l.nodeErr[i] = err
			return
		}
		images := filepath.Join(l.dir, "images")
		_ = os.MkdirAll(images, 0o755)
		_ = os.Symlink(nstest.TestApp(), filepath.Join(images, "testapp"))
		cfg := node.Config{
			Name: c.NodeName(), ClusterName: c.Name, ClusterIndex: c.Index, Kubeconfig: c.NodeKubeconfig(),
			ImagesDir: images, StateDir: filepath.Join(c.Dir, "node"),
			NodeIP: c.NodeIP(), PodCIDR: c.PodCIDR(), LBCIDR: c.LBCIDR(), ServiceCIDR: c.ServiceCIDR(), DNSIP: c.DNSIP(),
			KubeletCert: c.KubeletCert(), KubeletKey: c.KubeletKey(), ClientCA: c.KubeletClientCA(),
			Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
		l.nodes.Go(func() {
			defer log.Close()
			if l.nodeErr[i] = node.Run(ctx, cfg); l.nodeErr[i] != nil {
				fmt.Fprintln(os.Stderr, "node ended:", l.nodeErr[i])
			}
		})
	}
}

func (l *testLab) stopNodes() {
	l.cancel()
	l.nodes.Wait()
}

func (l *testLab) run(cmd *exec.Cmd, name string) error {
	log, err := os.Create(filepath.Join(l.dir, strings.ReplaceAll(name, " ", "-")+".log"))
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	l.stops = append(l.stops, func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	})
	return nil
}

// stop ends all; the pid namespace would do so too.
func (l *testLab) stop() {
	if l.cancel != nil {
		l.stopNodes()
	}
	for _, stop := range slices.Backward(l.stops) {
		stop()
	}
	if l.dir != "" && os.Getenv("AMBIT_NODETEST_KEEP") == "" {
		os.RemoveAll(l.dir)
	}
}

func kubectlCmd(ctx context.Context, c control.Cluster, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Getenv(kubectlEnv), args...)
	cmd.Env = []string{"KUBECONFIG=" + c.AdminKubeconfig(), "HOME=" + lab.dir, "PATH=/usr/bin:/bin"}
	return cmd
}

// kubectl runs kubectl and returns what it printed; it fails the test when it fails.
func kubectl(t *testing.T, c control.Cluster, args ...string) string {
	t.Helper()
	out, err := tryKubectl(t, c, "", args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryKubectl(t *testing.T, c control.Cluster, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := kubectlCmd(ctx, c, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

func apply(t *testing.T, c control.Cluster, yaml string) {
	t.Helper()
	if out, err := tryKubectl(t, c, yaml, "apply", "-f", "-"); err != nil {
		t.Fatalf("apply: %v: %s", err, out)
	}
}

// eventually asks until the answer is want.
func eventually(t *testing.T, within time.Duration, want string, ask func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		got := ask()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %q, want %q after %v", got, want, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
