package rotation

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

var monday = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

// asks is a request that nobody has answered, made n minutes after nine.
func asks(n int, action adminv2.RotationAction, clusters ...mesh.ClusterName) *mesh.RotationRequest {
	return &mesh.RotationRequest{
		Source: mesh.Ref{Namespace: "gloo-mesh", Name: strings.ToLower(string(action))}, UID: string(action), Policy: mesh.Ref{Namespace: "gloo-mesh", Name: "p"},
		Action: action, Clusters: clusters, By: "jane", Reason: "drill", Created: monday.Add(time.Duration(n) * time.Minute),
	}
}

func done(q *mesh.RotationRequest, root mesh.Generation) *mesh.RotationRequest {
	q.State, q.Root = adminv2.RequestDone, root
	return q
}

func emergency(q *mesh.RotationRequest) *mesh.RotationRequest {
	q.Emergency = true
	return q
}

func rootNamed(name string, g mesh.Generation) trust.Root {
	return trust.Root{Subject: "CN=" + name, Generation: g, Fingerprint: mesh.FingerprintOf([]byte(name))}
}

func standing() *trust.Rotation {
	return &trust.Rotation{Phase: trust.Steady, Generation: 1, Current: rootNamed("R1", 1)}
}

func underWay(p trust.Phase) *trust.Rotation {
	r, in := standing(), rootNamed("R2", 2)
	r.Phase, r.Generation, r.Incoming = p, 2, &in
	return r
}

// TestJudge: what becomes of each request, and why.
func TestJudge(t *testing.T) {
	t.Parallel()
	members := map[mesh.ClusterName]bool{"a": true, "b": true}
	type answer struct {
		State adminv2.RotationRequestState
		Root  mesh.Generation
		Says  string
	}
	yes := func(g mesh.Generation, says string) answer { return answer{adminv2.RequestDone, g, says} }
	no := func(says string) answer { return answer{adminv2.RequestRefused, 0, says} }
	for name, c := range map[string]struct {
		rotation *trust.Rotation
		requests []*mesh.RotationRequest
		want     []answer
	}{
		"rotate":                              {standing(), []*mesh.RotationRequest{asks(1, adminv2.ActionRotate)}, []answer{yes(2, "a root of generation 2 is asked for")}},
		"rotate twice at once":                {standing(), []*mesh.RotationRequest{asks(1, adminv2.ActionRotate), asks(2, adminv2.ActionRotate)}, []answer{yes(2, "generation 2"), yes(3, "generation 3")}},
		"rotate after a rotation rolled back": {&trust.Rotation{Phase: trust.Steady, Generation: 1, Current: rootNamed("R1", 1)}, []*mesh.RotationRequest{done(asks(1, adminv2.ActionRotate), 5), asks(2, adminv2.ActionRotate)}, []answer{yes(6, "generation 6")}},
		"rotate without a root":               {&trust.Rotation{}, []*mesh.RotationRequest{asks(1, adminv2.ActionRotate)}, []answer{no("there is no root yet")}},
		"rotate while one is under way":       {underWay(trust.Switching), []*mesh.RotationRequest{asks(1, adminv2.ActionRotate)}, []answer{no("a rotation to CN=R2 is under way (Switching)")}},
		"an emergency joins it":               {underWay(trust.Switching), []*mesh.RotationRequest{emergency(asks(1, adminv2.ActionRotate))}, []answer{yes(2, "goes on as an emergency")}},
		"pause, then resume":                  {standing(), []*mesh.RotationRequest{asks(1, adminv2.ActionPause), asks(2, adminv2.ActionResume)}, []answer{yes(0, "no further phase"), yes(0, "goes on")}},
		"resume what is not paused":           {standing(), []*mesh.RotationRequest{asks(1, adminv2.ActionResume)}, []answer{no("nothing is paused")}},
		"resume what was resumed":             {standing(), []*mesh.RotationRequest{done(asks(1, adminv2.ActionPause), 0), done(asks(2, adminv2.ActionResume), 0), asks(3, adminv2.ActionResume)}, []answer{no("nothing is paused")}},
		"roll back":                           {underWay(trust.AddingRoot), []*mesh.RotationRequest{asks(1, adminv2.ActionRollback)}, []answer{yes(2, "rolling back to CN=R1")}},
		"roll back nothing":                   {standing(), []*mesh.RotationRequest{asks(1, adminv2.ActionRollback)}, []answer{no("no rotation is under way")}},
		"roll back too late":                  {underWay(trust.Finished), []*mesh.RotationRequest{asks(1, adminv2.ActionRollback)}, []answer{no("are being destroyed")}},
		"fence":                               {standing(), []*mesh.RotationRequest{asks(1, adminv2.ActionFence, "a", "b")}, []answer{yes(1, "noted")}},
		"fence a stranger":                    {standing(), []*mesh.RotationRequest{asks(1, adminv2.ActionFence, "a", "x", "y")}, []answer{no("this policy does not select x, y")}},
		"an action of a newer version":        {standing(), []*mesh.RotationRequest{asks(1, "Levitate")}, []answer{no("this server is older than the request")}},
		"answered already":                    {standing(), []*mesh.RotationRequest{done(asks(1, adminv2.ActionRotate), 1)}, nil},
	} {
		var got []answer
		for _, v := range judge(c.requests, c.rotation, members) {
			got = append(got, answer{v.state, v.root, v.message})
		}
		for i := range min(len(got), len(c.want)) {
			if strings.Contains(got[i].Says, c.want[i].Says) {
				got[i].Says = c.want[i].Says
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestWanted: what answered requests ask of the engine.
func TestWanted(t *testing.T) {
	t.Parallel()
	p := &mesh.RootTrustPolicy{Source: mesh.Ref{Namespace: "gloo-mesh", Name: "p"}}
	want := func(r *trust.Rotation, requests ...*mesh.RotationRequest) trust.Want {
		return wanted(p, requests, r, "A", nil)
	}
	if w := want(standing(), done(asks(1, adminv2.ActionRotate), 2), done(asks(2, adminv2.ActionRotate), 3)); w.Generation != 3 || w.Emergency != nil {
		t.Errorf("rotations: %+v", w)
	}
	if w := want(standing(), asks(1, adminv2.ActionRotate), asks(2, adminv2.ActionPause), asks(3, adminv2.ActionFence, "a")); w.Generation != 0 || w.Paused != nil || len(w.Fences) != 0 {
		t.Errorf("what nobody has answered counts: %+v", w)
	}
	urgent := emergency(done(asks(1, adminv2.ActionRotate), 2))
	if w := want(underWay(trust.Switching), urgent); w.Emergency == nil || w.Emergency.By != "jane" {
		t.Errorf("emergency: %+v", w.Emergency)
	}
	if w := want(standing(), urgent); w.Emergency != nil {
		t.Error("an emergency that is over goes on")
	}
	if w := want(underWay(trust.Switching), done(asks(1, adminv2.ActionRollback), 2)); w.Rollback == nil || w.Rollback.Generation != 2 || w.Rollback.Why != "drill" {
		t.Errorf("rollback: %+v", w.Rollback)
	}
	if w := want(standing(), done(asks(1, adminv2.ActionPause), 0)); w.Paused == nil || !w.Paused.At.Equal(monday.Add(time.Minute)) {
		t.Errorf("pause: %+v", w.Paused)
	}
	if w := want(standing(), done(asks(1, adminv2.ActionPause), 0), done(asks(2, adminv2.ActionResume), 0)); w.Paused != nil {
		t.Errorf("pause after its end: %+v", w.Paused)
	}
	w := want(standing(), done(asks(1, adminv2.ActionFence, "a", "b"), 1), done(asks(2, adminv2.ActionUnfence, "b"), 1))
	if _, a := w.Fences["a"]; !a || len(w.Fences) != 1 {
		t.Errorf("fences: %+v", w.Fences)
	}
}

// TestOfPolicy: the requests of one policy, the oldest first; those that can't be read count for nothing.
func TestOfPolicy(t *testing.T) {
	t.Parallel()
	late, early, other, broken := asks(9, adminv2.ActionResume), asks(1, adminv2.ActionPause), asks(2, adminv2.ActionRotate), asks(3, adminv2.ActionFence)
	other.Policy.Name, broken.Invalid = "q", "no reason"
	got := ofPolicy([]*mesh.RotationRequest{late, other, broken, early}, mesh.Ref{Namespace: "gloo-mesh", Name: "p"})
	if len(got) != 2 || got[0] != early || got[1] != late {
		t.Errorf("%v", got)
	}
	first, second, third := asks(9, adminv2.ActionResume), done(asks(9, adminv2.ActionPause), 0), done(asks(9, adminv2.ActionFence), 0) // all made in one second
	second.Answered, third.Answered = monday.Add(10*time.Minute), monday.Add(10*time.Minute+time.Microsecond)
	got = ofPolicy([]*mesh.RotationRequest{third, first, second}, mesh.Ref{Namespace: "gloo-mesh", Name: "p"})
	if got[0] != second || got[1] != third || got[2] != first {
		t.Errorf("%v", got)
	}
}
