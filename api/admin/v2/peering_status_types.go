package v2

// ClusterPeering says where other clusters reach a cluster, and sums up how it reaches them.
type ClusterPeering struct {
	// Gateway is the cluster's east-west gateway, "namespace/name"; empty: none is known that others could use.
	// +optional
	Gateway string `json:"gateway,omitempty"`
	// Address under which it is reached, an IP address or a hostname.
	// +optional
	Address string `json:"address,omitempty"`
	// AddressSource is where the address is from: Override, Gateway, LoadBalancer or NodePort.
	// +optional
	AddressSource string `json:"addressSource,omitempty"`
	// HBONEPort and XDSPort are its ports.
	// +optional
	HBONEPort int32 `json:"hbonePort,omitempty"`
	// +optional
	XDSPort int32 `json:"xdsPort,omitempty"`
	// Network it leads to.
	// +optional
	Network string `json:"network,omitempty"`
	// Cluster is what its istiod calls the cluster.
	// +optional
	Cluster string `json:"cluster,omitempty"`
	// ServiceAccount and TrustDomain are what is expected behind the address.
	// +optional
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// +optional
	TrustDomain string `json:"trustDomain,omitempty"`
	// Message says why it takes no part, or why nothing leads to it.
	// +optional
	Message string `json:"message,omitempty"`
	// Peers is how many clusters are peered with it, automatically or by hand; Reachable how many of their gateways answer it.
	// +optional
	Peers int32 `json:"peers,omitempty"`
	// +optional
	Reachable int32 `json:"reachable,omitempty"`
}

// ClusterPeer is another cluster as it is reached from this one.
type ClusterPeer struct {
	// Cluster is its KubernetesCluster.
	Cluster string `json:"cluster"`
	// Reason says what is between the two: Automatic, HandMade, SameNetwork, SwitchedOff, PeerSwitchedOff, NoGateway, NetworkTaken or NamespaceMissing.
	Reason string `json:"reason"`
	// Address of the gateway that leads there, with port.
	// +optional
	Address string `json:"address,omitempty"`
	// Reachable is whether it answers the agent of this cluster: True, False or Unknown.
	// +optional
	Reachable string `json:"reachable,omitempty"`
	// RoundTrip to it, as the agent measured it.
	// +optional
	RoundTrip string `json:"roundTrip,omitempty"`
	// Message says what is wrong, or how it is.
	// +optional
	Message string `json:"message,omitempty"`
}
