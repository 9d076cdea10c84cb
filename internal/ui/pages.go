package ui

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/topology"
)

// List is a page of rows, as of At.
type List[T any] struct {
	At    time.Time `json:"at"`
	Items []T       `json:"items"`
}

// About says what this is.
type About struct {
	Version   string `json:"version"`
	Demo      bool   `json:"demo,omitempty"`
	Telemetry bool   `json:"telemetry"`
	AuditKept bool   `json:"auditKept"`
}

func (s *server) about(*http.Request) (any, error) {
	return About{Version: s.Version, Demo: s.Demo, Telemetry: s.Topology != nil && len(s.Topology.Clusters(s.Now())) > 0, AuditKept: s.Audit != nil}, nil
}

// minute is how exact the time in a list is: an ETag that changed with every second would send everything again.
func (s *server) minute() time.Time { return s.Now().UTC().Truncate(time.Minute) }

func (s *server) now(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	at := s.Now().UTC()
	var unknown []string
	var view *topology.View
	if s.Topology != nil {
		if view, err = s.Topology.Snapshot(topology.Query{Level: topology.LevelService}, at); err != nil {
			unknown = append(unknown, "traffic: "+err.Error())
		}
	}
	changes, err := s.changes(r.Context(), at)
	if err != nil {
		unknown = append(unknown, "changes: "+err.Error())
	}
	n := nowOf(w, view, changes, at.Truncate(time.Second))
	n.Unknown = unknown
	return n, nil
}

// changes are the latest acts that may explain something, the latest first. They are a summary of the log, not the log: reading that is on record.
func (s *server) changes(ctx context.Context, at time.Time) ([]Change, error) {
	out := []Change{}
	if s.Audit == nil {
		return out, nil
	}
	const looked = 400
	for row, err := range s.Audit.Records(ctx, audit.Query{From: at.Add(-24 * time.Hour), Last: true, Limit: looked}) {
		if err != nil {
			return out, err
		}
		rec, err := audit.Decode(row.Data)
		if err != nil {
			return out, err
		}
		if c, ok := changeOf(&rec); ok {
			if out = append(out, c); len(out) == maxChanges {
				break
			}
		}
	}
	return out, nil
}

func (s *server) clusters(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	l := List[Cluster]{At: s.minute(), Items: []Cluster{}}
	for i := range w.Clusters {
		l.Items = append(l.Items, brief(&w.Clusters[i]))
	}
	return l, nil
}

func (s *server) cluster(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	for i := range w.Clusters {
		if k := &w.Clusters[i]; k.Name == r.PathValue("name") {
			return Cluster{objectOf(&k.ObjectMeta), k.Status}, s.seen(r, "the certificates of cluster "+k.Name)
		}
	}
	return nil, notFound("no cluster " + r.PathValue("name") + " is registered")
}

// seen puts on record that somebody looked at certificates, once for each time a page is opened (the application says so) and not for each time it is brought up to date.
func (s *server) seen(r *http.Request, what string) error {
	if s.Audit == nil || r.URL.Query().Get("opened") == "" {
		return nil
	}
	if err := s.Audit.Append(r.Context(), audit.Record{Act: audit.LogRead, Source: "ui", Detail: "looked at " + what}); err != nil {
		return fmt.Errorf("not shown, as it can't be put on record: %w", err)
	}
	return nil
}

// Trust is the page of trust.
type Trust struct {
	At       time.Time     `json:"at"`
	Policies []TrustPolicy `json:"policies"`
	Clusters []Cluster     `json:"clusters"`
}

func (s *server) trust(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	t := Trust{At: s.minute(), Policies: []TrustPolicy{}, Clusters: []Cluster{}}
	for i := range w.Trust {
		t.Policies = append(t.Policies, trustOf(&w.Trust[i]))
	}
	for i := range w.Clusters {
		c := brief(&w.Clusters[i])
		if full := w.Clusters[i].Status.CaStatus; full != nil {
			c.Status.CaStatus.Verifiers = full.Verifiers
		}
		t.Clusters = append(t.Clusters, c)
	}
	return t, s.seen(r, "the certificates of the mesh")
}

func (s *server) policies(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	l := List[Policy]{At: s.minute(), Items: []Policy{}}
	for i := range w.Policies {
		l.Items = append(l.Items, policyOf(&w.Policies[i]))
	}
	return l, nil
}

func (s *server) policy(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	for i := range w.Policies {
		if p := &w.Policies[i]; p.Namespace == r.PathValue("namespace") && p.Name == r.PathValue("name") {
			out := policyOf(p)
			out.Spec = &p.Spec
			return out, nil
		}
	}
	return nil, notFound("there is no AccessPolicy " + r.PathValue("namespace") + "/" + r.PathValue("name"))
}

func (s *server) segments(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	l := List[Segment]{At: s.minute(), Items: []Segment{}}
	for i := range w.Segments {
		g := &w.Segments[i]
		l.Items = append(l.Items, Segment{objectOf(&g.ObjectMeta), g.Spec, g.Status})
	}
	return l, nil
}

// atOf reads the time a page is asked about; zero: now.
func atOf(r *http.Request) (time.Time, error) {
	text := r.URL.Query().Get("at")
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, badRequest("at=" + strconv.Quote(text) + ": want a time such as 2026-11-23T02:14:31Z")
	}
	return t, nil
}

var errNoTelemetry = &statusError{http.StatusNotFound, "there is no telemetry: no agent has reported traffic yet"} //nolint:errname // an error

func (s *server) topology(r *http.Request) (any, error) {
	if s.Topology == nil {
		return nil, errNoTelemetry
	}
	q := topology.Query{Level: topology.Level(r.URL.Query().Get("level")), Focus: r.URL.Query().Get("focus"), Namespaces: r.URL.Query()["namespace"]}
	if q.Level == "" {
		q.Level = topology.LevelNamespace
	}
	if !q.Level.Valid() {
		return nil, badRequest("level=" + strconv.Quote(string(q.Level)) + ": want cluster, namespace, service or neighbourhood")
	}
	for _, c := range r.URL.Query()["cluster"] {
		q.Clusters = append(q.Clusters, mesh.ClusterName(c))
	}
	var err error
	if q.At, err = atOf(r); err != nil {
		return nil, err
	}
	v, err := s.Topology.Snapshot(q, s.Now())
	switch {
	case errors.Is(err, topology.ErrNoSuchNode), errors.Is(err, topology.ErrNoHistory):
		return nil, notFound(err.Error())
	case err != nil:
		return nil, err
	}
	return v.Columns(), nil
}

func (s *server) edge(r *http.Request) (any, error) {
	if s.Topology == nil {
		return nil, errNoTelemetry
	}
	k, ok := topology.ParseKey(r.PathValue("id"))
	if !ok {
		return nil, badRequest("edge " + strconv.Quote(r.PathValue("id")) + ": want CLUSTER/NAMESPACE/SERVICE~CLUSTER/NAMESPACE/SERVICE")
	}
	at, err := atOf(r)
	if err != nil {
		return nil, err
	}
	e, ok, err := s.Topology.Edge(k, at, s.Now())
	if err != nil {
		return nil, notFound(err.Error())
	}
	if !ok {
		return nil, notFound("there was no traffic from " + k.From.ID() + " to " + k.To.ID())
	}
	return EdgePage{Edge: e, Hint: e.LatencyHint()}, nil
}

// EdgePage is one edge and what to do for more.
type EdgePage struct {
	topology.Edge
	Hint string `json:"hint,omitempty"`
}

// Telemetry says what can't be seen.
type Telemetry struct {
	At       time.Time               `json:"at"`
	Clusters []topology.ClusterState `json:"clusters"`
	Links    []topology.Link         `json:"links"`
	History  []time.Time             `json:"history"`
	// Edges that have no request latency, of all.
	Edges  int `json:"edges"`
	L4Only int `json:"l4Only"`
	// Silent are clusters that are registered and report no traffic.
	Silent []string `json:"silent"`
}

func (s *server) telemetry(r *http.Request) (any, error) {
	w, err := s.World(r.Context())
	if err != nil {
		return nil, err
	}
	t := Telemetry{At: s.minute(), Clusters: []topology.ClusterState{}, Links: []topology.Link{}, History: []time.Time{}, Silent: []string{}}
	if s.Topology != nil {
		now := s.Now()
		t.Clusters, t.Links, t.History = append(t.Clusters, s.Topology.Clusters(now)...), append(t.Links, s.Topology.Links(now)...), append(t.History, s.Topology.History()...)
		v, err := s.Topology.Snapshot(topology.Query{Level: topology.LevelService}, now)
		if err != nil {
			return nil, err
		}
		t.Edges = len(v.Edges)
		for i := range v.Edges {
			if v.Edges[i].L4Only() {
				t.L4Only++
			}
		}
	}
	for i := range w.Clusters {
		name := mesh.ClusterName(w.Clusters[i].Name)
		if !slices.ContainsFunc(t.Clusters, func(c topology.ClusterState) bool { return c.Name == name }) {
			t.Silent = append(t.Silent, string(name))
		}
	}
	return t, nil
}

// Records is a page of the audit log.
type Records struct {
	Head    string         `json:"head"` // signed: size and root hash of the tree
	Records []audit.Record `json:"records"`
	Places  []int64        `json:"places"` // of the records in the log
	More    bool           `json:"more"`
}

func (s *server) records(r *http.Request) (any, error) {
	if s.Audit == nil {
		return nil, notFound(audit.ErrNotKept.Error())
	}
	values := r.URL.Query()
	values.Del("opened")
	q, err := audit.QueryOf(values)
	if err != nil {
		return nil, badRequest(err.Error())
	}
	const most = 500
	if q.Limit <= 0 || q.Limit > most {
		q.Limit = 100
	}
	if err := s.Audit.Append(r.Context(), audit.Record{Act: audit.LogRead, Source: "ui", Detail: "asked for " + r.URL.RequestURI()}); err != nil {
		return nil, fmt.Errorf("not answered, as the question can't be put on record: %w", err)
	}
	out := Records{Records: []audit.Record{}, Places: []int64{}}
	head, err := s.Audit.Head(r.Context())
	if err != nil {
		return nil, err
	}
	out.Head = string(head)
	asked := q.Limit
	q.Limit++
	for row, err := range s.Audit.Records(r.Context(), q) {
		if err != nil {
			return nil, err
		}
		if len(out.Records) == asked {
			out.More = true
			break
		}
		rec, err := audit.Decode(row.Data)
		if err != nil {
			return nil, err
		}
		out.Records, out.Places = append(out.Records, rec), append(out.Places, rec.N)
	}
	return out, nil
}

// signatures change when what a topic shows does.
func (s *server) signatures(ctx context.Context) map[string]string {
	out := map[string]string{}
	if w, err := s.World(ctx); err == nil {
		sum := func(topic string, n int, version func(i int) string) {
			h := fnv.New64a()
			for i := range n {
				_, _ = h.Write([]byte(version(i)))
				_, _ = h.Write([]byte{0})
			}
			out[topic] = strconv.FormatUint(h.Sum64(), 36)
		}
		sum("clusters", len(w.Clusters), func(i int) string { return w.Clusters[i].Name + "@" + w.Clusters[i].ResourceVersion })
		sum("trust", len(w.Trust), func(i int) string { return w.Trust[i].Name + "@" + w.Trust[i].ResourceVersion })
		sum("segments", len(w.Segments), func(i int) string {
			return w.Segments[i].Namespace + "/" + w.Segments[i].Name + "@" + w.Segments[i].ResourceVersion
		})
		sum("policies", len(w.Policies), func(i int) string {
			return w.Policies[i].Namespace + "/" + w.Policies[i].Name + "@" + w.Policies[i].ResourceVersion
		})
	}
	if s.Topology != nil {
		out["topology"] = strconv.FormatUint(s.Topology.Generation(), 36)
	}
	return out
}
