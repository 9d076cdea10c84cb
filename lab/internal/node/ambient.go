package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1listers "k8s.io/client-go/listers/core/v1"

	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
)

// Labels and annotation by which Pods join the ambient mesh, as istio-cni has them.
const (
	dataplaneLabel        = "istio.io/dataplane-mode" // of a namespace or a Pod: "ambient", or "none" to stay out
	redirectionAnnotation = "ambient.istio.io/redirection"
)

// Addresses inside a captured Pod.
const (
	inboundAddress  = ":15008"
	outboundAddress = "127.0.0.1:15001"
)

// ambient is the node's part of istio-cni: it opens the mesh's sockets inside every Pod that is to be in the mesh, hands them
// to ztunnel over a Unix socket, and marks the Pod as captured. There is no redirection: see the lab's README.
type ambient struct {
	n          *provider
	namespaces corev1listers.NamespaceLister

	marks chan mark

	mu       sync.Mutex
	captured map[types.UID]*capture
	peers    map[*net.UnixConn]bool
}

// mark is an annotation to be written.
type mark struct {
	api   *corev1.Pod
	value string // JSON
}

// capture is what ztunnel gets of one Pod. Lab module istio, internal/ztunnel/feed.go, reads it; the two must agree.
type capture struct {
	message []byte
	files   []*os.File // the Pod's network namespace, its inbound and its outbound listener
	// fds are the files' numbers, taken once: File.Fd makes a socket blocking, also for those who have been handed it and wait in the poller.
	fds []int
}

type ambientMessage struct {
	Op                                       string // "add" or "remove"
	UID, Namespace, Name, ServiceAccount, IP string
}

func newAmbient(n *provider, namespaces corev1listers.NamespaceLister) *ambient {
	return &ambient{n: n, namespaces: namespaces, marks: make(chan mark, 4096), captured: map[types.UID]*capture{}, peers: map[*net.UnixConn]bool{}}
}

// serve hands captured Pods to whoever connects, which is ztunnel.
func (a *ambient) serve(ctx context.Context) error {
	dir := filepath.Join(a.n.cfg.StateDir, "host/var/run/ztunnel")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/ztunnel.sock", d.Fd()) // a socket's path has at most 108 bytes
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go a.feed(ctx, c)
	}
}

// feed tells a peer of everything, and keeps it for what comes.
func (a *ambient) feed(ctx context.Context, c *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	a.mu.Lock()
	a.peers[c] = true
	for _, cap := range a.captured {
		a.tell(c, cap.message, cap.fds)
	}
	a.mu.Unlock()
	_, _ = c.Read(make([]byte, 1)) // it never says anything: this returns when it has gone
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.peers, c)
	_ = c.Close()
}

// tell sends one message; a peer that does not take it is cut off, and comes again for everything. a.mu is held.
func (a *ambient) tell(c *net.UnixConn, message []byte, fds []int) {
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := c.WriteMsgUnix(message, unix.UnixRights(fds...), nil); err != nil {
		a.n.log.Warn("ztunnel does not take a Pod", "err", err)
		delete(a.peers, c)
		_ = c.Close()
	}
}

// look brings a Pod into the mesh or out of it, as its labels and its namespace's say. It may be called at any time.
func (a *ambient) look(p *pod) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var ns *os.File
	p.read(func() { ns = p.netns })
	want := ns != nil && a.wants(p.current())
	switch _, has := a.captured[p.uid]; {
	case want && !has:
		if err := a.add(p, ns); err != nil {
			p.event(corev1.EventTypeWarning, "FailedCapture", "Failed to bring the Pod into the mesh: %v", err)
		}
	case !want && has:
		a.remove(p)
	}
}

func (a *ambient) wants(api *corev1.Pod) bool {
	if api.Spec.HostNetwork {
		return false
	}
	if mode, ok := api.Labels[dataplaneLabel]; ok {
		return mode == "ambient"
	}
	ns, err := a.namespaces.Get(api.Namespace)
	return err == nil && ns.Labels[dataplaneLabel] == "ambient"
}

// add opens the sockets of a Pod. a.mu is held.
func (a *ambient) add(p *pod, ns *os.File) error {
	c := &capture{}
	fail := func(err error) error {
		closeAll(c.files)
		return err
	}
	fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	c.files = append(c.files, os.NewFile(uintptr(fd), "netns"))
	for _, address := range []string{inboundAddress, outboundAddress} {
		f, err := listenIn(ns, address)
		if err != nil {
			return fail(err)
		}
		c.files = append(c.files, f)
	}
	api := p.current()
	account := api.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	m := ambientMessage{Op: "add", UID: string(p.uid), Namespace: api.Namespace, Name: api.Name, ServiceAccount: account, IP: p.ip.String()}
	if c.message, err = json.Marshal(m); err != nil {
		return fail(err)
	}
	for _, f := range c.files {
		c.fds = append(c.fds, int(f.Fd()))
	}
	a.captured[p.uid] = c
	for peer := range a.peers {
		a.tell(peer, c.message, c.fds)
	}
	a.mark(api, `"enabled"`)
	return nil
}

// remove takes a Pod out of the mesh. a.mu is held.
func (a *ambient) remove(p *pod) {
	c := a.captured[p.uid]
	delete(a.captured, p.uid)
	message, err := json.Marshal(ambientMessage{Op: "remove", UID: string(p.uid)})
	if err == nil {
		for peer := range a.peers {
			a.tell(peer, message, nil)
		}
	}
	closeAll(c.files)
	if api := p.current(); api.DeletionTimestamp == nil {
		a.mark(api, "null")
	}
}

// mark has the annotation written by which istiod knows that a Pod speaks HBONE.
func (a *ambient) mark(api *corev1.Pod, value string) {
	select {
	case a.marks <- mark{api, value}:
	default:
		a.n.log.Warn("too many Pods to mark at once", "pod", api.Namespace+"/"+api.Name)
	}
}

// annotate writes marks until ctx ends; a Pod may wait for those before it.
func (a *ambient) annotate(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-a.marks:
			patch := fmt.Appendf(nil, `{"metadata":{"uid":%q,"annotations":{%q:%s}}}`, m.api.UID, redirectionAnnotation, m.value)
			try, cancel := context.WithTimeout(ctx, time.Minute)
			err := retry(try, func() error {
				_, err := a.n.client.CoreV1().Pods(m.api.Namespace).Patch(try, m.api.Name, types.MergePatchType, patch, metav1.PatchOptions{})
				return err
			})
			cancel()
			if err != nil && ctx.Err() == nil {
				a.n.log.Warn("mark Pod as captured", "pod", m.api.Namespace+"/"+m.api.Name, "err", err)
			}
		}
	}
}

// lookAll looks at every Pod of a namespace; "" means all.
func (a *ambient) lookAll(namespace string) {
	for _, p := range a.n.list() {
		if namespace == "" || p.current().Namespace == namespace {
			a.look(p)
		}
	}
}

func listenIn(ns *os.File, address string) (*os.File, error) {
	var f *os.File
	err := sandbox.InNetNS(ns, func() error {
		l, err := net.Listen("tcp4", address) //nolint:noctx // returns at once
		if err != nil {
			return err
		}
		defer l.Close()
		tcp, ok := l.(*net.TCPListener)
		if !ok {
			return errors.New("not a TCP listener")
		}
		f, err = tcp.File()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket %s in the Pod: %w", address, err)
	}
	return f, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Access reaches into the Pods of a running node.
type Access struct {
	mu sync.Mutex
	n  *provider
}

func (a *Access) set(n *provider) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n = n
}

// Dial connects to address, a literal IP and port, from inside a Pod.
func (a *Access) Dial(ctx context.Context, namespace, name, address string) (net.Conn, error) {
	a.mu.Lock()
	n := a.n
	a.mu.Unlock()
	if n == nil {
		return nil, errors.New("the node does not run")
	}
	p := n.find(namespace, name)
	if p == nil {
		return nil, fmt.Errorf("no Pod %s/%s on this node", namespace, name)
	}
	var c net.Conn
	var ns *os.File
	p.read(func() { ns = p.netns })
	if ns == nil {
		return nil, fmt.Errorf("pod %s/%s has no network", namespace, name)
	}
	err := sandbox.InNetNS(ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}).DialContext(ctx, "tcp", address)
		return err
	})
	return c, err
}
