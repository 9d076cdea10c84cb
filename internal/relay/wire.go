package relay

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// Protocol versions spoken by this build. Raise Protocol when an old peer could misunderstand; raise MinProtocol two minor
// releases later.
const (
	Protocol    = 1
	MinProtocol = 1
)

// maxMessage bounds a gRPC message in both directions: a chunk of the largest accepted size with room to spare.
const maxMessage = 1 << 20

const (
	maxVersionBytes = 64
	maxUIDBytes     = 128
	maxTokenBytes   = 4 << 10
	maxRetryAfter   = 10 * time.Minute
	maxSentence     = 1 << 10
)

func toPosition(p *relayv1.Position) synclog.Position {
	return synclog.Position{Epoch: p.GetEpoch(), Version: p.GetVersion(), Base: p.GetBase()}
}

func fromPosition(p synclog.Position) *relayv1.Position {
	return &relayv1.Position{Epoch: p.Epoch, Version: p.Version, Base: p.Base}
}

func toChunk(c *relayv1.Chunk) synclog.Chunk {
	out := synclog.Chunk{
		Epoch: c.GetEpoch(), After: c.GetAfter(), Through: c.GetThrough(), Head: c.GetHead(), Base: c.GetBase(), Complete: c.GetComplete(),
	}
	if n := len(c.GetItems()); n > 0 {
		out.Items = make([]synclog.Item, n)
	}
	for i, it := range c.GetItems() {
		out.Items[i] = synclog.Item{
			Key: synclog.Key{Type: it.GetType(), Name: it.GetName()}, Version: it.GetVersion(), Deleted: it.GetDeleted(),
			Value: it.GetValue(), Part: it.GetPart(), Parts: it.GetParts(),
		}
	}
	return out
}

func fromChunk(c synclog.Chunk) *relayv1.Chunk {
	out := &relayv1.Chunk{
		Epoch: c.Epoch, After: c.After, Through: c.Through, Head: c.Head, Base: c.Base, Complete: c.Complete,
		Items: make([]*relayv1.Item, len(c.Items)),
	}
	items := make([]relayv1.Item, len(c.Items)) // one allocation
	for i, it := range c.Items {
		p := &items[i]
		p.Type, p.Name, p.Version, p.Deleted, p.Value, p.Part, p.Parts = it.Type, it.Name, it.Version, it.Deleted, it.Value, it.Part, it.Parts
		out.Items[i] = p
	}
	return out
}

// parseHello checks the shape of what an agent says about itself, and finds a protocol version that both speak.
func parseHello(m *relayv1.Hello) (h Hello, protocol uint32, err error) {
	h = Hello{Cluster: mesh.ClusterName(m.GetCluster()), UID: mesh.ClusterUID(m.GetClusterUid()), AgentVersion: m.GetAgentVersion()}
	if err := h.Cluster.Validate(); err != nil {
		return Hello{}, 0, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "the agent's greeting: %s", clip(err.Error()))
	}
	if err := checkAbout(h.UID, h.AgentVersion); err != nil {
		return Hello{}, 0, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "the agent's greeting: %v", err)
	}
	low, high := m.GetMinProtocol(), m.GetProtocol()
	switch {
	case high == 0 || low > high:
		return Hello{}, 0, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "the agent's greeting: protocol versions %d to %d make no sense", low, high)
	case low > Protocol:
		return Hello{}, 0, Refuse(relayv1.Goodbye_VERSION_SKEW, "the agent (version %s) speaks relay protocol %d to %d, this management server up to %d: upgrade the management server first, then the agents", h.AgentVersion, low, high, Protocol)
	case high < MinProtocol:
		return Hello{}, 0, Refuse(relayv1.Goodbye_VERSION_SKEW, "the agent (version %s) speaks relay protocol %d to %d, this management server from %d on: upgrade the agent", h.AgentVersion, low, high, MinProtocol)
	}
	return h, min(high, Protocol), nil
}

func checkAbout(uid mesh.ClusterUID, version string) error {
	switch {
	case uid == "" || len(uid) > maxUIDBytes || !printable(string(uid)):
		return fmt.Errorf("kube-system UID of %d bytes: want 1 to %d printable ones", len(uid), maxUIDBytes)
	case len(version) > maxVersionBytes || !printable(version):
		return fmt.Errorf("agent version of %d bytes: want at most %d printable ones", len(version), maxVersionBytes)
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > maxSentence {
		return s[:maxSentence] + "..."
	}
	return s
}

// toGoodbye and the functions below carry a Refusal over the wire: as a message in a session, as a status with a detail elsewhere.
func toGoodbye(r *Refusal) *relayv1.Goodbye {
	return &relayv1.Goodbye{Reason: r.Reason, Message: r.Message, RetryAfterSeconds: uint32(r.RetryAfter.Seconds())}
}

func fromGoodbye(g *relayv1.Goodbye) *Refusal {
	wait := min(time.Duration(g.GetRetryAfterSeconds())*time.Second, maxRetryAfter)
	return &Refusal{Reason: g.GetReason(), Message: clip(g.GetMessage()), RetryAfter: wait}
}

var codeOf = map[relayv1.Goodbye_Reason]codes.Code{ //nolint:gochecknoglobals // a table, never written
	relayv1.Goodbye_SHUTTING_DOWN: codes.Unavailable, relayv1.Goodbye_NOT_REGISTERED: codes.FailedPrecondition,
	relayv1.Goodbye_REVOKED: codes.PermissionDenied, relayv1.Goodbye_WRONG_CLUSTER: codes.PermissionDenied,
	relayv1.Goodbye_REPLACED: codes.Aborted, relayv1.Goodbye_VERSION_SKEW: codes.FailedPrecondition,
	relayv1.Goodbye_PROTOCOL_ERROR: codes.InvalidArgument, relayv1.Goodbye_OVERLOADED: codes.ResourceExhausted,
	relayv1.Goodbye_BAD_CERTIFICATE: codes.Unauthenticated, relayv1.Goodbye_BAD_TOKEN: codes.Unauthenticated,
}

func toStatus(r *Refusal) error {
	code, ok := codeOf[r.Reason]
	if !ok {
		code = codes.Unknown
	}
	st := status.New(code, r.Message)
	if with, err := st.WithDetails(toGoodbye(r)); err == nil {
		st = with
	}
	return st.Err()
}

// refusalIn finds a Refusal in an error of gRPC, or nil.
func refusalIn(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	st, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, d := range st.Details() {
		if g, ok := d.(*relayv1.Goodbye); ok {
			return fromGoodbye(g)
		}
	}
	return nil
}
