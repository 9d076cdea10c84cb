// Command kube is Kubernetes in one binary: kube-apiserver,
// kube-controller-manager, kube-scheduler, etcd and kubectl, as the lab needs
// them, plus "cluster", which runs whole control planes in one process.
//
// In: the name it was called by (argv[0], so that a folder of symlinks serves
// as KUBEBUILDER_ASSETS), or else its first argument, and then the flags of the
// component, unchanged. Out: that component. It must not change what a component
// does: the lab's value is that these are the real ones.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	_ "time/tzdata" // time zones of CronJobs

	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's authentication plugins
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

const usage = `usage: kube COMPONENT [flags]
components: kube-apiserver, kube-controller-manager, kube-scheduler, etcd, kubectl,
            cluster --config FILE (all components of one or several clusters in this process)`

func main() {
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
	if !isComponent(name) {
		if len(os.Args) < 2 || !isComponent(os.Args[1]) {
			fmt.Fprintln(os.Stderr, usage)
			os.Exit(2)
		}
		// From here on the process looks as if it had been called by its name.
		name = os.Args[1]
		os.Args = append([]string{name}, os.Args[2:]...)
	}
	switch name {
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(controllermanager.NewControllerManagerCommand()))
	case "kube-scheduler":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case "etcd":
		etcdmain.Main(os.Args)
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	case "cluster":
		os.Exit(clusterMain(os.Args[1:]))
	}
}

func isComponent(name string) bool {
	switch name {
	case "kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "kubectl", "cluster":
		return true
	}
	return false
}

// clusterMain is "kube cluster --config FILE". It returns the exit code: 0
// after a stop by SIGTERM or SIGINT, 1 when a component failed (its name is
// the start of the last line on standard error), 2 for a bad configuration.
func clusterMain(args []string) int {
	if len(args) != 2 || args[0] != "--config" {
		fmt.Fprintln(os.Stderr, "usage: kube cluster --config FILE")
		return 2
	}
	cfg, err := loadConfig(args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube cluster:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := runClusters(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "kube cluster:", err)
		return 1
	}
	return 0
}
