// Package kube knows how to talk to a Kubernetes API server, and nothing of a mesh.
//
// In: where the API server is. Out: a scheme, a client that reads from the API server, and a cache of the few objects asked for.
// It must not hold rules, names of our objects, or global state.
package kube

import (
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// Scheme returns the kinds the server and the agent use. Few on purpose: every known kind costs memory.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, coordinationv1.AddToScheme, admissionv1.AddToScheme, authenticationv1.AddToScheme, adminv2.AddToScheme, securityv2.AddToScheme, networkingv2alpha1.AddToScheme, issuancev2.AddToScheme} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("register kinds: %w", err)
		}
	}
	return s, nil
}

// Mapper names the resources of the kinds the server and the agent use. It is fixed, so that nothing has to be discovered: a start needs no API server that answers at once.
func Mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	for gv, kinds := range map[schema.GroupVersion]map[string]meta.RESTScope{
		corev1.SchemeGroupVersion: {
			"Namespace": meta.RESTScopeRoot, "ConfigMap": meta.RESTScopeNamespace, "Secret": meta.RESTScopeNamespace, "Event": meta.RESTScopeNamespace,
			"Service": meta.RESTScopeNamespace, "ServiceAccount": meta.RESTScopeNamespace, "Pod": meta.RESTScopeNamespace,
		},
		coordinationv1.SchemeGroupVersion: {"Lease": meta.RESTScopeNamespace},
		admissionv1.SchemeGroupVersion:    {"MutatingWebhookConfiguration": meta.RESTScopeRoot, "ValidatingWebhookConfiguration": meta.RESTScopeRoot},
		networkingv2alpha1.GroupVersion(): {"Segment": meta.RESTScopeNamespace},
		adminv2.GroupVersion(): {
			"KubernetesCluster": meta.RESTScopeNamespace, "Workspace": meta.RESTScopeNamespace, "WorkspaceSettings": meta.RESTScopeNamespace,
			"RootTrustPolicy": meta.RESTScopeNamespace, "RotationRequest": meta.RESTScopeNamespace,
		},
		issuancev2.GroupVersion(): {
			"IssuedCertificate": meta.RESTScopeNamespace, "CertificateRequest": meta.RESTScopeNamespace, "PodBounceDirective": meta.RESTScopeNamespace,
		},
		{Group: "cert-manager.io", Version: "v1"}: { // asked only where a RootTrustPolicy names an issuer
			"CertificateRequest": meta.RESTScopeNamespace, "Issuer": meta.RESTScopeNamespace, "ClusterIssuer": meta.RESTScopeRoot,
		},
		securityv2.GroupVersion(): {"AccessPolicy": meta.RESTScopeNamespace, "PolicyOverride": meta.RESTScopeNamespace},
	} {
		for kind, scope := range kinds {
			if kind == "WorkspaceSettings" { // its plural is its singular, which the rule for English words can't know
				m.AddSpecific(gv.WithKind(kind), gv.WithResource("workspacesettings"), gv.WithResource("workspacesettings"), scope)
			} else {
				m.Add(gv.WithKind(kind), scope)
			}
			m.Add(gv.WithKind(kind+"List"), scope) // the cache asks for a list by its own kind
		}
	}
	return m
}

// Config finds the API server: the kubeconfig file and context given, else $KUBECONFIG's rules when a context is given, else the cluster this process runs in.
func Config(kubeconfig, context, userAgent string) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" && context == "" {
		if cfg, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("not in a Pod with a service account token (outside one, give --kubeconfig): %w", err)
		}
	} else {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = kubeconfig
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %q, context %q: %w", kubeconfig, context, err)
		}
	}
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = userAgent
	cfg.QPS, cfg.Burst = 500, 1000 // fifty agents that enrol at once cost 300 requests; the API server has its own fair queues
	return cfg, nil
}

// Client returns a client that asks the API server every time; each request is given up after timeout.
func Client(cfg *rest.Config, scheme *runtime.Scheme, timeout time.Duration) (client.Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = timeout
	c, err := client.New(cfg, client.Options{Scheme: scheme, Mapper: Mapper()})
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", cfg.Host, err)
	}
	return c, nil
}
