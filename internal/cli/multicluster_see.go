package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/meshcheck"
)

// seenCluster is what could be seen of a cluster, or why nothing could.
type seenCluster struct {
	name  string
	facts *meshcheck.Cluster
	live  *cluster // nil: read from files
	err   error
}

// seeClusters reads all clusters side by side; one that can't be reached does not keep the others from being checked.
func (a *app) seeClusters(ctx context.Context, contexts []string) ([]seenCluster, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if len(contexts) == 0 {
		contexts = []string{a.Context}
	}
	seen := make([]seenCluster, len(contexts))
	var group errgroup.Group
	group.SetLimit(8)
	for i, name := range contexts {
		c, err := a.connect("", name, "--contexts")
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(seen[:i], func(s seenCluster) bool { return s.name == c.Context }) {
			return nil, usageError("--contexts names %q twice", c.Context)
		}
		seen[i] = seenCluster{name: c.Context, live: c}
		group.Go(func() error {
			seen[i].facts, seen[i].err = see(ctx, c)
			return nil
		})
	}
	_ = group.Wait()
	for i := range seen {
		if seen[i].err == nil {
			askTokens(ctx, &seen[i], seen)
		}
	}
	return seen, nil
}

// wanted is a list of objects to look at.
type wanted struct {
	gvk    schema.GroupVersionKind
	opts   []client.ListOption
	plural string
}

func wantedOf() []wanted {
	list := func(group, kind, plural string, opts ...client.ListOption) wanted {
		return wanted{schema.GroupVersionKind{Group: group, Version: "v1", Kind: kind + "List"}, opts, plural}
	}
	label := func(key, value string) client.ListOption { return client.MatchingLabels{key: value} }
	return []wanted{
		list("", "Namespace", "namespaces"),
		list("apps", "Deployment", "deployments", label("app", "istiod")),
		list("apps", "Deployment", "deployments", label("gateway.istio.io/managed", "istio.io-eastwest-controller")),
		list("apps", "DaemonSet", "daemonsets"), // the charts put nothing on ztunnel's but on its Pods
		list("", "Service", "services"),
		list("", "Secret", "secrets", label("istio/multiCluster", "true")),
		list("gateway.networking.k8s.io", "Gateway", "gateways"),
		list("networking.istio.io", "ServiceEntry", "serviceentries"),
		list("networking.istio.io", "WorkloadEntry", "workloadentries"),
	}
}

// see reads what a check needs of one cluster, and no more: of Secrets cacerts and remote secrets only.
func see(ctx context.Context, c *cluster) (*meshcheck.Cluster, error) {
	clock, clockError, err := c.clock(ctx)
	if err != nil {
		return nil, c.says("ask for its version", err)
	}
	var objects []*unstructured.Unstructured
	unread := map[string]string{}
	for _, w := range wantedOf() {
		found, err := c.unstructured(ctx, w.gvk, w.opts...)
		if err != nil {
			unread[w.plural] = reason(err)
		}
		objects = append(objects, found...)
	}
	first := meshcheck.NewCluster(c.Context, "kubectl --context "+c.Context, objects)
	istio := first.IstioNamespace()
	maps, err := c.unstructured(ctx, schema.GroupVersionKind{Version: "v1", Kind: "ConfigMapList"}, client.InNamespace(istio))
	if err != nil {
		unread["configmaps"] = reason(err)
	}
	objects = append(objects, maps...)
	for _, one := range []struct{ kind, namespace, name string }{
		{"Secret", istio, "cacerts"},
		{"ConfigMap", "kube-system", "cilium-config"},
		{"ConfigMap", "kube-system", "calico-config"},
		{"ConfigMap", "kube-flannel", "kube-flannel-cfg"},
		{"ConfigMap", "kube-system", "kube-flannel-cfg"},
	} {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: one.kind})
		switch err := c.Get(ctx, client.ObjectKey{Namespace: one.namespace, Name: one.name}, u); {
		case err == nil:
			objects = append(objects, u)
		case one.kind == "Secret" && !apierrors.IsNotFound(err):
			unread["secrets"] = reason(err)
		}
	}
	for _, service := range first.Shared() {
		namespace, name, _ := strings.Cut(service, "/")
		slices, err := c.unstructured(ctx, schema.GroupVersionKind{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSliceList"}, client.InNamespace(namespace), client.MatchingLabels{"kubernetes.io/service-name": name})
		if err != nil {
			unread["endpointslices"] = reason(err)
			break
		}
		objects = append(objects, slices...)
	}
	out := meshcheck.NewCluster(c.Context, "kubectl --context "+c.Context, objects)
	out.Unread, out.Clock, out.ClockError = unread, &clock, &clockError
	return out, nil
}

// reason is why something can't be read, in few words.
func reason(err error) string {
	if apierrors.IsForbidden(err) {
		return "you may not"
	}
	return err.Error()
}

// unstructured lists objects; a kind that the cluster does not have has none.
func (c *cluster) unstructured(ctx context.Context, gvk schema.GroupVersionKind, opts ...client.ListOption) ([]*unstructured.Unstructured, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(gvk)
	if err := c.List(ctx, list, opts...); err != nil {
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, err
	}
	out := make([]*unstructured.Unstructured, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
		if out[i].GetKind() == "" {
			gvk := gvk
			gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
			out[i].SetGroupVersionKind(gvk)
		}
	}
	return out, nil
}

// clock is the API server's clock minus this machine's, and how far that may be off: the header Date has whole seconds.
func (c *cluster) clock(ctx context.Context) (offset, within time.Duration, err error) {
	hc, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return 0, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.config.Host, "/")+"/version", nil)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	resp, err := hc.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	trip := time.Since(began)
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, 0, fmt.Errorf("header Date: %w", err)
	}
	return date.Add(500 * time.Millisecond).Sub(began.Add(trip / 2)), trip/2 + 500*time.Millisecond, nil
}

// askTokens asks each other cluster, by the way its context goes, whether it accepts the token that this one has for it.
func askTokens(ctx context.Context, s *seenCluster, all []seenCluster) {
	s.facts.Tokens = map[string]string{}
	s.facts.Remotes(func(id, token string) {
		for _, o := range all {
			if o.err == nil && o.name != s.name && o.facts.ID() == id {
				if said, asked := o.live.accepts(ctx, token); asked {
					s.facts.Tokens[id] = said
				}
			}
		}
	})
}

// accepts reports what the API server says of a token, "" for yes; asked is false when it could not be asked.
func (c *cluster) accepts(ctx context.Context, token string) (said string, asked bool) {
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = token
	k, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", false
	}
	switch _, err := k.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); {
	case err == nil, apierrors.IsForbidden(err): // it is known who asks
		return "", true
	case apierrors.IsUnauthorized(err):
		return "Unauthorized", true
	default:
		return "", false
	}
}

// readBugReport reads a folder: each folder in it is a cluster, or it is one itself.
func readBugReport(dir string) ([]seenCluster, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, usageError("--directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		names = []string{"."}
	}
	var out []seenCluster
	for _, name := range names {
		objects, err := readObjects(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		shown := name
		if name == "." {
			shown = filepath.Base(filepath.Clean(dir))
		}
		s := seenCluster{name: shown, facts: meshcheck.NewCluster(shown, "kubectl", objects)}
		if len(objects) == 0 {
			s.err = fmt.Errorf("%s: no YAML or JSON with objects in it", filepath.Join(dir, name))
		}
		out = append(out, s)
	}
	return out, nil
}

const maxReportFile = 64 << 20

// readObjects reads every .yaml, .yml and .json file below dir. Text before the first document, as kubectl's warnings, is a fault of the file and named.
func readObjects(dir string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			return err
		}
		if info, err := d.Info(); err != nil || info.Size() > maxReportFile {
			return errors.Join(err, fmt.Errorf("%s: more than %d MiB", path, maxReportFile>>20))
		}
		raw, err := os.ReadFile(path) //nolint:gosec // a folder that the person named, read with the person's rights
		if err != nil {
			return err
		}
		decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
		for {
			var m map[string]any
			switch err := decoder.Decode(&m); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return fmt.Errorf("%s: %w", path, err)
			}
			u := &unstructured.Unstructured{Object: m}
			if m == nil || u.GetKind() == "" {
				continue
			}
			if !u.IsList() {
				out = append(out, u)
				continue
			}
			if err := u.EachListItem(func(o runtime.Object) error { out = append(out, o.(*unstructured.Unstructured)); return nil }); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	})
	if err != nil {
		return nil, usageError("--directory: %w", err)
	}
	return out, nil
}
