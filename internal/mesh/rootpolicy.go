package mesh

import (
	"cmp"
	"slices"
	"strings"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// The defaults of certificates, where a policy does not say.
const (
	DefaultIntermediateDays = 365
	DefaultRootDays         = 3650 // published for all: 365; but a root that ends with its first intermediates is of no use
	DefaultRSABits          = 4096
	DefaultOrganization     = "gloo-mesh"
	DefaultRenewRatio       = 0.5
)

// DefaultLeafTTL is what ztunnel and proxies ask istiod for (SECRET_TTL).
const DefaultLeafTTL = 24 * time.Hour

// RootTrustPolicy is a RootTrustPolicy of the admin namespace, read: defaults are filled in, and one authority is chosen.
type RootTrustPolicy struct {
	Source     Ref
	UID        string
	Generation int64
	Created    time.Time
	ChangedBy  string
	// Invalid says what is wrong with it; empty: nothing.
	Invalid string
	Trust
}

// Trust is what a RootTrustPolicy says.
type Trust struct {
	// Meshes that it selects; empty: every one.
	Meshes    []adminv2.MeshSelector
	Authority Authority
	// Intermediate is how intermediates are.
	Intermediate CertOptions
	// Passive authorities' roots are in every bundle.
	Passive []Authority
	// Restart what has to be, to take up a new certificate.
	Restart bool
	// Adopt a cacerts that somebody else owns.
	Adopt bool
	CRL   adminv2.CRLMode
	// Canary switches first, and signs alone for Soak; empty: none does.
	Canary    ClusterName
	Soak      time.Duration
	CrossSign bool
	// LongestLeaf that anything asks for, as the policy vouches; 0: it does not.
	LongestLeaf time.Duration
	// FileLag is how long a ConfigMap takes to become a file; 0: the default.
	FileLag        time.Duration
	ForeignClients bool
}

// CertOptions are of a CA's certificate.
type CertOptions struct {
	TTL          time.Duration
	Organization string
	// Algorithm of the key: "RSA-4096", "ECDSA-P256", "ECDSA-P384".
	Algorithm string
	// RenewRatio: renewal begins when this part of the life is left. Without effect on roots, which are not replaced by themselves.
	RenewRatio float64
}

// Authority is who holds the key of a root: exactly one field is set.
type Authority struct {
	Generated   *CertOptions
	Secret      string // name of a Secret in the policy's namespace
	Vault       *Vault
	AWS         *AWSPrivateCA
	CertManager *CertManager
}

// Vault is a PKI secrets engine of Vault. Paths have neither "/v1/" nor slashes around them.
type Vault struct {
	Server    string // URL, without a final slash
	Namespace string
	// Mount of the engine ("pki"), and Issuer, when the paths or the policy name one.
	Mount  string
	Issuer string
	// SignPath signs intermediates, RootPath reads the root's certificate; empty: the paths of Mount and Issuer.
	SignPath string
	RootPath string

	// How Vault's TLS certificate is verified, at most one: PEM, a Secret's name, a file. None: the system's roots.
	Bundle       []byte
	BundleSecret string
	BundleFile   string

	// How to log in, exactly one.
	TokenSecret string
	Kubernetes  *VaultKubernetes
	AppRole     *VaultAppRole
}

// VaultKubernetes is Vault's Kubernetes auth method.
type VaultKubernetes struct {
	Mount string // "auth/kubernetes"
	Role  string
	// ServiceAccount of the policy's namespace, and the key of its token Secret; empty: the token in the file Folder/token.
	ServiceAccount string
	TokenKey       string
	Folder         string
}

// VaultAppRole is Vault's AppRole auth method.
type VaultAppRole struct {
	Mount  string // "auth/approle"
	RoleID string
	Secret string // name of the Secret with key secret-id
}

// AWSPrivateCA is a CA of AWS Private CA.
type AWSPrivateCA struct {
	ARN         string
	Region      string
	TemplateARN string
	Endpoint    string // empty: the region's
	Credentials string // name of a Secret; empty: what the Pod has
}

// CertManager is an issuer of cert-manager.
type CertManager struct {
	Group, Kind, Name string
	RootSecret        string // name of the Secret with the root; empty: what cert-manager tells
}

// TrustOf reads a spec that has no faults.
func TrustOf(spec *adminv2.RootTrustPolicySpec) Trust {
	c := spec.Config
	if c == nil {
		c = &adminv2.RootTrustConfig{}
	}
	t := Trust{
		Meshes: spec.ApplyToMeshes, Authority: authorityOf(c), Restart: c.AutoRestartPods,
		Intermediate: certOptions(c.IntermediateCertOptions, DefaultIntermediateDays, DefaultRenewRatio),
		Adopt:        spec.ExistingCacerts == adminv2.CacertsAdopt, CRL: cmp.Or(spec.CRL, adminv2.CRLWhenNeeded),
	}
	for _, p := range c.PassiveCertificateAuthorities {
		t.Passive = append(t.Passive, mgmtServerCa(p.Generated, p.SecretRef))
	}
	if r := spec.Rotation; r != nil {
		t.Canary, t.CrossSign, t.ForeignClients = ClusterName(r.Canary), r.CrossSign, r.ForeignClients
		if r.Soak != nil {
			t.Soak = r.Soak.Duration
		}
		if r.LongestLeaf != nil {
			t.LongestLeaf = r.LongestLeaf.Duration
		}
		if r.FileLag != nil {
			t.FileLag = r.FileLag.Duration
		}
	}
	return t
}

// authorityOf: agentCa is the source of truth where it is written, whatever mgmtServerCa says beside it.
func authorityOf(c *adminv2.RootTrustConfig) Authority {
	if a := c.AgentCa; a != nil {
		switch {
		case a.Vault != nil:
			return Authority{Vault: vaultOf(a.Vault)}
		case a.AWSPrivateCa != nil:
			return Authority{AWS: awsOf(a.AWSPrivateCa)}
		case a.CertManager != nil:
			r := a.CertManager.IssuerRef
			return Authority{CertManager: &CertManager{Group: cmp.Or(r.Group, "cert-manager.io"), Kind: cmp.Or(r.Kind, "Issuer"), Name: r.Name, RootSecret: nameOf(a.CertManager.RootSecretRef)}}
		}
	}
	if c.MgmtServerCa == nil {
		return mgmtServerCa(nil, nil)
	}
	return mgmtServerCa(c.MgmtServerCa.Generated, c.MgmtServerCa.SecretRef)
}

func mgmtServerCa(generated *adminv2.CommonCertOptions, secret *adminv2.ObjectRef) Authority {
	if secret != nil {
		return Authority{Secret: secret.Name}
	}
	o := certOptions(generated, DefaultRootDays, 0)
	return Authority{Generated: &o}
}

func certOptions(o *adminv2.CommonCertOptions, days uint32, ratio float64) CertOptions {
	if o == nil {
		o = &adminv2.CommonCertOptions{}
	}
	algorithm := string(o.KeyAlgorithm)
	if o.KeyAlgorithm == "" || o.KeyAlgorithm == adminv2.KeyRSA {
		algorithm = "RSA-" + itoa(cmp.Or(o.RSAKeySizeBytes, DefaultRSABits))
	}
	return CertOptions{
		TTL: time.Duration(cmp.Or(o.TTLDays, days)) * 24 * time.Hour, Organization: cmp.Or(o.OrgName, DefaultOrganization),
		Algorithm: algorithm, RenewRatio: cmp.Or(o.SecretRotationGracePeriodRatio, ratio),
	}
}

func awsOf(a *adminv2.AWSPrivateCA) *AWSPrivateCA {
	v := &AWSPrivateCA{ARN: a.Arn, TemplateARN: a.TemplateArn, Endpoint: a.Endpoint, Credentials: nameOf(a.CredentialsSecretRef)}
	p := strings.Split(a.Arn, ":") // arn:PARTITION:acm-pca:REGION:ACCOUNT:...
	if len(p) > 3 {
		v.Region = p[3]
		v.TemplateARN = cmp.Or(v.TemplateARN, "arn:"+p[1]+":acm-pca:::template/SubordinateCACertificate_PathLen0/V1")
	}
	return v
}

func nameOf(r *adminv2.ObjectRef) string {
	if r == nil {
		return ""
	}
	return r.Name
}

// Selects reports whether the policy selects a cluster's mesh. known is false when that depends on an istiod of which the cluster has not reported yet.
func (t *Trust) Selects(c *Cluster) (selects, known bool) {
	if len(t.Meshes) == 0 {
		return true, true
	}
	unknown := false
	for i := range t.Meshes {
		switch yes, sure := selectsMesh(t.Meshes[i].Istio, c); {
		case yes && sure:
			return true, true
		case !sure:
			unknown = true
		}
	}
	return false, !unknown
}

func selectsMesh(s *adminv2.IstioMeshSelector, c *Cluster) (selects, known bool) {
	switch {
	case s == nil:
		return true, true
	case !within(s.ClusterSelector, c.Labels):
		return false, true
	case s.Revision == "" && s.Namespace == "" && len(s.Selector) == 0:
		return true, true
	case c.Inventory == nil || !c.Inventory.Complete || c.Inventory.Info.IstioNamespace == "":
		return false, false
	}
	info := &c.Inventory.Info
	if s.Namespace != "" && s.Namespace != info.IstioNamespace || s.Revision != "" && s.Revision != cmp.Or(info.IstioRevision, "default") {
		return false, true
	}
	if len(s.Selector) == 0 {
		return true, true
	}
	n := c.Inventory.Namespaces[info.IstioNamespace]
	return n != nil && slices.ContainsFunc(n.Workloads, func(w Workload) bool { return w.Labels["app"] == "istiod" && within(s.Selector, w.Labels) }), true
}

// within reports whether all of want are among the labels.
func within(want, labels map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Before reports whether p goes before q where both select the same mesh: the older one, then the one whose name comes first.
func (p *RootTrustPolicy) Before(q *RootTrustPolicy) bool {
	if !p.Created.Equal(q.Created) {
		return p.Created.Before(q.Created)
	}
	return p.Source.Compare(q.Source) < 0
}

// RootPolicy is the policy that holds for a cluster, nil for none; and those that select it as well, and don't. Policies with a fault hold nowhere: a cluster keeps what it has.
// known is false when that depends on what the cluster has not reported yet.
func (s *Snapshot) RootPolicy(c *Cluster) (holds *RootTrustPolicy, conflicts []*RootTrustPolicy, known bool) {
	known = true
	for _, p := range s.RootPolicies {
		if p.Invalid != "" {
			continue
		}
		selects, sure := p.Selects(c)
		known = known && sure
		switch {
		case !selects:
		case holds == nil:
			holds = p
		case p.Before(holds):
			holds, conflicts = p, append(conflicts, holds)
		default:
			conflicts = append(conflicts, p)
		}
	}
	return holds, conflicts, known
}

// RotationRequest is a RotationRequest of the admin namespace.
type RotationRequest struct {
	Source    Ref
	UID       string
	Created   time.Time
	Policy    Ref
	Action    adminv2.RotationAction
	Clusters  []ClusterName
	Reason    string
	Emergency bool
	By        string
	// Invalid says what is wrong with it; empty: nothing.
	Invalid string
	// State, Root and Answered are what its status remembers: whether it was taken up, the generation of the root it is about, and when; zero: not yet.
	State    adminv2.RotationRequestState
	Root     Generation
	Answered time.Time
}

// RenewAt is when a certificate is to be renewed: when ratio of its life is left; but while two lifetimes of the leaves it issues are (at most half its life), since before istiod
// 1.30 leaves outlive their issuer (istio#59768); and not before it is a day old (half its life, when that is less), so that clusters are not changed all the time.
func RenewAt(notBefore, notAfter time.Time, ratio float64, leaf time.Duration) time.Time {
	life := notAfter.Sub(notBefore)
	left := time.Duration(ratio * float64(life))
	left = max(left, min(2*leaf, life/2))
	left = min(left, life-min(24*time.Hour, life/2))
	return notAfter.Add(-left)
}
