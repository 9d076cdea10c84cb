package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	// maxBatch bounds the records of one commit, maxWaiting those that wait for theirs.
	maxBatch   = 512
	maxWaiting = 4096
	// commitTimeout is how long one commit may take.
	commitTimeout = 10 * time.Second
	// tries bounds how often a commit is made again because another server was first: for a moment, when leaders change, there are two.
	tries = 10
)

// ErrBusy is returned by Append where too many wait already.
var ErrBusy = errors.New("audit: too many records wait for the store")

// Log appends Records to a Store. Safe for concurrent use.
type Log struct {
	open   func(context.Context) (Store, Key, error)
	mirror io.Writer
	log    *slog.Logger
	queue  chan *waiting

	opening sync.Mutex
	store   Store // nil until it was opened
	signer  note.Signer
	key     string

	mu   sync.Mutex // of a commit
	size int64      // of the log after our last commit; -1: not known
	edge edge

	stateMu sync.Mutex
	failed  error // why the last commit failed, nil for not
}

type waiting struct {
	records []Record
	done    chan error
}

// Config of a Log.
type Config struct {
	// Open opens the store and reads the log's key. It is called before the first use, and again until it succeeds.
	Open   func(context.Context) (Store, Key, error)
	Mirror io.Writer // gets each record as a line once it is stored; nil: none
	Log    *slog.Logger
}

// New returns a Log. Run makes it work.
func New(c Config) *Log {
	return &Log{open: c.Open, mirror: c.Mirror, log: c.Log, queue: make(chan *waiting, maxWaiting), size: -1}
}

// Of opens what is open already.
func Of(s Store, k Key) func(context.Context) (Store, Key, error) {
	return func(context.Context) (Store, Key, error) { return s, k, nil }
}

// ready opens the store, once.
func (l *Log) ready(ctx context.Context) error {
	l.opening.Lock()
	defer l.opening.Unlock()
	if l.store != nil {
		return nil
	}
	store, key, err := l.open(ctx)
	if err != nil {
		return fmt.Errorf("audit: open the store: %w", err)
	}
	signer, err := note.NewSigner(key.Secret)
	if err != nil {
		return fmt.Errorf("audit: the log's key: %w", err)
	}
	if v, err := note.NewVerifier(key.Public); err != nil || v.Name() != signer.Name() || v.KeyHash() != signer.KeyHash() {
		return errors.New("audit: the log's verifier key is not that of its key")
	}
	l.store, l.signer, l.key = store, signer, key.Public
	return nil
}

// Key is the key that heads are verified with.
func (l *Log) Key(ctx context.Context) (string, error) {
	err := l.ready(ctx)
	return l.key, err
}

// Append returns once the records are stored (nil), or with the reason why they are not. After an error of ctx they may be stored yet: a record of an act that was refused.
func (l *Log) Append(ctx context.Context, records ...Record) error {
	w := &waiting{records: records, done: make(chan error, 1)}
	select {
	case l.queue <- w:
	default:
		return ErrBusy
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		if err := l.Failed(); err != nil {
			return fmt.Errorf("%w; before: %w", context.Cause(ctx), err)
		}
		return fmt.Errorf("audit: the store did not answer in time: %w", context.Cause(ctx))
	}
}

// Failed is why the last commit failed, nil if it did not.
func (l *Log) Failed() error {
	l.stateMu.Lock()
	defer l.stateMu.Unlock()
	return l.failed
}

func (l *Log) setFailed(err error) {
	l.stateMu.Lock()
	was := l.failed
	l.failed = err
	l.stateMu.Unlock()
	switch {
	case err != nil && was == nil:
		l.log.Error("the audit log can't be written: changes are refused until it can", "error", err)
	case err == nil && was != nil:
		l.log.Info("the audit log can be written again")
	}
}

// Run commits what waits, until ctx ends; then what waits still is committed a last time.
func (l *Log) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			for l.flush(context.WithoutCancel(ctx), nil) {
			}
			return nil
		case w := <-l.queue:
			l.flush(context.WithoutCancel(ctx), w)
		}
	}
}

// flush commits first and what else waits, at most a batch, and says whether there was anything.
func (l *Log) flush(ctx context.Context, first *waiting) bool {
	var all []*waiting
	var records []Record
	take := func(w *waiting) {
		all = append(all, w)
		records = append(records, w.records...)
	}
	if first != nil {
		take(first)
	}
gather:
	for len(records) < maxBatch {
		select {
		case w := <-l.queue:
			take(w)
		default:
			break gather
		}
	}
	if len(all) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err := l.commit(ctx, records)
	l.setFailed(err)
	for _, w := range all {
		w.done <- err
	}
	return true
}

func (l *Log) commit(ctx context.Context, records []Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(ctx); err != nil {
		return err
	}
	now := time.Now()
	for i := range records {
		if records[i].At.IsZero() {
			records[i].At = now
		}
		records[i] = Clean(records[i])
	}
	var err error
	for n := range tries {
		if n > 0 {
			time.Sleep(rand.N(time.Duration(n) * 5 * time.Millisecond)) //nolint:gosec // no secret
		}
		if l.size < 0 {
			if err = l.load(ctx); err != nil {
				return err
			}
		}
		if err = l.try(ctx, records); !errors.Is(err, ErrBehind) {
			break
		}
		l.size = -1
	}
	if err != nil {
		l.size = -1 // the store may have stored them: ask it
	}
	return err
}

// load reads what the store has, and holds its head to our key.
func (l *Log) load(ctx context.Context) error {
	size, signed, err := l.store.Head(ctx)
	if err != nil {
		return fmt.Errorf("audit: read the head: %w", err)
	}
	next := edge{}
	if size > 0 {
		h, err := OpenHead(signed, l.key)
		if err != nil {
			return fmt.Errorf("audit: the store is of another log, or its head was altered: %w", err)
		}
		if h.Size != size {
			return fmt.Errorf("audit: the store has %d records, its signed head says %d: some were removed or added", size, h.Size)
		}
		root, err := tlog.TreeHash(size, next.remember(l.reader(ctx, nil, nil)))
		if err != nil || root != h.Root {
			return errors.Join(errors.New("audit: the hashes in the store are not those of its signed head: it was altered"), err)
		}
	}
	l.size, l.edge = size, next
	return nil
}

// try makes one commit.
func (l *Log) try(ctx context.Context, records []Record) error {
	b := Batch{Size: l.size}
	base := tlog.StoredHashCount(l.size)
	reader := l.reader(ctx, l.edge, func(i int64) (tlog.Hash, bool) {
		if i < base || i-base >= int64(len(b.Hashes)) {
			return tlog.Hash{}, false
		}
		return b.Hashes[i-base], true
	})
	for i := range records {
		records[i].N = l.size + int64(i)
		raw, err := Encode(records[i])
		if err != nil {
			return err
		}
		hashes, err := tlog.StoredHashes(records[i].N, raw, reader)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		b.Records, b.Hashes = append(b.Records, raw), append(b.Hashes, hashes...)
	}
	size := l.size + int64(len(records))
	next := edge{}
	root, err := tlog.TreeHash(size, next.remember(reader))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if b.Head, err = note.Sign(&note.Note{Text: Head{l.signer.Name(), size, root}.String()}, l.signer); err != nil {
		return fmt.Errorf("audit: sign the head: %w", err)
	}
	if err := l.store.Commit(ctx, b); err != nil {
		return fmt.Errorf("audit: store: %w", err)
	}
	l.size, l.edge = size, next
	l.copyOut(b.Records)
	return nil
}

func (l *Log) copyOut(records [][]byte) {
	if l.mirror == nil {
		return
	}
	for _, raw := range records {
		if err := writeLine(l.mirror, raw); err != nil {
			l.log.Warn("the copy of an audit record could not be written", "error", err)
			return
		}
	}
}

// edge are the stored hashes that the next records need: those of the complete subtrees, at most 63.
type edge map[int64]tlog.Hash

func (e edge) remember(r tlog.HashReader) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, err := r.ReadHashes(indexes)
		for i, h := range hashes {
			e[indexes[i]] = h
		}
		return hashes, err
	})
}

// reader reads hashes from the batch, the edge, or the store.
func (l *Log) reader(ctx context.Context, e edge, batch func(int64) (tlog.Hash, bool)) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		var ask []int64
		var at []int
		for i, x := range indexes {
			h, ok := e[x]
			if !ok && batch != nil {
				h, ok = batch(x)
			}
			if ok {
				out[i] = h
				continue
			}
			ask, at = append(ask, x), append(at, i)
		}
		if len(ask) == 0 {
			return out, nil
		}
		hashes, err := l.store.Hashes(ctx, ask)
		if err != nil {
			return nil, err
		}
		for i, h := range hashes {
			out[at[i]] = h
		}
		return out, nil
	})
}

// Head is the signed head of what is stored, empty before the first record.
func (l *Log) Head(ctx context.Context) ([]byte, error) {
	if err := l.ready(ctx); err != nil {
		return nil, err
	}
	_, signed, err := l.store.Head(ctx)
	return signed, err
}

// Consistency proves that the first old records of the log with size now were its first records when there were no more.
func (l *Log) Consistency(ctx context.Context, old, now int64) (tlog.TreeProof, error) {
	if err := l.ready(ctx); err != nil || old <= 0 || old >= now {
		return nil, err
	}
	return tlog.ProveTree(now, old, l.reader(ctx, nil, nil))
}

// Inclusion proves that record n is in the log of the given size.
func (l *Log) Inclusion(ctx context.Context, size, n int64) (tlog.RecordProof, error) {
	if err := l.ready(ctx); err != nil {
		return nil, err
	}
	return tlog.ProveRecord(size, n, l.reader(ctx, nil, nil))
}

// Records answers a query with the records and the bytes that are hashed.
func (l *Log) Records(ctx context.Context, q Query) iter.Seq2[Row, error] {
	if err := l.ready(ctx); err != nil {
		return func(yield func(Row, error) bool) { yield(Row{}, err) }
	}
	return l.store.Records(ctx, q)
}
