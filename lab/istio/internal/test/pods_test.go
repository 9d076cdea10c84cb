package test

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// csrsFor counts the requests for an identity, each of which must be made on
// behalf of it.
func (m *mesh) csrsFor(t *testing.T, id string) int {
	t.Helper()
	n := 0
	for _, r := range m.requests() {
		if slices.Equal(r.IDs, []string{id}) {
			n++
			if r.Impersonated != id {
				t.Errorf("asked for %s as %q", id, r.Impersonated)
			}
		}
	}
	return n
}

// TestIdentities: Pods of one account share a certificate, which lives as long
// as one of them.
func TestIdentities(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	if n := s.csrsFor(t, appID); n != 1 {
		t.Errorf("%d certificates for two Pods of one account", n)
	}
	_, kept := s.web.dial(t, s.two.IP+":8080", "")
	_, lost := s.web.dial(t, s.one.IP+":8080", "")
	s.leave(s.one)
	_, _ = io.ReadAll(lost)
	eventually(t, "the stream ends with its Pod", func() bool { return s.one.app.open.Load() == 0 })
	if err := exchange(kept, []byte("still there")); err != nil {
		t.Errorf("another Pod of the account: %v", err)
	}
	s.add(s.one)
	s.ready(t, s.web, s.one.IP+":8080")
	if n := s.csrsFor(t, appID); n != 1 {
		t.Errorf("%d certificates after one of two Pods left and came back", n)
	}
	s.leave(s.one)
	s.ready(t, s.web, s.two.IP+":8080")
	s.leave(s.two)
	_, _ = io.ReadAll(kept)
	eventually(t, "the stream ends with its Pod", func() bool { return s.two.app.open.Load() == 0 })
	if n := s.csrsFor(t, appID); n != 1 {
		t.Errorf("%d certificates", n)
	}
	s.add(s.one)
	s.ready(t, s.web, s.one.IP+":8080")
	if n := s.csrsFor(t, appID); n != 2 {
		t.Errorf("%d certificates after the last Pod of the account left and one came", n)
	}
}

// TestNodeAgain: when the node comes again, or says what can't be understood, it
// says everything again, and only that counts.
func TestNodeAgain(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	target := s.one.IP + ":8080"
	for name, disturb := range map[string]func(){
		"restart":    s.hangUp,
		"no JSON":    func() { s.say("{") },
		"said twice": func() { s.add(s.one); s.add(s.web) },
		"strange": func() {
			s.say(`{"Op":"dance","UID":"x"}`)
			s.say(`{"Op":"add","UID":"without files"}`)
			s.say(`{"Op":"remove","UID":"never there"}`)
			s.say(`{"Op":"add","UID":"files that are no sockets"}`, s.one.fds[0], s.one.fds[0], s.one.fds[0])
		},
	} {
		disturb()
		// Calls go on as soon as the Pods have been taken again.
		began := time.Now()
		for {
			c, err := net.DialTimeout("tcp", s.web.outbound, time.Second)
			if err == nil {
				_ = c.SetDeadline(time.Now().Add(time.Second))
				_, err = io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\n")
				if err == nil {
					var buf [15]byte
					_, err = io.ReadFull(c, buf[:])
					if err == nil && string(buf[:]) != "HTTP/1.1 200 OK" {
						err = io.ErrUnexpectedEOF
					}
				}
				_ = c.Close()
			}
			if err == nil {
				break
			}
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s: %v", name, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if got := s.web.reaches(t, target, http.StatusOK); got.Greeter != "app/one" {
		t.Errorf("%+v", got)
	}
	s.forget(s.two) // it goes while ztunnel does not hear
	s.hangUp()
	for _, f := range s.two.files[1:] {
		_ = f.Close() // the node's own copies
	}
	eventually(t, "out of the mesh", func() bool { return !s.two.listens() })
}

// TestSaidTwice: a Pod that the node has told of twice leaves once.
func TestSaidTwice(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.add(s.one)
	s.ready(t, s.web, s.one.IP+":8080")
	s.leave(s.one)
	for _, f := range s.one.files[1:] {
		_ = f.Close() // the node's own copies
	}
	eventually(t, "out of the mesh", func() bool { return !s.one.listens() })
}

// TestPodNetwork: what is for a Pod is dialed in the Pod's own network.
func TestPodNetwork(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	inner := s.podIn(newNetns(t), "app", "inner", "app", 5)
	s.join(inner)
	if c, err := net.DialTimeout("tcp", inner.IP+":8080", time.Second); err == nil {
		_ = c.Close()
		t.Fatal("the application can be reached without its network")
	}
	got := s.web.reaches(t, inner.IP+":8080", http.StatusOK)
	if d := cmp.Diff(answer{200, openToAll, "shop/web -> HBONE to app/inner", "app/inner"}, got); d != "" {
		t.Error(d)
	}
	for range 20 { // on whatever thread it runs
		if got := s.web.call(t, inner.IP+":8080"); got.Greeter != "app/inner" {
			t.Fatalf("%+v", got)
		}
		if got := s.web.call(t, s.one.IP+":8080"); got.Greeter != "app/one" {
			t.Fatalf("%+v", got)
		}
	}
}

// TestNothingYet: before istiod has spoken, and without a certificate, nothing
// goes anywhere, and the caller hears why.
func TestNothingYet(t *testing.T) {
	t.Parallel()
	m := newMesh(t, newAuthority(t, "a"), "net1")
	m.set(func() { m.refuse = status.Error(codes.PermissionDenied, "not on this node") })
	web, one := m.join(m.pod("shop", "web", "web", 1)), m.join(m.pod("app", "one", "app", 2))
	if got := web.call(t, one.IP+":8080"); got.Status != 503 || got.Verdict != "istiod has not told of the mesh yet" {
		t.Errorf("before istiod has spoken: %+v", got)
	}
	m.follow(m.zt.Store())
	got := web.call(t, one.IP+":8080")
	if got.Status != 503 || !strings.Contains(got.Verdict, "no certificate for shop/web") || !strings.Contains(got.Verdict, "not on this node") {
		t.Errorf("without a certificate: %+v", got)
	}
	m.set(func() { m.refuse = nil })
	m.ready(t, web, one.IP+":8080")
	if n := one.app.all.Load(); n == 0 {
		t.Error("no connection")
	}
}

// TestOutboundEnds: what a Pod has open to elsewhere ends when it leaves.
func TestOutboundEnds(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	outside := app(t, "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.WriteString(c, "outside\n")
		_, _ = io.Copy(io.Discard, c)
	})
	_, plain := s.web.dial(t, outside.Addr().String(), "")
	_, tunnel := s.web.dial(t, s.one.IP+":8080", "")
	_, others := s.other.dial(t, s.one.IP+":8080", "")
	s.leave(s.web)
	for _, c := range []*stream{plain, tunnel} {
		if rest, _ := io.ReadAll(c); len(rest) > 0 {
			t.Errorf("read %q", rest)
		}
	}
	eventually(t, "the other ends close", func() bool { return outside.open.Load() == 0 && s.one.app.open.Load() == 1 })
	if err := exchange(others, []byte("still there")); err != nil {
		t.Error(err)
	}
}

// TestShutdown: when ztunnel is to end, what is open may finish, for a while.
func TestShutdown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		finish   bool
		min, max time.Duration
	}{
		"streams finish": {true, 0, 2 * time.Second},
		"streams go on":  {false, 3 * time.Second, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			_, open := s.web.dial(t, s.one.IP+":8080", "")
			began := time.Now()
			s.end()
			time.Sleep(300 * time.Millisecond)
			if err := exchange(open, []byte("still there")); err != nil {
				t.Fatalf("an open stream, soon after: %v", err)
			}
			if c.finish {
				_ = open.Close()
			}
			<-s.ended
			if took := time.Since(began); took < c.min || took > c.max {
				t.Errorf("took %s, want %s to %s", took, c.min, c.max)
			}
			if rest, _ := io.ReadAll(open); len(rest) > 0 {
				t.Errorf("read %q", rest)
			}
			eventually(t, "the application's end closes", func() bool { return s.one.app.open.Load() == 0 })
		})
	}
}
