package ui

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/traces"
)

// Traces is what the UI needs of the store of spans.
type Traces interface {
	SearchTraces(ctx context.Context, q traces.Query) ([]traces.Summary, error)
	Trace(ctx context.Context, id traces.TraceID, raw bool) (*traces.Trace, error)
}

// maxTraces bounds an answer.
const maxTraces = 200

func (s *server) traces(r *http.Request) (any, error) {
	if s.Traces == nil {
		return nil, notFound("no traces are kept")
	}
	v := r.URL.Query()
	q := traces.Query{Service: v.Get("service"), Namespace: v.Get("namespace"), Cluster: mesh.ClusterName(v.Get("cluster")), Name: v.Get("name"), Errors: v.Has("errors"), Limit: maxTraces}
	if text := v.Get("slower"); text != "" {
		ms, err := strconv.ParseFloat(text, 64)
		if err != nil || ms < 0 {
			return nil, badRequest("slower=" + strconv.Quote(text) + ": want milliseconds")
		}
		q.MinDuration = time.Duration(ms * float64(time.Millisecond))
	}
	found, err := s.SearchTraces(r.Context(), q)
	if err != nil {
		return nil, err
	}
	return List[traces.Summary]{At: s.minute(), Items: append([]traces.Summary{}, found...)}, nil
}

func (s *server) trace(r *http.Request) (any, error) {
	if s.Traces == nil {
		return nil, notFound("no traces are kept")
	}
	id, err := traces.ParseTraceID(r.PathValue("id"))
	if err != nil {
		return nil, badRequest(err.Error())
	}
	t, err := s.Trace(r.Context(), id, r.URL.Query().Has("raw"))
	if err != nil {
		return nil, err
	}
	if t == nil || len(t.Spans) == 0 {
		return nil, notFound("no span of trace " + id.String() + " is kept: it was not sampled, is older than what is kept, or has not come yet")
	}
	return t, nil
}
