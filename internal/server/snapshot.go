package server

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/tokens"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/traces"
)

// savedSnapshot is what GET /snapshot answers: what translation knows, and no secret.
type savedSnapshot struct {
	Snapshot *mesh.Snapshot `json:"snapshot"`
	TakenAt  time.Time      `json:"takenAt"`
}

// savedTokens is what GET /tokens answers: every pair of clusters, and no credential.
type savedTokens struct {
	Pairs []tokens.Status `json:"pairs"`
	At    time.Time       `json:"at"`
	Off   bool            `json:"off,omitempty"`
}

// snapshotHandler serves the leader's latest Snapshot, for `meshctl policy` and bug reports, and what trust was decided from last, by policy, for `meshctl trust plan`: certificates and no key. It listens on loopback only: the right to forward to the Pod's port
// is the right to read it.
func (s *server) snapshotHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /snapshot", func(w http.ResponseWriter, r *http.Request) {
		rep := s.leading.Load()
		if rep == nil {
			http.Error(w, "this replica does not lead: ask the one that holds the Lease "+s.cfg.Namespace+"/"+s.cfg.Lease, http.StatusServiceUnavailable)
			return
		}
		v := rep.latest.Load()
		if v == nil || !v.warm {
			why := "there was no round yet"
			if v != nil {
				why = v.why
			}
			http.Error(w, "the management server has just started and does not know everything yet: "+why, http.StatusServiceUnavailable)
			return
		}
		s.answer(w, r, savedSnapshot{Snapshot: v.snapshot, TakenAt: v.at.UTC()})
	})
	mux.HandleFunc("GET /trust", func(w http.ResponseWriter, r *http.Request) {
		rep := s.leading.Load()
		if rep == nil {
			http.Error(w, "this replica does not lead: ask the one that holds the Lease "+s.cfg.Namespace+"/"+s.cfg.Lease, http.StatusServiceUnavailable)
			return
		}
		s.answer(w, r, rep.trust.Inputs())
	})
	mux.HandleFunc("GET /tokens", func(w http.ResponseWriter, r *http.Request) {
		rep := s.leading.Load()
		if rep == nil {
			http.Error(w, "this replica does not lead: ask the one that holds the Lease "+s.cfg.Namespace+"/"+s.cfg.Lease, http.StatusServiceUnavailable)
			return
		}
		s.answer(w, r, savedTokens{Pairs: rep.tokens.Pairs(), At: time.Now().UTC(), Off: s.cfg.RemoteSecrets.Off})
	})
	// What agents saw: the rows of the map, what can not be seen, and one trace; for bug reports.
	mux.HandleFunc("GET /topology", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.telemetry.Table().Snapshot(topology.Query{Level: topology.Level(r.URL.Query().Get("level")), Focus: r.URL.Query().Get("focus")}, time.Now())
		s.answerOr(w, r, v, err)
	})
	mux.HandleFunc("GET /telemetry", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.telemetry.Coverage(r.Context())
		s.answerOr(w, r, v, err)
	})
	mux.HandleFunc("GET /traces", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.telemetry.SearchTraces(r.Context(), traces.Query{Service: r.URL.Query().Get("service"), Errors: r.URL.Query().Has("errors")})
		s.answerOr(w, r, v, err)
	})
	mux.HandleFunc("GET /traces/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := traces.ParseTraceID(r.PathValue("id"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		v, err := s.telemetry.Trace(r.Context(), id, r.URL.Query().Has("raw"))
		s.answerOr(w, r, v, err)
	})
	s.auditHandlers(mux)
	return mux
}

// answerOr answers, or says what is wrong.
func (s *server) answerOr(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	s.answer(w, r, v)
}

// answer writes v as JSON, compressed for who understands that.
func (s *server) answer(w http.ResponseWriter, r *http.Request, v any) {
	w.Header().Set("Content-Type", "application/json")
	var out io.Writer = w
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer func() { _ = z.Close() }()
		out = z
	}
	if err := json.NewEncoder(out).Encode(v); err != nil {
		s.log.Warn("answer not delivered", "path", r.URL.Path, "error", err)
	}
}
