package validate

import (
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// choice is one of several fields of which one is wanted.
type choice struct {
	name string
	set  bool
}

// given lists the names of what is set.
func given(choices ...choice) (out []string) {
	for _, c := range choices {
		if c.set {
			out = append(out, c.name)
		}
	}
	return out
}

func (r *rules) agentCa(path *field.Path, a *adminv2.AgentCa, namespace string) {
	switch set := given(choice{"vault", a.Vault != nil}, choice{"awsPrivateCa", a.AWSPrivateCa != nil}, choice{"certManager", a.CertManager != nil}); len(set) {
	case 0:
		r.required(path, "which? write vault, awsPrivateCa or certManager; for a root of the server's own write mgmtServerCa instead")
	case 1:
	default:
		r.invalid(path, strings.Join(set, ", "), "write one of them: a mesh has one source of truth. Roots that are to be trusted as well go into passiveCertificateAuthorities")
	}
	if v := a.Vault; v != nil {
		r.vault(path.Child("vault"), v, namespace)
	}
	if v := a.AWSPrivateCa; v != nil {
		r.aws(path.Child("awsPrivateCa"), v, namespace)
	}
	if v := a.CertManager; v != nil {
		p := path.Child("certManager", "issuerRef")
		if v.IssuerRef.Name == "" {
			r.required(p.Child("name"), "which issuer? write issuerRef: {name: ...}, and kind: ClusterIssuer for one of the whole cluster")
		}
		r.name(p.Child("name"), v.IssuerRef.Name, noun{"issuer", "write one name", validation.IsDNS1123Subdomain})
		if v.IssuerRef.Group == "" || v.IssuerRef.Group == "cert-manager.io" {
			if v.IssuerRef.Kind != "" {
				r.enum(p.Child("kind"), v.IssuerRef.Kind, "Issuer", "ClusterIssuer")
			}
		}
		r.ref(path.Child("certManager", "rootSecretRef"), v.RootSecretRef, namespace, "Secret")
	}
}

func (r *rules) vault(path *field.Path, v *adminv2.VaultCA, namespace string) {
	if v.Server == "" {
		r.required(path.Child("server"), "where is Vault? write its URL, such as %q", "https://vault.example.com:8200")
	} else {
		r.serverURL(path.Child("server"), v.Server, "https://vault.example.com:8200")
	}
	before := len(r.errs)
	r.vaultPath(path.Child("caPath"), v.CaPath)
	r.vaultPath(path.Child("csrPath"), v.CsrPath)
	if len(r.errs) == before {
		r.vaultSigns(path, v)
	}
	if strings.ContainsAny(v.Issuer, "/ ") {
		r.invalid(path.Child("issuer"), v.Issuer, "want the ID or name of an issuer, not a path: `vault list MOUNT/issuers` has the IDs")
	}
	if set := given(choice{"caBundle", len(v.CaBundle) > 0}, choice{"caSecretRef", v.CaSecretRef != nil}, choice{"caLocalPath", v.CaLocalPath != ""}); len(set) > 1 {
		r.invalid(path, strings.Join(set, ", "), "write one of them: by which CA is Vault's own TLS certificate verified?")
	}
	r.bundle(path.Child("caBundle"), v.CaBundle)
	r.ref(path.Child("caSecretRef"), v.CaSecretRef, namespace, "Secret")
	r.absolute(path.Child("caLocalPath"), v.CaLocalPath)
	switch set := given(choice{"tokenSecretRef", v.TokenSecretRef != nil}, choice{"kubernetesAuth", v.KubernetesAuth != nil}, choice{"appRole", v.AppRole != nil}); len(set) {
	case 0:
		r.required(path, "how does the server log in? write kubernetesAuth: {role: ...}, appRole, or tokenSecretRef")
	case 1:
	default:
		r.invalid(path, strings.Join(set, ", "), "write one of them: how does the server log in?")
	}
	r.ref(path.Child("tokenSecretRef"), v.TokenSecretRef, namespace, "Secret")
	if k := v.KubernetesAuth; k != nil {
		r.vaultKubernetes(path.Child("kubernetesAuth"), k, namespace)
	}
	if a := v.AppRole; a != nil {
		p := path.Child("appRole")
		if a.RoleID == "" {
			r.required(p.Child("roleId"), "which role? `vault read auth/approle/role/NAME/role-id` tells its ID")
		}
		r.authMount(p.Child("mountPath"), a.MountPath)
		r.ref(p.Child("secretIdRef"), &a.SecretIDRef, namespace, "Secret")
	}
}

func (r *rules) vaultKubernetes(path *field.Path, k *adminv2.VaultKubernetesAuth, namespace string) {
	if k.Role == "" {
		r.required(path.Child("role"), "which role of Vault's Kubernetes auth method? write role: ...")
	}
	r.authMount(path.Child("mountPath"), k.MountPath)
	if k.ServiceAccountRef != nil && k.MountedSaPath != "" {
		r.invalid(path, "serviceAccountRef, mountedSaPath", "write one of them: whose token does the server log in with?")
	}
	r.ref(path.Child("serviceAccountRef"), k.ServiceAccountRef, namespace, "ServiceAccount")
	r.absolute(path.Child("mountedSaPath"), k.MountedSaPath)
}

// serverURL checks the URL of a server that credentials are sent to.
func (r *rules) serverURL(path *field.Path, s, example string) {
	u, err := url.Parse(s)
	switch {
	case strings.TrimSpace(s) != s:
		r.invalid(path, s, "leave the space around it out: %q", strings.TrimSpace(s))
	case !strings.Contains(s, "://"):
		r.invalid(path, s, "want a URL: write %q", "https://"+s)
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		r.invalid(path, s, "want the URL of a server, such as %q", example)
	case u.User != nil:
		r.invalid(path, field.OmitValueType{}, "it holds a user or password, which now lies in this policy for all its readers: take it out")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		r.invalid(path, s, "want the server only: write %q", u.Scheme+"://"+u.Host)
	}
}

var vaultSegments = regexp.MustCompile(`^[^/\s?#*]+(/[^/\s?#*]+)*$`)

func (r *rules) vaultPath(path *field.Path, s string) {
	switch {
	case s == "":
	case strings.Contains(s, "://"):
		r.invalid(path, s, "want a path, such as %q; the server has a field of its own: server", "pki/root/sign-intermediate")
	case !vaultSegments.MatchString(strings.Trim(s, "/")):
		r.invalid(path, s, "want a path of Vault's API, such as %q", "pki/root/sign-intermediate")
	}
}

// vaultSigns: some path has to sign. By the shape of one that is known; a path of an unknown shape is taken for what its field is called.
func (r *rules) vaultSigns(path *field.Path, v *adminv2.VaultCA) {
	csr, ca := mesh.ParseVaultPath(v.CsrPath), mesh.ParseVaultPath(v.CaPath)
	t := mesh.TrustOf(&adminv2.RootTrustPolicySpec{Config: &adminv2.RootTrustConfig{AgentCa: &adminv2.AgentCa{Vault: v}}})
	mount := t.Authority.Vault.Mount
	if mount == "" {
		mount = "MOUNT"
	}
	switch {
	case t.Authority.Vault.SignPath == "" && v.CsrPath == "" && v.CaPath == "":
		r.required(path.Child("csrPath"), "which path signs intermediates? write %q, with the mount of your PKI secrets engine", "MOUNT/root/sign-intermediate")
	case t.Authority.Vault.SignPath == "" || csr.Call == mesh.VaultReadRoot && ca.Call == mesh.VaultReadRoot:
		r.required(path.Child("csrPath"), "which path signs intermediates? Neither of these does: write %q", mount+"/root/sign-intermediate")
	case csr.Issuer != "" && v.Issuer != "" && csr.Issuer != v.Issuer:
		r.invalid(path.Child("issuer"), v.Issuer, "csrPath says issuer %q: write one of them", csr.Issuer)
	}
}

// authMount checks the mount of an auth method.
func (r *rules) authMount(path *field.Path, s string) {
	switch {
	case s == "":
	case !vaultSegments.MatchString(strings.Trim(s, "/")) || strings.Contains(s, "://"):
		r.invalid(path, s, "want the mount of the auth method, such as %q", "/v1/auth/kubernetes")
	case strings.HasSuffix(strings.TrimRight(s, "/"), "/login"):
		r.invalid(path, s, "want the mount only: write %q", strings.TrimSuffix(strings.TrimRight(s, "/"), "/login"))
	}
}

func (r *rules) absolute(path *field.Path, s string) {
	if s != "" && (!strings.HasPrefix(s, "/") || strings.ContainsAny(s, "\x00\n") || strings.Contains(s+"/", "/../")) {
		r.invalid(path, s, "want a path of the management server's container, beginning with '/' and without '..'")
	}
}

var (
	pcaARN      = regexp.MustCompile(`^arn:aws[-a-z]*:acm-pca:[a-z]{2}[-a-z]*-[0-9]+:[0-9]{12}:certificate-authority/[-0-9a-f]{36}$`)
	templateARN = regexp.MustCompile(`^arn:aws[-a-z]*:acm-pca:::template/[A-Za-z0-9_]+/V[0-9]+$`)
)

func (r *rules) aws(path *field.Path, a *adminv2.AWSPrivateCA, namespace string) {
	const example = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"
	switch arn := path.Child("arn"); {
	case a.Arn == "":
		r.required(arn, "which CA? write its ARN, such as %q", example)
	case strings.HasPrefix(a.Arn, "arn:") && strings.Contains(a.Arn, "/certificate/"):
		whole, _, _ := strings.Cut(a.Arn, "/certificate/")
		r.invalid(arn, a.Arn, "that is a certificate of the CA: write %q", whole)
	case strings.Contains(a.Arn, ":acm:"):
		r.invalid(arn, a.Arn, "that is of AWS Certificate Manager: want the ARN of a CA of AWS Private CA, such as %q", example)
	case !pcaARN.MatchString(a.Arn):
		r.invalid(arn, a.Arn, "want the ARN of a CA of AWS Private CA, such as %q", example)
	}
	switch t := a.TemplateArn; {
	case t == "":
	case !templateARN.MatchString(t):
		r.invalid(path.Child("templateArn"), t, "want the ARN of a template, such as %q", "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1")
	case !strings.Contains(t, "SubordinateCACertificate"):
		r.invalid(path.Child("templateArn"), t, "it does not make CAs: want a SubordinateCACertificate template, such as %q", "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1")
	}
	if a.Endpoint != "" {
		r.serverURL(path.Child("endpoint"), a.Endpoint, "https://acm-pca.eu-west-1.amazonaws.com")
	}
	r.ref(path.Child("credentialsSecretRef"), a.CredentialsSecretRef, namespace, "Secret")
}

// plainHTTP reports whether a URL sends credentials in the clear to another machine.
func plainHTTP(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() != "localhost" && (err != nil || !addr.IsLoopback())
}

func (w *warnings) vault(path string, v *adminv2.VaultCA) {
	csr, ca := mesh.ParseVaultPath(v.CsrPath), mesh.ParseVaultPath(v.CaPath)
	for _, f := range []struct {
		name string
		path mesh.VaultPath
	}{{"caPath", ca}, {"csrPath", csr}} {
		switch p := f.path; {
		case p.Call == mesh.VaultSignRole && (f.name == "csrPath" || csr.Call != mesh.VaultSignIntermediate):
			w.say(path+"."+f.name, "%s, and Vault makes no CA certificates by roles: what it answers is refused if it is none. The path that makes them is %q", role(p), signIntermediate(p))
		case p.Call == mesh.VaultGenerate:
			w.say(path+"."+f.name, "not used: Vault would make the key; here the key is made in the cluster and never leaves it")
		}
	}
	if mount := csr.Mount; mount != "" && ca.Mount != "" && mount != ca.Mount && csr.Call != mesh.VaultGenerate && ca.Call == mesh.VaultReadRoot {
		w.say(path+".caPath", "it is of another mount (%s) than what signs (%s): intermediates verify only if that one's CA was issued by this one's", ca.Mount, mount)
	}
	if v.Issuer == "default" || csr.Issuer == "default" {
		w.say(path, "the default issuer can be changed in Vault at any time: pin one, by its ID, in issuer")
	}
	if plainHTTP(v.Server) {
		w.say(path+".server", "http: credentials and certificates pass in the clear; write https")
	}
}

func role(p mesh.VaultPath) string {
	if p.Role == "" {
		return "it signs leaves"
	}
	return "it names role " + p.Role
}

func signIntermediate(p mesh.VaultPath) string {
	if p.Issuer != "" {
		return p.Mount + "/issuer/" + p.Issuer + "/sign-intermediate"
	}
	return p.Mount + "/root/sign-intermediate"
}
