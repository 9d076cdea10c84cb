// Package charts embeds the two Helm charts, so that meshctl installs exactly what it was tested with.
//
// In: nothing. Out: a chart by name, as Helm's SDK takes it. It must not render or install: that is internal/cli.
package charts

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// The names of the charts, which are also the names of their releases.
const (
	Platform = "gloo-platform"      // management server and agent
	CRDs     = "gloo-platform-crds" // custom resource definitions
)

// "all:" because Helm's helper files begin with an underscore, which embed leaves out otherwise.
//
//go:embed all:gloo-platform all:gloo-platform-crds
var files embed.FS

// Load returns one of the embedded charts. Each call returns a chart of its own: Helm changes charts while it renders them.
func Load(name string) (*chart.Chart, error) {
	var buffered []*archive.BufferedFile
	err := fs.WalkDir(files, name, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".go") {
			return err
		}
		data, err := files.ReadFile(path)
		buffered = append(buffered, &archive.BufferedFile{Name: strings.TrimPrefix(path, name+"/"), Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("embedded chart %q: %w", name, err)
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		return nil, fmt.Errorf("embedded chart %q: %w", name, err)
	}
	return c, nil
}
