package meshcheck_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"ambitmesh.dev/ambit/internal/meshcheck"
	"ambitmesh.dev/ambit/internal/pki"
)

// sound is a cluster with nothing wrong, N is its number.
const sound = `
apiVersion: v1
kind: Namespace
metadata: { name: istio-system, labels: { topology.istio.io/network: netN } }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: istiod, namespace: istio-system, labels: { app: istiod, istio.io/rev: default } }
spec:
  replicas: 2
  template:
    spec:
      containers:
      - name: discovery
        image: docker.io/istio/pilot:1.30.5
        env:
        - { name: CLUSTER_ID, value: cluster-N }
        - { name: PILOT_ENABLE_AMBIENT, value: "true" }
        - { name: AMBIENT_ENABLE_MULTI_NETWORK, value: "true" }
        - { name: ISTIO_MULTIROOT_MESH, value: "true" }
status: { readyReplicas: 2 }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: ztunnel, namespace: istio-system }
spec: { template: { metadata: { labels: { app: ztunnel } } } }
status: { desiredNumberScheduled: 3, numberReady: 3 }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: ew, namespace: istio-system, labels: { gateway.istio.io/managed: istio.io-eastwest-controller } }
status: { readyReplicas: 1 }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: istio, namespace: istio-system }
data:
  mesh: |
    trustDomain: cluster.local
    serviceScopeConfigs:
    - scope: GLOBAL
      servicesSelector: { matchExpressions: [{ key: istio.io/global, operator: In, values: ["true"] }] }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: istio-cni-config, namespace: istio-system }
data: { AMBIENT_DNS_CAPTURE: "true" }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: cilium-config, namespace: kube-system }
data: { mtu: "1450" }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: ew, namespace: istio-system, labels: { topology.istio.io/network: netN } }
spec: { gatewayClassName: istio-east-west }
status:
  addresses: [{ type: IPAddress, value: 203.0.113.N }]
  conditions: [{ type: Programmed, status: "True" }]
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop, labels: { istio.io/global: "true" } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web } }
endpoints: [{ addresses: [10.0.0.1], conditions: { ready: true } }]
---
apiVersion: v1
kind: Secret
metadata: { name: istio-remote-secret-cluster-O, namespace: istio-system, labels: { istio/multiCluster: "true" } }
data: { cluster-O: KUBECONFIG }
`

const kubeconfig = `{"clusters":[{"name":"c","cluster":{"server":"https://api.example"}}],"users":[{"name":"u","user":{"token":"planted-token"}}]}`

func objects(t *testing.T, text string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	d := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096)
	for {
		var m map[string]any
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if m != nil {
			out = append(out, &unstructured.Unstructured{Object: m})
		}
	}
}

type world struct {
	cacerts map[int]map[string][]byte
}

// newWorld makes two intermediates under one root.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{cacerts: map[int]map[string][]byte{}}
	rootKey := key(t)
	now := time.Now()
	root, err := pki.NewRoot(rootKey, pki.RootOptions{Subject: pkix.Name{CommonName: "root " + rand.Text()}, TTL: 3650 * 24 * time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 2; n++ {
		k := key(t)
		der, err := pki.NewCSR(k, pkix.Name{CommonName: "x"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := pki.ParseCSR(der)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.SignIntermediate(csr, root, rootKey, pki.IntermediateOptions{Subject: pkix.Name{CommonName: fmt.Sprintf("cluster-%d", n)}, TTL: 365 * 24 * time.Hour, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		pem, err := pki.EncodeKey(k)
		if err != nil {
			t.Fatal(err)
		}
		w.cacerts[n] = map[string][]byte{
			"ca-cert.pem": pki.EncodeCertificates(cert), "ca-key.pem": pem, "root-cert.pem": pki.EncodeCertificates(root), "cert-chain.pem": pki.EncodeCertificates(cert, root),
		}
	}
	return w
}

func key(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cluster n of two, with pairs of old and new text changed in its objects.
func (w *world) cluster(t *testing.T, n int, edits ...string) *meshcheck.Cluster {
	t.Helper()
	text := strings.NewReplacer("KUBECONFIG", base64.StdEncoding.EncodeToString([]byte(kubeconfig)), "cluster-O", fmt.Sprintf("cluster-%d", 3-n), "cluster-N", fmt.Sprintf("cluster-%d", n), "netN", fmt.Sprintf("net%d", n), "113.N", fmt.Sprintf("113.%d", n)).Replace(sound)
	for i := 0; i+1 < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the edit of %q finds nothing", edits[i])
		}
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	all := objects(t, text)
	if files := w.cacerts[n]; files != nil {
		data := map[string]any{}
		for k, v := range files {
			data[k] = base64.StdEncoding.EncodeToString(v)
		}
		all = append(all, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "cacerts", "namespace": "istio-system"}, "data": data}})
	}
	c := meshcheck.NewCluster(fmt.Sprintf("cluster-%d", n), fmt.Sprintf("kubectl --context cluster-%d", n), all)
	zero, within := time.Duration(0), time.Second
	c.Clock, c.ClockError = &zero, &within
	c.Tokens = map[string]string{fmt.Sprintf("cluster-%d", 3-n): ""}
	return c
}

func run(clusters ...*meshcheck.Cluster) []meshcheck.Report {
	return meshcheck.Check(clusters, meshcheck.Options{Now: time.Now()})
}

// TestSound: a mesh without faults has none, and each line is the one that people search for.
func TestSound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, r := range run(w.cluster(t, 1), w.cluster(t, 2)) {
		for _, f := range r.Findings {
			if f.Status != meshcheck.OK {
				t.Errorf("%s: %s: %s %v", r.Cluster, f.Check, f.Summary, f.Details)
			}
		}
		text := fmt.Sprint(r.Findings)
		for _, want := range []string{"Peers Check", "all clusters connected", "Shared Services Check", "1 globally shared service(s)", "Connected to cluster-"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: nothing says %q: %s", r.Cluster, want, text)
			}
		}
		if strings.Contains(text, "planted-token") || strings.Contains(text, "PRIVATE") {
			t.Errorf("%s: a secret is shown: %s", r.Cluster, text)
		}
	}
}

// TestFaults: each fault is found by its check, in its cluster, alone, and said with what mends it.
func TestFaults(t *testing.T) {
	t.Parallel()
	const also = ", also "
	for name, c := range map[string]struct {
		edits []string
		touch func(*meshcheck.Cluster)
		check string
		is    meshcheck.Status
		want  []string // in details and fixes
	}{
		"no ambient":        {edits: []string{"PILOT_ENABLE_AMBIENT, value: \"true\"", "PILOT_ENABLE_AMBIENT, value: \"false\""}, check: "Incompatible Environment Variable Check", is: meshcheck.Error, want: []string{"kubectl --context cluster-1 -n istio-system set env deploy/istiod PILOT_ENABLE_AMBIENT=true"}},
		"one network only":  {edits: []string{"AMBIENT_ENABLE_MULTI_NETWORK", "OTHER"}, check: "Incompatible Environment Variable Check", is: meshcheck.Error, want: []string{"AMBIENT_ENABLE_MULTI_NETWORK=true"}},
		"no DNS capture":    {edits: []string{"AMBIENT_DNS_CAPTURE: \"true\"", "AMBIENT_DNS_CAPTURE: \"false\""}, check: "DNS Capture Check", is: meshcheck.Error, want: []string{"rollout restart ds/istio-cni-node"}},
		"ztunnel down":      {edits: []string{"numberReady: 3", "numberReady: 0"}, check: "Pod Check", is: meshcheck.Error, want: []string{"ztunnel: DaemonSet istio-system/ztunnel 0/3 ready", "describe daemonset/ztunnel"}},
		"ztunnel partly":    {edits: []string{"numberReady: 3", "numberReady: 2"}, check: "Pod Check", is: meshcheck.Warning, want: []string{"2/3"}},
		"no ztunnel":        {edits: []string{"labels: { app: ztunnel }", "labels: { app: other }"}, check: "Pod Check", is: meshcheck.Error, want: []string{"ztunnel: not installed"}},
		"not programmed":    {edits: []string{"type: Programmed, status: \"True\"", "type: Programmed, status: \"False\", message: no class"}, check: "Gateway Check", is: meshcheck.Error, want: []string{"no class", "describe gateway ew"}},
		"no address":        {edits: []string{"addresses: [{ type: IPAddress, value: 203.0.113.1 }]", "addresses: []"}, check: "Gateway Check", is: meshcheck.Error, want: []string{"no load balancer"}},
		"kind's bridge":     {edits: []string{"203.0.113.1", "172.18.0.9"}, check: "Gateway Check", is: meshcheck.Warning, want: []string{"Docker bridge"}},
		"gateway's network": {edits: []string{"namespace: istio-system, labels: { topology.istio.io/network: net1 }", "namespace: istio-system, labels: { topology.istio.io/network: old }"}, check: "Network Configuration Check", is: meshcheck.Error, want: []string{"label --overwrite gateway ew topology.istio.io/network=net1"}},
		"left label":        {edits: []string{"labels: { topology.istio.io/network: net1 } }\n---\napiVersion: v1\nkind: Namespace", "labels: { topology.istio.io/network: net1, solo.io/service-scope: global } }\n---\napiVersion: v1\nkind: Namespace"}, check: "Network Configuration Check", is: meshcheck.Warning, want: []string{"label namespace istio-system solo.io/service-scope-"}},
		"no multi-root":     {edits: []string{"ISTIO_MULTIROOT_MESH, value: \"true\"", "ISTIO_MULTIROOT_MESH, value: \"false\""}, check: "Root Rotation Check", is: meshcheck.Warning, want: []string{"istio#47063"}},
		"no scope":          {edits: []string{"scope: GLOBAL", "scope: LOCAL"}, check: "Service Scope Check" + also + "Shared Services Check", is: meshcheck.Error, want: []string{"has no effect here"}},
		"no remote secret":  {edits: []string{"istio/multiCluster", "other/label"}, check: "Peers Check", is: meshcheck.Error, want: []string{"Disconnected from cluster-2 (address: 203.0.113.2)", "create-remote-secret --context cluster-2 --name cluster-2 | kubectl --context cluster-1 apply"}},
		"token refused":     {touch: func(c *meshcheck.Cluster) { c.Tokens["cluster-2"] = "Unauthorized" }, check: "Token Check" + also + "Peers Check", is: meshcheck.Error, want: []string{"Unauthorized"}},
		"solo's label":      {edits: []string{"labels: { istio.io/global: \"true\" }", "labels: { solo.io/service-scope: global }"}, check: "Shared Services Check", is: meshcheck.Warning, want: []string{"does not read", "label service web istio.io/global=true"}},
		"stale entry":       {edits: []string{"kind: Service\nmetadata: { name: web", "kind: WorkloadEntry\nmetadata: { name: autogenflat-1, namespace: shop }\n---\napiVersion: v1\nkind: Service\nmetadata: { name: web"}, check: "Stale Workloads Check", is: meshcheck.Warning, want: []string{"-n shop delete workloadentry autogenflat-1"}},
		"clock":             {touch: func(c *meshcheck.Cluster) { d := -2 * time.Minute; c.Clock = &d }, check: "Clock Check", is: meshcheck.Error, want: []string{"2m0s apart from cluster-2"}},
		"MTU":               {edits: []string{"mtu: \"1450\"", "mtu: \"1300\""}, check: "MTU Check", is: meshcheck.Warning, want: []string{"this cluster takes 1300"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			one := w.cluster(t, 1, c.edits...)
			if c.touch != nil {
				c.touch(one)
			}
			hit := false
			for _, f := range run(one, w.cluster(t, 2))[0].Findings {
				if !strings.Contains(c.check, f.Check) {
					if f.Status != meshcheck.OK {
						t.Errorf("%s says %s too: %v", f.Check, f.Status, f.Details)
					}
					continue
				}
				if f.Check != strings.Split(c.check, also)[0] {
					continue
				}
				hit = true
				if f.Status != c.is {
					t.Errorf("%s: %s, want %s: %v", f.Check, f.Status, c.is, f.Details)
				}
				text := strings.Join(append(f.Details, f.Fix...), "\n")
				for _, want := range c.want {
					if !strings.Contains(text, want) {
						t.Errorf("nothing says %q:\n%s", want, text)
					}
				}
			}
			if !hit {
				t.Errorf("%s did not run", c.check)
			}
		})
	}
}

// TestTwoRoots: clusters of two roots are told apart, by cacerts and, where it can't be read, by the root certificate.
func TestTwoRoots(t *testing.T) {
	t.Parallel()
	a, b := newWorld(t), newWorld(t)
	find := func(r meshcheck.Report) meshcheck.Finding {
		for _, f := range r.Findings {
			if f.Check == "Intermediate Certs Compatibility Check" {
				return f
			}
		}
		t.Fatal("no finding")
		return meshcheck.Finding{}
	}
	if f := find(run(a.cluster(t, 1), b.cluster(t, 2))[0]); f.Status != meshcheck.Error {
		t.Errorf("%+v", f)
	}
	roots := func(w *world, n int) *meshcheck.Cluster {
		root := w.cacerts[n]["root-cert.pem"]
		w.cacerts[n] = nil
		return w.cluster(t, n, "data: { AMBIENT_DNS_CAPTURE: \"true\" }", "data: { AMBIENT_DNS_CAPTURE: \"true\" }\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: { name: istio-ca-root-cert, namespace: istio-system }\ndata: { root-cert.pem: "+fmt.Sprintf("%q", root)+" }")
	}
	same := newWorld(t)
	for _, pair := range []struct {
		x, y *meshcheck.Cluster
		want bool
	}{{roots(a, 1), roots(b, 2), true}, {roots(same, 1), roots(same, 2), false}} {
		pair.x.Unread["secrets"], pair.y.Unread["secrets"] = "you may not", "you may not"
		f := find(run(pair.x, pair.y)[0])
		if said := strings.Contains(strings.Join(f.Details, "\n"), "is not among those of cluster-2"); said != pair.want {
			t.Errorf("%+v, want a fault: %v", f, pair.want)
		}
	}
}

// TestAlone: of one cluster nothing is said about peers, and what could not be read is not called wrong.
func TestAlone(t *testing.T) {
	t.Parallel()
	c := newWorld(t).cluster(t, 1)
	for _, f := range run(c)[0].Findings {
		if f.Check == "Peers Check" || f.Status == meshcheck.Error {
			t.Errorf("%+v", f)
		}
	}
	empty := meshcheck.NewCluster("x", "kubectl", nil)
	for _, kind := range []string{"namespaces", "deployments", "daemonsets", "configmaps", "secrets", "services", "gateways", "workloadentries"} {
		empty.Unread[kind] = "you may not"
	}
	for _, f := range run(empty)[0].Findings {
		if f.Status != meshcheck.Skipped && f.Check != "Clock Check" {
			t.Errorf("of what could not be read: %+v", f)
		}
	}
	for _, f := range meshcheck.Check([]*meshcheck.Cluster{c, newWorld(t).cluster(t, 2)}, meshcheck.Options{Precheck: true, Now: time.Now()})[0].Findings {
		if f.Check == "Peers Check" || f.Check == "Shared Services Check" || f.Check == "Gateway Check" {
			t.Errorf("before clusters are linked: %+v", f)
		}
	}
}

func FuzzNewCluster(f *testing.F) {
	f.Add(sound)
	f.Fuzz(func(t *testing.T, text string) {
		var all []*unstructured.Unstructured
		d := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096)
		for range 20 {
			var m map[string]any
			if d.Decode(&m) != nil {
				break
			}
			all = append(all, &unstructured.Unstructured{Object: m})
		}
		run(meshcheck.NewCluster("a", "kubectl", all), meshcheck.NewCluster("b", "kubectl", all))
	})
}
