package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/postgres"
	"ambitmesh.dev/ambit/internal/audit/storetest"
	"ambitmesh.dev/ambit/test/postgrestest"
)

func open(t testing.TB, connection string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(context.Background(), connection)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// database makes an empty database, and gives its connection string.
func database(t testing.TB, server *postgrestest.Server, name string) string {
	t.Helper()
	run(t, server.URL, "CREATE DATABASE "+name)
	return strings.Replace(server.URL, "/postgres?", "/"+name+"?", 1)
}

func run(t testing.TB, connection string, statements ...string) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), connection)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for _, s := range statements {
		if _, err := c.Exec(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func TestStore(t *testing.T) {
	server := postgrestest.Start(t)
	databases := map[string]string{}
	storetest.Run(t, func(t *testing.T) audit.Store {
		if databases[t.Name()] == "" {
			databases[t.Name()] = database(t, server, fmt.Sprintf("log%d", len(databases)))
		}
		return open(t, databases[t.Name()])
	})
}

// A server that is gone refuses, says so, loses nothing that it acknowledged, and needs no hand when it is back.
func TestServerGone(t *testing.T) {
	server := postgrestest.Start(t)
	s := open(t, server.URL)
	l, _ := storetest.Start(t, s, storetest.NewKey(t), nil)
	for range 3 {
		if err := l.Append(t.Context(), storetest.Sample(5)...); err != nil {
			t.Fatal(err)
		}
		server.Stop()
		err := l.Append(t.Context(), storetest.Sample(1)...)
		if err == nil || !strings.Contains(err.Error(), "PostgreSQL") || l.Failed() == nil {
			t.Errorf("with PostgreSQL gone: %v", err)
		}
		server.Run()
		for end := time.Now().Add(time.Minute); l.Append(t.Context(), storetest.Sample(1)...) != nil; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("PostgreSQL is back, and records are still refused: %v", l.Failed())
			}
		}
	}
	if got := storetest.All(t, s, audit.Query{}); len(got) < 18 { // what was refused may be there: nobody knew
		t.Errorf("%d records, want the 18 that were acknowledged", len(got))
	}
}

// What is altered behind the log's back, by somebody who may take the triggers out, is found.
func TestForged(t *testing.T) {
	server := postgrestest.Start(t)
	for name, tc := range map[string]struct {
		statement string
		record    int64 // that is named
	}{
		"a byte of a record": {`UPDATE records SET data = replace(data, 'user-1', 'user-9') WHERE n = 7`, 7},
		"a record taken out": {`DELETE FROM records WHERE n = 7`, 7},
		"the tail cut":       {`DELETE FROM records WHERE n >= 15`, 15},
		"a byte of a hash":   {`UPDATE hashes SET hash = sha256('x') WHERE i = 3`, 3},
	} {
		t.Run(name, func(t *testing.T) {
			connection, key := database(t, server, "forged"+strings.ReplaceAll(name, " ", "")), storetest.NewKey(t)
			l, stop := storetest.Start(t, open(t, connection), key, nil)
			if err := l.Append(t.Context(), storetest.Sample(20)...); err != nil {
				t.Fatal(err)
			}
			stop()
			run(t, connection, "DROP TRIGGER records_same ON records", "DROP TRIGGER hashes_same ON hashes", tc.statement)
			l, _ = storetest.Start(t, open(t, connection), key, nil)
			var out bytes.Buffer
			_, _ = l.ExportJSONL(t.Context(), &out, audit.Query{}, "") // its error is what Verify says
			_, err := audit.Verify(&out, key.Public, nil)
			if fault, ok := errors.AsType[*audit.Fault](err); !ok || fault.Record != tc.record {
				t.Errorf("want record %d named, got %v", tc.record, err)
			}
		})
	}
}

// The triggers refuse what is no addition, even to a superuser; a role with little more than INSERT can go on with a log.
func TestAppendOnly(t *testing.T) {
	server := postgrestest.Start(t)
	key := storetest.NewKey(t)
	l, stop := storetest.Start(t, open(t, server.URL), key, nil)
	if err := l.Append(t.Context(), storetest.Sample(3)...); err != nil {
		t.Fatal(err)
	}
	stop()
	c, err := pgx.Connect(t.Context(), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for _, s := range []string{"DELETE FROM records", "TRUNCATE records", "UPDATE records SET data = '{}'", "DELETE FROM hashes", "UPDATE hashes SET hash = ''", "UPDATE head SET size = 0", "DELETE FROM head"} {
		if _, err := c.Exec(t.Context(), s); err == nil {
			t.Errorf("%s was let through", s)
		}
	}
	run(t, server.URL, "CREATE ROLE writer LOGIN", "GRANT SELECT, INSERT ON records, hashes, head TO writer", "GRANT UPDATE ON head TO writer")
	l, _ = storetest.Start(t, open(t, strings.Replace(server.URL, "postgres@", "writer@", 1)), key, nil)
	if err := l.Append(t.Context(), storetest.Sample(3)...); err != nil {
		t.Errorf("as a role with few rights: %v", err)
	}
}

// No password gets out with an error.
func TestOpenSaysNoPassword(t *testing.T) {
	for _, connection := range []string{"postgres://u:hunter2@127.0.0.1:1/db?connect_timeout=1", "host=127.0.0.1 port=1 password=hunter2 connect_timeout=1", "postgres://u:hunter2@[::1/db", "password=hunter2 sslmode=nonsense"} {
		_, err := postgres.Open(t.Context(), connection)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	l, _ := storetest.Start(b, open(b, postgrestest.Start(b).URL), storetest.NewKey(b), io.Discard)
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
