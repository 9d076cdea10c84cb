package translate_test

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"

	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
)

func show(s *mesh.Snapshot) string {
	out, err := yaml.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return regexp.MustCompile(`(?m)^.*: (null|""|\[\]|\{\}|false|"0001-01-01T00:00:00Z")\n`).ReplaceAllString(string(out), "")
}

func clone(s *mesh.Snapshot) *mesh.Snapshot {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	out := new(mesh.Snapshot)
	if err := json.Unmarshal(raw, out); err != nil {
		panic(err)
	}
	return out
}

// shrink takes things away one by one for as long as it still fails.
func shrink(s *mesh.Snapshot, fails func(*mesh.Snapshot) bool) *mesh.Snapshot {
	for again := true; again; {
		again = false
		for i := 0; ; i++ {
			smaller := clone(s)
			if !without(smaller, i) {
				break
			}
			if fails(smaller) {
				s, again = smaller, true
				i--
			}
		}
	}
	return s
}

// without takes the i-th thing out of s; false: there are not so many.
func without(s *mesh.Snapshot, i int) bool {
	done := false
	take := func(n int, f func(int)) {
		if !done && i < n {
			f(i)
			done = true
		}
		i -= n
	}
	take(len(s.Policies), func(i int) { s.Policies = slices.Delete(s.Policies, i, i+1) })
	take(len(s.Workspaces), func(i int) { s.Workspaces = slices.Delete(s.Workspaces, i, i+1) })
	take(len(s.Settings), func(i int) { s.Settings = slices.Delete(s.Settings, i, i+1) })
	take(len(s.Clusters), func(i int) { s.Clusters = slices.Delete(s.Clusters, i, i+1) })
	for _, p := range s.Policies {
		take(len(p.Spec.ApplyToDestinations), func(i int) { p.Spec.ApplyToDestinations = slices.Delete(p.Spec.ApplyToDestinations, i, i+1) })
		for j := range p.Spec.ApplyToDestinations {
			d := &p.Spec.ApplyToDestinations[j]
			take(btoi(d.Port != nil), func(int) { d.Port = nil })
			take(btoi(d.Selector != nil && d.Selector.Workspace != ""), func(int) { d.Selector.Workspace = "" })
			take(btoi(d.Selector != nil && d.Selector.Cluster != ""), func(int) { d.Selector.Cluster = "" })
			take(btoi(d.Selector != nil && d.Selector.Namespace != ""), func(int) { d.Selector.Namespace = "" })
		}
		take(len(p.Spec.ApplyToWorkloads), func(i int) { p.Spec.ApplyToWorkloads = slices.Delete(p.Spec.ApplyToWorkloads, i, i+1) })
		cfg := p.Spec.Config
		if cfg == nil {
			continue
		}
		take(len(cfg.AuthzList), func(i int) { cfg.AuthzList = slices.Delete(cfg.AuthzList, i, i+1) })
		take(btoi(cfg.Authz != nil), func(int) { cfg.Authz = nil })
		take(btoi(cfg.Authn != nil), func(int) { cfg.Authn = nil })
		for j := range cfg.AuthzList {
			a := &cfg.AuthzList[j]
			take(len(a.AllowedClients), func(i int) { a.AllowedClients = slices.Delete(a.AllowedClients, i, i+1) })
		}
		if a := cfg.Authz; a != nil {
			take(len(a.AllowedClients), func(i int) { a.AllowedClients = slices.Delete(a.AllowedClients, i, i+1) })
			take(len(a.AllowedIPBlocks), func(int) { a.AllowedIPBlocks = nil })
		}
	}
	for j := range s.Clusters {
		inv := s.Clusters[j].Inventory
		if inv == nil {
			continue
		}
		names := slices.Sorted(maps.Keys(inv.Namespaces))
		take(len(names), func(i int) { delete(inv.Namespaces, names[i]) })
		for _, name := range names {
			ns := inv.Namespaces[name]
			if ns == nil {
				continue
			}
			take(len(ns.Services), func(i int) { ns.Services = slices.Delete(ns.Services, i, i+1) })
			take(len(ns.ServiceAccounts), func(i int) { ns.ServiceAccounts = slices.Delete(ns.ServiceAccounts, i, i+1) })
			take(len(ns.Workloads), func(i int) { ns.Workloads = slices.Delete(ns.Workloads, i, i+1) })
			take(len(ns.Gateways), func(i int) { ns.Gateways = slices.Delete(ns.Gateways, i, i+1) })
			for k := range ns.Services {
				svc := &ns.Services[k]
				take(len(svc.Ports), func(i int) { svc.Ports = slices.Delete(svc.Ports, i, i+1) })
				for _, key := range slices.Sorted(maps.Keys(svc.Selector)) {
					take(btoi(len(svc.Selector) > 1), func(int) { delete(svc.Selector, key) })
				}
			}
		}
	}
	return done
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
