package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/gorilla/mux"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	utilexec "k8s.io/utils/exec"

	"ambitmesh.dev/ambit/lab/internal/node/logs"
	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
)

// As the kubelet's: a forwarded port may be idle for hours.
const (
	streamIdleTimeout     = 4 * time.Hour
	streamCreationTimeout = 30 * time.Second
)

// handler is the part of the kubelet's API that kubectl uses through the API server. The routes are set up here and not by
// api.PodHandler, which swaps the two time-outs of port-forward (an idle forward would end after 30 s) and can't tell
// `--tail=0` from no tail.
func (n *provider) handler() http.Handler {
	r := mux.NewRouter()
	r.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	r.HandleFunc("/pods", n.serveList).Methods(http.MethodGet)
	r.HandleFunc("/containerLogs/{namespace}/{pod}/{container}", n.serveLogs).Methods(http.MethodGet)
	r.HandleFunc("/exec/{namespace}/{pod}/{container}", api.HandleContainerExec(n.exec,
		api.WithExecStreamIdleTimeout(streamIdleTimeout), api.WithExecStreamCreationTimeout(streamCreationTimeout)))
	r.HandleFunc("/attach/{namespace}/{pod}/{container}", api.HandleContainerAttach(n.attach,
		api.WithExecStreamIdleTimeout(streamIdleTimeout), api.WithExecStreamCreationTimeout(streamCreationTimeout)))
	r.HandleFunc("/portForward/{namespace}/{pod}", api.HandlePortForward(n.portForward,
		api.WithPortForwardStreamIdleTimeout(streamIdleTimeout), api.WithPortForwardCreationTimeout(streamCreationTimeout)))
	return r
}

func (n *provider) serveList(w http.ResponseWriter, r *http.Request) {
	pods, err := n.GetPods(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	list := corev1.PodList{}
	for _, p := range pods {
		list.Items = append(list.Items, *p)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list)
}

// container finds a container by the names of a request.
func (n *provider) container(namespace, podName, name string) (*container, error) {
	p := n.find(namespace, podName)
	if p == nil {
		return nil, fmt.Errorf("pod %s/%s is not running on this node", namespace, podName)
	}
	for _, c := range append(append([]*container{}, p.main...), p.init...) {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %s is not valid for pod %s", name, podName)
}

func (n *provider) serveLogs(w http.ResponseWriter, r *http.Request) {
	vars := mux.Vars(r)
	c, err := n.container(vars["namespace"], vars["pod"], vars["container"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	q := r.URL.Query()
	o := logs.Options{Tail: -1, Follow: q.Get("follow") == "true", Timestamps: q.Get("timestamps") == "true"}
	if s := q.Get("tailLines"); s != "" {
		o.Tail, err = strconv.Atoi(s)
	}
	if s := q.Get("limitBytes"); s != "" && err == nil {
		o.LimitBytes, err = strconv.Atoi(s)
	}
	if s := q.Get("sinceSeconds"); s != "" && err == nil {
		var sec int64
		sec, err = strconv.ParseInt(s, 10, 64)
		o.Since = time.Now().Add(-secondsOf(sec))
	}
	if s := q.Get("sinceTime"); s != "" && err == nil {
		o.Since, err = time.Parse(time.RFC3339, s)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var log *logs.Log
	var state corev1.ContainerState
	previous := q.Get("previous") == "true"
	c.pod.read(func() { log, state = c.pick(previous), c.status.State })
	if log == nil {
		msg := fmt.Sprintf("container %q in pod %q is waiting to start", c.name, vars["pod"])
		if previous {
			msg = fmt.Sprintf("previous terminated container %q in pod %q not found", c.name, vars["pod"])
		} else if state.Waiting != nil {
			msg += ": " + state.Waiting.Reason
		}
		http.Error(w, msg, http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_ = log.Read(r.Context(), o, flusher{w})
}

// pick is the log that `kubectl logs` shows: of the present instance, or of the last one that ended. Guarded by pod.mu.
func (c *container) pick(previous bool) *logs.Log {
	if previous {
		return c.previous
	}
	return c.log
}

// flusher sends every write at once, for followers.
type flusher struct{ http.ResponseWriter }

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	if fl, ok := f.ResponseWriter.(http.Flusher); ok {
		fl.Flush()
	}
	return n, err
}

// attach shows what the container prints from now on. Containers of the lab have no standard input.
func (n *provider) attach(ctx context.Context, namespace, podName, name string, streams api.AttachIO) error {
	c, err := n.container(namespace, podName, name)
	if err != nil {
		return err
	}
	var log *logs.Log
	c.pod.read(func() { log = c.log })
	if log == nil || streams.Stdout() == nil {
		return fmt.Errorf("container %s has not started", name)
	}
	return log.Read(ctx, logs.Options{Tail: -1, Follow: true}, streams.Stdout())
}

// exec runs a command in a container.
func (n *provider) exec(ctx context.Context, namespace, podName, name string, command []string, streams api.AttachIO) error {
	c, err := n.container(namespace, podName, name)
	if err != nil {
		return err
	}
	if len(command) == 0 {
		return errors.New("no command")
	}
	proc, spec, err := c.execSpec(command, streams.TTY())
	if err != nil {
		return err
	}
	var io execIO
	defer io.close()
	if streams.TTY() {
		err = io.terminal(streams)
	} else {
		err = io.pipes(streams)
	}
	if err != nil {
		return err
	}
	run, err := sandbox.Exec(proc, spec, io.files)
	io.closeChildEnds()
	if err != nil {
		// What a shell would say, so that scripts see the usual exit code.
		if w := streams.Stderr(); w != nil {
			fmt.Fprintln(w, err)
		}
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code 126"), Code: 126}
	}
	stop := context.AfterFunc(ctx, func() { run.Signal(syscall.SIGKILL) })
	defer stop()
	io.start()
	<-run.Done()
	io.finish()
	if code := run.Exit().Code; code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// portForward connects stream with a port of the Pod, on its loopback first as the kubelet does, else on its address.
func (n *provider) portForward(ctx context.Context, namespace, podName string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	p := n.find(namespace, podName)
	if p == nil {
		return fmt.Errorf("pod %s/%s is not running on this node", namespace, podName)
	}
	conn, err := p.dial(ctx, strconv.Itoa(int(port)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.CloseWrite()
	}()
	// A connection that breaks is its own affair. An error told to kubectl would end the whole forward.
	_, _ = io.Copy(stream, conn)
	return nil
}

// dial connects to a port from inside the Pod's network namespace.
func (p *pod) dial(ctx context.Context, port string) (*net.TCPConn, error) {
	var first error
	for _, host := range []string{"127.0.0.1", p.current().Status.PodIP} {
		conn, err := p.dialHost(ctx, net.JoinHostPort(host, port))
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// socket makes a TCP socket in the Pod's network namespace; where it is used from does not matter then.
func (p *pod) socket() (fd int, err error) {
	p.read(func() {
		if p.netns == nil {
			err = errors.New("the Pod has no network: it is starting or has ended")
			return
		}
		err = sandbox.InNetNS(p.netns, func() error {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			return err
		})
	})
	return fd, err
}

func (p *pod) dialHost(ctx context.Context, addr string) (*net.TCPConn, error) {
	to, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	fd, err := p.socket()
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close()
	sa := &unix.SockaddrInet4{Port: to.Port}
	copy(sa.Addr[:], to.IP.To4())
	timeout := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return nil, fmt.Errorf("connect to %s inside the Pod: %w", addr, err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{})
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), ctx.Err()
}
