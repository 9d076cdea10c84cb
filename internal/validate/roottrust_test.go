package validate_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/validate"
)

const trustHead = `
apiVersion: admin.gloo.solo.io/v2
kind: RootTrustPolicy
metadata: {name: root-trust, namespace: gloo-mesh}
`

// pageTrust is the operators' page, verbatim but for the indentation that the page lost.
const pageTrust = `
apiVersion: admin.gloo.solo.io/v2
kind: RootTrustPolicy
metadata:
  name: root-trust
  namespace: gloo-mesh
spec:
  config:
    mgmtServerCa:
      generated: {}
    intermediateCertOptions:
      secretRotationGracePeriodRatio: 0.5 # auto re-issue intermediates at 50% TTL
    autoRestartPods: true # gracefully roll workloads after rotation
    agentCa:
      vault: # source of truth = Vault
        caPath: pki_root/ca
        csrPath: pki_root/sign/intermediate
        server: https://vault.example.com:8200
        kubernetesAuth:
          role: gloo-mesh-mgmt
`

const roleWarning = `spec.config.agentCa.vault.csrPath: it names role intermediate, and Vault makes no CA certificates by roles: what it answers is refused if it is none. The path that makes them is "pki_root/root/sign-intermediate"`

func config(s string) string { return "spec: {config: {" + s + "}}" }

func vault(s string) string {
	return config(`agentCa: {vault: {server: "https://v:8200", csrPath: pki/root/sign-intermediate, kubernetesAuth: {role: r}` + s + `}}`)
}

func TestRootTrustPolicy(t *testing.T) {
	compare(t, "", map[string]struct {
		rest string
		want verdict
	}{
		"the page's": {pageTrust, doubtful(roleWarning)},
		"the page's, options nested in mgmtServerCa": {
			strings.Replace(pageTrust, "    intermediateCertOptions:\n      secret", "      intermediateCertOptions:\n        secret", 1),
			wrong(`spec.config.mgmtServerCa.intermediateCertOptions: Forbidden: unknown field here: did you mean "intermediateCertOptions" of "config"? (indent it less)`),
		},
		"the page's, options nested in generated": {
			strings.Replace(pageTrust, "      generated: {}\n    intermediateCertOptions:\n      secret", "      generated:\n        intermediateCertOptions:\n          secret", 1),
			wrong(`spec.config.mgmtServerCa.generated.intermediateCertOptions: Forbidden: unknown field here: did you mean "intermediateCertOptions" of "config"? (indent it less)`),
		},
		"the page's, as it is printed there, without indentation": {
			strings.ReplaceAll(pageTrust, "  ", ""),
			wrong(
				`agentCa: Forbidden: unknown field here: did you mean "agentCa" inside "config"? (indent it further)`,
				`autoRestartPods: Forbidden: unknown field here: did you mean "autoRestartPods" inside "config"? (indent it further)`,
				`caPath: Forbidden: unknown field here: did you mean "caPath" inside "vault"? (indent it further)`,
				`config: Forbidden: unknown field here: did you mean "config" inside "spec"? (indent it further)`,
				`csrPath: Forbidden: unknown field here: did you mean "csrPath" inside "vault"? (indent it further)`,
				`generated: Forbidden: unknown field here: did you mean "generated" inside "mgmtServerCa"? (indent it further)`,
				`intermediateCertOptions: Forbidden: unknown field here: did you mean "intermediateCertOptions" inside "config"? (indent it further)`,
				`kubernetesAuth: Forbidden: unknown field here: did you mean "kubernetesAuth" inside "vault"? (indent it further)`,
				`mgmtServerCa: Forbidden: unknown field here: did you mean "mgmtServerCa" inside "config"? (indent it further)`,
				`name: Forbidden: unknown field here: did you mean "name" inside "metadata"? (indent it further)`,
				`namespace: Forbidden: unknown field here: did you mean "namespace" inside "metadata"? (indent it further)`,
				`role: Forbidden: unknown field here: did you mean "role" inside "kubernetesAuth"? (indent it further)`,
				`secretRotationGracePeriodRatio: Forbidden: unknown field here: did you mean "secretRotationGracePeriodRatio" inside "intermediateCertOptions"? (indent it further)`,
				`server: Forbidden: unknown field here: did you mean "server" inside "vault"? (indent it further)`,
				`vault: Forbidden: unknown field here: did you mean "vault" inside "agentCa"? (indent it further)`,
			),
		},
	})
}

func TestRootTrustPolicyForms(t *testing.T) {
	compare(t, trustHead, map[string]struct {
		rest string
		want verdict
	}{
		"nothing":         {`spec: {}`, verdict{}},
		"no spec":         {``, verdict{}},
		"generated":       {config(`mgmtServerCa: {generated: {}}`), verdict{}},
		"published usual": {config(`mgmtServerCa: {generated: {ttlDays: 730, rsaKeySizeBytes: 4096, orgName: gloo-mesh}}, intermediateCertOptions: {ttlDays: 365, secretRotationGracePeriodRatio: 0.1}, autoRestartPods: true`), verdict{}},
		"supplied CA":     {config(`mgmtServerCa: {secretRef: {name: my-root, namespace: gloo-mesh}}`), verdict{}},
		"passive":         {config(`mgmtServerCa: {secretRef: {name: new}}, passiveCertificateAuthorities: [{secretRef: {name: old}}, {generated: {ttlDays: 7300}}]`), verdict{}},
		"vault, published": {
			config(`agentCa: {vault: {caPath: pki/root/sign-intermediate, csrPath: pki_int/intermediate/generate/exported, server: "https://vault:8200", namespace: eu,
			caSecretRef: {name: vault-ca}, kubernetesAuth: {mountPath: /v1/auth/kubernetes, role: r, secretTokenKey: token, serviceAccountRef: {name: vault}}}}`),
			doubtful(`spec.config.agentCa.vault.csrPath: not used: Vault would make the key; here the key is made in the cluster and never leaves it`),
		},
		"vault, pinned":   {config(`agentCa: {vault: {server: "https://v", csrPath: /v1/pki/issuer/3f2a/sign-intermediate, caPath: pki/ca, tokenSecretRef: {name: t}, caLocalPath: /etc/vault/ca.pem}}`), verdict{}},
		"vault, AppRole":  {config(`agentCa: {vault: {server: "https://v", csrPath: pki/root/sign-intermediate, issuer: 3f2a, appRole: {roleId: x, secretIdRef: {name: s}}}}`), verdict{}},
		"vault, unknown":  {config(`agentCa: {vault: {server: "https://v", csrPath: our/gateway/signs, caPath: our/gateway/roots, tokenSecretRef: {name: t}}}`), verdict{}},
		"vault, loopback": {config(`agentCa: {vault: {server: "http://127.0.0.1:8200", csrPath: pki/root/sign-intermediate, tokenSecretRef: {name: t}}}`), verdict{}},
		"AWS":             {config(`agentCa: {awsPrivateCa: {arn: "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"}}`), verdict{}},
		"AWS, everything": {config(`agentCa: {awsPrivateCa: {arn: "arn:aws-us-gov:acm-pca:us-gov-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012", templateArn: "arn:aws-us-gov:acm-pca:::template/SubordinateCACertificate_PathLen1/V1", endpoint: "https://vpce-1.acm-pca.us-gov-west-1.vpce.amazonaws.com", credentialsSecretRef: {name: aws}}}`), verdict{}},
		"cert-manager":    {config(`agentCa: {certManager: {issuerRef: {name: root, kind: ClusterIssuer, group: cert-manager.io}}}`), verdict{}},
		"cert-manager, other groups have other kinds": {config(`agentCa: {certManager: {issuerRef: {name: root, kind: AWSPCAClusterIssuer, group: awspca.cert-manager.io}}}`), verdict{}},
		"ECDSA":          {config(`mgmtServerCa: {generated: {keyAlgorithm: ECDSA-P384}}, intermediateCertOptions: {keyAlgorithm: ECDSA-P256}`), verdict{}},
		"our additions":  {`spec: {rotation: {canary: cluster-3, soak: 1h, crossSign: true, longestLeaf: 24h, fileLag: 30s, foreignClients: true}, existingCacerts: Adopt, crl: Always}`, verdict{}},
		"selection":      {`spec: {applyToMeshes: [{istio: {revision: 1-30, namespace: istio-system, clusterSelector: {region: eu}, selector: {app: istiod}}}, {istio: {}}, {}]}`, verdict{}},
		"status is kept": {"spec: {}\nstatus: {phase: Steady, rotation: {anything: [1]}}", verdict{}},
	})
}

func TestRootTrustPolicyMistakes(t *testing.T) {
	const c = "spec.config."
	compare(t, trustHead, map[string]struct {
		rest string
		want verdict
	}{
		"misspelt": {config(`mgmtServerCA: {}, agentCA: {}, intermediateCertOption: {}, autoRestartPod: true, passiveCertificateAuthority: []`), wrong(
			c+`agentCA: Forbidden: unknown field: did you mean "agentCa"?`, c+`autoRestartPod: Forbidden: unknown field: did you mean "autoRestartPods"?`,
			c+`intermediateCertOption: Forbidden: unknown field: did you mean "intermediateCertOptions"?`, c+`mgmtServerCA: Forbidden: unknown field: did you mean "mgmtServerCa"?`,
			c+`passiveCertificateAuthority: Forbidden: unknown field: did you mean "passiveCertificateAuthorities"?`)},
		"deep": {config(`mgmtServerCa: {generated: {ttlDay: 1, rsaKeySizeByte: 4096}}, agentCa: {vault: {caPat: x, kubernetsAuth: {}}}`), wrong(
			c+`agentCa.vault.caPat: Forbidden: unknown field: did you mean "caPath"?`, c+`agentCa.vault.kubernetsAuth: Forbidden: unknown field: did you mean "kubernetesAuth"?`,
			c+`mgmtServerCa.generated.rsaKeySizeByte: Forbidden: unknown field: did you mean "rsaKeySizeBytes"?`, c+`mgmtServerCa.generated.ttlDay: Forbidden: unknown field: did you mean "ttlDays"?`)},
		"indentation": {`spec: {mgmtServerCa: {}, config: {vault: {}, applyToMeshes: [], existingCacerts: Keep, agentCa: {vault: {role: r}}}}`, wrong(
			c+`agentCa.vault.role: Forbidden: unknown field here: did you mean "role" inside "kubernetesAuth"? (indent it further)`,
			c+`applyToMeshes: Forbidden: unknown field here: did you mean "applyToMeshes" of "spec"? (indent it less)`,
			c+`existingCacerts: Forbidden: unknown field here: did you mean "existingCacerts" of "spec"? (indent it less)`,
			c+`vault: Forbidden: unknown field here: did you mean "vault" inside "agentCa"? (indent it further)`,
			`spec.mgmtServerCa: Forbidden: unknown field here: did you mean "mgmtServerCa" inside "config"? (indent it further)`)},
		"words from elsewhere": {config(`rootCertificateAuthority: {}, mgmtServerCa: {secretName: x, generated: {keySize: 4096, duration: 1h, renewBefore: 1h}}, agentCa: {aws: {}, vault: {token: s.abc, address: x}}`), wrong(
			c+`agentCa.aws: Forbidden: unknown field: write awsPrivateCa: {arn: ...}`,
			c+`agentCa.vault.address: Forbidden: unknown field: did you mean "server"?`,
			c+`agentCa.vault.token: Forbidden: unknown field: a token does not belong into a policy: put it into a Secret, key token, and write tokenSecretRef: {name: ...}`,
			c+`mgmtServerCa.generated.duration: Forbidden: unknown field: write ttlDays: 365`,
			c+`mgmtServerCa.generated.keySize: Forbidden: unknown field: write rsaKeySizeBytes: 4096 (it is in bits)`,
			c+`mgmtServerCa.generated.renewBefore: Forbidden: unknown field: write secretRotationGracePeriodRatio: 0.5, the part of the life that is left`,
			c+`mgmtServerCa.secretName: Forbidden: unknown field: a Secret is referred to: write secretRef: {name: ...}`,
			c+`rootCertificateAuthority: Forbidden: unknown field: write mgmtServerCa (generated, or secretRef), or agentCa for a CA outside`)},
		"types": {config(`mgmtServerCa: {secretRef: my-root}, autoRestartPods: "true", intermediateCertOptions: {ttlDays: "30", secretRotationGracePeriodRatio: "0.5"}, passiveCertificateAuthorities: {secretRef: {name: a}}`), wrong(
			c+`autoRestartPods: Invalid value: "true": want a boolean: write true without quotes`,
			c+`intermediateCertOptions.secretRotationGracePeriodRatio: Invalid value: "0.5": want a number: write 0.5 without quotes`,
			c+`intermediateCertOptions.ttlDays: Invalid value: "30": want a number: write 30 without quotes`,
			c+`mgmtServerCa.secretRef: Invalid value: "my-root": want an object: write {name: my-root}`,
			c+`passiveCertificateAuthorities: Invalid value: {"secretRef":{"name":"a"}}: want a list: begin each entry with '- '`)},
		"percent":       {config(`intermediateCertOptions: {secretRotationGracePeriodRatio: 50%}`), wrong(c + `intermediateCertOptions.secretRotationGracePeriodRatio: Invalid value: "50%": want a number: write 0.5 for 50%`)},
		"ratio of 50":   {config(`intermediateCertOptions: {secretRotationGracePeriodRatio: 50}`), wrong(c + `intermediateCertOptions.secretRotationGracePeriodRatio: Invalid value: 50: want the part of the life that is left when it is renewed, more than 0 and less than 1: for 50 % write 0.5`)},
		"ratio of 1":    {config(`intermediateCertOptions: {secretRotationGracePeriodRatio: 1}`), wrong(c + `intermediateCertOptions.secretRotationGracePeriodRatio: Invalid value: 1: want the part of the life that is left when it is renewed, more than 0 and less than 1, such as 0.5`)},
		"ratio below 0": {config(`intermediateCertOptions: {secretRotationGracePeriodRatio: -0.5}`), wrong(c + `intermediateCertOptions.secretRotationGracePeriodRatio: Invalid value: -0.5: want the part of the life that is left when it is renewed, more than 0 and less than 1, such as 0.5`)},
		"ttl": {config(`mgmtServerCa: {generated: {ttlDays: 36501}}, intermediateCertOptions: {ttlDays: -1}`), wrong(
			c + `intermediateCertOptions.ttlDays: Invalid value: -1: want a whole number that is not negative, nor huge`)},
		"ttl too long":          {config(`mgmtServerCa: {generated: {ttlDays: 36501}}`), wrong(c + `mgmtServerCa.generated.ttlDays: Invalid value: 36501: too long: at most 36500 days, which are 100 years`)},
		"ttl a fraction":        {config(`intermediateCertOptions: {ttlDays: 0.5}`), wrong(c + `intermediateCertOptions.ttlDays: Invalid value: 0.5: want a whole number that is not negative, nor huge`)},
		"key size in bytes":     {config(`mgmtServerCa: {generated: {rsaKeySizeBytes: 512}}`), wrong(c + `mgmtServerCa.generated.rsaKeySizeBytes: Invalid value: 512: it is in bits, despite its name, and at least 2048: write 4096`)},
		"key size 256 bytes":    {config(`mgmtServerCa: {generated: {rsaKeySizeBytes: 256}}`), wrong(c + `mgmtServerCa.generated.rsaKeySizeBytes: Invalid value: 256: it is in bits, despite its name, and at least 2048: write 2048`)},
		"key size odd":          {config(`mgmtServerCa: {generated: {rsaKeySizeBytes: 4095}}`), wrong(c + `mgmtServerCa.generated.rsaKeySizeBytes: Invalid value: 4095: want 2048 to 8192 bits (despite its name), such as 4096`)},
		"key size huge":         {config(`mgmtServerCa: {generated: {rsaKeySizeBytes: 16384}}`), wrong(c + `mgmtServerCa.generated.rsaKeySizeBytes: Invalid value: 16384: want 2048 to 8192 bits (despite its name), such as 4096`)},
		"key size of a curve":   {config(`mgmtServerCa: {generated: {keyAlgorithm: ECDSA-P256, rsaKeySizeBytes: 4096}}`), wrong(c + `mgmtServerCa.generated.rsaKeySizeBytes: Invalid value: 4096: keyAlgorithm ECDSA-P256 has one size: leave rsaKeySizeBytes out`)},
		"algorithm: RSA-4096":   {config(`mgmtServerCa: {generated: {keyAlgorithm: RSA-4096}}`), wrong(c + `mgmtServerCa.generated.keyAlgorithm: Invalid value: "RSA-4096": write RSA; its size is rsaKeySizeBytes (in bits)`)},
		"algorithm: ecdsa":      {config(`mgmtServerCa: {generated: {keyAlgorithm: ecdsa}}`), wrong(c + `mgmtServerCa.generated.keyAlgorithm: Invalid value: "ecdsa": did you mean ECDSA-P256?`)},
		"algorithm: prime256v1": {config(`mgmtServerCa: {generated: {keyAlgorithm: prime256v1}}`), wrong(c + `mgmtServerCa.generated.keyAlgorithm: Invalid value: "prime256v1": did you mean ECDSA-P256?`)},
		"algorithm: P-384":      {config(`mgmtServerCa: {generated: {keyAlgorithm: P-384}}`), wrong(c + `mgmtServerCa.generated.keyAlgorithm: Invalid value: "P-384": did you mean ECDSA-P384?`)},
		"algorithm: Ed25519":    {config(`mgmtServerCa: {generated: {keyAlgorithm: Ed25519}}`), wrong(c + `mgmtServerCa.generated.keyAlgorithm: Invalid value: "Ed25519": want RSA, ECDSA-P256, ECDSA-P384; what istiod and the proxies all know`)},
		"organization": {config(`mgmtServerCa: {generated: {orgName: "` + strings.Repeat("x", 65) + `"}}, intermediateCertOptions: {orgName: " bank "}`), wrong(
			c+`mgmtServerCa.generated.orgName: Invalid value: "`+strings.Repeat("x", 65)+`": it has 65 bytes: the organization of a certificate has at most 64 (RFC 5280)`,
			c+`intermediateCertOptions.orgName: Invalid value: " bank ": leave the space around it out: "bank"`)},
		"two roots":            {config(`mgmtServerCa: {generated: {}, secretRef: {name: a}}`), wrong(c + `mgmtServerCa: Invalid value: "generated, secretRef": write one of them: the root is generated, or it is in a Secret`)},
		"another namespace":    {config(`mgmtServerCa: {secretRef: {name: a, namespace: kube-system}}`), wrong(c + `mgmtServerCa.secretRef.namespace: Invalid value: "kube-system": a policy refers to Secrets of its own namespace only: put it into "gloo-mesh", and leave namespace out`)},
		"secret without name":  {config(`mgmtServerCa: {secretRef: {namespace: gloo-mesh}}`), wrong(c + `mgmtServerCa.secretRef.name: Required value: which Secret? write secretRef: {name: ...}`)},
		"secret and namespace": {config(`mgmtServerCa: {secretRef: {name: gloo-mesh/a}}`), wrong(c + `mgmtServerCa.secretRef.name: Invalid value: "gloo-mesh/a": no Secret has this name: want lower-case letters, digits and '-', beginning and ending with a letter or digit`)},
		"passive": {config(`mgmtServerCa: {secretRef: {name: a}}, passiveCertificateAuthorities: [{}, {generated: {}, secretRef: {name: b}}, {secretRef: {name: a}}, {secretRef: {name: b}}]`), wrong(
			c+`passiveCertificateAuthorities[0]: Required value: which? write secretRef: {name: ...}, or generated: {}`,
			c+`passiveCertificateAuthorities[1]: Invalid value: "generated, secretRef": write one of them, and an entry of its own for the other`,
			c+`passiveCertificateAuthorities[2].secretRef.name: Duplicate value: "a"`, c+`passiveCertificateAuthorities[3].secretRef.name: Duplicate value: "b"`)},
		"no CA outside":   {config(`agentCa: {}`), wrong(c + `agentCa: Required value: which? write vault, awsPrivateCa or certManager; for a root of the server's own write mgmtServerCa instead`)},
		"two CAs outside": {config(`agentCa: {vault: {server: "https://v", csrPath: pki/root/sign-intermediate, tokenSecretRef: {name: t}}, certManager: {issuerRef: {name: a}}}`), wrong(c + `agentCa: Invalid value: "vault, certManager": write one of them: a mesh has one source of truth. Roots that are to be trusted as well go into passiveCertificateAuthorities`)},
		"selection": {`spec: {applyToMeshes: [{clusterSelector: {region: eu}}, {istio: {name: c1, revision: "1.30", clusterSelector: {region: "*"}}}, {istio: {clusterSelector: {selector: {region: eu}}}}]}`, wrong(
			`spec.applyToMeshes[0].clusterSelector: Forbidden: unknown field here: did you mean "clusterSelector" inside "istio"? (indent it further)`,
			`spec.applyToMeshes[1].istio.name: Forbidden: unknown field: clusters are selected by their labels: write clusterSelector: {LABEL: VALUE}`,
			`spec.applyToMeshes[2].istio.clusterSelector[selector]: Invalid value: {"region":"eu"}: want the labels of clusters here, without selector around them: write clusterSelector: {region: eu}`)},
		"selection, values": {`spec: {applyToMeshes: [{istio: {revision: "1.30", namespace: "istio-*", clusterSelector: {region: "*"}, selector: {app: "a b"}}}]}`, wrong(
			`spec.applyToMeshes[0].istio.revision: Invalid value: "1.30": no revision has this name: want lower-case letters, digits and '-', beginning and ending with a letter or digit`,
			`spec.applyToMeshes[0].istio.namespace: Invalid value: "istio-*": no wildcards here, the name of one namespace is wanted: leave it out for every namespace`,
			`spec.applyToMeshes[0].istio.clusterSelector[region]: Invalid value: "*": labels are compared whole, '*' is no wildcard: leave clusterSelector out for every cluster`,
			`spec.applyToMeshes[0].istio.selector[app]: Invalid value: "a b": no label has this value: want letters, digits, '-', '_' and '.', at most 63, beginning and ending with a letter or digit`)},
		"additions": {`spec: {rotation: {canary: "prod_eu", soak: 721h, longestLeaf: 1s, fileLag: 2h}, existingCacerts: adopt, crl: always}`, wrong(
			`spec.rotation.canary: Invalid value: "prod_eu": no cluster has this name: want lower-case letters, digits and '-', beginning and ending with a letter or digit`,
			`spec.rotation.soak: Invalid value: "721h0m0s": want 0s to 720h, such as 10m or 24h`,
			`spec.rotation.longestLeaf: Invalid value: "1s": want 1m to 2160h, such as 24h, which ztunnel and proxies ask for unless SECRET_TTL says otherwise`,
			`spec.rotation.fileLag: Invalid value: "2h0m0s": want 1s to 1h, such as 90s: the kubelet's sync period and cache`,
			`spec.existingCacerts: Invalid value: "adopt": did you mean Adopt?`, `spec.crl: Invalid value: "always": did you mean Always?`)},
		"placeholder": {config(`agentCa: {vault: {server: "https://${VAULT}:8200"}}`), wrong(c + `agentCa.vault.server: Invalid value: "https://${VAULT}:8200": the placeholder "${VAULT}" was left in: run the file through envsubst first (is the variable set?), or write the value`)},
	})
	elsewhere := judge(t, strings.Replace(trustHead, "namespace: gloo-mesh", "namespace: istio-system", 1))
	if diff := cmp.Diff(wrong(`metadata.namespace: Invalid value: "istio-system": create it in namespace "gloo-mesh": the management server reads RootTrustPolicies of its admin namespace only`), elsewhere); diff != "" {
		t.Error(diff)
	}
}

func TestExternalCAMistakes(t *testing.T) {
	const v, a = "spec.config.agentCa.vault.", "spec.config.agentCa.awsPrivateCa."
	pem := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	key := "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	encoded := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	server := func(s string) string {
		return config(`agentCa: {vault: {server: "` + s + `", csrPath: pki/root/sign-intermediate, tokenSecretRef: {name: t}}}`)
	}
	paths := func(s string) string {
		return config(`agentCa: {vault: {server: "https://v", tokenSecretRef: {name: t}, ` + s + `}}`)
	}
	compare(t, trustHead, map[string]struct {
		rest string
		want verdict
	}{
		"vault: empty": {config(`agentCa: {vault: {}}`), wrong(
			v+`server: Required value: where is Vault? write its URL, such as "https://vault.example.com:8200"`,
			v+`csrPath: Required value: which path signs intermediates? write "MOUNT/root/sign-intermediate", with the mount of your PKI secrets engine`,
			`spec.config.agentCa.vault: Required value: how does the server log in? write kubernetesAuth: {role: ...}, appRole, or tokenSecretRef`)},
		"server: no scheme":    {server("vault.example.com:8200"), wrong(v + `server: Invalid value: "vault.example.com:8200": want a URL: write "https://vault.example.com:8200"`)},
		"server: with a path":  {server("https://vault:8200/v1/"), wrong(v + `server: Invalid value: "https://vault:8200/v1/": want the server only: write "https://vault:8200"`)},
		"server: password":     {server("https://a:b@vault:8200"), wrong(v + `server: Invalid value: it holds a user or password, which now lies in this policy for all its readers: take it out`)},
		"server: other scheme": {server("tcp://vault:8200"), wrong(v + `server: Invalid value: "tcp://vault:8200": want the URL of a server, such as "https://vault.example.com:8200"`)},
		"server: space":        {server(" https://vault"), wrong(v + `server: Invalid value: " https://vault": leave the space around it out: "https://vault"`)},
		"path: a URL":          {paths(`csrPath: "https://vault/v1/pki/root/sign-intermediate"`), wrong(v + `csrPath: Invalid value: "https://vault/v1/pki/root/sign-intermediate": want a path, such as "pki/root/sign-intermediate"; the server has a field of its own: server`)},
		"path: a query":        {paths(`csrPath: "pki/x?a=b"`), wrong(v + `csrPath: Invalid value: "pki/x?a=b": want a path of Vault's API, such as "pki/root/sign-intermediate"`)},
		"path: only the root":  {paths(`caPath: pki/ca`), wrong(v + `csrPath: Required value: which path signs intermediates? Neither of these does: write "pki/root/sign-intermediate"`)},
		"path: two roots":      {paths(`caPath: pki/ca, csrPath: pki/ca_chain`), wrong(v + `csrPath: Required value: which path signs intermediates? Neither of these does: write "pki/root/sign-intermediate"`)},
		"path: only generates": {paths(`caPath: pki/ca, csrPath: pki_int/intermediate/generate/exported`), wrong(v + `csrPath: Required value: which path signs intermediates? Neither of these does: write "pki/root/sign-intermediate"`)},
		"issuer twice":         {paths(`csrPath: pki/issuer/a/sign-intermediate, issuer: b`), wrong(v + `issuer: Invalid value: "b": csrPath says issuer "a": write one of them`)},
		"issuer: a path":       {paths(`csrPath: pki/root/sign-intermediate, issuer: issuer/a`), wrong(v + "issuer: Invalid value: \"issuer/a\": want the ID or name of an issuer, not a path: `vault list MOUNT/issuers` has the IDs")},
		"two logins": {vault(`, tokenSecretRef: {name: t}`), wrong(
			`spec.config.agentCa.vault: Invalid value: "tokenSecretRef, kubernetesAuth": write one of them: how does the server log in?`)},
		"three bundles":  {vault(`, caSecretRef: {name: t}, caLocalPath: /x`), wrong(`spec.config.agentCa.vault: Invalid value: "caSecretRef, caLocalPath": write one of them: by which CA is Vault's own TLS certificate verified?`)},
		"bundle: PEM":    {vault(`, caBundle: "` + strings.ReplaceAll(pem, "\n", `\n`) + `"`), wrong(v + `caBundle: Invalid value: that is PEM as it is: want it base64-encoded, the output of base64 -w0 FILE`)},
		"bundle: ?":      {vault(`, caBundle: "?"`), wrong(v + `caBundle: Invalid value: want base64: the output of base64 -w0 FILE`)},
		"bundle: text":   {vault(`, caBundle: ` + encoded("x")), wrong(v + `caBundle: Invalid value: no PEM certificate in it: write the output of base64 -w0 ca.pem`)},
		"bundle: bad":    {vault(`, caBundle: ` + encoded(pem)), wrong(v + `caBundle: Invalid value: entry 1 of it is no certificate: want PEM certificates, base64-encoded`)},
		"bundle: key":    {vault(`, caBundle: ` + encoded(key)), wrong(v + `caBundle: Invalid value: it holds a private key, which now lies in this policy for all its readers: take it out, and replace that key`)},
		"file: relative": {vault(`, caLocalPath: ca.pem`), wrong(v + `caLocalPath: Invalid value: "ca.pem": want a path of the management server's container, beginning with '/' and without '..'`)},
		"file: upwards":  {vault(`, caLocalPath: /etc/../ca.pem`), wrong(v + `caLocalPath: Invalid value: "/etc/../ca.pem": want a path of the management server's container, beginning with '/' and without '..'`)},
		"kubernetes": {paths(`csrPath: pki/root/sign-intermediate, tokenSecretRef: null, kubernetesAuth: {mountPath: /v1/auth/kubernetes/login, serviceAccountRef: {name: a, namespace: b}, mountedSaPath: /x}`), wrong(
			v+`kubernetesAuth.role: Required value: which role of Vault's Kubernetes auth method? write role: ...`,
			v+`kubernetesAuth.mountPath: Invalid value: "/v1/auth/kubernetes/login": want the mount only: write "/v1/auth/kubernetes"`,
			v+`kubernetesAuth: Invalid value: "serviceAccountRef, mountedSaPath": write one of them: whose token does the server log in with?`,
			v+`kubernetesAuth.serviceAccountRef.namespace: Invalid value: "b": a policy refers to ServiceAccounts of its own namespace only: put it into "gloo-mesh", and leave namespace out`)},
		"AppRole": {config(`agentCa: {vault: {server: "https://v", csrPath: pki/root/sign-intermediate, appRole: {}}}`), wrong(
			v+"appRole.roleId: Required value: which role? `vault read auth/approle/role/NAME/role-id` tells its ID", v+`appRole.secretIdRef.name: Required value: which Secret? write secretIdRef: {name: ...}`)},
		"AppRole with its secret": {vault(`, appRole: {secretId: s}`), wrong(v + `appRole.secretId: Forbidden: unknown field: a secret ID does not belong into a policy: put it into a Secret, key secret-id, and write secretIdRef: {name: ...}`)},
		"AWS: empty":              {config(`agentCa: {awsPrivateCa: {}}`), wrong(a + `arn: Required value: which CA? write its ARN, such as "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"`)},
		"AWS: ACM":                {config(`agentCa: {awsPrivateCa: {arn: "arn:aws:acm:eu-west-1:123456789012:certificate/x"}}`), wrong(a + `arn: Invalid value: "arn:aws:acm:eu-west-1:123456789012:certificate/x": that is of AWS Certificate Manager: want the ARN of a CA of AWS Private CA, such as "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"`)},
		"AWS: certificate":        {config(`agentCa: {awsPrivateCa: {arn: "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012/certificate/abc"}}`), wrong(a + `arn: Invalid value: "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012/certificate/abc": that is a certificate of the CA: write "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"`)},
		"AWS: template": {config(`agentCa: {awsPrivateCa: {arn: "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012", region: eu-west-1}}`), wrong(
			a + `region: Forbidden: unknown field: the region is in arn`)},
		"AWS: leaf template": {config(`agentCa: {awsPrivateCa: {arn: "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012", templateArn: "arn:aws:acm-pca:::template/EndEntityCertificate/V1"}}`), wrong(
			a + `templateArn: Invalid value: "arn:aws:acm-pca:::template/EndEntityCertificate/V1": it does not make CAs: want a SubordinateCACertificate template, such as "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1"`)},
		"cert-manager": {config(`agentCa: {certManager: {issuerRef: {kind: clusterissuer}}}`), wrong(
			`spec.config.agentCa.certManager.issuerRef.name: Required value: which issuer? write issuerRef: {name: ...}, and kind: ClusterIssuer for one of the whole cluster`,
			`spec.config.agentCa.certManager.issuerRef.kind: Invalid value: "clusterissuer": did you mean ClusterIssuer?`)},
	})
}

func TestRootTrustPolicyWarnings(t *testing.T) {
	const v = "spec.config.agentCa.vault"
	compare(t, trustHead, map[string]struct {
		rest string
		want verdict
	}{
		"in the wild: 1 day, 0.1": {config(`intermediateCertOptions: {ttlDays: 1, secretRotationGracePeriodRatio: 0.1}`), doubtful(
			`spec.config.intermediateCertOptions.secretRotationGracePeriodRatio: 0.1 of 1 day leaves 2h24m, and leaves live 24h: renewed at the age of 12h, so that they don't outlive their issuer`)},
		"1 day, 0.9": {config(`intermediateCertOptions: {ttlDays: 1, secretRotationGracePeriodRatio: 0.9}`), doubtful(
			`spec.config.intermediateCertOptions.secretRotationGracePeriodRatio: 0.9 of 1 day is left after 2h24m: renewed at the age of 12h, so that clusters are not changed all the time`)},
		"1 day": {config(`intermediateCertOptions: {ttlDays: 1}`), verdict{}},
		"both, with options": {config(`mgmtServerCa: {generated: {ttlDays: 3650}}, agentCa: {certManager: {issuerRef: {name: a}}}`), doubtful(
			`spec.config.mgmtServerCa.generated: not used: agentCa is the source of truth, and no root is generated. What is meant for intermediates goes into intermediateCertOptions`)},
		"both, with a secret": {config(`mgmtServerCa: {secretRef: {name: old}}, agentCa: {certManager: {issuerRef: {name: a}}}`), doubtful(
			`spec.config.mgmtServerCa.secretRef: not used: agentCa is the source of truth. To have the root of Secret "old" trusted as well, list it in passiveCertificateAuthorities`)},
		"a root as short as intermediates": {config(`mgmtServerCa: {generated: {ttlDays: 365}}`), doubtful(
			`spec.config.mgmtServerCa.generated.ttlDays: the root lives 365 days, no longer than the intermediates (365 days), which end with it: a rotation of the root is due as soon as they are renewed. Roots usually live 10 to 25 years`)},
		"a ratio for the root": {config(`mgmtServerCa: {generated: {secretRotationGracePeriodRatio: 0.1}}`), doubtful(
			`spec.config.mgmtServerCa.generated.secretRotationGracePeriodRatio: no effect on a root, which is replaced when somebody asks for it (meshctl trust rotate), not by itself; that of intermediates is in intermediateCertOptions`)},
		"role of an issuer": {config(`agentCa: {vault: {server: "https://v", csrPath: pki/issuer/3f2a/sign/r, tokenSecretRef: {name: t}}}`), doubtful(
			v + `.csrPath: it names role r, and Vault makes no CA certificates by roles: what it answers is refused if it is none. The path that makes them is "pki/issuer/3f2a/sign-intermediate"`)},
		"default issuer":     {config(`agentCa: {vault: {server: "https://v", csrPath: pki/issuer/default/sign-intermediate, tokenSecretRef: {name: t}}}`), doubtful(v + `: the default issuer can be changed in Vault at any time: pin one, by its ID, in issuer`)},
		"in the clear":       {config(`agentCa: {vault: {server: "http://vault:8200", csrPath: pki/root/sign-intermediate, tokenSecretRef: {name: t}}}`), doubtful(v + `.server: http: credentials and certificates pass in the clear; write https`)},
		"two mounts":         {config(`agentCa: {vault: {server: "https://v", csrPath: pki_int/root/sign-intermediate, caPath: pki/ca, tokenSecretRef: {name: t}}}`), doubtful(v + `.caPath: it is of another mount (pki) than what signs (pki_int): intermediates verify only if that one's CA was issued by this one's`)},
		"soak of nobody":     {`spec: {rotation: {soak: 10m}}`, doubtful(`spec.rotation.soak: no effect without canary: no cluster goes first`)},
		"no revocation":      {`spec: {crl: Never}`, doubtful(`spec.crl: Never: the intermediate of a cluster that is deregistered or revoked is trusted until it ends, or the root is replaced`)},
		"a name as label":    {`spec: {applyToMeshes: [{istio: {clusterSelector: {name: c1}}}]}`, doubtful(`spec.applyToMeshes[0].istio.clusterSelector: name is a label here, compared with the labels of KubernetesClusters: it selects clusters labelled name=c1`)},
		"during a rotation":  {"spec: {}\nstatus: {phase: Switching}", doubtful(`spec: a rotation is under way (Switching): a change of the root takes effect when it has ended`)},
		"after the rotation": {"spec: {}\nstatus: {phase: Finished}", verdict{}},
	})
}

func TestRootTrustPolicyAmongOthers(t *testing.T) {
	eu, us := map[string]string{"region": "eu"}, map[string]string{"region": "us"}
	selecting := func(name string, labels map[string]string) *adminv2.RootTrustPolicy {
		p := &adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "gloo-mesh"}}
		if labels != nil {
			p.Spec.ApplyToMeshes = []adminv2.MeshSelector{{Istio: &adminv2.IstioMeshSelector{ClusterSelector: labels}}}
		}
		return p
	}
	there := func(name string, labels map[string]string) *mesh.RootTrustPolicy {
		return &mesh.RootTrustPolicy{Source: mesh.Ref{Namespace: "gloo-mesh", Name: name}, Trust: mesh.TrustOf(&selecting(name, labels).Spec)}
	}
	broken := there("broken", nil)
	broken.Invalid = "it is"
	clusters := []mesh.Cluster{{Name: "eu-1", Labels: eu}, {Name: "eu-2", Labels: eu}, {Name: "us-1", Labels: us}}
	canary := selecting("a", eu)
	canary.Spec.Rotation = &adminv2.RotationOptions{Canary: "us-1"}
	for name, tc := range map[string]struct {
		now, old *adminv2.RootTrustPolicy
		others   []*mesh.RootTrustPolicy
		want     verdict
	}{
		"alone":           {now: selecting("a", nil)},
		"itself":          {now: selecting("a", nil), others: []*mesh.RootTrustPolicy{there("a", nil)}},
		"another's fault": {now: selecting("a", nil), others: []*mesh.RootTrustPolicy{broken}},
		"apart":           {now: selecting("a", eu), others: []*mesh.RootTrustPolicy{there("b", us)}},
		"both every mesh": {now: selecting("a", nil), others: []*mesh.RootTrustPolicy{there("b", nil)}, want: wrong(`spec.applyToMeshes: Forbidden: RootTrustPolicy "b" selects every mesh already: change that one, or have each select its own (applyToMeshes)`)},
		"overlap":         {now: selecting("a", nil), others: []*mesh.RootTrustPolicy{there("b", eu)}, want: wrong(`spec.applyToMeshes: Forbidden: RootTrustPolicy "b" selects eu-1, eu-2 already: a mesh has one root of trust; change that policy, or have each select its own`)},
		"as it was":       {now: selecting("a", nil), old: selecting("a", nil), others: []*mesh.RootTrustPolicy{there("b", nil)}},
		"wider than it was": {
			now: selecting("a", nil), old: selecting("a", eu), others: []*mesh.RootTrustPolicy{there("b", us)},
			want: wrong(`spec.applyToMeshes: Forbidden: RootTrustPolicy "b" selects us-1 already: a mesh has one root of trust; change that policy, or have each select its own`),
		},
		"selects none": {now: selecting("a", map[string]string{"region": "ap"}), want: doubtful(`spec.applyToMeshes: it selects none of the 3 registered clusters`)},
		"canary":       {now: canary, want: doubtful(`spec.rotation.canary: cluster "us-1" is not among those it selects: no cluster goes first`)},
	} {
		t.Run(name, func(t *testing.T) {
			o := validate.Options{AdminNamespace: "gloo-mesh", Snapshot: func() *mesh.Snapshot { return &mesh.Snapshot{Clusters: clusters, RootPolicies: tc.others} }}
			var got verdict
			if errs := validate.RootTrustPolicy(tc.now, tc.old, o); len(errs) > 0 {
				got.Errors = said(errs)
			} else if w := validate.WarningsOfRootTrustPolicy(tc.now, o); len(w) > 0 {
				got.Warnings = w
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDeletionOfRootTrustPolicy(t *testing.T) {
	until := func(year int) *metav1.Time {
		t := metav1.NewTime(time.Date(year, 2, 12, 10, 14, 0, 0, time.UTC))
		return &t
	}
	for name, tc := range map[string]struct {
		change  func(*adminv2.RootTrustPolicy)
		refused string
		doubts  []string
	}{
		"never in force": {change: func(*adminv2.RootTrustPolicy) {}},
		"in use": {change: func(p *adminv2.RootTrustPolicy) {
			p.Status.Phase = adminv2.PhaseSteady
			p.Status.Clusters = []adminv2.ClusterTrustStatus{{Name: "c1", Until: until(2028)}, {Name: "c2", Until: until(2027)}, {Name: "c3"}}
		}, doubts: []string{`RootTrustPolicy p: 3 clusters keep the intermediates that it issued, and nobody renews them any more: the first, of cluster c2, ends on 2027-02-12. Before that, create a policy with the same certificate authority, or give the clusters a cacerts of your own`}},
		"not known until when": {
			change: func(p *adminv2.RootTrustPolicy) { p.Status.Clusters = []adminv2.ClusterTrustStatus{{Name: "c1"}} },
			doubts: []string{`RootTrustPolicy p: 1 clusters keep the intermediates that it issued, and nobody renews them any more`},
		},
		"during a rotation": {
			change:  func(p *adminv2.RootTrustPolicy) { p.Status.Phase = adminv2.PhaseSwitching },
			refused: `a rotation of its root is under way (Switching): clusters sign or trust under two roots. Let it end (meshctl trust status), or roll it back (meshctl trust rollback), then delete; to abandon it as it stands, annotate the policy with admin.gloo.solo.io/abandon-rotation=true and delete it again`,
		},
		"abandoned": {change: func(p *adminv2.RootTrustPolicy) {
			p.Status.Phase = adminv2.PhaseSwitching
			p.Annotations = map[string]string{adminv2.AnnotationAbandonRotation: "true"}
		}},
	} {
		p := &adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "gloo-mesh"}}
		tc.change(p)
		refused, doubts := validate.DeletionOfRootTrustPolicy(p)
		if diff := cmp.Diff(tc.refused, refused) + cmp.Diff(tc.doubts, doubts, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
