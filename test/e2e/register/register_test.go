// Package register_test is the operators' page's "Bootstrap a new cluster into an existing 3-cluster mesh", typed verbatim, and what may go wrong with it.
//
// The scenarios are numbered and run in order on one lab: each begins with what the one before left.
package register_test

import (
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/test/e2e"
)

var lab *e2e.Lab

func TestMain(m *testing.M) { e2e.Main(m, &lab) }

// existing lists every object of a cluster with its resourceVersion, save those that change by themselves: what the control plane beats and elects with.
const existing = `
kinds=$(kubectl --context %[1]s api-resources --verbs=list -o name | sort -u | grep -vE '^(events|leases|nodes|pods|csinodes|podmetrics|nodemetrics|componentstatuses)(\.|$)' | paste -sd,)
kubectl --context %[1]s get "$kinds" -A --no-headers -o custom-columns='K:.kind,NS:.metadata.namespace,N:.metadata.name,RV:.metadata.resourceVersion,L:.metadata.annotations.control-plane\.alpha\.kubernetes\.io/leader'`

func objects(t *testing.T, cluster string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.SplitSeq(lab.Run(t, fmt.Sprintf(existing, cluster)), "\n") {
		if f := strings.Fields(line); len(f) == 5 && f[4] == "<none>" {
			out[f[0]+" "+f[1]+"/"+f[2]] = f[3]
		}
	}
	if len(out) < 100 {
		t.Fatalf("cluster %s: only %d objects listed; the comparison would prove nothing", cluster, len(out))
	}
	return out
}

func Test01PageRegistersTheFourthCluster(t *testing.T) {
	before := map[string]map[string]string{}
	for _, c := range []string{"cluster-1", "cluster-2", "cluster-3"} {
		before[c] = objects(t, c)
	}
	start := time.Now()
	out := lab.Run(t, `
meshctl cluster register prod-eu-west-3 \
--mgmt-context mgmt \
--remote-context prod-eu-west-3 \
--version 2.12.0`)
	t.Logf("registered in %s:\n%s", time.Since(start).Round(time.Millisecond), out)

	got := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get kubernetescluster prod-eu-west-3`)
	if !regexp.MustCompile(`^NAME +AGE +AGENT-VERSION +STATUS\nprod-eu-west-3 +\S+ +2\.12\.0 +Connected$`).MatchString(got) {
		t.Errorf("get kubernetescluster:\n%s", got)
	}
	wide := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get kubernetescluster -o wide`)
	for _, c := range []string{"cluster-1", "cluster-2", "cluster-3", "prod-eu-west-3"} {
		row := regexp.MustCompile(`(?m)^` + c + ` +\S+ +2\.12\.0 +Connected +20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ +cluster\.local +20\d\d-`)
		if !row.MatchString(wide) {
			t.Errorf("no complete row of %s in\n%s", c, wide)
		}
	}
	for _, column := range []string{"STATUS", "AGENT-VERSION", "LAST HEARTBEAT", "TRUST DOMAIN", "CREATED"} {
		if !strings.Contains(wide, column) {
			t.Errorf("no column %s in\n%s", column, wide)
		}
	}
	state := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get kubernetescluster prod-eu-west-3 -o jsonpath='{.status.common.State.approval} {.status.registeredBy}'`)
	if state != "ACCEPTED jane.doe@bank.example.com" {
		t.Errorf("approval and registrar: %q", state)
	}
	lab.Eventually(t, 10*time.Second, `kubectl --context mgmt -n gloo-mesh get events --field-selector involvedObject.name=prod-eu-west-3`,
		func(out string) bool { return strings.Contains(out, "Registered by jane.doe@bank.example.com") })

	for c, old := range before {
		now := objects(t, c)
		for _, known := range []map[string]string{old, now} { // the new cluster's peer and token, and what the agent notes of them
			maps.DeleteFunc(known, func(name, _ string) bool {
				return strings.Contains(name, "prod-eu-west-3") || strings.HasSuffix(name, "/gloo-mesh-agent-inventory") || strings.HasSuffix(name, "/gloo-mesh-agent-token")
			})
		}
		if diff := cmp.Diff(old, now); diff != "" {
			t.Errorf("registering prod-eu-west-3 changed objects of %s (-before +after):\n%s", c, diff)
		}
	}
}

func Test02NoKeyAndNoTokenIsLeftBehind(t *testing.T) {
	if out := lab.Run(t, `kubectl --context prod-eu-west-3 -n gloo-mesh get secret relay-registration-token --ignore-not-found`); out != "" {
		t.Errorf("the redeemed registration token is still in the cluster: %s", out)
	}
	keys := lab.Run(t, `kubectl --context prod-eu-west-3 -n gloo-mesh get secret relay-root-tls-secret -o json | sed -nE 's/^ +"([a-z.]+)": .*/\1/p' | grep -E '^(ca.crt|tls.crt|tls.key|next)' || true`)
	if keys != "ca.crt" {
		t.Errorf("relay-root-tls-secret of a workload cluster must hold ca.crt only, has: %q", keys)
	}
	hub := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get secret -o yaml`)
	key := lab.Run(t, `kubectl --context prod-eu-west-3 -n gloo-mesh get secret relay-client-tls-secret -o jsonpath='{.data.tls\.key}'`)
	if key == "" || strings.Contains(hub, key) {
		t.Error("the agent's private key must exist in its cluster and nowhere on the hub")
	}
}

func Test03RegisteringAgainIsSafe(t *testing.T) {
	const uid = `kubectl --context prod-eu-west-3 -n gloo-mesh get secret relay-client-tls-secret -o jsonpath='{.metadata.uid} {.data.tls\.crt}'`
	before := lab.Run(t, uid)
	lab.Run(t, `meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3 --version 2.12.0`)
	if diff := cmp.Diff(before, lab.Run(t, uid)); diff != "" {
		t.Errorf("registering again gave the agent another identity:\n%s", diff)
	}
}

func Test04NameAndClusterAreUnique(t *testing.T) {
	for name, tc := range map[string]struct{ script, want string }{
		"name taken":         {`meshctl cluster register cluster-1 --mgmt-context mgmt --remote-context prod-eu-west-3`, "cluster-1"},
		"cluster known":      {`meshctl cluster register another-name --mgmt-context mgmt --remote-context cluster-2`, "cluster-2"},
		"name invalid":       {`meshctl cluster register prod_eu --mgmt-context mgmt --remote-context prod-eu-west-3`, "'_'"},
		"context missing":    {`meshctl cluster register x --mgmt-context mgnt --remote-context prod-eu-west-3`, "mgmt"},
		"address empty":      {`meshctl cluster register x --mgmt-context mgmt --remote-context prod-eu-west-3 --relay-server-address :9900`, ":9900"},
		"webhook: domain":    {`kubectl --context mgmt -n gloo-mesh patch kubernetescluster cluster-1 --type=merge -p '{"spec":{"clusterDomain":"Not A Domain"}}'`, "clusterDomain"},
		"webhook: registrar": {`kubectl --context mgmt -n gloo-mesh annotate kubernetescluster cluster-1 admin.gloo.solo.io/registered-by=mallory --overwrite`, "registered-by"},
	} {
		t.Run(name, func(t *testing.T) {
			r := lab.Try(t, tc.script)
			if r.Code == 0 || !strings.Contains(r.Err+r.Out, tc.want) {
				t.Errorf("exit %d; want a refusal that names %q\nstdout: %s\nstderr: %s", r.Code, tc.want, r.Out, r.Err)
			}
		})
	}
	if out := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get kubernetescluster another-name x prod_eu --ignore-not-found 2>/dev/null || true`); out != "" {
		t.Errorf("a refused registration left something: %s", out)
	}
}

// applied is what the agent of a cluster applied for the hub, with UIDs and versions: equal before and after means nothing was deleted, nothing made again.
func applied(t *testing.T) string {
	t.Helper()
	return lab.Run(t, `for c in cluster-1 cluster-2 cluster-3 prod-eu-west-3; do
  kubectl --context $c get configmap -A -l owner.gloo.solo.io/name=gloo-mesh --no-headers -o custom-columns=N:.metadata.name,U:.metadata.uid,D:.metadata.deletionTimestamp; done`)
}

// sessions asks the serving Pod of the management server how many agents are connected to it: a fresh process begins with none, whatever status says.
const sessions = `pod=$(kubectl --context mgmt -n gloo-mesh get pod -l app=gloo-mesh-mgmt-server --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}')
kubectl --context mgmt get --raw "/api/v1/namespaces/gloo-mesh/pods/$pod:9091/proxy/metrics" | grep -c '^relay_push_clients_connected{.*} 1$'`

func four(out string) bool { return out == "4" }

func allConnected(out string) bool {
	return strings.Count(out, "Connected") == 4 && !strings.Contains(out, "Disconnected")
}

const connections = `kubectl --context mgmt -n gloo-mesh get kubernetescluster cluster-1 cluster-2 cluster-3 prod-eu-west-3 -o jsonpath='{.items[*].status.connection}'`

func Test05ServerKilledNothingDeleted(t *testing.T) {
	lab.Eventually(t, 60*time.Second, connections, allConnected)
	before := applied(t)
	if strings.Count(before, "ambit-membership") != 4 {
		t.Fatalf("want the membership of four clusters, have:\n%s", before)
	}
	old := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get pod -l app=gloo-mesh-mgmt-server -o jsonpath='{.items[0].metadata.uid}'`)
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh delete pod -l app=gloo-mesh-mgmt-server --grace-period=0 --force`)
	lab.Eventually(t, 60*time.Second, `kubectl --context mgmt -n gloo-mesh get pod -l app=gloo-mesh-mgmt-server -o jsonpath='{range .items[*]}{.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}{end}'`,
		func(out string) bool { return !strings.Contains(out, old) && strings.HasSuffix(out, "True") })
	lab.Eventually(t, 90*time.Second, sessions, four)
	lab.Eventually(t, 30*time.Second, connections, allConnected)
	if diff := cmp.Diff(before, applied(t)); diff != "" {
		t.Errorf("the server's death changed what agents had applied (-before +after):\n%s", diff)
	}
}

func Test06WebhookDownMeansWritesAreRefused(t *testing.T) {
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh scale deployment gloo-mesh-mgmt-server --replicas=0
kubectl --context mgmt -n gloo-mesh wait --for=delete pod -l app=gloo-mesh-mgmt-server --timeout=60s`)
	t.Cleanup(func() {
		lab.Run(t, `kubectl --context mgmt -n gloo-mesh scale deployment gloo-mesh-mgmt-server --replicas=1
kubectl --context mgmt -n gloo-mesh rollout status deployment gloo-mesh-mgmt-server --timeout=90s`)
		lab.Eventually(t, 90*time.Second, connections, allConnected)
	})
	r := lab.Try(t, `kubectl --context mgmt -n gloo-mesh label kubernetescluster cluster-1 unseen=yes`)
	if r.Code == 0 || !strings.Contains(r.Err, "webhook") {
		t.Errorf("a write went through with the webhook down: exit %d %s%s", r.Code, r.Out, r.Err)
	}
}

func Test07CertificateOfAnotherClusterIsRefusedByName(t *testing.T) {
	lab.Run(t, `
kubectl --context prod-eu-west-3 -n gloo-mesh get secret relay-client-tls-secret -o json >own.json
kubectl --context cluster-1 -n gloo-mesh get secret relay-client-tls-secret -o json |
  sed -E '/"(uid|resourceVersion|creationTimestamp)":/d' | kubectl --context prod-eu-west-3 -n gloo-mesh replace -f -
kubectl --context prod-eu-west-3 -n gloo-mesh rollout restart deployment gloo-mesh-agent`)
	lab.Eventually(t, 60*time.Second, `kubectl --context prod-eu-west-3 -n gloo-mesh logs deployment/gloo-mesh-agent --tail=50`,
		func(out string) bool {
			return strings.Contains(out, "cluster-1") && strings.Contains(out, "prod-eu-west-3")
		})
	// cluster-1 does not suffer from a stranger with its certificate. It may still be on its way back from the scenario before.
	const connection = `kubectl --context mgmt -n gloo-mesh get kubernetescluster cluster-1 -o jsonpath='{.status.connection}'`
	lab.Eventually(t, 60*time.Second, connection, func(out string) bool { return out == "Connected" })
	for range 10 {
		time.Sleep(500 * time.Millisecond)
		if out := lab.Run(t, connection); out != "Connected" {
			t.Fatalf("cluster-1 suffers from a stranger with its certificate, is %s", out)
		}
	}
	lab.Run(t, `
sed -E '/"(uid|resourceVersion|creationTimestamp)":/d' own.json | kubectl --context prod-eu-west-3 -n gloo-mesh replace -f -; rm own.json
kubectl --context prod-eu-west-3 -n gloo-mesh rollout restart deployment gloo-mesh-agent`)
	lab.Eventually(t, 90*time.Second, connections, allConnected)
}

func Test08HubCertificateChanges(t *testing.T) {
	before := lab.Run(t, `kubectl --context cluster-1 -n gloo-mesh get pod -l app=gloo-mesh-agent -o jsonpath='{.items[*].status.containerStatuses[*].restartCount}'`)
	lab.Run(t, `meshctl relay rotate --mgmt-context mgmt`)
	lab.Run(t, `meshctl relay check --mgmt-context mgmt`)
	// Whoever connects from now on sees the successor's certificate: make everybody connect anew.
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh rollout restart deployment gloo-mesh-mgmt-server
kubectl --context mgmt -n gloo-mesh rollout status deployment gloo-mesh-mgmt-server --timeout=90s`)
	lab.Eventually(t, 90*time.Second, sessions, four)
	lab.Eventually(t, 30*time.Second, connections, allConnected)
	after := lab.Run(t, `kubectl --context cluster-1 -n gloo-mesh get pod -l app=gloo-mesh-agent -o jsonpath='{.items[*].status.containerStatuses[*].restartCount}'`)
	if before != after {
		t.Errorf("agent restarts: %s before, %s after", before, after)
	}
}

func Test09APIServerOfTheHubDown(t *testing.T) {
	before := applied(t)
	lab.Run(t, `lab stop kube/mgmt --state "$PWD"; sleep 60; lab start kube/mgmt --state "$PWD"`)
	lab.Eventually(t, 90*time.Second, connections+` && kubectl --context mgmt -n gloo-mesh wait --for=condition=Ready pod -l app=gloo-mesh-mgmt-server --timeout=5s >/dev/null`, allConnected)
	lab.Eventually(t, 90*time.Second, sessions, four)
	if diff := cmp.Diff(before, applied(t)); diff != "" {
		t.Errorf("a minute without the hub's API server changed what agents had applied (-before +after):\n%s", diff)
	}
}

func Test10HandMintedCertificate(t *testing.T) {
	lab.Run(t, `
meshctl cluster deregister prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3
# As the published script does it: mint a client certificate for the cluster from the signing secret, copy root and token, install the agent, register last.
M="kubectl --context mgmt -n gloo-mesh" W="kubectl --context prod-eu-west-3 -n gloo-mesh" D=$(mktemp -d)
$M get secret relay-tls-signing-secret -o jsonpath='{.data.tls\.crt}' | base64 -d >$D/ca.crt
$M get secret relay-tls-signing-secret -o jsonpath='{.data.tls\.key}' | base64 -d >$D/ca.key
openssl req -new -newkey rsa:2048 -nodes -keyout $D/tls.key -out $D/csr -subj /CN=prod-eu-west-3 2>/dev/null
printf 'subjectAltName=DNS:prod-eu-west-3\nextendedKeyUsage=clientAuth\n' >$D/ext
openssl x509 -req -in $D/csr -CA $D/ca.crt -CAkey $D/ca.key -CAcreateserial -days 30 -extfile $D/ext -out $D/tls.crt 2>/dev/null
kubectl --context prod-eu-west-3 create namespace gloo-mesh --dry-run=client -o yaml | kubectl --context prod-eu-west-3 apply -f - >/dev/null
$W create secret generic relay-client-tls-secret --from-file=tls.crt=$D/tls.crt --from-file=tls.key=$D/tls.key --from-file=ca.crt=$D/ca.crt
for s in relay-root-tls-secret relay-identity-token-secret; do
  $M get secret $s -o json | sed -E '/"(uid|resourceVersion|creationTimestamp)":/d' | $W apply -f - >/dev/null; done
rm -rf $D`)
	address := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get service gloo-mesh-mgmt-server -o jsonpath='{.status.loadBalancer.ingress[0].ip}:9900'`)
	lab.Run(t, `meshctl install --kubecontext prod-eu-west-3 --profiles gloo-mesh-agent --set common.cluster=prod-eu-west-3 --set glooAgent.relay.serverAddress=`+address+` --set glooAgent.insecure=false`)
	// Installed before its KubernetesCluster exists: Available, waiting.
	lab.Run(t, `kubectl --context prod-eu-west-3 -n gloo-mesh wait --for=condition=Available deployment gloo-mesh-agent --timeout=60s`)
	lab.Eventually(t, 30*time.Second, `kubectl --context prod-eu-west-3 -n gloo-mesh logs deployment/gloo-mesh-agent --tail=50`, func(out string) bool { return strings.Contains(out, "not registered") })
	lab.Run(t, `kubectl --context mgmt apply -f - <<'EOF'
apiVersion: admin.gloo.solo.io/v2
kind: KubernetesCluster
metadata: { name: prod-eu-west-3, namespace: gloo-mesh }
spec: { clusterDomain: cluster.local }
EOF`)
	lab.Eventually(t, 60*time.Second, `kubectl --context mgmt -n gloo-mesh get kubernetescluster prod-eu-west-3 -o jsonpath='{.status.common.State.approval} {.status.connection}'`,
		func(out string) bool { return out == "ACCEPTED Connected" })
}

func Test11DeregisteredIsRefused(t *testing.T) {
	// With the shared token, an agent of a name that is registered again may enrol a new key (ADR 0002): this is about the old one.
	lab.Run(t, `kubectl --context prod-eu-west-3 -n gloo-mesh delete secret relay-identity-token-secret`)
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh delete kubernetescluster prod-eu-west-3`)
	lab.Eventually(t, 15*time.Second, `kubectl --context prod-eu-west-3 -n gloo-mesh logs deployment/gloo-mesh-agent --tail=20`,
		func(out string) bool {
			return strings.Contains(out, "revoked") || strings.Contains(out, "not registered")
		})
	// The same key does not come back with the name.
	lab.Run(t, `kubectl --context mgmt apply -f - <<'EOF'
apiVersion: admin.gloo.solo.io/v2
kind: KubernetesCluster
metadata: { name: prod-eu-west-3, namespace: gloo-mesh }
EOF`)
	lab.Eventually(t, 45*time.Second, `kubectl --context prod-eu-west-3 -n gloo-mesh logs deployment/gloo-mesh-agent --tail=20`, func(out string) bool { return strings.Contains(out, "revoked") })
	if out := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get kubernetescluster prod-eu-west-3 -o jsonpath='{.status.connection}'`); out == "Connected" {
		t.Error("a revoked key connected")
	}
	lab.Run(t, `meshctl cluster deregister prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3
meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3`)
	lab.Eventually(t, 60*time.Second, connections, allConnected)
	lab.Run(t, `meshctl check --mgmt-context mgmt`)
}

// Test12PageOpensTheUI is the page's "Observability": the command as it stands, and what a browser asks for first.
func Test12PageOpensTheUI(t *testing.T) {
	out := lab.Run(t, `
kubectl --context mgmt -n gloo-mesh port-forward svc/gloo-mesh-ui 8090:8090 >forward.log 2>&1 &
trap "kill $!" EXIT
for _ in $(seq 100); do curl -sf http://localhost:8090/ >index.html && break; sleep 0.2; done
grep -o '<title>.*</title>' index.html
curl -sf -o app.js "http://localhost:8090$(grep -o '/assets/[^"]*\.js' index.html)"; [ "$(wc -c <app.js)" -gt 100000 ] && echo loaded
curl -sf http://localhost:8090/api/v1/now | grep -o '"verdict":"[^"]*"'
curl -sf http://localhost:8090/api/v1/clusters | grep -o '"name":"prod-eu-west-3"'
curl -s -X DELETE -o /dev/null -w '%{http_code}\n' http://localhost:8090/api/v1/clusters/prod-eu-west-3
curl -s -H 'Host: evil.example' -o /dev/null -w '%{http_code}\n' http://localhost:8090/api/v1/clusters`)
	lines := strings.Split(out, "\n")
	if len(lines) != 6 || lines[0] != "<title>Ambit</title>" || lines[1] != "loaded" || !strings.Contains(lines[2], "clusters fresh") || lines[4] != "405" || lines[5] != "421" {
		t.Errorf("the UI answers\n%s", out)
	}
}
