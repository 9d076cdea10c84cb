package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	utilcompatibility "k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/compatibility"
	"k8s.io/klog/v2"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controllermanageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

const (
	// startTimeout bounds the start of one component.
	startTimeout = 2 * time.Minute
	// schedulerConfigz is the name the scheduler registers its configuration by.
	schedulerConfigz = "componentconfig"
	// controllerManagerInformers is the name of the controller manager's informers.
	controllerManagerInformers = "kube-controller-manager"
)

// component is a running part of a control plane.
type component struct {
	name string // for example `cluster "mgmt": kube-scheduler`
	stop context.CancelFunc
	done chan struct{} // closed when the component has returned
	err  error         // valid once done is closed
}

// runClusters starts the control planes one after the other and runs them until
// ctx ends or one component returns. Then it stops all, in each cluster in the
// reverse of the order of their start, and returns the error of the first that
// failed, with the component's name. They must start one at a time: see registry.go.
func runClusters(ctx context.Context, cfg config) error {
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	running := map[string][]*component{} // by cluster, in the order of their start
	failed := make(chan *component, 3*len(cfg.Clusters))
	defer func() {
		var all sync.WaitGroup
		for _, components := range running {
			all.Go(func() { stopComponents(components) })
		}
		all.Wait()
	}()

	start := func(cluster, name string, run func(context.Context) error) *component {
		// Not derived from ctx: the components are stopped one by one.
		cctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cctx = klog.NewContext(cctx, klog.LoggerWithName(klog.Background(), cluster))
		c := &component{name: fmt.Sprintf("cluster %q: %s", cluster, name), stop: cancel, done: make(chan struct{})}
		running[cluster] = append(running[cluster], c)
		go func() {
			c.err = run(cctx)
			close(c.done)
			failed <- c
		}()
		return c
	}
	for _, cl := range cfg.Clusters {
		if err := startCluster(ctx, cl, start); err != nil {
			if ctx.Err() != nil {
				return nil // asked to stop while starting
			}
			return err
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case c := <-failed:
		return c.failure()
	}
}

// stopComponents stops the last first: an API server outlives its clients.
func stopComponents(components []*component) {
	for _, c := range slices.Backward(components) {
		c.stop()
		<-c.done
	}
}

// failure describes why a component returned although nobody asked it to.
func (c *component) failure() error {
	if c.err == nil {
		return fmt.Errorf("%s: stopped by itself", c.name)
	}
	return fmt.Errorf("%s: %w", c.name, c.err)
}

// startCluster starts the three components of one control plane and returns when
// the API server is ready and the others have taken up their work.
func startCluster(ctx context.Context, cl clusterConfig, start func(cluster, name string, run func(context.Context) error) *component) error {
	began := time.Now()
	s, err := newAPIServer(cl.APIServer)
	if err != nil {
		return fmt.Errorf("cluster %q: kube-apiserver: %w", cl.Name, err)
	}
	c := start(cl.Name, "kube-apiserver", func(ctx context.Context) error { return runAPIServer(ctx, s) })
	addr := net.JoinHostPort(s.SecureServing.BindAddress.String(), strconv.Itoa(s.SecureServing.BindPort))
	if err := await(ctx, c, func() bool { return readyz(ctx, addr) }); err != nil {
		return err
	}
	if len(cl.ControllerManager) > 0 {
		c := start(cl.Name, "kube-controller-manager", func(ctx context.Context) error { return runControllerManager(ctx, cl.ControllerManager) })
		if err := awaitConfigz(ctx, c, controllermanager.ConfigzName); err != nil {
			return err
		}
		if err := awaitInformerName(ctx, c, controllerManagerInformers); err != nil {
			return err
		}
	}
	if len(cl.Scheduler) > 0 {
		c := start(cl.Name, "kube-scheduler", func(ctx context.Context) error { return runScheduler(ctx, cl.Scheduler) })
		if err := awaitConfigz(ctx, c, schedulerConfigz); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "kube cluster: cluster %q started in %.1fs\n", cl.Name, time.Since(began).Seconds())
	return nil
}

// await polls until ok, and gives up when ctx ends, the component returns or the
// time is up.
func await(ctx context.Context, c *component, ok func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("%s: not ready after %s", c.name, startTimeout))
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok() {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.done:
			return c.failure()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// readyz asks an API server of this very process, so the certificate needs no
// check; everybody may read /readyz.
func readyz(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+"/readyz", nil)
	if err != nil {
		return false
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// newRegistry makes feature gates and versions for one component. The ones that
// Kubernetes keeps per process accept flags of one component only.
func newRegistry() (compatibility.ComponentGlobalsRegistry, error) {
	gate := utilfeature.DefaultMutableFeatureGate.DeepCopy()
	version := utilcompatibility.DefaultBuildEffectiveVersion()
	r := compatibility.NewComponentGlobalsRegistry()
	return r, r.Register(compatibility.DefaultKubeComponent, version, gate)
}

func parse(sets cliflag.NamedFlagSets, args []string) error {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, s := range sets.FlagSets {
		fs.AddFlagSet(s)
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return nil
}

func newAPIServer(args []string) (*apiserveroptions.ServerRunOptions, error) {
	r, err := newRegistry()
	if err != nil {
		return nil, err
	}
	s := apiserveroptions.NewServerRunOptions()
	s.GenericServerRunOptions.ComponentGlobalsRegistry = r
	if err := parse(s.Flags(), args); err != nil {
		return nil, err
	}
	return s, r.Set()
}

func runAPIServer(ctx context.Context, s *apiserveroptions.ServerRunOptions) error {
	completed, err := s.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	return apiserver.Run(ctx, completed)
}

func runControllerManager(ctx context.Context, args []string) error {
	r, err := newRegistry()
	if err != nil {
		return err
	}
	s, err := controllermanageroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	s.ComponentGlobalsRegistry = r
	all, disabled, aliases := controllermanager.KnownControllers(), controllermanager.ControllersDisabledByDefault(), controllermanager.ControllerAliases()
	sets := s.Flags(all, disabled, aliases)
	if err := parse(sets, args); err != nil {
		return err
	}
	s.ParsedFlags = &sets
	if err := r.Set(); err != nil {
		return err
	}
	c, err := s.Config(ctx, all, disabled, aliases)
	if err != nil {
		return err
	}
	return controllermanager.Run(ctx, c.Complete())
}

func runScheduler(ctx context.Context, args []string) error {
	r, err := newRegistry()
	if err != nil {
		return err
	}
	opts := scheduleroptions.NewOptions()
	opts.ComponentGlobalsRegistry = r
	if err := parse(*opts.Flags, args); err != nil {
		return err
	}
	if err := r.Set(); err != nil {
		return err
	}
	cc, sched, err := scheduler.Setup(ctx, opts)
	if err != nil {
		return err
	}
	err = scheduler.Run(ctx, cc, sched)
	if ctx.Err() != nil {
		return nil // Run calls a normal stop an error
	}
	if err == nil {
		err = errors.New("returned")
	}
	return err
}
