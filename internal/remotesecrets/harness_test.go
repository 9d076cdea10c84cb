package remotesecrets

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/probe"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"ambitmesh.dev/ambit/internal/tokens"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// hub is the management server as far as tokens go: the same Board, with sites in place of sessions.
type hub struct {
	t        *testing.T
	settings tokens.Settings

	mu    sync.Mutex
	board *tokens.Board
	sites map[mesh.ClusterName]*site
	reg   map[mesh.ClusterName]string
}

func newHub(t *testing.T, s tokens.Settings) *hub {
	t.Helper()
	s = s.WithDefaults()
	h := &hub{t: t, settings: s, board: tokens.NewBoard(s), sites: map[mesh.ClusterName]*site{}, reg: map[mesh.ClusterName]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			h.round()
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

// round does what the server's loop does.
func (h *hub) round() {
	h.mu.Lock()
	defer h.mu.Unlock()
	var members []tokens.Member
	wanted := map[tokens.Pair]bool{}
	for c, s := range h.sites {
		for k, v := range s.pump() {
			h.board.Take(c, mesh.ItemKey(k), v)
		}
		if h.reg[c] == "" {
			continue
		}
		members = append(members, tokens.Member{Cluster: c, Registration: h.reg[c], Connected: true})
		for o := range h.sites {
			if o != c && h.reg[o] != "" {
				wanted[tokens.Pair{Reader: c, Target: o}] = true
			}
		}
	}
	slices.SortFunc(members, func(a, b tokens.Member) int { return strings.Compare(string(a.Cluster), string(b.Cluster)) })
	if err := h.board.Decide(members, wanted, time.Now()); err != nil {
		h.t.Error(err)
	}
	for c, s := range h.sites {
		items := h.board.Items(c)
		if h.reg[c] == "" || items == nil {
			continue
		}
		set := map[synclog.Key][]byte{}
		for k, v := range items {
			set[synclog.Key(k)] = v
		}
		s.keeper.Desired(synclog.Changes{Set: set})
	}
}

// leave deregisters a cluster.
func (h *hub) leave(c mesh.ClusterName) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.reg, c)
	h.board.Forget(c)
	h.sites[c].keeper.Farewell()
}

// kill forgets everything, as a server that is killed does.
func (h *hub) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.board = tokens.NewBoard(h.settings)
	for _, s := range h.sites {
		s.resend()
	}
}

func (h *hub) pairs() []tokens.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.board.Pairs()
}

// pair is how one pair is doing.
func (h *hub) pair(reader, target mesh.ClusterName) tokens.Status {
	for _, p := range h.pairs() {
		if p.Reader == reader && p.Target == target {
			return p
		}
	}
	return tokens.Status{}
}

// site is a cluster: two namespaces of the test's API server, an agent's Keeper, and istiods.
type site struct {
	t       *testing.T
	name    mesh.ClusterName
	rest    *rest.Config
	kube    client.Client
	own     string
	istio   string
	istiod  *istiod
	keeper  *Keeper
	log     *bytes.Buffer
	logLock sync.Mutex
	stop    func()

	mu     sync.Mutex
	source *synclog.Source
	sink   *synclog.Sink
	said   map[synclog.Key][]byte // everything that ever went up
}

func (h *hub) join(name mesh.ClusterName, registration string) *site {
	h.t.Helper()
	s := &site{t: h.t, name: name, rest: kubetest.Start(h.t), log: &bytes.Buffer{}, said: map[synclog.Key][]byte{}}
	s.kube = kubetest.Client(h.t, s.rest)
	s.own, s.istio = kubetest.Namespace(h.t, s.kube), kubetest.Namespace(h.t, s.kube)
	for _, account := range []string{Reader, SecretsReader} {
		if err := s.kube.Create(h.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: s.own}}); err != nil {
			h.t.Fatal(err)
		}
	}
	s.istiod = &istiod{s: s, replica: probe.Replica{Name: "istio-system/istiod-1", IP: "10.0.0.1", Version: "1.31.0", Ready: true, Created: time.Now()}}
	s.start()
	h.t.Cleanup(func() { s.stop() })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sites[name], h.reg[name] = s, registration
	return s
}

// Write collects the log.
func (s *site) Write(b []byte) (int, error) {
	s.logLock.Lock()
	defer s.logLock.Unlock()
	return s.log.Write(b)
}

func (s *site) logged() string {
	s.logLock.Lock()
	defer s.logLock.Unlock()
	return s.log.String()
}

// start starts the agent's part, with no memory but what is in the cluster.
func (s *site) start() {
	client, err := dynamic.NewForConfig(s.rest)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.source = synclog.NewSource(fmt.Sprint(time.Now().UnixNano()))
	s.source.SetComplete(true)
	s.sink = synclog.NewSink(synclog.Limits{}, true)
	s.mu.Unlock()
	k := New(Config{
		Client: client, Cluster: s.name, Namespace: s.own, IstioNamespace: s.istio, Server: "https://" + strings.TrimPrefix(s.rest.Host, "https://"), CA: s.rest.CAData,
		Source: s.source, Istiods: s.istiod, Log: slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx) }()
	s.keeper, s.stop = k, func() { cancel(); <-done }
}

// restart kills the agent's part and starts it anew.
func (s *site) restart(h *hub) {
	s.stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	s.start()
}

// pump takes what the agent says.
func (s *site) pump() map[synclog.Key][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	cursor := s.source.Cursor(s.sink.Position())
	for {
		c, ok := cursor.Next()
		if !ok {
			break
		}
		if err := s.sink.Apply(c); err != nil {
			s.t.Error(err)
			break
		}
	}
	ch := s.sink.Take()
	out := map[synclog.Key][]byte{}
	for k, v := range ch.Set {
		out[k] = v
		s.said[synclog.Key{Type: k.Type, Name: fmt.Sprint(k.Name, len(s.said))}] = v
	}
	for _, k := range ch.Deleted {
		out[k] = nil
	}
	return out
}

// resend says everything anew.
func (s *site) resend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sink = synclog.NewSink(synclog.Limits{}, true)
}

func (s *site) secrets(namespace string) map[string]corev1.Secret {
	s.t.Helper()
	var list corev1.SecretList
	if err := s.kube.List(s.t.Context(), &list, client.InNamespace(namespace)); err != nil && s.t.Context().Err() == nil { // what runs beside the test may ask while it ends
		s.t.Fatal(err)
	}
	out := map[string]corev1.Secret{}
	for _, x := range list.Items {
		out[x.Name] = x
	}
	return out
}

// credential is what the remote secret for a cluster holds; empty: there is none.
func (s *site) credential(peer mesh.ClusterName) mesh.TokenCredential {
	s.t.Helper()
	x, ok := s.secrets(s.istio)[prefixSecret+string(peer)]
	if !ok {
		return mesh.TokenCredential{}
	}
	return parseKubeconfig(s.t, x.Data[string(peer)])
}

func parseKubeconfig(t *testing.T, raw []byte) mesh.TokenCredential {
	t.Helper()
	var k struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Token string `json:"token"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(raw, &k); err != nil || len(k.Clusters) != 1 || len(k.Users) != 1 {
		t.Fatalf("kubeconfig %v: %d clusters, %d users", err, len(k.Clusters), len(k.Users))
	}
	return mesh.TokenCredential{Server: k.Clusters[0].Cluster.Server, CA: k.Clusters[0].Cluster.CA, Token: k.Users[0].User.Token}
}

// istiod stands in for one: it takes up the remote secrets that there are when it is told to.
type istiod struct {
	s *site

	mu      sync.Mutex
	replica probe.Replica
	stuck   bool // it takes nothing up
	seen    map[string]string
	uses    map[string]mesh.TokenCredential
	events  int
	rolled  []string
}

// Replicas implements Istiods.
func (i *istiod) Replicas(context.Context) ([]probe.Replica, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return []probe.Replica{i.replica}, nil
}

// Ask implements Istiods.
func (i *istiod) Ask(context.Context, probe.Replica) ([]probe.RemoteCluster, int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.stuck {
		i.takeUp()
	}
	var out []probe.RemoteCluster
	for name := range i.seen {
		out = append(out, probe.RemoteCluster{ID: strings.TrimPrefix(name, prefixSecret), Secret: i.s.istio + "/" + name, Status: "synced"})
	}
	return out, i.events, nil
}

func (i *istiod) takeUp() {
	seen, uses := map[string]string{}, map[string]mesh.TokenCredential{}
	for name, x := range i.s.secrets(i.s.istio) {
		if x.Labels[labelMulti] != "true" {
			continue
		}
		seen[name] = x.ResourceVersion
		if i.seen[name] != x.ResourceVersion {
			i.events++
		}
		for id, raw := range x.Data {
			uses[id] = parseKubeconfig(i.s.t, raw)
		}
	}
	i.seen, i.uses = seen, uses
}

// Restart implements Istiods.
func (i *istiod) Restart(_ context.Context, token string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rolled = append(i.rolled, token)
	i.replica.Name, i.replica.Created = i.replica.Name+"x", time.Now().Add(2*time.Second)
	return nil
}

func (i *istiod) set(f func(*istiod)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not reached: %s", what)
}

// accepted asks the API server whether it takes a token.
func accepted(t *testing.T, c mesh.TokenCredential) bool {
	t.Helper()
	return probeCredential(t.Context(), c) == nil
}
