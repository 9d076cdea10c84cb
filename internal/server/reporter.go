package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/rotation"
	"ambitmesh.dev/ambit/internal/state"
	"ambitmesh.dev/ambit/internal/tokens"
	"ambitmesh.dev/ambit/internal/translate"
)

const (
	// reportAfter lets the agents' answers to what was just published come in, so that one write of status tells both.
	reportAfter = 35 * time.Millisecond
	// writers is how many statuses are written at once.
	writers = 8
)

// view is what a round came to. It is immutable.
type view struct {
	snapshot  *mesh.Snapshot
	clusters  map[mesh.ClusterName]*adminv2.KubernetesCluster
	result    translate.Result
	published map[mesh.ClusterName]bool
	segments  segments
	ended     []mesh.Ref // overrides that are over and still there
	at        time.Time
	warm      bool // what is translated may go out
	why       string
}

// news is what has become different since the reporter looked last.
type news struct {
	touched       map[mesh.Ref]bool // objects wanted otherwise, or with another outcome
	changed, gone []mesh.Ref        // sources
}

// reporter says in the API what is so: status and Events. It works on its own, so that an API server that is slow to take a thousand statuses holds up no policy.
type reporter struct {
	cfg     *Config
	log     *slog.Logger
	hub     *relay.Hub
	state   *state.State
	api     client.Client
	events  *report.Events
	record  func(audit.Record)
	metrics *metrics
	trust   *rotation.Keeper
	tokens  *tokens.Board
	started time.Time

	clusters   *report.Writer[adminv2.KubernetesClusterStatus]
	policies   *report.Writer[securityv2.AccessPolicyStatus]
	workspaces *report.Writer[adminv2.WorkspaceStatus]
	settings   *report.Writer[adminv2.WorkspaceSettingsStatus]
	overrides  *report.Writer[securityv2.PolicyOverrideStatus]
	segments   *report.Writer[networkingv2alpha1.SegmentStatus]

	latest atomic.Pointer[view]
	posted bell
	mu     sync.Mutex
	news   news

	book    *report.Book
	due     map[mesh.Ref]bool              // policies whose status may be another, and is not written yet
	refused map[mesh.ClusterName]time.Time // last refusal told
	since   map[mesh.ClusterName]time.Time // when it began to apply what it is applying
	peers   map[mesh.ClusterName]peerMemo
}

func newReporter(s *server, hub *relay.Hub) *reporter {
	api := s.api
	return &reporter{
		cfg: s.cfg, log: s.log, hub: hub, state: s.state, api: api, events: s.events, record: s.record, metrics: s.metrics, started: time.Now(),
		clusters: report.NewWriter(api, report.Differ), policies: report.NewWriter(api, report.Unequal[securityv2.AccessPolicyStatus]),
		workspaces: report.NewWriter(api, report.Unequal[adminv2.WorkspaceStatus]), settings: report.NewWriter(api, report.Unequal[adminv2.WorkspaceSettingsStatus]),
		overrides: report.NewWriter(api, report.Unequal[securityv2.PolicyOverrideStatus]),
		segments:  report.NewWriter(api, report.Unequal[networkingv2alpha1.SegmentStatus]),
		posted:    newBell(), news: news{touched: map[mesh.Ref]bool{}}, book: report.NewBook(), due: map[mesh.Ref]bool{},
		refused: map[mesh.ClusterName]time.Time{}, since: map[mesh.ClusterName]time.Time{}, peers: map[mesh.ClusterName]peerMemo{},
	}
}

// settled is the Snapshot of the latest round, nil while the server does not know everything yet.
func (r *reporter) settled() *mesh.Snapshot {
	v := r.latest.Load()
	if v == nil || !v.warm {
		return nil
	}
	return v.snapshot
}

// post leaves what a round came to; nil: it came to nothing, but there is news all the same. It never blocks.
func (r *reporter) post(v *view, n news) {
	r.mu.Lock()
	for ref := range n.touched {
		r.news.touched[ref] = true
	}
	r.news.changed = append(r.news.changed, n.changed...)
	r.news.gone = append(r.news.gone, n.gone...)
	r.mu.Unlock()
	if v != nil {
		r.latest.Store(v)
		r.posted.ring()
	}
}

// run reports after each round until ctx ends. An error is the API server's; what was not written is due again.
func (r *reporter) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.posted:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reportAfter):
		}
		if err := r.once(ctx, time.Now()); err != nil && ctx.Err() == nil {
			r.log.Warn("status not written, trying again", "error", err)
		}
	}
}

func (r *reporter) once(ctx context.Context, now time.Time) error {
	r.mu.Lock()
	n := r.news
	r.news = news{touched: map[mesh.Ref]bool{}}
	r.mu.Unlock()
	v := r.latest.Load()
	sessions := map[mesh.ClusterName]relay.SessionInfo{}
	for _, s := range r.hub.Sessions() {
		sessions[s.Cluster] = s
	}
	r.note(v, n, sessions)
	return errors.Join(r.reportClusters(ctx, v, sessions, now), r.reportPolicies(ctx, v, sessions, now), r.reportOthers(ctx, v, now), r.reportSegments(ctx, v), r.expire(ctx, v))
}

// note finds out which policies may have another status. It loses nothing when writing fails later.
func (r *reporter) note(v *view, n news, sessions map[mesh.ClusterName]relay.SessionInfo) {
	facts := make(map[mesh.ClusterName]report.ClusterFacts, len(v.snapshot.Clusters))
	of := v.facts(sessions)
	for i := range v.snapshot.Clusters {
		c := v.snapshot.Clusters[i].Name
		facts[c] = of(c)
	}
	for ref := range r.book.Due(report.News{Policies: v.snapshot.Policies, Reports: v.result.Policies, Touched: n.touched, Facts: facts}) {
		r.due[ref] = true
	}
	for _, ref := range n.gone {
		switch ref.Kind {
		case kindPolicy:
			r.policies.Forget(ref.Namespace, ref.Name)
		case "Workspace":
			r.workspaces.Forget(ref.Namespace, ref.Name)
		case "WorkspaceSettings":
			r.settings.Forget(ref.Namespace, ref.Name)
		case "Segment":
			r.segments.Forget(ref.Namespace, ref.Name)
		case "PolicyOverride":
			r.overrides.Forget(ref.Namespace, ref.Name)
		}
	}
	for _, ref := range n.changed { // somebody may have written the status
		if ref.Kind == kindPolicy {
			r.due[ref] = true
		}
	}
}

// facts are those of one cluster, for its policies.
func (v *view) facts(sessions map[mesh.ClusterName]relay.SessionInfo) func(mesh.ClusterName) report.ClusterFacts {
	return func(c mesh.ClusterName) report.ClusterFacts {
		f := report.ClusterFacts{Connected: sessions[c].Connected, Published: v.published[c], Desired: v.result.Objects[c]}
		m := v.snapshot.Cluster(c)
		if m != nil && m.Inventory != nil {
			f.Outcomes = m.Inventory.Outcomes
		}
		f.Unknown = m != nil && m.UID != "" && (m.Inventory == nil || !m.Inventory.Complete)
		return f
	}
}

const kindPolicy = "AccessPolicy"

// reportPolicies writes the statuses that are due, several at once. The first failure ends it: the API server is away, and the next round tries what is left.
func (r *reporter) reportPolicies(ctx context.Context, v *view, sessions map[mesh.ClusterName]relay.SessionInfo, now time.Time) error {
	if len(r.due) == 0 {
		return nil
	}
	if !v.warm { // what agents have is not known yet: saying Pending now would only be taken back
		return nil
	}
	type done struct {
		ref mesh.Ref
		err error
	}
	var todo []*mesh.AccessPolicy
	for _, p := range v.snapshot.Policies {
		if r.due[p.Source] {
			todo = append(todo, p)
		}
	}
	clear(r.due) // the others are gone
	if len(todo) == 0 {
		return nil
	}
	facts := v.facts(sessions)
	jobs, results := make(chan *mesh.AccessPolicy), make(chan done)
	for range min(writers, len(todo)) {
		go func() {
			for p := range jobs {
				results <- done{p.Source, r.reportPolicy(ctx, v, p, facts, now)}
			}
		}()
	}
	var err error
	for next, out := 0, 0; next < len(todo) && err == nil || out > 0; {
		var send chan *mesh.AccessPolicy
		var p *mesh.AccessPolicy
		if next < len(todo) && err == nil {
			send, p = jobs, todo[next]
		}
		select {
		case send <- p:
			next, out = next+1, out+1
		case d := <-results:
			out--
			if d.err != nil {
				r.due[d.ref] = true
				if err == nil {
					err = d.err
					for _, left := range todo[next:] {
						r.due[left.Source] = true
					}
				}
			}
		}
	}
	close(jobs)
	return err
}

func (r *reporter) reportPolicy(ctx context.Context, v *view, p *mesh.AccessPolicy, facts func(mesh.ClusterName) report.ClusterFacts, now time.Time) error {
	o, ok := r.state.Object(p.Source).(*securityv2.AccessPolicy)
	if !ok || string(o.UID) != p.UID {
		return nil // gone meanwhile
	}
	in := report.PolicyInput{Policy: p, Facts: facts}
	if rep, ok := v.result.Policies[p.Source]; ok {
		in.Report = &rep
	}
	last := r.policies.Last(o, o.Status)
	next, events := report.NextPolicy(last, in, now)
	r.sayAll(ctx, o, p.Source, events, now)
	return r.wrote(r.policies.Write(ctx, o, o.Status, next))
}

// wrote counts a write of status.
func (r *reporter) wrote(did bool, err error) error {
	if err != nil {
		r.metrics.statusErrors.Inc()
		return err
	}
	if did {
		r.metrics.statusWrites.Inc()
	}
	return nil
}

// reportOthers writes the statuses of workspaces, settings and overrides: few, so all are looked at.
func (r *reporter) reportOthers(ctx context.Context, v *view, now time.Time) error {
	if !v.warm {
		return nil
	}
	for _, w := range v.snapshot.Workspaces {
		if o, ok := r.state.Object(w.Source).(*adminv2.Workspace); ok && string(o.UID) == w.UID {
			next := report.NextWorkspace(r.workspaces.Last(o, o.Status), w, pointer(v.result.Workspaces, w.Source))
			if err := r.wrote(r.workspaces.Write(ctx, o, o.Status, next)); err != nil {
				return err
			}
		}
	}
	for _, s := range v.snapshot.Settings {
		if o, ok := r.state.Object(s.Source).(*adminv2.WorkspaceSettings); ok && string(o.UID) == s.UID {
			next := report.NextSettings(r.settings.Last(o, o.Status), s, pointer(v.result.Settings, s.Source), r.cfg.Namespace)
			if err := r.wrote(r.settings.Write(ctx, o, o.Status, next)); err != nil {
				return err
			}
		}
	}
	for _, ref := range r.state.Overrides() {
		o, ok := r.state.Object(ref).(*securityv2.PolicyOverride)
		if !ok {
			continue
		}
		d := state.OverrideOf(o)
		next := report.NextOverride(report.OverrideInput{
			Generation: o.Generation, Policy: d.Policy, Exists: r.state.Object(d.Policy) != nil, Invalid: r.state.Invalid(ref), Until: d.Until, By: d.By, Now: now,
		})
		begins := r.overrides.Last(o, o.Status).Common.State.Approval == ""
		if err := r.wrote(r.overrides.Write(ctx, o, o.Status, next)); err != nil {
			return err
		}
		if begins {
			r.record(overrideRecord(o, d))
		}
	}
	return nil
}

func pointer[V any](m map[mesh.Ref]V, ref mesh.Ref) *V {
	v, ok := m[ref]
	if !ok {
		return nil
	}
	return &v
}

// expire deletes the overrides that have ended: agents go by their own clock and don't wait for this.
func (r *reporter) expire(ctx context.Context, v *view) error {
	for _, ref := range v.ended {
		o, ok := r.state.Object(ref).(*securityv2.PolicyOverride)
		if !ok {
			continue
		}
		uid := o.GetUID()
		err := r.api.Delete(ctx, o.DeepCopy(), client.Preconditions{UID: &uid})
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil {
			r.log.Info("override ended", "namespace", ref.Namespace, "name", ref.Name, "policy", o.Spec.PolicyRef.Name, "by", o.Annotations[securityv2.AnnotationChangedBy])
		}
	}
	return nil
}
