package relaysecrets_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relaysecrets"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

var names = []string{"*.gloo-mesh", "gloo-mesh-mgmt-server.gloo-mesh", "localhost"}

func secrets(c client.Client, ns string) *relaysecrets.Secrets {
	return relaysecrets.New(relaysecrets.Config{Client: c, Namespace: ns, Cluster: "mgmt", ServerNames: names, Log: slog.New(slog.DiscardHandler)})
}

func setup(t *testing.T) (client.WithWatch, string) {
	t.Helper()
	c := kubetest.Client(t, kubetest.Start(t))
	return c, kubetest.Namespace(t, c)
}

// stored lists every Secret with its resourceVersion.
func stored(t *testing.T, c client.Client, ns string) map[string]string {
	t.Helper()
	var list corev1.SecretList
	if err := c.List(t.Context(), &list, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, s := range list.Items {
		out[s.Name] = s.ResourceVersion
	}
	return out
}

func keep(t *testing.T, s *relaysecrets.Secrets, now time.Time) []family.Problem {
	t.Helper()
	fresh, err := s.Keep(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	return fresh
}

func get(t *testing.T, c client.Client, ns, name string) *corev1.Secret {
	t.Helper()
	var s corev1.Secret
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

var five = []string{"relay-client-tls-secret", "relay-identity-token-secret", "relay-root-tls-secret", "relay-server-tls-secret", "relay-tls-signing-secret"}

func TestFirstStartMakesAllFive(t *testing.T) {
	c, ns := setup(t)
	s := secrets(c, ns)
	if p := keep(t, s, time.Now()); len(p) != 0 {
		t.Errorf("problems of a new family: %v", p)
	}
	before := stored(t, c, ns)
	var got []string
	for n := range before {
		got = append(got, n)
	}
	slices.Sort(got)
	if diff := cmp.Diff(five, got); diff != "" {
		t.Error(diff)
	}
	if s.Current() == nil || len(s.Token()) < 32 {
		t.Errorf("family %v, token of %d bytes", s.Current(), len(s.Token()))
	}
	keep(t, secrets(c, ns), time.Now()) // a second start
	if diff := cmp.Diff(before, stored(t, c, ns)); diff != "" {
		t.Errorf("a second start wrote:\n%s", diff)
	}
	standby := secrets(c, ns)
	if _, err := standby.Load(t.Context(), time.Now()); err != nil || !standby.Current().Root.Cert.Equal(s.Current().Root.Cert) {
		t.Errorf("a standby has another family (%v)", err)
	}
}

// The server dies before each of its writes in turn; the next start always ends with one consistent family.
func TestCrashHalfWayIsFinished(t *testing.T) {
	died := errors.New("the process died here")
	for after := range 8 {
		c, ns := setup(t)
		writes := 0
		die := func() error {
			writes++
			if writes > after {
				return died
			}
			return nil
		}
		dying := interceptor.NewClient(c, interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if err := die(); err != nil {
					return err
				}
				return c.Create(ctx, o, opts...)
			},
			Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
				if err := die(); err != nil {
					return err
				}
				return c.Delete(ctx, o, opts...)
			},
		})
		_, err := secrets(dying, ns).Keep(t.Context(), time.Now())
		if (after < 7) != errors.Is(err, died) {
			t.Fatalf("death before write %d: %v", after+1, err)
		}
		s := secrets(c, ns)
		if p := keep(t, s, time.Now()); len(p) != 0 || s.Current() == nil || len(s.Token()) == 0 {
			t.Errorf("death before write %d: problems %v", after+1, p)
		}
		if got := stored(t, c, ns); len(got) != 5 {
			t.Errorf("death before write %d: %v", after+1, got)
		}
	}
}

func TestSuppliedSecretsAreHonouredAndNeverWritten(t *testing.T) {
	c, ns := setup(t)
	f, err := family.Generate(time.Now(), family.Options{ServerNames: names})
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]map[string][]byte{"relay-root-tls-secret": d.Root, "relay-tls-signing-secret": d.Signing, "relay-server-tls-secret": d.Server} {
		if err := c.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	supplied := stored(t, c, ns)
	s := secrets(c, ns)
	keep(t, s, time.Now())
	keep(t, s, time.Now().Add(80*24*time.Hour)) // the server certificate is due, but not ours
	after := stored(t, c, ns)
	for n, v := range supplied {
		if after[n] != v {
			t.Errorf("%s was supplied and has been written", n)
		}
	}
	if len(after) != 5 || !s.Current().Root.Cert.Equal(f.Root.Cert) {
		t.Errorf("%d Secrets, another root: %v", len(after), !s.Current().Root.Cert.Equal(f.Root.Cert))
	}
}

func TestRenewalReloadAndRepair(t *testing.T) {
	c, ns := setup(t)
	s, standby := secrets(c, ns), secrets(c, ns)
	now := time.Now()
	keep(t, s, now)
	if _, err := standby.Load(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	root, leaf := get(t, c, ns, "relay-root-tls-secret").Data, get(t, c, ns, "relay-server-tls-secret").Data["tls.crt"]

	changed := standby.Changed()
	later := now.Add(80 * 24 * time.Hour) // of 90 days
	keep(t, s, later)
	if string(get(t, c, ns, "relay-server-tls-secret").Data["tls.crt"]) == string(leaf) {
		t.Error("the server certificate was not renewed")
	}
	if diff := cmp.Diff(root, get(t, c, ns, "relay-root-tls-secret").Data); diff != "" {
		t.Error("the root was changed by a renewal")
	}
	if _, err := standby.Load(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("the standby did not take up the renewed certificate")
	}
	client1 := get(t, c, ns, "relay-client-tls-secret").Data["tls.crt"]
	later = now.Add(300 * 24 * time.Hour) // of a year
	keep(t, s, later)
	if string(get(t, c, ns, "relay-client-tls-secret").Data["tls.crt"]) == string(client1) {
		t.Error("the management cluster's client certificate was not renewed")
	}

	for _, name := range five { // deleted while we run
		was := get(t, c, ns, name).Data
		if err := c.Delete(t.Context(), get(t, c, ns, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Keep(t.Context(), later); err == nil {
			t.Errorf("%s was put back before one could delete the others", name)
		}
		keep(t, s, later.Add(10*time.Second))
		if diff := cmp.Diff(was, get(t, c, ns, name).Data); diff != "" {
			t.Errorf("%s was not put back as it was", name)
		}
	}

	// a server certificate of another root is supplied: the family in force stays, and the problem is said once
	other, err := family.Generate(later, family.Options{ServerNames: names})
	if err != nil {
		t.Fatal(err)
	}
	d, err := other.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	before := s.Current()
	sec := get(t, c, ns, "relay-server-tls-secret")
	sec.Data, sec.Labels = d.Server, nil
	if err := c.Update(t.Context(), sec); err != nil {
		t.Fatal(err)
	}
	fresh := keep(t, s, later)
	if !slices.ContainsFunc(fresh, func(p family.Problem) bool { return p.Secret == "relay-server-tls-secret" }) {
		t.Errorf("problems: %v; want one of relay-server-tls-secret", fresh)
	}
	if again := keep(t, s, later); len(again) != 0 {
		t.Errorf("said again: %v", again)
	}
	// its fix is to delete it: a new one is made from the root, and agents are none the wiser
	if err := c.Delete(t.Context(), get(t, c, ns, "relay-server-tls-secret")); err != nil {
		t.Fatal(err)
	}
	keep(t, s, later)
	if p := s.Problems(); len(p) != 0 || !s.Current().Root.Cert.Equal(before.Root.Cert) {
		t.Errorf("after the fix: %v", p)
	}

	// all deleted: a new family
	for _, name := range five {
		if err := c.Delete(t.Context(), get(t, c, ns, name)); err != nil {
			t.Fatal(err)
		}
	}
	keep(t, s, later)
	if p := s.Problems(); len(p) != 0 || s.Current().Root.Cert.Equal(before.Root.Cert) || len(stored(t, c, ns)) != 5 {
		t.Errorf("after deleting all: problems %v, same root %v", p, s.Current().Root.Cert.Equal(before.Root.Cert))
	}
}
