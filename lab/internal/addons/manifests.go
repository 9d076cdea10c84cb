package addons

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// EastWestNamespace and EastWestGateway name the east-west gateway and, since
// istiod names them after the Gateway, its Deployment, Service and account.
const (
	EastWestNamespace = "istio-eastwest"
	EastWestGateway   = "istio-eastwest"
)

// app is one demo application.
type app struct {
	Name, Deployment, Image      string
	ServiceAccount, AccountLabel string
	Port                         int
	Calls                        string // space-separated URLs it calls for each request
}

// demoNamespace is a namespace with its applications.
type demoNamespace struct {
	Name string
	Apps []app
}

// demo is the list of demo applications of every workload cluster.
func demo() []demoNamespace {
	return []demoNamespace{
		{Name: "bookinfo", Apps: []app{
			bookinfo("productpage", "http://details:9080/ http://reviews:9080/"),
			bookinfo("details", ""),
			bookinfo("reviews", "http://ratings:9080/"),
			bookinfo("ratings", ""),
		}},
		{Name: "payments", Apps: []app{plain("payments", "http://billing.billing:8080/")}},
		{Name: "billing", Apps: []app{plain("billing", "")}},
	}
}

// bookinfo is an application of the Istio sample, with its names and labels.
func bookinfo(name, calls string) app {
	return app{
		Name: name, Deployment: name + "-v1", Image: "docker.io/istio/examples-bookinfo-" + name + "-v1:1.20.3",
		ServiceAccount: "bookinfo-" + name, AccountLabel: "account", Port: 9080, Calls: calls,
	}
}

// plain is an application whose Deployment and ServiceAccount have its name.
func plain(name, calls string) app {
	return app{
		Name: name, Deployment: name, Image: "ambitmesh.dev/lab/labapp:dev",
		ServiceAccount: name, AccountLabel: "app", Port: 8080, Calls: calls,
	}
}

// DemoImages are the image names (last path component, no tag) that the node
// has to map to the demo server.
func DemoImages() []string {
	images := []string{"labapp"}
	for _, a := range demo()[0].Apps {
		images = append(images, "examples-bookinfo-"+a.Name+"-v1")
	}
	return images
}

// EastWest returns the east-west gateway of a cluster and its namespace.
func EastWest(cluster string) ([]*unstructured.Unstructured, error) {
	return manifest("eastwest.yaml", map[string]any{"Cluster": cluster})
}

// Demo returns the demo namespaces of a cluster with their applications.
func Demo(cluster string) ([]*unstructured.Unstructured, error) {
	return manifest("demo.yaml", map[string]any{"Cluster": cluster, "Namespaces": demo()})
}

// Shop returns the namespace with traffic that never rests: visitors ask frontend, which asks quotes (slow) and invoices (which fails at times, and asks ledger);
// ledger refuses visitors. All are global services: about every other call goes to another cluster.
func Shop(cluster string) ([]*unstructured.Unstructured, error) {
	return manifest("shop.yaml", map[string]any{"Cluster": cluster, "Apps": []map[string]string{
		{"Name": "visitors", "Env": "TRAFFIC", "Value": "http://frontend.shop:8080/@400ms http://ledger.shop:8080/@2s"},
		{"Name": "frontend", "Env": "CALLS", "Value": "http://quotes.shop:8080/ http://invoices.shop:8080/"},
		{"Name": "quotes", "Env": "SLOW", "Value": "300ms"},
		{"Name": "invoices", "Env": "CALLS", "Value": "http://ledger.shop:8080/", "Errors": "0.12"},
		{"Name": "ledger", "Env": "SLOW", "Value": "4ms"},
	}})
}

// IstioSystem returns the namespace of istiod, which carries the network name.
func IstioSystem(cluster string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Namespace",
		"metadata": map[string]any{
			"name": IstioNamespace,
			"labels": map[string]any{
				"topology.istio.io/network": cluster,
				"topology.istio.io/cluster": cluster,
			},
		},
	}}
}

func manifest(name string, data any) ([]*unstructured.Unstructured, error) {
	t, err := template.ParseFS(manifests, "manifests/"+name)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	objs, err := decode(b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	return objs, nil
}
