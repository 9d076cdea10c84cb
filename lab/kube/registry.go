package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	_ "unsafe" // for go:linkname

	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/configz"
)

// Kubernetes keeps registries per process that refuse a second component of the same
// kind. None of them changes what a component does; they serve /configz and metrics,
// which the lab's components do not. So each component's entry is taken out as soon as
// it is there, before the next component starts.

// awaitConfigz waits until a component has registered its configuration by this
// name, and takes it out.
func awaitConfigz(ctx context.Context, c *component, name string) error {
	mux := http.NewServeMux()
	configz.InstallHandler(mux)
	err := await(ctx, c, func() bool {
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, http.MethodGet, configz.DefaultConfigzPath, nil))
		return strings.Contains(rec.Body.String(), strconv.Quote(name)+":")
	})
	configz.Delete(name)
	return err
}

// informerNameRegistry is client-go's registry of the names by which informers
// publish metrics. client-go has a way to give a name back, Release, but the
// controller manager keeps the value to call it on to itself, hence the link to the
// variable. The type must be that of client-go/tools/cache/identity.go; TestControlPlanes
// in lab/internal/control fails when it is not.
//
//go:linkname informerNameRegistry k8s.io/client-go/tools/cache.informerNameRegistry
var informerNameRegistry struct { //nolint:gochecknoglobals // not ours
	sync.Mutex
	names map[string]*cache.InformerName
}

// awaitInformerName waits until a component has registered this name for its
// informers, and gives it back.
func awaitInformerName(ctx context.Context, c *component, name string) error {
	var n *cache.InformerName
	err := await(ctx, c, func() bool {
		informerNameRegistry.Lock()
		defer informerNameRegistry.Unlock()
		n = informerNameRegistry.names[name]
		return n != nil
	})
	n.Release() // does nothing for nil
	return err
}
