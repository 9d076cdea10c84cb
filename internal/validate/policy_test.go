package validate_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const policyHead = `
apiVersion: security.policy.gloo.solo.io/v2
kind: AccessPolicy
metadata: {name: billing-allow-payments, namespace: gloo-mesh}
`

// authz is a policy with one rule.
func authz(rule string) string { return `spec: {config: {authz: ` + rule + `}}` }

func TestAccessPolicyForms(t *testing.T) {
	compare(t, policyHead, map[string]struct {
		rest string
		want verdict
	}{
		"the operators' page": {`
spec:
  applyToDestinations:
  - selector:
      labels: { app: billing }
  config:
    authn:
      mtls: { required: true }
    authz:
      allowedClients:
      - serviceAccountSelector:
          labels: { app: payments }
`, verdict{}},
		"tlsMode":            {`spec: {applyToDestinations: [{}], config: {authn: {tlsMode: STRICT}}}`, verdict{}},
		"both, the same":     {`spec: {config: {authn: {tlsMode: STRICT, mtls: {required: true}}}}`, verdict{}},
		"deny all":           {`spec: {applyToWorkloads: [{}], config: {authz: {}}}`, verdict{}},
		"any identity":       {authz(`{allowedClients: [{}]}`), verdict{}},
		"any of a namespace": {authz(`{allowedClients: [{serviceAccountSelector: {namespace: payments}}]}`), verdict{}},
		"everything": {`
spec:
  applyToDestinations:
  - {selector: {name: billing, namespace: billing, cluster: cluster-1, workspace: payments}, kind: SERVICE, port: {number: 8080}}
  - {port: {name: http}}
  config:
    authzList:
    - allowedClients:
      - serviceAccountSelector: {name: payments, namespace: payments, cluster: cluster-2}
      - requestIdentityMatcher: {requestPrincipals: ["https://idp.example.com/alice", "https://idp.example.com/*", "*"]}
      allowedPaths: [/api, /api/*, "*/status", "*"]
      allowedMethods: [GET, PROPFIND]
      match: {request: {headers: {x-tenant: {values: [gold, "g*", "*d", "*"], notValues: [lead]}}}}
      allowedIpBlocks: [10.1.2.3, 10.1.0.0/16, "2001:db8::/32"]
      allowedRemoteIpBlocks: [0.0.0.0/0]
    - allowedClients: [{}]
      dryRun: true
`, verdict{}},
	})
}

func TestAccessPolicyMistakes(t *testing.T) {
	compare(t, policyHead, map[string]struct {
		rest string
		want verdict
	}{
		"misspelt":                {authz(`{allowedCleints: []}`), wrong(`spec.config.authz.allowedCleints: Forbidden: unknown field: did you mean "allowedClients"?`)},
		"config too deep":         {`spec: {applyToDestinations: [{selector: {labels: {app: a}}, config: {}}]}`, wrong(`spec.applyToDestinations[0].config: Forbidden: unknown field here: did you mean "config" of "spec"? (indent it less)`)},
		"authz too high":          {`spec: {authz: {}}`, wrong(`spec.authz: Forbidden: unknown field here: did you mean "authz" inside "config"? (indent it further)`)},
		"clients too high":        {`spec: {config: {allowedClients: [{}]}}`, wrong(`spec.config.allowedClients: Forbidden: unknown field here: did you mean "allowedClients" inside "authz"? (indent it further)`)},
		"labels of a client":      {authz(`{allowedClients: [{labels: {app: payments}}]}`), wrong(`spec.config.authz.allowedClients[0].labels: Forbidden: unknown field here: did you mean "labels" inside "serviceAccountSelector"? (indent it further)`)},
		"labels of a destination": {`spec: {applyToDestinations: [{labels: {app: billing}}]}`, wrong(`spec.applyToDestinations[0].labels: Forbidden: unknown field here: did you mean "labels" inside "selector"? (indent it further)`)},
		"Istio's principals":      {authz(`{principals: ["cluster.local/ns/payments/sa/payments"]}`), wrong(`spec.config.authz.principals: Forbidden: unknown field: clients are selected, not spelt: write allowedClients: [{serviceAccountSelector: {name: ..., namespace: ...}}]`)},
		"Istio's rules": {`spec: {selector: {matchLabels: {app: a}}, rules: []}`, wrong(
			`spec.rules: Forbidden: unknown field: an AccessPolicy has config.authz (one rule) or config.authzList (several)`,
			`spec.selector: Forbidden: unknown field here: did you mean "selector" inside an entry of "applyToDestinations"? (indent it further)`)},
		"Istio's methods":   {authz(`{methods: [GET], paths: [/x]}`), wrong(`spec.config.authz.methods: Forbidden: unknown field: did you mean "allowedMethods"?`, `spec.config.authz.paths: Forbidden: unknown field: did you mean "allowedPaths"?`)},
		"principal as name": {authz(`{allowedClients: [{serviceAccountSelector: {name: cluster.local/ns/payments/sa/api}}]}`), wrong(`spec.config.authz.allowedClients[0].serviceAccountSelector.name: Invalid value: "cluster.local/ns/payments/sa/api": want the name of a ServiceAccount, not a principal: write serviceAccountSelector: {name: api, namespace: payments}`)},
		"SPIFFE ID as name": {authz(`{allowedClients: [{serviceAccountSelector: {name: "spiffe://td/ns/payments/sa/api"}}]}`), wrong(`spec.config.authz.allowedClients[0].serviceAccountSelector.name: Invalid value: "spiffe://td/ns/payments/sa/api": want the name of a ServiceAccount, not a principal: write serviceAccountSelector: {name: api, namespace: payments}`)},
		"user as name":      {authz(`{allowedClients: [{serviceAccountSelector: {name: "system:serviceaccount:payments:api"}}]}`), wrong(`spec.config.authz.allowedClients[0].serviceAccountSelector.name: Invalid value: "system:serviceaccount:payments:api": want the name of a ServiceAccount, not a principal: write serviceAccountSelector: {name: api, namespace: payments}`)},
		"principal as client": {authz(`{allowedClients: ["cluster.local/ns/payments/sa/api", payments]}`), wrong(
			`spec.config.authz.allowedClients[0]: Invalid value: "cluster.local/ns/payments/sa/api": want an object: write serviceAccountSelector: {name: api, namespace: payments}`,
			`spec.config.authz.allowedClients[1]: Invalid value: "payments": want an object: write {serviceAccountSelector: {name: payments}}`)},
		"any as a label": {authz(`{allowedClients: [{serviceAccountSelector: {labels: {"*": ""}}}, {serviceAccountSelector: {labels: {app: "*"}}}]}`), wrong(
			`spec.config.authz.allowedClients[0].serviceAccountSelector.labels[*]: Invalid value: "": labels are compared whole, '*' is no wildcard: for any authenticated identity write allowedClients: [{}]`,
			`spec.config.authz.allowedClients[1].serviceAccountSelector.labels[app]: Invalid value: "*": labels are compared whole, '*' is no wildcard: for any authenticated identity write allowedClients: [{}]`)},
		"any as a name": {authz(`{allowedClients: [{serviceAccountSelector: {name: "*", namespace: "pay*", cluster: "*", workspace: "*"}}]}`), wrong(
			`spec.config.authz.allowedClients[0].serviceAccountSelector.name: Invalid value: "*": no wildcards here, the name of one ServiceAccount is wanted: for any authenticated identity write allowedClients: [{}]`,
			`spec.config.authz.allowedClients[0].serviceAccountSelector.namespace: Invalid value: "pay*": no wildcards here, the name of one namespace is wanted: leave it out for every namespace`,
			`spec.config.authz.allowedClients[0].serviceAccountSelector.cluster: Invalid value: "*": no wildcards here, the name of one cluster is wanted: leave it out for every cluster`,
			`spec.config.authz.allowedClients[0].serviceAccountSelector.workspace: Invalid value: "*": no wildcards here, the name of one workspace is wanted: leave it out for the policy's own`)},
		"names": {`spec: {applyToDestinations: [{selector: {name: Billing, namespace: "billing ", cluster: prod_eu}}]}`, wrong(
			`spec.applyToDestinations[0].selector.name: Invalid value: "Billing": no Service has this name: write it in lower case, "billing"`,
			`spec.applyToDestinations[0].selector.namespace: Invalid value: "billing ": no namespace has this name: leave the space around it out`,
			`spec.applyToDestinations[0].selector.cluster: Invalid value: "prod_eu": no cluster has this name: want lower-case letters, digits and '-', beginning and ending with a letter or digit`)},
		"labels": {`spec: {applyToDestinations: [{selector: {labels: {"app=billing": "", "-x": a, app: "two words"}}}]}`, wrong(
			`spec.applyToDestinations[0].selector.labels: Invalid value: "-x": no label has this key: want letters, digits, '-', '_' and '.', at most 63, and optionally a DNS name and '/' before them, such as "app.kubernetes.io/name"`,
			`spec.applyToDestinations[0].selector.labels[app]: Invalid value: "two words": no label has this value: want letters, digits, '-', '_' and '.', at most 63, beginning and ending with a letter or digit`,
			`spec.applyToDestinations[0].selector.labels: Invalid value: "app=billing": no label has this key: write app: billing`)},
		"labels as a list": {`spec: {applyToDestinations: [{selector: {labels: [app]}}]}`, wrong(`spec.applyToDestinations[0].selector.labels: Invalid value: ["app"]: want a map, not a list: leave the '- ' out`)},
		"kinds": {`spec: {applyToDestinations: [{kind: VIRTUAL_DESTINATION}, {kind: Service}, {kind: POD}]}`, wrong(
			`spec.applyToDestinations[0].kind: Invalid value: "VIRTUAL_DESTINATION": an AccessPolicy guards Services only: write kind: SERVICE, or leave it out`,
			`spec.applyToDestinations[1].kind: Invalid value: "Service": did you mean SERVICE?`,
			`spec.applyToDestinations[2].kind: Invalid value: "POD": want SERVICE`)},
		"ports": {`spec: {applyToDestinations: [{port: {number: 80, name: http}}, {port: {}}, {port: {number: 65536}}, {port: {name: "80"}}, {port: {name: HTTP}}]}`, wrong(
			`spec.applyToDestinations[0].port: Invalid value: "number: 80, name: http": write number or name, not both: they could be of two ports`,
			`spec.applyToDestinations[1].port: Required value: which port? write {number: 8080} (1 to 65535) or {name: http}; leave port out for all`,
			`spec.applyToDestinations[2].port.number: Invalid value: 65536: ports are 1 to 65535`,
			`spec.applyToDestinations[3].port.name: Invalid value: "80": that is a number: write {number: 80}`,
			`spec.applyToDestinations[4].port.name: Invalid value: "HTTP": no port of a Service has this name: want lower-case letters, digits and '-', at most 63`)},
		"port as a number": {`spec: {applyToDestinations: [{port: 8080}, {port: {number: -1}}, {port: {number: "80"}}]}`, wrong(
			`spec.applyToDestinations[0].port: Invalid value: 8080: want an object: write port: {number: 8080}`,
			`spec.applyToDestinations[1].port.number: Invalid value: -1: want a whole number that is not negative, nor huge`,
			`spec.applyToDestinations[2].port.number: Invalid value: "80": want a number: write 80 without quotes`)},
		"workloads by name":    {`spec: {applyToWorkloads: [{selector: {name: billing}}]}`, wrong(`spec.applyToWorkloads[0].selector.name: Forbidden: workloads are selected by the labels of their Pods, not by name: write labels, or select the Service in applyToDestinations`)},
		"TLS":                  {`spec: {config: {authn: {tlsMode: strict}}}`, wrong(`spec.config.authn.tlsMode: Invalid value: "strict": did you mean STRICT?`)},
		"TLS contradicts":      {`spec: {config: {authn: {tlsMode: PERMISSIVE, mtls: {required: true}}}}`, wrong(`spec.config.authn: Invalid value: "tlsMode: PERMISSIVE, mtls: {required: true}": the two contradict each other: required: true is tlsMode: STRICT, keep one of them`)},
		"clients without TLS":  {`spec: {config: {authn: {tlsMode: DISABLE}, authz: {allowedClients: [{}]}}}`, wrong(`spec.config.authz.allowedClients: Forbidden: clients are known by their certificates, and tlsMode: DISABLE asks for none: write tlsMode: STRICT, or allow addresses with allowedIpBlocks instead`)},
		"mtls: true":           {`spec: {config: {authn: {mtls: true}}}`, wrong(`spec.config.authn.mtls: Invalid value: true: want an object: write mtls: {required: true}`)},
		"Istio's mode":         {`spec: {config: {authn: {mtls: {mode: STRICT}}}}`, wrong(`spec.config.authn.mtls.mode: Forbidden: unknown field: write tlsMode: STRICT in config.authn`)},
		"metadata inside spec": {`spec: {metadata: {name: a}}`, wrong(`spec.metadata: Forbidden: unknown field here: "metadata" stands at the beginning of the line, beside spec (indent it less)`)},
		"authz a list":         {`spec: {config: {authz: [{}]}}`, wrong(`spec.config.authz: Invalid value: [{}]: want an object (allowedClients, allowedIpBlocks, allowedMethods, allowedPaths, allowedRemoteIpBlocks, dryRun, match), not a list: leave the '- ' out`)},
		"spec by template": {`spec: {applyToDestinations: [{selector: {labels: {app: "{{ .Values.app }}", "${KEY}": x}}}]}`, wrong(
			`spec.applyToDestinations[0].selector.labels: Invalid value: "${KEY}": the placeholder "${KEY}" was left in: run the file through envsubst first (is the variable set?), or write the value`,
			`spec.applyToDestinations[0].selector.labels[app]: Invalid value: "{{ .Values.app }}": the placeholder "{{ .Values.app }}" was left in: render the chart first (helm template), or write the value`)},
	})
	long := judge(t, strings.Replace(policyHead, "billing-allow-payments", strings.Repeat("x", 64), 1))
	if diff := cmp.Diff(wrong(`metadata.name: Invalid value: "`+strings.Repeat("x", 64)+`": the name has 64 characters: at most 63, because the objects made from the AccessPolicy carry it in a label`), long); diff != "" {
		t.Error(diff)
	}
}

func TestAccessPolicyRequests(t *testing.T) {
	at := func(field string) string { return "spec.config.authz." + field }
	compare(t, policyHead, map[string]struct {
		rest string
		want verdict
	}{
		"paths": {authz(`{allowedClients: [{}], allowedPaths: ["", "api", "/a/*/b", "*/x/*", "/a?b=c", "https://x.example.com/api", "/a b", "/$VALUE", "/${X}"]}`), wrong(
			at(`allowedPaths[8]: Invalid value: "/${X}": the placeholder "${X}" was left in: run the file through envsubst first (is the variable set?), or write the value`))},
		"paths, without the placeholder": {authz(`{allowedClients: [{}], allowedPaths: ["", "api", "/a/*/b", "*/x/*", "/a?b=c", "https://x.example.com/api", "/a b"]}`), wrong(
			at(`allowedPaths[0]: Required value: an empty path matches nothing: write it, or leave allowedPaths out for every path`),
			at(`allowedPaths[1]: Invalid value: "api": a path begins with '/': write "/api"`),
			at(`allowedPaths[2]: Invalid value: "/a/*/b": '*' may stand at the end ("/a/*") or at the beginning ("*/b"), not in the middle`),
			at(`allowedPaths[3]: Invalid value: "*/x/*": only one '*', at the end ("/api/*") or at the beginning ("*/status")`),
			at(`allowedPaths[4]: Invalid value: "/a?b=c": paths are compared without the query: write "/a"`),
			at(`allowedPaths[5]: Invalid value: "https://x.example.com/api": want the path of the URL only: "/api"`),
			at(`allowedPaths[6]: Invalid value: "/a b": paths have no spaces: in a request a space is "%20"`))},
		"a path that looks like one": {authz(`{allowedClients: [{}], allowedPaths: [/odata/$metadata]}`), doubtful(at(`allowedPaths[0]: "$metadata" looks like a placeholder that was left in; it is taken as written`))},
		"methods": {authz(`{allowedClients: [{}], allowedMethods: [get, "*", DELET, "G T", foo]}`), wrong(
			at(`allowedMethods[0]: Invalid value: "get": did you mean GET? Methods are compared with their case`),
			at(`allowedMethods[1]: Invalid value: "*": no wildcards here: leave allowedMethods out for every method`),
			at(`allowedMethods[2]: Invalid value: "DELET": did you mean DELETE?`),
			at(`allowedMethods[3]: Invalid value: "G T": want an HTTP method, such as GET`),
			at(`allowedMethods[4]: Invalid value: "foo": want an HTTP method, such as GET`))},
		"an own method": {authz(`{allowedClients: [{}], allowedMethods: [FROBNICATE]}`), doubtful(at(`allowedMethods[0]: "FROBNICATE" is no method that is commonly used`))},
		"headers": {authz(`{allowedClients: [{}], match: {request: {headers: {":method": {values: [GET]}, "x tenant": {values: [a]}, "x-user:": {values: [a]}, x-a: {}, x-b: {values: ["a*b", ""], notValues: ["*a*"]}, "x-*": {values: [a]}}}}}`), wrong(
			at(`match.request.headers: Invalid value: ":method": methods have a field of their own: allowedMethods`),
			at(`match.request.headers: Invalid value: "x tenant": no header has this name: want letters, digits and '-', such as "x-tenant"`),
			at(`match.request.headers: Invalid value: "x-*": no header has this name: want letters, digits and '-', such as "x-tenant"`),
			at(`match.request.headers[x-a]: Required value: which values? write values: [...] or notValues: [...]; values: ['*'] is any value`),
			at(`match.request.headers[x-b].values[0]: Invalid value: "a*b": only one '*', at the end ("x*") or at the beginning ("*x"); alone it is any value`),
			at(`match.request.headers[x-b].values[1]: Required value: an empty value matches nothing`),
			at(`match.request.headers[x-b].notValues[0]: Invalid value: "*a*": only one '*', at the end ("x*") or at the beginning ("*x"); alone it is any value`),
			at(`match.request.headers: Invalid value: "x-user:": no header has this name: write "x-user"`))},
		"header values directly": {authz(`{allowedClients: [{}], match: {request: {headers: {x-a: [b]}}}}`), wrong(at(`match.request.headers[x-a]: Invalid value: ["b"]: want an object (notValues, values), not a list: leave the '- ' out`))},
		"addresses": {authz(`{allowedClients: [{}], allowedIpBlocks: ["10.0.0", "10.0.0.0/33", "10.1.2.3/8", "10.*", "10.0.0.1-10.0.0.9", "10.0.0.1 ", api.example.com], allowedRemoteIpBlocks: ["fe80::1%eth0"]}`), wrong(
			at(`allowedIpBlocks[0]: Invalid value: "10.0.0": want an IP address such as "10.1.2.3" or a CIDR such as "10.1.0.0/16"`),
			at(`allowedIpBlocks[1]: Invalid value: "10.0.0.0/33": "/33" is no prefix length: want a CIDR such as "10.1.0.0/16", with 0 to 32 bits for IPv4 and 0 to 128 for IPv6`),
			at(`allowedIpBlocks[2]: Invalid value: "10.1.2.3/8": the address has bits beyond the first 8: write "10.0.0.0/8" for the network, or "10.1.2.3" for the address`),
			at(`allowedIpBlocks[3]: Invalid value: "10.*": no wildcards here: write a CIDR such as "10.1.0.0/16"`),
			at(`allowedIpBlocks[4]: Invalid value: "10.0.0.1-10.0.0.9": want an IP address or a CIDR such as "10.1.0.0/16", not a range or a host name`),
			at(`allowedIpBlocks[5]: Invalid value: "10.0.0.1 ": leave the space around it out: "10.0.0.1"`),
			at(`allowedIpBlocks[6]: Invalid value: "api.example.com": want an IP address such as "10.1.2.3" or a CIDR such as "10.1.0.0/16"`),
			at(`allowedRemoteIpBlocks[0]: Invalid value: "fe80::1%eth0": want an IP address such as "10.1.2.3" or a CIDR such as "10.1.0.0/16"`))},
		"JWT": {authz(`{allowedClients: [{requestIdentityMatcher: {}}, {requestIdentityMatcher: {requestPrincipals: [alice, cluster.local/ns/a/sa/b], notRequestPrincipals: ["a*b"]}}]}`), wrong(
			at(`allowedClients[0].requestIdentityMatcher: Required value: whom? write requestPrincipals or notRequestPrincipals: with neither it would match everybody`),
			at(`allowedClients[1].requestIdentityMatcher.requestPrincipals[0]: Invalid value: "alice": want the issuer and subject of a JWT, "issuer/subject", such as "https://idp.example.com/alice"; '*' is any`),
			at(`allowedClients[1].requestIdentityMatcher.requestPrincipals[1]: Invalid value: "cluster.local/ns/a/sa/b": want the issuer and subject of a JWT, "issuer/subject"; a ServiceAccount is selected: serviceAccountSelector: {name: b, namespace: a}`),
			at(`allowedClients[1].requestIdentityMatcher.notRequestPrincipals[0]: Invalid value: "a*b": only one '*', at the end ("x*") or at the beginning ("*x"); alone it is any value`))},
	})
}

func TestAccessPolicyWarnings(t *testing.T) {
	compare(t, policyHead, map[string]struct {
		rest string
		want verdict
	}{
		"nothing":        {`spec: {applyToDestinations: [{}]}`, doubtful(`spec.config: the policy changes nothing: it has neither authn nor authz`)},
		"layers only":    {`spec: {config: {enforcementLayers: {mesh: true}}}`, doubtful(`spec.config: the policy changes nothing: it has neither authn nor authz`)},
		"both selectors": {`spec: {applyToDestinations: [{}], applyToWorkloads: [{}], config: {authz: {}}}`, doubtful(`spec.applyToDestinations: ignored, because applyToWorkloads is set`)},
		"both rules":     {`spec: {config: {authz: {allowedClients: [{}]}, authzList: [{allowedClients: [{}]}]}}`, doubtful(`spec.config.authz: ignored, because authzList is set: move it there, as another entry`)},
		"cni":            {`spec: {config: {authz: {}, enforcementLayers: {cni: true, mesh: false}}}`, doubtful(`spec.config.enforcementLayers.cni: not supported: no NetworkPolicy is made`, `spec.config.enforcementLayers.mesh: the mesh is left out: the policy is not enforced anywhere`)},
		"cni off":        {`spec: {config: {authz: {}, enforcementLayers: {cni: false, mesh: true}}}`, verdict{}},
		"no clients":     {authz(`{allowedMethods: [GET]}`), doubtful(`spec.config.authz: it allows nobody, because it has no allowedClients: for any authenticated identity write allowedClients: [{}]`)},
		"external":       {authz(`{allowedClients: [{externalWorkloadSelector: {}}]}`), doubtful(`spec.config.authz.allowedClients[0].externalWorkloadSelector: not supported: it selects nobody`)},
		"DISABLE":        {`spec: {config: {authn: {tlsMode: DISABLE}}}`, doubtful(`spec.config.authn.tlsMode: the ambient data plane takes mutual TLS as well: DISABLE is the same as PERMISSIVE there`)},
	})
}
