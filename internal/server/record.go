package server

import (
	"cmp"
	"context"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/admission"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

// record puts an act on record. One that can't be is said in the log; nothing is held up by it.
func (s *server) record(r audit.Record) {
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	if err := s.audit.Append(ctx, r); err != nil {
		s.log.Error("not on record", "act", string(r.Act), "user", r.User, "object", r.Object, "error", err)
	}
}

// audited are the Events on policies that are acts as well.
func audited(reason string) (audit.Act, bool) {
	switch reason {
	case securityv2.EventPolicyCreated, securityv2.EventPolicyChanged:
		return audit.PolicyWritten, true
	case securityv2.EventDriftCorrected:
		return audit.DriftCorrected, true
	case securityv2.EventTakenOver:
		return audit.ObjectTakenOver, true
	case securityv2.EventWidened:
		return audit.AccessWidened, true
	case securityv2.EventUnenforceable:
		return audit.AccessUnenforced, true
	}
	return "", false
}

// deletionRecord is the record of a deletion that admission let through. The user is this server's own account where an override has run out.
func deletionRecord(d admission.Deletion, now time.Time) audit.Record {
	r := audit.Record{At: now, Act: audit.PolicyDeleted, User: d.User, Object: d.Kind + " " + d.Object.GetNamespace() + "/" + d.Object.GetName()}
	switch o := d.Object.(type) {
	case *adminv2.KubernetesCluster:
		r.Act, r.Cluster = audit.ClusterDeleted, o.Name
	case *securityv2.AccessPolicy:
		r.Policy = o.Namespace + "/" + o.Name
	case *securityv2.PolicyOverride:
		r.Act, r.Policy = audit.OverrideEnded, cmp.Or(o.Spec.PolicyRef.Namespace, o.Namespace)+"/"+o.Spec.PolicyRef.Name
	}
	return r
}

// overrideRecord is the record of an override that has begun.
func overrideRecord(o *securityv2.PolicyOverride, d *mesh.Override) audit.Record {
	return audit.Record{
		At: o.CreationTimestamp.Time, Act: audit.OverrideCreated, User: d.By, Object: "PolicyOverride " + o.Namespace + "/" + o.Name,
		Policy: d.Policy.Namespace + "/" + d.Policy.Name, Detail: "for " + o.Spec.For.Duration.String() + ": " + d.Reason,
	}
}

// sayAll writes Events and audit records about a policy; one that can't be written must not keep status from being written.
func (r *reporter) sayAll(ctx context.Context, about client.Object, policy mesh.Ref, events []report.Event, now time.Time) {
	for _, e := range events {
		if act, ok := audited(e.Reason); ok {
			rec := audit.Record{
				At: now, Act: act, User: e.User, Manager: e.Manager, Cluster: e.Cluster, Object: cmp.Or(e.Object, policy.Kind+" "+policy.Namespace+"/"+policy.Name),
				Policy: policy.Namespace + "/" + policy.Name, Detail: e.Detail,
			}
			if !e.At.IsZero() {
				rec.At = e.At
			}
			r.record(rec)
		}
		if err := r.events.Say(ctx, about, e.Type, e.Reason, e.Message, now); err != nil && ctx.Err() == nil {
			r.log.Warn("event not written", "error", err, "namespace", about.GetNamespace(), "name", about.GetName(), "reason", e.Reason, "message", e.Message)
		}
	}
}
