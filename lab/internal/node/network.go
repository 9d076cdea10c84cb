package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Network is the address plan of one cluster inside the lab's network namespace.
type Network struct {
	Index       int
	NodeIP      netip.Addr
	PodCIDR     netip.Prefix // where Pod addresses are taken from, see podRange
	LBCIDR      netip.Prefix
	ServiceCIDR netip.Prefix
}

// NetworkOf is the address plan of the cluster with this index (mgmt 0, cluster-1 1, ...), as 10.(10+index).0.0/16.
func NetworkOf(index int) Network {
	x := byte(10 + index) //nolint:gosec // an address; the lab has a handful of clusters
	return Network{
		Index:       index,
		NodeIP:      netip.AddrFrom4([4]byte{10, x, 0, 1}),
		PodCIDR:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, x, 0, 0}), 18),
		LBCIDR:      netip.PrefixFrom(netip.AddrFrom4([4]byte{10, x, 64, 0}), 18),
		ServiceCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, x, 128, 0}), 17),
	}
}

// DNSIP is the tenth Service address, where cluster DNS listens.
func (n Network) DNSIP() netip.Addr {
	a := n.ServiceCIDR.Addr().As4()
	a[3] = 10
	return netip.AddrFrom4(a)
}

// KubernetesIP is the first Service address: kubernetes.default.
func (n Network) KubernetesIP() netip.Addr { return n.ServiceCIDR.Addr().Next() }

// all is the /16 that holds every address of the cluster.
func (n Network) all() netip.Prefix {
	return netip.PrefixFrom(n.NodeIP, 16).Masked()
}

// SetupNetwork prepares the lab's network namespace, in which the caller must already be: loopback up, forwarding on, the
// node address of every cluster on loopback, and its Service and LoadBalancer ranges bindable (AnyIP). It is idempotent.
func SetupNetwork(clusters ...Network) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lab network: loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lab network: loopback up: %w", err)
	}
	for path, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                 "1",
		"/proc/sys/net/ipv4/conf/all/rp_filter":         "0",
		"/proc/sys/net/ipv4/conf/default/rp_filter":     "0",
		"/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
	} {
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("lab network: %w", err)
		}
	}
	for _, c := range clusters {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(c.NodeIP, 32))}
		if err := netlink.AddrReplace(lo, addr); err != nil {
			return fmt.Errorf("lab network: node address %s: %w", c.NodeIP, err)
		}
		for _, cidr := range []netip.Prefix{c.LBCIDR, c.ServiceCIDR} {
			route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(cidr), Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("lab network: local range %s: %w", cidr, err)
			}
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// The priorities of the routing rules: partitions stand before the local table, which therefore moves back.
const (
	prioWithin = 10 // + index: traffic within the cluster goes on to the local table
	prioCut    = 1000
	prioLocal  = 2000
)

// Partition cuts the cluster with this index off from all other clusters (on) or joins it again (off). Traffic within the
// cluster, and from people's ports on the host to its API server, is not touched. Packets vanish silently, as behind a
// failed link; established connections stall and resume. The caller must be in the lab's network namespace.
func Partition(index int, on bool) error {
	if err := localTableLast(); err != nil {
		return err
	}
	own := ipNet(NetworkOf(index).all())
	everything := ipNet(netip.MustParsePrefix("10.0.0.0/8"))
	within := netlink.NewRule()
	within.Priority, within.Src, within.Dst, within.Goto = prioWithin+index, own, own, prioLocal
	out := netlink.NewRule()
	out.Priority, out.Src, out.Dst, out.Type = prioCut+2*index, own, everything, unix.FR_ACT_BLACKHOLE
	in := netlink.NewRule()
	in.Priority, in.Src, in.Dst, in.Type = prioCut+2*index+1, everything, own, unix.FR_ACT_BLACKHOLE
	for _, r := range []*netlink.Rule{within, out, in} {
		r.Family = netlink.FAMILY_V4
		if on {
			if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("partition cluster %d: %w", index, err)
			}
			continue
		}
		if err := netlink.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("join cluster %d: %w", index, err)
		}
	}
	return nil
}

// localTableLast moves the lookup of the local table, which the kernel puts first, behind our own rules.
func localTableLast() error {
	local := netlink.NewRule()
	local.Family, local.Priority, local.Table = netlink.FAMILY_V4, prioLocal, unix.RT_TABLE_LOCAL
	if err := netlink.RuleAdd(local); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("partition: local table: %w", err)
	}
	first := netlink.NewRule()
	first.Family, first.Priority, first.Table = netlink.FAMILY_V4, 0, unix.RT_TABLE_LOCAL
	if err := netlink.RuleDel(first); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("partition: local table: %w", err)
	}
	return nil
}

// addressPool hands out Pod addresses. Addresses given back are used again last, so that a stale connection does not reach a
// new Pod soon.
type addressPool struct {
	mu    sync.Mutex
	next  netip.Addr
	first netip.Addr
	last  netip.Addr
	used  map[netip.Addr]bool
}

// newAddressPool covers 10.x.1.1 to 10.x.63.254 of the node's network.
func newAddressPool(cidr netip.Prefix) *addressPool {
	a := cidr.Masked().Addr().As4()
	first := netip.AddrFrom4([4]byte{a[0], a[1], 1, 1})
	return &addressPool{first: first, next: first, last: netip.AddrFrom4([4]byte{a[0], a[1], 63, 254}), used: map[netip.Addr]bool{}}
}

func (p *addressPool) take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 63 * 256 {
		a := p.next
		p.next = a.Next()
		if p.last.Less(p.next) {
			p.next = p.first
		}
		if b := a.As4(); b[3] == 0 || b[3] == 255 || p.used[a] {
			continue
		}
		p.used[a] = true
		return a, nil
	}
	return netip.Addr{}, errors.New("no free Pod address")
}

// reserve takes a particular address; it reports false when that is impossible.
func (p *addressPool) reserve(a netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.Less(p.first) || p.last.Less(a) || p.used[a] {
		return false
	}
	p.used[a] = true
	return true
}

func (p *addressPool) give(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, a)
}

// gateway is the next hop inside every Pod; no interface has it, a permanent neighbour entry leads to the host side.
func gateway() net.IP { return net.IPv4(169, 254, 1, 1) }

// attachPod gives the network namespace netns an eth0 with address ip and a default route, and the lab namespace a route
// to it through a veth named after link. The pair vanishes with either end.
func attachPod(ns *os.File, link string, ip, nodeIP netip.Addr) error {
	podMAC := net.HardwareAddr(slices.Concat([]byte{0x0a, 0x58}, ip.AsSlice()))
	hostMAC := net.HardwareAddr(slices.Concat([]byte{0x0e, 0x58}, ip.AsSlice()))
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: link, HardwareAddr: hostMAC, MTU: 65000, TxQLen: -1},
		PeerName:         "eth0",
		PeerHardwareAddr: podMAC,
		PeerNamespace:    netlink.NsFd(int(ns.Fd())),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	host, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := attachBothEnds(ns, host, ip, nodeIP, podMAC, hostMAC); err != nil {
		_ = netlink.LinkDel(host)
		return err
	}
	return nil
}

func attachBothEnds(ns *os.File, host netlink.Link, ip, nodeIP netip.Addr, podMAC, hostMAC net.HardwareAddr) error {
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("veth up: %w", err)
	}
	index := host.Attrs().Index
	neigh := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: podMAC}
	if err := netlink.NeighSet(neigh); err != nil {
		return fmt.Errorf("neighbour: %w", err)
	}
	if err := configurePodEnd(ns, ip, hostMAC); err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(ip, 32)), Src: nodeIP.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route to Pod: %w", err)
	}
	return nil
}

func nsHandle(f *os.File) netns.NsHandle { return netns.NsHandle(int(f.Fd())) }

func configurePodEnd(ns *os.File, ip netip.Addr, hostMAC net.HardwareAddr) error {
	h, err := netlink.NewHandleAt(nsHandle(ns))
	if err != nil {
		return fmt.Errorf("netlink in the Pod's namespace: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("pod loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("pod loopback: %w", err)
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("pod eth0: %w", err)
	}
	if err := h.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, 32))}); err != nil {
		return fmt.Errorf("pod address: %w", err)
	}
	if err := h.LinkSetUp(eth); err != nil {
		return fmt.Errorf("pod eth0: %w", err)
	}
	neigh := &netlink.Neigh{LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gateway(), HardwareAddr: hostMAC}
	if err := h.NeighSet(neigh); err != nil {
		return fmt.Errorf("pod neighbour: %w", err)
	}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway(), Flags: int(netlink.FLAG_ONLINK)}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("pod default route: %w", err)
	}
	return nil
}
