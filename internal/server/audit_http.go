package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ambitmesh.dev/ambit/internal/audit"
)

const (
	// auditLimit bounds the records of one answer, auditDefault how many there are when nobody says.
	auditLimit, auditDefault = 10_000, 100
	// exportTimeout bounds one export.
	exportTimeout = 30 * time.Minute
)

// auditHandlers answers questions about the audit log: GET /audit (JSON lines, one record each), /audit/head (the verifier key and the signed head) and /audit/export (jsonl with proofs,
// or csv). Each question is an act on record before it is answered: no record, no answer. Who asks is in the API server's own audit log: it lets them forward to this port, or not.
func (s *server) auditHandlers(mux *http.ServeMux) {
	mux.HandleFunc("GET /audit", s.auditList)
	mux.HandleFunc("GET /audit/head", s.auditHead)
	mux.HandleFunc("GET /audit/export", s.auditExport)
}

// asked puts a question on record.
func (s *server) asked(ctx context.Context, act audit.Act, r *http.Request) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	return s.audit.Append(ctx, audit.Record{Act: act, Source: "port-forward", Object: "AuditLog /" + s.auditName(), Detail: "asked for " + r.URL.RequestURI()})
}

func (s *server) auditQuery(w http.ResponseWriter, r *http.Request, act audit.Act) (audit.Query, string, bool) {
	v := r.URL.Query()
	as := v.Get("as")
	v.Del("as")
	q, err := audit.QueryOf(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return q, as, false
	}
	if s.auditPlace() == "" {
		http.Error(w, audit.ErrNotKept.Error(), http.StatusNotImplemented)
		return q, as, false
	}
	if err := s.asked(r.Context(), act, r); err != nil {
		http.Error(w, "not answered, as the question can't be put on record: "+err.Error(), http.StatusServiceUnavailable)
		return q, as, false
	}
	return q, as, true
}

func (s *server) auditList(w http.ResponseWriter, r *http.Request) {
	q, _, ok := s.auditQuery(w, r, audit.LogRead)
	if !ok {
		return
	}
	if q.Limit == 0 {
		q.Limit = auditDefault
	}
	q.Limit = min(q.Limit, auditLimit)
	w.Header().Set("Content-Type", "application/jsonl")
	for row, err := range s.audit.Records(r.Context(), q) {
		if err != nil {
			s.log.Warn("audit records not read", "error", err)
			panic(http.ErrAbortHandler) // the client sees that the answer is not whole
		}
		if _, err := w.Write(append(row.Data, '\n')); err != nil {
			return
		}
	}
}

func (s *server) auditHead(w http.ResponseWriter, r *http.Request) {
	if err := s.asked(r.Context(), audit.LogRead, r); err != nil {
		http.Error(w, "not answered, as the question can't be put on record: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	key, err := s.audit.Key(r.Context())
	var head []byte
	if err == nil {
		head, err = s.audit.Head(r.Context())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(map[string]string{"key": key, "head": string(head)}); err != nil {
		s.log.Debug("answer not delivered", "error", err)
	}
}

func (s *server) auditExport(w http.ResponseWriter, r *http.Request) {
	q, as, ok := s.auditQuery(w, r, audit.LogExported)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), exportTimeout)
	defer cancel()
	var err error
	switch as {
	case "", "jsonl":
		w.Header().Set("Content-Type", "application/jsonl")
		_, err = s.audit.ExportJSONL(ctx, w, q, q.Values().Encode())
	case "csv":
		w.Header().Set("Content-Type", "text/csv")
		_, err = audit.WriteCSV(w, s.audit.Records(ctx, q))
	default:
		err = fmt.Errorf("as=%q: want jsonl or csv", as)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Warn("export not finished", "error", err)
		panic(http.ErrAbortHandler)
	}
}
