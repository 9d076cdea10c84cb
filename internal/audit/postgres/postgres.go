// Package postgres keeps an audit log in PostgreSQL: the store for more records than one file should hold, for several replicas, and for who has backups and a standby there already.
//
// In: batches, each one transaction that PostgreSQL has flushed (synchronous_commit on) when Commit returns. Out: heads, hashes, records. It must not interpret records: what is
// searched for are columns that PostgreSQL itself derives from the stored bytes. Triggers refuse to change, delete or truncate what is there; who owns the tables can take the triggers out,
// which is what the tree and its witnesses are for. Writers take turns by a lock on the head; who is behind is told so (audit.ErrBehind).
package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/sqltext"
)

// schema is what an empty database gets, in the first schema of the connection's search_path. json, not jsonb: it is read without being changed. name is what follows the first slash, or all.
const schema = `
CREATE TABLE records (
	n bigint PRIMARY KEY,
	data text NOT NULL,
	at text COLLATE "C" GENERATED ALWAYS AS (data::json->>'at') STORED,
	act text COLLATE "C" GENERATED ALWAYS AS (data::json->>'act') STORED,
	"user" text COLLATE "C" GENERATED ALWAYS AS (data::json->>'user') STORED,
	cluster text COLLATE "C" GENERATED ALWAYS AS (data::json->>'cluster') STORED,
	object text COLLATE "C" GENERATED ALWAYS AS (data::json->>'object') STORED,
	policy text COLLATE "C" GENERATED ALWAYS AS (data::json->>'policy') STORED,
	name text COLLATE "C" GENERATED ALWAYS AS (substr(data::json->>'object', strpos(data::json->>'object', '/') + 1)) STORED
);
CREATE INDEX records_at ON records (at);
CREATE INDEX records_act ON records (act);
CREATE INDEX records_user ON records ("user") WHERE "user" IS NOT NULL;
CREATE INDEX records_cluster ON records (cluster) WHERE cluster IS NOT NULL;
CREATE INDEX records_name ON records (name) WHERE name IS NOT NULL;
CREATE INDEX records_policy ON records (policy) WHERE policy IS NOT NULL;
CREATE TABLE hashes (i bigint PRIMARY KEY, hash bytea NOT NULL);
CREATE TABLE head (one integer PRIMARY KEY CHECK (one = 1), size bigint NOT NULL, note bytea NOT NULL);
CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'audit records are never changed or deleted'; END $$;
CREATE TRIGGER records_same BEFORE UPDATE OR DELETE OR TRUNCATE ON records EXECUTE FUNCTION audit_only_grows();
CREATE TRIGGER hashes_same BEFORE UPDATE OR DELETE OR TRUNCATE ON hashes EXECUTE FUNCTION audit_only_grows();
CREATE TRIGGER head_stays BEFORE DELETE OR TRUNCATE ON head EXECUTE FUNCTION audit_only_grows();
CREATE TRIGGER head_grows BEFORE UPDATE ON head FOR EACH ROW WHEN (NEW.size <= OLD.size) EXECUTE FUNCTION audit_only_grows();
`

const (
	connections = 8               // at most, of this process
	connectTime = 5 * time.Second // unless the connection string says otherwise
	schemaLock  = 0x616d626974    // so that two that begin at once don't both make the tables
	// lockHead lets one process at a time write. It is not in the way of who reads.
	lockHead = "SELECT pg_advisory_xact_lock('head'::regclass::oid::bigint)"
)

// Store is an audit.Store.
type Store struct {
	pool *pgxpool.Pool
}

// Open connects to a database by its connection string (URL or keywords), and makes the tables where there are none. A role that may only SELECT and INSERT, and UPDATE head,
// suffices once they are there.
func Open(ctx context.Context, connection string) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(connection)
	if err != nil {
		return nil, errors.New("audit store: the connection string of PostgreSQL can't be read: want postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full or keywords") // err would show it
	}
	cfg.MaxConns = connections
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = connectTime
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "gloo-mesh-mgmt-server audit"
	cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "on"
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, described(err)
	}
	s := &Store{pool: pool}
	if err := s.prepare(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) prepare(ctx context.Context) error {
	return described(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(schemaLock)); err != nil {
			return err
		}
		var there bool
		if err := tx.QueryRow(ctx, "SELECT to_regclass('head') IS NOT NULL").Scan(&there); err != nil || there {
			return err
		}
		_, err := tx.Exec(ctx, schema)
		return err
	}))
}

// Begin calls prepare, which sees to the log's key, while no other process does. begun: the log has begun, so that it has a key already; otherwise it has when prepare returns nil.
func (s *Store) Begin(ctx context.Context, prepare func(begun bool) error) error {
	var own error
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockHead); err != nil {
			return err
		}
		var begun bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM head)").Scan(&begun); err != nil {
			return err
		}
		if own = prepare(begun); own != nil || begun {
			return own
		}
		_, err := tx.Exec(ctx, "INSERT INTO head (one, size, note) VALUES (1, 0, '')")
		return err
	})
	if own != nil {
		return own
	}
	return described(err)
}

// Close closes the connections.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

// described says in a few words what PostgreSQL or the way to it says; nothing of the connection string is in it but host and database.
func described(err error) error {
	if err == nil || errors.Is(err, audit.ErrBehind) {
		return err
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("audit store: PostgreSQL says %s (SQLSTATE %s): %w", pg.Message, pg.Code, err)
	}
	return fmt.Errorf("audit store: PostgreSQL: %w", err)
}

// Head implements audit.Store. The size is that of the records: where the head says another, some were removed or added.
func (s *Store) Head(ctx context.Context) (size int64, note []byte, err error) {
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "SELECT note FROM head").Scan(&note); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		return tx.QueryRow(ctx, "SELECT coalesce(max(n) + 1, 0) FROM records").Scan(&size)
	})
	return size, note, described(err)
}

// Commit implements audit.Store.
func (s *Store) Commit(ctx context.Context, b audit.Batch) error {
	return described(pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockHead); err != nil { // what follows sees what was committed before
			return err
		}
		var size int64
		if err := tx.QueryRow(ctx, "SELECT size FROM head").Scan(&size); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if size != b.Size {
			return audit.ErrBehind
		}
		data, hashes := make([]string, len(b.Records)), make([][]byte, len(b.Hashes))
		for i := range b.Records {
			data[i] = string(b.Records[i])
		}
		for i := range b.Hashes {
			hashes[i] = b.Hashes[i][:]
		}
		all := &pgx.Batch{}
		all.Queue("INSERT INTO records (n, data) SELECT $1 + i - 1, d FROM unnest($2::text[]) WITH ORDINALITY AS t (d, i)", b.Size, data)
		all.Queue("INSERT INTO hashes (i, hash) SELECT $1 + i - 1, h FROM unnest($2::bytea[]) WITH ORDINALITY AS t (h, i)", tlog.StoredHashCount(b.Size), hashes)
		all.Queue("INSERT INTO head (one, size, note) VALUES (1, $1, $2) ON CONFLICT (one) DO UPDATE SET size = excluded.size, note = excluded.note", b.Size+int64(len(b.Records)), b.Head)
		return tx.SendBatch(ctx, all).Close()
	}))
}

// Hashes implements audit.Store.
func (s *Store) Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error) {
	rows, err := s.pool.Query(ctx, "SELECT i, hash FROM hashes WHERE i = ANY($1)", indexes)
	if err != nil {
		return nil, described(err)
	}
	found := map[int64]tlog.Hash{}
	var i int64
	var raw []byte
	if _, err := pgx.ForEachRow(rows, []any{&i, &raw}, func() error {
		if len(raw) != tlog.HashSize {
			return fmt.Errorf("hash %d has %d bytes: the store was altered", i, len(raw))
		}
		found[i] = tlog.Hash(raw)
		return nil
	}); err != nil {
		return nil, described(err)
	}
	out := make([]tlog.Hash, len(indexes))
	for at, i := range indexes {
		h, ok := found[i]
		if !ok {
			return nil, fmt.Errorf("hash %d is not there", i)
		}
		out[at] = h
	}
	return out, nil
}

// Records implements audit.Store.
func (s *Store) Records(ctx context.Context, q audit.Query) iter.Seq2[audit.Row, error] {
	statement, args := sqltext.Select(q, func(i int) string { return "$" + strconv.Itoa(i) })
	return func(yield func(audit.Row, error) bool) {
		rows, err := s.pool.Query(ctx, statement, args...)
		if err != nil {
			yield(audit.Row{}, described(err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			var r audit.Row
			var data string
			if err := rows.Scan(&r.N, &data); err != nil {
				yield(audit.Row{}, described(err))
				return
			}
			r.Data = []byte(data)
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(audit.Row{}, described(err))
		}
	}
}
