package audit

import (
	"context"
	"errors"
	"iter"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Store keeps a log. Its implementations (internal/audit/sqlite) pass the same tests (internal/audit/storetest).
type Store interface {
	// Head returns the size of the log and its signed head, empty before the first commit.
	Head(ctx context.Context) (size int64, note []byte, err error)
	// Commit adds a batch, all of it or nothing, and returns once it would survive a loss of power. ErrBehind when the log no longer has size b.Size.
	Commit(ctx context.Context, b Batch) error
	// Hashes reads stored hashes by their index (tlog.StoredHashIndex).
	Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error)
	// Records gives the bytes of records that answer q, in the order of their place (or backwards), as the log was at the time of the call.
	Records(ctx context.Context, q Query) iter.Seq2[Row, error]
}

// ErrBehind is returned by Commit: somebody else has added to the log.
var ErrBehind = errors.New("audit: another writer has added to the log")

// Row is a record as it is stored.
type Row struct {
	N    int64
	Data []byte
}

// Batch is what one commit adds to a log of Size records.
type Batch struct {
	Size    int64
	Records [][]byte
	Hashes  []tlog.Hash // the stored hashes after those of the first Size records
	Head    []byte      // signed head of the log with them
}

// Query asks for records. Empty fields ask for nothing. All that is asked for must hold.
type Query struct {
	From, To time.Time // To is exclusive
	After    int64     // records from this place on
	Before   int64     // and before this one; 0: to the end
	Act      Act
	User     string
	Cluster  string
	Object   string // "Kind namespace/name"
	Name     string // name of the object, of any kind and namespace, or cluster
	Policy   string
	Last     bool // the latest first
	Limit    int  // 0: no limit
}

// Filtered says whether a query leaves out anything between After and Before.
func (q Query) Filtered() bool {
	return !q.From.IsZero() || !q.To.IsZero() || q.Act != "" || q.User != "" || q.Cluster != "" || q.Object != "" || q.Name != "" || q.Policy != "" || q.Limit > 0
}

// Times gives From and To as they compare with the field at of stored records; empty for none.
func (q Query) Times() (from, to string) {
	if !q.From.IsZero() {
		from = q.From.UTC().Format(timeFormat)
	}
	if !q.To.IsZero() {
		to = q.To.UTC().Format(timeFormat)
	}
	return from, to
}
