package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"ambitmesh.dev/ambit/lab/istio/internal/gateway"
	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
	"ambitmesh.dev/ambit/lab/istio/internal/svid"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

const (
	gatewayID  = "spiffe://cluster.local/ns/app/sa/eastwest"
	waypointID = "spiffe://cluster.local/ns/app/sa/waypoint"
)

// endpoints is a cluster for a gateway: Pods of app that count who connects to
// their 15008, on addresses of their own.
type endpoints struct {
	*istiod
	prefix   string
	inbounds map[string]*counted
}

func newEndpoints(t *testing.T) *endpoints {
	t.Helper()
	e := &endpoints{istiod: newIstiod(t, newAuthority(t, "a")), prefix: fmt.Sprintf("127.3.%d.", meshes.Add(1)), inbounds: map[string]*counted{}}
	add := func(name string, octet int, change ...func(*workloadapi.Workload)) {
		address := fmt.Sprint(e.prefix, octet)
		e.inbounds[name] = app(t, address+":15008", func(c net.Conn) { _, _ = io.WriteString(c, name) })
		e.put(workload(name, address, change...))
	}
	add("one", 1, of(appHost))
	add("two", 2, of(appHost))
	add("remote", 3, of(appHost, "far.app.svc.cluster.local"), func(w *workloadapi.Workload) {
		w.Network, w.NetworkGateway = "net2", &workloadapi.GatewayAddress{}
	})
	add("sick", 4, of(appHost, "sick.app.svc.cluster.local"), func(w *workloadapi.Workload) { w.Status = workloadapi.WorkloadStatus_UNHEALTHY })
	add("plain", 5, of(appHost, "plain.app.svc.cluster.local"), func(w *workloadapi.Workload) { w.TunnelProtocol = workloadapi.TunnelProtocol_NONE })
	e.put(
		workload("down", e.prefix+"6", of("down.app.svc.cluster.local")),
		service(appHost, e.prefix+"200"), service("far.app.svc.cluster.local", e.prefix+"201"), service("sick.app.svc.cluster.local", e.prefix+"202"),
		service("plain.app.svc.cluster.local", e.prefix+"203"), service("down.app.svc.cluster.local", e.prefix+"204"),
	)
	return e
}

// TestEastWest: an east-west gateway leads to local, healthy endpoints of the
// service that is named, and nowhere else.
func TestEastWest(t *testing.T) {
	t.Parallel()
	e := newEndpoints(t)
	g := &gateway.Gateway{Network: "net1", Store: wds.NewStore(func() {}), EastWest: true}
	open := func(authority string) (*hbone.Stream, int) {
		t.Helper()
		st, err := g.Open(t.Context(), hbone.Request{Peer: webID, Authority: authority})
		if err == nil {
			return st, http.StatusOK
		}
		refusal, ok := errors.AsType[*hbone.Refusal](err)
		if !ok || refusal.Reason == "" {
			t.Fatalf("%s: %v", authority, err)
		}
		return nil, refusal.Status
	}
	if _, status := open(appHost + ":80"); status != http.StatusServiceUnavailable {
		t.Errorf("before istiod has spoken: %d", status)
	}
	e.follow(g.Store)
	seen := map[string]int{}
	for range 20 {
		for _, authority := range []string{appHost + ":80", "app.app:80", e.prefix + "200:80"} {
			st, status := open(authority)
			if st == nil {
				t.Fatalf("%s: %d", authority, status)
			}
			name, err := io.ReadAll(st.Conn)
			_ = st.Conn.Close()
			if err != nil || st.Verdict != "passed on to app/"+string(name) {
				t.Errorf("%s: %q, %v, %q", authority, name, err, st.Verdict)
			}
			seen[string(name)]++
		}
	}
	if seen["one"] == 0 || seen["two"] == 0 || len(seen) != 2 {
		t.Errorf("%v", seen)
	}
	for authority, want := range map[string]int{
		"none.app.svc.cluster.local:80":  404,
		"app:80":                         404,
		"app.other.svc.cluster.local:80": 404,
		"127.0.0.1:80":                   404,
		e.prefix + "1:80":                404, // a Pod is no service
		e.prefix + "1:15008":             404,
		appHost + ":81":                  404,
		appHost + ":15008":               404,
		appHost:                          400,
		appHost + ":99999":               400,
		"":                               400,
		"far.app.svc.cluster.local:80":   503,
		e.prefix + "201:80":              503,
		"sick.app.svc.cluster.local:80":  503,
		"plain.app.svc.cluster.local:80": 503,
		"down.app.svc.cluster.local:80":  503,
	} {
		if _, status := open(authority); status != want {
			t.Errorf("%s: %d, want %d", authority, status, want)
		}
	}
	for name, l := range e.inbounds {
		if n := l.all.Load(); (n > 0) != (name == "one" || name == "two") {
			t.Errorf("%d connections to %s", n, name)
		}
	}
}

// TestWaypoint: a waypoint goes to endpoints under its own identity, and only to
// those that are who istiod says they are.
func TestWaypoint(t *testing.T) {
	t.Parallel()
	i := newIstiod(t, newAuthority(t, "a"))
	prefix := fmt.Sprintf("127.3.%d.", meshes.Add(1))
	target := echo(t)
	o := &opener{stream: func(s *hbone.Stream) { s.Verdict = "let in" }}
	denied := &opener{err: &hbone.Refusal{Status: http.StatusUnauthorized, Reason: "policy p says no"}}
	toTarget := func(ctx context.Context, r hbone.Request) (*hbone.Stream, error) {
		st, err := o.Open(ctx, hbone.Request{Peer: r.Peer, Authority: target.Addr().String()})
		o.mu.Lock()
		o.requests[len(o.requests)-1].Authority = r.Authority
		o.mu.Unlock()
		return st, err
	}
	appIdentity := i.identity(appID)
	serve(t, appIdentity, toTarget, prefix+"1:15008")
	serve(t, appIdentity, denied.Open, prefix+"2:15008")
	liar := serve(t, appIdentity, toTarget, prefix+"3:15008")
	i.put(
		service(appHost, prefix+"200"), workload("one", prefix+"1", of(appHost)),
		service("not.app.svc.cluster.local", prefix+"201"), workload("not", prefix+"2", of("not.app.svc.cluster.local")),
		workload("liar", prefix+"3", func(w *workloadapi.Workload) { w.ServiceAccount = "somebody" }),
		workload("far", prefix+"4", of("far.app.svc.cluster.local"), func(w *workloadapi.Workload) { w.Network = "net2" }),
		service("far.app.svc.cluster.local", prefix+"202"),
	)
	g := &gateway.Gateway{Network: "net1", Store: wds.NewStore(func() {}), Identity: i.identity(waypointID)}
	i.follow(g.Store)
	for authority, want := range map[string]string{
		appHost + ":80":      prefix + "1:8080",
		prefix + "200:80":    prefix + "1:8080",
		prefix + "1:9999":    prefix + "1:9999", // a workload by its address
		"app.app:80":         prefix + "1:8080",
		"not.app:80":         "",
		prefix + "3:8080":    "",
		prefix + "4:8080":    "",
		"far.app:80":         "",
		"nobody.anywhere:80": "",
	} {
		before := len(o.seen())
		st, err := g.Open(t.Context(), hbone.Request{Peer: webID, Authority: authority})
		if want == "" {
			if err == nil {
				_ = st.Conn.Close()
				t.Errorf("%s: opened", authority)
			}
			if got := o.seen()[before:]; len(got) > 0 {
				t.Errorf("%s: led to %v", authority, got)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", authority, err)
			continue
		}
		if err := exchange(st.Conn, []byte("hello")); err != nil || st.Verdict != "let in" {
			t.Errorf("%s: %v, verdict %q", authority, err, st.Verdict)
		}
		_ = st.Conn.Close()
		if d := cmp.Diff([]hbone.Request{{Peer: waypointID, Authority: want}}, o.seen()[before:]); d != "" {
			t.Errorf("%s: %s", authority, d)
		}
	}
	if got := denied.seen(); len(got) != 1 || got[0].Peer != waypointID {
		t.Errorf("the endpoint that denies saw %v", got)
	}
	if liar.all.Load() == 0 {
		t.Error("the endpoint with another identity was not even tried")
	}
	g.Identity = svid.New(i.svidConfig(waypointID), discard)
	if _, err := g.Open(t.Context(), hbone.Request{Peer: webID, Authority: appHost + ":80"}); err == nil {
		t.Error("opened without a certificate")
	}
}

// TestThroughGateway: from one network to another, HBONE in HBONE, with ztunnels
// and gateways of both; the destination sees the caller itself.
func TestThroughGateway(t *testing.T) {
	t.Parallel()
	near, one, gw := twoNetworks(t)
	web, other := near.web, near.other
	direct := func(from *pod, gatewayAddress string) answer {
		t.Helper()
		got, s := from.dial(t, appHost+":80", gatewayAddress)
		if s != nil {
			if err := exchange(s, random(1<<20)); err != nil {
				t.Error(err)
			}
			_ = s.Close()
		}
		return got
	}
	path := func(from string) string {
		return from + " -> east-west gateway " + gw.Addr().String() + " -> HBONE in HBONE to " + appHost + ":80"
	}
	for name, gatewayAddress := range map[string]string{"by istiod's word": "", "by the caller's word": gw.Addr().String()} {
		want := answer{200, "AuthorizationPolicy app/to-web allows cluster.local/ns/shop/sa/web", path("shop/web"), "app/one"}
		if d := cmp.Diff(want, direct(web, gatewayAddress)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		got := direct(other, gatewayAddress)
		if got.Status != http.StatusForbidden || !strings.HasSuffix(got.Verdict, "the caller is cluster.local/ns/shop/sa/other") || got.Path != path("shop/other") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// The gateway's own refusals are no denials.
	for _, target := range []string{"none.app.svc.cluster.local:80", appHost + ":81", "short:80"} {
		if got, _ := web.dial(t, target, gw.Addr().String()); got.Status != http.StatusServiceUnavailable || got.Verdict == "" {
			t.Errorf("%s: %+v", target, got)
		}
	}
	// A service whose names in certificates are others is not this one.
	svc := service(appHost, near.prefix+"200")
	svc.SubjectAltNames = []string{"spiffe://cluster.local/ns/app/sa/somebody"}
	before := one.app.all.Load()
	near.put(svc)
	got := web.reaches(t, appHost+":80", http.StatusServiceUnavailable)
	if !strings.Contains(got.Verdict, "want spiffe://cluster.local/ns/app/sa/somebody") {
		t.Errorf("%+v", got)
	}
	web.call(t, appHost+":80")
	if after := one.app.all.Load(); after > before+1 {
		t.Errorf("%d connections to a Pod that was not meant", after-before)
	}
}

// twoNetworks are shop on net1 and app/one on net2, which allows shop/web only,
// behind an east-west gateway that net1 has heard of.
func twoNetworks(t *testing.T) (*shop, *pod, *counted) {
	t.Helper()
	root := newAuthority(t, "a")
	far := newMesh(t, root, "net2")
	one := far.pod("app", "one", "app", 1)
	far.join(one, of(appHost))
	svc := service(appHost, far.prefix+"200")
	svc.Addresses[0].Network = "net2"
	far.put(svc, about("to-web", security.Action_ALLOW, webID))
	far.follow(far.zt.Store())
	g := &gateway.Gateway{Network: "net2", Store: wds.NewStore(func() {}), EastWest: true}
	far.follow(g.Store)
	gw := serve(t, far.identity(gatewayID), g.Open, far.prefix+"100:15008")

	near := &shop{mesh: newMesh(t, root, "net1")}
	near.web, near.other = near.join(near.pod("shop", "web", "web", 1)), near.join(near.pod("shop", "other", "other", 2))
	svc = service(appHost, near.prefix+"200")
	svc.SubjectAltNames = []string{appID}
	near.put(svc, workload("split", near.prefix+"99", of(appHost), func(w *workloadapi.Workload) {
		// As istiod says it: no address of the Pods, but of their network's gateway.
		w.Uid, w.Addresses, w.Network, w.ServiceAccount = "net2/SplitHorizonWorkload/app", nil, "net2", ""
		w.NetworkGateway = &workloadapi.GatewayAddress{
			Destination:   &workloadapi.GatewayAddress_Address{Address: &workloadapi.NetworkAddress{Network: "net2", Address: ip(far.prefix + "100")}},
			HboneMtlsPort: 15008,
		}
	}))
	near.follow(near.zt.Store())
	near.ready(t, near.web, near.other.IP+":8080")
	near.ready(t, near.other, near.web.IP+":8080")
	near.web.reaches(t, appHost+":80", http.StatusOK)
	return near, one, gw
}

// TestThroughWaypoint: a service with a waypoint is reached through it, and the
// destination sees the waypoint.
func TestThroughWaypoint(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	g := &gateway.Gateway{Network: "net1", Store: wds.NewStore(func() {}), Identity: s.identity(waypointID)}
	s.follow(g.Store)
	serve(t, g.Identity, g.Open, s.prefix+"100:15008")
	const host = "waypoint.app.svc.cluster.local"
	withWaypoint := service(appHost, s.vip)
	withWaypoint.Waypoint = &workloadapi.GatewayAddress{
		Destination: &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{Namespace: "app", Hostname: host}},
	}
	s.put(withWaypoint, about("to-waypoint", security.Action_ALLOW, waypointID))
	// Without its waypoint a service can't be reached: nothing goes around it.
	got := s.web.reaches(t, appHost+":80", http.StatusServiceUnavailable)
	if !strings.Contains(got.Verdict, "waypoint") {
		t.Errorf("%+v", got)
	}
	s.put(service(host, s.prefix+"201"), workload("waypoint", s.prefix+"100", of(host), func(w *workloadapi.Workload) { w.ServiceAccount = "waypoint" }))
	got = s.web.reaches(t, appHost+":80", http.StatusOK)
	want := answer{200, "AuthorizationPolicy app/to-waypoint allows cluster.local/ns/app/sa/waypoint", "shop/web -> waypoint " + s.prefix + "100:15008", got.Greeter}
	if d := cmp.Diff(want, got); d != "" || !strings.HasPrefix(got.Greeter, "app/") {
		t.Error(d, got.Greeter)
	}
	if got := s.web.reaches(t, s.one.IP+":8080", http.StatusForbidden); got.Path != "shop/web -> HBONE to app/one" {
		t.Errorf("around the waypoint: %+v", got)
	}
	byAddress := service(appHost, s.vip)
	byAddress.Waypoint = &workloadapi.GatewayAddress{
		Destination:   &workloadapi.GatewayAddress_Address{Address: &workloadapi.NetworkAddress{Network: "net1", Address: ip(s.prefix + "201")}},
		HboneMtlsPort: 15008,
	}
	s.put(byAddress)
	eventually(t, "the change", func() bool { return s.zt.Store().ByHost(appHost).GetWaypoint().GetAddress() != nil })
	if got := s.web.call(t, appHost+":80"); got.Status != 200 || got.Path != want.Path {
		t.Errorf("a waypoint by its service's address: %+v", got)
	}
}
