package validate

import (
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

func rotationActions() []string {
	return []string{
		string(adminv2.ActionRotate), string(adminv2.ActionPause), string(adminv2.ActionResume), string(adminv2.ActionRollback),
		string(adminv2.ActionFence), string(adminv2.ActionUnfence), string(adminv2.ActionRevoke),
	}
}

func ofClusters(a adminv2.RotationAction) bool {
	return a == adminv2.ActionFence || a == adminv2.ActionUnfence || a == adminv2.ActionRevoke
}

// RotationRequest checks a new or changed request; old is nil for a new one.
func RotationRequest(now, old *adminv2.RotationRequest, o Options) field.ErrorList {
	r, spec := &rules{}, field.NewPath("spec")
	if old != nil {
		if !reflect.DeepEqual(now.Spec, old.Spec) {
			r.forbidden(spec, "a request can't be changed, so that the record stays true: create another")
		}
		return r.errs // what was right when it was created stays so
	}
	if now.Namespace != o.AdminNamespace {
		r.invalid(field.NewPath("metadata", "namespace"), now.Namespace, "create it in namespace %q, where RootTrustPolicies are", o.AdminNamespace)
	}
	if now.Spec.Policy == "" {
		r.required(spec.Child("policy"), "which RootTrustPolicy? write its name")
	}
	r.name(spec.Child("policy"), now.Spec.Policy, noun{"RootTrustPolicy", "make a request for each", validation.IsDNS1123Subdomain})
	action := spec.Child("action")
	if now.Spec.Action == "" {
		r.required(action, "what is to be done? write %s", strings.Join(rotationActions(), ", "))
	} else {
		r.enum(action, string(now.Spec.Action), rotationActions()...)
	}
	r.clustersOf(spec.Child("clusters"), now)
	switch {
	case strings.TrimSpace(now.Spec.Reason) == "":
		r.required(spec.Child("reason"), "why? It is what others read at night, such as %q", "CHG-1234: the root's key moves to an HSM")
	case len(now.Spec.Reason) > longestReason:
		r.errs = append(r.errs, field.TooLong(spec.Child("reason"), now.Spec.Reason, longestReason))
	}
	if now.Spec.Emergency && now.Spec.Action != adminv2.ActionRotate {
		r.invalid(spec.Child("emergency"), true, "only Rotate can be an emergency; a single cluster's intermediate is revoked: action: Revoke")
	}
	return r.errs
}

func (r *rules) clustersOf(path *field.Path, now *adminv2.RotationRequest) {
	of := ofClusters(now.Spec.Action)
	switch {
	case of && len(now.Spec.Clusters) == 0:
		r.required(path, "which clusters? write clusters: [...]")
	case !of && len(now.Spec.Clusters) > 0 && slices.Contains(rotationActions(), string(now.Spec.Action)):
		r.forbidden(path, "%s is of the whole mesh, since its clusters can't be in different phases: leave clusters out", now.Spec.Action)
	}
	seen := map[string]bool{}
	for i, c := range now.Spec.Clusters {
		if c == "" {
			r.required(path.Index(i), "write the name of a cluster")
		}
		r.name(path.Index(i), c, noun{"cluster", "write each name", clusterNoun().bad})
		if seen[c] {
			r.errs = append(r.errs, field.Duplicate(path.Index(i), c))
		}
		seen[c] = true
	}
}

// WarningsOfRotationRequest says what is allowed but costs much, or will be refused when it is taken up.
func WarningsOfRotationRequest(now *adminv2.RotationRequest, o Options) []string {
	w := &warnings{}
	switch {
	case now.Spec.Emergency:
		w.say("spec.emergency", "every istiod, ztunnel, gateway and waypoint of the mesh is restarted, established connections are closed, and nothing waits for what can't be seen: some handshakes may fail")
	case now.Spec.Action == adminv2.ActionFence:
		w.say("spec.clusters", "the rotation goes on without %s: workloads there and elsewhere refuse each other once a root is dropped, until action: Unfence and the cluster has caught up", few(now.Spec.Clusters))
	case now.Spec.Action == adminv2.ActionRevoke:
		w.say("spec.clusters", "workloads of %s are refused by all that check revocation, until the clusters have new intermediates", few(now.Spec.Clusters))
	}
	snap := o.snapshot()
	if snap == nil {
		return *w
	}
	var names []string
	for _, p := range snap.RootPolicies {
		names = append(names, p.Source.Name)
	}
	if !slices.Contains(names, now.Spec.Policy) {
		if best, ok := Nearest(now.Spec.Policy, names); ok {
			w.say("spec.policy", "there is no RootTrustPolicy %q: did you mean %q?", now.Spec.Policy, best)
		} else {
			w.say("spec.policy", "there is no RootTrustPolicy %q", now.Spec.Policy)
		}
	}
	for _, c := range now.Spec.Clusters {
		if snap.Cluster(mesh.ClusterName(c)) == nil && now.Spec.Action != adminv2.ActionRevoke { // what was deregistered may be revoked
			w.say("spec.clusters", "no cluster %q is registered", c)
		}
	}
	return *w
}

// DeletionOfRotationRequest says what is forgotten with a request: those that were taken up are the memory of what people asked for. None has to stay.
func DeletionOfRotationRequest(q *adminv2.RotationRequest) (refused string, doubts []string) {
	w := &warnings{}
	if q.Status.State != adminv2.RequestDone {
		return "", *w
	}
	switch q.Spec.Action {
	case adminv2.ActionPause:
		w.say("RotationRequest "+q.Name, "unless it was resumed, the rotation goes on once this is gone; to say so on the record, create a request with action: Resume")
	case adminv2.ActionFence:
		w.say("RotationRequest "+q.Name, "unless another request fences them, %s are waited for again once this is gone; to say so on the record, create a request with action: Unfence", few(q.Spec.Clusters))
	case adminv2.ActionRollback:
		w.say("RotationRequest "+q.Name, "the root that was rolled back is tried again once this is gone, if the policy still asks for it")
	case adminv2.ActionRevoke:
		w.say("RotationRequest "+q.Name, "the intermediates of %s are not asked to be revoked any more once this is gone", few(q.Spec.Clusters))
	default:
	}
	return "", *w
}
