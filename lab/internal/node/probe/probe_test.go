package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestTracker(t *testing.T) {
	for _, c := range []struct {
		name             string
		healthy          bool
		success, failure int32
		answers          string // + and -
		want             string // the opinion after each answer; a capital where it changed
	}{
		{"ready at once", false, 1, 3, "++", "Hh"},
		{"ready after two", false, 2, 3, "+-++", "uuuH"},
		{"unready after three", false, 1, 3, "+---", "HhhU"},
		{"a success begins the count anew", true, 1, 3, "--+--", "hhhhh"},
		{"alive until three failures", true, 1, 3, "---", "hhU"},
		{"fails at once", true, 1, 1, "-", "U"},
		{"comes back", false, 1, 1, "-+-", "uHU"},
	} {
		tr := NewTracker(&corev1.Probe{SuccessThreshold: c.success, FailureThreshold: c.failure}, c.healthy)
		got := ""
		for _, a := range c.answers {
			changed := tr.Observe(a == '+')
			got += map[bool]map[bool]string{true: {true: "H", false: "U"}, false: {true: "h", false: "u"}}[changed][tr.Healthy]
		}
		if got != c.want {
			t.Errorf("%s: %s -> %s, want %s", c.name, c.answers, got, c.want)
		}
	}
}

// Times are those of a bubble, so the schedule is exact.
func TestRunSchedule(t *testing.T) {
	type seen struct {
		At      time.Duration
		Healthy bool
	}
	for _, c := range []struct {
		name  string
		kind  Kind
		probe corev1.Probe
		upAt  time.Duration // answers are good from here
		till  time.Duration
		want  []seen
		asked int
	}{
		{
			"readiness is asked eagerly until it passes", Readiness,
			corev1.Probe{PeriodSeconds: 10},
			100 * time.Millisecond, 15 * time.Second,
			[]seen{{140 * time.Millisecond, true}},
			5,
		}, // at 0, 20, 60, 140 ms, and 10 s later
		{
			"liveness keeps to its period", Liveness,
			corev1.Probe{PeriodSeconds: 5, FailureThreshold: 2},
			time.Hour, 12 * time.Second,
			[]seen{{5 * time.Second, false}},
			3,
		},
		{
			"startup waits first", Startup,
			corev1.Probe{PeriodSeconds: 1, InitialDelaySeconds: 3},
			0, 3500 * time.Millisecond,
			[]seen{{3 * time.Second, true}},
			1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), c.till)
				defer cancel()
				var got []seen
				asked := 0
				Run(ctx, c.kind, &c.probe, func(context.Context) (bool, string) {
					asked++
					return time.Since(began) >= c.upAt, "not yet"
				}, func(healthy, changed bool, _ string) {
					if changed {
						got = append(got, seen{time.Since(began), healthy})
					}
				})
				if diff := cmp.Diff(c.want, got); diff != "" || asked != c.asked {
					t.Errorf("asked %d times, want %d; changes (-want +got)\n%s", asked, c.asked, diff)
				}
			})
		})
	}
}

func TestChecks(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			if r.Host != "virtual" || r.Header.Get("X-A") != "b" || r.URL.RawQuery != "q=1" {
				w.WriteHeader(http.StatusBadRequest)
			}
		case "/elsewhere":
			http.Redirect(w, r, "http://another.invalid/", http.StatusFound)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	hs := health.NewServer()
	hs.SetServingStatus("bad", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(srv, hs)
	go srv.Serve(l)
	defer srv.Stop()

	port := func(addr net.Addr) int { return addr.(*net.TCPAddr).Port }
	plainPort, securePort, grpcPort := port(plain.Listener.Addr()), port(secure.Listener.Addr()), int32(port(l.Addr()))
	target := Target{
		IP: "127.0.0.1", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(plainPort)}},
		Exec: func(_ context.Context, cmd []string) (bool, string) { return cmd[0] == "true", "" },
	}
	bad, closed := "bad", 1
	get := func(path string, port intstr.IntOrString, scheme corev1.URIScheme) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port, Scheme: scheme, HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "virtual"}, {Name: "X-A", Value: "b"}}}}
	}
	for name, c := range map[string]struct {
		h    corev1.ProbeHandler
		want bool
	}{
		"http, named port": {get("/ok?q=1", intstr.FromString("web"), ""), true},
		"https":            {get("/ok?q=1", intstr.FromInt32(int32(securePort)), corev1.URISchemeHTTPS), true},
		"http 503":         {get("/bad", intstr.FromString("web"), ""), false},
		"unknown port":     {get("/ok", intstr.FromString("none"), ""), false},
		"redirect away":    {get("/elsewhere", intstr.FromString("web"), ""), true},
		"tcp":              {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString(strconv.Itoa(plainPort))}}, true},
		"tcp closed":       {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(closed))}}, false},
		"grpc":             {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: grpcPort}}, true},
		"grpc not serving": {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: grpcPort, Service: &bad}}, false},
		"exec":             {corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}, true},
		"exec fails":       {corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}, false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		ok, out := New(&corev1.Probe{ProbeHandler: c.h}, target)(ctx)
		cancel()
		if ok != c.want {
			t.Errorf("%s: %v (%s), want %v", name, ok, out, c.want)
		}
	}
}
