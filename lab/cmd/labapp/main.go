// Command labapp is the demo application of the lab: it stands in for the
// images of bookinfo, payments and billing.
//
// In go HTTP requests on $PORT; out comes JSON that says which service,
// cluster and Pod answered, and what the services it calls said. Environment:
//
//	SERVICE  name in the answer (default: from the Pod's name)
//	CLUSTER  name of the cluster, NAMESPACE, POD: copied into the answer
//	PORT     port to listen on (default 9080)
//	CALLS    space-separated URLs to call for each request
//	SLOW     how long a request takes, in the middle, e.g. 400ms
//	ERRORS   share of requests answered with 503, e.g. 0.12
//	TRAFFIC  space-separated URL@PERIOD: URLs called for ever, each about once a PERIOD
//	OTLP     HOST:PORT to which spans are sent (gRPC); none without it
//
// Paths: /health answers "ok"; /call?url=URL calls URL and reports status,
// time and body, so that a test can drive traffic from inside a Pod; every
// other path answers with the description and the results of CALLS.
// Trace headers are passed on. In a Pod that is in the mesh, calls go through the
// data plane of that Pod (mesh.go). It must not keep state.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// traceHeaders are copied from a request to the calls it causes.
func traceHeaders() []string {
	return []string{"traceparent", "tracestate", "x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "b3"}
}

// answer describes who served a request.
type answer struct {
	Service   string   `json:"service"`
	Namespace string   `json:"namespace,omitempty"`
	Cluster   string   `json:"cluster,omitempty"`
	Pod       string   `json:"pod"`
	Path      string   `json:"path"`
	Calls     []called `json:"calls,omitempty"`
}

// called is the outcome of one call to another service.
type called struct {
	URL    string          `json:"url"`
	Status int             `json:"status,omitempty"`
	Millis int64           `json:"millis"`
	Error  string          `json:"error,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

// app is the server and its identity.
type app struct {
	self   answer
	calls  []string
	client *http.Client
	behave behave
	spans  *spans
}

func main() {
	if err := run(); err != nil {
		slog.Error("labapp failed", "error", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	a := newApp(host, os.Getenv)
	go a.spans.run(ctx)
	a.drive(ctx, os.Getenv("TRAFFIC"))
	srv := &http.Server{Addr: ":" + env("PORT", "9080"), Handler: a, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = srv.Shutdown(grace)
	}()
	slog.Info("listening", "address", srv.Addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func env(key, or string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return or
}

// newApp reads the identity from the environment. A Pod made from the stock
// sample has none: then the Pod's name, less its two hashes and version, is
// the service.
func newApp(host string, getenv func(string) string) *app {
	a := &app{
		self: answer{
			Service: getenv("SERVICE"), Namespace: getenv("NAMESPACE"),
			Cluster: getenv("CLUSTER"), Pod: getenv("POD"),
		},
		calls: strings.Fields(getenv("CALLS")),
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DialContext: dialMesh, DisableKeepAlives: getenv("OTLP") != "", // who is watched makes connections to be seen
		}},
	}
	if a.self.Pod == "" {
		a.self.Pod = host
	}
	if a.self.Service == "" {
		a.self.Service, _, _ = strings.Cut(a.self.Pod, "-")
	}
	a.behave.slow, _ = time.ParseDuration(getenv("SLOW"))
	a.behave.errors, _ = strconv.ParseFloat(getenv("ERRORS"), 64)
	a.spans = newSpans(getenv("OTLP"), a.self)
	return a
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/health":
		_, _ = io.WriteString(w, "ok\n")
	case "/call":
		url := r.URL.Query().Get("url")
		if url == "" {
			http.Error(w, "say which URL to call: /call?url=http://details.bookinfo:9080/", http.StatusBadRequest)
			return
		}
		a.client.CloseIdleConnections() // a connection stays with one endpoint, and a test wants to see them all
		reply(w, a.call(r.Context(), r.Header, url))
	default:
		span := a.spans.start(r.Header, r.Method+" "+r.URL.Path, kindServer)
		failed := a.behave.fails()
		defer func() { span.end(failed) }()
		out := a.self
		out.Path = r.URL.Path
		out.Calls = make([]called, len(a.calls))
		var wg sync.WaitGroup
		for i, url := range a.calls {
			wg.Go(func() { out.Calls[i] = a.call(r.Context(), span.header(), url) }) //nolint:contextcheck // it is the request's
		}
		wg.Wait()
		a.behave.wait(r.Context())
		if failed {
			http.Error(w, "this service fails at times", http.StatusServiceUnavailable)
			return
		}
		reply(w, out)
	}
}

// call fetches url on behalf of a request with headers h.
func (a *app) call(ctx context.Context, h http.Header, url string) (c called) {
	c.URL = url
	start := time.Now()
	span := a.spans.start(h, "GET "+url, kindClient)
	defer func() {
		c.Millis = time.Since(start).Milliseconds()
		span.end(c.Error != "" || c.Status >= http.StatusInternalServerError)
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil) //nolint:gosec,nolintlint // calling what it is told to is what it is for; gosec sees it only at times
	if err != nil {
		c.Error = err.Error()
		return c
	}
	req.Header = span.header()
	resp, err := a.client.Do(req) //nolint:gosec,nolintlint // as above
	if err != nil {
		c.Error = err.Error()
		return c
	}
	defer resp.Body.Close()
	c.Status = resp.StatusCode
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case err != nil:
		c.Error = err.Error()
	case json.Valid(body):
		c.Body = body
	default:
		c.Body, _ = json.Marshal(string(body))
	}
	return c
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v)
}
