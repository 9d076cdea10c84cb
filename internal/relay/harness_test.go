package relay

import (
	"context"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// TestMain fails if anything of the relay still runs when all tests are over.
func TestMain(m *testing.M) {
	if run := os.Getenv("RELAY_TEST_AGENTS"); run != "" {
		os.Exit(agentsOnly(run))
	}
	code := m.Run()
	if left := leaked(5 * time.Second); left != "" && code == 0 {
		fmt.Fprintf(os.Stderr, "goroutines left over:\n%s\n", left)
		code = 1
	}
	os.Exit(code)
}

func leaked(patience time.Duration) string {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		var left []string
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if (strings.Contains(g, "internal/relay") || strings.Contains(g, "google.golang.org/grpc")) && !strings.Contains(g, "TestMain") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
	}
}

// families is a FamilySource that a test can change.
type families struct {
	mu      sync.Mutex
	f       *family.Family
	changed chan struct{}
}

func newFamilies(t testing.TB) *families {
	t.Helper()
	f, err := family.Generate(time.Now(), family.Options{ServerNames: []string{"localhost", "127.0.0.1", "gloo-mesh-mgmt-server.gloo-mesh"}})
	if err != nil {
		t.Fatal(err)
	}
	return &families{f: f, changed: make(chan struct{})}
}

func (s *families) Current() *family.Family {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.f
}

func (s *families) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *families) set(f *family.Family) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.f = f
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *families) rotate(t testing.TB) {
	t.Helper()
	f, err := s.Current().Rotate(time.Now(), family.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.set(f)
}

// office is a Gate in memory, with the rules that internal/registry has on Kubernetes.
type office struct {
	mu         sync.Mutex
	registered map[mesh.ClusterName]bool
	uids       map[mesh.ClusterName]mesh.ClusterUID
	tokens     map[mesh.ClusterName]*token
	issued     map[mesh.Fingerprint]bool // true: revoked
	err        error                     // "not now"
	admitted   int
}

type token struct {
	secret  string
	expires time.Time
	used    mesh.Fingerprint
}

func newOffice() *office {
	return &office{
		registered: map[mesh.ClusterName]bool{}, uids: map[mesh.ClusterName]mesh.ClusterUID{}, tokens: map[mesh.ClusterName]*token{},
		issued: map[mesh.Fingerprint]bool{},
	}
}

func (o *office) register(c mesh.ClusterName, secret string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.registered[c] = true
	o.tokens[c] = &token{secret: secret, expires: time.Now().Add(15 * time.Minute)}
}

func (o *office) revoke(c mesh.ClusterName) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.registered, c)
	for k := range o.issued {
		o.issued[k] = true
	}
}

func (o *office) Enrol(_ context.Context, a EnrolAttempt) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.tokens[a.Cluster]
	switch {
	case o.err != nil:
		return o.err
	case !o.registered[a.Cluster]:
		return Refuse(relayv1.Goodbye_NOT_REGISTERED, "cluster %q is not registered", a.Cluster)
	case t == nil || subtle.ConstantTimeCompare([]byte(t.secret), []byte(a.Token)) == 0:
		return Refuse(relayv1.Goodbye_BAD_TOKEN, "unknown token for %q", a.Cluster)
	case time.Now().After(t.expires):
		return Refuse(relayv1.Goodbye_BAD_TOKEN, "the token for %q has expired", a.Cluster)
	case !t.used.IsZero() && t.used != a.Key:
		return Refuse(relayv1.Goodbye_BAD_TOKEN, "the token for %q was already used with another key", a.Cluster)
	}
	t.used = a.Key
	return nil
}

func (o *office) Issued(_ context.Context, id Identity) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	o.issued[id.Key] = false
	return nil
}

func (o *office) Admit(_ context.Context, id Identity, h Hello) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.err != nil:
		return o.err
	case o.issued[id.Key]:
		return Refuse(relayv1.Goodbye_REVOKED, "the identity of %q was revoked", id.Cluster)
	case !o.registered[id.Cluster]:
		return Refuse(relayv1.Goodbye_NOT_REGISTERED, "cluster %q is not registered", id.Cluster)
	case o.uids[id.Cluster] != "" && o.uids[id.Cluster] != h.UID:
		return Refuse(relayv1.Goodbye_WRONG_CLUSTER, "cluster %q has kube-system UID %s, the agent's is %s", id.Cluster, o.uids[id.Cluster], h.UID)
	}
	o.uids[id.Cluster] = h.UID
	o.admitted++
	return nil
}

// memory is an IdentityStore.
type memory struct {
	mu      sync.Mutex
	st      StoredIdentity
	saves   int
	failing error
}

func (m *memory) Load(context.Context) (StoredIdentity, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.st, nil
}

func (m *memory) Save(_ context.Context, st StoredIdentity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing != nil && len(st.ChainPEM) > 0 {
		return m.failing
	}
	if st.TokenUsed && m.st.Token == st.Token {
		st.Token = ""
	} else {
		st.Token = m.st.Token
	}
	st.TokenUsed = false
	m.st = st
	m.saves++
	return nil
}

func (m *memory) get() StoredIdentity {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.st
}

// site is a hub on loopback, with everything it needs.
type site struct {
	t       testing.TB
	fam     *families
	office  *office
	hub     *Hub
	address string
	stop    func() // stops the hub; also called at the end
}

// newSite starts a hub. change may alter its configuration.
func newSite(t testing.TB, change ...func(*HubConfig)) *site {
	t.Helper()
	s := &site{t: t, fam: newFamilies(t), office: newOffice()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.start(l, change...)
	return s
}

func (s *site) start(l net.Listener, change ...func(*HubConfig)) {
	cfg := HubConfig{Family: s.fam, Gate: s.office, Version: "2.12.0", Log: testLog(s.t)}
	for _, c := range change {
		c(&cfg)
	}
	s.hub = NewHub(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	hub := s.hub
	go func() { done <- hub.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("hub: %v", err)
		}
	})
	s.t.Cleanup(s.stop)
}

// restart stops the hub and starts another one, which knows nothing, at the same address.
func (s *site) restart() {
	s.t.Helper()
	s.stop()
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.start(l)
}

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("RELAY_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// agent is a spoke with everything it needs.
type agent struct {
	t         testing.TB
	spoke     *Spoke
	store     *memory
	inventory *synclog.Source
	stop      func()

	mu      sync.Mutex
	changes []synclog.Changes
}

// newAgent makes an agent that has been given the root and a token, and starts it.
func (s *site) newAgent(name mesh.ClusterName, change ...func(*SpokeConfig)) *agent {
	s.t.Helper()
	s.office.register(name, "token-of-"+string(name))
	return s.runAgent(name, &memory{st: StoredIdentity{Roots: s.rootPEM(), Token: "token-of-" + string(name)}}, change...)
}

func (s *site) rootPEM() []byte { return family.CertPEM(s.fam.Current().TrustBundle()...) }

func (s *site) runAgent(name mesh.ClusterName, store *memory, change ...func(*SpokeConfig)) *agent {
	s.t.Helper()
	a := &agent{t: s.t, store: store, inventory: synclog.NewSource("inventory-of-" + string(name) + time.Now().String()[:19])}
	a.run(s.config(name, a), change...)
	return a
}

func (s *site) config(name mesh.ClusterName, a *agent) SpokeConfig {
	return SpokeConfig{
		ServerAddress: s.address, Cluster: name, UID: mesh.ClusterUID("uid-of-" + name), Version: "2.12.0", Identity: a.store,
		Inventory: a.inventory, Log: testLog(s.t),
		OnDesired: func(_ context.Context, c synclog.Changes) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.changes = append(a.changes, c)
		},
	}
}

func (a *agent) run(cfg SpokeConfig, change ...func(*SpokeConfig)) {
	a.t.Helper()
	for _, c := range change {
		c(&cfg)
	}
	spoke, err := NewSpoke(cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	a.spoke = spoke
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = spoke.Run(ctx) }()
	a.stop = sync.OnceFunc(func() { cancel(); <-done })
	a.t.Cleanup(a.stop)
}

// wait polls until ok; what describes it.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (a *agent) waitConnected() {
	a.t.Helper()
	wait(a.t, "agent connected", func() bool { return a.spoke.Status().Connected })
}

// waitError waits until the agent says something that contains all words.
func (a *agent) waitError(words ...string) {
	a.t.Helper()
	wait(a.t, fmt.Sprintf("agent says %q", words), func() bool {
		for _, w := range words {
			if !strings.Contains(a.spoke.Status().LastError, w) {
				return false
			}
		}
		return true
	})
}

func (s *site) info(c mesh.ClusterName) SessionInfo {
	for _, i := range s.hub.Sessions() {
		if i.Cluster == c {
			return i
		}
	}
	return SessionInfo{}
}

func object(name string) synclog.Key { return synclog.Key{Type: "object", Name: name} }

func strs(m map[synclog.Key][]byte) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k.Name] = string(v)
	}
	return out
}

func newTestSource() *synclog.Source { return synclog.NewSource("test") }
