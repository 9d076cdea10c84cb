package server

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/version"
)

// reportClusters writes what is so of the KubernetesClusters. The first failure to write ends it: the API server is away, and the next round will say it all.
func (r *reporter) reportClusters(ctx context.Context, v *view, sessions map[mesh.ClusterName]relay.SessionInfo, now time.Time) error {
	count := map[adminv2.ConnectionState]int{}
	defer func() {
		for _, c := range []adminv2.ConnectionState{adminv2.ConnectionConnected, adminv2.ConnectionDisconnected, adminv2.ConnectionPending} {
			r.metrics.clusters.WithLabelValues(string(c)).Set(float64(count[c]))
		}
	}()
	for c := range r.refused {
		if v.clusters[c] == nil {
			delete(r.refused, c)
		}
	}
	for c := range r.since {
		if v.clusters[c] == nil {
			delete(r.since, c)
		}
	}
	for c := range r.peers {
		if v.clusters[c] == nil {
			r.forgetPeers(c)
		}
	}
	var names []mesh.ClusterName
	if v.result.Peering != nil {
		names = v.result.Peering.Names()
	}
	for i := range v.snapshot.Clusters {
		c := &v.snapshot.Clusters[i]
		kc, s := v.clusters[c.Name], sessions[c.Name]
		last := r.clusters.Last(kc, kc.Status)
		if !s.Connected && last.Connection == adminv2.ConnectionConnected && now.Sub(r.started) < r.cfg.WarmGrace && !s.LastRefusalAt.After(r.started) {
			count[adminv2.ConnectionConnected]++ // this server has just started: give its agent time to come back before saying it is gone
			continue
		}
		in := report.Input{
			Cluster: *c, Session: session(s, now), Conditions: v.result.Conditions[c.Source],
			Desired: v.result.Objects[c.Name], Published: v.published[c.Name], ServerVersion: version.Version,
			CA: r.trust.Status(c.Name), Peering: r.peering(v, c, names),
		}
		next := report.Next(last, in, now)
		if in.Patient = r.applying(c.Name, next, now); in.Patient {
			next = report.Next(last, in, now)
		}
		count[next.Connection]++
		if err := r.say(ctx, kc, last, next, s, now); err != nil {
			return err
		}
		if err := r.wrote(r.clusters.Write(ctx, kc, kc.Status, next)); err != nil {
			return err
		}
	}
	return nil
}

// patience is how long a cluster may take to apply what is new before its KubernetesCluster says so: a policy that changes must not cost two writes for each cluster.
const patience = 2 * time.Second

// applying takes note of since when a cluster has been applying something, and says whether that is too short to speak of.
func (r *reporter) applying(c mesh.ClusterName, next adminv2.KubernetesClusterStatus, now time.Time) bool {
	p := meta.FindStatusCondition(next.Conditions, adminv2.ConditionProgrammed)
	if p == nil || p.Reason != adminv2.ReasonApplying {
		delete(r.since, c)
		return false
	}
	if r.since[c].IsZero() {
		r.since[c] = now
	}
	return now.Sub(r.since[c]) < patience
}

// say writes the Events that go with a change of status.
func (r *reporter) say(ctx context.Context, kc *adminv2.KubernetesCluster, last, next adminv2.KubernetesClusterStatus, s relay.SessionInfo, now time.Time) error {
	if last.RegisteredBy == "" && next.RegisteredBy != "" {
		if err := r.events.Once(ctx, kc, adminv2.EventRegistered, "Registered by "+next.RegisteredBy, next.RegisteredAt.Time); err != nil {
			return err
		}
	} else if next.RegisteredBy != "" && next.RegisteredAt != nil { // months later, too: kubectl get events
		if err := r.events.Keep(ctx, kc, adminv2.EventRegistered, "Registered by "+next.RegisteredBy, next.RegisteredAt.Time, now); err != nil {
			return err
		}
	}
	c := mesh.ClusterName(kc.Name)
	if s.LastRefusal != nil && s.LastRefusalAt.After(r.refused[c]) {
		if err := r.events.Say(ctx, kc, corev1.EventTypeWarning, adminv2.EventRefused, s.LastRefusal.Message, now); err != nil {
			return err
		}
		r.refused[c] = s.LastRefusalAt
	}
	was := last.Connection
	switch {
	case next.Connection == adminv2.ConnectionConnected && was != adminv2.ConnectionConnected:
		return r.events.Say(ctx, kc, corev1.EventTypeNormal, adminv2.EventConnected, fmt.Sprintf("the agent (version %s) has connected", next.AgentVersion), now)
	case next.Connection == adminv2.ConnectionDisconnected && was == adminv2.ConnectionConnected:
		return r.events.Say(ctx, kc, corev1.EventTypeWarning, adminv2.EventDisconnected, "the agent's session has ended; the cluster keeps what it has", now)
	}
	return nil
}

// refusalsCount is how long a refusal is told beside a session that is up: somebody else tries, or tried.
const refusalsCount = 10 * time.Minute

// sessions are all that the hub knows.
func sessions(h *relay.Hub) map[mesh.ClusterName]mesh.Session {
	now, out := time.Now(), map[mesh.ClusterName]mesh.Session{}
	for _, s := range h.Sessions() {
		out[s.Cluster] = session(s, now)
	}
	return out
}

// session puts the relay's view into the shared nouns.
func session(s relay.SessionInfo, now time.Time) mesh.Session {
	out := mesh.Session{
		Connected: s.Connected, Since: s.Since, LastHeartbeat: s.LastHeartbeat, AgentVersion: s.AgentVersion, UID: s.UID,
		Offset: s.Offset, Measured: s.RTT > 0,
	}
	if s.Connected && out.LastHeartbeat.Before(s.Since) {
		out.LastHeartbeat = s.Since // Hello is a sign of life as well
	}
	if no := s.LastRefusal; no != nil && (!s.Connected && s.LastRefusalAt.After(s.LastHeartbeat) || s.Connected && s.LastRefusalAt.After(s.Since) && now.Sub(s.LastRefusalAt) < refusalsCount) {
		switch no.Reason {
		case relayv1.Goodbye_WRONG_CLUSTER, relayv1.Goodbye_BAD_CERTIFICATE, relayv1.Goodbye_REVOKED, relayv1.Goodbye_BAD_TOKEN:
			out.Refusal, out.RefusedIdentity = no.Message, true
		case relayv1.Goodbye_NOT_REGISTERED, relayv1.Goodbye_VERSION_SKEW, relayv1.Goodbye_PROTOCOL_ERROR:
			out.Refusal = no.Message
		default: // shutting down, replaced, overloaded: it will be back
		}
	}
	return out
}
