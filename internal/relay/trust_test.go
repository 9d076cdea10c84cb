package relay

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
)

// wantRefusal checks that err carries a refusal of that reason with those words.
func wantRefusal(t *testing.T, err error, reason relayv1.Goodbye_Reason, words ...string) {
	t.Helper()
	r := refusalIn(err)
	if r == nil || r.Reason != reason {
		t.Fatalf("want a refusal because of %s, got %v", reason, err)
	}
	for _, w := range words {
		if !strings.Contains(r.Message, w) {
			t.Errorf("the refusal does not say %q: %s", w, r.Message)
		}
	}
}

// enrolment dials without a certificate and asks with a fresh key.
type enrolment struct {
	client relayv1.EnrolmentClient
	key    []byte // CSR
}

func (s *site) enrolment(t *testing.T, name mesh.ClusterName) enrolment {
	t.Helper()
	spoke, err := NewSpoke(s.config(name, &agent{store: &memory{}, inventory: nil}).with(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := spoke.dial(StoredIdentity{Roots: s.rootPEM()}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	key, err := family.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return enrolment{relayv1.NewEnrolmentClient(c), must(family.NewCSR(key, name))}
}

func (e enrolment) ask(t *testing.T, name, token string) (*relayv1.EnrolResponse, error) {
	t.Helper()
	return e.client.Enrol(t.Context(), &relayv1.EnrolRequest{Cluster: name, ClusterUid: "uid-of-" + name, Token: token, CsrDer: e.key, AgentVersion: "2.12.0"})
}

func TestTokens(t *testing.T) {
	s := newSite(t)
	s.office.register("prod", "secret")
	s.office.register("other", "secret-of-other")
	first := s.enrolment(t, "prod")
	_, err := first.ask(t, "prod", "wrong")
	wantRefusal(t, err, relayv1.Goodbye_BAD_TOKEN, "prod")
	_, err = first.ask(t, "prod", "secret-of-other")
	wantRefusal(t, err, relayv1.Goodbye_BAD_TOKEN, "prod")
	_, err = first.ask(t, "stranger", "secret")
	wantRefusal(t, err, relayv1.Goodbye_PROTOCOL_ERROR, "prod", "stranger") // forged name: the CSR says prod
	_, err = s.enrolment(t, "stranger").ask(t, "stranger", "secret")
	wantRefusal(t, err, relayv1.Goodbye_NOT_REGISTERED, "stranger")
	if _, err = first.ask(t, "prod", "secret"); err != nil {
		t.Fatal(err)
	}
	if _, err = first.ask(t, "prod", "secret"); err != nil { // the answer was lost: the same key may ask again
		t.Errorf("a retry with the same key: %v", err)
	}
	_, err = s.enrolment(t, "prod").ask(t, "prod", "secret") // replayed by somebody else
	wantRefusal(t, err, relayv1.Goodbye_BAD_TOKEN, "already used")
	s.office.mu.Lock()
	s.office.tokens["other"].expires = time.Now().Add(-time.Second)
	s.office.mu.Unlock()
	_, err = s.enrolment(t, "other").ask(t, "other", "secret-of-other")
	wantRefusal(t, err, relayv1.Goodbye_BAD_TOKEN, "expired")
	for _, name := range []string{"", "UPPER", "a.b", strings.Repeat("a", 64), strings.Repeat("a", 1<<16)} {
		_, err = first.ask(t, name, "secret")
		wantRefusal(t, err, relayv1.Goodbye_PROTOCOL_ERROR)
	}
}

func TestEnrolmentSwitchedOff(t *testing.T) {
	s := newSite(t, func(c *HubConfig) { c.DisableEnrolment = true })
	s.office.register("prod", "secret")
	_, err := s.enrolment(t, "prod").ask(t, "prod", "secret")
	wantRefusal(t, err, relayv1.Goodbye_BAD_TOKEN, "switched off")
	a := s.runAgent("prod", s.minted("prod")) // by hand
	a.waitConnected()
}

// minted is a store with a certificate made by hand: leaf only, no token.
func (s *site) minted(name mesh.ClusterName) *memory {
	s.t.Helper()
	chain, key, err := s.fam.Current().NewClient(name, time.Now(), 24*time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	leaf := must(family.ParseCerts(chain))[0]
	return &memory{st: StoredIdentity{KeyPEM: key, ChainPEM: family.CertPEM(leaf.Raw), Roots: s.rootPEM()}}
}

func TestWaitsForItsRegistration(t *testing.T) {
	s := newSite(t)
	a := s.runAgent("prod", s.minted("prod"))
	a.waitError("not registered")
	s.office.register("prod", "")
	s.hub.Allow("prod")
	began := time.Now()
	a.waitConnected()
	if d := time.Since(began); d > 8*time.Second {
		t.Errorf("connected only %s after its registration", d)
	}
}

func TestCertificateOfAnotherCluster(t *testing.T) {
	s := newSite(t)
	s.office.register("prod", "")
	s.office.register("staging", "")
	_ = s.hub.Publish("prod", nil, true)
	_ = s.hub.Publish("staging", nil, true)
	a := s.runAgent("prod", s.minted("staging")) // Secret copied from staging
	a.waitError(`"prod"`, `"staging"`)
	for _, c := range []mesh.ClusterName{"prod", "staging"} {
		wait(t, "on record with both", func() bool {
			r := s.info(c).LastRefusal
			return r != nil && r.Reason == relayv1.Goodbye_WRONG_CLUSTER && !s.info(c).Connected
		})
	}
	// The real one is not kept out by it.
	s.runAgent("staging", s.minted("staging")).waitConnected()
	// With a token it mends itself.
	a.store.mu.Lock()
	a.store.st.Token = "secret"
	a.store.mu.Unlock()
	s.office.register("prod", "secret")
	a.waitConnected()
}

func TestUIDDiffers(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	b := s.runAgent("prod", &memory{st: a.store.get()}, func(c *SpokeConfig) { c.UID = "another-cluster" })
	b.waitError("uid-of-prod", "another-cluster")
	if !s.info("prod").Connected || !a.spoke.Status().Connected {
		t.Error("the copy threw the real cluster out")
	}
}

func TestSignedByAnotherRoot(t *testing.T) {
	s, other := newSite(t), newSite(t)
	s.office.register("prod", "")
	_ = s.hub.Publish("prod", nil, true)
	// Its client certificate is of another installation, though it trusts this server.
	st := other.minted("prod")
	st.st.Roots = s.rootPEM()
	a := s.runAgent("prod", st)
	a.waitError("signing CA", "another installation")
	wait(t, "on record", func() bool {
		r := s.info("prod").LastRefusal
		return r != nil && r.Reason == relayv1.Goodbye_BAD_CERTIFICATE
	})
	// The server's certificate is of another installation: a TLS error on the agent, in a sentence.
	b := s.runAgent("prod", other.minted("prod"))
	b.waitError("not signed by any root in relay-root-tls-secret")
	// A token mends the first.
	s.office.register("prod", "secret")
	st.mu.Lock()
	st.st.Token = "secret"
	st.mu.Unlock()
	a.waitConnected()
}

func TestAuthority(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod", func(c *SpokeConfig) { c.Authority = "gloo-mesh-mgmt-server.gloo-mesh" })
	a.waitConnected()
	b := s.runAgent("prod", s.minted("prod"), func(c *SpokeConfig) { c.Authority = "elsewhere.example" })
	b.waitError("not valid for the name", "authority")
}

func TestExpiredCertificateAndToken(t *testing.T) {
	s := newSite(t)
	s.office.register("prod", "secret")
	chain, key, err := s.fam.Current().NewClient("prod", time.Now().Add(-48*time.Hour), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := s.runAgent("prod", &memory{st: StoredIdentity{KeyPEM: key, ChainPEM: chain, Roots: s.rootPEM()}})
	a.waitError("expired", "enrol again")
	a.store.mu.Lock()
	a.store.st.Token = "secret"
	a.store.mu.Unlock()
	a.waitConnected()
}

func TestNothingToGoBy(t *testing.T) {
	s := newSite(t)
	s.runAgent("prod", &memory{st: StoredIdentity{Roots: s.rootPEM()}}).waitError("neither a client certificate", "meshctl cluster register prod")
	s.runAgent("prod", &memory{st: StoredIdentity{Token: "x"}}).waitError("relay-root-tls-secret", "ca.crt")
	for _, address := range []string{"", ":9900", "host", "host:"} {
		if _, err := NewSpoke(SpokeConfig{ServerAddress: address}); err == nil || !strings.Contains(err.Error(), "relay server address") {
			t.Errorf("address %q: %v", address, err)
		}
	}
}

// TestCrashAfterEnrolment: the hub has answered, and storing the answer fails. The token has been used, yet the agent gets in.
func TestCrashAfterEnrolment(t *testing.T) {
	s := newSite(t)
	s.office.register("prod", "secret")
	st := &memory{st: StoredIdentity{Roots: s.rootPEM(), Token: "secret"}, failing: errors.New("API server is down")}
	a := s.runAgent("prod", st)
	a.waitError("API server is down")
	a.stop()
	st.mu.Lock()
	st.failing = nil
	st.mu.Unlock()
	s.runAgent("prod", st).waitConnected()
}

func TestRevoked(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	s.office.revoke("prod")
	began := time.Now()
	s.hub.Forget("prod", Refuse(relayv1.Goodbye_REVOKED, "cluster %q was deregistered: its identity is revoked", "prod"))
	a.waitError("revoked")
	if d := time.Since(began); d > time.Second {
		t.Errorf("told only after %s", d)
	}
	wait(t, "refused again", func() bool { return !a.spoke.Status().Connected && len(s.hub.Sessions()) == 0 })
	// What it still sends is ignored: speak by hand with its old certificate.
	_, m, err := open(t, s.raw(a), helloOf("prod"))
	if err != nil || m.GetGoodbye().GetReason() != relayv1.Goodbye_REVOKED {
		t.Errorf("the next message: %v, %v", m, err)
	}
	_, err = relayv1.NewRelayClient(s.raw(a)).Renew(t.Context(), &relayv1.RenewRequest{})
	if err == nil {
		t.Error("a revoked identity is renewed")
	}
	// Registered again, with a new token: it enrols with a new key.
	before := a.store.get().KeyPEM
	a.store.mu.Lock()
	a.store.st.Token = "again"
	a.store.mu.Unlock()
	s.office.register("prod", "again")
	s.hub.Allow("prod")
	a.waitConnected()
	if string(a.store.get().KeyPEM) == string(before) {
		t.Error("the revoked key is still in use")
	}
}

// TestRefusedWhileDeciding: the cluster is refused while the Gate is still thinking about its new session.
func TestRefusedWhileDeciding(t *testing.T) {
	s := newSite(t)
	slow := &slowGate{Gate: s.office, admit: make(chan struct{}), asked: make(chan struct{}, 1)}
	s.stop()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	s.address = l.Addr().String()
	s.start(l, func(c *HubConfig) { c.Gate = slow })
	a := s.newAgent("prod")
	<-slow.asked
	s.hub.Forget("prod", Refuse(relayv1.Goodbye_REVOKED, "deregistered"))
	close(slow.admit)
	a.waitError("deregistered")
	if n := len(s.hub.Sessions()); n != 0 {
		t.Errorf("%d sessions of a cluster that is gone", n)
	}
}

type slowGate struct {
	Gate
	admit, asked chan struct{}
}

func (g *slowGate) Admit(ctx context.Context, id Identity, h Hello) error {
	select {
	case g.asked <- struct{}{}:
	default:
	}
	<-g.admit
	return g.Gate.Admit(ctx, id, h)
}

func TestGateIsDown(t *testing.T) {
	s := newSite(t)
	s.office.err = errors.New("etcdserver: password is hunter2")
	a := s.newAgent("prod")
	a.waitError("can't decide")
	if strings.Contains(a.spoke.Status().LastError, "hunter2") {
		t.Error("the server's inner troubles are told to strangers")
	}
	s.office.mu.Lock()
	s.office.err = nil
	s.office.mu.Unlock()
	a.waitConnected()
}

func TestRenewalKeepsTheSession(t *testing.T) {
	s := newSite(t, func(c *HubConfig) { c.ClientLifetime = 4 * time.Second })
	a := s.newAgent("prod")
	a.waitConnected()
	first, since := s.info("prod").Identity, s.info("prod").Since
	wait(t, "three renewals", func() bool { return s.hub.counters.renewals.Load() >= 3 })
	i := s.info("prod")
	if !i.Connected || i.Since != since || s.office.admitted != 1 {
		t.Errorf("renewing broke the session: %+v", i)
	}
	if i.Identity.Key == first.Key || i.Identity.Serial == first.Serial {
		t.Error("the session is not bound to the new key")
	}
	// The old key is dead for renewals, although its certificate may still be valid.
	time.Sleep(5 * time.Second) // longer than any one certificate lives
	if !s.info("prod").Connected || s.info("prod").Since != since {
		t.Error("the session did not outlive its first certificate")
	}
}

func TestRenewNeedsTheSessionsKey(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	thief := s.runAgentStopped("prod", s.minted("prod")) // another valid certificate of the same cluster
	key := must(family.NewKey())
	_, err := relayv1.NewRelayClient(s.raw(thief)).Renew(t.Context(), &relayv1.RenewRequest{CsrDer: must(family.NewCSR(key, "prod"))})
	wantRefusal(t, err, relayv1.Goodbye_PROTOCOL_ERROR, "no session")
	s.office.mu.Lock()
	if n := len(s.office.issued); n != 1 {
		t.Errorf("%d keys on record, though only the agent's own was issued", n)
	}
	s.office.mu.Unlock()
	_, err = relayv1.NewRelayClient(s.raw(a)).Renew(t.Context(), &relayv1.RenewRequest{CsrDer: must(family.NewCSR(key, "other"))})
	wantRefusal(t, err, relayv1.Goodbye_PROTOCOL_ERROR, "other")
}

func (s *site) runAgentStopped(name mesh.ClusterName, st *memory) *agent {
	a := &agent{t: s.t, store: st}
	spoke, err := NewSpoke(s.config(name, a).with(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	a.spoke = spoke
	return a
}

// TestHubCertificateChange replaces root, signing CA and server certificate twice, live and over a restart: nobody falls out, and
// nobody needs a person.
func TestHubCertificateChange(t *testing.T) {
	s := newSite(t)
	agents := []*agent{s.newAgent("c1"), s.newAgent("c2"), s.newAgent("c3")}
	byHand := s.runAgent("c4", s.minted("c4"))
	s.office.register("c4", "")
	agents = append(agents, byHand)
	for round := range 2 {
		for _, a := range agents {
			a.waitConnected()
		}
		roots := string(s.rootPEM())
		for _, a := range agents {
			wait(t, "bundle with the successor stored", func() bool { return string(a.store.get().Roots) == roots })
		}
		if round == 1 { // this one is away during the change
			agents[0].stop()
		}
		s.fam.rotate(t)
		roots = string(s.rootPEM())
		for _, a := range agents[round:] {
			wait(t, "new bundle pushed in the session", func() bool { return string(a.store.get().Roots) == roots })
			if !a.spoke.Status().Connected {
				t.Error("an agent fell out because of the reload")
			}
		}
		s.restart() // every agent now meets the new certificate
		if round == 1 {
			agents[0] = s.runAgent("c1", agents[0].store)
		}
	}
	for _, a := range agents {
		a.waitConnected()
	}
}

// TestTrustBundleThatWouldCutUsOff: a bundle without any root we know is not taken over.
func TestTrustBundleThatWouldCutUsOff(t *testing.T) {
	s, other := newSite(t), newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	st := a.store.get()
	for name, b := range map[string]*relayv1.TrustBundle{
		"empty": {}, "garbage": {RootDer: [][]byte{[]byte("x")}}, "foreign": {RootDer: other.fam.Current().TrustBundle()}, "nil": nil,
		"leaf":  {RootDer: append(s.fam.Current().TrustBundle(), s.fam.Current().Server.Chain[0].Raw)},
		"large": {RootDer: make([][]byte, 1000)},
	} {
		if got := a.spoke.learn(t.Context(), st, b); string(got.Roots) != string(st.Roots) || string(a.store.get().Roots) != string(st.Roots) {
			t.Errorf("%s: taken over", name)
		}
	}
}
