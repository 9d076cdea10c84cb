package v2

// VaultCA is a PKI secrets engine of HashiCorp Vault.
//
// +kubebuilder:validation:XValidation:rule="[has(self.caBundle), has(self.caSecretRef), has(self.caLocalPath)].filter(x, x).size() <= 1",message="write one of caBundle, caSecretRef, caLocalPath"
// +kubebuilder:validation:XValidation:rule="[has(self.tokenSecretRef), has(self.kubernetesAuth), has(self.appRole)].filter(x, x).size() == 1",message="write one of tokenSecretRef, kubernetesAuth, appRole"
// +kubebuilder:pruning:PreserveUnknownFields
type VaultCA struct {
	// CaPath is where the root is read, such as pki/ca; or, as in older policies, the endpoint that signs.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	CaPath string `json:"caPath,omitempty"`
	// CsrPath is where intermediates are signed, such as pki/root/sign-intermediate or pki/issuer/ID/sign-intermediate. With or without /v1/ before it.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	CsrPath string `json:"csrPath,omitempty"`
	// Server is the URL of Vault, such as https://vault.example.com:8200.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Server string `json:"server"`
	// Namespace of Vault Enterprise.
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Issuer pins one issuer of the mount, by ID (or name), when the path does not (our addition). Absent: the mount's default issuer.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Issuer string `json:"issuer,omitempty"`

	// CaBundle is PEM (base64 in YAML) by which Vault's TLS certificate is verified. Absent, with its alternatives: the system's roots.
	// +optional
	CaBundle []byte `json:"caBundle,omitempty"`
	// CaSecretRef is a Secret with root-cert.pem, in the namespace of this policy, for the same.
	// +optional
	CaSecretRef *ObjectRef `json:"caSecretRef,omitempty"`
	// CaLocalPath is a file of the management server's container, for the same.
	// +optional
	CaLocalPath string `json:"caLocalPath,omitempty"`

	// TokenSecretRef is a Secret with a Vault token in key token, in the namespace of this policy.
	// +optional
	TokenSecretRef *ObjectRef `json:"tokenSecretRef,omitempty"`
	// KubernetesAuth logs in with a service account's token.
	// +optional
	KubernetesAuth *VaultKubernetesAuth `json:"kubernetesAuth,omitempty"`
	// AppRole logs in with a role and a secret (our addition).
	// +optional
	AppRole *VaultAppRole `json:"appRole,omitempty"`
}

// VaultKubernetesAuth is Vault's Kubernetes auth method.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.serviceAccountRef) && has(self.mountedSaPath))",message="write serviceAccountRef or mountedSaPath, not both"
// +kubebuilder:pruning:PreserveUnknownFields
type VaultKubernetesAuth struct {
	// MountPath of the auth method. Absent: /v1/auth/kubernetes.
	// +optional
	MountPath string `json:"mountPath,omitempty"`
	// Role of Vault to log in as.
	// +kubebuilder:validation:MinLength=1
	Role string `json:"role"`
	// SecretTokenKey is the key of the token in the service account's Secret. Absent: token.
	// +optional
	SecretTokenKey string `json:"secretTokenKey,omitempty"`
	// ServiceAccountRef is a service account of the namespace of this policy.
	// +optional
	ServiceAccountRef *ObjectRef `json:"serviceAccountRef,omitempty"`
	// MountedSaPath is the folder with the management server's own token. Absent: /var/run/secrets/kubernetes.io/serviceaccount.
	// +optional
	MountedSaPath string `json:"mountedSaPath,omitempty"`
}

// VaultAppRole is Vault's AppRole auth method (our addition).
//
// +kubebuilder:pruning:PreserveUnknownFields
type VaultAppRole struct {
	// MountPath of the auth method. Absent: /v1/auth/approle.
	// +optional
	MountPath string `json:"mountPath,omitempty"`
	// RoleID of the role.
	// +kubebuilder:validation:MinLength=1
	RoleID string `json:"roleId"`
	// SecretIDRef is a Secret with the role's secret ID in key secret-id, in the namespace of this policy.
	SecretIDRef ObjectRef `json:"secretIdRef"`
}

// AWSPrivateCA is a CA of AWS Private CA (our addition).
//
// +kubebuilder:pruning:PreserveUnknownFields
type AWSPrivateCA struct {
	// Arn of the CA: arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	Arn string `json:"arn"`
	// TemplateArn of intermediates. Absent: arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1, of the partition of arn.
	// +optional
	TemplateArn string `json:"templateArn,omitempty"`
	// Endpoint instead of the region's: a URL, such as a VPC endpoint's.
	// +optional
	Endpoint string `json:"endpoint,omitempty"`
	// CredentialsSecretRef is a Secret with aws_access_key_id, aws_secret_access_key and, optionally, aws_session_token, in the namespace of this policy.
	// Absent: what the management server's Pod has (IAM roles for service accounts, Pod identity).
	// +optional
	CredentialsSecretRef *ObjectRef `json:"credentialsSecretRef,omitempty"`
}

// CertManagerCA is an issuer of cert-manager in the management cluster (our addition).
//
// +kubebuilder:pruning:PreserveUnknownFields
type CertManagerCA struct {
	// IssuerRef as in a Certificate of cert-manager.
	IssuerRef CertManagerIssuerRef `json:"issuerRef"`
	// RootSecretRef is a Secret with the issuer's root in ca.crt or root-cert.pem, in the namespace of this policy. Absent: the root that cert-manager tells with its answers, where it
	// does.
	// +optional
	RootSecretRef *ObjectRef `json:"rootSecretRef,omitempty"`
}

// CertManagerIssuerRef names an issuer of cert-manager.
//
// +kubebuilder:pruning:PreserveUnknownFields
type CertManagerIssuerRef struct {
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// Kind; absent: Issuer, of the namespace of this policy.
	// +optional
	Kind string `json:"kind,omitempty"`
	// Group; absent: cert-manager.io.
	// +optional
	Group string `json:"group,omitempty"`
}
