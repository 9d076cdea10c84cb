// Command certmanager is a real cert-manager for tests: its controllers of issuers and of CertificateRequests, without webhook, ACME and certificates.
//
// In: a kubeconfig of an API server that has cert-manager's CRDs, and whether requests are approved. Out: the controllers at work, and on standard output the line "ready" when their
// caches are full. It must not be shipped and nothing of the product may import it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	// Each of these registers controllers or kinds of issuers.
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	"golang.org/x/sync/errgroup"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "of the API server")
	namespace := flag.String("cluster-resource-namespace", "cert-manager", "where ClusterIssuers have their Secrets")
	approve := flag.Bool("approve", true, "approve every request, as cert-manager does unless somebody decides otherwise")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *kubeconfig, *namespace, *approve)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "certmanager:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, namespace string, approve bool) error {
	f, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig: kubeconfig, KubernetesAPIQPS: 50, KubernetesAPIBurst: 100,
		IssuerOptions: controller.IssuerOptions{ClusterResourceNamespace: namespace},
	})
	if err != nil {
		return err
	}
	all := controller.Known()
	if !approve {
		delete(all, approver.ControllerName)
	}
	g, ctx := errgroup.WithContext(ctx)
	for name, construct := range all {
		c, err := construct(f)
		if err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
		g.Go(func() error { return c.Run(2, ctx) })
	}
	base, err := f.Build()
	if err != nil {
		return err
	}
	base.SharedInformerFactory.Start(ctx.Done())
	base.KubeSharedInformerFactory.Start(ctx.Done())
	base.SharedInformerFactory.WaitForCacheSync(ctx.Done())
	base.KubeSharedInformerFactory.WaitForCacheSync(ctx.Done())
	fmt.Fprintln(os.Stdout, "ready")
	return g.Wait()
}
