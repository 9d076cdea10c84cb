package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// cluster is a Kubernetes cluster that a person named by a context.
type cluster struct {
	Context string
	Server  string // URL of its API server
	client.WithWatch
	Typed  kubernetes.Interface // for logs, which WithWatch can't read
	config *rest.Config
}

func (a *app) loadingRules(file string) *clientcmd.ClientConfigLoadingRules {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = firstOf(file, a.Kubeconfig)
	return rules
}

// connect prepares a client for a context of a kubeconfig file; empty means the current context, and the file of --kubeconfig. It sends nothing yet.
func (a *app) connect(file, contextName, flag string) (*cluster, error) {
	raw, err := a.loadingRules(file).Load()
	if err != nil {
		return nil, usageError("kubeconfig: %w", err)
	}
	name, err := chooseContext(raw, contextName, flag)
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*raw, name, &clientcmd.ConfigOverrides{}, a.loadingRules(file)).ClientConfig()
	if err != nil {
		return nil, usageError("context %q of the kubeconfig: %w", name, err)
	}
	return newCluster(name, config)
}

func newCluster(name string, config *rest.Config) (*cluster, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "meshctl"
	config.QPS, config.Burst = 200, 400 // a person's command is short: the server's own fairness is limit enough
	config.WarningHandler = rest.NoWarnings{}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", name, err)
	}
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", name, err)
	}
	return &cluster{Context: name, Server: config.Host, WithWatch: c, Typed: typed, config: config}, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, appsv1.AddToScheme, adminv2.AddToScheme, securityv2.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("scheme: %w", err)
		}
	}
	return scheme, nil
}

// chooseContext finds a context, or says which there are.
func chooseContext(config *clientcmdapi.Config, name, flag string) (string, error) {
	names := slices.Sorted(maps.Keys(config.Contexts))
	if len(names) == 0 {
		return "", usageError("the kubeconfig has no contexts: give a file with --kubeconfig, or set KUBECONFIG")
	}
	if name == "" {
		if config.CurrentContext == "" {
			return "", usageError("no %s given and the kubeconfig has no current context; it has: %s", flag, strings.Join(names, ", "))
		}
		name = config.CurrentContext
	}
	if _, ok := config.Contexts[name]; ok {
		return name, nil
	}
	hint := ""
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	return "", usageError("%s %q: no such context in the kubeconfig%s (it has: %s)", flag, name, hint, strings.Join(names, ", "))
}

// nearest returns the name that a typing error could have been meant for, or "".
func nearest(typed string, names []string) string {
	best, bound := "", 1+len(typed)/3
	for _, n := range names {
		d := distance(strings.ToLower(typed), strings.ToLower(n))
		if strings.Contains(n, typed) || strings.Contains(typed, n) {
			d = min(d, 1)
		}
		if d < bound || (d == bound && best == "") {
			best, bound = n, d
		}
	}
	return best
}

// distance is Levenshtein's: insertions, deletions and substitutions.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost = 1 + min(diagonal, row[j], row[j-1])
			}
			diagonal, row[j] = row[j], cost
		}
	}
	return row[len(b)]
}

// says turns an error of an API server into a sentence that names the context, and what to do when it can't be reached.
func (c *cluster) says(what string, err error) error {
	if err == nil {
		return nil
	}
	var netErr net.Error
	var urlErr *url.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fmt.Errorf("context %q: %s: %w", c.Context, what, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("context %q: %s: the API server does not accept your credentials: sign in again (%w)", c.Context, what, err)
	case errors.As(err, &urlErr), errors.As(err, &netErr):
		return fmt.Errorf("context %q: %s: the API server %s can't be reached (network, VPN, or the cluster is down): %w", c.Context, what, c.Server, err)
	}
	return fmt.Errorf("context %q: %s: %w", c.Context, what, err)
}

// unreachable reports whether err means that no API server answered.
func unreachable(err error) bool {
	var status apierrors.APIStatus
	return err != nil && !errors.As(err, &status) && !meta.IsNoMatchError(err)
}

// completeContexts completes the names of contexts.
func (a *app) completeContexts(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	config, err := a.loadingRules("").Load()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return withPrefix(slices.Sorted(maps.Keys(config.Contexts)), prefix), cobra.ShellCompDirectiveNoFileComp
}

// completeClusters completes the names of registered clusters.
func (a *app) completeClusters(mgmtContext *string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.connect("", firstOf(*mgmtContext, a.Context), "--mgmt-context")
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		var list adminv2.KubernetesClusterList
		if err := c.List(ctx, &list, client.InNamespace(a.Namespace)); err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, k := range list.Items {
			names = append(names, k.Name)
		}
		return withPrefix(names, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

func withPrefix(names []string, prefix string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) })
}

// completionTimeout bounds how long a person waits for a completion.
const completionTimeout = 3 * time.Second

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// getter gives Helm the clients of a cluster; discovery is asked once.
type getter struct {
	config    *rest.Config
	namespace string
	discovery discovery.CachedDiscoveryInterface
}

func newGetter(c *cluster, namespace string) (*getter, error) {
	d, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	return &getter{config: c.config, namespace: namespace, discovery: memory.NewMemCacheClient(d)}, nil
}

func (g *getter) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(g.config), nil }

func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.discovery, nil
}

func (g *getter) ToRESTMapper() (meta.RESTMapper, error) {
	return restmapper.NewDeferredDiscoveryRESTMapper(g.discovery), nil
}

func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	overrides := &clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: g.namespace}}
	return clientcmd.NewDefaultClientConfig(*clientcmdapi.NewConfig(), overrides)
}

// eachItem calls fn with every object of a list.
func eachItem(list client.ObjectList, fn func(client.Object)) error {
	return meta.EachListItem(list, func(o runtime.Object) error {
		if object, ok := o.(client.Object); ok {
			fn(object)
		}
		return nil
	})
}

// kindOf is the kind of a typed object, for people.
func kindOf(o client.Object) string {
	name := fmt.Sprintf("%T", o)
	return name[strings.LastIndex(name, ".")+1:]
}
