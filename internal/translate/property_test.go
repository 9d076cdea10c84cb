package translate_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// number is how many cases to try: TRANSLATE_CASES, else def.
func number(t *testing.T, def int) uint64 {
	if v := os.Getenv("TRANSLATE_CASES"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		return uint64(n)
	}
	if testing.Short() {
		def /= 10
	}
	return uint64(def)
}

// first is where the seeds begin: TRANSLATE_SEED, else 1.
func first(t *testing.T) uint64 {
	if v := os.Getenv("TRANSLATE_SEED"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		return uint64(n)
	}
	return 1
}

// forAll tries a property on many snapshots, over a few goroutines, and prints the smallest one it fails on.
func forAll(t *testing.T, cases int, property func(*mesh.Snapshot) error) {
	const shards = 4
	from, n := first(t), number(t, cases)
	for shard := range uint64(shards) {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for seed := from + shard; seed < from+n; seed += shards {
				s := fromSeed(seed).snapshot()
				err := property(s)
				if err == nil {
					continue
				}
				small := shrink(s, func(s *mesh.Snapshot) bool { return property(s) != nil })
				t.Fatalf("seed %d (TRANSLATE_SEED=%d TRANSLATE_CASES=1): %v\n\nsmallest case: %v\n%s", seed, seed, err, property(small), show(small))
			}
		})
	}
}

// universe is all the calls that are tried on a snapshot.
type universe struct {
	clients  []conn // principal and source address
	requests []conn // method, path, header, remote address, JWT
}

func universeOf(s *mesh.Snapshot) universe {
	principals := map[string]bool{"": true, "elsewhere/ns/a/sa/alice": true}
	for i := range s.Clusters {
		inv := s.Clusters[i].Inventory
		if inv == nil || inv.Info.TrustDomain == "" {
			continue
		}
		td := string(inv.Info.TrustDomain)
		principals[td+"/ns/a/sa/carol"] = true
		for name, ns := range inv.Namespaces {
			for _, sa := range ns.ServiceAccounts {
				principals[td+"/ns/"+name+"/sa/"+sa.Name] = true
			}
			for _, g := range ns.Gateways {
				principals[td+"/ns/"+name+"/sa/"+g.Name] = true
			}
		}
	}
	raw, _ := json.Marshal(s.Policies)
	text := string(raw)
	ips := []string{"10.1.1.1"}
	if strings.Contains(text, "allowedIpBlocks") {
		ips = append(ips, "10.2.2.2", "192.168.0.7")
	}
	var u universe
	for _, p := range slices.Sorted(maps.Keys(principals)) {
		for _, ip := range ips {
			u.clients = append(u.clients, conn{principal: p, ip: ip})
		}
	}
	u.requests = []conn{{method: "GET", path: "/x", remoteIP: "10.1.1.1"}}
	if strings.Contains(text, "allowedPaths") || strings.Contains(text, "allowedMethods") {
		u.requests = append(u.requests, conn{method: "POST", path: "/x1", remoteIP: "10.1.1.1"}, conn{method: "PUT", path: "/y", remoteIP: "10.1.1.1"}, conn{method: "GET", path: "/abz", remoteIP: "10.1.1.1"})
	}
	if strings.Contains(text, "x-h") {
		for _, v := range []string{"v", "w", "u"} {
			u.requests = append(u.requests, conn{method: "GET", path: "/x", remoteIP: "10.1.1.1", headers: map[string]string{"x-h": v}})
		}
	}
	if strings.Contains(text, "allowedRemoteIpBlocks") {
		u.requests = append(u.requests, conn{method: "GET", path: "/x", remoteIP: "10.9.9.9"})
	}
	if strings.Contains(text, "equestPrincipals") {
		u.requests = append(u.requests, conn{method: "GET", path: "/x", remoteIP: "10.1.1.1", jwt: "iss/sub"}, conn{method: "GET", path: "/x", remoteIP: "10.1.1.1", jwt: "iss/other"})
	}
	return u
}

// podLabels are all label sets of the alphabet: Pods that may come to be are as real as those that are.
func podLabels() []map[string]string {
	var out []map[string]string
	for _, app := range []string{"", "x", "y"} {
		for _, ver := range []string{"", "1", "2"} {
			l := map[string]string{}
			if app != "" {
				l["app"] = app
			}
			if ver != "" {
				l["ver"] = ver
			}
			out = append(out, l)
		}
	}
	return out
}

// call is one call of the universe.
type call struct {
	at      place
	labels  map[string]string
	service string // reached through its waypoint; empty: straight
	port    mesh.ServicePort
	via     string
	conn    conn
}

func (c call) String() string {
	who := c.conn.principal
	if who == "" {
		who = "plain text"
	}
	to := fmt.Sprintf("Pod %v of %s/%s port %d", c.labels, c.at.cluster, c.at.ns, c.conn.port)
	if c.service != "" {
		to = fmt.Sprintf("Service %s port %d through waypoint %s, %s", c.service, c.port.Number, c.via, to)
	}
	return fmt.Sprintf("%s from %s to %s, request %s %s %v remote %s jwt %q", who, c.conn.ip, to, c.conn.method, c.conn.path, c.conn.headers, c.conn.remoteIP, c.conn.jwt)
}

// calls calls f with every call of the universe until it returns an error.
func calls(s *mesh.Snapshot, o *oracle, f func(call) error) error {
	u := universeOf(s)
	var err error
	o.each(func(at place, c *mesh.Cluster, ns *mesh.NamespaceInventory) {
		if err != nil {
			return
		}
		ports := map[int]bool{7: true}
		for _, svc := range ns.Services {
			for _, p := range svc.Ports {
				ports[int(p.Number)] = true
				if n, e := strconv.Atoi(target(p)); e == nil {
					ports[n] = true
				}
			}
		}
		for _, labels := range podLabels() {
			for _, client := range u.clients {
				for _, port := range slices.Sorted(maps.Keys(ports)) {
					cl := client
					cl.port = port
					if err = f(call{at: at, labels: labels, conn: cl}); err != nil {
						return
					}
				}
			}
		}
		for _, svc := range ns.Services {
			if via, _ := boundWaypoint(at, c, ns, svc.Name); via != "" && len(svc.Selector) > 0 {
				if err = throughWaypoint(u, at, svc, via, f); err != nil {
					return
				}
			}
		}
	})
	return err
}

func throughWaypoint(u universe, at place, svc mesh.Service, via string, f func(call) error) error {
	for _, port := range svc.Ports {
		if _, err := strconv.Atoi(target(port)); err != nil {
			continue
		}
		for _, labels := range podLabels() {
			if !contains(labels, svc.Selector) {
				continue
			}
			for _, client := range u.clients {
				if client.principal == "" {
					continue // ztunnels send to waypoints, and those have an identity
				}
				for _, request := range u.requests {
					request.principal, request.ip, request.port = client.principal, client.ip, int(port.Number)
					if err := f(call{at, labels, svc.Name, port, via, request}); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// planes are the data planes of all clusters.
func planes(s *mesh.Snapshot, r translate.Result, foreign bool) (map[mesh.ClusterName]*plane, error) {
	out := map[mesh.ClusterName]*plane{}
	for i := range s.Clusters {
		c := &s.Clusters[i]
		p, err := planeOf(c, r.Objects[c.Name], foreign)
		if err != nil {
			return nil, err
		}
		out[c.Name] = p
	}
	return out, nil
}

// answer is what a data plane does with a call.
func (p *plane) answer(s *mesh.Snapshot, c call) bounds {
	if c.service == "" {
		must, may := p.pod(c.at.ns, c.labels, c.conn)
		return bounds{must, may}
	}
	if !p.waypoint(c.at.ns, c.service, c.conn) {
		return bounds{}
	}
	// The Pod's ztunnel sees the waypoint.
	ns, sa, _ := strings.Cut(c.via, "/")
	n, _ := strconv.Atoi(target(c.port))
	hop := conn{principal: string(s.Cluster(c.at.cluster).Inventory.Info.TrustDomain) + "/ns/" + ns + "/sa/" + sa, ip: c.conn.ip, port: n}
	must, may := p.pod(c.at.ns, c.labels, hop)
	return bounds{must, may}
}

func (o *oracle) answer(c call) bounds {
	if c.service == "" {
		return o.podCall(c.at, c.labels, c.conn)
	}
	return o.serviceCall(c.at, c.service, c.port, c.labels, c.conn)
}

// TestAllowsExactly: the objects allow what the policies say, no more, and no less where the cluster can enforce it.
func TestAllowsExactly(t *testing.T) {
	forAll(t, 2000, func(s *mesh.Snapshot) error {
		r, err := translate.All(s)
		if err != nil {
			return err
		}
		ps, err := planes(s, r, false)
		if err != nil {
			return err
		}
		o := oracleOf(s)
		err = calls(s, o, func(c call) error {
			want, got := o.answer(c), ps[c.at.cluster].answer(s, c)
			switch {
			case got.may && !want.may:
				return fmt.Errorf("gets through, and may not: %s", c)
			case !got.must && want.must:
				return fmt.Errorf("does not get through, and should: %s", c)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, security(r))
		}
		return reported(o, r)
	})
}

// security lists the objects for a message.
func security(r translate.Result) string {
	var out strings.Builder
	for _, c := range slices.Sorted(maps.Keys(r.Objects)) {
		for _, ref := range r.Objects[c].Names() {
			if ref.Group == "security.istio.io" {
				var o struct{ Spec json.RawMessage }
				object, _ := r.Objects[c].Get(ref)
				if err := json.Unmarshal(object.Manifest, &o); err != nil {
					return err.Error()
				}
				fmt.Fprintf(&out, "%s: %s %s/%s %s\n", c, ref.Kind, ref.Namespace, ref.Name, o.Spec)
			}
		}
	}
	return out.String()
}

// reported: a policy is said to be in every cluster where it guards something, and unenforceable where it is.
func reported(o *oracle, r translate.Result) error {
	for _, c := range slices.Sorted(maps.Keys(o.told)) {
		for _, p := range slices.SortedFunc(maps.Keys(o.told[c]), mesh.Ref.Compare) {
			rep := r.Policies[p]
			i := slices.IndexFunc(rep.Clusters, func(cr mesh.PolicyClusterReport) bool { return cr.Cluster == c })
			if i < 0 {
				return fmt.Errorf("%s: guards something in %s, and its report does not name the cluster", p, c)
			}
			if o.unenforceable[c][p] && rep.Clusters[i].Unenforceable == "" {
				return fmt.Errorf("%s: can't be enforced in %s, and its report does not say so", p, c)
			}
			if len(rep.Clusters[i].Objects) == 0 && rep.Clusters[i].Unenforceable == "" {
				return fmt.Errorf("%s: guards something in %s without an object", p, c)
			}
			for _, ref := range rep.Clusters[i].Objects {
				if _, ok := r.Objects[c].Get(ref); !ok {
					return fmt.Errorf("%s: reports %s in %s, which is not there", p, ref, c)
				}
			}
		}
	}
	return nil
}

// TestDeterministic: the same snapshot gives the same Result, and is not touched.
func TestDeterministic(t *testing.T) {
	forAll(t, 300, func(s *mesh.Snapshot) error {
		before := clone(s)
		a, err := translate.All(s)
		if err != nil {
			return err
		}
		if diff := differ(before, clone(s)); diff != "" {
			return fmt.Errorf("the snapshot was changed:\n%s", diff)
		}
		b, err := translate.All(before)
		if err != nil {
			return err
		}
		if diff := differ(a, b); diff != "" {
			return fmt.Errorf("not deterministic:\n%s", diff)
		}
		return nil
	})
}
