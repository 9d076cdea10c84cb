package probe

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func object(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: o}
}

func TestPodOf(t *testing.T) {
	const there = "status: {podIP: 10.1.0.7, conditions: [{type: Ready, status: 'True'}]}"
	base := pod{ip: "10.1.0.7", node: "n1", ready: true}
	with := func(edit func(*pod)) *pod { p := base; edit(&p); return &p }
	for _, tt := range []struct {
		name, text string
		want       *pod
	}{
		{
			"captured", `{metadata: {name: web-1, namespace: app, annotations: {ambient.istio.io/redirection: enabled}}, spec: {nodeName: n1, serviceAccountName: web, containers: [{name: web}]}, ` + there + `}`,
			with(func(p *pod) { p.name, p.account, p.role = "app/web-1", "app/web", roleCaptured }),
		},
		{
			"captured, of the default service account", `{metadata: {name: web-1, namespace: app, annotations: {ambient.istio.io/redirection: enabled}}, spec: {nodeName: n1}, ` + there + `}`,
			with(func(p *pod) { p.name, p.account, p.role = "app/web-1", "app/default", roleCaptured }),
		},
		{"not captured", `{metadata: {name: web-1, namespace: app}, spec: {nodeName: n1}, ` + there + `}`, nil},
		{
			"going: it may run on, on a node that is away (T7)", `{metadata: {name: web-1, namespace: app, deletionTimestamp: '2026-01-01T00:00:00Z', annotations: {ambient.istio.io/redirection: enabled}}, spec: {nodeName: n1}, ` + there + `}`,
			with(func(p *pod) { p.name, p.account, p.role, p.going = "app/web-1", "app/default", roleCaptured, true }),
		},
		{"without an address", `{metadata: {name: web-1, namespace: app, annotations: {ambient.istio.io/redirection: enabled}}, spec: {nodeName: n1}}`, nil},
		{
			"istiod", `{metadata: {name: istiod-1, namespace: istio-system, labels: {app: istiod, istio.io/rev: 1-30}}, spec: {nodeName: n1, serviceAccountName: istiod, containers: [{name: discovery, image: 'h:5000/pilot:1.30.3-distroless',
			env: [{name: ISTIO_MULTIROOT_MESH, value: 'true'}, {name: MAX_WORKLOAD_CERT_TTL, value: 2h}, {name: CLUSTER_ID, value: c1}]}]}, ` + there + `}`,
			with(func(p *pod) {
				p.name, p.account, p.role, p.version, p.revision, p.cluster, p.multiRoot, p.maxLeaf = "istio-system/istiod-1", "istio-system/istiod", roleIstiod, "1.30.3", "1-30", "c1", true, 2*time.Hour
			}),
		},
		{
			"istiod as it is by default", `{metadata: {name: istiod-1, namespace: istio-system, labels: {app: istiod}}, spec: {nodeName: n1, serviceAccountName: istiod, containers: [{name: discovery, env: [{name: MAX_WORKLOAD_CERT_TTL, value: forever}]}]}, ` + there + `}`,
			with(func(p *pod) {
				p.name, p.account, p.role, p.cluster, p.maxLeaf = "istio-system/istiod-1", "istio-system/istiod", roleIstiod, "Kubernetes", 90*24*time.Hour
			}),
		},
		{"not an istiod: it is elsewhere", `{metadata: {name: istiod-1, namespace: app, labels: {app: istiod}}, spec: {nodeName: n1, containers: [{name: discovery}]}, ` + there + `}`, nil},
		{
			"ztunnel", `{metadata: {name: ztunnel-x, namespace: istio-system, labels: {app: ztunnel}}, spec: {nodeName: n1, serviceAccountName: ztunnel, containers: [{name: istio-proxy, image: ztunnel:1.30.1}]}, ` + there + `}`,
			with(func(p *pod) {
				p.name, p.account, p.role, p.version = "istio-system/ztunnel-x", "istio-system/ztunnel", roleZtunnel, "1.30.1"
			}),
		},
		{
			"waypoint", `{metadata: {name: waypoint-1, namespace: app, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}, spec: {nodeName: n1, serviceAccountName: waypoint, containers: [{name: istio-proxy, image: proxyv2:1.30.1}]}, ` + there + `}`,
			with(func(p *pod) {
				p.name, p.account, p.role, p.version = "app/waypoint-1", "app/waypoint", roleWaypoint, "1.30.1"
			}),
		},
		{
			"east-west gateway", `{metadata: {name: ew-1, namespace: istio-gateways, labels: {gateway.istio.io/managed: istio.io-eastwest-controller}}, spec: {nodeName: n1, serviceAccountName: ew, containers: [{name: istio-proxy}]}, ` + there + `}`,
			with(func(p *pod) { p.name, p.account, p.role = "istio-gateways/ew-1", "istio-gateways/ew", roleEastWest }),
		},
		{
			"ingress gateway", `{metadata: {name: in-1, namespace: in, labels: {gateway.istio.io/managed: istio.io-gateway-controller}}, spec: {nodeName: n1, containers: [{name: istio-proxy}]}, ` + there + `}`,
			with(func(p *pod) { p.name, p.account, p.role = "in/in-1", "in/default", roleGateway }),
		},
		{
			"gateway by injection", `{metadata: {name: in-1, namespace: in, annotations: {inject.istio.io/templates: gateway}}, spec: {nodeName: n1, containers: [{name: istio-proxy}]}, ` + there + `}`,
			with(func(p *pod) { p.name, p.account, p.role = "in/in-1", "in/default", roleGateway }),
		},
		{
			"native sidecar", `{metadata: {name: web-1, namespace: app, annotations: {ambient.istio.io/redirection: enabled}}, spec: {nodeName: n1, initContainers: [{name: istio-proxy}], containers: [{name: web}]}, ` + there + `}`,
			with(func(p *pod) { p.name, p.account, p.role = "app/web-1", "app/default", roleSidecar }),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := podOf(object(t, tt.text), "istio-system")
			if ok != (tt.want != nil) {
				t.Fatalf("of interest: %t", ok)
			}
			if tt.want == nil {
				return
			}
			if d := cmp.Diff(*tt.want, got, cmp.AllowUnexported(pod{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCABundles(t *testing.T) {
	const text = `{webhooks: [
		{clientConfig: {service: {namespace: istio-system, name: istiod-1-30}, caBundle: b25l}},
		{clientConfig: {service: {namespace: istio-system, name: istiod-1-30}, caBundle: b25l}},
		{clientConfig: {service: {namespace: istio-system, name: istiod}, caBundle: dHdv}},
		{clientConfig: {service: {namespace: other, name: istiod}, caBundle: dGhyZWU=}},
		{clientConfig: {url: 'https://x'}}]}`
	if got, ok := caBundles(object(t, text), "istio-system"); got != "one\ntwo" || !ok {
		t.Errorf("got %q, %t", got, ok)
	}
	if got, ok := caBundles(object(t, text), "elsewhere"); got != "" || ok {
		t.Errorf("of another istiod: %q, %t", got, ok)
	}
}

// One Pod speaks for each (node, service account), a ready one before others; each Envoy speaks for itself.
func TestTargets(t *testing.T) {
	captured := func(name, node, account string, ready bool) pod {
		return pod{name: name, node: node, account: account, role: roleCaptured, ready: ready}
	}
	got := targetsOf([]pod{
		{name: "app/a0", node: "n1", account: "app/a", role: roleCaptured, ready: true, going: true},
		captured("app/a1", "n1", "app/a", false), captured("app/a2", "n1", "app/a", true), captured("app/a3", "n2", "app/a", true), captured("app/b1", "n1", "app/b", true),
		captured("app/a4", "n1", "app/a", true), captured("app/a5", "n1", "app/a", true),
		{name: "app/c1", node: "n1", account: "app/c", role: roleCaptured, going: true},
		{name: "app/wp1", node: "n1", account: "app/wp", role: roleWaypoint, version: "1.30.1"},
		{name: "app/wp2", node: "n1", account: "app/wp", role: roleWaypoint, version: "1.30.1"},
		{name: "istio-system/istiod", role: roleIstiod},
		{name: "istio-system/ztunnel-1", node: "n1", role: roleZtunnel, version: "1.30.0"},
		{name: "in/in", role: roleGateway},
	})
	var lines []string
	for _, t := range got {
		line := fmt.Sprintf("%s %s %t", t.kind, t.version, t.silent != "")
		for _, p := range t.pods {
			line += " " + p.name
		}
		lines = append(lines, line)
	}
	if d := cmp.Diff([]string{
		"waypoint 1.30.1 false app/wp1", "waypoint 1.30.1 false app/wp2", "gateway  true in/in",
		"ztunnel 1.30.0 false app/a2 app/a4 app/a5", "ztunnel  false app/a3", "ztunnel 1.30.0 false app/b1", "ztunnel 1.30.0 false app/c1",
	}, lines); d != "" {
		t.Error(d)
	}
}

// Nothing is proven before all kinds are listed, nor while one can't be watched.
func TestViewOfAnIncompleteWorld(t *testing.T) {
	w := newWorld("istio-system")
	list := func() {
		for _, s := range []interface{ Listed(map[string]bool) }{w.pods, w.maps, w.mutating, w.validating} {
			s.Listed(map[string]bool{})
		}
	}
	if v := w.now(); !v.incomplete || len(v.problems) != 4 {
		t.Errorf("nothing listed: %+v", v)
	}
	list()
	if v := w.now(); v.incomplete || len(v.problems) != 0 {
		t.Errorf("all listed: %+v", v)
	}
	w.maps.failed(fmt.Errorf("forbidden"))
	if v := w.now(); !v.incomplete || len(v.problems) != 1 {
		t.Errorf("blind: %+v", v)
	}
	w.maps.failed(nil)
	if v := w.now(); v.incomplete {
		t.Errorf("seeing again: %+v", v)
	}
}
