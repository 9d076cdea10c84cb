// Package control prepares and starts the control planes of the lab's clusters.
//
// In: a Cluster (name, index, folder) and the path of the "kube" binary. Out: keys,
// certificates, kubeconfigs and configuration files in that folder, and commands
// (exec.Cmd) that the caller starts. It must not start processes, create network
// interfaces or talk to anything but the API server it waits for, and that only
// inside the lab's network namespace.
package control

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

const (
	apiPort = 6443
	// maxIndex keeps the second byte of the addresses (10+index) within a byte.
	maxIndex = 245
	// Domain is the DNS domain of every cluster.
	Domain = "cluster.local"
	// Issuer is the issuer of every cluster's service account tokens.
	Issuer = "https://kubernetes.default.svc"
)

// Cluster is one cluster of the lab. Its addresses follow from its index: with
// x = 10+Index, the node and the API server are 10.x.0.1, Pods 10.x.1.1 to
// 10.x.63.254, load balancer addresses 10.x.64.0/18, cluster IPs 10.x.128.0/17.
type Cluster struct {
	Name  string
	Index int
	// Dir is the cluster's own folder, <state>/clusters/NAME.
	Dir string
	// HostAddr is the address by which people outside the lab's network namespace
	// reach the API server, "127.0.0.1:PORT".
	HostAddr string
	// PeopleDir holds the certificate authority for people, which is the same for all
	// clusters of a lab; empty means <state>/people.
	PeopleDir string
}

func (c Cluster) addr(third, fourth byte) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(10 + c.Index), third, fourth}) //nolint:gosec // at most MaxClusters, 240
}

// NodeIP is the address of the node, its kubelet and the API server.
func (c Cluster) NodeIP() netip.Addr { return c.addr(0, 1) }

// NodeName is the name of the cluster's only node.
func (c Cluster) NodeName() string { return c.Name + "-node" }

// APIAddress is the API server's address inside the lab, "10.x.0.1:6443".
func (c Cluster) APIAddress() string { return netip.AddrPortFrom(c.NodeIP(), apiPort).String() }

// PodCIDR holds the Pods and, in its first /24, the node.
func (c Cluster) PodCIDR() netip.Prefix { return netip.PrefixFrom(c.addr(0, 0), 18) }

// LBCIDR holds the addresses of Services of type LoadBalancer.
func (c Cluster) LBCIDR() netip.Prefix { return netip.PrefixFrom(c.addr(64, 0), 18) }

// ServiceCIDR holds the cluster IPs.
func (c Cluster) ServiceCIDR() netip.Prefix { return netip.PrefixFrom(c.addr(128, 0), 17) }

// APIServiceIP is the cluster IP of kubernetes.default.
func (c Cluster) APIServiceIP() netip.Addr { return c.addr(128, 1) }

// DNSIP is the cluster IP of the cluster's DNS server.
func (c Cluster) DNSIP() netip.Addr { return c.addr(128, 10) }

// AdminKubeconfig is for the lab itself: cluster-admin, by the in-lab address.
func (c Cluster) AdminKubeconfig() string { return filepath.Join(c.Dir, "admin.kubeconfig") }

// NodeKubeconfig is for the lab's node. Its user is system:node:NODE in the groups
// system:nodes and system:masters: the node's library watches all Secrets and
// ConfigMaps, which a plain node may not.
func (c Cluster) NodeKubeconfig() string { return filepath.Join(c.Dir, "node.kubeconfig") }

// CAFile is the cluster's certificate authority (PEM): it has signed the
// certificates of the API server and of the kubelet.
func (c Cluster) CAFile() string { return c.pki("ca.crt") }

// KubeletClientCA verifies the API server where it is the kubelet's client.
func (c Cluster) KubeletClientCA() string { return c.CAFile() }

// KubeletCert is the kubelet's serving certificate, for NodeIP and NodeName.
func (c Cluster) KubeletCert() string { return c.pki("kubelet.crt") }

// KubeletKey is the key of KubeletCert.
func (c Cluster) KubeletKey() string { return c.pki("kubelet.key") }

func (c Cluster) controllerManagerKubeconfig() string {
	return filepath.Join(c.Dir, "controller-manager.kubeconfig")
}

func (c Cluster) schedulerKubeconfig() string { return filepath.Join(c.Dir, "scheduler.kubeconfig") }

func (c Cluster) pki(file string) string { return filepath.Join(c.Dir, "pki", file) }

func (c Cluster) people() string {
	if c.PeopleDir != "" {
		return c.PeopleDir
	}
	return filepath.Join(filepath.Dir(filepath.Dir(filepath.Clean(c.Dir))), "people")
}

func (c Cluster) validate() error {
	switch {
	case c.Name == "":
		return fmt.Errorf("cluster with index %d: no name", c.Index)
	case c.Index < 0 || c.Index > maxIndex:
		return fmt.Errorf("cluster %q: index %d is not within 0 to %d", c.Name, c.Index, maxIndex)
	case !filepath.IsAbs(c.Dir):
		return fmt.Errorf("cluster %q: folder %q is not an absolute path", c.Name, c.Dir)
	}
	return nil
}
