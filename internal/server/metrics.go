package server

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the server's own; the hub adds its collector. Names follow the product's where it has one.
type metrics struct {
	registry      *prometheus.Registry
	leader        prometheus.Gauge
	translation   prometheus.Histogram
	round         prometheus.Histogram
	statusWrites  prometheus.Counter
	statusErrors  prometheus.Counter
	clusters      *prometheus.GaugeVec
	waiting       prometheus.Gauge
	relayProblems *prometheus.GaugeVec
	peers         *prometheus.GaugeVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry:      prometheus.NewRegistry(),
		leader:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "gloo_mesh_leader", Help: "1 while this replica leads."}),
		translation:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "gloo_mesh_translation_time_sec", Help: "Seconds to translate a snapshot.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10)}),
		round:         prometheus.NewHistogram(prometheus.HistogramOpts{Name: "gloo_mesh_reconciler_time_sec", Help: "Seconds of a round: snapshot, translation, publication, status.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10)}),
		statusWrites:  prometheus.NewCounter(prometheus.CounterOpts{Name: "gloo_mesh_status_writes_total", Help: "Writes of status to the API server."}),
		statusErrors:  prometheus.NewCounter(prometheus.CounterOpts{Name: "gloo_mesh_status_write_errors_total", Help: "Failed writes of status."}),
		clusters:      prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "gloo_mesh_clusters", Help: "Registered clusters by connection."}, []string{"connection"}),
		waiting:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "gloo_mesh_safe_mode_waiting_clusters", Help: "Clusters whose inventory is awaited before anything may be removed."}),
		relayProblems: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "gloo_mesh_relay_certificate_problems", Help: "Problems of the relay certificate family by Secret."}, []string{"secret"}),
		peers:         prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "gloo_mesh_peers", Help: "Other clusters that a cluster is peered with, or should be, by state: reachable, unreachable, pending, missing."}, []string{"cluster", "state"}),
	}
	m.registry.MustRegister(m.peers, m.leader, m.translation, m.round, m.statusWrites, m.statusErrors, m.clusters, m.waiting, m.relayProblems,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}
