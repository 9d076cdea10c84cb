package cacerts

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
)

func TestWorkloadOf(t *testing.T) {
	const rolled = "status: {observedGeneration: 3, replicas: 2, updatedReplicas: 2, availableReplicas: 2}"
	for _, tt := range []struct {
		name, resource, text string
		want                 workload
		none                 bool
	}{
		{
			name: "istiod, restarted", resource: "deployments", text: `{metadata: {namespace: istio-system, name: istiod-1-30, generation: 3}, spec: {replicas: 2, template: {metadata: {labels: {app: istiod}, annotations: {admin.gloo.solo.io/restarted-for: t1}}}}, ` + rolled + `}`,
			want: workload{stage: stageIstiod, token: "t1", rolled: true, progress: "2/2"},
		},
		{
			name: "istiod, its controller has not seen the change yet", resource: "deployments", text: `{metadata: {namespace: istio-system, name: istiod-1-30, generation: 4}, spec: {replicas: 2, template: {metadata: {labels: {app: istiod}}}}, ` + rolled + `}`,
			want: workload{stage: stageIstiod, progress: "2/2"},
		},
		{
			name: "istiod, an old replica is still there", resource: "deployments", text: `{metadata: {namespace: istio-system, name: istiod-1-30, generation: 3}, spec: {replicas: 2, template: {metadata: {labels: {app: istiod}}}}, status: {observedGeneration: 3, replicas: 3, updatedReplicas: 2, availableReplicas: 2}}`,
			want: workload{stage: stageIstiod, progress: "2/2"},
		},
		{
			name: "istiod, one is not ready", resource: "deployments", text: `{metadata: {namespace: istio-system, name: istiod-1-30, generation: 3}, spec: {replicas: 2, template: {metadata: {labels: {app: istiod}}}}, status: {observedGeneration: 3, replicas: 2, updatedReplicas: 2, availableReplicas: 1}}`,
			want: workload{stage: stageIstiod, progress: "1/2"},
		},
		{
			name: "istiod, paused", resource: "deployments", text: `{metadata: {namespace: istio-system, name: istiod-1-30, generation: 3}, spec: {paused: true, template: {metadata: {labels: {app: istiod}}}}, status: {observedGeneration: 3, replicas: 1, availableReplicas: 1}}`,
			want: workload{stage: stageIstiod, progress: "0/1", stuck: "it is paused: run kubectl rollout resume"},
		},
		{name: "somebody's istiod elsewhere", resource: "deployments", text: `{metadata: {namespace: app, name: istiod-1-30}, spec: {template: {metadata: {labels: {app: istiod}}}}}`, none: true},
		{
			name: "ztunnel", resource: "daemonsets", text: `{metadata: {namespace: kube-system, name: ztunnel, generation: 1}, spec: {template: {metadata: {labels: {app: ztunnel}}}}, status: {observedGeneration: 1, desiredNumberScheduled: 3, updatedNumberScheduled: 3, numberAvailable: 3}}`,
			want: workload{stage: stageZtunnel, rolled: true, progress: "3/3"},
		},
		{
			name: "ztunnel, OnDelete", resource: "daemonsets", text: `{metadata: {namespace: kube-system, name: ztunnel, generation: 1}, spec: {updateStrategy: {type: OnDelete}, template: {metadata: {labels: {app: ztunnel}}}}, status: {observedGeneration: 1, desiredNumberScheduled: 3, updatedNumberScheduled: 0, numberAvailable: 3}}`,
			want: workload{stage: stageZtunnel, progress: "0/3", stuck: "its update strategy is OnDelete: delete its Pods, node by node"},
		},
		{
			name: "waypoint", resource: "deployments", text: `{metadata: {namespace: app, name: waypoint, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}, spec: {replicas: 0, template: {}}, status: {}}`,
			want: workload{stage: stageWaypoint, rolled: true, progress: "0/0"},
		},
		{
			name: "east-west gateway", resource: "deployments", text: `{metadata: {namespace: gw, name: ew}, spec: {replicas: 0, template: {metadata: {labels: {gateway.istio.io/managed: istio.io-eastwest-controller}}}}}`,
			want: workload{stage: stageGateway, rolled: true, progress: "0/0"},
		},
		{
			name: "gateway by injection", resource: "deployments", text: `{metadata: {namespace: gw, name: ingress}, spec: {replicas: 0, template: {metadata: {annotations: {inject.istio.io/templates: gateway}}}}}`,
			want: workload{stage: stageGateway, rolled: true, progress: "0/0"},
		},
		{name: "an application", resource: "deployments", text: `{metadata: {namespace: app, name: web}, spec: {template: {metadata: {labels: {app: web}}}}}`, none: true},
		{name: "nothing at all", resource: "deployments", text: `{}`, none: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var o map[string]any
			raw, err := yaml.YAMLToJSON([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			u := &unstructured.Unstructured{}
			if tt.text == "{}" {
				u.Object = map[string]any{}
			} else if err := u.UnmarshalJSON([]byte(strings.Replace(string(raw), "{", `{"apiVersion":"apps/v1","kind":"X",`, 1))); err != nil {
				t.Fatal(err, o)
			}
			got, ok := workloadOf(u, tt.resource, "istio-system")
			if ok == tt.none {
				t.Fatalf("of Istio: %t", ok)
			}
			if tt.none {
				return
			}
			tt.want.resource, tt.want.namespace, tt.want.name = tt.resource, u.GetNamespace(), u.GetName()
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(workload{})); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestSafeOrder walks a cluster through its restarts and checks at each step that nothing is restarted before its time.
func TestSafeOrder(t *testing.T) {
	at := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	all := []workload{
		{stage: stageWaypoint, resource: "deployments", namespace: "app", name: "wp", rolled: true},
		{stage: stageIstiod, resource: "deployments", namespace: "istio-system", name: "istiod-a", rolled: true},
		{stage: stageIstiod, resource: "deployments", namespace: "istio-system", name: "istiod-b", rolled: true},
		{stage: stageZtunnel, resource: "daemonsets", namespace: "istio-system", name: "ztunnel", rolled: true},
		{stage: stageGateway, resource: "deployments", namespace: "gw", name: "ew", rolled: true},
	}
	m := memory{rolled: map[string]time.Time{}, restarted: map[string]string{}}
	order := mesh.RestartOrder{Istiod: "t1", DataPlane: "t1"}
	var done mesh.RestartOrder
	good := evidence{began: at}
	take := func(e evidence) step {
		t.Helper()
		s := next(order, done, all, e, m)
		for _, w := range s.restart {
			for i := range all {
				if all[i].ref() == w.ref() {
					all[i].token, all[i].rolled, m.restarted[w.ref()] = s.token, false, s.token
				}
			}
		}
		return s
	}
	names := func(s step) string {
		var out []string
		for _, w := range s.restart {
			out = append(out, w.name)
		}
		return strings.Join(out, " ")
	}
	expect := func(s step, restart, doing string) {
		t.Helper()
		if names(s) != restart || !strings.Contains(s.doing, doing) || (doing == "") != (s.doing == "") {
			t.Errorf("restarts %q, doing %q; want %q, %q", names(s), s.doing, restart, doing)
		}
	}
	roll := func(name string) {
		for i := range all {
			if all[i].name == name {
				all[i].rolled = true
			}
		}
	}

	expect(take(good), "istiod-a", "istiod: 0 of 2") // one revision after the other
	expect(take(good), "", "istiod: 0 of 2")
	roll("istiod-a")
	expect(take(good), "istiod-b", "istiod: 1 of 2")
	roll("istiod-b")
	if s := take(good); s.doing != "istiod has restarted; waiting for every replica to be asked" || !s.rolled || s.done.Istiod != "" {
		t.Errorf("%+v", s)
	}
	m.rolled["t1"] = at.Add(time.Second)
	expect(take(good), "", "waiting for every replica") // that round began before
	after := evidence{began: at.Add(2 * time.Second)}
	lagging := after
	lagging.istiods = "istiod-b hands out another bundle"
	expect(take(lagging), "", "istiod-b hands out another bundle")
	lagging = after
	lagging.maps = "the root ConfigMaps of 3 namespaces hold another bundle"
	s := take(lagging)
	expect(s, "", "before ztunnel: the root ConfigMaps")
	if done = s.done; done.Istiod != "t1" || done.DataPlane != "" {
		t.Errorf("done: %+v", done)
	}
	expect(take(after), "ztunnel", "ztunnel: 0 of 1")
	expect(take(after), "", "ztunnel: 0 of 1")
	roll("ztunnel")
	expect(take(after), "ew", "gateway: 0 of 1")
	roll("ew")
	expect(take(lagging), "", "before ztunnel") // what was good can become bad meanwhile
	expect(take(after), "wp", "waypoint: 0 of 1")
	roll("wp")
	s = take(after)
	expect(s, "", "")
	if done = s.done; done != order {
		t.Errorf("done: %+v", done)
	}
	expect(take(after), "", "") // once per token

	order.DataPlane = "t2"
	expect(take(after), "ztunnel", "ztunnel: 0 of 1")
	for i := range all { // somebody takes the annotation off: that is no second restart
		if all[i].name == "ztunnel" {
			all[i].token, all[i].rolled = "", true
		}
	}
	expect(take(after), "ew", "gateway: 0 of 1")
}

// An agent that starts in the middle goes on where the workloads say it was.
func TestRestartsSurviveTheAgent(t *testing.T) {
	all := []workload{
		{stage: stageIstiod, name: "istiod", token: "t1", rolled: true}, {stage: stageZtunnel, name: "ztunnel", token: "t1", rolled: false}, {stage: stageGateway, name: "ew", rolled: true},
	}
	m := memory{rolled: map[string]time.Time{}, restarted: map[string]string{}}
	s := next(mesh.RestartOrder{Istiod: "t1", DataPlane: "t1"}, mesh.RestartOrder{Istiod: "t1"}, all, evidence{began: time.Now()}, m)
	if len(s.restart) > 0 || !strings.HasPrefix(s.doing, "ztunnel: 0 of 1") {
		t.Errorf("%+v", s)
	}
}

func TestManyWaypoints(t *testing.T) {
	all := []workload{{stage: stageZtunnel, name: "ztunnel", token: "t", rolled: true}}
	for n := range strings.FieldsSeq("a b c d e f g h") {
		all = append(all, workload{stage: stageWaypoint, resource: "deployments", namespace: n, name: "wp", rolled: true})
	}
	s := next(mesh.RestartOrder{DataPlane: "t"}, mesh.RestartOrder{}, all, evidence{began: time.Now()}, memory{})
	if len(s.restart) != rolling {
		t.Errorf("%d at once", len(s.restart))
	}
}

func TestNoIstiodToRestart(t *testing.T) {
	s := next(mesh.RestartOrder{Istiod: "t"}, mesh.RestartOrder{}, nil, evidence{}, memory{})
	if s.problem == "" || s.doing == "" || s.done.Istiod != "" {
		t.Errorf("%+v", s)
	}
}

func TestEvidence(t *testing.T) {
	r1, r2 := newRoot(t, "root g1"), newRoot(t, "root g2")
	one, two := mesh.FingerprintOf(r1.cert.Raw), mesh.FingerprintOf(r2.cert.Raw)
	d := &directive{applied: mesh.FingerprintOf([]byte("d")), roots: []*x509.Certificate{r1.cert, r2.cert}}
	signer := mesh.FingerprintOf([]byte("signer"))
	good := func() mesh.TrustObservation {
		return mesh.TrustObservation{
			Applied: d.applied, Istiods: []mesh.IstiodProbe{{Pod: "istiod-1", Signer: signer, Roots: []mesh.Fingerprint{two, one}}},
			ConfigMaps: []mesh.BundleGroup{{Roots: []mesh.Fingerprint{one, two}, Count: 3, Examples: []string{"a"}}},
		}
	}
	began := time.Now()
	for name, tt := range map[string]struct {
		edit          func(*mesh.TrustObservation)
		istiods, maps bool // as directed
		none          bool
	}{
		"all is well":          {func(*mesh.TrustObservation) {}, true, true, false},
		"of another directive": {func(o *mesh.TrustObservation) { o.Applied = mesh.Fingerprint{} }, false, false, true},
		"no istiod":            {func(o *mesh.TrustObservation) { o.Istiods = nil }, false, true, false},
		"one istiod fails": {func(o *mesh.TrustObservation) {
			o.Istiods = append(o.Istiods, mesh.IstiodProbe{Signer: signer, Roots: []mesh.Fingerprint{one, two}, Error: "x"})
		}, false, true, false},
		"one istiod, other signer": {func(o *mesh.TrustObservation) { o.Istiods[0].Signer = one }, false, true, false},
		"one istiod, one root":     {func(o *mesh.TrustObservation) { o.Istiods[0].Roots = []mesh.Fingerprint{one} }, false, true, false},
		"a ConfigMap lags": {func(o *mesh.TrustObservation) {
			o.ConfigMaps = append(o.ConfigMaps, mesh.BundleGroup{Roots: []mesh.Fingerprint{one}, Count: 1})
		}, true, false, false},
		"no ConfigMap": {func(o *mesh.TrustObservation) { o.ConfigMaps = nil }, true, false, false},
	} {
		o := good()
		tt.edit(&o)
		e := evidenceOf(o, began, d, signer)
		if (e.istiods == "") != tt.istiods || (e.maps == "") != tt.maps || e.began.IsZero() != tt.none {
			t.Errorf("%s: %+v", name, e)
		}
	}
}
