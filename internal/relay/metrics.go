package relay

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
)

// counters are what can't be read off the sessions.
type counters struct {
	handshakeFailures, turnedAway, renewals, enrolled, notEnrolled, telemetry, telemetryBad atomic.Int64

	mu       *sync.Mutex
	refusals map[relayv1.Goodbye_Reason]int64
}

func newCounters() counters {
	return counters{mu: &sync.Mutex{}, refusals: map[relayv1.Goodbye_Reason]int64{}}
}

func (c *counters) refused(r relayv1.Goodbye_Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals[r]++
}

func (c *counters) enrolment(ok bool) {
	if ok {
		c.enrolled.Add(1)
	} else {
		c.notEnrolled.Add(1)
	}
}

// collector reads the hub's state when it is asked, so that a cluster that is gone leaves no stale series.
type collector struct {
	hub                                                  *Hub
	pushConnected, pullConnected, warm, lag              *prometheus.Desc
	offset, roundTrip, heartbeat, certificate, strangers *prometheus.Desc
	refusals, enrolments, renewals, handshakes, turned   *prometheus.Desc
	telemetry                                            *prometheus.Desc
}

// Collector gives the relay's metrics, for the composition root to register. The relay_push_* and relay_pull_* names are the
// published ones; a session carries both directions, so they rise and fall together.
func (h *Hub) Collector() prometheus.Collector {
	per := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"cluster"}, nil)
	}
	all := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &collector{
		hub:           h,
		pushConnected: per("relay_push_clients_connected", "1 while the cluster's agent is connected."),
		pullConnected: per("relay_pull_clients_connected", "1 while the cluster's agent is connected."),
		warm:          per("relay_push_clients_warmed", "1 once the cluster's whole inventory has been received."),
		lag:           per("relay_desired_lag_items", "Desired objects that the cluster's agent has not confirmed to have received."),
		offset:        per("relay_clock_offset_seconds", "What must be added to the agent's clock to get the server's."),
		roundTrip:     per("relay_round_trip_seconds", "Time for a heartbeat to the agent and back."),
		heartbeat:     per("relay_last_heartbeat_timestamp_seconds", "When the last heartbeat was received."),
		certificate:   per("relay_client_certificate_expiry_timestamp_seconds", "When the agent's client certificate ends."),
		strangers:     all("relay_connections_without_session", "Open connections without an admitted session."),
		refusals:      all("relay_refusals_total", "Agents turned away.", "reason"),
		enrolments:    all("relay_enrolments_total", "Enrolments decided.", "success"),
		renewals:      all("relay_renewals_total", "Client certificates renewed."),
		handshakes:    all("relay_handshake_failures_total", "TLS handshakes that failed."),
		turned:        all("relay_connections_turned_away_total", "Connections closed because there were too many without a session."),
		telemetry:     all("relay_telemetry_batches_total", "Batches of telemetry received.", "readable"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, s := range c.hub.Sessions() {
		name := string(s.Cluster)
		gauge(c.pushConnected, truth(s.Connected), name)
		gauge(c.pullConnected, truth(s.Connected), name)
		gauge(c.warm, truth(s.Warm), name)
		gauge(c.lag, float64(s.Lag), name)
		if !s.LastHeartbeat.IsZero() {
			gauge(c.offset, s.Offset.Seconds(), name)
			gauge(c.roundTrip, s.RTT.Seconds(), name)
			gauge(c.heartbeat, float64(s.LastHeartbeat.UnixMilli())/1000, name)
		}
		if !s.Identity.NotAfter.IsZero() {
			gauge(c.certificate, float64(s.Identity.NotAfter.Unix()), name)
		}
	}
	n := &c.hub.counters
	gauge(c.strangers, float64(c.hub.strangers.Load()))
	count(c.renewals, n.renewals.Load())
	count(c.handshakes, n.handshakeFailures.Load())
	count(c.turned, n.turnedAway.Load())
	count(c.enrolments, n.enrolled.Load(), strconv.FormatBool(true))
	count(c.enrolments, n.notEnrolled.Load(), strconv.FormatBool(false))
	count(c.telemetry, n.telemetry.Load(), strconv.FormatBool(true))
	count(c.telemetry, n.telemetryBad.Load(), strconv.FormatBool(false))
	n.mu.Lock()
	defer n.mu.Unlock()
	for r, v := range n.refusals {
		count(c.refusals, v, r.String())
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
