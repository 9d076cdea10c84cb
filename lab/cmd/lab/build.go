package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"ambitmesh.dev/ambit/lab/internal/addons"
	heavy "ambitmesh.dev/ambit/lab/internal/build"
	"ambitmesh.dev/ambit/lab/internal/state"
)

func buildCommand() *cobra.Command {
	return &cobra.Command{
		Use: "build", Short: "Build the lab's heavy binaries into the cache, and start nothing", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, err := repository()
			if err != nil {
				return err
			}
			b, err := ensure(cmd.Context(), repo, newPrinter(cmd.OutOrStdout()))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s\n", b.Kube, b.Istiod)
			return nil
		},
	}
}

func ensure(ctx context.Context, repo string, out *printer) (heavy.Binaries, error) {
	return heavy.Ensure(ctx, heavy.Options{
		Root:     repo,
		Progress: func(format string, a ...any) { out.step("", fmt.Sprintf(format, a...)) },
	})
}

// build makes every program of the lab and lays the images folder out.
func build(ctx context.Context, dir state.Dir, lab *state.Lab, out *printer) error {
	repo, err := repository()
	if err != nil {
		return err
	}
	var b heavy.Binaries
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		b, err = ensure(gctx, repo, out)
		return err
	})
	g.Go(func() error {
		return goBuild(gctx, filepath.Join(repo, "lab"), dir.Bin(), "./cmd/labapp")
	})
	g.Go(func() error {
		return goBuild(gctx, filepath.Join(repo, "lab", "istio"), dir.Bin(), "./cmd/labproxy")
	})
	g.Go(func() error {
		if lab.NoMgmt {
			return nil
		}
		return goBuild(gctx, repo, dir.Bin(), product(repo)...)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	lab.Kube, lab.IstioDir, lab.GatewayDir = b.Kube, b.IstioDir, b.GatewayAPIDir
	images := map[string]string{
		"istiod": b.Istiod, "pilot": b.Istiod,
		"proxyv2": filepath.Join(dir.Bin(), "labproxy"), "ztunnel": filepath.Join(dir.Bin(), "labproxy"),
	}
	for _, name := range addons.DemoImages() {
		images[name] = filepath.Join(dir.Bin(), "labapp")
	}
	for _, name := range addons.ProductImages() {
		if bin := filepath.Join(dir.Bin(), name); exists(bin) {
			images[name] = bin
		}
	}
	for name, bin := range images {
		if err := link(bin, filepath.Join(dir.Images(), name)); err != nil {
			return err
		}
	}
	if err := link(b.Kubectl, filepath.Join(dir.Bin(), "kubectl")); err != nil {
		return err
	}
	out.step("", "programs are built")
	return nil
}

// product lists the programs of the product that this checkout has. Without
// all that an installation takes, there is none.
func product(repo string) []string {
	var out []string
	for _, name := range append(addons.ProductImages(), "meshctl") {
		if exists(filepath.Join(repo, "cmd", name, "main.go")) {
			out = append(out, "./cmd/"+name)
		}
	}
	for _, needed := range []string{"meshctl", "gloo-mesh-mgmt-server", "gloo-mesh-agent"} {
		if !slices.Contains(out, "./cmd/"+needed) {
			return nil
		}
	}
	return out
}

// goBuild builds static programs of the module in repo into a folder.
func goBuild(ctx context.Context, module, into string, pkgs ...string) error {
	if len(pkgs) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-buildvcs=false", "-tags=grpcnotrace", "-ldflags=-s -w", "-o", into + "/"}, pkgs...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &errs, &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(pkgs, " "), err, strings.TrimSpace(errs.String()))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// link points name at bin, whatever was there.
func link(bin, name string) error {
	if err := os.RemoveAll(name); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if err := os.Symlink(bin, name); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return nil
}
