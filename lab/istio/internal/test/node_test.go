package test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"istio.io/istio/pkg/workloadapi"

	"ambitmesh.dev/ambit/lab/istio/internal/ztunnel"
)

// node hands Pods to ztunnel, as the lab's node does.
type node struct {
	t    *testing.T
	path string
	mu   sync.Mutex
	pods map[string]*pod
	cs   map[*net.UnixConn]bool
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, path: filepath.Join(t.TempDir(), "ztunnel.sock"), pods: map[string]*pod{}, cs: map[*net.UnixConn]bool{}}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: n.path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); n.hangUp() })
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			n.mu.Lock()
			n.cs[c] = true
			for _, uid := range slices.Sorted(maps.Keys(n.pods)) {
				n.tell(c, n.pods[uid].added(), n.pods[uid].fds)
			}
			n.mu.Unlock()
		}
	}()
	return n
}

// tell sends one message. n.mu is held.
func (n *node) tell(c *net.UnixConn, message []byte, fds []int) {
	if _, _, err := c.WriteMsgUnix(message, unix.UnixRights(fds...), nil); err != nil {
		delete(n.cs, c)
	}
}

// say tells everybody something.
func (n *node) say(message string, fds ...int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.cs {
		n.tell(c, []byte(message), fds)
	}
}

func (n *node) add(p *pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods[p.UID] = p
	for c := range n.cs {
		n.tell(c, p.added(), p.fds)
	}
}

// forget says nothing: ztunnel is to find out when it comes again.
func (n *node) forget(p *pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, p.UID)
}

func (n *node) leave(p *pod) {
	n.forget(p)
	n.say(fmt.Sprintf(`{"Op":"remove","UID":%q}`, p.UID))
}

// hangUp closes every connection; ztunnel comes again.
func (n *node) hangUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.cs {
		_ = c.Close()
		delete(n.cs, c)
	}
}

// pod is a captured Pod whose application listens on IP:8080.
type pod struct {
	UID, Namespace, Name, ServiceAccount, IP string

	app      *counted
	outbound string
	files    []*os.File // its network namespace, inbound, outbound
	// Of files. Taken once, because Fd makes a socket blocking, for whoever has
	// it: ztunnel, in the middle of an accept, would not notice that it is closed.
	fds []int
}

func (p *pod) added() []byte {
	out, _ := json.Marshal(map[string]string{
		"Op": "add", "UID": p.UID, "Namespace": p.Namespace, "Name": p.Name, "ServiceAccount": p.ServiceAccount, "IP": p.IP,
	})
	return out
}

// mesh is a ztunnel with its istiod and its node.
type mesh struct {
	*istiod
	*node
	t       *testing.T
	ns      *os.File
	network string
	prefix  string // of addresses
	zt      *ztunnel.Ztunnel
	end     context.CancelFunc
	ended   chan struct{} // closed when ztunnel has
}

var meshes atomic.Int64

// newMesh starts one whose Pods have addresses of their own, on a network.
func newMesh(t *testing.T, ca *authority, network string) *mesh {
	t.Helper()
	ns := ownNetns(t)
	m := &mesh{istiod: newIstiod(t, ca), node: newNode(t), t: t, ns: ns, network: network, prefix: fmt.Sprintf("127.3.%d.", meshes.Add(1))}
	m.zt = ztunnel.New(ztunnel.Config{
		ClusterID: "c1", Network: network, TrustDomain: "cluster.local", Socket: m.path, Identity: m.svidConfig(""), Log: discard,
	})
	ctx, cancel := context.WithCancel(context.Background())
	m.end, m.ended = cancel, make(chan struct{})
	go func() {
		defer close(m.ended)
		if err := m.zt.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { m.end(); <-m.ended })
	return m
}

// pod makes a Pod ns/name with an account and a last octet, without telling anybody.
func (m *mesh) pod(namespace, name, account string, octet int) *pod {
	m.t.Helper()
	return m.podIn(m.ns, namespace, name, account, octet)
}

// podIn is one whose application is in another network namespace.
func (m *mesh) podIn(ns *os.File, namespace, name, account string, octet int) *pod {
	m.t.Helper()
	p := &pod{UID: namespace + "-" + name, Namespace: namespace, Name: name, ServiceAccount: account, IP: fmt.Sprint(m.prefix, octet)}
	inNetns(m.t, ns, func() error {
		l, err := net.Listen("tcp", net.JoinHostPort(p.IP, "8080"))
		if err != nil {
			return err
		}
		p.app = serveApp(m.t, l, func(c net.Conn) {
			_, _ = fmt.Fprintf(c, "%s/%s\n", namespace, name)
			_, _ = io.Copy(c, c)
		})
		return nil
	})
	p.files = []*os.File{ns}
	for _, address := range []string{net.JoinHostPort(p.IP, "15008"), "127.0.0.1:0"} {
		l := listen(m.t, address)
		p.outbound = l.Addr().String()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			m.t.Fatal(err)
		}
		_ = l.Close()
		p.files = append(p.files, f)
		m.t.Cleanup(func() { _ = f.Close() })
	}
	for _, f := range p.files {
		p.fds = append(p.fds, int(f.Fd()))
	}
	return p
}

// workloadOf is what istiod says of a Pod.
func (m *mesh) workloadOf(p *pod, change ...func(*workloadapi.Workload)) *workloadapi.Workload {
	return workload(p.Name, p.IP, append([]func(*workloadapi.Workload){func(w *workloadapi.Workload) {
		w.Uid, w.Namespace, w.ServiceAccount, w.Network = "c1//Pod/"+p.Namespace+"/"+p.Name, p.Namespace, p.ServiceAccount, m.network
	}}, change...)...)
}

// join captures a Pod and has istiod tell of it.
func (m *mesh) join(p *pod, change ...func(*workloadapi.Workload)) *pod {
	m.t.Helper()
	m.put(m.workloadOf(p, change...))
	m.add(p)
	return p
}

// answer is what a Pod gets to a CONNECT.
type answer struct {
	Status                 int
	Verdict, Path, Greeter string
}

// stream is a connection through the mesh.
type stream struct {
	net.Conn
	in *bufio.Reader
}

func (s *stream) Read(p []byte) (int, error) { return s.in.Read(p) }

// dial asks the Pod's ztunnel for a target, as applications of the lab do.
func (p *pod) dial(t *testing.T, target, gateway string) (answer, *stream) {
	t.Helper()
	c, err := net.DialTimeout("tcp", p.outbound, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{}}
	if gateway != "" {
		req.Header.Set("X-Lab-Gateway", gateway)
	}
	if err := req.Write(c); err != nil {
		t.Fatal(err)
	}
	s := &stream{c, bufio.NewReader(c)}
	resp, err := http.ReadResponse(s.in, req)
	if err != nil {
		t.Fatal(err)
	}
	got := answer{Status: resp.StatusCode, Verdict: resp.Header.Get("X-Lab-Verdict"), Path: resp.Header.Get("X-Lab-Path")}
	if got.Status != http.StatusOK {
		_ = c.Close()
		return got, nil
	}
	if len(resp.TransferEncoding) > 0 || resp.ContentLength >= 0 {
		t.Errorf("a tunnel is framed: %v %v (RFC 9110 9.3.6)", resp.TransferEncoding, resp.Header)
	}
	line, err := s.in.ReadString('\n')
	if err != nil {
		t.Errorf("greeting: %v", err)
	}
	got.Greeter = line[:max(0, len(line)-1)]
	return got, s
}

// call is dial and done.
func (p *pod) call(t *testing.T, target string) answer {
	t.Helper()
	got, s := p.dial(t, target, "")
	if s != nil {
		_ = s.Close()
	}
	return got
}

// reaches waits until a call is answered with a status.
func (p *pod) reaches(t *testing.T, target string, status int) answer {
	t.Helper()
	var got answer
	eventually(t, fmt.Sprintf("%s to %s: %d", p.Name, target, status), func() bool {
		got = p.call(t, target)
		return got.Status == status
	})
	return got
}
