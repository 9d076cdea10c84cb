// Package sqlite keeps an audit log in one SQLite file: the store that needs no server.
//
// In: batches, each one transaction that is on disk when Commit returns (WAL, synchronous=FULL). Out: heads, hashes, records. It must not interpret records: what is searched for are
// columns that SQLite itself derives from the stored bytes, so that no copy can say something else. Triggers refuse to change or delete what is there; who holds the file can
// take the triggers out, which is what the tree and its witnesses are for. One process writes; a second one is refused by the size of the log (audit.ErrBehind).
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/url"

	"golang.org/x/mod/sumdb/tlog"
	_ "modernc.org/sqlite" // the driver

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/sqltext"
)

// schema is what an empty file gets. user_version tells its version.
const schema = `
CREATE TABLE IF NOT EXISTS records (
	n INTEGER PRIMARY KEY,
	data TEXT NOT NULL,
	at TEXT GENERATED ALWAYS AS (data->>'$.at') VIRTUAL,
	act TEXT GENERATED ALWAYS AS (data->>'$.act') VIRTUAL,
	user TEXT GENERATED ALWAYS AS (data->>'$.user') VIRTUAL,
	cluster TEXT GENERATED ALWAYS AS (data->>'$.cluster') VIRTUAL,
	object TEXT GENERATED ALWAYS AS (data->>'$.object') VIRTUAL,
	policy TEXT GENERATED ALWAYS AS (data->>'$.policy') VIRTUAL,
	name TEXT GENERATED ALWAYS AS (substr(data->>'$.object', instr(data->>'$.object', '/') + 1)) VIRTUAL
);
CREATE INDEX IF NOT EXISTS records_at ON records (at);
CREATE INDEX IF NOT EXISTS records_act ON records (act);
CREATE INDEX IF NOT EXISTS records_user ON records (user) WHERE user IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_cluster ON records (cluster) WHERE cluster IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_name ON records (name) WHERE name IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_policy ON records (policy) WHERE policy IS NOT NULL;
CREATE TABLE IF NOT EXISTS hashes (i INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, note BLOB NOT NULL);
CREATE TRIGGER IF NOT EXISTS records_stay BEFORE DELETE ON records BEGIN SELECT RAISE(ABORT, 'audit records are never deleted'); END;
CREATE TRIGGER IF NOT EXISTS records_same BEFORE UPDATE ON records BEGIN SELECT RAISE(ABORT, 'audit records are never changed'); END;
CREATE TRIGGER IF NOT EXISTS hashes_stay BEFORE DELETE ON hashes BEGIN SELECT RAISE(ABORT, 'audit records are never deleted'); END;
CREATE TRIGGER IF NOT EXISTS hashes_same BEFORE UPDATE ON hashes BEGIN SELECT RAISE(ABORT, 'audit records are never changed'); END;
CREATE TRIGGER IF NOT EXISTS head_grows BEFORE UPDATE ON head WHEN NEW.size <= OLD.size BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;
`

// readers bounds the connections that read.
const readers = 4

// Store is an audit.Store.
type Store struct {
	write, read *sql.DB
}

// Open opens a file, which it makes if it is not there, in a folder that is.
func Open(ctx context.Context, file string) (*Store, error) {
	dsn := func(more string) string {
		return "file:" + (&url.URL{Path: file}).EscapedPath() + "?_pragma=busy_timeout(4000)&_pragma=synchronous(FULL)&_pragma=trusted_schema(0)&_pragma=temp_store(MEMORY)" + more
	}
	w, err := sql.Open("sqlite", dsn("&_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=wal_autocheckpoint(2000)&_pragma=journal_size_limit(67108864)"))
	if err != nil {
		return nil, fmt.Errorf("audit store %s: %w", file, err)
	}
	w.SetMaxOpenConns(1)
	if _, err := w.ExecContext(ctx, schema); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("audit store %s: %w", file, err)
	}
	r, err := sql.Open("sqlite", dsn("&_pragma=query_only(1)"))
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("audit store %s: %w", file, err)
	}
	r.SetMaxOpenConns(readers)
	return &Store{write: w, read: r}, nil
}

// Close closes the file.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func headOf(ctx context.Context, q queryer) (size int64, note []byte, err error) {
	err = q.QueryRowContext(ctx, `SELECT size, note FROM head`).Scan(&size, &note)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil
	}
	return size, note, err
}

// Head implements audit.Store. The size is that of the records: where the head says another, some were removed or added.
func (s *Store) Head(ctx context.Context) (int64, []byte, error) {
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return 0, nil, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	_, note, err := headOf(ctx, tx)
	if err != nil {
		return 0, nil, err
	}
	var size int64
	err = tx.QueryRowContext(ctx, `SELECT coalesce(max(n) + 1, 0) FROM records`).Scan(&size)
	return size, note, err
}

// Commit implements audit.Store.
func (s *Store) Commit(ctx context.Context, b audit.Batch) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // of what was not committed
	size, _, err := headOf(ctx, tx)
	if err != nil {
		return err
	}
	if size != b.Size {
		return audit.ErrBehind
	}
	record, err := tx.PrepareContext(ctx, `INSERT INTO records (n, data) VALUES (?, ?)`)
	if err != nil {
		return err
	}
	defer record.Close() //nolint:errcheck // its own error was seen
	for i, raw := range b.Records {
		if _, err := record.ExecContext(ctx, b.Size+int64(i), string(raw)); err != nil {
			return err
		}
	}
	hash, err := tx.PrepareContext(ctx, `INSERT INTO hashes (i, hash) VALUES (?, ?)`)
	if err != nil {
		return err
	}
	defer hash.Close() //nolint:errcheck // its own error was seen
	base := tlog.StoredHashCount(b.Size)
	for i, h := range b.Hashes {
		if _, err := hash.ExecContext(ctx, base+int64(i), h[:]); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO head (one, size, note) VALUES (1, ?, ?) ON CONFLICT (one) DO UPDATE SET size = excluded.size, note = excluded.note`,
		b.Size+int64(len(b.Records)), b.Head); err != nil {
		return err
	}
	return tx.Commit()
}

// Hashes implements audit.Store.
func (s *Store) Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error) {
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	get, err := tx.PrepareContext(ctx, `SELECT hash FROM hashes WHERE i = ?`)
	if err != nil {
		return nil, err
	}
	defer get.Close() //nolint:errcheck // its own error was seen
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		var h []byte
		if err := get.QueryRowContext(ctx, x).Scan(&h); err != nil {
			return nil, fmt.Errorf("hash %d: %w", x, err)
		}
		if copy(out[i][:], h) != tlog.HashSize || len(h) != tlog.HashSize {
			return nil, fmt.Errorf("hash %d has %d bytes: the store was altered", x, len(h))
		}
	}
	return out, nil
}

// Records implements audit.Store.
func (s *Store) Records(ctx context.Context, q audit.Query) iter.Seq2[audit.Row, error] {
	statement, args := sqltext.Select(q, func(int) string { return "?" })
	return func(yield func(audit.Row, error) bool) {
		rows, err := s.read.QueryContext(ctx, statement, args...)
		if err != nil {
			yield(audit.Row{}, err)
			return
		}
		defer rows.Close() //nolint:errcheck // its own error was seen
		for rows.Next() {
			var r audit.Row
			if err := rows.Scan(&r.N, &r.Data); err != nil {
				yield(audit.Row{}, err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(audit.Row{}, err)
		}
	}
}
