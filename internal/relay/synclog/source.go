package synclog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
)

// minTombstones is how many deletions a Source remembers at least for a receiver that is away; beyond this and beyond the number
// of living keys it forgets the older half, and a receiver that missed those gets everything anew.
const minTombstones = 1024

// Source is the sending side's state as a log. Safe for concurrent use.
type Source struct {
	mu       sync.Mutex
	epoch    string
	version  uint64 // of the last change
	complete bool
	live     map[Key]*entry
	dead     map[Key]*entry // deleted and still remembered
	log      []slot         // ascending versions; a slot whose entry has moved on is stale
	stale    int
	tombs    []slot // of dead entries, ascending; stale ones among them
	floor    uint64 // deletions up to here may have been forgotten
	changed  chan struct{}
}

type entry struct {
	key     Key
	value   []byte
	version uint64 // 0: forgotten
	deleted bool
}

type slot struct {
	version uint64
	e       *entry
}

func (s slot) isStale() bool { return s.e.version != s.version }

// NewSource makes an empty log that does not know its whole state yet (SetComplete). epoch must differ between two lives of the
// sender, e.g. a random string of at most 64 bytes.
func NewSource(epoch string) *Source {
	return &Source{epoch: epoch, live: map[Key]*entry{}, dead: map[Key]*entry{}, changed: make(chan struct{})}
}

// CheckItem says whether an item can be sent: key shape and size of the value.
func CheckItem(key Key, value []byte) error {
	switch {
	case key.Type == "" || key.Name == "":
		return fmt.Errorf("item %q: type and name must not be empty", key)
	case len(key.Type) > maxTypeBytes || len(key.Name) > maxNameBytes:
		return fmt.Errorf("item %q: type has %d bytes (at most %d), name %d (at most %d)", clip(key.String()), len(key.Type), maxTypeBytes, len(key.Name), maxNameBytes)
	case len(value) > MaxItemBytes:
		return fmt.Errorf("item %q has %d bytes: at most %d can be sent", key, len(value), MaxItemBytes)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// Set gives key a value; the same value again is no change. The Source keeps value: don't change it afterwards.
func (s *Source) Set(key Key, value []byte) error {
	if err := CheckItem(key, value); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set(key, value) {
		s.tell()
	}
	return nil
}

// Delete removes key; nothing happens if it isn't there.
func (s *Source) Delete(key Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remove(key) {
		s.tell()
	}
}

// SetComplete says whether what the Source holds is the whole state. While it isn't, receivers drop nothing.
func (s *Source) SetComplete(complete bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.complete != complete {
		s.complete = complete
		s.tell()
	}
}

// Replace makes items the whole state: sets what differs and, if complete, deletes what is not among them. An item that can't be
// sent is named in the error, keeps its former value, and makes the state incomplete, so that nobody takes its absence for an order.
func (s *Source) Replace(items map[Key][]byte, complete bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	var set, gone []Key
	for k, v := range items {
		if e := s.live[k]; e != nil && bytes.Equal(e.value, v) {
			continue
		}
		if err := CheckItem(k, v); err != nil {
			errs = append(errs, err)
			continue
		}
		set = append(set, k)
	}
	complete = complete && errs == nil
	if complete {
		for k := range s.live {
			if _, ok := items[k]; !ok {
				gone = append(gone, k)
			}
		}
	}
	slices.SortFunc(set, compareKeys)
	slices.SortFunc(gone, compareKeys)
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	change := complete != s.complete
	s.complete = complete
	for _, k := range set {
		change = s.set(k, items[k]) || change
	}
	for _, k := range gone {
		change = s.remove(k) || change
	}
	if change {
		s.tell()
	}
	return errors.Join(errs...)
}

// Update sets and deletes some keys, and says whether what the Source holds then is the whole state. Unlike Replace it does not look at the other keys. While
// the state is not whole, nothing is deleted. An item that can't be sent is dealt with as Replace does.
func (s *Source) Update(set map[Key][]byte, gone []Key, complete bool) error {
	var errs []error
	keys := make([]Key, 0, len(set))
	for k, v := range set {
		if err := CheckItem(k, v); err != nil {
			errs = append(errs, err)
			continue
		}
		keys = append(keys, k)
	}
	complete = complete && errs == nil
	slices.SortFunc(keys, compareKeys)
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	s.mu.Lock()
	defer s.mu.Unlock()
	change := complete != s.complete
	s.complete = complete
	for _, k := range keys {
		change = s.set(k, set[k]) || change
	}
	if complete {
		for _, k := range gone {
			change = s.remove(k) || change
		}
	}
	if change {
		s.tell()
	}
	return errors.Join(errs...)
}

func compareKeys(a, b Key) int {
	if c := strings.Compare(a.Type, b.Type); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// Changed is closed at the next change. Take it before looking at the log, else a change in between is missed.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Head is the position of the last change.
func (s *Source) Head() Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Position{Epoch: s.epoch, Version: s.version, Base: s.floor}
}

// Pending counts the items that a receiver at pos lacks.
func (s *Source) Pending(pos Position) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, sl := range s.log[s.after(s.start(pos)):] {
		if !sl.isStale() {
			n++
		}
	}
	return n
}

// Acked says that the receiver has everything up to pos, so that deletions up to there need not be remembered.
func (s *Source) Acked(pos Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pos.Epoch != s.epoch {
		return
	}
	n := 0
	for n < len(s.tombs) && s.tombs[n].version <= pos.Version {
		n++
	}
	s.forget(n)
}

// set and remove append to the log; s.mu is held.
func (s *Source) set(key Key, value []byte) bool {
	e := s.live[key]
	switch {
	case e != nil && bytes.Equal(e.value, value):
		return false
	case e == nil:
		if e = s.dead[key]; e == nil {
			e = &entry{key: key}
		} else {
			delete(s.dead, key)
		}
		s.live[key] = e
	}
	e.value, e.deleted = value, false
	s.append(e)
	return true
}

func (s *Source) remove(key Key) bool {
	e := s.live[key]
	if e == nil {
		return false
	}
	delete(s.live, key)
	s.dead[key] = e
	e.value, e.deleted = nil, true
	s.append(e)
	s.tombs = append(s.tombs, slot{e.version, e})
	if len(s.tombs) > 2*max(minTombstones, len(s.live)) || len(s.dead) > max(minTombstones, len(s.live)) {
		s.forget(len(s.tombs) / 2)
	}
	return true
}

func (s *Source) append(e *entry) {
	if e.version != 0 {
		s.stale++
	}
	s.version++
	e.version = s.version
	s.log = append(s.log, slot{s.version, e})
	if s.stale > 64 && s.stale > len(s.log)/2 {
		s.compact()
	}
}

// forget drops the n oldest tombstones.
func (s *Source) forget(n int) {
	if n == 0 {
		return
	}
	for _, t := range s.tombs[:n] {
		if t.isStale() {
			continue // the key lives again, or was deleted again later
		}
		s.floor = max(s.floor, t.version)
		delete(s.dead, t.e.key)
		t.e.version = 0
		s.stale++
	}
	s.tombs = slices.Clone(s.tombs[n:])
}

func (s *Source) compact() {
	s.log = slices.Clone(slices.DeleteFunc(s.log, slot.isStale))
	s.stale = 0
}

func (s *Source) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// after is the index of the first slot later than version.
func (s *Source) after(version uint64) int {
	return sort.Search(len(s.log), func(i int) bool { return s.log[i].version > version })
}

// start is the version from which a receiver at pos has to be served.
func (s *Source) start(pos Position) uint64 {
	if pos.Epoch != s.epoch || max(pos.Version, pos.Base) < s.floor || pos.Version > s.version {
		return 0
	}
	return pos.Version
}
