// Package trust_test is the operators' page's "Rotate the root CA", on real istiods, with new connections between clusters all the while.
//
// The scenarios are numbered and run in order on one lab whose istiods begin with roots of their own. Certificates of workloads live for a minute, so that what takes
// half a day elsewhere takes half a minute here. `lab call --rate` makes a new HBONE connection each time, through the east-west gateway of the other cluster: two
// handshakes, judged by what each side's istiod has handed out.
package trust_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/test/e2e"
)

var lab *e2e.Lab

func TestMain(m *testing.M) {
	e2e.Main(m, &lab, "--clusters", "cluster-1,cluster-2,cluster-3", "--trust", "separate", "--secret-ttl", "1m")
}

const policy = `
kubectl --context mgmt apply -f - <<'EOF'
apiVersion: admin.gloo.solo.io/v2
kind: RootTrustPolicy
metadata:
  name: root-trust-policy
  namespace: gloo-mesh
spec:
  config:
    mgmtServerCa:
      generated: { ttlDays: 3650, rsaKeySizeBytes: 2048 }
    intermediateCertOptions: { ttlDays: 365, rsaKeySizeBytes: 2048 }
    autoRestartPods: true
  rotation: { fileLag: 5s }
EOF`

// stands is "PHASE STATE GENERATION-OF-THE-ACTIVE-ROOT".
const stands = `kubectl --context mgmt -n gloo-mesh get roottrustpolicy root-trust-policy -o jsonpath='{.status.phase} {.status.state} {.status.roots[?(@.role=="Active")].generation}'`

// says is what a person reads.
const says = `kubectl --context mgmt -n gloo-mesh get roottrustpolicy root-trust-policy -o jsonpath='{.status.phase} {.status.message}'`

// ask makes a RotationRequest, as `meshctl trust` does.
func ask(t *testing.T, action, more string) {
	t.Helper()
	lab.Run(t, fmt.Sprintf(`kubectl --context mgmt create -f - <<'EOF'
apiVersion: admin.gloo.solo.io/v2
kind: RotationRequest
metadata: { generateName: %s-, namespace: gloo-mesh }
spec: { policy: root-trust-policy, action: %s, reason: "%s"%s }
EOF`, strings.ToLower(action), action, t.Name(), more))
}

func until(t *testing.T, limit time.Duration, want string) {
	t.Helper()
	lab.Eventually(t, limit, stands, func(out string) bool { return out == want })
}

// result is what `lab call --rate -o json` says.
type result struct {
	Sent, Allowed, Denied, Failed, Skipped int
	Slips                                  []struct {
		After           float64
		Verdict, Reason string
	}
}

// load calls for a while, beside what else happens; the function returned waits for the end.
func load(t *testing.T, from, to string, rate int, while time.Duration) func() result {
	t.Helper()
	done := make(chan e2e.Result, 1)
	go func() {
		done <- lab.TryFor(t, while+time.Minute, fmt.Sprintf(`lab call %s %s --rate %d --for %s -o json --state "$PWD"`, from, to, rate, while))
	}()
	return func() result {
		t.Helper()
		r := <-done
		var out result
		if err := json.Unmarshal([]byte(r.Out), &out); err != nil {
			t.Fatalf("load: %v\n%s%s", err, r.Out, r.Err)
		}
		t.Logf("%s -> %s: %d new connections, %d allowed, %d denied, %d failed, %d not sent", from, to, out.Sent, out.Allowed, out.Denied, out.Failed, out.Skipped)
		return out
	}
}

// enough connections tell: a recipe that breaks trust loses one in twenty (Test09), while a slow machine makes fewer than it was asked for.
const enough = 1_000

// whole fails the test if a connection was lost, or if there were too few to tell.
func (r result) whole(t *testing.T) {
	t.Helper()
	if r.Denied+r.Failed > 0 || r.Allowed < enough {
		t.Errorf("%d allowed (want at least %d), %d denied, %d failed: %v", r.Allowed, enough, r.Denied, r.Failed, r.Slips)
	}
}

func Test01ClustersComeUnderOneRoot(t *testing.T) {
	if r := lab.Try(t, `lab call payments/cluster-1 billing/cluster-2 --state "$PWD"`); r.Code != 2 || !strings.Contains(r.Out, "unknown authority") {
		t.Errorf("before: exit %d\n%s%s", r.Code, r.Out, r.Err)
	}
	lab.Run(t, policy)
	until(t, 4*time.Minute, "Steady ACCEPTED 1")
	for _, c := range []string{"cluster-1", "cluster-2", "cluster-3"} {
		out := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get kubernetescluster `+c+` -o jsonpath='{.status.caStatus.owner} {.status.caStatus.generation} {.status.caStatus.intermediate.subject} {.status.caStatus.roots[*].generation}'`)
		if !strings.HasPrefix(out, "gloo-mesh 1 CN="+c) || !strings.HasSuffix(out, " 1") {
			t.Errorf("%s: %s", c, out)
		}
	}
	shown := `kubectl --context mgmt -n gloo-mesh get issuedcertificates -o jsonpath='{.items[*].spec.meshRef.cluster} {.items[*].status.state}'`
	lab.Eventually(t, time.Minute, shown, func(out string) bool { return out == "cluster-1 cluster-2 cluster-3 FINISHED FINISHED FINISHED" })
	for _, pair := range []string{"payments/cluster-1 billing/cluster-2", "payments/cluster-2 billing/cluster-3", "payments/cluster-3 billing/cluster-1"} {
		lab.Run(t, `lab call `+pair+` --state "$PWD"`)
	}
}

func Test02KeysStayWhereTheyAreMade(t *testing.T) {
	out := lab.Run(t, `
kubectl --context mgmt get secret,configmap -A -o jsonpath='{range .items[*]}{.data}{"\n"}{end}' >everything.txt
kubectl --context mgmt -n gloo-mesh logs deploy/gloo-mesh-mgmt-server >>everything.txt
for c in cluster-1 cluster-2 cluster-3; do
  key=$(kubectl --context $c -n istio-system get secret cacerts -o jsonpath='{.data.ca-key\.pem}')
  [ ${#key} -gt 500 ] || echo "$c has no key"
  ! grep -qF "${key:100:80}" everything.txt || echo "the key of $c is in the management cluster"
  ! grep -qF "$(echo "$key" | base64 -d | sed -n 3p)" everything.txt || echo "the key of $c is in the management cluster, or in its log"
done`)
	if out != "" {
		t.Error(out)
	}
}

func Test03ARotationBreaksNoHandshake(t *testing.T) {
	a := load(t, "payments/cluster-1", "billing/cluster-2", 120, 100*time.Second)
	b := load(t, "bookinfo/reviews/cluster-3", "billing/cluster-1", 30, 100*time.Second)
	began := time.Now()
	ask(t, "Rotate", "")
	until(t, 3*time.Minute, "Steady ACCEPTED 2")
	t.Logf("rotated in %s, with certificates that live for a minute", time.Since(began).Round(time.Second))
	a().whole(t)
	b().whole(t)
	out := lab.Run(t, `for c in cluster-1 cluster-2 cluster-3; do kubectl --context mgmt -n gloo-mesh get kubernetescluster $c -o jsonpath='{.status.caStatus.rotation} {.status.caStatus.generation} {.status.caStatus.roots[*].generation}{"\n"}'; done`)
	if out != strings.TrimSpace(strings.Repeat("Succeeded 2 2\n", 3)) {
		t.Errorf("caStatus:\n%s", out)
	}
	// The old keys are destroyed, the old root is trusted nowhere.
	slots := lab.Run(t, `kubectl --context cluster-1 -n istio-system get secret gloo-mesh-cacerts-keys -o jsonpath='{.data}' | grep -o '\.key' | wc -l`)
	roots := lab.Run(t, `for c in cluster-1 cluster-2 cluster-3; do kubectl --context $c -n bookinfo get configmap istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}' | grep -c BEGIN; done | sort -u`)
	if slots != "1" || roots != "1" {
		t.Errorf("%s keys are left in cluster-1, %s roots in ConfigMaps", slots, roots)
	}
}

func Test04KilledAtRandom(t *testing.T) {
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 120*time.Second)
	ask(t, "Rotate", "")
	end := time.Now().Add(70 * time.Second)
	for i := 0; time.Now().Before(end); i++ {
		victim := []string{
			`--context mgmt -n gloo-mesh delete pod -l app=gloo-mesh-mgmt-server`,
			`--context cluster-1 -n gloo-mesh delete pod -l app=gloo-mesh-agent`,
			`--context cluster-2 -n gloo-mesh delete pod -l app=gloo-mesh-agent`,
		}[i%3]
		lab.Run(t, `kubectl `+victim+` --grace-period=0 --force --wait=false >/dev/null 2>&1`)
		time.Sleep(7 * time.Second)
	}
	until(t, 3*time.Minute, "Steady ACCEPTED 3")
	a().whole(t)
}

func Test05RollbackWhileSwitching(t *testing.T) {
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 120*time.Second)
	b := load(t, "payments/cluster-2", "billing/cluster-3", 50, 120*time.Second)
	before := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get roottrustpolicy root-trust-policy -o jsonpath='{.status.roots[?(@.role=="Active")].fingerprint}'`)
	ask(t, "Rotate", "")
	lab.Eventually(t, 2*time.Minute, stands, func(out string) bool { return strings.HasPrefix(out, "Switching ") })
	ask(t, "Rollback", "")
	until(t, 3*time.Minute, "Steady ACCEPTED 3")
	a().whole(t)
	b().whole(t)
	if after := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get roottrustpolicy root-trust-policy -o jsonpath='{.status.roots[*].fingerprint}'`); after != before {
		t.Errorf("roots after the rollback: %s, want %s", after, before)
	}
}

func Test06AClusterThatDropsOutIsWaitedFor(t *testing.T) {
	a := load(t, "payments/cluster-1", "billing/cluster-2", 50, 110*time.Second)
	ask(t, "Rotate", "")
	lab.Eventually(t, time.Minute, stands, func(out string) bool { return strings.HasPrefix(out, "AddingRoot ") })
	lab.Run(t, `lab partition cluster-3 on --state "$PWD"`)
	defer lab.Run(t, `lab partition cluster-3 off --state "$PWD"`)
	lab.Eventually(t, time.Minute, `kubectl --context mgmt -n gloo-mesh get kubernetescluster cluster-3 -o jsonpath='{.status.connection}'`, func(out string) bool { return out == "Disconnected" })
	time.Sleep(20 * time.Second)
	if out := lab.Run(t, says); !strings.HasPrefix(out, "AddingRoot ") || !strings.Contains(out, "cluster-3") { // it waits, however long that takes
		t.Errorf("with a cluster away: %s", out)
	}
	lab.Run(t, `lab partition cluster-3 off --state "$PWD"`)
	until(t, 4*time.Minute, "Steady ACCEPTED 5")
	a().whole(t)
	lab.Run(t, `lab call payments/cluster-3 billing/cluster-1 --state "$PWD"`)

	lab.Run(t, `lab partition cluster-3 on --state "$PWD"`)
	lab.Eventually(t, time.Minute, `kubectl --context mgmt -n gloo-mesh get kubernetescluster cluster-3 -o jsonpath='{.status.connection}'`, func(out string) bool { return out == "Disconnected" })
	ask(t, "Rotate", "")
	lab.Eventually(t, time.Minute, says, func(out string) bool { // with one away, none begins
		return strings.HasPrefix(out, "Steady the rotation does not start") && strings.Contains(out, "cluster-3")
	})
}

// Test07ARevokedIntermediateIsOnEveryList: somebody has copied the cacerts of cluster-3. Its serial number is handed out by every istiod, it signs with another one, and nobody notices.
func Test07ARevokedIntermediateIsOnEveryList(t *testing.T) {
	until(t, 4*time.Minute, "Steady ACCEPTED 6") // what the scenario before has left
	serial := `kubectl --context mgmt -n gloo-mesh get kubernetescluster cluster-3 -o jsonpath='{.status.caStatus.intermediate.serial}'`
	stolen := lab.Run(t, serial)
	a := load(t, "payments/cluster-3", "billing/cluster-1", 40, 90*time.Second)
	began := time.Now()
	if out := lab.Run(t, `meshctl trust revoke cluster-3 --reason "INC-4711: stolen cacerts" --yes --mgmt-context mgmt`); stolen == "" || !strings.Contains(out, stolen) {
		t.Errorf("revoke does not say serial number %s:\n%s", stolen, out)
	}
	lists := `for c in cluster-1 cluster-2 cluster-3; do
  kubectl --context $c -n bookinfo get configmap istio-ca-crl -o jsonpath='{.data.ca-crl\.pem}' 2>/dev/null | openssl crl -noout -text 2>/dev/null | grep -A2 -i "serial number: 0*` + stolen + `" | grep -ci "revocation date" || true
done | paste -sd' '`
	lab.Eventually(t, 3*time.Minute, lists, func(out string) bool { return out == "1 1 1" })
	t.Logf("every istiod hands the list out after %s", time.Since(began).Round(time.Second))
	states := `kubectl --context mgmt -n gloo-mesh get kubernetesclusters -o jsonpath='{.items[*].status.caStatus.revocation.state}'`
	lab.Eventually(t, 2*time.Minute, states, func(out string) bool { return out == "InForce InForce InForce" })
	until(t, 2*time.Minute, "Steady ACCEPTED 6")
	if now := lab.Run(t, serial); now == "" || now == stolen {
		t.Errorf("cluster-3 signs with %q, which is revoked", now)
	}
	a().whole(t)
}

// naive is the recipe of the page's manual column: everybody gets the new root and an intermediate under it at once.
const naive = `
openssl req -x509 -newkey rsa:2048 -nodes -keyout root-key.pem -out root-cert.pem -days 365 -subj "/O=naive/CN=Root CA" 2>/dev/null
for c in cluster-1 cluster-2 cluster-3; do
  openssl req -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca.csr -subj "/O=naive/CN=Intermediate $c" 2>/dev/null
  openssl x509 -req -in ca.csr -CA root-cert.pem -CAkey root-key.pem -CAcreateserial -days 365 -out ca-cert.pem -extfile <(printf 'basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign') 2>/dev/null
  cat ca-cert.pem root-cert.pem >cert-chain.pem
  kubectl --context $c -n istio-system create secret generic cacerts --from-file=ca-cert.pem --from-file=ca-key.pem --from-file=root-cert.pem --from-file=cert-chain.pem --dry-run=client -o yaml |
    kubectl --context $c -n istio-system replace -f - >/dev/null
  kubectl --context $c -n istio-system rollout restart deploy/istiod-gloo >/dev/null
done`

// Test08FromAGeneratedRootToVault is the page's "With Vault as the upstream root of trust", word for word but for the server's name; and then with the path that Vault has.
func Test08FromAGeneratedRootToVault(t *testing.T) {
	lab.Eventually(t, 4*time.Minute, stands, func(out string) bool { return strings.HasPrefix(out, "Steady ACCEPTED ") }) // what the scenario before has left
	startVault(t)
	a := load(t, "payments/cluster-1", "billing/cluster-2", 60, 75*time.Second)
	lab.Run(t, inVault("pki_root/sign/intermediate"))
	lab.Eventually(t, time.Minute, says, func(out string) bool {
		return strings.Contains(out, "pki_root/sign/intermediate names a role, and roles sign leaves only: use pki_root/root/sign-intermediate")
	})
	began := time.Now()
	lab.Run(t, inVault("pki_root/root/sign-intermediate"))
	issuer := `kubectl --context mgmt -n gloo-mesh get roottrustpolicy root-trust-policy -o jsonpath='{.status.phase} {.status.state} {.status.roots[*].issuer}'`
	lab.Eventually(t, 3*time.Minute, issuer, func(out string) bool {
		return out == "Steady ACCEPTED Vault http://vault.vault.svc:8200 pki_root pki_root/root/sign-intermediate"
	})
	t.Logf("under Vault's root after %s", time.Since(began).Round(time.Second))
	a().whole(t)
	for _, c := range []string{"cluster-1", "cluster-2", "cluster-3"} {
		out := lab.Run(t, `kubectl --context mgmt -n gloo-mesh get kubernetescluster `+c+` -o jsonpath='{.status.caStatus.rotation} {.status.caStatus.intermediate.issuer}'`)
		if out != "Succeeded CN=Root in Vault" {
			t.Errorf("%s: %s", c, out)
		}
	}
}

// Test09TheManualRecipeLosesConnections shows that the measurement above can see a broken handshake. It is the last: what it leaves is of no use.
func Test09TheManualRecipeLosesConnections(t *testing.T) {
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh delete roottrustpolicy root-trust-policy`)
	a := load(t, "payments/cluster-1", "billing/cluster-2", 100, 60*time.Second)
	lab.Run(t, naive)
	if r := a(); r.Failed == 0 {
		t.Errorf("a root swapped at once lost nothing in %d connections: the load can't see what it is for", r.Sent)
	} else {
		t.Logf("%d of %d connections lost, e.g. %s", r.Failed, r.Sent, r.Slips[0].Reason)
	}
}
