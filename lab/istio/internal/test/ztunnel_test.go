package test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
