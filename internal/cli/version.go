package cli

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ambitversion "ambitmesh.dev/ambit/internal/version"
)

// versionReport is the document of `version -o json`.
type versionReport struct {
	Client struct {
		Version  string `json:"version"`
		Go       string `json:"go"`
		Platform string `json:"platform"`
	} `json:"client"`
	Server []component `json:"server,omitempty"`
	Error  string      `json:"serverError,omitempty"`
}

// component is a program of ours that runs in the cluster.
type component struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Image     string `json:"image"`
	Version   string `json:"version"`
}

func (a *app) versionCommand() *cobra.Command {
	var mgmtContext, output string
	var clientOnly bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Versions of meshctl and of what runs in the cluster",
		Long:    "Prints the version of meshctl, and the images of the management plane when its cluster can be reached.\n\n" + exitHelp,
		Example: "  meshctl version --kubecontext mgmt\n  meshctl version --client -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := parseFormat(output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			var report versionReport
			report.Client.Version, report.Client.Go, report.Client.Platform = ambitversion.Version, runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH
			if !clientOnly {
				if report.Server, err = a.components(cmd.Context(), firstOf(mgmtContext, a.Context)); err != nil {
					report.Error = err.Error()
				}
			}
			return a.printVersion(format, report)
		},
	}
	a.mgmtContextFlag(cmd, &mgmtContext)
	cmd.Flags().BoolVar(&clientOnly, "client", false, "the version of meshctl only")
	formatFlag(cmd, &output, formatTable, formatJSON, formatYAML)
	return cmd
}

// components lists the Deployments of ours in the namespace.
func (a *app) components(ctx context.Context, contextName string) ([]component, error) {
	c, err := a.connect("", contextName, "--mgmt-context")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var list appsv1.DeploymentList
	if err := c.List(ctx, &list, client.InNamespace(a.Namespace), client.MatchingLabels{"app.kubernetes.io/part-of": "gloo-platform"}); err != nil {
		return nil, c.says("list Deployments in "+a.Namespace, err)
	}
	var out []component
	for _, d := range list.Items {
		for _, container := range d.Spec.Template.Spec.Containers {
			out = append(out, component{Namespace: d.Namespace, Name: d.Name, Image: container.Image, Version: tagOf(container.Image)})
		}
	}
	return out, nil
}

// tagOf is the tag of an image reference.
func tagOf(image string) string {
	image, _, _ = strings.Cut(image, "@")
	name := image[strings.LastIndex(image, "/")+1:]
	_, tag, ok := strings.Cut(name, ":")
	if !ok {
		return "latest"
	}
	return tag
}

func (a *app) printVersion(f format, r versionReport) error {
	if f != formatTable {
		return printDocument(a.streams.Out, f, r)
	}
	fmt.Fprintf(a.streams.Out, "Client: %s (%s, %s)\n", r.Client.Version, r.Client.Go, r.Client.Platform)
	switch {
	case r.Error != "":
		fmt.Fprintf(a.streams.Out, "Server: unknown: %s\n", r.Error)
	case len(r.Server) > 0:
		var rows [][]string
		for _, c := range r.Server {
			rows = append(rows, []string{c.Namespace, c.Name, c.Version, c.Image})
		}
		fmt.Fprintln(a.streams.Out, "Server:")
		printTable(a.streams.Out, "  ", []string{"NAMESPACE", "NAME", "VERSION", "IMAGE"}, rows)
	}
	return nil
}
