package relay

import (
	"context"
	"log/slog"
	"net"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// SpokeConfig is all an agent's end needs.
type SpokeConfig struct {
	ServerAddress string // host:port
	Authority     string // name in the server's certificate; empty: the host of ServerAddress
	Cluster       mesh.ClusterName
	UID           mesh.ClusterUID
	Version       string
	Identity      IdentityStore
	Inventory     *synclog.Source
	// OnDesired gets what has changed in the desired state since its last call; never called concurrently. It may take its time:
	// meanwhile changes are merged. Spoke.Desired gives the whole.
	OnDesired  func(ctx context.Context, c synclog.Changes)
	RenewRatio float64 // of a certificate's life after which it is renewed; default 0.5
	Log        *slog.Logger
	// Dial is how to reach ServerAddress; nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// SpokeStatus is how the agent's end is doing, for readiness and for people.
type SpokeStatus struct {
	Connected     bool
	Since         time.Time // of the last change of Connected
	ServerVersion string
	LastError     string // why the last attempt or session ended, in one sentence; empty while connected
	Identity      Identity
	Offset        time.Duration // agent's clock plus Offset is the hub's
	RTT           time.Duration
}

// Spoke is an agent's end.
type Spoke struct{ cfg SpokeConfig }

// NewSpoke checks the configuration and allocates; Run works.
func NewSpoke(cfg SpokeConfig) (*Spoke, error) { return &Spoke{cfg: cfg}, nil }

// Run enrols if needed, connects, renews, and comes back after every failure, until ctx ends; it returns nil then.
func (s *Spoke) Run(ctx context.Context) error { panic("stub") }

// Status tells how it is doing.
func (s *Spoke) Status() SpokeStatus { panic("stub") }

// Desired is the whole desired state as received so far. Prune only by a Complete one.
func (s *Spoke) Desired() synclog.Snapshot { panic("stub") }
