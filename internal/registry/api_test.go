package registry_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/registry"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// clusters is registry.Clusters in memory.
type clusters struct {
	sync.Mutex
	all   map[mesh.ClusterName]registry.Cluster
	stale map[mesh.ClusterName]registry.Cluster // what a cache that lags behind says; nil: it does not
}

func (c *clusters) Lookup(_ context.Context, n mesh.ClusterName, fresh bool) (registry.Cluster, bool, error) {
	c.Lock()
	defer c.Unlock()
	if !fresh && c.stale != nil {
		v, ok := c.stale[n]
		return v, ok, nil
	}
	v, ok := c.all[n]
	return v, ok, nil
}

func (c *clusters) NameOf(uid mesh.ClusterUID) (mesh.ClusterName, bool) {
	c.Lock()
	defer c.Unlock()
	for n, v := range c.all {
		if v.UID == uid {
			return n, true
		}
	}
	return "", false
}

func (c *clusters) set(n mesh.ClusterName, registration string) {
	c.Lock()
	defer c.Unlock()
	if registration == "" {
		delete(c.all, n)
		return
	}
	c.all[n] = registry.Cluster{Registration: registration}
}

func (c *clusters) registrations() map[mesh.ClusterName]string {
	out := map[mesh.ClusterName]string{}
	for n, v := range c.all {
		out[n] = v.Registration
	}
	return out
}

func setup(t *testing.T) (client.Client, string, *clusters, func() *registry.Registry) {
	t.Helper()
	c := kubetest.Client(t, kubetest.Start(t))
	ns := kubetest.Namespace(t, c)
	cl := &clusters{all: map[mesh.ClusterName]registry.Cluster{}}
	return c, ns, cl, func() *registry.Registry {
		r := registry.New(registry.Config{Client: c, Clusters: cl, Namespace: ns, SharedToken: func() []byte { return []byte("shared") }, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		if err := r.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r
	}
}

func announce(t *testing.T, c client.Client, ns, cluster, token string, uid mesh.ClusterUID) {
	t.Helper()
	h := sha256.Sum256([]byte(token))
	if err := c.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "relay-registration-" + cluster, Namespace: ns, Labels: map[string]string{"admin.gloo.solo.io/cluster": cluster}},
		Type:       "ambitmesh.dev/relay-registration",
		Data:       map[string][]byte{"tokenHash": []byte(hex.EncodeToString(h[:])), "expires": []byte(time.Now().Add(15 * time.Minute).UTC().Format(time.RFC3339)), "uid": []byte(uid)},
	}); err != nil {
		t.Fatal(err)
	}
}

func reason(err error) string {
	if no := (*relay.Refusal)(nil); errors.As(err, &no) {
		return no.Reason.String()
	}
	return fmt.Sprint(err)
}

func identity(c mesh.ClusterName, key string) relay.Identity {
	return relay.Identity{Cluster: c, Key: mesh.FingerprintOf([]byte(key)), Serial: key, NotAfter: time.Now().Add(24 * time.Hour)}
}

// Fifty attempts with one token and fifty keys, at once, on two servers: exactly one key wins.
func TestTokenIsRedeemedOnce(t *testing.T) {
	c, ns, cl, start := setup(t)
	cl.set("c1", "kc-1")
	announce(t, c, ns, "c1", "secret", "uid-1")
	servers := []*registry.Registry{start(), start()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []string
	for i := range 50 {
		wg.Go(func() {
			key := fmt.Sprint("key", i)
			err := servers[i%2].Enrol(t.Context(), relay.EnrolAttempt{Cluster: "c1", UID: "uid-1", Token: "secret", Key: mesh.FingerprintOf([]byte(key))})
			if err == nil {
				mu.Lock()
				winners = append(winners, key)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d keys enrolled with one token: %v", len(winners), winners)
	}
	// its answer was lost: the same key may ask again, also of a server that has just started
	if err := start().Enrol(t.Context(), relay.EnrolAttempt{Cluster: "c1", UID: "uid-1", Token: "secret", Key: mesh.FingerprintOf([]byte(winners[0]))}); err != nil {
		t.Errorf("retry with the same key: %v", err)
	}
}

func TestDeregistrationRevokes(t *testing.T) {
	for name, down := range map[string]bool{"while the server runs": false, "while the server is down": true} {
		t.Run(name, func(t *testing.T) {
			c, ns, cl, start := setup(t)
			cl.set("c1", "kc-1")
			announce(t, c, ns, "c1", "secret", "uid-1")
			r := start()
			id, hello := identity("c1", "key1"), relay.Hello{Cluster: "c1", UID: "uid-1"}
			steps := []string{
				reason(r.Enrol(t.Context(), relay.EnrolAttempt{Cluster: "c1", UID: "uid-1", Token: "secret", Key: id.Key})),
				reason(r.Issued(t.Context(), id)),
				reason(r.Admit(t.Context(), id, hello)),
				reason(r.Admit(t.Context(), identity("c1", "minted-by-hand"), hello)),
			}
			if diff := cmp.Diff([]string{"<nil>", "<nil>", "<nil>", "<nil>"}, steps); diff != "" {
				t.Fatal(diff)
			}
			if gone, err := r.Reconcile(t.Context(), map[mesh.ClusterName]string{}); err != nil || len(gone) != 0 {
				t.Errorf("a list that lags behind must not revoke: %v %v", gone, err)
			}
			cl.set("c1", "")
			if down {
				r = start()
			}
			gone, err := r.Reconcile(t.Context(), cl.registrations())
			if err != nil || gone["c1"] == nil || gone["c1"].Reason != relayv1.Goodbye_REVOKED {
				t.Errorf("Reconcile: %v, %v", gone, err)
			}
			if gone, err := r.Reconcile(t.Context(), cl.registrations()); err != nil || len(gone) != 0 {
				t.Errorf("once is enough: %v, %v", gone, err)
			}
			cl.set("c1", "kc-2") // registered again: the old keys stay dead, also the one minted by hand
			for _, r := range []*registry.Registry{r, start()} {
				got := []string{
					reason(r.Admit(t.Context(), id, hello)), reason(r.Admit(t.Context(), identity("c1", "minted-by-hand"), hello)),
					reason(r.Issued(t.Context(), id)), reason(r.Enrol(t.Context(), relay.EnrolAttempt{Cluster: "c1", UID: "uid-1", Token: "shared", Key: identity("c1", "key2").Key})),
				}
				if diff := cmp.Diff([]string{"REVOKED", "REVOKED", "REVOKED", "<nil>"}, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// Deleted and created again before the server saw either: the keys of the first registration are dead.
func TestSwiftReregistrationRevokes(t *testing.T) {
	_, _, cl, start := setup(t)
	cl.set("c1", "kc-1")
	r := start()
	id, hello := identity("c1", "key1"), relay.Hello{Cluster: "c1", UID: "uid-1"}
	if err := r.Admit(t.Context(), id, hello); err != nil {
		t.Fatal(err)
	}
	cl.set("c1", "kc-2")
	if got := reason(r.Admit(t.Context(), id, hello)); got != "REVOKED" {
		t.Errorf("admitted after a swift re-registration: %s", got)
	}
}

func TestUIDBelongsToOneName(t *testing.T) {
	_, _, cl, start := setup(t)
	cl.set("c1", "kc-1")
	cl.set("c2", "kc-2")
	r := start()
	if err := r.Admit(t.Context(), identity("c1", "key1"), relay.Hello{Cluster: "c1", UID: "uid-1"}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*registry.Registry{r, start()} {
		if got := reason(r.Admit(t.Context(), identity("c2", "key2"), relay.Hello{Cluster: "c2", UID: "uid-1"})); got != "WRONG_CLUSTER" {
			t.Errorf("one cluster under two names: %s", got)
		}
		if got := reason(r.Admit(t.Context(), identity("c1", "key3"), relay.Hello{Cluster: "c1", UID: "uid-2"})); got != "WRONG_CLUSTER" {
			t.Errorf("two clusters under one name: %s", got)
		}
	}
}

// The cache still shows the registration before: neither the new token nor the new key may suffer from it.
func TestCacheThatLagsBehind(t *testing.T) {
	c, ns, cl, start := setup(t)
	cl.set("c1", "kc-2")
	cl.stale = map[mesh.ClusterName]registry.Cluster{"c1": {Registration: "kc-1", UID: "uid-0"}}
	announce(t, c, ns, "c1", "secret", "uid-1")
	s := &corev1.Secret{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "relay-registration-c1"}, s); err != nil {
		t.Fatal(err)
	}
	s.OwnerReferences = []metav1.OwnerReference{{APIVersion: "admin.gloo.solo.io/v2", Kind: "KubernetesCluster", Name: "c1", UID: "kc-2"}}
	if err := c.Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	r := start()
	id := identity("c1", "key1")
	cl.stale = map[mesh.ClusterName]registry.Cluster{}
	got := []string{
		reason(r.Enrol(t.Context(), relay.EnrolAttempt{Cluster: "c1", UID: "uid-1", Token: "secret", Key: id.Key})),
		reason(r.Issued(t.Context(), id)),
		reason(r.Admit(t.Context(), id, relay.Hello{Cluster: "c1", UID: "uid-1"})),
	}
	cl.stale = map[mesh.ClusterName]registry.Cluster{"c1": {Registration: "kc-1", UID: "uid-0"}}
	got = append(got, reason(r.Admit(t.Context(), id, relay.Hello{Cluster: "c1", UID: "uid-1"})),
		reason(start().Enrol(t.Context(), relay.EnrolAttempt{Cluster: "c1", UID: "uid-1", Token: "secret", Key: id.Key})))
	if diff := cmp.Diff([]string{"<nil>", "<nil>", "<nil>", "<nil>", "<nil>"}, got); diff != "" {
		t.Error(diff)
	}
}
