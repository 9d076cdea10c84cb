package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// TestSessionCarriesStateBothWays is the relay in one test: an agent with a registration token enrols, connects, reports what is in
// its cluster, and receives what should be there.
func TestSessionCarriesStateBothWays(t *testing.T) {
	s := newSite(t)
	// What should be in the cluster; the agent is not there yet.
	if err := s.hub.Publish("prod", map[synclog.Key][]byte{object("a"): []byte("1"), object("b"): []byte("2")}, true); err != nil {
		t.Fatal(err)
	}
	a := s.newAgent("prod")
	a.waitConnected()

	// Down: the whole desired state, then a change to it.
	wait(t, "desired state received", func() bool { return a.spoke.Desired().Complete })
	if err := s.hub.Publish("prod", map[synclog.Key][]byte{object("b"): []byte("2"), object("c"): []byte("3")}, true); err != nil {
		t.Fatal(err)
	}
	wait(t, "change received", func() bool { return cmp.Equal(strs(a.spoke.Desired().Items), map[string]string{"b": "2", "c": "3"}) })
	wait(t, "all confirmed", func() bool { i := s.info("prod"); return i.Lag == 0 && i.DesiredAcked == i.DesiredVersion })

	// Up: inventory and outcomes are items of one log.
	service := synclog.Key{Type: "service", Name: "bookinfo/reviews"}
	if err := a.inventory.Set(service, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	a.inventory.SetComplete(true)
	wait(t, "inventory received", func() bool { _, warm := s.hub.Inventory("prod"); return warm })
	items, _ := s.hub.Inventory("prod")
	if d := cmp.Diff(map[synclog.Key][]byte{service: []byte("{}")}, items); d != "" {
		t.Errorf("inventory (-want +got):\n%s", d)
	}

	// Who is it, and how is it doing?
	wait(t, "clock measured", func() bool { return s.info("prod").RTT > 0 })
	i := s.info("prod")
	if !i.Connected || i.UID != "uid-of-prod" || i.AgentVersion != "2.12.0" || i.Identity.Cluster != "prod" || i.LastRefusal != nil || i.Offset.Abs() > time.Second {
		t.Errorf("session: %+v", i)
	}
	if st := a.store.get(); st.Token != "" || st.PendingKey != nil {
		t.Error("the token has served and is still there")
	}
}

// TestReconnectResumes breaks the connection: nothing that the other side holds is sent again.
func TestReconnectResumes(t *testing.T) {
	s := newSite(t)
	p := newProxy(t, s.address)
	objects := map[synclog.Key][]byte{}
	for i := range 500 {
		objects[object(fmt.Sprint(i))] = bytes.Repeat([]byte("x"), 2000)
	}
	if err := s.hub.Publish("prod", objects, true); err != nil {
		t.Fatal(err)
	}
	a := s.newAgent("prod", func(c *SpokeConfig) { c.ServerAddress = p.address() })
	for i := range 500 {
		_ = a.inventory.Set(synclog.Key{Type: "service", Name: fmt.Sprint(i)}, bytes.Repeat([]byte("y"), 2000))
	}
	a.inventory.SetComplete(true)
	wait(t, "all received", func() bool { return a.spoke.Desired().Complete && s.info("prod").Warm && s.info("prod").Lag == 0 })
	if n := p.bytes.Load(); n < 2_000_000 {
		t.Fatalf("only %d bytes went through the proxy", n)
	}
	p.bytes.Store(0)
	p.cut()
	wait(t, "disconnected", func() bool { return !a.spoke.Status().Connected })
	objects[object("new")] = []byte("n")
	_ = s.hub.Publish("prod", objects, true)
	_ = a.inventory.Set(synclog.Key{Type: "service", Name: "new"}, []byte("n"))
	wait(t, "news received", func() bool {
		items, _ := s.hub.Inventory("prod")
		return len(a.spoke.Desired().Items) == 501 && len(items) == 501
	})
	if n := p.bytes.Load(); n > 50_000 {
		t.Errorf("%d bytes after the reconnect: it was sent again", n)
	}
}

// TestHubRestart: a new hub knows nothing. The agent sends its inventory again and keeps every desired object, until the new hub
// says that it knows the whole.
func TestHubRestart(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	want := map[synclog.Key][]byte{object("a"): []byte("1"), object("b"): []byte("2")}
	_ = s.hub.Publish("prod", want, true)
	_ = a.inventory.Set(synclog.Key{Type: "service", Name: "x"}, []byte("x"))
	a.inventory.SetComplete(true)
	wait(t, "desired", func() bool { return a.spoke.Desired().Complete && s.info("prod").Warm })

	s.restart()
	wait(t, "inventory again", func() bool { items, warm := s.hub.Inventory("prod"); return warm && len(items) == 1 })
	_ = s.hub.Publish("prod", map[synclog.Key][]byte{object("a"): []byte("1")}, false) // not warm: b is merely not known yet
	wait(t, "incomplete state", func() bool { return s.info("prod").DesiredAcked == 1 })
	if st := a.spoke.Desired(); st.Complete || len(st.Items) != 2 {
		t.Errorf("an incomplete state: complete %v, %v", st.Complete, strs(st.Items))
	}
	_ = s.hub.Publish("prod", want, true)
	wait(t, "complete again", func() bool { return a.spoke.Desired().Complete })
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.changes {
		if len(c.Deleted) > 0 {
			t.Errorf("the agent was told to delete %v", c.Deleted)
		}
	}
}

func TestIncompleteAddsAndCompleteRemoves(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	_ = s.hub.Publish("prod", map[synclog.Key][]byte{object("a"): []byte("1")}, false)
	wait(t, "addition", func() bool { return len(a.spoke.Desired().Items) == 1 })
	_ = s.hub.Publish("prod", map[synclog.Key][]byte{}, false)
	_ = s.hub.Publish("prod", map[synclog.Key][]byte{object("b"): []byte("2")}, false)
	wait(t, "second addition", func() bool { return len(a.spoke.Desired().Items) == 2 })
	_ = s.hub.Publish("prod", map[synclog.Key][]byte{object("b"): []byte("2")}, true)
	wait(t, "removal", func() bool { return cmp.Equal(strs(a.spoke.Desired().Items), map[string]string{"b": "2"}) })
	if err := s.hub.Publish("prod", map[synclog.Key][]byte{object("huge"): make([]byte, synclog.MaxItemBytes+1)}, true); err == nil || !strings.Contains(err.Error(), "huge") {
		t.Errorf("an object that is too large: %v", err)
	}
	if got := strs(a.spoke.Desired().Items); len(got) != 1 {
		t.Errorf("an object that can't be sent made others go: %v", got)
	}
}

func TestLargeObject(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	big := bytes.Repeat([]byte("0123456789abcdef"), synclog.MaxItemBytes/16)
	_ = s.hub.Publish("prod", map[synclog.Key][]byte{object("big"): big}, true)
	wait(t, "8 MiB object", func() bool { return bytes.Equal(a.spoke.Desired().Items[object("big")], big) })
}

func TestNewerSessionReplacesOlder(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	b := s.runAgent("prod", &memory{st: a.store.get()})
	b.waitConnected()
	a.waitError("newer session")
	if i := s.info("prod"); !i.Connected {
		t.Error("the newer session is gone as well")
	}
}

// TestReplacedSessionIsDeaf: what a session brings that is no longer the running one changes nothing.
func TestReplacedSessionIsDeaf(t *testing.T) {
	c := &cluster{desired: synclog.NewSource("d"), inventory: synclog.NewSink(synclog.Limits{}, false)}
	older, newer := &session{}, &session{}
	now := time.Now()
	c.attach(older, now)
	if c.attach(newer, now) != older {
		t.Fatal("the older session is not told")
	}
	chunk := synclog.Chunk{Epoch: "e", Through: 1, Head: 1, Complete: true, Items: []synclog.Item{{Key: object("a"), Version: 1}}}
	if mine, err := c.take(older, chunk); mine || err != nil || c.inventory.Len() != 0 {
		t.Errorf("mine %v, %v, %d items", mine, err, c.inventory.Len())
	}
	if c.detach(older, now) || c.current() != newer {
		t.Error("the end of the older session ended the newer one")
	}
	if mine, err := c.take(newer, chunk); !mine || err != nil || c.inventory.Len() != 1 {
		t.Errorf("mine %v, %v, %d items", mine, err, c.inventory.Len())
	}
}

// TestRefusedThoughItDoesNotListen: the writer is stuck in the middle of a message; the connection is cut all the same.
func TestRefusedThoughItDoesNotListen(t *testing.T) {
	s := newSite(t)
	p := newProxy(t, s.address)
	a := s.newAgent("prod", func(c *SpokeConfig) { c.ServerAddress = p.address() })
	a.waitConnected()
	p.stallDown(true)
	state := map[synclog.Key][]byte{}
	for i := range 1000 {
		state[object(fmt.Sprint(i))] = make([]byte, 50_000)
	}
	_ = s.hub.Publish("prod", state, true)
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	s.hub.Refuse("prod", Refuse(relayv1.Goodbye_REVOKED, "revoked"))
	if s.info("prod").Connected {
		t.Error("still counted as connected")
	}
	wait(t, "the session's end", func() bool { s.hub.mu.Lock(); defer s.hub.mu.Unlock(); return s.hub.sessions == 0 })
	if d := time.Since(began); d > 3*partingTime {
		t.Errorf("the session held on for %s", d)
	}
}

// TestSlowAgentCostsNoMemory: an agent that stops reading, while its desired state keeps changing. The hub's heap must not follow.
func TestSlowAgentCostsNoMemory(t *testing.T) {
	s := newSite(t)
	p := newProxy(t, s.address)
	a := s.newAgent("prod", func(c *SpokeConfig) { c.ServerAddress = p.address() })
	a.waitConnected()
	value := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 10_000) }
	state := map[synclog.Key][]byte{}
	for i := range 100 {
		state[object(fmt.Sprint(i))] = value(0)
	}
	_ = s.hub.Publish("prod", state, true)
	wait(t, "first state", func() bool { return len(a.spoke.Desired().Items) == 100 && s.info("prod").Lag == 0 })
	p.stallDown(true)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for round := range 300 { // 300 MB of changes, in 1 MB of state
		for i := range 100 {
			state[object(fmt.Sprint(i))] = value(round)
		}
		_ = s.hub.Publish("prod", state, true)
	}
	if after := heap(); after > before+12<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
	if lag := s.info("prod").Lag; lag == 0 {
		t.Error("an agent that reads nothing has no lag")
	}
	p.stallDown(false)
	wait(t, "caught up", func() bool {
		return s.info("prod").Lag == 0 && a.spoke.Desired().Items[object("7")][0] == byte(299%256)
	})
}

// TestBlackHole: packets vanish in both directions, as in a failing network. Both ends notice in less than 15 s.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := newProxy(t, s.address)
	a := s.newAgent("prod", func(c *SpokeConfig) { c.ServerAddress = p.address() })
	a.waitConnected()
	p.stallDown(true)
	p.stallUp(true)
	began := time.Now()
	wait(t, "the hub notices", func() bool { return !s.info("prod").Connected })
	hub := time.Since(began)
	wait(t, "the agent notices", func() bool { return !a.spoke.Status().Connected })
	if agent := time.Since(began); hub >= 15*time.Second || agent >= 15*time.Second {
		t.Errorf("noticed after %s (hub), %s (agent)", hub, agent)
	} else {
		t.Logf("noticed after %s (hub), %s (agent)", hub, agent)
	}
	p.stallDown(false)
	p.stallUp(false)
	a.waitConnected()
}

func TestChanged(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if got, err := s.hub.Changed(ctx); err != nil || !slices.Equal(got, []mesh.ClusterName{"prod"}) {
		t.Errorf("%v, %v", got, err)
	}
	_ = a.inventory.Set(object("x"), nil)
	if got, err := s.hub.Changed(ctx); err != nil || !slices.Equal(got, []mesh.ClusterName{"prod"}) {
		t.Errorf("%v, %v", got, err)
	}
	quiet := func() bool { // nothing changes any more: what is still on its way is told first
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := s.hub.Changed(short)
		return errors.Is(err, context.DeadlineExceeded)
	}
	wait(t, "nothing changes", quiet)
}

func TestShutdownSaysGoodbye(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	began := time.Now()
	s.stop()
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("stopping took %s", d)
	}
	wait(t, "agent noticed", func() bool { return !a.spoke.Status().Connected })
}

func TestMetrics(t *testing.T) {
	s := newSite(t)
	a := s.newAgent("prod")
	a.waitConnected()
	_ = s.hub.Publish("away", map[synclog.Key][]byte{object("a"): nil, object("b"): nil}, true)
	reg := prometheus.NewRegistry()
	if err := reg.Register(s.hub.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"relay_push_clients_connected/prod": 1, "relay_pull_clients_connected/prod": 1, "relay_push_clients_connected/away": 0,
		"relay_desired_lag_items/away": 2, "relay_enrolments_total/true": 1, "relay_connections_without_session": 0,
	} {
		if got[name] != want {
			t.Errorf("%s = %v, want %v", name, got[name], want)
		}
	}
}

// proxy is a TCP proxy that can cut, or swallow what comes in.
type proxy struct {
	l        net.Listener
	to       string
	bytes    atomic.Int64
	up, down atomic.Bool // stalled
	conns    chan net.Conn
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to, conns: make(chan net.Conn, 1000)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			p.conns <- c
			p.conns <- d
			go p.copy(d, c, &p.up)
			go p.copy(c, d, &p.down)
		}
	}()
	t.Cleanup(func() {
		p.stallUp(false)
		p.stallDown(false)
		l.Close()
		p.cut()
	})
	return p
}

func (p *proxy) address() string   { return p.l.Addr().String() }
func (p *proxy) stallUp(on bool)   { p.up.Store(on) }
func (p *proxy) stallDown(on bool) { p.down.Store(on) }

func (p *proxy) copy(to, from net.Conn, stalled *atomic.Bool) {
	defer to.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		for stalled.Load() && err == nil {
			time.Sleep(10 * time.Millisecond)
		}
		p.bytes.Add(int64(n))
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (p *proxy) cut() {
	for {
		select {
		case c := <-p.conns:
			c.Close()
		default:
			return
		}
	}
}

// raw opens a connection with the credentials of an agent that has enrolled, to speak the protocol by hand.
func (s *site) raw(a *agent) *hubConn {
	s.t.Helper()
	a.spoke.use(must(loadCredential(a.store.get(), a.spoke.cfg.Cluster, time.Now())))
	c, err := a.spoke.dial(a.store.get(), true)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type clientStream = grpc.BidiStreamingClient[relayv1.AgentMessage, relayv1.ServerMessage]

func open(t testing.TB, c *hubConn, hello *relayv1.Hello) (clientStream, *relayv1.ServerMessage, error) {
	t.Helper()
	stream, err := relayv1.NewRelayClient(c).Session(t.Context(), grpc.MaxCallSendMsgSize(1<<30))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&relayv1.AgentMessage{Kind: &relayv1.AgentMessage_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	return stream, m, err
}

func helloOf(name string) *relayv1.Hello {
	return &relayv1.Hello{Cluster: name, ClusterUid: "uid-of-" + name, AgentVersion: "2.12.0", Protocol: 1, MinProtocol: 1}
}
