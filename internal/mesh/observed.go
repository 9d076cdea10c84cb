package mesh

import "encoding/json"

// Types of inventory items beside ItemCluster and ItemOutcome. Names are "namespace/name", or "name" for namespaces.
const (
	ItemNamespace      = "namespace"      // Namespace
	ItemService        = "service"        // Service
	ItemServiceAccount = "serviceaccount" // ServiceAccount
	ItemWorkload       = "workload"       // Workload, named "namespace/Kind/name" of its owner
	ItemGateway        = "gateway"        // Gateway
	ItemPeerProbe      = "peerprobe"      // PeerProbe, named by the Gateway
	ItemForeign        = "foreignpolicy"  // ForeignPolicy, named "namespace/Kind/name"
)

// ForeignPolicy is what an agent reports of an AuthorizationPolicy or PeerAuthentication that is not ours.
type ForeignPolicy struct {
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	// Spec as it is in the cluster, JSON.
	Spec json.RawMessage `json:"spec,omitempty"`
	// DryRun: annotation istio.io/dry-run is "true".
	DryRun bool `json:"dryRun,omitempty"`
	// Taken: it was one of ours, by name; somebody took our owner label off.
	Taken bool `json:"taken,omitempty"`
}

// Namespace is what an agent reports of a Namespace.
type Namespace struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Service is what an agent reports of a Service.
type Service struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Selector  map[string]string `json:"selector,omitempty"`
	Type      string            `json:"type,omitempty"` // empty: ClusterIP
	Ports     []ServicePort     `json:"ports,omitempty"`
	// Addresses are the load balancer's IPs and hostnames.
	Addresses []string `json:"addresses,omitempty"`
	Headless  bool     `json:"headless,omitempty"`
}

// ServicePort is a port of a Service.
type ServicePort struct {
	Name       string `json:"name,omitempty"`
	Number     int32  `json:"number"`
	TargetPort string `json:"targetPort,omitempty"` // a number or a name; empty: Number
	Protocol   string `json:"protocol,omitempty"`   // empty: TCP
	App        string `json:"app,omitempty"`        // appProtocol
	NodePort   int32  `json:"nodePort,omitempty"`   // of Services of east-west gateways only
}

// ServiceAccount is what an agent reports of a ServiceAccount.
type ServiceAccount struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// Workload is what an agent reports of all Pods that one owner made (a Deployment, StatefulSet, DaemonSet, Job; a bare Pod is its own owner).
type Workload struct {
	Namespace      string            `json:"namespace"`
	Kind           string            `json:"kind"`
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels,omitempty"` // of the Pods it makes
	ServiceAccount string            `json:"serviceAccount,omitempty"`
}

// Gateway is what an agent reports of a Gateway API Gateway: waypoints, east-west gateways and remote peers are told apart by class.
type Gateway struct {
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	Class       string            `json:"class"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"` // only gateway.istio.io/* and networking.istio.io/*
	Addresses   []string          `json:"addresses,omitempty"`   // of status
	Programmed  bool              `json:"programmed,omitempty"`
}
