package test

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// workload is Pod app/NAME of cluster c1 with HBONE at an address of net1.
func workload(name, address string, change ...func(*workloadapi.Workload)) *workloadapi.Workload {
	w := &workloadapi.Workload{
		Uid: "c1//Pod/app/" + name, Name: name, Namespace: "app", Network: "net1", Addresses: [][]byte{ip(address)},
		ServiceAccount: "app", TunnelProtocol: workloadapi.TunnelProtocol_HBONE, ClusterId: "c1",
	}
	for _, f := range change {
		f(w)
	}
	return w
}

// of makes a workload an endpoint of services of namespace app.
func of(hosts ...string) func(*workloadapi.Workload) {
	return func(w *workloadapi.Workload) {
		w.Services = map[string]*workloadapi.PortList{}
		for _, h := range hosts {
			w.Services["app/"+h] = &workloadapi.PortList{Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}
		}
	}
}

const appHost = "app.app.svc.cluster.local"

// service is of namespace app, with an address on net1 and ports 80 and 81.
func service(host, vip string) *workloadapi.Service {
	return &workloadapi.Service{
		Name: host[:3], Namespace: "app", Hostname: host, Addresses: []*workloadapi.NetworkAddress{{Network: "net1", Address: ip(vip)}},
		Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 81}},
	}
}

func denyAll(name string) *security.Authorization {
	return &security.Authorization{
		Name: name, Namespace: "app", Scope: security.Scope_NAMESPACE, Action: security.Action_DENY, Groups: []*security.Group{{}},
	}
}

// content is all that a store knows.
type content struct {
	Workloads []*workloadapi.Workload
	Services  []*workloadapi.Service
	Policies  []string
}

func contentOf(s *wds.Store) content {
	return content{
		Workloads: s.Workloads(func(*workloadapi.Workload) bool { return true }),
		Services:  s.Services(func(*workloadapi.Service) bool { return true }),
		Policies:  slices.Sorted(maps.Keys(s.Policies())),
	}
}

// becomes waits until a store knows that and no more.
func becomes(t *testing.T, s *wds.Store, want content) {
	t.Helper()
	var d string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if d = cmp.Diff(want, contentOf(s), protocmp.Transform()); d == "" {
			return
		}
	}
	t.Fatal(d)
}

// TestWDS: subscription, acknowledgement, changes and removals.
func TestWDS(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	one, two, svc := workload("one", "10.0.0.1"), workload("two", "10.0.0.2"), service(appHost, "10.96.0.1")
	i.put(one, svc, denyAll("p"))
	var changes atomic.Int64
	s := wds.NewStore(func() { changes.Add(1) })
	if s.Synced() {
		t.Error("synced before anything came")
	}
	i.follow(s)
	all := content{[]*workloadapi.Workload{one}, []*workloadapi.Service{svc}, []string{"app/p"}}
	becomes(t, s, all)
	i.put(two, denyAll("q"))
	all.Workloads, all.Policies = append(all.Workloads, two), append(all.Policies, "app/q")
	becomes(t, s, all)
	changed := proto.CloneOf(one)
	changed.AuthorizationPolicies, changed.Status = []string{"app/p"}, workloadapi.WorkloadStatus_UNHEALTHY
	i.put(changed)
	all.Workloads = []*workloadapi.Workload{changed, two}
	becomes(t, s, all)
	i.remove(authorizationType, "app/p")
	i.remove(addressType, one.GetUid(), "app/"+appHost, "app/never-there")
	becomes(t, s, content{Workloads: []*workloadapi.Workload{two}, Policies: []string{"app/q"}})
	if p := s.Policies()["app/q"]; !proto.Equal(p, denyAll("q")) {
		t.Errorf("policy %v", p)
	}
	delete(s.Policies(), "app/q")
	if len(s.Policies()) != 1 {
		t.Error("a caller changed the store")
	}

	for _, typ := range []string{addressType, authorizationType} {
		eventually(t, "all acknowledged", func() bool {
			sent, acks, nacks, _ := i.answered(typ)
			return slices.Equal(sent, acks) && len(nacks) == 0
		})
		sub := i.first[typ]
		if d := cmp.Diff([]string{"*"}, sub.GetResourceNamesSubscribe()); d != "" {
			t.Error(d)
		}
		if got, want := sub.GetNode().GetId(), "ztunnel~127.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local"; got != want {
			t.Errorf("node %q, want %q", got, want)
		}
		want := map[string]any{
			"NAME": "ztunnel-x", "NAMESPACE": "istio-system", "INSTANCE_IPS": "127.0.0.1", "SERVICE_ACCOUNT": "ztunnel",
			"CLUSTER_ID": "c1", "NETWORK": "net1", "NODE_NAME": "node-1",
		}
		if d := cmp.Diff(want, sub.GetNode().GetMetadata().AsMap()); d != "" {
			t.Error(d)
		}
	}
	// Two first answers, then three for addresses that were put or removed and two for policies.
	if got := changes.Load(); got != 7 {
		t.Errorf("%d changes were told of, want 7", got)
	}
	if i.opened != 1 {
		t.Errorf("%d streams, want 1", i.opened)
	}
}

// TestWDSReconnect: what there is stays while istiod is away, and the first
// answer of the next stream is everything there is.
func TestWDSReconnect(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	one, two, svc := workload("one", "10.0.0.1"), workload("two", "10.0.0.2"), service(appHost, "10.96.0.1")
	i.put(one, svc, denyAll("p"))
	s := wds.NewStore(func() {})
	i.follow(s)
	before := content{[]*workloadapi.Workload{one}, []*workloadapi.Service{svc}, []string{"app/p"}}
	becomes(t, s, before)
	i.stop()
	i.remove(addressType, one.GetUid(), "app/"+appHost) // nobody is told
	i.remove(authorizationType, "app/p")
	i.put(two, denyAll("q"))
	time.Sleep(300 * time.Millisecond)
	becomes(t, s, before)
	if !s.Synced() {
		t.Error("forgot that it was synced")
	}
	i.start(i.address)
	becomes(t, s, content{Workloads: []*workloadapi.Workload{two}, Policies: []string{"app/q"}})
	i.cut()
	i.put(one)
	becomes(t, s, content{Workloads: []*workloadapi.Workload{one, two}, Policies: []string{"app/q"}})
}

// TestWDSMalformed: a resource that can't be read is refused, keeps what was
// known of it, and hinders no other.
func TestWDSMalformed(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	one, two := workload("one", "10.0.0.1"), workload("two", "10.0.0.2")
	i.put(one, denyAll("p"), denyAll("q"))
	s := wds.NewStore(func() {})
	i.follow(s)
	broken := []byte{0xff, 0xff, 0xff}
	good, err := proto.Marshal(&workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: two}})
	if err != nil {
		t.Fatal(err)
	}
	i.putRaw(addressType, map[string][]byte{one.GetUid(): broken, two.GetUid(): good})
	i.putRaw(authorizationType, map[string][]byte{"app/p": broken, "app/new": broken})
	all := content{Workloads: []*workloadapi.Workload{one, two}, Policies: []string{"app/p", "app/q"}}
	becomes(t, s, all)
	for _, typ := range []string{addressType, authorizationType} {
		eventually(t, "refused", func() bool {
			sent, _, nacks, _ := i.answered(typ)
			return len(nacks) == 1 && nacks[0] == sent[len(sent)-1]
		})
	}
	if i.opened != 1 {
		t.Errorf("%d streams, want 1", i.opened)
	}
	i.cut() // and again in the first answer of a stream
	eventually(t, "the next stream", func() bool {
		_, _, nacks, _ := i.answered(authorizationType)
		return len(nacks) == 2
	})
	becomes(t, s, all)
	i.put(denyAll("r"))
	all.Policies = append(all.Policies, "app/r")
	becomes(t, s, all)
}

// TestWDSMalformedFirst: nothing is open because a first answer had a hole.
func TestWDSMalformedFirst(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	i.put(workload("one", "10.0.0.1"), denyAll("q"))
	i.putRaw(authorizationType, map[string][]byte{"app/p": {0xff}})
	s := wds.NewStore(func() {})
	i.follow(s)
	becomes(t, s, content{Workloads: []*workloadapi.Workload{workload("one", "10.0.0.1")}, Policies: []string{"app/q"}})
}

// TestLookups are the questions of a data plane.
func TestLookups(t *testing.T) {
	i := newIstiod(t, newAuthority(t, "a"))
	one := workload("one", "10.0.0.1", of(appHost))
	dual := workload("two", "10.0.0.2", of(appHost, "api.app.svc.cluster.local"), func(w *workloadapi.Workload) {
		w.Addresses = append(w.Addresses, ip("fd00::2"))
		w.Services["app/"+appHost].Ports[0].TargetPort = 9090
	})
	remote := workload("far", "10.0.0.1", func(w *workloadapi.Workload) { w.Network = "net2" })
	svc, api := service(appHost, "10.96.0.1"), service("api.app.svc.cluster.local", "10.96.0.2")
	elsewhere := service("appl.app.svc.cluster.local", "10.96.0.1")
	elsewhere.Addresses[0].Network = "net2"
	i.put(one, dual, remote, svc, api, elsewhere)
	s := wds.NewStore(func() {})
	i.follow(s)

	uid := func(w *workloadapi.Workload) string { return w.GetUid() }
	for _, c := range []struct{ network, ip, want string }{
		{"net1", "10.0.0.1", one.GetUid()},
		{"net2", "10.0.0.1", remote.GetUid()},
		{"net1", "fd00::2", dual.GetUid()},
		{"net1", "10.0.0.3", ""},
		{"net3", "10.0.0.1", ""},
		{"net1", "10.96.0.1", ""},
	} {
		if got := uid(s.ByAddress(c.network, netip.MustParseAddr(c.ip))); got != c.want {
			t.Errorf("ByAddress(%s, %s) = %q, want %q", c.network, c.ip, got, c.want)
		}
	}
	if s.ByUID(one.GetUid()) == nil || s.ByUID("one") != nil {
		t.Error("ByUID")
	}
	for host, want := range map[string]string{
		appHost: appHost, "app.app": appHost, "app": "", "app.app.svc": "", "app.app.": "", "": "", "api.app": "api.app.svc.cluster.local", "web.app": "",
	} {
		if got := s.ByHost(host).GetHostname(); got != want {
			t.Errorf("ByHost(%q) = %q, want %q", host, got, want)
		}
	}
	for _, c := range []struct{ network, ip, want string }{
		{"net1", "10.96.0.1", appHost},
		{"net2", "10.96.0.1", "appl.app.svc.cluster.local"},
		{"net1", "10.96.0.9", ""},
		{"net1", "10.0.0.1", ""},
	} {
		if got := s.ByVIP(c.network, netip.MustParseAddr(c.ip)).GetHostname(); got != c.want {
			t.Errorf("ByVIP(%s, %s) = %q, want %q", c.network, c.ip, got, c.want)
		}
	}
	var endpoints []string
	for _, w := range s.Endpoints(svc) {
		endpoints = append(endpoints, w.GetName())
	}
	if d := cmp.Diff([]string{"one", "two"}, endpoints); d != "" {
		t.Error(d)
	}
	if got := s.Endpoints(elsewhere); len(got) != 0 {
		t.Errorf("endpoints %v", got)
	}
	for _, c := range []struct {
		w          *workloadapi.Workload
		port, want uint32
	}{
		{one, 80, 8080},
		{dual, 80, 9090}, // the workload's own word comes first
		{one, 81, 0},
		{one, 82, 0},
		{remote, 80, 8080}, // no word of its own
	} {
		if got := wds.TargetPort(svc, c.w, c.port); got != c.want {
			t.Errorf("TargetPort(%s, %d) = %d, want %d", c.w.GetName(), c.port, got, c.want)
		}
	}
}

// TestWorkloads: what a message says of itself.
func TestWorkloads(t *testing.T) {
	for want, w := range map[string]*workloadapi.Workload{
		"spiffe://cluster.local/ns/app/sa/default": {Namespace: "app"},
		"spiffe://td2/ns/app/sa/web":               {Namespace: "app", ServiceAccount: "web", TrustDomain: "td2"},
	} {
		if got := wds.Identity(w); got != want {
			t.Errorf("identity %q, want %q", got, want)
		}
	}
	w := &workloadapi.Workload{Addresses: [][]byte{{1, 2}, ip("fd00::2"), ip("10.0.0.1")}}
	if got := wds.Address(w); got != netip.MustParseAddr("fd00::2") {
		t.Errorf("address %s", got)
	}
	if got := wds.Address(&workloadapi.Workload{}); got.IsValid() {
		t.Errorf("address %s", got)
	}
	for address, want := range map[string]bool{"10.0.0.1": true, "fd00::2": true, "10.0.0.2": false} {
		if got := wds.HasAddress(w, netip.MustParseAddr(address)); got != want {
			t.Errorf("HasAddress(%s) = %v", address, got)
		}
	}
}
