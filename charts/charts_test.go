package charts_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	kyaml "sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/internal/version"
)

// render is `helm template`.
func render(t *testing.T, chart string, values map[string]any) (string, error) {
	t.Helper()
	c, err := charts.Load(chart)
	if err != nil {
		t.Fatal(err)
	}
	install := action.NewInstall(action.NewConfiguration())
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = chart, "gloo-mesh"
	install.KubeVersion = &common.KubeVersion{Version: "v1.37.0", Major: "1", Minor: "37"}
	out, err := install.RunWithContext(t.Context(), c, values)
	if err != nil {
		return "", err
	}
	return out.(*release.Release).Manifest, nil
}

func readValues(t *testing.T, file string) map[string]any {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{}
	if err := kyaml.Unmarshal(raw, &values); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return values
}

// TestGolden renders the chart with every testdata/<case>/values.yaml; UPDATE=1 rewrites out.yaml.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/values.yaml")
	if err != nil || len(cases) < 5 {
		t.Fatalf("cases: %v %v", cases, err)
	}
	for _, in := range cases {
		dir := filepath.Dir(in)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			got, err := render(t, charts.Platform, readValues(t, in))
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join(dir, "out.yaml")
			if os.Getenv("UPDATE") == "1" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got; UPDATE=1 rewrites it):\n%s", golden, diff)
			}
		})
	}
}

func TestLint(t *testing.T) {
	cases, _ := filepath.Glob("testdata/*/values.yaml")
	for _, chart := range []string{charts.Platform, charts.CRDs} {
		for _, values := range cases {
			lint := action.NewLint()
			lint.Strict, lint.Namespace = true, "gloo-mesh"
			for _, err := range lint.Run([]string{chart}, readValues(t, values)).Errors {
				t.Errorf("helm lint %s -f %s: %v", chart, values, err)
			}
		}
	}
}

func TestVersions(t *testing.T) {
	for _, name := range []string{charts.Platform, charts.CRDs} {
		c, err := charts.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if c.Metadata.Version != version.Version || c.Metadata.AppVersion != version.Version || c.Metadata.Name != name {
			t.Errorf("chart %s: version %s, appVersion %s; want %s, the version of the programs", c.Metadata.Name, c.Metadata.Version, c.Metadata.AppVersion, version.Version)
		}
	}
}

// documents decodes every object of a manifest into T if it is of the kind.
func documents[T any](t *testing.T, manifest, kind string) []T {
	t.Helper()
	var out []T
	decoder := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifest)))
	for {
		doc, err := decoder.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		var meta struct {
			Kind string `json:"kind"`
		}
		if err := kyaml.Unmarshal(doc, &meta); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if meta.Kind != kind {
			continue
		}
		var object T
		if err := kyaml.UnmarshalStrict(doc, &object); err != nil {
			t.Fatalf("%s: %v in\n%s", kind, err, doc)
		}
		out = append(out, object)
	}
}

func everything() map[string]any {
	return map[string]any{
		"common":         map[string]any{"cluster": "mgmt"},
		"glooMgmtServer": map[string]any{"enabled": true, "registerCluster": true, "trust": map[string]any{"certManager": true, "serviceAccounts": []any{"vault-login"}}},
		"glooAgent":      map[string]any{"enabled": true, "remoteSecrets": map[string]any{"readSecrets": true}},
	}
}

// writtenEverywhere is all that may be written in every namespace, by ClusterRole: "group/resources verbs".
var writtenEverywhere = map[string][]string{
	"gloo-mesh-mgmt-server": { // policies lie in any namespace
		"security.policy.gloo.solo.io/accesspolicies/status,policyoverrides/status patch",
		"networking.solo.io/segments/status patch",
		"admin.gloo.solo.io/workspaces/status,workspacesettings/status patch",
		"security.policy.gloo.solo.io/policyoverrides delete", // those that have ended
		"/events get,create,patch",
	},
	"gloo-mesh-agent": {
		"security.istio.io/authorizationpolicies,peerauthentications get,list,watch,create,update,patch,delete", // what AccessPolicies become
		"/events create", // who changed one of them, when it was put back
	},
	// people, whom nothing binds to these: TestRoles
	"gloo-mesh-operator": {
		"admin.gloo.solo.io/kubernetesclusters create,update,patch,delete", "networking.solo.io/segments create,update,patch,delete", "security.policy.gloo.solo.io/policyoverrides create,update,patch,delete",
	},
	"gloo-mesh-security": {
		"admin.gloo.solo.io/workspaces,workspacesettings,roottrustpolicies,rotationrequests create,update,patch,delete", "security.policy.gloo.solo.io/accesspolicies,policyoverrides create,update,patch,delete",
	},
	"gloo-mesh-agent-segments": {"/services create,patch,delete"},                                                // admission lets it write labels and stubs only
	"gloo-mesh-istio-reader":   {"authentication.k8s.io/tokenreviews create"},                                    // a question, not a change
	"gloo-mesh-agent-peering":  {"gateway.networking.k8s.io/gateways get,list,watch,create,update,patch,delete"}, // peers; admission lets it write no other class
}

// elsewhere are the Roles in other namespaces than the release's.
var elsewhere = map[string][]string{
	"gloo-mesh-agent-trust": {"istio-system"}, "gloo-mesh-agent-remote-secrets": {"istio-system"}, "gloo-mesh-istio-reader": {"istio-system"}, "gloo-mesh-agent-api-server": {"default"}, "gloo-mesh-agent-segments": {"kube-system"},
	"gloo-mesh-agent": {"gloo-mesh", "gloo-mesh-tokens"},
}

// wholeSecrets are the Roles that reach every Secret of a namespace: remote secrets have names that aren't known beforehand, and gloo-mesh-tokens holds nothing else than what is the agent's.
var wholeSecrets = []string{"istio-system/gloo-mesh-agent-remote-secrets", "gloo-mesh-tokens/gloo-mesh-agent"}

// accountsOf are the service accounts of which a Role gives tokens.
var accountsOf = map[string][]string{
	"gloo-mesh-tokens/gloo-mesh-agent": {"istio-reader", "istio-reader-secrets"}, "istio-system/gloo-mesh-agent-remote-secrets": {"gloo-mesh-observer"},
}

// TestLeastPrivilege: no wildcard, Secrets only by a Role in the release's namespace or by name in istiod's, and no right to give rights.
func TestLeastPrivilege(t *testing.T) {
	manifest, err := render(t, charts.Platform, everything())
	if err != nil {
		t.Fatal(err)
	}
	roles, clusterRoles := documents[rbacv1.Role](t, manifest, "Role"), documents[rbacv1.ClusterRole](t, manifest, "ClusterRole")
	if len(roles) != 10 || len(clusterRoles) != 12 {
		t.Fatalf("%d Roles, %d ClusterRoles: the test would prove nothing", len(roles), len(clusterRoles))
	}
	var rules []rbacv1.PolicyRule
	for _, r := range roles {
		name := r.Namespace + "/" + r.Name
		if want := elsewhere[r.Name]; r.Namespace != "gloo-mesh" && !slices.Contains(want, r.Namespace) {
			t.Errorf("Role %s is in namespace %q", r.Name, r.Namespace)
		}
		rules = append(rules, r.Rules...)
		for _, rule := range r.Rules {
			if slices.Contains(rule.Resources, "serviceaccounts/token") && !slices.Equal(rule.ResourceNames, []string{"vault-login"}) && !slices.Equal(rule.ResourceNames, accountsOf[name]) {
				t.Errorf("Role %s gives tokens of more than the one service account that was named: %v", r.Name, rule)
			}
			if r.Namespace != "gloo-mesh" && !slices.Contains(wholeSecrets, name) && slices.Contains(rule.Resources, "secrets") && len(rule.ResourceNames) == 0 && !slices.Equal(rule.Verbs, []string{"create"}) {
				t.Errorf("Role %s in %s has rights to every Secret there: %v", r.Name, r.Namespace, rule)
			}
		}
	}
	for _, r := range clusterRoles {
		rules = append(rules, r.Rules...)
		for _, rule := range r.Rules {
			if slices.Contains(rule.Resources, "secrets") && r.Name != "gloo-mesh-istio-reader-secrets" { // there only where somebody asked for it
				t.Errorf("ClusterRole %s reads Secrets of every namespace: %v", r.Name, rule)
			}
			reads := !slices.ContainsFunc(rule.Verbs, func(v string) bool { return !slices.Contains([]string{"get", "list", "watch"}, v) })
			what := strings.Join(rule.APIGroups, ",") + "/" + strings.Join(rule.Resources, ",") + " " + strings.Join(rule.Verbs, ",")
			if len(rule.ResourceNames) == 0 && !reads && !slices.Contains(writtenEverywhere[r.Name], what) {
				t.Errorf("ClusterRole %s writes in every namespace: %v", r.Name, rule)
			}
		}
	}
	for _, rule := range rules {
		all := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs, rule.ResourceNames, rule.NonResourceURLs)
		if slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, "*") }) {
			t.Errorf("wildcard in %v", rule)
		}
		if slices.Contains(rule.APIGroups, rbacv1.GroupName) || slices.ContainsFunc(rule.Verbs, func(v string) bool { return slices.Contains([]string{"escalate", "bind", "impersonate"}, v) }) {
			t.Errorf("a right to give rights: %v", rule)
		}
	}
}

// Restarts of gateways are allowed where they are asked for, and the rights to trust can be taken away as a whole.
func TestTrustRights(t *testing.T) {
	with := func(trust map[string]any) (roles []string, patches bool) {
		manifest, err := render(t, charts.Platform, map[string]any{"common": map[string]any{"cluster": "c1"}, "glooAgent": map[string]any{"enabled": true, "relay": map[string]any{"serverAddress": "m:9900"}, "trust": trust, "segments": map[string]any{"enabled": false}, "remoteSecrets": map[string]any{"enabled": false}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range documents[rbacv1.Role](t, manifest, "Role") {
			roles = append(roles, r.Namespace+"/"+r.Name)
		}
		for _, r := range documents[rbacv1.ClusterRole](t, manifest, "ClusterRole") {
			patches = patches || slices.ContainsFunc(r.Rules, func(rule rbacv1.PolicyRule) bool {
				return slices.Contains(rule.Resources, "deployments") && slices.Contains(rule.Verbs, "patch")
			})
		}
		slices.Sort(roles)
		if probes := strings.Contains(manifest, "--istio-token-file"); probes != (len(roles) > 1) || probes != strings.Contains(manifest, "audience: istio-ca") {
			t.Errorf("%v: probes %t, Roles %v", trust, probes, roles)
		}
		return roles, patches
	}
	for _, tt := range []struct {
		trust   map[string]any
		roles   []string
		patches bool
	}{
		{map[string]any{"enabled": false}, []string{"gloo-mesh/gloo-mesh-agent"}, false},
		{map[string]any{"istioNamespace": "istio"}, []string{"gloo-mesh/gloo-mesh-agent", "istio/gloo-mesh-agent-trust"}, false},
		{map[string]any{"restartNamespaces": []any{"ingress", "istio-system"}}, []string{"gloo-mesh/gloo-mesh-agent", "ingress/gloo-mesh-agent-restarts", "istio-system/gloo-mesh-agent-trust"}, false},
		{map[string]any{"restartNamespaces": []any{"*"}}, []string{"gloo-mesh/gloo-mesh-agent", "istio-system/gloo-mesh-agent-trust"}, true},
	} {
		roles, patches := with(tt.trust)
		if d := gocmp.Diff(tt.roles, roles); d != "" || patches != tt.patches {
			t.Errorf("%v: %s, patches everywhere %t", tt.trust, d, patches)
		}
	}
}

// TestRestricted: the Pods meet the Pod Security Standard "restricted", and their root file systems can't be written.
func TestRestricted(t *testing.T) {
	manifest, err := render(t, charts.Platform, everything())
	if err != nil {
		t.Fatal(err)
	}
	deployments := documents[appsv1.Deployment](t, manifest, "Deployment")
	if len(deployments) != 2 {
		t.Fatalf("%d Deployments", len(deployments))
	}
	for _, d := range deployments {
		pod := d.Spec.Template.Spec
		if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != "RuntimeDefault" {
			t.Errorf("%s: Pod security context %+v", d.Name, s)
		}
		for _, c := range pod.Containers {
			s := c.SecurityContext
			if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
				t.Errorf("%s/%s: security context %+v", d.Name, c.Name, s)
			}
		}
	}
}

// TestNoCABundle: a rendered caBundle would put the server's certificate out of step with every upgrade.
func TestNoCABundle(t *testing.T) {
	manifest, err := render(t, charts.Platform, everything())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(manifest, "caBundle") {
		t.Error("the chart renders a caBundle")
	}
	if n := strings.Count(manifest, "failurePolicy: Fail"); n != 11 {
		t.Errorf("%d webhooks and policies fail closed, want 11", n)
	}
	if strings.Contains(manifest, "kind: Secret") {
		t.Error("the chart renders a Secret: an upgrade could change one of the relay family and not the others")
	}
}

// TestOddValues: what people's files hold must not break the install.
func TestOddValues(t *testing.T) {
	for name, in := range map[string]string{
		"nothing at all":  `{}`,
		"maps set null":   `{common: null, glooMgmtServer: null, glooAgent: null, licensing: null}`,
		"inner null":      `{common: {cluster: c, imagePullSecrets: null}, glooMgmtServer: {enabled: true, relay: null, ports: null, resources: null, extraEnvs: null, deploymentOverrides: null}}`,
		"strings for map": `{common: {cluster: c}, glooMgmtServer: {enabled: true, relay: {tlsSecret: mine, tokenSecret: token-secret}}}`,
		"unknown kinds":   `{wibble: [1, 2], common: {wobble: {deep: true}}, glooMgmtServer: {policyApis: {enabled: true}}, redis: {deployment: {enabled: true}}}`,
		"env list":        `{common: {cluster: c}, glooMgmtServer: {enabled: true, extraEnvs: [{name: A, value: b}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			values := map[string]any{}
			if err := kyaml.Unmarshal([]byte(in), &values); err != nil {
				t.Fatal(err)
			}
			if _, err := render(t, charts.Platform, values); err != nil {
				t.Error(err)
			}
			if _, err := render(t, charts.CRDs, values); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNeeded: what would only fail later, in a Pod's log, is refused with the value's name.
func TestNeeded(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"agent without a name":    {`{glooAgent: {enabled: true, relay: {serverAddress: "x:9900"}}}`, "common.cluster"},
		"agent without a server":  {`{common: {cluster: c}, glooAgent: {enabled: true}}`, "glooAgent.relay.serverAddress"},
		"register without a name": {`{glooMgmtServer: {enabled: true, registerCluster: true}}`, "common.cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			values := map[string]any{}
			if err := kyaml.Unmarshal([]byte(tc.in), &values); err != nil {
				t.Fatal(err)
			}
			if _, err := render(t, charts.Platform, values); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want an error that names %s, got %v", tc.want, err)
			}
		})
	}
}

func TestCRDs(t *testing.T) {
	for _, keep := range []bool{true, false} {
		manifest, err := render(t, charts.CRDs, map[string]any{"keep": keep, "installEnterpriseCrds": true, "featureGates": map[string]any{"ConfigDistribution": true}})
		if err != nil {
			t.Fatal(err)
		}
		for text, want := range map[string]bool{
			"name: kubernetesclusters.admin.gloo.solo.io": true,
			"crd.solo.io/version: " + version.Version:     true,
			"crd.solo.io/specHash":                        true,
			"helm.sh/resource-policy: keep":               keep,
			"authconfigs":                                 false,
			"ratelimitconfigs":                            false,
		} {
			if got := strings.Contains(manifest, text); got != want {
				t.Errorf("keep=%v: %q in the chart: %v, want %v", keep, text, got, want)
			}
		}
	}
}
