package addons

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Names of the Istio installation, as the operators' page uses them.
const (
	IstioNamespace   = "istio-system"
	IstiodDeployment = "istiod-gloo"
	ZtunnelDaemonSet = "ztunnel"
	// IstioTag is the image tag of the istiod and proxy Pods. It is a label
	// for readers: the node maps images to local binaries by name alone.
	IstioTag = "1.31.0"
)

// Sources are the folders the charts and CRDs come from.
type Sources struct {
	IstioDir      string // has manifests/charts
	GatewayAPIDir string // has config/crd/standard
}

// CRDs returns the CustomResourceDefinitions of Istio and of the Gateway API's
// standard channel.
func CRDs(src Sources) ([]*unstructured.Unstructured, error) {
	files, err := filepath.Glob(filepath.Join(src.GatewayAPIDir, "config/crd/standard/gateway.networking.k8s.io_*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("CRDs of the Gateway API: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CRDs of the Gateway API in %s", src.GatewayAPIDir)
	}
	files = append(files, filepath.Join(src.IstioDir, "manifests/charts/base/files/crd-all.gen.yaml"))
	var out []*unstructured.Unstructured
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read CRDs: %w", err)
		}
		objs, err := decode(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		for _, o := range objs {
			if o.GetKind() == "CustomResourceDefinition" { // the safe-upgrade policies are of no use here
				out = append(out, o)
			}
		}
	}
	return out, nil
}

// Istiod renders the real charts `base` and `istiod` with the ambient profile
// for one cluster. The network of the cluster is its name.
//
// The charts are rendered with the default revision, so that Service `istiod`,
// the injector ConfigMap, the webhooks, and the Gateways of the istio-*
// classes are those of a stock installation; only the Deployment is renamed to
// istiod-gloo, the name operators' commands use. Rendering with revision
// "gloo" would name the Deployment so too, but moves Service, CA address and
// webhook selectors to names that stock clients do not look for.
//
// secretTTL is how long certificates of gateways live; 24 h when zero.
func Istiod(src Sources, cluster string, secretTTL time.Duration) ([]*unstructured.Unstructured, error) {
	charts := filepath.Join(src.IstioDir, "manifests/charts")
	base, err := renderChart(filepath.Join(charts, "base"), "istio-base", map[string]any{
		"base": map[string]any{"enableCRDTemplates": false, "enableIstioConfigCRDs": false},
	})
	if err != nil {
		return nil, err
	}
	discovery, err := renderChart(filepath.Join(charts, "istio-control/istio-discovery"), "istiod-gloo", istiodValues(cluster, secretTTL))
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, o := range append(base, discovery...) {
		switch o.GetKind() {
		case "HorizontalPodAutoscaler", "PodDisruptionBudget", "CustomResourceDefinition":
			continue // one replica, no metrics API; the CRDs come from CRDs
		case "Deployment":
			o.SetName(IstiodDeployment)
		}
		out = append(out, o)
	}
	return out, nil
}

// istiodValues are the chart values of one cluster: what multi-cluster ambient
// needs of a stock istiod, and little memory.
func istiodValues(cluster string, secretTTL time.Duration) map[string]any {
	small := map[string]any{"requests": map[string]any{"cpu": "10m", "memory": "64Mi"}}
	meshConfig := map[string]any{"trustDomain": "cluster.local"}
	if secretTTL > 0 {
		meshConfig["defaultConfig"] = map[string]any{"proxyMetadata": map[string]any{"SECRET_TTL": secretTTL.String()}}
	}
	return map[string]any{
		"profile":          "ambient",
		"autoscaleEnabled": false,
		"replicaCount":     1,
		"resources":        small,
		"variant":          "",
		"env": map[string]any{
			"PILOT_ENABLE_AMBIENT":         "true",
			"AMBIENT_ENABLE_MULTI_NETWORK": "true",
			"ISTIO_MULTIROOT_MESH":         "true", // a root change by reload, not by restart
			"PILOT_REMOTE_CLUSTER_TIMEOUT": "3s",   // one bad remote secret otherwise holds readiness for 30 s
			"GOGC":                         "50",
		},
		"meshConfig": meshConfig,
		"global": map[string]any{
			"hub":               "docker.io/istio",
			"tag":               IstioTag,
			"variant":           "",
			"network":           cluster,
			"meshID":            "mesh1",
			"imagePullPolicy":   "IfNotPresent",
			"priorityClassName": "",
			"multiCluster":      map[string]any{"clusterName": cluster, "enabled": true},
			"networkPolicy":     map[string]any{"enabled": false},
			"waypoint":          map[string]any{"resources": small},
			"proxy":             map[string]any{"resources": small},
			"defaultPodDisruptionBudget": map[string]any{
				"enabled": false,
			},
		},
	}
}

// Ztunnel renders the real chart `ztunnel` for one cluster. secretTTL is how
// long workload certificates live; 24 h when zero.
func Ztunnel(src Sources, cluster string, secretTTL time.Duration) ([]*unstructured.Unstructured, error) {
	values := map[string]any{
		"profile": "ambient", "hub": "docker.io/istio", "tag": IstioTag, "variant": "", "network": cluster, "imagePullPolicy": "IfNotPresent",
		"multiCluster":                  map[string]any{"clusterName": cluster},
		"terminationGracePeriodSeconds": 25,
		"resources":                     map[string]any{"requests": map[string]any{"cpu": "10m", "memory": "64Mi"}},
	}
	if secretTTL > 0 {
		values["env"] = map[string]any{"SECRET_TTL": secretTTL.String()}
	}
	return renderChart(filepath.Join(src.IstioDir, "manifests/charts/ztunnel"), "ztunnel", values)
}

// renderChart renders a chart folder as `helm template` does, for namespace
// istio-system.
func renderChart(dir, release string, values map[string]any) ([]*unstructured.Unstructured, error) {
	chart, err := loader.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", dir, err)
	}
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = chartutil.KubeVersion{Version: "v1.36.0", Major: "1", Minor: "36"}
	opts := chartutil.ReleaseOptions{Name: release, Namespace: IstioNamespace, Revision: 1, IsInstall: true}
	vals, err := chartutil.ToRenderValues(chart, values, opts, caps)
	if err != nil {
		return nil, fmt.Errorf("chart %s: values: %w", dir, err)
	}
	files, err := engine.Render(chart, vals)
	if err != nil {
		return nil, fmt.Errorf("chart %s: render: %w", dir, err)
	}
	names := make([]string, 0, len(files))
	for name := range files {
		if strings.HasSuffix(name, ".yaml") {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	var out []*unstructured.Unstructured
	for _, name := range names {
		objs, err := decode([]byte(files[name]))
		if err != nil {
			return nil, fmt.Errorf("chart %s: %s: %w", dir, name, err)
		}
		out = append(out, objs...)
	}
	return out, nil
}

// decode splits a YAML stream into objects and drops empty documents.
func decode(data []byte) ([]*unstructured.Unstructured, error) {
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	var out []*unstructured.Unstructured
	for {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode YAML: %w", err)
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
}
