// Package kubetest gives a test a real API server.
//
// In: KUBEBUILDER_ASSETS, the folder with kube-apiserver and etcd that `make test` builds. Out: a rest.Config of an API server with our CRDs, one per test binary,
// stopped when its tests end. It fails, and does not skip, when there is none. It must not be used outside tests.
//
//	func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }
//	func TestX(t *testing.T) { cfg := kubetest.Start(t) ... }
package kubetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// server is the test binary's API server; a package variable because testing.M has nowhere to keep it.
var server struct {
	sync.Mutex
	env  *envtest.Environment
	cfg  *rest.Config
	main bool
}

// Main runs the tests of a package and stops the API server after them.
func Main(m *testing.M) int {
	server.main = true
	code := m.Run()
	server.Lock()
	defer server.Unlock()
	if server.env != nil {
		if err := server.env.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "kubetest: stop the API server:", err)
		}
	}
	return code
}

// Start returns a config for the API server, as an administrator; the first call of a test binary starts it.
func Start(t testing.TB) *rest.Config {
	t.Helper()
	server.Lock()
	defer server.Unlock()
	if !server.main {
		t.Fatal("kubetest: the package needs func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }")
	}
	if server.cfg == nil {
		server.env, server.cfg = start(t)
	}
	return rest.CopyConfig(server.cfg)
}

// repository is the folder with the product's go.mod, above the package under test.
func repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "charts", "gloo-platform-crds")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("kubetest: no charts/gloo-platform-crds above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

func start(t testing.TB) (*envtest.Environment, *rest.Config) {
	t.Helper()
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		t.Fatal("kubetest: this test needs a real API server and KUBEBUILDER_ASSETS is not set: run `make test` (or `make unit`), which builds one; " +
			"by hand: KUBEBUILDER_ASSETS=$(cd lab && go run ./cmd/labbuild assets) go test ./...")
	}
	env := &envtest.Environment{
		CRDDirectoryPaths:     []string{filepath.Join(repository(t), "charts/gloo-platform-crds/crds-generated")},
		ErrorIfCRDPathMissing: true,
	}
	cfg, err := env.Start()
	if err != nil {
		_ = env.Stop()
		t.Fatalf("kubetest: start the API server in %s: %v", os.Getenv("KUBEBUILDER_ASSETS"), err)
	}
	cfg.QPS, cfg.Burst = 500, 1000
	return env, cfg
}

// Client returns an uncached client for cfg that knows every kind of ours, core kinds and CRDs.
func Client(t testing.TB, cfg *rest.Config) client.WithWatch {
	t.Helper()
	s := kruntime.NewScheme()
	for _, add := range []func(*kruntime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, adminv2.AddToScheme, securityv2.AddToScheme, issuancev2.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Namespace makes a namespace of its own for a test, and says its name.
func Namespace(t testing.TB, c client.Client) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

// Ensure makes a namespace of a fixed name unless it is there.
func Ensure(t testing.TB, c client.Client, name string) {
	t.Helper()
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil && !errors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// As returns cfg acting as another user of some groups; "system:authenticated" is added.
func As(cfg *rest.Config, user string, groups ...string) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: append(groups, "system:authenticated")}
	return cfg
}

// Kubeconfig writes cfg to a file that kubectl and our programs can read.
func Kubeconfig(t testing.TB, cfg *rest.Config) string {
	t.Helper()
	c := clientcmdapi.NewConfig()
	c.Clusters["test"] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	c.AuthInfos["test"] = &clientcmdapi.AuthInfo{ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData, Token: cfg.BearerToken}
	c.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	c.CurrentContext = "test"
	if !strings.Contains(c.Clusters["test"].Server, "://") {
		c.Clusters["test"].Server = "https://" + c.Clusters["test"].Server
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// DeleteAll removes every KubernetesCluster and waits for nothing.
func DeleteAll(ctx context.Context, c client.Client) error {
	return c.DeleteAllOf(ctx, &adminv2.KubernetesCluster{}, client.InNamespace("gloo-mesh"))
}
