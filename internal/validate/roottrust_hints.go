package validate

import (
	"reflect"
	"strings"
)

// trustWord translates words that authors of a RootTrustPolicy take from elsewhere: older releases, Vault, cert-manager, openssl. By the struct the word stands in.
func trustWord(key string, t reflect.Type) string {
	if !strings.HasSuffix(t.PkgPath(), "/admin/v2") {
		return ""
	}
	words, ok := trustWords()[t.Name()]
	if !ok {
		return ""
	}
	return words[key]
}

func trustWords() map[string]map[string]string {
	refer := "a Secret is referred to: write secretRef: {name: ...}"
	return map[string]map[string]string{
		"RootTrustConfig": {
			"rootCertificateAuthority":         "write mgmtServerCa (generated, or secretRef), or agentCa for a CA outside",
			"intermediateCertificateAuthority": "write agentCa: {vault: ...}",
			"shared":                           "write mgmtServerCa or agentCa",
			"mtlsConfig":                       "write mgmtServerCa or agentCa",
			"rootCa":                           "write mgmtServerCa: {secretRef: {name: ...}}",
			"trustDomain":                      "the trust domain is what istiod has (meshConfig.trustDomain)",
			"cacerts":                          "write existingCacerts: Adopt beside config, in spec",
		},
		"MgmtServerCa": {"secret": refer, "secretName": refer, "selfSigned": "write generated: {}", "rootCa": refer},
		"AgentCa": {
			"aws": "write awsPrivateCa: {arn: ...}", "acmpca": "write awsPrivateCa: {arn: ...}", "awsPca": "write awsPrivateCa: {arn: ...}", "acm": "write awsPrivateCa: {arn: ...}",
			"issuerRef": `did you mean "issuerRef" inside "certManager"? (indent it further)`,
		},
		"CommonCertOptions": {
			"ttl": "write ttlDays: 365", "validity": "write ttlDays: 365", "duration": "write ttlDays: 365", "days": "write ttlDays: 365",
			"rsaKeySize": "write rsaKeySizeBytes: 4096 (it is in bits)", "rsaKeySizeBits": "write rsaKeySizeBytes: 4096 (it is in bits)",
			"keySize": "write rsaKeySizeBytes: 4096 (it is in bits)", "keySizeBits": "write rsaKeySizeBytes: 4096 (it is in bits)", "bits": "write rsaKeySizeBytes: 4096 (it is in bits)",
			"algorithm": "write keyAlgorithm: ECDSA-P256", "privateKey": "write keyAlgorithm and rsaKeySizeBytes (in bits)",
			"organization": `did you mean "orgName"?`, "organizations": `did you mean "orgName"?`, "org": `did you mean "orgName"?`,
			"renewBefore": "write secretRotationGracePeriodRatio: 0.5, the part of the life that is left", "rotationRatio": `did you mean "secretRotationGracePeriodRatio"?`,
			"gracePeriodRatio": `did you mean "secretRotationGracePeriodRatio"?`, "commonName": "the subject is made by the server, different for each cluster and generation",
		},
		"VaultCA": {
			"address": `did you mean "server"?`, "url": `did you mean "server"?`, "addr": `did you mean "server"?`,
			"path": "write csrPath: MOUNT/root/sign-intermediate", "signPath": `did you mean "csrPath"?`, "mount": "write csrPath: MOUNT/root/sign-intermediate",
			"token": "a token does not belong into a policy: put it into a Secret, key token, and write tokenSecretRef: {name: ...}",
			"auth":  "write kubernetesAuth: {role: ...}, appRole, or tokenSecretRef", "caBundleSecretRef": `did you mean "caSecretRef"?`,
			"kubernetes": `did you mean "kubernetesAuth"?`, "issuerRef": `did you mean "issuer"?`,
		},
		"VaultKubernetesAuth": {"path": `did you mean "mountPath"?`, "mount": `did you mean "mountPath"?`, "serviceAccount": "write serviceAccountRef: {name: ...}"},
		"VaultAppRole":        {"secretId": "a secret ID does not belong into a policy: put it into a Secret, key secret-id, and write secretIdRef: {name: ...}", "path": `did you mean "mountPath"?`},
		"AWSPrivateCA":        {"region": "the region is in arn", "caArn": `did you mean "arn"?`, "accessKeyId": "keys don't belong into a policy: put them into a Secret, and write credentialsSecretRef: {name: ...}"},
		"CertManagerCA":       {"name": "write issuerRef: {name: ...}", "kind": "write issuerRef: {name: ..., kind: ...}"},
		"IstioMeshSelector": {
			"cluster": "clusters are selected by their labels: write clusterSelector: {LABEL: VALUE}", "clusters": "clusters are selected by their labels: write clusterSelector: {LABEL: VALUE}",
			"name": "clusters are selected by their labels: write clusterSelector: {LABEL: VALUE}", "labels": `did you mean "selector"?`,
		},
		"MeshSelector": {"clusterSelector": `did you mean "clusterSelector" inside "istio"? (indent it further)`, "name": "write istio: {clusterSelector: {LABEL: VALUE}}"},
		"RotationRequestSpec": {
			"by": "who asks is recorded by the server", "for": "a request is carried out once: it has no duration",
		},
	}
}
