package topology

import (
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Principal is a SPIFFE identity without its scheme, as Istio's metrics write it after "spiffe://": "cluster.local/ns/payments/sa/checkout".
// Empty means unknown: plain text, or a source that does not say.
type Principal string

// Names of parties that are not a service of a known cluster.
const (
	// Unknown stands for a cluster, namespace or service that no source names.
	Unknown = "?"
	// External is the namespace of hosts outside the mesh.
	External = "external"
	// Other is the service that holds what a cap kept from having a row of its own.
	Other = "other"
)

// Party is one end of an edge. A view's level decides how much of it is set: a cluster has neither namespace nor service.
type Party struct {
	Cluster   mesh.ClusterName `json:"cluster"`             // Unknown: one of Edge.Candidates
	Namespace string           `json:"namespace,omitempty"` // "" at the level of clusters
	Service   string           `json:"service,omitempty"`   // "" at the levels of clusters and namespaces; the workload's name where it has no service
}

// ID is "cluster/namespace/service", shorter at higher levels: what URLs and Node.ID hold. '%' and '/' within a name are escaped, so that ParseParty
// gives back the same party whatever a remote proxy called itself.
func (p Party) ID() string {
	var b strings.Builder
	b.Grow(len(p.Cluster) + len(p.Namespace) + len(p.Service) + 2)
	b.WriteString(escape(string(p.Cluster)))
	if p.Namespace != "" || p.Service != "" {
		b.WriteByte('/')
		b.WriteString(escape(p.Namespace))
	}
	if p.Service != "" {
		b.WriteByte('/')
		b.WriteString(escape(p.Service))
	}
	return b.String()
}

// ParseParty reads what ID wrote. ok is false for more than three parts.
func ParseParty(id string) (p Party, ok bool) {
	parts := strings.Split(id, "/")
	if len(parts) > 3 || parts[0] == "" {
		return p, false
	}
	p.Cluster = mesh.ClusterName(unescape(parts[0]))
	if len(parts) > 1 {
		p.Namespace = unescape(parts[1])
	}
	if len(parts) > 2 {
		p.Service = unescape(parts[2])
	}
	return p, true
}

// At is p seen from a level: what lies below the level is cleared.
func (p Party) At(l Level) Party {
	switch l {
	case LevelCluster:
		return Party{Cluster: p.Cluster}
	case LevelNamespace:
		return Party{Cluster: p.Cluster, Namespace: p.Namespace}
	default:
		return p
	}
}

// escape and unescape keep the separators of IDs out of names.
func escape(s string) string {
	if !strings.ContainsAny(s, "/%~") {
		return s
	}
	return strings.NewReplacer("%", "%25", "/", "%2F", "~", "%7E").Replace(s)
}

func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	return strings.NewReplacer("%25", "%", "%2F", "/", "%7E", "~").Replace(s)
}

// Key names an edge between two services. Traffic of several principals between the same two is one edge with several principals.
type Key struct {
	From Party `json:"from"`
	To   Party `json:"to"`
}

// ID is "from~to", stable for as long as the two are called so: what `edges/{id}` in the API takes.
func (k Key) ID() string { return k.From.ID() + "~" + k.To.ID() }

// ParseKey reads what ID wrote.
func ParseKey(id string) (k Key, ok bool) {
	from, to, found := strings.Cut(id, "~")
	if !found {
		return k, false
	}
	var a, b bool
	k.From, a = ParseParty(from)
	k.To, b = ParseParty(to)
	return k, a && b
}

// Level is how much of the mesh one node stands for.
type Level string

// The levels of a view. A neighbourhood is services, at most Query.Hops away from Query.Focus.
const (
	LevelCluster       Level = "cluster"
	LevelNamespace     Level = "namespace"
	LevelService       Level = "service"
	LevelNeighbourhood Level = "neighbourhood"
)

// Valid reports whether l is one of the four.
func (l Level) Valid() bool {
	switch l {
	case LevelCluster, LevelNamespace, LevelService, LevelNeighbourhood:
		return true
	default:
		return false
	}
}

// Reporter is who measured: where on the way of a request its proxy stands.
type Reporter string

// Reporters, as Istio's label `reporter` names them, and those that only we know.
const (
	ByWaypoint    Reporter = "waypoint"    // L7, server side: rate, classes, server time
	ByDestination Reporter = "destination" // ztunnel (L4) or sidecar (L7) beside the server
	BySource      Reporter = "source"      // ztunnel (L4) or gateway (L7) beside the client: sees failures that reach no server
	BySpans       Reporter = "spans"       // spans of applications: what the client waited for
	ByProbe       Reporter = "probe"       // the agent's probes of east-west gateways: round-trip time between two clusters
)

// Rates are requests per second over the last minute by class of outcome; all zero for an edge that is only known as connections.
type Rates struct {
	Success     float64 `json:"success"`     // 1xx to 3xx, gRPC 0
	ClientError float64 `json:"clientError"` // 4xx, the gRPC codes that blame the caller
	ServerError float64 `json:"serverError"` // 5xx, gRPC 2, 4, 13, 14, 15
	NoResponse  float64 `json:"noResponse"`  // response code 0: the connection ended first
}

// Total is requests per second.
func (r Rates) Total() float64 { return r.Success + r.ClientError + r.ServerError + r.NoResponse }

// ErrorRatio is the share of requests that the server or the way to it failed, 0 to 1; 0 when there are none.
func (r Rates) ErrorRatio() float64 {
	if t := r.Total(); t > 0 {
		return (r.ServerError + r.NoResponse) / t
	}
	return 0
}

// TCP are connections and bytes per second over the last minute. Sent is what the client sent: Istio's names are the other way round (istio#32399),
// corrected where metrics are read.
type TCP struct {
	Opened   float64 `json:"opened"`
	Closed   float64 `json:"closed"`
	Failed   float64 `json:"failed"`
	Sent     float64 `json:"sent"`     // bytes per second, client to server
	Received float64 `json:"received"` // bytes per second, server to client
}

// Quantile is an interpolated quantile and the bucket it lies in: "~180 ms, between 100 and 250". Milliseconds.
type Quantile struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"` // 0: the last bucket, which has no upper bound; Value is then its lower bound
}

// Latency is what one vantage point says of the duration of requests over the last five minutes. Milliseconds.
type Latency struct {
	P50  Quantile `json:"p50"`
	P95  Quantile `json:"p95"`
	P99  Quantile `json:"p99"`
	Mean float64  `json:"mean"`
	// Buckets are requests in the last five minutes per bucket of Bounds; the last one has no upper bound.
	Buckets [NumBuckets]float64 `json:"buckets"`
	By      Reporter            `json:"by"`
	Cluster mesh.ClusterName    `json:"cluster"` // whose agent reported it
	// Shared is how many edges this measurement covers together, when the reporter can't tell them apart; 0 and 1: this edge alone.
	Shared int `json:"shared,omitempty"`
}

// Split divides what the client waits for, at the median. Milliseconds; a part is nil where nothing measures it.
type Split struct {
	Client  *Part `json:"client,omitempty"`  // the client's own proxy and queue: client-seen minus network minus server
	Network *Part `json:"network,omitempty"` // between the proxies: client-seen minus server-seen, else the probed round trip
	Server  *Part `json:"server,omitempty"`
}

// Part is one stretch of a Split and where its number comes from.
type Part struct {
	Milliseconds float64  `json:"ms"`
	By           Reporter `json:"by"`
}

// Failure is connections or requests that failed for one reason, per second over the last minute.
type Failure struct {
	// Flag is Istio's response flag: DENY, CONNECT, TLS_FAILURE, H2_HANDSHAKE_FAILURE, NETWORK_POLICY, IDENTITY_ERROR, CERT_REVOKED of ztunnel;
	// UF, UH, URX, DC... of Envoy.
	Flag string  `json:"flag"`
	Rate float64 `json:"rate"`
}

// FlagDeny is the flag of a connection that a policy refused.
const FlagDeny = "DENY"

// Decision names what refused denied traffic.
type Decision struct {
	// Policy decided: "cluster/namespace/name" of an AuthorizationPolicy, with the AccessPolicy it was made from where it is one of ours.
	Policy       string `json:"policy,omitempty"`
	AccessPolicy string `json:"accessPolicy,omitempty"` // "namespace/name"
	// Candidates are the ALLOW policies of which none matched, when no DENY policy did.
	Candidates []string `json:"candidates,omitempty"`
	Text       string   `json:"text"` // one sentence
}

// MTLS says whether the traffic of an edge is encrypted and authenticated.
type MTLS string

// What is known of mTLS on an edge.
const (
	MTLSUnknown MTLS = ""
	MTLSYes     MTLS = "mutual_tls"
	MTLSNo      MTLS = "none"
	MTLSMixed   MTLS = "mixed"
)

// Source is one witness of an edge: who says so, of which cluster, and how old it is.
type Source struct {
	By      Reporter         `json:"by"`
	Cluster mesh.ClusterName `json:"cluster"`
	At      time.Time        `json:"at"`              // end of the last interval in which it reported this edge, by the server's clock
	Stale   bool             `json:"stale,omitempty"` // its cluster has not reported for StaleAfter: the numbers are the last known
}

// Edge is traffic between two parties, as drawn: at the level of services one row of the table, above it a sum of rows.
type Edge struct {
	Key
	Protocol string `json:"protocol"` // "http", "grpc" or "tcp"
	Rates    Rates  `json:"rates"`
	TCP      TCP    `json:"tcp"`
	// Server is the request latency of the server side, nil if nobody measures it: "L4 only: no request latency". LatencyHint says what to add.
	Server *Latency `json:"server,omitempty"`
	// Client is what the client side waited for: gateways, or spans of applications.
	Client *Latency `json:"client,omitempty"`
	Split  Split    `json:"split"`
	// SpanErrors is the share (0 to 1) of the calls that spans saw in the last five minutes that failed; nil: there are no spans of both ends. Spans are sampled: it
	// is a share and no rate, and counts where Rates are zero.
	SpanErrors *float64 `json:"spanErrors,omitempty"`
	// Failures by flag, greatest first. Denied is the rate of those a policy refused.
	Failures []Failure `json:"failures,omitempty"`
	Denied   float64   `json:"denied,omitempty"`
	Decision *Decision `json:"decision,omitempty"`
	MTLS     MTLS      `json:"mtls,omitempty"`
	// FromPrincipals and ToPrincipals are identities seen at either end, sorted.
	FromPrincipals []Principal `json:"fromPrincipals,omitempty"`
	ToPrincipals   []Principal `json:"toPrincipals,omitempty"`
	// Codes are the most frequent response codes (at most three) per second.
	Codes   []CodeRate `json:"codes,omitempty"`
	Sources []Source   `json:"sources"`
	// Inferred: no proxy named both ends; they were joined by (principal, service) from two clusters' reports.
	Inferred bool `json:"inferred,omitempty"`
	// Candidates are the clusters that the Unknown end may be, when more than one is possible ("one of n").
	Candidates []mesh.ClusterName `json:"candidates,omitempty"`
	FirstSeen  time.Time          `json:"firstSeen"`
	LastSeen   time.Time          `json:"lastSeen"` // traffic was last seen
	Stale      bool               `json:"stale,omitempty"`
	// Rows is how many rows of the table this edge sums; 1 at the level of services.
	Rows      int        `json:"rows"`
	Exemplars []Exemplar `json:"exemplars,omitempty"`
}

// CodeRate is a response code and its rate per second.
type CodeRate struct {
	Code string  `json:"code"`
	Rate float64 `json:"rate"`
}

// Exemplar is a trace that passed over the edge.
type Exemplar struct {
	TraceID string    `json:"traceID"` // 32 hex digits
	At      time.Time `json:"at"`
	Bucket  int       `json:"bucket"` // index into Latency.Buckets
	Error   bool      `json:"error,omitempty"`
}

// CrossCluster reports whether the two ends are in different clusters, one of which may be unknown.
func (e *Edge) CrossCluster() bool { return e.From.Cluster != e.To.Cluster }

// L4Only reports whether nothing but connections is known of the edge.
func (e *Edge) L4Only() bool { return e.Server == nil && e.Client == nil && e.Rates == Rates{} }

// LatencyHint is what to do so that an edge gets request latency; "" if it has some.
func (e *Edge) LatencyHint() string {
	if e.Server != nil || e.Client != nil {
		return ""
	}
	hint := "L4 only: no request latency. "
	if e.To.Service == "" || e.To.Namespace == External || e.To.Cluster == Unknown {
		return hint + "A waypoint for the destination would measure it."
	}
	return hint + "To measure it: istioctl waypoint apply -n " + e.To.Namespace + " --enroll-namespace, in cluster " + string(e.To.Cluster)
}

// Node is a box of a view. Its rates are those of what it serves (incoming edges).
type Node struct {
	Party
	ID    string  `json:"id"`
	X     float64 `json:"x"` // centre; arbitrary units, a service's box is NodeWidth by NodeHeight
	Y     float64 `json:"y"`
	W     float64 `json:"w"`
	H     float64 `json:"h"`
	In    Rates   `json:"in"`
	InTCP TCP     `json:"inTCP"`
	// P99 of what it serves, over all callers; nil where nobody measures it.
	P99    *Quantile `json:"p99,omitempty"`
	Denied float64   `json:"denied,omitempty"`
	Stale  bool      `json:"stale,omitempty"`
	Hops   int       `json:"hops,omitempty"` // distance from the focus of a neighbourhood, negative: callers
	// Children is how many services a box of a higher level holds.
	Children int `json:"children,omitempty"`
	// Clusters are the others in which a service of the same namespace and name serves.
	Clusters []mesh.ClusterName `json:"clusters,omitempty"`
}

// Box is the frame of a cluster or a namespace around the nodes of a view of services.
type Box struct {
	Party
	X float64 `json:"x"` // top left
	Y float64 `json:"y"`
	W float64 `json:"w"`
	H float64 `json:"h"`
}

// ClusterState is what the table knows of a cluster that reports, or did.
type ClusterState struct {
	Name       mesh.ClusterName `json:"name"`
	LastReport time.Time        `json:"lastReport"` // end of the last interval, server's clock; zero: never
	Stale      bool             `json:"stale"`
	StaleSince time.Time        `json:"staleSince,omitzero"` // "no data since"
	Edges      int              `json:"edges"`
	Reports    uint64           `json:"reports"`
	Lost       uint64           `json:"lost"` // reports that never arrived: gaps in the numbering
	Refused    uint64           `json:"refused"`
	Caps       []CapHit         `json:"caps,omitempty"`
	Scrapes    []Scrape         `json:"scrapes,omitempty"`
	// Version of the agent's report: tells an old agent that sends less.
	Agent string `json:"agent,omitempty"`
}

// View is the answer to a Query: immutable, may be kept and shared.
type View struct {
	At         time.Time      `json:"at"`         // when it was true
	Generation uint64         `json:"generation"` // of the table; the same generation and query give the same view
	Layout     uint64         `json:"layout"`     // of positions: changes only when somebody asks for a new layout
	Level      Level          `json:"level"`
	Focus      string         `json:"focus,omitempty"`
	Historic   bool           `json:"historic,omitempty"`
	Nodes      []Node         `json:"nodes"`
	Edges      []Edge         `json:"edges"`
	Boxes      []Box          `json:"boxes,omitempty"`
	Clusters   []ClusterState `json:"clusters"`
	Links      []Link         `json:"links,omitempty"` // probed round trips between clusters
	// Hidden counts edges that Query.Max kept out, least traffic first.
	Hidden int `json:"hidden,omitempty"`
}

// Link is the state of the way from one cluster's agent to another's east-west gateway.
type Link struct {
	From mesh.ClusterName `json:"from"`
	To   mesh.ClusterName `json:"to"`
	// Milliseconds of a TCP connect to port 15008 over the last minute; nil if none succeeded.
	RTT  *float64  `json:"rtt"`
	Min  float64   `json:"min,omitempty"`
	Max  float64   `json:"max,omitempty"`
	Loss float64   `json:"loss"` // share of probes that failed, 0 to 1
	Sent int       `json:"sent"`
	At   time.Time `json:"at"`
	Why  string    `json:"why,omitempty"` // the last failure, one sentence
}

// Query asks for a view.
type Query struct {
	At    time.Time // zero: now
	Level Level
	Focus string // ID of a node: needed for a neighbourhood
	Hops  int    // of a neighbourhood; 0 means 2
	// Clusters and Namespaces keep edges with at least one end in them; empty: all. An end outside is drawn too.
	Clusters   []mesh.ClusterName
	Namespaces []string
	// See decides which services the asking person may see; nil: all. An edge is seen if both its ends are.
	See func(Party) bool
	Max int // edges at most, those with the most traffic; 0: all
}
