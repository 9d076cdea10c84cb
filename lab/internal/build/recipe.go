package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// kubeVersion and istioVersion are what the binaries say they are. They are given
// at link time, since the modules' own defaults are "v0.0.0" and "unknown".
const (
	kubeVersion  = "v1.36.3"
	istioVersion = "1.31-alpha.eed52ebb66ad"
)

// recipe says how to make one target.
type recipe struct {
	name string
	// module is the folder of the Go module to build in.
	module string
	// pkg is the package to build, out the name of the binary.
	pkg, out string
	// ldflags are given to the linker after -s -w.
	ldflags []string
	// cpuSeconds is what a build with an empty build cache takes, measured.
	cpuSeconds int
	// links are symlinks by their paths, to their targets.
	links map[string]string
	// copies are folders of modules to copy beside the binary.
	copies []moduleFolder
}

// moduleFolder is a folder of a Go module that goes to a folder of the output.
type moduleFolder struct{ module, from, to string }

func recipes(root string) map[Target]recipe {
	const componentVersion = "k8s.io/component-base/version."
	const pilotVersion = "istio.io/istio/pkg/version."
	return map[Target]recipe{
		Kube: {
			name: "kube", module: filepath.Join(root, "lab", "kube"), pkg: ".", out: "kube", cpuSeconds: 540,
			ldflags: []string{
				"-X " + componentVersion + "gitVersion=" + kubeVersion,
				"-X " + componentVersion + "gitMajor=1",
				"-X " + componentVersion + "gitMinor=36",
				"-X " + componentVersion + "gitTreeState=clean",
			},
			links: map[string]string{
				"assets/kube-apiserver": "../kube", "assets/etcd": "../kube", "assets/kubectl": "../kube",
			},
		},
		Istio: {
			name: "istio", module: filepath.Join(root, "lab", "istio"), pkg: "istio.io/istio/pilot/cmd/pilot-discovery",
			out: "istiod", cpuSeconds: 420,
			ldflags: []string{
				"-X " + pilotVersion + "buildVersion=" + istioVersion,
				"-X " + pilotVersion + "buildTag=" + istioVersion,
				"-X " + pilotVersion + "buildStatus=Clean",
			},
			copies: []moduleFolder{
				{"istio.io/istio", "manifests", "istio/manifests"},
				{"sigs.k8s.io/gateway-api", "config/crd", "gateway-api/config/crd"},
			},
		},
		Vault: {name: "vault", module: filepath.Join(root, "lab", "vault"), pkg: ".", out: "vault", cpuSeconds: 300},
		CertManager: {
			name: "certmanager", module: filepath.Join(root, "lab", "certmanager"), pkg: ".", out: "certmanager", cpuSeconds: 220,
			copies: []moduleFolder{{"github.com/cert-manager/cert-manager", "deploy/crds", "crds"}},
		},
	}
}

// buildArgs are the arguments of "go" without the output.
func (r recipe) buildArgs() []string {
	flags := append([]string{"-s", "-w"}, r.ldflags...)
	return []string{"build", "-v", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags=" + strings.Join(flags, " ")}
}

// hash names a build by all that it depends on: the module's files (of one whose
// program is another module's, only go.mod and go.sum), the toolchain and what
// is asked of it.
func (r recipe) hash(g goTool) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%q\n%q %q %q %q\n", g.version, r.buildArgs(), r.pkg, r.out, sortedLinks(r.links), r.copies)
	var files []string
	err := filepath.WalkDir(r.module, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		switch {
		case d.IsDir() && path != r.module && (base == "testdata" || strings.HasPrefix(base, ".")):
			return filepath.SkipDir
		case d.IsDir(), strings.HasSuffix(base, "_test.go"):
		case base == "go.mod", base == "go.sum", strings.HasPrefix(r.pkg, ".") && strings.HasSuffix(base, ".go"):
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	for _, path := range files { // WalkDir goes in lexical order
		raw, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		rel, err := filepath.Rel(r.module, path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", filepath.ToSlash(rel), sha256.Sum256(raw))
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func sortedLinks(links map[string]string) []string {
	var all []string
	for path, target := range links {
		all = append(all, path+"="+target)
	}
	sort.Strings(all)
	return all
}

// build makes all of the recipe's output in dir.
func (r recipe) build(ctx context.Context, g goTool, dir string, progress func(string, ...any)) error {
	if err := g.build(ctx, r, filepath.Join(dir, r.out), progress); err != nil {
		return err
	}
	for path, target := range r.links {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, path); err != nil {
			return err
		}
	}
	for _, c := range r.copies {
		src, err := g.moduleDir(ctx, r.module, c.module)
		if err != nil {
			return err
		}
		if err := copyTree(filepath.Join(src, c.from), filepath.Join(dir, c.to)); err != nil {
			return fmt.Errorf("copy %s of %s: %w", c.from, c.module, err)
		}
	}
	return nil
}

// copyTree copies folders and plain files. The module cache is read-only; the copy is
// not, so that the cache can be removed by plain means.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		return copyFile(path, dst)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644) //nolint:gosec // a cache may be shared
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
