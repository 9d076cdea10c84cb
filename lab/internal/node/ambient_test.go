package node

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// hear reads one message of the node, with its files.
func hear(t *testing.T, c *net.UnixConn) (ambientMessage, []*os.File) {
	t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, 128)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatalf("nothing from the node: %v", err)
	}
	var m ambientMessage
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		t.Fatalf("%s: %v", buf[:n], err)
	}
	var files []*os.File
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "file"))
		}
	}
	return m, files
}

// TestAmbient: a Pod of a labelled namespace is captured and marked, its sockets are handed over and lead into the Pod; a second peer hears of it too; a
// label takes it out again.
func TestAmbient(t *testing.T) {
	w := newWorld(t, 1)
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	go func() { _ = w.node.mesh.serve(ctx) }()
	go func() { _ = w.node.mesh.annotate(ctx) }()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{dataplaneLabel: "ambient"}}}
	if _, err := w.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	connect := func() *net.UnixConn {
		dir := filepath.Join(w.node.cfg.StateDir, "host/var/run/ztunnel")
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: dir + "/ztunnel.sock", Net: "unixpacket"})
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	peer := connect()
	api := testServer("captured")
	api.Spec.ServiceAccountName = "sa"
	w.create(api)
	ip := w.until(api, "ready", isReady).PodIP
	m, files := hear(t, peer)
	want := ambientMessage{Op: "add", UID: string(api.UID), Namespace: "default", Name: "captured", ServiceAccount: "sa", IP: ip}
	if d := cmp.Diff(want, m); d != "" || len(files) != 3 {
		t.Fatalf("%d files, want 3; %s", len(files), d)
	}
	marked := func(value string) {
		t.Helper()
		wantSoon(t, value, func() string {
			p, err := w.client.CoreV1().Pods("default").Get(ctx, "captured", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			return p.Annotations[redirectionAnnotation]
		})
	}
	marked("enabled")
	inbound, err := net.FileListener(files[1])
	if err != nil {
		t.Fatal(err)
	}
	defer inbound.Close()
	go func() {
		if c, err := inbound.Accept(); err == nil {
			_, _ = io.WriteString(c, "from inside")
			_ = c.Close()
		}
	}()
	c, err := net.Dial("tcp", ip+":15008")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "from inside" {
		t.Errorf("%q, %v", got, err)
	}
	if m, files := hear(t, connect()); m != want || len(files) != 3 {
		t.Errorf("a later peer hears %+v with %d files", m, len(files))
	}
	access := &Access{}
	access.set(w.node)
	if c, err := access.Dial(ctx, "default", "captured", "127.0.0.1:8080"); err != nil {
		t.Errorf("dial from inside the Pod: %v", err)
	} else {
		_ = c.Close()
	}
	if _, err := access.Dial(ctx, "default", "nobody", "127.0.0.1:8080"); err == nil || !strings.Contains(err.Error(), "default/nobody") {
		t.Errorf("dial from nobody: %v", err)
	}

	out := api.DeepCopy()
	out.Labels[dataplaneLabel] = "none"
	if err := w.node.UpdatePod(ctx, out); err != nil {
		t.Fatal(err)
	}
	if m, _ := hear(t, peer); m != (ambientMessage{Op: "remove", UID: string(api.UID)}) {
		t.Errorf("after the label: %+v", m)
	}
	marked("")
}
