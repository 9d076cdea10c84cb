// Package build makes the lab's heavy binaries from Go modules, once.
//
// In: the modules lab/kube, lab/istio, lab/vault and lab/certmanager of this repository, the Go toolchain and a
// cache folder. Out: paths of complete binaries, charts and CRDs in that cache. It
// must not leave anything half-built where a reader would look, must not build the
// same thing twice at a time, and must not change the repository.
package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Target is something to build.
type Target string

const (
	// Kube is the binary of lab/kube, Kubernetes and etcd.
	Kube Target = "kube"
	// Istio is istiod, with the charts and CRDs that fit it.
	Istio Target = "istio"
	// Vault is a Vault server, for tests of the driver. Built only when asked for.
	Vault Target = "vault"
	// CertManager is cert-manager's controllers with their CRDs, for tests of the driver. Built only when asked for.
	CertManager Target = "certmanager"
)

// Options say what to build, from where to where.
type Options struct {
	// Root is the root of the repository.
	Root string
	// CacheDir keeps what was built, for all checkouts of this user. Empty means
	// DefaultCacheDir.
	CacheDir string
	// Progress gets lines for people, without a line end; nil means none. It is not
	// called when everything is in the cache.
	Progress func(format string, args ...any)
	// Targets are what to build; empty means what the lab runs, Kube and Istio.
	Targets []Target
}

// Binaries is what was built. Paths of targets that were not asked for are empty.
type Binaries struct {
	// Dir is the folder of the kube target: the binary and Assets.
	Dir string
	// Kube is the multi-call binary with kube-apiserver, kube-controller-manager,
	// kube-scheduler, etcd, kubectl and cluster.
	Kube string
	// Assets holds kube-apiserver, etcd and kubectl, as envtest wants them in
	// KUBEBUILDER_ASSETS.
	Assets string
	// Kubectl is kubectl, in Assets.
	Kubectl string
	// Istiod is pilot-discovery.
	Istiod string
	// IstioDir holds manifests/charts and the rest of istio.io/istio's manifests.
	IstioDir string
	// GatewayAPIDir holds config/crd/standard and config/crd/experimental.
	GatewayAPIDir string
	// Vault is the program of lab/vault.
	Vault string
	// CertManager is the program of lab/certmanager; its CRDs are in the folder crds beside it.
	CertManager string
}

// DefaultCacheDir is $AMBIT_LAB_CACHE, or else the folder ambit-lab in the user's
// cache folder.
func DefaultCacheDir() (string, error) {
	if dir := os.Getenv("AMBIT_LAB_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder, set AMBIT_LAB_CACHE: %w", err)
	}
	return filepath.Join(dir, "ambit-lab"), nil
}

// Ensure builds what is not in the cache yet and returns where it is. The first call
// takes minutes. Several processes may call it at once: one builds, the others wait.
// When ctx ends, the compiler is stopped and nothing stays behind.
func Ensure(ctx context.Context, o Options) (Binaries, error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	if len(o.Targets) == 0 {
		o.Targets = []Target{Kube, Istio}
	}
	if o.CacheDir == "" {
		dir, err := DefaultCacheDir()
		if err != nil {
			return Binaries{}, err
		}
		o.CacheDir = dir
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return Binaries{}, err
	}
	if o.CacheDir, err = filepath.Abs(o.CacheDir); err != nil {
		return Binaries{}, err
	}
	var b Binaries
	for _, t := range o.Targets {
		r, ok := recipes(root)[t]
		if !ok {
			return Binaries{}, fmt.Errorf("build: no target %q", t)
		}
		dir, err := ensure(ctx, o.CacheDir, r, o.Progress)
		if err != nil {
			return Binaries{}, fmt.Errorf("build %s: %w", t, err)
		}
		b.set(t, dir)
	}
	return b, nil
}

func (b *Binaries) set(t Target, dir string) {
	switch t {
	case Kube:
		b.Dir, b.Kube, b.Assets = dir, filepath.Join(dir, "kube"), filepath.Join(dir, "assets")
		b.Kubectl = filepath.Join(b.Assets, "kubectl")
	case Istio:
		b.Istiod = filepath.Join(dir, "istiod")
		b.IstioDir, b.GatewayAPIDir = filepath.Join(dir, "istio"), filepath.Join(dir, "gateway-api")
	case Vault:
		b.Vault = filepath.Join(dir, "vault")
	case CertManager:
		b.CertManager = filepath.Join(dir, "certmanager")
	}
}

// keepUnused is how long what nobody asked for stays in the cache.
const keepUnused = 30 * 24 * time.Hour

// ensure returns the folder of a recipe's output, after building it if need be.
func ensure(ctx context.Context, cache string, r recipe, progress func(string, ...any)) (string, error) {
	g, err := findGo(ctx, r.module)
	if err != nil {
		return "", err
	}
	sum, err := r.hash(g)
	if err != nil {
		return "", err
	}
	final := filepath.Join(cache, r.name+"-"+sum)
	if isDir(final) {
		return final, touch(final)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, final+".lock", func() {
		progress("waiting for another process that builds %s", r.name)
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if isDir(final) { // the other process has built it
		return final, nil
	}
	if err := errors.Join(removeLeftovers(cache, r.name+"-"+sum), removeUnused(cache, r.name, time.Now())); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, tmpPrefix(r.name+"-"+sum))
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)                      // after the rename there is nothing to remove
	if err := os.Chmod(tmp, 0o755); err != nil { //nolint:gosec // a cache may be shared
		return "", err
	}
	began := time.Now()
	if err := r.build(ctx, g, tmp, progress); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", err
	}
	progress("built %s in %s", r.name, elapsed(time.Since(began)))
	return final, nil
}

func tmpPrefix(name string) string { return ".tmp-" + name + "-" }

// removeLeftovers removes what builds left that were killed. The caller holds the
// lock, so none of them is at work.
func removeLeftovers(cache, name string) error {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix(name)) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(cache, e.Name())))
		}
	}
	return err
}

// touch records that a folder of the cache is in use. Somebody else's cache, which can
// only be read, is fine too.
func touch(dir string) error {
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// removeUnused removes older builds of the same target that nobody has asked for in
// a long time.
func removeUnused(cache, name string, now time.Time) error {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, e2 := e.Info()
		if e2 == nil && fi.IsDir() && strings.HasPrefix(e.Name(), name+"-") && fi.ModTime().Add(keepUnused).Before(now) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(cache, e.Name())))
		}
	}
	return err
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// elapsed prints "48s" or "3m12s".
func elapsed(d time.Duration) string { return d.Round(time.Second).String() }

// estimate says how long a build takes here: measured processor time, spread over
// the processors.
func estimate(cpuSeconds int) string {
	n := runtime.NumCPU()
	minutes := max(1, (cpuSeconds/n+59)/60)
	return fmt.Sprintf("about %d min on %d cores", minutes, n)
}

// tail returns the last n of lines.
func tail(lines []string, n int) []string {
	return slices.Clone(lines[max(0, len(lines)-n):])
}
