package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/trust"
)

const (
	// settleFor is the least time from one round to the next: agents report in bursts.
	settleFor = 100 * time.Millisecond
	// lookEvery is how often a round is made when nothing happens.
	lookEvery = 15 * time.Second
	// retryAfter an error.
	retryAfter = 2 * time.Second
)

// errStale: somebody else has written what this server believed it knew. Everything is read anew.
var errStale = errors.New("changed by somebody else")

// Config is all a Keeper needs.
type Config struct {
	Client    client.Client // asks the API server, not a cache
	Namespace string        // the admin namespace
	Board     *Board
	// Snapshot is the latest one, nil while there is none that may be acted on; Sessions are the agents'.
	Snapshot func() *mesh.Snapshot
	Sessions func() map[mesh.ClusterName]mesh.Session
	Issuers  *Issuers
	// GoneGrace is how long after a cluster's deregistration its intermediates are revoked; 0: 30 s.
	GoneGrace time.Duration
	Record    func(audit.Record)
	// Changed is called after a round in which what Status says may have changed.
	Changed func()
	Log     *slog.Logger
}

// Keeper carries rotations out. Only the leader runs one.
type Keeper struct {
	cfg   Config
	store *store
	shown *sheets
	bell  chan struct{} // capacity 1
	fresh bool          // the store has been read since the last conflict

	mu       sync.Mutex
	inputs   map[string]trust.Input                        // by policy, of the last round
	statuses map[mesh.ClusterName]*adminv2.ClusterCAStatus // of the last round
	signing  map[signKey]bool                              // under way
	failures map[signKey]failure                           // of signing, by what was asked
	roots    map[string]rootAnswer                         // by policy
	passives map[string]rootAnswer                         // by policy and place in its list
	free     map[string]chan struct{}                      // places for signatures under way, by authority
	told     map[string]adminv2.RotationRequestState       // verdicts written, by UID, until the cache shows them
}

type signKey struct {
	policy  string
	cluster mesh.ClusterName
	slot    string
	root    mesh.Fingerprint
}

// failure is an authority's last refusal, and when it may be asked again: after a pause, or when somebody has changed the policy.
type failure struct {
	err   error
	tries int
	again time.Time
	spec  int64 // generation of the policy when it was asked
}

func (f failure) pauses(t *turn) bool { return t.now.Before(f.again) && f.spec == t.policy.Generation }

// New returns a Keeper that does nothing yet.
func New(cfg Config) *Keeper {
	return &Keeper{
		cfg: cfg, store: newStore(cfg.Client, cfg.Namespace), shown: newSheets(cfg.Client, cfg.Namespace, cfg.Log), bell: make(chan struct{}, 1), free: map[string]chan struct{}{},
		inputs: map[string]trust.Input{}, statuses: map[mesh.ClusterName]*adminv2.ClusterCAStatus{}, signing: map[signKey]bool{},
		failures: map[signKey]failure{}, roots: map[string]rootAnswer{}, passives: map[string]rootAnswer{}, told: map[string]adminv2.RotationRequestState{},
	}
}

// Ring asks for a round: a policy, a request or a cluster has changed.
func (k *Keeper) Ring() {
	select {
	case k.bell <- struct{}{}:
	default:
	}
}

// Inputs are what the last round decided from, by name of the policy.
func (k *Keeper) Inputs() map[string]trust.Input {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.inputs)
}

// Status is a cluster's certificate authority as of the last round; nil: unknown.
func (k *Keeper) Status(c mesh.ClusterName) *adminv2.ClusterCAStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.statuses[c]
}

// Run makes rounds until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.shown.run(ctx) })
	for {
		begin := time.Now()
		pause, err := k.round(ctx, &wg, begin)
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("round of trust not finished, trying again", "error", err)
			pause = retryAfter
		}
		if pause == 0 || pause > lookEvery {
			pause = lookEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.bell:
		case <-k.cfg.Board.news:
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(begin.Add(settleFor))):
		}
	}
}

// round makes one decision for each policy and acts on it. It returns when time alone may change the answer.
func (k *Keeper) round(ctx context.Context, wg *sync.WaitGroup, now time.Time) (time.Duration, error) {
	snap := k.cfg.Snapshot()
	if snap == nil {
		return time.Second, nil
	}
	if !k.fresh {
		if err := k.store.load(ctx); err != nil {
			return 0, err
		}
		k.fresh = true
	}
	sessions := k.cfg.Sessions()
	members := map[string][]*mesh.Cluster{}
	for i := range snap.Clusters {
		if p, _, known := snap.RootPolicy(&snap.Clusters[i]); p != nil && known {
			members[p.Source.Name] = append(members[p.Source.Name], &snap.Clusters[i])
		}
	}
	directives := map[mesh.ClusterName]*mesh.TrustDirective{}
	statuses := map[mesh.ClusterName]*adminv2.ClusterCAStatus{}
	inputs := map[string]trust.Input{}
	var pause time.Duration
	var errs []error
	var shown []report.Trust
	for _, p := range snap.RootPolicies {
		t := &turn{k: k, wg: wg, now: now, policy: p, clusters: members[p.Source.Name], sessions: sessions, conflicts: conflicts(snap, p)}
		if err := t.take(ctx, snap); err != nil {
			if errors.Is(err, errStale) || apierrors.IsConflict(err) {
				k.fresh = false
			}
			errs = append(errs, fmt.Errorf("RootTrustPolicy %q: %w", p.Source.Name, err))
			continue // what was in force stays in force
		}
		maps.Copy(directives, t.step.Directives)
		maps.Copy(statuses, t.statuses)
		inputs[p.Source.Name] = t.input
		shown = append(shown, t.said)
		pause = soonest(soonest(pause, t.step.Wait), soonest(k.askAgain(p.Source.Name, now), nextRevocation(t.revoked, now)))
	}
	if len(errs) == 0 && len(snap.Clusters) > 0 {
		k.shown.show(shown, k.cfg.Board, !slices.ContainsFunc(snap.RootPolicies, func(p *mesh.RootTrustPolicy) bool { return p.Invalid != "" }))
	}
	if len(errs) == 0 || k.boardReady() {
		k.cfg.Board.direct(directives)
	}
	k.mu.Lock()
	changed := !reflect.DeepEqual(k.statuses, statuses)
	k.statuses, k.inputs = statuses, inputs
	k.mu.Unlock()
	if changed {
		k.cfg.Changed()
	}
	errs = append(errs, k.forget(ctx, snap, now))
	return pause, errors.Join(errs...)
}

func (k *Keeper) boardReady() bool {
	_, ready := k.cfg.Board.Directive("")
	return ready
}

// forget drops records of clusters that are deregistered, after their intermediates were revoked. A Snapshot without any cluster may be one that knows nothing.
func (k *Keeper) forget(ctx context.Context, snap *mesh.Snapshot, now time.Time) error {
	if len(snap.Clusters) == 0 {
		return nil
	}
	var errs []error
	for _, c := range k.store.names() {
		if snap.Cluster(c) == nil {
			if err := k.revokeGone(ctx, snap.RootPolicies, c, now); err != nil {
				errs = append(errs, err)
				continue
			}
			errs = append(errs, k.store.forget(ctx, c))
		}
	}
	return errors.Join(errs...)
}

// conflicts are the names of older policies that select clusters which p selects too.
func conflicts(snap *mesh.Snapshot, p *mesh.RootTrustPolicy) []string {
	found := map[string]bool{}
	for i := range snap.Clusters {
		holds, others, _ := snap.RootPolicy(&snap.Clusters[i])
		if holds != nil && slices.Contains(others, p) {
			found[holds.Source.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// turn is one policy in one round.
type turn struct {
	k         *Keeper
	wg        *sync.WaitGroup
	now       time.Time
	policy    *mesh.RootTrustPolicy
	clusters  []*mesh.Cluster
	sessions  map[mesh.ClusterName]mesh.Session
	conflicts []string

	input    trust.Input
	step     trust.Step
	revoked  []revocation // in force, or about to be
	unlisted []string     // why roots have no list, or an old one
	statuses map[mesh.ClusterName]*adminv2.ClusterCAStatus
	said     report.Trust
}

// take gathers, decides, stores and acts.
func (t *turn) take(ctx context.Context, snap *mesh.Snapshot) error {
	k, p := t.k, t.policy
	var obj adminv2.RootTrustPolicy
	if err := k.cfg.Client.Get(ctx, client.ObjectKey{Namespace: p.Source.Namespace, Name: p.Source.Name}, &obj); err != nil {
		return client.IgnoreNotFound(err)
	}
	rotation, err := stored(&obj)
	if err != nil {
		return err
	}
	authority := identify(p.Authority)
	requests := k.answered(ofPolicy(snap.RotationRequests, p.Source))
	t.input = trust.Input{
		Rotation: rotation, At: t.now,
		Want:  wanted(p, requests, &rotation, authority, k.root(p.Source.Name, authority)),
		Fleet: fleet(t.clusters, t.sessions, k.cfg.Board.look, k.store.cluster),
	}
	t.input.Want.Passive = k.passive(ctx, t, rotation.Passive)
	if err := k.lists(ctx, t, &rotation); err != nil {
		return err
	}
	if p.Invalid != "" { // whatever is in force stays in force
		return t.report(ctx, &obj)
	}
	t.step = trust.Next(t.input.Rotation, t.input.Want, t.input.Fleet, t.now)
	if err := t.report(ctx, &obj); err != nil {
		return err
	}
	t.audit(rotation)
	for c, kept := range t.step.Keep {
		if err := k.store.keep(ctx, c, kept); err != nil {
			return err
		}
	}
	verdicts := judge(requests, &t.step.Rotation, t.members())
	for i := range verdicts {
		if err := k.revokeAsked(ctx, t, &verdicts[i]); err != nil {
			return err
		}
	}
	if err := k.answer(ctx, verdicts); err != nil {
		return err
	}
	k.askRoot(ctx, t)
	k.sign(ctx, t)
	return nil
}

func (t *turn) members() map[mesh.ClusterName]bool {
	out := make(map[mesh.ClusterName]bool, len(t.clusters))
	for _, c := range t.clusters {
		out[c.Name] = true
	}
	return out
}

// stored reads the engine's record.
func stored(obj *adminv2.RootTrustPolicy) (trust.Rotation, error) {
	var r trust.Rotation
	if raw := obj.Status.Rotation; raw != nil && len(raw.Raw) > 0 {
		if err := json.Unmarshal(raw.Raw, &r); err != nil {
			return r, fmt.Errorf("status.rotation can't be read: %w (restore the status from a backup; without it nobody knows how far the rotation was)", err)
		}
	}
	return r, nil
}

// report stores the decision, and says it for readers: one write.
func (t *turn) report(ctx context.Context, obj *adminv2.RootTrustPolicy) error {
	raw, err := json.Marshal(t.step.Rotation)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	in := report.Trust{Policy: t.policy, Input: t.input, Step: t.step, Conflicts: t.conflicts, Revoked: revokedStatus(t), Unlisted: t.unlisted}
	in.Issuing, in.Refusals = t.k.issuing(t.policy.Source.Name, identify(t.policy.Authority))
	t.said = in
	next := report.RootTrustPolicy(obj.Status, in, t.now)
	if t.policy.Invalid == "" {
		next.Rotation = &runtime.RawExtension{Raw: raw}
	}
	t.statuses = report.CAStatuses(in)
	if !report.Unequal(obj.Status, next) {
		return nil
	}
	obj.Status = next
	if err := t.k.cfg.Client.Status().Update(ctx, obj); err != nil {
		return fmt.Errorf("store the decision: %w", err)
	}
	return nil
}

// audit records what changes trust.
func (t *turn) audit(before trust.Rotation) {
	after := &t.step.Rotation
	if before.Phase == after.Phase && before.Back == after.Back {
		return
	}
	t.k.cfg.Log.Info("rotation", "policy", t.policy.Source.Name, "from", before.Phase, "to", after.Phase, "back", after.Back, "why", t.step.Reason)
	t.k.cfg.Record(phaseRecord(t.policy, &before, after, t.step.Reason, t.now))
}

// answered are the requests as this server has answered them, whether or not its cache shows that yet.
func (k *Keeper) answered(requests []*mesh.RotationRequest) []*mesh.RotationRequest {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(requests), func(q *mesh.RotationRequest) bool {
		if q.State != "" && q.State != adminv2.RequestPending {
			delete(k.told, q.UID)
			return false
		}
		return k.told[q.UID] != "" // the next round has it with its answer
	})
}

// answer writes what becomes of requests.
func (k *Keeper) answer(ctx context.Context, verdicts []verdict) error {
	for _, v := range verdicts {
		obj := &adminv2.RotationRequest{}
		key := client.ObjectKey{Namespace: v.request.Source.Namespace, Name: v.request.Source.Name}
		if err := k.cfg.Client.Get(ctx, key, obj); err != nil {
			if apierrors.IsNotFound(err) {
				continue
			}
			return fmt.Errorf("request %q: %w", key.Name, err)
		}
		if string(obj.UID) != v.request.UID || obj.Status.State != "" && obj.Status.State != adminv2.RequestPending {
			continue
		}
		at := metav1.NowMicro()
		obj.Status = adminv2.RotationRequestStatus{State: v.state, Message: v.message, By: v.request.By, At: &at, Generation: int64(v.root)}
		if err := k.cfg.Client.Status().Update(ctx, obj); err != nil {
			return fmt.Errorf("answer request %q: %w", key.Name, err)
		}
		k.mu.Lock()
		k.told[v.request.UID] = v.state
		k.mu.Unlock()
		k.cfg.Record(requestRecord(v, at.Time))
	}
	return nil
}
