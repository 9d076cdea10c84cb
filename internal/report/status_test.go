package report_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

var (
	noon    = time.Date(2026, 5, 15, 12, 0, 0, 0, time.UTC)
	earlier = metav1.NewTime(noon.Add(-time.Hour))
	object  = mesh.Ref{Version: "v1", Kind: "ConfigMap", Namespace: "gloo-mesh", Name: "ambit-membership"}
	wanted  = mesh.FingerprintOf([]byte("manifest"))
)

func accepted() []mesh.Condition {
	return []mesh.Condition{{Type: adminv2.ConditionAccepted, Status: mesh.True, Reason: adminv2.ReasonValid, Message: "the cluster is registered"}}
}

// healthy is a cluster as it is nearly always.
func healthy() report.Input {
	return report.Input{
		Cluster: mesh.Cluster{
			Name: "c1", Generation: 1, RegisteredBy: "jane", RegisteredAt: noon.Add(-time.Hour), UID: "u1",
			Inventory: &mesh.Inventory{
				Complete: true, Info: mesh.ClusterInfo{TrustDomain: "cluster.local", IstioVersion: "1.28.0", Network: "n1"},
				Outcomes: map[mesh.Ref]mesh.Outcome{object: {Hash: wanted, OK: true}},
			},
		},
		Session:    mesh.Session{Connected: true, Since: noon.Add(-time.Hour), LastHeartbeat: noon, AgentVersion: "2.12.0", UID: "u1", Measured: true, Offset: 3 * time.Millisecond},
		Conditions: accepted(), Desired: mesh.ObjectsOf(mesh.Object{Ref: object, Hash: wanted}), Published: true, ServerVersion: "2.12.0",
	}
}

// brief is what the tests below compare: the status without what never surprises.
type brief struct {
	Approval  adminv2.ApprovalState
	Message   string
	State     adminv2.ConnectionState
	Skew, UID string
	Not       map[string]string // conditions that are not True, with their reason
}

func short(s adminv2.KubernetesClusterStatus) brief {
	b := brief{s.Common.State.Approval, s.Common.State.Message, s.Connection, s.ClockSkew, s.ClusterUID, map[string]string{}}
	for _, c := range s.Conditions {
		if c.Status != metav1.ConditionTrue {
			b.Not[c.Type] = c.Reason
		}
	}
	return b
}

func TestNextWhole(t *testing.T) {
	cond := func(t, reason, message string) metav1.Condition {
		return metav1.Condition{Type: t, Status: metav1.ConditionTrue, ObservedGeneration: 1, LastTransitionTime: metav1.NewTime(noon), Reason: reason, Message: message}
	}
	beat := metav1.NewTime(noon)
	want := adminv2.KubernetesClusterStatus{
		Common: adminv2.CommonStatus{State: adminv2.State{ObservedGeneration: 1, Approval: adminv2.ApprovalAccepted}},
		Conditions: []metav1.Condition{
			cond("Accepted", "Valid", "the cluster is registered"),
			cond("ClockSynchronised", "ClocksAgree", "the agent's clock agrees with the server's"),
			cond("Connected", "Connected", "the agent has a session"),
			cond("IdentityVerified", "Verified", "certificate, name and kube-system UID belong together"),
			cond("Programmed", "Applied", "everything is applied"),
			cond("VersionSupported", "VersionsMatch", "agent 2.12.0 and server 2.12.0 may work together"),
			cond("Warm", "InventoryComplete", "the whole inventory has been received"),
		},
		Connection: adminv2.ConnectionConnected, AgentVersion: "2.12.0", LastHeartbeat: &beat, TrustDomain: "cluster.local",
		RegisteredBy: "jane", RegisteredAt: &earlier, ClusterUID: "u1", IstioVersion: "1.28.0", Network: "n1",
	}
	got := report.Next(adminv2.KubernetesClusterStatus{}, healthy(), noon)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(got, report.Next(got, healthy(), noon.Add(time.Hour))); diff != "" {
		t.Errorf("the same input an hour later changes the status:\n%s", diff)
	}
}

func TestNext(t *testing.T) {
	known := report.Next(adminv2.KubernetesClusterStatus{}, healthy(), noon)
	for name, tc := range map[string]struct {
		old    adminv2.KubernetesClusterStatus
		change func(*report.Input)
		want   brief
	}{
		"registered, no agent yet": {adminv2.KubernetesClusterStatus{}, func(in *report.Input) {
			in.Session, in.Cluster.Inventory, in.Cluster.UID = mesh.Session{}, nil, ""
		}, brief{
			"PENDING", "no agent has connected as \"c1\" yet: install it with `meshctl cluster register c1`", "Pending", "", "",
			map[string]string{"Connected": "NeverConnected", "IdentityVerified": "NeverConnected", "Warm": "InventoryPending", "Programmed": "Applying"},
		}},
		"first session": {
			adminv2.KubernetesClusterStatus{},
			func(in *report.Input) { in.Cluster.UID, in.Cluster.Inventory, in.Published = "", nil, false },
			brief{"ACCEPTED", "", "Connected", "", "u1", map[string]string{"Warm": "InventoryPending", "Programmed": "InventoryPending"}},
		},
		"gone": {
			known, func(in *report.Input) { in.Session = mesh.Session{Ended: "heartbeats missing"} },
			brief{"ACCEPTED", "", "Disconnected", "", "u1", map[string]string{"Connected": "Disconnected"}},
		},
		"refused": {
			known, func(in *report.Input) { in.Session = mesh.Session{Refusal: "another UID", RefusedIdentity: true} },
			brief{"ACCEPTED", "", "Disconnected", "", "u1", map[string]string{"Connected": "Refused", "IdentityVerified": "Refused"}},
		},
		"somebody else tries while connected": {
			known, func(in *report.Input) { in.Session.Refusal, in.Session.RefusedIdentity = "another UID", true },
			brief{"ACCEPTED", "", "Connected", "", "u1", map[string]string{"IdentityVerified": "Refused"}},
		},
		"invalid": {known, func(in *report.Input) {
			in.Conditions = []mesh.Condition{{Type: "Accepted", Status: mesh.False, Reason: "Invalid", Message: "bad domain"}}
		}, brief{"INVALID", "bad domain", "Connected", "", "u1", map[string]string{"Accepted": "Invalid"}}},
		"apply failed": {known, func(in *report.Input) {
			in.Cluster.Inventory.Outcomes[object] = mesh.Outcome{Hash: wanted, Error: "forbidden"}
		}, brief{"FAILED", "not applied: ConfigMap gloo-mesh/ambit-membership: forbidden", "Connected", "", "u1", map[string]string{"Programmed": "ApplyFailed"}}},
		"older object applied": {known, func(in *report.Input) {
			in.Cluster.Inventory.Outcomes[object] = mesh.Outcome{Hash: mesh.FingerprintOf(nil), OK: true}
		}, brief{"ACCEPTED", "", "Connected", "", "u1", map[string]string{"Programmed": "Applying"}}},
		"older object applied, sent a moment ago": {known, func(in *report.Input) {
			in.Cluster.Inventory.Outcomes[object], in.Patient = mesh.Outcome{Hash: mesh.FingerprintOf(nil), OK: true}, true
		}, brief{"ACCEPTED", "", "Connected", "", "u1", map[string]string{}}},
		"nothing applied yet, sent a moment ago": {adminv2.KubernetesClusterStatus{ClusterUID: "u1"}, func(in *report.Input) {
			in.Cluster.Inventory.Outcomes, in.Patient = nil, true
		}, brief{"ACCEPTED", "", "Connected", "", "u1", map[string]string{"Programmed": "Applying"}}},
		"ten minutes behind": {
			known, func(in *report.Input) { in.Session.Offset = 10*time.Minute + 80*time.Millisecond },
			brief{"ACCEPTED", "", "Connected", "10m0s behind", "u1", map[string]string{"ClockSynchronised": "ClockSkew"}},
		},
		"ahead": {
			known, func(in *report.Input) { in.Session.Offset = -42 * time.Second },
			brief{"ACCEPTED", "", "Connected", "42s ahead", "u1", map[string]string{"ClockSynchronised": "ClockSkew"}},
		},
		"skipWarming": {
			known, func(in *report.Input) { in.Cluster.SkipWarming, in.Cluster.Inventory = true, nil },
			brief{"ACCEPTED", "", "Connected", "", "u1", map[string]string{"Programmed": "InventoryPending"}},
		},
		"agent too old": {
			known, func(in *report.Input) { in.Session.AgentVersion = "2.10.4" },
			brief{"ACCEPTED", "", "Connected", "", "u1", map[string]string{"VersionSupported": "AgentTooOld"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := healthy()
			tc.change(&in)
			if diff := cmp.Diff(tc.want, short(report.Next(tc.old, in, noon))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSkewJitterChangesNothing(t *testing.T) {
	in := healthy()
	in.Session.Offset = 10*time.Second + 490*time.Millisecond
	st := report.Next(adminv2.KubernetesClusterStatus{}, in, noon)
	for _, ms := range []int{9500, 10510, 11400, 10000, 10499, 10501} {
		in.Session.Offset = time.Duration(ms) * time.Millisecond
		if diff := cmp.Diff(st, report.Next(st, in, noon)); diff != "" {
			t.Errorf("offset %s: %s", in.Session.Offset, diff)
		}
	}
}

func TestVersionSupported(t *testing.T) {
	for agent, want := range map[string]string{
		"2.12.0": "VersionsMatch", "2.12.9": "VersionsMatch", "2.11.3": "VersionsMatch", "2.13.0": "VersionsMatch", "v2.12.0": "VersionsMatch", "2.12.0-beta1": "VersionsMatch",
		"2.10.0": "AgentTooOld", "1.12.0": "AgentTooOld", "2.14.1": "AgentTooNew", "3.0.0": "AgentTooNew", "dev": "VersionUnknown", "": "VersionUnknown",
	} {
		if got := report.VersionSupported(agent, "2.12.0"); got.Reason != want {
			t.Errorf("agent %q: %+v, want %s", agent, got, want)
		}
	}
}

func TestDiffer(t *testing.T) {
	st := report.Next(adminv2.KubernetesClusterStatus{}, healthy(), noon)
	later := func(d time.Duration) adminv2.KubernetesClusterStatus {
		in := healthy()
		in.Session.LastHeartbeat = noon.Add(d)
		return report.Next(st, in, noon.Add(d))
	}
	gone := healthy()
	gone.Session.Connected = false
	for name, tc := range map[string]struct {
		next adminv2.KubernetesClusterStatus
		want bool
	}{
		"same": {st, false}, "59 s on": {later(59 * time.Second), false}, "a minute on": {later(time.Minute), true}, "gone": {report.Next(st, gone, noon.Add(time.Second)), true},
	} {
		if got := report.Differ(st, tc.next); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
