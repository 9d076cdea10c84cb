package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

func server(t *testing.T) *Server {
	t.Helper()
	svc := func(ns, name, ip string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Spec: corev1.ServiceSpec{
			ClusterIP: ip,
			Ports:     []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		}}
	}
	external := svc("ns", "external", "")
	external.Spec.Type, external.Spec.ExternalName = corev1.ServiceTypeExternalName, "web.ns.svc.cluster.local"
	no, host := false, "db-0"
	eps := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "db-1", Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.10.1.2"}, Hostname: &host},
			{Addresses: []string{"10.10.1.1"}},
			{Addresses: []string{"10.10.1.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
		},
	}
	client := fake.NewClientset(svc("ns", "web", "10.10.128.2"), svc("default", "kubernetes", "10.10.128.1"), svc("ns", "db", "None"), external, eps)
	f := informers.NewSharedInformerFactory(client, 0)
	s := New(Config{
		Addr: netip.MustParseAddrPort("127.0.0.1:0"), Domain: "cluster.local", Services: f.Core().V1().Services().Lister(),
		Slices: f.Discovery().V1().EndpointSlices().Lister(), Log: slog.New(slog.DiscardHandler),
	})
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())
	return s
}

func TestAnswers(t *testing.T) {
	s := server(t)
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string // sorted data of the answers, or NXDOMAIN
	}{
		{"web.ns.svc.cluster.local.", dns.TypeA, "10.10.128.2"},
		{"WEB.ns.svc.Cluster.local.", dns.TypeA, "10.10.128.2"},
		{"web.ns.svc.cluster.local.", dns.TypeAAAA, ""},
		{"kubernetes.default.svc.cluster.local.", dns.TypeA, "10.10.128.1"},
		{"db.ns.svc.cluster.local.", dns.TypeA, "10.10.1.1 10.10.1.2"},
		{"db-0.db.ns.svc.cluster.local.", dns.TypeA, "10.10.1.2"},
		{"10-10-1-1.db.ns.svc.cluster.local.", dns.TypeA, "10.10.1.1"},
		{"db-9.db.ns.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"_http._tcp.web.ns.svc.cluster.local.", dns.TypeSRV, "0 100 80 web.ns.svc.cluster.local."},
		{"_http._tcp.db.ns.svc.cluster.local.", dns.TypeSRV, "0 100 80 10-10-1-1.db.ns.svc.cluster.local. 0 100 80 db-0.db.ns.svc.cluster.local."},
		{"external.ns.svc.cluster.local.", dns.TypeA, "10.10.128.2 web.ns.svc.cluster.local."},
		{"2.128.10.10.in-addr.arpa.", dns.TypePTR, "web.ns.svc.cluster.local."},
		{"9.128.10.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"none.ns.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"web.ns.svc.cluster.local.ns.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"example.com.", dns.TypeA, "NXDOMAIN"},
		{"ns.svc.cluster.local.", dns.TypeA, ""},
		{"cluster.local.", dns.TypeA, ""},
	} {
		answer, _, exists := s.answer(dns.Question{Name: c.name, Qtype: c.qtype, Qclass: dns.ClassINET})
		var data []string
		for _, rr := range answer {
			data = append(data, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		slices.Sort(data)
		got := strings.Join(data, " ")
		if !exists {
			got = "NXDOMAIN"
		}
		if got != c.want {
			t.Errorf("%s %s: %q, want %q", dns.TypeToString[c.qtype], c.name, got, c.want)
		}
	}
}

// Over the network, with the resolver that Pods use.
func TestServe(t *testing.T) {
	s := server(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Addr = netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, s.cfg.Addr.String())
	}}
	var got []string
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got, err = r.LookupHost(t.Context(), "db.ns.svc.cluster.local."); err == nil {
			break
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"10.10.1.1", "10.10.1.2"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	var notFound *net.DNSError
	if _, err := r.LookupHost(t.Context(), "none.ns.svc.cluster.local."); err == nil {
		t.Error("a missing name was found")
	} else if e, ok := err.(*net.DNSError); !ok || !e.IsNotFound { //nolint:errorlint // the resolver returns it bare
		t.Errorf("missing name: %v", notFound)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
