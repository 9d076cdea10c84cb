package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"ambitmesh.dev/ambit/internal/mesh"
)

// resource is how the API server serves a kind.
type resource struct {
	schema.GroupVersionResource
	namespaced bool
}

// getter reads a path of the API server, e.g. "/apis/apps/v1".
type getter func(ctx context.Context, path string) ([]byte, error)

// resources finds the resource of a kind by asking discovery for that one group version: much less than a REST mapper, which reads them all.
type resources struct {
	get getter

	mu    sync.Mutex
	known map[schema.GroupVersionKind]resource
}

func newResources(get getter) *resources {
	return &resources{get: get, known: map[schema.GroupVersionKind]resource{}}
}

// unknownKind says that the cluster has no such kind.
type unknownKind struct{ ref mesh.Ref }

func (e unknownKind) Error() string {
	return fmt.Sprintf("this cluster does not know the kind %s in %s: is its CRD installed?", e.ref.Kind, apiVersion(e.ref))
}

func apiVersion(r mesh.Ref) string {
	if r.Group == "" {
		return r.Version
	}
	return r.Group + "/" + r.Version
}

// find returns the resource of r's kind. The error is an unknownKind when the API server does not serve it.
func (rs *resources) find(ctx context.Context, r mesh.Ref) (resource, error) {
	gvk := schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
	if res, ok := rs.lookUp(gvk); ok {
		return res, nil
	}
	path := "/apis/" + r.Group + "/" + r.Version
	if r.Group == "" {
		path = "/api/" + r.Version
	}
	raw, err := rs.get(ctx, path)
	if err != nil {
		if isNotFound(err) {
			return resource{}, unknownKind{r}
		}
		return resource{}, fmt.Errorf("ask the API server for %s: %w", apiVersion(r), err)
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(raw, &list); err != nil {
		return resource{}, fmt.Errorf("discovery of %s: %w", apiVersion(r), err)
	}
	gv := gvk.GroupVersion()
	rs.mu.Lock()
	for _, a := range list.APIResources {
		if strings.Contains(a.Name, "/") { // a subresource
			continue
		}
		rs.known[gv.WithKind(a.Kind)] = resource{GroupVersionResource: gv.WithResource(a.Name), namespaced: a.Namespaced}
	}
	rs.mu.Unlock()
	if res, ok := rs.lookUp(gvk); ok {
		return res, nil
	}
	return resource{}, unknownKind{r}
}

// forget makes find ask again.
func (rs *resources) forget(r mesh.Ref) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.known, schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind})
}

// is reports whether r's kind is served as res, as far as is known.
func (rs *resources) is(r mesh.Ref, res resource) bool {
	known, ok := rs.lookUp(schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind})
	return ok && known == res
}

func (rs *resources) lookUp(gvk schema.GroupVersionKind) (resource, bool) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	res, ok := rs.known[gvk]
	return res, ok
}
