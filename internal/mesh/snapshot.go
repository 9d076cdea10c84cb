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
	// Clusters are the registered clusters, sorted by name.
	Clusters []Cluster
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
}

// Cluster finds a cluster by name, or nil.
func (s *Snapshot) Cluster(n ClusterName) *Cluster {
	i, ok := slices.BinarySearchFunc(s.Clusters, n, func(c Cluster, n ClusterName) int { return strings.Compare(string(c.Name), string(n)) })
	if !ok {
		return nil
	}
	return &s.Clusters[i]
}
