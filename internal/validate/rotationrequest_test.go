package validate_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/validate"
)

const requestHead = `
apiVersion: admin.gloo.solo.io/v2
kind: RotationRequest
metadata: {name: chg-1234, namespace: gloo-mesh}
`

func TestRotationRequest(t *testing.T) {
	const all = "Rotate, Pause, Resume, Rollback, Fence, Unfence, Revoke"
	compare(t, requestHead, map[string]struct {
		rest string
		want verdict
	}{
		"rotate":   {`spec: {policy: root-trust, action: Rotate, reason: "the key is 10 years old, says $AUDIT"}`, verdict{}},
		"pause":    {`spec: {policy: root-trust, action: Pause, reason: freeze}`, verdict{}},
		"resume":   {`spec: {policy: root-trust, action: Resume, reason: freeze is over}`, verdict{}},
		"rollback": {`spec: {policy: root-trust, action: Rollback, reason: INC}`, verdict{}},
		"unfence":  {`spec: {policy: root-trust, action: Unfence, clusters: [c1], reason: it is back}`, verdict{}},
		"fence": {`spec: {policy: root-trust, action: Fence, clusters: [c1, c2], reason: flood}`, doubtful(
			`spec.clusters: the rotation goes on without c1, c2: workloads there and elsewhere refuse each other once a root is dropped, until action: Unfence and the cluster has caught up`)},
		"revoke": {`spec: {policy: root-trust, action: Revoke, clusters: [c1], reason: stolen}`, doubtful(
			`spec.clusters: workloads of c1 are refused by all that check revocation, until the clusters have new intermediates`)},
		"emergency": {`spec: {policy: root-trust, action: Rotate, emergency: true, reason: stolen}`, doubtful(
			`spec.emergency: every istiod, ztunnel, gateway and waypoint of the mesh is restarted, established connections are closed, and nothing waits for what can't be seen: some handshakes may fail`)},
		"nothing": {`spec: {}`, wrong(
			`spec.policy: Required value: which RootTrustPolicy? write its name`, `spec.action: Required value: what is to be done? write `+all,
			`spec.reason: Required value: why? It is what others read at night, such as "CHG-1234: the root's key moves to an HSM"`)},
		"lower case":  {`spec: {policy: p, action: rollback, reason: x}`, wrong(`spec.action: Invalid value: "rollback": did you mean Rollback?`)},
		"unknown":     {`spec: {policy: p, action: Stop, reason: x}`, wrong(`spec.action: Invalid value: "Stop": want ` + all)},
		"no clusters": {`spec: {policy: p, action: Fence, reason: x}`, wrong(`spec.clusters: Required value: which clusters? write clusters: [...]`)},
		"of some":     {`spec: {policy: p, action: Pause, clusters: [c1], reason: x}`, wrong(`spec.clusters: Forbidden: Pause is of the whole mesh, since its clusters can't be in different phases: leave clusters out`)},
		"clusters": {`spec: {policy: p, action: Revoke, clusters: ["*", "", a, a], reason: x}`, wrong(
			`spec.clusters[0]: Invalid value: "*": no wildcards here, the name of one cluster is wanted: write each name`,
			`spec.clusters[1]: Required value: write the name of a cluster`, `spec.clusters[3]: Duplicate value: "a"`)},
		"emergency pause": {`spec: {policy: p, action: Pause, emergency: true, reason: x}`, wrong(`spec.emergency: Invalid value: true: only Rotate can be an emergency; a single cluster's intermediate is revoked: action: Revoke`)},
		"blank reason":    {`spec: {policy: p, action: Pause, reason: " "}`, wrong(`spec.reason: Required value: why? It is what others read at night, such as "CHG-1234: the root's key moves to an HSM"`)},
		"words": {`spec: {policyRef: {name: p}, action: Pause, cluster: a, by: me}`, wrong(
			`spec.by: Forbidden: unknown field: who asks is recorded by the server`, `spec.cluster: Forbidden: unknown field: did you mean "clusters"?`,
			`spec.policyRef: Forbidden: unknown field: did you mean "policy"?`)},
	})
	elsewhere := judge(t, strings.Replace(requestHead, "namespace: gloo-mesh", "namespace: a", 1)+`spec: {policy: p, action: Pause, reason: x}`)
	if diff := cmp.Diff(wrong(`metadata.namespace: Invalid value: "a": create it in namespace "gloo-mesh", where RootTrustPolicies are`), elsewhere); diff != "" {
		t.Error(diff)
	}
}

func TestRotationRequestAmongOthers(t *testing.T) {
	request := func(change func(*adminv2.RotationRequestSpec)) *adminv2.RotationRequest {
		r := &adminv2.RotationRequest{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "gloo-mesh"}, Spec: adminv2.RotationRequestSpec{Policy: "root-trust", Action: adminv2.ActionUnfence, Clusters: []string{"c1"}, Reason: "x"}}
		change(&r.Spec)
		return r
	}
	old, want := request(func(*adminv2.RotationRequestSpec) {}), []string{`spec: Forbidden: a request can't be changed, so that the record stays true: create another`}
	for name, change := range map[string]func(*adminv2.RotationRequestSpec){
		"policy": func(s *adminv2.RotationRequestSpec) { s.Policy = "q" }, "action": func(s *adminv2.RotationRequestSpec) { s.Action = adminv2.ActionFence },
		"clusters": func(s *adminv2.RotationRequestSpec) { s.Clusters = nil }, "reason": func(s *adminv2.RotationRequestSpec) { s.Reason = "y" },
		"emergency": func(s *adminv2.RotationRequestSpec) { s.Emergency = true },
	} {
		if diff := cmp.Diff(want, said(validate.RotationRequest(request(change), old, validate.Options{}))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if diff := cmp.Diff([]string{}, said(validate.RotationRequest(request(func(*adminv2.RotationRequestSpec) {}), old, validate.Options{}))); diff != "" {
		t.Error(diff)
	}
	o := validate.Options{AdminNamespace: "gloo-mesh", Snapshot: func() *mesh.Snapshot {
		return &mesh.Snapshot{Clusters: []mesh.Cluster{{Name: "c1"}}, RootPolicies: []*mesh.RootTrustPolicy{{Source: mesh.Ref{Name: "root-trust"}}}}
	}}
	for name, tc := range map[string]struct {
		change func(*adminv2.RotationRequestSpec)
		want   []string
	}{
		"there":         {func(*adminv2.RotationRequestSpec) {}, nil},
		"misspelt":      {func(s *adminv2.RotationRequestSpec) { s.Policy = "root-turst" }, []string{`spec.policy: there is no RootTrustPolicy "root-turst": did you mean "root-trust"?`}},
		"not there":     {func(s *adminv2.RotationRequestSpec) { s.Policy = "x" }, []string{`spec.policy: there is no RootTrustPolicy "x"`}},
		"no cluster":    {func(s *adminv2.RotationRequestSpec) { s.Clusters = []string{"c2"} }, []string{`spec.clusters: no cluster "c2" is registered`}},
		"gone, revoked": {func(s *adminv2.RotationRequestSpec) { s.Action, s.Clusters = adminv2.ActionRevoke, []string{"c2"} }, []string{`spec.clusters: workloads of c2 are refused by all that check revocation, until the clusters have new intermediates`}},
	} {
		if diff := cmp.Diff(tc.want, append([]string(nil), validate.WarningsOfRotationRequest(request(tc.change), o)...)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestDeletionOfRotationRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		action adminv2.RotationAction
		state  adminv2.RotationRequestState
		want   []string
	}{
		"pause":        {adminv2.ActionPause, adminv2.RequestDone, []string{`RotationRequest r: unless it was resumed, the rotation goes on once this is gone; to say so on the record, create a request with action: Resume`}},
		"fence":        {adminv2.ActionFence, adminv2.RequestDone, []string{`RotationRequest r: unless another request fences them, c1, c2 are waited for again once this is gone; to say so on the record, create a request with action: Unfence`}},
		"rollback":     {adminv2.ActionRollback, adminv2.RequestDone, []string{`RotationRequest r: the root that was rolled back is tried again once this is gone, if the policy still asks for it`}},
		"revoke":       {adminv2.ActionRevoke, adminv2.RequestDone, []string{`RotationRequest r: the intermediates of c1, c2 are not asked to be revoked any more once this is gone`}},
		"rotate":       {adminv2.ActionRotate, adminv2.RequestDone, nil},
		"refused":      {adminv2.ActionPause, adminv2.RequestRefused, nil},
		"not taken up": {adminv2.ActionPause, "", nil},
	} {
		q := &adminv2.RotationRequest{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Spec: adminv2.RotationRequestSpec{Action: tc.action, Clusters: []string{"c1", "c2"}}, Status: adminv2.RotationRequestStatus{State: tc.state}}
		refused, doubts := validate.DeletionOfRotationRequest(q)
		if diff := cmp.Diff(tc.want, append([]string(nil), doubts...)); diff != "" || refused != "" {
			t.Errorf("%s: refused %q; %s", name, refused, diff)
		}
	}
}
