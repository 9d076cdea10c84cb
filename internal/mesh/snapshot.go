package mesh

import (
	"slices"
	"strings"
	"time"
)

// Snapshot is everything translation may know, at one moment. It is immutable: whoever holds one may share it, nobody may change it.
type Snapshot struct {
	// ServerVersion is the management server's version.
	ServerVersion string
	// ManagementCluster is the name of the cluster the server runs in; empty if it has none.
	ManagementCluster string
	// AdminNamespace is where the KubernetesClusters are, and where each cluster's agent lives.
	AdminNamespace string
	// Peering: peers of clusters are kept (featureGates.ConfigDistribution).
	Peering bool
	// Clusters are the registered clusters, sorted by name.
	Clusters []Cluster
	// Namespaces of the management cluster with their labels: where policies may lie. nil: not known yet.
	Namespaces map[string]map[string]string
	// Policies, Workspaces, Settings and Overrides are all there are in the management cluster, each sorted by Source. An entry that has not changed since
	// an earlier Snapshot is the same pointer.
	Policies   []*AccessPolicy
	Workspaces []*Workspace
	Settings   []*WorkspaceSettings
	Overrides  []*Override
	// RootPolicies and RotationRequests are those of the admin namespace, in the same way.
	RootPolicies     []*RootTrustPolicy
	RotationRequests []*RotationRequest
	// Segments are those of any namespace, in the same way.
	Segments []*Segment
}

// Cluster is a registered cluster and what its agent reported.
type Cluster struct {
	Name          ClusterName
	Source        Ref    // its KubernetesCluster
	SourceUID     string // metadata.uid of that
	Generation    int64
	Labels        map[string]string
	ClusterDomain string
	SkipWarming   bool
	Peering       PeerSettings
	RegisteredBy  string
	RegisteredAt  time.Time
	// UID is the kube-system UID its first session gave; empty: it has never connected.
	UID ClusterUID
	// Invalid says what is wrong with its KubernetesCluster; empty: nothing.
	Invalid string
	// Inventory is nil while the server has none of this cluster. Absent is not empty.
	Inventory *Inventory
}

// Inventory is what a cluster's agent reported.
type Inventory struct {
	// Complete: the agent's whole state has been received once since the server started.
	Complete bool
	Info     ClusterInfo
	// Outcomes are the agent's applies, by object.
	Outcomes map[Ref]Outcome
	// PeerProbes say how each peer is reached, by the "namespace/name" of its Gateway. They decide nothing.
	PeerProbes map[string]PeerProbe
	// Segments is what the cluster has of its SegmentOrder; nil: it has not said. It decides nothing.
	Segments *SegmentState
	// Namespaces are what runs in each. One that has not changed since an earlier Snapshot is the same pointer.
	Namespaces map[string]*NamespaceInventory
}

// NamespaceInventory is what an agent reported of one namespace; every list is sorted by name.
type NamespaceInventory struct {
	Labels          map[string]string
	Services        []Service
	ServiceAccounts []ServiceAccount
	Workloads       []Workload
	Gateways        []Gateway
	// Foreign are the Istio policies there that are not ours.
	Foreign []ForeignPolicy
}

// Cluster finds a cluster by name, or nil.
func (s *Snapshot) Cluster(n ClusterName) *Cluster {
	i, ok := slices.BinarySearchFunc(s.Clusters, n, func(c Cluster, n ClusterName) int { return strings.Compare(string(c.Name), string(n)) })
	if !ok {
		return nil
	}
	return &s.Clusters[i]
}
