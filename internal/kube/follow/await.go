package follow

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// lookForNamespace is how often a namespace that does not exist is looked for.
const lookForNamespace = 5 * time.Second

// AwaitNamespace returns when a namespace exists, or ctx ends. Before, there is nothing in it, and no Role that lets anybody look: a Role can't be in a namespace that does not exist.
func AwaitNamespace(ctx context.Context, client dynamic.Interface, name string) {
	namespaces := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	for {
		_, err := namespaces.Get(ctx, name, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookForNamespace):
		}
	}
}
