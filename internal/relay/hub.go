package relay

import (
	"context"
	"log/slog"
	"net"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
	"ambitmesh.dev/ambit/internal/relay/synclog"
	"github.com/prometheus/client_golang/prometheus"
)

// FamilySource gives the certificate family in force, and tells when it changes.
type FamilySource interface {
	Current() *family.Family  // never nil once the hub serves
	Changed() <-chan struct{} // closed at the next change
}

// HubConfig is all a hub needs; zero values of the optional fields mean the default.
type HubConfig struct {
	Family  FamilySource
	Gate    Gate
	Log     *slog.Logger
	Version string // the server's

	DisableEnrolment bool          // client certificates are supplied by hand: no tokens
	ClientLifetime   time.Duration // of issued certificates; default 24 h
	Heartbeat        time.Duration // default 5 s
	MaxSessions      int           // default 5,000
	MaxStrangers     int           // connections without an admitted session; default 1,024
	Inventory        synclog.Limits
}

// Hub is the management server's end.
type Hub struct{ cfg HubConfig }

// NewHub allocates; Serve works.
func NewHub(cfg HubConfig) *Hub { return &Hub{cfg: cfg} }

// Serve accepts agents until ctx ends; then it says goodbye to all and returns nil.
func (h *Hub) Serve(ctx context.Context, l net.Listener) error { panic("stub") }

// Publish sets the whole desired state of one cluster. Unchanged objects cost no traffic. The hub keeps the values: don't change
// them afterwards. With complete false, objects are added and changed but none is removed, and the agent is told not to conclude
// anything from an absence. An item that is too large is named in the error, keeps its former value, and makes the state incomplete.
func (h *Hub) Publish(c mesh.ClusterName, objects map[synclog.Key][]byte, complete bool) error {
	panic("stub")
}

// Refuse ends the cluster's session now and remembers why, so that its next message is answered with r (until Allow, or
// r.RetryAfter has passed, whichever is first; then the Gate is asked again).
func (h *Hub) Refuse(c mesh.ClusterName, r *Refusal) { panic("stub") }

// Allow forgets refusals of the cluster: the Gate is asked at its next attempt. Call it when a cluster has been registered.
func (h *Hub) Allow(c mesh.ClusterName) { panic("stub") }

// Forget drops all that is kept for a cluster that is no longer registered, ending its session with r.
func (h *Hub) Forget(c mesh.ClusterName, r *Refusal) { panic("stub") }

// Sessions lists every cluster that was published to or admitted since the hub started, by name.
func (h *Hub) Sessions() []SessionInfo { panic("stub") }

// Inventory returns what a cluster has reported. It never lacks an item merely because it is being sent again: absence counts
// once the whole has arrived. warm is false until that has happened once. The values must not be changed.
func (h *Hub) Inventory(c mesh.ClusterName) (items map[synclog.Key][]byte, warm bool) { panic("stub") }

// Changed waits until the session or the inventory of some clusters has changed since the last call, and returns their names.
// Heartbeats alone are no change. For one caller; it never blocks the hub.
func (h *Hub) Changed(ctx context.Context) ([]mesh.ClusterName, error) { panic("stub") }

// Collector gives the relay's metrics, for the composition root to register.
func (h *Hub) Collector() prometheus.Collector { panic("stub") }
