package topology

import (
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Timing of reports.
const (
	// Interval is how often an agent reports.
	Interval = 15 * time.Second
	// StaleAfter is how long after its last report a cluster's numbers count as old: three intervals.
	StaleAfter = 3 * Interval
	// IdleAfter is how long an edge without traffic stays, while its cluster goes on reporting.
	IdleAfter = time.Hour
)

// Report is what one agent saw in one interval. Everything is an increment over (From, To], never a running total, so that a lost report costs its
// interval and nothing else.
type Report struct {
	// Cluster is stamped by the server from the certificate of the session. What the agent calls itself is not even carried.
	Cluster mesh.ClusterName
	Epoch   string // of the agent's process; a new one restarts Sequence
	// Sequence counts reports within an epoch from 1. One that came already is ignored (replay after a disconnect).
	Sequence uint64
	From, To time.Time // by the server's clock: shifted by the session's offset
	Agent    string    // version
	Edges    []Observation
	Probes   []ProbeResult
	Caps     []CapHit
	Scrapes  []Scrape
}

// End is one end of an observation, as labels name it. Empty strings are unknown.
type End struct {
	Cluster   string // Istio's cluster ID, to be translated to our name
	Namespace string
	Service   string // canonical service or service name; the workload where there is neither
	Principal Principal
}

// Observation is what one kind of reporter in one cluster saw of one edge in an interval, summed over its proxies (never over kinds).
type Observation struct {
	By       Reporter
	From, To End
	Protocol string // "http", "grpc", "tcp"
	Requests Classes
	TCP      TCPCounts
	// Latency is requests per bucket; nil where the reporter has none (ztunnel). Sum in milliseconds.
	Latency  *Histogram
	Failures map[string]float64 // by flag
	Codes    map[string]float64 // the most frequent response codes
	MTLS     MTLS
}

// Classes are numbers of requests by class of outcome; see Rates.
type Classes struct{ Success, ClientError, ServerError, NoResponse float64 }

// TCPCounts are numbers of connections and bytes; see TCP.
type TCPCounts struct{ Opened, Closed, Failed, Sent, Received float64 }

// ProbeResult is what one agent's probes of one peer's east-west gateway gave in an interval.
type ProbeResult struct {
	To       mesh.ClusterName
	Sent     int
	Lost     int
	Min, Max time.Duration // of those that succeeded
	Mean     time.Duration
	Error    string // of the last that failed
}

// CapHit says that a limit kept something out: what we do NOT see.
type CapHit struct {
	Cap     string `json:"cap"`     // e.g. "edgesPerService"
	Limit   int    `json:"limit"`   //
	Dropped int    `json:"dropped"` // in the last interval
	Example string `json:"example,omitempty"`
}

// Scrape is the state of one kind of source in a cluster.
type Scrape struct {
	Source  string        `json:"source"`           // "ztunnel", "waypoint", "gateway", "istiod", "prometheus", "otlp"
	Targets int           `json:"targets"`          // how many there are
	Up      int           `json:"up"`               // how many answered
	Series  int           `json:"series"`           // read in the last interval
	Took    time.Duration `json:"took"`             // of the slowest
	Error   string        `json:"error,omitempty"`  // the last one: one sentence
	Detail  string        `json:"detail,omitempty"` // e.g. versions
}
