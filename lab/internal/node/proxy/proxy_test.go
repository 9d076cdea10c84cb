package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"ambitmesh.dev/ambit/lab/internal/node/test/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

var lbRange = netip.MustParsePrefix("10.10.64.0/18")

func service(name, clusterIP string, kind corev1.ServiceType) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
		Spec: corev1.ServiceSpec{
			Type: kind, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			Ports: []corev1.ServicePort{{Name: "p", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
}

func slice(svc string, port int32, ready bool, addrs ...string) *discoveryv1.EndpointSlice {
	name := "p"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: svc + fmt.Sprint(port, ready), Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: svc}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Port: &port}}, AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return s
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestRoutes(t *testing.T) {
	yes, no := true, false
	web, lb, headless, empty := service("web", "10.10.128.2", "ClusterIP"), service("lb", "10.10.128.3", "LoadBalancer"), service("headless", "None", "ClusterIP"), service("empty", "10.10.128.4", "ClusterIP")
	lb.Spec.Ports[0].NodePort = 30080
	kubernetes := service("kubernetes", "10.10.128.1", "ClusterIP")
	kubernetes.Namespace = "default"
	ending := slice("ending", 8080, false, "10.10.1.9")
	ending.Endpoints[0].Conditions.Serving, ending.Endpoints[0].Conditions.Terminating = &yes, &yes
	got := routes(
		[]*corev1.Service{web, lb, headless, empty, kubernetes, service("ending", "10.10.128.5", "ClusterIP")},
		[]*discoveryv1.EndpointSlice{
			slice("web", 8080, true, "10.10.1.2", "10.10.1.1"), slice("web", 8081, true, "10.10.1.3"), slice("web", 8080, no, "10.10.1.4"),
			slice("lb", 1, true, "10.10.1.1"), slice("headless", 1, true, "10.10.1.1"), slice("empty", 1, false, "10.10.1.1"), ending,
		},
		map[string]netip.Addr{"ns/lb": netip.MustParseAddr("10.10.64.1")},
		Config{NodeIP: netip.MustParseAddr("10.10.0.1"), APIServer: ap("10.10.0.1:6443")},
	)
	want := map[netip.AddrPort][]netip.AddrPort{
		ap("10.10.128.1:80"):  {ap("10.10.0.1:6443")},
		ap("10.10.128.2:80"):  {ap("10.10.1.1:8080"), ap("10.10.1.2:8080"), ap("10.10.1.3:8081")},
		ap("10.10.128.3:80"):  {ap("10.10.1.1:1")},
		ap("10.10.64.1:80"):   {ap("10.10.1.1:1")},
		ap("10.10.0.1:30080"): {ap("10.10.1.1:1")},
		ap("10.10.128.5:80"):  {ap("10.10.1.9:8080")},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPlan(t *testing.T) {
	at := func(s *corev1.Service, sec int64, ip string) *corev1.Service {
		s.CreationTimestamp = metav1.Unix(sec, 0)
		if ip != "" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
		}
		return s
	}
	class := "someone.else/lb"
	other := service("other", "10.10.128.9", "LoadBalancer")
	other.Spec.LoadBalancerClass = &class
	wish := service("wish", "10.10.128.8", "LoadBalancer")
	wish.Spec.LoadBalancerIP = "10.10.70.7"
	have, write := plan([]*corev1.Service{
		at(service("new", "10.10.128.2", "LoadBalancer"), 30, ""),
		at(service("kept", "10.10.128.3", "LoadBalancer"), 20, "10.10.64.1"),
		at(service("twin", "10.10.128.4", "LoadBalancer"), 25, "10.10.64.1"),
		at(service("foreign", "10.10.128.5", "LoadBalancer"), 40, "192.0.2.1"),
		at(service("plain", "10.10.128.6", "ClusterIP"), 10, ""),
		other, at(wish, 50, ""),
	}, lbRange)
	wantHave := map[string]string{"ns/kept": "10.10.64.1", "ns/twin": "10.10.64.2", "ns/new": "10.10.64.3", "ns/foreign": "10.10.64.4", "ns/wish": "10.10.70.7"}
	gotHave := map[string]string{}
	for k, v := range have {
		gotHave[k] = v.String()
	}
	if diff := cmp.Diff(wantHave, gotHave); diff != "" {
		t.Errorf("addresses (-want +got)\n%s", diff)
	}
	if _, ok := write["ns/kept"]; ok || len(write) != 4 {
		t.Errorf("to write: %v", write)
	}
}

// backend is a server on an address of its own that says its name, after the client has ended its side.
func backend(t *testing.T, addr, name string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c) // needs the half-close to come through
				fmt.Fprintf(c, "%s got %s", name, b)
			}()
		}
	}()
}

func ask(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Write([]byte("hi")); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestTraffic(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	_, all, _ := net.ParseCIDR("10.10.0.0/16")
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: all}); err != nil { // the whole range is local to the test
		t.Fatal(err)
	}
	backend(t, "10.10.1.1:8080", "one")
	backend(t, "10.10.1.2:8080", "two")

	client := fake.NewClientset(service("web", "10.10.128.2", "ClusterIP"))
	f := informers.NewSharedInformerFactory(client, 0)
	p, err := New(Config{
		NodeIP: netip.MustParseAddr("10.10.0.1"), LBCIDR: lbRange, APIServer: ap("10.10.0.1:6443"), Client: client,
		Services: f.Core().V1().Services(), Slices: f.Discovery().V1().EndpointSlices(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Start(t.Context().Done())
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not %s", what)
			}
		}
	}
	const vip = "10.10.128.2:80"
	refused := func() bool { _, err := ask(vip); return errors.Is(err, syscall.ECONNREFUSED) }
	until("refused without endpoints", refused)

	slices := client.DiscoveryV1().EndpointSlices("ns")
	s, err := slices.Create(t.Context(), slice("web", 8080, true, "10.10.1.1", "10.10.1.2", "10.10.1.3"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	until("served", func() bool { _, err := ask(vip); return err == nil })
	seen := map[string]int{}
	for range 12 { // 10.10.1.3 refuses: the next in turn is asked
		got, err := ask(vip)
		if err != nil {
			t.Fatal(err)
		}
		seen[got]++
	}
	if len(seen) != 2 || seen["one got hi"] == 0 || seen["two got hi"] == 0 {
		t.Errorf("round robin: %v", seen)
	}

	// A connection that is open when its endpoint leaves the list goes on; new ones are refused.
	open, err := net.Dial("tcp", vip)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	time.Sleep(50 * time.Millisecond)
	no := false
	for i := range s.Endpoints {
		s.Endpoints[i].Conditions.Ready = &no
	}
	if _, err := slices.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("refused again", refused)
	if err := open.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(open); err != nil || len(b) == 0 {
		t.Errorf("open connection: %q, %v", b, err)
	}

	// A Service that becomes a LoadBalancer gets an address, in its status and on the network.
	if _, err := slices.Create(t.Context(), slice("web", 8080, true, "10.10.1.1"), metav1.CreateOptions{}); err == nil {
		t.Fatal("the fake API took a second object of the same name")
	}
	yes := true
	s.Endpoints[0].Conditions.Ready = &yes
	if _, err := slices.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Services("ns").Update(t.Context(), service("web", "10.10.128.2", "LoadBalancer"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("given an address", func() bool {
		got, err := client.CoreV1().Services("ns").Get(t.Context(), "web", metav1.GetOptions{})
		return err == nil && len(got.Status.LoadBalancer.Ingress) == 1 && got.Status.LoadBalancer.Ingress[0].IP == "10.10.64.1"
	})
	until("served at its address", func() bool { got, err := ask("10.10.64.1:80"); return err == nil && got == "one got hi" })
}
