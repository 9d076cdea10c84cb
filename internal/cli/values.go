package cli

import (
	"os"
	"strings"

	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

// readValues merges values files and --set, in that order, as helm does.
func readValues(files, sets []string) (map[string]any, error) {
	out := map[string]any{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, usageError("values file: %w", err)
		}
		values := map[string]any{}
		if err := yaml.Unmarshal(raw, &values); err != nil {
			return nil, usageError("values file %s: %w", file, err)
		}
		out = merge(out, values)
	}
	for _, set := range sets {
		if err := strvals.ParseInto(set, out); err != nil {
			return nil, usageError("--set %q: %w", set, err)
		}
	}
	return out, nil
}

// agentValues are the values by which the agent of a cluster differs from the chart's defaults. There is never a token or a key among them.
func agentValues(name, address, mgmtNamespace, clusterDomain, imageTag, registration string) map[string]any {
	relay := map[string]any{"serverAddress": address}
	if mgmtNamespace != "gloo-mesh" { // the chart's default: the name in the server's certificate
		relay["authority"] = serverName + "." + mgmtNamespace
	}
	agent := map[string]any{"enabled": true, "relay": relay}
	if registration != "" {
		agent["registration"] = registration
	}
	common := map[string]any{"cluster": name}
	if clusterDomain != "" {
		common["clusterDomain"] = clusterDomain
	}
	if imageTag != "" {
		common["imageTag"] = imageTag
	}
	return map[string]any{"common": common, "glooAgent": agent}
}

// restartValues let the agent restart gateways in namespaces, for a RootTrustPolicy with autoRestartPods. A person's own value goes before.
func restartValues(namespaces []string) map[string]any {
	list := make([]any, len(namespaces))
	for i, n := range namespaces {
		list[i] = n
	}
	return map[string]any{"glooAgent": map[string]any{"trust": map[string]any{"restartNamespaces": list}}}
}

// checkLabels refuses what the API server would refuse later.
func checkLabels(labels map[string]string) error {
	for k, v := range labels {
		problems := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...)
		if len(problems) > 0 {
			return usageError("--labels %s=%s: %s", k, v, strings.Join(problems, "; "))
		}
	}
	return nil
}
