package translate_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// TestExplainAgrees: what Explain answers is what the data plane does, wherever all Pods that a Service can have are alike.
func TestExplainAgrees(t *testing.T) {
	forAll(t, 600, func(s *mesh.Snapshot) error {
		// Questions hold no addresses, headers or JWTs.
		raw, err := json.Marshal(s.Policies)
		if err != nil {
			return err
		}
		for _, word := range []string{"IpBlocks", "x-h", "equestPrincipals"} {
			if strings.Contains(string(raw), word) {
				return nil
			}
		}
		d := fromSeed(uint64(len(raw)))
		for i := range s.Clusters {
			if inv := s.Clusters[i].Inventory; inv != nil && d.one(2) {
				for name, ns := range inv.Namespaces {
					if ns.Foreign == nil && name != "istio-system" {
						ns.Foreign = d.foreign(name)
					}
				}
			}
		}
		r, err := translate.All(s)
		if err != nil {
			return err
		}
		ps, err := planes(s, r, true)
		if err != nil {
			return err
		}
		x := translate.NewExplainer(s, r)
		o := oracleOf(s)
		var failed error
		o.each(func(at place, c *mesh.Cluster, ns *mesh.NamespaceInventory) {
			for _, svc := range ns.Services {
				for _, port := range svc.Ports {
					if n, err := strconv.Atoi(target(port)); err == nil && len(svc.Selector) > 0 && failed == nil {
						via, _ := boundWaypoint(at, c, ns, svc.Name)
						failed = ask(s, o, x, ps[c.Name], call{at: at, service: svc.Name, port: port, via: via, conn: conn{port: n, ip: "10.1.1.1", method: "GET", path: "/x"}}, svc.Selector)
					}
				}
			}
		})
		return failed
	})
}

// ask compares for every client, where all Pods agree.
func ask(s *mesh.Snapshot, o *oracle, x *translate.Explainer, p *plane, to call, selector map[string]string) error {
	var failed error
	o.each(func(from place, c *mesh.Cluster, ns *mesh.NamespaceInventory) {
		for _, sa := range ns.ServiceAccounts {
			if failed != nil || c.Inventory.Info.TrustDomain == "" {
				return
			}
			one := to
			one.conn.principal = string(c.Inventory.Info.TrustDomain) + "/ns/" + from.ns + "/sa/" + sa.Name
			yes, no := 0, 0
			for _, labels := range podLabels() {
				if !contains(labels, selector) {
					continue
				}
				one.labels = labels
				if one.via != "" {
					one.conn.port = int(one.port.Number)
				} else {
					one.service = ""
				}
				if p.answer(s, one).may {
					yes++
				} else {
					no++
				}
			}
			a := x.Ask(translate.Question{
				FromCluster: from.cluster, FromNamespace: from.ns, FromServiceAccount: sa.Name,
				ToCluster: to.at.cluster, ToNamespace: to.at.ns, ToService: to.service, Port: to.port.Number, Method: "GET", Path: "/x",
			})
			if yes > 0 && no == 0 && !a.Allowed || no > 0 && yes == 0 && a.Allowed {
				failed = fmt.Errorf("explain says %v, and %d kinds of Pods let it through, %d do not: %s to Service %s port %d\n%q\n%q", a.Allowed, yes, no, one, to.service, to.port.Number, a.Decided, a.Caveats)
			}
		}
	})
	return failed
}
