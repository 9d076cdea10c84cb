package addons

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// trustTimeout bounds the way of all clusters from roots of their own to the management plane's.
const trustTimeout = 5 * time.Minute

// RootTrustPolicy is what Trust applies: a generated root, and restarts of what has to take it up.
func RootTrustPolicy() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "admin.gloo.solo.io/v2",
		"kind":       "RootTrustPolicy",
		"metadata":   map[string]any{"name": "root-trust-policy", "namespace": "gloo-mesh"},
		"spec": map[string]any{
			"config": map[string]any{
				"mgmtServerCa":            map[string]any{"generated": map[string]any{"ttlDays": int64(3650)}},
				"intermediateCertOptions": map[string]any{"ttlDays": int64(365)},
				"autoRestartPods":         true,
			},
			"rotation": map[string]any{"fileLag": "5s"}, // the lab's node is quick
		},
	}}
}

// Trust applies the policy and returns when every registered cluster signs under its root, and all have been seen to trust it.
func (p ManagementPlane) Trust(ctx context.Context, step func(string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, trustTimeout, fmt.Errorf("not within %s", trustTimeout))
	defer cancel()
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: p.Kubeconfig}, &clientcmd.ConfigOverrides{CurrentContext: p.Mgmt}).ClientConfig()
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", p.Kubeconfig, err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	policies := schema.GroupVersionResource{Group: "admin.gloo.solo.io", Version: "v2", Resource: "roottrustpolicies"}
	policy := RootTrustPolicy()
	err = retry(ctx, ref(policy), func() error {
		_, err := dyn.Resource(policies).Namespace(policy.GetNamespace()).Create(ctx, policy, metav1.CreateOptions{FieldManager: fieldManager})
		return err
	})
	if err != nil {
		return err
	}
	step("RootTrustPolicy applied")
	err = (&client{dyn: dyn}).await(ctx, policies, policy.GetNamespace(), policy.GetName(), func(o *unstructured.Unstructured) (bool, string) {
		state, _, _ := unstructured.NestedString(o.Object, "status", "state")
		message, _, _ := unstructured.NestedString(o.Object, "status", "message")
		return state == "ACCEPTED", state + ": " + message
	})
	if err != nil {
		return err
	}
	step("every cluster runs on an intermediate under one root")
	return nil
}
