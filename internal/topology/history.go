package topology

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// Spacing of history: how far apart frames are kept, by age.
const (
	fineFrames   = time.Minute
	coarseFrames = 5 * time.Minute
	fineFor      = time.Hour
)

// history is the past for the slider: compressed frames, each a minute for an hour, then each five minutes, until the limit of bytes.
type history struct {
	limit  int
	bytes  int
	frames []packed // oldest first
	last   time.Time
}

type packed struct {
	at   time.Time
	data []byte
}

// saved is what a packed frame holds. JSON, not gob: the agent links this package for its types, and gob would be half a megabyte of it.
type saved struct {
	At         time.Time
	Generation uint64
	Rows       []Edge
	Clusters   []ClusterState
	Links      []Link
}

// record keeps a frame of now if the last one is a minute old.
func (t *Table) record(now time.Time) {
	h := &t.history
	if h.last.IsZero() {
		h.last = now // the first reports of a minute are not the whole mesh yet
	}
	if now.Sub(h.last) < fineFrames {
		return
	}
	h.last = now
	f := t.current(now)
	data, err := pack(f)
	if err != nil {
		return // a frame that can't be packed is one that can't be shown: the slider has a gap
	}
	h.frames = append(h.frames, packed{now, data})
	h.bytes += len(data)
	h.thin(now)
}

// thin drops what is denser than its age deserves, then the oldest, until the rest fits.
func (h *history) thin(now time.Time) {
	var last time.Time
	h.frames = slices.DeleteFunc(h.frames, func(p packed) bool {
		if now.Sub(p.at) > fineFor && p.at.Sub(last) < coarseFrames {
			h.bytes -= len(p.data)
			return true
		}
		last = p.at
		return false
	})
	for h.bytes > h.limit && len(h.frames) > 1 {
		h.bytes -= len(h.frames[0].data)
		h.frames = slices.Delete(h.frames, 0, 1)
	}
}

// at is the last frame not after when.
func (h *history) at(when time.Time) (*frame, error) {
	i, exact := slices.BinarySearchFunc(h.frames, when, func(p packed, w time.Time) int { return p.at.Compare(w) })
	if !exact {
		i--
	}
	if i < 0 {
		if len(h.frames) == 0 {
			return nil, fmt.Errorf("topology of %s: %w yet", when.UTC().Format(time.RFC3339), ErrNoHistory)
		}
		return nil, fmt.Errorf("topology of %s: %w before %s", when.UTC().Format(time.RFC3339), ErrNoHistory, h.frames[0].at.UTC().Format(time.RFC3339))
	}
	return unpack(h.frames[i].data)
}

// History are the times that Query.At can reach, oldest first; in between, the one before counts.
func (t *Table) History() []time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]time.Time, len(t.history.frames))
	for i, p := range t.history.frames {
		out[i] = p.at
	}
	return out
}

func pack(f *frame) ([]byte, error) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("pack topology: %w", err)
	}
	if err := json.NewEncoder(w).Encode(saved{f.at, f.generation, f.rows, f.clusters, f.links}); err != nil {
		return nil, fmt.Errorf("pack topology: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack topology: %w", err)
	}
	return b.Bytes(), nil
}

func unpack(data []byte) (*frame, error) {
	var s saved
	if err := json.NewDecoder(io.LimitReader(flate.NewReader(bytes.NewReader(data)), 1<<30)).Decode(&s); err != nil {
		return nil, fmt.Errorf("unpack topology: %w", err)
	}
	return &frame{at: s.At, generation: s.Generation, historic: true, rows: s.Rows, clusters: s.Clusters, links: s.Links}, nil
}
