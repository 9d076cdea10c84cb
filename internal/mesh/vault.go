package mesh

import (
	"cmp"
	"strconv"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// VaultCall is what an endpoint of Vault's PKI secrets engine does, as its path tells.
type VaultCall int

// The calls. Vault's API documentation, "PKI secrets engine".
const (
	VaultOther            VaultCall = iota
	VaultReadRoot                   // <mount>/ca, ca/pem, ca_chain, cert/ca, cert/ca_chain, issuer/<id>, issuer/<id>/json|pem|der
	VaultSignIntermediate           // <mount>/root/sign-intermediate, <mount>/issuer/<id>/sign-intermediate
	VaultSignRole                   // <mount>/sign/<role>, sign-verbatim[/<role>], issuer/<id>/sign/<role>: signs leaves, unless the role says otherwise
	VaultGenerate                   // <mount>/intermediate/generate/<type>: makes a key in Vault
)

// VaultPath is a path of Vault's HTTP API, taken apart.
type VaultPath struct {
	Call   VaultCall
	Path   string // without "/v1/" and slashes around it
	Mount  string // empty: Call is VaultOther, and nothing is known
	Issuer string // ID or name, if the path holds one
	Role   string // of VaultSignRole
}

// ParseVaultPath reads a path by its shape: mounts may have any name and depth.
func ParseVaultPath(path string) VaultPath {
	p := strings.Trim(path, "/")
	p = strings.Trim(strings.TrimPrefix(p, "v1/"), "/")
	v := VaultPath{Path: p}
	parts := strings.Split(p, "/")
	for i := 1; i < len(parts); i++ {
		call, role, ok := vaultCall(parts[i:])
		if !ok {
			continue
		}
		v.Call, v.Role, v.Mount = call, role, strings.Join(parts[:i], "/")
		if i >= 3 && parts[i-2] == "issuer" {
			v.Issuer, v.Mount = parts[i-1], strings.Join(parts[:i-2], "/")
		}
		return v
	}
	if n := len(parts); n >= 3 && parts[n-2] == "issuer" {
		v.Call, v.Issuer, v.Mount = VaultReadRoot, parts[n-1], strings.Join(parts[:n-2], "/")
	}
	return v
}

// vaultCall tells what the end of a path asks for.
func vaultCall(end []string) (call VaultCall, role string, ok bool) {
	const longest = 4 // cert/ca/raw/pem; what is longer is part of a mount's name
	if len(end) > longest {
		return VaultOther, "", false
	}
	switch s := strings.Join(end, "/"); {
	case s == "root/sign-intermediate", s == "sign-intermediate":
		return VaultSignIntermediate, "", true
	case end[0] == "sign" && len(end) == 2, end[0] == "sign-verbatim" && len(end) <= 2:
		return VaultSignRole, strings.Join(end[1:], ""), true
	case strings.HasPrefix(s, "intermediate/generate/") && len(end) == 3, strings.HasPrefix(s, "intermediate/cross-sign"):
		return VaultGenerate, "", true
	case s == "ca", s == "ca/pem", s == "ca_chain", s == "cert/ca", s == "cert/ca_chain", s == "cert/ca/raw", s == "cert/ca/raw/pem":
		return VaultReadRoot, "", true
	case len(end) == 1 && (s == "json" || s == "pem" || s == "der"):
		return VaultReadRoot, "", true // after issuer/<id>
	}
	return VaultOther, "", false
}

// vaultOf reads what the policy says of Vault. The two paths may stand in either field: in the published API caPath signs, on the operators' page csrPath does.
func vaultOf(c *adminv2.VaultCA) *Vault {
	v := &Vault{
		Server: strings.TrimRight(c.Server, "/"), Namespace: c.Namespace, Issuer: c.Issuer,
		Bundle: c.CaBundle, BundleSecret: nameOf(c.CaSecretRef), BundleFile: c.CaLocalPath, TokenSecret: nameOf(c.TokenSecretRef),
	}
	sign, root := vaultPaths(c.CsrPath, c.CaPath)
	v.SignPath, v.RootPath = sign.Path, root.Path
	v.Mount = cmp.Or(sign.Mount, root.Mount)
	v.Issuer = cmp.Or(v.Issuer, sign.Issuer, root.Issuer)
	if k := c.KubernetesAuth; k != nil {
		v.Kubernetes = &VaultKubernetes{Mount: authMount(k.MountPath, "auth/kubernetes"), Role: k.Role}
		if k.ServiceAccountRef != nil {
			v.Kubernetes.ServiceAccount, v.Kubernetes.TokenKey = k.ServiceAccountRef.Name, cmp.Or(k.SecretTokenKey, "token")
		} else {
			v.Kubernetes.Folder = cmp.Or(k.MountedSaPath, "/var/run/secrets/kubernetes.io/serviceaccount")
		}
	}
	if a := c.AppRole; a != nil {
		v.AppRole = &VaultAppRole{Mount: authMount(a.MountPath, "auth/approle"), RoleID: a.RoleID, Secret: a.SecretIDRef.Name}
	}
	return v
}

// vaultPaths finds which path signs and which reads the root; one that does neither by its shape is taken for what its field is called.
func vaultPaths(csr, ca string) (sign, root VaultPath) {
	sign, root = ParseVaultPath(csr), ParseVaultPath(ca)
	signs := func(p VaultPath) bool { return p.Call == VaultSignIntermediate || p.Call == VaultSignRole }
	switch {
	case signs(sign):
	case signs(root): // caPath: pki/root/sign-intermediate, csrPath: pki_int/intermediate/generate/exported
		sign, root = root, sign
	case sign.Call == VaultReadRoot && root.Call == VaultOther && root.Path != "":
		sign, root = root, sign
	case sign.Call == VaultGenerate:
		sign = VaultPath{}
	}
	if root.Call == VaultGenerate || signs(root) || root.Mount != "" && sign.Mount != "" && root.Mount != sign.Mount && root.Call != VaultReadRoot {
		root = VaultPath{}
	}
	return sign, root
}

// authMount is "auth/NAME" from "/v1/auth/NAME", "auth/NAME" or "NAME".
func authMount(given, otherwise string) string {
	p := strings.Trim(given, "/")
	p = strings.Trim(strings.TrimPrefix(p, "v1/"), "/")
	switch {
	case p == "":
		return otherwise
	case strings.HasPrefix(p, "auth/"):
		return p
	}
	return "auth/" + p
}
