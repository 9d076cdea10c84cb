// Package relaysecrets keeps the relay's certificate family in the five Secrets that published scripts know by name.
//
// In: the Secrets, the time. Out: the family in force (relay.FamilySource), the shared token, what is wrong with them; and, on the leader, the Secrets themselves: made when
// there are none, put back when one is deleted, renewed before they expire. A Secret that somebody supplied is used and never written.
// It must not know how certificates are made or checked: that is internal/relay/family.
package relaysecrets

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
)

// Names of the Secrets. Zero values mean the published ones.
type Names struct {
	Root, Signing, Server, Client, Token string
	TokenKey                             string
}

// Journal is the Secret in which a change of several Secrets is written down before it is made, so that a crash half-way is finished at the next start.
const Journal = "gloo-mesh-relay-change"

// ManagedBy is the label that marks Secrets made here; a Secret without it was supplied, and is not written.
const (
	ManagedBy      = "app.kubernetes.io/managed-by"
	ManagedByValue = "gloo-mesh-mgmt-server"
)

func (n Names) withDefaults() Names {
	or := func(a, b string) string {
		if a == "" {
			return b
		}
		return a
	}
	return Names{
		Root: or(n.Root, "relay-root-tls-secret"), Signing: or(n.Signing, "relay-tls-signing-secret"), Server: or(n.Server, "relay-server-tls-secret"),
		Client: or(n.Client, "relay-client-tls-secret"), Token: or(n.Token, "relay-identity-token-secret"), TokenKey: or(n.TokenKey, "token"),
	}
}

// All lists the names in the order in which the Secrets are written: what others are derived from comes first.
func (n Names) All() []string {
	n = n.withDefaults()
	return []string{n.Root, n.Signing, n.Server, n.Client, n.Token}
}

// Config is what Secrets needs.
type Config struct {
	Client      client.Client // asks the API server, never a cache
	Namespace   string
	Names       Names
	Cluster     mesh.ClusterName // whose name the management cluster's own client certificate carries
	ServerNames []string         // names in the server's certificate
	Log         *slog.Logger
}

// putBackAfter is how long a deleted Secret stays away.
const putBackAfter = 10 * time.Second

// clientLife is the life of the management cluster's own client certificate.
const clientLife = 365 * 24 * time.Hour

// Secrets keeps the family. It implements relay.FamilySource.
type Secrets struct {
	cfg   Config
	names Names

	mu       sync.Mutex
	current  *family.Family
	token    []byte
	problems []family.Problem
	changed  chan struct{}
	seen     map[string]map[string][]byte // last data of our own Secrets, to put one back that was deleted
	missing  map[string]time.Time         // since when one of those is gone
	faulty   map[string]bool              // had a problem when last seen
	digest   string
}

// New returns Secrets; Load reads, Keep writes.
func New(cfg Config) *Secrets {
	return &Secrets{cfg: cfg, names: cfg.Names.withDefaults(), changed: make(chan struct{}), seen: map[string]map[string][]byte{}, missing: map[string]time.Time{}, faulty: map[string]bool{}}
}

// Current is the family in force, nil before the first successful Load.
func (s *Secrets) Current() *family.Family {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Changed returns a channel that is closed at the next change of Current.
func (s *Secrets) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Token is the shared identity token, empty when there is none.
func (s *Secrets) Token() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// Problems are what is wrong with the Secrets as last read.
func (s *Secrets) Problems() []family.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// read gets the five Secrets, and the journal if a change is under way.
func (s *Secrets) read(ctx context.Context) (map[string]*corev1.Secret, *corev1.Secret, error) {
	out := map[string]*corev1.Secret{}
	for _, name := range append(s.names.All(), Journal) {
		var sec corev1.Secret
		err := s.cfg.Client.Get(ctx, client.ObjectKey{Namespace: s.cfg.Namespace, Name: name}, &sec)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("relay certificates: secret %s/%s: %w", s.cfg.Namespace, name, err)
		}
		out[name] = &sec
	}
	journal := out[Journal]
	delete(out, Journal)
	return out, journal, nil
}

// Load takes up what the Secrets hold; every replica calls it when one of them changes. A set that can't serve, or a change under way, leaves the family in force as it is.
// It returns the problems that were not there before.
func (s *Secrets) Load(ctx context.Context, now time.Time) ([]family.Problem, error) {
	have, journal, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if journal != nil {
		return nil, nil
	}
	return s.take(have, now), nil
}

func (s *Secrets) take(have map[string]*corev1.Secret, now time.Time) []family.Problem {
	f, problems := family.Parse(s.data(have), now)
	var missing []string
	for _, n := range s.names.All() {
		if have[n] == nil {
			missing = append(missing, n)
		}
	}
	if len(missing) == len(s.names.All()) {
		f, problems = nil, nil // before the first start
	} else if len(missing) > 0 {
		for _, n := range missing {
			if !slices.ContainsFunc(problems, func(p family.Problem) bool { return p.Secret == n }) {
				problems = append(problems, family.Problem{Secret: n, Message: "it is missing", Fix: "restore it, or run `meshctl relay repair`"})
			}
		}
	}
	if f != nil {
		problems = append(problems, f.CheckServerNames(s.cfg.ServerNames)...)
		if c := have[s.names.Client]; c != nil && s.cfg.Cluster != "" {
			problems = append(problems, f.CheckClient(c.Data["tls.crt"], c.Data["tls.key"], s.cfg.Cluster, now)...)
		}
	}
	var token []byte
	if t := have[s.names.Token]; t != nil {
		token = bytes.TrimSpace(t.Data[s.names.TokenKey])
		problems = append(problems, family.CheckToken(t.Data[s.names.TokenKey])...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, sec := range have {
		if ours(sec) {
			s.seen[n] = maps.Clone(sec.Data)
		} else {
			delete(s.seen, n)
		}
	}
	for n := range have {
		s.faulty[n] = slices.ContainsFunc(problems, func(p family.Problem) bool { return s.published(p.Secret) == n })
	}
	var fresh []family.Problem
	for _, p := range problems {
		if !slices.Contains(s.problems, p) {
			fresh = append(fresh, p)
		}
	}
	s.problems, s.token = problems, token
	if digest := digestOf(s.data(have)); f != nil && digest != s.digest {
		s.current, s.digest = f, digest
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return fresh
}

// published maps the name a Problem has, which is the published one, to the name configured.
func (s *Secrets) published(name string) string {
	if i := slices.Index((Names{}).All(), name); i >= 0 {
		return s.names.All()[i]
	}
	return name
}

func ours(sec *corev1.Secret) bool { return sec.Labels[ManagedBy] == ManagedByValue }

func digestOf(d family.Secrets) string {
	raw, err := json.Marshal(d)
	if err != nil {
		return ""
	}
	return mesh.FingerprintOf(raw).String()
}

func (s *Secrets) data(have map[string]*corev1.Secret) family.Secrets {
	get := func(n string) map[string][]byte {
		if have[n] == nil {
			return nil
		}
		return have[n].Data
	}
	return family.Secrets{Root: get(s.names.Root), Signing: get(s.names.Signing), Server: get(s.names.Server)}
}

// Keep makes, mends and renews; only the leader calls it: at its start, when one of the Secrets changes, and every few minutes. It ends with a Load.
func (s *Secrets) Keep(ctx context.Context, now time.Time) ([]family.Problem, error) {
	have, journal, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if journal != nil {
		var want map[string]map[string][]byte
		if err := json.Unmarshal(journal.Data["change"], &want); err != nil {
			return nil, fmt.Errorf("relay certificates: secret %s/%s can't be read, delete it: %w", s.cfg.Namespace, Journal, err)
		}
		s.cfg.Log.Info("finishing a change of the relay certificates that was interrupted", "secrets", slices.Sorted(maps.Keys(want)))
		if err := s.apply(ctx, have, want, journal); err != nil {
			return nil, err
		}
		if have, _, err = s.read(ctx); err != nil {
			return nil, err
		}
	}
	want, why, err := s.plan(have, now)
	if err != nil {
		_, loadErr := s.Load(ctx, now)
		return nil, errors.Join(err, loadErr)
	}
	if len(want) > 0 {
		s.cfg.Log.Info("writing relay certificates", "why", why, "secrets", slices.Sorted(maps.Keys(want)))
		if err := s.change(ctx, have, want); err != nil {
			return nil, err
		}
	}
	return s.Load(ctx, now)
}

// plan decides which Secrets to write: data by name. It never names one that somebody supplied.
func (s *Secrets) plan(have map[string]*corev1.Secret, now time.Time) (map[string]map[string][]byte, string, error) {
	want := map[string]map[string][]byte{}
	var why []string
	opts := family.Options{ServerNames: s.cfg.ServerNames}
	n := s.names

	back, err := s.putBack(have, now)
	if err != nil {
		return nil, "", err
	}
	for name, data := range back {
		want[name] = data
		why = append(why, name+" was deleted")
	}
	d := s.data(have)
	lacking := 0
	for name, part := range map[string]*map[string][]byte{n.Root: &d.Root, n.Signing: &d.Signing, n.Server: &d.Server} {
		if *part == nil {
			*part = want[name]
		}
		if *part == nil {
			lacking++
		}
	}
	var f *family.Family
	if lacking > 0 { // the first start, or a part was deleted because it was damaged
		var done []string
		if f, done, err = family.Repair(d, now, opts); err != nil {
			s.cfg.Log.Warn("relay certificates can't be made", "error", err)
			return want, strings.Join(why, "; "), nil // a person must mend it; Load says what
		}
		why = append(why, done...)
	} else if f, _ = family.Parse(d, now); f == nil {
		return want, strings.Join(why, "; "), nil
	} else if renewed, err := f.Maintain(now, opts); err != nil {
		s.cfg.Log.Warn("relay certificates can't be renewed", "error", err)
	} else if renewed != nil {
		merged, err := s.oursOnly(have, renewed, now)
		if err != nil {
			return nil, "", err
		}
		if merged != nil {
			f = merged
			why = append(why, "renewal")
		}
	}
	next, err := f.Secrets()
	if err != nil {
		return nil, "", fmt.Errorf("relay certificates: %w", err)
	}
	if len(why) > 0 {
		for name, data := range map[string]map[string][]byte{n.Root: next.Root, n.Signing: next.Signing, n.Server: next.Server} {
			if have[name] == nil && want[name] == nil || have[name] != nil && ours(have[name]) && !maps.EqualFunc(have[name].Data, data, bytes.Equal) {
				want[name] = data
			}
		}
	}
	more, err := s.planOthers(f, have, want, now)
	if err != nil {
		return nil, "", err
	}
	return want, strings.Join(append(why, more...), "; "), nil
}

// errDeleted delays putting a Secret back: whoever deletes all of them wants a new family.
var errDeleted = errors.New("a Secret of the relay was deleted: it is put back soon, unless all of them are deleted, which makes a new family")

// putBack says which Secrets of ours were deleted while we ran, and what was in them. One that had a problem is not put back: it was deleted to get a new one.
func (s *Secrets) putBack(have map[string]*corev1.Secret, now time.Time) (map[string]map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have[s.names.Root] == nil && have[s.names.Signing] == nil && have[s.names.Server] == nil {
		clear(s.missing)
		clear(s.seen)
		return nil, nil
	}
	back := map[string]map[string][]byte{}
	var wait error
	for _, name := range s.names.All() {
		if have[name] != nil || s.seen[name] == nil || s.faulty[name] {
			delete(s.missing, name)
			continue
		}
		if s.missing[name].IsZero() {
			s.missing[name] = now
		}
		if now.Sub(s.missing[name]) < putBackAfter {
			wait = errDeleted
		}
		back[name] = s.seen[name]
	}
	if wait != nil {
		return nil, wait
	}
	return back, nil
}

// oursOnly is next where the Secrets were made here, and what is there where they were supplied; nil when the two don't fit together.
func (s *Secrets) oursOnly(have map[string]*corev1.Secret, next *family.Family, now time.Time) (*family.Family, error) {
	d, err := next.Secrets()
	if err != nil {
		return nil, fmt.Errorf("relay certificates: %w", err)
	}
	for name, part := range map[string]*map[string][]byte{s.names.Root: &d.Root, s.names.Signing: &d.Signing, s.names.Server: &d.Server} {
		if have[name] != nil && !ours(have[name]) {
			*part = have[name].Data
		}
	}
	f, _ := family.Parse(d, now)
	return f, nil
}

// planOthers adds the management cluster's own client certificate and the shared token.
func (s *Secrets) planOthers(f *family.Family, have map[string]*corev1.Secret, want map[string]map[string][]byte, now time.Time) ([]string, error) {
	var why []string
	c := have[s.names.Client]
	if want[s.names.Client] == nil && s.cfg.Cluster != "" &&
		(c == nil || ours(c) && len(f.CheckClient(c.Data["tls.crt"], c.Data["tls.key"], s.cfg.Cluster, now.Add(clientLife/3))) > 0) {
		chain, key, err := f.NewClient(s.cfg.Cluster, now, clientLife)
		if err != nil {
			return nil, fmt.Errorf("relay certificates: client certificate of %q: %w", s.cfg.Cluster, err)
		}
		next, err := f.Secrets()
		if err != nil {
			return nil, fmt.Errorf("relay certificates: %w", err)
		}
		want[s.names.Client] = map[string][]byte{"tls.crt": chain, "tls.key": key, "ca.crt": next.Root["ca.crt"]}
		why = append(why, "client certificate of the management cluster")
	}
	if want[s.names.Token] == nil && have[s.names.Token] == nil {
		raw := make([]byte, 32)
		if _, err := rand.Read(raw); err != nil {
			return nil, fmt.Errorf("identity token: %w", err)
		}
		want[s.names.Token] = map[string][]byte{s.names.TokenKey: []byte(base64.RawURLEncoding.EncodeToString(raw))}
		why = append(why, "shared identity token")
	}
	return why, nil
}

// change writes the intention down, then the Secrets, then removes the intention: all or nothing over crashes.
func (s *Secrets) change(ctx context.Context, have map[string]*corev1.Secret, want map[string]map[string][]byte) error {
	raw, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("relay certificates: encode the change: %w", err)
	}
	journal := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: Journal, Namespace: s.cfg.Namespace, Labels: map[string]string{ManagedBy: ManagedByValue}},
		Data:       map[string][]byte{"change": raw},
	}
	if err := s.cfg.Client.Create(ctx, journal); err != nil {
		return fmt.Errorf("relay certificates: write the intended change: %w", err)
	}
	return s.apply(ctx, have, want, journal)
}

func (s *Secrets) apply(ctx context.Context, have map[string]*corev1.Secret, want map[string]map[string][]byte, journal *corev1.Secret) error {
	for _, name := range s.names.All() {
		data, wanted := want[name]
		if !wanted {
			continue
		}
		var err error
		switch sec := have[name]; {
		case sec == nil:
			err = s.cfg.Client.Create(ctx, &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.cfg.Namespace, Labels: map[string]string{ManagedBy: ManagedByValue}},
				Type:       corev1.SecretTypeOpaque, Data: data,
			})
		case !ours(sec) || maps.EqualFunc(sec.Data, data, bytes.Equal): // supplied meanwhile, or done before the crash
		default:
			sec = sec.DeepCopy()
			sec.Data = data
			err = s.cfg.Client.Update(ctx, sec)
		}
		if err != nil {
			return fmt.Errorf("relay certificates: write secret %s/%s: %w", s.cfg.Namespace, name, err)
		}
	}
	if err := s.cfg.Client.Delete(ctx, journal); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("relay certificates: remove the finished change: %w", err)
	}
	return nil
}
