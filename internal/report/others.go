package report

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// Keys of the maps in a Workspace's status, as WorkspaceSettings name the kinds.
const (
	CountService      = "SERVICE"
	CountAccessPolicy = "ACCESS_POLICY"
)

// NextWorkspace is the status that says r; nil: not translated yet.
func NextWorkspace(old adminv2.WorkspaceStatus, w *mesh.Workspace, r *mesh.WorkspaceReport) adminv2.WorkspaceStatus {
	if r == nil {
		st := *old.DeepCopy()
		st.Common.State = untranslated(old.Common.State, w.Generation)
		return st
	}
	st := adminv2.WorkspaceStatus{
		Common:              adminv2.CommonStatus{State: adminv2.State{ObservedGeneration: w.Generation, Approval: r.Approval, Message: r.Message}},
		NumSelectedClusters: count(r.Clusters), NumSelectedNamespaces: count(r.Namespaces), NumImportedWorkspaces: count(r.ImportedWorkspaces),
	}
	if r.Settings != (mesh.Ref{}) {
		st.WorkspaceSettings = &adminv2.ObjectReference{Name: r.Settings.Name, Namespace: r.Settings.Namespace}
	}
	if s := r.Services; s != (mesh.ServiceCounts{}) {
		st.NumResources = map[string]adminv2.ResourceCount{CountService: {Imported: count(s.Imported), Exported: count(s.Exported), Private: count(s.Private)}}
		st.DestinationCounts = map[string]uint32{CountService: count(s.Private + s.Exported + s.Imported)}
	}
	if r.Policies > 0 {
		st.PolicyCounts = map[string]uint32{CountAccessPolicy: count(r.Policies)}
	}
	return st
}

// NextSettings is the status that says r; nil: not translated yet.
func NextSettings(old adminv2.WorkspaceSettingsStatus, s *mesh.WorkspaceSettings, r *mesh.SettingsReport, adminNamespace string) adminv2.WorkspaceSettingsStatus {
	if r == nil {
		st := *old.DeepCopy()
		st.Common.State = untranslated(old.Common.State, s.Generation)
		return st
	}
	st := adminv2.WorkspaceSettingsStatus{
		Common:                      adminv2.CommonStatus{State: adminv2.State{ObservedGeneration: s.Generation, Approval: r.Approval, Message: r.Message}},
		NumSelectedEastWestGateways: count(r.EastWestGateways),
	}
	if r.Workspace != "" {
		st.Workspace = &adminv2.ObjectReference{Name: r.Workspace, Namespace: adminNamespace}
	}
	return st
}

func untranslated(old adminv2.State, generation int64) adminv2.State {
	if old.Approval != "" {
		return old
	}
	return adminv2.State{ObservedGeneration: generation, Approval: adminv2.ApprovalPending, Message: "not translated yet"}
}

// OverrideInput is everything that is known of one PolicyOverride.
type OverrideInput struct {
	Generation int64
	Policy     mesh.Ref
	Exists     bool // the policy does
	Invalid    string
	Until      time.Time
	By         string
	Now        time.Time
}

// NextOverride is the status that says OverrideInput.
func NextOverride(in OverrideInput) securityv2.PolicyOverrideStatus {
	st := securityv2.PolicyOverrideStatus{By: in.By}
	st.Common.State = adminv2.State{ObservedGeneration: in.Generation, Approval: adminv2.ApprovalAccepted}
	if in.Invalid != "" {
		st.Common.State.Approval, st.Common.State.Message = adminv2.ApprovalInvalid, in.Invalid
		return st
	}
	until := metav1.NewTime(in.Until)
	st.Until = &until
	switch {
	case !in.Until.After(in.Now):
		st.Common.State.Message = "it has ended"
	case !in.Exists:
		st.Common.State.Approval = adminv2.ApprovalWarning
		st.Common.State.Message = fmt.Sprintf("there is no AccessPolicy %s/%s: nothing is suspended", in.Policy.Namespace, in.Policy.Name)
	}
	return st
}
