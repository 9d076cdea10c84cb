package translate_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

func segmentOf(name string, age int, hosts ...string) *mesh.Segment {
	return &mesh.Segment{
		Source: mesh.Ref{Group: "networking.solo.io", Version: "v2alpha1", Kind: "Segment", Namespace: "gloo-mesh", Name: name}, Created: time.Unix(int64(1000-age), 0),
		Spec: networkingv2alpha1.SegmentSpec{Hosts: hosts, Selector: networkingv2alpha1.SegmentSelector{Namespace: "shop", Labels: map[string]string{"app": "web"}}},
	}
}

func shop(name string, services ...mesh.Service) mesh.Cluster {
	c := peerCluster(name, name, "192.0.2.1")
	c.Inventory.Info.IstioVersion = "1.31.0"
	c.Inventory.Namespaces = map[string]*mesh.NamespaceInventory{"shop": {Services: services}}
	return c
}

func web(name string) mesh.Service {
	return mesh.Service{Namespace: "shop", Name: name, Labels: map[string]string{"app": "web"}, Selector: map[string]string{"app": "web"}, Ports: []mesh.ServicePort{{Name: "http", Number: 80, TargetPort: "8080"}, {Number: 53, Protocol: "UDP"}}}
}

const webHost = "web.shop.mesh.internal"

func TestSegmentOrders(t *testing.T) {
	stub := mesh.Service{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web", mesh.LabelStub: "true", mesh.LabelGlobal: "true"}, Ports: []mesh.ServicePort{{Number: 80}}}
	headless := web("web")
	headless.Headless = true
	solo := shop("c3", web("web"))
	solo.Inventory.Info.IstioVersion = "1.29.1-solo"
	none := shop("c2")
	none.Inventory.Info.IstioVersion = ""
	global, ports := map[string]string{mesh.LabelGlobal: "true"}, []mesh.ServicePort{{Name: "http", Number: 80}}
	host := []mesh.SegmentHost{{Host: webHost, Service: "shop/web", Target: "web.shop.svc.cluster.local"}}
	for _, tt := range []struct {
		name     string
		clusters []mesh.Cluster
		want     map[mesh.ClusterName]mesh.SegmentOrder
	}{
		{"a Service here, a stub there", []mesh.Cluster{shop("c1", web("web")), shop("c2"), solo}, map[mesh.ClusterName]mesh.SegmentOrder{
			"c1": {Services: []mesh.SegmentService{{Namespace: "shop", Name: "web", Labels: global}}, Hosts: host},
			"c2": {Services: []mesh.SegmentService{{Namespace: "shop", Name: "web", Labels: global, Ports: ports}}, Hosts: host},
			"c3": {Services: []mesh.SegmentService{{Namespace: "shop", Name: "web", Labels: map[string]string{mesh.LabelScope: "global"}}}, Hosts: host},
		}},
		{"a stub keeps no Segment alive", []mesh.Cluster{shop("c1", stub), none}, map[mesh.ClusterName]mesh.SegmentOrder{"c1": {}, "c2": {}}},
		{"a cluster without istiod gets nothing", []mesh.Cluster{shop("c1", web("web")), none}, map[mesh.ClusterName]mesh.SegmentOrder{
			"c1": {Services: []mesh.SegmentService{{Namespace: "shop", Name: "web", Labels: global}}, Hosts: host}, "c2": {},
		}},
		{"a headless Service can't be global", []mesh.Cluster{shop("c1", headless)}, map[mesh.ClusterName]mesh.SegmentOrder{"c1": {}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := translate.Segments(&mesh.Snapshot{Clusters: tt.clusters, Segments: []*mesh.Segment{segmentOf("web", 1, webHost)}})
			if d := cmp.Diff(tt.want, got.Orders); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSegmentHosts(t *testing.T) {
	older, younger := segmentOf("z-older", 9, webHost), segmentOf("a-younger", 1, webHost, "other.example.com")
	plan := translate.Segments(&mesh.Snapshot{Clusters: []mesh.Cluster{shop("c1", web("web"), web("web2"))}, Segments: []*mesh.Segment{younger, older}})
	if got := plan.Reports[older.Source]; len(got.Conflicts)+len(got.Problems) > 0 {
		t.Errorf("the older one: %+v", got)
	}
	got := plan.Reports[younger.Source]
	if len(got.Conflicts) != 1 || !strings.Contains(got.Conflicts[0], "gloo-mesh/z-older") {
		t.Errorf("conflicts of the younger one: %q", got.Conflicts)
	}
	if len(got.Problems) != 1 || !strings.Contains(got.Problems[0], "shop/web, shop/web2") {
		t.Errorf("which Service a host means is not clear, and not said: %q", got.Problems)
	}
	if hosts := plan.Orders["c1"].Hosts; len(hosts) != 1 || hosts[0].Service != "shop/web" {
		t.Errorf("hosts: %+v", hosts)
	}
}

// Programmed is what was seen, of the order that is in force now.
func TestSegmentStatus(t *testing.T) {
	snap := &mesh.Snapshot{Clusters: []mesh.Cluster{shop("c1", web("web")), shop("c2", web("web"))}, Segments: []*mesh.Segment{segmentOf("web", 1, webHost)}}
	rep := translate.Segments(snap).Reports[snap.Segments[0].Source]
	now := map[mesh.ClusterName]mesh.Fingerprint{"c1": mesh.FingerprintOf([]byte("1")), "c2": mesh.FingerprintOf([]byte("2"))}
	state := func(c int, service mesh.SegmentServiceState, host mesh.SegmentHostState, problem string) {
		snap.Clusters[c].Inventory.Segments = &mesh.SegmentState{
			Order: now[snap.Clusters[c].Name], Problem: problem, Services: map[string]mesh.SegmentServiceState{"shop/web": service}, Hosts: map[string]mesh.SegmentHostState{webHost: host},
		}
	}
	good, host := mesh.SegmentServiceState{Labelled: true, VIP: "10.0.0.1", Local: 2, Remote: 1}, mesh.SegmentHostState{Address: "10.0.0.1"}
	for _, tt := range []struct {
		name       string
		set        func()
		programmed bool
		message    string
	}{
		{"all is well", func() {}, true, ""},
		{"no answer to this order", func() { snap.Clusters[0].Inventory.Segments.Order = mesh.Fingerprint{} }, false, "has not answered"},
		{"istiod can't be asked", func() { state(0, good, host, "no istiod is ready") }, false, "no istiod is ready"},
		{"not served", func() { state(0, mesh.SegmentServiceState{Labelled: true}, host, "") }, false, "does not serve Service shop/web"},
		{"no other network", func() { state(0, mesh.SegmentServiceState{Labelled: true, VIP: "10.0.0.1", Local: 2}, host, "") }, false, "no endpoint of another cluster"},
		{"label refused", func() { state(0, mesh.SegmentServiceState{Error: "somebody else"}, host, "") }, false, "somebody else"},
		{"no DNS", func() { state(0, good, mesh.SegmentHostState{Error: "does not resolve"}, "") }, false, "does not resolve"},
		{"others have none either", func() {
			state(0, mesh.SegmentServiceState{Labelled: true, VIP: "10.0.0.1", Local: 2}, host, "")
			state(1, mesh.SegmentServiceState{Labelled: true, VIP: "10.0.0.2", Remote: 1}, host, "")
		}, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state(0, good, host, "")
			state(1, good, host, "")
			tt.set()
			got := translate.SegmentStatus(snap, &rep, now)
			if len(got) != 2 || got[0].Programmed != tt.programmed || !strings.Contains(got[0].Message, tt.message) || tt.message == "" && got[0].Message != "" {
				t.Errorf("%+v", got)
			}
		})
	}
	snap.Clusters[0].Inventory.Info.IgnoresGlobal = true
	rep = translate.Segments(snap).Reports[snap.Segments[0].Source]
	if got := translate.SegmentStatus(snap, &rep, now); got[0].Programmed || !strings.Contains(got[0].Message, "serviceScopeConfigs: [{scope: GLOBAL") {
		t.Errorf("an istiod that ignores the label: %+v", got[0])
	}
}
