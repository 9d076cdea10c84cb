package relay

import (
	"sync"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// cluster is what the hub keeps for one cluster from session to session: both logs, and how things are going.
type cluster struct {
	name      mesh.ClusterName
	desired   *synclog.Source
	inventory *synclog.Sink

	mu        sync.Mutex
	session   *session // running; nil while disconnected
	since     time.Time
	hello     Hello
	identity  Identity
	heartbeat time.Time
	offset    time.Duration
	roundTrip time.Duration
	acked     synclog.Position
	refusal   *Refusal
	refusedAt time.Time
}

func (c *cluster) current() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

// attach makes s the running session and returns the one it replaces.
func (c *cluster) attach(s *session, now time.Time) (replaced *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	replaced = c.session
	if replaced == nil {
		c.since = now
	}
	c.session, c.hello, c.identity = s, s.hello, s.identity
	c.acked = s.held
	c.refusal, c.refusedAt = nil, time.Time{}
	return replaced
}

// detach ends s, if it is still the running session.
func (c *cluster) detach(s *session, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != s {
		return false
	}
	c.session, c.since = nil, now
	return true
}

// take applies inventory that came with s; what comes with a session that is no longer the running one is dropped.
func (c *cluster) take(s *session, chunk synclog.Chunk) (mine bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != s {
		return false, nil
	}
	return true, c.inventory.Apply(chunk)
}

// rebind notes the identity that the running session has been given by Renew; false if no session runs with the key old.
func (c *cluster) rebind(old mesh.Fingerprint, id Identity) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil || c.identity.Key != old {
		return false
	}
	c.identity = id
	return true
}

func (c *cluster) runsWith(key mesh.Fingerprint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session != nil && c.identity.Key == key
}

func (c *cluster) beat(s *session, offset, roundTrip time.Duration, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == s {
		c.heartbeat, c.offset, c.roundTrip = now, offset, roundTrip
	}
}

func (c *cluster) acknowledged(s *session, pos synclog.Position) {
	c.mu.Lock()
	mine := c.session == s
	if mine {
		c.acked = pos
	}
	c.mu.Unlock()
	if mine {
		c.desired.Acked(pos)
	}
}

// refused keeps the last refusal; true if it says something new.
func (c *cluster) refused(r *Refusal, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := c.refusal == nil || c.refusal.Message != r.Message
	c.refusal, c.refusedAt = r, now
	return fresh
}

func (c *cluster) info() SessionInfo {
	c.mu.Lock()
	i := SessionInfo{
		Cluster: c.name, Connected: c.session != nil, Since: c.since, LastHeartbeat: c.heartbeat, AgentVersion: c.hello.AgentVersion,
		UID: c.hello.UID, Identity: c.identity, Remote: c.hello.Remote, Offset: c.offset, RTT: c.roundTrip,
		LastRefusal: c.refusal, LastRefusalAt: c.refusedAt,
	}
	acked := c.acked
	c.mu.Unlock()
	i.InventoryVersion = c.inventory.Position().Version
	i.Warm = c.inventory.Warm()
	head := c.desired.Head()
	i.DesiredVersion = head.Version
	if acked.Epoch == head.Epoch {
		i.DesiredAcked = acked.Version
	}
	i.Lag = c.desired.Pending(acked)
	return i
}
