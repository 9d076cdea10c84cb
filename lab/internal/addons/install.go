package addons

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The kinds that are waited for.
var (
	daemonSets  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}                                //nolint:gochecknoglobals // as below
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}                               //nolint:gochecknoglobals // a constant in all but name
	gateways    = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}             //nolint:gochecknoglobals // as above
	crds        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"} //nolint:gochecknoglobals // as above
)

// readyTimeout bounds the wait for each part of a cluster.
const readyTimeout = 3 * time.Minute

// Cluster is a workload cluster to install on.
type Cluster struct {
	Name       string
	Kubeconfig string // reaches the API server from where Install runs
}

// Step is a finished part of an installation.
type Step struct {
	Cluster string
	What    string
	Took    time.Duration
}

// Options are what a person may choose for all clusters.
type Options struct {
	// Root signs every cluster's intermediate; nil: each istiod makes a root of its own.
	Root *Root
	// SecretTTL is how long certificates of workloads and gateways live; 24 h when zero.
	SecretTTL time.Duration
	// Traffic adds namespace shop, whose applications never rest.
	Traffic bool
}

// Installer has everything that is the same for all clusters.
type Installer struct {
	src  Sources
	opts Options
	crds []*unstructured.Unstructured
}

// New reads the CRDs; they are decoded once for all clusters.
func New(src Sources, opts Options) (*Installer, error) {
	crds, err := CRDs(src)
	if err != nil {
		return nil, err
	}
	return &Installer{src: src, opts: opts, crds: crds}, nil
}

// Install makes a cluster ready and returns when istiod is available, the
// east-west gateway is programmed and the demo applications are available.
// It can be repeated. It may call done from several goroutines at once.
func (in *Installer) Install(ctx context.Context, cl Cluster, done func(Step)) error {
	c, err := newClient(cl.Kubeconfig)
	if err != nil {
		return fmt.Errorf("cluster %q: %w", cl.Name, err)
	}
	start := time.Now()
	step := func(what string) { done(Step{Cluster: cl.Name, What: what, Took: time.Since(start)}) }
	if err := in.apply(ctx, c, cl.Name); err != nil {
		return fmt.Errorf("cluster %q: %w", cl.Name, err)
	}
	step("objects applied")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := c.ready(ctx, deployments, IstioNamespace, IstiodDeployment, available); err != nil {
			return err
		}
		step("istiod ready")
		if err := c.ready(ctx, daemonSets, IstioNamespace, ZtunnelDaemonSet, rolledOut); err != nil {
			return err
		}
		step("ztunnel ready")
		if err := c.ready(ctx, gateways, EastWestNamespace, EastWestGateway, programmed); err != nil {
			return err
		}
		if err := c.ready(ctx, deployments, EastWestNamespace, EastWestGateway, available); err != nil {
			return err
		}
		step("east-west gateway programmed")
		return nil
	})
	for _, ns := range demo() {
		for _, a := range ns.Apps {
			g.Go(func() error { return c.ready(ctx, deployments, ns.Name, a.Deployment, available) })
		}
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("cluster %q: %w", cl.Name, err)
	}
	step("ready")
	return nil
}

// NodeReady returns when the node of a cluster is ready.
func NodeReady(ctx context.Context, cl Cluster, node string) error {
	c, err := newClient(cl.Kubeconfig)
	if err == nil {
		nodes := schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
		err = c.ready(ctx, nodes, "", node, func(o *unstructured.Unstructured) (bool, string) { return condition(o, "Ready") })
	}
	if err != nil {
		return fmt.Errorf("cluster %q: %w", cl.Name, err)
	}
	return nil
}

// apply sends everything: what needs no CRD at the same time as the CRDs, the
// Gateways when their kind is served.
func (in *Installer) apply(ctx context.Context, c *client, cluster string) error {
	istiod, err := Istiod(in.src, cluster, in.opts.SecretTTL)
	if err != nil {
		return err
	}
	ztunnel, err := Ztunnel(in.src, cluster, in.opts.SecretTTL)
	if err != nil {
		return err
	}
	demo, err := Demo(cluster)
	if err != nil {
		return err
	}
	eastWest, err := EastWest(cluster)
	if err != nil {
		return err
	}
	var shop []*unstructured.Unstructured
	if in.opts.Traffic {
		if shop, err = Shop(cluster); err != nil {
			return err
		}
	}
	namespaces, rest := split(slices.Concat(istiod, ztunnel, demo, shop, eastWest), func(o *unstructured.Unstructured) bool {
		return o.GetKind() == "Namespace"
	})
	gatewayAPI, rest := split(rest, func(o *unstructured.Unstructured) bool {
		return o.GroupVersionKind().Group == gateways.Group
	})
	if err := c.apply(ctx, append(namespaces, IstioSystem(cluster))); err != nil {
		return err
	}
	if in.opts.Root != nil { // before istiod, which otherwise makes its own
		cacerts, err := in.opts.Root.CACerts(cluster, time.Now())
		if err != nil {
			return err
		}
		if err := c.apply(ctx, []*unstructured.Unstructured{cacerts}); err != nil {
			return err
		}
	}
	// istiod's Pod starts while the CRDs are still being made: it waits for the
	// ones it needs.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.create(gctx, in.crds) })
	g.Go(func() error { return c.apply(gctx, rest) })
	if err := g.Wait(); err != nil {
		return err
	}
	for _, name := range []string{"gateways", "gatewayclasses"} {
		established := func(o *unstructured.Unstructured) (bool, string) { return condition(o, "Established") }
		if err := c.ready(ctx, crds, "", name+"."+gateways.Group, established); err != nil {
			return err
		}
	}
	return c.apply(ctx, gatewayAPI)
}

// ready waits for one object, for at most readyTimeout.
func (c *client) ready(ctx context.Context, gvr schema.GroupVersionResource, ns, name string,
	done func(*unstructured.Unstructured) (bool, string),
) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %s", readyTimeout))
	defer cancel()
	return c.await(ctx, gvr, ns, name, done)
}

// split parts objects into those that match and the others, keeping the order.
func split(objs []*unstructured.Unstructured, match func(*unstructured.Unstructured) bool) (yes, no []*unstructured.Unstructured) {
	for _, o := range objs {
		if match(o) {
			yes = append(yes, o)
		} else {
			no = append(no, o)
		}
	}
	return yes, no
}
