// Package tokens_test is the operators' page's "Rotate the remote-secret tokens", on real istiods: 4 clusters, 12 pairs, tokens that are replaced every 30 s, with calls between clusters
// all the while, and everything that holds a part of it killed in between.
//
// The scenarios are numbered and run in order on one lab. AMBIT_LONG=1 makes the rotations of Test02 last for ten minutes.
package tokens_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ambitmesh.dev/ambit/test/e2e"
)

var lab *e2e.Lab

var clusters = []string{"cluster-1", "cluster-2", "cluster-3", "cluster-4"}

func TestMain(m *testing.M) {
	e2e.Main(m, &lab, "--clusters", strings.Join(clusters, ","), "--trust", "shared")
}

// pair is one row of `meshctl tokens status -o json`.
type pair struct {
	Reader, Target, State, Message string
	Issued, Expires                time.Time
	Live                           int
	Generation, Newest             int64
	Problem                        bool
}

func (p pair) name() string { return p.Reader + " reads " + p.Target }

func pairs(t *testing.T) []pair {
	t.Helper()
	r := lab.Try(t, `meshctl tokens status --mgmt-context mgmt -o json`)
	var out struct{ Pairs []pair }
	if err := json.Unmarshal([]byte(r.Out), &out); err != nil {
		return nil // the server is away at present
	}
	return out.Pairs
}

// settled waits until there are n pairs, each with one token, in use.
func settled(t *testing.T, limit time.Duration, n int) {
	t.Helper()
	var last []pair
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		last = pairs(t)
		if len(last) == n && !slices.ContainsFunc(last, func(p pair) bool { return p.State != "Synced" || p.Live != 1 || p.Problem }) {
			return
		}
	}
	t.Fatalf("not settled: %+v", last)
}

// tokenOf is the token in a remote secret, empty if there is none.
func tokenOf(t *testing.T, reader, target string) string {
	t.Helper()
	return lab.Run(t, fmt.Sprintf(`kubectl --context %s -n istio-system get secret istio-remote-secret-%s --ignore-not-found -o jsonpath='{.data.%s}' | base64 -d | sed -n 's/.*token: "\(.*\)"/\1/p'`, reader, target, target))
}

// as runs kubectl with a token and nothing else that the API server could know somebody by.
func as(t *testing.T, cluster, token, args string) e2e.Result {
	t.Helper()
	return lab.Try(t, fmt.Sprintf(`
kubectl config view --raw --minify --context %[1]s -o jsonpath='{.clusters[0].cluster.certificate-authority-data}' | base64 -d >%[1]s-ca.pem
kubectl --kubeconfig /dev/null --server "$(kubectl config view --minify --context %[1]s -o jsonpath='{.clusters[0].cluster.server}')" --certificate-authority %[1]s-ca.pem --token %[2]s %[3]s`, cluster, token, args))
}

// result is what `lab call --rate -o json` says.
type result struct {
	Sent, Allowed, Denied, Failed, Skipped int
	Slips                                  []struct{ Verdict, Reason string }
}

// load calls for a while, beside what else happens; the function returned waits for the end.
func load(t *testing.T, from, to string, rate int, while time.Duration) func() {
	t.Helper()
	done := make(chan e2e.Result, 1)
	go func() {
		done <- lab.TryFor(t, while+time.Minute, fmt.Sprintf(`lab call %s %s --rate %d --for %s -o json --state "$PWD"`, from, to, rate, while))
	}()
	return func() {
		t.Helper()
		r := <-done
		var out result
		if err := json.Unmarshal([]byte(r.Out), &out); err != nil {
			t.Errorf("load: %v\n%s%s", err, r.Out, r.Err)
			return
		}
		t.Logf("%s -> %s: %d calls, %d allowed, %d denied, %d failed", from, to, out.Sent, out.Allowed, out.Denied, out.Failed)
		if out.Denied+out.Failed > 0 || out.Allowed < 100 {
			t.Errorf("%s -> %s: %+v", from, to, out)
		}
	}
}

func Test01EveryPairHasAToken(t *testing.T) {
	settled(t, 2*time.Minute, 12)
	for _, reader := range clusters {
		for _, target := range clusters {
			if reader == target {
				continue
			}
			token := tokenOf(t, reader, target)
			if r := as(t, target, token, "auth whoami -o jsonpath={.status.userInfo.username}"); !strings.HasPrefix(r.Out, "system:serviceaccount:gloo-mesh-tokens:istio-reader") {
				t.Errorf("%s reads %s as %s%s", reader, target, r.Out, r.Err)
			}
		}
	}
	out := lab.Run(t, `kubectl --context cluster-1 -n istio-system get secret istio-remote-secret-cluster-2 -o jsonpath='{.metadata.labels.istio/multiCluster} {.metadata.annotations.networking\.istio\.io/cluster}'`)
	if out != "true cluster-2" {
		t.Errorf("remote secret: %s", out)
	}
}

// A leaked token reads what istiod reads, and nothing else. The account that istiods get which can do without is not let near any Secret.
func Test02ALeakedToken(t *testing.T) {
	token := tokenOf(t, "cluster-1", "cluster-2")
	for _, may := range []string{"list pods", "list services", "list endpointslices.discovery.k8s.io", "list gateways.gateway.networking.k8s.io"} {
		if r := as(t, "cluster-2", token, "auth can-i "+may+" -A"); r.Code != 0 {
			t.Errorf("it may not %s: %s%s", may, r.Out, r.Err)
		}
	}
	for _, mayNot := range []string{"get secrets", "create pods", "create serviceaccounts/token", "delete services", "list configmaps", "create secrets", "impersonate users", "list serviceaccounts", "update nodes"} {
		if r := as(t, "cluster-2", token, "auth can-i "+mayNot+" -A"); r.Code == 0 || !strings.HasPrefix(r.Out, "no") {
			t.Errorf("it may %s: %s%s", mayNot, r.Out, r.Err)
		}
	}
	least := lab.Run(t, `kubectl --context cluster-2 -n gloo-mesh-tokens create secret generic leaked >/dev/null
kubectl --context cluster-2 -n gloo-mesh-tokens create token istio-reader --bound-object-kind Secret --bound-object-name leaked`)
	for _, ns := range []string{"-A", "-n istio-system", "-n gloo-mesh", "-n gloo-mesh-tokens", "-n kube-system"} {
		if r := as(t, "cluster-2", least, "get secrets "+ns); r.Code == 0 || !strings.Contains(r.Err, "forbidden") {
			t.Errorf("the least reader lists Secrets %s: %s%s", ns, r.Out, r.Err)
		}
	}
	if r := as(t, "cluster-2", least, "-n istio-system get secret cacerts"); r.Code == 0 || !strings.Contains(r.Err, "forbidden") {
		t.Errorf("the least reader reads cacerts: %s%s", r.Out, r.Err)
	}
	// The object gone, it is dead: at once, or after the 10 s for which an API server remembers what it has accepted.
	began := time.Now()
	lab.Run(t, `kubectl --context cluster-2 -n gloo-mesh-tokens delete secret leaked`)
	for as(t, "cluster-2", least, "auth whoami").Code == 0 {
		if time.Since(began) > 30*time.Second {
			t.Fatal("a token outlives its object")
		}
	}
	t.Logf("a token that was used just before is refused %s after its object is gone", time.Since(began).Round(100*time.Millisecond))
}

// whole is what endpoints says when nothing is missing.
const whole = "4 4"

// debounce is longer than istiod waits for changes to settle before it pushes (PILOT_DEBOUNCE_AFTER, 100 ms). When it swaps a cluster, its own view lacks that cluster's addresses for some
// milliseconds (about one look in a thousand sees that); what is back before the push is no gap for the data plane.
const debounce = 250 * time.Millisecond

// watchEndpoints looks at what every istiod is to tell its data plane of the other clusters, and reports what was missing. The function returned ends it.
func watchEndpoints(t *testing.T) func() {
	t.Helper()
	var mu sync.Mutex
	gaps, looks, moments := []string{}, map[string]int{}, 0
	stop, done := make(chan struct{}), sync.WaitGroup{}
	for _, c := range clusters {
		done.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(500 * time.Millisecond):
				}
				n, first := endpoints(t, c), true
				if n != "" && n != whole {
					time.Sleep(debounce)
					n, first = endpoints(t, c), false
				}
				mu.Lock()
				if !first {
					moments++
				}
				if n != "" {
					if looks[c]++; n != whole {
						gaps = append(gaps, fmt.Sprintf("%s knew endpoints and gateways of %s networks, not of %s, at %s", c, n, whole, time.Now().Format(time.TimeOnly)))
					}
				}
				mu.Unlock()
			}
		})
	}
	return func() {
		close(stop)
		done.Wait()
		t.Logf("looks at endpoints: %v, missing for a moment: %d, gaps: %d", looks, moments, len(gaps))
		for _, c := range clusters {
			if looks[c] < 10 {
				t.Errorf("%s was looked at %d times only", c, looks[c])
			}
		}
		for _, g := range gaps {
			t.Error(g)
		}
	}
}

// endpoints counts the networks that an istiod tells its data plane of for a global Service, and those it knows a gateway to: "4 4"; empty: it could not be asked. The debug port is asked
// through a port-forward, since istiod answers its own loopback.
func endpoints(t *testing.T, cluster string) string {
	t.Helper()
	port := strings.TrimSpace(readFile(t, cluster+".port"))
	var ambient struct {
		Services []struct {
			Name, Namespace string
			Addresses       []struct{ Network string }
		}
	}
	var gateways []struct{ Network string }
	if !get(port, "/debug/ambientz", &ambient) || !get(port, "/debug/networkz", &gateways) {
		return ""
	}
	of, to := map[string]bool{}, map[string]bool{}
	for _, s := range ambient.Services {
		for _, a := range s.Addresses {
			if s.Name == "billing" && s.Namespace == "billing" {
				of[a.Network] = true
			}
		}
	}
	for _, g := range gateways {
		to[g.Network] = true
	}
	return fmt.Sprint(len(of), len(to))
}

// get asks a forwarded port.
func get(port, path string, into any) bool {
	client := &http.Client{Timeout: 3 * time.Second}
	resp, err := client.Get("http://127.0.0.1:" + port + path)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK && json.NewDecoder(resp.Body).Decode(into) == nil
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(lab.State, name))
	if err != nil {
		t.Error(err)
	}
	return string(raw)
}

// forward opens a port to each istiod's debug port.
func forward(t *testing.T) {
	t.Helper()
	for _, c := range clusters {
		lab.Run(t, fmt.Sprintf(`
(kubectl --context %[1]s -n istio-system port-forward deploy/istiod-gloo :8080 >%[1]s.forward 2>&1 & echo $! >%[1]s.pid)
for i in $(seq 100); do grep -q Forwarding %[1]s.forward && break; sleep 0.1; done
sed -n 's/.*127.0.0.1:\([0-9]*\) .*/\1/p' %[1]s.forward | head -1 >%[1]s.port`, c))
		t.Cleanup(func() { lab.Try(t, fmt.Sprintf(`kill $(cat %s.pid)`, c)) })
	}
}

// oldTokens watches every pair: 5 s after a token's successor is in use, it must be dead. The function returned ends it.
func oldTokens(t *testing.T) func() {
	t.Helper()
	type old struct {
		pair  pair
		token string
		since time.Time
	}
	stop, done := make(chan struct{}), make(chan struct{})
	rotations, alive, most := 0, []string{}, 0
	go func() {
		defer close(done)
		current, waiting := map[string]old{}, []old{}
		for {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
			for _, p := range pairs(t) {
				most = max(most, p.Live)
				was, known := current[p.name()]
				if p.State != "Synced" || known && was.pair.Generation == p.Generation {
					continue
				}
				token := tokenOf(t, p.Reader, p.Target)
				if known && token != was.token {
					rotations++
					waiting = append(waiting, old{was.pair, was.token, time.Now()})
				}
				current[p.name()] = old{p, token, time.Now()}
			}
			waiting = slices.DeleteFunc(waiting, func(o old) bool {
				if time.Since(o.since) < 5*time.Second {
					return false
				}
				if r := as(t, o.pair.Target, o.token, "auth whoami"); r.Code == 0 {
					alive = append(alive, fmt.Sprintf("%s: the token of generation %d is taken %s after its successor was in use", o.pair.name(), o.pair.Generation, time.Since(o.since).Round(time.Second)))
				}
				return true
			})
		}
	}()
	return func() {
		close(stop)
		<-done
		t.Logf("%d rotations seen, at most %d tokens of a pair at a time, %d old ones alive", rotations, most, len(alive))
		if rotations < 24 {
			t.Errorf("%d rotations: too few to tell", rotations)
		}
		for _, a := range alive {
			t.Error(a)
		}
	}
}

func settings(t *testing.T, more string) {
	t.Helper()
	lab.Run(t, `meshctl install --kubecontext mgmt --set glooMgmtServer.serviceType=LoadBalancer `+more)
}

const often = `--set glooMgmtServer.remoteSecrets.tokenTTL=10m --set glooMgmtServer.remoteSecrets.rotateEvery=30s`

func Test03RotationsUnderLoad(t *testing.T) {
	while := 100 * time.Second
	if os.Getenv("AMBIT_LONG") != "" {
		while = 10 * time.Minute
	}
	for _, c := range clusters {
		lab.Run(t, `kubectl --context `+c+` -n billing label service billing istio.io/global=true --overwrite`)
	}
	forward(t)
	for _, c := range clusters {
		for end := time.Now().Add(time.Minute); endpoints(t, c) != whole; time.Sleep(500 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s knows endpoints and gateways of %q networks", c, endpoints(t, c))
			}
		}
	}
	settings(t, often)
	settled(t, time.Minute, 12)
	ends := []func(){watchEndpoints(t), oldTokens(t)}
	for i, c := range clusters {
		ends = append(ends, load(t, "payments/"+c, "billing/"+clusters[(i+1)%4], 20, while), load(t, "payments/"+c, "billing/"+clusters[(i+2)%4], 10, while))
	}
	time.Sleep(while)
	for _, end := range ends {
		end()
	}
	// Nothing of it is anywhere but in the remote secrets.
	out := lab.Run(t, `
kubectl --context mgmt get secret,configmap -A -o json >everything.txt
kubectl --context mgmt -n gloo-mesh get kubernetescluster -o yaml >>everything.txt
kubectl --context mgmt -n gloo-mesh logs deploy/gloo-mesh-mgmt-server >>everything.txt
for c in cluster-1 cluster-2 cluster-3 cluster-4; do kubectl --context $c -n gloo-mesh logs deploy/gloo-mesh-agent >>everything.txt; done
for r in cluster-1 cluster-2 cluster-3 cluster-4; do
  for t in cluster-1 cluster-2 cluster-3 cluster-4; do
    [ $r != $t ] || continue
    token=$(kubectl --context $r -n istio-system get secret istio-remote-secret-$t -o jsonpath="{.data.$t}" | base64 -d | sed -n 's/.*token: "\(.*\)"/\1/p')
    [ ${#token} -gt 500 ] || echo "$r has no token of $t"
    ! grep -qF "${token:300:60}" everything.txt || echo "the token by which $r reads $t is on the management cluster or in a log"
    ! grep -qF "$(printf %s "$token" | base64 -w0 | cut -c 301-360)" everything.txt || echo "the token by which $r reads $t is on the management cluster"
  done
done`)
	if out != "" {
		t.Error(out)
	}
}

// killHub ends the management server without a word.
const killHub = `kubectl --context mgmt -n gloo-mesh delete pod -l app=gloo-mesh-mgmt-server --grace-period=0 --force --wait=false >/dev/null 2>&1`

// orphans lists remote secrets for, and tokens of, clusters that are none.
func orphans(t *testing.T, members ...string) []string {
	t.Helper()
	var out []string
	for _, c := range clusters {
		found := strings.FieldsSeq(lab.Run(t, `kubectl --context `+c+` -n istio-system get secret -l istio/multiCluster=true -o jsonpath='{.items[*].metadata.name}'; echo
kubectl --context `+c+` -n gloo-mesh-tokens get secret -o jsonpath='{.items[*].metadata.annotations.admin\.gloo\.solo\.io/token-peer}' --ignore-not-found 2>/dev/null || true`))
		for f := range found {
			if peer := strings.TrimPrefix(f, "istio-remote-secret-"); !slices.Contains(members, c) || !slices.Contains(members, peer) {
				out = append(out, c+": "+f)
			}
		}
	}
	return out
}

func Test04TheHubIsKilledInARotation(t *testing.T) {
	a := load(t, "payments/cluster-1", "billing/cluster-2", 20, 45*time.Second)
	for range 4 {
		lab.Run(t, killHub)
		time.Sleep(9 * time.Second)
	}
	settings(t, "--set glooMgmtServer.remoteSecrets.tokenTTL=24h --set glooMgmtServer.remoteSecrets.rotateEvery=")
	settled(t, 2*time.Minute, 12)
	a()
	if o := orphans(t, clusters...); len(o) > 0 {
		t.Error(o)
	}
}

func Test05TheHubIsKilledWhileAClusterLeaves(t *testing.T) {
	token, other := tokenOf(t, "cluster-1", "cluster-4"), tokenOf(t, "cluster-4", "cluster-1")
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh delete kubernetescluster cluster-4 --wait=false; `+killHub)
	settled(t, 2*time.Minute, 6)
	rest := clusters[:3]
	for end := time.Now().Add(time.Minute); len(orphans(t, rest...)) > 0; time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("left over: ", orphans(t, rest...))
		}
	}
	for c, old := range map[string]string{"cluster-4": token, "cluster-1": other} {
		for end := time.Now().Add(30 * time.Second); as(t, c, old, "auth whoami").Code == 0; time.Sleep(500 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%s takes a token of a cluster that left", c)
				break
			}
		}
	}
}

func Test06TheHubIsKilledWhileAClusterJoins(t *testing.T) {
	lab.Run(t, `meshctl cluster deregister cluster-4 --mgmt-context mgmt --remote-context cluster-4 >/dev/null 2>&1 || true`)
	joining := make(chan e2e.Result, 1)
	go func() {
		joining <- lab.TryFor(t, 3*time.Minute, `meshctl cluster register cluster-4 --mgmt-context mgmt --remote-context cluster-4 --relay-server-address "$(kubectl --context mgmt -n gloo-mesh get svc gloo-mesh-mgmt-server -o jsonpath='{.status.loadBalancer.ingress[0].ip}'):9900" --set glooAgent.remoteSecrets.readSecrets=true`)
	}()
	time.Sleep(2 * time.Second)
	lab.Run(t, killHub)
	r := <-joining
	if r.Code != 0 { // it says how to go on: the same command again
		lab.Run(t, `meshctl cluster register cluster-4 --mgmt-context mgmt --remote-context cluster-4 --set glooAgent.remoteSecrets.readSecrets=true`)
	}
	settled(t, 2*time.Minute, 12)
	if o := orphans(t, clusters...); len(o) > 0 {
		t.Error(o)
	}
}
