package addons

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ManagementPlane installs the product with its own CLI, as a person would:
// the lab adds nothing to it.
type ManagementPlane struct {
	Bin        string // folder with meshctl and the images of the product
	Kubeconfig string // contexts named as the clusters, reachable from here
	Mgmt       string // context of the management cluster
	LogDir     string
}

// ProductImages are the programs of the product that run as Pods; a program
// that does not exist yet is left out.
func ProductImages() []string {
	return []string{"gloo-mesh-mgmt-server", "gloo-mesh-agent", "gloo-mesh-ui"}
}

// meshctlTimeout bounds one command.
const meshctlTimeout = 2 * time.Minute

// installArgs and registerArgs are the commands, in the product's own words.
func (p ManagementPlane) installArgs() []string {
	return []string{
		"install", "--kubecontext", p.Mgmt,
		"--set", "glooMgmtServer.serviceType=LoadBalancer",
		"--set", "featureGates.ConfigDistribution=true", // peers between the clusters
	}
}

func (p ManagementPlane) registerArgs(cluster string) []string {
	return []string{
		"cluster", "register", cluster, "--mgmt-context", p.Mgmt, "--remote-context", cluster,
		"--set", "glooAgent.remoteSecrets.readSecrets=true",
	} // this istiod syncs with no token that may not (docs/design/tokens.md)
}

// Built reports whether there is a meshctl.
func (p ManagementPlane) Built() bool {
	_, err := os.Stat(filepath.Join(p.Bin, "meshctl"))
	return err == nil
}

// Install installs the management server and returns when it is ready.
func (p ManagementPlane) Install(ctx context.Context) error {
	return p.meshctl(ctx, "meshctl-install", p.installArgs())
}

// Register registers a cluster and returns when it is connected.
func (p ManagementPlane) Register(ctx context.Context, cluster string) error {
	return p.meshctl(ctx, "meshctl-register-"+cluster, p.registerArgs(cluster))
}

// meshctl runs one command; its output is kept in a log and, when it fails,
// its last lines are in the error.
func (p ManagementPlane) meshctl(ctx context.Context, log string, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, meshctlTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(p.Bin, "meshctl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.Kubeconfig, "HOME="+p.LogDir, "NO_PROXY=*", "no_proxy=*")
	out, err := cmd.CombinedOutput()
	file := filepath.Join(p.LogDir, log+".log")
	if werr := os.WriteFile(file, out, 0o644); werr != nil && err == nil {
		return fmt.Errorf("log of meshctl: %w", werr)
	}
	if err != nil {
		return fmt.Errorf("meshctl %s: %w\n%s\n(all of it: %s)", strings.Join(args, " "), err, tail(string(out), 10), file)
	}
	return nil
}

// tail returns the last n lines.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
