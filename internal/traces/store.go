package traces

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/gob"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	_ "modernc.org/sqlite" // the driver

	"ambitmesh.dev/ambit/internal/mesh"
)

// ErrNotFound is the error of Get for a trace that the store does not hold.
var ErrNotFound = errors.New("trace not found")

// Bounds of the store.
const (
	defaultAge   = 7 * 24 * time.Hour
	defaultBytes = 4 << 30
	maxLimit     = 1000
	defaultLimit = 100
	maxRecord    = 64 << 20 // uncompressed
)

// schema of an empty file. A record is all spans of one trace in one batch of one cluster; trace is what search needs, merged from them.
const schema = `
CREATE TABLE IF NOT EXISTS record (trace BLOB NOT NULL, at INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS record_trace ON record (trace);
CREATE INDEX IF NOT EXISTS record_at ON record (at);
CREATE TABLE IF NOT EXISTS trace (
	id BLOB PRIMARY KEY, start INTEGER NOT NULL, finish INTEGER NOT NULL, at INTEGER NOT NULL,
	root INTEGER NOT NULL, first INTEGER NOT NULL, service TEXT NOT NULL, name TEXT NOT NULL, spans INTEGER NOT NULL, errors INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS trace_start ON trace (start);
CREATE INDEX IF NOT EXISTS trace_at ON trace (at);
CREATE TABLE IF NOT EXISTS part (trace BLOB NOT NULL, cluster TEXT NOT NULL, ns TEXT NOT NULL, service TEXT NOT NULL, name TEXT NOT NULL, start INTEGER NOT NULL,
	PRIMARY KEY (trace, cluster, ns, service, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS part_service ON part (service, start);
`

// StoreConfig is where and how much is kept.
type StoreConfig struct {
	File  string        // made if it is not there
	Age   time.Duration // what is older goes; 0 means 7 days
	Bytes int64         // the oldest go when there is more; 0 means 4 GiB
}

// Store keeps spans as zstd records in one SQLite file. Safe for concurrent use; one process at a time.
type Store struct {
	cfg         StoreConfig
	write, read *sql.DB
	enc         *zstd.Encoder
	dec         *zstd.Decoder
}

// Open opens the store. It starts nothing: call Prune now and then.
func Open(ctx context.Context, cfg StoreConfig) (*Store, error) {
	cfg.Age, cfg.Bytes = cmp.Or(cfg.Age, defaultAge), cmp.Or(cfg.Bytes, defaultBytes)
	dsn := "file:" + (&url.URL{Path: cfg.File}).EscapedPath() + "?_pragma=busy_timeout(4000)&_pragma=auto_vacuum(INCREMENTAL)&_pragma=synchronous(NORMAL)&_pragma=temp_store(MEMORY)&_pragma=cache_size(-4000)"
	w, err := sql.Open("sqlite", dsn+"&_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=journal_size_limit(16777216)")
	if err != nil {
		return nil, fmt.Errorf("trace store %s: %w", cfg.File, err)
	}
	w.SetMaxOpenConns(1)
	if _, err := w.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(fmt.Errorf("trace store %s: %w", cfg.File, err), w.Close())
	}
	r, err := sql.Open("sqlite", dsn+"&_pragma=query_only(1)")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace store %s: %w", cfg.File, err), w.Close())
	}
	r.SetMaxOpenConns(4)
	s := &Store{cfg: cfg, write: w, read: r}
	if s.enc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(1<<20)); err == nil {
		s.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxRecord))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace store %s: %w", cfg.File, err), s.Close())
	}
	return s, nil
}

// Close closes the file.
func (s *Store) Close() error {
	if s.dec != nil {
		s.dec.Close()
	}
	return errors.Join(s.read.Close(), s.write.Close())
}

// Add keeps spans, of any number of traces. received is the server's clock: what Prune goes by, since a span's own time may be anything.
func (s *Store) Add(ctx context.Context, received time.Time, spans []Span) error {
	byTrace := map[TraceID][]Span{}
	for _, sp := range spans {
		byTrace[sp.Trace] = append(byTrace[sp.Trace], sp)
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("trace store: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit there is nothing to roll back
	for id, of := range byTrace {
		if err := s.add(ctx, tx, id, received, of); err != nil {
			return fmt.Errorf("trace store: trace %s: %w", id, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("trace store: %w", err)
	}
	return nil
}

func (s *Store) add(ctx context.Context, tx *sql.Tx, id TraceID, received time.Time, spans []Span) error {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(spans); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO record VALUES (?, ?, ?)`, id[:], received.UnixNano(), s.enc.EncodeAll(b.Bytes(), nil)); err != nil {
		return err
	}
	sum := summaryOf(spans)
	// The root names the trace; until it comes, the span that began first does.
	if _, err := tx.ExecContext(ctx, `INSERT INTO trace VALUES (?1, ?2, ?3, ?4, ?5, ?2, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO UPDATE SET
		service = CASE WHEN excluded.root > root OR excluded.root = root AND excluded.first < first THEN excluded.service ELSE service END,
		name = CASE WHEN excluded.root > root OR excluded.root = root AND excluded.first < first THEN excluded.name ELSE name END,
		first = CASE WHEN excluded.root > root THEN excluded.first ELSE min(first, excluded.first) END,
		start = min(start, excluded.start), finish = max(finish, excluded.finish), at = max(at, excluded.at), root = max(root, excluded.root),
		spans = spans + excluded.spans, errors = errors + excluded.errors`,
		id[:], sum.start.UnixNano(), sum.end.UnixNano(), received.UnixNano(), one(sum.root), sum.service, sum.name, len(spans), sum.errors); err != nil {
		return err
	}
	for p := range sum.parts {
		if _, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO part VALUES (?, ?, ?, ?, ?, ?)`, id[:], string(p.cluster), p.ns, p.service, p.name, sum.start.UnixNano()); err != nil {
			return err
		}
	}
	return nil
}

type part struct {
	cluster           mesh.ClusterName
	ns, service, name string
}

type batch struct {
	start, end    time.Time
	root          bool
	service, name string
	errors        int
	parts         map[part]bool
}

// maxParts bounds what one batch of one trace adds to the index: names can be anything.
const maxParts = 200

func summaryOf(spans []Span) batch {
	b := batch{parts: map[part]bool{}}
	var named time.Time
	for i := range spans {
		s := &spans[i]
		end := s.Start.Add(s.Duration)
		if b.start.IsZero() || s.Start.Before(b.start) {
			b.start = s.Start
		}
		if end.After(b.end) {
			b.end = end
		}
		b.errors += one(s.Error)
		if root := s.Parent == (SpanID{}); root && !b.root || root == b.root && (named.IsZero() || s.Start.Before(named)) {
			b.root, b.service, b.name, named = root, s.Service, s.Name, s.Start
		}
		if len(b.parts) < maxParts {
			b.parts[part{s.Cluster, s.Namespace, s.Service, cutTo(s.Name, 200)}] = true
		}
	}
	return b
}

// Get reads the spans of a trace, as they came. ErrNotFound if there are none.
func (s *Store) Get(ctx context.Context, id TraceID) ([]Span, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT data FROM record WHERE trace = ? ORDER BY at`, id[:])
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", id, err)
	}
	defer rows.Close() //nolint:errcheck // read only
	var out []Span
	for rows.Next() {
		var data []byte
		if err := rows.Scan(&data); err != nil {
			return nil, fmt.Errorf("trace %s: %w", id, err)
		}
		raw, err := s.dec.DecodeAll(data, nil)
		if err != nil {
			return nil, fmt.Errorf("trace %s: record: %w", id, err)
		}
		var spans []Span
		if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&spans); err != nil {
			return nil, fmt.Errorf("trace %s: record: %w", id, err)
		}
		out = append(out, spans...)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("trace %s: %w", id, err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("trace %s: %w", id, ErrNotFound)
	}
	return out, nil
}

// Search lists traces, newest first.
func (s *Store) Search(ctx context.Context, q Query) ([]Summary, error) {
	where, args := q.where()
	limit := cmp.Or(q.Limit, defaultLimit)
	if limit < 0 || limit > maxLimit {
		return nil, fmt.Errorf("search traces: limit %d: at most %d", q.Limit, maxLimit)
	}
	//nolint:gosec // where holds conditions of ours; values are arguments
	query := `SELECT id, start, finish, root, service, name, spans, errors,
		(SELECT group_concat(cluster || char(9) || service, char(10)) FROM (SELECT DISTINCT cluster, service FROM part WHERE trace = id LIMIT 100))
		FROM trace` + where + ` ORDER BY start DESC LIMIT ` + strconv.Itoa(limit)
	rows, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("search traces: %w", err)
	}
	defer rows.Close() //nolint:errcheck // read only
	out := []Summary{}
	for rows.Next() {
		var sum Summary
		var id []byte
		var start, finish int64
		var parts sql.NullString
		if err := rows.Scan(&id, &start, &finish, &sum.Root, &sum.Service, &sum.Name, &sum.Spans, &sum.Errors, &parts); err != nil {
			return nil, fmt.Errorf("search traces: %w", err)
		}
		copy(sum.ID[:], id)
		sum.Start, sum.Duration = time.Unix(0, start).UTC(), time.Duration(finish-start)
		for line := range strings.Lines(parts.String) {
			cluster, service, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			sum.Clusters = append(sum.Clusters, mesh.ClusterName(cluster))
			sum.Services = append(sum.Services, service)
		}
		slices.Sort(sum.Clusters)
		slices.Sort(sum.Services)
		sum.Clusters, sum.Services = slices.Compact(sum.Clusters), slices.Compact(sum.Services)
		out = append(out, sum)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("search traces: %w", err)
	}
	return out, nil
}

func (q *Query) where() (string, []any) {
	var conds []string
	var args []any
	add := func(cond string, arg any) {
		conds = append(conds, cond)
		args = append(args, arg)
	}
	if !q.From.IsZero() {
		add("start >= ?", q.From.UnixNano())
	}
	if !q.To.IsZero() {
		add("start <= ?", q.To.UnixNano())
	}
	if q.MinDuration > 0 {
		add("finish - start >= ?", int64(q.MinDuration))
	}
	if q.MaxDuration > 0 {
		add("finish - start <= ?", int64(q.MaxDuration))
	}
	if q.Errors {
		conds = append(conds, "errors > 0")
	}
	var of []string
	for _, c := range []struct{ cond, value string }{{"cluster = ?", string(q.Cluster)}, {"ns = ?", q.Namespace}, {"service = ?", q.Service}, {"instr(name, ?) > 0", q.Name}} {
		if c.value != "" {
			of = append(of, c.cond)
			args = append(args, c.value)
		}
	}
	if len(of) > 0 {
		conds = append(conds, "id IN (SELECT trace FROM part WHERE "+strings.Join(of, " AND ")+")")
	}
	if len(conds) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(conds, " AND "), args
}

// Stats is how much the store holds.
type Stats struct {
	Traces int       `json:"traces"`
	Bytes  int64     `json:"bytes"`
	Limit  int64     `json:"limit"`
	Oldest time.Time `json:"oldest,omitzero"` // received
	Newest time.Time `json:"newest,omitzero"`
}

// Stats counts.
func (s *Store) Stats(ctx context.Context) (Stats, error) {
	out := Stats{Limit: s.cfg.Bytes}
	var oldest, newest sql.NullInt64
	err := s.read.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM trace), (SELECT min(at) FROM record), (SELECT max(at) FROM record)`).Scan(&out.Traces, &oldest, &newest)
	if err != nil {
		return out, fmt.Errorf("trace store: %w", err)
	}
	if oldest.Valid {
		out.Oldest, out.Newest = time.Unix(0, oldest.Int64).UTC(), time.Unix(0, newest.Int64).UTC()
	}
	out.Bytes, err = s.size(ctx)
	return out, err
}

// size is what the file's pages in use hold.
func (s *Store) size(ctx context.Context) (int64, error) {
	var pages, free, size int64
	if err := s.read.QueryRowContext(ctx, `SELECT p.page_count, f.freelist_count, z.page_size FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size z`).Scan(&pages, &free, &size); err != nil {
		return 0, fmt.Errorf("trace store: %w", err)
	}
	return (pages - free) * size, nil
}

// Prune removes what is too old, then the oldest until the rest is small enough, and gives the space back. It returns how many traces went.
func (s *Store) Prune(ctx context.Context, now time.Time) (int, error) {
	n, err := s.drop(ctx, now.Add(-s.cfg.Age).UnixNano())
	if err != nil {
		return n, err
	}
	for range 100 {
		size, err := s.size(ctx)
		if err != nil || size <= s.cfg.Bytes {
			return n, err
		}
		// The oldest twentieth; at least one.
		var at sql.NullInt64
		if err := s.read.QueryRowContext(ctx, `SELECT at FROM trace ORDER BY at LIMIT 1 OFFSET (SELECT count(*) / 20 FROM trace)`).Scan(&at); err != nil {
			return n, fmt.Errorf("trace store: %w", err)
		}
		more, err := s.drop(ctx, at.Int64+1)
		n += more
		if err != nil || more == 0 {
			return n, err
		}
	}
	return n, nil
}

// drop removes traces of which the last record came before a time.
func (s *Store) drop(ctx context.Context, before int64) (int, error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("trace store: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit there is nothing to roll back
	for _, table := range []string{"record", "part"} {
		if _, err := tx.ExecContext(ctx,
			`DELETE FROM `+table+` WHERE trace IN (SELECT id FROM trace WHERE at < ?)`, before); err != nil { //nolint:gosec // one of two names above
			return 0, fmt.Errorf("trace store: prune: %w", err)
		}
	}
	res, err := tx.ExecContext(ctx, `DELETE FROM trace WHERE at < ?`, before)
	if err != nil {
		return 0, fmt.Errorf("trace store: prune: %w", err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, fmt.Errorf("trace store: prune: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return 0, fmt.Errorf("trace store: prune: %w", err)
	}
	if n > 0 {
		if _, err := s.write.ExecContext(ctx, `PRAGMA incremental_vacuum`); err != nil {
			return int(n), fmt.Errorf("trace store: vacuum: %w", err)
		}
	}
	return int(n), nil
}
