package server

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/postgres"
	"ambitmesh.dev/ambit/internal/audit/sqlite"
	"ambitmesh.dev/ambit/internal/relay"
)

// auditSecret keeps the key that the heads of the audit log are signed with, in the admin namespace.
const (
	auditSecret    = "audit-log-key" //nolint:gosec // the name of a Secret
	auditKey       = "key"           // note.Signer
	auditPublicKey = "verifier"      // note.Verifier, for who checks an export
)

// recordTimeout bounds how long an act of the server itself waits for its record.
const recordTimeout = 5 * time.Second

func (s *server) newAudit() *audit.Log {
	c := audit.Config{Log: s.log.With("stage", "audit")}
	if s.auditPlace() == "" {
		c.Open = func(context.Context) (audit.Store, audit.Key, error) {
			key, err := audit.NewKey(s.auditName())
			return audit.NewLines(s.cfg.Audit), key, err
		}
		return audit.New(c)
	}
	if s.cfg.AuditMirror {
		c.Mirror = s.cfg.Audit
	}
	c.Open = s.openAudit
	return audit.New(c)
}

// startAudit begins to store records; the function that it returns ends that, once all that wait are stored.
func (s *server) startAudit(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.audit.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (s *server) auditName() string { return string(s.cfg.clientName()) }

// closingStore is a Store that can be closed.
type closingStore interface {
	audit.Store
	io.Closer
}

func (s *server) openStore(ctx context.Context) (closingStore, error) {
	if s.cfg.AuditPostgres == "" {
		return sqlite.Open(ctx, s.cfg.AuditFile)
	}
	connection, err := os.ReadFile(s.cfg.AuditPostgres) // each time: it may have been changed
	if err != nil {
		return nil, fmt.Errorf("audit store: the connection string of PostgreSQL: %w", err)
	}
	return postgres.Open(ctx, strings.TrimSpace(string(connection)))
}

// auditPlace is where the log is, for people; empty: nowhere.
func (s *server) auditPlace() string {
	return cmp.Or(s.cfg.AuditPostgres, s.cfg.AuditFile)
}

// openAudit opens the store and reads the key; a log that is new gets a new key, so that a lost log and its successor are never taken for one. Replicas that share a store do so one by one.
func (s *server) openAudit(ctx context.Context) (audit.Store, audit.Key, error) {
	store, err := s.openStore(ctx)
	if err != nil {
		return nil, audit.Key{}, err
	}
	var key audit.Key
	size, _, err := store.Head(ctx)
	if err == nil {
		begin := func(begun bool) error {
			var err error
			key, err = s.auditLogKey(ctx, size, begun || size > 0)
			return err
		}
		if shared, ok := store.(*postgres.Store); ok {
			err = shared.Begin(ctx, begin)
		} else {
			err = begin(false)
		}
	}
	if err != nil {
		_ = store.Close()
		return nil, audit.Key{}, err
	}
	return store, key, nil
}

func (s *server) auditLogKey(ctx context.Context, size int64, begun bool) (audit.Key, error) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.cfg.Namespace, Name: auditSecret}}
	err := s.api.Get(ctx, client.ObjectKeyFromObject(secret), secret)
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return audit.Key{}, fmt.Errorf("read Secret %s/%s: %w", s.cfg.Namespace, auditSecret, err)
	case err == nil && begun:
		return audit.Key{Secret: string(secret.Data[auditKey]), Public: string(secret.Data[auditPublicKey])}, nil
	case err != nil && begun:
		return audit.Key{}, fmt.Errorf("the log %s has %d records and Secret %s/%s, which has its key, is gone: put it back from a backup, or move the file away (or give it an empty database) to begin a new log", s.auditPlace(), size, s.cfg.Namespace, auditSecret)
	}
	key, newErr := audit.NewKey(s.auditName())
	if newErr != nil {
		return key, newErr
	}
	if before := string(secret.Data[auditPublicKey]); before != "" {
		s.log.Warn("the audit log is empty and had a key: it was lost, or is new; it gets a new key", "log", s.auditPlace(), "before", before)
	}
	secret.Data = map[string][]byte{auditKey: []byte(key.Secret), auditPublicKey: []byte(key.Public)}
	if apierrors.IsNotFound(err) {
		err = s.api.Create(ctx, secret)
	} else {
		err = s.api.Update(ctx, secret)
	}
	if err != nil {
		return key, fmt.Errorf("write Secret %s/%s: %w", s.cfg.Namespace, auditSecret, err)
	}
	return key, nil
}

// auditedGate puts on record who enrols and what is signed for them: no record, no certificate.
type auditedGate struct {
	relay.Gate
	audit *audit.Log
}

func (g auditedGate) put(ctx context.Context, r audit.Record) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	return g.audit.Append(ctx, r)
}

// Enrol implements relay.Gate.
func (g auditedGate) Enrol(ctx context.Context, a relay.EnrolAttempt) error {
	err := g.Gate.Enrol(ctx, a)
	r := audit.Record{
		Act: audit.ClusterRegistered, Source: "relay", Cluster: string(a.Cluster), Object: "KubernetesCluster /" + string(a.Cluster),
		Membership: &audit.Membership{ClusterUID: string(a.UID), AgentVersion: a.AgentVersion}, Detail: "agent at " + a.Remote + " with key " + a.Key.String(),
	}
	if err != nil {
		r.Act, r.Detail = audit.ClusterRefused, r.Detail+": "+err.Error()
	}
	if recErr := g.put(ctx, r); err == nil {
		err = recErr
	}
	return err
}

// Issued implements relay.Gate.
func (g auditedGate) Issued(ctx context.Context, id relay.Identity) error {
	if err := g.put(ctx, audit.Record{
		Act: audit.CertificateIssued, Source: "relay", Cluster: string(id.Cluster), Object: "relay certificate /" + string(id.Cluster),
		Certificate: &audit.Certificate{
			Serial: id.Serial, Subject: string(id.Cluster), Issuer: "the relay's signing CA", Requester: "agent of " + string(id.Cluster), NotAfter: id.NotAfter.UTC().Format(time.RFC3339),
		},
		Detail: "key " + id.Key.String(),
	}); err != nil {
		return err
	}
	return g.Gate.Issued(ctx, id)
}
