package control

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Person is the user of the kubeconfig for people, in every cluster.
const Person = "jane.doe@bank.example.com"

// masters is the group that may do everything.
const masters = "system:masters"

// Prepare writes what the cluster's control plane, node and users need to know:
// certificates, service account keys and kubeconfigs. What is there and still fits is
// kept, so a cluster that stops and starts keeps its identity. Clusters of one lab
// share the certificate authority for people, which the first Prepare makes: prepare
// one cluster, then the others, at the same time if need be.
func Prepare(c Cluster) error {
	if err := c.validate(); err != nil {
		return err
	}
	if err := prepare(c, time.Now()); err != nil {
		return fmt.Errorf("cluster %q: prepare: %w", c.Name, err)
	}
	return nil
}

func prepare(c Cluster, now time.Time) error {
	ca, err := ensureAuthority(c.CAFile(), c.pki("ca.key"), c.Name+"-kubernetes-ca", now)
	if err != nil {
		return err
	}
	people, err := ensureAuthority(filepath.Join(c.people(), "ca.crt"), filepath.Join(c.people(), "ca.key"), "people-ca", now)
	if err != nil {
		return err
	}
	frontProxy, err := ensureAuthority(c.pki("front-proxy-ca.crt"), c.pki("front-proxy-ca.key"), c.Name+"-front-proxy-ca", now)
	if err != nil {
		return err
	}
	client, server := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, l := range []struct {
		by   authority
		file string // without .crt and .key
		leaf leaf
	}{
		{ca, c.pki("apiserver"), leaf{cn: "kube-apiserver", usage: server, names: apiNames(), ips: c.apiIPs()}},
		{ca, c.pki("kubelet"), leaf{
			cn: "system:node:" + c.NodeName(), groups: []string{"system:nodes"}, usage: server,
			names: []string{c.NodeName()}, ips: []netip.Addr{c.NodeIP()},
		}},
		{ca, c.pki("kubelet-client"), leaf{cn: "kube-apiserver-kubelet-client", groups: []string{masters}, usage: client}},
		{frontProxy, c.pki("front-proxy-client"), leaf{cn: "front-proxy-client", usage: client}},
		{ca, c.pki("admin"), leaf{cn: "lab-admin", groups: []string{masters}, usage: client}},
		{ca, c.pki("node"), leaf{cn: "system:node:" + c.NodeName(), groups: []string{"system:nodes", masters}, usage: client}},
		{ca, c.pki("controller-manager"), leaf{cn: "system:kube-controller-manager", usage: client}},
		{ca, c.pki("scheduler"), leaf{cn: "system:kube-scheduler", usage: client}},
		{people, filepath.Join(c.people(), "person"), leaf{cn: Person, groups: []string{masters}, usage: client}},
	} {
		if err := l.by.ensureLeaf(l.file+".crt", l.file+".key", l.leaf, now); err != nil {
			return err
		}
	}
	if err := ensureServiceAccountKey(c.pki("service-account.key"), c.pki("service-account.pub")); err != nil {
		return err
	}
	if err := joinFiles(c.pki("client-ca.crt"), c.CAFile(), filepath.Join(c.people(), "ca.crt")); err != nil {
		return err
	}
	return writeComponentKubeconfigs(c)
}

// apiNames are the DNS names of the API server's certificate.
func apiNames() []string {
	return []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + Domain,
	}
}

// apiIPs are the addresses by which the API server is reached: by people, by the
// lab and by Pods.
func (c Cluster) apiIPs() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.NodeIP(), c.APIServiceIP()}
}

func joinFiles(path string, parts ...string) error {
	var all bytes.Buffer
	for _, p := range parts {
		raw, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		all.Write(raw)
	}
	return writeFile(path, all.Bytes(), 0o644)
}
