package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// verdict is what becomes of a request that nobody has answered yet.
type verdict struct {
	request *mesh.RotationRequest
	state   adminv2.RotationRequestState
	message string
	root    mesh.Generation
}

// ofPolicy are the requests about a policy, the oldest first. Creation has a resolution of one second: within it those that were answered come first, as they were answered.
func ofPolicy(all []*mesh.RotationRequest, policy mesh.Ref) []*mesh.RotationRequest {
	out := slices.DeleteFunc(slices.Clone(all), func(r *mesh.RotationRequest) bool { return r.Policy != policy || r.Invalid != "" })
	slices.SortStableFunc(out, func(a, b *mesh.RotationRequest) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		if a.Answered.IsZero() != b.Answered.IsZero() {
			if a.Answered.IsZero() {
				return 1
			}
			return -1
		}
		if c := a.Answered.Compare(b.Answered); c != 0 {
			return c
		}
		return a.Source.Compare(b.Source)
	})
	return out
}

// judge answers the requests that are new. members are the clusters of the policy.
func judge(requests []*mesh.RotationRequest, r *trust.Rotation, members map[mesh.ClusterName]bool) []verdict {
	var out []verdict
	asked := r.Generation // the highest generation that exists or was asked for
	for _, q := range requests {
		if q.State == adminv2.RequestDone {
			asked = max(asked, q.Root)
		}
	}
	paused := latestPause(requests) != nil
	for _, q := range requests {
		if q.State == adminv2.RequestDone || q.State == adminv2.RequestRefused {
			continue
		}
		v := verdict{request: q, state: adminv2.RequestDone}
		refuse := func(format string, args ...any) {
			v.state, v.message = adminv2.RequestRefused, fmt.Sprintf(format, args...)
		}
		switch q.Action {
		case adminv2.ActionRotate:
			switch {
			case r.Current.Fingerprint.IsZero():
				refuse("there is no root yet that could be rotated")
			case r.Incoming != nil && !q.Emergency:
				refuse("a rotation to %s is under way (%s); wait for its end, or roll it back first: `meshctl trust rollback`", r.Incoming.Subject, r.Phase)
			case r.Incoming != nil:
				v.root, v.message = r.Incoming.Generation, "the rotation to "+r.Incoming.Subject+" goes on as an emergency"
			default:
				asked++
				v.root, v.message = asked, fmt.Sprintf("a root of generation %d is asked for", asked)
			}
		case adminv2.ActionPause:
			paused, v.message = true, "no further phase begins; what is under way in a phase is finished"
		case adminv2.ActionResume:
			if !paused {
				refuse("nothing is paused")
			} else {
				paused, v.message = false, "the rotation goes on"
			}
		case adminv2.ActionRollback:
			switch {
			case r.Incoming == nil:
				refuse("no rotation is under way; to get an older root back, rotate to it")
			case r.Phase == trust.Finished:
				refuse("the rotation is finished: keys under the old root are being destroyed")
			default:
				v.root, v.message = r.Incoming.Generation, "rolling back to "+r.Current.Subject
			}
		case adminv2.ActionFence, adminv2.ActionUnfence, adminv2.ActionRevoke:
			if strange := strangers(q.Clusters, members); len(strange) > 0 {
				refuse("this policy does not select %s", strings.Join(strange, ", "))
			} else {
				v.root, v.message = r.Generation, "noted"
			}
		default:
			refuse("unknown action %q: this server is older than the request", q.Action)
		}
		out = append(out, v)
	}
	return out
}

func strangers(clusters []mesh.ClusterName, members map[mesh.ClusterName]bool) []string {
	var out []string
	for _, c := range clusters {
		if !members[c] {
			out = append(out, string(c))
		}
	}
	return out
}

// latestPause is the Pause that no Resume has ended, or nil.
func latestPause(requests []*mesh.RotationRequest) *mesh.RotationRequest {
	var last *mesh.RotationRequest
	for _, q := range requests {
		if q.State != adminv2.RequestDone {
			continue
		}
		switch q.Action {
		case adminv2.ActionPause:
			last = q
		case adminv2.ActionResume:
			last = nil
		default:
		}
	}
	return last
}

func request(q *mesh.RotationRequest) *trust.Request {
	if q == nil {
		return nil
	}
	return &trust.Request{By: q.By, Why: q.Reason, At: q.Created}
}

// wanted is what a policy and the requests about it ask for. root is the authority's answer, nil while there is none.
func wanted(p *mesh.RootTrustPolicy, requests []*mesh.RotationRequest, r *trust.Rotation, authority string, root *trust.Root) trust.Want {
	w := trust.Want{
		Policy:       p.Source.Namespace + "/" + p.Source.Name,
		Authority:    authority,
		Root:         root,
		Organization: p.Intermediate.Organization,
		Algorithm:    p.Intermediate.Algorithm,
		TTL:          p.Intermediate.TTL,
		RenewRatio:   p.Intermediate.RenewRatio,
		Restart:      p.Restart, Adopt: p.Adopt, CrossSign: p.CrossSign,
		Canary: p.Canary, Soak: p.Soak,
		Paused:      request(latestPause(requests)),
		Fences:      map[mesh.ClusterName]trust.Fence{},
		LongestLeaf: p.LongestLeaf, ForeignClients: p.ForeignClients, FileLag: p.FileLag,
	}
	for _, q := range requests {
		if q.State != adminv2.RequestDone {
			continue
		}
		switch q.Action {
		case adminv2.ActionRotate:
			w.Generation = max(w.Generation, q.Root)
			if q.Emergency && r.Incoming != nil && q.Root == r.Incoming.Generation {
				w.Emergency = request(q)
			}
		case adminv2.ActionRollback:
			w.Rollback = &trust.Rollback{Request: *request(q), Generation: q.Root}
		case adminv2.ActionFence:
			for _, c := range q.Clusters {
				// Ambit does not peer clusters yet: there is nothing of ours in the others that would have to go first.
				w.Fences[c] = trust.Fence{Request: *request(q), Effective: true}
			}
		case adminv2.ActionUnfence:
			for _, c := range q.Clusters {
				delete(w.Fences, c)
			}
		default:
		}
	}
	return w
}

// fleet is every cluster of the mesh as trust sees it.
func fleet(clusters []*mesh.Cluster, sessions map[mesh.ClusterName]mesh.Session, look func(mesh.ClusterName) seen, records func(mesh.ClusterName) clusterRecord) []trust.Cluster {
	out := make([]trust.Cluster, 0, len(clusters))
	for _, c := range clusters {
		s, session, rec := look(c.Name), sessions[c.Name], records(c.Name)
		t := trust.Cluster{
			Name: c.Name, Connected: session.Connected, Since: session.Since, Offset: session.Offset,
			Observation: s.observation, Issued: rec.Issued, Kept: rec.Kept, Requests: make(map[string]bool, len(s.requests)),
		}
		if c.Inventory != nil {
			t.TrustDomain = c.Inventory.Info.TrustDomain
		}
		for slot := range s.requests {
			t.Requests[slot] = true
		}
		out = append(out, t)
	}
	return out
}

// soonest is the shorter of two pauses, of which 0 means none.
func soonest(a, b time.Duration) time.Duration {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}
