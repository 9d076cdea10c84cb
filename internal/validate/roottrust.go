package validate

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// The bounds of certificates of authorities.
const (
	LongestTTLDays = 36500
	ShortestRSA    = 2048 // bits
	LongestRSA     = 8192
	longestOrg     = 64 // RFC 5280 appendix A.1, ub-organization-name
)

// The bounds of a rotation's waits.
const (
	LongestSoak  = 720 * time.Hour
	ShortestLeaf = time.Minute
	LongestLeaf  = 2160 * time.Hour // MAX_WORKLOAD_CERT_TTL by default
)

// RootTrustPolicy checks a new or changed policy; old is nil for a new one. That it selects no mesh of another is checked as far as o.Snapshot tells.
func RootTrustPolicy(now, old *adminv2.RootTrustPolicy, o Options) field.ErrorList {
	r, meta, spec := &rules{}, field.NewPath("metadata"), field.NewPath("spec")
	r.shortName(now.Name, "RootTrustPolicy")
	if now.Namespace != o.AdminNamespace {
		r.invalid(meta.Child("namespace"), now.Namespace, "create it in namespace %q: the management server reads RootTrustPolicies of its admin namespace only", o.AdminNamespace)
	}
	for i := range now.Spec.ApplyToMeshes {
		r.mesh(spec.Child("applyToMeshes").Index(i).Child("istio"), now.Spec.ApplyToMeshes[i].Istio)
	}
	if c := now.Spec.Config; c != nil {
		r.trustConfig(spec.Child("config"), c, now.Namespace)
	}
	if c := now.Spec.Rotation; c != nil {
		r.rotation(spec.Child("rotation"), c)
	}
	if v := now.Spec.ExistingCacerts; v != "" {
		r.enum(spec.Child("existingCacerts"), string(v), string(adminv2.CacertsKeep), string(adminv2.CacertsAdopt))
	}
	if v := now.Spec.CRL; v != "" {
		r.enum(spec.Child("crl"), string(v), string(adminv2.CRLWhenNeeded), string(adminv2.CRLAlways), string(adminv2.CRLNever))
	}
	if len(r.errs) == 0 {
		r.conflict(spec.Child("applyToMeshes"), now, old, o)
	}
	return r.errs
}

func (r *rules) mesh(path *field.Path, m *adminv2.IstioMeshSelector) {
	if m == nil {
		return
	}
	r.name(path.Child("revision"), m.Revision, noun{"revision", "leave it out for every revision", validation.IsDNS1123Label})
	r.name(path.Child("namespace"), m.Namespace, namespaceNoun())
	r.labels(path.Child("clusterSelector"), m.ClusterSelector, "leave clusterSelector out for every cluster")
	r.labels(path.Child("selector"), m.Selector, "leave selector out for every istiod")
}

func (r *rules) trustConfig(path *field.Path, c *adminv2.RootTrustConfig, namespace string) {
	if m := c.MgmtServerCa; m != nil {
		p := path.Child("mgmtServerCa")
		if m.Generated != nil && m.SecretRef != nil {
			r.invalid(p, "generated, secretRef", "write one of them: the root is generated, or it is in a Secret")
		}
		r.certOptions(p.Child("generated"), m.Generated)
		r.ref(p.Child("secretRef"), m.SecretRef, namespace, "Secret")
	}
	if a := c.AgentCa; a != nil {
		r.agentCa(path.Child("agentCa"), a, namespace)
	}
	r.certOptions(path.Child("intermediateCertOptions"), c.IntermediateCertOptions)
	seen := map[string]bool{}
	if c.AgentCa == nil && c.MgmtServerCa != nil && c.MgmtServerCa.SecretRef != nil {
		seen[c.MgmtServerCa.SecretRef.Name] = true
	}
	for i := range c.PassiveCertificateAuthorities {
		a, p := &c.PassiveCertificateAuthorities[i], path.Child("passiveCertificateAuthorities").Index(i)
		switch {
		case a.Generated == nil && a.SecretRef == nil:
			r.required(p, "which? write secretRef: {name: ...}, or generated: {}")
		case a.Generated != nil && a.SecretRef != nil:
			r.invalid(p, "generated, secretRef", "write one of them, and an entry of its own for the other")
		}
		r.certOptions(p.Child("generated"), a.Generated)
		r.ref(p.Child("secretRef"), a.SecretRef, namespace, "Secret")
		if a.SecretRef != nil && a.SecretRef.Name != "" {
			if seen[a.SecretRef.Name] {
				r.errs = append(r.errs, field.Duplicate(p.Child("secretRef", "name"), a.SecretRef.Name))
			}
			seen[a.SecretRef.Name] = true
		}
	}
}

func (r *rules) certOptions(path *field.Path, o *adminv2.CommonCertOptions) {
	if o == nil {
		return
	}
	if o.TTLDays > LongestTTLDays {
		r.invalid(path.Child("ttlDays"), o.TTLDays, "too long: at most %d days, which are 100 years", LongestTTLDays)
	}
	switch bits := o.RSAKeySizeBytes; {
	case bits == 0:
	case o.KeyAlgorithm != "" && o.KeyAlgorithm != adminv2.KeyRSA:
		r.invalid(path.Child("rsaKeySizeBytes"), bits, "keyAlgorithm %s has one size: leave rsaKeySizeBytes out", o.KeyAlgorithm)
	case bits == 256 || bits == 384 || bits == 512 || bits == 1024:
		r.invalid(path.Child("rsaKeySizeBytes"), bits, "it is in bits, despite its name, and at least %d: write %d", ShortestRSA, max(ShortestRSA, min(bits*8, LongestRSA)))
	case bits < ShortestRSA || bits > LongestRSA || bits%8 != 0:
		r.invalid(path.Child("rsaKeySizeBytes"), bits, "want %d to %d bits (despite its name), such as %d", ShortestRSA, LongestRSA, mesh.DefaultRSABits)
	}
	if a := o.KeyAlgorithm; a != "" {
		r.keyAlgorithm(path.Child("keyAlgorithm"), string(a))
	}
	switch name := o.OrgName; {
	case len(name) > longestOrg:
		r.invalid(path.Child("orgName"), name, "it has %d bytes: the organization of a certificate has at most %d (RFC 5280)", len(name), longestOrg)
	case strings.ContainsFunc(name, unicode.IsControl):
		r.invalid(path.Child("orgName"), name, "want one line of text, without control characters")
	case name != "" && strings.TrimSpace(name) != name:
		r.invalid(path.Child("orgName"), name, "leave the space around it out: %q", strings.TrimSpace(name))
	}
	switch ratio, p := o.SecretRotationGracePeriodRatio, path.Child("secretRotationGracePeriodRatio"); {
	case ratio == 0 || ratio > 0 && ratio < 1:
	case ratio > 1 && ratio < 100:
		r.invalid(p, ratio, "want the part of the life that is left when it is renewed, more than 0 and less than 1: for %v %% write %v", ratio, ratio/100)
	default:
		r.invalid(p, ratio, "want the part of the life that is left when it is renewed, more than 0 and less than 1, such as 0.5")
	}
}

func (r *rules) keyAlgorithm(path *field.Path, a string) {
	all := []string{string(adminv2.KeyRSA), string(adminv2.KeyECDSAP256), string(adminv2.KeyECDSAP384)}
	if slices.Contains(all, a) {
		return
	}
	switch plain := strings.ToUpper(strings.NewReplacer("-", "", "_", "", " ", "").Replace(a)); {
	case strings.HasPrefix(plain, "RSA"):
		r.invalid(path, a, "write RSA; its size is rsaKeySizeBytes (in bits)")
	case plain == "P256" || plain == "ECDSAP256" || plain == "ECDSA256" || plain == "PRIME256V1" || plain == "SECP256R1" || plain == "EC" || plain == "ECDSA" || plain == "ECP256":
		r.invalid(path, a, "did you mean ECDSA-P256?")
	case plain == "P384" || plain == "ECDSAP384" || plain == "ECDSA384" || plain == "SECP384R1" || plain == "ECP384":
		r.invalid(path, a, "did you mean ECDSA-P384?")
	default:
		r.invalid(path, a, "want %s; what istiod and the proxies all know", strings.Join(all, ", "))
	}
}

// ref checks a reference to an object of the policy's own namespace: who may write policies must not thereby read other namespaces through the server.
func (r *rules) ref(path *field.Path, ref *adminv2.ObjectRef, namespace, what string) {
	if ref == nil {
		return
	}
	if ref.Name == "" {
		r.required(path.Child("name"), "which %s? write %s: {name: ...}", what, lastOf(path))
	}
	r.name(path.Child("name"), ref.Name, noun{what, "write one name", validation.IsDNS1123Subdomain})
	if ref.Namespace != "" && ref.Namespace != namespace {
		r.invalid(path.Child("namespace"), ref.Namespace, "a policy refers to %ss of its own namespace only: put it into %q, and leave namespace out", what, namespace)
	}
}

func (r *rules) rotation(path *field.Path, o *adminv2.RotationOptions) {
	r.name(path.Child("canary"), o.Canary, noun{"cluster", "leave it out for the server's choice", clusterNoun().bad})
	if o.Soak != nil && (o.Soak.Duration < 0 || o.Soak.Duration > LongestSoak) {
		r.invalid(path.Child("soak"), o.Soak.Duration.String(), "want 0s to 720h, such as 10m or 24h")
	}
	if d := o.LongestLeaf; d != nil && (d.Duration < ShortestLeaf || d.Duration > LongestLeaf) {
		r.invalid(path.Child("longestLeaf"), d.Duration.String(), "want 1m to 2160h, such as 24h, which ztunnel and proxies ask for unless SECRET_TTL says otherwise")
	}
	if d := o.FileLag; d != nil && (d.Duration < time.Second || d.Duration > time.Hour) {
		r.invalid(path.Child("fileLag"), d.Duration.String(), "want 1s to 1h, such as 90s: the kubelet's sync period and cache")
	}
}

// conflict refuses a policy, new or with another selection, that selects a cluster which another one holds for already. Two that are written at the same moment both pass; then the
// older one holds, and the status of the other says so.
func (r *rules) conflict(path *field.Path, now, old *adminv2.RootTrustPolicy, o Options) {
	snap := o.snapshot()
	if snap == nil || old != nil && equalJSON(now.Spec.ApplyToMeshes, old.Spec.ApplyToMeshes) {
		return
	}
	mine := mesh.TrustOf(&now.Spec)
	for _, other := range snap.RootPolicies {
		if other.Source.Name == now.Name || other.Invalid != "" {
			continue
		}
		if len(mine.Meshes) == 0 && len(other.Meshes) == 0 {
			r.forbidden(path, "RootTrustPolicy %q selects every mesh already: change that one, or have each select its own (applyToMeshes)", other.Source.Name)
			continue
		}
		var both []string
		for i := range snap.Clusters {
			c := &snap.Clusters[i]
			a, _ := mine.Selects(c)
			b, _ := other.Selects(c)
			if a && b {
				both = append(both, string(c.Name))
			}
		}
		if len(both) > 0 {
			r.forbidden(path, "RootTrustPolicy %q selects %s already: a mesh has one root of trust; change that policy, or have each select its own", other.Source.Name, few(both))
		}
	}
}

// few lists at most 5 names.
func few(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// bundle checks PEM certificates.
func (r *rules) bundle(path *field.Path, raw []byte) {
	if len(raw) == 0 {
		return
	}
	rest, n := raw, 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.Contains(block.Type, "PRIVATE KEY") {
			r.invalid(path, field.OmitValueType{}, "it holds a private key, which now lies in this policy for all its readers: take it out, and replace that key")
			return
		}
		if _, err := x509.ParseCertificate(block.Bytes); block.Type != "CERTIFICATE" || err != nil {
			r.invalid(path, field.OmitValueType{}, "entry %d of it is no certificate: want PEM certificates, base64-encoded", n+1)
			return
		}
		n++
	}
	if n == 0 {
		r.invalid(path, field.OmitValueType{}, "no PEM certificate in it: write the output of base64 -w0 ca.pem")
	}
}
