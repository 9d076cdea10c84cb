package synclog

// Cursor reads a Source for one receiver. It holds no more than one large value of its own. Not safe for concurrent use.
type Cursor struct {
	src   *Source
	max   int
	after uint64 // sent so far
	base  uint64 // deletions forgotten before it began anew
	told  bool   // the receiver knows of completeness at `after`
	fresh bool   // nothing has been sent yet

	large *Item // being sent in parts; its value stays as it was when it began
}

// Cursor starts after what the receiver already holds.
func (s *Source) Cursor(held Position) *Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Cursor{src: s, max: ChunkBytes, after: s.start(held), base: s.floor, fresh: true}
	if c.after != 0 {
		c.base = held.Base
	}
	return c
}

const itemOverhead = 32 // what an item costs on the wire beside its key and value, at most

// Next returns the next chunk, or false if the receiver has been sent everything.
func (c *Cursor) Next() (Chunk, bool) {
	s := c.src
	s.mu.Lock()
	defer s.mu.Unlock()
	if max(c.after, c.base) < s.floor { // deletions the receiver lacks have been forgotten: anew
		c.after, c.base, c.large, c.fresh = 0, s.floor, nil, true
	}
	ch := Chunk{Epoch: s.epoch, After: c.after, Through: c.after, Head: s.version, Base: c.base}
	room := c.max
	if c.large != nil && !c.part(&ch, &room) {
		return c.sent(ch), true
	}
	for _, sl := range s.log[s.after(ch.Through):] {
		if sl.isStale() {
			continue
		}
		it := Item{Key: sl.e.key, Version: sl.version, Deleted: sl.e.deleted, Value: sl.e.value}
		size := itemOverhead + len(it.Type) + len(it.Name) + len(it.Value)
		if size > c.max && len(ch.Items) == 0 {
			it.Parts = uint32((len(it.Value) + c.max - 1) / c.max) //nolint:gosec // at most MaxItemBytes/max
			c.large = &it
			c.part(&ch, &room) // never the last part: there are at least two, or one that fills the chunk
			return c.sent(ch), true
		}
		if size > room {
			return c.sent(ch), true
		}
		room -= size
		ch.Items = append(ch.Items, it)
		ch.Through = it.Version
	}
	ch.Through = s.version
	ch.Complete = s.complete
	if len(ch.Items) == 0 && !c.fresh && ch.Through == ch.After && ch.Complete == c.told {
		return Chunk{}, false
	}
	return c.sent(ch), true
}

// part adds the next part of the large item; true if that was its last.
func (c *Cursor) part(ch *Chunk, room *int) bool {
	it := *c.large
	from := int(it.Part) * c.max
	to := min(from+c.max, len(c.large.Value))
	it.Value = it.Value[from:to]
	ch.Items = append(ch.Items, it)
	*room -= itemOverhead + len(it.Type) + len(it.Name) + len(it.Value)
	c.large.Part++
	if c.large.Part < c.large.Parts {
		return false
	}
	c.large = nil
	ch.Through = it.Version
	return true
}

func (c *Cursor) sent(ch Chunk) Chunk {
	c.after, c.told, c.fresh = ch.Through, ch.Complete, false
	return ch
}
