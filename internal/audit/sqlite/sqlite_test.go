package sqlite_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/sqlite"
	"ambitmesh.dev/ambit/internal/audit/storetest"
)

func open(t testing.TB, file string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(context.Background(), file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) {
	dirs := map[string]string{}
	storetest.Run(t, func(t *testing.T) audit.Store {
		if dirs[t.Name()] == "" {
			dirs[t.Name()] = t.TempDir()
		}
		return open(t, filepath.Join(dirs[t.Name()], "a log.db"))
	})
}

const crashFile, crashKey = "AMBIT_TEST_AUDIT_FILE", "AMBIT_TEST_AUDIT_KEY"

// TestMain is the process that TestKilled kills, too: it appends, and says each record that was acknowledged.
func TestMain(m *testing.M) {
	file := os.Getenv(crashFile)
	if file == "" {
		os.Exit(m.Run())
	}
	var key audit.Key
	if err := json.Unmarshal([]byte(os.Getenv(crashKey)), &key); err != nil {
		panic(err)
	}
	s, err := sqlite.Open(context.Background(), file)
	if err != nil {
		panic(err)
	}
	l := audit.New(audit.Config{Open: audit.Of(s, key), Log: slog.New(slog.DiscardHandler)})
	go func() { _ = l.Run(context.Background()) }()
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if err := l.Append(context.Background(), audit.Record{Act: audit.Admitted, Object: "AccessPolicy gloo-mesh/" + name}); err != nil {
					panic(err)
				}
				os.Stdout.WriteString(name + "\n")
			}
		}()
	}
	time.Sleep(time.Minute) // killed long before
	os.Exit(1)
}

// A process killed at any moment loses nothing that it acknowledged, and leaves a log that is whole.
func TestKilled(t *testing.T) {
	file, key := filepath.Join(t.TempDir(), "log.db"), storetest.NewKey(t)
	rawKey, _ := json.Marshal(key)
	acknowledged := map[string]bool{}
	for round := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashFile+"="+file, crashKey+"="+string(rawKey))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewScanner(out)
		for n := 0; in.Scan(); n++ {
			acknowledged[in.Text()] = true
			if n == 5+round*7 {
				_ = cmd.Process.Signal(syscall.SIGKILL) // and read on: what it said before it died was acknowledged
			}
		}
		_ = cmd.Wait()
	}
	s := open(t, file)
	found := map[string]bool{}
	for _, r := range storetest.All(t, s, audit.Query{}) {
		found[strings.TrimPrefix(r.Object, "AccessPolicy gloo-mesh/")] = true
	}
	if len(acknowledged) < 100 {
		t.Fatalf("only %d were acknowledged", len(acknowledged))
	}
	for name := range acknowledged {
		if !found[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	l, _ := storetest.Start(t, s, key, nil)
	export := exported(t, l, audit.Query{})
	v, err := audit.Verify(strings.NewReader(export), key.Public, nil)
	if err != nil || int(v.Entries) != len(found) {
		t.Errorf("the log is not whole: %v %v", v, err)
	}
}

func exported(t testing.TB, l *audit.Log, q audit.Query) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := l.ExportJSONL(context.Background(), &out, q, ""); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// forge changes the store behind the log's back.
func forge(t *testing.T, file string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range append([]string{"DROP TRIGGER records_stay", "DROP TRIGGER records_same", "DROP TRIGGER hashes_stay", "DROP TRIGGER hashes_same", "DROP TRIGGER head_grows"}, statements...) {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func TestForged(t *testing.T) {
	for name, tc := range map[string]struct {
		statements []string
		record     int64 // that is named; -1: another error than a fault of the export
		append     bool  // the next append is refused
	}{
		"a byte of a record":                 {[]string{`UPDATE records SET data = replace(data, 'user-1', 'user-9') WHERE n = 7`}, 7, false},
		"a record taken out":                 {[]string{`DELETE FROM records WHERE n = 7`}, 7, false},
		"two records in each other's place":  {[]string{`UPDATE records SET n = -1 WHERE n = 7`, `UPDATE records SET n = 7 WHERE n = 8`, `UPDATE records SET n = 8 WHERE n = -1`}, 7, false},
		"the tail cut":                       {[]string{`DELETE FROM records WHERE n >= 15`}, 15, true},
		"the tail cut, and the head's size":  {[]string{`DELETE FROM records WHERE n >= 15`, `UPDATE head SET size = 15`}, 15, true},
		"a byte of a hash":                   {[]string{`UPDATE hashes SET hash = zeroblob(32) WHERE i = 3`}, 3, false},
		"a byte of a hash of the right edge": {[]string{`UPDATE hashes SET hash = zeroblob(32) WHERE i = 30`}, 16, true},
		"the head":                           {[]string{`UPDATE head SET note = replace(note, '20', '21')`}, -1, true},
	} {
		t.Run(name, func(t *testing.T) {
			file, key := filepath.Join(t.TempDir(), "log.db"), storetest.NewKey(t)
			s := open(t, file)
			l, stop := storetest.Start(t, s, key, nil)
			if err := l.Append(t.Context(), storetest.Sample(20)...); err != nil {
				t.Fatal(err)
			}
			stop()
			_ = s.Close()
			forge(t, file, tc.statements...)
			s = open(t, file)
			l, _ = storetest.Start(t, s, key, nil)
			var out bytes.Buffer
			_, err := l.ExportJSONL(t.Context(), &out, audit.Query{}, "")
			if tc.record < 0 {
				if err == nil {
					t.Error("exported without an error")
				}
			} else {
				_, err = audit.Verify(&out, key.Public, nil)
				var fault *audit.Fault
				if !errors.As(err, &fault) || fault.Record != tc.record {
					t.Errorf("want record %d named, got %v", tc.record, err)
				}
			}
			if err := l.Append(t.Context(), storetest.Sample(1)...); (err != nil) != tc.append {
				t.Errorf("append to a forged log: %v", err)
			}
		})
	}
}

// The triggers refuse what is no addition, as long as nobody takes them out.
func TestAppendOnly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log.db")
	s := open(t, file)
	l, stop := storetest.Start(t, s, storetest.NewKey(t), nil)
	if err := l.Append(t.Context(), storetest.Sample(3)...); err != nil {
		t.Fatal(err)
	}
	stop()
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range []string{"DELETE FROM records", "UPDATE records SET data = ''", "DELETE FROM hashes", "UPDATE hashes SET hash = ''", "UPDATE head SET size = 0"} {
		if _, err := db.Exec(s); err == nil {
			t.Errorf("%s was let through", s)
		}
	}
}

// A disk that is full or can't be written refuses, says so, and needs no hand when it is well again.
func TestFull(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log.db")
	s := open(t, file)
	l, _ := storetest.Start(t, s, storetest.NewKey(t), nil)
	if err := l.Append(t.Context(), storetest.Sample(1)...); err != nil {
		t.Fatal(err)
	}
	var pages int
	if err := s.WriteDB().QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	limit := func(n int) {
		if _, err := s.WriteDB().Exec("PRAGMA max_page_count = " + strconv.Itoa(n)); err != nil {
			t.Fatal(err)
		}
	}
	limit(pages) // SQLITE_FULL, as of a full disk
	err := l.Append(t.Context(), storetest.Sample(200)...)
	if err == nil || !strings.Contains(err.Error(), "full") || l.Failed() == nil {
		t.Errorf("on a full disk: %v", err)
	}
	if got := storetest.All(t, s, audit.Query{}); len(got) != 1 {
		t.Errorf("%d records after a refusal", len(got))
	}
	limit(1 << 30)
	if err := l.Append(t.Context(), storetest.Sample(200)...); err != nil || l.Failed() != nil {
		t.Errorf("when there is room again: %v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	l, _ := storetest.Start(b, open(b, filepath.Join(b.TempDir(), "log.db")), storetest.NewKey(b), io.Discard)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		r := storetest.Sample(1)[0]
		for pb.Next() {
			if err := l.Append(context.Background(), r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
