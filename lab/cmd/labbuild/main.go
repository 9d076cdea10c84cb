// Command labbuild makes the lab's heavy binaries, if they are not in the cache, and
// prints where they are.
//
// In: "assets" (only kube-apiserver, etcd and kubectl, for envtest), "vault" (a Vault
// server, for tests), "certmanager" (cert-manager's controllers, for tests) or "all" that the lab runs. Out: one line on standard output, the
// folder for KUBEBUILDER_ASSETS or the path of the program, or for "all" one line NAME=PATH for
// each result; progress goes to standard error. It must print nothing
// else on standard output, since scripts read it:
//
//	KUBEBUILDER_ASSETS=$(cd lab && go run ./cmd/labbuild assets) go test ./...
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"ambitmesh.dev/ambit/lab/internal/build"
)

const usage = "usage: labbuild assets | vault | certmanager | all   (run it anywhere below the repository)"

func main() {
	if len(os.Args) != 2 || !slices.Contains([]string{"assets", "vault", "certmanager", "all"}, os.Args[1]) {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "labbuild:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, what string) error {
	if given := os.Getenv("KUBEBUILDER_ASSETS"); what == "assets" && given != "" {
		return useGiven(given)
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	root, err := findRoot(wd)
	if err != nil {
		return err
	}
	o := build.Options{Root: root, Progress: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "labbuild: "+format+"\n", args...)
	}}
	switch what {
	case "assets":
		o.Targets = []build.Target{build.Kube}
	case "vault":
		o.Targets = []build.Target{build.Vault}
	case "certmanager":
		o.Targets = []build.Target{build.CertManager}
	}
	b, err := build.Ensure(ctx, o)
	if err != nil {
		return err
	}
	switch what {
	case "assets":
		fmt.Fprintln(os.Stdout, b.Assets)
		return nil
	case "vault":
		fmt.Fprintln(os.Stdout, b.Vault)
		return nil
	case "certmanager":
		fmt.Fprintln(os.Stdout, b.CertManager)
		return nil
	}
	fmt.Fprintf(os.Stdout, "kube=%s\nassets=%s\nistiod=%s\nistio=%s\ngateway-api=%s\n", b.Kube, b.Assets, b.Istiod, b.IstioDir, b.GatewayAPIDir)
	return nil
}

// useGiven prints the folder of somebody who has the binaries from elsewhere.
func useGiven(dir string) error {
	var err error
	for _, name := range []string{"kube-apiserver", "etcd", "kubectl"} {
		_, e := exec.LookPath(filepath.Join(dir, name))
		err = errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("KUBEBUILDER_ASSETS is set but not complete: %w", err)
	}
	fmt.Fprintln(os.Stdout, dir)
	return nil
}

// findRoot goes up from dir to the folder that holds lab/kube/go.mod.
func findRoot(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		raw, err := os.ReadFile(filepath.Join(d, "lab", "kube", "go.mod"))
		if err == nil && strings.Contains(string(raw), "ambitmesh.dev/ambit/lab/kube") {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not inside the repository", dir)
		}
	}
}
