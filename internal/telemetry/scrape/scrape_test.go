package scrape

import (
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/topology"
)

const ztunnelLabels = `source_workload="cart",source_canonical_service="cart",source_workload_namespace="shop",source_principal="spiffe://cluster.local/ns/shop/sa/cart",` +
	`source_cluster="c1",destination_service="api.pay.svc.cluster.local",destination_service_name="api",destination_service_namespace="pay",destination_workload="unknown",` +
	`destination_principal="unknown",destination_cluster="unknown",request_protocol="tcp",connection_security_policy="mutual_tls"`

// site is a cluster's proxies, each a page of metrics.
type site struct {
	*testing.T
	scraper *Scraper
	now     time.Time
}

func newSite(t *testing.T) *site {
	s := &site{T: t, scraper: New(Config{IstioNamespace: "istio-system", Log: slog.New(slog.DiscardHandler)}), now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	return s
}

// serve adds a proxy whose n-th answer is pages[n], the last one for ever.
func (s *site) serve(name string, k kind, pages ...string) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i := min(int(n.Add(1))-1, len(pages)-1)
		_, _ = fmt.Fprint(w, pages[i])
	}))
	s.Cleanup(srv.Close)
	ns, workload, _ := strings.Cut(name, "/")
	s.scraper.targets.all[name] = &target{name: name, namespace: ns, workload: workload, kind: k, url: srv.URL}
}

func (s *site) round() *topology.Report {
	s.now = s.now.Add(Every)
	return s.scraper.round(s.Context(), s.now.Add(-Every), s.now)
}

func TestZtunnel(t *testing.T) {
	s := newSite(t)
	page := func(reporter string, opened, sent, failed int) string {
		return fmt.Sprintf(`# HELP istio_tcp_connections_opened The total number of TCP connections opened.
# TYPE istio_tcp_connections_opened counter
istio_tcp_connections_opened_total{reporter=%[1]q,%[2]s,response_flags="-"} %[3]d
istio_tcp_sent_bytes_total{reporter=%[1]q,%[2]s,response_flags="-"} %[4]d
istio_tcp_connections_failed_total{reporter=%[1]q,%[2]s,response_flags="DENY"} %[5]d
workload_manager_active_proxy_count 3
# EOF
`, reporter, ztunnelLabels, opened, sent, failed)
	}
	// Two nodes; the second restarts and counts from 0.
	s.serve("istio-system/zt-1", kindZtunnel, page("source", 1000, 5000, 2), page("source", 1010, 9000, 5))
	s.serve("istio-system/zt-2", kindZtunnel, page("source", 70, 100, 0), page("source", 3, 10, 0))
	if r := s.round(); len(r.Edges) != 0 {
		t.Errorf("what was counted before the agent came is not of its first interval: %+v", r.Edges)
	}
	r := s.round()
	want := []topology.Observation{{
		By: topology.BySource, From: topology.End{Cluster: "c1", Namespace: "shop", Service: "cart", Principal: "cluster.local/ns/shop/sa/cart"},
		To: topology.End{Namespace: "pay", Service: "api"}, Protocol: "tcp", MTLS: topology.MTLSYes,
		TCP: topology.TCPCounts{Opened: 13, Failed: 3, Received: 4010}, Failures: map[string]float64{"DENY": 3},
	}}
	if diff := cmp.Diff(want, r.Edges); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]topology.Scrape{{Source: "ztunnel", Targets: 2, Up: 2, Series: 6}}, r.Scrapes, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Took" }, cmp.Ignore())); diff != "" {
		t.Error(diff)
	}
	if r.Sequence != 2 || r.To.Sub(r.From) != Every {
		t.Errorf("report %d of %s", r.Sequence, r.To.Sub(r.From))
	}
}

func TestWaypoint(t *testing.T) {
	s := newSite(t)
	labels := strings.ReplaceAll(ztunnelLabels, `"tcp"`, `"http"`)
	page := func(ok, failed, missing int) string {
		out := ""
		for code, n := range map[string]int{"200": ok, "503": failed, "404": missing} {
			out += fmt.Sprintf("istio_requests_total{reporter=\"waypoint\",%s,response_code=%q,grpc_response_status=\"\",response_flags=\"-\"} %d\n", labels, code, n)
		}
		for le, n := range map[string]int{"5": 0, "10": ok, "25": ok + missing, "50": ok + missing, "30000": ok + missing, "+Inf": ok + missing + failed} {
			out += fmt.Sprintf("istio_request_duration_milliseconds_bucket{reporter=\"waypoint\",%s,response_code=\"200\",le=%q} %d\n", labels, le, n)
		}
		out += fmt.Sprintf("istio_request_duration_milliseconds_sum{reporter=\"waypoint\",%s,response_code=\"200\"} %d\n", labels, 8*ok)
		out += fmt.Sprintf("istio_request_bytes_bucket{reporter=\"waypoint\",%s,le=\"5\"} 9\n", labels)
		return out + "envoy_cluster_upstream_rq{a=\"b\"} 1\n"
	}
	s.serve("pay/waypoint", kindWaypoint, page(0, 0, 0), page(100, 5, 3))
	// The ztunnel beside the waypoint sees the waypoint call the server: that is no edge.
	from := strings.NewReplacer(`source_workload="cart"`, `source_workload="waypoint"`, `source_workload_namespace="shop"`, `source_workload_namespace="pay"`).Replace(ztunnelLabels)
	s.serve("istio-system/zt", kindZtunnel, "\n", "istio_tcp_connections_opened_total{reporter=\"source\","+from+"} 10\n")
	s.round()
	r := s.round()
	if len(r.Edges) != 1 {
		t.Fatalf("%d edges: %+v", len(r.Edges), r.Edges)
	}
	e := r.Edges[0]
	if want := (topology.Classes{Success: 100, ClientError: 3, ServerError: 5}); e.Requests != want || e.By != topology.ByWaypoint || e.Protocol != "http" {
		t.Errorf("%s %s: %+v", e.By, e.Protocol, e.Requests)
	}
	var buckets [topology.NumBuckets]float64
	buckets[3], buckets[4], buckets[13] = 100, 3, 5 // (5,10], (10,25], beyond
	if e.Latency == nil || e.Latency.Buckets != buckets || e.Latency.Sum != 800 {
		t.Errorf("latency %+v", e.Latency)
	}
	if diff := cmp.Diff(map[string]float64{"200": 100, "503": 5, "404": 3}, e.Codes); diff != "" {
		t.Error(diff)
	}
}

// Nobody but a waypoint speaks as one, and a gateway only for its own namespace.
func TestReporters(t *testing.T) {
	for _, c := range []struct {
		kind     kind
		ns, says string
		want     topology.Reporter
	}{
		{kindWaypoint, "pay", "waypoint", topology.ByWaypoint},
		{kindWaypoint, "pay", "source", ""},
		{kindGateway, "evil", "waypoint", ""},
		{kindGateway, "evil", "source", ""},
		{kindGateway, "shop", "source", topology.BySource},
		{kindZtunnel, "istio-system", "destination", topology.ByDestination},
		{kindZtunnel, "istio-system", "waypoint", ""},
		{kindIstiod, "istio-system", "source", ""},
	} {
		_, err := parse(strings.NewReader("istio_requests_total{reporter=\""+c.says+"\","+ztunnelLabels+"} 1\n"), func(m *sample) {
			if got, _ := m.labels.reporter(&target{kind: c.kind, namespace: c.ns}); got != c.want {
				t.Errorf("%s in %s as %s: %q, want %q", c.kind, c.ns, c.says, got, c.want)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A flood is capped, and said so.
func TestCaps(t *testing.T) {
	s := newSite(t)
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, "istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"w%d\",source_workload_namespace=\"x\",destination_service_name=\"api\",destination_service_namespace=\"pay\"} %d\n", i, i+1)
	}
	s.serve("istio-system/zt", kindZtunnel, "\n", b.String())
	s.round()
	r := s.round()
	if len(r.Edges) != maxEdgesPerService+1 {
		t.Errorf("%d edges", len(r.Edges))
	}
	sum := 0.0
	for _, e := range r.Edges {
		sum += e.TCP.Opened
	}
	if sum != 1000*1001/2 {
		t.Errorf("%v connections: the cap must not lose any", sum)
	}
	if diff := cmp.Diff([]topology.CapHit{{Cap: "edgesPerService", Limit: maxEdgesPerService, Dropped: 800, Example: "pay/api"}}, r.Caps); diff != "" {
		t.Error(diff)
	}
}

func TestUnreadable(t *testing.T) {
	s := newSite(t)
	s.serve("istio-system/zt", kindZtunnel, "istio_tcp_connections_opened_total{reporter=\"source\"\n", "istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"a\"} 1\nistio_tcp_connections_opened_total{broken\n")
	s.scraper.targets.all["istio-system/gone"] = &target{name: "istio-system/gone", kind: kindZtunnel, url: "http://127.0.0.1:1/"}
	r := s.round()
	if sc := r.Scrapes[0]; sc.Targets != 2 || sc.Up != 0 || sc.Error == "" {
		t.Errorf("%+v", sc)
	}
}

func TestProbes(t *testing.T) {
	s := newSite(t)
	s.scraper.Probed("c2", 10*time.Millisecond, "")
	s.scraper.Probed("c2", 20*time.Millisecond, "")
	s.scraper.Probed("c2", 0, "refused")
	want := []topology.ProbeResult{{To: "c2", Sent: 3, Lost: 1, Min: 10 * time.Millisecond, Mean: 15 * time.Millisecond, Max: 20 * time.Millisecond, Error: "refused"}}
	if diff := cmp.Diff(want, s.round().Probes); diff != "" {
		t.Error(diff)
	}
	if p := s.round().Probes; p != nil {
		t.Errorf("told twice: %+v", p)
	}
}

func TestTargetOf(t *testing.T) {
	pod := func(ns string, labels, notes map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"namespace": ns, "name": "p", "labels": labels, "annotations": notes},
			"status":   map[string]any{"podIP": "10.1.2.3", "phase": "Running"},
		}}
	}
	for name, c := range map[string]struct {
		u    *unstructured.Unstructured
		want string
	}{
		"ztunnel":           {pod("istio-system", map[string]any{"app": "ztunnel"}, map[string]any{"prometheus.io/port": "15020"}), "ztunnel http://10.1.2.3:15020/stats/prometheus"},
		"istiod":            {pod("istio-system", map[string]any{"app": "istiod"}, nil), "istiod http://10.1.2.3:15014/metrics"},
		"one who would be":  {pod("evil", map[string]any{"app": "ztunnel"}, nil), ""},
		"waypoint":          {pod("pay", map[string]any{"gateway.networking.k8s.io/gateway-name": "waypoint", "gateway.istio.io/managed": "istio.io-mesh-controller"}, nil), "waypoint http://10.1.2.3:15020/stats/prometheus"},
		"east-west gateway": {pod("istio-system", map[string]any{"gateway.networking.k8s.io/gateway-name": "ew", "gateway.istio.io/managed": "istio.io-eastwest-controller"}, nil), ""},
		"elsewhere":         {pod("shop", map[string]any{"gateway.networking.k8s.io/gateway-name": "in"}, map[string]any{"prometheus.io/port": "99999999", "prometheus.io/path": "http://evil"}), "gateway http://10.1.2.3:15020/stats/prometheus"},
	} {
		got := ""
		if x, ok := targetOf(c.u, "istio-system"); ok {
			got = string(x.kind) + " " + x.url
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Whatever a proxy answers, the scraper stands, and says only numbers that the table takes.
func FuzzParse(f *testing.F) {
	f.Add("istio_requests_total{reporter=\"waypoint\"," + ztunnelLabels + ",response_code=\"200\"} 5\n")
	f.Add("istio_request_duration_milliseconds_bucket{reporter=\"waypoint\",le=\"NaN\"} NaN\n")
	f.Add("istio_tcp_sent_bytes_total{a=\"\\\n\"} -1e999")
	f.Fuzz(func(t *testing.T, text string) {
		c, r := newCounters(), newRollup(nil)
		tg := &target{kind: kindWaypoint, read: true}
		for range 2 {
			c.next()
			_, _ = parse(strings.NewReader(text), func(s *sample) { r.add(tg, s, c.increment("t", s, false)) })
		}
		edges, _ := r.finish()
		table := topology.New(topology.Config{})
		at := time.Unix(1e9, 0)
		if err := table.Apply(&topology.Report{Cluster: "c", Epoch: "e", Sequence: 1, From: at.Add(-Every), To: at, Edges: edges}, at); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzAgainstExpfmt compares with Prometheus' own parser, on lines as proxies write them: whatever is in the labels, both read the same.
func FuzzAgainstExpfmt(f *testing.F) {
	f.Add("a\\b\"c\nd", "}", 1.5, true)
	f.Add("", "{x=\"y\"},", math.Inf(1), false)
	f.Fuzz(func(t *testing.T, a, b string, value float64, stamp bool) {
		if !utf8.ValidString(a) || !utf8.ValidString(b) || len(a)+len(b) > 1000 || strings.ContainsAny(a+b, "\r") {
			return
		}
		escape := strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)
		line := fmt.Sprintf(`istio_build{a="%s",b="%s",} %v`, escape.Replace(a), escape.Replace(b), value)
		if stamp {
			line += " 1700000000000"
		}
		p := expfmt.NewTextParser(model.UTF8Validation)
		families, err := p.TextToMetricFamilies(strings.NewReader(line + "\n"))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		m := families["istio_build"].GetMetric()[0]
		want := labels{}
		for _, l := range m.GetLabel() {
			want = append(want, label{l.GetName(), l.GetValue()})
		}
		n, err := parse(strings.NewReader(line), func(s *sample) {
			v := m.GetUntyped().GetValue()
			if !slices.Equal(s.labels, want) || s.value != v && !(math.IsNaN(s.value) && math.IsNaN(v)) {
				t.Errorf("%q: %v %v, want %v %v", line, s.labels, s.value, want, v)
			}
		})
		if n != 1 || err != nil {
			t.Errorf("%q: %d samples, %v", line, n, err)
		}
	})
}

// BenchmarkRound reads a busy cluster: 20 waypoints with 250 edges each.
func BenchmarkRound(b *testing.B) {
	s := New(Config{IstioNamespace: "istio-system", Log: slog.New(slog.DiscardHandler)})
	var page strings.Builder
	for i := range 250 {
		l := fmt.Sprintf("reporter=\"waypoint\",source_workload=\"w%d\",source_workload_namespace=\"x\",destination_service_name=\"api\",destination_service_namespace=\"pay%d\",response_code=\"200\"", i, i/100)
		fmt.Fprintf(&page, "istio_requests_total{%s} %d\n", l, i)
		for _, m := range []string{"istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"} {
			for _, le := range topology.Bounds() {
				fmt.Fprintf(&page, "%s_bucket{%s,le=\"%v\"} 5\n", m, l, le)
			}
			fmt.Fprintf(&page, "%s_sum{%s} 5\n", m, l)
		}
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, page.String()) }))
	defer srv.Close()
	for i := range 20 {
		name := fmt.Sprintf("pay%d/waypoint", i)
		s.targets.all[name] = &target{name: name, namespace: fmt.Sprintf("pay%d", i), kind: kindWaypoint, url: srv.URL}
	}
	b.ReportAllocs()
	for b.Loop() {
		r := s.round(b.Context(), time.Unix(0, 0), time.Unix(15, 0))
		if r.Scrapes[0].Up != 20 {
			b.Fatal(r.Scrapes)
		}
	}
}
