package remotesecrets

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/tokens"
)

func synced(h *hub, pairs ...tokens.Pair) func() bool {
	return func() bool {
		for _, p := range pairs {
			if h.pair(p.Reader, p.Target).State != tokens.Synced {
				return false
			}
		}
		return true
	}
}

// TestRotation: two clusters get tokens for each other, these are replaced in time, and the old ones are dead.
func TestRotation(t *testing.T) {
	t.Parallel()
	h := newHub(t, tokens.Settings{Lifetime: 10 * time.Minute, RotateEvery: 3 * time.Second})
	a, b := h.join("a", "ra"), h.join("b", "rb")
	within(t, "both in use", synced(h, tokens.Pair{Reader: "a", Target: "b"}, tokens.Pair{Reader: "b", Target: "a"}))
	first := a.credential("b")
	if !accepted(t, first) {
		t.Fatal("the API server does not take the token")
	}
	s := a.secrets(a.istio)[prefixSecret+"b"]
	if s.Labels[labelMulti] != "true" || s.Annotations[noteCluster] != "b" || s.Labels[mesh.OwnerLabel] != mesh.OwnerValue {
		t.Errorf("remote secret: labels %v, annotations %v", s.Labels, s.Annotations)
	}
	within(t, "the token is replaced", func() bool { return a.credential("b").Token != first.Token })
	within(t, "the old one is dead", func() bool { return !accepted(t, first) })
	if !accepted(t, a.credential("b")) {
		t.Error("the new one is dead")
	}

	// An istiod that does not take the new one up keeps the old one alive, for as long as that takes.
	b.istiod.set(func(i *istiod) { i.stuck = true })
	var used mesh.TokenCredential
	b.istiod.set(func(i *istiod) { used = i.uses["a"] })
	within(t, "another one", func() bool { return b.credential("a").Token != used.Token })
	time.Sleep(4 * time.Second)
	if !accepted(t, used) {
		t.Error("the token that an istiod uses died")
	}
	if p := h.pair("b", "a"); p.State != tokens.Rotating || p.Live != 2 {
		t.Errorf("%+v", p)
	}
	b.istiod.set(func(i *istiod) { i.stuck = false })
	within(t, "taken up", func() bool { return h.pair("b", "a").State == tokens.Synced && !accepted(t, used) })
	nothingLeaks(t, a, b)
}

// marks are how every token of this API server begins, in the clear and as a value of a Secret or of JSON.
func marks(t *testing.T, sites []*site) []string {
	t.Helper()
	for _, s := range sites {
		for _, o := range sites {
			if c := s.credential(o.name); c.Token != "" {
				begin := c.Token[:24]
				return []string{begin, base64.StdEncoding.EncodeToString([]byte(begin))}
			}
		}
	}
	t.Fatal("there is no token to look for")
	return nil
}

// nothingLeaks: no token went up, into the log, or into any Secret but the remote ones.
func nothingLeaks(t *testing.T, sites ...*site) {
	t.Helper()
	for _, s := range sites {
		for _, m := range marks(t, sites) {
			if strings.Contains(s.logged(), m) {
				t.Errorf("%s: a token in the log", s.name)
			}
			s.mu.Lock()
			for k, v := range s.said {
				if bytes.Contains(v, []byte(m)) {
					t.Errorf("%s: a token in item %s", s.name, k)
				}
			}
			s.mu.Unlock()
			for name, x := range s.secrets(s.own) {
				for k, v := range x.Data {
					if bytes.Contains(v, []byte(m)) {
						t.Errorf("%s: a token in Secret %s, key %s", s.name, name, k)
					}
				}
			}
		}
	}
}

// TestLeaving: with a cluster go its tokens, those for it, and the secrets on both sides.
func TestLeaving(t *testing.T) {
	t.Parallel()
	h := newHub(t, tokens.Settings{})
	a, b, c := h.join("a", "ra"), h.join("b", "rb"), h.join("c", "rc")
	within(t, "all in use", func() bool {
		for _, p := range h.pairs() {
			if p.State != tokens.Synced {
				return false
			}
		}
		return len(h.pairs()) == 6
	})
	forB, from := a.credential("b"), b.credential("a")
	h.leave("b")
	within(t, "all of it is gone", func() bool {
		return a.credential("b").Token == "" && b.credential("a").Token == "" && b.credential("c").Token == "" && !accepted(t, forB) && !accepted(t, from)
	})
	within(t, "nothing is left", func() bool {
		return len(a.secrets(a.own)) == 2 && len(b.secrets(b.own)) == 1 && len(c.secrets(c.own)) == 2
	})
	if !accepted(t, a.credential("c")) {
		t.Error("another pair suffered")
	}
	// Registered anew with the same keys: all is back.
	h.mu.Lock()
	h.reg["b"] = "rb2"
	b.resend()
	h.mu.Unlock()
	within(t, "back", synced(h, tokens.Pair{Reader: "a", Target: "b"}, tokens.Pair{Reader: "b", Target: "a"}))
}

// TestKilledAnywhere: agents and the hub may be killed in the middle; things go on, and nothing is left over.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	h := newHub(t, tokens.Settings{Lifetime: 10 * time.Minute, RotateEvery: 4 * time.Second})
	a, b := h.join("a", "ra"), h.join("b", "rb")
	for i := range 12 {
		switch i % 3 {
		case 0:
			h.kill()
		case 1:
			a.restart(h)
		case 2:
			b.restart(h)
		}
		time.Sleep(time.Duration(i%4) * 400 * time.Millisecond)
		for _, s := range []*site{a, b} {
			var uses []mesh.TokenCredential
			s.istiod.set(func(i *istiod) {
				for _, c := range i.uses {
					uses = append(uses, c)
				}
			})
			for _, c := range uses {
				var now mesh.TokenCredential
				if ok := accepted(t, c); !ok {
					s.istiod.set(func(i *istiod) {
						for _, x := range i.uses {
							now = x
						}
					})
					if now.Token == c.Token {
						t.Errorf("istiod of %s uses a dead token", s.name)
					}
				}
			}
		}
	}
	within(t, "both in use", synced(h, tokens.Pair{Reader: "a", Target: "b"}, tokens.Pair{Reader: "b", Target: "a"}))
	within(t, "one token a pair", func() bool { return len(a.secrets(a.own)) == 2 && len(b.secrets(b.own)) == 2 })
	nothingLeaks(t, a, b)
}

// TestHandMade: a remote secret that somebody else made stays as it is, and is told of; when it goes, ours comes.
func TestHandMade(t *testing.T) {
	t.Parallel()
	h := newHub(t, tokens.Settings{})
	a := h.join("a", "ra")
	theirs := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "by-hand", Namespace: a.istio, Labels: map[string]string{labelMulti: "true"}},
		StringData: map[string]string{"b": string(kubeconfig("b", mesh.TokenCredential{Server: "https://x", Token: "theirs"}))},
	}
	if err := a.kube.Create(t.Context(), theirs, client.FieldOwner("istioctl")); err != nil {
		t.Fatal(err)
	}
	b := h.join("b", "rb")
	within(t, "told", func() bool { return h.pair("a", "b").State == tokens.HandMade })
	within(t, "the other direction is in use", synced(h, tokens.Pair{Reader: "b", Target: "a"}))
	if p := h.pair("a", "b"); !strings.Contains(p.Message, "by-hand") || !strings.Contains(p.Message, "istioctl") {
		t.Errorf("message: %s", p.Message)
	}
	if _, ours := a.secrets(a.istio)[prefixSecret+"b"]; ours {
		t.Error("ours was written beside")
	}
	within(t, "no token for it", func() bool { return len(b.secrets(b.own)) == 1 })
	if err := a.kube.Delete(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	within(t, "ours is in use", synced(h, tokens.Pair{Reader: "a", Target: "b"}))

	// Taking ours over by hand: it is left alone from then on.
	s := a.secrets(a.istio)[prefixSecret+"b"]
	delete(s.Labels, mesh.OwnerLabel)
	s.Data["b"] = theirs.Data["b"]
	if err := a.kube.Update(t.Context(), &s, client.FieldOwner("kubectl-edit")); err != nil {
		t.Fatal(err)
	}
	within(t, "taken over", func() bool { return h.pair("a", "b").State == tokens.HandMade })

	// An edit of one that is ours is put back.
	x := b.secrets(b.istio)[prefixSecret+"a"]
	was := bytes.Clone(x.Data["a"])
	x.Data["a"] = []byte("nonsense")
	b.istiod.set(func(i *istiod) { i.stuck = true })
	if err := b.kube.Update(t.Context(), &x); err != nil {
		t.Fatal(err)
	}
	within(t, "put back", func() bool { return bytes.Equal(b.secrets(b.istio)[prefixSecret+"a"].Data["a"], was) })
	b.istiod.set(func(i *istiod) { i.stuck = false })
}

// TestAnotherKey: a cluster that shows another key under the same registration gets nothing and is not believed.
func TestAnotherKey(t *testing.T) {
	t.Parallel()
	h := newHub(t, tokens.Settings{Lifetime: 10 * time.Minute, RotateEvery: 3 * time.Second})
	a, b := h.join("a", "ra"), h.join("b", "rb")
	pairs := []tokens.Pair{{Reader: "a", Target: "b"}, {Reader: "b", Target: "a"}}
	within(t, "both in use", synced(h, pairs...))
	b.stop()
	was := a.credential("b")
	k := b.secrets(b.own)[keysName]
	if err := b.kube.Delete(t.Context(), &k); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	b.start()
	h.mu.Unlock()
	within(t, "told on both ends", func() bool {
		return strings.Contains(h.pair("b", "a").Message, "shows another key") && strings.Contains(h.pair("a", "b").Message, "shows another key")
	})
	if a.credential("b").Token != was.Token {
		t.Error("a token of the unknown key was taken")
	}
	h.mu.Lock()
	h.reg["b"] = "rb2" // registered anew
	h.mu.Unlock()
	within(t, "in use again", func() bool { return synced(h, pairs...)() && a.credential("b").Token != was.Token })
}

// TestStaleIstiod: istiods with the fault are restarted after a rotation, and the old token lives until then.
func TestStaleIstiod(t *testing.T) {
	t.Parallel()
	h := newHub(t, tokens.Settings{Lifetime: 10 * time.Minute, RotateEvery: 3 * time.Second})
	a := h.join("a", "ra")
	a.istiod.set(func(i *istiod) { i.replica.Version = "1.30.2" })
	b := h.join("b", "rb")
	within(t, "both in use", synced(h, tokens.Pair{Reader: "a", Target: "b"}))
	first := a.credential("b")
	within(t, "a newer one waits", func() bool { return h.pair("a", "b").Live == 2 })
	time.Sleep(2 * time.Second)
	if a.credential("b").Token != first.Token || !accepted(t, first) {
		t.Error("it was replaced in the first half of its life, which costs a restart")
	}
	// Its second half: as if it had been made long ago.
	s := a.secrets(a.istio)[prefixSecret+"b"]
	s.Annotations[noteIssued] = time.Now().Add(-9 * time.Minute).UTC().Format(time.RFC3339)
	s.Annotations[noteExpires] = time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	if err := a.kube.Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	within(t, "replaced, restarted, in use", func() bool {
		rolled := 0
		a.istiod.set(func(i *istiod) { rolled = len(i.rolled) })
		return a.credential("b").Token != first.Token && rolled == 1 && !accepted(t, first)
	})
	_ = b
}
