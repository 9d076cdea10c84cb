package apply

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// wish is one desired object.
type wish struct {
	manifest []byte
	hash     mesh.Fingerprint // of manifest
}

// known is what we know of an object that we applied, or tried to.
type known struct {
	hash    mesh.Fingerprint // of the manifest applied or tried last
	ok      bool             // the cluster took it
	drifted bool             // it has been changed or deleted since
	drifts  int              // times in a row, less than a minute apart, that it had drifted
	drift   time.Time        // the last time
	tries   int              // failures in a row
	next    time.Time        // not before; zero: at once
}

// plan is what to do now.
type plan struct {
	Record []mesh.Ref // to be added to the inventory before anything else happens
	Apply  []mesh.Ref
	Prune  []mesh.Ref
	// Drop are lines of the inventory that name an object by a version it is no longer applied as: the object itself stays.
	Drop []mesh.Ref
	Wake time.Time // when a failed one is due again; zero: nothing waits
}

// decide compares what is desired with what is known. Pure. It prunes only what the inventory lists, and only by a complete desired state: what is absent from
// an incomplete one may merely not have arrived.
func decide(desired map[mesh.Ref]wish, complete bool, inventory map[mesh.Ref]bool, state map[mesh.Ref]known, now time.Time) plan {
	var p plan
	for ref, w := range desired {
		k, tried := state[ref]
		current := tried && k.hash == w.hash
		if current && k.ok && !k.drifted {
			continue
		}
		if current && k.next.After(now) {
			if p.Wake.IsZero() || k.next.Before(p.Wake) {
				p.Wake = k.next
			}
			continue
		}
		if !inventory[ref] {
			p.Record = append(p.Record, ref)
		}
		p.Apply = append(p.Apply, ref)
	}
	if complete {
		wanted := make(map[mesh.Ref]bool, len(desired))
		for ref := range desired {
			wanted[anyVersion(ref)] = true
		}
		for ref := range inventory {
			if _, same := desired[ref]; same {
				continue
			}
			if wanted[anyVersion(ref)] {
				p.Drop = append(p.Drop, ref)
				continue
			}
			if k := state[ref]; k.next.After(now) {
				if p.Wake.IsZero() || k.next.Before(p.Wake) {
					p.Wake = k.next
				}
				continue
			}
			p.Prune = append(p.Prune, ref)
		}
	}
	for _, refs := range [][]mesh.Ref{p.Record, p.Apply, p.Prune, p.Drop} {
		slices.SortFunc(refs, mesh.Ref.Compare)
	}
	return p
}

// anyVersion names the object, which is the same in whichever version it is read or written.
func anyVersion(r mesh.Ref) mesh.Ref {
	r.Version = ""
	return r
}

// withDrift notes that an object is not as we left it. The first few times it is put back at once; whoever fights on waits longer each time.
func (k known) withDrift(now time.Time) known {
	if now.Sub(k.drift) > time.Minute {
		k.drifts = 0
	}
	k.drifted, k.drift = true, now
	if k.drifts++; k.drifts > 3 {
		k.next = now.Add(backOff(k.drifts - 3))
	}
	return k
}

// backOff is how long to wait after a number of failures in a row: 1 s, doubling, at most a minute.
func backOff(failures int) time.Duration {
	return min(time.Second<<min(max(failures-1, 0), 6), time.Minute)
}

// covers reports whether live has every field of desired with the same value. A list must have as many elements, each covering its counterpart: one more
// element in a list of rules is a change of its meaning.
func covers(live, desired any) bool {
	switch d := desired.(type) {
	case map[string]any:
		l, ok := live.(map[string]any)
		if !ok {
			return len(d) == 0 && live == nil
		}
		for k, v := range d {
			if !covers(l[k], v) {
				return false
			}
		}
		return true
	case []any:
		l, ok := live.([]any)
		if !ok || len(l) != len(d) {
			return len(d) == 0 && live == nil
		}
		for i := range d {
			if !covers(l[i], d[i]) {
				return false
			}
		}
		return true
	case nil:
		return true // a null in a manifest asks for nothing
	default:
		a, errA := json.Marshal(live)
		b, errB := json.Marshal(desired)
		return errA == nil && errB == nil && bytes.Equal(a, b)
	}
}
