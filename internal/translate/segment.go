package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	"ambitmesh.dev/ambit/internal/mesh"
)

// SegmentPlan is what all Segments come to.
type SegmentPlan struct {
	// Orders are those of each cluster whose inventory is known, without Complete.
	Orders  map[mesh.ClusterName]mesh.SegmentOrder
	Reports map[mesh.Ref]SegmentReport
}

// SegmentReport is what was decided about one Segment.
type SegmentReport struct {
	Invalid   string
	Conflicts []string // hosts that an older Segment has, each as a sentence
	Problems  []string // what people should look at, each as a sentence
	Clusters  []SegmentCluster
	// Real are the Services selected anywhere, as "namespace/name", sorted.
	Real []string
}

// SegmentCluster is what was decided for one cluster.
type SegmentCluster struct {
	Cluster mesh.ClusterName
	Real    []string // Services selected there
	Ordered []string // those and stubs: what is to be global there
	Hosts   []mesh.SegmentHost
	// Reason says why it takes no part, or would have no effect; empty: nothing is in the way.
	Reason string
}

// pick is a Service that a Segment selects somewhere.
type pick struct {
	clusters map[mesh.ClusterName]bool
	ports    []mesh.ServicePort // of the first cluster that has it
}

// Segments decides what each cluster is to have for them.
func Segments(s *mesh.Snapshot) SegmentPlan {
	plan := SegmentPlan{Orders: map[mesh.ClusterName]mesh.SegmentOrder{}, Reports: make(map[mesh.Ref]SegmentReport, len(s.Segments))}
	services := map[mesh.ClusterName]map[string]mesh.SegmentService{}
	hosts := map[mesh.ClusterName]map[string]mesh.SegmentHost{}
	for i := range s.Clusters {
		c := &s.Clusters[i]
		if usable(c) != nil {
			services[c.Name], hosts[c.Name] = map[string]mesh.SegmentService{}, map[string]mesh.SegmentHost{}
		}
	}
	owners := map[string]*mesh.Segment{}
	for _, seg := range byAge(s.Segments) {
		if seg.Invalid != "" {
			plan.Reports[seg.Source] = SegmentReport{Invalid: seg.Invalid}
			continue
		}
		plan.Reports[seg.Source] = segment(s, seg, owners, services, hosts)
	}
	for c := range services {
		var o mesh.SegmentOrder
		for _, k := range slices.Sorted(maps.Keys(services[c])) {
			o.Services = append(o.Services, services[c][k])
		}
		for _, k := range slices.Sorted(maps.Keys(hosts[c])) {
			o.Hosts = append(o.Hosts, hosts[c][k])
		}
		plan.Orders[c] = o
	}
	return plan
}

// byAge puts the oldest first: it keeps a host that another one wants too.
func byAge(list []*mesh.Segment) []*mesh.Segment {
	return slices.SortedFunc(slices.Values(list), func(a, b *mesh.Segment) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return a.Source.Compare(b.Source)
	})
}

func segment(s *mesh.Snapshot, seg *mesh.Segment, owners map[string]*mesh.Segment, services map[mesh.ClusterName]map[string]mesh.SegmentService, hosts map[mesh.ClusterName]map[string]mesh.SegmentHost) SegmentReport {
	rep := SegmentReport{}
	picks := picksOf(s, seg, &rep)
	rep.Real = slices.Sorted(maps.Keys(picks))
	targets := map[string]string{} // host: Service
	for _, h := range seg.Spec.Hosts {
		h = strings.ToLower(strings.TrimSuffix(h, "."))
		if o := owners[h]; o != nil {
			rep.Conflicts = append(rep.Conflicts, fmt.Sprintf("host %s belongs to Segment %s/%s, which is older", h, o.Source.Namespace, o.Source.Name))
			continue
		}
		owners[h] = seg
		target, why := targetOf(h, rep.Real)
		if why != "" {
			rep.Problems = append(rep.Problems, why)
		} else if target != "" {
			targets[h] = target
		}
	}
	for i := range s.Clusters {
		c := &s.Clusters[i]
		rep.Clusters = append(rep.Clusters, segmentCluster(c, picks, targets, services[c.Name], hosts[c.Name]))
	}
	return rep
}

// picksOf finds what a Segment selects.
func picksOf(s *mesh.Snapshot, seg *mesh.Segment, rep *SegmentReport) map[string]*pick {
	picks := map[string]*pick{}
	for i := range s.Clusters {
		c := &s.Clusters[i]
		for ns, inv := range usable(c) {
			if seg.Spec.Selector.Namespace != "" && seg.Spec.Selector.Namespace != ns {
				continue
			}
			for _, svc := range inv.Services {
				if svc.StubService() || !hasLabels(seg.Spec.Selector.Labels, svc.Labels) {
					continue
				}
				key := ns + "/" + svc.Name
				if svc.Headless || svc.Type == "ExternalName" {
					rep.Problems = append(rep.Problems, fmt.Sprintf("Service %s of cluster %s has no address of its own (headless or ExternalName), so it can't be global", key, c.Name))
					continue
				}
				for _, p := range seg.Spec.Ports {
					if !slices.ContainsFunc(svc.Ports, func(q mesh.ServicePort) bool { return uint32(q.Number) == p.Number }) { //nolint:gosec // the number of a port
						rep.Problems = append(rep.Problems, fmt.Sprintf("Service %s of cluster %s has no port %d", key, c.Name, p.Number))
					}
				}
				if picks[key] == nil {
					picks[key] = &pick{clusters: map[mesh.ClusterName]bool{}, ports: stubPorts(svc.Ports)}
				}
				picks[key].clusters[c.Name] = true
			}
		}
	}
	slices.Sort(rep.Problems)
	return picks
}

func hasLabels(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// stubPorts are the ports that a Service without endpoints needs.
func stubPorts(ports []mesh.ServicePort) []mesh.ServicePort {
	var out []mesh.ServicePort
	for _, p := range ports {
		if p.Protocol == "" {
			out = append(out, mesh.ServicePort{Name: p.Name, Number: p.Number, App: p.App})
		}
	}
	return out
}

// targetOf is the Service that a host means: the only one selected, or the one whose name and namespace it begins with.
func targetOf(host string, real []string) (target, why string) {
	if len(real) <= 1 {
		return strings.Join(real, ""), ""
	}
	for _, key := range real {
		ns, name, _ := strings.Cut(key, "/")
		if strings.HasPrefix(host+".", name+"."+ns+".") {
			return key, ""
		}
	}
	return "", fmt.Sprintf("host %s could mean any of %s: select one Service, or name the host SERVICE.NAMESPACE.anything", host, strings.Join(real, ", "))
}

func segmentCluster(c *mesh.Cluster, picks map[string]*pick, targets map[string]string, services map[string]mesh.SegmentService, hosts map[string]mesh.SegmentHost) SegmentCluster {
	out := SegmentCluster{Cluster: c.Name}
	if services == nil {
		out.Reason = "its inventory is not known yet"
		if c.Invalid != "" {
			out.Reason = "its KubernetesCluster is not valid"
		}
		return out
	}
	info := &c.Inventory.Info
	if info.IstioVersion == "" {
		out.Reason = "no istiod runs there"
		return out
	}
	labels := map[string]string{mesh.LabelGlobal: "true"}
	if mesh.SoloIstio(info.IstioVersion) {
		labels = map[string]string{mesh.LabelScope: mesh.ScopeGlobal}
	} else if info.IgnoresGlobal {
		out.Reason = fmt.Sprintf("its istiod does not honour label %s: add `serviceScopeConfigs: [{scope: GLOBAL, servicesSelector: {matchExpressions: [{key: istio.io/global, operator: In, values: [\"true\"]}]}}]` under mesh in ConfigMap %s/istio", mesh.LabelGlobal, info.IstioNamespace)
	}
	domain := c.ClusterDomain
	if domain == "" {
		domain = "cluster.local"
	}
	for _, key := range slices.Sorted(maps.Keys(picks)) {
		ns, name, _ := strings.Cut(key, "/")
		o := mesh.SegmentService{Namespace: ns, Name: name, Labels: labels}
		if picks[key].clusters[c.Name] {
			out.Real = append(out.Real, key)
		} else if o.Ports = picks[key].ports; len(o.Ports) == 0 {
			continue
		}
		out.Ordered = append(out.Ordered, key)
		services[key] = o
	}
	for _, h := range slices.Sorted(maps.Keys(targets)) {
		ns, name, _ := strings.Cut(targets[h], "/")
		o := mesh.SegmentHost{Host: h, Service: targets[h], Target: name + "." + ns + ".svc." + domain}
		out.Hosts = append(out.Hosts, o)
		hosts[h] = o
	}
	return out
}

// SegmentStatus is the status of a Segment: what was decided, and what each cluster was seen to have of it.
func SegmentStatus(s *mesh.Snapshot, rep *SegmentReport, orders map[mesh.ClusterName]mesh.Fingerprint) []networkingv2alpha1.SegmentClusterStatus {
	locals := map[string]map[mesh.ClusterName]int32{}
	for i := range s.Clusters {
		if inv := s.Clusters[i].Inventory; inv != nil && inv.Segments != nil {
			for key, st := range inv.Segments.Services {
				if locals[key] == nil {
					locals[key] = map[mesh.ClusterName]int32{}
				}
				locals[key][s.Clusters[i].Name] = st.Local
			}
		}
	}
	var out []networkingv2alpha1.SegmentClusterStatus
	for i := range rep.Clusters {
		c := &rep.Clusters[i]
		m := s.Cluster(c.Cluster)
		if m == nil || len(rep.Real) == 0 {
			continue
		}
		out = append(out, segmentSeen(m, c, locals, orders[c.Cluster]))
	}
	return out
}

// maxSegmentServices bounds what status lists.
const maxSegmentServices = 20

// segmentSeen says of one cluster what was seen there.
func segmentSeen(m *mesh.Cluster, c *SegmentCluster, locals map[string]map[mesh.ClusterName]int32, order mesh.Fingerprint) networkingv2alpha1.SegmentClusterStatus {
	out := networkingv2alpha1.SegmentClusterStatus{Name: string(c.Cluster), Services: c.Real[:min(len(c.Real), maxSegmentServices)]}
	var st *mesh.SegmentState
	if m.Inventory != nil {
		st = m.Inventory.Segments
	}
	var whys []string
	why := func(format string, args ...any) { whys = append(whys, fmt.Sprintf(format, args...)) }
	switch {
	case c.Reason != "" && len(c.Ordered) == 0:
		out.Message = c.Reason
		return out
	case st == nil || st.Order != order:
		out.Message = "its agent has not answered yet"
		return out
	case st.Problem != "":
		why("its istiod can't be asked: %s", st.Problem)
	}
	out.Labelled, out.Programmed = true, st.Problem == ""
	for _, key := range c.Ordered {
		seen := st.Services[key]
		elsewhere := false
		for other, n := range locals[key] {
			elsewhere = elsewhere || other != c.Cluster && n > 0
		}
		out.Endpoints += seen.Local + seen.Remote
		if !seen.Labelled {
			out.Labelled, out.Programmed = false, false
			why("%s", seen.Error)
			continue
		}
		switch {
		case st.Problem != "":
		case seen.VIP == "":
			out.Programmed = false
			why("its istiod does not serve Service %s yet", key)
		case elsewhere && seen.Remote == 0:
			out.Programmed = false
			why("its istiod serves no endpoint of another cluster for Service %s", key)
		}
		if out.VIP == "" {
			out.VIP = seen.VIP
		}
	}
	for i, h := range c.Hosts {
		seen := st.Hosts[h.Host]
		if i == 0 {
			out.VIP = seen.Address
		}
		if seen.Error != "" {
			out.Programmed = false
			why("%s", seen.Error)
		}
	}
	if c.Reason != "" {
		out.Programmed = false
		whys = append([]string{c.Reason}, whys...)
	}
	out.Message = strings.Join(whys, "; ")
	return out
}
