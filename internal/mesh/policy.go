package mesh

import (
	"slices"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// AccessPolicy is an AccessPolicy as the management cluster has it.
type AccessPolicy struct {
	Source     Ref
	UID        string
	Generation int64
	Created    time.Time
	Spec       securityv2.AccessPolicySpec
	ChangedBy  string
	// Invalid says what is wrong with it; empty: nothing.
	Invalid string
}

// Workspace is a Workspace of the admin namespace.
type Workspace struct {
	Source     Ref
	UID        string
	Generation int64
	Labels     map[string]string
	Spec       adminv2.WorkspaceSpec
	Invalid    string
}

// WorkspaceSettings is a WorkspaceSettings as the management cluster has it.
type WorkspaceSettings struct {
	Source     Ref
	UID        string
	Generation int64
	Created    time.Time
	Spec       adminv2.WorkspaceSettingsSpec
	Invalid    string
}

// Override is a PolicyOverride in force: the Snapshot holds none that has ended.
type Override struct {
	Source   Ref
	Policy   Ref
	Clusters []ClusterName // empty: all
	Until    time.Time
	Reason   string
	By       string
}

// In reports whether the override suspends its policy in c.
func (o *Override) In(c ClusterName) bool {
	return len(o.Clusters) == 0 || slices.Contains(o.Clusters, c)
}

// PolicyReport is what translation concluded of one AccessPolicy.
type PolicyReport struct {
	// Approval is ACCEPTED, WARNING or INVALID; Message says why, in one sentence, empty for ACCEPTED. What became of it in the clusters comes on top.
	Approval adminv2.ApprovalState
	Message  string
	// Workspace that it belongs to; empty: the whole mesh.
	Workspace        string
	DestinationPorts int
	Namespaces       int // (cluster, namespace) pairs with destinations
	// ServiceAccounts that are allowed, as principals without "spiffe://", sorted.
	ServiceAccounts []Principal
	// Conditions Accepted and Resolved.
	Conditions []Condition
	// Clusters that should have it, by name.
	Clusters []PolicyClusterReport
}

// PolicyClusterReport is what translation concluded of one AccessPolicy in one cluster.
type PolicyClusterReport struct {
	Cluster ClusterName
	// Objects that enforce it there, sorted. One object may serve several policies.
	Objects []Ref
	// Unenforceable says why the cluster can't enforce it, empty: it can.
	Unenforceable string
	// Waiting says what the cluster has not reported yet, empty: nothing.
	Waiting string
	// Widened says what else in the cluster allows more, one sentence each, sorted.
	Widened []string
	// Override in force there, or nil.
	Override *Override
}

// WorkspaceReport is what translation concluded of one Workspace.
type WorkspaceReport struct {
	Approval adminv2.ApprovalState
	Message  string
	// Settings that apply; zero: none.
	Settings           Ref
	Clusters           int
	Namespaces         int
	Services           ServiceCounts
	Policies           int
	ImportedWorkspaces int
}

// ServiceCounts counts the Services of a workspace.
type ServiceCounts struct{ Private, Exported, Imported int }

// SettingsReport is what translation concluded of one WorkspaceSettings.
type SettingsReport struct {
	Approval         adminv2.ApprovalState
	Message          string
	Workspace        string // empty: none, or all (the global settings)
	EastWestGateways int
}

// Principal is a workload identity as Istio's policies write it: "trust-domain/ns/NAMESPACE/sa/NAME", without "spiffe://".
type Principal string
