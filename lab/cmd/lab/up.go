package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/lab/internal/daemon"
	"ambitmesh.dev/ambit/lab/internal/state"
)

// upOptions are the flags of `lab up`.
type upOptions struct {
	clusters   string
	oneProcess bool
	noMgmt     bool
	trust      string
	secretTTL  time.Duration
	traffic    bool
}

func upCommand(open func() (state.Dir, error)) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the lab, or show the one that runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := open()
			if err != nil {
				return err
			}
			switch t := state.Trust(o.trust); {
			case t != state.TrustShared && t != state.TrustSeparate && t != state.TrustPolicy:
				return fmt.Errorf("--trust %q: want shared, separate or policy", o.trust)
			case t == state.TrustPolicy && o.noMgmt:
				return errors.New("--trust policy needs the management plane: leave --no-mgmt out")
			}
			if o.secretTTL != 0 && o.secretTTL < 10*time.Second {
				return fmt.Errorf("--secret-ttl %s: want at least 10s", o.secretTTL)
			}
			return up(cmd.Context(), dir, o, cmd.Flags().Changed("clusters"), newPrinter(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&o.clusters, "clusters", "4",
		"workload clusters beside mgmt: a number (the last one, prod-eu-west-3, starts unregistered), or names separated by commas")
	cmd.Flags().BoolVar(&o.oneProcess, "one-process", false, "run all control planes in one process: less memory, but none can be stopped alone")
	cmd.Flags().BoolVar(&o.noMgmt, "no-mgmt", false, "do not install the management plane")
	cmd.Flags().StringVar(&o.trust, "trust", string(state.TrustShared),
		"where the istiods have their CA from: shared (intermediates under one root of the lab), separate (each makes a root: no cluster trusts another) or policy (a RootTrustPolicy: the management plane issues them)")
	cmd.Flags().BoolVar(&o.traffic, "traffic", false, "applications in namespace shop that call each other all the time, over clusters, with a slow, a failing and a denied one")
	cmd.Flags().DurationVar(&o.secretTTL, "secret-ttl", 0, "life of workload certificates (SECRET_TTL); istio's default of 24h when not given")
	return cmd
}

// printer writes progress lines with the time since the start.
type printer struct {
	w     io.Writer
	start time.Time
}

func newPrinter(w io.Writer) *printer { return &printer{w: w, start: time.Now()} }

func (p *printer) step(cluster, text string) {
	fmt.Fprintf(p.w, "%7.1fs  %-16s %s\n", time.Since(p.start).Seconds(), cluster, text)
}

// up starts a lab and returns when it is healthy. When ctx ends first,
// everything it has started or written is gone when it returns.
func up(ctx context.Context, dir state.Dir, o upOptions, chosen bool, out *printer) error {
	clusters, err := state.Clusters(o.clusters)
	if err != nil {
		return err
	}
	unlock, err := dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	lab, err := dir.Load()
	switch {
	case errors.Is(err, state.ErrNoLab):
		lab = &state.Lab{}
	case err != nil:
		return err
	case lab.Daemon.Alive():
		return join(ctx, dir, lab, clusters, chosen, out)
	case lab.Daemon.PID != 0:
		out.step("", "the lab that was here is gone; starting afresh with its ports")
	}
	fresh := lab.Daemon.PID == 0
	next := &state.Lab{
		Clusters: keepPorts(clusters, lab.Clusters), UIPort: lab.UIPort,
		OneProcess: o.oneProcess, NoMgmt: o.noMgmt, Started: time.Now(),
		Trust: state.Trust(o.trust), SecretTTL: o.secretTTL, Traffic: o.traffic,
	}
	cmd, err := launch(ctx, dir, next, out)
	if err != nil {
		if fresh || ctx.Err() != nil {
			err = errors.Join(err, dir.Remove())
		}
		return err
	}
	err = watch(ctx, dir, out)
	if ctx.Err() == nil {
		if err != nil {
			return err
		}
		return report(ctx, dir, next, out.w)
	}
	fmt.Fprintln(out.w, "stopping the half-started lab ...")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-ended
	}
	return errors.Join(ctx.Err(), dir.Remove())
}

// keepPorts gives clusters the ports they had.
func keepPorts(clusters, before []state.Cluster) []state.Cluster {
	for i := range clusters {
		for _, b := range before {
			if b.Name == clusters[i].Name {
				clusters[i].Port = b.Port
			}
		}
	}
	return clusters
}

// launch builds what is needed, opens the ports and starts the daemon.
func launch(ctx context.Context, dir state.Dir, lab *state.Lab, out *printer) (*exec.Cmd, error) {
	if err := dir.Clear(); err != nil {
		return nil, err
	}
	if err := dir.Make(); err != nil {
		return nil, err
	}
	// The ports come first: who has to free one should not wait for a build.
	ls, err := dir.Listen(lab)
	if err != nil {
		return nil, err
	}
	defer ls.Close()
	if err := build(ctx, dir, lab, out); err != nil {
		return nil, err
	}
	control, err := daemon.ListenUnix(dir.Socket())
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	if err := dir.Save(lab); err != nil {
		return nil, err
	}
	cmd, err := daemon.Start(dir, control, ls)
	if err != nil {
		return nil, err
	}
	if lab.Daemon, err = state.Identify(cmd.Process.Pid); err == nil {
		err = dir.Save(lab)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("the daemon ended at once (%w); its log: %s", err, dir.DaemonLog())
	}
	return cmd, nil
}

// watch prints the daemon's progress until it is done.
func watch(ctx context.Context, dir state.Dir, out *printer) error {
	var failure string
	err := daemon.Dial(dir.Socket()).Progress(ctx, func(e daemon.Event) {
		if e.Kind == daemon.KindFailed {
			failure = e.Text
			return
		}
		out.step(e.Cluster, e.Text)
	})
	if err != nil {
		return fmt.Errorf("%w; the end of its log, %s:\n%s", err, dir.DaemonLog(), lastLines(dir.DaemonLog(), 5))
	}
	if failure != "" {
		return fmt.Errorf("%s\nwhat was started goes on running: look with `lab status --state %[2]s` and `lab logs --state %[2]s`, end it with `lab down --state %[2]s`", failure, dir)
	}
	return nil
}

// lastLines returns the last n lines of a file.
func lastLines(file string, n int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// join shows a lab that runs already.
func join(ctx context.Context, dir state.Dir, lab *state.Lab, want []state.Cluster, chosen bool, out *printer) error {
	names := func(cs []state.Cluster) (out []string) {
		for _, c := range cs {
			out = append(out, c.Name)
		}
		return out
	}
	if chosen && !slices.Equal(names(want), names(lab.Clusters)) {
		return fmt.Errorf("a lab with other clusters (%v) runs in %s; `lab down --state %s` first, or use another --state", names(lab.Clusters), dir, dir)
	}
	fmt.Fprintf(out.w, "A lab is running here already (since %s).\n", lab.Started.Format("15:04:05"))
	steps := &printer{w: io.Discard, start: lab.Started}
	if s, err := daemon.Dial(dir.Socket()).Status(ctx); err == nil && s.Phase == "starting" {
		steps.w = out.w // whoever started it has gone; show how far it is
	}
	if err := watch(ctx, dir, steps); err != nil {
		return err
	}
	return report(ctx, dir, lab, out.w)
}

// report prints what a person needs to use the lab.
func report(ctx context.Context, dir state.Dir, lab *state.Lab, w io.Writer) error {
	s, err := daemon.Dial(dir.Socket()).Status(ctx)
	if err != nil {
		return err
	}
	_, err = exec.LookPath("kubectl")
	fmt.Fprintf(w, "\nThe lab is up: %s, %s resident.\n\n", count(len(lab.Clusters), "cluster"), mib(s.RSS))
	fmt.Fprintf(w, "  export KUBECONFIG=%s\n", dir.Kubeconfig())
	if err != nil || hasMeshctl(dir) {
		fmt.Fprintf(w, "  export PATH=%s:$PATH\n", dir.Bin())
	}
	if s.UI {
		fmt.Fprintf(w, "  UI: http://127.0.0.1:%d\n", lab.UIPort)
	}
	fmt.Fprintf(w, "\nTry:\n")
	for i, t := range tries(dir, lab) {
		fmt.Fprintf(w, "  %d. %s\n       %s\n", i+1, t[0], t[1])
	}
	return nil
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func hasMeshctl(dir state.Dir) bool {
	_, err := os.Stat(dir.Bin() + "/meshctl")
	return err == nil
}

// tries are three things to try, each with its command.
func tries(dir state.Dir, lab *state.Lab) [][2]string {
	var out [][2]string
	first := lab.Clusters[len(lab.Clusters)-1].Name
	if len(lab.Clusters) > 1 {
		first = lab.Clusters[1].Name
	}
	_, err := lab.Cluster(state.Unregistered)
	if err == nil && hasMeshctl(dir) && !lab.NoMgmt {
		out = append(out, [2]string{
			"Register the cluster that is not yet part of the mesh:",
			"meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3",
		}, [2]string{
			"See who registered what:",
			"kubectl --context mgmt -n gloo-mesh get kubernetescluster -o wide",
		})
	} else if len(lab.Clusters) > 1 {
		out = append(out, [2]string{
			"See a real istiod and its east-west gateway:",
			"kubectl --context " + first + " get pods,gateways -A",
		}, [2]string{
			"Roll istiod, as the operators' page does:",
			"kubectl --context " + first + " -n istio-system rollout restart deploy/istiod-gloo",
		})
	} else {
		out = append(out, [2]string{"See the node:", "kubectl --context mgmt get nodes -o wide"})
	}
	if len(lab.Clusters) > 1 {
		out = append(out, [2]string{
			"Call the demo application, which calls three others:",
			"kubectl --context " + first + " get --raw /api/v1/namespaces/bookinfo/services/productpage:9080/proxy/productpage",
		})
	}
	return out
}
