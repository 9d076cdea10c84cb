package audit

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrNotKept is returned where records are asked of a log that is only written out.
var ErrNotKept = errors.New("audit: this server writes its audit log to standard output and keeps none: ask what collects its logs, or give it a store (glooMgmtServer.audit)")

// Lines is the Store of a server that has none: each record goes out as a line, {"audit":...}, and nothing is kept but what the next signed head needs.
type Lines struct {
	mu   sync.Mutex
	w    io.Writer
	size int64
	head []byte
	edge edge
}

// NewLines returns Lines that writes to w.
func NewLines(w io.Writer) *Lines { return &Lines{w: w, edge: edge{}} }

// Head implements Store.
func (s *Lines) Head(context.Context) (int64, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.head, nil
}

// Commit implements Store. A line that could not be written whole is written again with the next batch.
func (s *Lines) Commit(_ context.Context, b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Size != s.size {
		return ErrBehind
	}
	for _, raw := range b.Records {
		if err := writeLine(s.w, raw); err != nil {
			return err
		}
	}
	size, base := b.Size+int64(len(b.Records)), tlog.StoredHashCount(b.Size)
	all, next := maps.Clone(s.edge), edge{}
	for i, h := range b.Hashes {
		all[base+int64(i)] = h
	}
	if _, err := tlog.TreeHash(size, next.remember(tlog.HashReaderFunc(all.read))); err != nil {
		return err
	}
	s.size, s.head, s.edge = size, b.Head, next
	return nil
}

func (e edge) read(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		h, ok := e[x]
		if !ok {
			return nil, ErrNotKept
		}
		out[i] = h
	}
	return out, nil
}

// Hashes implements Store.
func (s *Lines) Hashes(_ context.Context, indexes []int64) ([]tlog.Hash, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.edge.read(indexes)
}

// Records implements Store.
func (s *Lines) Records(context.Context, Query) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) { yield(Row{}, ErrNotKept) }
}

func writeLine(w io.Writer, raw []byte) error {
	_, err := w.Write(append(append([]byte(`{"audit":`), raw...), '}', '\n'))
	return err
}
