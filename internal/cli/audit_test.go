package cli

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/sqlite"
	"ambitmesh.dev/ambit/internal/audit/storetest"
)

// An export is verified without any cluster; what was done to it, or to the log since an older one, is named.
func TestAuditVerifyOffline(t *testing.T) {
	dir, key := t.TempDir(), storetest.NewKey(t)
	store, err := sqlite.Open(t.Context(), filepath.Join(dir, "a.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	l, _ := storetest.Start(t, store, key, nil)
	export := func(l *audit.Log, name string) string {
		t.Helper()
		var out bytes.Buffer
		if _, err := l.ExportJSONL(context.Background(), &out, audit.Query{}, ""); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	append5 := func(l *audit.Log) {
		t.Helper()
		if err := l.Append(t.Context(), storetest.Sample(5)...); err != nil {
			t.Fatal(err)
		}
	}
	append5(l)
	old := export(l, "old.jsonl")
	append5(l)
	now := export(l, "now.jsonl")

	// the same key, another history
	otherStore, err := sqlite.Open(t.Context(), filepath.Join(dir, "b.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer otherStore.Close()
	other := audit.New(audit.Config{Open: audit.Of(otherStore, key), Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = other.Run(ctx) }()
	sample := storetest.Sample(10)
	sample[3].User = "somebody else"
	if err := other.Append(t.Context(), sample...); err != nil {
		t.Fatal(err)
	}
	rewritten := export(other, "rewritten.jsonl")
	raw, err := os.ReadFile(now)
	if err != nil {
		t.Fatal(err)
	}
	altered := filepath.Join(dir, "altered.jsonl")
	if err := os.WriteFile(altered, bytes.Replace(raw, []byte("user-1@"), []byte("user-2@"), 1), 0o600); err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		file, before, key string
		bad               string // part of what is said; empty: verified
	}{
		"whole":                     {now, "", key.Public, ""},
		"grown":                     {now, old, key.Public, ""},
		"its own key":               {now, "", "", ""},
		"another key":               {now, "", storetest.NewKey(t).Public, "signature"},
		"altered":                   {altered, "", key.Public, "record 1"},
		"cut since":                 {old, now, key.Public, "was cut"},
		"rewritten":                 {rewritten, "", key.Public, ""},
		"rewritten, with a witness": {rewritten, old, key.Public, "record 3"},
	} {
		_, _, err := verifyFile(tc.file, tc.key, tc.before)
		if (err == nil) != (tc.bad == "") || err != nil && !strings.Contains(err.Error(), tc.bad) {
			t.Errorf("%s: want %q, got %v", name, tc.bad, err)
		}
	}
}

func TestAuditQuery(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	v := &auditVerbs{in: "2026-02", cluster: "prod-eu-west-3"}
	q, err := v.query(now)
	if err != nil || q.From.Format(time.DateOnly) != "2026-02-01" || q.To.Format(time.DateOnly) != "2026-03-01" || q.Cluster != "prod-eu-west-3" {
		t.Errorf("every change to prod-eu-west-3 in February: %+v %v", q, err)
	}
	back, err := audit.QueryOf(q.Values())
	if err != nil || !back.From.Equal(q.From) || !back.To.Equal(q.To) || back.Cluster != q.Cluster {
		t.Errorf("%+v %v", back, err)
	}
	for name, v := range map[string]*auditVerbs{"two times": {in: "2026", from: "2026"}, "no time": {in: "February"}, "the future": {since: -time.Hour}} {
		if _, err := v.query(now); err == nil {
			t.Errorf("%s was let through", name)
		}
	}
	if got := printable("a\x1b[2Jb\u202ec\nd"); got != "a?[2Jb?c?d" {
		t.Errorf("%q", got)
	}
}
