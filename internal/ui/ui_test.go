package ui_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/topology"
	topologydemo "ambitmesh.dev/ambit/internal/topology/demo"
	"ambitmesh.dev/ambit/internal/ui"
	"ambitmesh.dev/ambit/internal/ui/demo"
)

func serve(t testing.TB, change func(*ui.Config)) *httptest.Server {
	t.Helper()
	m, err := demo.New(topologydemo.Small(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	c := ui.Config{World: m.World, Audit: m.Log(), Topology: m.Table, Traces: m, Files: ui.Files(), Version: "2.12.0", Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	ctx, stop := context.WithCancel(context.Background())
	srv := httptest.NewServer(ui.Handler(ctx, c))
	t.Cleanup(func() { stop(); srv.Close() })
	return srv
}

func ask(t testing.TB, srv *httptest.Server, method, path string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := io.Reader(resp.Body)
	if resp.Header.Get("Content-Encoding") == "gzip" {
		if in, err = gzip.NewReader(resp.Body); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(raw)
}

// Every page answers with what it is about; what is asked wrongly is said in words.
func TestPages(t *testing.T) {
	srv := serve(t, nil)
	for path, want := range map[string]string{
		"about": `"version":"2.12.0"`, "now": `"verdict":"`, "clusters": `"registeredBy":"jane.doe@bank.example.com"`, "clusters/cluster-1": `"istiods":[`, "trust": `"role":"Active"`,
		"policies": `"state":"Drifted"`, "policies/billing/billing-allow-payments": `"spec":{`, "topology": `"level":"namespace"`, "topology?level=service": `"names":[`, "telemetry": `"l4Only":`, "segments": `"hosts":["productpage.bookinfo.mesh.internal"]`,
		"traces?errors": `"errors":1`, "traces/00000000000000000000000000000004": `"transits":[`,
		"audit?name=cluster-1": `"act":"cluster.registered"`,
	} {
		if resp, body := ask(t, srv, http.MethodGet, "/api/v1/"+path); resp.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, without %s: %.300s", path, resp.StatusCode, want, body)
		}
	}
	for path, want := range map[string]string{
		"clusters/nobody": "404 no cluster nobody is registered", "policies/a/b": "404 there is no AccessPolicy a/b", "topology?level=galaxy": "400 level=", "topology?at=yesterday": "400 at=",
		"topology?level=neighbourhood&focus=x/y/z": "404 focus", "edges/x": "400 edge", "edges/a/b/c~d/e/f": "404 there was no traffic", "audit?clutser=x": "400 ", "traces/xyz": "400 trace ID", "traces/ffffffffffffffffffffffffffffffff": "404 no span of trace", "traces?slower=quite": "400 slower=", "nonsense": "404 Not Found",
	} {
		resp, body := ask(t, srv, http.MethodGet, "/api/v1/"+path)
		var e struct{ Error string }
		if err := json.Unmarshal([]byte(body), &e); err != nil || !strings.HasPrefix(resp.Status[:4]+e.Error, want) {
			t.Errorf("%s: %s %s, want %s", path, resp.Status, body, want)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		for _, path := range []string{"/api/v1/clusters", "/", "/clusters"} {
			if resp, _ := ask(t, srv, method, path); resp.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d: the UI changes nothing", method, path, resp.StatusCode)
			}
		}
	}
}

// Nothing that has not changed is sent again, and what is long is sent compressed.
func TestETag(t *testing.T) {
	srv := serve(t, func(c *ui.Config) { at := time.Now(); c.Now = func() time.Time { return at } })
	resp, _ := ask(t, srv, http.MethodGet, "/api/v1/policies", "Accept-Encoding", "gzip")
	tag := resp.Header.Get("Etag")
	if tag == "" || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v", resp.Header)
	}
	if resp, body := ask(t, srv, http.MethodGet, "/api/v1/policies", "If-None-Match", tag); resp.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("again: %d %s", resp.StatusCode, body)
	}
	if resp, _ := ask(t, srv, http.MethodGet, "/api/v1/clusters", "If-None-Match", tag); resp.StatusCode != http.StatusOK {
		t.Errorf("another page with that tag: %d", resp.StatusCode)
	}
}

// A page of another site can't read anything, whatever its name resolves to.
func TestOtherSites(t *testing.T) {
	srv := serve(t, func(c *ui.Config) { c.Hosts = []string{"mesh.bank.example.com"} })
	for _, tc := range []struct {
		want   int
		header []string
	}{
		{http.StatusOK, nil},
		{http.StatusOK, []string{"Host", "localhost:8090"}},
		{http.StatusOK, []string{"Host", "[::1]:8090"}},
		{http.StatusOK, []string{"Host", "gloo-mesh-ui.gloo-mesh.svc.cluster.local:8090"}},
		{http.StatusOK, []string{"Host", "mesh.bank.example.com"}},
		{http.StatusOK, []string{"Sec-Fetch-Site", "same-origin"}},
		{http.StatusMisdirectedRequest, []string{"Host", "evil.example.com"}},
		{http.StatusMisdirectedRequest, []string{"Host", "gloo-mesh-ui.evil.example.com"}},
		{http.StatusMisdirectedRequest, []string{"Host", "localhost.evil.example.com:8090"}},
		{http.StatusForbidden, []string{"Sec-Fetch-Site", "cross-site"}},
		{http.StatusForbidden, []string{"Sec-Fetch-Site", "same-site"}},
	} {
		resp, _ := ask(t, srv, http.MethodGet, "/api/v1/clusters", tc.header...)
		if resp.StatusCode != tc.want {
			t.Errorf("%q: %d, want %d", tc.header, resp.StatusCode, tc.want)
		}
		if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'self'") || strings.Contains(csp, "script-src") || resp.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%q: %v", tc.header, resp.Header)
		}
	}
}

// The application is served at every path that is a page; what has a hash in its name is kept for ever, and the first load stays small.
func TestApplication(t *testing.T) {
	srv := serve(t, nil)
	for _, path := range []string{"/", "/map?level=service", "/clusters/cluster-1", "/policies/a/b"} {
		resp, body := ask(t, srv, http.MethodGet, path)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `<div id="root">`) || resp.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
	_, index := ask(t, srv, http.MethodGet, "/")
	total := 0
	for part := range strings.SplitSeq(index, `"`) {
		if !strings.HasPrefix(part, "/assets/") {
			continue
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+part, nil)
		req.Header.Set("Accept-Encoding", "gzip")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") || resp.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s: %d %v", part, resp.StatusCode, resp.Header)
		}
		total += int(n)
	}
	if total == 0 || total > 200<<10 {
		t.Errorf("the first load is %d bytes compressed, of at most 200 KiB: is the application built? make web", total)
	}
	t.Logf("first load: %d KiB compressed", total>>10)
	if resp, _ := ask(t, srv, http.MethodGet, "/assets/nothing.js"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("an asset that is not there: %d", resp.StatusCode)
	}
}

// One stream tells of what changes.
func TestStream(t *testing.T) {
	var table *topology.Table
	made := topologydemo.New(topologydemo.Small())
	srv := serve(t, func(c *ui.Config) { table = c.Topology })
	resp, err := http.Get(srv.URL + "/api/v1/stream") //nolint:noctx // closed below
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := make(chan string, 100)
	go func() {
		in := bufio.NewScanner(resp.Body)
		for in.Scan() {
			lines <- in.Text()
		}
		close(lines)
	}()
	awaitLine := func(want string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case l, ok := <-lines:
				if !ok {
					t.Fatalf("the stream ended before %q", want)
				}
				if strings.HasPrefix(l, "data: ") && strings.Contains(l, want) {
					return
				}
			case <-deadline:
				t.Fatalf("not told of %q", want)
			}
		}
	}
	awaitLine(`"*"`) // who connects asks for everything
	for n := range 20 {
		time.Sleep(300 * time.Millisecond)
		for _, r := range made.Next(time.Now().Add(time.Duration(n) * time.Millisecond)) {
			r.Sequence += 1000
			_ = table.Apply(r, time.Now())
		}
		select {
		case l := <-lines:
			if strings.Contains(l, `"topology"`) {
				return
			}
		default:
		}
	}
	awaitLine(`"topology"`)
}

// What can't be read is said, and nothing is made up in its place.
func TestNothingKnown(t *testing.T) {
	srv := serve(t, func(c *ui.Config) {
		c.Audit, c.Topology = nil, nil
		c.World = func(context.Context) (*ui.World, error) { return &ui.World{}, nil }
	})
	if _, body := ask(t, srv, http.MethodGet, "/api/v1/now"); !strings.Contains(body, "no cluster is registered yet") {
		t.Error(body)
	}
	for _, path := range []string{"topology", "audit"} {
		if resp, body := ask(t, srv, http.MethodGet, "/api/v1/"+path); resp.StatusCode != http.StatusNotFound || !strings.Contains(body, `"error":"`) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	srv = serve(t, func(c *ui.Config) {
		c.World = func(context.Context) (*ui.World, error) { return nil, errors.New("the API server is away") }
	})
	if resp, body := ask(t, srv, http.MethodGet, "/api/v1/clusters"); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "the API server is away") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
