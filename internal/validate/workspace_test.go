package validate_test

import "testing"

const workspaceHead = `
apiVersion: admin.gloo.solo.io/v2
kind: Workspace
metadata: {name: payments, namespace: gloo-mesh}
`

func TestWorkspace(t *testing.T) {
	compare(t, workspaceHead, map[string]struct {
		rest string
		want verdict
	}{
		"selector only": {`spec: {workloadClusters: [{selector: {region: eu}, namespaces: [{name: "*"}]}]}`, verdict{}},
		"usual": {`
spec:
  workloadClusters:
  - name: mgmt
    namespaces: [{name: payments-config}]
    configEnabled: true
  - name: "*"
    namespaces: [{name: "payments-?"}, {labels: {team: payments}}]
    configEnabled: false
`, verdict{}},
		"empty": {`spec: {}`, verdict{}},
		"misindented namespaces: too far left": {`
spec:
  workloadClusters:
  - name: cluster-1
  namespaces:
  - name: bookinfo
`, wrong(`spec.namespaces: Forbidden: unknown field here: did you mean "namespaces" inside an entry of "workloadClusters"? (indent it further)`)},
		"misindented namespaces: too far right": {`
spec:
  workloadClusters:
  - name: cluster-1
    selector:
      region: eu
      namespaces:
      - name: bookinfo
`, wrong(`spec.workloadClusters[0].selector[namespaces]: Invalid value: [{"name":"bookinfo"}]: want a string here. "namespaces" is a field of its own beside "selector": indent it less`)},
		"misindented namespaces: an entry of their own": {`
spec:
  workloadClusters:
  - name: cluster-1
  - namespaces:
    - name: bookinfo
`, wrong(`spec.workloadClusters[0].namespaces: Required value: the entry has none. workloadClusters[1] has namespaces and no cluster: if they belong here, remove the '- ' before them`)},
		"clusters outside spec": {`workloadClusters: []`, wrong(`workloadClusters: Forbidden: unknown field here: did you mean "workloadClusters" inside "spec"? (indent it further)`)},
		"no namespaces":         {`spec: {workloadClusters: [{name: cluster-1}]}`, wrong(`spec.workloadClusters[0].namespaces: Required value: which? An entry without namespaces selects nothing: write namespaces: [{name: ...}], or [{name: '*'}] for every one`)},
		"namespaces by string":  {`spec: {workloadClusters: [{name: a, namespaces: [bookinfo]}]}`, wrong(`spec.workloadClusters[0].namespaces[0]: Invalid value: "bookinfo": want an object: write {name: bookinfo}`)},
		"namespaces as a map":   {`spec: {workloadClusters: [{name: a, namespaces: {name: bookinfo}}]}`, wrong(`spec.workloadClusters[0].namespaces: Invalid value: {"name":"bookinfo"}: want a list: begin each entry with '- '`)},
		"clusters as strings":   {`spec: {workloadClusters: [cluster-1]}`, wrong(`spec.workloadClusters[0]: Invalid value: "cluster-1": want an object: write {name: cluster-1}`)},
		"regular expression":    {`spec: {workloadClusters: [{name: "prod.*", namespaces: [{name: x}]}]}`, wrong(`spec.workloadClusters[0].name: Invalid value: "prod.*": want the name of a cluster, in which * stands for any characters and ? for one; it is no regular expression, write "prod-*"`)},
		"list in a string":      {`spec: {workloadClusters: [{name: "a,b", namespaces: [{name: x}]}]}`, wrong(`spec.workloadClusters[0].name: Invalid value: "a,b": want the name of one cluster: make an entry for each`)},
		"upper case":            {`spec: {workloadClusters: [{name: a, namespaces: [{name: Bookinfo}]}]}`, wrong(`spec.workloadClusters[0].namespaces[0].name: Invalid value: "Bookinfo": no namespace has this name: write it in lower case, "bookinfo"`)},
		"underscore":            {`spec: {workloadClusters: [{name: a_b, namespaces: [{name: x}]}]}`, wrong(`spec.workloadClusters[0].name: Invalid value: "a_b": no cluster has this name: want lower-case letters, digits and '-', and * or ? as wildcards`)},
		"label wildcard":        {`spec: {workloadClusters: [{selector: {region: "*"}, namespaces: [{name: x, labels: {team: "p*"}}]}]}`, wrong(`spec.workloadClusters[0].selector[region]: Invalid value: "*": labels are compared whole, '*' is no wildcard: leave selector out for every cluster`, `spec.workloadClusters[0].namespaces[0].labels[team]: Invalid value: "p*": labels are compared whole, without wildcards: leave labels out for every namespace`)},
		"label value is a bool": {`spec: {workloadClusters: [{selector: {prod: true}, namespaces: [{name: x}]}]}`, wrong(`spec.workloadClusters[0].selector[prod]: Invalid value: true: want a string: put it in quotes`)},
		"label by equals sign":  {`spec: {workloadClusters: [{selector: "region=eu", namespaces: [{name: x}]}]}`, wrong(`spec.workloadClusters[0].selector: Invalid value: "region=eu": want a map: write {region: eu}`)},
		"configEnabled on some": {`spec: {workloadClusters: [{name: a, namespaces: [{name: x}], configEnabled: false}, {name: b, namespaces: [{name: x}]}]}`, doubtful(`spec.workloadClusters: configEnabled is set on some entries only; on the others it is true: set it on all of them, so that readers see it`)},
		"configEnabled inside":  {`spec: {workloadClusters: [{name: a, namespaces: [{name: x, configEnabled: false}, {name: z}]}]}`, doubtful(`spec.workloadClusters[0].namespaces: configEnabled is set on some entries only; on the others it is true: set it on all of them, so that readers see it`)},
		"helm":                  {`spec: {workloadClusters: [{name: "{{ .Values.cluster }}", namespaces: [{name: x}]}]}`, wrong(`spec.workloadClusters[0].name: Invalid value: "{{ .Values.cluster }}": the placeholder "{{ .Values.cluster }}" was left in: render the chart first (helm template), or write the value`)},
		"envsubst": {`spec: {workloadClusters: [{name: "${CLUSTER1}", selector: {region: $REGION}, namespaces: [{name: team-$(TEAM)}, {name: <namespace>}]}]}`, wrong(
			`spec.workloadClusters[0].name: Invalid value: "${CLUSTER1}": the placeholder "${CLUSTER1}" was left in: run the file through envsubst first (is the variable set?), or write the value`,
			`spec.workloadClusters[0].namespaces[0].name: Invalid value: "team-$(TEAM)": the placeholder "$(TEAM)" was left in: run the file through envsubst first (is the variable set?), or write the value`,
			`spec.workloadClusters[0].namespaces[1].name: Invalid value: "<namespace>": the placeholder "<namespace>" was left in: write the value, without < and >`,
			`spec.workloadClusters[0].selector[region]: Invalid value: "$REGION": the placeholder "$REGION" was left in: run the file through envsubst first (is the variable set?), or write the value`,
		)},
		"envsubst for a boolean": {`spec: {workloadClusters: [{name: a, configEnabled: "${ENABLED}", namespaces: [{name: x}]}]}`, wrong(`spec.workloadClusters[0].configEnabled: Invalid value: "${ENABLED}": the placeholder "${ENABLED}" was left in: run the file through envsubst first (is the variable set?), or write the value`)},
	})
	compare(t, "apiVersion: admin.gloo.solo.io/v2\nkind: Workspace\n", map[string]struct {
		rest string
		want verdict
	}{
		"other namespace":     {`metadata: {name: payments, namespace: payments}`, wrong(`metadata.namespace: Invalid value: "payments": create it in namespace "gloo-mesh": the management server reads Workspaces of its admin namespace only`)},
		"placeholder in name": {`metadata: {name: "$TEAM", namespace: gloo-mesh}`, wrong(`metadata.name: Invalid value: "$TEAM": the placeholder "$TEAM" was left in: run the file through envsubst first (is the variable set?), or write the value`)},
	})
}

const settingsHead = `
apiVersion: admin.gloo.solo.io/v2
kind: WorkspaceSettings
metadata: {name: payments, namespace: payments-config}
`

func TestWorkspaceSettings(t *testing.T) {
	compare(t, settingsHead, map[string]struct {
		rest string
		want verdict
	}{
		"usual": {`
spec:
  importFrom:
  - workspaces: [{name: gateways}, {selector: {allow_ingress: "true"}}]
  exportTo:
  - workspaces: [{name: "*"}]
    resources: [{kind: SERVICE, labels: {app: billing}}, {kind: ALL, namespace: billing}]
  options:
    serviceIsolation: {enabled: true, trimProxyConfig: false}
    eastWestGateways: [{selector: {labels: {istio: eastwestgateway}}, port: {number: 15443}}]
`, verdict{}},
		"exportTpo":                 {`spec: {exportTpo: []}`, wrong(`spec.exportTpo: Forbidden: unknown field: did you mean "exportTo"?`)},
		"map for a list":            {`spec: {exportTo: {}}`, wrong(`spec.exportTo: Invalid value: {}: want a list: begin each entry with '- '`)},
		"isolation: true":           {`spec: {options: {serviceIsolation: true}}`, wrong(`spec.options.serviceIsolation: Invalid value: true: want an object: write serviceIsolation: {enabled: true}`)},
		"isolation outside options": {`spec: {serviceIsolation: {enabled: true}}`, wrong(`spec.serviceIsolation: Forbidden: unknown field here: did you mean "serviceIsolation" inside "options"? (indent it further)`)},
		"options too deep":          {`spec: {exportTo: [{workspaces: [{name: a}], options: {}}]}`, wrong(`spec.exportTo[0].options: Forbidden: unknown field here: did you mean "options" of "spec"? (indent it less)`)},
		"workspaces by string": {`spec: {importFrom: [gateways], exportTo: [{workspaces: [gateways]}]}`, wrong(
			`spec.exportTo[0].workspaces[0]: Invalid value: "gateways": want an object: write {name: gateways}`,
			`spec.importFrom[0]: Invalid value: "gateways": want an object: write {workspaces: [{name: gateways}]}`)},
		"with nobody":  {`spec: {exportTo: [{resources: [{kind: SERVICE}]}]}`, wrong(`spec.exportTo[0].workspaces: Required value: which? write workspaces: [{name: ...}], or [{name: '*'}] for every one`)},
		"with anybody": {`spec: {exportTo: [{workspaces: [{}]}]}`, wrong(`spec.exportTo[0].workspaces[0]: Required value: which workspace? write name or selector; name: '*' is every one`)},
		"kind": {`spec: {exportTo: [{workspaces: [{name: a}], resources: [{kind: Service}, {kind: VirtualDestination}, {kind: SECRET}]}]}`, wrong(
			`spec.exportTo[0].resources[0].kind: Invalid value: "Service": did you mean SERVICE?`,
			`spec.exportTo[0].resources[1].kind: Invalid value: "VirtualDestination": did you mean VIRTUAL_DESTINATION?`,
			`spec.exportTo[0].resources[2].kind: Invalid value: "SECRET": want ALL, SERVICE, ROUTE_TABLE, VIRTUAL_DESTINATION, EXTERNAL_SERVICE, API_DOC, GRAPHQL_RESOLVER_MAP, GRAPHQL_SCHEMA, GRAPHQL_STITCHED_SCHEMA, EXTERNAL_WORKLOAD, CLOUD_PROVIDER`)},
		"kind without effect": {`spec: {exportTo: [{workspaces: [{name: a}], resources: [{kind: ROUTE_TABLE}]}]}`, doubtful(`spec.exportTo[0].resources[0].kind: no effect: only Services are shared, not resources of kind ROUTE_TABLE`)},
		"sidecar options": {`spec: {options: {serviceIsolation: {enabled: true, trimProxyConfig: true, enforcementLayers: {cni: true}}, trimAllProxyConfig: true}}`, doubtful(
			`spec.options.serviceIsolation.trimProxyConfig: no effect: it is of sidecars, and the ambient data plane has none`,
			`spec.options.serviceIsolation.enforcementLayers.cni: not supported: no NetworkPolicy is made`,
			`spec.options.trimAllProxyConfig: no effect: it is of sidecars, and the ambient data plane has none`)},
		"modes": {`spec: {options: {virtualDestClientMode: {auto: {}, sniRouting: {}}}}`, wrong(`spec.options.virtualDestClientMode: Invalid value: write one of auto, sniRouting, tlsTermination, not several`)},
		"gateways": {`spec: {options: {eastWestGateways: [{port: {number: 70000}, hostInfoOverrides: [{portType: SNI}]}]}}`, wrong(
			`spec.options.eastWestGateways[0].port.number: Invalid value: 70000: ports are 1 to 65535`,
			`spec.options.eastWestGateways[0].hostInfoOverrides[0].addr: Required value: write the address of the gateway, an IP address or a host name`,
			`spec.options.eastWestGateways[0].hostInfoOverrides[0].portType: Invalid value: "SNI": want SNI_PASSTHROUGH, TLS_TERMINATION`)},
	})
	compare(t, "apiVersion: admin.gloo.solo.io/v2\nkind: WorkspaceSettings\n", map[string]struct {
		rest string
		want verdict
	}{
		"global":           {`metadata: {name: global, namespace: gloo-mesh}`, verdict{}},
		"global elsewhere": {`metadata: {name: global, namespace: payments}`, wrong(`metadata.name: Invalid value: "global": the settings of all workspaces have this name, in namespace "gloo-mesh": create them there, or give the settings of one workspace another name`)},
	})
}
