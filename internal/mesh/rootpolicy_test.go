package mesh_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

const day = 24 * time.Hour

func TestTrustOf(t *testing.T) {
	intermediate := mesh.CertOptions{TTL: 365 * day, Organization: "gloo-mesh", Algorithm: "RSA-4096", RenewRatio: 0.5}
	root := &mesh.CertOptions{TTL: 3650 * day, Organization: "gloo-mesh", Algorithm: "RSA-4096"}
	vault := &mesh.Vault{
		Server: "https://vault.example.com:8200", Mount: "pki_root", SignPath: "pki_root/sign/intermediate", RootPath: "pki_root/ca",
		Kubernetes: &mesh.VaultKubernetes{Mount: "auth/kubernetes", Role: "gloo-mesh-mgmt", Folder: "/var/run/secrets/kubernetes.io/serviceaccount"},
	}
	for name, tc := range map[string]struct {
		spec adminv2.RootTrustPolicySpec
		want mesh.Trust
	}{
		"nothing": {adminv2.RootTrustPolicySpec{}, mesh.Trust{Authority: mesh.Authority{Generated: root}, Intermediate: intermediate, CRL: "WhenNeeded"}},
		"the page's: Vault is the source of truth": {
			adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{
				MgmtServerCa: &adminv2.MgmtServerCa{Generated: &adminv2.CommonCertOptions{}}, IntermediateCertOptions: &adminv2.CommonCertOptions{SecretRotationGracePeriodRatio: 0.5}, AutoRestartPods: true,
				AgentCa: &adminv2.AgentCa{Vault: &adminv2.VaultCA{
					CaPath: "pki_root/ca", CsrPath: "pki_root/sign/intermediate", Server: "https://vault.example.com:8200", KubernetesAuth: &adminv2.VaultKubernetesAuth{Role: "gloo-mesh-mgmt"},
				}},
			}},
			mesh.Trust{Authority: mesh.Authority{Vault: vault}, Intermediate: intermediate, Restart: true, CRL: "WhenNeeded"},
		},
		"everything else": {
			adminv2.RootTrustPolicySpec{
				Config: &adminv2.RootTrustConfig{
					MgmtServerCa:                  &adminv2.MgmtServerCa{SecretRef: &adminv2.ObjectRef{Name: "my-root"}},
					IntermediateCertOptions:       &adminv2.CommonCertOptions{TTLDays: 30, OrgName: "bank", KeyAlgorithm: "ECDSA-P256", SecretRotationGracePeriodRatio: 0.1},
					PassiveCertificateAuthorities: []adminv2.PassiveCertificateAuthority{{SecretRef: &adminv2.ObjectRef{Name: "old"}}, {Generated: &adminv2.CommonCertOptions{RSAKeySizeBytes: 2048}}},
				},
				Rotation: &adminv2.RotationOptions{
					Canary: "c3", CrossSign: true, ForeignClients: true,
					Soak: &metav1.Duration{Duration: time.Hour}, LongestLeaf: &metav1.Duration{Duration: day},
				},
				ExistingCacerts: "Adopt", CRL: "Always",
			},
			mesh.Trust{
				Authority: mesh.Authority{Secret: "my-root"}, Intermediate: mesh.CertOptions{TTL: 30 * day, Organization: "bank", Algorithm: "ECDSA-P256", RenewRatio: 0.1},
				Passive: []mesh.Authority{{Secret: "old"}, {Generated: &mesh.CertOptions{TTL: 3650 * day, Organization: "gloo-mesh", Algorithm: "RSA-2048"}}},
				Adopt:   true, CRL: "Always", Canary: "c3", Soak: time.Hour, CrossSign: true, LongestLeaf: day, ForeignClients: true,
			},
		},
		"AWS, of another partition": {
			adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{AgentCa: &adminv2.AgentCa{AWSPrivateCa: &adminv2.AWSPrivateCA{
				Arn: "arn:aws-cn:acm-pca:cn-north-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012", CredentialsSecretRef: &adminv2.ObjectRef{Name: "aws"},
			}}}},
			mesh.Trust{Authority: mesh.Authority{AWS: &mesh.AWSPrivateCA{
				ARN: "arn:aws-cn:acm-pca:cn-north-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012", Region: "cn-north-1",
				TemplateARN: "arn:aws-cn:acm-pca:::template/SubordinateCACertificate_PathLen0/V1", Credentials: "aws",
			}}, Intermediate: intermediate, CRL: "WhenNeeded"},
		},
		"cert-manager": {
			adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{AgentCa: &adminv2.AgentCa{CertManager: &adminv2.CertManagerCA{IssuerRef: adminv2.CertManagerIssuerRef{Name: "root"}}}}},
			mesh.Trust{Authority: mesh.Authority{CertManager: &mesh.CertManager{Group: "cert-manager.io", Kind: "Issuer", Name: "root"}}, Intermediate: intermediate, CRL: "WhenNeeded"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, mesh.TrustOf(&tc.spec)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestVaultPaths(t *testing.T) {
	for in, want := range map[string]mesh.VaultPath{
		"pki_root/ca":                            {Call: mesh.VaultReadRoot, Path: "pki_root/ca", Mount: "pki_root"},
		"/v1/pki_root/ca_chain/":                 {Call: mesh.VaultReadRoot, Path: "pki_root/ca_chain", Mount: "pki_root"},
		"corp/ca/ca/pem":                         {Call: mesh.VaultReadRoot, Path: "corp/ca/ca/pem", Mount: "corp/ca"},
		"pki/cert/ca":                            {Call: mesh.VaultReadRoot, Path: "pki/cert/ca", Mount: "pki"},
		"pki/issuer/3f2a/json":                   {Call: mesh.VaultReadRoot, Path: "pki/issuer/3f2a/json", Mount: "pki", Issuer: "3f2a"},
		"pki/issuer/3f2a":                        {Call: mesh.VaultReadRoot, Path: "pki/issuer/3f2a", Mount: "pki", Issuer: "3f2a"},
		"pki_root/sign/intermediate":             {Call: mesh.VaultSignRole, Path: "pki_root/sign/intermediate", Mount: "pki_root", Role: "intermediate"},
		"pki/sign-verbatim":                      {Call: mesh.VaultSignRole, Path: "pki/sign-verbatim", Mount: "pki"},
		"pki/issuer/3f2a/sign/r":                 {Call: mesh.VaultSignRole, Path: "pki/issuer/3f2a/sign/r", Mount: "pki", Issuer: "3f2a", Role: "r"},
		"v1/pki/root/sign-intermediate":          {Call: mesh.VaultSignIntermediate, Path: "pki/root/sign-intermediate", Mount: "pki"},
		"a/b/c/root/sign-intermediate":           {Call: mesh.VaultSignIntermediate, Path: "a/b/c/root/sign-intermediate", Mount: "a/b/c"},
		"a/sign/root/sign-intermediate":          {Call: mesh.VaultSignIntermediate, Path: "a/sign/root/sign-intermediate", Mount: "a/sign"},
		"pki/issuer/default/sign-intermediate":   {Call: mesh.VaultSignIntermediate, Path: "pki/issuer/default/sign-intermediate", Mount: "pki", Issuer: "default"},
		"pki_int/intermediate/generate/exported": {Call: mesh.VaultGenerate, Path: "pki_int/intermediate/generate/exported", Mount: "pki_int"},
		"pki":                                    {Path: "pki"},
		"":                                       {},
		"ca":                                     {Path: "ca"},
		"root/root/sign-intermediate":            {Call: mesh.VaultSignIntermediate, Path: "root/root/sign-intermediate", Mount: "root"},
		"something/of/our/own":                   {Path: "something/of/our/own"},
		"issuer/of/pki/issuer/3f2a/sign-intermediate": {Call: mesh.VaultSignIntermediate, Path: "issuer/of/pki/issuer/3f2a/sign-intermediate", Mount: "issuer/of/pki", Issuer: "3f2a"},
	} {
		if diff := cmp.Diff(want, mesh.ParseVaultPath(in)); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
	if long := strings.Repeat("a/", 1<<20) + "root/sign-intermediate"; mesh.ParseVaultPath(long).Call != mesh.VaultSignIntermediate { // in no time
		t.Error("a long mount")
	}
	type paths struct{ sign, root, mount, issuer string }
	for name, tc := range map[string]struct {
		csr, ca string
		want    paths
	}{
		"the page's":        {"pki_root/sign/intermediate", "pki_root/ca", paths{"pki_root/sign/intermediate", "pki_root/ca", "pki_root", ""}},
		"the published API": {"pki_int/intermediate/generate/exported", "pki/root/sign-intermediate", paths{"pki/root/sign-intermediate", "", "pki", ""}},
		"swapped":           {"pki/ca", "pki/root/sign-intermediate", paths{"pki/root/sign-intermediate", "pki/ca", "pki", ""}},
		"no root":           {"/v1/pki/root/sign-intermediate", "", paths{"pki/root/sign-intermediate", "", "pki", ""}},
		"no signing":        {"", "pki/ca", paths{"", "pki/ca", "pki", ""}},
		"pinned":            {"pki/issuer/3f2a/sign-intermediate", "pki/ca", paths{"pki/issuer/3f2a/sign-intermediate", "pki/ca", "pki", "3f2a"}},
		"unknown shapes":    {"x/y/z", "q/r", paths{"x/y/z", "q/r", "", ""}},
	} {
		v := mesh.TrustOf(&adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{AgentCa: &adminv2.AgentCa{Vault: &adminv2.VaultCA{CsrPath: tc.csr, CaPath: tc.ca}}}}).Authority.Vault
		if got := (paths{v.SignPath, v.RootPath, v.Mount, v.Issuer}); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
	for given, want := range map[string]string{"": "auth/kubernetes", "/v1/auth/kubernetes": "auth/kubernetes", "v1/auth/eu/k8s/": "auth/eu/k8s", "auth/x": "auth/x", "x": "auth/x"} {
		v := mesh.TrustOf(&adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{AgentCa: &adminv2.AgentCa{Vault: &adminv2.VaultCA{KubernetesAuth: &adminv2.VaultKubernetesAuth{MountPath: given}}}}}).Authority.Vault
		if v.Kubernetes.Mount != want {
			t.Errorf("mountPath %q: %q, want %q", given, v.Kubernetes.Mount, want)
		}
	}
}

func selecting(name string, created time.Time, m ...adminv2.MeshSelector) *mesh.RootTrustPolicy {
	return &mesh.RootTrustPolicy{Source: mesh.Ref{Kind: "RootTrustPolicy", Namespace: "gloo-mesh", Name: name}, Created: created, Trust: mesh.Trust{Meshes: m}}
}

func TestRootPolicy(t *testing.T) {
	noon := time.Date(2026, 5, 15, 12, 0, 0, 0, time.UTC)
	istio := func(s adminv2.IstioMeshSelector) adminv2.MeshSelector { return adminv2.MeshSelector{Istio: &s} }
	reported := func(revision string) *mesh.Inventory {
		return &mesh.Inventory{
			Complete: true, Info: mesh.ClusterInfo{IstioNamespace: "istio-system", IstioRevision: revision},
			Namespaces: map[string]*mesh.NamespaceInventory{"istio-system": {Workloads: []mesh.Workload{{Name: "istiod", Labels: map[string]string{"app": "istiod", "tier": "prod"}}, {Name: "other", Labels: map[string]string{"tier": "test"}}}}},
		}
	}
	eu := map[string]string{"region": "eu"}
	everywhere, region := selecting("everywhere", noon.Add(time.Hour)), selecting("region", noon, istio(adminv2.IstioMeshSelector{ClusterSelector: eu}))
	invalid := selecting("invalid", noon.Add(-time.Hour))
	invalid.Invalid = "it is"
	for name, tc := range map[string]struct {
		policies  []*mesh.RootTrustPolicy
		cluster   mesh.Cluster
		holds     string
		conflicts []string
		unknown   bool
	}{
		"none":                        {cluster: mesh.Cluster{}},
		"every mesh":                  {policies: []*mesh.RootTrustPolicy{everywhere}, holds: "everywhere"},
		"older first":                 {policies: []*mesh.RootTrustPolicy{everywhere, invalid, region}, cluster: mesh.Cluster{Labels: eu}, holds: "region", conflicts: []string{"everywhere"}},
		"same age":                    {policies: []*mesh.RootTrustPolicy{selecting("b", noon), selecting("a", noon)}, holds: "a", conflicts: []string{"b"}},
		"other label":                 {policies: []*mesh.RootTrustPolicy{region}, cluster: mesh.Cluster{Labels: map[string]string{"region": "us"}}},
		"no istio field is any":       {policies: []*mesh.RootTrustPolicy{selecting("p", noon, adminv2.MeshSelector{})}, holds: "p"},
		"revision":                    {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Revision: "canary"}))}, cluster: mesh.Cluster{Inventory: reported("canary")}, holds: "p"},
		"other revision":              {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Revision: "canary"}))}, cluster: mesh.Cluster{Inventory: reported("stable")}},
		"default revision":            {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Revision: "default"}))}, cluster: mesh.Cluster{Inventory: reported("")}, holds: "p"},
		"revision, nothing reported":  {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Revision: "canary"}))}, unknown: true},
		"label decides, not reported": {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Revision: "canary", ClusterSelector: eu}))}},
		"another entry does":          {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Revision: "canary"}), istio(adminv2.IstioMeshSelector{ClusterSelector: eu}))}, cluster: mesh.Cluster{Labels: eu}, holds: "p"},
		"namespace":                   {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Namespace: "istio-gloo"}))}, cluster: mesh.Cluster{Inventory: reported("")}},
		"labels of istiod":            {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Selector: map[string]string{"tier": "prod"}}))}, cluster: mesh.Cluster{Inventory: reported("")}, holds: "p"},
		"labels of something else":    {policies: []*mesh.RootTrustPolicy{selecting("p", noon, istio(adminv2.IstioMeshSelector{Selector: map[string]string{"tier": "test"}}))}, cluster: mesh.Cluster{Inventory: reported("")}},
	} {
		t.Run(name, func(t *testing.T) {
			holds, conflicts, known := (&mesh.Snapshot{RootPolicies: tc.policies}).RootPolicy(&tc.cluster)
			got, others := "", []string(nil)
			if holds != nil {
				got = holds.Source.Name
			}
			for _, c := range conflicts {
				others = append(others, c.Source.Name)
			}
			if got != tc.holds || !cmp.Equal(tc.conflicts, others) || known == tc.unknown {
				t.Errorf("holds %q, conflicts %q, known %v", got, others, known)
			}
		})
	}
}

func TestRenewAt(t *testing.T) {
	from := time.Date(2026, 5, 15, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		life, leaf time.Duration
		ratio      float64
		age        time.Duration
	}{
		"half":                         {365 * day, day, 0.5, 365 * day / 2},
		"a tenth is left":              {100 * day, day, 0.1, 90 * day},
		"in the wild: 1 day, 0.1":      {day, day, 0.1, 12 * time.Hour},
		"1 day, 0.9":                   {day, day, 0.9, 12 * time.Hour},
		"3 days, 0.1: leaves need two": {3 * day, day, 0.1, 36 * time.Hour},
		"7 days, 0.1: leaves need two": {7 * day, day, 0.1, 5 * day},
		"10 days, 0.99: not so soon":   {10 * day, day, 0.99, day},
		"leaves of 90 days":            {100 * day, 90 * day, 0.1, 50 * day},
	} {
		if got := mesh.RenewAt(from, from.Add(tc.life), tc.ratio, tc.leaf).Sub(from); got.Round(time.Second) != tc.age {
			t.Errorf("%s: at the age of %v, want %v", name, got, tc.age)
		}
	}
}
