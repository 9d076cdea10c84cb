package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/test/postgrestest"
)

// What enrols is on record, the log outlives its server, says who asked, proves itself, and a lost log is not taken for its successor.
func TestAuditLogOutlivesItsServer(t *testing.T) {
	rc, c, ns := setup(t)
	cfg := config(t, rc, ns)
	cfg.AuditFile = filepath.Join(t.TempDir(), "audit.db")
	r := run(t, cfg)
	r.awaitReady()
	register(t, c, ns, "c1")
	start(t, c, cfg, "c1", announce(t, c, ns, "c1", "uid-of-c1"))
	await(t, c, ns, "c1", "ACCEPTED Connected 2.12.0")
	verified := func(r *running) (found []string, key string) {
		t.Helper()
		status, raw := r.http(cfg.SnapshotAddress, "/audit/export")
		if status != http.StatusOK {
			t.Fatalf("%d %s", status, raw)
		}
		var secret corev1.Secret
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: auditSecret}, &secret); err != nil {
			t.Fatal(err)
		}
		key = string(secret.Data[auditPublicKey])
		if bytes.Contains([]byte(raw), secret.Data[auditKey]) {
			t.Error("the log's key is in an export")
		}
		if _, err := audit.Verify(strings.NewReader(raw), key, func(r audit.Record) error {
			found = append(found, fmt.Sprintf("%s %s", r.Act, r.Cluster))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return found, key
	}
	before, key := verified(r)
	for _, want := range []string{"cluster.registered c1", "certificate.issued c1", "log.exported "} {
		if !slices.Contains(before, want) {
			t.Errorf("%q is not on record: %q", want, before)
		}
	}
	if status, raw := r.http(cfg.SnapshotAddress, "/audit?cluster=c1&act=cluster.registered"); status != http.StatusOK || strings.Count(raw, "\n") != 1 || !strings.Contains(raw, "uid-of-c1") {
		t.Errorf("who registered c1: %d %s", status, raw)
	}
	if status, raw := r.http(cfg.SnapshotAddress, "/audit?clutser=c1"); status != http.StatusBadRequest {
		t.Errorf("a misspelt filter: %d %s", status, raw)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	r = run(t, cfg)
	r.awaitReady()
	after, sameKey := verified(r)
	if len(after) <= len(before) || !slices.Equal(after[:len(before)], before) || sameKey != key {
		t.Errorf("after a restart: %q, before: %q", after, before)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	cfg.AuditFile = filepath.Join(t.TempDir(), "audit.db") // lost
	r = run(t, cfg)
	r.awaitReady()
	eventually(t, 10*time.Second, func() error {
		if status, raw := r.http(cfg.SnapshotAddress, "/audit"); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, raw)
		}
		return nil
	})
	if _, other := verified(r); other == key {
		t.Error("a new log signs with the key of the lost one")
	}
}

// Replicas that share a log in PostgreSQL, all beginning at once with an empty database, sign with one key, and each goes on from what the others have written.
func TestReplicasShareALog(t *testing.T) {
	rc, c, ns := setup(t)
	connection := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(connection, []byte(postgrestest.Start(t).URL+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, rc, ns)
	cfg.AuditPostgres = connection
	const replicas, each = 4, 5
	logs := make([]*audit.Log, replicas)
	for i := range logs {
		s := &server{cfg: &cfg, api: c, log: slog.New(slog.DiscardHandler)}
		s.audit = s.newAudit()
		logs[i] = s.audit
		t.Cleanup(s.startAudit(t.Context()))
	}
	var wg sync.WaitGroup
	for i, l := range logs {
		wg.Go(func() {
			for n := range each {
				var err error
				for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // two that begin at once: one may have to try again
					if err = l.Append(t.Context(), audit.Record{Act: audit.Admitted, User: fmt.Sprintf("replica-%d-%d", i, n)}); err == nil {
						break
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var secret corev1.Secret
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: auditSecret}, &secret); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := logs[0].ExportJSONL(t.Context(), &out, audit.Query{}, ""); err != nil {
		t.Fatal(err)
	}
	users := map[string]bool{}
	if _, err := audit.Verify(&out, string(secret.Data[auditPublicKey]), func(r audit.Record) error { users[r.User] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(users) != replicas*each {
		t.Errorf("%d of %d records", len(users), replicas*each)
	}
}
