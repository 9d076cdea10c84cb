package probe

import (
	"cmp"
	"context"
	"encoding/base64"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"ambitmesh.dev/ambit/internal/kube/follow"
	"ambitmesh.dev/ambit/internal/mesh"
)

// What a Pod is to us.
type role string

const (
	roleNone     role = ""
	roleIstiod   role = "istiod"
	roleZtunnel  role = "ztunnel" // the proxy itself; what it presents is seen at the Pods that it captures
	roleCaptured role = "captured"
	roleWaypoint role = "waypoint"
	roleEastWest role = "eastwest"
	roleGateway  role = "gateway"
	roleSidecar  role = "sidecar"
)

// pod is what is kept of a Pod that matters.
type pod struct {
	name              string // namespace/name
	ip, node, account string // account is "namespace/name"
	version           string // of istiod or the proxy in it
	role              role
	revision, cluster string // istiod only
	multiRoot         bool
	maxLeaf           time.Duration
	ready             bool
	crl               bool // ztunnel only: CRL_PATH is set
	going             bool // deleted, and not gone: on a node that is away it may run on for long (facts T7)
}

const (
	// redirection on a Pod says that ztunnel captures it.
	redirection = "ambient.istio.io/redirection"
	// managedLabel is on what istiod makes for a Gateway (istio: pkg/config/constants, ManagedGateway*ControllerLabel).
	managedLabel = "gateway.istio.io/managed"
	rootMapName  = "istio-ca-root-cert"
	rootKey      = "root-cert.pem"
	// crlMapName: istiod hands out revocation lists in it, in every namespace (istio: pilot/pkg/serviceregistry/kube/controller, CRLNamespaceConfigMap).
	crlMapName = "istio-ca-crl"
	crlKey     = "ca-crl.pem"
	// defaultMaxLeaf is istiod's MAX_WORKLOAD_CERT_TTL (istio: pilot/pkg/bootstrap/istio_ca.go).
	defaultMaxLeaf = 90 * 24 * time.Hour
)

// podOf reads a Pod; ok is false for one that is of no interest or has no address yet.
func podOf(u *unstructured.Unstructured, istioNamespace string) (p pod, ok bool) {
	spec, _ := u.Object["spec"].(map[string]any)
	st, _ := u.Object["status"].(map[string]any)
	p = pod{
		name: u.GetNamespace() + "/" + u.GetName(), ip: text(st["podIP"]), node: shared(text(spec["nodeName"])), ready: isReady(st),
		account: shared(u.GetNamespace() + "/" + cmp.Or(text(spec["serviceAccountName"]), "default")), going: u.GetDeletionTimestamp() != nil,
	}
	if p.ip == "" {
		return pod{}, false
	}
	p.role = roleOf(u, spec, istioNamespace)
	switch p.role {
	case roleNone:
		return pod{}, false
	case roleCaptured:
	case roleIstiod:
		c := container(spec, "discovery")
		p.version, p.revision = imageTag(text(c["image"])), u.GetLabels()["istio.io/rev"]
		env := environment(c)
		p.cluster = cmp.Or(env["CLUSTER_ID"], "Kubernetes") // istiod's default
		p.multiRoot = isTrue(env["ISTIO_MULTIROOT_MESH"])
		p.maxLeaf = defaultMaxLeaf
		if d, err := time.ParseDuration(env["MAX_WORKLOAD_CERT_TTL"]); err == nil && d > 0 {
			p.maxLeaf = d
		}
	default:
		c := container(spec, "istio-proxy")
		p.version = imageTag(text(c["image"]))
		p.crl = p.role == roleZtunnel && environment(c)["CRL_PATH"] != ""
	}
	return p, true
}

// roleOf tells what a Pod is by what the charts and istiod's templates put on it. Nothing outside Istio's namespace can pass for an istiod.
func roleOf(u *unstructured.Unstructured, spec map[string]any, istioNamespace string) role {
	labels := u.GetLabels()
	switch {
	case labels["app"] == "istiod" && u.GetNamespace() == istioNamespace:
		return roleIstiod
	case labels["app"] == "ztunnel" && container(spec, "istio-proxy") != nil:
		return roleZtunnel
	}
	switch labels[managedLabel] {
	case "istio.io-mesh-controller":
		return roleWaypoint
	case "istio.io-eastwest-controller":
		return roleEastWest
	case "":
	default:
		return roleGateway
	}
	if container(spec, "istio-proxy") != nil {
		if strings.Contains(u.GetAnnotations()["inject.istio.io/templates"], "gateway") || labels["gateway.networking.k8s.io/gateway-name"] != "" {
			return roleGateway
		}
		return roleSidecar
	}
	if u.GetAnnotations()[redirection] == "enabled" {
		return roleCaptured
	}
	return roleNone
}

// container finds a container by name, also among those that start first and stay (native sidecars).
func container(spec map[string]any, name string) map[string]any {
	for _, list := range []string{"containers", "initContainers"} {
		all, _ := spec[list].([]any)
		for _, c := range all {
			if c, _ := c.(map[string]any); c != nil && c["name"] == name {
				return c
			}
		}
	}
	return nil
}

func environment(container map[string]any) map[string]string {
	out := map[string]string{}
	all, _ := container["env"].([]any)
	for _, e := range all {
		if e, _ := e.(map[string]any); e != nil {
			out[text(e["name"])] = text(e["value"])
		}
	}
	return out
}

func isReady(status map[string]any) bool {
	all, _ := status["conditions"].([]any)
	for _, c := range all {
		if c, _ := c.(map[string]any); c != nil && c["type"] == "Ready" {
			return c["status"] == "True"
		}
	}
	return false
}

// isTrue reads a bool as Go's strconv, and so istiod, does.
func isTrue(s string) bool {
	return s == "1" || strings.EqualFold(s, "t") || strings.EqualFold(s, "true")
}

// shared is s, kept once: nodes and accounts are those of many Pods.
func shared(s string) string { return unique.Make(s).Value() }

func text(v any) string { s, _ := v.(string); return s }

// imageTag reads "1.30.1" from "host:5000/pilot:1.30.1-distroless@sha256:...".
func imageTag(image string) string {
	image, _, _ = strings.Cut(image, "@")
	i := strings.LastIndex(image, ":")
	if i < 0 || strings.Contains(image[i:], "/") {
		return ""
	}
	return strings.TrimSuffix(image[i+1:], "-distroless")
}

// rootMap reads a root ConfigMap.
func rootMap(u *unstructured.Unstructured) (string, bool) {
	s, _, _ := unstructured.NestedString(u.Object, "data", rootKey)
	return shared(s), true // all namespaces hold the same; one without the key is a bundle without roots, and must be seen
}

// crlMap reads what revocation lists a namespace has, as their SHA-256; one that istiod has made before there was any is of no interest.
func crlMap(u *unstructured.Unstructured) (mesh.Fingerprint, bool) {
	s, _, _ := unstructured.NestedString(u.Object, "data", crlKey)
	return mesh.FingerprintOf([]byte(s)), s != ""
}

// caBundles reads what the istiod webhooks of a configuration are verified by; those that differ follow each other.
func caBundles(u *unstructured.Unstructured, istioNamespace string) (string, bool) {
	hooks, _ := u.Object["webhooks"].([]any)
	var all []string
	found := false
	for _, h := range hooks {
		h, _ := h.(map[string]any)
		client, _ := h["clientConfig"].(map[string]any)
		service, _ := client["service"].(map[string]any)
		if text(service["namespace"]) != istioNamespace || !strings.HasPrefix(text(service["name"]), "istiod") {
			continue
		}
		found = true
		raw, err := base64.StdEncoding.DecodeString(text(client["caBundle"]))
		if err == nil && !slices.Contains(all, string(raw)) {
			all = append(all, string(raw))
		}
	}
	return strings.Join(all, "\n"), found
}

// table keeps one kind up to date. It is a follow.Sink.
type table[T any] struct {
	read    func(*unstructured.Unstructured) (T, bool)
	mu      sync.Mutex
	rows    map[string]T
	listed  bool
	trouble string // why it can't be watched at present
}

func newTable[T any](read func(*unstructured.Unstructured) (T, bool)) *table[T] {
	return &table[T]{read: read, rows: map[string]T{}}
}

// Set takes an object.
func (t *table[T]) Set(u *unstructured.Unstructured) {
	v, ok := t.read(u)
	t.mu.Lock()
	defer t.mu.Unlock()
	if ok {
		t.rows[follow.Name(u)] = v
	} else {
		delete(t.rows, follow.Name(u))
	}
}

// Gone forgets an object.
func (t *table[T]) Gone(u *unstructured.Unstructured) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.rows, follow.Name(u))
}

// Listed forgets what is not there any more.
func (t *table[T]) Listed(present map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.listed = true
	maps.DeleteFunc(t.rows, func(name string, _ T) bool { return !present[name] })
}

// now is a copy of what there is, and why it can't be relied on, if so.
func (t *table[T]) now() (map[string]T, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	trouble := t.trouble
	if trouble == "" && !t.listed {
		trouble = "not listed yet"
	}
	return maps.Clone(t.rows), trouble
}

func (t *table[T]) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trouble = ""
	if err != nil {
		t.trouble = err.Error()
	}
}

// world is what there is to probe.
type world struct {
	pods                 *table[pod]
	maps                 *table[string]
	crls                 *table[mesh.Fingerprint]
	mutating, validating *table[string]
}

func newWorld(istioNamespace string) *world {
	hooks := func(u *unstructured.Unstructured) (string, bool) { return caBundles(u, istioNamespace) }
	return &world{
		pods: newTable(func(u *unstructured.Unstructured) (pod, bool) { return podOf(u, istioNamespace) }),
		maps: newTable(rootMap), crls: newTable(crlMap), mutating: newTable(hooks), validating: newTable(hooks),
	}
}

// follow watches until ctx ends.
func (w *world) follow(ctx context.Context, cfg Config) {
	var wg sync.WaitGroup
	watch := func(group, resource, fields string, sink follow.Sink, failed func(error)) {
		wg.Go(func() {
			client := cfg.Client.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource})
			follow.Run(ctx, follow.Config{Client: client, Name: resource, Fields: fields, Failed: failed, Log: cfg.Log}, sink)
		})
	}
	const admission = "admissionregistration.k8s.io"
	watch("", "pods", "status.phase=Running", w.pods, w.pods.failed)
	watch("", "configmaps", "metadata.name="+rootMapName, w.maps, w.maps.failed)
	watch("", "configmaps", "metadata.name="+crlMapName, w.crls, w.crls.failed)
	watch(admission, "mutatingwebhookconfigurations", "", w.mutating, w.mutating.failed)
	watch(admission, "validatingwebhookconfigurations", "", w.validating, w.validating.failed)
	wg.Wait()
}

// view is a world at one moment.
type view struct {
	pods       []pod                       // by name
	maps       map[string]string           // root bundles by namespace, "" where a namespace has none
	crls       map[string]mesh.Fingerprint // of revocation lists, by namespace
	webhooks   map[string]string           // caBundles by "mutating/NAME"
	problems   []string
	incomplete bool // something can't be relied on: nothing is proven by this view
}

func (w *world) now() view {
	var v view
	note := func(what, trouble string) {
		if trouble != "" {
			v.incomplete = true
			v.problems = append(v.problems, what+" can't be watched, so that nothing is proven about trust in this cluster: "+trouble+" (look at the agent's ClusterRole)")
		}
	}
	pods, trouble := w.pods.now()
	note("Pods", trouble)
	v.pods = slices.SortedFunc(maps.Values(pods), func(a, b pod) int { return cmp.Compare(a.name, b.name) })
	bundles, trouble := w.maps.now()
	note("ConfigMaps "+rootMapName, trouble)
	v.maps = map[string]string{}
	for name, b := range bundles {
		v.maps[strings.TrimSuffix(name, "/"+rootMapName)] = b
	}
	lists, trouble := w.crls.now()
	if trouble == "" { // nothing that is proven rests on them, and a role made before they were watched must not stop the rest
		v.crls = map[string]mesh.Fingerprint{}
		for name, f := range lists {
			v.crls[strings.TrimSuffix(name, "/"+crlMapName)] = f
		}
	}
	for _, p := range v.pods { // a namespace has none where discoverySelectors leave it out; proxies need one
		if ns, _, _ := strings.Cut(p.name, "/"); p.role != roleCaptured && p.role != roleIstiod {
			v.maps[ns] += ""
		}
	}
	v.webhooks = map[string]string{}
	for kind, t := range map[string]*table[string]{"mutating": w.mutating, "validating": w.validating} {
		rows, trouble := t.now()
		note(kind+" webhooks", trouble)
		for name, b := range rows {
			v.webhooks[kind+"/"+name] = b
		}
	}
	slices.Sort(v.problems)
	return v
}
