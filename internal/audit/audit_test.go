package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/storetest"
)

// memory is a Store that fails when told to.
type memory struct {
	records [][]byte
	hashes  []tlog.Hash
	head    []byte
	fail    error
}

func (m *memory) Head(context.Context) (int64, []byte, error) {
	return int64(len(m.records)), m.head, m.fail
}

func (m *memory) Commit(_ context.Context, b audit.Batch) error {
	if m.fail != nil {
		return m.fail
	}
	if b.Size != int64(len(m.records)) {
		return audit.ErrBehind
	}
	m.records, m.hashes, m.head = append(m.records, b.Records...), append(m.hashes, b.Hashes...), b.Head
	return nil
}

func (m *memory) Hashes(_ context.Context, indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, m.hashes[i])
	}
	return out, nil
}

func (m *memory) Records(_ context.Context, q audit.Query) iter.Seq2[audit.Row, error] {
	return func(yield func(audit.Row, error) bool) {
		for i, raw := range m.records {
			if r, err := audit.Decode(raw); err != nil || int64(i) < q.After || q.Before > 0 && int64(i) >= q.Before || q.User != "" && r.User != q.User {
				continue
			}
			if !yield(audit.Row{N: int64(i), Data: raw}, nil) {
				return
			}
		}
	}
}

func export(t testing.TB, q audit.Query, n int) (lines []string, key audit.Key) {
	t.Helper()
	key = storetest.NewKey(t)
	l, _ := storetest.Start(t, &memory{}, key, nil)
	if err := l.Append(context.Background(), storetest.Sample(n)...); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := l.ExportJSONL(context.Background(), &out, q, "asked"); err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(strings.TrimSuffix(out.String(), "\n"), "\n"), key
}

func TestVerify(t *testing.T) {
	whole, key := export(t, audit.Query{}, 12) // header, 12 records, footer
	some, someKey := export(t, audit.Query{User: "user-1@bank.example.com"}, 12)
	other, _ := export(t, audit.Query{}, 12)
	with := func(lines []string, i int, line string) []string {
		out := append([]string(nil), lines...)
		out[i] = line
		return out
	}
	without := func(lines []string, i int) []string {
		return append(append([]string(nil), lines[:i]...), lines[i+1:]...)
	}
	swapped := func(lines []string, i int) []string { return with(with(lines, i, lines[i+1]), i+1, lines[i]) }
	for name, tc := range map[string]struct {
		lines  []string
		key    string
		line   int // of the fault; 0: none
		record int64
	}{
		"whole":                   {whole, key.Public, 0, 0},
		"whole, its own key":      {whole, "", 0, 0},
		"another log's key":       {whole, someKey.Public, 1, -1},
		"filtered":                {some, someKey.Public, 0, 0},
		"a name altered":          {with(whole, 5, strings.Replace(whole[5], "user-1", "user-2", 1)), key.Public, 6, 4},
		"a proof altered":         {with(whole, 5, strings.Replace(whole[5], `"proof":["`, `"proof":["AA`, 1)), key.Public, 6, 4},
		"its number altered":      {with(whole, 5, strings.Replace(whole[5], `"n":4`, `"n":5`, 1)), key.Public, 6, 4},
		"the first removed":       {without(whole, 1), key.Public, 2, 0},
		"one removed":             {without(whole, 5), key.Public, 6, 4},
		"the last removed":        {without(whole, 12), key.Public, 13, 11},
		"the end cut":             {whole[:9], key.Public, 9, -1},
		"two moved":               {swapped(whole, 5), key.Public, 6, 4},
		"one twice":               {with(whole, 6, whole[5]), key.Public, 7, 4},
		"all of another log":      {append([]string{whole[0]}, other[1:]...), key.Public, 14, -1},
		"filtered, one removed":   {without(some, 2), someKey.Public, 3, 7},
		"filtered, last removed":  {without(some, len(some)-2), someKey.Public, len(some) - 1, -1},
		"filtered, said whole":    {with(some, 0, strings.Replace(some[0], `"whole":false`, `"whole":true`, 1)), someKey.Public, 2, 0},
		"the question altered":    {with(some, 0, strings.Replace(some[0], "asked", "other", 1)), someKey.Public, len(some), -1},
		"something after the end": {append(append([]string(nil), with(whole, 13, whole[13]+"\n")...), "x"), key.Public, 15, -1},
		"an unknown field":        {with(whole, 5, strings.Replace(whole[5], `{"i"`, `{"x":1,"i"`, 1)), key.Public, 6, 4},
		"nothing":                 {nil, key.Public, 1, -1},
		"no export":               {[]string{"hello"}, key.Public, 1, -1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := audit.Verify(strings.NewReader(strings.Join(tc.lines, "")), tc.key, nil)
			if tc.line == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var fault *audit.Fault
			if !errors.As(err, &fault) || fault.Line != tc.line || fault.Record != tc.record {
				t.Errorf("want line %d, record %d; got %v", tc.line, tc.record, err)
			}
		})
	}
}

// No byte of an export can be changed unseen.
func TestEveryByte(t *testing.T) {
	lines, key := export(t, audit.Query{}, 3)
	raw := []byte(strings.Join(lines, ""))
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 1
		if _, err := audit.Verify(bytes.NewReader(changed), key.Public, nil); err == nil {
			t.Errorf("byte %d (%q to %q in %s) was changed unseen", i, raw[i], changed[i], raw[max(0, i-20):min(i+20, len(raw))])
		}
	}
}

func FuzzVerify(f *testing.F) {
	lines, key := export(f, audit.Query{}, 3)
	good := strings.Join(lines, "")
	f.Add([]byte(good))
	f.Add([]byte(lines[0]))
	f.Add([]byte(`{"ambitAuditExport":1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var seen []audit.Record
		v, err := audit.Verify(bytes.NewReader(raw), key.Public, func(r audit.Record) error { seen = append(seen, r); return nil })
		if err != nil {
			return
		}
		if v.Entries != 3 || len(seen) != 3 { // nobody else has the key
			t.Errorf("verified %d entries that nobody signed", v.Entries)
		}
	})
}

func TestExtends(t *testing.T) {
	key := storetest.NewKey(t)
	store := &memory{}
	l, _ := storetest.Start(t, store, key, nil)
	var heads []audit.Head
	for range 9 {
		if err := l.Append(t.Context(), storetest.Sample(3)...); err != nil {
			t.Fatal(err)
		}
		signed, _ := l.Head(t.Context())
		h, err := audit.OpenHead(signed, key.Public)
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, h)
	}
	for i, old := range heads {
		for _, now := range heads[i:] {
			proof, err := l.Consistency(t.Context(), old.Size, now.Size)
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.Extends(old, now, proof); err != nil {
				t.Errorf("%d to %d: %v", old.Size, now.Size, err)
			}
			forked := old
			forked.Root[0] ^= 1
			if audit.Extends(forked, now, proof) == nil {
				t.Errorf("%d to %d: a fork was not seen", old.Size, now.Size)
			}
			if old.Size < now.Size && audit.Extends(now, old, nil) == nil {
				t.Errorf("%d to %d: a cut was not seen", now.Size, old.Size)
			}
			replaced := now
			replaced.Origin = "mgmt/another"
			if audit.Extends(old, replaced, proof) == nil {
				t.Error("a replaced log was not seen")
			}
		}
	}
}

func TestClean(t *testing.T) {
	secrets := []string{
		"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIplanted\n-----END EC PRIVATE KEY-----", "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJwbGFudGVkIn0.c2lnbmF0dXJl", "hvs.CAESIJplantedplantedplanted",
		"AKIAPLANTEDPLANTED00", "ghp_plantedplantedplantedplanted", "hunter2-planted",
	}
	r := audit.Record{
		Act: audit.Admitted, User: "system:serviceaccount:token:jane", Detail: "login with password=" + secrets[5] + " at https://bob:" + secrets[5] + "@vault:8200; Bearer " + secrets[1],
		Extra: map[string][]string{"authorization": {secrets[5]}, "scopes": {secrets[0]}},
		Diff: []audit.Change{
			{Path: "metadata.annotations.note", Old: secrets[0], New: "x " + secrets[2] + " y"},
			{Path: "spec.vault.token", Old: secrets[5], New: map[string]any{"a": []any{secrets[5]}}},
			{Path: "spec", New: map[string]any{"clientSecret": secrets[5], "tokenSecretRef": map[string]any{"name": "kept"}, "ids": []any{secrets[3], secrets[4]}, "apiKey": json.Number("4711")}},
		},
		Certificate: &audit.Certificate{Subject: secrets[0]}, Membership: &audit.Membership{Permissions: []string{secrets[1]}},
	}
	store := &memory{}
	l, _ := storetest.Start(t, store, storetest.NewKey(t), nil)
	if err := l.Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	got := string(store.records[0])
	for _, s := range append(secrets, "planted", "PLANTED", "4711") {
		if strings.Contains(got, s) {
			t.Errorf("%q is on record: %s", s, got)
		}
	}
	if !strings.Contains(got, `"tokenSecretRef":{"name":"kept"}`) || !strings.Contains(got, "system:serviceaccount:token:jane") {
		t.Errorf("the name of a Secret or a user is none: %s", got)
	}
}

func TestBounded(t *testing.T) {
	big := map[string]any{}
	for i := range 5000 {
		big[strings.Repeat("k", 100)+string(rune('a'+i%26))+strings.Repeat("x", i%50)+time.Duration(i).String()] = strings.Repeat("v", 10_000)
	}
	store := &memory{}
	l, _ := storetest.Start(t, store, storetest.NewKey(t), nil)
	if err := l.Append(t.Context(), audit.Record{Act: audit.Admitted, Diff: audit.Diff(nil, big), Detail: strings.Repeat("d", 1<<20)}); err != nil {
		t.Fatal(err)
	}
	if n := len(store.records[0]); n > 200<<10 {
		t.Errorf("a record of %d bytes", n)
	}
}

func TestDiff(t *testing.T) {
	got := audit.Diff(
		map[string]any{"spec": map[string]any{"a": "1", "same": "x", "gone": []any{"1"}}},
		map[string]any{"spec": map[string]any{"a": "2", "same": "x", "new": map[string]any{"b": true}}})
	want := []audit.Change{{"spec.a", "1", "2"}, {"spec.gone", []any{"1"}, nil}, {"spec.new", nil, map[string]any{"b": true}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// No record, no act: the caller is told, and what comes when the store is well again takes its place.
func TestStoreFails(t *testing.T) {
	store := &memory{fail: errors.New("no space left on device")}
	key := storetest.NewKey(t)
	l, stop := storetest.Start(t, store, key, nil)
	if err := l.Append(t.Context(), storetest.Sample(1)...); err == nil || l.Failed() == nil {
		t.Error("a record that could not be written counts as recorded")
	}
	stop()
	store.fail = nil
	l, _ = storetest.Start(t, store, key, nil)
	if err := l.Append(t.Context(), storetest.Sample(1)...); err != nil || l.Failed() != nil {
		t.Error(err)
	}
}
