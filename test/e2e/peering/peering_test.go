// Package peering_test is the operators' page's "Cross-cluster peering on Ambient: auto vs manual", on real clusters: peers are kept, give way to hand-made ones, stay off where they
// are switched off, follow addresses and clusters, and calls ride them.
//
// The scenarios are numbered and run in order on one lab: each begins with what the one before left.
package peering_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/test/e2e"
)

var lab *e2e.Lab

func TestMain(m *testing.M) { e2e.Main(m, &lab, "--clusters", "3") } // cluster-1, cluster-2, and prod-eu-west-3, which is not registered

const soon = time.Minute // a safety net: what is waited for takes a second or two

// peers lists the peers of a cluster: "name=address ...".
func peers(cluster string) string {
	return fmt.Sprintf(`kubectl --context %s get gateway -A -o jsonpath='{range .items[?(@.spec.gatewayClassName=="istio-remote")]}{.metadata.name}={.spec.addresses[0].value} {end}'`, cluster)
}

func want(t *testing.T, cluster, list string) {
	t.Helper()
	lab.Eventually(t, soon, peers(cluster), func(out string) bool { return strings.TrimSpace(out) == list })
}

// reached says of a pair what `meshctl peering status` says.
func reached(t *testing.T, from, to, text string) {
	t.Helper()
	script := fmt.Sprintf(`meshctl peering status --mgmt-context mgmt --cluster %s | grep -E '^%s +%s ' || true`, from, from, to)
	lab.Eventually(t, soon, script, func(out string) bool { return strings.Contains(out, text) })
}

const (
	one, two = "10.11.64.1", "10.12.64.1"
	annotate = `kubectl --context mgmt -n gloo-mesh annotate --overwrite kubernetescluster `
)

func Test01PeersAreThereAndCarryCalls(t *testing.T) {
	want(t, "cluster-1", "istio-remote-peer-cluster-2="+two)
	want(t, "cluster-2", "istio-remote-peer-cluster-1="+one)
	if out := lab.Run(t, peers("prod-eu-west-3")); out != "" {
		t.Errorf("a cluster that is not registered has %s", out)
	}
	lab.Eventually(t, soon, `kubectl --context cluster-1 -n istio-eastwest get gateway istio-remote-peer-cluster-2 -o jsonpath='{.status.conditions[?(@.type=="Programmed")].status}'`, func(out string) bool { return out == "True" })
	reached(t, "cluster-1", "cluster-2", "True")
	lab.Eventually(t, soon, `kubectl --context mgmt -n gloo-mesh get kubernetescluster cluster-1 -o jsonpath='{.status.conditions[?(@.type=="Peered")].reason} {.status.peers[0].cluster}'`, func(out string) bool { return out == "PeersReachable cluster-2" })
	lab.Eventually(t, soon, `lab call payments/cluster-1 billing/cluster-2 --state "$PWD"`, func(out string) bool { return strings.Contains(out, two+":15008") })
}

func Test02WhatIsDeletedComesBack(t *testing.T) {
	for range 3 {
		lab.Run(t, `kubectl --context cluster-1 -n istio-eastwest delete gateway istio-remote-peer-cluster-2`)
		want(t, "cluster-1", "istio-remote-peer-cluster-2="+two)
	}
}

func Test03ThePagesHandMadePeerIsRespected(t *testing.T) {
	lab.Run(t, `
kubectl --context cluster-1 apply -f - <<'EOF'
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: manual-peer-cluster-2
  namespace: istio-eastwest
  annotations:
    gateway.istio.io/service-account: istio-eastwest
    gateway.istio.io/trust-domain: cluster.local
  labels:
    topology.istio.io/cluster: cluster-2
    topology.istio.io/network: cluster-2
spec:
  gatewayClassName: istio-remote
  addresses:
  - { type: IPAddress, value: `+two+` }
  listeners:
  - { name: cross-network, port: 15008, protocol: HBONE, tls: { mode: Passthrough }, allowedRoutes: { namespaces: { from: Same } } }
  - { name: xds-tls, port: 15012, protocol: TLS, tls: { mode: Passthrough }, allowedRoutes: { namespaces: { from: Same } } }
EOF`)
	want(t, "cluster-1", "manual-peer-cluster-2="+two)
	want(t, "cluster-2", "istio-remote-peer-cluster-1="+one)
	reached(t, "cluster-1", "cluster-2", "HandMade")
	lab.Run(t, `kubectl --context cluster-1 -n istio-eastwest delete gateway manual-peer-cluster-2`)
	want(t, "cluster-1", "istio-remote-peer-cluster-2="+two)
}

func Test04OffStaysOff(t *testing.T) {
	lab.Run(t, annotate+`cluster-2 admin.gloo.solo.io/automatic-peering=false`)
	want(t, "cluster-1", "")
	want(t, "cluster-2", "")
	for range 5 { // as the page's script does
		out := lab.Run(t, `for c in cluster-1 cluster-2; do kubectl --context $c -n istio-eastwest delete gateway istio-remote-peer-cluster-1 istio-remote-peer-cluster-2 --ignore-not-found; done; sleep 1`)
		if out != "" {
			t.Errorf("there was a peer again: %s", out)
		}
	}
	reached(t, "cluster-1", "cluster-2", "PeerSwitchedOff")
	lab.Run(t, annotate+`cluster-2 admin.gloo.solo.io/automatic-peering-`)
	want(t, "cluster-1", "istio-remote-peer-cluster-2="+two)
	want(t, "cluster-2", "istio-remote-peer-cluster-1="+one)
}

func Test05AnotherAddressInPlaceAndWhyItIsNotReached(t *testing.T) {
	uid := `kubectl --context cluster-1 -n istio-eastwest get gateway istio-remote-peer-cluster-2 -o jsonpath='{.metadata.uid}'`
	before := lab.Run(t, uid)
	lab.Run(t, annotate+`cluster-2 admin.gloo.solo.io/peering-address=172.18.255.100`)
	want(t, "cluster-1", "istio-remote-peer-cluster-2=172.18.255.100")
	if after := lab.Run(t, uid); after != before {
		t.Errorf("the peer was made anew: %s, %s", before, after)
	}
	reached(t, "cluster-1", "cluster-2", "bridge that Docker gives kind")
	lab.Eventually(t, soon, `kubectl --context mgmt -n gloo-mesh get kubernetescluster cluster-1 -o jsonpath='{.status.conditions[?(@.type=="Peered")].reason}'`, func(out string) bool { return out == "PeersUnreachable" })
	if r := lab.Try(t, `lab call payments/cluster-1 billing/cluster-2 --state "$PWD"`); r.Code == 0 {
		t.Errorf("a call took another way than the peer's: %s", r.Out)
	}
	lab.Run(t, annotate+`cluster-2 admin.gloo.solo.io/peering-address-`)
	want(t, "cluster-1", "istio-remote-peer-cluster-2="+two)
	reached(t, "cluster-1", "cluster-2", "True")
	lab.Eventually(t, soon, `lab call payments/cluster-1 billing/cluster-2 --state "$PWD"`, func(out string) bool { return strings.Contains(out, two+":15008") })
}

func Test06JoinAndLeave(t *testing.T) {
	lab.Run(t, `meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3`)
	three := lab.Run(t, `kubectl --context prod-eu-west-3 -n istio-eastwest get gateway istio-eastwest -o jsonpath='{.status.addresses[0].value}'`)
	want(t, "prod-eu-west-3", fmt.Sprintf("istio-remote-peer-cluster-1=%s istio-remote-peer-cluster-2=%s", one, two))
	want(t, "cluster-1", fmt.Sprintf("istio-remote-peer-cluster-2=%s istio-remote-peer-prod-eu-west-3=%s", two, three))
	lab.Run(t, `meshctl cluster deregister prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3`)
	want(t, "cluster-1", "istio-remote-peer-cluster-2="+two)
	want(t, "cluster-2", "istio-remote-peer-cluster-1="+one)
}
