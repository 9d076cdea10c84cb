package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/lab/internal/addons"
	"ambitmesh.dev/ambit/lab/internal/control"
	"ambitmesh.dev/ambit/lab/internal/node"
	"ambitmesh.dev/ambit/lab/internal/state"
)

const (
	controlPlaneTimeout = 2 * time.Minute
	stopTimeout         = 15 * time.Second
)

// daemon is a running lab.
type daemon struct {
	dir      state.Dir
	lab      *state.Lab
	log      *slog.Logger
	progress *progress
	super    *supervisor
	stop     context.CancelFunc

	mu      sync.Mutex
	clients map[string]dynamic.Interface
	pods    map[string]*node.Access // by cluster
}

// Run is the hidden command `lab daemon`: it returns when the lab has been
// taken down, by request or by SIGTERM.
func Run(dir state.Dir) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	lab, err := dir.Load()
	if err != nil {
		return err
	}
	socket, ui, apis, err := inherit(len(lab.Clusters))
	if err != nil {
		return err
	}
	if err := enter(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	d := &daemon{
		dir: dir, lab: lab, log: log, progress: newProgress(), super: &supervisor{}, stop: stop,
		clients: map[string]dynamic.Interface{}, pods: map[string]*node.Access{},
	}
	for _, c := range lab.Clusters {
		d.pods[c.Name] = &node.Access{}
	}
	go reap(ctx)
	srv := &http.Server{Handler: d.handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(socket) }()

	// Units outlive ctx: they are stopped in order, below.
	units, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	d.forward(ctx, ui, apis)
	if err := d.bringUp(ctx, units); err != nil && ctx.Err() == nil {
		log.Error("start failed", "error", err)
		d.progress.add(KindFailed, "", err.Error())
	}
	<-ctx.Done()
	log.Info("stopping")
	d.takeDown(units)
	_ = srv.Close()
	return nil
}

// forward connects the host's sockets with what they stand for.
func (d *daemon) forward(ctx context.Context, ui net.Listener, apis []net.Listener) {
	for i, l := range apis {
		target := d.cluster(d.lab.Clusters[i]).APIAddress()
		go forward(ctx, l, func(context.Context) (string, error) { return target, nil }, d.log)
	}
	go forward(ctx, ui, d.uiAddress, d.log)
}

// cluster is the control plane's view of a cluster.
func (d *daemon) cluster(c state.Cluster) control.Cluster {
	return control.Cluster{
		Name: c.Name, Index: c.Index, Dir: d.dir.Cluster(c.Name), PeopleDir: d.dir.People(),
		HostAddr: fmt.Sprintf("127.0.0.1:%d", c.Port),
	}
}

func (d *daemon) clusters() []control.Cluster {
	out := make([]control.Cluster, len(d.lab.Clusters))
	for i, c := range d.lab.Clusters {
		out[i] = d.cluster(c)
	}
	return out
}

// bringUp starts everything and returns when it is healthy.
func (d *daemon) bringUp(ctx, units context.Context) error {
	clusters := d.clusters()
	if err := d.prepare(clusters); err != nil {
		return err
	}
	d.super.add(units, newUnit("etcd", "", process(func() (*exec.Cmd, error) {
		return control.EtcdCommand(d.lab.Kube, d.dir.Etcd()), nil
	}, d.dir.LogOf("etcd"))))
	d.startKube(units, clusters)
	opts := addons.Options{SecretTTL: d.lab.SecretTTL, Traffic: d.lab.Traffic}
	if d.lab.Trust == state.TrustShared {
		root, err := addons.NewRoot(time.Now())
		if err != nil {
			return err
		}
		opts.Root = root
	}
	installer, err := addons.New(addons.Sources{IstioDir: d.lab.IstioDir, GatewayAPIDir: d.lab.GatewayDir}, opts)
	if err != nil {
		return err
	}
	plane := &managementPlane{
		ManagementPlane: addons.ManagementPlane{
			Bin: d.dir.Bin(), Kubeconfig: d.dir.InnerKubeconfig(), Mgmt: state.Mgmt, LogDir: d.dir.Logs(),
		},
		done: make(chan struct{}),
	}
	plane.wanted = !d.lab.NoMgmt && plane.Built()
	if !plane.wanted && !d.lab.NoMgmt {
		d.progress.step("", "without a management plane: this repository does not have its programs yet")
	}
	// A cluster that fails does not end the others: a person wants to look at what there is.
	errs := make([]error, len(clusters))
	var wg sync.WaitGroup
	for i, c := range clusters {
		wg.Go(func() { errs[i] = d.bringUpCluster(ctx, units, d.lab.Clusters[i], c, installer, plane) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if d.lab.Trust == state.TrustPolicy && plane.wanted {
		if err := plane.Trust(ctx, func(how string) { d.progress.step("", how) }); err != nil {
			return err
		}
	}
	d.progress.add(KindReady, "", "all healthy")
	return nil
}

// managementPlane is installed on one cluster while the others come up, which
// then register with it.
type managementPlane struct {
	addons.ManagementPlane
	wanted bool
	done   chan struct{} // closed when installed is known
	err    error         // of the installation
}

// prepare makes keys, certificates, kubeconfigs and the network.
func (d *daemon) prepare(clusters []control.Cluster) error {
	networks := make([]node.Network, len(clusters))
	for i, c := range clusters {
		networks[i] = node.NetworkOf(c.Index)
	}
	if err := node.SetupNetwork(networks...); err != nil {
		return err
	}
	var g errgroup.Group
	for i, c := range clusters {
		if i == 0 { // makes the people's authority, which the others share
			if err := control.Prepare(c); err != nil {
				return err
			}
			continue
		}
		g.Go(func() error { return control.Prepare(c) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := control.WriteKubeconfig(d.dir.Kubeconfig(), clusters); err != nil {
		return err
	}
	inside := append([]control.Cluster(nil), clusters...)
	for i := range inside {
		inside[i].HostAddr = inside[i].APIAddress()
	}
	if err := control.WriteKubeconfig(d.dir.InnerKubeconfig(), inside); err != nil {
		return err
	}
	d.progress.step("", "network and certificates")
	return nil
}

// startKube starts a process for each cluster, or one for all.
func (d *daemon) startKube(units context.Context, clusters []control.Cluster) {
	if d.lab.OneProcess {
		d.super.add(units, newUnit("kube", "", process(func() (*exec.Cmd, error) {
			return control.ClusterCommand(d.lab.Kube, clusters...)
		}, d.dir.LogOf("kube"))))
		return
	}
	for _, c := range clusters {
		name := "kube/" + c.Name
		d.super.add(units, newUnit(name, c.Name, process(func() (*exec.Cmd, error) {
			return control.ClusterCommand(d.lab.Kube, c)
		}, d.dir.LogOf(name))))
	}
}

// bringUpCluster brings one cluster up to its place in the mesh.
func (d *daemon) bringUpCluster(ctx, units context.Context, sc state.Cluster, c control.Cluster, in *addons.Installer, plane *managementPlane) error {
	err := d.equip(ctx, units, c, in)
	switch {
	case !plane.wanted:
		return err
	case c.Name == state.Mgmt:
		if err == nil {
			err = plane.Install(ctx)
		}
		plane.err = err
		close(plane.done)
		if err == nil {
			d.progress.step(c.Name, "management plane installed")
		}
		return err
	case err != nil || !sc.Registered:
		return err
	}
	select {
	case <-plane.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if plane.err != nil {
		return nil // reported once, by mgmt
	}
	if err := plane.Register(ctx, c.Name); err != nil {
		return err
	}
	d.progress.step(c.Name, "registered")
	return nil
}

// equip waits for the control plane, adds the node and, on a workload cluster,
// Istio and the demo.
func (d *daemon) equip(ctx, units context.Context, c control.Cluster, in *addons.Installer) error {
	wait, cancel := context.WithTimeoutCause(ctx, controlPlaneTimeout, fmt.Errorf("not ready after %s", controlPlaneTimeout))
	defer cancel()
	if err := control.WaitReady(wait, c); err != nil {
		return d.withUnitErrors(err, "etcd", "kube", "kube/"+c.Name)
	}
	d.progress.step(c.Name, "API server ready")
	name := "node/" + c.Name
	d.super.add(units, newUnit(name, c.Name, d.node(c)))
	cl := addons.Cluster{Name: c.Name, Kubeconfig: c.AdminKubeconfig()}
	var err error
	if c.Name == state.Mgmt {
		err = addons.NodeReady(ctx, cl, c.NodeName())
	} else {
		err = in.Install(ctx, cl, func(s addons.Step) { d.progress.step(s.Cluster, s.What) })
	}
	if err != nil {
		return d.withUnitErrors(err, "kube/"+c.Name, name)
	}
	return nil
}

// node is the runFunc of a cluster's node, which runs in this process.
func (d *daemon) node(c control.Cluster) runFunc {
	log, err := os.OpenFile(d.dir.LogOf("node/"+c.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return func(context.Context, func(int)) error { return err }
	}
	return func(ctx context.Context, started func(int)) error {
		started(0)
		return node.Run(ctx, node.Config{
			Name: c.NodeName(), ClusterName: c.Name, ClusterIndex: c.Index,
			Kubeconfig: c.NodeKubeconfig(), ImagesDir: d.dir.Images(), StateDir: c.Dir + "/node",
			NodeIP: c.NodeIP(), PodCIDR: c.PodCIDR(), LBCIDR: c.LBCIDR(), ServiceCIDR: c.ServiceCIDR(), DNSIP: c.DNSIP(),
			ClusterDomain: control.Domain, Access: d.pods[c.Name],
			KubeletCert: c.KubeletCert(), KubeletKey: c.KubeletKey(), ClientCA: c.KubeletClientCA(),
			Log: slog.New(slog.NewTextHandler(log, nil)),
		})
	}
}

// withUnitErrors adds why components that matter for err ended, if they did.
func (d *daemon) withUnitErrors(err error, names ...string) error {
	for _, u := range d.super.all() {
		for _, name := range names {
			u.mu.Lock()
			if u.name == name && u.lastErr != "" {
				err = errors.Join(err, fmt.Errorf("%s (restarted %d times): %s", u.name, u.restarts, u.lastErr))
			}
			u.mu.Unlock()
		}
	}
	return err
}

// takeDown stops Pods, then control planes, then etcd; what is late is killed
// by the kernel when this process ends.
func (d *daemon) takeDown(units context.Context) {
	ctx, cancel := context.WithTimeout(units, stopTimeout)
	defer cancel()
	is := func(prefix string) func(*unit) bool {
		return func(u *unit) bool { return strings.HasPrefix(u.name, prefix) }
	}
	d.super.stopAll(ctx, is("node"), is("kube"), is("etcd"))
}

// clusterOfService names the cluster whose kubernetes Service has an address.
func (d *daemon) clusterOfService(addr string) string {
	for _, c := range d.clusters() {
		if c.APIServiceIP().String() == addr {
			return c.Name
		}
	}
	return ""
}

// partition cuts the cluster with an index off, or joins it again.
func partition(index int, on bool) error { return node.Partition(index, on) }
