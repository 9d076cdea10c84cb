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
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
)

const (
	openToAll = "no ALLOW policy applies to the destination and no DENY policy matches"
	notInMesh = "the destination is not in the mesh: plain TCP, nothing is checked"
)

// about is a policy about the callers named, for the Pods of namespace app.
func about(name string, action security.Action, ids ...string) *security.Authorization {
	m := &security.Match{}
	for _, id := range ids {
		m.Principals = append(m.Principals, &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: strings.TrimPrefix(id, "spiffe://")}})
	}
	return &security.Authorization{
		Name: name, Namespace: "app", Scope: security.Scope_NAMESPACE, Action: action,
		Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{m}}}}},
	}
}

// shop is a mesh with clients shop/web and shop/other, and a service app of app/one and app/two.
type shop struct {
	*mesh
	web, other, one, two *pod
	vip                  string
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{mesh: newMesh(t, newAuthority(t, "a"), "net1")}
	s.vip = s.prefix + "200"
	s.put(service(appHost, s.vip))
	s.web, s.other = s.join(s.pod("shop", "web", "web", 1)), s.join(s.pod("shop", "other", "other", 2))
	s.one, s.two = s.join(s.pod("app", "one", "app", 3), of(appHost)), s.join(s.pod("app", "two", "app", 4), of(appHost))
	s.follow(s.zt.Store())
	s.ready(t, s.web, s.one.IP+":8080")
	s.ready(t, s.other, s.two.IP+":8080")
	return s
}

// ready waits until the node's message has arrived.
func (m *mesh) ready(t *testing.T, from *pod, target string) {
	t.Helper()
	from.reaches(t, target, http.StatusOK)
}

// TestOutbound: where a Pod's connections go, and what it hears.
func TestOutbound(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	plain := s.pod("app", "plain", "app", 5) // never captured
	liar := s.join(s.pod("app", "liar", "app", 6), func(w *workloadapi.Workload) { w.ServiceAccount = "somebody" })
	const dark, legacy = "dark.app.svc.cluster.local", "legacy.app.svc.cluster.local"
	s.put(
		service(dark, s.prefix+"201"), service(legacy, s.prefix+"202"), service("none.app.svc.cluster.local", s.prefix+"203"),
		s.workloadOf(plain, of(legacy), func(w *workloadapi.Workload) { w.TunnelProtocol = workloadapi.TunnelProtocol_NONE }),
		s.workloadOf(s.pod("app", "sick", "app", 7), of(dark, appHost), func(w *workloadapi.Workload) { w.Status = workloadapi.WorkloadStatus_UNHEALTHY }),
	)
	outside := app(t, "127.0.0.1:0", func(c net.Conn) { _, _ = io.WriteString(c, "outside\n") }).Addr().String()
	closed := app(t, "127.0.0.1:0", func(net.Conn) {})
	_ = closed.Close()
	eventually(t, "istiod's last word", func() bool { return s.zt.Store().ByUID("c1//Pod/app/sick") != nil })
	ok := func(path, greeter string) answer {
		return answer{Status: http.StatusOK, Verdict: openToAll, Path: "shop/web -> " + path, Greeter: greeter}
	}
	for target, want := range map[string]answer{
		s.one.IP + ":8080": ok("HBONE to app/one", "app/one"),
		s.two.IP + ":8080": ok("HBONE to app/two", "app/two"),
		s.web.IP + ":8080": ok("HBONE to shop/web", "shop/web"),
		plain.IP + ":8080": {200, notInMesh, "shop/web -> plain TCP to app/plain", "app/plain"},
		legacy + ":80":     {200, notInMesh, "shop/web -> plain TCP to app/plain", "app/plain"},
		outside:            {200, notInMesh, "shop/web -> plain TCP to " + outside, "outside"},
	} {
		if d := cmp.Diff(want, s.web.call(t, target)); d != "" {
			t.Errorf("%s: %s", target, d)
		}
	}
	for target, want := range map[string]string{ // 503 and a word of the reason
		s.one.IP + ":9999":     "refused",
		closed.Addr().String(): "refused",
		appHost + ":81":        "has no port 81",
		"app.app:82":           "has no port 82",
		dark + ":80":           "no endpoint that is healthy",
		"none.app:80":          "no endpoint that is healthy",
		liar.IP + ":8080":      "want spiffe://cluster.local/ns/app/sa/somebody",
		"nonsense":             "want host:port",
		s.one.IP + ":99999":    "bad port",
		s.vip + ":81":          "has no port 81",
	} {
		got := s.web.call(t, target)
		if got.Status != http.StatusServiceUnavailable || !strings.Contains(got.Verdict, want) {
			t.Errorf("%s: %+v, want 503 with %q", target, got, want)
		}
	}
	if n := liar.app.all.Load(); n != 0 {
		t.Errorf("%d connections to a Pod that is not who istiod says it is", n)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Get("http://" + s.web.outbound + "/")
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Fatalf("GET: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

// TestService: all healthy endpoints of a service get connections, by every name
// of it, and no other Pod does.
func TestService(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sick := s.pod("app", "sick", "app", 5)
	s.join(sick, of(appHost), func(w *workloadapi.Workload) { w.Status = workloadapi.WorkloadStatus_UNHEALTHY })
	eventually(t, "istiod's last word", func() bool { return s.zt.Store().ByUID("c1//Pod/app/sick") != nil })
	for _, target := range []string{appHost + ":80", "app.app:80", s.vip + ":80"} {
		seen := map[string]int{}
		for range 24 {
			got := s.web.call(t, target)
			if got.Path != "shop/web -> HBONE to "+got.Greeter {
				t.Fatalf("%s: %+v", target, got)
			}
			seen[got.Greeter]++
		}
		if seen["app/one"] == 0 || seen["app/two"] == 0 || len(seen) != 2 {
			t.Errorf("%s: %v", target, seen)
		}
	}
}

// TestBytes: a stream carries bytes both ways, and the end of each side.
func TestBytes(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	_, c := s.web.dial(t, "app.app:80", "")
	if err := exchange(c, random(10<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	eventually(t, "no connection stays", func() bool { return s.one.app.open.Load()+s.two.app.open.Load() == 0 })
}

// TestAuthorization: policies decide by the caller's certificate, and what is
// denied is a 403 with the policy's name.
func TestAuthorization(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.put(about("to-web", security.Action_ALLOW, webID))
	denied := s.other.reaches(t, "app.app:80", http.StatusForbidden)
	want := "AuthorizationPolicy app/to-web allows only cluster.local/ns/shop/sa/web; the caller is cluster.local/ns/shop/sa/other"
	if denied.Verdict != want || denied.Path == "" || denied.Greeter != "" {
		t.Errorf("denied: %+v", denied)
	}
	if got := s.web.call(t, "app.app:80"); got.Status != 200 || got.Verdict != "AuthorizationPolicy app/to-web allows cluster.local/ns/shop/sa/web" {
		t.Errorf("allowed: %+v", got)
	}
	if got := s.other.call(t, s.web.IP+":8080"); got.Status != 200 {
		t.Errorf("a policy of another namespace: %+v", got)
	}
	before := s.one.app.all.Load() + s.two.app.all.Load()
	for range 5 {
		s.other.call(t, "app.app:80")
	}
	if after := s.one.app.all.Load() + s.two.app.all.Load(); after != before {
		t.Errorf("%d denied connections reached the application", after-before)
	}
	// A policy sees the Pod's own port, not the service's.
	byPort := about("by-port", security.Action_DENY)
	byPort.Groups[0].Rules[0].Matches[0] = &security.Match{DestinationPorts: []uint32{8080}}
	s.put(byPort)
	s.web.reaches(t, "app.app:80", http.StatusForbidden)
	s.remove(authorizationType, "app/by-port", "app/to-web")
	s.web.reaches(t, "app.app:80", http.StatusOK)
	s.other.reaches(t, "app.app:80", http.StatusOK)
}

// TestPolicyClosesStream: an open stream ends when a policy comes that denies it,
// or when its Pod begins to be selected by one; others stay.
func TestPolicyClosesStream(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	target := s.one.IP + ":8080"
	closes := func(what string, c *stream) {
		t.Helper()
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			t.Errorf("%s: read %q, %v", what, rest, err)
		}
	}
	alive := func(what string, c *stream) {
		t.Helper()
		if err := exchange(c, []byte("still there")); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, web := s.web.dial(t, target, "")
	_, other := s.other.dial(t, target, "")
	_, toTwo := s.web.dial(t, s.two.IP+":8080", "")
	began := time.Now()
	s.put(about("not-web", security.Action_DENY, webID))
	closes("denied", web)
	t.Logf("closed %s after istiod's push", time.Since(began))
	closes("denied at the other Pod", toTwo)
	alive("another caller", other)
	eventually(t, "the application's end closes", func() bool { return s.one.app.open.Load() == 1 && s.two.app.open.Load() == 0 })
	s.web.reaches(t, target, http.StatusForbidden)

	selected := about("selected", security.Action_ALLOW, webID)
	selected.Scope = security.Scope_WORKLOAD_SELECTOR
	s.put(selected)
	eventually(t, "the policy", func() bool { return s.zt.Store().Policies()["app/selected"] != nil })
	alive("a policy that selects no Pod", other)
	s.put(s.workloadOf(s.one, of(appHost), func(w *workloadapi.Workload) { w.AuthorizationPolicies = []string{"app/selected"} }))
	closes("now selected", other)
}

// TestInbound: for whom and for what a Pod's inbound opens.
func TestInbound(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.put(service("api.app.svc.cluster.local", s.prefix+"201"))
	eventually(t, "istiod's last word", func() bool { return s.zt.Store().ByHost("api.app") != nil })
	web := s.identity(webID)
	open := func(p *pod, authority string) (status int) {
		t.Helper()
		tunnel, err := hbone.Connect(t.Context(), dialTCP(p.IP+":15008"), clientTLS(t, web), authority)
		if err == nil {
			defer tunnel.Close()
			return http.StatusOK
		}
		refused, ok := err.(*hbone.RefusedError) //nolint:errorlint // as it is returned
		if !ok || refused.Reason == "" {
			t.Fatalf("%s: %v", authority, err)
		}
		return refused.Status
	}
	for authority, want := range map[string]int{
		s.one.IP + ":8080":              200,
		appHost + ":80":                 200,
		"app.app:80":                    200,
		s.one.IP + ":9999":              503, // nobody listens
		s.two.IP + ":8080":              400, // another Pod
		"127.0.0.1:8080":                400,
		s.vip + ":80":                   400,
		"api.app.svc.cluster.local:80":  400, // no endpoint of it
		"none.app.svc.cluster.local:80": 400,
		appHost + ":81":                 400,
		appHost:                         400,
		s.one.IP + ":99999":             400,
	} {
		if got := open(s.one, authority); got != want {
			t.Errorf("%s: %d, want %d", authority, got, want)
		}
	}
	// A Pod that istiod has not told of is not open to all, but to none.
	late := s.pod("app", "late", "app", 5)
	s.add(late)
	eventually(t, "captured", func() bool { return late.listens() })
	if got := open(late, late.IP+":8080"); got != http.StatusServiceUnavailable {
		t.Errorf("a Pod unknown to istiod: %d", got)
	}
	s.put(s.workloadOf(late))
	eventually(t, "open", func() bool { return open(late, late.IP+":8080") == http.StatusOK })
}

// listens reports whether somebody answers on the Pod's 15008.
func (p *pod) listens() bool {
	c, err := net.DialTimeout("tcp", p.IP+":15008", time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

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
