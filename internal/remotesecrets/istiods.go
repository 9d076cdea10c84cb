package remotesecrets

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/probe"
)

// Istiods is how a cluster's istiods are looked at.
type Istiods interface {
	// Replicas are all there are.
	Replicas(ctx context.Context) ([]probe.Replica, error)
	// Ask is what one of them reads, and of how many new and changed remote secrets it was told; events is negative if it does not tell.
	Ask(ctx context.Context, r probe.Replica) (clusters []probe.RemoteCluster, events int, err error)
	// Restart rolls them.
	Restart(ctx context.Context, token string) error
}

const (
	confirm  = 2                // looks that must agree
	together = 5 * time.Second  // changes that a faulty istiod is restarted for at once
	restarts = 2 * time.Minute  // least time between two restarts
	lookTime = 5 * time.Second  // one istiod
	askLife  = 10 * time.Minute // of the token that istiods are asked with
	askEarly = 5 * time.Minute  // of it left when a new one is made
)

// observer sees whether every istiod has taken up what was written. An istiod says only that it is synced with a cluster, not with which token: that it has been told of the change
// is taken from its count of such events.
type observer struct {
	istiods   Istiods
	began     time.Time
	looked    time.Time
	writes    int            // remote secrets written in this life
	number    map[string]int // of the last write, by Secret
	seen      map[string]*replica
	err       error // of the last look
	agreed    map[string]int
	secretful *bool // some istiod syncs only with a token that may list every Secret; nil: none was seen yet
	restarted time.Time
}

// replica is an istiod as last seen.
type replica struct {
	probe.Replica
	clusters []probe.RemoteCluster
	err      error
	events   int // negative: it does not tell
	offset   int // events minus writes when it was first seen
	from     int // writes up to this one may have been under way then
}

func newObserver(i Istiods) *observer {
	return &observer{istiods: i, began: time.Now(), number: map[string]int{}, seen: map[string]*replica{}, agreed: map[string]int{}}
}

// look asks every istiod.
func (o *observer) look(ctx context.Context, now time.Time) error {
	o.looked = now
	all, err := o.istiods.Replicas(ctx)
	if o.err = err; err != nil {
		return err
	}
	seen := map[string]*replica{}
	for _, r := range all {
		if r.Going {
			continue
		}
		key := r.Name + " " + r.IP
		s, known := o.seen[key]
		if !known {
			s = &replica{from: o.writes}
		}
		s.Replica = r
		ask, cancel := context.WithTimeout(ctx, lookTime)
		events := 0
		s.clusters, events, s.err = o.istiods.Ask(ask, r)
		cancel()
		switch {
		case s.err != nil:
		case events < 0:
			s.events = -1
		default:
			if !known || s.events < 0 || events < s.events {
				s.offset, s.from = events-o.writes, o.writes
			}
			s.events = events
		}
		if s.err != nil && !known {
			continue // it is first seen when it answers
		}
		seen[key] = s
	}
	for _, r := range all { // one that does not answer must not be overlooked
		if key := r.Name + " " + r.IP; !r.Going && seen[key] == nil {
			seen[key] = &replica{Replica: r, err: fmt.Errorf("istiod %s does not answer", r.Name), events: -1, from: o.writes}
		}
	}
	o.seen = seen
	if len(seen) > 0 {
		reads := false
		for _, s := range seen {
			reads = reads || s.ReadsSecrets
		}
		o.secretful = &reads
	}
	return nil
}

// wrote notes a write of a remote secret. All istiods must have been looked at before.
func (o *observer) wrote(name string) {
	o.writes++
	o.number[name] = o.writes
	delete(o.agreed, name)
}

// stale: some istiod goes on with its old view after a token was rotated (istio PR#61339).
func (o *observer) stale() bool {
	for _, s := range o.seen {
		if mesh.IstiodStale(s.Version) {
			return true
		}
	}
	return false
}

// release says which orders are carried out now. Istiods with the fault have to be restarted after each change: there, what only replaces a token that has more than half of its life
// left waits, so that one restart serves for all.
func (o *observer) release(orders []order, now time.Time) []order {
	if !o.stale() || slices.ContainsFunc(orders, func(x order) bool {
		return x.before != nil && !now.Before(x.before.issued.Add(x.before.expires.Sub(x.before.issued)/2))
	}) {
		return orders
	}
	return slices.DeleteFunc(slices.Clone(orders), func(x order) bool { return x.before != nil })
}

// synced says why a remote secret is not in use everywhere; empty: it is. note is what is not quite right with these istiods.
func (o *observer) synced(r *remote, id string, now time.Time) (why, note string) {
	name := r.name
	switch {
	case o.err != nil:
		why = explain(o.err)
	case len(o.seen) == 0:
		why = "there is no istiod"
	}
	for _, s := range o.seen {
		if w := o.lacks(s, r, id, now); w != "" && (why == "" || w < why) {
			why = w
		}
		switch {
		case mesh.IstiodStale(s.Version):
			note = fmt.Sprintf("istiod %s does not see remote changes after a token was rotated (istio PR#61339): it is restarted each time; upgrade to 1.30.4 or later", s.Version)
		case s.Version != "" && strings.HasPrefix(s.Version, "1.") && !mesh.IstiodCan(s.Version, mesh.RemoteSwap) && mesh.IstiodCan(s.Version, mesh.KeyReload):
			note = fmt.Sprintf("istiod %s drops the endpoints of a cluster for a moment when its token is rotated (istio#58047): upgrade to 1.30.4 or later", s.Version)
		}
	}
	if why != "" {
		delete(o.agreed, name)
		return why, note
	}
	if o.agreed[name]++; o.agreed[name] < confirm {
		return "to be looked at once more", note
	}
	return "", note
}

// lacks says why one istiod is not on a remote secret yet; empty: it is.
func (o *observer) lacks(s *replica, r *remote, id string, now time.Time) string {
	if s.err != nil {
		return s.err.Error()
	}
	fresh := s.Created.After(r.written.Add(time.Second))
	if !fresh && mesh.IstiodStale(s.Version) && r.generation != r.added {
		return fmt.Sprintf("istiod %s has to be restarted: it goes on with its old view (istio PR#61339)", s.Name)
	}
	i := slices.IndexFunc(s.clusters, func(c probe.RemoteCluster) bool { return c.ID == id && strings.HasSuffix(c.Secret, "/"+r.name) })
	if i < 0 {
		return fmt.Sprintf("istiod %s does not know of it (does it read another Secret for cluster %q?)", s.Name, id)
	}
	if st := s.clusters[i].Status; st != "synced" {
		return fmt.Sprintf("istiod %s says %q for it (can it reach the API server, and may the token read what it needs?)", s.Name, st)
	}
	number, mine := o.number[r.name]
	switch {
	case fresh:
	case mine && s.events >= 0 && number > s.from:
		if s.events < s.offset+number {
			return fmt.Sprintf("istiod %s has not been told yet", s.Name)
		}
	case now.Sub(later(r.written, o.began)) < settleFor:
		return fmt.Sprintf("istiod %s does not tell which token it uses: it gets %s", s.Name, settleFor)
	}
	return ""
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// restart rolls istiods with the fault once what changed has settled.
func (o *observer) restart(ctx context.Context, ours []*remote, now time.Time) error {
	if !o.stale() || now.Sub(o.restarted) < restarts {
		return nil
	}
	var due bool
	var newest mesh.TokenGeneration
	for _, r := range ours {
		newest = max(newest, r.generation)
		for _, s := range o.seen {
			due = due || r.generation != r.added && mesh.IstiodStale(s.Version) && s.Created.Before(r.written) && now.Sub(r.written) > together
		}
	}
	if !due {
		return nil
	}
	o.restarted = now
	return o.istiods.Restart(ctx, fmt.Sprintf("tokens-%d", newest))
}

// istiods looks at the real ones.
type istiods struct {
	cfg     Config
	asker   probe.Asker
	expires time.Time
}

func newIstiods(cfg Config) *istiods {
	return &istiods{cfg: cfg, asker: probe.Asker{IstioNamespace: cfg.IstioNamespace, Account: Observer, Dial: (&net.Dialer{}).DialContext}}
}

// Replicas implements Istiods.
func (i *istiods) Replicas(ctx context.Context) ([]probe.Replica, error) {
	if err := i.prepare(ctx, time.Now()); err != nil {
		return nil, err
	}
	return probe.Replicas(ctx, i.cfg.Client, i.cfg.IstioNamespace)
}

// prepare gets a token and the roots to ask with.
func (i *istiods) prepare(ctx context.Context, now time.Time) error {
	if i.asker.Token != "" && i.expires.Sub(now) > askEarly {
		return nil
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": map[string]any{"name": Observer},
		"spec": map[string]any{"audiences": []any{"istio-ca"}, "expirationSeconds": int64(askLife / time.Second)},
	}}
	accounts := i.cfg.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).Namespace(i.cfg.IstioNamespace)
	u, err := accounts.Create(ctx, u, metav1.CreateOptions{}, "token")
	if err != nil {
		return fmt.Errorf("token to ask istiod with, for ServiceAccount %s/%s: %w", i.cfg.IstioNamespace, Observer, err)
	}
	i.asker.Token, _, _ = unstructured.NestedString(u.Object, "status", "token")
	until, _, _ := unstructured.NestedString(u.Object, "status", "expirationTimestamp")
	i.expires = when(until)
	return nil
}

// Ask implements Istiods.
func (i *istiods) Ask(ctx context.Context, r probe.Replica) ([]probe.RemoteCluster, int, error) {
	roots, err := probe.RootsOf(ctx, i.cfg.Client, i.cfg.IstioNamespace) // they may have changed
	if err != nil {
		return nil, 0, err
	}
	a := i.asker
	a.Roots = roots
	events, err := a.SecretEvents(ctx, r) // before the clusters: what has come since may be in these
	if err != nil {
		events = -1
	}
	clusters, err := a.Clusters(ctx, r)
	return clusters, events, err
}

// Served returns what asks a cluster's istiods which endpoints they serve to ztunnels. With several replicas a Service counts as the least of them has it. For one caller at a time.
func Served(client dynamic.Interface, istioNamespace string) func(ctx context.Context, wanted map[string]bool) (map[string]probe.ServedService, error) {
	i := newIstiods(Config{Client: client, IstioNamespace: istioNamespace})
	return func(ctx context.Context, wanted map[string]bool) (map[string]probe.ServedService, error) {
		replicas, err := i.Replicas(ctx)
		if err != nil {
			return nil, err
		}
		network, err := networkOf(ctx, client, istioNamespace)
		if err != nil {
			return nil, err
		}
		a := i.asker
		if a.Roots, err = probe.RootsOf(ctx, client, istioNamespace); err != nil {
			return nil, err
		}
		var out map[string]probe.ServedService
		for _, r := range replicas {
			if !r.Ready || r.Going {
				continue
			}
			got, err := a.Services(ctx, r, network, wanted)
			if err != nil {
				return nil, err
			}
			if out == nil {
				out = got
				continue
			}
			for key, has := range out {
				other, ok := got[key]
				if !ok || other.VIP == "" {
					delete(out, key)
					continue
				}
				has.Local, has.Remote = min(has.Local, other.Local), min(has.Remote, other.Remote)
				out[key] = has
			}
		}
		if out == nil {
			return nil, fmt.Errorf("no istiod is ready in namespace %s", istioNamespace)
		}
		return out, nil
	}
}

// networkOf is the network that the istiods of a namespace are in; empty: the default one.
func networkOf(ctx context.Context, client dynamic.Interface, istioNamespace string) (string, error) {
	ns, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Get(ctx, istioNamespace, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("network of namespace %s: %w", istioNamespace, err)
	}
	return ns.GetLabels()[mesh.LabelNetwork], nil
}

// Restart implements Istiods.
func (i *istiods) Restart(ctx context.Context, token string) error {
	deployments := i.cfg.Client.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}).Namespace(i.cfg.IstioNamespace)
	list, err := deployments.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list Deployments of istiod: %w", err)
	}
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"admin.gloo.solo.io/restarted-for-tokens":%q}}}}}`, token)
	for n := range list.Items {
		app, _, _ := unstructured.NestedString(list.Items[n].Object, "spec", "template", "metadata", "labels", "app")
		if app != "istiod" {
			continue
		}
		name := list.Items[n].GetName()
		if _, err := deployments.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: mesh.FieldManager}); err != nil {
			return fmt.Errorf("restart Deployment %s/%s: %w", i.cfg.IstioNamespace, name, err)
		}
		i.cfg.Log.Info("istiod restarted, since it does not see remote changes after tokens were rotated (istio PR#61339)", "deployment", name)
	}
	return nil
}
