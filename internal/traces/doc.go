// Package traces joins the spans of all clusters into traces.
//
// In: OTLP bytes per cluster, stamped with the cluster by the server; what is known of each cluster's clock and of the times it was not heard.
// Out: a Trace: spans in the order of a waterfall, on one clock, with the missing explained, the way through the mesh inferred and marked as such, and the
// critical path; summaries to search; a comparison of two traces. Store keeps the spans, on disk, by age and size.
// It must not present an inferred stretch or an adjusted time as measured: the raw times stay in every span, and Options.Raw gives them back.
package traces

import (
	"encoding/hex"
	"fmt"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Limits of what is taken.
const (
	// MaxSpans is how many spans of a trace are shown; more are counted in Trace.Truncated.
	MaxSpans = 20_000
	// MaxAttributes of a span, and the bytes of each value; more are cut off and said so.
	MaxAttributes = 64
	MaxValue      = 1024
)

// TraceID is a W3C trace ID. Its text is 32 lower-case hex digits.
type TraceID [16]byte

// SpanID is a W3C span ID. Its text is 16 lower-case hex digits; zero is none.
type SpanID [8]byte

// String is the ID in hex.
func (t TraceID) String() string { return hex.EncodeToString(t[:]) }

// String is the ID in hex.
func (s SpanID) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes hex.
func (t TraceID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalText writes hex; "" for none.
func (s SpanID) MarshalText() ([]byte, error) {
	if s == (SpanID{}) {
		return nil, nil
	}
	return []byte(s.String()), nil
}

// ParseTraceID reads 32 hex digits, of any case.
func ParseTraceID(s string) (t TraceID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(t) {
		return t, fmt.Errorf("trace ID %q: want 32 hex digits", s)
	}
	copy(t[:], b)
	return t, nil
}

// Kind of a span, as OpenTelemetry names them.
type Kind string

// The kinds.
const (
	Internal Kind = "internal"
	Server   Kind = "server"
	Client   Kind = "client"
	Producer Kind = "producer"
	Consumer Kind = "consumer"
)

// Attribute of a span or its resource.
type Attribute struct {
	Key   string `json:"k"`
	Value string `json:"v"`
}

// Event within a span.
type Event struct {
	At         time.Time   `json:"at"` // by the clock of the span's cluster
	Name       string      `json:"name"`
	Attributes []Attribute `json:"attributes,omitempty"`
}

// Span is one operation of one service.
type Span struct {
	Trace      TraceID          `json:"-"`
	ID         SpanID           `json:"id"`
	Parent     SpanID           `json:"parent,omitzero"`
	Cluster    mesh.ClusterName `json:"cluster"` // stamped by the server from the certificate of the agent that sent it
	Namespace  string           `json:"namespace,omitempty"`
	Service    string           `json:"service"` // resource attribute service.name
	Name       string           `json:"name"`
	Kind       Kind             `json:"kind"`
	Start      time.Time        `json:"start"` // by the clock of its cluster, as it came
	Duration   time.Duration    `json:"duration"`
	Error      bool             `json:"error,omitempty"`
	Status     string           `json:"status,omitempty"` // the message of its status
	Attributes []Attribute      `json:"attributes,omitempty"`
	Events     []Event          `json:"events,omitempty"`
	Cut        int              `json:"cut,omitempty"` // attributes that the limits kept out
}

// Clock is what is known of a cluster's clock.
type Clock struct {
	Cluster mesh.ClusterName `json:"cluster"`
	Offset  time.Duration    `json:"offset"` // to be added to its times to get the server's
	Error   time.Duration    `json:"error"`  // half the round trip of the exchange that measured it
	Known   bool             `json:"known"`  // false: no heartbeat was heard; its spans are not shifted
}

// Gap is a time in which the server did not hear from a cluster's agent. To is zero while it lasts.
type Gap struct {
	Cluster mesh.ClusterName `json:"cluster"`
	From    time.Time        `json:"from"`
	To      time.Time        `json:"to,omitzero"`
}

// Options are what Assemble needs to know beyond the spans.
type Options struct {
	Clocks []Clock
	Gaps   []Gap
	Raw    bool // leave all times as they came
	// Now, if set, is when it is asked: what is missing in a trace of a moment ago may still come.
	Now time.Time
	// RTT is the probed round trip between two clusters; ok is false where there is none. nil: none.
	RTT func(from, to mesh.ClusterName) (rtt time.Duration, ok bool)
	// Unanswered are clusters whose store was asked and did not answer in time.
	Unanswered []mesh.ClusterName
}

// Placed is a span in a waterfall.
type Placed struct {
	Span
	// At is the offset from the beginning of the trace: adjusted, unless Options.Raw.
	At    time.Duration `json:"at"`
	Shift time.Duration `json:"shift,omitempty"` // what was added to Start
	Depth int           `json:"depth"`
	// ParentIndex is the index of the parent in Trace.Spans; -1 for a root.
	ParentIndex int `json:"parentIndex"`
	Children    int `json:"children,omitempty"` // direct ones
	// Missing explains a parent that is named and not there.
	Missing string `json:"missing,omitempty"`
	// Warning says what was done to this span alone: e.g. moved into its parent.
	Warning string `json:"warning,omitempty"`
	// Critical is how much of the trace's duration is this span's own part of the critical path.
	Critical time.Duration `json:"critical,omitempty"`
}

// Transit is the time between a client's span and the server's span it caused, that nothing measured: the mesh, and what the client waited. Drawn hatched.
type Transit struct {
	Parent int           `json:"parent"` // indexes into Trace.Spans
	Child  int           `json:"child"`
	Out    time.Duration `json:"out"`  // from the client's beginning to the server's
	Back   time.Duration `json:"back"` // from the server's end to the client's
	Path   string        `json:"path"` // the known way: "ztunnel -> east-west gateway of cluster-2 -> ztunnel"
	// RTT is the probed round trip between the two clusters; nil within one, or where nothing probes.
	RTT *time.Duration `json:"rtt,omitempty"`
}

// Segment of the critical path: from From to To (offsets from the beginning of the trace) the trace waited for this span's own work.
type Segment struct {
	Span int           `json:"span"`
	From time.Duration `json:"from"`
	To   time.Duration `json:"to"`
}

// ClusterPart is what one cluster contributed to a trace.
type ClusterPart struct {
	Clock
	Spans   int           `json:"spans"`
	Shifted time.Duration `json:"shifted"` // what its spans were moved by; 0 when raw
}

// Trace is a joined trace.
type Trace struct {
	ID        TraceID       `json:"id"`
	Start     time.Time     `json:"start"` // server's clock
	Duration  time.Duration `json:"duration"`
	Raw       bool          `json:"raw,omitempty"`
	Spans     []Placed      `json:"spans"` // depth first, children by their start
	Transits  []Transit     `json:"transits,omitempty"`
	Critical  []Segment     `json:"critical,omitempty"` // in order of time
	Clusters  []ClusterPart `json:"clusters"`
	Errors    int           `json:"errors,omitempty"`
	Truncated int           `json:"truncated,omitempty"` // spans beyond MaxSpans
	// Notes are sentences for the head of the page: clusters shifted, not answering, parents missing.
	Notes []string `json:"notes,omitempty"`
}

// Summary is a trace in a list.
type Summary struct {
	ID       TraceID            `json:"id"`
	Start    time.Time          `json:"start"` // as the earliest span came
	Duration time.Duration      `json:"duration"`
	Service  string             `json:"service"` // of the root, else of the earliest span
	Name     string             `json:"name"`
	Root     bool               `json:"root"` // false: the root has not come
	Spans    int                `json:"spans"`
	Errors   int                `json:"errors"`
	Clusters []mesh.ClusterName `json:"clusters"`
	Services []string           `json:"services"`
}

// Query searches for traces; empty fields ask for nothing. Newest first.
type Query struct {
	From, To    time.Time
	Cluster     mesh.ClusterName
	Namespace   string
	Service     string
	Name        string // part of a span's name
	MinDuration time.Duration
	MaxDuration time.Duration
	Errors      bool // only those with one
	Limit       int  // 0 means 100; at most 1,000
}
