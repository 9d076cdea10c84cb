package meshcheck

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Options of Check.
type Options struct {
	// Precheck looks only at what has to be right before clusters are linked.
	Precheck bool
	Now      time.Time
}

// check judges one cluster, seen beside all.
type check struct {
	name    string
	several bool // says nothing of a single cluster
	linked  bool // not part of the precheck
	run     func(*view, *Finding)
}

// view is what a check sees.
type view struct {
	*Cluster
	all []*Cluster
	Options
}

// others are the other clusters.
func (v *view) others() []*Cluster {
	return slices.DeleteFunc(slices.Clone(v.all), func(c *Cluster) bool { return c == v.Cluster })
}

func checks() []check {
	return []check{
		{name: "Incompatible Environment Variable Check", run: environment},
		{name: "License Check", run: licence},
		{name: "DNS Capture Check", run: dnsCapture},
		{name: "Pod Check", run: pods},
		{name: "Gateway Check", linked: true, run: gateways},
		{name: "Network Configuration Check", run: networks},
		{name: "Trust Domain Check", several: true, run: trustDomains},
		{name: "Intermediate Certs Compatibility Check", run: certificates},
		{name: "Root Rotation Check", run: multiRoot},
		{name: "Service Scope Check", run: scopes},
		{name: "Peers Check", several: true, linked: true, run: peers},
		{name: "Token Check", linked: true, run: tokens},
		{name: "Shared Services Check", linked: true, run: shared},
		{name: "Stale Workloads Check", run: stale},
		{name: "Clock Check", run: clock},
		{name: "MTU Check", several: true, run: mtu},
	}
}

// Check judges each cluster beside all of them.
func Check(all []*Cluster, o Options) []Report {
	var out []Report
	for _, c := range all {
		r := Report{Cluster: c.Name, Status: OK}
		for _, one := range checks() {
			if o.Precheck && one.linked || one.several && len(all) < 2 {
				continue
			}
			f := Finding{Check: one.name, Status: OK}
			one.run(&view{Cluster: c, all: all, Options: o}, &f)
			if f.Status != OK {
				f.Fix = slices.Compact(f.Fix)
			}
			r.Findings = append(r.Findings, f)
			r.Status = worse(r.Status, f.Status)
		}
		out = append(out, r)
	}
	return out
}

// unread notes what could not be looked at; true: the check has nothing to go on.
func (v *view) unread(f *Finding, kind string) bool {
	why, is := v.Unread[kind]
	if is {
		f.Status, f.Summary = Skipped, fmt.Sprintf("%s can't be read: %s", kind, why)
	}
	return is
}

// missing is for checks that need istiod.
func (v *view) missing(f *Finding) bool {
	if v.unread(f, "deployments") {
		return true
	}
	if len(v.istiods) == 0 {
		f.Status, f.Summary = Skipped, "no istiod was found"
		return true
	}
	return false
}

func environment(v *view, f *Finding) {
	if v.missing(f) {
		return
	}
	for _, d := range v.istiods {
		set := func(key, value, why string) {
			f.problem(Error, fmt.Sprintf("istiod %s/%s has %s=%q: %s", d.namespace, d.name, key, d.env[key], why),
				fmt.Sprintf("%s -n %s set env deploy/%s %s=%s", v.Kubectl, d.namespace, d.name, key, value))
		}
		if d.env["PILOT_ENABLE_AMBIENT"] != "true" {
			set("PILOT_ENABLE_AMBIENT", "true", "it serves no ztunnel")
		}
		if !d.solo && d.env["AMBIENT_ENABLE_MULTI_NETWORK"] != "true" {
			set("AMBIENT_ENABLE_MULTI_NETWORK", "true", "it does not look beyond its own cluster (off by default)")
		}
		if d.env["PILOT_ENABLE_IP_AUTOALLOCATE"] == "false" {
			set("PILOT_ENABLE_IP_AUTOALLOCATE", "true", "hosts such as *"+meshHost+" get no address")
		}
		if d.solo && d.env["PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES"] == "true" {
			set("PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES", "false", "Services would select the WorkloadEntries of peers")
		}
		if d.solo && d.env["PILOT_SKIP_VALIDATE_TRUST_DOMAIN"] != "true" && slices.ContainsFunc(v.others(), func(o *Cluster) bool { return o.trustDomain() != v.trustDomain() }) {
			set("PILOT_SKIP_VALIDATE_TRUST_DOMAIN", "true", "other clusters have other trust domains")
		}
	}
	f.Summary = summary(f, "all relevant environment variables are valid", "istiod's environment does not fit a multi-cluster ambient mesh")
}

// summary says which it is.
func summary(f *Finding, good, bad string) string {
	if f.Status == OK {
		return good
	}
	return bad
}

func licence(v *view, f *Finding) {
	if v.missing(f) {
		return
	}
	if !v.solo() {
		f.Summary = "none needed: istiod is upstream"
		return
	}
	for _, d := range v.istiods {
		if d.env["SOLO_LICENSE_KEY"] == "" && d.env["LICENSE_KEY"] == "" && !slices.ContainsFunc(slices.Collect(maps.Keys(d.env)), func(k string) bool { return strings.Contains(k, "LICENSE") }) {
			f.problem(Warning, fmt.Sprintf("istiod %s/%s: no licence is set in its environment; peering needs one", d.namespace, d.name), "set license.value or license.secretRef in istiod's Helm values")
		}
	}
	f.Summary = summary(f, "a licence is set; what it allows can't be told from here", "no licence was found")
}

func dnsCapture(v *view, f *Finding) {
	if v.unread(f, "configmaps") {
		return
	}
	switch {
	case v.dnsCapture == nil:
		f.Status, f.Summary = Skipped, "no ConfigMap istio-cni-config: ztunnel's own setting decides"
	case *v.dnsCapture:
		f.Summary = "istio-cni captures DNS"
	default:
		f.problem(Error, "AMBIENT_DNS_CAPTURE is not true: Pods can't resolve hosts of the mesh such as *"+meshHost,
			fmt.Sprintf("%s -n %s patch configmap istio-cni-config --type merge -p '{\"data\":{\"AMBIENT_DNS_CAPTURE\":\"true\"}}'", v.Kubectl, v.IstioNamespace()),
			fmt.Sprintf("%s -n %s rollout restart ds/istio-cni-node", v.Kubectl, v.IstioNamespace()))
		f.Summary = "istio-cni does not capture DNS"
	}
}

func pods(v *view, f *Finding) {
	if v.unread(f, "deployments") || v.unread(f, "daemonsets") {
		return
	}
	found := map[string]bool{}
	for _, w := range v.workloads {
		found[w.component] = true
		line := fmt.Sprintf("%s: %s %s/%s %d/%d ready", w.component, w.kind, w.namespace, w.name, w.ready, w.want)
		switch {
		case w.want == 0:
			f.problem(Error, line+": it is scaled to 0", fmt.Sprintf("%s -n %s scale %s/%s --replicas=1", v.Kubectl, w.namespace, strings.ToLower(w.kind), w.name))
		case w.ready == 0:
			f.problem(Error, line, fmt.Sprintf("%s -n %s describe %s/%s", v.Kubectl, w.namespace, strings.ToLower(w.kind), w.name))
		case w.ready < w.want:
			f.problem(Warning, line, fmt.Sprintf("%s -n %s rollout status %s/%s", v.Kubectl, w.namespace, strings.ToLower(w.kind), w.name))
		default:
			f.note(line)
		}
	}
	for _, must := range []string{"istiod", "ztunnel"} {
		if !found[must] {
			f.problem(Error, must+": not installed", "install it with Helm (profile ambient), or istioctl install --set profile=ambient")
		}
	}
	if !found["east-west gateway"] && !v.Precheck && len(v.all) > 1 {
		f.problem(Error, "east-west gateway: not installed", v.expose())
	}
	f.Summary = summary(f, "istiod, ztunnel and gateways are ready", "something is not ready")
}

// expose is how an east-west gateway is made on this kind of istiod.
func (c *Cluster) expose() string {
	network := cmp.Or(c.network(), "NETWORK")
	return fmt.Sprintf(`%s apply -f - <<'EOF'
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: istio-eastwest
  namespace: %s
  labels: { topology.istio.io/network: %s }
spec:
  gatewayClassName: istio-east-west
  listeners:
  - { name: mesh, port: 15008, protocol: HBONE, tls: { mode: Terminate, options: { gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL } } }
EOF`, c.Kubectl, c.IstioNamespace(), network)
}

func gateways(v *view, f *Finding) {
	if v.unread(f, "gateways") {
		return
	}
	n := 0
	for _, g := range v.gateways {
		if !g.eastWest() {
			continue
		}
		n++
		name := g.namespace + "/" + g.name
		if p := g.conditions["Programmed"]; p.status != "True" {
			f.problem(Error, fmt.Sprintf("%s is not Programmed: %s", name, cmp.Or(p.message, "no condition yet")), fmt.Sprintf("%s -n %s describe gateway %s", v.Kubectl, g.namespace, g.name))
		} else {
			f.note(fmt.Sprintf("%s is Programmed, at %s", name, cmp.Or(strings.Join(g.addresses, ", "), "no address")))
		}
		if len(g.addresses) == 0 {
			f.problem(Error, name+" has no address: its Service has no load balancer yet", fmt.Sprintf("%s -n %s get svc", v.Kubectl, g.namespace))
		}
		for _, a := range g.addresses {
			if why := unroutable(a); why != "" && len(v.all) > 1 {
				f.problem(Warning, fmt.Sprintf("%s: other clusters may not reach %s: %s", name, a, why), "")
			}
		}
	}
	if n == 0 {
		s := Error
		if len(v.all) < 2 {
			s = Warning
		}
		f.problem(s, "no Gateway of class istio-east-west or istio-eastwest: nobody gets in from another cluster", v.expose())
	}
	f.Summary = summary(f, fmt.Sprintf("%d east-west gateway(s) programmed", n), "other clusters can't get in")
}

func stale(v *view, f *Finding) {
	if v.unread(f, "workloadentries") {
		return
	}
	for _, name := range v.stale {
		ns, one, _ := strings.Cut(name, "/")
		f.problem(Warning, fmt.Sprintf("WorkloadEntry %s was made for a peer, by a form of peering that is not in use any more", name), fmt.Sprintf("%s -n %s delete workloadentry %s", v.Kubectl, ns, one))
	}
	f.Summary = summary(f, "no stale workload entries", fmt.Sprintf("%d stale workload entries", len(v.stale)))
}

func clock(v *view, f *Finding) {
	if v.Clock == nil {
		f.Status, f.Summary = Skipped, "not measured"
		return
	}
	const tolerated = 10 * time.Second // what backdating by Ambit and istiod covers many times over; a larger skew tells of a clock that nobody sets
	d := v.Clock.Round(time.Second)
	f.Summary = fmt.Sprintf("its API server's clock is within %s of this machine's", (v.Clock.Abs() + *v.ClockError).Round(time.Second))
	worst, of := time.Duration(0), ""
	for _, o := range v.others() {
		if o.Clock == nil {
			continue
		}
		if apart := (*v.Clock - *o.Clock).Abs(); apart > *v.ClockError+*o.ClockError+tolerated && apart > worst {
			worst, of = apart, o.Name
		}
	}
	if of != "" {
		f.problem(Error, fmt.Sprintf("it is %s apart from %s: certificates of one are not valid yet in the other", worst.Round(time.Second), of), "set the clocks of its machines by NTP: chronyc makestep")
		f.Summary = fmt.Sprintf("its clock and that of %s are %s apart", of, worst.Round(time.Second))
	} else if len(v.all) == 1 && d.Abs() > tolerated+*v.ClockError {
		f.problem(Warning, fmt.Sprintf("its API server's clock is %s off this machine's", d), "")
	}
}

func mtu(v *view, f *Finding) {
	if v.mtu == 0 {
		f.Status, f.Summary = Skipped, "the network plugin's ConfigMap does not tell it"
		return
	}
	f.Summary = fmt.Sprintf("%d (%s)", v.mtu, v.mtuFrom)
	for _, o := range v.others() {
		if o.mtu > v.mtu {
			f.problem(Warning, fmt.Sprintf("%s sends up to %d bytes a packet, this cluster takes %d: HBONE adds 60 to 100 bytes, and large answers hang where path MTU discovery is blocked", o.Name, o.mtu, v.mtu), "")
		}
	}
}

// host reports whether a ServiceEntry names a host of the mesh.
func hosts(u *unstructured.Unstructured) []string {
	all, _, _ := unstructured.NestedStringSlice(u.Object, "spec", "hosts")
	return slices.DeleteFunc(all, func(h string) bool { return !strings.HasSuffix(h, meshHost) })
}
