package meshcheck

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

func networks(v *view, f *Finding) {
	if v.unread(f, "namespaces") {
		return
	}
	ns, network := v.IstioNamespace(), v.network()
	if network == "" {
		f.problem(Error, fmt.Sprintf("namespace %s has no label %s: istiod takes every other cluster's Pods for its own network's", ns, labelNetwork),
			fmt.Sprintf("%s label namespace %s %s=NETWORK", v.Kubectl, ns, labelNetwork))
	}
	for _, g := range v.gateways {
		if g.eastWest() && g.network != network {
			f.problem(Error, fmt.Sprintf("Gateway %s/%s has %s=%q, namespace %s %q", g.namespace, g.name, labelNetwork, g.network, ns, network),
				fmt.Sprintf("%s -n %s label --overwrite gateway %s %s=%s", v.Kubectl, g.namespace, g.name, labelNetwork, network))
		}
	}
	for _, o := range v.others() {
		if network != "" && o.network() == network {
			f.problem(Warning, fmt.Sprintf("%s is on network %q too: their Pods must reach each other directly, and no gateway is used between them", o.Name, network), "")
		}
		if v.ID() != "" && o.ID() == v.ID() {
			f.problem(Error, fmt.Sprintf("istiod calls %s %q too: remote secrets and telemetry can't tell them apart", o.Name, v.ID()), "set global.multiCluster.clusterName in istiod's and ztunnel's Helm values, different in each cluster")
		}
	}
	for _, label := range []string{labelScope, labelGlobal} {
		if value := v.namespaces[ns][label]; value != "" {
			f.problem(Warning, fmt.Sprintf("namespace %s is labelled %s=%s: istiod's own Services become global, and names of the mesh resolve wrongly", ns, label, value),
				fmt.Sprintf("%s label namespace %s %s-", v.Kubectl, ns, label))
		}
	}
	f.Summary = summary(f, fmt.Sprintf("network %s, cluster ID %s", network, cmp.Or(v.ID(), "unknown")), "network or cluster labels do not fit together")
}

func trustDomains(v *view, f *Finding) {
	if v.unread(f, "configmaps") {
		return
	}
	mine, _ := v.config()
	for _, o := range v.others() {
		if o.trustDomain() == v.trustDomain() || len(o.mesh) == 0 {
			continue
		}
		text := fmt.Sprintf("%s has trust domain %s, this cluster %s", o.Name, o.trustDomain(), v.trustDomain())
		if v.solo() || slices.Contains(mine.TrustDomainAliases, o.trustDomain()) {
			f.note(text)
			continue
		}
		f.problem(Warning, text+": policies have to name both, and ztunnel knows no aliases", "use one meshConfig.trustDomain in all clusters, or write policies with Ambit's AccessPolicy, which names each")
	}
	f.Summary = summary(f, v.trustDomain(), "trust domains differ")
}

func certificates(v *view, f *Finding) {
	if v.missing(f) {
		return
	}
	if v.cacerts != nil {
		for _, p := range pki.VerifyCACerts(v.cacerts, v.Now) {
			s := Warning
			if p.Fatal {
				s = Error
			}
			f.problem(s, fmt.Sprintf("cacerts, %s: %s", p.File, p.Message), p.Fix)
		}
	} else if why, is := v.Unread["secrets"]; is {
		f.note("Secret cacerts can't be read: " + why)
	} else {
		f.problem(severityAlone(v), "there is no Secret cacerts: this istiod is its own root, which no other cluster trusts", "meshctl pki gen-root and gen-intermediate, or a RootTrustPolicy")
	}
	for _, o := range v.others() {
		switch {
		case v.cacerts != nil && o.cacerts != nil:
			for _, p := range pki.VerifyPair(v.cacerts, o.cacerts, v.Name, o.Name, v.Now) {
				f.problem(Error, p.Message, p.Fix)
			}
		case len(v.root) > 0 && len(o.root) > 0:
			if !shareRoot(v.root, o.root) {
				f.problem(Error, fmt.Sprintf("its root certificate is not among those of %s: handshakes between them fail", o.Name), "give all clusters intermediates under one root: a RootTrustPolicy, or meshctl pki gen-root")
			}
		}
	}
	f.Summary = summary(f, "all clusters have compatible roots", "certificates do not verify")
	if len(v.all) == 1 && f.Status == OK {
		f.Summary = "the chain of cacerts is complete"
	}
}

// severityAlone: one cluster alone may be its own root.
func severityAlone(v *view) Status {
	if len(v.all) > 1 {
		return Error
	}
	return Warning
}

func shareRoot(a, b []byte) bool {
	x, err := pki.ParseCertificates(a)
	y, err2 := pki.ParseCertificates(b)
	if err != nil || err2 != nil {
		return bytes.Equal(a, b)
	}
	return slices.ContainsFunc(x, func(one *x509.Certificate) bool { return slices.ContainsFunc(y, one.Equal) })
}

func multiRoot(v *view, f *Finding) {
	if v.missing(f) {
		return
	}
	for _, d := range v.istiods {
		if d.env["ISTIO_MULTIROOT_MESH"] != "true" || !mesh.IstiodCan(d.version, mesh.RootReload) {
			f.problem(Warning, fmt.Sprintf("istiod %s/%s (%s) takes a changed root only when it starts (ISTIO_MULTIROOT_MESH is off, or it is before 1.20; istio#47063)", d.namespace, d.name, d.version),
				fmt.Sprintf("%s -n %s set env deploy/%s ISTIO_MULTIROOT_MESH=true", v.Kubectl, d.namespace, d.name))
		}
	}
	f.Summary = summary(f, "istiod takes a changed root while it runs", "a change of the root needs restarts")
}

func scopes(v *view, f *Finding) {
	if v.missing(f) || v.unread(f, "configmaps") {
		return
	}
	if v.solo() {
		f.Summary = "this istiod reads " + labelScope
		return
	}
	m, ok := v.config()
	if !ok {
		f.Status, f.Summary = Skipped, "no ConfigMap istio was found"
		return
	}
	if !m.Honours(map[string]string{labelGlobal: "true"}, map[string]string{}) {
		f.problem(Error, fmt.Sprintf("meshConfig.serviceScopeConfigs does not make Services with %s=true global: the label has no effect here", labelGlobal),
			fmt.Sprintf("%s -n %s edit configmap istio   # add under mesh: serviceScopeConfigs: [{scope: GLOBAL, servicesSelector: {matchExpressions: [{key: istio.io/global, operator: In, values: [\"true\"]}]}}]", v.Kubectl, v.IstioNamespace()))
	}
	f.Summary = summary(f, labelGlobal+"=true makes a Service global", "no Service can be made global by label")
}

func peers(v *view, f *Finding) {
	if v.missing(f) {
		return
	}
	connected := 0
	for _, o := range v.others() {
		var addresses []string
		for _, g := range o.gateways {
			if g.eastWest() {
				addresses = append(addresses, g.addresses...)
			}
		}
		at := cmp.Or(strings.Join(addresses, ", "), "unknown")
		if why, fix := v.disconnected(o); why != "" {
			f.problem(Error, fmt.Sprintf("Disconnected from %s (address: %s): %s", o.Name, at, why), fix)
		} else {
			connected++
			f.note(fmt.Sprintf("Connected to %s via %s", o.Name, at))
		}
	}
	f.Summary = summary(f, "all clusters connected", fmt.Sprintf("%d of %d clusters connected", connected, len(v.all)-1))
}

// disconnected says why istiod here does not know what runs in o; "" if it does, as far as objects tell.
func (v *view) disconnected(o *Cluster) (why, fix string) {
	if v.solo() {
		for _, g := range v.gateways {
			if g.class != "istio-remote" || g.network != o.network() {
				continue
			}
			for _, kind := range []string{"gloo.solo.io/PeerConnected", "gloo.solo.io/PeeringSucceeded", "gloo.solo.io/PeerDataPlaneProgrammed"} {
				if c, has := g.conditions[kind]; has && c.status != "True" {
					return fmt.Sprintf("Gateway %s/%s: %s is %s: %s", g.namespace, g.name, kind, c.status, c.message), fmt.Sprintf("%s -n %s describe gateway %s", v.Kubectl, g.namespace, g.name)
				}
			}
			return "", ""
		}
		return fmt.Sprintf("no Gateway of class istio-remote for network %q", o.network()), "turn on featureGates.ConfigDistribution in Ambit, or apply a peer Gateway"
	}
	if v.Unread["secrets"] != "" {
		return "", ""
	}
	for _, r := range v.remotes {
		if r.cluster != o.ID() {
			continue
		}
		if r.server == "" || r.token == "" {
			return fmt.Sprintf("Secret %s: its kubeconfig has no server, or no token", r.secret), o.remoteSecret(v.Cluster)
		}
		if said, asked := v.Tokens[r.cluster]; asked && said != "" {
			return fmt.Sprintf("Secret %s: its token is refused: %s", r.secret, said), o.remoteSecret(v.Cluster)
		}
		return "", ""
	}
	return fmt.Sprintf("no remote secret for cluster ID %q", o.ID()), o.remoteSecret(v.Cluster)
}

// remoteSecret is how the receiver gets a kubeconfig for c.
func (c *Cluster) remoteSecret(receiver *Cluster) string {
	return fmt.Sprintf("register both clusters with Ambit, or: istioctl create-remote-secret --context %s --name %s | %s apply -f -", c.Name, cmp.Or(c.ID(), c.Name), receiver.Kubectl)
}

func tokens(v *view, f *Finding) {
	if v.unread(f, "secrets") {
		return
	}
	if v.solo() && len(v.remotes) == 0 {
		f.Summary = "no remote secrets: peering by istio-remote needs none"
		return
	}
	seen := map[string]string{}
	for _, r := range v.remotes {
		if first := seen[r.cluster]; first != "" {
			f.problem(Warning, fmt.Sprintf("Secret %s is for cluster %s as well as %s: istiod takes the one it saw first and ignores the other", r.secret, r.cluster, first), deleteSecret(v.Cluster, r.secret))
		}
		seen[r.cluster] = r.secret
		if r.cluster == v.ID() {
			f.problem(Warning, fmt.Sprintf("Secret %s is for this cluster itself: istiod ignores it", r.secret), deleteSecret(v.Cluster, r.secret))
		}
		said, asked := v.Tokens[r.cluster]
		switch {
		case !asked:
			f.note(fmt.Sprintf("%s: not asked (cluster %s is none of those checked)", r.secret, r.cluster))
		case said != "":
			f.problem(Error, fmt.Sprintf("%s: cluster %s refuses its token: %s. istiod goes on with what it last saw and says synced", r.secret, r.cluster, said), "")
		default:
			f.note(fmt.Sprintf("%s: cluster %s accepts its token", r.secret, r.cluster))
		}
	}
	f.Summary = summary(f, fmt.Sprintf("%d remote secret(s)", len(v.remotes)), "remote secrets do not work")
}

func deleteSecret(c *Cluster, secret string) string {
	ns, name, _ := strings.Cut(secret, "/")
	return fmt.Sprintf("%s -n %s delete secret %s", c.Kubectl, ns, name)
}

func shared(v *view, f *Finding) {
	if v.unread(f, "services") {
		return
	}
	names := v.Shared()
	f.Summary = fmt.Sprintf("%d globally shared service(s)", len(names))
	m, known := v.config()
	for _, u := range v.services {
		name := u.GetNamespace() + "/" + u.GetName()
		switch {
		case !v.isShared(u) && !v.solo() && strings.HasPrefix(u.GetLabels()[labelScope], "global"):
			f.problem(Warning, fmt.Sprintf("%s is labelled %s=%s, which this istiod does not read", name, labelScope, u.GetLabels()[labelScope]),
				fmt.Sprintf("%s -n %s label service %s %s=true   # or apply a Segment", v.Kubectl, u.GetNamespace(), u.GetName(), labelGlobal))
		case !v.isShared(u):
		case !v.solo() && known && !m.Honours(u.GetLabels(), v.namespaces[u.GetNamespace()]):
			f.problem(Error, fmt.Sprintf("%s is labelled global, and istiod's serviceScopeConfigs don't honour it: see Service Scope Check", name), "")
		case v.endpoints(name) == 0:
			f.note(fmt.Sprintf("%s: global, no endpoint here%s", name, elsewhere(v, name)))
			if elsewhere(v, name) == "" {
				f.problem(Warning, fmt.Sprintf("%s: no ready endpoint in any cluster", name), fmt.Sprintf("%s -n %s get pods", v.Kubectl, u.GetNamespace()))
			}
		default:
			f.note(fmt.Sprintf("%s: global, %s", name, plural(v.endpoints(name), "ready endpoint")))
		}
	}
	for _, u := range v.entries {
		for _, h := range hosts(u) {
			f.note(fmt.Sprintf("%s: host of ServiceEntry %s/%s", h, u.GetNamespace(), u.GetName()))
		}
	}
	if len(names) == 0 && len(v.entries) == 0 {
		f.problem(Warning, fmt.Sprintf("nothing is shared: is istiod's cluster ID right (%s)? is the network label on namespace %s (%s)?", cmp.Or(v.ID(), "unknown"), v.IstioNamespace(), cmp.Or(v.network(), "none")),
			fmt.Sprintf("kubectl --context mgmt apply -f SEGMENT   # or: %s -n NAMESPACE label service NAME %s=true", v.Kubectl, labelGlobal))
	}
}

// endpoints that are ready here; -1: unknown.
func (c *Cluster) endpoints(service string) int {
	if c.ready == nil {
		return -1
	}
	return c.ready[service]
}

func elsewhere(v *view, service string) string {
	for _, o := range v.others() {
		if slices.Contains(o.Shared(), service) && o.endpoints(service) != 0 {
			return ", " + plural(max(o.endpoints(service), 1), "endpoint") + " in " + o.Name
		}
	}
	return ""
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", max(n, 0), what)
}
