// Package segment_test is the operators' page's "Federate a new Service on Day 90", on real istiods: one apply makes a Service global, a name answers in every cluster with the endpoints of all,
// and goes when the Segment goes.
//
// The scenarios are numbered and run in order on one lab: each begins with what the one before left.
package segment_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/test/e2e"
)

var lab *e2e.Lab

func TestMain(m *testing.M) { e2e.Main(m, &lab, "--clusters", "3") } // cluster-1, cluster-2, and prod-eu-west-3, which is not registered

const (
	soon   = time.Minute // a safety net: what is waited for takes a second or two
	joiner = "prod-eu-west-3"
)

// page is the operators' page's YAML.
const page = `kubectl --context mgmt apply -f - <<'EOF'
apiVersion: networking.solo.io/v2alpha1
kind: Segment
metadata:
  name: productpage-global
  namespace: gloo-mesh
spec:
  # Workloads anywhere in the mesh dial this hostname; istiod programs the
  # synthetic VIP (240.240.0.x/16) with endpoints from every cluster that
  # has a matching Service.
  hosts:
  - productpage.bookinfo.mesh.internal
  selector:
    namespace: bookinfo
    labels: { app: productpage }
  ports:
  - number: 9080
    protocol: HTTP
EOF`

// dial calls the global name from a workload of a cluster, and says which cluster answered; empty: none did.
func dial(t *testing.T, from string) string {
	t.Helper()
	r := lab.Try(t, fmt.Sprintf(`kubectl --context %s get --raw '/api/v1/namespaces/payments/services/payments:8080/proxy/call?url=http://productpage.bookinfo.mesh.internal:9080/'`, from))
	var out struct {
		Status int
		Body   struct{ Cluster string }
	}
	if r.Code != 0 || json.Unmarshal([]byte(r.Out), &out) != nil || out.Status != 200 {
		return ""
	}
	return out.Body.Cluster
}

// reaches waits until calls from a cluster are answered by all these clusters and by no other.
func reaches(t *testing.T, from string, want ...string) {
	t.Helper()
	var last []string
	for end := time.Now().Add(soon); time.Now().Before(end); {
		last = nil
		for range 60 { // a chance of 2^-60 that one of two is missed
			c := dial(t, from)
			if !slices.Contains(last, c) {
				last = append(last, c)
			}
			if !slices.Contains(want, c) || len(last) == len(want) && len(want) > 1 {
				break
			}
			if len(want) == 1 && len(last) == 1 {
				last = append(last[:0], c)
			}
		}
		if slices.Sort(last); slices.Equal(last, want) {
			return
		}
	}
	t.Fatalf("%s is answered by %v, want %v", from, last, want)
}

// status waits for an answer of the page's command.
func status(t *testing.T, ok func(clusters []cluster) bool) {
	t.Helper()
	lab.Eventually(t, soon, `kubectl --context mgmt -n gloo-mesh get segment productpage-global \
  -o jsonpath='{.status.clusters}'`, func(out string) bool {
		var c []cluster
		return json.Unmarshal([]byte(out), &c) == nil && ok(c)
	})
}

type cluster struct {
	Name                 string
	Services             []string
	Labelled, Programmed bool
	Endpoints            int
	VIP, Message         string
}

func programmed(names ...string) func([]cluster) bool {
	return func(all []cluster) bool {
		var got []string
		for _, c := range all {
			if c.Labelled && c.Programmed && c.VIP != "" && c.Endpoints > 0 && c.Message == "" {
				got = append(got, c.Name)
			}
		}
		return slices.Equal(got, names) && len(all) == len(names)
	}
}

func Test01OneApplyMakesItGlobalEverywhere(t *testing.T) {
	for _, c := range []string{"cluster-1", "cluster-2"} {
		if by := dial(t, c); by != "" {
			t.Fatalf("before the Segment, %s is answered by %s", c, by)
		}
	}
	began := time.Now()
	lab.Run(t, page)
	for _, c := range []string{"cluster-1", "cluster-2"} {
		for dial(t, c) == "" {
			if time.Since(began) > soon {
				t.Fatalf("%s is not answered", c)
			}
		}
	}
	t.Logf("from kubectl apply to the first answered call in the last cluster: %s, kubectl's own time included", time.Since(began).Round(time.Millisecond))
	status(t, programmed("cluster-1", "cluster-2"))
	reaches(t, "cluster-1", "cluster-1", "cluster-2")
	reaches(t, "cluster-2", "cluster-1", "cluster-2")
}

func Test02LocalPodsDieAndCallsGoOnElsewhere(t *testing.T) {
	lab.Run(t, `kubectl --context cluster-1 -n bookinfo scale --replicas 0 $(kubectl --context cluster-1 -n bookinfo get deploy -o name | grep productpage)`)
	reaches(t, "cluster-1", "cluster-2")
	reaches(t, "cluster-2", "cluster-2")
	status(t, programmed("cluster-1", "cluster-2"))
	lab.Run(t, `kubectl --context cluster-1 -n bookinfo scale --replicas 1 $(kubectl --context cluster-1 -n bookinfo get deploy -o name | grep productpage)`)
	reaches(t, "cluster-1", "cluster-1", "cluster-2")
}

// A cluster that has the caller and not the Service.
func Test03AnotherClusterJoinsAndSharesInIt(t *testing.T) {
	lab.Run(t, `kubectl --context `+joiner+` -n bookinfo delete svc productpage
kubectl --context `+joiner+` -n bookinfo delete $(kubectl --context `+joiner+` -n bookinfo get deploy -o name | grep productpage)
meshctl cluster register `+joiner+` --mgmt-context mgmt --remote-context `+joiner)
	status(t, programmed("cluster-1", "cluster-2", joiner))
	reaches(t, joiner, "cluster-1", "cluster-2")
	reaches(t, "cluster-1", "cluster-1", "cluster-2")
	if out := lab.Run(t, `kubectl --context `+joiner+` -n bookinfo get svc productpage -o jsonpath='{.spec.selector}{.metadata.labels.gloo\.solo\.io/join-stub}'`); out != "true" {
		t.Errorf("the stub has selector and label %s", out)
	}
}

// The hub is killed between the deletion and what it leads to.
func Test04DeletedItIsGoneAndNothingIsLeft(t *testing.T) {
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh delete segment productpage-global --wait=false
kubectl --context mgmt -n gloo-mesh delete pod -l app=gloo-mesh-mgmt-server --grace-period=0 --force 2>/dev/null`)
	for _, c := range []string{"cluster-1", "cluster-2", joiner} {
		lab.Eventually(t, soon, fmt.Sprintf(`kubectl --context %[1]s get svc -A -l 'istio.io/global=true' -o jsonpath='{.items[?(@.metadata.namespace=="bookinfo")].metadata.name}'
kubectl --context %[1]s -n kube-system get cm coredns-custom -o jsonpath='{.data}'
kubectl --context %[1]s -n bookinfo get svc -l gloo.solo.io/join-stub -o name`, c), func(out string) bool { return out == "" })
		for end := time.Now().Add(soon); dial(t, c) != ""; {
			if time.Now().After(end) {
				t.Fatalf("%s still has the name", c)
			}
		}
	}
	if out := lab.Run(t, `kubectl --context cluster-1 -n bookinfo get svc productpage -o jsonpath='{.metadata.labels}'`); out != `{"app":"productpage","service":"productpage"}` {
		t.Errorf("labels left: %s", out)
	}
}

// A cluster that leaves takes nothing of it along.
func Test05LeavingNothingIsLeft(t *testing.T) {
	lab.Eventually(t, soon, page, func(string) bool { return true })
	status(t, programmed("cluster-1", "cluster-2", joiner))
	lab.Run(t, `meshctl cluster deregister `+joiner+` --mgmt-context mgmt --remote-context `+joiner)
	status(t, programmed("cluster-1", "cluster-2"))
	lab.Eventually(t, soon, `kubectl --context `+joiner+` -n bookinfo get svc -l gloo.solo.io/join-stub -o name
kubectl --context `+joiner+` -n kube-system get cm coredns-custom -o jsonpath='{.data}'`, func(out string) bool { return out == "" })
}

func Test06ConflictsAndEmptySelectionsAreNamed(t *testing.T) {
	lab.Run(t, strings.ReplaceAll(page, "productpage-global", "second"))
	said := func(name, kind, words string) {
		t.Helper()
		lab.Eventually(t, soon, fmt.Sprintf(`kubectl --context mgmt -n gloo-mesh get segment %s -o jsonpath='{.status.conditions[?(@.type=="%s")].reason}: {.status.conditions[?(@.type=="%s")].message}'`, name, kind, kind), func(out string) bool {
			return strings.Contains(out, words)
		})
	}
	said("second", "Accepted", "HostConflict: host productpage.bookinfo.mesh.internal belongs to Segment gloo-mesh/productpage-global")
	lab.Run(t, strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(page, "productpage-global", "nothing"), "app: productpage", "app: nobody"), "- productpage.book", "- nobody.book"))
	said("nothing", "Resolved", "NoServices: no Service of any cluster is selected: namespace bookinfo, labels app=nobody")
	lab.Run(t, `kubectl --context mgmt -n gloo-mesh delete segment second nothing`)
	status(t, programmed("cluster-1", "cluster-2"))
}
