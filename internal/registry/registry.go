// Package registry decides, on the management cluster's API, which agents may join: it is the relay's Gate.
//
// In: the relay's questions, the registered clusters, the Secrets relay-registration-<cluster> (a token's hash, written by meshctl) and relay-identity-<cluster>
// (the keys accepted, written here). Out: yes, or a refusal in one sentence; and what must be on record is on record before the answer is given.
// It must not sign anything or talk to an agent, and it never sees a private key. record.go holds the decisions, as functions on values.
package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
)

// Names of what is kept, as meshctl and published scripts know them.
const (
	RegistrationPrefix = "relay-registration-"
	IdentityPrefix     = "relay-identity-"
	RegistrationType   = "ambitmesh.dev/relay-registration"
	IdentityType       = "ambitmesh.dev/relay-identity"
	LabelCluster       = "admin.gloo.solo.io/cluster"
)

// Cluster is what the registry needs to know of a registered cluster.
type Cluster struct {
	Registration string // metadata.uid of its KubernetesCluster
	UID          mesh.ClusterUID
}

// Clusters are the registered clusters.
type Clusters interface {
	// Lookup finds a cluster as a cache has it, or, with fresh, as the API server has it now; ok is false when it is not registered.
	Lookup(ctx context.Context, c mesh.ClusterName, fresh bool) (found Cluster, ok bool, err error)
	// NameOf finds the cluster that has the UID.
	NameOf(uid mesh.ClusterUID) (mesh.ClusterName, bool)
}

// Config is what a Registry needs.
type Config struct {
	Client    client.Client // asks the API server, never a cache
	Clusters  Clusters
	Namespace string
	// SharedToken returns relay-identity-token-secret's token; empty: there is none.
	SharedToken func() []byte
	// DisableSharedToken: only registration tokens enrol.
	DisableSharedToken bool
	Log                *slog.Logger
	Now                func() time.Time
}

// Registry implements relay.Gate.
type Registry struct {
	cfg Config

	mu      sync.Mutex
	entries map[mesh.ClusterName]*entry
}

// entry is one cluster's record. Its lock is held while the record is written, so that a session never begins between a decision and its record.
type entry struct {
	sync.Mutex
	secret *corev1.Secret // nil: not written yet
	record record
	asked  mesh.ClusterUID // UID of the enrolment under way, for Issued
	// bound mirrors record.UID for NameOf, under Registry.mu
	bound mesh.ClusterUID
}

// New returns a Registry; Load must succeed before it is asked anything.
func New(cfg Config) *Registry {
	return &Registry{cfg: cfg, entries: map[mesh.ClusterName]*entry{}}
}

// Load reads every identity record.
func (r *Registry) Load(ctx context.Context) error {
	var list corev1.SecretList
	if err := r.cfg.Client.List(ctx, &list, client.InNamespace(r.cfg.Namespace), client.HasLabels{LabelCluster}, client.MatchingFields{"type": IdentityType}); err != nil {
		return fmt.Errorf("identity records: %w", err)
	}
	for i := range list.Items {
		s := &list.Items[i]
		name, ok := strings.CutPrefix(s.Name, IdentityPrefix)
		if !ok {
			continue
		}
		rec, err := parseRecord(s.Data["record"])
		if err != nil {
			return fmt.Errorf("secret %s/%s: %w: restore it from a backup, or delete it and register the cluster again", s.Namespace, s.Name, err)
		}
		e := r.entry(mesh.ClusterName(name))
		e.Lock()
		r.set(e, s, rec)
		e.Unlock()
	}
	return nil
}

func (r *Registry) entry(c mesh.ClusterName) *entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[c]
	if e == nil {
		e = &entry{}
		r.entries[c] = e
	}
	return e
}

func (r *Registry) set(e *entry, s *corev1.Secret, rec record) {
	e.secret, e.record = s, rec
	r.mu.Lock()
	e.bound = rec.UID
	r.mu.Unlock()
}

// nameOf finds another cluster than c with this UID, among the records and the registered.
func (r *Registry) nameOf(uid mesh.ClusterUID, c mesh.ClusterName) mesh.ClusterName {
	if uid == "" {
		return ""
	}
	r.mu.Lock()
	for _, n := range slices.Sorted(maps.Keys(r.entries)) {
		if n != c && r.entries[n].bound == uid {
			r.mu.Unlock()
			return n
		}
	}
	r.mu.Unlock()
	if n, ok := r.cfg.Clusters.NameOf(uid); ok && n != c {
		return n
	}
	return ""
}

// gather collects the facts about c; e is locked. What the cache knows is enough while nothing contradicts it: a deletion it has not seen yet is seen in a moment,
// and ends the session then.
func (r *Registry) gather(ctx context.Context, e *entry, c mesh.ClusterName, uid mesh.ClusterUID, fresh bool) (facts, error) {
	f := facts{Cluster: c, Namespace: r.cfg.Namespace, Now: r.cfg.Now()}
	kc, ok, err := r.cfg.Clusters.Lookup(ctx, c, fresh)
	if err == nil && !fresh && (!ok || e.record.Registration != "" && e.record.Registration != kc.Registration) { // just made, or made again: the cache may not know yet
		kc, ok, err = r.cfg.Clusters.Lookup(ctx, c, true)
	}
	if err != nil {
		return f, fmt.Errorf("cluster %q: %w", c, err)
	}
	if ok {
		f.Registration, f.UID = kc.Registration, kc.UID
		if e.record.Registration != "" && e.record.Registration != kc.Registration { // deregistered and registered again before we saw it
			if err := r.write(ctx, e, c, e.record.revoked()); err != nil {
				return f, err
			}
		}
	}
	f.Record = e.record
	if f.Record.UID != "" {
		f.UID = f.Record.UID
	}
	f.NameOfUID = r.nameOf(uid, c)
	return f, nil
}

// Enrol redeems a token, or refuses (relay.Gate).
func (r *Registry) Enrol(ctx context.Context, a relay.EnrolAttempt) error {
	e := r.entry(a.Cluster)
	e.Lock()
	defer e.Unlock()
	f, err := r.gather(ctx, e, a.Cluster, a.UID, false)
	if err != nil {
		return err
	}
	secret, err := r.announced(ctx, &f)
	if err != nil {
		return err
	}
	if t := f.Token; t != nil && t.Owner != "" && t.Owner != f.Registration { // of an earlier registration, or of one the cache does not know yet
		if f, err = r.gather(ctx, e, a.Cluster, a.UID, true); err != nil {
			return err
		}
		f.Token = t
	}
	f.Shared, f.SharedOff = r.cfg.SharedToken(), r.cfg.DisableSharedToken
	redeem, no := f.enrol(a)
	if no != nil {
		return no
	}
	if redeem { // the resourceVersion in secret makes this fail when somebody else redeemed or replaced it meanwhile
		secret.Data["usedBy"] = []byte(a.Key.String())
		if err := r.cfg.Client.Update(ctx, secret); err != nil {
			return fmt.Errorf("cluster %q: redeem the registration token: %w", a.Cluster, err)
		}
	}
	e.asked = a.UID
	return nil
}

// announced reads the registration token's Secret, if a cluster of that name is registered.
func (r *Registry) announced(ctx context.Context, f *facts) (*corev1.Secret, error) {
	if f.Registration == "" {
		return nil, nil
	}
	var s corev1.Secret
	err := r.cfg.Client.Get(ctx, client.ObjectKey{Namespace: r.cfg.Namespace, Name: RegistrationPrefix + string(f.Cluster)}, &s)
	if errors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cluster %q: registration token: %w", f.Cluster, err)
	}
	if s.Type != RegistrationType || s.Labels[LabelCluster] != string(f.Cluster) {
		r.cfg.Log.Warn("not a registration token, left alone", "secret", s.Name, "type", s.Type)
		return nil, nil
	}
	expires, err := time.Parse(time.RFC3339, string(s.Data["expires"]))
	if err != nil {
		r.cfg.Log.Warn("registration token without a valid expiry counts as expired", "secret", s.Name)
	}
	f.Token = &token{Hash: string(s.Data["tokenHash"]), Expires: expires, UID: mesh.ClusterUID(s.Data["uid"]), UsedBy: string(s.Data["usedBy"])}
	for _, o := range s.OwnerReferences {
		if o.Kind == "KubernetesCluster" {
			f.Token.Owner = string(o.UID)
		}
	}
	return &s, nil
}

// Issued puts a key on record before its certificate is handed out (relay.Gate).
func (r *Registry) Issued(ctx context.Context, id relay.Identity) error {
	e := r.entry(id.Cluster)
	e.Lock()
	defer e.Unlock()
	f, err := r.gather(ctx, e, id.Cluster, e.asked, false)
	if err != nil {
		return err
	}
	if f.Registration == "" {
		return f.whoIs(e.asked)
	}
	if k, ok := f.Record.key(id.Key); ok && k.Revoked {
		return revokedKey(id.Cluster, id.Serial)
	}
	next := f.Record.with(id, f.Now)
	next.Registration = f.Registration
	if next.UID == "" {
		next.UID = e.asked
	}
	return r.write(ctx, e, id.Cluster, next)
}

// Admit says whether a session may begin (relay.Gate).
func (r *Registry) Admit(ctx context.Context, id relay.Identity, h relay.Hello) error {
	e := r.entry(id.Cluster)
	e.Lock()
	defer e.Unlock()
	f, err := r.gather(ctx, e, id.Cluster, h.UID, false)
	if err != nil {
		return err
	}
	next, no := f.admit(id, h)
	if no != nil {
		return no
	}
	return r.write(ctx, e, id.Cluster, next)
}

// write stores a record that differs from the one stored. e is locked.
func (r *Registry) write(ctx context.Context, e *entry, c mesh.ClusterName, next record) error {
	if e.secret != nil && equalRecords(e.record, next) {
		return nil
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("cluster %q: encode identity record: %w", c, err)
	}
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: IdentityPrefix + string(c), Namespace: r.cfg.Namespace, Labels: map[string]string{LabelCluster: string(c)}},
		Type:       IdentityType,
	}
	if e.secret != nil {
		s = e.secret.DeepCopy()
	}
	s.Data = map[string][]byte{"record": raw}
	if e.secret == nil {
		err = r.cfg.Client.Create(ctx, s)
	} else {
		err = r.cfg.Client.Update(ctx, s)
	}
	if errors.IsConflict(err) || errors.IsAlreadyExists(err) || errors.IsNotFound(err) { // somebody else wrote: take theirs, and let the agent ask again
		if reload := r.reload(ctx, e, c); reload != nil {
			err = reload
		}
	}
	if err != nil {
		return fmt.Errorf("cluster %q: write identity record: %w", c, err)
	}
	s.ManagedFields = nil
	r.set(e, s, next)
	return nil
}

func (r *Registry) reload(ctx context.Context, e *entry, c mesh.ClusterName) error {
	var s corev1.Secret
	err := r.cfg.Client.Get(ctx, client.ObjectKey{Namespace: r.cfg.Namespace, Name: IdentityPrefix + string(c)}, &s)
	if errors.IsNotFound(err) {
		r.set(e, nil, record{})
		return nil
	}
	if err != nil {
		return fmt.Errorf("cluster %q: read identity record: %w", c, err)
	}
	rec, err := parseRecord(s.Data["record"])
	if err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	r.set(e, &s, rec)
	return nil
}

// Reconcile revokes the keys of every cluster that is no longer registered (given by name with the metadata.uid of its KubernetesCluster), also of those deregistered
// while the server was down, and forgets records whose keys have all expired. It returns the clusters whose sessions must end, with what to tell them.
func (r *Registry) Reconcile(ctx context.Context, registered map[mesh.ClusterName]string) (map[mesh.ClusterName]*relay.Refusal, error) {
	r.mu.Lock()
	names := slices.Sorted(maps.Keys(r.entries))
	r.mu.Unlock()
	gone := map[mesh.ClusterName]*relay.Refusal{}
	for _, c := range names {
		e := r.entry(c)
		e.Lock()
		no, err := r.reconcile(ctx, e, c, registered[c])
		e.Unlock()
		if no != nil { // also when the record can't be written now: the session ends first
			gone[c] = no
		}
		if err != nil {
			return gone, err
		}
	}
	return gone, nil
}

func (r *Registry) reconcile(ctx context.Context, e *entry, c mesh.ClusterName, registration string) (*relay.Refusal, error) {
	now := r.cfg.Now()
	if e.record.Registration == "" || e.record.Registration == registration {
		if registration == "" && e.secret != nil && !slices.ContainsFunc(e.record.Keys, func(k recordKey) bool { return now.Before(k.NotAfter) }) {
			if err := r.cfg.Client.Delete(ctx, e.secret); client.IgnoreNotFound(err) != nil {
				return nil, fmt.Errorf("cluster %q: remove the record of expired keys: %w", c, err)
			}
			r.set(e, nil, record{})
		}
		return nil, nil
	}
	// what the caller knows may be older than the record: ask before doing what can't be undone
	kc, ok, err := r.cfg.Clusters.Lookup(ctx, c, true)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", c, err)
	}
	if ok && kc.Registration == e.record.Registration {
		return nil, nil
	}
	no := relay.Refuse(relayv1.Goodbye_REVOKED, "cluster %q was deregistered: its certificate is revoked; run `meshctl cluster register %s` to register it again", c, c)
	if err := r.write(ctx, e, c, e.record.revoked()); err != nil {
		return no, err
	}
	r.cfg.Log.Info("keys of a deregistered cluster revoked", "cluster", c, "keys", len(e.record.Keys))
	return no, nil
}
