package synclog

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func key(name string) Key { return Key{"t", name} }

// drain moves everything from c to k and returns how many bytes of values that took.
func drain(t *testing.T, c *Cursor, k *Sink) int {
	t.Helper()
	n := 0
	for {
		ch, ok := c.Next()
		if !ok {
			return n
		}
		for _, it := range ch.Items {
			n += len(it.Value)
		}
		if err := k.Apply(ch); err != nil {
			t.Fatal(err)
		}
	}
}

func mustSet(t *testing.T, s *Source, name, value string) {
	t.Helper()
	if err := s.Set(key(name), []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func values(m map[Key][]byte) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k.Name] = string(v)
	}
	return out
}

func wantState(t *testing.T, k *Sink, complete bool, want map[string]string) {
	t.Helper()
	s := k.Snapshot()
	if d := cmp.Diff(want, values(s.Items)); d != "" || s.Complete != complete {
		t.Fatalf("complete %v, want %v; items (-want +got):\n%s", s.Complete, complete, d)
	}
}

func TestDeltas(t *testing.T) {
	s, k := NewSource("e1"), NewSink(Limits{}, true)
	mustSet(t, s, "a", "1")
	mustSet(t, s, "b", "2")
	c := s.Cursor(k.Resume())
	drain(t, c, k)
	wantState(t, k, false, map[string]string{"a": "1", "b": "2"})
	s.SetComplete(true)
	drain(t, c, k)
	wantState(t, k, true, map[string]string{"a": "1", "b": "2"})
	s.Delete(key("a"))
	mustSet(t, s, "b", "2") // no change
	mustSet(t, s, "c", "3")
	if got := s.Pending(k.Position()); got != 2 {
		t.Errorf("%d pending, want 2", got)
	}
	// Another connection resumes: the deletion and c travel, b doesn't.
	if n := drain(t, s.Cursor(k.Resume()), k); n != 1 {
		t.Errorf("%d bytes resent, want 1", n)
	}
	wantState(t, k, true, map[string]string{"b": "2", "c": "3"})
	want := Changes{
		Set: map[Key][]byte{key("b"): []byte("2"), key("c"): []byte("3")}, Deleted: []Key{key("a")}, Complete: true,
		Position: Position{Epoch: "e1", Version: 4},
	}
	if d := cmp.Diff(want, k.Take()); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

func TestANewSenderTakesNothingAwayUntilComplete(t *testing.T) {
	k := NewSink(Limits{}, true)
	old := NewSource("e1")
	_ = old.Replace(map[Key][]byte{key("a"): []byte("1"), key("b"): []byte("2")}, true)
	drain(t, old.Cursor(k.Position()), k)

	s := NewSource("e2") // e.g. the server has restarted and is not warm
	mustSet(t, s, "a", "1")
	mustSet(t, s, "c", "3")
	c := s.Cursor(k.Resume())
	drain(t, c, k)
	wantState(t, k, false, map[string]string{"a": "1", "b": "2", "c": "3"})
	s.Delete(key("c"))
	drain(t, c, k)
	wantState(t, k, false, map[string]string{"a": "1", "b": "2", "c": "3"})
	s.SetComplete(true)
	drain(t, c, k)
	wantState(t, k, true, map[string]string{"a": "1"})
}

func TestIncompleteReplaceRemovesNothing(t *testing.T) {
	s, k := NewSource("e"), NewSink(Limits{}, false)
	_ = s.Replace(map[Key][]byte{key("a"): []byte("1")}, true)
	_ = s.Replace(map[Key][]byte{key("b"): []byte("2")}, false)
	c := s.Cursor(k.Resume())
	drain(t, c, k)
	wantState(t, k, false, map[string]string{"a": "1", "b": "2"})
	if err := s.Replace(map[Key][]byte{key("b"): []byte("2"), key("huge"): make([]byte, MaxItemBytes+1)}, true); err == nil || !strings.Contains(err.Error(), "t/huge") {
		t.Errorf("a value that is too large: %v", err)
	}
	drain(t, c, k)
	wantState(t, k, false, map[string]string{"a": "1", "b": "2"}) // an error is no order to delete
	_ = s.Replace(map[Key][]byte{key("b"): []byte("2")}, true)
	drain(t, c, k)
	wantState(t, k, true, map[string]string{"b": "2"})
}

func TestUpdate(t *testing.T) {
	s, k := NewSource("e1"), NewSink(Limits{}, false)
	c := s.Cursor(k.Resume())
	if err := s.Replace(map[Key][]byte{key("a"): []byte("1"), key("b"): []byte("2"), key("c"): []byte("3")}, true); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name     string
		set      map[Key][]byte
		gone     []Key
		complete bool
		fails    bool
		want     map[string]string
	}{
		{"sets and deletes", map[Key][]byte{key("a"): []byte("9"), key("d"): []byte("4")}, []Key{key("b"), key("none")}, true, false, map[string]string{"a": "9", "c": "3", "d": "4"}},
		{"deletes nothing while incomplete", map[Key][]byte{key("a"): []byte("1")}, []Key{key("c")}, false, false, map[string]string{"a": "1", "c": "3", "d": "4"}},
		{"complete again, and it was not forgotten", nil, nil, true, false, map[string]string{"a": "1", "c": "3", "d": "4"}},
		{"deletes only", nil, []Key{key("c")}, true, false, map[string]string{"a": "1", "d": "4"}},
		{"what can't be sent makes it incomplete", map[Key][]byte{key("a"): make([]byte, MaxItemBytes+1), key("e"): []byte("5")}, []Key{key("d")}, true, true, map[string]string{"a": "1", "d": "4", "e": "5"}},
	} {
		if err := s.Update(step.set, step.gone, step.complete); (err != nil) != step.fails {
			t.Errorf("%s: %v", step.name, err)
		}
		drain(t, c, k)
		wantState(t, k, step.complete && !step.fails, step.want)
	}
}

func TestLargeValueTravelsInPartsAndResumes(t *testing.T) {
	s, k := NewSource("e"), NewSink(Limits{}, true)
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxItemBytes/16)
	mustSet(t, s, "a", "1")
	if err := s.Set(key("big"), big); err != nil {
		t.Fatal(err)
	}
	mustSet(t, s, "z", "9")
	s.SetComplete(true)
	c := s.Cursor(k.Resume())
	for i := range 10 { // the connection breaks in the middle of it
		ch, ok := c.Next()
		if !ok || len(ch.Items) != 1 || len(ch.Items[0].Value) > ChunkBytes {
			t.Fatalf("chunk %d: %v, %d items", i, ok, len(ch.Items))
		}
		if err := k.Apply(ch); err != nil {
			t.Fatal(err)
		}
	}
	wantState(t, k, false, map[string]string{"a": "1"})
	c = s.Cursor(k.Resume())
	for range 5 {
		ch, _ := c.Next()
		if err := k.Apply(ch); err != nil {
			t.Fatal(err)
		}
	}
	mustSet(t, s, "big", "small") // it changes while on its way: the old value is finished, then the new one follows
	drain(t, c, k)
	wantState(t, k, true, map[string]string{"a": "1", "big": "small", "z": "9"})
}

func TestForgottenDeletionsMeanAnew(t *testing.T) {
	s, k := NewSource("e"), NewSink(Limits{}, false)
	mustSet(t, s, "keep", "1")
	mustSet(t, s, "gone", "1")
	s.SetComplete(true)
	drain(t, s.Cursor(k.Resume()), k)
	s.Delete(key("gone"))
	for i := range 10 * minTombstones { // while k is away
		name := fmt.Sprint(i)
		mustSet(t, s, name, "x")
		s.Delete(key(name))
	}
	if n := len(s.log) + len(s.tombs) + len(s.dead); n > 10*minTombstones {
		t.Errorf("the source remembers %d things", n)
	}
	c := s.Cursor(k.Resume())
	drain(t, c, k)
	wantState(t, k, true, map[string]string{"keep": "1"})
	// A run that begins anew is itself resumable, although its items are older than what was forgotten.
	for i := range 3000 {
		mustSet(t, s, fmt.Sprint("n", i), strings.Repeat("x", 100))
	}
	mustSet(t, s, "late", "x")
	s.Delete(key("late"))
	s.Acked(s.Head())
	k2 := NewSink(Limits{}, false)
	c = s.Cursor(k2.Resume())
	ch, _ := c.Next()
	if err := k2.Apply(ch); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Pending(k2.Position()), 3001-len(ch.Items); got != want {
		t.Errorf("%d pending after a broken first run, want %d", got, want)
	}
	for range 200 {
		if ch, ok := c.Next(); !ok {
			break
		} else if err := k2.Apply(ch); err != nil {
			t.Fatal(err)
		}
	}
	if s := k2.Snapshot(); len(s.Items) != 3001 || !s.Complete {
		t.Errorf("%d items, complete %v: a first run never ends while older deletions are forgotten", len(s.Items), s.Complete)
	}
}

func TestSinkRefuses(t *testing.T) {
	ok := func() Chunk {
		return Chunk{Epoch: "e", After: 2, Through: 4, Head: 4, Complete: true, Items: []Item{{Key: key("c"), Version: 3}, {Key: key("d"), Version: 4, Value: []byte("v")}}}
	}
	for name, change := range map[string]func(*Chunk){
		"no epoch":            func(c *Chunk) { c.Epoch = "" },
		"long epoch":          func(c *Chunk) { c.Epoch = strings.Repeat("e", 65) },
		"other epoch":         func(c *Chunk) { c.Epoch = "f" },
		"gap":                 func(c *Chunk) { c.After = 3 },
		"of the past":         func(c *Chunk) { c.After, c.Through, c.Head, c.Items = 0, 1, 1, nil },
		"of another run":      func(c *Chunk) { c.Base = 1 },
		"repeated":            func(c *Chunk) { c.After = 1 },
		"backwards":           func(c *Chunk) { c.Through = 1 },
		"beyond head":         func(c *Chunk) { c.Head = 3 },
		"complete midway":     func(c *Chunk) { c.Head = 5 },
		"item out of order":   func(c *Chunk) { c.Items[1].Version = 3 },
		"item of the past":    func(c *Chunk) { c.Items[0].Version = 2 },
		"item of the future":  func(c *Chunk) { c.Items[1].Version = 5 },
		"no name":             func(c *Chunk) { c.Items[0].Name = "" },
		"no type":             func(c *Chunk) { c.Items[0].Type = "" },
		"long name":           func(c *Chunk) { c.Items[0].Name = strings.Repeat("n", 1025) },
		"deleted with value":  func(c *Chunk) { c.Items[1].Deleted = true },
		"part of nothing":     func(c *Chunk) { c.Items[0].Part, c.Items[0].Parts = 1, 2 },
		"part beyond parts":   func(c *Chunk) { c.Items[0].Part, c.Items[0].Parts = 2, 2 },
		"part without parts":  func(c *Chunk) { c.Items[0].Part = 1 },
		"item after a part":   func(c *Chunk) { c.Items[0].Parts = 2 },
		"complete mid-value":  func(c *Chunk) { c.Items[1].Parts = 2 },
		"too large":           func(c *Chunk) { c.Items[1].Value = make([]byte, MaxChunkBytes+1) },
		"more than the limit": func(c *Chunk) { c.Items[1].Value = make([]byte, 2000) },
		"too many": func(c *Chunk) {
			c.Head, c.Through = 5, 5
			c.Items = append(c.Items, Item{Key: key("e"), Version: 5})
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := NewSink(Limits{Items: 4, Bytes: 1000}, false)
			if err := k.Apply(Chunk{Epoch: "e", Through: 2, Head: 2, Complete: true, Items: []Item{{Key: key("a"), Version: 1}, {Key: key("b"), Version: 2}}}); err != nil {
				t.Fatal(err)
			}
			c := ok()
			change(&c)
			if err := k.Apply(c); err == nil {
				t.Fatal("taken")
			}
			if got := k.Position(); got != (Position{Epoch: "e", Version: 2}) {
				t.Errorf("position moved to %v", got)
			}
			if err := k.Apply(ok()); err != nil {
				t.Errorf("the right chunk is refused afterwards: %v", err)
			}
		})
	}
}

// TestModel runs random histories with connections that break, repeat and reorder, against the simplest model: every state that
// the source ever had. A sink that says Complete must hold exactly one of them, never an older one than before in the same epoch;
// a key that lived in every state since the last complete one is never missing; and in the end the sink converges.
func TestModel(t *testing.T) {
	runs := 300
	if testing.Short() {
		runs = 30
	}
	for seed := range runs {
		modelRun(t, rand.New(rand.NewPCG(uint64(seed), 1)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type model struct {
	src     *Source
	now     map[string]string
	history []map[string]string // every state since the source began; history[0] is empty
}

func (m *model) record() { m.history = append(m.history, maps.Clone(m.now)) }

func modelRun(t *testing.T, r *rand.Rand) {
	epoch := 0
	newSource := func() *model {
		epoch++
		return &model{src: NewSource(fmt.Sprint("e", epoch)), now: map[string]string{}, history: []map[string]string{{}}}
	}
	m, k := newSource(), NewSink(Limits{}, true)
	mirror := map[string]string{} // built from Take alone
	cur := m.src.Cursor(k.Resume())
	cur.max = 64 + r.IntN(200)
	var wire []Chunk
	lastComplete, lastEpoch := map[string]string(nil), ""
	floor := 0 // index into history of the last complete state seen
	since := func(name string) bool {
		// name was in the last complete state and in every state of the source since
		if lastComplete == nil {
			return false
		}
		if _, ok := lastComplete[name]; !ok {
			return false
		}
		if lastEpoch != m.src.epoch {
			return true // nothing may go before the new source is complete
		}
		for _, h := range m.history[floor:] {
			if _, ok := h[name]; !ok {
				return false
			}
		}
		return true
	}
	check := func() {
		s := k.Snapshot()
		got := values(s.Items)
		ch := k.Take()
		for key, v := range ch.Set {
			mirror[key.Name] = string(v)
		}
		for _, key := range ch.Deleted {
			delete(mirror, key.Name)
		}
		if d := cmp.Diff(got, mirror); d != "" {
			t.Fatalf("Take and Snapshot differ:\n%s", d)
		}
		if s.Complete {
			if s.Position.Epoch == m.src.epoch {
				from := 0
				if lastEpoch == m.src.epoch {
					from = floor
				}
				found := -1
				for i := from; i < len(m.history); i++ {
					if maps.Equal(m.history[i], got) { // the earliest: states may recur
						found = i
						break
					}
				}
				if found < 0 {
					t.Fatal("complete, but no state the source had since")
				}
				floor, lastEpoch = found, m.src.epoch
			}
			lastComplete = got
			return
		}
		for name := range lastComplete {
			if _, ok := got[name]; !ok && since(name) {
				t.Fatalf("%q is missing midway, though it lived all the time", name)
			}
		}
	}
	for step := range 400 {
		switch n := r.IntN(100); {
		case n < 35:
			name, v := fmt.Sprint("k", r.IntN(12)), strings.Repeat("v", r.IntN(600))+fmt.Sprint(step)
			if r.IntN(3) == 0 {
				v = "again and again"
			}
			if err := m.src.Set(key(name), []byte(v)); err != nil {
				t.Fatal(err)
			}
			m.now[name] = v
			m.record()
		case n < 50:
			name := fmt.Sprint("k", r.IntN(12))
			m.src.Delete(key(name))
			delete(m.now, name)
			m.record()
		case n < 53:
			m.src.SetComplete(r.IntN(4) > 0)
		case n < 80:
			if ch, ok := cur.Next(); ok {
				wire = append(wire, ch)
			}
		case n < 84:
			m.src.Acked(k.Position())
		case n < 85: // much is forgotten at once
			m.src.mu.Lock()
			m.src.forget(len(m.src.tombs))
			m.src.mu.Unlock()
		case n < 87 && step < 350: // the sender restarts with another state
			m = newSource()
			wire = nil
			cur = m.src.Cursor(k.Resume())
			cur.max = 64 + r.IntN(200)
		case n < 90: // the network repeats, swaps or loses; an error ends the connection
			if len(wire) > 0 {
				i := r.IntN(len(wire))
				switch r.IntN(3) {
				case 0:
					if wire[i].After != 0 { // a first chunk, repeated, means "anew" and is taken as such
						wire = append(wire, wire[i])
					}
				case 1:
					wire[0], wire[i] = wire[i], wire[0]
				case 2:
					wire = append(wire[:i:i], wire[i+1:]...)
				}
			}
		default:
			for len(wire) > 0 && r.IntN(5) > 0 {
				err := k.Apply(wire[0])
				wire = wire[1:]
				check()
				if err != nil {
					wire = nil
					cur = m.src.Cursor(k.Resume())
					cur.max = 64 + r.IntN(200)
				}
			}
		}
	}
	m.src.SetComplete(true)
	cur = m.src.Cursor(k.Resume())
	for ch, ok := cur.Next(); ok; ch, ok = cur.Next() {
		if err := k.Apply(ch); err != nil {
			t.Fatalf("at the end: %v", err)
		}
		check()
	}
	wantState(t, k, true, m.now)
	if n := k.bytes; n != sinkBytes(k) {
		t.Fatalf("the sink counts %d bytes, holds %d", n, sinkBytes(k))
	}
}

func sinkBytes(k *Sink) (n int64) {
	for key, h := range k.items {
		n += int64(len(key.Type) + len(key.Name) + len(h.value))
	}
	return n
}

func BenchmarkSet(b *testing.B) {
	s := NewSource("e")
	for i := 0; b.Loop(); i++ {
		_ = s.Set(Key{"object", fmt.Sprint(i % 40000)}, []byte(fmt.Sprint(i)))
	}
}

// TestTakeAway: what was taken away is not held, and still known: sent anew it is no change, another value is, and its absence is a deletion.
func TestTakeAway(t *testing.T) {
	s, k := NewSource("e1"), NewSink(Limits{}, true)
	mustSet(t, s, "a", "1")
	mustSet(t, s, "b", "2")
	mustSet(t, s, "empty", "")
	s.SetComplete(true)
	drain(t, s.Cursor(k.Resume()), k)
	if got := k.TakeAway(); len(got.Set) != 3 || string(got.Set[key("a")]) != "1" {
		t.Errorf("first: %v", got)
	}
	for name, v := range k.Snapshot().Items {
		if v != nil {
			t.Errorf("%v is held: %q", name, v)
		}
	}
	again := NewSource("e2") // the sender restarted: all is sent anew
	mustSet(t, again, "a", "1")
	mustSet(t, again, "b", "3")
	again.SetComplete(true)
	drain(t, again.Cursor(k.Resume()), k)
	got := k.TakeAway()
	if len(got.Set) != 1 || string(got.Set[key("b")]) != "3" || len(got.Deleted) != 1 || got.Deleted[0] != key("empty") {
		t.Errorf("after a restart: %v", got)
	}
	if k.bytes != int64(len("1")+len("3")+2*len(key("a").Type)+2) {
		t.Errorf("%d bytes are counted", k.bytes)
	}
}
