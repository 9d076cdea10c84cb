package cli

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	serverName = "gloo-mesh-mgmt-server" // Deployment, Service, ServiceAccount and webhook configurations of the management server
	agentName  = "gloo-mesh-agent"
	relayPort  = 9900
)

// parseRelayAddress checks an address a person gave; a port left out is 9900.
func parseRelayAddress(given string) (string, error) {
	const want = "want HOST:PORT as the new cluster reaches it, such as relay.example.com:9900"
	if scheme, rest, ok := strings.Cut(given, "://"); ok {
		return "", fmt.Errorf("relay address %q: leave %q out (%s): %s", given, scheme+"://", rest, want)
	}
	host, port, err := net.SplitHostPort(given)
	if err != nil {
		if addr, perr := netip.ParseAddr(strings.Trim(given, "[]")); perr == nil {
			host, port = addr.String(), strconv.Itoa(relayPort)
		} else if !strings.Contains(given, ":") {
			host, port = given, strconv.Itoa(relayPort)
		} else {
			return "", fmt.Errorf("relay address %q: %s", given, want)
		}
	}
	if host == "" {
		return "", fmt.Errorf("relay address %q has no host: %s", given, want)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("relay address %q: port %q is not 1..65535: %s", given, port, want)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.IsUnspecified() || addr.IsLoopback() {
			return "", fmt.Errorf("relay address %q: seen from the agent's Pod, %s is the Pod itself: %s", given, host, want)
		}
	} else if strings.EqualFold(host, "localhost") {
		return "", fmt.Errorf("relay address %q: seen from the agent's Pod, localhost is the Pod itself: %s", given, want)
	} else if problems := validation.IsDNS1123Subdomain(strings.ToLower(strings.TrimSuffix(host, "."))); len(problems) > 0 {
		return "", fmt.Errorf("relay address %q: %q is neither an IP address nor a DNS name: %s", given, host, want)
	}
	return net.JoinHostPort(host, port), nil
}

// errAddressPending: the Service is a LoadBalancer that has no address yet; waiting may help.
var errAddressPending = errors.New("the LoadBalancer has no address yet")

// relayAddress finds the address under which another cluster reaches the management server, from its Service; how tells where it came from.
// nodes are needed for a NodePort only. sameCluster: the agent runs in the management cluster, and any Service type does.
func relayAddress(service *corev1.Service, nodes []corev1.Node, sameCluster bool) (address, how string, err error) {
	port, ok := relayServicePort(service)
	if !ok {
		return "", "", fmt.Errorf("service %s/%s has no port named grpc and none with number %d: is it the management server's?", service.Namespace, service.Name, relayPort)
	}
	if sameCluster {
		return fmt.Sprintf("%s.%s:%d", service.Name, service.Namespace, port.Port), "the Service, in the management cluster itself", nil
	}
	switch service.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			// A hostname comes first: where a cloud gives both, the IP may change.
			if host := firstOf(ingress.Hostname, ingress.IP); host != "" {
				return net.JoinHostPort(host, strconv.Itoa(int(port.Port))), "the Service's LoadBalancer", nil
			}
		}
		return "", "", errAddressPending
	case corev1.ServiceTypeNodePort:
		if host, kind := nodeAddress(nodes); host != "" && port.NodePort > 0 {
			return net.JoinHostPort(host, strconv.Itoa(int(port.NodePort))), "the Service's NodePort at a node's " + kind, nil
		}
		return "", "", errors.New("the Service is a NodePort, but no node with an address is to be seen: give --relay-server-address")
	default:
		for _, external := range service.Spec.ExternalIPs {
			return net.JoinHostPort(external, strconv.Itoa(int(port.Port))), "the Service's external IP", nil
		}
	}
	return "", "", fmt.Errorf("service %[1]s/%[2]s is of type %[3]s, which other clusters can't reach. Either make it a LoadBalancer:\n"+
		"    kubectl -n %[1]s patch service %[2]s -p '{\"spec\":{\"type\":\"LoadBalancer\"}}'\n"+
		"or, with an Ingress or a load balancer of your own before port %[4]d, give its address: --relay-server-address HOST:PORT",
		service.Namespace, service.Name, firstOf(string(service.Spec.Type), "ClusterIP"), port.Port)
}

func relayServicePort(service *corev1.Service) (corev1.ServicePort, bool) {
	for _, p := range service.Spec.Ports {
		if p.Name == "grpc" {
			return p, true
		}
	}
	for _, p := range service.Spec.Ports {
		if p.Port == relayPort {
			return p, true
		}
	}
	return corev1.ServicePort{}, false
}

// nodeAddress prefers external addresses, and nodes that are ready.
func nodeAddress(nodes []corev1.Node) (host, kind string) {
	for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeExternalDNS, corev1.NodeInternalIP} {
		for _, wantReady := range []bool{true, false} {
			for _, n := range nodes {
				ready := false
				for _, c := range n.Status.Conditions {
					ready = ready || c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
				}
				if ready != wantReady {
					continue
				}
				for _, a := range n.Status.Addresses {
					if a.Type == kind && a.Address != "" {
						return a.Address, string(kind)
					}
				}
			}
		}
	}
	return "", ""
}
