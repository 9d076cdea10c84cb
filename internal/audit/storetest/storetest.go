// Package storetest is what every audit.Store must do, as tests.
//
// In: a way to open a Store, anew or again. Out: failures of t. It must not know how a store keeps what it keeps.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"ambitmesh.dev/ambit/internal/audit"
)

// Run runs every test. open opens the store of a test; called a second time by the same test, it opens the same log again.
func Run(t *testing.T, open func(t *testing.T) audit.Store) {
	t.Run("empty", func(t *testing.T) { empty(t, open(t)) })
	t.Run("appends and finds", func(t *testing.T) { finds(t, open) })
	t.Run("two writers", func(t *testing.T) { twoWriters(t, open(t), open(t)) })
	t.Run("many at once", func(t *testing.T) { many(t, open(t)) })
	t.Run("refuses a batch for another size", func(t *testing.T) { behind(t, open(t)) })
}

// Start returns a Log that runs until the test ends, or stop is called.
func Start(t testing.TB, store audit.Store, key audit.Key, mirror io.Writer) (l *audit.Log, stop func()) {
	t.Helper()
	l = audit.New(audit.Config{Open: audit.Of(store, key), Mirror: mirror, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return l, stop
}

// NewKey makes a key.
func NewKey(t testing.TB) audit.Key {
	t.Helper()
	k, err := audit.NewKey("mgmt")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// All reads what answers a query.
func All(t testing.TB, s audit.Store, q audit.Query) []audit.Record {
	t.Helper()
	var out []audit.Record
	for row, err := range s.Records(t.Context(), q) {
		if err != nil {
			t.Fatal(err)
		}
		r, err := audit.Decode(row.Data)
		if err != nil {
			t.Fatal(err)
		}
		if r.N != row.N {
			t.Errorf("row %d holds record %d", row.N, r.N)
		}
		out = append(out, r)
	}
	return out
}

func empty(t *testing.T, s audit.Store) {
	size, note, err := s.Head(t.Context())
	if size != 0 || len(note) != 0 || err != nil {
		t.Errorf("head of an empty log: %d %q %v", size, note, err)
	}
	if got := All(t, s, audit.Query{}); len(got) > 0 {
		t.Errorf("records of an empty log: %v", got)
	}
	if _, err := s.Hashes(t.Context(), []int64{0}); err == nil {
		t.Error("a hash that is not there")
	}
}

// Sample returns n records, an hour apart.
func Sample(n int) []audit.Record {
	at := time.Date(2026, 2, 12, 10, 14, 0, 123456000, time.UTC)
	out := make([]audit.Record, n)
	for i := range out {
		out[i] = audit.Record{
			At: at.Add(time.Duration(i) * time.Hour), Act: audit.Admitted, User: fmt.Sprintf("user-%d@bank.example.com", i%3), Groups: []string{"system:authenticated"}, Source: "admission",
			Cluster: fmt.Sprintf("cluster-%d", i%5), Operation: "UPDATE", Object: fmt.Sprintf("AccessPolicy gloo-mesh/policy-%d", i%7), Policy: fmt.Sprintf("gloo-mesh/policy-%d", i%7),
			Diff: []audit.Change{{Path: "spec.action", Old: "ALLOW", New: "DENY <all> & more"}},
		}
	}
	return out
}

func finds(t *testing.T, open func(t *testing.T) audit.Store) {
	s, key, sample := open(t), NewKey(t), Sample(40)
	l, stop := Start(t, s, key, nil)
	for i := 0; i < len(sample); i += 7 {
		if err := l.Append(t.Context(), slices.Clone(sample[i:min(i+7, len(sample))])...); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	for i := range sample {
		sample[i].N = int64(i)
	}
	s = open(t) // after a restart
	pick := func(keep func(audit.Record) bool) []audit.Record {
		return slices.DeleteFunc(slices.Clone(sample), func(r audit.Record) bool { return !keep(r) })
	}
	for name, tc := range map[string]struct {
		q    audit.Query
		want []audit.Record
	}{
		"all":          {audit.Query{}, sample},
		"times":        {audit.Query{From: sample[10].At, To: sample[20].At}, sample[10:20]},
		"from, latest": {audit.Query{From: sample[37].At, Last: true, Limit: 2}, []audit.Record{sample[39], sample[38]}},
		"user":         {audit.Query{User: "user-1@bank.example.com"}, pick(func(r audit.Record) bool { return r.N%3 == 1 })},
		"cluster and times": {
			audit.Query{Cluster: "cluster-2", From: sample[10].At, To: sample[30].At}, pick(func(r audit.Record) bool { return r.N%5 == 2 && r.N >= 10 && r.N < 30 }),
		},
		"object":          {audit.Query{Object: "AccessPolicy gloo-mesh/policy-3"}, pick(func(r audit.Record) bool { return r.N%7 == 3 })},
		"name":            {audit.Query{Name: "policy-3"}, pick(func(r audit.Record) bool { return r.N%7 == 3 })},
		"name, a cluster": {audit.Query{Name: "cluster-3"}, pick(func(r audit.Record) bool { return r.N%5 == 3 })},
		"policy":          {audit.Query{Policy: "gloo-mesh/policy-6"}, pick(func(r audit.Record) bool { return r.N%7 == 6 })},
		"places":          {audit.Query{After: 5, Before: 9}, sample[5:9]},
		"nobody":          {audit.Query{User: "nobody"}, nil},
		"quotes":          {audit.Query{User: `' OR 1=1 --`}, nil},
		"act":             {audit.Query{Act: audit.Refused}, nil},
	} {
		if diff := cmp.Diff(tc.want, All(t, s, tc.q)); diff != "" && len(tc.want)+len(All(t, s, tc.q)) > 0 {
			t.Errorf("%s: %s", name, diff)
		}
	}
	prove(t, s, key)
}

// prove checks the head and every record against it.
func prove(t *testing.T, s audit.Store, key audit.Key) {
	t.Helper()
	l, _ := Start(t, s, key, nil)
	signed, err := l.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h, err := audit.OpenHead(signed, key.Public)
	if err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for row, err := range s.Records(t.Context(), audit.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if row.N != n {
			t.Fatalf("record %d after %d", row.N, n-1)
		}
		n++
		proof, err := l.Inclusion(t.Context(), h.Size, row.N)
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.CheckRecord(proof, h.Size, h.Root, row.N, tlog.RecordHash(row.Data)); err != nil {
			t.Errorf("record %d: %v", row.N, err)
		}
	}
	if n != h.Size {
		t.Errorf("%d records, and the head says %d", n, h.Size)
	}
}

func twoWriters(t *testing.T, a, b audit.Store) {
	key := NewKey(t)
	one, _ := Start(t, a, key, nil)
	two, _ := Start(t, b, key, nil)
	var wg sync.WaitGroup
	for _, l := range []*audit.Log{one, two} {
		wg.Go(func() {
			for i := range 30 {
				if err := l.Append(t.Context(), Sample(3)[i%3]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(All(t, a, audit.Query{})); got != 60 {
		t.Errorf("%d of 60 records", got)
	}
	prove(t, b, key)
}

func many(t *testing.T, s audit.Store) {
	key := NewKey(t)
	l, _ := Start(t, s, key, nil)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				if err := l.Append(t.Context(), Sample(1)...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(All(t, s, audit.Query{})); got != 1000 {
		t.Errorf("%d of 1000 records", got)
	}
	prove(t, s, key)
}

func behind(t *testing.T, s audit.Store) {
	l, stop := Start(t, s, NewKey(t), nil)
	if err := l.Append(t.Context(), Sample(2)...); err != nil {
		t.Fatal(err)
	}
	stop()
	err := s.Commit(t.Context(), audit.Batch{Size: 1, Records: [][]byte{[]byte("{}")}, Head: []byte("x")})
	if !errors.Is(err, audit.ErrBehind) {
		t.Errorf("want ErrBehind, got %v", err)
	}
}
