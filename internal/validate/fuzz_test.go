package validate_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/validate"
)

// Fuzz targets: whatever is sent, the rules answer, and answer the same for the same object. What Decode accepts it accepts again as it wrote it, and as the same.

// spec takes the part of a document that Decode answers for.
func spec(raw []byte) []byte {
	var tree map[string]json.RawMessage
	if json.Unmarshal(raw, &tree) != nil {
		return raw
	}
	delete(tree, "metadata")
	delete(tree, "status")
	out, err := json.Marshal(tree)
	if err != nil {
		return raw
	}
	return out
}

func idempotent[T any](t *testing.T, raw []byte, rules func(*T) field.ErrorList, doubts func(*T) []string) {
	t.Helper()
	raw = spec(raw)
	first, second := new(T), new(T)
	if len(validate.Decode(raw, first)) > 0 {
		return
	}
	once, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	if errs := validate.Decode(once, second); len(errs) > 0 {
		t.Fatalf("accepted %q, but not as it wrote it, %q: %v", raw, once, errs)
	}
	twice, err := json.Marshal(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(once, twice) {
		t.Fatalf("%q became %q", once, twice)
	}
	a, b := strings.Join(append(said(rules(first)), doubts(first)...), "\n"), strings.Join(append(said(rules(second)), doubts(second)...), "\n")
	if a != b {
		t.Fatalf("%q: once\n%s\nthen\n%s", once, a, b)
	}
}

func seed(f *testing.F, specs ...string) {
	for _, s := range specs {
		raw, err := yaml.YAMLToJSON([]byte(s))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"spec":[{}],"a":null}`))
}

var fuzzOptions = validate.Options{AdminNamespace: "gloo-mesh"}

func FuzzDecode(f *testing.F) {
	seed(f, `spec: {clusterDomain: x, skipWarming: true}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		idempotent(t, raw, func(c *adminv2.KubernetesCluster) field.ErrorList {
			return validate.KubernetesCluster(c, nil, fuzzOptions)
		}, func(*adminv2.KubernetesCluster) []string { return nil })
	})
}

func FuzzAccessPolicy(f *testing.F) {
	seed(f, `spec: {applyToDestinations: [{selector: {labels: {app: billing}, name: a}, kind: SERVICE, port: {number: 80}}], config: {authn: {mtls: {required: true}}, authz: {allowedClients: [{serviceAccountSelector: {labels: {app: payments}}}]}}}`,
		`spec: {applyToWorkloads: [{}], config: {authzList: [{allowedPaths: ["/a*"], allowedMethods: [GET], match: {request: {headers: {x: {values: [a]}}}}, allowedIpBlocks: [10.0.0.0/8]}]}}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		idempotent(t, raw, func(p *securityv2.AccessPolicy) field.ErrorList { return validate.AccessPolicy(p, nil, fuzzOptions) },
			func(p *securityv2.AccessPolicy) []string { return validate.WarningsOfAccessPolicy(p, fuzzOptions) })
	})
}

func FuzzPolicyOverride(f *testing.F) {
	seed(f, `spec: {policyRef: {name: p}, clusters: [a], reason: x, for: 1h}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		idempotent(t, raw, func(p *securityv2.PolicyOverride) field.ErrorList {
			return validate.PolicyOverride(p, nil, fuzzOptions)
		},
			func(p *securityv2.PolicyOverride) []string { return validate.WarningsOfPolicyOverride(p, fuzzOptions) })
	})
}

func FuzzWorkspace(f *testing.F) {
	seed(f, `spec: {workloadClusters: [{name: "a*", selector: {a: b}, namespaces: [{name: x, labels: {c: d}, configEnabled: false}]}]}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		idempotent(t, raw, func(p *adminv2.Workspace) field.ErrorList { return validate.Workspace(p, nil, fuzzOptions) },
			func(p *adminv2.Workspace) []string { return validate.WarningsOfWorkspace(p, fuzzOptions) })
	})
}

func FuzzWorkspaceSettings(f *testing.F) {
	seed(f, `spec: {importFrom: [{workspaces: [{name: a, selector: {a: b}}], resources: [{kind: SERVICE}]}], options: {serviceIsolation: {enabled: true}, virtualDestClientMode: {auto: {}}}}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		idempotent(t, raw, func(p *adminv2.WorkspaceSettings) field.ErrorList {
			return validate.WorkspaceSettings(p, nil, fuzzOptions)
		},
			func(p *adminv2.WorkspaceSettings) []string {
				return validate.WarningsOfWorkspaceSettings(p, fuzzOptions)
			})
	})
}

// FuzzSelector: a selector that passes holds no wildcard, no placeholder and no principal: nothing that would be compared and never match, nor match more than it says.
func FuzzSelector(f *testing.F) {
	f.Add("app", "billing", "billing", "billing", "cluster-1", "payments")
	f.Add("*", "*", "*", "*", "*", "*")
	f.Add("a=b", "${X}", "cluster.local/ns/a/sa/b", "$X", "prod_eu", "")
	f.Fuzz(func(t *testing.T, key, value, name, namespace, cluster, workspace string) {
		p := &securityv2.AccessPolicy{Spec: securityv2.AccessPolicySpec{Config: &securityv2.AccessPolicyConfig{Authz: &securityv2.Authorization{AllowedClients: []securityv2.IdentitySelector{{
			ServiceAccountSelector: &securityv2.ObjectSelector{Labels: map[string]string{key: value}, Name: name, Namespace: namespace, Cluster: cluster, Workspace: workspace},
		}}}}}}
		raw, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var read securityv2.AccessPolicy
		if len(validate.Decode(raw, &read)) > 0 || len(validate.AccessPolicy(&read, nil, fuzzOptions)) > 0 {
			return
		}
		for _, s := range []string{key, value, name, namespace, cluster, workspace} {
			if strings.ContainsAny(s, "*?$<>{} \t\n") || s != key && strings.Contains(s, "/") {
				t.Errorf("accepted %q", s)
			}
		}
	})
}

func FuzzRootTrustPolicy(f *testing.F) {
	seed(f, pageTrust,
		`spec: {applyToMeshes: [{istio: {revision: a, namespace: b, clusterSelector: {c: d}, selector: {e: f}}}], config: {mgmtServerCa: {secretRef: {name: a}}, intermediateCertOptions: {ttlDays: 1, rsaKeySizeBytes: 2048, orgName: o, secretRotationGracePeriodRatio: 0.1, keyAlgorithm: RSA}, passiveCertificateAuthorities: [{generated: {}}]}}`,
		`spec: {config: {agentCa: {vault: {server: "https://v", csrPath: pki/issuer/3f2a/sign-intermediate, caPath: /v1/pki/ca/pem, caBundle: eA==, appRole: {roleId: a, secretIdRef: {name: b}}}}}, rotation: {canary: c, soak: 1h, crossSign: true, longestLeaf: 24h}, existingCacerts: Adopt, crl: Always}`,
		`spec: {config: {agentCa: {awsPrivateCa: {arn: "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012", endpoint: "https://a"}, certManager: {issuerRef: {name: a, kind: Issuer}}}}}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		idempotent(t, raw, func(p *adminv2.RootTrustPolicy) field.ErrorList { return validate.RootTrustPolicy(p, nil, fuzzOptions) },
			func(p *adminv2.RootTrustPolicy) []string { return validate.WarningsOfRootTrustPolicy(p, fuzzOptions) })
	})
}

func FuzzRotationRequest(f *testing.F) {
	seed(f, `spec: {policy: p, action: Fence, clusters: [a, b], reason: x}`, `spec: {policy: p, action: Rotate, emergency: true, reason: x}`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		idempotent(t, raw, func(p *adminv2.RotationRequest) field.ErrorList { return validate.RotationRequest(p, nil, fuzzOptions) },
			func(p *adminv2.RotationRequest) []string { return validate.WarningsOfRotationRequest(p, fuzzOptions) })
	})
}
