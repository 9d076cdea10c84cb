package validate_test

import "testing"

const segmentHead = `
apiVersion: networking.solo.io/v2alpha1
kind: Segment
metadata: {name: productpage-global, namespace: gloo-mesh}
`

func TestSegment(t *testing.T) {
	compare(t, segmentHead, map[string]struct {
		rest string
		want verdict
	}{
		"the page's": {`
spec:
  hosts:
  - productpage.bookinfo.mesh.internal
  selector:
    namespace: bookinfo
    labels: { app: productpage }
  ports:
  - number: 9080
    protocol: HTTP
`, verdict{}},
		"no hosts":        {`spec: {selector: {namespace: bookinfo, labels: {app: productpage}}}`, verdict{}},
		"whole namespace": {`spec: {selector: {namespace: bookinfo}}`, doubtful(`spec.selector: no labels are given: every Service of namespace "bookinfo" becomes global`)},
		"all namespaces":  {`spec: {selector: {labels: {app: a}}}`, doubtful(`spec.selector: no namespace is given: Services with these labels become global in every namespace of every cluster`)},
		"nothing selected": {`spec: {hosts: [a.b], selector: {}}`, wrong(
			`spec.selector: Required value: which Services? write namespace, labels or both: an empty selector would make every Service of the mesh global`)},
		"hosts": {`spec: {hosts: ["http://a.b", "*.b", "a.b:80", "ns/a.b", web, web.shop.svc.cluster.local, A.b, a.b, a.b], selector: {namespace: shop, labels: {a: b}}}`, wrong(
			`spec.hosts[0]: Invalid value: "http://a.b": want a DNS name such as "productpage.shop.mesh.internal", not a URL`,
			`spec.hosts[1]: Invalid value: "*.b": no wildcards: callers dial one name, such as "productpage.shop.mesh.internal"`,
			`spec.hosts[2]: Invalid value: "a.b:80": leave the port out: ports has it`,
			`spec.hosts[3]: Invalid value: "ns/a.b": want a DNS name such as "productpage.shop.mesh.internal", without a path or namespace before it`,
			`spec.hosts[4]: Invalid value: "web": want a whole DNS name, such as "productpage.shop.mesh.internal": a name without dots means another Service in every namespace`,
			`spec.hosts[5]: Invalid value: "web.shop.svc.cluster.local": this is the name of a Service itself, which it has already: leave it out, or choose a name outside the cluster's domain, such as "productpage.shop.mesh.internal"`,
			`spec.hosts[6]: Invalid value: "A.b": write it in lower case: "a.b"`,
			`spec.hosts[8]: Duplicate value: "a.b"`)},
		"ports": {`spec: {selector: {namespace: shop, labels: {a: b}}, ports: [{number: 80, protocol: http}, {number: 80}, {number: 0}, {number: 70000}, {number: 53, protocol: UDP}, {number: 81, protocol: SPDY}]}`, wrong(
			`spec.ports[1].number: Duplicate value: 80`,
			`spec.ports[2].number: Required value: write the Service's port, 1 to 65535`,
			`spec.ports[3].number: Invalid value: 70000: want 1 to 65535`,
			`spec.ports[4].protocol: Invalid value: "UDP": ambient carries TCP only`,
			`spec.ports[5].protocol: Invalid value: "SPDY": want HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TCP, TLS or MONGO`)},
		".local": {`spec: {hosts: [a.local], selector: {namespace: shop, labels: {a: b}}}`, doubtful(
			`spec.hosts[0]: "a.local" is in .local, which some resolvers ask by multicast (RFC 6762 3) and not from DNS`)},
	})
}
