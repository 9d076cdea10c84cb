package report

import (
	"fmt"
	"strconv"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// VersionSupported compares an agent's version with the server's: the same minor version or one apart may work together, as Helm upgrades
// the one before the other. A difference is reported, not refused: only the relay's protocol number ends a session.
func VersionSupported(agent, server string) mesh.Condition {
	c := mesh.Condition{Type: adminv2.ConditionVersionSupported}
	am, an, aok := minor(agent)
	sm, sn, sok := minor(server)
	switch d := (am-sm)*1000 + an - sn; {
	case !aok || !sok:
		c.Status, c.Reason = mesh.Unknown, adminv2.ReasonVersionUnknown
		c.Message = fmt.Sprintf("the agent's version is %q and the server's %q: want X.Y.Z to compare them", agent, server)
	case d < -1:
		c.Status, c.Reason = mesh.False, adminv2.ReasonAgentTooOld
		c.Message = fmt.Sprintf("the agent is %s, the server %s: more than one minor version apart; upgrade the agent: helm upgrade gloo-platform --version %s there", agent, server, server)
	case d > 1:
		c.Status, c.Reason = mesh.False, adminv2.ReasonAgentTooNew
		c.Message = fmt.Sprintf("the agent is %s, the server %s: more than one minor version apart; upgrade the management server to %s", agent, server, agent)
	default:
		c.Status, c.Reason = mesh.True, adminv2.ReasonVersionsMatch
		c.Message = fmt.Sprintf("agent %s and server %s may work together", agent, server)
	}
	return c
}

func minor(v string) (major, min int, ok bool) {
	p := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	if len(p) < 2 {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(p[0])
	min, err2 := strconv.Atoi(p[1])
	return major, min, err1 == nil && err2 == nil
}
