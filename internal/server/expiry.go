package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/report"
	"ambitmesh.dev/ambit/internal/rotation"
)

// expiries tells when certificates of the mesh end: a metric for each, and an Event when one ends soon or its renewal is overdue.
type expiries struct {
	*server
	list func() []report.Expiry
	said map[string]bool // what Events were written of since this server leads: the API server drops them after an hour, and they are not repeated
}

func newExpiries(s *server, k *rotation.Keeper) *expiries {
	return &expiries{server: s, list: func() []report.Expiry { return report.Expiries(k.Inputs(), k.Status) }, said: map[string]bool{}}
}

// lookAtExpiries is how often it looks: certificates end by the day.
const lookAtExpiries = time.Minute

func (e *expiries) run(ctx context.Context) error {
	collector := &expiryCollector{e.list}
	e.metrics.registry.MustRegister(collector)
	defer e.metrics.registry.Unregister(collector)
	tick := time.NewTicker(lookAtExpiries)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			e.look(ctx, time.Now())
		}
	}
}

// look writes the Events that are due. An error is logged, and the next look tries again.
func (e *expiries) look(ctx context.Context, now time.Time) {
	for _, x := range e.list() {
		step, message := x.Warning(now)
		key := x.Fingerprint + " " + step
		if step == "" || e.said[key] {
			continue
		}
		var about client.Object = &adminv2.KubernetesCluster{}
		name := string(x.Cluster)
		if x.Kind == report.KindRoot {
			about, name = &adminv2.RootTrustPolicy{}, x.Policy
		}
		err := e.api.Get(ctx, client.ObjectKey{Namespace: e.cfg.Namespace, Name: name}, about)
		if err == nil {
			err = e.events.OnceAbout(ctx, about, report.ReasonExpiring, key, message, now)
		}
		if err != nil {
			e.log.Warn("a certificate ends, and no Event could be written", "message", message, "error", err)
			continue
		}
		e.said[key] = true
		e.log.Warn("certificate", "step", step, "message", message)
	}
}

// expiryCollector shows when each certificate ends: one series for each intermediate and root in use.
type expiryCollector struct{ list func() []report.Expiry }

func expiryDesc() *prometheus.Desc {
	return prometheus.NewDesc("gloo_mesh_certificate_expiry_timestamp_seconds", "When a certificate of the mesh ends, in seconds since 1970.", []string{"kind", "cluster", "policy", "fingerprint"}, nil)
}

// Describe implements prometheus.Collector.
func (c *expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- expiryDesc() }

// Collect implements prometheus.Collector.
func (c *expiryCollector) Collect(ch chan<- prometheus.Metric) {
	seen := map[[4]string]bool{}
	for _, x := range c.list() {
		labels := [4]string{x.Kind, string(x.Cluster), x.Policy, x.Fingerprint[:min(len(x.Fingerprint), 12)]}
		if !seen[labels] {
			seen[labels] = true
			ch <- prometheus.MustNewConstMetric(expiryDesc(), prometheus.GaugeValue, float64(x.NotAfter.Unix()), labels[:]...)
		}
	}
}
