package translate_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// draw makes snapshots from a small alphabet, so that selections overlap, are empty or contradict each other often. It draws from a seed, or from a fuzzer's bytes.
type draw struct {
	rand *rand.Rand
	data []byte
	// objects of a walk's last step, for what agents say of them.
	objects map[mesh.ClusterName]translate.Objects
}

func fromSeed(seed uint64) *draw { return &draw{rand: rand.New(rand.NewPCG(seed, 1))} }

// n draws from 0..k-1.
func (d *draw) n(k int) int {
	if d.rand != nil {
		return d.rand.IntN(k)
	}
	if len(d.data) == 0 {
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return int(b) % k
}

// one in k times.
func (d *draw) one(k int) bool { return d.n(k) == k-1 }

func pick[T any](d *draw, of ...T) T { return of[d.n(len(of))] }

const adminNamespace = "gloo-mesh"

func (d *draw) labels() map[string]string {
	out := map[string]string{}
	if d.n(3) > 0 {
		out["app"] = pick(d, "x", "y")
	}
	if d.one(3) {
		out["ver"] = pick(d, "1", "2")
	}
	return out
}

// someLabels selects: seldom by nothing.
func (d *draw) someLabels() map[string]string {
	if l := d.labels(); len(l) > 0 || d.one(4) {
		return l
	}
	return map[string]string{"app": pick(d, "x", "y", "z")}
}

func (d *draw) snapshot() *mesh.Snapshot {
	s := &mesh.Snapshot{ServerVersion: "1", ManagementCluster: "c0", AdminNamespace: adminNamespace, Namespaces: map[string]map[string]string{}}
	for i := range 2 + d.n(3) {
		s.Clusters = append(s.Clusters, d.cluster(i))
	}
	for _, ns := range []string{adminNamespace, "a", "b"} {
		s.Namespaces[ns] = map[string]string{}
	}
	if inv := s.Clusters[0].Inventory; inv != nil {
		for name, ns := range inv.Namespaces {
			s.Namespaces[name] = ns.Labels
		}
	}
	if d.one(2) {
		d.workspaces(s)
	}
	for i := range 1 + d.n(4) {
		s.Policies = append(s.Policies, d.policy(s, i))
	}
	slices.SortFunc(s.Policies, func(a, b *mesh.AccessPolicy) int { return a.Source.Compare(b.Source) })
	return s
}

func (d *draw) cluster(i int) mesh.Cluster {
	name := fmt.Sprintf("c%d", i)
	c := mesh.Cluster{
		Name: mesh.ClusterName(name), UID: mesh.ClusterUID("uid-" + name), Generation: 1,
		Source: mesh.Ref{Group: "admin.gloo.solo.io", Version: "v2", Kind: "KubernetesCluster", Namespace: adminNamespace, Name: name},
	}
	if d.one(3) {
		c.Labels = map[string]string{"env": pick(d, "prod", "dev")}
	}
	if i > 0 && d.one(8) {
		return c // has not reported
	}
	c.Inventory = &mesh.Inventory{Complete: true, Info: mesh.ClusterInfo{TrustDomain: pick(d, "shared", "shared", mesh.TrustDomain("td-"+name)), IstioNamespace: "istio-system"}, Namespaces: map[string]*mesh.NamespaceInventory{}}
	if d.one(10) {
		c.Inventory.Info.TrustDomain = ""
	}
	for _, ns := range []string{"a", "b", "infra"}[:1+d.n(3)] {
		c.Inventory.Namespaces[ns] = d.namespace(ns)
	}
	c.Inventory.Namespaces["istio-system"] = &mesh.NamespaceInventory{ServiceAccounts: []mesh.ServiceAccount{{Namespace: "istio-system", Name: "istiod"}}}
	if d.one(8) {
		c.Inventory.Info.RootNamespace = pick(d, "istio-config", "infra", "a")
	}
	if d.one(8) {
		c.Inventory.Namespaces["istio-system"].Services = []mesh.Service{d.service("istio-system", 0)}
	}
	if d.one(3) {
		c.Inventory.Namespaces["gateways"] = &mesh.NamespaceInventory{
			Gateways: []mesh.Gateway{{Namespace: "gateways", Name: "istio-eastwest", Class: "istio-eastwest", Programmed: true}},
			Services: []mesh.Service{{Namespace: "gateways", Name: "istio-eastwest", Selector: map[string]string{"app": "x"}, Ports: []mesh.ServicePort{{Number: 15008}}}},
		}
	}
	return c
}

func (d *draw) namespace(ns string) *mesh.NamespaceInventory {
	inv := &mesh.NamespaceInventory{Labels: map[string]string{"kubernetes.io/metadata.name": ns}}
	if !d.one(6) {
		inv.Labels["istio.io/dataplane-mode"] = "ambient"
	}
	if d.one(3) {
		inv.Labels["team"] = pick(d, "red", "blue")
	}
	if d.one(4) {
		d.useWaypoint(inv.Labels)
	}
	for i := range d.n(4) {
		inv.Services = append(inv.Services, d.service(ns, i))
	}
	for _, name := range []string{"alice", "bob", "default"} {
		if d.n(3) > 0 {
			inv.ServiceAccounts = append(inv.ServiceAccounts, mesh.ServiceAccount{Namespace: ns, Name: name, Labels: d.labels()})
		}
	}
	for i := range d.n(3) {
		inv.Workloads = append(inv.Workloads, mesh.Workload{Namespace: ns, Kind: "Deployment", Name: fmt.Sprintf("w%d", i), Labels: d.labels(), ServiceAccount: pick(d, "default", "alice", "bob")})
	}
	if d.one(2) {
		g := mesh.Gateway{Namespace: ns, Name: "waypoint", Class: "istio-waypoint", Programmed: true}
		if d.one(3) {
			g.Labels = map[string]string{"istio.io/waypoint-for": pick(d, "service", "all", "workload", "none")}
		}
		inv.Gateways = append(inv.Gateways, g)
	}
	return inv
}

func (d *draw) useWaypoint(labels map[string]string) {
	labels["istio.io/use-waypoint"] = pick(d, "waypoint", "waypoint", "none", "gone")
	if d.one(3) {
		labels["istio.io/use-waypoint-namespace"] = pick(d, "a", "infra")
	}
}

func (d *draw) service(ns string, i int) mesh.Service {
	s := mesh.Service{Namespace: ns, Name: fmt.Sprintf("s%d", i), Labels: d.labels(), Selector: d.someLabels()}
	if d.one(4) {
		d.useWaypoint(s.Labels)
	}
	s.Ports = []mesh.ServicePort{{Name: "http", Number: 80, TargetPort: pick(d, "", "8080", "8081")}}
	if d.one(2) {
		s.Ports = append(s.Ports, mesh.ServicePort{Name: "admin", Number: int32(pick(d, 81, 8080)), TargetPort: pick(d, "", "8080", "9090", "9090")})
	}
	if d.one(12) {
		s.Ports[0].TargetPort = "named"
	}
	if d.one(15) {
		s.Selector = nil
	}
	return s
}

func (d *draw) policy(s *mesh.Snapshot, i int) *mesh.AccessPolicy {
	name := fmt.Sprintf("p%d", i)
	ns := pick(d, adminNamespace, adminNamespace, "a", "b")
	if len(s.Workspaces) == 0 {
		ns = pick(d, adminNamespace, adminNamespace, adminNamespace, adminNamespace, adminNamespace, "a")
	}
	p := &mesh.AccessPolicy{
		Source: mesh.Ref{Group: "security.policy.gloo.solo.io", Version: "v2", Kind: "AccessPolicy", Namespace: ns, Name: name},
		UID:    "uid-" + ns + "-" + name, Generation: 1,
	}
	if d.one(30) {
		p.Invalid = "it is invalid"
	}
	switch d.n(8) {
	case 0: // both empty
	case 1:
		for range 1 + d.n(2) {
			sel := d.selector(s, false)
			if d.one(8) {
				sel = nil
			}
			p.Spec.ApplyToWorkloads = append(p.Spec.ApplyToWorkloads, securityv2.WorkloadSelector{Selector: sel})
		}
	default:
		for range 1 + d.n(2) {
			p.Spec.ApplyToDestinations = append(p.Spec.ApplyToDestinations, d.destination(s))
		}
	}
	p.Spec.Config = d.config(s)
	if p.Invalid == "" && !valid(p) {
		p.Invalid = "what internal/validate says"
	}
	return p
}

// valid is what internal/validate has to say of such policies; translation does not repeat it.
func valid(p *mesh.AccessPolicy) bool {
	for _, d := range p.Spec.ApplyToDestinations {
		if d.Kind != "" && d.Kind != securityv2.DestinationService {
			return false
		}
	}
	cfg := p.Spec.Config
	if cfg.Authn == nil || cfg.Authn.TLSMode != securityv2.TLSDisable {
		return true
	}
	list := slices.Clone(cfg.AuthzList)
	if cfg.Authz != nil {
		list = append(list, *cfg.Authz)
	}
	return !slices.ContainsFunc(list, func(a securityv2.Authorization) bool { return len(a.AllowedClients) > 0 })
}

func (d *draw) destination(s *mesh.Snapshot) securityv2.DestinationSelector {
	out := securityv2.DestinationSelector{Selector: d.selector(s, true)}
	if d.one(3) {
		out.Port = pick(d, &securityv2.PortSelector{Number: 80}, &securityv2.PortSelector{Number: 80}, &securityv2.PortSelector{Name: "http"}, &securityv2.PortSelector{Name: "admin"}, &securityv2.PortSelector{Number: 81},
			&securityv2.PortSelector{Number: 80, Name: "http"}, &securityv2.PortSelector{Number: 80, Name: "admin"}, &securityv2.PortSelector{Number: 8080})
	}
	if d.one(30) {
		out.Kind = securityv2.DestinationVirtualDestination
	}
	return out
}

func (d *draw) selector(s *mesh.Snapshot, named bool) *securityv2.ObjectSelector {
	sel := &securityv2.ObjectSelector{Labels: d.someLabels()}
	if named && d.one(4) {
		sel.Name, sel.Labels = pick(d, "s0", "s1"), nil
	}
	if d.one(4) {
		sel.Namespace = pick(d, "a", "b", "infra", "a", "b", "infra", "istio-system")
	}
	if d.one(5) {
		sel.Cluster = string(s.Clusters[d.n(len(s.Clusters))].Name)
	}
	if len(s.Workspaces) > 0 && d.one(10) {
		sel.Workspace = pick(d, "red", "blue")
	}
	return sel
}

func (d *draw) config(s *mesh.Snapshot) *securityv2.AccessPolicyConfig {
	cfg := &securityv2.AccessPolicyConfig{}
	if d.one(4) {
		cfg.Authn = pick(d, &securityv2.Authentication{TLSMode: securityv2.TLSStrict}, &securityv2.Authentication{MTLS: &securityv2.MutualTLS{Required: true}},
			&securityv2.Authentication{TLSMode: securityv2.TLSStrict}, &securityv2.Authentication{TLSMode: securityv2.TLSPermissive}, &securityv2.Authentication{TLSMode: securityv2.TLSDisable})
	}
	off, on := false, true
	if d.one(20) {
		cfg.EnforcementLayers = &securityv2.EnforcementLayers{Mesh: pick(d, &off, &on, nil)}
	}
	switch {
	case cfg.Authn != nil && d.one(3):
	case d.one(10):
	case d.one(4):
		for range 1 + d.n(2) {
			cfg.AuthzList = append(cfg.AuthzList, d.authorization(s))
		}
		if d.one(3) {
			cfg.Authz = &securityv2.Authorization{AllowedClients: []securityv2.IdentitySelector{{}}}
		}
	default:
		a := d.authorization(s)
		cfg.Authz = &a
	}
	return cfg
}

func (d *draw) authorization(s *mesh.Snapshot) securityv2.Authorization {
	var a securityv2.Authorization
	for range pick(d, 0, 1, 1, 1, 2) {
		a.AllowedClients = append(a.AllowedClients, d.client(s))
	}
	if d.one(6) {
		a.AllowedIPBlocks = pick(d, []string{"10.1.0.0/16"}, []string{"10.1.1.1", "192.168.0.0/24"})
	}
	if d.one(15) {
		a.DryRun = true
	}
	if !d.one(4) {
		return a
	}
	switch d.n(4) {
	case 0:
		a.AllowedPaths = pick(d, []string{"/x"}, []string{"/x*"}, []string{"*z", "/y"})
	case 1:
		a.AllowedMethods = pick(d, []string{"GET"}, []string{"POST", "PUT"})
	case 2:
		h := pick(d, securityv2.HeaderValues{Values: []string{"v"}}, securityv2.HeaderValues{NotValues: []string{"v"}}, securityv2.HeaderValues{Values: []string{"v", "w"}, NotValues: []string{"w"}}, securityv2.HeaderValues{})
		a.Match = &securityv2.RequestMatch{Request: &securityv2.RequestConditions{Headers: map[string]securityv2.HeaderValues{"x-h": h}}}
	default:
		a.AllowedRemoteIPBlocks = []string{"10.1.0.0/16"}
	}
	return a
}

func (d *draw) client(s *mesh.Snapshot) securityv2.IdentitySelector {
	switch d.n(14) {
	case 0:
		return securityv2.IdentitySelector{}
	case 1:
		id := securityv2.IdentitySelector{ExternalWorkloadSelector: &securityv2.ObjectSelector{Labels: d.labels()}}
		if d.one(2) {
			id.ServiceAccountSelector = d.selector(s, false)
		}
		return id
	case 2:
		id := securityv2.IdentitySelector{RequestIdentityMatcher: pick(d, &securityv2.RequestIdentityMatcher{RequestPrincipals: []string{"iss/*"}}, &securityv2.RequestIdentityMatcher{RequestPrincipals: []string{"iss/sub"}},
			&securityv2.RequestIdentityMatcher{NotRequestPrincipals: []string{"iss/sub"}})}
		if d.n(3) > 0 {
			id.ServiceAccountSelector = pick(d, &securityv2.ObjectSelector{}, d.selector(s, false))
		}
		return id
	case 3, 4:
		return securityv2.IdentitySelector{ServiceAccountSelector: &securityv2.ObjectSelector{
			Name: pick(d, "alice", "carol"), Namespace: pick(d, "a", "b"), Cluster: string(s.Clusters[d.n(len(s.Clusters))].Name),
		}}
	case 5:
		return securityv2.IdentitySelector{ServiceAccountSelector: &securityv2.ObjectSelector{Name: pick(d, "alice", "bob", "carol")}}
	}
	return securityv2.IdentitySelector{ServiceAccountSelector: d.selector(s, false)}
}

func (d *draw) workspaces(s *mesh.Snapshot) {
	for _, name := range []string{"blue", "red"}[:1+d.n(2)] {
		w := &mesh.Workspace{
			Source: mesh.Ref{Group: "admin.gloo.solo.io", Version: "v2", Kind: "Workspace", Namespace: adminNamespace, Name: name},
			UID:    "uid-" + name, Generation: 1,
		}
		if d.one(2) {
			w.Labels = map[string]string{"tier": "1"}
		}
		for range 1 + d.n(2) {
			w.Spec.WorkloadClusters = append(w.Spec.WorkloadClusters, d.claim(s, name))
		}
		s.Workspaces = append(s.Workspaces, w)
		if d.n(3) > 0 {
			s.Settings = append(s.Settings, d.settings(name))
		}
	}
	slices.SortFunc(s.Settings, func(a, b *mesh.WorkspaceSettings) int { return strings.Compare(a.Source.String(), b.Source.String()) })
}

// claim mostly of namespace a for blue and b for red, so that conflicts are not the rule.
func (d *draw) claim(s *mesh.Snapshot, name string) adminv2.ClusterSelector {
	c := adminv2.ClusterSelector{Name: pick(d, "", "*", "c?", string(s.Clusters[d.n(len(s.Clusters))].Name))}
	if d.one(5) {
		c.Selector = map[string]string{"env": pick(d, "prod", "dev")}
	}
	off := false
	if d.one(10) {
		c.ConfigEnabled = &off
	}
	own := map[string]string{"blue": "a", "red": "b"}[name]
	n := adminv2.NamespaceSelector{Name: pick(d, own, own, own, own+"*", "infra")}
	if d.one(6) {
		n = adminv2.NamespaceSelector{Labels: map[string]string{"team": name}}
	}
	if d.one(20) {
		n.ConfigEnabled = &off
	}
	c.Namespaces = append(c.Namespaces, n)
	return c
}

func (d *draw) settings(workspace string) *mesh.WorkspaceSettings {
	ns := map[string]string{"blue": "a", "red": "b"}[workspace]
	st := &mesh.WorkspaceSettings{
		Source: mesh.Ref{Group: "admin.gloo.solo.io", Version: "v2", Kind: "WorkspaceSettings", Namespace: ns, Name: workspace},
		UID:    "uid-settings-" + workspace, Generation: 1,
	}
	sharing := func() []adminv2.Sharing {
		if d.one(3) {
			return nil
		}
		sh := adminv2.Sharing{Workspaces: []adminv2.WorkspaceSelector{pick(d, adminv2.WorkspaceSelector{Name: "*"}, adminv2.WorkspaceSelector{Name: "red"}, adminv2.WorkspaceSelector{Name: "b*"}, adminv2.WorkspaceSelector{Selector: map[string]string{"tier": "1"}})}}
		if d.one(2) {
			sh.Resources = []adminv2.ResourceSelector{pick(d, adminv2.ResourceSelector{Kind: adminv2.ResourceService, Labels: map[string]string{"app": "x"}}, adminv2.ResourceSelector{Name: "s0"}, adminv2.ResourceSelector{Kind: "ROUTE_TABLE"})}
		}
		return []adminv2.Sharing{sh}
	}
	st.Spec.ExportTo, st.Spec.ImportFrom = sharing(), sharing()
	if d.n(3) > 0 {
		st.Spec.Options = &adminv2.WorkspaceOptions{ServiceIsolation: &adminv2.ServiceIsolation{Enabled: d.n(4) > 0}}
	}
	return st
}
