package translate

import (
	"fmt"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Warmth says what the server may tell the clusters now (safe mode): a cluster that has not reported must not look like an empty one.
type Warmth struct {
	// Add: additions and changes may go out.
	Add bool
	// Remove: the desired states are complete; what is not in them may be removed.
	Remove bool
	// Waiting are the clusters whose inventory is missing, sorted.
	Waiting []mesh.ClusterName
	// Reason is one sentence.
	Reason string
}

// Warm decides. Removal waits for the whole inventory of every registered cluster that has ever connected, save those with skipWarming;
// one that has never connected has nothing to report. Additions wait for the same, but no longer than grace after the start,
// so that one cluster that stays away does not hold up the others for ever.
func Warm(s *mesh.Snapshot, sinceStart, grace time.Duration) Warmth {
	var w Warmth
	for i := range s.Clusters {
		c := &s.Clusters[i]
		if c.SkipWarming || c.UID == "" || c.Inventory != nil && c.Inventory.Complete {
			continue
		}
		w.Waiting = append(w.Waiting, c.Name)
	}
	switch {
	case len(w.Waiting) == 0:
		w.Add, w.Remove = true, true
		w.Reason = "the inventory of every cluster is known"
	case sinceStart >= grace:
		w.Add = true
		w.Reason = fmt.Sprintf("nothing is removed until these clusters have reported their inventory (or are deregistered, or have spec.skipWarming): %s", join(w.Waiting))
	default:
		w.Reason = fmt.Sprintf("nothing is sent yet: waiting for the inventory of %s", join(w.Waiting))
	}
	return w
}

func join(names []mesh.ClusterName) string {
	s := make([]string, len(names))
	for i, n := range names {
		s[i] = string(n)
	}
	return strings.Join(s, ", ")
}
