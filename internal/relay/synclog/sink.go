package synclog

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
)

// Sink is the receiving side's state. It trusts nothing it is given. Safe for concurrent use.
type Sink struct {
	mu       sync.Mutex
	limits   Limits
	track    bool
	pos      Position
	seenHead Position // latest head of the log
	complete bool
	warm     bool
	items    map[Key]held
	bytes    int64
	// What a whole state will sweep away: keys deleted since the last one, and, if sending began anew, keys of earlier generations.
	doomed     map[Key]struct{}
	generation uint64
	sweep      bool

	partial *Item // a large value so far
	seen    map[Key]struct{}
	news    chan struct{}
}

type held struct {
	value      []byte // nil: taken away, or empty
	size       int
	sum        uint64 // of a value taken away
	away       bool
	generation uint64
}

var sums = maphash.MakeSeed() //nolint:gochecknoglobals // of values taken away; compared within the process only

// is reports whether the value is v. By chance two values taken for the same would be one in 2^64.
func (h *held) is(v []byte) bool {
	if h.away {
		return h.size == len(v) && h.sum == maphash.Bytes(sums, v)
	}
	return bytes.Equal(h.value, v)
}

// NewSink makes an empty state. With track, it remembers which keys have changed, for Take.
func NewSink(limits Limits, track bool) *Sink {
	if limits.Items == 0 {
		limits.Items = 500_000
	}
	if limits.Bytes == 0 {
		limits.Bytes = 256 << 20
	}
	return &Sink{
		limits: limits, track: track, items: map[Key]held{}, doomed: map[Key]struct{}{}, seen: map[Key]struct{}{},
		news: make(chan struct{}, 1),
	}
}

// Apply takes a chunk, or refuses it whole because it does not fit, or stops at the item that exceeds the limits. After an error
// the rest of the connection makes no sense; a new one resumes at Position, which is never further than what was taken.
func (k *Sink) Apply(c Chunk) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fits(c); err != nil {
		return fmt.Errorf("chunk of log %q after %d through %d: %w", clip(c.Epoch), c.After, c.Through, err)
	}
	k.complete = false
	if c.After == 0 {
		k.generation++
		k.sweep = true
		// Until this chunk has been taken there is nothing of this log to go on from.
		k.pos = Position{}
		k.partial = keepPartial(k.partial, c)
	}
	for _, it := range c.Items {
		if err := k.apply(it); err != nil {
			return err
		}
	}
	k.pos = Position{Epoch: c.Epoch, Version: c.Through, Base: c.Base}
	k.seenHead = Position{Epoch: c.Epoch, Version: c.Head}
	if c.Complete {
		k.finish()
	}
	if len(c.Items) > 0 || c.Complete {
		select {
		case k.news <- struct{}{}:
		default:
		}
	}
	return nil
}

// keepPartial keeps a large value that is the log's very first item: its later parts come after version 0 too.
func keepPartial(p *Item, c Chunk) *Item {
	if p != nil && len(c.Items) > 0 && continues(p, c.Items[0]) {
		return p
	}
	return nil
}

func continues(p *Item, it Item) bool {
	return p.Key == it.Key && p.Version == it.Version && p.Parts == it.Parts && p.Part+1 == it.Part
}

// fits checks everything that can be checked before anything is changed.
func (k *Sink) fits(c Chunk) error {
	switch {
	case c.Epoch == "" || len(c.Epoch) > maxEpochBytes:
		return fmt.Errorf("epoch of %d bytes: want 1 to %d", len(c.Epoch), maxEpochBytes)
	case c.After != 0 && (Position{Epoch: c.Epoch, Version: c.After, Base: c.Base}) != k.pos:
		return fmt.Errorf("does not follow what has been received (log %q, version %d)", k.pos.Epoch, k.pos.Version)
	case c.Through < c.After || c.Head < c.Through:
		return fmt.Errorf("versions out of order (head %d)", c.Head)
	case c.Epoch == k.seenHead.Epoch && c.Head < k.seenHead.Version:
		return fmt.Errorf("is older than what has been received: head %d after %d", c.Head, k.seenHead.Version)
	case c.Complete && c.Through != c.Head:
		return fmt.Errorf("marked complete before its head %d", c.Head)
	}
	last, size, partial := c.After, 0, k.partial
	for i, it := range c.Items {
		if err := CheckItem(it.Key, it.Value); err != nil {
			return err
		}
		size += len(it.Value)
		switch {
		case it.Version <= last:
			return fmt.Errorf("item %q: version %d is not after %d", it.Key, it.Version, last)
		case it.Deleted && (len(it.Value) > 0 || it.Parts > 1):
			return fmt.Errorf("item %q: deleted, but has a value", it.Key)
		case it.Parts <= 1 && it.Part != 0, it.Parts > 1 && it.Part >= it.Parts:
			return fmt.Errorf("item %q: part %d of %d", it.Key, it.Part, it.Parts)
		case it.Part > 0 && (partial == nil || i > 0 || !continues(partial, it)):
			return fmt.Errorf("item %q: part %d of version %d does not follow the part before", it.Key, it.Part, it.Version)
		}
		whole := it.Parts <= 1 || it.Part == it.Parts-1
		switch {
		case !whole && (i != len(c.Items)-1 || it.Version <= c.Through || c.Complete):
			return fmt.Errorf("item %q: something follows a value that is not whole", it.Key)
		case whole && it.Version > c.Through:
			return fmt.Errorf("item %q: version %d lies outside", it.Key, it.Version)
		}
		last = it.Version
	}
	if size > MaxChunkBytes {
		return fmt.Errorf("%d bytes of values: at most %d", size, MaxChunkBytes)
	}
	return nil
}

func (k *Sink) apply(it Item) error {
	if it.Parts > 1 {
		whole, err := k.join(it)
		if err != nil || whole == nil {
			return err
		}
		it = *whole
	} else {
		k.partial = nil
	}
	old, had := k.items[it.Key]
	if it.Deleted {
		if had {
			k.doomed[it.Key] = struct{}{}
		}
		return nil
	}
	if had && old.is(it.Value) { // sent anew
		delete(k.doomed, it.Key)
		old.generation = k.generation
		k.items[it.Key] = old
		return nil
	}
	grow := int64(len(it.Value) - old.size)
	n := len(k.items)
	if !had {
		n++
		grow += int64(len(it.Type) + len(it.Name))
	}
	if n > k.limits.Items || k.bytes+grow > k.limits.Bytes {
		return fmt.Errorf("item %q: the log would have %d items and %d bytes: at most %d and %d are kept", it.Key, n, k.bytes+grow, k.limits.Items, k.limits.Bytes)
	}
	delete(k.doomed, it.Key)
	k.items[it.Key] = held{value: it.Value, size: len(it.Value), generation: k.generation}
	k.bytes += grow
	k.note(it.Key)
	return nil
}

// join adds a part to the partial value; it returns the item once it is whole.
func (k *Sink) join(it Item) (*Item, error) {
	if it.Part == 0 {
		k.partial = &Item{Key: it.Key, Version: it.Version, Parts: it.Parts}
	}
	p := k.partial
	if len(p.Value)+len(it.Value) > MaxItemBytes {
		k.partial = nil
		return nil, fmt.Errorf("item %q has more than %d bytes", it.Key, MaxItemBytes)
	}
	p.Part = it.Part
	p.Value = append(p.Value, it.Value...)
	if it.Part < it.Parts-1 {
		return nil, nil
	}
	k.partial = nil
	return &Item{Key: p.Key, Version: p.Version, Value: slices.Clip(p.Value)}, nil
}

// finish makes absence count.
func (k *Sink) finish() {
	if k.sweep {
		for key, h := range k.items {
			if h.generation != k.generation {
				k.doomed[key] = struct{}{}
			}
		}
		k.sweep = false
	}
	for key := range k.doomed {
		h := k.items[key]
		k.bytes -= int64(h.size + len(key.Type) + len(key.Name))
		delete(k.items, key)
		k.note(key)
	}
	clear(k.doomed)
	k.complete, k.warm = true, true
}

func (k *Sink) note(key Key) {
	if k.track {
		k.seen[key] = struct{}{}
	}
}

// Resume begins a new connection: the rest of a value that broke off midway won't come, and the Source is asked for what follows
// the position.
func (k *Sink) Resume() Position {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.partial = nil
	return k.pos
}

// Position is how far the log has been received.
func (k *Sink) Position() Position {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pos
}

// Warm reports whether a whole state has ever been received. From then on the items are at least that state, changed by what came later.
func (k *Sink) Warm() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warm
}

// Len is the number of items held.
func (k *Sink) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.items)
}

// Snapshot copies the map, not the values; a value that was taken away is nil.
func (k *Sink) Snapshot() Snapshot {
	k.mu.Lock()
	defer k.mu.Unlock()
	items := make(map[Key][]byte, len(k.items))
	for key, h := range k.items {
		items[key] = h.value
	}
	return Snapshot{Items: items, Complete: k.complete, Position: k.pos}
}

// News holds a token whenever something has been received since it was last emptied.
func (k *Sink) News() <-chan struct{} { return k.news }

// Take returns what has changed since the last Take.
func (k *Sink) Take() Changes { return k.take(false) }

// TakeAway is Take for a caller who keeps what it is given: the values are not held any longer, and Snapshot shows the keys only.
func (k *Sink) TakeAway() Changes { return k.take(true) }

func (k *Sink) take(away bool) Changes {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := Changes{Set: map[Key][]byte{}, Complete: k.complete, Position: k.pos}
	for key := range k.seen {
		if h, ok := k.items[key]; ok {
			c.Set[key] = h.value
			if away {
				k.items[key] = held{size: h.size, sum: maphash.Bytes(sums, h.value), away: true, generation: h.generation}
			}
		} else {
			c.Deleted = append(c.Deleted, key)
		}
	}
	slices.SortFunc(c.Deleted, compareKeys)
	k.seen = map[Key]struct{}{}
	return c
}
