package mesh

import (
	"fmt"
	"net/netip"
	"time"
)

// PeerFailure is why a gateway does not answer; empty: it does.
type PeerFailure string

// The failures that an agent tells apart.
const (
	PeerAnswers     PeerFailure = ""
	PeerTimeout     PeerFailure = "Timeout"     // nothing comes back
	PeerRefused     PeerFailure = "Refused"     // something is there, and nothing listens
	PeerNoRoute     PeerFailure = "NoRoute"     // the network says that there is no way
	PeerNoSuchHost  PeerFailure = "NoSuchHost"  // the name does not resolve
	PeerDNS         PeerFailure = "DNS"         // the resolver fails
	PeerNoHandshake PeerFailure = "NoHandshake" // something listens that does not speak TLS as an east-west gateway does
)

// PeerProbe is what an agent found when it dialled the gateway that a peer of its cluster leads to.
type PeerProbe struct {
	Address string `json:"address"` // as in the Gateway
	Port    int32  `json:"port"`
	// RoundTrip is how long the TCP handshake took, in nanoseconds: one round trip.
	RoundTrip time.Duration `json:"rtt,omitempty"`
	Failure   PeerFailure   `json:"failure,omitempty"`
}

// addressRange is a range of addresses that not everybody reaches.
type addressRange struct {
	prefix  netip.Prefix
	what    string
	private bool // whether it is reached depends on who asks
}

// ranges of addresses, the narrow ones first. Sources: Docker's default-address-pools (172.17.0.0/16 and on; kind makes a bridge of its own, most often 172.18.0.0/16),
// RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 5737.
func ranges() []addressRange {
	r := func(p, what string) addressRange { return addressRange{prefix: netip.MustParsePrefix(p), what: what} }
	private := func(p, what string) addressRange {
		return addressRange{prefix: netip.MustParsePrefix(p), what: what, private: true}
	}
	return []addressRange{
		r("127.0.0.0/8", "a loopback address, which leads back to whoever dials it"),
		r("::1/128", "a loopback address, which leads back to whoever dials it"),
		r("169.254.0.0/16", "a link-local address, which no router forwards (RFC 3927)"),
		r("fe80::/10", "a link-local address, which no router forwards (RFC 4291)"),
		r("172.18.0.0/16", "an address of the bridge that Docker gives kind, which only containers of that one machine reach"),
		r("172.17.0.0/16", "an address of Docker's default bridge, which only containers of that one machine reach"),
		r("100.64.0.0/10", "an address of carrier-grade NAT (RFC 6598), which is not routed beyond a provider or a VPC"),
		r("192.0.2.0/24", "an address for documentation (RFC 5737): nobody has it"),
		r("198.51.100.0/24", "an address for documentation (RFC 5737): nobody has it"),
		r("203.0.113.0/24", "an address for documentation (RFC 5737): nobody has it"),
		private("10.0.0.0/8", "a private address (RFC 1918)"),
		private("172.16.0.0/12", "a private address (RFC 1918)"),
		private("192.168.0.0/16", "a private address (RFC 1918)"),
		private("fc00::/7", "a private address (RFC 4193)"),
	}
}

// ExplainPeer says why the gateway at address:port of the cluster `to` does not answer from a cluster whose own gateway is at own ("" where that is not known), and what to do.
func ExplainPeer(f PeerFailure, to ClusterName, address string, port int32, own string) string {
	fix := fmt.Sprintf("; set annotation %s on KubernetesCluster %s to an address that is routed from here", AnnotationPeeringAddress, to)
	open := fmt.Sprintf("; open TCP %d between them", port)
	switch f {
	case PeerAnswers:
		return ""
	case PeerNoSuchHost:
		return fmt.Sprintf("the name %s does not resolve here yet: a new load balancer's name takes 30-90 s, and is tried again; after that, look at the DNS of this cluster", address)
	case PeerDNS:
		return fmt.Sprintf("the DNS of this cluster does not answer for %s", address)
	case PeerRefused:
		return fmt.Sprintf("%s refuses connections on port %d: no east-west gateway runs there, or it is another machine's address%s", address, port, fix)
	case PeerNoHandshake:
		return fmt.Sprintf("something that is no east-west gateway answers at %s port %d: TLS with ALPN h2 is expected (HBONE); a load balancer that ends TLS, or checks HTTP, does this", address, port)
	case PeerTimeout, PeerNoRoute:
	}
	nothing := fmt.Sprintf("nothing answers at %s port %d", address, port)
	if f == PeerNoRoute {
		nothing = fmt.Sprintf("there is no route to %s", address)
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return nothing + ": a firewall or a security group, or the name leads to an address that is private to the other network" + open
	}
	for _, r := range ranges() {
		if !r.prefix.Contains(ip.Unmap()) {
			continue
		}
		if r.private {
			return nothing + ": it is " + r.what + compared(ip, own) + fix
		}
		return nothing + ": it is " + r.what + fix
	}
	return nothing + ": a firewall or a security group" + open
}

// compared compares a private address with the one of the cluster's own gateway.
func compared(ip netip.Addr, own string) string {
	mine, err := netip.ParseAddr(own)
	if err != nil || !mine.IsPrivate() || mine.Is4() != ip.Is4() {
		return ", and this cluster has none of its kind: the networks of both have to be joined (peering, VPN)"
	}
	bits := 16
	if ip.Is6() {
		bits = 48
	}
	a, errA := ip.Prefix(bits)
	b, errB := mine.Prefix(bits)
	if errA == nil && errB == nil && a == b {
		return fmt.Sprintf(" of the same range as this cluster's own gateway (%s): both may use one range twice, or a firewall is between them", own)
	}
	return fmt.Sprintf(" of another range than this cluster's own gateway (%s): the networks of both have to be joined (peering, VPN)", own)
}
