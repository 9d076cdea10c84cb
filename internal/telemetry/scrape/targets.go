package scrape

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/kube/follow"
)

type kind string

const (
	kindZtunnel  kind = "ztunnel"
	kindWaypoint kind = "waypoint"
	kindGateway  kind = "gateway"
	kindIstiod   kind = "istiod"
)

// target is a Pod to be read.
type target struct {
	name      string // namespace/name
	namespace string
	workload  string // the Gateway's name, for waypoints and gateways
	kind      kind
	url       string
	// read: it was read before, so what is new there began at 0.
	read bool
}

// targets are those there are now.
type targets struct {
	istioNamespace string

	mu  sync.Mutex
	all map[string]*target
}

func (t *targets) run(ctx context.Context, client dynamic.Interface, log *slog.Logger) {
	pods := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"})
	var wg sync.WaitGroup
	defer wg.Wait()
	// By labels: of ten thousand Pods these are a few dozen.
	for name, selector := range map[string]string{"istio's Pods": "app in (ztunnel,istiod)", "gateways' Pods": "gateway.networking.k8s.io/gateway-name"} {
		wg.Go(func() {
			follow.Run(ctx, follow.Config{Client: pods, Name: name, Labels: selector, Log: log}, &podSink{targets: t, mine: map[string]bool{}})
		})
	}
}

// podSink is one selection's share of the targets.
type podSink struct {
	targets *targets
	mine    map[string]bool
}

// Set takes a Pod up, or drops one that has ended.
func (s *podSink) Set(u *unstructured.Unstructured) {
	name := follow.Name(u)
	found, ok := targetOf(u, s.targets.istioNamespace)
	s.targets.mu.Lock()
	defer s.targets.mu.Unlock()
	switch old := s.targets.all[name]; {
	case !ok:
		delete(s.targets.all, name)
	case old == nil || old.url != found.url:
		s.mine[name] = true
		s.targets.all[name] = found
	}
}

// Gone drops a Pod.
func (s *podSink) Gone(u *unstructured.Unstructured) {
	s.targets.mu.Lock()
	defer s.targets.mu.Unlock()
	delete(s.targets.all, follow.Name(u))
	delete(s.mine, follow.Name(u))
}

// Listed drops those that are not there.
func (s *podSink) Listed(present map[string]bool) {
	s.targets.mu.Lock()
	defer s.targets.mu.Unlock()
	for name := range s.mine {
		if !present[name] {
			delete(s.targets.all, name)
			delete(s.mine, name)
		}
	}
}

func (t *targets) list() []*target {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*target, 0, len(t.all))
	for _, x := range t.all {
		out = append(out, x)
	}
	return out
}

// targetOf reads a Pod; ok is false for one that is none, or does not run. ztunnel and istiod are those in Istio's namespace: elsewhere anybody may call a Pod so.
func targetOf(u *unstructured.Unstructured, istioNamespace string) (*target, bool) {
	labels := u.GetLabels()
	t := &target{name: follow.Name(u), namespace: u.GetNamespace(), workload: labels["gateway.networking.k8s.io/gateway-name"]}
	port, path := "15020", "/stats/prometheus"
	switch {
	case labels["app"] == "ztunnel" && t.namespace == istioNamespace:
		t.kind = kindZtunnel
	case labels["app"] == "istiod" && t.namespace == istioNamespace:
		t.kind, port, path = kindIstiod, "15014", "/metrics"
	case t.workload != "" && labels["gateway.istio.io/managed"] == "istio.io-mesh-controller":
		t.kind = kindWaypoint
	case t.workload != "" && labels["gateway.istio.io/managed"] == "istio.io-eastwest-controller":
		return nil, false // carries the connections of others, and counts none as its own
	case t.workload != "":
		t.kind = kindGateway
	default:
		return nil, false
	}
	ip, _, _ := unstructured.NestedString(u.Object, "status", "podIP")
	phase, _, _ := unstructured.NestedString(u.Object, "status", "phase")
	if net.ParseIP(ip) == nil || phase != "Running" || u.GetDeletionTimestamp() != nil {
		return nil, false
	}
	notes := u.GetAnnotations()
	if p, err := strconv.ParseUint(notes["prometheus.io/port"], 10, 16); err == nil && p > 0 {
		port = notes["prometheus.io/port"]
	}
	if p := notes["prometheus.io/path"]; strings.HasPrefix(p, "/") {
		path = p
	}
	t.url = "http://" + net.JoinHostPort(ip, port) + path
	return t, true
}

// newClient reads Pods: nothing is reused between two rounds of 15 s, nothing is followed elsewhere.
func newClient(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	return &http.Client{
		Timeout:       scrapeTime,
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
