package meshcheck

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Cluster is what is known of one cluster.
type Cluster struct {
	Name    string // the context, or the folder
	Kubectl string // how a fix names it: "kubectl --context NAME"
	// Unread says by kind, in lower-case plural, why it could not be read.
	Unread map[string]string
	// Clock is its API server's clock minus ours; nil: not measured. ClockError is half the round trip and a second's truncation.
	Clock, ClockError *time.Duration
	// Tokens is by cluster ID what became of asking that cluster with the token that is here for it: "" it is accepted.
	Tokens map[string]string

	namespaces map[string]map[string]string // labels by name
	istiods    []istiod
	workloads  []workload
	gateways   []gateway
	services   []*unstructured.Unstructured
	ready      map[string]int // endpoints that are ready by namespace/service; nil: unknown
	entries    []*unstructured.Unstructured
	stale      []string // WorkloadEntries named autogenflat*
	remotes    []remote
	cacerts    map[string][]byte
	root       []byte // of ConfigMap istio-ca-root-cert
	mesh       map[string]meshConfig
	dnsCapture *bool
	mtu        int // 0: unknown
	mtuFrom    string
}

type istiod struct {
	namespace, name, revision, version string
	env                                map[string]string
	solo                               bool
}

// workload is a Deployment or DaemonSet of the mesh.
type workload struct {
	kind, namespace, name, component string
	want, ready                      int64
}

type gateway struct {
	namespace, name, class, network, cluster string
	labels, annotations                      map[string]string
	addresses                                []string
	conditions                               map[string]condition
}

type condition struct{ status, message string }

// remote is one kubeconfig of a remote secret.
type remote struct {
	secret, cluster, server, token string
	kubeconfig                     []byte
}

type meshConfig struct {
	TrustDomain        string   `json:"trustDomain"`
	TrustDomainAliases []string `json:"trustDomainAliases"`
	mesh.ScopeConfigs
	DefaultConfig struct{ MeshID string } `json:"defaultConfig"`
}

// The labels of the mesh.
const (
	labelNetwork  = "topology.istio.io/network"
	labelCluster  = "topology.istio.io/cluster"
	labelScope    = "solo.io/service-scope"
	labelGlobal   = "istio.io/global"
	labelRemote   = "istio/multiCluster"
	meshHost      = ".mesh.internal"
	istioSystem   = "istio-system"
	defaultDomain = "cluster.local"
)

// NewCluster takes up a cluster's objects, of any kinds.
func NewCluster(name, kubectl string, objects []*unstructured.Unstructured) *Cluster {
	c := &Cluster{Name: name, Kubectl: kubectl, Unread: map[string]string{}, namespaces: map[string]map[string]string{}, mesh: map[string]meshConfig{}}
	for _, u := range objects {
		c.take(u)
	}
	slices.SortFunc(c.gateways, func(a, b gateway) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	return c
}

func (c *Cluster) take(u *unstructured.Unstructured) {
	ns, name := u.GetNamespace(), u.GetName()
	switch u.GetKind() {
	case "Namespace":
		c.namespaces[name] = u.GetLabels()
	case "Deployment", "DaemonSet":
		c.takeWorkload(u)
	case "ConfigMap":
		c.takeConfigMap(ns, name, u)
	case "Secret":
		c.takeSecret(ns, name, u)
	case "Gateway":
		if strings.HasPrefix(u.GetAPIVersion(), "gateway.networking.k8s.io/") {
			c.gateways = append(c.gateways, gatewayOf(u))
		}
	case "Service":
		if strings.HasPrefix(u.GetAPIVersion(), "v1") {
			c.services = append(c.services, u)
		}
	case "ServiceEntry":
		c.entries = append(c.entries, u)
	case "WorkloadEntry":
		if strings.HasPrefix(name, "autogenflat") {
			c.stale = append(c.stale, ns+"/"+name)
		}
	case "EndpointSlice":
		c.takeEndpoints(u)
	}
}

func (c *Cluster) takeWorkload(u *unstructured.Unstructured) {
	w := workload{kind: u.GetKind(), namespace: u.GetNamespace(), name: u.GetName()}
	labels := u.GetLabels()
	pod, _, _ := unstructured.NestedStringMap(u.Object, "spec", "template", "metadata", "labels")
	switch {
	case labels["app"] == "istiod":
		w.component = "istiod"
		c.istiods = append(c.istiods, istiodOf(u))
	case pod["app"] == "ztunnel":
		w.component = "ztunnel"
	case pod["k8s-app"] == "istio-cni-node":
		w.component = "istio-cni"
	case labels["gateway.istio.io/managed"] == "istio.io-eastwest-controller", strings.Contains(u.GetName(), "eastwest"), strings.Contains(u.GetName(), "east-west"):
		w.component = "east-west gateway"
	default:
		return
	}
	if w.kind == "DaemonSet" {
		w.want, _ = number(u, "status", "desiredNumberScheduled")
		w.ready, _ = number(u, "status", "numberReady")
	} else {
		var set bool
		if w.want, set = number(u, "spec", "replicas"); !set {
			w.want = 1
		}
		w.ready, _ = number(u, "status", "readyReplicas")
	}
	c.workloads = append(c.workloads, w)
}

// number is a whole number: from an API server it is an int64, from a file a float64.
func number(u *unstructured.Unstructured, path ...string) (int64, bool) {
	v, found, _ := unstructured.NestedFieldNoCopy(u.Object, path...)
	switch n := v.(type) {
	case int64:
		return n, found
	case float64:
		return int64(n), found
	}
	return 0, false
}

func istiodOf(u *unstructured.Unstructured) istiod {
	d := istiod{namespace: u.GetNamespace(), name: u.GetName(), revision: cmp.Or(u.GetLabels()["istio.io/rev"], "default"), env: map[string]string{}}
	containers, _, _ := unstructured.NestedSlice(u.Object, "spec", "template", "spec", "containers")
	for _, one := range containers {
		m, _ := one.(map[string]any)
		if m == nil || m["name"] != "discovery" {
			continue
		}
		image, _ := m["image"].(string)
		if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
			d.version = image[i+1:]
		}
		d.solo = strings.Contains(image, "solo")
		env, _ := m["env"].([]any)
		for _, e := range env {
			if e, _ := e.(map[string]any); e != nil {
				key, _ := e["name"].(string)
				value, _ := e["value"].(string)
				d.env[key] = value
			}
		}
	}
	return d
}

func (c *Cluster) takeConfigMap(ns, name string, u *unstructured.Unstructured) {
	data, _, _ := unstructured.NestedStringMap(u.Object, "data")
	switch {
	case name == "istio-ca-root-cert" && (ns == istioSystem || c.root == nil):
		c.root = []byte(data["root-cert.pem"])
	case name == "istio" || strings.HasPrefix(name, "istio-") && data["mesh"] != "":
		var m meshConfig
		if data["mesh"] != "" && yaml.Unmarshal([]byte(data["mesh"]), &m) == nil {
			c.mesh[ns+"/"+name] = m
		}
	case name == "istio-cni-config":
		on := data["AMBIENT_DNS_CAPTURE"] == "true"
		c.dnsCapture = &on
	case name == "cilium-config" && data["mtu"] != "":
		c.setMTU(data["mtu"], "ConfigMap "+ns+"/"+name)
	case name == "calico-config" && data["veth_mtu"] != "":
		c.setMTU(data["veth_mtu"], "ConfigMap "+ns+"/"+name)
	case name == "kube-flannel-cfg":
		var f struct {
			Backend struct{ MTU int }
		}
		if yaml.Unmarshal([]byte(data["net-conf.json"]), &f) == nil && f.Backend.MTU > 0 {
			c.setMTU(fmt.Sprint(f.Backend.MTU), "ConfigMap "+ns+"/"+name)
		}
	}
}

func (c *Cluster) setMTU(text, from string) {
	var n int
	if _, err := fmt.Sscan(text, &n); err == nil && n > 0 {
		c.mtu, c.mtuFrom = n, from
	}
}

func (c *Cluster) takeSecret(ns, name string, u *unstructured.Unstructured) {
	encoded, _, _ := unstructured.NestedStringMap(u.Object, "data")
	data := map[string][]byte{}
	for k, v := range encoded {
		if raw, err := base64.StdEncoding.DecodeString(v); err == nil {
			data[k] = raw
		}
	}
	if name == "cacerts" {
		c.cacerts = data
		return
	}
	if u.GetLabels()[labelRemote] != "true" {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(data)) {
		c.remotes = append(c.remotes, remoteOf(ns+"/"+name, id, data[id]))
	}
}

func remoteOf(secret, id string, raw []byte) remote {
	r := remote{secret: secret, cluster: id, kubeconfig: raw}
	var k struct {
		Clusters []struct{ Cluster struct{ Server string } }
		Users    []struct{ User struct{ Token string } }
	}
	if yaml.Unmarshal(raw, &k) == nil && len(k.Clusters) > 0 && len(k.Users) > 0 {
		r.server, r.token = k.Clusters[0].Cluster.Server, k.Users[0].User.Token
	}
	return r
}

// Remotes visits the tokens by which this cluster's istiod reads others, by their cluster ID.
func (c *Cluster) Remotes(visit func(cluster, token string)) {
	for _, r := range c.remotes {
		visit(r.cluster, r.token)
	}
}

// ID is what istiod calls this cluster; empty: no istiod is known.
func (c *Cluster) ID() string {
	for _, d := range c.istiods {
		return cmp.Or(d.env["CLUSTER_ID"], "Kubernetes")
	}
	return ""
}

// network of istio-system.
func (c *Cluster) network() string { return c.namespaces[c.IstioNamespace()][labelNetwork] }

// IstioNamespace is where istiod runs; istio-system if none is known.
func (c *Cluster) IstioNamespace() string {
	for _, d := range c.istiods {
		return d.namespace
	}
	return istioSystem
}

func (c *Cluster) solo() bool {
	return slices.ContainsFunc(c.istiods, func(d istiod) bool { return d.solo })
}

// config is istiod's MeshConfig: of its revision, else the default.
func (c *Cluster) config() (meshConfig, bool) {
	ns := c.IstioNamespace()
	for _, d := range c.istiods {
		if m, ok := c.mesh[ns+"/istio-"+d.revision]; ok {
			return m, true
		}
	}
	m, ok := c.mesh[ns+"/istio"]
	return m, ok
}

func (c *Cluster) trustDomain() string {
	m, _ := c.config()
	return cmp.Or(m.TrustDomain, defaultDomain)
}

func gatewayOf(u *unstructured.Unstructured) gateway {
	g := gateway{namespace: u.GetNamespace(), name: u.GetName(), labels: u.GetLabels(), annotations: u.GetAnnotations(), conditions: map[string]condition{}}
	g.class, _, _ = unstructured.NestedString(u.Object, "spec", "gatewayClassName")
	g.network, g.cluster = g.labels[labelNetwork], g.labels[labelCluster]
	from := []string{"status", "addresses"}
	if g.class == "istio-remote" {
		from = []string{"spec", "addresses"}
	}
	list, _, _ := unstructured.NestedSlice(u.Object, from...)
	for _, a := range list {
		if m, _ := a.(map[string]any); m != nil {
			if v, _ := m["value"].(string); v != "" {
				g.addresses = append(g.addresses, v)
			}
		}
	}
	list, _, _ = unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, one := range list {
		if m, _ := one.(map[string]any); m != nil {
			kind, _ := m["type"].(string)
			status, _ := m["status"].(string)
			message, _ := m["message"].(string)
			g.conditions[kind] = condition{status, message}
		}
	}
	return g
}

// eastWest reports whether others come in by this gateway.
func (g *gateway) eastWest() bool { return g.class == "istio-east-west" || g.class == "istio-eastwest" }

func (c *Cluster) takeEndpoints(u *unstructured.Unstructured) {
	if c.ready == nil {
		c.ready = map[string]int{}
	}
	key := u.GetNamespace() + "/" + u.GetLabels()["kubernetes.io/service-name"]
	list, _, _ := unstructured.NestedSlice(u.Object, "endpoints")
	for _, one := range list {
		m, _ := one.(map[string]any)
		if ready, found, _ := unstructured.NestedBool(m, "conditions", "ready"); ready || !found {
			addresses, _, _ := unstructured.NestedStringSlice(m, "addresses")
			c.ready[key] += len(addresses)
		}
	}
}

// Shared lists the Services that are meant for all clusters, as namespace/name; a label of the Service wins over its namespace's.
func (c *Cluster) Shared() []string {
	var out []string
	for _, u := range c.services {
		if c.isShared(u) {
			out = append(out, u.GetNamespace()+"/"+u.GetName())
		}
	}
	slices.Sort(out)
	return out
}

func (c *Cluster) isShared(u *unstructured.Unstructured) bool {
	if u.GetLabels()[labelGlobal] == "true" {
		return true
	}
	scope, set := u.GetLabels()[labelScope]
	if !set {
		scope = c.namespaces[u.GetNamespace()][labelScope]
	}
	return c.solo() && strings.HasPrefix(scope, "global")
}

// unroutable says why another cluster can hardly reach an address, or "".
func unroutable(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return "" // a name
	}
	ip = ip.Unmap()
	in := func(prefix string) bool { return netip.MustParsePrefix(prefix).Contains(ip) }
	switch {
	case ip.IsLoopback(), ip.IsUnspecified():
		return "it is this machine's own"
	case ip.IsLinkLocalUnicast():
		return "it is link-local, valid on one network segment"
	case in("172.17.0.0/16"), in("172.18.0.0/16"), in("172.19.0.0/16"):
		return "it looks like a Docker bridge (kind, k3d): only clusters on the same machine reach it"
	case in("100.64.0.0/10"):
		return "it is in the carrier-grade NAT range, seldom routed between networks"
	}
	return ""
}
