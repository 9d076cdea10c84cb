package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
	"ambitmesh.dev/ambit/lab/internal/node/volume"
)

// pod is one Pod on this node, from its creation to the end of its last process.
type pod struct {
	node *provider
	uid  types.UID
	dir  string // private to the Pod

	ip      netip.Addr
	netns   *os.File
	volumes *volume.Set

	// configChanged fires when a Secret, ConfigMap or the Pod itself has changed.
	configChanged broadcast
	dirty         chan struct{} // capacity 1: the status wants to be reported
	end           context.CancelFunc
	ended         chan struct{}

	mu         sync.Mutex
	api        *corev1.Pod // never modified, only replaced
	refs       map[string]bool
	init, main []*container
	state      podState // the fields that do not follow from containers
	deleteBy   time.Time
	deleting   bool
}

func newPod(n *provider, api *corev1.Pod) *pod {
	p := &pod{
		node: n, uid: api.UID, dir: filepath.Join(n.cfg.StateDir, "pods", string(api.UID)),
		dirty: make(chan struct{}, 1), ended: make(chan struct{}),
		api: api, refs: references(api),
	}
	p.volumes = volume.NewSet(filepath.Join(p.dir, "volumes"), filepath.Join(n.cfg.StateDir, "host"))
	p.state.started = metav1.Now()
	if api.Status.StartTime != nil {
		p.state.started = *api.Status.StartTime
	}
	p.state.previous = api.Status.Conditions
	for i := range api.Spec.InitContainers {
		c := &api.Spec.InitContainers[i]
		r := roleInit
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			r = roleSidecar
		}
		p.init = append(p.init, p.newContainer(c, r, api.Status.InitContainerStatuses))
	}
	for i := range api.Spec.Containers {
		p.main = append(p.main, p.newContainer(&api.Spec.Containers[i], roleMain, api.Status.ContainerStatuses))
	}
	return p
}

// newContainer takes over the restart count that an earlier run of this node has reported.
func (p *pod) newContainer(c *corev1.Container, r role, former []corev1.ContainerStatus) *container {
	no := false
	out := &container{pod: p, name: c.Name, role: r}
	out.status = corev1.ContainerStatus{Name: c.Name, Image: c.Image, State: waiting("PodInitializing", ""), Started: &no}
	if r != roleMain || len(p.api.Spec.InitContainers) == 0 {
		out.status.State = waiting("ContainerCreating", "")
	}
	for _, f := range former {
		if f.Name != c.Name || f.ContainerID == "" {
			continue
		}
		out.status.RestartCount = f.RestartCount + 1
		out.status.LastTerminationState = f.LastTerminationState
		if run := f.State.Running; run != nil {
			out.status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
				ExitCode: 137, Reason: "NodeRestarted", StartedAt: run.StartedAt, FinishedAt: metav1.Now(), ContainerID: f.ContainerID,
			}
		} else if f.State.Terminated != nil {
			out.status.LastTerminationState = f.State
		}
	}
	return out
}

func (p *pod) key() string { return p.current().Namespace + "/" + p.current().Name }

// current is the Pod as last seen, with the addresses this node has given it. It must not be modified.
func (p *pod) current() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.api
}

// read calls f with the Pod's lock held.
func (p *pod) read(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// update calls f with the Pod's lock held and then reports the status.
func (p *pod) update(f func()) {
	p.read(f)
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

func (p *pod) event(kind, reason, format string, args ...any) {
	p.node.events.Eventf(p.current(), kind, reason, format, args...)
}

// grace is how long a container that is told to end now may take.
func (p *pod) grace() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deleting {
		return max(0, time.Until(p.deleteBy))
	}
	grace := 30 * time.Second
	if s := p.api.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = secondsOf(*s)
	}
	if p.node.ctx.Err() != nil {
		return min(grace, shutdownGrace)
	}
	return grace
}

// shutdownGrace bounds how long a Pod may hold up the end of the whole node.
const shutdownGrace = 3 * time.Second

func secondsOf(n int64) time.Duration { return time.Duration(n) * time.Second }

// replace takes over a changed Pod object.
func (p *pod) replace(api *corev1.Pod) {
	var restart []*container
	p.update(func() {
		for _, c := range append(append([]*container{}, p.init...), p.main...) {
			was, is := c.spec(p.api), c.spec(api)
			if is != nil && was != nil && is.Image != was.Image {
				c.status.Image = is.Image
				restart = append(restart, c)
			}
		}
		api = api.DeepCopy()
		if p.ip.IsValid() {
			p.node.address(&api.Status, p.ip)
		}
		p.api, p.refs = api, references(api)
	})
	p.node.mesh.look(p)
	for _, c := range restart {
		c.restart(fmt.Errorf("the image of container %s has changed", c.name))
	}
	p.configChanged.fire()
}

// delete starts the Pod's end, or hastens it.
func (p *pod) delete(grace time.Duration) {
	p.update(func() {
		by := time.Now().Add(grace)
		if !p.deleting || by.Before(p.deleteBy) {
			p.deleteBy = by
		}
		p.deleting = true
	})
	p.end()
}

// run is the life of the Pod; ctx ends with the Pod's deletion.
func (p *pod) run(ctx context.Context) {
	defer close(p.ended)
	reporting, stopReporting := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { p.reportLoop(reporting) })
	p.live(ctx)
	p.cleanNetwork()
	stopReporting()
	wg.Wait()
}

func (p *pod) live(ctx context.Context) {
	next, ok := p.prepare(ctx)
	if !ok {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { p.refreshVolumes(background, next) })

	sidecars := &sidecarGroup{}
	running, stop := p.withDeadline(ctx)
	defer stop()
	if p.runInit(running, sidecars) {
		var mains sync.WaitGroup
		for _, c := range p.main {
			mains.Go(func() { c.run(running) })
		}
		mains.Wait()
	}
	sidecars.stop()
	if ctx.Err() == nil {
		<-ctx.Done() // finished, but the object and the logs stay until it is deleted
	}
}

// withDeadline ends the Pod's containers, and fails the Pod, when activeDeadlineSeconds have passed.
func (p *pod) withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	seconds := p.current().Spec.ActiveDeadlineSeconds
	if seconds == nil {
		return ctx, cancel
	}
	timer := time.AfterFunc(time.Until(p.state.started.Add(secondsOf(*seconds))), func() {
		if ctx.Err() == nil {
			p.update(func() { p.state.deadline = true })
			p.event(corev1.EventTypeNormal, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
			cancel()
		}
	})
	return ctx, func() { timer.Stop(); cancel() }
}

// sidecarGroup runs restartable init containers until the main containers have ended.
type sidecarGroup struct {
	cancels []context.CancelFunc
	done    []chan struct{}
}

func (g *sidecarGroup) start(ctx context.Context, c *container) {
	// The Pod's end must not end the sidecar before the main containers.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); c.run(ctx) }()
	g.cancels, g.done = append(g.cancels, cancel), append(g.done, done)
}

// stop ends the sidecars in reverse order.
func (g *sidecarGroup) stop() {
	for i, cancel := range slices.Backward(g.cancels) {
		cancel()
		<-g.done[i]
	}
}

// runInit runs the init containers in order; false means that the Pod ended or failed for good.
func (p *pod) runInit(ctx context.Context, sidecars *sidecarGroup) bool {
	for _, c := range p.init {
		if c.role == roleSidecar {
			sidecars.start(ctx, c)
			if !p.awaitStarted(ctx, c) {
				return false
			}
			continue
		}
		exit := c.run(ctx)
		if ctx.Err() != nil {
			return false
		}
		if exit != 0 {
			p.update(func() { p.state.initBad = true })
			return false
		}
		p.update(func() { c.status.Ready = true })
	}
	p.update(func() {
		p.state.initOK = true
		for _, c := range p.main {
			c.status.State = waiting("ContainerCreating", "")
		}
	})
	return true
}

func (p *pod) awaitStarted(ctx context.Context, c *container) bool {
	for {
		started := false
		p.read(func() { started = c.status.Started != nil && *c.status.Started })
		if started {
			return true
		}
		if !wait(ctx, 50*time.Millisecond, nil) {
			return false
		}
	}
}

// prepare makes the Pod's network and volumes, trying again until they are there. next is when a token is to be renewed.
func (p *pod) prepare(ctx context.Context) (next time.Time, ok bool) {
	for {
		err := p.setupNetwork()
		if err == nil {
			p.node.mesh.look(p)
			err = p.writeFiles()
		}
		if err == nil {
			break
		}
		p.event(corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		if !wait(ctx, time.Second, nil) {
			return time.Time{}, false
		}
	}
	last := ""
	for {
		changed := p.configChanged.wait()
		next, err := p.volumes.Sync(ctx, p.node.source, p.current(), time.Now())
		if err == nil {
			p.update(func() { p.state.sandbox = true })
			return next, true
		}
		if err.Error() != last {
			last = err.Error()
			p.event(corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed: %v", err)
		}
		if !wait(ctx, 2*time.Second, changed) {
			return time.Time{}, false
		}
	}
}

// volumeLagAnnotation of a Pod delays changes of what it mounts ("60s"). Real kubelets take up to 90 s, each its own time; here it is
// milliseconds otherwise.
const volumeLagAnnotation = "lab.ambitmesh.dev/volume-lag"

// refreshVolumes writes changed Secrets, ConfigMaps, labels and tokens into the running Pod.
func (p *pod) refreshVolumes(ctx context.Context, next time.Time) {
	changed := p.configChanged.wait()
	for {
		pause := time.Hour
		if !next.IsZero() {
			pause = min(pause, max(time.Until(next), 0))
		}
		if !wait(ctx, pause, changed) {
			return
		}
		if lag, err := time.ParseDuration(p.current().Annotations[volumeLagAnnotation]); err == nil && !wait(ctx, lag, nil) {
			return
		}
		changed = p.configChanged.wait()
		var err error
		if next, err = p.volumes.Sync(ctx, p.node.source, p.current(), time.Now()); err != nil && ctx.Err() == nil {
			// The content that is there stays, as with the kubelet.
			p.event(corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed: %v", err)
		}
	}
}

func (p *pod) setupNetwork() error {
	if p.netns != nil { // only this goroutine sets it
		return nil
	}
	api := p.current()
	if api.Spec.HostNetwork {
		ns, err := os.Open("/proc/self/ns/net")
		if err != nil {
			return err
		}
		p.setAddress(ns, p.node.cfg.NodeIP)
		return nil
	}
	ip, err := p.node.takeAddress(api)
	if err != nil {
		return err
	}
	ns, err := sandbox.NewNetNS()
	if err == nil {
		err = attachPod(ns, linkName(p.node.cfg.ClusterIndex, ip), ip, p.node.cfg.NodeIP)
	}
	if err != nil {
		if ns != nil {
			ns.Close()
		}
		p.node.pool.give(ip)
		return err
	}
	p.setAddress(ns, ip)
	return nil
}

// linkName is unique in the lab: v<cluster>-<pod address in hexadecimal>; interface names have at most 15 characters.
func linkName(cluster int, ip netip.Addr) string {
	b := ip.As4()
	return fmt.Sprintf("v%d-%02x%02x", cluster, b[2], b[3])
}

func (p *pod) setAddress(ns *os.File, ip netip.Addr) {
	p.update(func() {
		p.netns, p.ip = ns, ip
		api := p.api.DeepCopy()
		p.node.address(&api.Status, ip)
		p.api = api
		p.state.podIP, p.state.hostIP = ip.String(), p.node.cfg.NodeIP.String()
	})
}

func (p *pod) cleanNetwork() {
	var ns *os.File
	p.read(func() { ns, p.netns = p.netns, nil })
	if ns == nil {
		return
	}
	p.node.mesh.look(p)
	defer ns.Close()
	if p.ip == p.node.cfg.NodeIP {
		return
	}
	// The namespace takes the pair away later; until then people would wait for a dead address instead of being told.
	if link, err := netlink.LinkByName(linkName(p.node.cfg.ClusterIndex, p.ip)); err == nil {
		_ = netlink.LinkDel(link)
	}
	p.node.pool.give(p.ip)
}

func (p *pod) file(name string) string { return filepath.Join(p.dir, name) }

// writeFiles makes /etc/hosts and /etc/resolv.conf.
func (p *pod) writeFiles() error {
	api := p.current()
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	var hosts strings.Builder
	fmt.Fprintf(&hosts, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n", p.ip, hostname(api))
	for _, a := range api.Spec.HostAliases {
		fmt.Fprintf(&hosts, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	if err := os.WriteFile(p.file("hosts"), []byte(hosts.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(p.file("resolv.conf"), []byte(resolvConf(api, p.node.cfg.DNSIP, p.node.cfg.ClusterDomain)), 0o644)
}

// resolvConf is the Pod's resolver configuration. There is no resolver but the cluster's, so every policy but None uses it.
func resolvConf(pod *corev1.Pod, dns netip.Addr, domain string) string {
	var servers, search, options []string
	if pod.Spec.DNSPolicy != corev1.DNSNone {
		servers = []string{dns.String()}
		search = []string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}
		options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		servers = append(servers, c.Nameservers...)
		search = append(search, c.Searches...)
		for _, o := range c.Options {
			if o.Value != nil {
				options = append(options, o.Name+":"+*o.Value)
			} else {
				options = append(options, o.Name)
			}
		}
	}
	var b strings.Builder
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(options) > 0 {
		b.WriteString("options " + strings.Join(options, " ") + "\n")
	}
	return b.String()
}
