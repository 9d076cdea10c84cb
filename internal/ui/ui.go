// Package ui serves the one pane of glass: JSON for each page, one stream of changes, and the built web application.
//
// In: the management cluster's objects as the API server's cache has them, the audit log, the topology table. Out: HTTP on one port, GET only. It must not write anything but the audit
// record of who read certificates or the log, must not decide anything (what a status says is shown as it says it), and must not serve anything that it has not got from inside this process:
// no CDN, no token, no other site's page may read it (Host and Origin are checked, and a Content-Security-Policy is set).
package ui

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/topology"
)

// Log is what the UI needs of the audit log.
type Log interface {
	Append(ctx context.Context, records ...audit.Record) error
	Records(ctx context.Context, q audit.Query) iter.Seq2[audit.Row, error]
	Head(ctx context.Context) ([]byte, error)
}

// Config says what is shown.
type Config struct {
	// World reads what the API server has; its error is shown to people.
	World func(ctx context.Context) (*World, error)
	// Audit is the log; nil: it is not kept.
	Audit Log
	// Topology is who calls whom; nil: there is no telemetry.
	Topology *topology.Table
	// Traces are the spans that are kept; nil: none.
	Traces
	// Files is the built web application, with index.html at its top.
	Files fs.FS
	// Hosts that a browser may call the UI by, besides localhost and addresses of this machine; a name without a dot and names below it count as Services of the cluster.
	Hosts   []string
	Version string
	Demo    bool
	Now     func() time.Time
	Log     *slog.Logger
}

type server struct {
	Config
	hub *hub
}

// Handler serves the UI. ctx ends its streams.
func Handler(ctx context.Context, c Config) http.Handler {
	s := &server{Config: c}
	s.hub = newHub(ctx, s.signatures)
	mux := http.NewServeMux()
	for path, page := range map[string]func(r *http.Request) (any, error){
		"about": s.about, "now": s.now, "clusters": s.clusters, "clusters/{name}": s.cluster, "trust": s.trust, "policies": s.policies, "policies/{namespace}/{name}": s.policy,
		"segments": s.segments, "topology": s.topology, "edges/{id...}": s.edge, "telemetry": s.telemetry, "traces": s.traces, "traces/{id}": s.trace, "audit": s.records,
	} {
		mux.HandleFunc("GET /api/v1/"+path, s.json(page))
	}
	mux.HandleFunc("GET /api/v1/stream", s.hub.serve)
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusNotFound
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			status = http.StatusMethodNotAllowed // the UI changes nothing: kubectl and meshctl do
		}
		answerError(w, status, http.StatusText(status)+": "+r.Method+" "+r.URL.Path)
	})
	mux.Handle("/", s.files())
	return s.guard(mux)
}

// statusError is an error with the status to answer.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func notFound(text string) error   { return &statusError{http.StatusNotFound, text} }
func badRequest(text string) error { return &statusError{http.StatusBadRequest, text} }

// json answers what a page needs, with an ETag, so that what has not changed is not sent again.
func (s *server) json(page func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := page(r)
		if err != nil {
			status := http.StatusServiceUnavailable
			if e, ok := errors.AsType[*statusError](err); ok {
				status = e.status
			}
			answerError(w, status, err.Error())
			return
		}
		raw, err := json.Marshal(v)
		if err != nil {
			s.Log.Error("page not encoded", "path", r.URL.Path, "error", err)
			answerError(w, http.StatusInternalServerError, "the answer can't be encoded: see the server's log")
			return
		}
		sum := sha256.Sum256(raw)
		tag := `"` + hex.EncodeToString(sum[:12]) + `"`
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-cache")
		h.Set("Etag", tag)
		h.Set("Vary", "Accept-Encoding")
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		if len(raw) < 1024 || !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			_, _ = w.Write(raw)
			return
		}
		h.Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(raw)
		_ = z.Close()
	}
}

func answerError(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
}

// policyCSP lets the page load and call nothing but its own server.
const policyCSP = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"

// guard refuses other sites: a page elsewhere whose name resolves to this address (DNS rebinding) says its own Host, one that calls us says its own Origin.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policyCSP)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		if !s.ours(r.Host) {
			answerError(w, http.StatusMisdirectedRequest, "this server is not called "+r.Host+": use localhost (kubectl port-forward), or name the host in glooUi.hosts")
			return
		}
		if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" && strings.HasPrefix(r.URL.Path, "/api/") {
			answerError(w, http.StatusForbidden, "pages of other sites may not read this")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *server) ours(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(strings.TrimSuffix(host, "."), "[]"))
	if host == "localhost" || net.ParseIP(host) != nil || slices.Contains(s.Hosts, host) {
		return true
	}
	return host == "gloo-mesh-ui" || strings.HasPrefix(host, "gloo-mesh-ui.") && (strings.HasSuffix(host, ".svc") || strings.Contains(host, ".svc."))
}

// files serves the application: what has a hash in its name for ever, everything else anew; a path without a file is a page of the application.
func (s *server) files() http.Handler {
	static := http.FileServerFS(s.Files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		name := strings.TrimPrefix(r.URL.Path, "/")
		if strings.HasPrefix(name, "assets/") {
			if _, err := fs.Stat(s.Files, name); err != nil {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
				s.compressed(w, r, static)
				return
			}
			static.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-cache")
		if info, err := fs.Stat(s.Files, name); name == "" || err != nil || info.IsDir() {
			r.URL.Path = "/"
		}
		static.ServeHTTP(w, r)
	})
}

// compressed sends a file compressed; it is whole and without ranges then.
func (s *server) compressed(w http.ResponseWriter, r *http.Request, static http.Handler) {
	r.Header.Del("Range")
	w.Header().Set("Vary", "Accept-Encoding")
	z := &zipped{ResponseWriter: w}
	static.ServeHTTP(z, r)
	if z.zip != nil {
		_ = z.zip.Close()
	}
}

type zipped struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (z *zipped) WriteHeader(status int) {
	if status == http.StatusOK {
		z.Header().Del("Content-Length")
		z.Header().Set("Content-Encoding", "gzip")
		z.zip = gzip.NewWriter(z.ResponseWriter)
	}
	z.ResponseWriter.WriteHeader(status)
}

func (z *zipped) Write(p []byte) (int, error) {
	if z.zip != nil {
		return z.zip.Write(p)
	}
	return z.ResponseWriter.Write(p)
}
