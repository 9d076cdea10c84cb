package cli

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"ambitmesh.dev/ambit/internal/mesh"
)

// podServer plays the API server and the kubelet for pods/portforward, over real HTTP and real SPDY; behind it is a real HTTP server.
type podServer struct {
	t          *testing.T
	pods       []corev1.Pod
	denyPods   bool
	denyPort   bool
	target     string // address of what listens in the Pod, empty: nothing
	kubeconfig string
	mu         sync.Mutex
	ports      []string // asked for
}

func newPodServer(t *testing.T, answer http.HandlerFunc) *podServer {
	t.Helper()
	s := &podServer{t: t}
	if answer != nil {
		inPod := httptest.NewServer(answer)
		t.Cleanup(inPod.Close)
		s.target = inPod.Listener.Addr().String()
	}
	api := httptest.NewServer(s)
	t.Cleanup(api.Close)
	config := clientcmdapi.NewConfig()
	config.Clusters["mgmt"] = &clientcmdapi.Cluster{Server: api.URL}
	config.AuthInfos["mgmt"] = &clientcmdapi.AuthInfo{}
	config.Contexts["mgmt"] = &clientcmdapi.Context{Cluster: "mgmt", AuthInfo: "mgmt"}
	config.CurrentContext = "mgmt"
	s.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, s.kubeconfig); err != nil {
		t.Fatal(err)
	}
	s.pods = []corev1.Pod{serverPod("gloo-mesh-mgmt-server-standby", false), serverPod("gloo-mesh-mgmt-server-leader", true)}
	return s
}

func serverPod(name string, ready bool) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": serverName}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

func (s *podServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply := func(v any, code int) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	deny := func(resource string) {
		status := apierrors.NewForbidden(corev1.Resource(resource), "", fmt.Errorf("user jane cannot do that")).Status()
		status.Kind, status.APIVersion = "Status", "v1"
		reply(status, http.StatusForbidden)
	}
	switch {
	case r.URL.Path == "/api/v1/namespaces/gloo-mesh/pods" && s.denyPods:
		deny("pods")
	case r.URL.Path == "/api/v1/namespaces/gloo-mesh/pods" && r.URL.Query().Get("labelSelector") == "app="+serverName:
		reply(corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: s.pods}, http.StatusOK)
	case r.URL.Path == "/api/v1/namespaces/gloo-mesh/pods/gloo-mesh-mgmt-server-leader/portforward" && s.denyPort:
		deny("pods/portforward")
	case r.URL.Path == "/api/v1/namespaces/gloo-mesh/pods/gloo-mesh-mgmt-server-leader/portforward" && r.Method == http.MethodPost:
		s.forward(w, r)
	default:
		reply(apierrors.NewNotFound(corev1.Resource("pods"), r.URL.Path).Status(), http.StatusNotFound)
	}
}

// forward does what the kubelet does: it pairs the two streams of a request and joins the data stream with the port.
func (s *podServer) forward(w http.ResponseWriter, r *http.Request) {
	if _, err := httpstream.Handshake(r, w, []string{portForwardProtocol}); err != nil {
		s.t.Error(err)
		return
	}
	streams := make(chan httpstream.Stream, 2)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, replySent <-chan struct{}) error {
		streams <- stream
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	var data, errs httpstream.Stream
	for data == nil || errs == nil {
		select {
		case stream := <-streams:
			if stream.Headers().Get(corev1.StreamType) == corev1.StreamTypeData {
				data = stream
			} else {
				errs = stream
			}
		case <-conn.CloseChan():
			return
		}
	}
	s.mu.Lock()
	s.ports = append(s.ports, data.Headers().Get(corev1.PortHeader))
	s.mu.Unlock()
	var pod net.Conn
	err := fmt.Errorf("failed to connect to localhost:9093 inside namespace: connection refused")
	if s.target != "" {
		pod, err = net.Dial("tcp", s.target)
	}
	if err != nil {
		fmt.Fprintf(errs, "error forwarding port 9093 to pod: %v", err)
		_ = errs.Close()
		<-conn.CloseChan()
		return
	}
	defer pod.Close()
	_ = errs.Close()
	go func() { _, _ = io.Copy(pod, data) }()
	_, _ = io.Copy(data, pod)
	_ = data.Close()
	<-conn.CloseChan()
}

func (s *podServer) meshctl(args ...string) result {
	s.t.Helper()
	var out, errs bytes.Buffer
	code := Run(s.t.Context(), append([]string{"--kubeconfig", s.kubeconfig}, args...), Streams{Out: &out, Err: &errs})
	s.t.Logf("meshctl %s: exit %d\n%s%s", strings.Join(args, " "), code, &out, &errs)
	return result{code, out.String(), errs.String()}
}

func serve(t *testing.T, s *mesh.Snapshot) http.HandlerFunc {
	raw, err := json.Marshal(savedSnapshot{Snapshot: s, TakenAt: time.Date(2026, 5, 15, 8, 14, 33, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/snapshot" {
			http.NotFound(w, r)
			return
		}
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			t.Error("a large snapshot is asked for without compression")
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(raw)
		_ = z.Close()
	}
}

func TestSnapshotOverPortForward(t *testing.T) {
	want := testSnapshot()
	for i := range 5000 { // more than one SPDY window
		want.Clusters[0].Inventory.Namespaces["billing"].Workloads = append(want.Clusters[0].Inventory.Namespaces["billing"].Workloads, mesh.Workload{Namespace: "billing", Kind: "Deployment", Name: fmt.Sprint("w", i)})
	}
	s := newPodServer(t, serve(t, want))
	file := filepath.Join(t.TempDir(), "snapshot.json")
	r := s.meshctl("policy", "snapshot", "-o", file)
	if r.code != ExitOK || !strings.Contains(r.err, "2 clusters and 1 policy, taken at 2026-05-15T08:14:33Z") {
		t.Fatalf("exit %d", r.code)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSnapshot(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Snapshot, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", info.Mode(), err)
	}
	if r = s.meshctl("policy", "snapshot"); r.code != ExitOK || r.out != string(raw) {
		t.Errorf("on standard output: exit %d, the same: %v", r.code, r.out == string(raw))
	}
	if diff := cmp.Diff([]string{"9093", "9093"}, s.ports); diff != "" {
		t.Error(diff)
	}
}

func TestSnapshotNotToBeHad(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		change func(*podServer)
		want   []string
	}{
		"may not list pods":     {change: func(s *podServer) { s.denyPods = true }, want: []string{"you may not", `list pods in namespace "gloo-mesh"`}},
		"may not forward":       {change: func(s *podServer) { s.denyPort = true }, want: []string{"you may not", `create pods/portforward in namespace "gloo-mesh"`}},
		"no server":             {change: func(s *podServer) { s.pods = nil }, want: []string{"no management server in namespace", "--mgmt-context", "--snapshot FILE"}},
		"none is ready":         {change: func(s *podServer) { s.pods = s.pods[:1] }, want: []string{"gloo-mesh-mgmt-server-standby is Running", "meshctl check"}},
		"nothing listens":       {want: []string{"older than this meshctl", "meshctl install"}},
		"listens, no such path": {answer: http.NotFound, want: []string{"older than this meshctl"}},
		"not warm yet": {answer: func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "nothing is known yet", http.StatusServiceUnavailable)
		}, want: []string{"Service Unavailable", "nothing is known yet"}},
		"something else listens": {answer: func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, want: []string{"not a snapshot"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newPodServer(t, tc.answer)
			if tc.change != nil {
				tc.change(s)
			}
			r := s.meshctl("policy", "snapshot")
			if r.code != ExitFailed || r.out != "" {
				t.Errorf("exit %d, output %q", r.code, r.out)
			}
			for _, w := range tc.want {
				if !strings.Contains(r.err, w) {
					t.Errorf("the message does not say %q", w)
				}
			}
		})
	}
}

func TestParseSnapshot(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                                 "not a snapshot",
		`[]`:                                 "not a snapshot",
		`kind: Pod`:                          "not a snapshot",
		`{"snapshot":{"Clusters":[`:          "ends in the middle",
		`{"takenAt":"2026-01-01T00:00:00Z"}`: "not a snapshot",
	} {
		if _, err := parseSnapshot([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}
