package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"ambitmesh.dev/ambit/lab/internal/state"
)

// Status is what `lab status` shows.
type Status struct {
	Phase      string          `json:"phase"` // starting, ready or failed
	Detail     string          `json:"detail,omitempty"`
	Uptime     float64         `json:"uptimeSeconds"`
	Clusters   []ClusterStatus `json:"clusters"`
	Components []Component     `json:"components"`
	Processes  []Process       `json:"processes"`
	RSS        int64           `json:"rssBytes"`
	PSS        int64           `json:"pssBytes"`
	UI         bool            `json:"ui"` // there is a gloo-mesh-ui Service
}

// ClusterStatus is the health of the parts of one cluster.
type ClusterStatus struct {
	Name       string `json:"name"`
	Address    string `json:"address"` // of the API server, as people reach it
	Registered bool   `json:"registered"`
	API        Health `json:"api"`
	Node       Health `json:"node"`
	Istiod     Health `json:"istiod"`
	Gateway    Health `json:"gateway"`
	Mgmt       Health `json:"managementServer"` // of cluster mgmt
	Agent      Health `json:"agent"`            // of the other clusters
}

// Health is "ok", "-" where there is nothing to look at, or what is wrong.
type Health string

// Component is a supervised part.
type Component struct {
	Name     string  `json:"name"`
	Cluster  string  `json:"cluster,omitempty"`
	PID      int     `json:"pid,omitempty"` // 0 for what runs inside the daemon
	State    string  `json:"state"`
	Restarts int     `json:"restarts"`
	LastErr  string  `json:"lastError,omitempty"`
	Seconds  float64 `json:"sinceSeconds"`
}

func (u *unit) component() Component {
	u.mu.Lock()
	defer u.mu.Unlock()
	return Component{
		Name: u.name, Cluster: u.cluster, PID: u.pid, State: u.state, Restarts: u.restarts,
		LastErr: u.lastErr, Seconds: time.Since(u.since).Seconds(),
	}
}

// status looks at everything at once, for at most two seconds.
func (d *daemon) status(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s := Status{Uptime: time.Since(d.progress.start).Seconds(), Clusters: make([]ClusterStatus, len(d.lab.Clusters))}
	s.Phase, s.Detail = d.progress.phase()
	var wg sync.WaitGroup
	for i, c := range d.lab.Clusters {
		wg.Go(func() { s.Clusters[i] = d.health(ctx, c) })
	}
	wg.Go(func() { _, err := d.uiAddress(ctx); s.UI = err == nil })
	for _, u := range d.super.all() {
		s.Components = append(s.Components, u.component())
	}
	s.Processes = processes(d.super.all(), d.clusterOfService)
	for _, p := range s.Processes {
		s.RSS += p.RSS
		s.PSS += p.PSS
	}
	slices.SortFunc(s.Processes, func(a, b Process) int {
		return strings.Compare(a.Cluster+"\x00"+a.Component, b.Cluster+"\x00"+b.Component)
	})
	wg.Wait()
	return s
}

// look is one object that stands for the health of a part.
type look struct {
	into      *Health
	gvr       schema.GroupVersionResource
	ns, name  string // name "" takes the first object
	condition string
	absent    Health // what to say when it does not exist
}

func (d *daemon) health(ctx context.Context, c state.Cluster) ClusterStatus {
	s := ClusterStatus{
		Name: c.Name, Registered: c.Registered, Address: fmt.Sprintf("https://127.0.0.1:%d", c.Port),
		Node: "-", Istiod: "-", Gateway: "-", Mgmt: "-", Agent: "-",
	}
	dyn, err := d.client(c.Name)
	if err != nil {
		s.API = Health(err.Error())
		return s
	}
	apps := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	looks := []look{
		{&s.Node, schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, "", "", "Ready", "no node"},
	}
	if c.Name == state.Mgmt {
		looks = append(looks, look{&s.Mgmt, apps, "gloo-mesh", "gloo-mesh-mgmt-server", "Available", "-"})
	} else {
		gws := schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
		looks = append(looks,
			look{&s.Istiod, apps, "istio-system", "istiod-gloo", "Available", "not installed"},
			look{&s.Gateway, gws, "istio-eastwest", "istio-eastwest", "Programmed", "not installed"},
			look{&s.Agent, apps, "gloo-mesh", "gloo-mesh-agent", "Available", "-"})
	}
	s.API = "ok"
	for _, l := range looks {
		list, err := dyn.Resource(l.gvr).Namespace(l.ns).List(ctx, metav1.ListOptions{FieldSelector: byName(l.name), Limit: 1})
		switch {
		case err != nil && l.into == &s.Node: // the first look tells whether the API answers
			s.API = Health(err.Error())
			return s
		case err != nil || len(list.Items) == 0:
			*l.into = l.absent
		default:
			*l.into = healthOf(&list.Items[0], l.condition)
		}
	}
	return s
}

func byName(name string) string {
	if name == "" {
		return ""
	}
	return "metadata.name=" + name
}

// healthOf reads one condition.
func healthOf(o *unstructured.Unstructured, kind string) Health {
	conds, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conds {
		m, _ := c.(map[string]any)
		if m["type"] != kind {
			continue
		}
		if m["status"] == "True" {
			return "ok"
		}
		return Health(fmt.Sprintf("not %s: %v", kind, m["message"]))
	}
	return Health("not " + kind + " yet")
}

// client reaches the API server of a cluster from inside the lab.
func (d *daemon) client(cluster string) (dynamic.Interface, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.clients[cluster]; c != nil {
		return c, nil
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: d.dir.InnerKubeconfig()},
		&clientcmd.ConfigOverrides{CurrentContext: cluster}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("not prepared yet: %w", err)
	}
	cfg.QPS = -1
	c, err := dynamic.NewForConfig(rest.AddUserAgent(cfg, "ambit-lab-status"))
	if err != nil {
		return nil, err
	}
	d.clients[cluster] = c
	return c, nil
}

// uiAddress is where the UI's Service is, in the lab.
func (d *daemon) uiAddress(ctx context.Context) (string, error) {
	dyn, err := d.client(state.Mgmt)
	if err != nil {
		return "", err
	}
	svc, err := dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).
		Namespace("gloo-mesh").Get(ctx, "gloo-mesh-ui", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	ip, _, _ := unstructured.NestedString(svc.Object, "spec", "clusterIP")
	ports, _, _ := unstructured.NestedSlice(svc.Object, "spec", "ports")
	if ip == "" || ip == "None" || len(ports) == 0 {
		return "", errors.New("the Service gloo-mesh-ui has no address")
	}
	port := ports[0].(map[string]any)["port"] //nolint:forcetypeassert // the API server's own shape
	return fmt.Sprintf("%s:%v", ip, port), nil
}
