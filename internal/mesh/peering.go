package mesh

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names of Gateway API classes, labels and annotations by which Istio finds gateways of other networks.
const (
	// ClassRemote is the class of a peer: a Gateway that stands for another cluster's east-west gateway.
	ClassRemote = "istio-remote"
	// ClassEastWest is upstream's class of east-west gateways, ClassEastWestSolo that of the operators' page.
	ClassEastWest     = "istio-east-west"
	ClassEastWestSolo = "istio-eastwest"

	// LabelNetwork and LabelCluster say of which network and cluster a gateway is.
	LabelNetwork = "topology.istio.io/network"
	LabelCluster = "topology.istio.io/cluster"
	// AnnotationServiceAccount and AnnotationTrustDomain say whom to expect behind a peer's address.
	AnnotationServiceAccount = "gateway.istio.io/service-account"
	AnnotationTrustDomain    = "gateway.istio.io/trust-domain"
	// AnnotationPeerNetwork and AnnotationPeerCluster are what one of the shapes in the wild has in place of labels.
	AnnotationPeerNetwork = "networking.istio.io/peer-network"
	AnnotationPeerCluster = "networking.istio.io/peer-cluster"
	// AnnotationDataPlane on a peer says how its data plane is reached: "loadbalancer" or "nodeport".
	AnnotationDataPlane = "peering.solo.io/preferred-data-plane-service-type"

	// PeerPrefix and the name of a cluster make the name of its automatic peers.
	PeerPrefix = "istio-remote-peer-"

	// PortHBONE and PortXDS are those of an east-west gateway behind a load balancer.
	PortHBONE = 15008
	PortXDS   = 15012
)

// PeerSettings are what a KubernetesCluster says of peering.
type PeerSettings struct {
	// Off: it takes no part.
	Off bool `json:"switchedOff,omitempty"`
	// Address overrides what is found; empty: no override.
	Address string `json:"address,omitempty"`
	// Port is that of HBONE at Address; 0: PortHBONE.
	Port int32 `json:"port,omitempty"`
	// Invalid says what is wrong with an override; empty: nothing.
	Invalid string `json:"invalid,omitempty"`
	// Last is where its east-west gateway was when last heard of; it counts while the server has no inventory of the cluster.
	Last PeerEndpoint `json:"last,omitzero"`
}

// PeerEndpoint is a cluster's east-west gateway as others reach it. The zero value is none.
type PeerEndpoint struct {
	Cluster        string      `json:"cluster,omitempty"` // what its istiod calls the cluster
	Network        string      `json:"network,omitempty"`
	Namespace      string      `json:"namespace,omitempty"` // of the gateway, which is part of its identity
	Gateway        string      `json:"gateway,omitempty"`
	ServiceAccount string      `json:"serviceAccount,omitempty"`
	TrustDomain    TrustDomain `json:"trustDomain,omitempty"`
	Address        string      `json:"address,omitempty"` // IP address or hostname
	HBONE          int32       `json:"hbone,omitempty"`   // port
	XDS            int32       `json:"xds,omitempty"`     // port
	// Source is where Address is from: one of the Source constants.
	Source string `json:"source,omitempty"`
}

// Sources of an address.
const (
	SourceOverride     = "Override"
	SourceGateway      = "Gateway"      // status.addresses
	SourceLoadBalancer = "LoadBalancer" // status of its Service
	SourceNodePort     = "NodePort"
)

// HandMadePeer is a Gateway of class istio-remote that people made.
type HandMadePeer struct {
	Network   string `json:"network,omitempty"`
	Cluster   string `json:"cluster,omitempty"` // as istiods call it; empty: it does not say
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// PeerMember is what peering knows of one cluster. It is comparable with Equal, so that what has not changed costs nothing.
type PeerMember struct {
	Name     ClusterName
	Network  string
	Since    time.Time // registered
	Off      string    // why it takes no part; empty: it does
	Endpoint PeerEndpoint
	Missing  string // why it has no Endpoint
	// HandMade are its hand-made peers, sorted.
	HandMade []HandMadePeer
	// Namespaces it has, sorted; nil while its inventory is not known, when every namespace is taken to be there.
	Namespaces []string
}

// Equal compares all that decides.
func (m *PeerMember) Equal(o *PeerMember) bool {
	return m.Name == o.Name && m.Network == o.Network && m.Since.Equal(o.Since) && m.Off == o.Off && m.Endpoint == o.Endpoint && m.Missing == o.Missing &&
		slices.Equal(m.HandMade, o.HandMade) && (m.Namespaces == nil) == (o.Namespaces == nil) && slices.Equal(m.Namespaces, o.Namespaces)
}

// HasNamespace says whether the namespace exists in the cluster, as far as is known.
func (m *PeerMember) HasNamespace(ns string) bool {
	if m.Namespaces == nil {
		return true
	}
	_, ok := slices.BinarySearch(m.Namespaces, ns)
	return ok
}

// MemberOf reads what a cluster reported.
func MemberOf(c *Cluster) *PeerMember {
	m := &PeerMember{Name: c.Name, Since: c.RegisteredAt}
	switch {
	case c.Invalid != "":
		m.Off = "its KubernetesCluster is invalid: " + c.Invalid
	case c.Peering.Off:
		m.Off = "annotation " + AnnotationAutomaticPeering + " on its KubernetesCluster is \"false\""
	case c.Inventory != nil && c.Inventory.Info.AutomaticPeering == "false":
		m.Off = "its istiod has " + EnvAutomaticPeering + "=false"
	case c.Inventory != nil && c.Inventory.Complete && c.Inventory.Info.IstioVersion == "" && len(eastWest(c.Inventory)) == 0:
		m.Off = "no istiod runs there"
	}
	if c.Inventory == nil || !c.Inventory.Complete {
		m.Endpoint = c.Peering.Last
		m.Network = m.Endpoint.Network
		if m.Endpoint == (PeerEndpoint{}) {
			m.Missing = "it has not reported yet"
		}
		return m
	}
	m.Network, m.Namespaces = c.Inventory.Info.Network, sortedKeysOf(c.Inventory.Namespaces)
	m.endpoint(c)
	m.HandMade = handMade(c.Inventory)
	return m
}

// Annotations of a KubernetesCluster, and the variable of istiod, that steer peering.
const (
	AnnotationAutomaticPeering = "admin.gloo.solo.io/automatic-peering"
	AnnotationPeeringAddress   = "admin.gloo.solo.io/peering-address"
	EnvAutomaticPeering        = "PEERING_AUTOMATIC_LOCAL_GATEWAY"
)

// PeerSettingsOf reads the annotations of a KubernetesCluster.
func PeerSettingsOf(annotations map[string]string) PeerSettings {
	var s PeerSettings
	switch v := annotations[AnnotationAutomaticPeering]; v {
	case "", "true":
	default: // a word that is not understood must not turn on what somebody wanted off
		s.Off = true
	}
	v, ok := annotations[AnnotationPeeringAddress]
	if !ok || v == "" {
		return s
	}
	host, port := v, ""
	if net.ParseIP(v) == nil && strings.Contains(v, ":") {
		var err error
		if host, port, err = net.SplitHostPort(v); err != nil {
			s.Invalid = fmt.Sprintf("annotation %s: %q: want ADDRESS or ADDRESS:PORT, an IPv6 address with a port in brackets", AnnotationPeeringAddress, v)
			return s
		}
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			s.Invalid = fmt.Sprintf("annotation %s: %q: %q is no port", AnnotationPeeringAddress, v, port)
			return s
		}
		s.Port = int32(n)
	}
	if !validHost(host) {
		s.Invalid = fmt.Sprintf("annotation %s: %q is neither an IP address nor a hostname", AnnotationPeeringAddress, host)
		return s
	}
	s.Address = host
	return s
}

func validHost(h string) bool {
	if net.ParseIP(h) != nil {
		return true
	}
	if h == "" || len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(h, ".") {
		if !clusterName.MatchString(label) || len(label) > 63 {
			return false
		}
	}
	return true
}

// eastWest are a cluster's east-west gateways: those that are programmed first, then by name.
func eastWest(inv *Inventory) []*Gateway {
	var out []*Gateway
	for _, n := range inv.Namespaces {
		for i := range n.Gateways {
			if g := &n.Gateways[i]; g.Class == ClassEastWest || g.Class == ClassEastWestSolo {
				out = append(out, g)
			}
		}
	}
	slices.SortFunc(out, func(a, b *Gateway) int {
		if a.Programmed != b.Programmed {
			if a.Programmed {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// endpoint finds where the cluster's east-west gateway is reached.
func (m *PeerMember) endpoint(c *Cluster) {
	all := eastWest(c.Inventory)
	if len(all) == 0 {
		m.Missing = "it has no east-west gateway (a Gateway of class " + ClassEastWest + " or " + ClassEastWestSolo + ")"
		return
	}
	if c.Peering.Invalid != "" {
		m.Missing = c.Peering.Invalid
		return
	}
	info := &c.Inventory.Info
	for _, g := range all {
		e := PeerEndpoint{
			Cluster: clusterID(c), Network: cmp.Or(g.Labels[LabelNetwork], info.Network), Namespace: g.Namespace, Gateway: g.Name,
			ServiceAccount: cmp.Or(g.Annotations[AnnotationServiceAccount], g.Name), TrustDomain: info.TrustDomain,
		}
		why := ""
		switch {
		case e.Network == "":
			why = "its network is not known: label namespace " + cmp.Or(info.IstioNamespace, "istio-system") + " with " + LabelNetwork
		case e.TrustDomain == "":
			why = "its trust domain is not known"
		default:
			why = e.find(c, g)
		}
		if why == "" {
			m.Endpoint, m.Missing = e, ""
			m.Network = cmp.Or(m.Network, e.Network)
			return
		}
		m.Missing = cmp.Or(m.Missing, why)
	}
}

// clusterID is what the cluster's istiod calls it: "Kubernetes" is what every istiod does that was not told a name.
func clusterID(c *Cluster) string {
	if id := c.Inventory.Info.IstioClusterID; id != "" && id != "Kubernetes" {
		return id
	}
	return string(c.Name)
}

// find sets address and ports, or says why there are none.
func (e *PeerEndpoint) find(c *Cluster, g *Gateway) string {
	e.HBONE, e.XDS = PortHBONE, PortXDS
	if s := c.Peering; s.Address != "" {
		e.Address, e.Source, e.HBONE = s.Address, SourceOverride, cmp.Or(s.Port, PortHBONE)
		return ""
	}
	domain := cmp.Or(c.ClusterDomain, "cluster.local")
	for _, a := range g.Addresses {
		if !strings.HasSuffix(a, ".svc."+domain) { // of a Service without a load balancer: it means nothing elsewhere
			e.Address, e.Source = a, SourceGateway
			return ""
		}
	}
	svc := serviceOf(c.Inventory.Namespaces[g.Namespace], g)
	switch {
	case svc == nil:
		return fmt.Sprintf("its east-west gateway %s/%s has no address yet and no Service", g.Namespace, g.Name)
	case len(svc.Addresses) > 0:
		e.Address, e.Source = svc.Addresses[0], SourceLoadBalancer
		return ""
	case svc.Type == "NodePort":
		return e.nodePort(c, svc)
	case svc.Type == "LoadBalancer":
		return fmt.Sprintf("Service %s/%s of its east-west gateway waits for an address from a load balancer; annotate its KubernetesCluster with %s where there is none", svc.Namespace, svc.Name, AnnotationPeeringAddress)
	}
	return fmt.Sprintf("Service %s/%s of its east-west gateway is of type ClusterIP, which can't be reached from elsewhere: make it LoadBalancer or NodePort, or annotate its KubernetesCluster with %s", svc.Namespace, svc.Name, AnnotationPeeringAddress)
}

func (e *PeerEndpoint) nodePort(c *Cluster, svc *Service) string {
	var hbone, xds int32
	for _, p := range svc.Ports {
		switch p.Number {
		case PortHBONE:
			hbone = p.NodePort
		case PortXDS:
			xds = p.NodePort
		}
	}
	nodes := c.Inventory.Info.NodeAddresses
	switch {
	case hbone == 0:
		return fmt.Sprintf("Service %s/%s of its east-west gateway has no node port for %d", svc.Namespace, svc.Name, PortHBONE)
	case len(nodes) == 0:
		return fmt.Sprintf("no address of a node is known for the node ports of Service %s/%s", svc.Namespace, svc.Name)
	}
	e.Address, e.HBONE, e.XDS, e.Source = nodes[0], hbone, cmp.Or(xds, PortXDS), SourceNodePort
	return ""
}

// serviceOf finds the Service that istiod made for a Gateway, or one of its name.
func serviceOf(n *NamespaceInventory, g *Gateway) *Service {
	if n == nil {
		return nil
	}
	var named *Service
	for i := range n.Services {
		s := &n.Services[i]
		if s.Labels["gateway.networking.k8s.io/gateway-name"] == g.Name {
			return s
		}
		if s.Name == g.Name || s.Name == g.Name+"-"+g.Class {
			named = s
		}
	}
	return named
}

// handMade are the peers of a cluster that are not ours: agents don't report ours. Five shapes are in the wild; class and network tell, never the name.
func handMade(inv *Inventory) []HandMadePeer {
	var out []HandMadePeer
	for _, n := range inv.Namespaces {
		for i := range n.Gateways {
			g := &n.Gateways[i]
			if g.Class != ClassRemote {
				continue
			}
			out = append(out, HandMadePeer{
				Network: cmp.Or(g.Labels[LabelNetwork], g.Annotations[AnnotationPeerNetwork]), Cluster: cmp.Or(g.Labels[LabelCluster], g.Annotations[AnnotationPeerCluster]),
				Namespace: g.Namespace, Name: g.Name,
			})
		}
	}
	slices.SortFunc(out, func(a, b HandMadePeer) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}
