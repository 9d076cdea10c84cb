package mesh

import "time"

// Session is what the hub knows of a cluster's agent.
type Session struct {
	Connected     bool
	Since         time.Time // of Connected or not Connected
	LastHeartbeat time.Time
	AgentVersion  string
	UID           ClusterUID
	// Offset is the server's clock minus the agent's.
	Offset time.Duration
	// Measured: Offset holds a value.
	Measured bool
	// Refusal says why an agent of this name was sent away last, in one sentence; empty: it was not, since its last session began.
	Refusal string
	// RefusedIdentity: the refusal was about who the agent is, not about when it came.
	RefusedIdentity bool
	// Ended says why the last session ended, when it is not Connected.
	Ended string
}
