package observe

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
)

// networkLabel on istiod's namespace names the cluster's network.
const networkLabel = "topology.istio.io/network"

// istiod is what one istiod Deployment says of itself.
type istiod struct {
	namespace, revision, version string
	trustDomain                  string // env TRUST_DOMAIN; rarely set
	clusterID                    string // env CLUSTER_ID; istiod's default is "Kubernetes"
	peering                      string // env PEERING_AUTOMATIC_LOCAL_GATEWAY
}

// meshConfigOf is what is read from a MeshConfig.
type meshConfigOf struct {
	TrustDomain   string `json:"trustDomain"`
	RootNamespace string `json:"rootNamespace"`
	mesh.ScopeConfigs
}

// facts is what is known of the cluster as a whole. Not safe for concurrent use.
type facts struct {
	kubernetes string
	networks   map[string]string       // by namespace, where labelled
	istiods    map[string]istiod       // by namespace/name of the Deployment
	meshes     map[string]meshConfigOf // by namespace/name of the MeshConfig ConfigMap
	problems   map[string]string       // by resource
	nodePorts  map[string]bool         // Services of east-west gateways that are reached by ports of nodes
	nodes      map[string]string       // their address, by name: only where there are such Services
}

func newFacts(kubernetes string) *facts {
	return &facts{kubernetes: kubernetes, networks: map[string]string{}, istiods: map[string]istiod{}, meshes: map[string]meshConfigOf{}, problems: map[string]string{}, nodePorts: map[string]bool{}, nodes: map[string]string{}}
}

func (f *facts) namespace(name string, u *unstructured.Unstructured) {
	delete(f.networks, name)
	if u == nil {
		return
	}
	if n := u.GetLabels()[networkLabel]; n != "" {
		f.networks[name] = n
	}
}

func (f *facts) service(name string, u *unstructured.Unstructured) {
	delete(f.nodePorts, name)
	if u != nil && byNodePorts(u) {
		f.nodePorts[name] = true
	}
}

// node takes the address under which a node that is ready is reached: ExternalIP, else InternalIP.
func (f *facts) node(name string, u *unstructured.Unstructured) {
	delete(f.nodes, name)
	if u == nil {
		return
	}
	ready := false
	for _, c := range objects(u.Object, "status", "conditions") {
		ready = ready || c["type"] == "Ready" && c["status"] == "True"
	}
	if !ready {
		return
	}
	by := map[any]string{}
	for _, a := range objects(u.Object, "status", "addresses") {
		if v, _ := a["address"].(string); by[a["type"]] == "" {
			by[a["type"]] = v
		}
	}
	if a := cmp.Or(by["ExternalIP"], by["InternalIP"]); a != "" {
		f.nodes[name] = a
	}
}

// maxNodes is how many nodes' addresses are told.
const maxNodes = 3

// nodeAddresses are those of a few nodes, the same ones while they are there; nil where nothing is reached by ports of nodes.
func (f *facts) nodeAddresses() []string {
	if len(f.nodePorts) == 0 {
		return nil
	}
	var out []string
	for _, n := range slices.Sorted(maps.Keys(f.nodes)) {
		if len(out) < maxNodes {
			out = append(out, f.nodes[n])
		}
	}
	return out
}

// deployment recognises istiod by the label its chart gives it, whatever the Deployment is called ("istiod", "istiod-gloo", "istiod-1-30").
func (f *facts) deployment(name string, u *unstructured.Unstructured) {
	delete(f.istiods, name)
	if u == nil {
		return
	}
	labels, _, _ := unstructured.NestedStringMap(u.Object, "spec", "template", "metadata", "labels")
	if u.GetLabels()["app"] != "istiod" && labels["app"] != "istiod" {
		return
	}
	d := istiod{namespace: u.GetNamespace(), revision: cmp.Or(u.GetLabels()["istio.io/rev"], labels["istio.io/rev"])}
	for _, c := range objects(u.Object, "spec", "template", "spec", "containers") {
		if name, _ := c["name"].(string); name != "discovery" {
			continue
		}
		image, _ := c["image"].(string)
		d.version = cmp.Or(imageTag(image), d.version)
		env, _ := c["env"].([]any)
		for _, e := range env {
			e, _ := e.(map[string]any)
			switch value, _ := e["value"].(string); e["name"] {
			case "TRUST_DOMAIN":
				d.trustDomain = value
			case "CLUSTER_ID":
				d.clusterID = value
			case mesh.EnvAutomaticPeering:
				d.peering = strings.ToLower(value)
			}
		}
	}
	d.version = cmp.Or(d.version, labels["app.kubernetes.io/version"], u.GetLabels()["app.kubernetes.io/version"])
	f.istiods[name] = d
}

// imageTag reads "1.30.1" from "host:5000/pilot:1.30.1-distroless@sha256:...".
func imageTag(image string) string {
	image, _, _ = strings.Cut(image, "@")
	i := strings.LastIndex(image, ":")
	if i < 0 || strings.Contains(image[i:], "/") {
		return ""
	}
	return strings.TrimSuffix(image[i+1:], "-distroless")
}

// configMap reads a MeshConfig: ConfigMap istio or istio-REVISION in istiod's namespace, key mesh.
func (f *facts) configMap(name string, u *unstructured.Unstructured) {
	delete(f.meshes, name)
	if u == nil || (u.GetName() != "istio" && !strings.HasPrefix(u.GetName(), "istio-")) {
		return
	}
	raw, ok, _ := unstructured.NestedString(u.Object, "data", "mesh")
	if !ok {
		return
	}
	var config meshConfigOf
	if err := yaml.Unmarshal([]byte(raw), &config); err != nil {
		f.problems["meshconfig "+name] = fmt.Sprintf("ConfigMap %s can't be read as MeshConfig: %v", name, err)
		return
	}
	delete(f.problems, "meshconfig "+name)
	config.TrustDomain = cmp.Or(config.TrustDomain, "cluster.local") // istio's default
	f.meshes[name] = config
}

// warn notes (or with nil forgets) why a kind can't be listed; it reports whether that changed anything.
func (f *facts) warn(resource string, err error) bool {
	old, had := f.problems[resource]
	if err == nil {
		delete(f.problems, resource)
		return had
	}
	f.problems[resource] = fmt.Sprintf("can't list %s: %v", resource, err)
	return f.problems[resource] != old
}

// revisions are those of the istiods that have a MeshConfig of their own name, sorted.
func (f *facts) revisions() []string {
	found := map[string]bool{}
	for _, d := range f.istiods {
		if d.revision != "" && d.revision != "default" { // the default's MeshConfig is ConfigMap istio
			found[d.revision] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// info is the cluster item. With several istiods the newest version speaks; that there are several is said.
func (f *facts) info() mesh.ClusterInfo {
	out := mesh.ClusterInfo{KubernetesVersion: f.kubernetes, NodeAddresses: f.nodeAddresses()}
	names := slices.SortedFunc(maps.Keys(f.istiods), func(a, b string) int {
		return cmp.Or(compareVersions(f.istiods[b].version, f.istiods[a].version), cmp.Compare(a, b))
	})
	if len(names) > 0 {
		d := f.istiods[names[0]]
		out.IstioVersion, out.IstioNamespace, out.IstioRevision, out.IstioClusterID = d.version, d.namespace, d.revision, d.clusterID
		out.AutomaticPeering = d.peering
		out.Network = f.networks[d.namespace]
		config, revised := f.meshes[d.namespace+"/istio-"+d.revision]
		if !revised {
			config = f.meshes[d.namespace+"/istio"]
		}
		out.TrustDomain = mesh.TrustDomain(cmp.Or(d.trustDomain, config.TrustDomain))
		out.IgnoresGlobal = config.TrustDomain != "" && !config.Honours(map[string]string{mesh.LabelGlobal: "true"}, nil)
		if config.RootNamespace != d.namespace {
			out.RootNamespace = config.RootNamespace
		}
	}
	if len(names) > 1 {
		out.Warnings = append(out.Warnings, fmt.Sprintf("several istiods: %s; %s speaks for the cluster", strings.Join(names, ", "), names[0]))
	}
	for _, k := range slices.Sorted(maps.Keys(f.problems)) {
		out.Warnings = append(out.Warnings, f.problems[k])
	}
	return out
}

// compareVersions orders dotted versions by number where they are numbers ("1.9" < "1.30").
func compareVersions(a, b string) int {
	as, bs := strings.FieldsFunc(a, notAlnum), strings.FieldsFunc(b, notAlnum)
	for i := range min(len(as), len(bs)) {
		x, errX := strconv.Atoi(as[i])
		y, errY := strconv.Atoi(bs[i])
		c := cmp.Compare(as[i], bs[i])
		if errX == nil && errY == nil {
			c = cmp.Compare(x, y)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(as), len(bs))
}

func notAlnum(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// number reads a JSON number that fits a port; 0 otherwise.
func number(v any) int32 {
	switch n := v.(type) {
	case int64:
		if n >= 0 && n <= math.MaxUint16 {
			return int32(n)
		}
	case float64:
		if n >= 0 && n <= math.MaxUint16 {
			return int32(n)
		}
	}
	return 0
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }
