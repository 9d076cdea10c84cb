package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/admission"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/kube"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/registry"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/relaysecrets"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/rotation"
	"ambitmesh.dev/ambit/internal/state"
	"ambitmesh.dev/ambit/internal/telemetry"
	"ambitmesh.dev/ambit/internal/tokens"
	"ambitmesh.dev/ambit/internal/translate"
	"ambitmesh.dev/ambit/internal/validate"
	"ambitmesh.dev/ambit/internal/version"
)

// Name is the program's name, and its name in Events and field managers.
const Name = "gloo-mesh-mgmt-server"

// requestTimeout is how long one request to the API server may take.
const requestTimeout = 5 * time.Second

// checkEvery is how often certificates are looked at when nothing rings.
const checkEvery = 5 * time.Minute

// server holds what the tasks share.
type server struct {
	cfg     *Config
	log     *slog.Logger
	rest    *rest.Config
	api     client.Client // asks the API server
	watch   *watcher
	ready   *readiness
	metrics *metrics
	secrets *relaysecrets.Secrets
	state   *state.State
	events  *report.Events
	audit   *audit.Log
	certs   *admission.Certificates
	deleted chan admission.Deletion
	leading atomic.Pointer[reporter] // nil while this replica does not lead
	hub     hubPointer               // as leading

	telemetry *telemetry.Telemetry
}

// Run serves until ctx ends (nil) or a task fails (its name is in the error).
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if cfg.Audit == nil {
		cfg.Audit = os.Stdout
	}
	s := &server{cfg: &cfg, log: log, metrics: newMetrics(), deleted: make(chan admission.Deletion, 256)}
	if err := s.connect(); err != nil {
		return err
	}
	s.audit = s.newAudit()
	s.telemetry = s.newTelemetry()
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	tasks := []task{
		{"watch", s.watch.run},
		{"relay certificates", s.followSecrets},
		{"lead", s.lead},
		{"telemetry", s.telemetry.Run},
	}
	if l := listeners["health"]; l != nil {
		tasks = append(tasks, task{"health", func(ctx context.Context) error { return serveHTTP(ctx, l, healthHandler(s.ready), log) }})
	}
	if l := listeners["metrics"]; l != nil {
		tasks = append(tasks, task{"metrics", func(ctx context.Context) error { return serveHTTP(ctx, l, s.metrics.handler(), log) }})
	}
	if l := listeners["snapshot"]; l != nil {
		tasks = append(tasks, task{"snapshot", func(ctx context.Context) error { return serveHTTP(ctx, l, s.snapshotHandler(), log) }})
	}
	if l := listeners["ui"]; l != nil {
		tasks = append(tasks, task{"ui", func(ctx context.Context) error { return serveHTTP(ctx, l, s.uiHandler(ctx), log) }})
	}
	if l := listeners["webhook"]; l != nil {
		handler := admission.NewHandler(validate.Options{AdminNamespace: cfg.Namespace, Snapshot: s.settled}, time.Now, log, s.noteDeletion, s.audit.Append)
		tasks = append(tasks,
			task{"webhook", func(ctx context.Context) error { return admission.Serve(ctx, l, handler, s.certs, log) }},
			task{"webhook certificates", s.followWebhookSecret},
			task{"deregistrations", s.recordDeletions})
	}
	log.Info("started", "version", version.Version, "namespace", cfg.Namespace, "relay", cfg.bind(cfg.RelayAddress))
	defer s.startAudit(ctx)() // it outlives all that record
	err = runAll(ctx, tasks)
	log.Info("stopped", "error", err)
	return err
}

// connect makes the clients and allocates the stages.
func (s *server) connect() error {
	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	if s.rest, err = kube.Config(s.cfg.Kubeconfig, s.cfg.Context, Name+"/"+version.Version); err != nil {
		return err
	}
	if s.api, err = kube.Client(s.rest, scheme, requestTimeout); err != nil {
		return err
	}
	if s.watch, err = newWatcher(s.rest, scheme, s.cfg, s.log); err != nil {
		return err
	}
	s.ready = newReadiness("cache", "lead", "relay")
	s.secrets = relaysecrets.New(relaysecrets.Config{
		Client: s.api, Namespace: s.cfg.Namespace, Names: s.cfg.Secrets, Cluster: s.cfg.clientName(), ServerNames: s.cfg.relayNames(), Log: s.log,
	})
	s.state = state.New(state.Config{
		Cache: s.watch.cache, API: s.api, Namespace: s.cfg.Namespace, ServerVersion: version.Version, ManagementCluster: s.cfg.Cluster, Peering: s.cfg.ConfigDistribution, Log: s.log,
		Invalid: invalid(validate.Options{AdminNamespace: s.cfg.Namespace}),
	})
	s.watch.sources = s.state
	s.events = report.NewEvents(s.api, Name)
	s.certs = admission.NewCertificates(s.api, s.cfg.Namespace, s.cfg.WebhookConfiguration, admission.ServerNames(s.cfg.WebhookService, s.cfg.Namespace, s.cfg.ClusterDomain), s.log)
	return nil
}

// settled is the latest Snapshot of a replica that leads and knows everything, else nil.
func (s *server) settled() *mesh.Snapshot {
	if rep := s.leading.Load(); rep != nil {
		return rep.settled()
	}
	return nil
}

// invalid says what is wrong with an object that came past the webhook, empty for nothing.
func invalid(o validate.Options) func(client.Object) string {
	return func(obj client.Object) string {
		var errs field.ErrorList
		switch obj := obj.(type) {
		case *adminv2.KubernetesCluster:
			errs = validate.KubernetesCluster(obj, nil, o)
		case *securityv2.AccessPolicy:
			errs = validate.AccessPolicy(obj, nil, o)
		case *securityv2.PolicyOverride:
			errs = validate.PolicyOverride(obj, nil, o)
		case *adminv2.Workspace:
			errs = validate.Workspace(obj, nil, o)
		case *adminv2.WorkspaceSettings:
			errs = validate.WorkspaceSettings(obj, nil, o)
		case *adminv2.RootTrustPolicy:
			errs = validate.RootTrustPolicy(obj, nil, o)
		case *adminv2.RotationRequest:
			errs = validate.RotationRequest(obj, nil, o)
		}
		if len(errs) == 0 {
			return ""
		}
		return errs.ToAggregate().Error()
	}
}

// listen opens every port before anything starts, so that a port in use is said at once, with its flag.
func (s *server) listen(ctx context.Context) (map[string]net.Listener, error) {
	out := map[string]net.Listener{}
	for name, address := range map[string]string{"relay": s.cfg.RelayAddress, "webhook": s.cfg.WebhookAddress, "health": s.cfg.HealthAddress, "metrics": s.cfg.MetricsAddress, "snapshot": s.cfg.SnapshotAddress, "ui": s.cfg.UIAddress} {
		if address == off {
			continue
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.bind(address))
		if err != nil {
			for _, open := range out {
				open.Close()
			}
			return nil, fmt.Errorf("--%s-address %s: %w", name, address, err)
		}
		if name == "relay" { // opened again by the replica that leads: until then a connection is refused, not left waiting
			l.Close()
			continue
		}
		out[name] = l
	}
	return out, nil
}

// followSecrets keeps the family in memory as the Secrets have it, on every replica.
func (s *server) followSecrets(ctx context.Context) error {
	return every(ctx, s.watch.secretsLoad, checkEvery, s.log, "read relay certificates", func(ctx context.Context) error {
		_, err := s.secrets.Load(ctx, time.Now())
		return err
	})
}

func (s *server) followWebhookSecret(ctx context.Context) error {
	return every(ctx, s.watch.webhookLoad, checkEvery, s.log, "read webhook certificate", s.certs.Load)
}

// lead runs what only the replica that leads does: everything that writes, and the relay.
func (s *server) lead(ctx context.Context) error {
	if err := s.watch.wait(ctx); err != nil {
		return err
	}
	s.ready.set("cache", "")
	tasks := []task{
		{"keep relay certificates", s.keepSecrets},
		{"relay and clusters", s.serveRelay},
	}
	if s.cfg.WebhookAddress != off {
		tasks = append(tasks, task{"keep webhook certificates", func(ctx context.Context) error {
			return every(ctx, s.watch.webhookKeep, checkEvery, s.log, "keep webhook certificates", func(ctx context.Context) error { return s.certs.Keep(ctx, time.Now()) })
		}})
	}
	if s.cfg.RegisterCluster != "" {
		tasks = append(tasks, task{"register own cluster", s.registerOwn})
	}
	return lead(ctx, s.cfg, s.rest, s.api, s.log, func(ctx context.Context) error {
		s.metrics.leader.Set(1)
		defer s.metrics.leader.Set(0)
		s.ready.set("lead", "")
		defer s.ready.set("lead", "no longer")
		return runAll(ctx, tasks)
	})
}

// keepSecrets makes, mends and renews the relay's certificates, and says what is wrong with them.
func (s *server) keepSecrets(ctx context.Context) error {
	return every(ctx, s.watch.secretsKeep, checkEvery, s.log, "keep relay certificates", func(ctx context.Context) error {
		now := time.Now()
		fresh, err := s.secrets.Keep(ctx, now)
		s.metrics.relayProblems.Reset()
		for _, p := range s.secrets.Problems() {
			s.metrics.relayProblems.WithLabelValues(p.Secret).Inc()
		}
		for _, p := range fresh {
			s.log.Warn("relay certificates", "secret", p.Secret, "fatal", p.Fatal, "problem", p.Message, "fix", p.Fix)
			about := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: p.Secret, Namespace: s.cfg.Namespace}}
			if err := s.events.Say(ctx, about, corev1.EventTypeWarning, "RelayCertificateProblem", p.Message+": "+p.Fix, now); err != nil {
				s.log.Warn("event not written", "error", err)
			}
		}
		return err
	})
}

// serveRelay serves agents once there is a family to serve with and the records are read; everything revoked while no server ran is revoked first.
func (s *server) serveRelay(ctx context.Context) error {
	if err := s.awaitFamily(ctx); err != nil {
		return err
	}
	reg := registry.New(registry.Config{
		Client: s.api, Clusters: lookup{s.state}, Namespace: s.cfg.Namespace, SharedToken: s.secrets.Token,
		DisableSharedToken: s.cfg.DisableSharedTokenEnrolment, Log: s.log, Now: time.Now,
	})
	if err := persist(ctx, s.log, "read identity records", reg.Load); err != nil {
		return err
	}
	hub := relay.NewHub(relay.HubConfig{Family: s.secrets, Gate: auditedGate{reg, s.audit}, Log: s.log, Version: version.Version, OnTelemetry: s.telemetry.Take})
	s.hub.Store(hub)
	defer s.hub.Store(nil)
	s.metrics.registry.MustRegister(hub.Collector())
	rep := newReporter(s, hub)
	relayBell := newBell()
	board := rotation.NewBoard(relayBell.ring)
	rep.trust = rotation.New(rotation.Config{
		Client: s.api, Namespace: s.cfg.Namespace, Board: board, Snapshot: rep.settled, Sessions: func() map[mesh.ClusterName]mesh.Session { return sessions(hub) },
		Issuers: rotation.NewIssuers(s.api, s.cfg.Namespace), Record: s.record, Changed: rep.posted.ring, Log: s.log.With("stage", "trust"),
	})
	rep.tokens = tokens.NewBoard(s.cfg.RemoteSecrets.Settings)
	s.metrics.registry.MustRegister(tokenCollector{rep.tokens})
	defer s.metrics.registry.Unregister(tokenCollector{rep.tokens})
	lp := &loop{
		cfg: s.cfg, log: s.log, hub: hub, registry: reg, state: s.state, translator: translate.New(), reporter: rep, metrics: s.metrics,
		trust: board, telemetry: s.telemetry, keeper: rep.trust, tokens: rep.tokens, written: s.watch.written, relayBell: relayBell, started: time.Now(), changed: map[mesh.ClusterName]bool{}, sent: map[mesh.ClusterName]sent{},
	}
	if err := persist(ctx, s.log, "first round", lp.once); err != nil {
		return err
	}
	s.leading.Store(rep)
	defer s.leading.Store(nil)
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.bind(s.cfg.RelayAddress))
	if err != nil {
		return fmt.Errorf("--relay-address %s: %w", s.cfg.RelayAddress, err)
	}
	defer l.Close()
	s.ready.set("relay", "")
	defer s.ready.set("relay", "stopped")
	return runAll(ctx, []task{
		{"relay", func(ctx context.Context) error { return hub.Serve(ctx, l) }},
		{"relay changes", lp.follow},
		{"rounds", lp.run},
		{"status", rep.run},
		{"trust", rep.trust.Run},
		{"expiry", newExpiries(s, rep.trust).run},
	})
}

func (s *server) awaitFamily(ctx context.Context) error {
	for s.secrets.Current() == nil {
		changed := s.secrets.Changed()
		why := "no relay certificates yet"
		if p := s.secrets.Problems(); len(p) > 0 {
			why = p[0].String()
		}
		s.ready.set("relay", why)
		if s.secrets.Current() != nil {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(time.Second):
		}
	}
	return nil
}

// registerOwn makes the KubernetesCluster of the management cluster. The webhook it has to pass is this server's own, which may take a moment to be reachable.
func (s *server) registerOwn(ctx context.Context) error {
	kc := &adminv2.KubernetesCluster{
		ObjectMeta: metav1.ObjectMeta{Name: s.cfg.RegisterCluster, Namespace: s.cfg.Namespace}, Spec: adminv2.KubernetesClusterSpec{ClusterDomain: s.cfg.ClusterDomain},
	}
	return persist(ctx, s.log, "register the management cluster as "+s.cfg.RegisterCluster, func(ctx context.Context) error {
		err := s.api.Create(ctx, kc.DeepCopy())
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

// noteDeletion must not block the webhook.
func (s *server) noteDeletion(d admission.Deletion) {
	select {
	case s.deleted <- d:
	default:
		s.log.Warn("too many deletions at once: this one is not recorded in an Event", "kind", d.Kind, "namespace", d.Object.GetNamespace(), "name", d.Object.GetName(), "user", d.User)
	}
}

// recordDeletions writes who deregistered a cluster, or deleted another object of ours.
func (s *server) recordDeletions(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-s.deleted:
			log := s.log.With("kind", d.Kind, "namespace", d.Object.GetNamespace(), "name", d.Object.GetName(), "user", d.User)
			log.Info("deletion requested")
			s.record(deletionRecord(d, time.Now())) //nolint:contextcheck // what has happened goes on record, also while the server stops
			reason, did := "Deleted", "Deleted by "
			switch d.Object.(type) {
			case *adminv2.KubernetesCluster:
				reason, did = adminv2.EventDeregistered, "Deregistered by "
			case *securityv2.AccessPolicy:
				reason = securityv2.EventPolicyDeleted
			}
			if err := s.events.Say(ctx, d.Object, corev1.EventTypeNormal, reason, did+d.User, time.Now()); err != nil && ctx.Err() == nil {
				log.Warn("event not written", "error", err)
			}
		}
	}
}

// lookup shows the registry what it needs of the state.
type lookup struct{ state *state.State }

// Lookup implements registry.Clusters.
func (l lookup) Lookup(ctx context.Context, c mesh.ClusterName, fresh bool) (registry.Cluster, bool, error) {
	kc, err := l.state.Find(ctx, c, fresh)
	if err != nil || kc == nil {
		return registry.Cluster{}, false, err
	}
	return registry.Cluster{Registration: string(kc.UID), UID: mesh.ClusterUID(kc.Status.ClusterUID)}, true, nil
}

// NameOf implements registry.Clusters.
func (l lookup) NameOf(uid mesh.ClusterUID) (mesh.ClusterName, bool) {
	return l.state.NameOf(context.Background(), uid) // a cache: it answers at once
}

var errNoSync = errors.New("the caches were not filled")
